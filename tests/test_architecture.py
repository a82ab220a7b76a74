"""The floors of the house: imports point down only, and some rooms do without some modules.

Read from the source with `ast`, so that an import counts wherever it stands: at the top, under
`TYPE_CHECKING`, in a function. Only the lazy names of the package's `__init__` are left out.
"""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

PACKAGE = "callbackkit"

# Ground first. A room imports from floors below its own, and from itself.
FLOORS = {
    "errors": 0,
    "events": 1,
    "wire": 2,
    "buffer": 3,
    "dispatch": 4,
    "streaming": 5,
    "stores": 6,
    "delivery": 7,
    "sessions": 8,
    "transports": 9,
    "webhooks": 9,
    "panel": 9,
    # What http serves at /metrics is written there.
    "integrations": 9,
    "http": 10,
    "client": 10,
    "testing": 10,
    "__main__": 11,
}

# A room with several members is entered by its front door: room -> {door: who may use it}.
ANYONE = None
# The command line is an application, and the kit that tries transports needs a store to do it.
FRONT_DOORS = {
    "stores": {
        "stores.base": ANYONE,
        "stores.memory": {"sessions.manager", "testing.transport_rounds"},
        "stores.redis": {"__main__"},
        "stores.sqlite": {"__main__"},
    }
}

SANS_IO = {"errors", "events", "wire"}
NOT_IN_SANS_IO = {"anyio", "random", "socket", "threading", "time"}

DEPENDENCIES = {"anyio", "attrs", "typing_extensions"}
# trio is there whenever it runs us, and only then: these import it inside functions.
KNOWS_TRIO = {"buffer", "dispatch", "streaming"}
# The one file of a vendor, or its room.
VENDORS = {
    "client": {"httpx2", "wsproto"},
    "http": {"msgspec", "starlette"},
    "http.fastapi": {"fastapi"},
    "integrations.opentelemetry": {"opentelemetry"},
    "integrations.prometheus": {"prometheus_client"},
    "stores.redis_client": {"coredis"},
    "testing.pytest_plugin": {"pytest"},
    "testing.store_machine": {"hypothesis"},
    "testing.transport_rounds": {"hypothesis"},
    "webhooks.aiohttp": {"aiohttp", "yarl"},
    "webhooks.httpx2": {"httpcore2", "httpx2"},
    "wire.signature": {"cryptography"},
}


@attrs.frozen
class Import:
    """One imported module, as the source says it.

    Attributes:
        importer: Module inside the package, dotted, ``""`` for the package itself.
        imported: Full dotted name of the imported module.
        line: Line of the statement.
        in_function: It runs when a function is called, not when the module is imported.
    """

    importer: str
    imported: str
    line: int
    in_function: bool

    @property
    def room(self) -> str:
        return self.importer.partition(".")[0]

    @property
    def package(self) -> str:
        return self.imported.partition(".")[0]

    @property
    def target(self) -> str:
        """The imported module inside the package, dotted."""
        return self.imported.partition(".")[2]

    def __str__(self) -> str:
        return f"{self.importer or PACKAGE}:{self.line} imports {self.imported}"


# Reading the source.


