"""Test applications without a network, and with virtual time.

`connect(app, path)` serves the application over an in-memory stream and hands out the other end as a `Peer`. A peer can
do what a client does, and also what no client should: send any bytes, stop reading, break the stream. Nothing here
sleeps, so a test that uses Trio's `MockClock` runs through a day of heartbeats in a moment.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import final

import h11
import trio
import trio.testing
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import generate_accept_token, generate_nonce

from ._app import App
from ._closeinfo import CloseFrame, check_close_frame
from ._deflate import Deflate
from ._options import check_option
from ._protocol.compressing import Compressor
from ._protocol.deflate import Inflater
from ._protocol.deflate_offer import Agreement, check_answer, make_offer
from ._protocol.request import Headers
from .errors import CrowWSError

__all__ = ["FaultyStream", "Peer", "PeerClosed", "Refused", "connect", "shake_hands"]

_READ_SIZE = 65536

_CLOSING = 1.0
"""Seconds for the end of a stream to be closed."""


class Refused(CrowWSError):
    """The server answered a request for an upgrade with something else than a 101.

    Attributes:
      status: the HTTP status.
      headers: the headers of the answer.
      body: the complete body.
    """

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        super().__init__(f"HTTP status {status}: {body[:200]!r}")
        self.status = status
        self.headers = headers
        self.body = body


class PeerClosed(CrowWSError):
    """There is no further message: the server has sent Close, or the stream has ended.

    Attributes:
      close: the Close frame of the server, or `None` if the stream ended without one.
    """

    def __init__(self, close: CloseFrame | None) -> None:
        super().__init__(f"the server sent {close}" if close else "the stream ended without a Close frame")
        self.close = close


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


@final
class Peer:
    """The other end of a WebSocket connection, as `connect` and `shake_hands` make it.

    Attributes:
      stream: the stream to the server.
      faults: the server's own end, to make it misbehave; only with `connect`.
      subprotocol: what the server has chosen, or `None`.
      compression: what was agreed on about compression, as the 101 says it, or `None` if messages are not compressed.
      headers: the headers of the 101.
      auto_pong: answer pings while receiving; `True` at first.
      auto_close: answer the server's Close while receiving; `True` at first.
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

    async def send(self, data: str | bytes) -> None:
        """Send a message: `str` as text, `bytes` as binary; compressed where that was agreed on."""
        if self._compressor is not None:
            opcode, payload = (1, data.encode()) if isinstance(data, str) else (2, data)
            await self.send_frame(opcode, self._compressor.compress(payload), rsv=4)
            return
        await self.stream.send_all(self._ws.send(TextMessage(data) if isinstance(data, str) else BytesMessage(data)))

    async def send_raw(self, data: bytes) -> None:
        """Send these bytes as they are."""
        await self.stream.send_all(data)

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
        """
        await self.stream.send_all(make_frame(opcode, payload, fin=fin, rsv=rsv, mask=mask))

    async def send_eof(self) -> None:
        """End the sending direction, without a Close frame."""
        assert isinstance(self.stream, trio.abc.HalfCloseableStream)
        await self.stream.send_eof()

    async def receive_event(self) -> str | bytes | Ping | Pong | CloseFrame | None:
        """Wait for what the server sends next: a whole message, a ping, a pong, a Close frame, or the end (`None`)."""
        while True:
            while self._events:
                event = await self._interpret(self._events.pop(0))
                if event is not None:
                    return event
            if self._ended:
                return None
            data = self._early
            self._early = b""
            if not data:
                try:
                    data = bytes(await self.stream.receive_some(_READ_SIZE))
                except trio.BrokenResourceError:
                    data = b""
            if not data:
                self._ended = True
                continue
            if self._ws.state is not ConnectionState.CLOSED:
                self._ws.receive_data(data)
                self._events.extend(map(self._inflate, self._ws.events()))

    def _inflate(self, event: Event) -> Event:
        """Put what was inflated into the event that ends a compressed message."""
        if self._inflater is not None and isinstance(event, TextMessage | BytesMessage) and event.message_finished:
            message = self._inflater.take()
            if message is not None:
                return TextMessage(message) if isinstance(message, str) else BytesMessage(message)
        return event

    async def _interpret(self, event: Event) -> str | bytes | Ping | Pong | CloseFrame | None:
        if isinstance(event, TextMessage | BytesMessage):
            self._pieces.append(event.data)  # type: ignore[arg-type]
            if not event.message_finished:
                return None
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

    async def _send_quietly(self, data: bytes) -> None:
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError:
            self._ended = True

    async def receive(self) -> str | bytes:
        """Wait for the next message; pings and pongs are passed over.

        Raises:
          PeerClosed: the server has sent Close, or the stream has ended.
        """
        while True:
            event = None if self._close is not None else await self.receive_event()
            if isinstance(event, (str, bytes)):
                return event
            if event is None or isinstance(event, CloseFrame):
                raise PeerClosed(self._close)

    async def ping(self, payload: bytes = b"") -> None:
        """Send a ping."""
        await self.stream.send_all(self._ws.send(Ping(payload)))

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

    async def receive_close(self) -> CloseFrame | None:
        """Wait for the server's Close frame and the end of the stream; messages that come before are dropped."""
        while await self.receive_event() is not None:
            pass
        return self._close


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


