"""The everyday names: lazy at run time, static for type checkers, one import path each."""

import ast
import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import callbackkit

HOMES: dict[str, str] = callbackkit._HOMES
SOURCE = Path(inspect.getfile(callbackkit))


def statically_imported() -> Iterator[tuple[str, str]]:
    """Yield (name, module) of the ``if TYPE_CHECKING:`` block."""
    for statement in ast.parse(SOURCE.read_text("utf-8")).body:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            for imported in statement.body:
                if isinstance(imported, ast.ImportFrom):
                    for alias in imported.names:
                        yield alias.name, str(imported.module)


def new_modules(statement: str) -> set[str]:
    """Return the modules that a statement imports in a fresh interpreter."""
    program = (
        "import sys; before = set(sys.modules)\n"
        f"{statement}\n"
        "import json; print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return set(json.loads(done.stdout))


def test_the_three_lists_agree() -> None:
    assert callbackkit.__all__ == sorted(HOMES)
    assert dict(statically_imported()) == HOMES


@pytest.mark.parametrize("name", sorted(HOMES))
def test_each_name_is_the_object_of_its_module(name: str) -> None:
    assert getattr(callbackkit, name) is getattr(importlib.import_module(HOMES[name]), name)


@pytest.mark.parametrize("name", sorted(HOMES))
def test_each_name_is_defined_in_the_module_it_is_taken_from(name: str) -> None:
    """A name has one home: no module of ours passes on what another one defines."""
    value = getattr(callbackkit, name)
    assert getattr(value, "__module__", HOMES[name]) in {HOMES[name], "typing"}


def test_an_import_of_the_package_imports_nothing_but_logging() -> None:
    ours = {name for name in new_modules("import logging, typing, callbackkit") if "." in name}
    assert not {name for name in ours if name.startswith("callbackkit")}
    brought = new_modules("import callbackkit") - new_modules("import logging, typing")
    assert brought == {"callbackkit"}


def test_every_name_together_imports_no_package_but_the_three_dependencies() -> None:
    brought = new_modules("from callbackkit import *")
    packages = {name.partition(".")[0] for name in brought} - set(sys.stdlib_module_names)
    baseline = new_modules("import asyncio, anyio.lowlevel, attrs, typing_extensions")
    of_dependencies = {name.partition(".")[0] for name in baseline}
    assert packages - of_dependencies == {"callbackkit"}
    assert not {name for name in brought if name.startswith("callbackkit.testing")}


def test_a_star_import_brings_all_names() -> None:
    namespace: dict[str, object] = {}
    exec("from callbackkit import *", namespace)
    assert namespace.keys() >= set(HOMES)


def test_dir_lists_the_lazy_names() -> None:
    assert set(dir(callbackkit)) >= {*HOMES, "__version__", "__doc__"}


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    name = "Registry"
    with pytest.raises(AttributeError, match="module 'callbackkit' has no attribute 'Registry'"):
        getattr(callbackkit, name)


def test_the_version_is_the_installed_one() -> None:
    """In a checkout that is not installed there is none, and the error says so."""
    try:
        installed = version("callbackkit")
    except PackageNotFoundError:
        with pytest.raises(PackageNotFoundError):
            _ = callbackkit.__version__
    else:
        assert callbackkit.__version__ == installed


def test_the_package_is_silent_until_logging_is_configured() -> None:
    program = "import callbackkit, logging; logging.getLogger('callbackkit.x').warning('hello')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stderr == b""
