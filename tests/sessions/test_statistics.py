"""Figures under the names their readers know."""

import json
from collections import Counter

import attrs
import pytest

from callbackkit import ManagerStats, SessionStats
from callbackkit.stores.base import SessionRecord, Totals

RECORD = SessionRecord(
    id="s",
    token_hash=b"",
    owner=None,
    config=b"{}",
    method="sse",
    pushes=False,
    unowed=(),
    state="active",
    created_at=0.0,
    epoch="e",
    first=1,
    top=10,
    cursor=8,
    sent=10,
    delivered=4,
    failed=1,
    expired=3,
    queued=2,
    retries=5,
)
TOTALS = Totals(
    sessions=3, active=2, sent=20, delivered=5, failed=6, expired=7, queued=2, retries=9
)


def test_a_session_has_the_figures_of_its_record():
    assert dict(SessionStats.of(RECORD, Counter(sse=1))) == {
        "session_id": "s",
        "events_sent": 10,
        "events_delivered": 4,
        "events_failed": 1,
        "events_expired": 3,
        "queued_events": 2,
        "retries": 5,
        "has_websocket": False,
        "has_sse": True,
        "delivery_rate": 0.4,
    }


def test_the_whole_has_the_sums():
    stats = ManagerStats.of(TOTALS, Counter(websocket=2, sse=3, polling=9))
    assert dict(stats) == {
        "total_sessions": 3,
        "active_sessions": 2,
        "total_events_sent": 20,
        "total_events_delivered": 5,
        "total_events_failed": 6,
        "total_events_expired": 7,
        "total_queued_events": 2,
        "total_retries": 9,
        "active_websockets": 2,
        "active_sse": 3,
        "delivery_rate": 0.25,
    }


def test_each_figure_is_an_attribute_and_can_be_looked_up():
    stats = SessionStats.of(RECORD, Counter(websocket=1))
    assert (stats.events_sent, stats["events_sent"], len(stats)) == (10, 10, 10)
    assert (stats.has_websocket, stats.has_sse) == (True, False)
    assert "nothing" not in stats
    for name in ("nothing", "of", "get"):
        with pytest.raises(KeyError, match=name):
            stats[name]
    json.dumps(dict(stats))


def test_a_rate_of_nothing_is_0():
    nothing = attrs.evolve(RECORD, sent=0, delivered=0)
    assert SessionStats.of(nothing, Counter()).delivery_rate == 0.0
    totals = attrs.evolve(TOTALS, sent=0, delivered=0)
    assert ManagerStats.of(totals, Counter()).delivery_rate == 0.0
