"""Every exception class of callbackkit.

Misuse by the caller raises a built-in (``ValueError``, ``TypeError``); what the
world does to us raises one of these::

    CallbackKitError
    ├── AsyncCallbackError          (also TypeError)
    ├── CallbackCancelledError
    ├── CallbackTimeoutError        (also TimeoutError)
    ├── AbandonedThreadsError
    ├── BacklogError
    ├── DispatchDepthError          (also RecursionError)
    ├── StreamLagError
    ├── StreamClosedError           (also RuntimeError)
    ├── StreamCancelledError        (also RuntimeError)
    ├── WireError                   (also ValueError)
    │   └── SignatureError
    ├── GraphError                  (also ValueError)
    │   ├── NodeInputError          (also LookupError)
    │   ├── NodeOutputError         (also TypeError)
    │   └── GraphStepsError         (also RecursionError)
    ├── FunctionArgumentsError      (also ValueError)
    ├── UnknownFunctionError        (also LookupError)
    ├── UnknownCallError            (also LookupError)
    ├── PayloadError                (also ValueError)
    ├── AccessDeniedError           (also PermissionError)
    ├── PositionError               (also ValueError)
    ├── ConfigError                 (also ValueError)
    ├── IdempotencyError            (also ValueError)
    ├── LimitError
    ├── UnknownSessionError         (also LookupError)
    │   └── SessionDeletedError
    ├── SessionEndedError           (also RuntimeError)
    ├── LeaseLostError
    ├── SendError
    │   └── ForbiddenAddressError
    └── StoreError
        ├── StoreUnavailableError
        └── StoreVersionError
    StopChain                       control flow, not a failure
    Retry                           what a transport raises: try again, at this time
    Rejected                        what a transport raises: never try these events again
    Gone                            what a transport raises: never send anything there again
"""

from __future__ import annotations

from collections.abc import Iterable


class CallbackKitError(Exception):
    """Base of all failures raised by callbackkit."""


# Running callbacks.


class AsyncCallbackError(CallbackKitError, TypeError):
    """An asynchronous callback stands where only synchronous ones can run."""


class CallbackCancelledError(CallbackKitError):
    """A callback was cancelled by somebody else while its dispatch was not.

    Stands for ``asyncio.CancelledError``, which is its ``__cause__``, in outcomes and
    exception groups: those can't hold a ``BaseException``.
    """


class CallbackTimeoutError(CallbackKitError, TimeoutError):
    """A callback did not finish within the timeout set for it.

    Attributes:
        timeout: Seconds it was given.
    """

    # What was given up on. A callback may raise one of these that is not about itself.
    source: object = None

    def __init__(self, message: str = "", *, timeout: float | None = None) -> None:
        super().__init__(message)
        self.timeout = timeout


class AbandonedThreadsError(CallbackKitError):
    """Too many worker threads hang in callbacks that were given up on; no new one is started."""


class BacklogError(CallbackKitError):
    """More was begun or handed over than may wait to be done; finish some first."""


class DispatchDepthError(CallbackKitError, RecursionError):
    """Callbacks trigger events whose callbacks trigger events, deeper than the limit."""


# Following a log.


class StreamLagError(CallbackKitError):
    """A reader fell further behind than its log keeps.

    Attributes:
        missed: How many items it can no longer get.
    """

    def __init__(self, missed: int) -> None:
        super().__init__(missed)
        self.missed = missed

    def __str__(self) -> str:
        return f"the reader is too far behind: {self.missed} items are no longer kept"


# Streaming the tokens of a run.


class StreamClosedError(CallbackKitError, RuntimeError):
    """Something was emitted to a stream that has ended."""


class StreamCancelledError(CallbackKitError, RuntimeError):
    """The run was cancelled: told to its readers at the end, to its producers at their next token.

    Attributes:
        reason: What :meth:`~callbackkit.Callback.cancel` was given; ``""`` for nothing.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the run was cancelled: {self.reason}" if self.reason else "the run was cancelled"


class WireError(CallbackKitError, ValueError):
    """Text or bytes from outside that mean nothing, or are larger than may be kept."""


class SignatureError(WireError):
    """A webhook that is not from whom it says, or too old; the text has no secret in it."""


# Running a graph.


class GraphError(CallbackKitError, ValueError):
    """A graph can't be run as it is: the message names the node or edge, and the remedy."""


class NodeInputError(GraphError, LookupError):
    """A node names a parameter that is no key of the state."""


class NodeOutputError(GraphError, TypeError):
    """A node returned something that is no mapping, or a router no node that it may choose."""


class GraphStepsError(GraphError, RecursionError):
    """A graph took more steps than *max_steps*."""


# Calling functions by name.


