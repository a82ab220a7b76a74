"""The suite for stores passes a good one, and finds whatever one thing is broken in another."""

import subprocess
import sys

import anyio
import anyio.lowlevel
import attrs
import pytest

from callbackkit.errors import LeaseLostError
from callbackkit.stores.base import Store, Watches
from callbackkit.stores.memory import MemoryStore
from callbackkit.testing import store_keeping_laws as keeping, store_session_laws as sessions
from callbackkit.testing.clock import ManualClock
from callbackkit.testing.store_bench import Bench, TurningClock, hold, same
from callbackkit.testing.store_machine import check_machine
from callbackkit.testing.store_orders import (
    each_thing_is_claimed_by_one,
    in_every_order,
    nothing_is_missed,
    the_end_comes_last,
)
from callbackkit.testing.store_room import Room
from callbackkit.testing.store_session_laws import what_is_not_owed_comes_back
from callbackkit.testing.store_wake_laws import a_ring_tells_how_far_the_log_goes
from callbackkit.testing.stores import check_store, store_laws

backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def room(make=MemoryStore, backend: str = "asyncio", patience: float = 0.2) -> Room:
    return Room(lambda clock: make(clock=clock), backend, True, patience)


# Good stores.


@backends
def test_a_store_that_is_made_in_the_event_loop_passes(backend: str) -> None:
    async def make(clock: ManualClock) -> Store:
        await anyio.lowlevel.checkpoint()
        return MemoryStore(clock=clock)

    check_store(make, backend=backend, examples=5)


def test_a_store_whose_time_can_not_be_set_passes() -> None:
    check_store(lambda _: MemoryStore(), manual_time=False, examples=5)


def test_laws_of_hours_and_days_are_left_out_where_time_can_not_be_set() -> None:
    assert len(list(store_laws(manual_time=False))) < len(list(store_laws()))


def test_each_law_says_what_it_is() -> None:
    laws = list(store_laws())
    assert len({law.__doc__ for law in laws}) == len(laws)
    assert all(law.__doc__ and law.__doc__.rstrip().endswith(".") for law in laws)


class Awaits(MemoryStore):
    """Waits before and after each verb that matters, as a store over a network does."""

    async def append(self, *args, **options):
        await anyio.lowlevel.checkpoint()
        given = await super().append(*args, **options)
        await anyio.lowlevel.checkpoint()
        return given

    async def read(self, *args, **options):
        await anyio.lowlevel.checkpoint()
        page = await super().read(*args, **options)
        await anyio.lowlevel.checkpoint()
        return page

    async def claim(self, *args, **options):
        await anyio.lowlevel.checkpoint()
        return await super().claim(*args, **options)


@backends
def test_a_store_with_awaits_of_its_own_passes(backend: str) -> None:
    check_store(lambda clock: Awaits(clock=clock), backend=backend, examples=3)


class RefusesWhatHasRunOut(MemoryStore):
    """Refuses an acknowledgement after the lease though nobody else has claimed: it may."""

    def _held(self, claim):
        owed = super()._held(claim)
        if owed.due_at is not None and owed.due_at <= self._now():
            raise LeaseLostError("run out")
        return owed


def test_a_store_may_refuse_who_is_late_though_nobody_took_over() -> None:
    check_store(lambda clock: RefusesWhatHasRunOut(clock=clock))


GOOD = {"Awaits", "RefusesWhatHasRunOut", "KeepsWhatWasSettled"}


# One thing broken each.


class AcksLate(MemoryStore):
    def _held(self, claim):
        session = self._sessions[claim.session_id]
        return session.letters[claim.letter.id] if claim.letter else session.owed


class WakesNobody(MemoryStore):
    def watch(self, session_id):
        return Watches().watch(session_id)


class WakesEarly(MemoryStore):
    """Wakes readers before there is anything to read."""

    async def append(self, session_id, *args, **options):
        self._watches.ring(session_id)
        await anyio.lowlevel.checkpoint()
        watches, self._watches = self._watches, Watches()
        try:
            return await super().append(session_id, *args, **options)
        finally:
            self._watches = watches


