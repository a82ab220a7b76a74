"""A store that fails, stops or takes the process down where a test says."""

import inspect
import subprocess
import sys

import anyio
import pytest

from callbackkit.errors import LeaseLostError, StoreUnavailableError
from callbackkit.stores.base import NewSession, Store
from callbackkit.stores.memory import MemoryStore
from callbackkit.stores.sqlite import SQLiteStore
from callbackkit.testing.clock import ManualClock
from callbackkit.testing.failpoints import FailpointStore
from callbackkit.testing.stores import check_store

BODY = b'{"conversation_id":null,"data":{},"metadata":{}}'


@pytest.fixture
async def store() -> FailpointStore:
    store = FailpointStore(MemoryStore())
    await store.create_session(NewSession(id="a", token_hash=b"", method="push", pushes=True))
    return store


async def append(store: Store, count: int = 1) -> int:
    """Append, and return the number of the newest record."""
    for _ in range(count):
        await store.append("a", "progress", BODY)
    return (await store.get_session("a")).top


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_with_nothing_armed_it_is_the_store_behind_it(backend: str) -> None:
    check_store(lambda clock: FailpointStore(MemoryStore(clock=clock)), backend=backend, examples=5)


def test_it_looks_as_often_as_the_store_behind_it() -> None:
    inner = MemoryStore()
    inner.reconcile = 0.25
    assert FailpointStore(inner).reconcile == 0.25


@pytest.mark.parametrize("verb", sorted(Store.__abstractmethods__ - {"watch"}))
async def test_every_verb_can_fail_before_it_is_done(verb: str) -> None:
    store = FailpointStore(MemoryStore())
    store.fail(verb, StoreUnavailableError("no"))
    needed = [
        parameter
        for parameter in inspect.signature(getattr(Store, verb)).parameters.values()
        if parameter.default is parameter.empty and parameter.name != "self"
    ]
    # Nothing of this is looked at.
    args = [None for each in needed if each.kind is each.POSITIONAL_OR_KEYWORD]
    options = {each.name: None for each in needed if each.kind is each.KEYWORD_ONLY}
    with pytest.raises(StoreUnavailableError, match="no"):
        await getattr(store, verb)(*args, **options)


async def test_before_a_verb_nothing_is_done(store: FailpointStore) -> None:
    store.fail("append", StoreUnavailableError("disk full"))
    with pytest.raises(StoreUnavailableError, match="disk full"):
        await append(store)
    assert await append(store) == 1


async def test_after_a_verb_it_is_done_and_nobody_knows(store: FailpointStore) -> None:
    store.fail("append", StoreUnavailableError("connection lost"), when="after")
    with pytest.raises(StoreUnavailableError, match="connection lost"):
        await append(store)
    assert await append(store) == 2


async def test_it_happens_at_the_call_with_that_number(store: FailpointStore) -> None:
    store.fail("append", StoreUnavailableError("full"), call=3, times=2)
    assert await append(store, 2) == 2
    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            await append(store)
    assert await append(store) == 3


async def test_calls_are_counted_from_when_it_is_armed(store: FailpointStore) -> None:
    await append(store, 5)
    store.fail("append", StoreUnavailableError("full"), call=2)
    assert await append(store) == 6
    with pytest.raises(StoreUnavailableError):
        await append(store)


async def test_it_happens_until_it_is_disarmed(store: FailpointStore) -> None:
    for verb in (None, "append"):
        store.fail("append", StoreUnavailableError("full"), times=None)
        for _ in range(3):
            with pytest.raises(StoreUnavailableError):
                await append(store)
        store.disarm("read")
        with pytest.raises(StoreUnavailableError):
            await append(store)
        store.disarm(verb)
        await append(store)


async def test_several_things_happen_at_one_verb(store: FailpointStore) -> None:
    store.fail("append", StoreUnavailableError("first"))
    store.fail("append", StoreUnavailableError("second"), call=2)
    for text in ("first", "second"):
        with pytest.raises(StoreUnavailableError, match=text):
            await append(store)
    assert await append(store) == 1


