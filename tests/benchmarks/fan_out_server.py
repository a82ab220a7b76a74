"""A process that serves one application to many clients: ``python -m ... NAME ARGUMENT``.

It says where it listens in a line of JSON, then does what it is told through a connection of its
own, a line each way, and ends when that is closed. uvicorn, with uvloop and httptools where they
are installed.
"""

import asyncio
import json
import logging
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import import_module
from time import process_time

from tests.benchmarks.fan_out_clients import PATIENCE
from tests.benchmarks.fan_out_peers import PEERS
from tests.benchmarks.fan_out_service import LIMITS, Open, Service, resident_bytes


def service_named(name: str) -> Open:
    """Return what opens a service; ours is imported only where it is served."""
    others = {**LIMITS, **PEERS}
    return others[name] if name in others else _ours()[name]


def _ours() -> dict[str, Open]:
    from tests.benchmarks.fan_out_ours import OURS

    return OURS


def main(opens: Open, argument: int) -> None:
    """Serve until the connection that gives orders is closed."""
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(opens(argument)))
    except ModuleNotFoundError as exc:
        print(json.dumps({"absent": exc.name}), flush=True)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        factory: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
    except ModuleNotFoundError:
        return None
    return factory


async def _serve(opened: AbstractAsyncContextManager[Service]) -> None:
    begun, done = asyncio.Event(), asyncio.Event()
    async with opened as service:

        async def obey(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            begun.set()
            try:
                await _obey(service, reader, writer)
            finally:
                done.set()
                writer.close()

        orders = await asyncio.start_server(obey, "127.0.0.1", 0)
        async with orders, _listening(service) as port:
            place = orders.sockets[0].getsockname()[1]
            hello = {"port": port, "orders": place, "paths": service.paths}
            print(json.dumps(hello), flush=True)
            # Whoever has started it may have ended since.
            await asyncio.wait_for(begun.wait(), PATIENCE)
            await done.wait()


@asynccontextmanager
async def _listening(service: Service) -> AsyncIterator[int]:
    """Serve an application by uvicorn, or a protocol by itself."""
    with socket.create_server(("127.0.0.1", 0), backlog=4_096) as listener:
        port: int = listener.getsockname()[1]
        if service.protocol is not None:
            async with await asyncio.get_running_loop().create_server(
                service.protocol, sock=listener
            ):
                yield port
            return
        import uvicorn

        begun = asyncio.Event()

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                begun.set()

        server = Server(
            # Raw clients do not answer pings.
            uvicorn.Config(
                service.app, log_level="warning", access_log=False, ws_ping_interval=None
            )
        )
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        await begun.wait()
        yield port
        # Whoever gave orders has gone, and so have its clients; not all that wait see that.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        server.force_exit = server.should_exit = True
        await serving


async def _obey(
    service: Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    async def processor(_: float) -> float:
        return process_time()

    async def resident(_: float) -> float:
        return resident_bytes()

    async def publish(events: float) -> float | None:
        await service.publish(int(events))
        return None

    orders: dict[str, Callable[[float], Awaitable[float | None]]] = {
        "publish": publish,
        "processor": processor,
        "resident": resident,
        **service.orders,
    }
    while line := await reader.readline():
        order, _, argument = line.decode().partition(" ")
        answer = await orders[order](float(argument))
        if answer is not None:
            writer.write(f"{answer!r}\n".encode())


if __name__ == "__main__":
    main(service_named(sys.argv[1]), int(sys.argv[2]))
