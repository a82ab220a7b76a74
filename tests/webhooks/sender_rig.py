"""A server that counts bytes and connections, for what senders do to those."""

import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta

import anyio
import trustme
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from callbackkit.webhooks.guard import Guard
from callbackkit.webhooks.sender import Sender, WebhookRequest

BODY = b'{"id": "e-1"}'
OK = b"HTTP/1.1 204 No Content\r\n\r\n"

# Bytes; several times what systems hold of what is sent to somebody who does not read.
UNREAD = 64 * 1024 * 1024

DAY = timedelta(days=1)

GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)


def loopback() -> Guard:
    """Return a guard that lets loopback pass, at any port, without HTTPS."""
    return Guard(allowed_networks=["127.0.0.0/8", "::1/128"], require_https=False)


def post(url: str, body: bytes = BODY, **headers: str) -> WebhookRequest:
    """Return a request with few headers."""
    return WebhookRequest(url, {"content-type": "application/json", **headers}, body)


class Peer:
    """One connection that came in.

    Attributes:
        number: Which, from 1.
        host: Our address that was dialled.
        sent: Bytes that the system took.
        gone: Set when the other end has closed.
    """

    def __init__(self, stream: ByteStream, number: int, host: str) -> None:
        self._stream = stream
        self._unread = b""
        self.number = number
        self.host = host
        self.sent = 0
        self.gone = anyio.Event()

    async def receive(self) -> bytes:
        """Return what comes next, in one piece."""
        try:
            return await self._stream.receive()
        except GONE:
            self.gone.set()
            raise

    async def head(self) -> bytes:
        """Read a request up to the empty line; the body is what follows."""
        while b"\r\n\r\n" not in self._unread:
            await self._more()
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        return head

    async def request(self) -> bytes:
        """Read a request, with its body; return the head."""
        head = await self.head()
        lines = head.lower().split(b"\r\n")
        length = next(int(each.split(b":")[1]) for each in lines if b"content-length" in each)
        while len(self._unread) < length:
            await self._more()
        self._unread = self._unread[length:]
        return head

    async def _more(self) -> None:
        self._unread += await self.receive()

    async def send(self, data: bytes) -> None:
        try:
            await self._stream.send(data)
        except GONE:
            self.gone.set()
            raise
        self.sent += len(data)

    async def until_gone(self) -> None:
        """Read, whatever comes, until the other end closes."""
        while True:
            await self._more()
            self._unread = b""


class Server:
    """Where it listens, and who came.

    Attributes:
        peers: In order.
    """

    def __init__(self, port: int, scheme: str) -> None:
        self.port = port
        self.url = f"{scheme}://127.0.0.1:{port}/"
        self.peers: list[Peer] = []
        self._came = anyio.Event()

    def add(self, peer: Peer) -> None:
        self.peers.append(peer)
        self._came.set()
        self._came = anyio.Event()

    async def peer(self, number: int = 1) -> Peer:
        """Return the connection with that number; wait for it."""
        with anyio.fail_after(10):
            while len(self.peers) < number:
                await self._came.wait()
        return self.peers[number - 1]


@asynccontextmanager
async def serving(
    handle: Callable[[Peer], Awaitable[None]], *, context: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """Listen on all of loopback; *handle* has each connection, which is closed when it returns."""
    listeners = await anyio.create_tcp_listener(local_host="0.0.0.0", family=socket.AF_INET)
    port: int = listeners.extra(anyio.abc.SocketAttribute.local_port)
    server = Server(port, "http" if context is None else "https")

    async def attend(stream: ByteStream) -> None:
        address: tuple[str, int] = stream.extra(anyio.abc.SocketAttribute.local_address)
        try:
            async with stream:
                if context is not None:
                    stream = await TLSStream.wrap(
                        stream, server_side=True, ssl_context=context, standard_compatible=False
                    )
                peer = Peer(stream, len(server.peers) + 1, address[0])
                server.add(peer)
                await handle(peer)
        except (*GONE, ssl.SSLError):
            pass

    async with listeners, anyio.create_task_group() as group:
        group.start_soon(listeners.serve, attend)
        try:
            yield server
        finally:
            group.cancel_scope.cancel()


@contextmanager
def silent(host: str, port: int) -> Iterator[None]:
    """Let nobody answer at an address: whoever connects hears nothing, as of a lost network."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((host, port), backlog=0))
        # As many as may wait to be accepted do.
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield


async def answers(peer: Peer) -> None:
    """Say 204 to each request."""
    while True:
        await peer.request()
        await peer.send(OK)


async def closed(peer: Peer) -> None:
    """Wait until the other end has closed a connection."""
    with anyio.fail_after(10):
        await peer.gone.wait()


async def leave_unread(sender: Sender) -> None:
    """Post far more than is read, and cancel that: return when the connection is closed.

    It is not while what was not sent is kept for whoever does not read it. Then what comes back
    is taken by the system; when it is closed, that is refused.
    """
    begun, proceed = anyio.Event(), anyio.Event()

    async def handle(peer: Peer) -> None:
        await peer.head()
        begun.set()
        await proceed.wait()
        while True:
            await peer.send(bytes(65_536))

    async with serving(handle) as server, anyio.create_task_group() as group:
        group.start_soon(sender.send, post(server.url, bytes(UNREAD)))
        await begun.wait()
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            proceed.set()
            await closed(await server.peer())


@asynccontextmanager
async def running(sender: Sender, guard: Guard | None = None) -> AsyncIterator[Sender]:
    """Start a sender, with a guard that lets loopback pass unless there is another; close it."""
    await sender.start(loopback() if guard is None else guard)
    try:
        yield sender
    finally:
        await end(sender)


async def end(sender: Sender) -> None:
    """Close a sender, in time."""
    with anyio.fail_after(10):
        await sender.aclose()


# Certificates.


class Authority:
    """Signs certificates, and knows who trusts it."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    def issue(self, *names: str, **when: datetime) -> trustme.LeafCert:
        """Return a certificate; *when* is ``not_before=`` and ``not_after=``."""
        return self._ca.issue_cert(*names, **when)

    def server(self, certificate: trustme.LeafCert) -> ssl.SSLContext:
        """Return what a server with that certificate speaks TLS with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        return context

    def self_signed(self, name: str) -> ssl.SSLContext:
        """Return what a server speaks TLS with whose certificate nobody else has signed."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder(subject, subject, key.public_key(), 1, now, now + DAY)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(key, hashes.SHA256())
        )
        pem = certificate.public_bytes(Encoding.PEM) + key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with trustme.Blob(pem).tempfile() as path:
            context.load_cert_chain(path)
        return context

    def trusting(self) -> ssl.SSLContext:
        """Return what a sender checks certificates with that trusts this authority."""
        context = ssl.create_default_context()
        self._ca.configure_trust(context)
        return context
