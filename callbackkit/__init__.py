"""callbackkit: callbacks that cannot break each other, on asyncio and trio.

The everyday names live here and are imported when first used, so ``import callbackkit`` by
itself costs next to nothing; type checkers see ordinary imports. What only tests want is in
``callbackkit.testing``.
"""

import logging
from typing import TYPE_CHECKING, Final

__all__ = [
    "ANY",
    "AbandonedThreadsError",
    "AccessDeniedError",
    "AsyncCallbackError",
    "BacklogError",
    "Batching",
    "Callback",
    "CallbackCancelledError",
    "CallbackChain",
    "CallbackConfig",
    "CallbackKitError",
    "CallbackManager",
    "CallbackRegistry",
    "CallbackSlot",
    "CallbackTimeoutError",
    "ChainResult",
    "CircuitBreaker",
    "CompletionCallback",
    "ConfigError",
    "Delivery",
    "DispatchDepthError",
    "DispatchResult",
    "Dispatcher",
    "ErrorCallback",
    "ErrorContext",
    "Event",
    "EventCallback",
    "EventKey",
    "EventReader",
    "EventRouter",
    "EventStream",
    "EventType",
    "ForbiddenAddressError",
    "FunctionArgumentsError",
    "FunctionRegistry",
    "Gone",
    "Graph",
    "GraphError",
    "GraphStepsError",
    "IdempotencyError",
    "LeaseLostError",
    "LimitError",
    "Limits",
    "ManagerStats",
    "MemoryStore",
    "Node",
    "NodeInputError",
    "NodeOutputError",
    "ObservableState",
    "Operation",
    "Outcome",
    "OutcomeStatus",
    "PayloadError",
    "PerformanceStats",
    "Position",
    "PositionError",
    "ProgressCallback",
    "Registration",
    "Rejected",
    "Retention",
    "Retry",
    "RetryPolicy",
    "RunStatus",
    "RunStream",
    "SendError",
    "Session",
    "SessionDeletedError",
    "SessionEndedError",
    "SessionStats",
    "SignatureError",
    "SlotStream",
    "SpecialToken",
    "StateChangeCallback",
    "StopChain",
    "Store",
    "StoreError",
    "StoreUnavailableError",
    "StoreVersionError",
    "StreamCancelledError",
    "StreamClosedError",
    "StreamEvent",
    "StreamLagError",
    "Subscription",
    "TokenFormat",
    "TokenParser",
    "TokenReader",
    "Transport",
    "UnknownCallError",
    "UnknownFunctionError",
    "UnknownSessionError",
    "WireError",
    "emit_token",
    "headers_for",
    "monitor_callback_performance",
    "ndjson",
    "node",
    "router",
    "run_stream",
    "safe_callback_execution",
    "safe_callback_execution_sync",
    "sse",
    "text",
    "trace_callback",
]

