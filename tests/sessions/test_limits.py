"""What a manager lets its sessions take."""

import pytest

from callbackkit import Limits

NAMES = ("max_sessions", "max_event_bytes", "max_readers", "max_pending")


def test_there_is_a_bound_to_everything():
    limits = Limits()
    assert [getattr(limits, name) for name in NAMES] == [200_000, 262_144, 1_000, 10_000]


@pytest.mark.parametrize("name", NAMES)
def test_a_limit_is_a_whole_number_from_1(name: str):
    assert getattr(Limits(**{name: 1}), name) == 1
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        Limits(**{name: 0})
    for bad in (1.0, True, None, "1"):
        with pytest.raises(TypeError, match=f"{name} must be an int"):
            Limits(**{name: bad})
