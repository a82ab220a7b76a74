"""The front door."""

import os
import subprocess
import sys

import pytest

import callbackkit.client


def test_names_are_imported_when_they_are_used() -> None:
    program = (
        "import sys, callbackkit.client; assert 'httpx2' not in sys.modules;"
        "from callbackkit.client import follow; assert 'httpx2' in sys.modules"
    )
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | path)


def test_what_is_told_is_there() -> None:
    assert set(callbackkit.client.__all__) <= set(dir(callbackkit.client))
    for name in callbackkit.client.__all__:
        assert getattr(callbackkit.client, name).__name__ == name


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'folow'"):
        _ = callbackkit.client.folow
