"""A port of this machine where each connection has a task of its own, until all of it is left."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Self

import anyio
from anyio.abc import TaskStatus

from callbackkit.sessions.background import Background
from callbackkit.testing.sockets import Listener, Wire

__all__ = ["Service"]


class Service:
    """Accepts connections as long as it is entered; leaving it ends what it runs.

    Args:
        name: What says that it is not started.
        meet: Told of each connection at once; returns what attends to it, in a task.
        port: Where it listens; 0 for a port that the system chooses.

    Raises:
        OSError: By ``async with``: the port is taken.
    """

    def __init__(
        self,
        name: str,
        meet: Callable[[Wire], Callable[[], Coroutine[Any, Any, None]]],
        *,
        port: int = 0,
    ) -> None:
        self._name = name
        self._meet = meet
        self._port = port
        self._listener: Listener | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            listener = Listener(self._port)
            stack.callback(listener.release)
            listener.open()
            self._listener = listener
            background = Background(self._serve)
            await background.start()
            stack.push_async_callback(background.stop)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self._stack.aclose()

    @property
    def is_started(self) -> bool:
        return self._listener is not None

    @property
    def listener(self) -> Listener:
        """The port.

        Raises:
            RuntimeError: It was not entered yet.
        """
        if self._listener is None:
            raise RuntimeError(f"the {self._name} is not started; enter it by 'async with'")
        return self._listener

    async def _serve(self, *, task_status: TaskStatus[None]) -> None:
        async with anyio.create_task_group() as group:
            task_status.started()
            while True:
                group.start_soon(self._meet(await self.listener.accept()))