class FunctionArgumentsError(CallbackKitError, ValueError):
    """Arguments of a function call are not a JSON object, or too large.

    Attributes:
        name: The function that was to be called.
        reason: What is wrong with its arguments.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"arguments of function {self.name!r}: {self.reason}"


class UnknownFunctionError(CallbackKitError, LookupError):
    """No function is registered under this name.

    Attributes:
        name: The name asked for.
        known: The names that are registered, sorted.
    """

    def __init__(self, name: object, known: Iterable[str] = ()) -> None:
        self.name = name
        self.known: tuple[str, ...] = tuple(sorted(known))
        super().__init__(name, self.known)

    def __str__(self) -> str:
        known = ", ".join(self.known) or "none"
        return f"no function is registered as {self.name!r:.200}; known: {known}"


class UnknownCallError(CallbackKitError, LookupError):
    """No streamed function call with this id was started, or it has ended.

    Attributes:
        call_id: The id asked for.
    """

    def __init__(self, call_id: object) -> None:
        super().__init__(call_id)
        self.call_id = call_id

    def __str__(self) -> str:
        return f"no function call {self.call_id!r:.200} is open; start() it first"


# Sessions.


class PayloadError(CallbackKitError, ValueError):
    """The data of an event is not what its type says, or can't be written as JSON.

    Attributes:
        path: Where in the data, for example ``"steps[1]"``; ``""`` for all of it.
        reason: What is wrong there.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


class PositionError(CallbackKitError, ValueError):
    """A text is no position. One that means nothing to a session gives a gap, not this."""


class ConfigError(CallbackKitError, ValueError):
    """What a client asked for can't be had.

    Attributes:
        field: The key, for example ``"batching.max_events"``.
        reason: What is wrong with it.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class IdempotencyError(CallbackKitError, ValueError):
    """An idempotency key came again with another event."""


class LimitError(CallbackKitError):
    """A limit is reached, so this is refused.

    Attributes:
        limit: Its name, for example ``"max_sessions"``.
        value: What it is set to.
    """

    def __init__(self, limit: str, value: int, hint: str = "") -> None:
        super().__init__(limit, value, hint)
        self.limit = limit
        self.value = value
        self.hint: str = hint

    def __str__(self) -> str:
        text = f"the limit {self.limit}={self.value} is reached"
        return f"{text}: {self.hint}" if self.hint else text


class UnknownSessionError(CallbackKitError, LookupError):
    """No such session: there never was one, or it is gone.

    Attributes:
        session_id: The id asked for.
    """

    def __init__(self, session_id: object) -> None:
        super().__init__(session_id)
        self.session_id = session_id

    def __str__(self) -> str:
        return f"no session {self.session_id!r:.100}"


class SessionDeletedError(UnknownSessionError):
    """The session was deleted, or expired, not long ago."""

    def __str__(self) -> str:
        return f"session {self.session_id!r:.100} was deleted or has expired"


class AccessDeniedError(CallbackKitError, PermissionError):
    """A server refuses: the token is missing, wrong, or not for this session.

    Attributes:
        session_id: The session.
        status: Of the answer, 401 or 403.
    """

    def __init__(self, session_id: str, status: int) -> None:
        super().__init__(session_id, status)
        self.session_id: str = session_id
        self.status: int = status

    def __str__(self) -> str:
        remedy = "give the session's token" if self.status == 401 else "the server lets nobody else"
        return f"session {self.session_id!r:.100} may not be followed ({self.status}): {remedy}"


class SessionEndedError(CallbackKitError, RuntimeError):
    """Something was emitted to a session that has ended.

    Attributes:
        session_id: The session.
    """

    def __init__(self, session_id: object) -> None:
        super().__init__(session_id)
        self.session_id = session_id

    def __str__(self) -> str:
        return f"session {self.session_id!r:.100} has ended; it can be read for a while, no more"


class LeaseLostError(CallbackKitError):
    """A delivery was taken over by somebody else: what became of it here does not count."""


class SendError(CallbackKitError):
    """A destination was not reached, or did not take what it was sent.

    The text says what happened in words of ours, so that a client may see it: none of what was
    answered, and nothing of how the network behind an address looks.
    """


class ForbiddenAddressError(SendError):
    """An address that nothing may be sent to."""


class StoreError(CallbackKitError):
    """A store failed; ``__cause__`` is the exception of what it is built on."""


class StoreUnavailableError(StoreError):
    """A store can't do its work now: disk full, file read-only, no connection.

    Nothing was kept; but where another machine keeps it and did not answer, that is not known. What
    is appended again with its idempotency key is there once.
    """


class StoreVersionError(StoreError):
    """What a store holds was written by a version of this library that this one can't read."""


# Control flow.


class StopChain(Exception):
    """Raised by a callback of a chain to end it early.

    Attributes:
        value: The chain's value.
    """

    def __init__(self, value: object = None) -> None:
        super().__init__(value)
        self.value = value


class Retry(Exception):
    """Raised by a transport: this attempt failed, and the next one is due then.

    Attributes:
        after: Seconds until the next attempt, instead of the schedule's next delay; ``None``
            leaves it to the schedule.
        reason: What happened, for the list of attempts.
        throttles: Nothing else is sent to this endpoint before that either: no longer than a
            minute if the schedule sets the delay.
    """

    def __init__(
        self, after: float | None = None, reason: str = "", *, throttles: bool = False
    ) -> None:
        super().__init__(after, reason)
        self.after = after
        self.reason = reason
        self.throttles = throttles


class Rejected(Exception):
    """Raised by a transport: these events will never be taken, whatever becomes of others.

    They become a dead letter at once, and what follows them is sent.

    Attributes:
        reason: What happened, for the list of attempts.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class Gone(Exception):
    """Raised by a transport: the destination wants nothing more, ever.

    Attributes:
        reason: What happened, for the list of attempts.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
