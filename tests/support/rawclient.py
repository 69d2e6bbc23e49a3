"""A client that writes any bytes and sees every byte, over a real connection, and a running server to point it at."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from support.heads import UPGRADE, HeaderLines, replaced, write_head
from trio_crowws import App, Server
from trio_crowws.testing import make_frame

__all__ = [
    "Answer",
    "Frame",
    "RawClient",
    "assert_serves",
    "echo_app",
    "head",
    "only",
    "open_raw",
    "plain",
    "reset",
    "serving",
    "until",
    "unwrapped",
    "upgrade",
]

PATIENCE = 5
"""Seconds after which a server that says nothing fails the test."""


@dataclass(frozen=True)
class Answer:
    """A complete HTTP response."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes

    def __getitem__(self, name: str) -> str | None:
        """The value of a header that is there once, or `None`."""
        values = self.all(name)
        assert len(values) < 2, f"{name} is there {len(values)} times"
        return values[0] if values else None

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]


@dataclass(frozen=True)
class Frame:
    """One frame of the server."""

    opcode: int
    payload: bytes
    fin: bool = True
    rsv: int = 0


class RawClient:
    """Bytes out, responses and frames in; each wait fails the test after `PATIENCE` seconds."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._data = bytearray()

    async def send(self, *pieces: bytes) -> None:
        """Send pieces one by one, so that the server has read one before it gets the next, if it is idle."""
        for piece in pieces:
            await self.stream.send_all(piece)
            await trio.lowlevel.checkpoint()

    async def send_frame(self, opcode: int, payload: bytes = b"", **how: Any) -> None:
        await self.stream.send_all(make_frame(opcode, payload, **how))

    async def _more(self) -> bool:
        with trio.fail_after(PATIENCE):
            data = await self.stream.receive_some(65536)
        self._data += data
        return bool(data)

    async def _read(self, size: int) -> bytes:
        while len(self._data) < size:
            assert await self._more(), f"the stream ended after {bytes(self._data)!r}"
        data = bytes(self._data[:size])
        del self._data[:size]
        return data

    async def read_answer(self, *, to_head: bool = False) -> Answer:
        """A whole response; all but a 101, a 204 and a 304 have to say how long they are."""
        while b"\r\n\r\n" not in self._data:
            assert await self._more(), f"the stream ended after {bytes(self._data)!r}"
        end = self._data.index(b"\r\n\r\n") + 4
        lines = (await self._read(end)).decode("latin-1").split("\r\n")[:-2]
        version, status, reason = lines[0].split(" ", 2)
        assert version == "HTTP/1.1"
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:])]
        answer = Answer(int(status), reason, headers, b"")
        if answer.status in (101, 204, 304):
            assert answer["Content-Length"] is None
            return answer
        length = answer["Content-Length"]
        assert length is not None
        return answer if to_head else Answer(answer.status, reason, headers, await self._read(int(length)))

    async def read_frame(self) -> Frame:
        first, second = await self._read(2)
        assert second < 0x80, "a server must not mask"
        size = second
        if size >= 126:
            size = int.from_bytes(await self._read(2 if size == 126 else 8))
        return Frame(first & 0x0F, await self._read(size), bool(first & 0x80), first >> 4 & 7)

    async def read_to_end(self) -> bytes:
        """Everything that comes until the server ends the stream; a reset fails the test."""
        while await self._more():
            pass
        data, self._data = bytes(self._data), bytearray()
        return data

    async def refused(self, *, to_head: bool = False) -> Answer:
        """A complete answer that is not a 101, then the end of the stream, and not one byte more."""
        answer = await self.read_answer(to_head=to_head)
        assert answer.status != 101
        connection = answer["Connection"]
        assert connection is not None
        assert "close" in connection.split(", ")
        assert await self.read_to_end() == b""
        return answer

    async def accepted(self) -> Answer:
        answer = await self.read_answer()
        assert answer.status == 101, answer
        return answer

    async def upgrade(self, path: str = "/echo", *, headers: HeaderLines = ()) -> Answer:
        """Ask for an upgrade at `path`, and get it."""
        await self.send(upgrade(path, headers=headers))
        return await self.accepted()

    async def assert_echoes(self, text: bytes = b"ping me back") -> None:
        await self.send_frame(1, text)
        assert await self.read_frame() == Frame(1, text)

    async def close(self, code: int = 1000) -> Frame:
        """The closing handshake and the end of the stream; returns the server's Close frame."""
        await self.send_frame(8, struct.pack("!H", code))
        frame = await self.read_frame()
        assert frame.opcode == 8, frame
        assert await self.read_to_end() == b""
        return frame


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait until `condition()` is true, where there is no event to wait for: of another process, or of a log."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 -- see above
            await trio.sleep(0.01)


def head(path: str, *, lines: HeaderLines, method: str = "GET", version: str = "HTTP/1.1") -> bytes:
    """The bytes of a request head."""
    return write_head(lines, f"{method} {path} {version}")


def upgrade(
    path: str = "/echo", *, headers: HeaderLines = (), without: str = "", method: str = "GET", version: str = "HTTP/1.1"
) -> bytes:
    """A request for an upgrade that is right but for what is asked for."""
    lines = [*replaced(without), *headers] if without else [*UPGRADE.items(), *headers]
    return head(path, lines=lines, method=method, version=version)


def plain(path: str, *, method: str = "GET") -> bytes:
    """A request for a page."""
    return head(path, lines=[("Host", "example.org")], method=method)


def only(values: list[str]) -> str:
    """The one value of a header."""
    assert len(values) == 1
    return values[0]


@asynccontextmanager
async def serving(app: App, host: str | None = "127.0.0.1", port: int = 0, **how: Any) -> AsyncGenerator[Server]:
    """Serve `app` for the length of the block, at whose end the server must go down in an orderly way."""
    with unwrapped():
        async with trio.open_nursery() as nursery:
            server: Server = await nursery.start(partial(app.serve, host, port, **how))
            yield server
            await server.aclose()


@contextmanager
def unwrapped() -> Generator[None]:
    """Raise what is alone in the group of a nursery as it is, so that a failing test shows its own line."""
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            error = group.exceptions[0]
            raise error from error.__cause__
        raise


@asynccontextmanager
async def open_raw(where: Server | int | str) -> AsyncGenerator[RawClient]:
    """Connect to a server, a port of this machine, or a Unix socket."""
    stream: trio.SocketStream
    if isinstance(where, str):
        stream = await trio.open_unix_socket(where)
    else:
        stream = await trio.open_tcp_stream("127.0.0.1", where if isinstance(where, int) else where.port)
    async with stream:
        yield RawClient(stream)


async def assert_serves(server: Server, path: str = "/echo") -> None:
    """A new client is served."""
    async with open_raw(server) as client:
        await client.upgrade(path)
        await client.assert_echoes()
        await client.close()


def reset(client: RawClient) -> None:
    """Break the connection off, so that the server sees a reset."""
    assert isinstance(client.stream, trio.SocketStream)
    client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.stream.socket.close()


def echo_app(routes: Mapping[str, Mapping[str, Any]] | None = None, **options: Any) -> App:
    """An application that echoes at `/echo`, and at each of `routes` with its options."""
    app = App(**options)
    for path, given in {"/echo": {}, **(routes or {})}.items():

        @app.websocket(path, **given)
        async def echo(conn: Any) -> None:
            async for message in conn:
                await conn.send(message)

    return app