class RingsTooLittle(MemoryStore):
    """Rings as for an append when there is more to know."""

    async def end_session(self, session_id, **options):
        watches, self._watches = self._watches, Watches()
        try:
            record = await super().end_session(session_id, **options)
        finally:
            self._watches = watches
        self._watches.ring(session_id, record.top)
        return record


class RingsTooFar(MemoryStore):
    """Rings with the number of the next record."""

    async def append(self, session_id, *args, **options):
        watches, self._watches = self._watches, Watches()
        try:
            appended = await super().append(session_id, *args, **options)
        finally:
            self._watches = watches
        self._watches.ring(session_id, appended.record.seq + 1)
        return appended


class WakesNoDelivery(MemoryStore):
    async def redrive(self, *args):
        watches, self._watches = self._watches, Watches()
        try:
            return await super().redrive(*args)
        finally:
            self._watches = watches


class IgnoresKeys(MemoryStore):
    async def append(self, *args, key=None, **options):
        return await super().append(*args, **options)


class TakesAnyEventForAKey(MemoryStore):
    def _again(self, session, known, key, event_type, body):
        return super()._again(session, known, key, known[1].event_type, known[1].body)


class LooksForKeysTooEarly(MemoryStore):
    async def append(self, session_id, *args, key=None, **options):
        session = self._sessions.get(session_id)
        is_known = key is not None and session is not None and key in (session.keys or ())
        await anyio.lowlevel.checkpoint()
        return await super().append(session_id, *args, key=key if is_known else None, **options)


class ForgetsKeysAtTheEnd(MemoryStore):
    async def end_session(self, session_id, **options):
        ended = await super().end_session(session_id, **options)
        self._sessions[session_id].keys = None
        return ended


class UsesEpochsAgain(MemoryStore):
    async def create_session(self, new, **options):
        await super().create_session(new, **options)
        session = self._sessions[new.id]
        session.epoch = f"of.{new.id}"
        return session.record()


class UsesNumbersAgain(MemoryStore):
    async def trim(self, session_id, **options):
        count = await super().trim(session_id, **options)
        session = self._sessions[session_id]
        if count and session.first > session.top:
            session.first, session.top = 1, 0
        return count


class DropsWhatIsOwed(MemoryStore):
    def _shed(self, session, now):
        while session.is_over(now):
            self._drop(session)


class TrimsWhatIsOwed(MemoryStore):
    async def trim(self, session_id, *, before):
        count = await super().trim(session_id, before=before)
        session = self._sessions[session_id]
        while session.first < min(before, session.top + 1):
            self._drop(session)
        return count


class ForgetsBounds(MemoryStore):
    async def retry(self, claim, *, bound=None, **options):
        await super().retry(claim, **options)


class ForgetsRenewedBounds(MemoryStore):
    async def renew(self, claim, *, lease, bound=None):
        return await super().renew(claim, lease=lease)


class CountsLettersForEver(MemoryStore):
    def _drop_letter(self, owed):
        failed = owed.session.failed
        super()._drop_letter(owed)
        owed.session.failed = failed


class CountsNoRetries(MemoryStore):
    def _note(self, session, attempt):
        super()._note(session, attempt and attrs.evolve(attempt, number=1))


class GoesBack(MemoryStore):
    async def touch(self, reads):
        for session_id, upto in reads.items():
            session = self._sessions.get(session_id)
            if session and upto is not None and upto < session.cursor:
                record = session.at(upto)
                session.cursor = upto
                self._settled -= session.settled - (record.ordinal if record else 0)
                session.settled = record.ordinal if record else 0
        await super().touch(reads)


class GoesByTheClock(MemoryStore):
    """Freezes retries when the clock is turned back."""

    def _now(self):
        return self._clock()


class LeasesNothing(MemoryStore):
    async def claim(self, *, lease, **options):
        return await super().claim(lease=0, **options)


class LeasesForEver(MemoryStore):
    async def claim(self, *, lease, **options):
        return await super().claim(lease=1e9, **options)


