"""What the documentation says runs, and it says something of every public name."""

import doctest
import gc
import importlib
import inspect
import pkgutil
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

import pytest
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

import callbackkit
from callbackkit.__main__ import make_parser
from tests.stores.redis_server import Server, marks

ROOT = Path(__file__).parents[1]
SYBIL = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()])
TEXTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PAGES = [path for path in TEXTS if list(SYBIL.parse(path).examples())]
MODULES = sorted(
    found.name
    for found in pkgutil.walk_packages(callbackkit.__path__, "callbackkit.")
    if not found.name.startswith(("callbackkit._examples", "callbackkit.__main__"))
)
# Modules that an application imports names from.
DOORS = [
    "callbackkit.client",
    "callbackkit.http.fastapi",
    "callbackkit.http.starlette",
    "callbackkit.integrations.opentelemetry",
    "callbackkit.integrations.prometheus",
    "callbackkit.stores.redis",
    "callbackkit.stores.sqlite",
    "callbackkit.testing",
    "callbackkit.webhooks.receiver",
    "callbackkit.webhooks.transport",
]


def run(page: Path) -> None:
    """Run the blocks of a page from top to bottom in one namespace."""
    for example in SYBIL.parse(page).examples():
        example.evaluate()


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def wants_redis(page: Path) -> bool:
    return "REDIS_URL" in page.read_text("utf-8")


@pytest.fixture(scope="module")
def redis() -> Iterator[Server]:
    """The server that pages mean by REDIS_URL."""
    with Server(appendonly="yes") as server:
        yield server


@pytest.mark.parametrize("page", [page for page in PAGES if not wants_redis(page)], ids=name_of)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # a page may write files
    run(page)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=marks) for page in PAGES if wants_redis(page)],
    ids=lambda page: name_of(page),
)
def test_the_blocks_of_a_page_run_with_redis(
    page: Path, redis: Server, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REDIS_URL", redis.url)
    redis.call("FLUSHALL")
    run(page)
    gc.collect()  # what coredis leaves open, see `marks`


def test_the_readme_is_a_page_that_runs() -> None:
    assert ROOT / "README.md" in PAGES


@pytest.mark.parametrize(
    "block",
    ["```python\nassert 1 == 2\n```\n", "```python\n>>> 1 + 1\n3\n```\n"],
    ids=["assert", "doctest"],
)
def test_a_block_that_is_wrong_fails(tmp_path: Path, block: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{block}", "utf-8")
    with pytest.raises(Exception, match=r"assert 1 == 2|Expected:\s+3|^$"):
        run(page)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_docstrings_run(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0


def test_the_reference_has_every_public_name_once() -> None:
    pages = [page.read_text("utf-8") for page in (ROOT / "docs" / "reference").glob("*.md")]
    told = re.findall(r"^\.\. auto\w+:: callbackkit\.(\w+)$", "\n".join(pages), re.MULTILINE)
    assert sorted(told) == sorted(callbackkit.__all__)


@pytest.mark.parametrize("module", DOORS)
def test_the_reference_has_what_a_front_door_offers(module: str) -> None:
    """What is imported from a module, for it needs an extra or is not for every day."""
    pages = [page.read_text("utf-8") for page in (ROOT / "docs" / "reference").glob("*.md")]
    told = re.findall(r"^\.\. auto\w+:: callbackkit\.([\w.]+)$", "\n".join(pages), re.MULTILINE)
    told += [f"{name.rpartition('.')[2]}" for name in told]
    offered = importlib.import_module(module).__all__
    assert [name for name in offered if name not in told] == []


def test_the_readme_names_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    table = re.findall(
        r"^\| (`[\w`, -]+`) \|", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE
    )
    assert sorted(re.findall(r"`([\w-]+)`", " ".join(table))) == sorted(
        project["optional-dependencies"]
    )


@pytest.mark.parametrize("name", callbackkit.__all__)
def test_a_public_class_or_function_and_its_methods_are_told(name: str) -> None:
    value = getattr(callbackkit, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        told = {name: value} | {
            f"{name}.{attribute}": member
            for attribute, member in vars(value).items()
            if not attribute.startswith("_")
            and isinstance(member, FunctionType | property | classmethod | staticmethod)
        }
        assert [found for found in told if not is_told(value, found)] == []


def is_told(value: type | FunctionType, found: str) -> bool:
    """A method that keeps a port is told by the port."""
    _, _, attribute = found.partition(".")
    return bool(inspect.getdoc(getattr(value, attribute) if attribute else value))


def test_a_section_lists_all_its_pages() -> None:
    """The sections that are written page by page take in whatever stands in their folder."""
    for section in ("tutorial", "how-to", "explanation"):
        assert ":glob:\n\n*\n" in (ROOT / "docs" / section / "index.md").read_text("utf-8")


def test_a_link_to_a_test_leads_to_a_test() -> None:
    """A guarantee names the test that holds it as ``tests/…/test_x.py::test_name``."""
    text = "\n".join(page.read_text("utf-8") for page in TEXTS)
    for path, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", text):
        assert re.search(rf"\b(def|class) {name}\b", (ROOT / path).read_text("utf-8")), name


def commands() -> Iterator[tuple[str, str]]:
    """Yield each command of ours that a page shows, with the page."""
    for page in sorted([*TEXTS, *(ROOT / "examples").glob("*.md")]):
        for line in re.findall(r"python -m callbackkit ([^`\n]+)", page.read_text("utf-8")):
            yield name_of(page), line


@pytest.mark.parametrize(("page", "line"), sorted(set(commands())))
def test_a_command_has_the_options_that_there_are(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    if len(words) == 1:  # only named
        assert words[0] in make_parser().format_help()
        return
    end = min((words.index(each) for each in ("|", ">", "&&") if each in words), default=None)
    assert make_parser().parse_args(words[:end]).command
