"""Does verbs at a store and at its model, and compares: deliveries."""

from __future__ import annotations

from typing import Any, Final

from callbackkit.errors import LeaseLostError
from callbackkit.stores.base import Attempt, Claim, Claims
from callbackkit.testing.store_bench import hold, same, tried
from callbackkit.testing.store_driver import LONG, StoreDriver
from callbackkit.testing.store_model import Held, ModelEntry, ModelLetter, ModelSession

__all__ = ["DeliveryDriver"]

# No sum of times that pass, so that nothing falls due at the very moment of a look.
_LEASE: Final = 10.5


class DeliveryDriver(StoreDriver):
    """A store and its model, in step, with what is owed."""

    def claim(self, limit: int) -> None:
        owing = self.model.owing()
        due = [each for each in owing if each[1].until <= self.now]
        lease = _LEASE if self.has_manual_time else LONG
        found = self.do(self.bench.store.claim, methods=["push"], limit=limit, lease=lease)
        same(len(found.claims), min(limit, len(due)), "how many are claimed")
        for claim in found.claims:
            self.claimed(claim, lease)
        self.check_next(found, [entry.until for _, entry in owing])

    def claimed(self, claim: Claim, lease: float) -> None:
        """Compare a claim, and note it in the model."""
        session = next(each for each in self.model.sessions if each.id == claim.session_id)
        entry: ModelEntry = session.entry
        if claim.letter is not None:
            letter = session.letters[claim.letter.id]
            entry = letter
            same(claim.letter.records, letter.records, "the records of the letter")
            same(claim.letter.is_due, letter.is_due, "the letter is due")
        else:
            hold(bool(session.queued), "something is owed", claim)
            same(
                session.delivered + session.failed + session.expired,
                _upto(session, claim),
                "cursor",
            )
            same(claim.bound, entry.bound, "the bound")
        hold(entry.until <= self.now, "it is due", claim)
        hold(claim.fence > entry.fence, "the fence is higher", claim, entry.fence)
        same(claim.attempts, entry.attempts, "tries")
        self.hold_on(session, entry, claim, lease)

    def hold_on(self, session: ModelSession, entry: ModelEntry, claim: Claim, lease: float) -> None:
        """Note who holds something from now on."""
        entry.fence = max(entry.fence, claim.fence)
        entry.holder = Held(claim, session, entry)
        entry.until = self.now + lease
        self.model.held.append(entry.holder)

    def check_next(self, found: Claims, waiting: list[float]) -> None:
        """Compare when more falls due."""
        if not self.has_manual_time:
            return
        wanted = max(min(waiting) - self.now, 0.0) if waiting else None
        is_so = found.next_in == wanted
        if wanted is not None and found.next_in is not None:
            is_so = abs(found.next_in - wanted) < 0.001
        hold(is_so, "when more falls due", found.next_in, wanted)

    def settle(self, held: Held, verb: Any, *args: Any, **options: Any) -> tuple[bool, Any]:
        """Run a verb with a claim; see that it is refused just when it must be."""
        self.look_at(held.session)
        if not held.is_right:
            self.refused(LeaseLostError, verb, held.claim, *args, **options)
            return False, None
        try:
            return True, self.do(verb, held.claim, *args, **options)
        except LeaseLostError:
            hold(held.entry.until <= self.now, "a lease that runs is held", held.claim)
            return False, None

    def pick_claim(self, number: int) -> Held:
        """Choose a claim, mostly one of the last."""
        return self.model.held[-1 - number % len(self.model.held)]

    def ack(self, number: int, part: int, goes_on: bool, notes: bool) -> None:
        held = self.pick_claim(number)
        upto, attempt, lease = _upto_of(held, part), _try(held, notes), self._lease(goes_on)
        is_done, rest = self.settle(held, self.bench.store.ack, upto, attempt, lease=lease)
        if not is_done:
            return
        session = held.session
        session.note(attempt)
        if isinstance(held.entry, ModelLetter):
            del session.letters[held.entry.id]
            session.failed -= len(held.entry.records)
            session.delivered += len(held.entry.records)
        else:
            session.deliver(upto)
        self.go_on(held, rest, lease)

    def park(self, number: int, part: int, goes_on: bool, notes: bool) -> None:
        held = self.pick_claim(number)
        upto, attempt, lease = _upto_of(held, part), _try(held, notes), self._lease(goes_on)
        letter_id = f"letter {len(self.model.held)} {held.session.top} {held.session.failed}"
        is_done, rest = self.settle(
            held,
            self.bench.store.park,
            upto=upto,
            letter_id=letter_id,
            reason="no",
            attempt=attempt,
            lease=lease,
        )
        if not is_done:
            return
        session = held.session
        session.note(attempt)
        if isinstance(held.entry, ModelLetter):
            held.entry.is_due = False
        else:
            records = [each for each in session.log[session.cursor : upto] if each.owed]
            session.bury(records, letter_id)
            session.failed += len(records)
            session.cursor = upto
        self.go_on(held, rest, lease)

    def go_on(self, held: Held, rest: Claim | None, lease: float | None) -> None:
        """Note what follows a delivery that was acknowledged or given up."""
        entry, session = held.entry, held.session
        entry.begin_anew()
        entry.let_go()
        same(session.shed(), [], "too much is owed after a delivery")
        has_more = not isinstance(entry, ModelLetter) and session.queued and lease is not None
        same(rest is not None, bool(has_more), "it goes on")
        if rest is not None and lease is not None:
            # The claim before it may have the same fence: it is nobody's any more.
            self.model.held.remove(held)
            same((rest.attempts, rest.bound), (0, None), "tries and bound of what comes next")
            self.hold_on(session, entry, rest, lease)

    def retry(self, number: int, delay: float, part: int, notes: bool) -> None:
        held = self.pick_claim(number)
        attempt, bound = _try(held, notes), _bound_of(held, part)
        delay = delay if self.has_manual_time else 0.0
        retry = self.bench.store.retry
        is_done, _ = self.settle(held, retry, delay=delay, attempt=attempt, bound=bound)
        if is_done:
            held.session.note(attempt)
            held.entry.attempts += attempt is not None
            held.entry.bound = bound or held.entry.bound
            held.entry.let_go(self.now + delay)

    def renew(self, number: int, part: int) -> None:
        held = self.pick_claim(number)
        lease, bound = self._lease(True) or LONG, _bound_of(held, part)
        is_done, claim = self.settle(held, self.bench.store.renew, lease=lease, bound=bound)
        if is_done:
            held.entry.until = self.now + lease
            held.entry.bound = bound or held.entry.bound
            held.claim = claim
            if claim.letter is None:
                same(claim.bound, held.entry.bound, "the bound of a renewed claim")

    def _lease(self, goes_on: bool) -> float | None:
        lease = _LEASE if self.has_manual_time else LONG
        return lease if goes_on else None

    def redrive(self, number: int, chosen: int | None) -> None:
        session = self.pick(number)
        redrive = self.bench.store.redrive
        if not session.letters and not self.is_there(session, redrive):
            return
        ids = list(session.letters)[chosen : chosen + 1] if chosen is not None else None
        count = self.do(redrive, session.id, ids)
        wanted = list(session.letters) if ids is None else ids
        letters = [session.letters[each] for each in wanted if not session.letters[each].is_due]
        same(count, len(letters), "how many are redriven")
        for letter in letters:
            letter.is_due = True
            letter.begin_anew()


def _upto(session: ModelSession, claim: Claim) -> int:
    return sum(record.owed for record in session.log[: claim.cursor])


def _upto_of(held: Held, part: int) -> int:
    """Return the number up to which so many owed records go that a claim is about."""
    if held.claim.letter is not None:
        return held.claim.letter.records[-1].seq
    pending = [each for each in held.session.log[held.claim.cursor :] if each.owed]
    return pending[:part][-1].seq


def _bound_of(held: Held, part: int) -> int | None:
    return _upto_of(held, part) if part and held.claim.letter is None else None


def _try(held: Held, notes: bool) -> Attempt | None:
    return tried(held.entry.attempts + 1) if notes else None