class RenewsNothing(MemoryStore):
    async def renew(self, claim, *, lease, bound=None):
        owed = self._held(claim)
        owed.bound = bound or owed.bound
        return owed.as_claim()


class RetriesAtOnce(MemoryStore):
    async def retry(self, claim, *, delay, **options):
        await super().retry(claim, delay=0, **options)


class CountsNoTries(MemoryStore):
    async def retry(self, claim, **options):
        owed = self._held(claim)
        attempts = owed.attempts
        await super().retry(claim, **options)
        owed.attempts = attempts


class AcksAll(MemoryStore):
    async def ack(self, claim, upto, *args, **options):
        session = self._sessions.get(claim.session_id)
        return await super().ack(claim, session.top if session else upto, *args, **options)


class FencesNobody(MemoryStore):
    async def claim(self, *args, **options):
        for session in self._sessions.values():
            if session.owed is not None:
                session.owed.fence = 0
        return await super().claim(*args, **options)


class LosesLetters(MemoryStore):
    def _bury(self, session, *args):
        super()._bury(session, *args)
        session.letters = None


class RedrivesTired(MemoryStore):
    async def redrive(self, session_id, ids=None):
        session = self._sessions.get(session_id)
        letters = list((session.letters or {}).values()) if session else []
        count = await super().redrive(session_id, ids)
        for owed in letters:
            owed.attempts = owed.letter.attempts
        return count


class ReadsTooMuch(MemoryStore):
    async def read(self, *args, limit=100, **options):
        return await super().read(*args, limit=limit + 1, **options)


class BelievesTheFuture(MemoryStore):
    async def read(self, session_id, *, after=None, **options):
        page = await super().read(session_id, after=after, **options)
        is_future = after is not None and after.epoch == page.epoch and after.seq > page.top
        return attrs.evolve(page, records=[]) if is_future else page


class BelievesAnyEpoch(MemoryStore):
    async def read(self, session_id, *, after=None, **options):
        if after is not None:
            after = attrs.evolve(after, epoch=self._get(session_id).epoch)
        return await super().read(session_id, after=after, **options)


class TellsTheEndTooEarly(MemoryStore):
    """The state of its pages is of a later moment than their records."""

    async def read(self, session_id, **options):
        page = await super().read(session_id, **options)
        await anyio.lowlevel.checkpoint()
        return attrs.evolve(page, state=self._get(session_id).state)


class HasNoLimit(MemoryStore):
    async def create_session(self, new, **options):
        return await super().create_session(new)


class SavesForAnybody(MemoryStore):
    async def save_endpoint(self, endpoint, version, state):
        known, _ = await self.load_endpoint(endpoint)
        return await super().save_endpoint(endpoint, known, state)


class KeepsNothingAlive(MemoryStore):
    async def touch(self, reads):
        times = {each: session.touched_at for each, session in self._sessions.items()}
        await super().touch(reads)
        for each, touched_at in times.items():
            self._sessions[each].touched_at = touched_at


class SweepsWithoutLimit(MemoryStore):
    async def sweep(self, *, limit=100):
        return await super().sweep(limit=100)


class LeavesAClaimOfADeletedSession(MemoryStore):
    async def delete_session(self, session_id, **options):
        session = self._get(session_id)
        owed = session.owed
        fence = owed.fence if owed else 0
        await super().delete_session(session_id, **options)
        if fence:
            owed.fence = fence
            owed.is_leased = True


class ForgetsTheAgeOfALoneRecord(MemoryStore):
    """Looks at the age of records no more once a sweep found a single one."""

    async def sweep(self, **options):
        swept = await super().sweep(**options)
        for session in self._sessions.values():
            if session.first == session.top:
                retention = attrs.evolve(session.new.retention, max_age=None)
                session.new = attrs.evolve(session.new, retention=retention)
        return swept


