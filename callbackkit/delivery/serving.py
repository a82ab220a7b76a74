"""Serving one claim: delivery after delivery, until nothing is owed or it is let go."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Final, cast

import anyio
import anyio.lowlevel

from callbackkit.delivery.attempt import describe
from callbackkit.delivery.backlog import Backlog
from callbackkit.delivery.desk import MARGIN, Desk
from callbackkit.delivery.endpoint import Change, Endpoint
from callbackkit.delivery.places import Place
from callbackkit.delivery.policy import RateLimit
from callbackkit.delivery.transport import Delivery, DeliveryConfig, Transport
from callbackkit.errors import (
    Gone,
    LeaseLostError,
    Rejected,
    Retry,
    StoreError,
    UnknownSessionError,
)
from callbackkit.events import Event, Position
from callbackkit.stores.base import Attempt, Claim, Record, delivery_id

__all__ = ["Serving"]

_logger = logging.getLogger("callbackkit.delivery")

# Deliveries in a row after which other tasks get a turn: none of it may ever suspend.
_YIELD_EVERY: Final = 16
# Seconds after which a claim is let go if others are due that nobody serves.
_HOLD: Final = 0.25
# Seconds between two looks at a batch that fills.
_LOOK_EVERY: Final = 0.005
# A probe's outcome is waited for so long, seconds; it may be known before its lease runs out.
_PROBE_CHECK: Final = 2.0
# Rate limits are waited for here, when draining, up to so many seconds at a time.
_LONGEST_PAUSE: Final = 1.0
# Seconds that letting go may take when there is no time left.
_LET_GO: Final = 2.0
# Seconds that an endpoint is spared for which did not say how long.
_LONGEST_REST: Final = 60.0
# Seconds after which it is asked whether the client wants something else by now.
_FRESH: Final = 1.0
# Seconds until a claim comes back that has nothing to be read for it.
_NOTHING: Final = 1.0


class Serving:
    """One claim and what became of it.

    Args:
        desk: What all share.
        claim: The claim.
        place: Where it is served.
        leased_until: When its lease runs out.
    """

    __slots__ = (
        "_backlog",
        "_claim",
        "_config",
        "_count",
        "_desk",
        "_endpoint",
        "_held_since",
        "_known_at",
        "_lease",
        "_leased_until",
        "_limit",
        "_place",
        "_probe",
        "_reason",
        "_session_id",
        "_text",
        "_timeout",
        "_transport",
    )

    def __init__(self, desk: Desk, claim: Claim, place: Place, leased_until: float) -> None:
        self._desk = desk
        # None once it is let go.
        self._claim: Claim | None = claim
        self._place = place
        self._session_id = claim.session_id
        self._transport: Transport = desk.transports[claim.method]
        self._leased_until = leased_until
        self._held_since = leased_until - desk.lease
        # When the store last said what the client asks for.
        self._known_at = self._held_since
        self._count = 0
        self._text = b""
        self._config: DeliveryConfig | None = None
        self._endpoint: Endpoint | None = None
        # Why nothing of it can be sent.
        self._reason = ""
        self._probe = ""
        self._limit: RateLimit | None = None
        self._timeout = 0.0
        self._lease = 0.0
        self._prepare(claim)
        batching = None if self._config is None else self._config.batching
        self._backlog = Backlog(desk.store, claim.session_id, batching, desk.clock)

    def _prepare(self, claim: Claim) -> None:
        """Read the configuration and find the endpoint; what fails here would fail again."""
        transport, desk = self._transport, self._desk
        self._text = claim.config
        self._config = self._endpoint = self._limit = None
        try:
            config = self._config = desk.read_config(claim.config)
            self._limit = None if config.rate_limit is None else RateLimit(config.rate_limit)
            name = transport.endpoint(claim.session_id, config)
            if not isinstance(name, str):
                raise TypeError(f"endpoint() of {transport.name} must return a string")
        except Exception as exc:
            self._reason = f"the endpoint could not be told: {describe(exc, self._config)}"
            _logger.error(
                "a session can't be delivered as it is configured",
                extra={**self._extra(), "delivery_error": self._reason},
            )
            return
        self._endpoint = desk.endpoints.get(name, transport.breaker, transport.concurrency)
        self._timeout = transport.timeout if config.timeout is None else config.timeout
        self._lease = max(desk.lease, self._timeout + 2 * MARGIN)

    async def run(self) -> None:
        """Deliver; whatever happens to one claim happens to no other."""
        self._use(1)
        try:
            while self._claim is not None:
                await self._next(self._claim)
        except LeaseLostError:
            _logger.warning(
                "somebody else took a delivery over; what came of it here is dropped",
                extra=self._extra(),
            )
        except UnknownSessionError:
            _logger.info("a session went while it was delivered", extra=self._extra())
        except StoreError as exc:
            # The claim lapses, and the delivery comes again.
            _logger.warning("the store failed", exc_info=exc, extra=self._extra())
        except Exception:
            # Not let go: it would come back and fail again at once. The claim lapses.
            raise
        except BaseException:
            await self._let_go()
            raise
        finally:
            self._use(-1)

    def _use(self, one: int) -> None:
        """Count as one more user of the endpoint, or as one less."""
        if self._endpoint is not None:
            self._endpoint.users += one

    def _heed(self, claim: Claim) -> None:
        """Go by what the client asks for now: it was changed while the claim was held."""
        self._use(-1)
        self._prepare(claim)
        self._use(1)

    async def _let_go(self) -> None:
        """Have the next one take over at once, not when the lease runs out."""
        claim = self._claim
        if claim is None:
            return
        with anyio.move_on_after(_LET_GO, shield=True):
            try:
                await self._desk.store.retry(claim, delay=0.0, attempt=None)
            except LeaseLostError:
                # What was cancelled had let go of it, or settled it.
                pass
            except Exception:
                _logger.info("a claim was left to its lease", extra=self._extra())

    async def _next(self, claim: Claim) -> None:
        # Most of this seldom suspends, and a coroutine for each step would cost a third of all
        # that is done here (tests/benchmarks, "webhooks").
        self._count += 1
        if self._count % _YIELD_EVERY == 0:
            await anyio.lowlevel.checkpoint()
        endpoint = await self._looked_up(claim) if self._must_look(claim) else self._endpoint
        records = () if claim.letter is not None else self._backlog.ready(claim)
        if not records:
            records = await self._gather(claim)
            if self._claim is None:
                return
            claim = self._claim
        if endpoint is None or self._config is None:
            await self._park(claim, records, self._reason, None)
            return
        if endpoint.is_suspect and not self._step_aside(endpoint):
            await self._put_back(claim, self._desk.places.turn_in(self._desk.clock()))
            return
        if not endpoint.enter_now() and not await endpoint.enter(
            may_refuse=not self._desk.is_draining
        ):
            await self._put_back(claim, endpoint.come_back_in(self._desk.clock()))
            return
        duration: float | None = None
        try:
            if await self._may_go(claim, endpoint, records) and self._claim is not None:
                duration = await self._deliver(self._claim, endpoint, self._config, records)
        finally:
            endpoint.leave(self._desk.clock(), duration)

    def _must_look(self, claim: Claim) -> bool:
        """Tell whether the client asks for something else, or the endpoint is to be looked up."""
        endpoint = self._endpoint
        is_known = endpoint is None or endpoint.is_fresh(self._desk.clock())
        return claim.config != self._text or not is_known

    async def _looked_up(self, claim: Claim) -> Endpoint | None:
        """Go by what the client asks for now, and look the endpoint up."""
        if claim.config != self._text:
            self._heed(claim)
        endpoint = self._endpoint
        if endpoint is not None and not endpoint.is_fresh(now := self._desk.clock()):
            await endpoint.load(now)
        return endpoint

    # What comes next.

    async def _gather(self, claim: Claim) -> Sequence[Record]:
        """Return the records of the next delivery; none if the claim was put back."""
        if claim.letter is not None:
            return claim.letter.records
        records, wait = await self._look(claim, anew=False)
        if wait and not self._desk.may_wait:
            await self._put_back(claim, wait)
            return ()
        if wait:
            records = await self._wait_for_more(claim)
        if not records and self._claim is not None:
            _logger.warning("nothing can be read of what is owed", extra=self._extra())
            await self._put_back(self._claim, _NOTHING)
        return records

    async def _wait_for_more(self, claim: Claim) -> Sequence[Record]:
        """Wait until a batch is full, or its time is up."""
        with self._desk.store.watch(self._session_id) as watch:
            while True:
                # Read once more: something may have been appended before this watch began.
                records, wait = await self._look(claim, anew=True)
                if not wait:
                    return records
                rest = min(wait, self._desk.lease / 3)
                claim = await self._renewed(claim, rest)
                if not await self._desk.wait_on(watch, rest, self._place):
                    # It gets its place as the others do.
                    await self._put_back(claim, 0.0)
                    return ()
                await anyio.sleep(min(wait, _LOOK_EVERY))

    async def _look(self, claim: Claim, *, anew: bool) -> tuple[Sequence[Record], float]:
        endpoint = self._endpoint
        is_hurried = (
            self._desk.is_draining or endpoint is None or endpoint.circuit.phase == "disabled"
        )
        return await self._backlog.next(claim, anew=anew, is_hurried=is_hurried)

    # May it be sent?

    def _step_aside(self, endpoint: Endpoint) -> bool:
        """Have an endpoint that may hang hold no place of others; tell whether to go on."""
        if endpoint.wait(self._desk.clock()) > 0:
            # Nothing is going to be sent.
            return True
        return self._desk.step_aside(self._place) or self._desk.is_draining

    async def _may_go(self, claim: Claim, endpoint: Endpoint, records: Sequence[Record]) -> bool:
        """Tell whether to send now; if not, the client asks for something else, or as below."""
        # It may have waited: for a batch to fill, or for its turn.
        if not 0 <= self._desk.clock() - self._known_at < _FRESH:
            claim = await self._renew(claim, None)
        if claim.config != self._text:
            return False
        if self._limit is None and endpoint.is_clear:
            self._probe = ""
            return True
        return await self._is_admitted(claim, endpoint, records)

    async def _is_admitted(
        self, claim: Claim, endpoint: Endpoint, records: Sequence[Record]
    ) -> bool:
        """Tell whether to send now; if not, the claim was put back or the records parked."""
        self._probe = ""
        while True:
            now = self._desk.clock()
            wait = endpoint.wait(now)
            if wait == math.inf:
                if claim.letter is not None:
                    return True
                await endpoint.keep_disabled(now)
                await self._park(claim, records, self._disabled(endpoint), None)
                return False
            if wait > 0:
                await self._put_back(claim, self._until_probed(endpoint, wait))
                return False
            if self._limit is not None and (rest := endpoint.wait_for_rate(self._limit, now)):
                if not self._desk.is_draining:
                    await self._put_back(claim, endpoint.turn_in(self._limit, rest, now))
                    return False
                await self._desk.pause(min(rest, _LONGEST_PAUSE))
                claim = await self._renewed(claim, 0.0)
                continue
            if endpoint.circuit.phase == "closed" or await self._try_out(endpoint, now):
                break
        if self._limit is not None:
            endpoint.take_rate(self._limit, now)
        return True

    def _until_probed(self, endpoint: Endpoint, wait: float) -> float:
        if endpoint.circuit.phase == "half_open":
            wait = min(wait, _PROBE_CHECK)
        # Not all at the same moment.
        return wait * (1.0 + self._desk.random() / 10)

    async def _try_out(self, endpoint: Endpoint, now: float) -> bool:
        probe = self._desk.new_probe()
        if not await endpoint.try_out(now, probe=probe, lease=self._timeout + MARGIN):
            return False
        self._probe = probe
        return True

    @staticmethod
    def _disabled(endpoint: Endpoint) -> str:
        return f"the endpoint is disabled: {endpoint.circuit.reason}"

    # Sending.

    async def _deliver(
        self,
        claim: Claim,
        endpoint: Endpoint,
        config: DeliveryConfig,
        records: Sequence[Record],
    ) -> float:
        """Send, settle, and return the seconds the attempt took."""
        if config.batching is not None or not self._is_leased_for(self._timeout):
            claim = await self._secured(claim, config, records)
        number = claim.attempts + 1
        delivery = self._delivery(claim, config, records, number)
        desk = self._desk
        began = desk.clock()
        if desk.observers.all:
            error = await desk.observers.attempt(self._transport, delivery, timeout=self._timeout)
        else:
            error = await desk.deadlines.failure_of(
                self._transport.send, delivery, timeout=self._timeout
            )
        ended = desk.clock()
        duration = max(0.0, ended - began)
        text = "" if error is None else describe(error, config)
        attempt = Attempt(
            delivery_id=delivery.id,
            number=number,
            at=began,
            duration=duration,
            events=len(records),
            error=text,
        )
        if error is None:
            if not endpoint.succeeds_again(ended):
                await self._succeeded(claim, endpoint, ended)
            lease = self._next_lease(endpoint)
            self._hold(await desk.store.ack(claim, records[-1].seq, attempt, lease=lease), records)
        else:
            await self._failed(claim, endpoint, records, attempt, error)
        return duration

    async def _succeeded(self, claim: Claim, endpoint: Endpoint, now: float) -> None:
        """Note what that changed of the endpoint."""
        change = await endpoint.succeeded(now, probe=self._probe, redriven=claim.letter is not None)
        if change is not None:
            await self._tell(change, endpoint, "")

    def _is_leased_for(self, timeout: float) -> bool:
        """Tell whether the lease lasts for *timeout* seconds and some more."""
        return self._leased_until - self._desk.clock() >= timeout + MARGIN

    async def _secured(
        self, claim: Claim, config: DeliveryConfig, records: Sequence[Record]
    ) -> Claim:
        """Have a lease that outlives the attempt, and the batch fixed before it is tried.

        A batch of one is fixed too: were this process killed after sending it, a larger one
        would go by the same id.
        """
        bound = records[-1].seq
        is_fixed = config.batching is None or claim.bound == bound or claim.letter is not None
        if not is_fixed:
            return await self._renew(claim, bound)
        return await self._renewed(claim, self._timeout)

    async def _renewed(self, claim: Claim, timeout: float) -> Claim:
        """Return a claim whose lease lasts for *timeout* seconds and some more."""
        if self._is_leased_for(timeout):
            return claim
        return await self._renew(claim, None)

    async def _renew(self, claim: Claim, bound: int | None) -> Claim:
        now = self._desk.clock()
        lease = max(self._lease, self._desk.lease)
        claim = self._claim = await self._desk.store.renew(claim, lease=lease, bound=bound)
        self._leased_until = now + lease
        self._known_at = now
        return claim

    def _delivery(
        self, claim: Claim, config: DeliveryConfig, records: Sequence[Record], number: int
    ) -> Delivery:
        session_id, epoch, decode = self._session_id, claim.epoch, self._desk.decode
        return Delivery(
            id=_id_of(claim, records),
            events=tuple(
                [
                    Event(Position(epoch, seq), event_type, at, session_id, body, decode)
                    for seq, at, event_type, body, _, _ in records
                ]
            ),
            attempt=number,
            session_id=session_id,
            config=config,
            is_redrive=claim.letter is not None,
        )

    # Settling.

    async def _failed(
        self,
        claim: Claim,
        endpoint: Endpoint,
        records: Sequence[Record],
        attempt: Attempt,
        error: Exception,
    ) -> None:
        desk, reason = self._desk, attempt.error
        now = desk.clock()
        _logger.info(
            "an attempt failed",
            extra={
                **self._extra(),
                "delivery_id": attempt.delivery_id,
                "delivery_attempt": attempt.number,
                "delivery_error": reason,
            },
        )
        if isinstance(error, Gone):
            change = await endpoint.disable(now, reason)
        else:
            change = await endpoint.failed(
                now, chance=desk.random(), probe=self._probe, reason=reason
            )
        if change is not None:
            await self._tell(change, endpoint, reason)
        if rest := self._rest(attempt.number, error):
            await endpoint.throttle(now, rest)
        delay = self._delay(attempt.number, error)
        if delay is None:
            await self._park(claim, records, reason, attempt)
        elif endpoint.circuit.phase == "disabled" and claim.letter is None:
            await self._park(claim, records, self._disabled(endpoint), attempt)
        else:
            await desk.store.retry(claim, delay=delay, attempt=attempt, bound=records[-1].seq)
            self._claim = None

    def _delay(self, attempt: int, error: Exception) -> float | None:
        if isinstance(error, Gone | Rejected):
            return None
        delay = self._transport.retry.delay(
            attempt,
            chance=self._desk.random(),
            retry_after=_seconds(error.after) if isinstance(error, Retry) else None,
            attempts_allowed=None if self._config is None else self._config.retry_attempts,
        )
        # What fails while draining is not tried again here.
        return delay if delay is None or not self._desk.is_draining else max(delay, 1.0)

    def _rest(self, attempt: int, error: Exception) -> float:
        """Return the seconds that nobody is to send to the endpoint."""
        retry = self._transport.retry
        if isinstance(error, Retry) and error.throttles:
            return retry.rest(attempt, most=_LONGEST_REST, retry_after=_seconds(error.after))
        # It takes too long already.
        is_slow = isinstance(error, TimeoutError)
        return retry.rest(attempt, most=_LONGEST_REST) if is_slow else 0.0

    async def _park(
        self, claim: Claim, records: Sequence[Record], reason: str, attempt: Attempt | None
    ) -> None:
        """Make a dead letter of records, and turn to what follows them."""
        letter_id = _id_of(claim, records)
        following = await self._desk.store.park(
            claim,
            upto=records[-1].seq,
            letter_id=letter_id,
            reason=reason,
            attempt=attempt,
            lease=self._next_lease(self._endpoint),
        )
        self._hold(following, records)
        attempts = claim.attempts + (attempt is not None)
        _logger.error(
            "a delivery is dead",
            extra={**self._extra(), "delivery_id": letter_id, "delivery_reason": reason},
        )
        await self._desk.tell(
            "delivery.dead",
            self._session_id,
            {
                "delivery_id": letter_id,
                "delivery_method": self._transport.name,
                "events": len(records),
                "attempts": attempts,
                "reason": reason,
            },
        )

    def _next_lease(self, endpoint: Endpoint | None) -> float | None:
        """Return how long to hold on to what comes next; ``None`` to let go of it."""
        desk = self._desk
        if desk.is_draining:
            # Who drains claims what is due once, so what is let go would be left.
            return max(self._lease, desk.lease)
        if desk.places.room <= 0 and desk.places.stands_aside(self._place):
            # His place was given away.
            return None
        others_wait = desk.is_crowded or (endpoint is not None and endpoint.has_line)
        if others_wait and desk.clock() - self._held_since >= _HOLD:
            return None
        return max(self._lease, desk.lease)

    def _hold(self, claim: Claim | None, records: Sequence[Record]) -> None:
        """Go on with what comes next, if it was not let go."""
        self._claim = claim
        if claim is None:
            return
        now = self._desk.clock()
        self._desk.places.begin(self._place, now)
        self._leased_until = now + max(self._lease, self._desk.lease)
        self._known_at = now
        self._backlog.move_on(claim, records)

    async def _put_back(self, claim: Claim, delay: float) -> None:
        """Let go of a claim for so many seconds, without a try being counted."""
        await self._desk.store.retry(claim, delay=delay, attempt=None)
        self._claim = None

    # Telling.

    async def _tell(self, change: Change, endpoint: Endpoint, reason: str) -> None:
        level = logging.INFO if change == "recovered" else logging.WARNING
        _logger.log(
            level, "an endpoint is %s", change, extra={**self._extra(), "delivery_error": reason}
        )
        await self._desk.tell(
            f"endpoint.{change}",
            self._session_id,
            {
                "endpoint": endpoint.name,
                "delivery_method": self._transport.name,
                "reason": reason,
            },
        )

    def _extra(self) -> dict[str, object]:
        endpoint = self._endpoint
        return {
            "delivery_session": self._session_id,
            "delivery_method": self._transport.name,
            "delivery_endpoint": "" if endpoint is None else endpoint.name,
        }


def _id_of(claim: Claim, records: Sequence[Record]) -> str:
    if claim.letter is not None:
        return claim.letter.id
    return delivery_id(claim.session_id, claim.epoch, records[0].seq)


def _seconds(after: object) -> float | None:
    """Read what a transport passed on; a header that is a date is left to the schedule."""
    try:
        return None if after is None else float(cast(float, after))
    except (TypeError, ValueError, OverflowError):
        return None
