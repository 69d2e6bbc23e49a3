"""The standard streams in a Trio task: pipes, files, terminals, and what else somebody may connect them to."""

from __future__ import annotations

import errno
import os
import pty
import termios
import tty
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from trio_crowws._cli import standard
from trio_crowws._cli.standard import InputError, Lines, Output


@contextmanager
def opened(*descriptors: int) -> Generator[None]:
    try:
        yield
    finally:
        for descriptor in descriptors:
            with suppress(OSError):
                os.close(descriptor)


async def all_lines(lines: Lines) -> list[bytes]:
    found = []
    while (line := await lines.next()) is not None:
        found.append(line)
    return found


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"one\ntwo\n", [b"one", b"two"]),
        (b"one\r\ntwo", [b"one", b"two"]),
        (b"\n\n", [b"", b""]),
        (b"a\rb\n", [b"a\rb"]),
        (b"x" * 200_000 + b"\ny", [b"x" * 200_000, b"y"]),
    ],
    ids=["nothing", "two", "no end", "empty", "return", "long"],
)
@pytest.mark.parametrize("kind", ["pipe", "file"])
async def test_lines(tmp_path: Path, kind: str, data: bytes, expected: list[bytes]) -> None:
    """Lines are what stands between line ends, and the last one may lack its own."""
    path = tmp_path / "input"
    path.write_bytes(data)
    if kind == "file":
        reader = os.open(path, os.O_RDONLY)
        with opened(reader):
            assert await all_lines(Lines(reader)) == expected
        return
    reader, writer = os.pipe()
    with opened(reader, writer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_write_and_close, writer, data)
            assert await all_lines(Lines(reader)) == expected


async def _write_and_close(descriptor: int, data: bytes) -> None:
    await Output(descriptor).write(data)
    os.close(descriptor)


async def test_no_input() -> None:
    """A standard input that is closed, and /dev/null, have no lines."""
    assert await all_lines(Lines(None)) == []
    null = os.open(os.devnull, os.O_RDONLY)
    with opened(null):
        assert await all_lines(Lines(null)) == []


async def test_the_loop_goes_on_while_a_pipe_is_read() -> None:
    """Waiting for a line blocks nobody, can be cancelled, and loses nothing."""
    reader, writer = os.pipe()
    with opened(reader, writer):
        lines = Lines(reader)
        os.write(writer, b"half ")
        with trio.move_on_after(0.05) as scope:
            await lines.next()
        assert scope.cancelled_caught
        os.write(writer, b"a line\n")
        with trio.fail_after(5):
            assert await lines.next() == b"half a line"


async def test_cancelled_before_it_begins() -> None:
    """A line that is there is not taken by a task that is cancelled."""
    reader, writer = os.pipe()
    with opened(reader, writer):
        lines = Lines(reader)
        os.write(writer, b"one\ntwo\n")
        assert await lines.next() == b"one"
        with trio.CancelScope() as scope:
            scope.cancel()
            await lines.next()
        assert scope.cancelled_caught
        assert await lines.next() == b"two"


async def test_the_descriptors_stay_as_they_were() -> None:
    """Neither reading nor writing makes a descriptor non-blocking: others may share it."""
    reader, writer = os.pipe()
    with opened(reader, writer):
        await Output(writer).write(b"a line\n")
        assert await Lines(reader).next() == b"a line"
        assert os.get_blocking(reader)
        assert os.get_blocking(writer)


async def test_descriptors_that_are_not_blocking() -> None:
    """What somebody else has made non-blocking works as well."""
    reader, writer = os.pipe()
    with opened(reader, writer):
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        data = b"x" * 500_000 + b"\n"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Output(writer).write, data)
            assert await Lines(reader).next() == data[:-1]


