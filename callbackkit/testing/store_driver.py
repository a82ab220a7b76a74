"""Does verbs at a store and at its model, and compares: sessions and their logs."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeVar

from anyio.from_thread import BlockingPortal

from callbackkit.errors import (
    IdempotencyError,
    SessionDeletedError,
    SessionEndedError,
    UnknownSessionError,
)
from callbackkit.events import Position
from callbackkit.stores.base import (
    Appended,
    NewSession,
    Record,
    Retention,
    SessionRecord,
    Totals,
)
from callbackkit.testing.store_bench import Bench, body, hold, raises, same
from callbackkit.testing.store_model import ModelSession, StoreModel

__all__ = ["LONG", "StoreDriver"]

T = TypeVar("T")

# So long that it does not end while a sequence runs.
LONG: Final = 1e9


class StoreDriver:
    """A store and its model, in step.

    Attributes:
        bench: The store.
        model: The model.
        looked_at: The session whose dead letters the last verb may have changed.
    """

    def __init__(self, portal: BlockingPortal, bench: Bench) -> None:
        self._portal = portal
        self.bench: Bench = bench
        self.model: StoreModel = StoreModel()
        self.looked_at: ModelSession | None = None

    # Doing and comparing.

    def do(self, verb: Callable[..., Coroutine[Any, Any, T]], *args: Any, **options: Any) -> T:
        """Run a verb in the event loop."""
        result: T = self._portal.call(partial(verb, *args, **options))
        return result

    def refused(self, kind: type[Exception], verb: Any, *args: Any, **options: Any) -> None:
        """See that a verb is refused."""
        what = f"{verb.__name__}{args}"

        async def run() -> None:
            await raises(kind, verb(*args, **options), what)

        self._portal.call(run)

    def look_at(self, session: ModelSession) -> None:
        """Have the dead letters of a session compared after this verb."""
        self.looked_at = session

    def pick(self, number: int) -> ModelSession:
        """Choose a session that can be read, or one that can't any more."""
        sessions = self.model.sessions
        self.looked_at = sessions[number % len(sessions)]
        return self.looked_at

    def is_there(self, session: ModelSession, verb: Any, **options: Any) -> bool:
        """Tell whether a session can be used; if not, see that a verb is refused."""
        if session.can_be_read:
            return True
        kind = SessionDeletedError if session.is_known else UnknownSessionError
        self.refused(kind, verb, session.id, **options)
        return False

    @property
    def now(self) -> float:
        return self.bench.now()

    @property
    def has_manual_time(self) -> bool:
        return self.bench.clock is not None

    # Sessions.

    def create(self, pushes: bool, is_small: bool, expires: bool) -> None:
        new = NewSession(
            id=f"s{len(self.model.sessions)}",
            token_hash=b"hash",
            method="push" if pushes else "sse",
            pushes=pushes,
            ttl=40.125 if expires and self.has_manual_time else None,
            retention=Retention(max_events=4 if is_small else 1000, max_bytes=None, max_age=None),
            max_pending=5,
        )
        session = self.do(self.bench.store.create_session, new)
        epochs = [each.epoch for each in self.model.sessions]
        hold(session.epoch not in epochs, "the epoch is new", session.epoch)
        self.model.sessions.append(
            ModelSession(
                id=new.id,
                epoch=session.epoch,
                pushes=pushes,
                max_events=4 if is_small else 1000,
                max_pending=5,
                ttl=new.ttl,
                touched_at=self.now,
            )
        )

    def update(self, number: int, config: bytes, unowed: tuple[str, ...], is_late: bool) -> None:
        session = self.pick(number)
        update = self.bench.store.update_session
        known = b"late" if is_late else session.config
        change: dict[str, Any] = {"known": known, "config": config, "unowed": unowed}
        if not self.is_there(session, update, **change):
            return
        if session.state != "active":
            self.refused(SessionEndedError, update, session.id, **change)
            return
        if not is_late:
            session.config, session.unowed = config, unowed
        self.compare(self.do(update, session.id, **change), session)

    def end(self, number: int, linger: float) -> None:
        session = self.pick(number)
        if not self.is_there(session, self.bench.store.end_session, linger=1):
            return
        self.do(self.bench.store.end_session, session.id, linger=linger)
        if session.state == "active":
            session.state = "ended"
            session.leaves_at = self.now + (linger if self.has_manual_time else LONG)

    def delete(self, number: int) -> None:
        session = self.pick(number)
        if not self.is_there(session, self.bench.store.delete_session, linger=1):
            return
        self.do(self.bench.store.delete_session, session.id, linger=LONG)
        session.clear()
        for letter in session.letters.values():
            letter.let_go()
        session.letters.clear()

    def touch(self, number: int, upto: int | None) -> None:
        session = self.pick(number)
        self.do(self.bench.store.touch, {session.id: upto, "never": 1})
        if session.can_be_read:
            session.touched_at = self.now
            if upto is not None and not session.pushes:
                session.deliver(min(upto, session.top))

    # The log.

    def append(self, number: int, owed: bool, key: str | None, text: int) -> None:
        session = self.pick(number)
        append = self.bench.store.append
        event: dict[str, Any] = {"event_type": "progress", "body": body(text)}
        if not self.is_there(session, append, **event):
            return
        event.update(owed=owed, key=key)
        known = session.keys.get(key) if key else None
        if known is not None and known.record.body == body(text):
            same(self.do(append, session.id, **event), known, "what a known key gives")
        elif known is not None:
            self.refused(IdempotencyError, append, session.id, **event)
        elif session.state != "active":
            self.refused(SessionEndedError, append, session.id, **event)
        else:
            self.appended(session, self.do(append, session.id, **event), event)

    def appended(self, session: ModelSession, given: Appended, event: dict[str, Any]) -> None:
        """Compare what an append gave, and note it in the model."""
        record = given.record
        ordinal = session.sent + event["owed"]
        last = session.log[-1].at if session.log else 0
        hold(record.at > last, "times rise", record)
        wanted = Record(
            session.top + 1, record.at, "progress", event["body"], event["owed"], ordinal
        )
        same(given, Appended(session.epoch, wanted, True), "what append gives")
        if event["key"]:
            session.keys[event["key"]] = Appended(session.epoch, wanted, False)
        session.touched_at = self.now
        overflow = session.append(wanted)
        letters = self.do(self.bench.store.dead_letters, session.id, limit=1000)
        new = [letter for letter in letters if letter.id not in session.letters]
        same([each for letter in new for each in letter.records], overflow, "in new dead letters")
        for letter in new:
            session.bury(list(letter.records), letter.id)

    def read(self, number: int, after: int | str | None, limit: int, owed: bool) -> None:
        session = self.pick(number)
        if not self.is_there(session, self.bench.store.read):
            return
        position = Position(session.epoch, after) if isinstance(after, int) else None
        if isinstance(after, str):
            position = Position(after, 1)
        page = self.do(self.bench.store.read, session.id, after=position, limit=limit, owed=owed)
        seen = position.seq if position and position.epoch == session.epoch else 0
        seen = seen if seen <= session.top else 0
        same(page.first, session.first, "the oldest kept")
        wanted = [each for each in session.kept if each.seq > seen and (each.owed or not owed)]
        same(list(page.records), wanted[:limit], "the records of the page")
        bounds = (page.epoch, page.top, page.state)
        same(bounds, (session.epoch, session.top, session.state), "the page")

    def tail(self, number: int, limit: int) -> None:
        session = self.pick(number)
        if self.is_there(session, self.bench.store.tail, limit=limit):
            page = self.do(self.bench.store.tail, session.id, limit=limit)
            same(page.first, session.first, "the oldest kept")
            same(list(page.records), session.kept[-limit:], "the tail")

    def trim(self, number: int, before: int) -> None:
        session = self.pick(number)
        if self.is_there(session, self.bench.store.trim, before=before):
            count = self.do(self.bench.store.trim, session.id, before=before)
            same(count, session.trim(before), "how many are dropped")

    def save_endpoint(self, state: bytes, is_stale: bool) -> None:
        store = self.bench.store
        version, known = self.do(store.load_endpoint, "e")
        same((version, known), self.model.endpoint, "the state of an endpoint")
        is_saved = self.do(store.save_endpoint, "e", version + is_stale, state)
        same(is_saved, not is_stale, "it is saved")
        if is_saved:
            self.model.endpoint = self.do(store.load_endpoint, "e")
            same(self.model.endpoint[1], state, "what is saved")
            hold(self.model.endpoint[0] != version, "the version changes")

    # Time.

    def advance(self, seconds: float) -> None:
        self.do(self.bench.let_pass, seconds)
        gone = self.do(self.bench.sweep)
        same(sorted(gone), sorted(self.model.expire(self.now)), "sessions that went")

    # What always holds.

    def all_is_as_the_model_says(self) -> None:
        sessions, totals = self.do(self._look)
        readable = self.model.readable()
        same([each.id for each in sessions], [each.id for each in readable], "the sessions")
        for seen, wanted in zip(sessions, readable, strict=True):
            self.compare(seen, wanted)
        same(totals, self.model.totals(), "the totals")
        if self.looked_at is not None:
            self.compare_letters(self.looked_at)

    async def _look(self) -> tuple[list[SessionRecord], Totals]:
        store = self.bench.store
        return list(await store.sessions(limit=1000)), await store.totals()

    def compare(self, seen: SessionRecord, wanted: ModelSession) -> None:
        """Compare a session with the model's."""
        what = f"session {wanted.id}"
        figures = {name: getattr(seen, name) for name in wanted.figures()}
        same(figures, wanted.figures(), f"the figures of {what}")
        known = (seen.state, seen.first, seen.top, seen.epoch)
        same(known, (wanted.state, wanted.first, wanted.top, wanted.epoch), f"{what} as it stands")
        asked = (seen.config, seen.unowed)
        same(asked, (wanted.config, wanted.unowed), f"what {what} was asked for")

    def compare_letters(self, session: ModelSession) -> None:
        """Compare the dead letters of a session, and its tries."""
        store = self.bench.store
        if session.letters or self.is_there(session, store.dead_letters):
            letters = self.do(store.dead_letters, session.id, limit=1000)
            same(
                [(each.id, each.records, each.is_due) for each in letters],
                [(each.id, each.records, each.is_due) for each in session.letters.values()],
                f"the dead letters of session {session.id}",
            )
            attempts = self.do(store.attempts, session.id)
            same(list(attempts), session.attempts, f"the tries of session {session.id}")
