"""The exception tree: what each one also is, what it carries, and that it travels."""

import copy
import inspect
import pickle

import pytest

import callbackkit
from callbackkit import (
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
    errors,
)

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, BaseException)
]

EXAMPLES = [
    AbandonedThreadsError("all hang"),
    AsyncCallbackError("it is async"),
    BacklogError("too many"),
    CallbackCancelledError("cancelled"),
    CallbackTimeoutError("late", timeout=1.5),
    DispatchDepthError("too deep"),
    FunctionArgumentsError("hang_up", "no JSON object"),
    StopChain({"value": 1}),
    GraphError("no start"),
    GraphStepsError("too many steps"),
    NodeInputError("no such key"),
    NodeOutputError("no mapping"),
    StreamCancelledError("enough"),
    StreamClosedError("it has ended"),
    StreamLagError(7),
    WireError("not that"),
    PayloadError("steps[1]", "must be a string"),
    PositionError("'x' is no position"),
    ConfigError("batching.max_events", "must be at least 1"),
    IdempotencyError("the key came before"),
    LimitError("max_sessions", 10, "delete some"),
    UnknownSessionError("a" * 32),
    SessionDeletedError("a" * 32),
    SessionEndedError("a" * 32),
    LeaseLostError("taken over"),
    StoreError("it failed"),
    StoreUnavailableError("disk full"),
    StoreVersionError("from the future"),
    SignatureError("too old"),
    SendError("HTTP 500"),
    ForbiddenAddressError("the address is not public"),
    AccessDeniedError("s", 401),
    Retry(5.0, "busy", throttles=True),
    Rejected("malformed"),
    Gone("left"),
    UnknownCallError("call-1"),
    UnknownFunctionError("hang_up", {"transfer", "answer"}),
]


def name_of(error: BaseException) -> str:
    return type(error).__name__


def test_every_failure_is_a_callback_kit_error() -> None:
    assert {cls for cls in CLASSES if not issubclass(cls, CallbackKitError)} == {
        StopChain,
        Retry,
        Rejected,
        Gone,
    }


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (AsyncCallbackError, TypeError),
        (CallbackTimeoutError, TimeoutError),
        (DispatchDepthError, RecursionError),
        (FunctionArgumentsError, ValueError),
        (GraphError, ValueError),
        (GraphStepsError, RecursionError),
        (NodeInputError, LookupError),
        (NodeOutputError, TypeError),
        (StreamCancelledError, RuntimeError),
        (StreamClosedError, RuntimeError),
        (UnknownFunctionError, LookupError),
        (UnknownCallError, LookupError),
        (WireError, ValueError),
        (SignatureError, WireError),
        (ForbiddenAddressError, SendError),
        (AccessDeniedError, PermissionError),
        (PayloadError, ValueError),
        (PositionError, ValueError),
        (ConfigError, ValueError),
        (IdempotencyError, ValueError),
        (UnknownSessionError, LookupError),
        (SessionDeletedError, LookupError),
        (SessionEndedError, RuntimeError),
    ],
)
def test_some_are_also_what_one_would_catch(
    error: type[Exception], builtin: type[Exception]
) -> None:
    assert issubclass(error, builtin)


def test_the_docstring_shows_every_class() -> None:
    assert errors.__doc__ is not None
    for cls in CLASSES:
        assert cls.__name__ in errors.__doc__


def test_every_class_has_an_example_here() -> None:
    assert {type(error) for error in EXAMPLES} == {*CLASSES} - {CallbackKitError}


@pytest.mark.parametrize("error", EXAMPLES, ids=name_of)
def test_an_error_can_be_copied_and_sent_to_another_process(error: Exception) -> None:
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert vars(twin) == vars(error)
        assert (str(twin), twin.args) == (str(error), error.args)


@pytest.mark.parametrize("error", EXAMPLES, ids=name_of)
def test_an_error_can_be_caught_from_the_top_of_the_package(error: Exception) -> None:
    if not isinstance(error, BacklogError):
        assert getattr(callbackkit, name_of(error)) is type(error)


def test_a_lag_tells_how_much_was_missed() -> None:
    assert str(StreamLagError(7)) == "the reader is too far behind: 7 items are no longer kept"


def test_a_cancellation_tells_its_reason() -> None:
    assert StreamCancelledError("enough").reason == "enough"
    assert str(StreamCancelledError("enough")) == "the run was cancelled: enough"
    assert str(StreamCancelledError()) == "the run was cancelled"


def test_bad_arguments_tell_the_function_and_the_reason() -> None:
    error = FunctionArgumentsError("hang_up", "no JSON object")
    assert (error.name, error.reason) == ("hang_up", "no JSON object")
    assert str(error) == "arguments of function 'hang_up': no JSON object"


def test_an_unknown_function_tells_the_known_ones() -> None:
    error = UnknownFunctionError("hang_up", {"transfer", "answer"})
    assert error.known == ("answer", "transfer")
    assert str(error) == "no function is registered as 'hang_up'; known: answer, transfer"
    assert str(UnknownFunctionError("hang_up")).endswith("known: none")


def test_an_unknown_call_tells_its_id_and_the_remedy() -> None:
    error = UnknownCallError("call-1")
    assert error.call_id == "call-1"
    assert str(error) == "no function call 'call-1' is open; start() it first"


@pytest.mark.parametrize(
    "error", [UnknownCallError("x" * 5_000), UnknownFunctionError("x" * 5_000)]
)
def test_a_very_long_name_is_cut_in_the_text(error: Exception) -> None:
    assert len(str(error)) < 300


def test_a_chain_may_be_stopped_without_a_value() -> None:
    assert StopChain().value is None


def test_messages_of_sessions_name_what_is_wrong_and_not_too_much_of_it() -> None:
    assert str(PayloadError("steps[1]", "must be a string")) == "steps[1]: must be a string"
    assert str(PayloadError("", "must be an object")) == "must be an object"
    assert str(ConfigError("ttl", "must be above 0")) == "ttl: must be above 0"
    assert str(LimitError("max_readers", 2)) == "the limit max_readers=2 is reached"
    assert str(LimitError("max_readers", 2, "of one")).endswith("is reached: of one")
    assert len(str(UnknownSessionError("a" * 10_000))) < 200
    assert "deleted or has expired" in str(SessionDeletedError("a"))
    assert "has ended" in str(SessionEndedError("a"))