class KeepsWhatWasSettled(MemoryStore):
    """Drops what was kept for a delivery only at the next append or sweep."""

    async def _without_shedding(self, settling):
        self._shed = lambda *_: None
        try:
            return await settling
        finally:
            del self._shed


class KeepsWhatWasDelivered(KeepsWhatWasSettled):
    async def ack(self, *args, **options):
        return await self._without_shedding(super().ack(*args, **options))


class KeepsWhatWasGivenUp(KeepsWhatWasSettled):
    async def park(self, *args, **options):
        return await self._without_shedding(super().park(*args, **options))


class KeepsEveryLetter(MemoryStore):
    def _bury(self, session, *args):
        new = session.new
        session.new = attrs.evolve(new, max_pending=1_000_000)
        super()._bury(session, *args)
        session.new = new


class CountsLettersThatAreKept(MemoryStore):
    def _bury(self, session, *args):
        before = dict(session.letters or {})
        super()._bury(session, *args)
        for letter_id in before.keys() - (session.letters or {}).keys():
            count = len(before[letter_id].letter.records)
            session.failed -= count
            self._failed -= count


class LetsGoOfTheNewestLetter(MemoryStore):
    def _bury(self, session, *args):
        if len(session.letters or ()) < session.new.max_pending:
            super()._bury(session, *args)
        else:
            session.failed += len(args[0])
            self._failed += len(args[0])


class BoundsTheLettersOfAll(MemoryStore):
    def _bury(self, session, *args):
        super()._bury(session, *args)
        having = [each for each in self._sessions.values() if each.letters]
        if sum(len(each.letters) for each in having) > session.new.max_pending:
            letters = having[0].letters
            self._let_go(letters.pop(next(iter(letters))))


class LeavesAClaimOfALetter(MemoryStore):
    """Lets go of a dead letter, and not of whoever delivers it."""

    def _held(self, claim):
        session = self._sessions.get(claim.session_id)
        if session and claim.letter and claim.letter.id not in (session.letters or {}):
            return session.owed
        return super()._held(claim)


class LeavesALetterDue(MemoryStore):
    """Lets go of a dead letter, and has it delivered all the same."""

    def _bury(self, session, *args):
        letters = list((session.letters or {}).values())
        super()._bury(session, *args)
        for owed in letters:
            if owed.letter.id not in session.letters and owed.letter.is_due:
                self._owe(owed, 0.0)


class AnswersOldKeysUntilASweep(MemoryStore):
    def __init__(self, **options):
        super().__init__(**options)
        self.known = {}

    async def append(self, session_id, *args, key=None, **options):
        if (known := self.known.get((session_id, key))) is not None:
            return known._replace(is_new=False)
        appended = await super().append(session_id, *args, key=key, **options)
        if key is not None:
            self.known[session_id, key] = appended
        return appended

    async def sweep(self, **options):
        self.known.clear()
        return await super().sweep(**options)


class ForgetsWhatIsNotOwed(MemoryStore):
    async def create_session(self, new, **options):
        return await super().create_session(attrs.evolve(new, unowed=()), **options)


class KeepsEndedSessionsForTheirTtl(MemoryStore):
    async def end_session(self, session_id, *, linger):
        ttl = self._get(session_id).new.ttl or 0
        return await super().end_session(session_id, linger=max(linger, ttl))


class ChangesNothing(MemoryStore):
    async def update_session(self, session_id, *, known, config, unowed):
        record = await super().update_session(session_id, known=b"", config=b"", unowed=())
        is_known = record.config == known
        return attrs.evolve(record, config=config, unowed=unowed) if is_known else record


class ChangesTheConfigOnly(MemoryStore):
    async def update_session(self, session_id, *, known, config, unowed):
        unowed = self._get(session_id).new.unowed
        return await super().update_session(session_id, known=known, config=config, unowed=unowed)


class ChangesWhateverIsKnown(MemoryStore):
    async def update_session(self, session_id, *, known, config, unowed):
        known = self._get(session_id).new.config
        return await super().update_session(session_id, known=known, config=config, unowed=unowed)


