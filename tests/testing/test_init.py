"""The room's names: lazy at run time, one import path each."""

import ast
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from callbackkit import testing

HOMES: dict[str, str] = testing._HOMES


def test_the_three_lists_agree() -> None:
    block = next(
        statement
        for statement in ast.parse(Path(inspect.getfile(testing)).read_text("utf-8")).body
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING"
    )
    static = {alias.name: one.module for one in block.body for alias in one.names}
    assert static == HOMES
    assert testing.__all__ == sorted(HOMES)


@pytest.mark.parametrize("name", sorted(HOMES))
def test_each_name_is_the_class_of_its_module(name: str) -> None:
    assert getattr(testing, name) is getattr(importlib.import_module(HOMES[name]), name)
    assert getattr(testing, name).__module__ == HOMES[name]
    assert name in vars(testing)  # looked up once


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    name = "Mock"
    with pytest.raises(AttributeError, match=r"'callbackkit\.testing' has no attribute 'Mock'"):
        getattr(testing, name)


def test_dir_lists_the_lazy_names() -> None:
    assert set(dir(testing)) >= {*HOMES, "__doc__"}


def test_an_import_of_the_room_imports_nothing_else() -> None:
    program = "import json, sys, callbackkit.testing; print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    modules = json.loads(done.stdout)
    ours = {name for name in modules if name.startswith("callbackkit")}
    assert ours == {"callbackkit", "callbackkit.testing"}
    assert not {"anyio", "attr", "pytest", "unittest.mock"} & set(modules)
