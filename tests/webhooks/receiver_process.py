"""Receivers of webhooks in a process of their own, which do what lines of JSON on stdin say.

Each line is an object: ``do`` names what, ``receiver`` is a number that its maker chose. What comes
back on stdout, a line each: ``{"done": ..., "port": ...}`` after each order, and
``{"request": ...}`` for each request that arrived.
"""

import json
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from callbackkit.testing import FaultyReceiver, receiver as kinds
from callbackkit.testing.receiver import ReceivedRequest


def tell(**content: Any) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


def step_of(told: Any) -> Any:
    """Read what a receiver is to do: a status, or the name of a class and its arguments."""
    if told is None or isinstance(told, int):
        return told
    name, options = told
    for key in ("body", "data"):
        if key in options:
            options[key] = options[key].encode("latin-1")
    return getattr(kinds, name)(**options)


async def orders() -> AsyncIterator[dict[str, Any]]:
    while line := await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        yield json.loads(line)


class Receivers:
    """The receivers of this process, by number."""

    def __init__(self, group: TaskGroup, stack: AsyncExitStack) -> None:
        self._group = group
        self._stack = stack
        self._open: dict[int, FaultyReceiver] = {}

    async def obey(self, *, do: str, receiver: int, **told: Any) -> None:
        if do == "open":
            await self._begin(receiver, told["certificate"])
            return
        found = self._open[receiver]
        if do == "script":
            found.script(*map(step_of, told["steps"]))
        elif do == "otherwise":
            found.otherwise = step_of(told["step"])
        elif do == "on":
            found.on(told["path"], step_of(told["step"]))
        elif do == "stop":
            await found.stop()
        elif do == "resume":
            await found.resume()
        elif do != "count":
            raise ValueError(do)

    async def _begin(self, number: int, certificate: str | None) -> None:
        context = None
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
        receiver = await self._stack.enter_async_context(FaultyReceiver(ssl_context=context))
        self._open[number] = receiver
        self._group.start_soon(self._report, number, receiver)

    def figures(self, number: int) -> dict[str, int]:
        receiver = self._open[number]
        return {"port": receiver.port, "requests": len(receiver.requests)}

    @staticmethod
    async def _report(number: int, receiver: FaultyReceiver) -> None:
        while True:
            tell(request=described(await receiver.next_request(timeout=None)), receiver=number)


def described(request: ReceivedRequest) -> dict[str, Any]:
    return {
        "method": request.method,
        "path": request.path,
        "query": request.query,
        "headers": dict(request.headers),
        "body": request.body.decode("latin-1"),
        "at": request.at,
        "connection": request.connection,
    }


async def main() -> None:
    async with AsyncExitStack() as stack, anyio.create_task_group() as group:
        receivers = Receivers(group, stack)
        async for order in orders():
            try:
                await receivers.obey(**order)
            except (TypeError, ValueError) as exc:
                # A mistake of one test must not end what others use.
                tell(done=order["do"], port=0, wrong=repr(exc))
            else:
                tell(done=order["do"], **receivers.figures(order["receiver"]))
        group.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main)