async def test_a_call_is_held_up_until_it_is_released() -> None:
    """A worker stops for longer than its lease: what it says then is too late."""
    clock = ManualClock(1e9)
    store = FailpointStore(MemoryStore(clock=clock))
    await store.create_session(NewSession(id="a", token_hash=b"", method="push", pushes=True))
    await append(store)
    pause = store.pause("ack")
    lost: list[str] = []

    async def work() -> None:
        found = await store.claim(methods=["push"], limit=1, lease=30)
        try:
            await store.ack(found.claims[0], 1, None)
        except LeaseLostError:
            lost.append("one")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        assert await pause.reached()
        clock.advance(60)
        found = await store.claim(methods=["push"], limit=1, lease=30)
        await store.ack(found.claims[0], 1, None)
        assert lost == []
        pause.release()
    assert lost == ["one"]


async def test_a_pause_after_a_verb_holds_up_its_answer_only(store: FailpointStore) -> None:
    pause = store.pause("append", when="after", call=2)
    assert await append(store) == 1
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(append, store)
        assert await pause.reached()
        assert (await store.get_session("a")).top == 2
        assert await append(store) == 3
        pause.release()


async def test_a_pause_that_nobody_reaches_says_so(store: FailpointStore) -> None:
    pause = store.pause("append")
    assert not await pause.reached(timeout=0.001)


async def test_a_released_pause_holds_up_nobody(store: FailpointStore) -> None:
    store.pause("append").release()
    assert await append(store) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"verb": "appendd"}, "a store has no verb 'appendd'; it has ack, aclose, append, "),
        ({"verb": "watch"}, "a store has no verb 'watch'"),
        ({"verb": "ack", "when": "during"}, "when must be 'before' or 'after', not 'during'"),
        ({"verb": "ack", "call": 0}, "call must be 1 or more, not 0"),
        ({"verb": "ack", "times": 0}, "times must be 1 or more, not 0"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(options: dict, message: str) -> None:
    store = FailpointStore(MemoryStore())
    with pytest.raises(ValueError, match=message):
        store.fail(error=OSError(), **options)


def test_it_shows_what_is_armed() -> None:
    store = FailpointStore(MemoryStore())
    assert repr(store) == "<FailpointStore before <MemoryStore, 0 sessions>, armed: none>"
    store.kill("ack")
    assert repr(store) == "<FailpointStore before <MemoryStore, 0 sessions>, armed: ack>"


# A process that is killed.

KILLED = """
import sys
import anyio
from callbackkit.stores.base import NewSession
from callbackkit.stores.sqlite import SQLiteStore
from callbackkit.testing.failpoints import FailpointStore

BODY = b'{"conversation_id":null,"data":{},"metadata":{}}'

async def main(path, verb, when):
    store = FailpointStore(SQLiteStore(path))
    store.kill(verb, when=when)
    await store.create_session(NewSession(id="a", token_hash=b"", method="push", pushes=True))
    await store.append("a", "progress", BODY)
    found = await store.claim(methods=["push"], limit=1, lease=0.01)
    print("sent", flush=True)
    await store.ack(found.claims[0], 1, None)
    print("alive", flush=True)

try:
    anyio.run(main, *sys.argv[1:])
finally:
    print("finally", flush=True)
"""


@pytest.mark.parametrize(
    ("verb", "when", "said", "delivered", "queued"),
    [
        ("append", "before", "", 0, 0),
        ("append", "after", "", 0, 1),
        ("ack", "before", "sent\n", 0, 1),
        ("ack", "after", "sent\n", 1, 0),
    ],
)
def test_a_killed_process_keeps_what_was_promised_and_does_nothing_more(
    tmp_path, verb: str, when: str, said: str, delivered: int, queued: int
) -> None:
    path = str(tmp_path / "events.db")
    command = [sys.executable, "-c", KILLED, path, verb, when]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (137, said, "")

    async def look() -> tuple[int, int, int]:
        store = SQLiteStore(path)
        session = await store.get_session("a")
        with anyio.fail_after(10):
            while True:
                found = await store.claim(methods=["push"], limit=1, lease=60)
                if found.claims or not session.queued:
                    break
                await anyio.sleep(found.next_in or 0)
        await store.aclose()
        return session.delivered, session.queued, len(found.claims)

    assert anyio.run(look) == (delivered, queued, queued)
