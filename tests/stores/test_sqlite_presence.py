"""Who has a file open is told by a lock beside it, which nobody waits for inside a transaction."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from callbackkit.errors import StoreUnavailableError
from callbackkit.stores.sqlite_presence import Presence


@pytest.fixture
def presences(tmp_path: Path) -> Iterator[list[Presence]]:
    """Three of one database."""
    presences = [Presence(str(tmp_path / "events.db")) for _ in range(3)]
    yield presences
    for presence in presences:
        presence.close()


def enter(presence: Presence, *, is_first: bool = True) -> bool:
    presence.enter(is_first=is_first, timeout=0.05)
    return presence.is_alone


def test_the_first_is_alone_and_the_second_waits_until_it_shares(presences) -> None:
    first, second, third = presences
    assert enter(first)
    with pytest.raises(StoreUnavailableError, match=r"events\.db was being opened by another"):
        enter(second)
    first.share(1)
    assert not first.is_alone
    assert not enter(second)
    assert not enter(third)


def test_an_opening_that_takes_its_time_is_waited_for(presences) -> None:
    first, second, _ = presences
    assert enter(first)
    sharing = threading.Timer(0.1, first.share, (1,))
    sharing.start()
    second.enter(is_first=True, timeout=20)
    assert not second.is_alone
    sharing.join()


def test_one_that_is_gone_leaves_the_next_alone(presences) -> None:
    first, second, _ = presences
    enter(first)
    first.share(1)
    first.close()
    assert enter(second)


def test_an_opening_that_came_to_nothing_lets_others_in(presences) -> None:
    first, second, _ = presences
    assert enter(first)
    first.fail()
    assert enter(second)


def test_an_opening_beside_others_that_came_to_nothing_leaves_one_there(presences) -> None:
    first, second, third = presences
    enter(first)
    first.share(1)
    assert not enter(first, is_first=False)
    first.fail()
    first.share(1)
    assert not enter(second)
    first.close()
    assert not enter(third)


def test_entering_again_does_not_let_go_for_a_moment(presences) -> None:
    """Asked for more, the system takes the shared lock away before it refuses."""
    first, second, _ = presences
    enter(first)
    first.share(1)
    enter(second)
    before = first.file
    assert not enter(first, is_first=False)
    assert first.file == before


def test_one_that_begins_again_after_a_failure_beside_others_is_not_alone(presences) -> None:
    first, second, third = presences
    enter(first)
    first.share(1)
    assert not enter(second)
    assert not enter(second)
    first.close()
    assert not enter(third)


def test_a_file_that_was_removed_is_made_anew(presences, tmp_path: Path) -> None:
    first, second, _ = presences
    enter(first)
    first.share(1)
    os.unlink(tmp_path / "events.db-instance")
    assert not enter(first, is_first=False)
    assert os.path.samestat(os.fstat(first.file), os.stat(tmp_path / "events.db-instance"))
    assert not enter(second)


def test_where_there_are_no_locks_nobody_is_alone_and_nobody_waits(presences, monkeypatch) -> None:
    def refuse(_file: int, _operation: int) -> None:
        raise OSError(95, "Operation not supported")

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", refuse)
    first, second, _ = presences
    assert not enter(first)
    assert not enter(second)