class ChangesWhatHasEnded(MemoryStore):
    async def update_session(self, session_id, *, known, config, unowed):
        session = self._get(session_id)
        state, session.state = session.state, "active"
        try:
            return await super().update_session(
                session_id, known=known, config=config, unowed=unowed
            )
        finally:
            session.state = state


class ClaimsByWhatWasAskedFirst(MemoryStore):
    def __init__(self, **options):
        super().__init__(**options)
        self.first = {}

    async def create_session(self, new, **options):
        self.first[new.id] = new.config
        return await super().create_session(new, **options)

    async def claim(self, **options):
        found = await super().claim(**options)
        claims = [attrs.evolve(each, config=self.first[each.session_id]) for each in found.claims]
        return attrs.evolve(found, claims=claims)


class NextClaimsByWhatWasAskedBefore(MemoryStore):
    async def ack(self, claim, *args, **options):
        following = await super().ack(claim, *args, **options)
        return following and attrs.evolve(following, config=claim.config)


class KeepsWhatWasChanged(MemoryStore):
    async def update_session(self, session_id, **options):
        record = await super().update_session(session_id, **options)
        self._get(session_id).touched_at = self._now()
        return record


class ForgetsWhatIsOwedAtAChange(MemoryStore):
    async def update_session(self, session_id, **options):
        record = await super().update_session(session_id, **options)
        if (owed := self._get(session_id).owed) is not None:
            owed.withdraw()
        return record


OF_CHANGES = [
    (ChangesNothing, sessions.a_session_is_changed),
    (ChangesTheConfigOnly, sessions.a_session_is_changed),
    (ChangesWhateverIsKnown, sessions.a_change_of_what_is_old_changes_nothing),
    (ChangesWhatHasEnded, sessions.an_ended_session_is_not_changed),
    (ClaimsByWhatWasAskedFirst, sessions.what_is_owed_goes_by_the_change),
    (NextClaimsByWhatWasAskedBefore, sessions.what_is_owed_goes_by_the_change),
    (ForgetsWhatIsOwedAtAChange, sessions.what_is_owed_goes_by_the_change),
    (KeepsWhatWasChanged, sessions.a_change_does_not_keep_a_session),
]


@pytest.mark.parametrize(("broken", "law"), OF_CHANGES)
def test_what_is_wrong_with_a_change_is_found_by_its_law(broken: type[MemoryStore], law) -> None:
    room().check(law)
    with pytest.raises(AssertionError, match=r"a law of Store is broken: .*\n"):
        room(broken).check(law)


class IsSlow(MemoryStore):
    """Fails in its own way, not by giving a wrong answer."""

    async def totals(self):
        raise RuntimeError("not today")


class HoldsNothing(MemoryStore):
    def _held(self, claim):
        raise LeaseLostError("never yours")


BROKEN = [
    each
    for each in (*MemoryStore.__subclasses__(), *KeepsWhatWasSettled.__subclasses__())
    if each.__module__ == __name__ and each.__name__ not in GOOD
]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_store_is_found(broken: type[MemoryStore]) -> None:
    with pytest.raises(AssertionError, match=r"a law of Store is broken: .*\n"):
        check_store(lambda clock: broken(clock=clock), patience=0.2, examples=5)


OF_KEEPING = [
    (ForgetsTheAgeOfALoneRecord, keeping.age_goes_on_after_a_lone_record),
    (KeepsWhatWasDelivered, keeping.what_was_delivered_is_let_go_of),
    (KeepsWhatWasGivenUp, keeping.what_was_given_up_is_let_go_of),
    (KeepsEveryLetter, keeping.letters_are_bounded),
    (CountsLettersThatAreKept, keeping.letters_are_bounded),
    (LetsGoOfTheNewestLetter, keeping.letters_are_bounded),
    (BoundsTheLettersOfAll, keeping.letters_are_bounded_each_session),
    (LeavesAClaimOfALetter, keeping.a_letter_let_go_of_is_not_due),
    (LeavesALetterDue, keeping.a_letter_let_go_of_is_not_due),
    (AnswersOldKeysUntilASweep, keeping.an_old_key_is_new),
    (ForgetsWhatIsNotOwed, what_is_not_owed_comes_back),
    (KeepsEndedSessionsForTheirTtl, keeping.an_ended_session_leaves_nothing),
]


