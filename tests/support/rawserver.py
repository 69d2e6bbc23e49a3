"""A server that says exactly what a test wants it to say, to test the client against.

    async with raw_server(script) as server:
        async with connect(server.url) as conn:
            ...

For every connection `script(peer)` runs. A `RawPeer` reads the request, answers it, and speaks frames by plain wsproto;
it keeps every frame of the client as it came, mask and all.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import trio
import trio.testing
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.utilities import generate_accept_token

from support.rawclient import unwrapped
from trio_crowws.testing import make_frame

__all__ = ["FrameSeen", "RawPeer", "RawServer", "Script", "accept_head", "echo", "raw_server"]

PATIENCE = 10
"""Seconds that a server with its clients may take before the test fails."""


class FrameSeen(NamedTuple):
    """One frame of a client, as it was on the wire."""

    first: int
    masked: bool
    key: bytes
    payload: bytes


def accept_head(key: str, *more: str, accept: str | None = None) -> bytes:
    """A 101 for `key`, with `more` header lines."""
    token = generate_accept_token(key.encode()).decode() if accept is None else accept
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
    lines += [f"Sec-WebSocket-Accept: {token}", *more]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


class RawPeer:
    """The server's end of one connection.

    Attributes:
      stream: the stream.
      head: the request, once it was read.
      frames: the client's frames so far.
      raw: the bytes of the client behind its request.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.head = b""
        self.raw = b""
        self.frames: list[FrameSeen] = []
        self._wire: Connection | None = None
        self._events: list[Event] = []
        self._parsed = 0

    @property
    def request_line(self) -> str:
        return self.head.split(b"\r\n")[0].decode("latin-1")

    @property
    def headers(self) -> list[tuple[str, str]]:
        lines = self.head.decode("latin-1").split("\r\n")[1:-2]
        return [(name, value) for name, _, value in (line.partition(": ") for line in lines)]

    def header(self, name: str) -> str | None:
        """The only value of a header, or `None`."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) < 2, values
        return values[0] if values else None

    @property
    def key(self) -> str:
        key = self.header("sec-websocket-key")
        assert key is not None
        return key

    async def read_head(self) -> bytes:
        """Read the request."""
        while b"\r\n\r\n" not in self.head:
            data = bytes(await self.stream.receive_some(65536))
            if not data:
                raise EOFError(self.head)
            self.head += data
        self.head, _, rest = self.head.partition(b"\r\n\r\n")
        self.head += b"\r\n\r\n"
        self._take(rest)
        return self.head

    async def accept(self, *more: str, early: bytes = b"", accept: str | None = None) -> None:
        """Read the request and agree, with `more` header lines, and send `early` bytes in the same breath."""
        await self.read_head()
        self._wire = Connection(ConnectionType.SERVER)
        await self.send(accept_head(self.key, *more, accept=accept) + early)

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def send_frame(self, opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bool = False) -> None:
        await self.send(make_frame(opcode, payload, fin=fin, mask=mask))

    async def send_message(self, data: str | bytes) -> None:
        await self.send_frame(1 if isinstance(data, str) else 2, data.encode() if isinstance(data, str) else data)

    def _take(self, data: bytes) -> None:
        self.raw += data
        while (frame := _split_frame(self.raw, self._parsed)) is not None:
            seen, self._parsed = frame
            self.frames.append(seen)
        if self._wire is not None and data and self._wire.state is not ConnectionState.CLOSED:
            self._wire.receive_data(data)
            self._events += self._wire.events()

    async def receive(self) -> Event | None:
        """The next event that wsproto sees, or `None` when the client has ended the stream."""
        while not self._events:
            try:
                data = bytes(await self.stream.receive_some(65536))
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            self._take(data)
        return self._events.pop(0)

    async def receive_close(self) -> tuple[int, str]:
        """The client's Close frame; everything before it is dropped."""
        while (event := await self.receive()) is not None:
            if isinstance(event, CloseConnection):
                return int(event.code), event.reason or ""
        raise EOFError("the client has sent no Close frame")

    async def wait_end(self) -> None:
        """Wait until the client has ended the stream, with whatever comes before."""
        while await self.receive() is not None:
            pass

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Send a Close frame."""
        await self.send_frame(8, code.to_bytes(2) + reason.encode())


def _split_frame(data: bytes, start: int) -> tuple[FrameSeen, int] | None:
    """The frame at `start`, unmasked, and where it ends; `None` if it is not complete."""
    if len(data) < start + 2:
        return None
    masked, length = data[start + 1] >= 0x80, data[start + 1] & 0x7F
    at = start + 2
    if length > 125:
        size = 2 if length == 126 else 8
        length = int.from_bytes(data[at : at + size])
        at += size
    key = data[at : at + 4] if masked else b""
    at += len(key)
    if len(data) < at + length:
        return None
    payload = data[at : at + length]
    if masked:
        payload = bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))
    return FrameSeen(data[start], masked, key, payload), at + length


Script = Callable[[RawPeer], Awaitable[None]]


async def echo(peer: RawPeer) -> None:
    """Agree, send every message back, answer pings and Close, and end the stream."""
    await peer.accept()
    pieces: list[Any] = []
    while (event := await peer.receive()) is not None:
        if isinstance(event, TextMessage | BytesMessage):
            pieces.append(event.data)
            if event.message_finished:
                await peer.send_message(("" if isinstance(event, TextMessage) else b"").join(pieces))
                pieces = []
        elif isinstance(event, Ping):
            await peer.send_frame(10, bytes(event.payload))
        elif isinstance(event, CloseConnection):
            await peer.close(int(event.code))
            return
        else:
            assert isinstance(event, Pong)


@dataclass
class RawServer:
    """A listening raw server.

    Attributes:
      port: where.
      scheme: `"ws"` or `"wss"`.
      host: the name in the URL.
      peers: the connections so far.
    """

    port: int
    scheme: str
    host: str
    peers: list[RawPeer]

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}/"


@asynccontextmanager
async def raw_server(
    *scripts: Script, tls: ssl.SSLContext | None = None, host: str | None = None, patience: float = PATIENCE
) -> AsyncGenerator[RawServer]:
    """Run one of `scripts` for each connection, the last one for all that follow.

    When the block ends, the scripts must end by themselves.
    """
    queue: Sequence[Script] = scripts
    with unwrapped(), trio.fail_after(patience):
        async with trio.open_nursery() as nursery, trio.open_nursery() as connections:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            name = host or ("localhost" if tls else "127.0.0.1")
            server = RawServer(listeners[0].socket.getsockname()[1], "wss" if tls else "ws", name, [])

            async def handle(stream: trio.abc.Stream) -> None:
                if tls is not None:
                    stream = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
                peer = RawPeer(stream)
                server.peers.append(peer)
                script = queue[min(len(server.peers), len(queue)) - 1]
                try:
                    await script(peer)
                    await stream.aclose()
                except (trio.BrokenResourceError, EOFError):
                    pass
                finally:
                    await trio.aclose_forcefully(stream)

            serve = partial(trio.serve_listeners, handle, listeners, handler_nursery=connections)
            await nursery.start(serve)
            await trio.testing.wait_all_tasks_blocked()
            yield server
            nursery.cancel_scope.cancel()