def modules(root: Path) -> dict[str, Path]:
    """Map the dotted names inside the package to their files; examples it carries are not it."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] != "_examples":
            found[".".join(parts).removesuffix("__init__").removesuffix(".")] = path
    return found


def imports(root: Path) -> Iterator[Import]:
    """Yield every import of every module, but for the lazy names of the package itself."""
    known = modules(root)
    for name, path in known.items():
        tree = ast.parse(path.read_text("utf-8"), str(path))
        for node, in_function in walk(tree):
            for imported in imported_by(node, known):
                lazy = name == "" and imported.startswith(f"{PACKAGE}.")
                if not lazy:
                    yield Import(name, imported, getattr(node, "lineno", 0), in_function)


def walk(node: ast.AST, in_function: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    yield node, in_function
    inner = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from walk(child, inner)


def imported_by(node: ast.AST, known: dict[str, Path]) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(module=module, names=names, level=level):
            base = "." * level + (module or "")
            for alias in names:
                # `from a import b` imports the module a.b if there is one, else a.
                full = f"{base}.{alias.name}"
                is_module = full.removeprefix(f"{PACKAGE}.") in known
                yield full if is_module else base
        case ast.Call(func=ast.Name(id="__import__") | ast.Attribute(attr="import_module")) if (
            node.args and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value)


# The rules.


def broken_floors(root: Path) -> list[str]:
    """Name the modules on no floor and the imports that do not point down."""
    rooms = {name.partition(".")[0] for name in modules(root)} - {""}
    broken = [f"{room} is on no floor" for room in sorted(rooms - FLOORS.keys())]
    for found in imports(root):
        if found.imported.startswith("."):
            broken.append(f"{found}, by a relative path")
        elif found.package == PACKAGE and not points_down(found):
            broken.append(f"{found}, which is not below it")
    return broken


def points_down(found: Import) -> bool:
    target = found.target.partition(".")[0]
    if target == "":  # the everyday names stand on everything; only the command line is above
        return found.room == "__main__"
    return target == found.room or FLOORS.get(target, 99) < FLOORS.get(found.room, -1)


def broken_doors(root: Path) -> list[str]:
    """Name the imports that enter a room by another way than its front door."""
    broken = []
    for found in imports(root):
        room = found.target.partition(".")[0]
        if found.package == PACKAGE and room in FRONT_DOORS and found.room != room:
            guests = FRONT_DOORS[room].get(found.target, set())
            if guests is not ANYONE and found.importer not in guests:
                broken.append(f"{found}, which is not its front door")
    return broken


def broken_silence(root: Path) -> list[str]:
    """Name the imports of clock, chance, socket, thread or event loop in the ground rooms."""
    return [
        str(found)
        for found in imports(root)
        if found.room in SANS_IO and found.package in NOT_IN_SANS_IO
    ]


def broken_independence(root: Path) -> list[str]:
    """Name the imports of packages that are neither ours, the standard library nor allowed."""
    return [str(found) for found in imports(root) if not is_allowed(found)]


def is_allowed(found: Import) -> bool:
    if found.imported.startswith(".") or found.package == PACKAGE:
        return True
    if found.package == "trio":
        return found.room in KNOWS_TRIO and found.in_function
    vendors = VENDORS.get(found.importer, set()) | VENDORS.get(found.room, set())
    return found.package in sys.stdlib_module_names | DEPENDENCIES | vendors


# Rooms that users import from, not from their modules.
RE_EXPORTS = {"", "client", "testing"}


def talking_inits(root: Path) -> list[str]:
    """Name the rooms whose ``__init__`` holds more than a docstring; two re-export."""
    return [
        name
        for name, path in modules(root).items()
        if path.name == "__init__.py" and name not in RE_EXPORTS and not is_docstring(path)
    ]


def is_docstring(path: Path) -> bool:
    tree = ast.parse(path.read_text("utf-8"))
    return len(tree.body) == 1 and ast.get_docstring(tree) is not None


RULES = [broken_floors, broken_doors, broken_silence, broken_independence, talking_inits]


# The house as it stands.


@pytest.mark.parametrize("rule", RULES)
def test_the_house_stands(rule) -> None:
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    assert rule(Path(spec.origin).parent) == []


# Each rule can be broken.


@pytest.fixture
def house(tmp_path: Path):
    """Return a function that builds a package from ``{path: source}`` and gives its root."""

    def build(sources: dict[str, str]) -> Path:
        for name, source in {"__init__.py": "", **sources}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source, "utf-8")
        return tmp_path

    return build


GOOD = {
    "__init__.py": "import logging\nfrom callbackkit.sessions.manager import M as M\n",
    "errors.py": "class E(Exception): ...\n",
    "events.py": "import attrs\nfrom callbackkit.errors import E\n",
    "buffer.py": "import threading\ndef f():\n    import trio\n",
    "dispatch/__init__.py": '"""Room."""\n',
    "dispatch/outcome.py": "from callbackkit import errors\n",
    "dispatch/registry.py": "from callbackkit.dispatch.outcome import O\nimport anyio.abc\n",
    "stores/base.py": "",
    "stores/memory.py": "from callbackkit.stores import base\n",
    "stores/sqlite.py": "import sqlite3\nfrom callbackkit.stores.memory import M\n",
    "sessions/manager.py": "from callbackkit.stores import base, memory\n",
    "testing/__init__.py": "from callbackkit.testing.mock import Mock as Mock\n",
    "testing/mock.py": "",
    "testing/pytest_plugin.py": "import pytest\n",
    "__main__.py": "from callbackkit import CallbackManager\n",
    "_examples/voice_bot.py": "import fastapi\nfrom callbackkit import CallbackManager\n",
}


@pytest.mark.parametrize("rule", RULES)
def test_a_good_house_passes(house, rule) -> None:
    assert rule(house(GOOD)) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        pytest.param("errors.py", "import callbackkit.events", id="up"),
        pytest.param("dispatch/a.py", "from callbackkit.sessions.manager import M", id="up-from"),
        pytest.param("dispatch/a.py", "from callbackkit import sessions", id="up-from-package"),
        pytest.param("webhooks/a.py", "import callbackkit.transports.sse", id="same-floor"),
        pytest.param(
            "buffer.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import callbackkit.dispatch",
            id="for-type-checkers",
        ),
        pytest.param("buffer.py", "def f():\n    import callbackkit.dispatch.slot", id="function"),
        pytest.param(
            "buffer.py",
            "import importlib\nx = importlib.import_module('callbackkit.dispatch.slot')",
            id="by-name",
        ),
        pytest.param("dispatch/a.py", "from callbackkit import CallbackRegistry", id="lazy-name"),
        pytest.param("dispatch/a.py", "import callbackkit", id="package"),
        pytest.param("dispatch/a.py", "from . import outcome", id="relative"),
        pytest.param("helpers.py", "", id="module-on-no-floor"),
        pytest.param("common/__init__.py", '"""Room."""', id="room-on-no-floor"),
        pytest.param("dispatch/a.py", "import callbackkit.helpers", id="import-from-no-floor"),
    ],
)
def test_an_import_that_does_not_point_down_is_found(house, path: str, source: str) -> None:
    assert len(broken_floors(house({**GOOD, path: source}))) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("sessions/session.py", "from callbackkit.stores.memory import MemoryStore"),
        ("sessions/manager.py", "from callbackkit.stores.sqlite import SQLiteStore"),
        ("delivery/engine.py", "def f():\n    from callbackkit.stores import sqlite"),
        ("delivery/engine.py", "import callbackkit.stores"),
    ],
)
def test_a_way_round_the_front_door_is_found(house, path: str, source: str) -> None:
    assert len(broken_doors(house({**GOOD, path: source}))) == 1


@pytest.mark.parametrize("room", ["errors.py", "events.py", "wire/signature.py"])
@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "from random import random",
        "def f():\n    import socket",
        "import threading as t",
        "import anyio.abc",
    ],
)
def test_clock_chance_and_sockets_in_the_ground_rooms_are_found(
    house, room: str, source: str
) -> None:
    assert len(broken_silence(house({**GOOD, room: source}))) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("__init__.py", "import requests"),
        ("dispatch/a.py", "import pydantic"),
        ("dispatch/a.py", "import trio"),
        ("sessions/manager.py", "def f():\n    import trio"),
        ("delivery/engine.py", "def f():\n    import trio"),
        ("dispatch/a.py", "def f():\n    from httpx2 import Client"),
        ("testing/mock.py", "import pytest"),
    ],
)
def test_a_foreign_package_is_found(house, path: str, source: str) -> None:
    assert len(broken_independence(house({**GOOD, path: source}))) == 1


@pytest.mark.parametrize(
    "source", ["", '"""Room."""\nfrom callbackkit.dispatch.outcome import O', "x = 1"]
)
def test_a_room_that_talks_in_its_init_is_found(house, source: str) -> None:
    assert talking_inits(house({**GOOD, "dispatch/__init__.py": source})) == ["dispatch"]
