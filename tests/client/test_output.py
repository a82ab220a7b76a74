"""Standard output that may be slow, or go away."""

import os
import socket
from collections.abc import Generator
from pathlib import Path

import anyio
import pytest

from callbackkit.client.output import NobodyReadsError, Output


@pytest.fixture
def pipe() -> Generator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        try:
            os.close(descriptor)
        except OSError:
            pass  # the test has


async def test_who_writes_waits_for_who_reads_and_nobody_else_does(pipe) -> None:
    reader, writer = pipe
    text = bytes(range(256)) * 4_096
    read = bytearray()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Output(writer).write, text)
        with anyio.fail_after(10):
            while len(read) < len(text):
                await anyio.wait_readable(reader)
                read += os.read(reader, 65_536)
    assert read == text


async def test_one_that_waits_can_be_cancelled(pipe) -> None:
    _, writer = pipe
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Output(writer).write, b"x" * 1_000_000)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()


async def test_writing_to_nobody_is_told(pipe) -> None:
    reader, writer = pipe
    os.close(reader)
    with pytest.raises(NobodyReadsError):
        await Output(writer).write(b"x")


async def test_one_that_waits_hears_that_nobody_reads_any_more(pipe) -> None:
    reader, writer = pipe

    async def write() -> None:
        with pytest.raises(NobodyReadsError):
            await Output(writer).write(b"x" * 1_000_000)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            await anyio.wait_all_tasks_blocked()
            os.close(reader)


async def test_that_nobody_reads_is_noticed_without_writing(pipe) -> None:
    reader, writer = pipe
    noticed = anyio.Event()

    async def notice() -> None:
        with pytest.raises(NobodyReadsError):
            await Output(writer).wait_until_nobody_reads()
        noticed.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(notice)
        await anyio.wait_all_tasks_blocked()
        assert not noticed.is_set()
        os.close(reader)
        with anyio.fail_after(10):
            await noticed.wait()


async def test_a_socket_that_says_something_is_not_taken_for_gone() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"hello")
        with anyio.fail_after(10):
            assert await Output(ours.fileno()).wait_until_nobody_reads() is False


async def test_a_file_is_written_and_never_gone(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        output = Output(file.fileno())
        await output.write(b"x" * 100_000)
        assert await output.wait_until_nobody_reads() is False
    assert (tmp_path / "out").read_bytes() == b"x" * 100_000


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk here")
async def test_a_full_disk_is_an_error() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="No space left"):
            await Output(descriptor).write(b"x")
    finally:
        os.close(descriptor)
