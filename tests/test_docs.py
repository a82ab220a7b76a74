"""What the documentation says runs, and it says something of every public name."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import FunctionType

import pytest
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

import callbackkit

ROOT = Path(__file__).parents[1]
SYBIL = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()])
TEXTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PAGES = [path for path in TEXTS if list(SYBIL.parse(path).examples())]
MODULES = sorted(
    found.name
    for found in pkgutil.walk_packages(callbackkit.__path__, "callbackkit.")
    if not found.name.startswith(("callbackkit._examples", "callbackkit.__main__"))
)


def run(page: Path) -> None:
    """Run the blocks of a page from top to bottom in one namespace."""
    for example in SYBIL.parse(page).examples():
        example.evaluate()


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # a page may write files
    run(page)


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