if TYPE_CHECKING:
    from callbackkit.delivery.policy import Batching, CircuitBreaker, RetryPolicy
    from callbackkit.delivery.transport import Delivery, Transport
    from callbackkit.dispatch.callbacks import (
        CompletionCallback,
        ErrorCallback,
        EventCallback,
        ProgressCallback,
        StateChangeCallback,
    )
    from callbackkit.dispatch.chain import CallbackChain, ChainResult
    from callbackkit.dispatch.dispatcher import (
        Dispatcher,
        safe_callback_execution,
        safe_callback_execution_sync,
    )
    from callbackkit.dispatch.functions import FunctionRegistry
    from callbackkit.dispatch.operation import Operation
    from callbackkit.dispatch.outcome import DispatchResult, ErrorContext, Outcome, OutcomeStatus
    from callbackkit.dispatch.registration import Registration
    from callbackkit.dispatch.registry import CallbackRegistry
    from callbackkit.dispatch.router import EventRouter
    from callbackkit.dispatch.slot import CallbackSlot, SlotStream
    from callbackkit.dispatch.state import ANY, ObservableState
    from callbackkit.dispatch.stream import EventStream
    from callbackkit.dispatch.tracing import (
        PerformanceStats,
        monitor_callback_performance,
        trace_callback,
    )
    from callbackkit.errors import (
        AbandonedThreadsError,
        AccessDeniedError,
        AsyncCallbackError,
        BacklogError,
        CallbackCancelledError,
        CallbackKitError,
        CallbackTimeoutError,
        ConfigError,
        DispatchDepthError,
        ForbiddenAddressError,
        FunctionArgumentsError,
        Gone,
        GraphError,
        GraphStepsError,
        IdempotencyError,
        LeaseLostError,
        LimitError,
        NodeInputError,
        NodeOutputError,
        PayloadError,
        PositionError,
        Rejected,
        Retry,
        SendError,
        SessionDeletedError,
        SessionEndedError,
        SignatureError,
        StopChain,
        StoreError,
        StoreUnavailableError,
        StoreVersionError,
        StreamCancelledError,
        StreamClosedError,
        StreamLagError,
        UnknownCallError,
        UnknownFunctionError,
        UnknownSessionError,
        WireError,
    )
    from callbackkit.events import Event, EventKey, EventType, Position
    from callbackkit.sessions.config import CallbackConfig
    from callbackkit.sessions.limits import Limits
    from callbackkit.sessions.manager import CallbackManager
    from callbackkit.sessions.session import Session
    from callbackkit.sessions.statistics import ManagerStats, SessionStats
    from callbackkit.sessions.subscription import Subscription
    from callbackkit.stores.base import Retention, Store
    from callbackkit.stores.memory import MemoryStore
    from callbackkit.streaming.callback import Callback, emit_token
    from callbackkit.streaming.encoders import headers_for, ndjson, sse, text
    from callbackkit.streaming.events import RunStatus, StreamEvent
    from callbackkit.streaming.graph import Graph
    from callbackkit.streaming.node import Node, node, router
    from callbackkit.streaming.readers import EventReader, TokenReader
    from callbackkit.streaming.run import RunStream, run_stream
    from callbackkit.wire.special_tokens import SpecialToken, TokenFormat, TokenParser

    __version__: str

# A library is silent until the application configures logging. It stands here because every
# import of a room passes through here; asyncio has imported `logging` by then anyway.
logging.getLogger(__name__).addHandler(logging.NullHandler())