@pytest.mark.parametrize(("broken", "law"), OF_KEEPING)
def test_what_is_kept_too_long_is_found_by_its_law(broken: type[MemoryStore], law) -> None:
    room().check(law)
    with pytest.raises(AssertionError, match=r"a law of Store is broken: .*\n"):
        room(broken).check(law)


@pytest.mark.parametrize("broken", [RingsTooLittle, RingsTooFar])
def test_what_is_wrong_with_a_ring_is_found_by_its_law(broken: type[MemoryStore]) -> None:
    room().check(a_ring_tells_how_far_the_log_goes)
    with pytest.raises(AssertionError, match=r"a law of Store is broken: .*\n.* rings "):
        room(broken).check(a_ring_tells_how_far_the_log_goes)


def test_the_message_names_the_law_and_what_is_wrong() -> None:
    with pytest.raises(AssertionError) as caught:
        check_store(lambda clock: IgnoresKeys(clock=clock))
    law, how = str(caught.value).splitlines()
    begin = "a law of Store is broken: An append that is cancelled happened or it did not; "
    assert law == begin + "what follows it is as ever."
    assert how.startswith("  numbers by key: should be [1, 2, 3, ")
    assert "is [11, 12, 13, " in how


def test_an_error_that_no_law_expects_is_in_the_message() -> None:
    with pytest.raises(
        AssertionError, match=r"is broken: Records get .*\n  RuntimeError: not today"
    ):
        check_store(lambda clock: IsSlow(clock=clock))


# The machine alone.

FOUND_BY_THE_MACHINE = [
    AcksLate,
    AcksAll,
    ChangesNothing,
    ChangesWhateverIsKnown,
    ChangesWhatHasEnded,
    CountsLettersForEver,
    CountsNoTries,
    DropsWhatIsOwed,
    ForgetsBounds,
    GoesBack,
    IgnoresKeys,
    KeepsEveryLetter,
    KeepsWhatWasDelivered,
    KeepsWhatWasGivenUp,
    LosesLetters,
    ReadsTooMuch,
    RedrivesTired,
    RetriesAtOnce,
    UsesNumbersAgain,
]


@pytest.mark.parametrize("broken", FOUND_BY_THE_MACHINE)
def test_random_sequences_find_it_too(broken: type[MemoryStore]) -> None:
    with pytest.raises(AssertionError, match="random sequences of verbs"):
        check_machine(room(broken), examples=2_000, shrink=False)


def test_the_sequence_is_in_the_message() -> None:
    with pytest.raises(AssertionError) as caught:
        check_machine(room(RetriesAtOnce), examples=200, shrink=False)
    assert "state.work(" in str(caught.value)
    assert "how many are claimed" in str(caught.value)


@pytest.mark.torture
@backends
def test_many_random_sequences(backend: str) -> None:
    check_machine(room(backend=backend), examples=3_000)


