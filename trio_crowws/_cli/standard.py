"""The standard streams of a process, used from a Trio task: no call blocks the loop, and nothing about them is changed.

The usual ways to read the standard input beside an event loop each leave something behind: a thread that waits in
`read` for a line that never comes keeps the process from ending, and a stream that was made non-blocking stays so for
everybody who shares it, the shell included. Here the loop is asked whether there is something to read, and only then
is it read, so neither is needed. Files on a disk cannot be asked about, and need not: they never let anyone wait.

Windows cannot ask about a console or a pipe in this way. There a thread reads, which may be abandoned.
"""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import final

import trio

if sys.platform != "win32":  # pragma: no branch - see the top of the file
    import termios

__all__ = ["InputError", "Lines", "Output", "check_size"]

READ_SIZE = 1 << 16
MAX_LINE = 1 << 26
# So much can be written to a pipe that is reported as writable, without waiting for its reader.
WRITE_SIZE: int = getattr(select, "PIPE_BUF", 512)


class InputError(Exception):
    """The input cannot be used."""


def check_size(size: int) -> None:
    """Refuse a line that has come to so many bytes, or characters, without an end."""
    if size > MAX_LINE:
        raise InputError(f"a line of the input is longer than {MAX_LINE >> 20} MiB")


@final
class Lines:
    """The lines that can be read from a descriptor.

    Args:
      descriptor: `None` is an input without lines.
      text: a carriage return before the line end belongs to that; without this, to the line, as any other byte.
    """

    def __init__(self, descriptor: int | None, *, text: bool = True) -> None:
        self._descriptor = descriptor
        self._text = text
        self._ended = descriptor is None
        self._ready = _Ready(descriptor, trio.lowlevel.wait_readable)
        self._data = bytearray()

    async def next(self) -> bytes | None:
        """The next line without its end, or `None` after the last one, which may lack an end.

        Raises:
          InputError: the line is longer than 64 MiB.
          OSError: the input cannot be read.

        Cancellation: nothing is lost.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        searched = 0
        while (end := self._data.find(b"\n", searched)) < 0:
            if self._ended:
                rest = bytes(self._data)
                self._data.clear()
                return rest or None
            searched = len(self._data)
            check_size(searched)
            self._data += await self.read()
        line = bytes(self._data[:end])
        del self._data[: end + 1]
        return line.removesuffix(b"\r") if self._text else line

    def discard_typed(self) -> None:
        """Forget what was typed on a terminal and not taken: half a message must not become a command of the shell."""
        if self._descriptor is not None and sys.platform != "win32":  # pragma: no branch - see the top of the file
            with suppress(termios.error):  # a terminal that is gone
                termios.tcflush(self._descriptor, termios.TCIFLUSH)

    async def read(self) -> bytes:
        """What can be read next, in pieces of any size; nothing at the end.

        Cancellation: nothing is lost.
        """
        assert self._descriptor is not None  # or it has ended
        if sys.platform == "win32":  # pragma: no cover - see the top of the file
            data = await trio.to_thread.run_sync(os.read, self._descriptor, READ_SIZE, abandon_on_cancel=True)
        else:
            data = await self._read()
        self._ended = not data
        return data

    async def _read(self) -> bytes:
        assert self._descriptor is not None
        while True:
            await self._ready.wait()
            try:
                return os.read(self._descriptor, READ_SIZE)
            except BlockingIOError:  # somebody else has made it non-blocking, and another reader was quicker
                pass
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                return b""  # a terminal that is gone


@final
class Output:
    """A descriptor that is written to.

    Args:
      descriptor: `None` swallows everything.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._ready = _Ready(descriptor, trio.lowlevel.wait_writable)

    async def write(self, data: bytes) -> None:
        """Write all of `data`; a reader who is slow is waited for, and the loop goes on.

        Raises:
          BrokenPipeError: there is no reader.
          OSError: the disk is full, or something else is wrong with it.

        Cancellation: some of it may have been written.
        """
        rest = memoryview(data)
        while self._descriptor is not None and rest:
            await self._ready.wait()
            try:
                rest = rest[os.write(self._descriptor, rest[:WRITE_SIZE]) :]
            except BlockingIOError:  # somebody else has made it non-blocking, and there is less room than it said
                await trio.sleep(0.01)


class _Ready:
    """Whether reading, or writing, can be done without waiting."""

    def __init__(self, descriptor: int | None, ask: Callable[[int], Awaitable[None]]) -> None:
        self._descriptor = descriptor
        self._ask = ask
        self._is_file = descriptor is None or sys.platform == "win32"

    async def wait(self) -> None:
        """Wait for it; files are always ready."""
        if self._descriptor is not None and not self._is_file:
            try:
                await self._ask(self._descriptor)
            except OSError:  # epoll knows neither files nor /dev/null
                self._is_file = True
        if self._is_file:
            await trio.lowlevel.checkpoint()
