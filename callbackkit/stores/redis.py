"""A store in Redis or Valkey, for the processes of many machines."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Self

from callbackkit.errors import IdempotencyError, LeaseLostError, LimitError, StoreError
from callbackkit.events import Position
from callbackkit.stores.base import (
    Appended,
    Attempt,
    Claim,
    Claims,
    DeadLetter,
    NewSession,
    Page,
    Record,
    SessionRecord,
    SessionState,
    Store,
    Swept,
    Totals,
    Watch,
    Watches,
)
from callbackkit.stores.redis_client import client_of
from callbackkit.stores.redis_link import Link, Verb
from callbackkit.stores.redis_rows import (
    check_row,
    read_attempt,
    read_claim,
    read_letter,
    read_page,
    read_session,
    write_attempt,
    write_flag,
    write_number,
)

__all__ = ["RedisStore"]

_logger = logging.getLogger("callbackkit.stores")

# Seconds between two looks at what changed and no wake told of.
_RECONCILE: Final = 1.5
# Partitions: each costs a call whenever all are asked, which is to be done within the timeout.
_MOST_PARTITIONS: Final = 1_024


class RedisStore(Store):
    """Sessions in Redis 6.2 or later, or Valkey, shared by all processes that reach it.

    What an append promises is what Redis is set to keep. With ``appendonly yes`` and
    ``appendfsync always`` it survives a crash of the machine; with ``everysec`` all but about the
    last second does; without persistence nothing survives a restart. A failover loses what the
    replica had not got yet. Whatever is lost, no position means another event later: a server that
    was started again or promoted (its ``run_id`` or the id of its history differs), and a log that
    is gone, begin new epochs, so readers are told of a gap, and what is owed and still there is
    delivered.

    Set ``maxmemory-policy noeviction``: Redis then refuses when it is full
    (:exc:`~callbackkit.StoreUnavailableError`) instead of throwing sessions away. The user it is
    reached as needs to read and write the keys and channels with the prefix, to run scripts, and
    ``INFO`` and ``TIME``; "How to share sessions by Redis" has the line.

    A call that fails or takes too long raises :exc:`~callbackkit.StoreUnavailableError`; whether it
    happened is not known then, and an idempotency key makes it safe to append again. The store
    recovers by itself once Redis answers.

    Between the partitions nothing is atomic: when sessions are created at the same moment,
    *max_sessions* may be passed by a few, and listing is no snapshot.

    All goes through one thread of its own, which the first verb begins and :meth:`aclose` ends; a
    verb after that begins it anew.

    Args:
        new_client: Makes what ``async with`` enters to a client of coredis, such as
            ``coredis.RedisCluster`` or one of Sentinel; with ``decode_responses=False`` and a
            ``retry_policy`` that does not try again (``coredis.retry.NoRetryPolicy()``). Called in
            the thread of the store, for each new connection.
        prefix: What all keys and channels begin with, as a hash tag with the number of the
            partition: ``{callbackkit:0}``. Stores with the same one share everything.
        partitions: How many parts the sessions are in: each is a slot of a cluster. All processes
            must use the same number: another one is refused.
        timeout: Seconds a call may take.
        clock: Seconds since 1970, for tests; ``None`` goes by the clock of Redis, so that those of
            the machines need not agree.

    Raises:
        TypeError: *new_client* or *clock* can't be called, or *prefix* is no text.
        ValueError: *prefix* is empty, or has braces or lone surrogates, *partitions* is no number
            from 1 to 1024, or *timeout* none above 0.
    """

    def __init__(
        self,
        new_client: Callable[[], Any],
        *,
        prefix: str = "callbackkit",
        partitions: int = 8,
        timeout: float = 5.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if not callable(new_client):
            raise TypeError(f"new_client must be callable, not a {type(new_client).__name__}")
        if clock is not None and not callable(clock):
            raise TypeError(f"clock must be callable, not a {type(clock).__name__}")
        _check_settings(prefix, partitions, timeout)
        self._partitions = partitions
        self._turn = 0
        self._link = Link(
            new_client,
            prefix=prefix,
            partitions=partitions,
            timeout=timeout,
            reconcile=_RECONCILE,
            clock=clock,
        )
        self._watches: Watches = self._link.wakes

    def __repr__(self) -> str:
        return f"{type(self).__name__}(prefix={self._link.prefix!r}, partitions={self._partitions})"

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        prefix: str = "callbackkit",
        partitions: int = 8,
        timeout: float = 5.0,
        clock: Callable[[], float] | None = None,
    ) -> Self:
        """Return a store on the server that a URL names.

        Args:
            url: ``redis://[[user]:password@]host[:port][/db]``, with TLS ``rediss://``, or
                ``unix://[[user]:password@]path[?db=]``. What is percent-encoded in it is decoded.
            prefix: See :class:`RedisStore`.
            partitions: See :class:`RedisStore`.
            timeout: Seconds a call, and a connection, may take.
            clock: See :class:`RedisStore`.

        Raises:
            ValueError: It is no such URL; the message does not repeat it.
        """
        if not isinstance(url, str):
            raise TypeError(f"url must be a str, not a {type(url).__name__}")
        _check_settings(prefix, partitions, timeout)
        return cls(
            client_of(url, timeout=timeout),
            prefix=prefix,
            partitions=partitions,
            timeout=timeout,
            clock=clock,
        )

    async def start(self) -> None:
        """See that Redis answers.

        Raises:
            StoreUnavailableError: It does not, within *timeout*. Once it does, all works.
        """
        await self._ask_all("count")

    async def aclose(self) -> None:
        """Wait for what was asked for, about *timeout* seconds at most, and let go of Redis."""
        await self._link.aclose()
        self._watches.ring_all()

    async def _ask(self, session_id: str, name: str, *arguments: str | bytes) -> list[Any]:
        verb = Verb(self._link.partition_of(session_id), name, (session_id, *arguments))
        await self._link.do((verb,))
        return check_row(_row_of(verb), session_id)

    async def _ask_all(self, name: str, *arguments: str | bytes) -> list[list[Any]]:
        return await self._do([Verb(each, name, arguments) for each in range(self._partitions)])

    async def _do(self, verbs: Sequence[Verb]) -> list[list[Any]]:
        await self._link.do(verbs)
        return [check_row(_row_of(each), "") for each in verbs]

    # Sessions.

    async def create_session(
        self, new: NewSession, *, max_sessions: int | None = None
    ) -> SessionRecord:
        if max_sessions is not None:
            counts = await self._ask_all("count")
            if sum(int(row[0]) for row in counts) >= max_sessions:
                raise LimitError("max_sessions", max_sessions)
        kept = new.retention
        row = await self._ask(
            new.id,
            "create",
            new.token_hash.hex(),
            "" if new.owner is None else f"={new.owner}",
            new.config,
            new.method,
            write_flag(new.pushes),
            json.dumps(new.unowed),
            write_number(new.ttl),
            write_number(kept.max_events),
            write_number(kept.max_bytes),
            write_number(kept.max_age),
            str(new.max_pending),
            secrets.token_hex(8),
        )
        return read_session(row[1])

    async def get_session(self, session_id: str) -> SessionRecord:
        return read_session((await self._ask(session_id, "get"))[1])

    async def sessions(
        self,
        *,
        state: SessionState | None = None,
        owner: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Sequence[SessionRecord]:
        told = (state or "", "" if owner is None else f"={owner}")
        found: list[SessionRecord] = []
        # Redis looks at some at a time: it is not held up however many there are.
        wanted: list[tuple[int, str | bytes, int]] = [
            (each, "" if after is None else after.encode("utf-8", "surrogatepass"), limit)
            for each in range(self._partitions)
        ]
        while wanted and limit > 0:
            rows = await self._do(
                [Verb(each, "list", (begin, str(rest), *told)) for each, begin, rest in wanted]
            )
            asked, wanted = wanted, []
            for (partition, _, rest), (_, records, on) in zip(asked, rows, strict=True):
                found += [read_session(each) for each in records]
                if on and rest > len(records):
                    wanted.append((partition, on, rest - len(records)))
        found.sort(key=lambda each: each.id.encode("utf-8", "surrogatepass"))
        return found[:limit]

    async def update_session(
        self, session_id: str, *, known: bytes, config: bytes, unowed: tuple[str, ...]
    ) -> SessionRecord:
        row = await self._ask(session_id, "update", known, config, json.dumps(unowed))
        return read_session(row[1])

    async def touch(self, reads: Mapping[str, int | None]) -> None:
        verbs = [
            Verb(self._link.partition_of(each), "touch", (each, "" if upto is None else str(upto)))
            for each, upto in reads.items()
        ]
        await self._do(verbs)

    async def end_session(self, session_id: str, *, linger: float) -> SessionRecord:
        row = await self._ask(session_id, "finish", repr(linger))
        self._watches.ring(session_id)
        return read_session(row[1])

    async def delete_session(self, session_id: str, *, linger: float) -> None:
        await self._ask(session_id, "delete", repr(linger))
        self._watches.ring(session_id)

    # The log.

    async def append(
        self,
        session_id: str,
        event_type: str,
        body: bytes,
        *,
        owed: bool = True,
        key: str | None = None,
    ) -> Appended:
        flag = write_flag(owed)
        if key is None:
            row = await self._ask(session_id, "append", event_type, body, flag)
        else:
            digest = hashlib.sha256(body).hexdigest()
            row = await self._ask(session_id, "append", event_type, body, flag, key, digest)
        if row[0] == b"ok":
            epoch, seq, at, ordinal = row[1].split()
            record = Record(int(seq), int(at), event_type, body, owed, int(ordinal))
            self._watches.ring(session_id, record.seq)
            self._watches.ring(None)
            return Appended(epoch.decode(), record, True)
        if row[0] == b"other":
            raise IdempotencyError(f"the key {key!r:.100} came before with another event")
        if row[0] == b"keys":
            raise LimitError("keys", int(row[1]), "so many idempotency keys in 24 hours")
        _, epoch, seq, at, was_owed, ordinal = row
        record = Record(int(seq), int(at), event_type, body, was_owed == b"1", int(ordinal))
        return Appended(epoch.decode(), record, False)

    async def read(
        self,
        session_id: str,
        *,
        after: Position | None = None,
        limit: int = 100,
        owed: bool = False,
    ) -> Page:
        epoch, seq = ("", "0") if after is None else (after.epoch, str(after.seq))
        return read_page(
            await self._ask(session_id, "read", epoch, seq, str(limit), write_flag(owed))
        )

    async def tail(self, session_id: str, *, limit: int) -> Page:
        return read_page(await self._ask(session_id, "tail", str(limit)))

    def watch(self, session_id: str | None) -> Watch:
        return self._watches.watch(session_id)

    async def trim(self, session_id: str, *, before: int) -> int:
        return int((await self._ask(session_id, "trim", str(before)))[1])

    async def sweep(self, *, limit: int = 100) -> Swept:
        share = limit // self._partitions
        rows = await self._ask_all("sweep", str(share))
        gone: list[bytes] = [each for _, ids, _, _ in rows for each in ids]
        rest = limit - sum(int(row[2]) for row in rows)
        is_more = False
        for partition, row in enumerate(rows):
            if row[3] == b"1" and rest > 0:
                (again,) = await self._do([Verb(partition, "sweep", (str(rest),))])
                gone += again[1]
                rest -= int(again[2])
                is_more = is_more or again[3] == b"1"
            else:
                is_more = is_more or row[3] == b"1"
        names = [each.decode("utf-8", "surrogatepass") for each in gone]
        for session_id in names:
            self._watches.ring(session_id)
        return Swept(names, is_more)

    # Deliveries.

    async def claim(self, *, methods: Collection[str], limit: int, lease: float) -> Claims:
        claims: list[Claim] = []
        waits: dict[int, float] = {}
        failures: list[Verb] = []
        self._turn += 1
        hungry = [(self._turn + n) % self._partitions for n in range(self._partitions)]
        while hungry and (rest := limit - len(claims)) > 0:
            share = max(1, rest // len(hungry))
            asked, hungry = hungry[: rest // share], hungry[rest // share :]
            verbs = [Verb(each, "claim", (str(share), repr(lease), *methods)) for each in asked]
            for verb, found in await self._claim(verbs, waits, failures):
                claims += map(read_claim, found)
                if len(found) == share and waits[verb.partition] == 0:
                    hungry.append(verb.partition)
        # When more falls due where nothing could be claimed for want of room.
        verbs = [Verb(each, "claim", ("0", "0.0", *methods)) for each in hungry]
        await self._claim(verbs, waits, failures)
        if failures and not waits:
            raise _error_of(failures[0])
        if failures:
            # What the others gave is leased: it is not to be lost with this.
            text = "what is due in %d of %d partitions is not known: %s"
            _logger.warning(text, len(failures), self._partitions, _error_of(failures[0]))
            waits[failures[0].partition] = _RECONCILE
        nearest = min(waits.values(), default=math.inf)
        return Claims(claims, None if nearest == math.inf else nearest)

    async def _claim(
        self, verbs: Sequence[Verb], waits: dict[int, float], failures: list[Verb]
    ) -> list[tuple[Verb, list[Any]]]:
        """Return what each partition gave; note when more falls due there, or that it failed."""
        await self._link.do(verbs)
        given: list[tuple[Verb, list[Any]]] = []
        for verb in verbs:
            if verb.result is None:
                failures.append(verb)
                continue
            _, found, next_in = check_row(verb.result, "")
            waits[verb.partition] = float(next_in) if next_in else math.inf
            given.append((verb, found))
        return given

    async def renew(self, claim: Claim, *, lease: float, bound: int | None = None) -> Claim:
        row = await self._settle(claim, "renew", repr(lease), write_number(bound))
        return read_claim(row[1])

    async def ack(
        self, claim: Claim, upto: int, attempt: Attempt | None, *, lease: float | None = None
    ) -> Claim | None:
        row = await self._settle(
            claim, "ack", str(upto), *write_attempt(attempt), "" if lease is None else repr(lease)
        )
        return read_claim(row[1]) if row[1] else None

    async def retry(
        self, claim: Claim, *, delay: float, attempt: Attempt | None, bound: int | None = None
    ) -> None:
        await self._settle(
            claim, "retry", repr(delay), *write_attempt(attempt), write_number(bound)
        )
        self._watches.ring(None)

    async def park(
        self,
        claim: Claim,
        *,
        upto: int,
        letter_id: str,
        reason: str,
        attempt: Attempt | None,
        lease: float | None = None,
    ) -> Claim | None:
        row = await self._settle(
            claim,
            "park",
            str(upto),
            letter_id,
            reason,
            *write_attempt(attempt),
            "" if lease is None else repr(lease),
        )
        return read_claim(row[1]) if row[1] else None

    async def _settle(self, claim: Claim, name: str, *arguments: str | bytes) -> list[Any]:
        letter = "" if claim.letter is None else claim.letter.id
        row = await self._ask(claim.session_id, name, letter, str(claim.fence), *arguments)
        if row[0] == b"lost":
            raise LeaseLostError(f"the lease on a delivery of session {claim.session_id} was lost")
        return row

    async def dead_letters(
        self, session_id: str, *, after: str | None = None, limit: int = 100
    ) -> Sequence[DeadLetter]:
        row = await self._ask(session_id, "letters", after or "", str(limit))
        return [read_letter(session_id, each) for each in row[1]]

    async def redrive(self, session_id: str, ids: Collection[str] | None = None) -> int:
        row = await self._ask(session_id, "redrive", write_flag(ids is None), *(ids or ()))
        if int(row[1]):
            self._watches.ring(None)
        return int(row[1])

    async def attempts(self, session_id: str) -> Sequence[Attempt]:
        row = await self._ask(session_id, "attempts")
        return [read_attempt(each) for each in row[1]]

    async def load_endpoint(self, endpoint: str) -> tuple[int, bytes]:
        _, version, state = await self._ask(endpoint, "load_endpoint")
        return int(version), state

    async def save_endpoint(self, endpoint: str, version: int, state: bytes) -> bool:
        row = await self._ask(endpoint, "save_endpoint", str(version), state)
        return bool(row[1] == b"1")

    # All of it.

    async def totals(self) -> Totals:
        rows = await self._ask_all("totals")
        sums = [sum(map(int, column)) for column in zip(*(row[1:] for row in rows), strict=True)]
        sessions, active, sent, settled, failed, expired, retries = sums
        return Totals(
            sessions=sessions,
            active=active,
            sent=sent,
            delivered=settled - failed - expired,
            failed=failed,
            expired=expired,
            queued=sent - settled,
            retries=retries,
        )

    async def health(self) -> None:
        await self._ask_all("health")


def _row_of(verb: Verb) -> list[Any]:
    if verb.result is None:
        raise _error_of(verb)
    return verb.result


def _error_of(verb: Verb) -> StoreError:
    return verb.error or StoreError(f"nothing came of {verb.name}")


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_settings(prefix: object, partitions: object, timeout: object) -> None:
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a str, not a {type(prefix).__name__}")
    if not prefix or set(prefix) & set("{}") or not _is_encodable(prefix):
        raise ValueError(
            f"prefix must be a text without braces and lone surrogates, not {prefix!r:.100}"
        )
    if isinstance(partitions, bool) or not isinstance(partitions, int):
        raise TypeError(f"partitions must be an int, not a {type(partitions).__name__}")
    if not 1 <= partitions <= _MOST_PARTITIONS:
        raise ValueError(f"partitions must be from 1 to {_MOST_PARTITIONS}, not {partitions!r}")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout must be a number, not a {type(timeout).__name__}")
    if not 0 < timeout < math.inf:
        raise ValueError(f"timeout must be a number of seconds above 0, not {timeout!r}")