async def shake_hands(
    stream: trio.abc.Stream,
    path: str = "/",
    *,
    host: str = "testserver",
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    subprotocols: Sequence[str] = (),
    compression: Deflate | None = None,
    faults: FaultyStream | None = None,
) -> Peer:
    """Do the client's part of the opening handshake over `stream`.

    Args:
      stream: connected to the server.
      path: path and query.
      host: the `Host` header.
      headers: more headers, as `Cookie` or `Origin`.
      subprotocols: those that the client offers.
      compression: what the client offers to compress with.
      faults: becomes `Peer.faults`.

    Raises:
      HandshakeError: the server has agreed on compression in a way that was not offered.
      Refused: the server answered with something else than a 101.
      PeerClosed: the stream ended before the answer was complete.
    """
    nonce = generate_nonce()
    fields = [
        ("Host", host),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", nonce.decode("ascii")),
        *([("Sec-WebSocket-Protocol", ", ".join(subprotocols))] if subprotocols else ()),
        *([("Sec-WebSocket-Extensions", make_offer(compression))] if compression is not None else ()),
        *(headers.items() if isinstance(headers, Mapping) else headers),
    ]
    http = h11.Connection(h11.CLIENT)
    request = h11.Request(
        method="GET", target=path, headers=[(name.encode(), value.encode()) for name, value in fields]
    )
    sent = http.send(request)
    assert sent is not None
    await stream.send_all(sent)
    answer = await _next_http_event(http, stream)
    assert isinstance(answer, (h11.InformationalResponse, h11.Response))
    got = Headers((name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.headers)
    if answer.status_code != 101:
        body = b""
        while isinstance(event := await _next_http_event(http, stream), h11.Data):
            body += event.data
        raise Refused(answer.status_code, got, body)
    assert got.get("sec-websocket-accept") == generate_accept_token(nonce).decode("ascii"), "wrong Sec-WebSocket-Accept"
    answers = got.get_all("sec-websocket-extensions")
    agreement = None if compression is None else check_answer(answers, compression)
    return Peer(stream, got, http.trailing_data[0], faults, agreement)


async def _next_http_event(http: h11.Connection, stream: trio.abc.Stream) -> h11.Event:
    if http.our_state is h11.SEND_BODY:
        http.send(h11.EndOfMessage())
    while True:
        try:
            event = http.next_event()
        except h11.RemoteProtocolError as error:
            raise PeerClosed(None) from error
        if event is h11.NEED_DATA:
            data = bytes(await stream.receive_some(_READ_SIZE))
            if not data and http.their_state is h11.SEND_RESPONSE:
                raise PeerClosed(None)
            http.receive_data(data)
        else:
            assert isinstance(event, h11.Event), event  # nobody reads on behind an answer, so h11 never pauses
            return event


def connect(
    app: App,
    path: str = "/",
    *,
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    subprotocols: Sequence[str] = (),
    compression: Deflate | None = None,
    streams: Callable[
        [], tuple[trio.abc.HalfCloseableStream, trio.abc.HalfCloseableStream]
    ] = trio.testing.memory_stream_pair,
) -> AbstractAsyncContextManager[Peer]:
    """Connect to an application in memory.

    Used as `async with connect(app, "/chat/lobby") as peer`.

    Leaving the block closes the stream and waits until the connection has ended, `on_close` included.

    Args:
      app: the application.
      path: path and query.
      headers: more headers, as `Cookie` or `Origin`.
      subprotocols: those that the client offers.
      compression: what the client offers to compress with; if the application agrees, all that it sends is compressed.
      streams: makes the two ends; `trio.testing.lockstep_stream_pair` makes a sender wait for its reader.

    Raises:
      TypeError: at the call; `app` is not an application, or `compression` is not a `Deflate`.
      Refused: the application refused the request.
    """
    if isinstance(app, str):
        raise TypeError("testing.connect takes an App and a path, not a URL; use trio_crowws.connect(url) for that")
    if not isinstance(app, App):
        raise TypeError(f"testing.connect takes an App and a path, not {type(app).__name__}")
    check_option("compression", compression)

    def shake(near: trio.abc.HalfCloseableStream, faults: FaultyStream) -> Awaitable[Peer]:
        return shake_hands(
            near, path, headers=headers, subprotocols=subprotocols, compression=compression, faults=faults
        )

    return _Served(app, streams, shake)


@final
class _Served(AbstractAsyncContextManager[Peer]):
    """What `connect` returns. Not a generator: that one cannot be left whole where Ctrl-C comes in its middle."""

    def __init__(
        self,
        app: App,
        streams: Callable[[], tuple[trio.abc.HalfCloseableStream, trio.abc.HalfCloseableStream]],
        shake: Callable[[trio.abc.HalfCloseableStream, FaultyStream], Awaitable[Peer]],
    ) -> None:
        self._app = app
        self._streams = streams
        self._shake = shake
        self._server = trio.open_nursery()

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Peer:
        self._near, far = self._streams()
        self._faults = FaultyStream(far)
        nursery = await self._server.__aenter__()
        try:
            nursery.start_soon(self._serve)
            return await self._shake(self._near, self._faults)
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._faults.flow()
        # Shielded, because what the block has raised must not be replaced by a cancellation; closing memory is quick.
        with trio.CancelScope(deadline=trio.current_time() + _CLOSING, shield=True):
            await trio.aclose_forcefully(self._near)
        try:
            return bool(await self._server.__aexit__(kind, error, traceback))
        except BaseExceptionGroup as group:
            if len(group.exceptions) == 1:  # that there is a nursery is no business of the test
                raise group.exceptions[0] from group.exceptions[0].__cause__
            raise

    @trio.lowlevel.enable_ki_protection
    async def _serve(self) -> None:
        await self._app.serve_stream(self._faults, remote_address=("testclient", 0), local_address=("testserver", 0))
