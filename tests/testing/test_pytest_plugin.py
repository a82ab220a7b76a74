"""The plugin fails tests whose callbacks failed unnoticed; each case is a run of pytest."""

import json
import logging
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGIN = "callbackkit.testing.pytest_plugin"

Run = Callable[..., pytest.RunResult]

HEAD = """
import asyncio, logging, threading
import pytest
from callbackkit import CallbackRegistry, CallbackSlot, Operation, safe_callback_execution_sync
from callbackkit.testing import MockCallback

def fail(error):
    registry = CallbackRegistry()
    registry.register_callback("order.created", MockCallback(side_effect=error, name="printer"))
    return registry.trigger_callbacks_sync("order.created", 7)

"""


@pytest.fixture
def run(pytester: pytest.Pytester, plugin: list[str]) -> Run:
    """Return a function that runs tests with the plugin, in this process."""

    def run(source: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile(HEAD + source)
        return pytester.runpytest_inprocess("-p", "no:randomly", *plugin, *options)

    return run


@pytest.fixture
def dispatch_logger() -> Iterator[logging.Logger]:
    """Give the logger that hears of failures, and leave logging as it was."""
    loggers = [logging.getLogger(name) for name in ("callbackkit", "callbackkit.dispatch")]
    before = [(one.level, one.disabled, one.propagate) for one in loggers]
    yield loggers[1]
    logging.disable(logging.NOTSET)
    for one, (level, disabled, propagate) in zip(loggers, before, strict=True):
        one.setLevel(level)
        one.disabled, one.propagate = disabled, propagate


# Unnoticed.


def test_a_test_whose_callback_failed_unnoticed_fails_with_name_and_traceback(run: Run) -> None:
    result = run("""
def test_it(callback_failures):
    fail(OSError("printer on fire"))
""")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "Unexpected failures of callbacks: 1",
            "1. callback *printer for 'order.created' failed (error)",
            "Traceback (most recent call last):",
            "OSError: printer on fire",
            "*with callback_failures.expect(OSError): ...",
        ]
    )


def test_without_the_fixture_it_passes(run: Run) -> None:
    run("def test_it(): fail(OSError)").assert_outcomes(passed=1)


def test_with_the_fixture_and_no_failure_it_passes(run: Run) -> None:
    run("""
def test_it(callback_failures, callback_registry):
    callback_registry.register_callback("a", MockCallback())
    assert callback_registry.trigger_callbacks_sync("a").ok
    assert callback_failures.unexpected == []
    logging.getLogger("callbackkit.dispatch").error("an error of no callback")
""").assert_outcomes(passed=1)


def test_every_failure_is_listed(run: Run) -> None:
    result = run("""
def test_it(callback_failures):
    fail(OSError("first"))
    fail(ValueError("second"))
""")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*: 2", "1. *", "OSError: first", "2. *", "ValueError: second"])


def test_each_test_has_failures_and_a_registry_of_its_own(run: Run) -> None:
    run("""
def test_one(callback_registry):
    callback_registry.register_callback("a", MockCallback(side_effect=OSError))
    callback_registry.trigger_callbacks_sync("a")

def test_two(callback_registry, callback_failures):
    assert isinstance(callback_registry, CallbackRegistry)
    assert len(callback_registry.trigger_callbacks_sync("a")) == 0
    assert callback_failures.unexpected == []
""").assert_outcomes(passed=2, errors=1)


def test_failures_in_threads_tasks_and_teardowns_are_seen(run: Run) -> None:
    result = run(
        """
@pytest.fixture
def application(callback_registry):
    yield callback_registry
    safe_callback_execution_sync(MockCallback(side_effect=OSError("at the end")))

async def test_it(application, anyio_backend):
    application.register_callback("a", MockCallback(side_effect=OSError("in the loop")))
    async with application.serving():
        thread = threading.Thread(target=application.trigger_threadsafe, args=["a"])
        thread.start()
        thread.join()
    thread = threading.Thread(target=fail, args=[OSError("in a thread")])
    thread.start()
    thread.join()
""",
        "-o",
        "anyio_mode=auto",
        "-k",
        "asyncio",
    )
    result.assert_outcomes(passed=1, errors=1)
    lines = ["*: 3", "OSError: in the loop", "OSError: in a thread", "OSError: at the end"]
    result.stdout.fnmatch_lines(lines)


