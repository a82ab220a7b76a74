"""A transport of one's own: each event becomes an e-mail, whatever the mail server does.

`EmailTransport` sends, and tells what came of it. All else is the engine's: the order of events,
trying again (here by the schedule below), leaving a server alone that fails, and dead letters for
what was refused for good. A mail may arrive twice, when this program dies between the server's
answer and the note of it: it then has the same Message-ID, by which mail programs tell.

    pip install callbackkit
    python examples/my_transport.py localhost:25 ada@example.com mails.db

It sends three mails, tells of each attempt, and ends when all are delivered or given up. Stop the
mail server before, and start it a while after: they arrive. Stop this program meanwhile, by Ctrl-C
or `kill -9`, and run it again: it goes on with what is in the file.
"""

import smtplib
import sys
from email.message import EmailMessage
from typing import Any

import anyio

from callbackkit import (
    CallbackManager,
    ConfigError,
    Delivery,
    Gone,
    Retry,
    RetryPolicy,
    Session,
    Transport,
)
from callbackkit.delivery.transport import DeliveryConfig
from callbackkit.stores.sqlite import SQLiteStore
from callbackkit.wire.envelope import encode_event

EVENTS: list[tuple[str, dict[str, Any]]] = [
    ("thinking", {"thought": "I could send a mail."}),
    ("progress", {"progress": 0.5, "message": "writing it"}),
    ("completion", {"result": "sent"}),
]


class EmailTransport(Transport):
    """Sends events to the address in `options={"to": ...}`."""

    name = "email"
    timeout = 10.0
    retry = RetryPolicy.exponential(first=1, max_delay=600, retries=20)

    def __init__(self, host: str, port: int, sender: str = "events@example.com") -> None:
        self.host, self.port, self.sender = host, port, sender

    def check(self, config: DeliveryConfig) -> None:
        if "@" not in str(config.options.get("to", "")):
            raise ConfigError("options.to", "must be an e-mail address")

    async def send(self, delivery: Delivery) -> None:
        message = EmailMessage()
        message["From"], message["To"] = self.sender, delivery.options["to"]
        message["Subject"] = delivery.event.event_type
        message["Message-ID"] = f"<{delivery.id}@example.com>"  # the same on each attempt
        message["Date"] = delivery.event.timestamp
        message.set_content(b"\n".join(map(encode_event, delivery.events)).decode())
        try:
            # The standard library's client blocks; a thread that hangs in it is given up on.
            await anyio.to_thread.run_sync(self.hand_over, message, abandon_on_cancel=True)
        except smtplib.SMTPRecipientsRefused as exc:
            [(code, reason)] = exc.recipients.values()
            if code >= 500:
                raise Gone(f"{code} {reason.decode()}") from exc  # there is no such mailbox
            raise Retry(reason=f"{code} {reason.decode()}") from exc
        except smtplib.SMTPResponseException as exc:
            after = 5.0 if exc.smtp_code == 421 else None  # 421: the server is just closing down
            raise Retry(after, f"{exc.smtp_code} {exc.smtp_error!r:.100}") from exc

    def hand_over(self, message: EmailMessage) -> None:
        with smtplib.SMTP(self.host, self.port, timeout=self.timeout) as server:
            server.send_message(message)


async def unfinished(manager: CallbackManager, to: str) -> Session:
    """Return the session that an earlier run left in the file, or a new one."""
    async for session in manager.sessions(state="active", owner=to):
        return session
    return await manager.create_session(
        {"delivery_method": "email", "options": {"to": to}}, owner=to
    )


async def follow(session: Session) -> None:
    """Tell of each attempt, until every event is delivered or a dead letter."""
    told, queued = 0, 1
    while queued:
        queued = (await session.stats()).queued_events
        attempts = await session.attempts()
        for attempt in attempts[told:]:
            mail = attempt.delivery_id.rpartition("_")[2]
            print(f"mail {mail}, attempt {attempt.number}: {attempt.error or 'sent'}", flush=True)
        told = len(attempts)
        await anyio.sleep(0.1)


async def main(server: str, to: str, file: str) -> None:
    """Send three events, or go on with those of an earlier run, and tell what became of them."""
    host, _, port = server.partition(":")
    transport = EmailTransport(host, int(port or 25))
    async with CallbackManager(store=SQLiteStore(file), transports=[transport]) as manager:
        session = await unfinished(manager, to)
        emitted = (await session.stats()).events_sent
        for event_type, data in EVENTS[emitted:]:
            await session.emit(event_type, data)
        await follow(session)
        await session.end()
        print(await session.stats())
        for letter in await session.dead_letters():
            print(f"given up: {letter.reason}")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: python my_transport.py HOST[:PORT] ADDRESS [FILE]")
    file = sys.argv[3] if len(sys.argv) == 4 else "mails.db"
    try:
        anyio.run(main, sys.argv[1], sys.argv[2], file)
    except KeyboardInterrupt:
        sys.exit(f"stopped; what was not sent is in {file}, run this again to go on")