async def test_somebody_else_was_quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another process has taken the line, or the room, it is waited for again."""
    reader, writer = os.pipe()
    refusals = [BlockingIOError(), BlockingIOError()]
    real_read, real_write = os.read, os.write

    def read(descriptor: int, size: int) -> bytes:
        if descriptor == reader and refusals:
            raise refusals.pop()
        return real_read(descriptor, size)

    def write(descriptor: int, data: bytes) -> int:
        if descriptor == writer and refusals:
            raise refusals.pop()
        return real_write(descriptor, data)

    monkeypatch.setattr(os, "read", read)
    monkeypatch.setattr(os, "write", write)
    with opened(reader, writer), trio.fail_after(5):
        await Output(writer).write(b"one\n")
        refusals.append(BlockingIOError())
        assert await Lines(reader).next() == b"one"
    assert not refusals


async def test_a_line_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is too long for the memory is an error."""
    monkeypatch.setattr(standard, "MAX_LINE", 1 << 20)
    zero = os.open("/dev/zero", os.O_RDONLY)
    with opened(zero), pytest.raises(InputError, match="longer than 1 MiB"):
        await Lines(zero).next()


async def test_an_input_that_cannot_be_read(tmp_path: Path) -> None:
    """What cannot be read raises what the system says."""
    folder = os.open(tmp_path, os.O_RDONLY)
    with opened(folder), pytest.raises(OSError) as caught:  # noqa: PT011 -- the number is the match
        await Lines(folder).next()
    assert caught.value.errno == errno.EISDIR


async def test_a_terminal() -> None:
    """A terminal gives a line when it is complete; what was typed and not taken can be forgotten."""
    master, slave = pty.openpty()
    with opened(master, slave):
        lines = Lines(slave)
        os.write(master, b"one\ntwo\nhal")
        assert await lines.next() == b"one"
        with trio.fail_after(5):
            assert await lines.next() == b"two"
        lines.discard_typed()
        os.write(master, b"f\n")
        with trio.fail_after(5):
            assert await lines.next() == b"f"


async def test_a_terminal_that_is_gone() -> None:
    """The end of the other side of a terminal is the end of its lines."""
    master, slave = pty.openpty()
    with opened(master, slave):
        tty.setraw(slave)
        lines = Lines(slave)
        async with trio.open_nursery() as nursery:

            async def hang_up() -> None:
                await trio.testing.wait_all_tasks_blocked()
                os.close(master)

            nursery.start_soon(hang_up)
            with trio.fail_after(5):
                assert await lines.next() is None
        with suppress(termios.error):
            lines.discard_typed()


async def test_a_terminal_of_a_process_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system says to a process whose terminal was taken away is an end, too."""
    reader, writer = os.pipe()

    def read(descriptor: int, size: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "read", read)
    with opened(reader, writer):
        os.write(writer, b"x")
        assert await Lines(reader).next() is None


async def test_nothing_to_forget() -> None:
    """Without an input, or one that is no terminal, there is nothing to forget."""
    Lines(None).discard_typed()
    reader, writer = os.pipe()
    with opened(reader, writer):
        Lines(reader).discard_typed()


async def test_a_slow_reader_does_not_block_the_loop() -> None:
    """A pipe that nobody reads keeps the writer waiting, and only the writer."""
    reader, writer = os.pipe()
    with opened(reader, writer):
        with trio.move_on_after(0.1) as scope:
            await Output(writer).write(b"x" * 1_000_000)
        assert scope.cancelled_caught


async def test_no_reader() -> None:
    """A pipe without a reader is an error, which says that it is this one."""
    reader, writer = os.pipe()
    with opened(reader, writer):
        os.close(reader)
        with pytest.raises(BrokenPipeError):
            await Output(writer).write(b"x")


async def test_outputs_without_a_reader(tmp_path: Path) -> None:
    """A closed output swallows everything; a file takes everything."""
    await Output(None).write(b"x")
    path = tmp_path / "output"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    with opened(descriptor):
        await Output(descriptor).write(b"x" * 100_000)
    assert path.stat().st_size == 100_000
