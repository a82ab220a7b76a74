"""The example of a transport of one's own, with a real mail server that misbehaves."""

import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest

from callbackkit import CallbackManager, ConfigError, RetryPolicy, Session
from callbackkit.__main__ import load
from callbackkit.testing import check_transport

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_transport.py"
TO = "ada@example.com"
CONFIG = {"delivery_method": "email", "options": {"to": TO}}

pytestmark = pytest.mark.real_server


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load(EXAMPLE)


@pytest.fixture
def transport(example: ModuleType, mail: Any) -> Any:
    """The example, but in a hurry."""
    transport = example.EmailTransport("127.0.0.1", mail.port)
    transport.retry = RetryPolicy.exponential(first=0.02, max_delay=0.1, retries=500)
    transport.breaker = None
    return transport


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again."""
    with anyio.fail_after(20):
        while True:
            if await is_so():
                return
            await anyio.sleep(0.01)


async def settled(session: Session) -> None:
    """Wait until nothing of a session waits."""

    async def is_settled() -> bool:
        return (await session.stats()).queued_events == 0

    await until(is_settled)


def said(mail: Any) -> list[Any]:
    return [event["data"]["thought"] for event in mail.events]


@pytest.mark.parametrize("backend", ["asyncio", pytest.param("trio", marks=pytest.mark.torture)])
def test_it_keeps_every_law_of_transports(transport: Any, mail: Any, backend: str) -> None:
    def put_out_of_order(is_out: bool) -> None:
        mail.stop()
        if not is_out:
            mail.start()

    check_transport(
        lambda: transport,
        lambda: [event["id"] for event in mail.events],
        options={"to": TO},
        break_destination=put_out_of_order,
        backend=backend,
        examples=3,
    )


async def test_events_arrive_in_order_as_mails_that_name_their_delivery(
    transport: Any, mail: Any
) -> None:
    async with CallbackManager(transports=[transport]) as manager:
        session = await manager.create_session(CONFIG)
        events = [await session.thinking(f"thought {number} \u00e9") for number in range(5)]
        await settled(session)
        stats = await session.stats()
    assert mail.ids == [f"{session.id}_{event.id.replace('-', '_')}" for event in events if event]
    assert [event["id"] for event in mail.events] == [event.id for event in events if event]
    assert said(mail) == [f"thought {number} \u00e9" for number in range(5)]
    assert {each["To"] for each in mail.mails} == {TO}
    assert (stats.events_delivered, stats.retries) == (5, 0)


async def test_a_batch_is_one_mail_with_all_of_its_events(transport: Any, mail: Any) -> None:
    batching = {"max_events": 3, "max_delay": 60}
    async with CallbackManager(transports=[transport]) as manager:
        session = await manager.create_session({**CONFIG, "batching": batching})
        for number in range(6):
            await session.thinking(f"{number}")
        await settled(session)
    assert said(mail) == ["0", "1", "2", "3", "4", "5"]
    assert len(mail.mails) == 2


@pytest.mark.parametrize(
    "answer",
    [("DATA", "451 try later"), ("RCPT", "450 greylisted"), ("DATA", "554 looks like spam")],
    ids=lambda answer: answer[1],
)
async def test_what_may_pass_is_tried_again_before_what_follows_it(
    transport: Any, mail: Any, answer: tuple[str, str]
) -> None:
    mail.answers = [answer] * 3
    async with CallbackManager(transports=[transport]) as manager:
        session = await manager.create_session(CONFIG)
        for number in range(3):
            await session.thinking(f"{number}")
        await settled(session)
        attempts = await session.attempts()
    assert said(mail) == ["0", "1", "2"]
    assert [(each.number, bool(each.error)) for each in attempts] == [
        (1, True),
        (2, True),
        (3, True),
        (4, False),
        (1, False),
        (1, False),
    ]
    assert len({each.delivery_id for each in attempts[:4]}) == 1
    assert answer[1][:3] in attempts[0].error


async def test_a_mailbox_that_is_gone_gets_nothing_more_until_somebody_asks_for_it(
    transport: Any, mail: Any
) -> None:
    async def all_arrived() -> bool:
        return len(mail.mails) == 3

    mail.refused.add(TO)
    async with CallbackManager(transports=[transport]) as manager:
        session = await manager.create_session(CONFIG)
        for number in range(3):
            await session.thinking(f"{number}")
        await settled(session)
        letters = await session.dead_letters()
        assert "550 5.1.1 no such mailbox" in letters[0].reason
        assert len(await session.attempts()) == 1
        mail.refused.clear()
        assert await session.redrive() == 3
        await until(all_arrived)
    # Each is a delivery of its own by now, and they go at the same time.
    assert sorted(mail.ids) == sorted(letter.id for letter in letters)


async def test_a_server_that_was_away_gets_everything_in_order(transport: Any, mail: Any) -> None:
    async def was_tried() -> bool:
        return bool(await session.attempts())

    mail.stop()
    async with CallbackManager(transports=[transport]) as manager:
        session = await manager.create_session(CONFIG)
        for number in range(5):
            await session.thinking(f"{number}")
        await until(was_tried)
        assert (await session.stats()).queued_events == 5
        mail.start()
        await settled(session)
    assert said(mail) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("options", [{}, {"to": "nobody"}, {"to": None}])
async def test_a_session_without_an_address_is_refused(
    transport: Any, options: dict[str, Any]
) -> None:
    manager = CallbackManager(transports=[transport])
    with pytest.raises(ConfigError, match=r"options\.to: must be an e-mail address"):
        await manager.create_session({"delivery_method": "email", "options": options})


# The program.

SUBJECTS = ["thinking", "progress", "completion"]
AWAY = "mail 1, attempt 1: ConnectionRefusedError"


@pytest.fixture
def run(mail: Any, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start the program, on the one file and mail server of the test."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        address, file = f"127.0.0.1:{mail.port}", tmp_path / "mails.db"
        started.append(subprocess.Popen([sys.executable, EXAMPLE, address, TO, file], **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], text: str) -> None:
    """Read lines up to one that begins so; at the end of its output the program has failed."""
    for line in process.stdout or ():
        if line.startswith(text):
            return
    _, errors = process.communicate()
    raise AssertionError(f"no line begins with {text!r}: {errors}")


def test_the_program_tells_what_became_of_its_mails(mail: Any, run: Any) -> None:
    mail.answers = [("DATA", "451 try later")]
    process = run()
    output, errors = process.communicate(timeout=50)
    assert (process.returncode, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0].startswith("mail 1, attempt 1: Retry: 451")
    sent = ["mail 1, attempt 2: sent", "mail 2, attempt 1: sent", "mail 3, attempt 1: sent"]
    assert lines[1:4] == sent
    assert "events_sent=3, events_delivered=3, events_failed=0" in lines[4]
    assert [each["Subject"] for each in mail.mails] == SUBJECTS


def test_the_program_waits_for_a_server_that_is_away(mail: Any, run: Any) -> None:
    mail.stop()
    process = run()
    read_until(process, AWAY)
    mail.start()
    output, errors = process.communicate(timeout=50)
    assert (process.returncode, errors) == (0, "")
    assert "events_delivered=3, events_failed=0" in output
    assert [each["Subject"] for each in mail.mails] == SUBJECTS


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGKILL], ids=lambda way: way.name)
def test_the_program_goes_on_when_it_is_run_again(mail: Any, run: Any, way: int) -> None:
    mail.stop()
    process = run()
    read_until(process, AWAY)
    process.send_signal(way)
    _, errors = process.communicate(timeout=50)
    if way == signal.SIGINT:
        assert process.returncode == 1
        assert "run this again to go on" in errors
        assert "Traceback" not in errors
    mail.start()
    process = run()
    output, errors = process.communicate(timeout=50)
    assert (process.returncode, errors) == (0, "")
    assert "events_sent=3, events_delivered=3, events_failed=0" in output
    assert [each["Subject"] for each in mail.mails] == SUBJECTS


def test_the_program_tells_what_was_given_up(mail: Any, run: Any) -> None:
    mail.refused.add(TO)
    process = run()
    output, errors = process.communicate(timeout=50)
    assert (process.returncode, errors) == (0, "")
    assert "events_sent=3, events_delivered=0, events_failed=3" in output
    assert "given up: Gone: 550 5.1.1 no such mailbox" in output
    assert not mail.mails


@pytest.mark.parametrize("arguments", [[], ["localhost:25"], ["a", "b", "c", "d"]], ids=len)
def test_without_its_arguments_the_program_says_how_it_is_used(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLE, *arguments], capture_output=True, text=True, check=False
    )
    usage = "usage: python my_transport.py HOST[:PORT] ADDRESS [FILE]\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", usage)