def test_without_hypothesis_the_extra_is_named() -> None:
    code = """if True:
        import sys
        sys.modules["hypothesis"] = None
        from callbackkit.testing.stores import check_store
        try:
            check_store(lambda clock: None)
        except ImportError as error:
            print(error)
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "check_store needs Hypothesis: pip install 'callbackkit[testing]'\n"


# Every order alone.


@backends
@pytest.mark.parametrize(
    ("broken", "law"),
    [(WakesEarly, nothing_is_missed), (TellsTheEndTooEarly, the_end_comes_last)],
)
def test_every_order_finds_what_is_seldom(backend: str, broken, law) -> None:
    with pytest.raises(
        AssertionError, match=r"in every order: .*\n  (not so: a r|events that were)"
    ):
        room(broken, backend).check(law)


@backends
def test_every_order_is_tried_once(backend: str) -> None:
    seen: list[str] = []

    async def say(name: str, orders: list[list[str]]) -> None:
        for _ in range(2):
            orders[-1].append(name)
            await anyio.lowlevel.checkpoint()

    orders: list[list[str]] = []

    async def meet(_: str):
        orders.append([])
        return [say("a", orders), say("b", orders)]

    count = anyio.run(in_every_order, meet, 1.0, backend=backend)
    seen = ["".join(order) for order in orders]
    assert count == len(seen)
    # Where an actor ends, after its second step, is a choice too.
    assert sorted(set(seen)) == ["aabb", "abab", "abba", "baab", "baba", "bbaa"]


def test_where_there_are_too_many_orders_chance_takes_half_of_them() -> None:
    orders: list[str] = []

    async def say(name: str) -> None:
        for _ in range(6):
            orders[-1] += name
            await anyio.lowlevel.checkpoint()

    async def meet(_: str):
        orders.append("")
        return [say("a"), say("b")]

    async def main() -> int:
        return await in_every_order(meet, 1.0, most=40)

    assert anyio.run(main) == len(orders) == 40
    assert {order[:4] for order in orders[:20]} == {"aaaa"}
    assert len(set(orders[20:])) > 15


def test_a_lease_that_does_not_hold_is_found_in_some_order() -> None:
    with pytest.raises(AssertionError, match="a claim is held until its lease is over"):
        room(HoldsNothing).check(each_thing_is_claimed_by_one)


@backends
def test_an_actor_that_fails_ends_the_search(backend: str) -> None:
    async def fail() -> None:
        await anyio.lowlevel.checkpoint()
        raise RuntimeError("no")

    async def wait() -> None:
        await anyio.sleep_forever()

    async def meet(_: str):
        return [fail(), wait()]

    with pytest.raises(ExceptionGroup) as caught:
        anyio.run(in_every_order, meet, 1.0, backend=backend)
    assert caught.group_contains(RuntimeError, match="no")


@backends
def test_actors_that_wait_for_ever_are_given_up(backend: str) -> None:
    async def meet(_: str):
        return [anyio.sleep_forever()]

    with pytest.raises(ExceptionGroup) as caught:
        anyio.run(in_every_order, meet, 0.05, backend=backend)
    assert caught.group_contains(TimeoutError)


@backends
def test_an_error_of_what_is_waited_for_reaches_the_actor(backend: str) -> None:
    caught: list[str] = []

    async def actor() -> None:
        with anyio.move_on_after(0.01) as scope:
            await anyio.sleep_forever()
        caught.append(f"{scope.cancelled_caught}")

    async def meet(_: str):
        return [actor()]

    anyio.run(in_every_order, meet, 5.0, backend=backend)
    assert caught == ["True"]


# The bench.


def test_a_law_that_takes_for_ever_is_broken() -> None:
    async def law(bench: Bench) -> None:
        """Time is no object."""
        raise TimeoutError

    with pytest.raises(AssertionError, match=r"Time is no object\.\n  it takes for ever"):
        room().check(law)


def test_figures_that_do_not_add_up_are_found() -> None:
    async def law(bench: Bench) -> None:
        """Figures."""
        store = bench.store
        assert isinstance(store, MemoryStore)
        await bench.reads()
        await bench.add("r")
        store._sessions["r"].expired = -1

    with pytest.raises(AssertionError, match=r"no figure is below 0|sent is delivered"):
        room().check(law)


def test_a_clock_can_be_turned_back() -> None:
    clock = TurningClock()
    before = clock()
    clock.turn_back(3600)
    clock.advance(1)
    assert clock() == before - 3599


def test_a_failure_shows_what_was_seen() -> None:
    with pytest.raises(AssertionError, match=r"^not so: it is so; seen: 1, 'a'$"):
        hold(False, "it is so", 1, "a")
    with pytest.raises(AssertionError, match=r"^not so: it is so$"):
        hold(False, "it is so")
    with pytest.raises(AssertionError, match=r"^a number: should be 2, is 1$"):
        same(1, 2, "a number")
