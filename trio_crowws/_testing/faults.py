"""A stream that misbehaves on request."""

from __future__ import annotations

from typing import final

import trio

__all__ = ["FaultyStream"]


@final
class FaultyStream(trio.abc.HalfCloseableStream):
    """A stream around another one that misbehaves on request.

    Attributes:
      stream: the stream inside.
    """

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.stream = stream
        self._broken = False
        self._flowing = trio.Event()
        self._flowing.set()

    def stall(self) -> None:
        """From now on nothing that is sent arrives, and `send_all` waits: a peer that does not read."""
        if self._flowing.is_set():
            self._flowing = trio.Event()

    def flow(self) -> None:
        """Undo `stall`."""
        self._flowing.set()

    async def break_off(self) -> None:
        """From now on every operation fails, as after a reset of the connection."""
        self._broken = True
        self._flowing.set()
        await trio.aclose_forcefully(self.stream)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send, once the stream flows."""
        await self._flowing.wait()
        self._check()
        try:
            await self.stream.send_all(data)
        except trio.ClosedResourceError:
            self._check()
            raise

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the stream flows."""
        await self._flowing.wait()
        self._check()
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive, unless the stream is broken."""
        self._check()
        try:
            return await self.stream.receive_some(max_bytes)
        except trio.ClosedResourceError:
            self._check()
            raise

    async def send_eof(self) -> None:
        """End the sending direction."""
        self._check()
        await self.stream.send_eof()

    async def aclose(self) -> None:
        """Close."""
        await self.stream.aclose()

    def _check(self) -> None:
        if self._broken:
            raise trio.BrokenResourceError("broken off by the test")
