"""What the tests of an application want, imported when first used.

The fixtures of :mod:`callbackkit.testing.pytest_plugin` come by themselves.
"""

from typing import TYPE_CHECKING, Final

__all__ = [
    "Answer",
    "AsyncMockCallback",
    "Drip",
    "Endless",
    "FailpointStore",
    "FaultProxy",
    "FaultyReceiver",
    "Garbage",
    "Hang",
    "ManualClock",
    "MockCallback",
    "Pause",
    "ReceivedRequest",
    "RecordedSpan",
    "Recorder",
    "Reset",
    "StreamRecorder",
    "Truncate",
    "check_store",
    "check_transport",
    "chop",
    "every_chop",
    "run_node",
]

if TYPE_CHECKING:
    from callbackkit.testing.answers import Answer, Drip, Endless, Garbage, Hang, Reset, Truncate
    from callbackkit.testing.chopping import chop, every_chop
    from callbackkit.testing.clock import ManualClock
    from callbackkit.testing.failpoints import FailpointStore, Pause
    from callbackkit.testing.mocks import AsyncMockCallback, MockCallback
    from callbackkit.testing.proxy import FaultProxy
    from callbackkit.testing.receiver import FaultyReceiver
    from callbackkit.testing.recorder import Recorder
    from callbackkit.testing.requests import ReceivedRequest
    from callbackkit.testing.stores import check_store
    from callbackkit.testing.streams import RecordedSpan, StreamRecorder, run_node
    from callbackkit.testing.transports import check_transport

# Lazy because pytest imports this room for its plugin in every run, of whatever project.
_HOMES: Final = {
    "Answer": "callbackkit.testing.answers",
    "AsyncMockCallback": "callbackkit.testing.mocks",
    "Drip": "callbackkit.testing.answers",
    "Endless": "callbackkit.testing.answers",
    "FailpointStore": "callbackkit.testing.failpoints",
    "FaultProxy": "callbackkit.testing.proxy",
    "FaultyReceiver": "callbackkit.testing.receiver",
    "Garbage": "callbackkit.testing.answers",
    "Hang": "callbackkit.testing.answers",
    "ManualClock": "callbackkit.testing.clock",
    "MockCallback": "callbackkit.testing.mocks",
    "Pause": "callbackkit.testing.failpoints",
    "ReceivedRequest": "callbackkit.testing.requests",
    "RecordedSpan": "callbackkit.testing.streams",
    "Recorder": "callbackkit.testing.recorder",
    "Reset": "callbackkit.testing.answers",
    "StreamRecorder": "callbackkit.testing.streams",
    "Truncate": "callbackkit.testing.answers",
    "check_store": "callbackkit.testing.stores",
    "check_transport": "callbackkit.testing.transports",
    "chop": "callbackkit.testing.chopping",
    "every_chop": "callbackkit.testing.chopping",
    "run_node": "callbackkit.testing.streams",
}

if not TYPE_CHECKING:  # a checker would take a visible __getattr__ for "any name exists"

    def __getattr__(name: str) -> object:
        """Import a public name on first use (PEP 562)."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value: object = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """List the lazy names too."""
        return sorted({*globals(), *__all__})
