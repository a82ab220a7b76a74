import subprocess
import sys

import pytest

from tests.comparison.catalogue import DISTRIBUTIONS, LIBRARIES, OURS, PROBES, installed
from tests.comparison.page import PAGE, block, python_version, versions, with_block, words
from tests.comparison.runner import next_verdict, probed
from tests.comparison.verdicts import CRASHES, HANGS, SURVIVES, Verdict

PAGE_TEXT = PAGE.read_text("utf-8")


@pytest.fixture(scope="module")
def ours() -> dict[str, Verdict]:
    return probed(OURS, list(PROBES))


@pytest.mark.parametrize("probe", PROBES)
def test_callbackkit_survives(probe: str, ours: dict[str, Verdict]) -> None:
    assert ours[probe] == Verdict(SURVIVES)


def test_the_page_says_that_callbackkit_survives_every_probe() -> None:
    assert words(PAGE_TEXT)[OURS] == dict.fromkeys(PROBES, SURVIVES)


@pytest.mark.parametrize("peer", DISTRIBUTIONS)
def test_the_page_says_of_a_peer_what_a_run_gives(peer: str) -> None:
    named = versions(PAGE_TEXT)
    if (python_version(), installed().get(peer)) != (named["python"], named[peer]):
        pytest.skip(f"the page is about {peer} {named[peer]} on {named['python']}")
    found = probed(peer, list(PROBES))
    assert {probe: verdict.word for probe, verdict in found.items()} == words(PAGE_TEXT)[peer]


def test_what_is_written_to_the_page_can_be_read_back() -> None:
    verdicts = {name: dict.fromkeys(PROBES, Verdict(name, "why")) for name in LIBRARIES}
    numbers = dict.fromkeys(DISTRIBUTIONS, "1.2")
    page = with_block(PAGE_TEXT, block(verdicts, numbers))
    assert words(page) == {name: dict.fromkeys(PROBES, name) for name in LIBRARIES}
    assert versions(page) == {**numbers, "python": python_version()}
    assert with_block(page, block(verdicts, numbers)) == page


def worker(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_worker_that_says_nothing_is_ended_and_hangs() -> None:
    with worker("input()") as process:
        assert next_verdict(process, patience=0.2).word == HANGS


def test_a_worker_that_dies_has_crashed() -> None:
    with worker("raise SystemExit(3)") as process:
        assert next_verdict(process) == Verdict(CRASHES, "the process ends with code 3")