# Where each name lives. tests/test_exports.py holds the three lists above and below together.
_HOMES: Final = {
    "ANY": "callbackkit.dispatch.state",
    "AbandonedThreadsError": "callbackkit.errors",
    "AccessDeniedError": "callbackkit.errors",
    "AsyncCallbackError": "callbackkit.errors",
    "BacklogError": "callbackkit.errors",
    "Batching": "callbackkit.delivery.policy",
    "Callback": "callbackkit.streaming.callback",
    "CallbackCancelledError": "callbackkit.errors",
    "CallbackChain": "callbackkit.dispatch.chain",
    "CallbackConfig": "callbackkit.sessions.config",
    "CallbackKitError": "callbackkit.errors",
    "CallbackManager": "callbackkit.sessions.manager",
    "CallbackRegistry": "callbackkit.dispatch.registry",
    "CallbackSlot": "callbackkit.dispatch.slot",
    "CallbackTimeoutError": "callbackkit.errors",
    "ChainResult": "callbackkit.dispatch.chain",
    "CircuitBreaker": "callbackkit.delivery.policy",
    "CompletionCallback": "callbackkit.dispatch.callbacks",
    "ConfigError": "callbackkit.errors",
    "Delivery": "callbackkit.delivery.transport",
    "DispatchDepthError": "callbackkit.errors",
    "DispatchResult": "callbackkit.dispatch.outcome",
    "Dispatcher": "callbackkit.dispatch.dispatcher",
    "ErrorCallback": "callbackkit.dispatch.callbacks",
    "ErrorContext": "callbackkit.dispatch.outcome",
    "Event": "callbackkit.events",
    "EventCallback": "callbackkit.dispatch.callbacks",
    "EventKey": "callbackkit.events",
    "EventReader": "callbackkit.streaming.readers",
    "EventRouter": "callbackkit.dispatch.router",
    "EventStream": "callbackkit.dispatch.stream",
    "EventType": "callbackkit.events",
    "ForbiddenAddressError": "callbackkit.errors",
    "FunctionArgumentsError": "callbackkit.errors",
    "FunctionRegistry": "callbackkit.dispatch.functions",
    "Gone": "callbackkit.errors",
    "Graph": "callbackkit.streaming.graph",
    "GraphError": "callbackkit.errors",
    "GraphStepsError": "callbackkit.errors",
    "IdempotencyError": "callbackkit.errors",
    "LeaseLostError": "callbackkit.errors",
    "LimitError": "callbackkit.errors",
    "Limits": "callbackkit.sessions.limits",
    "ManagerStats": "callbackkit.sessions.statistics",
    "MemoryStore": "callbackkit.stores.memory",
    "Node": "callbackkit.streaming.node",
    "NodeInputError": "callbackkit.errors",
    "NodeOutputError": "callbackkit.errors",
    "ObservableState": "callbackkit.dispatch.state",
    "Operation": "callbackkit.dispatch.operation",
    "Outcome": "callbackkit.dispatch.outcome",
    "OutcomeStatus": "callbackkit.dispatch.outcome",
    "PayloadError": "callbackkit.errors",
    "PerformanceStats": "callbackkit.dispatch.tracing",
    "Position": "callbackkit.events",
    "PositionError": "callbackkit.errors",
    "ProgressCallback": "callbackkit.dispatch.callbacks",
    "Registration": "callbackkit.dispatch.registration",
    "Rejected": "callbackkit.errors",
    "Retention": "callbackkit.stores.base",
    "Retry": "callbackkit.errors",
    "RetryPolicy": "callbackkit.delivery.policy",
    "RunStatus": "callbackkit.streaming.events",
    "RunStream": "callbackkit.streaming.run",
    "SendError": "callbackkit.errors",
    "Session": "callbackkit.sessions.session",
    "SessionDeletedError": "callbackkit.errors",
    "SessionEndedError": "callbackkit.errors",
    "SessionStats": "callbackkit.sessions.statistics",
    "SignatureError": "callbackkit.errors",
    "SlotStream": "callbackkit.dispatch.slot",
    "SpecialToken": "callbackkit.wire.special_tokens",
    "StateChangeCallback": "callbackkit.dispatch.callbacks",
    "StopChain": "callbackkit.errors",
    "Store": "callbackkit.stores.base",
    "StoreError": "callbackkit.errors",
    "StoreUnavailableError": "callbackkit.errors",
    "StoreVersionError": "callbackkit.errors",
    "StreamCancelledError": "callbackkit.errors",
    "StreamClosedError": "callbackkit.errors",
    "StreamEvent": "callbackkit.streaming.events",
    "StreamLagError": "callbackkit.errors",
    "Subscription": "callbackkit.sessions.subscription",
    "TokenFormat": "callbackkit.wire.special_tokens",
    "TokenParser": "callbackkit.wire.special_tokens",
    "TokenReader": "callbackkit.streaming.readers",
    "Transport": "callbackkit.delivery.transport",
    "UnknownCallError": "callbackkit.errors",
    "UnknownFunctionError": "callbackkit.errors",
    "UnknownSessionError": "callbackkit.errors",
    "WireError": "callbackkit.errors",
    "emit_token": "callbackkit.streaming.callback",
    "headers_for": "callbackkit.streaming.encoders",
    "monitor_callback_performance": "callbackkit.dispatch.tracing",
    "ndjson": "callbackkit.streaming.encoders",
    "node": "callbackkit.streaming.node",
    "router": "callbackkit.streaming.node",
    "run_stream": "callbackkit.streaming.run",
    "safe_callback_execution": "callbackkit.dispatch.dispatcher",
    "safe_callback_execution_sync": "callbackkit.dispatch.dispatcher",
    "sse": "callbackkit.streaming.encoders",
    "text": "callbackkit.streaming.encoders",
    "trace_callback": "callbackkit.dispatch.tracing",
}

if not TYPE_CHECKING:  # a checker would take a visible __getattr__ for "any name exists"

    def __getattr__(name: str) -> object:
        """Import a public name on first use (PEP 562)."""
        if name == "__version__":
            from importlib.metadata import version

            value: object = version(__name__)
        elif name in _HOMES:
            from importlib import import_module

            value = getattr(import_module(_HOMES[name]), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """List the lazy names too."""
        return sorted({*globals(), *__all__, "__version__"})
