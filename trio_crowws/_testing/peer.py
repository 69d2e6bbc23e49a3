"""The other end of a connection, and how it reads.

Theory of operation
    A peer over a stream of the test's own (`shake_hands`) reads inside of `receive` and its sisters only. `connect` has
    a nursery with a task in it that reads all the time, answers pings and the server's Close, and keeps
    what comes until the test takes it. Over streams that have any back-pressure it stops where more than `READ_AHEAD`
    bytes of messages are kept and nobody waits for one; and over all streams while the test has called `pause_reading`.
    Paused, the peer is as one over a stream of the test's own.

    Whoever reads holds `_lock`, so that a pause in the middle of anything changes hands between two events.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable
from typing import final

import trio
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.frame_protocol import CloseReason

from .._closeinfo import CloseFrame, CloseInfo, check_close_frame
from .._foreign import text_of
from .._protocol.compressing import Compressor
from .._protocol.deflate import Inflater
from .._protocol.deflate_offer import Agreement
from .._request import Headers
from ..errors import CrowWSError, ProtocolError
from .faults import FaultyStream

__all__ = ["READ_SIZE", "Peer", "PeerClosed", "make_frame"]

READ_SIZE = 65536

READ_AHEAD = 64 * 1024
"""Bytes of messages, parts included, that are kept for a test that does not take them."""

_OVERHEAD = 64
"""Bytes that a whole message is counted for beyond its length."""

CONTROLS_KEPT = 1000
"""Pings and pongs that are kept for it; those that come later are answered all the same."""


class PeerClosed(CrowWSError, trio.BrokenResourceError):
    """The server has sent Close, or the stream has ended: there is no further message, and nobody to send one to.

    Attributes:
      close: the Close frame of the server, or `None` if the stream ended without one.
      info: how the connection ended for the application, or `None` where that is not known: with `shake_hands`, or
        before the connection was open. Until the end it says what is known so far.
    """

    def __init__(self, close: CloseFrame | None, info: CloseInfo | None = None) -> None:
        text = f"the server sent {close}" if close else "the stream ended without a Close frame"
        if info is not None and info.error is not None:
            text += f"; the reason is {type(info.error).__name__}: {text_of(info.error)}"
        super().__init__(text)
        self.close = close
        self.info = info


@final
class Peer:
    """The other end of a WebSocket connection, as `connect` and `shake_hands` make it.

    One that `connect` has made reads all the time, and answers pings and the server's Close by itself. One that
    `shake_hands` has made does so while it is receiving.

    Attributes:
      stream: the stream to the server. Call `pause_reading` before you read from it yourself.
      faults: the server's own end, to make it misbehave; only with `connect`.
      subprotocol: what the server has chosen, or `None`.
      compression: what was agreed on about compression, as the 101 says it, or `None` if messages are not compressed.
      headers: the headers of the 101.
      auto_pong: answer pings; `True` unless `connect` was told otherwise.
      auto_close: answer the server's Close; `True` unless `connect` was told otherwise.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        headers: Headers,
        early: bytes,
        faults: FaultyStream | None,
        agreement: Agreement | None = None,
    ) -> None:
        self.stream = stream
        self.faults = faults
        self.headers = headers
        self.subprotocol = headers.get("sec-websocket-protocol")
        self.auto_pong = True
        self.auto_close = True
        self.compression = None if agreement is None else agreement.header
        self._inflater = None if agreement is None else Inflater(agreement, None, client=True)
        setting = None if agreement is None else agreement.setting
        self._compressor = None if setting is None else Compressor(setting)
        self._ws = Connection(ConnectionType.CLIENT, None if self._inflater is None else [self._inflater])
        self._early = early
        self._events: list[Event] = []
        self._pieces: list[str] | list[bytes] = []
        self._ended = False
        self._close: CloseFrame | None = None
        self._told = False  # that there is no further message
        self._find_info: Callable[[], CloseInfo | None] = lambda: None
        self._kept: deque[str | bytes | Ping | Pong | CloseFrame] = deque()
        self._kept_controls = 0
        self._unread = 0  # bytes of messages that were read and not taken
        self._read_ahead: float = 0
        self._waiting = 0  # tasks that wait for what comes next
        self._arrived = trio.Event()
        self._lock: trio.Lock | None = None  # held by whoever reads; `None` where nobody reads all the time
        self._sending: trio.Lock | None = None
        self._reading: trio.CancelScope | None = None
        self._paused = False
        self._go_on = trio.Event()
        self._failure: Exception | None = None

    # Sending

    async def send(self, data: str | bytes) -> None:
        """Send a message: `str` as text, `bytes` as binary; compressed where that was agreed on.

        Raises:
          PeerClosed: the server has sent Close, or the connection broke.
        """
        if self._close is not None:
            raise self._closed()
        if self._compressor is not None:
            opcode, payload = (1, data.encode()) if isinstance(data, str) else (2, data)
            await self.send_frame(opcode, self._compressor.compress(payload), rsv=4)
            return
        await self.send_raw(self._ws.send(TextMessage(data) if isinstance(data, str) else BytesMessage(data)))

    async def send_raw(self, data: bytes) -> None:
        """Send these bytes as they are.

        Raises:
          PeerClosed: the connection broke.
        """
        try:
            if self._sending is None:
                await self.stream.send_all(data)
            else:
                async with self._sending:
                    await self.stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise self._closed() from error

    async def send_frame(
        self, opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bool = True
    ) -> None:
        """Send one frame, legal or not.

        Args:
          opcode: 0 to 15.
          payload: of any length, for control frames too.
          fin: whether it is the last frame of its message.
          rsv: the three reserved bits as a number.
          mask: whether it is masked.

        Raises:
          PeerClosed: the connection broke.
        """
        await self.send_raw(make_frame(opcode, payload, fin=fin, rsv=rsv, mask=mask))

    async def send_eof(self) -> None:
        """End the sending direction, without a Close frame."""
        assert isinstance(self.stream, trio.abc.HalfCloseableStream)
        await self.stream.send_eof()

    async def ping(self, payload: bytes = b"") -> None:
        """Send a ping.

        Raises:
          PeerClosed: the server has sent Close, or the connection broke.
        """
        if self._close is not None:
            raise self._closed()
        await self.send_raw(self._ws.send(Ping(payload)))

    async def close(self, code: int | None = 1000, reason: str = "") -> CloseFrame | None:
        """Send Close and wait for the server's; messages that come before it are dropped.

        Args:
          code: `None` for a Close frame without a code.
          reason: the text that goes with it.

        Returns:
          The server's Close frame, or `None` if it sent none.

        Raises:
          ValueError: there is a reason, but no code.
        """
        if code is None:
            check_close_frame(None, reason)
            code = CloseReason.NO_STATUS_RCVD  # which wsproto sends as no code at all
        if self._ws.state is ConnectionState.OPEN:
            await self._send_quietly(self._ws.send(CloseConnection(code, reason)))
        return await self.receive_close()

    async def _send_quietly(self, data: bytes) -> None:
        try:
            await self.send_raw(data)
        except PeerClosed:
            self._ended = True

    # Receiving

    async def receive(self) -> str | bytes:
        """Wait for the next message; pings and pongs are passed over.

        Raises:
          PeerClosed: the server has sent Close, or the stream has ended; the text says why, where the server's side
            knows.
        """
        while True:
            event = None if self._told else await self.receive_event()
            if isinstance(event, (str, bytes)):
                return event
            if event is None or isinstance(event, CloseFrame):
                self._told = True
                raise self._closed()

    async def receive_close(self) -> CloseFrame | None:
        """Wait for the server's Close frame and the end of the stream; messages that come before are dropped."""
        while await self.receive_event() is not None:
            pass
        self._told = True
        return self._close

    async def receive_event(self) -> str | bytes | Ping | Pong | CloseFrame | None:
        """Wait for what the server sends next: a whole message, a ping, a pong, a Close frame, or the end (`None`)."""
        while True:
            if self._kept:
                return self._take()
            if self._failure is not None:
                raise self._failure
            if self._lock is None:
                return await self._next()
            if self._paused:
                async with self._lock:
                    if not self._kept:
                        return await self._next()
            else:
                await self._wait()

    async def _wait(self) -> None:
        """Wait until something has come, or somebody else has to read."""
        if self._arrived.is_set():
            self._arrived = trio.Event()
        self._waiting += 1
        self._go_on.set()
        try:
            await self._arrived.wait()
        finally:
            self._waiting -= 1

    def pause_reading(self) -> None:
        """From now on read inside of `receive` and its sisters only: a peer that is slow, or dead to pings.

        For a peer that `shake_hands` has made that is always so.
        """
        self._paused = True
        if self._reading is not None:
            self._reading.cancel()
        self._arrived.set()

    def resume_reading(self) -> None:
        """Read all the time again, after `pause_reading`."""
        self._paused = False
        self._go_on.set()

    def _take(self) -> str | bytes | Ping | Pong | CloseFrame:
        event = self._kept.popleft()
        if isinstance(event, (str, bytes)):
            self._unread -= len(event) + _OVERHEAD
            self._go_on.set()
        elif not isinstance(event, CloseFrame):
            self._kept_controls -= 1
        return event

    def _keep(self, event: str | bytes | Ping | Pong | CloseFrame) -> None:
        if not isinstance(event, (str, bytes, CloseFrame)):
            if self._kept_controls == CONTROLS_KEPT:
                return
            self._kept_controls += 1
        self._kept.append(event)
        self._arrived.set()

    def _read_in(self, nursery: trio.Nursery, scope: trio.CancelScope, *, bounded: bool) -> None:
        """Read all the time from now on, in a task of `nursery`, until `scope` is cancelled."""
        self._read_ahead = READ_AHEAD if bounded else math.inf
        self._lock, self._sending = trio.Lock(), trio.Lock()
        nursery.start_soon(self._read_on, self._lock, scope)

    async def _read_on(self, lock: trio.Lock, scope: trio.CancelScope) -> None:
        """Read until the stream ends, and keep what comes."""
        try:
            with scope:
                while self._events or not self._ended:
                    while self._paused or (self._unread > self._read_ahead and not self._waiting):
                        self._go_on = trio.Event()
                        await self._go_on.wait()
                    async with lock:
                        await self._read_some()
        except Exception as error:  # raised where the test receives
            self._failure = error
        finally:
            self._lock = None
            self._arrived.set()

    async def _read_some(self) -> None:
        while self._events:
            event = await self._interpret(self._events.pop(0))
            if event is not None:
                self._keep(event)
        if not self._ended:
            with trio.CancelScope() as self._reading:  # a paused reader has got nothing
                if not self._paused:
                    await self._read()
            self._reading = None

    async def _next(self) -> str | bytes | Ping | Pong | CloseFrame | None:
        while True:
            while self._events:
                event = await self._interpret(self._events.pop(0))
                if isinstance(event, (str, bytes)):
                    self._unread -= len(event) + _OVERHEAD
                if event is not None:
                    return event
            if self._ended:
                return None
            await self._read()

    async def _read(self) -> None:
        """Wait for bytes, or for the end of the stream."""
        data, self._early = self._early, b""
        if not data:
            try:
                data = bytes(await self.stream.receive_some(READ_SIZE))
            except trio.BrokenResourceError:
                data = b""
        if not data:
            self._ended = True
        elif self._ws.state is not ConnectionState.CLOSED:
            self._ws.receive_data(data)
            self._events.extend(map(self._inflate, self._ws.events()))

    def _inflate(self, event: Event) -> Event:
        """Put what was inflated into the event that ends a compressed message."""
        if self._inflater is not None and isinstance(event, TextMessage | BytesMessage):
            try:
                message = self._inflater.take()
            except ProtocolError as error:
                return CloseConnection(error.code, str(error))
            if message is not None:
                return TextMessage(message) if isinstance(message, str) else BytesMessage(message)
        return event

    async def _interpret(self, event: Event) -> str | bytes | Ping | Pong | CloseFrame | None:
        if isinstance(event, TextMessage | BytesMessage):
            self._pieces.append(event.data)  # type: ignore[arg-type]
            self._unread += len(event.data)
            if not event.message_finished:
                return None
            self._unread += _OVERHEAD
            pieces, self._pieces = self._pieces, []
            return type(event.data)().join(pieces)  # type: ignore[arg-type, return-value]
        if isinstance(event, CloseConnection):
            self._close = CloseFrame(None if event.code == 1005 else int(event.code), event.reason or "")
            if self.auto_close and self._ws.state is ConnectionState.REMOTE_CLOSING:
                await self._send_quietly(self._ws.send(event.response()))
            return self._close
        if isinstance(event, Ping):
            if self.auto_pong and self._ws.state is ConnectionState.OPEN:
                await self._send_quietly(self._ws.send(event.response()))
            return event
        return event if isinstance(event, Pong) else None

    def _closed(self) -> PeerClosed:
        return PeerClosed(self._close, self._find_info())


def make_frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bool = True) -> bytes:
    """One frame as bytes, legal or not; see `Peer.send_frame`."""
    head = bytearray((fin << 7 | rsv << 4 | opcode,))
    size = len(payload)
    bit = 0x80 if mask else 0
    if size < 126:
        head.append(bit | size)
    elif size < 65536:
        head.append(bit | 126)
        head += size.to_bytes(2)
    else:
        head.append(bit | 127)
        head += size.to_bytes(8)
    if not mask:
        return bytes(head) + payload
    key = os.urandom(4)
    return bytes(head) + key + bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))