@pytest.mark.parametrize(
    ("cause", "name"),
    [
        ("fail(asyncio.CancelledError())", "*CallbackCancelledError*"),
        ("safe_callback_execution_sync(lambda: asyncio.sleep(0))", "*AsyncCallbackError*"),
        ("CallbackSlot(MockCallback(side_effect=OSError))(b'')", "OSError"),
        ("Operation().fail(KeyError())", "KeyError"),
    ],
    ids=["cancelled", "awaitable", "slot", "operation"],
)
def test_every_kind_of_failure_counts(run: Run, cause: str, name: str) -> None:
    result = run(f"def test_it(callback_failures): {cause}")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["Unexpected failures of callbacks: 1", name])


def test_a_failing_error_callback_counts_too(run: Run) -> None:
    run("""
def test_it(callback_failures, callback_registry):
    callback_registry.add_error_callback(MockCallback(side_effect=KeyError))
    callback_registry.register_callback("a", MockCallback(side_effect=OSError))
    with callback_failures.expect(OSError):
        callback_registry.trigger_callbacks_sync("a")
    [failure] = callback_failures.unexpected
    assert isinstance(failure.error, KeyError)
    assert failure.message.startswith("error callback")
""").assert_outcomes(passed=1, errors=1)


@pytest.mark.parametrize("table", ["tool.pytest", "tool.pytest.ini_options"])
def test_a_whole_project_is_watched_by_one_line_of_configuration(
    run: Run, pytester: pytest.Pytester, table: str
) -> None:
    pytester.makepyprojecttoml(f'[{table}]\nusefixtures = ["callback_failures"]')
    run("def test_it(): fail(OSError)").assert_outcomes(passed=1, errors=1)


# Expected.


def test_an_expected_failure_fails_no_test_and_is_given_back(run: Run) -> None:
    run("""
def test_it(callback_failures):
    with callback_failures.expect(OSError) as expected:
        fail(PermissionError("printer locked"))
        assert expected == []
    [failure] = expected
    assert failure.callback.endswith(".printer")
    assert failure.event_type == "order.created"
    assert str(failure.error) == "printer locked"
""").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("arguments", "errors"),
    [
        ("(OSError, KeyError)", 0),
        ("OSError, match='on fi.e$'", 0),
        ("OSError, match='^on fire'", 1),
        ("(ValueError, KeyError)", 1),
    ],
)
def test_what_is_expected_may_be_told_exactly(run: Run, arguments: str, errors: int) -> None:
    result = run(f"""
def test_it(callback_failures):
    with callback_failures.expect({arguments}):
        fail(OSError("printer on fire"))
""")
    result.assert_outcomes(passed=1 - errors, failed=errors, errors=errors)


def test_other_failures_still_count(run: Run) -> None:
    result = run(
        """
def test_it(callback_failures):
    fail(OSError("before"))
    with callback_failures.expect(OSError):
        fail(OSError("expected"))
        fail(KeyError("beside"))
    fail(OSError("after"))
""",
        "--show-capture=no",
    )
    result.assert_outcomes(passed=1, errors=1)
    lines = ["*: 3", "OSError: before", "KeyError: 'beside'", "OSError: after"]
    result.stdout.fnmatch_lines(lines)
    result.stdout.no_fnmatch_line("OSError: expected")


