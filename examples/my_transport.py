"""A transport of one's own: each event becomes an e-mail, whatever the mail server does.

`EmailTransport` sends, and tells what came of it. All else is the engine's: the order of events,
trying again (here by the schedule below), leaving a server alone that fails, and dead letters for
what was refused for good. A mail may arrive twice, when this program dies between the server's
answer and the note of it: it then has the same Message-ID, by which mail programs tell.

    pip install callbackkit
    python examples/my_transport.py localhost:25 ada@example.com
"""

import smtplib
import sys
from email.message import EmailMessage

import anyio

from callbackkit import (
    CallbackManager,
    ConfigError,
    Delivery,
    Gone,
    Retry,
    RetryPolicy,
    Transport,
)
from callbackkit.delivery.transport import DeliveryConfig
from callbackkit.wire.envelope import encode_event


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


async def main(server: str, to: str) -> None:
    """Send three events, and tell what became of them."""
    host, _, port = server.partition(":")
    transport = EmailTransport(host, int(port or 25))
    async with CallbackManager(transports=[transport]) as manager:
        config = {"delivery_method": "email", "options": {"to": to}}
        async with manager.session(config) as session:
            await session.thinking("I could send a mail.")
            await session.progress(0.5, "writing it")
            await session.completion("sent")
    # Leaving the block waited until everything had been tried.
    async for session in manager.sessions():
        print(await session.stats())


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2])
