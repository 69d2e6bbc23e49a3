"""The client side of the sweep: a peer that sees every byte, and a listener whose streams are memory."""

from __future__ import annotations

import math
import zlib

import trio
import trio.testing

from trio_crowws.testing import FaultyStream, make_frame

__all__ = ["MemoryListener", "RawPeer", "inflated", "next_frame"]

UPGRADE = (
    b"GET /%s HTTP/1.1\r\nHost: testserver\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
OFFER = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=9\r\n\r\n"
COMPRESSED = 0x40  # in the first byte of a frame
TAIL = b"\x00\x00\xff\xff"


class RawPeer:
    """A client that sees every byte.

    Attributes:
      stream: to the server.
      faults: the server's end, to make it misbehave; `None` on real sockets.
      received: all bytes of the server.
      closes: whether it answers a Close frame.
      pongs: whether it answers pings.
      compresses: whether it offers compression, and then compresses all that it sends, with a context.
      messages: what it has sent.
    """

    def __init__(self, stream: trio.abc.Stream, faults: FaultyStream | None) -> None:
        self.stream = stream
        self.faults = faults
        self.received = bytearray()
        self.closes = True
        self.pongs = True
        self.compresses = False
        self._deflate = zlib.compressobj(wbits=-9)
        self._inflate = zlib.decompressobj(-15)
        self.messages: list[str | bytes] = []
        self.sent_close = False
        self.gone = False  # it has dropped its stream, or seen it break
        self._position = 0
        self._sending = trio.Lock()

    async def send_raw(self, *pieces: bytes) -> None:
        """Send bytes; the server has read each piece, if it reads at all, before it gets the next."""
        async with self._sending:
            for number, piece in enumerate(pieces):
                if number:
                    await trio.testing.wait_all_tasks_blocked()
                try:
                    await self.stream.send_all(piece)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self.gone = True

    async def send(self, *messages: str | bytes) -> None:
        frames = [
            self._frame(1, message.encode()) if isinstance(message, str) else self._frame(2, message)
            for message in messages
        ]
        self.messages += messages
        await self.send_raw(b"".join(frames))

    def _frame(self, opcode: int, payload: bytes) -> bytes:
        if not self.compresses:
            return make_frame(opcode, payload)
        compressed = self._deflate.compress(payload) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        return make_frame(opcode, compressed.removesuffix(TAIL), rsv=4)

    async def send_close(self, code: int = 1000) -> None:
        self.sent_close = True
        await self.send_raw(make_frame(8, code.to_bytes(2)))

    async def _more(self) -> bool:
        try:
            data = await self.stream.receive_some(65536)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.gone = True
            data = b""
        self.received += data
        return bool(data)

    async def open(self, path: str = "subject") -> int:
        """Ask for an upgrade; the status of the answer, or 0 if the stream ended before it."""
        request = UPGRADE % path.encode()
        await self.send_raw(request.removesuffix(b"\r\n") + OFFER if self.compresses else request)
        return await self.read_head()

    async def read_head(self) -> int:
        """The status of the answer, or 0 if the stream ended before it."""
        while (end := self.received.find(b"\r\n\r\n")) < 0:
            if not await self._more():
                return 0
        self._position = end + 4
        return int(self.received[9:12])

    async def receive(self) -> tuple[int, bytes] | None:
        """The next frame as opcode and payload; `None` at the end of the stream."""
        while (frame := self._next_frame()) is None:
            if not await self._more():
                return None
        opcode, payload = frame
        if opcode == 8 and self.closes and not self.sent_close:
            self.sent_close = True
            await self.send_raw(make_frame(8, payload[:2]))
        elif opcode == 9 and self.pongs:
            await self.send_raw(make_frame(10, payload))
        return frame

    def _next_frame(self) -> tuple[int, bytes] | None:
        frame = next_frame(self.received, self._position)
        if frame is None:
            return None
        begin = self._position
        opcode, payload, self._position = frame
        if self.received[begin] & COMPRESSED:
            payload = self._inflate.decompress(payload + TAIL)
        return opcode, payload

    async def receive_message(self) -> bytes | None:
        """The next message; `None` when a Close frame or the end of the stream came instead."""
        while (frame := await self.receive()) is not None:
            if frame[0] in (1, 2):
                return frame[1]
            if frame[0] == 8:
                return None
        return None

    async def read_to_end(self) -> None:
        """Behave well until the stream ends."""
        if self.received.startswith(b"HTTP/1.1 101"):
            while await self.receive() is not None:
                pass
        else:
            while await self._more():
                pass

    async def drop(self) -> None:
        """Drop the stream."""
        self.gone = True
        await trio.aclose_forcefully(self.stream)


def next_frame(data: bytes | bytearray, position: int) -> tuple[int, bytes, int] | None:
    """The frame at `position`: opcode, payload, and where it ends; `None` if it is not complete."""
    if len(data) - position < 2:
        return None
    size, start = data[position + 1], position + 2
    if size >= 126:
        field = 2 if size == 126 else 8
        size, start = int.from_bytes(data[start : start + field]), start + field
    if len(data) < start + size:
        return None
    return data[position] & 0x0F, bytes(data[start : start + size]), start + size


def inflated(data: bytes) -> bytes:
    """The same frames without compression; what is not complete stays as it is."""
    stream = zlib.decompressobj(-15)
    frames, position = b"", 0
    while (frame := next_frame(data, position)) is not None:
        opcode, payload, end = frame
        if data[position] & COMPRESSED:
            frames += make_frame(opcode, stream.decompress(payload + TAIL), mask=False)
        else:
            frames += data[position:end]
        position = end
    return frames + data[position:]


class MemoryListener(trio.abc.Listener[FaultyStream]):
    """Accepts memory streams. What is not accepted when it is closed is dropped, as a kernel would."""

    def __init__(self) -> None:
        self._queue, self._arrivals = trio.open_memory_channel[FaultyStream](math.inf)

    def connect(self) -> RawPeer:
        near, far = trio.testing.memory_stream_pair()
        faults = FaultyStream(far)
        try:
            self._queue.send_nowait(faults)
        except trio.BrokenResourceError:
            far.send_stream.close()
        return RawPeer(near, faults)

    async def accept(self) -> FaultyStream:
        return await self._arrivals.receive()

    async def aclose(self) -> None:
        while True:
            try:
                faults = self._arrivals.receive_nowait()
            except (trio.WouldBlock, trio.ClosedResourceError):
                break
            await trio.aclose_forcefully(faults.stream)
        self._arrivals.close()
        await trio.lowlevel.checkpoint()