def test_what_an_inner_block_expects_is_not_the_outer_one_s(run: Run) -> None:
    run("""
def test_it(callback_failures):
    with callback_failures.expect(OSError) as outer:
        fail(OSError("one"))
        with callback_failures.expect(OSError) as inner:
            fail(OSError("two"))
        fail(OSError("three"))
    assert [str(failure.error) for failure in inner] == ["two"]
    assert [str(failure.error) for failure in outer] == ["one", "three"]
""").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("OSError", "no callback failed with OSError"),
        ("(OSError, KeyError)", "no callback failed with OSError or KeyError"),
        ("OSError, match='fire'", "no callback failed with OSError and a text matching 'fire'"),
    ],
)
def test_a_failure_that_is_expected_has_to_come(run: Run, arguments: str, message: str) -> None:
    result = run(f"""
def test_it(callback_failures):
    with callback_failures.expect({arguments}):
        pass
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*AssertionError: {message}"])


def test_what_the_block_raises_is_raised(run: Run) -> None:
    result = run("""
def test_it(callback_failures):
    with pytest.raises(LookupError), callback_failures.expect(OSError):
        raise LookupError
""")
    result.assert_outcomes(passed=1)


# Whatever the application does to logging.


@pytest.mark.parametrize(
    "setting",
    [
        "logging.getLogger('callbackkit').setLevel(logging.CRITICAL)",
        "logging.getLogger('callbackkit.dispatch').setLevel(logging.CRITICAL)",
        "logging.getLogger('callbackkit.dispatch').propagate = False",
        "logging.getLogger('callbackkit').propagate = False",
        "logging.getLogger('callbackkit.dispatch').disabled = True",
        "logging.disable(logging.ERROR)",
        "logging.disable(logging.CRITICAL)",
    ],
)
def test_failures_are_seen_whatever_logging_was_told(
    run: Run, dispatch_logger: logging.Logger, setting: str
) -> None:
    manager = dispatch_logger.manager
    result = run(f"{setting}\ndef test_it(callback_failures): fail(OSError)")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["Unexpected failures of callbacks: 1"])
    is_off = not dispatch_logger.isEnabledFor(logging.ERROR)
    assert is_off is ("propagate" not in setting)
    assert (manager.disable > 0) is ("logging.disable" in setting)
    assert dispatch_logger.disabled is ("disabled" in setting)
    assert (dispatch_logger.level == logging.NOTSET) is ("dispatch').setLevel" not in setting)
    assert dispatch_logger.handlers == []


def test_a_level_set_above_during_the_test_does_not_hide_failures(
    run: Run, dispatch_logger: logging.Logger
) -> None:
    result = run("""
def test_it(callback_failures):
    logging.getLogger("callbackkit").setLevel(logging.CRITICAL)
    fail(OSError)
""")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["Unexpected failures of callbacks: 1"])


def test_records_that_got_through_before_still_do(run: Run) -> None:
    run("""
def test_it(callback_failures, caplog):
    logging.getLogger("callbackkit.dispatch").warning("slow")
    assert "slow" in caplog.text
""").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    "deafening",
    [
        "logging.disable(logging.CRITICAL)",
        "logging.getLogger('callbackkit.dispatch').setLevel(logging.CRITICAL)",
    ],
)
def test_a_watch_that_was_made_deaf_says_so(
    run: Run, dispatch_logger: logging.Logger, deafening: str
) -> None:
    result = run(f"def test_it(callback_failures): {deafening}", "-rN")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["callback_failures could not hear of all failures: *"])


def test_a_watch_that_an_application_configured_away_says_so(
    pytester: pytest.Pytester, plugin: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, since this is about all loggers there are."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # not worth measuring
    monkeypatch.setenv("PYTHONPATH", str(Path(import_module(PLUGIN).__file__).parents[2]))
    pytester.makepyfile("""
import logging.config

def test_logger_disabled(callback_failures):
    logging.config.dictConfig({"version": 1})

def test_handlers_removed(callback_failures):
    ours = {"loggers": {"callbackkit": {}}, "disable_existing_loggers": False}
    logging.config.dictConfig({"version": 1, **ours})
""")
    result = pytester.runpytest_subprocess("-rN", *plugin)
    result.assert_outcomes(passed=2, errors=2)
    assert result.stdout.str().count("callback_failures could not hear of all failures: ") == 2


# Being a plugin.


def test_the_package_names_its_plugin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"callbackkit": PLUGIN}


def test_an_import_of_the_plugin_imports_nothing_else_of_ours() -> None:
    program = (
        f"import pytest, sys, json; before = set(sys.modules); import {PLUGIN}\n"
        "print(json.dumps([*(set(sys.modules) - before)]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert set(json.loads(done.stdout)) == {"callbackkit", "callbackkit.testing", PLUGIN}


def test_pytest_tells_of_the_fixtures(run: Run) -> None:
    result = run("", "--fixtures")
    result.stdout.fnmatch_lines(["callback_failures*", "*Fail the test at its end*"])
    result.stdout.fnmatch_lines(["callback_registry*", "*Give a new CallbackRegistry*"])
