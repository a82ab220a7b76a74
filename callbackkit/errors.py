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
    ├── GraphError                  (also ValueError)
    │   ├── NodeInputError          (also LookupError)
    │   ├── NodeOutputError         (also TypeError)
    │   └── GraphStepsError         (also RecursionError)
    ├── FunctionArgumentsError      (also ValueError)
    ├── UnknownFunctionError        (also LookupError)
    └── UnknownCallError            (also LookupError)
    StopChain                       control flow, not a failure
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


# Control flow.


class StopChain(Exception):
    """Raised by a callback of a chain to end it early.

    Attributes:
        value: The chain's value.
    """

    def __init__(self, value: object = None) -> None:
        super().__init__(value)
        self.value = value
