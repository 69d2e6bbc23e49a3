"""Applications on every kind of transport, and a record of what their callbacks were told.

    recorder = Recorder(app)
    async with serving(app, "tls") as site, site.connect() as peer:
        await peer.send("hello")

The same test runs over TCP, TLS, a Unix socket and memory streams, and over memory streams where both sides compress
every message; `Site` hides what differs. Memory streams work with Trio's `MockClock`, the others need the real one.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import random
import re
import socket
import struct
import tempfile
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import trio
import trio.testing
from wsproto.connection import Connection as Wire
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Message, TextMessage
from wsproto.extensions import PerMessageDeflate

from support.certificates import TLS, make_tls
from support.rawclient import unwrapped
from trio_crowws import App, CloseFrame, CloseInfo, Connection, Deflate, Handler, Request, Server, State
from trio_crowws.testing import FaultyStream, Peer, shake_hands

__all__ = [
    "KINDS",
    "STYLES",
    "Kind",
    "MemoryListener",
    "Recorder",
    "Site",
    "Style",
    "TapStream",
    "break_off",
    "decode",
    "end_stream",
    "messages_of",
    "noise",
    "serving",
    "shared_tls",
    "until",
]

Kind = Literal["tcp", "tls", "unix", "memory", "compressed"]
KINDS: tuple[Kind, ...] = ("tcp", "tls", "unix", "memory", "compressed")

EVERYTHING = Deflate(threshold=0, server_no_context_takeover=False)
"""Compresses every message of both sides, each with a context: the kind in which most can go wrong."""

Style = Literal["session", "async", "sync", "class", "object"]
STYLES: tuple[Style, ...] = ("session", "async", "sync", "class", "object")

PATIENCE = 10
"""Seconds that a test on the real clock may take before it fails."""


@functools.cache
def shared_tls() -> TLS:
    with tempfile.TemporaryDirectory() as folder:
        return make_tls(Path(folder))


def noise(size: int) -> bytes:
    """Bytes that compression does not make fewer, for where it matters how many are queued."""
    return random.randbytes(size)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what no event tells."""
    while not condition():  # noqa: ASYNC110 -- there is no event
        await trio.sleep(0.0005)


# Streams


class TapStream(trio.abc.HalfCloseableStream):
    """A stream around another one that keeps what is sent, call by call."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.stream = stream
        self.writes: list[bytes] = []

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        await self.stream.send_eof()

    async def aclose(self) -> None:
        await self.stream.aclose()


class MemoryListener(trio.abc.Listener[FaultyStream]):
    """Accepts memory streams.

    Attributes:
      faults: the server's end of the stream that was made last.
      tap: what the server sends on that stream.
    """

    faults: FaultyStream
    tap: TapStream

    def __init__(self, *, lockstep: bool = False) -> None:
        self._make = trio.testing.lockstep_stream_pair if lockstep else trio.testing.memory_stream_pair
        self._queue, self._arrivals = trio.open_memory_channel[FaultyStream](math.inf)
        self._closed = False

    def connect(self) -> trio.abc.HalfCloseableStream:
        near, far = self._make()
        self.tap = TapStream(far)
        self.faults = FaultyStream(self.tap)
        self._queue.send_nowait(self.faults)
        return near

    async def accept(self) -> FaultyStream:
        return await self._arrivals.receive()

    async def aclose(self) -> None:
        """As the kernel does: whoever was not accepted yet finds the stream closed."""
        with trio.CancelScope(shield=True):
            while not self._closed and self._queue.statistics().current_buffer_used:
                await trio.aclose_forcefully(self._arrivals.receive_nowait())
        self._closed = True
        self._arrivals.close()
        await trio.lowlevel.checkpoint()


async def end_stream(peer: Peer) -> None:
    """End the peer's direction without a Close frame; over TLS without its alert, either."""
    stream = peer.stream.transport_stream if isinstance(peer.stream, trio.SSLStream) else peer.stream
    assert isinstance(stream, trio.abc.HalfCloseableStream)
    await stream.send_eof()


async def break_off(peer: Peer) -> None:
    """Break the connection as a crash of the peer's machine would: over TCP, with a reset."""
    if peer.faults is not None:
        await peer.faults.break_off()
        return
    stream = peer.stream.transport_stream if isinstance(peer.stream, trio.SSLStream) else peer.stream
    assert isinstance(stream, trio.SocketStream)
    if stream.socket.family != socket.AF_UNIX:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


def decode(data: bytes) -> list[Event]:
    """What plain wsproto makes of what a server has sent after its 101; the test fails where it finds a fault."""
    head, separator, frames = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 "), head
    assert separator
    agreed = re.search(rb"Sec-WebSocket-Extensions: (.*)", head)
    deflate = PerMessageDeflate()
    if agreed is not None:
        deflate.finalize(agreed[1].decode())
    wire = Wire(ConnectionType.CLIENT, None if agreed is None else [deflate], trailing_data=frames)
    events = list(wire.events())
    failed = [event for event in events if isinstance(event, CloseConnection)]
    assert not failed or wire.state is ConnectionState.REMOTE_CLOSING, failed
    return events


def messages_of(events: Sequence[Event]) -> list[str | bytes]:
    """The whole messages among `events`."""
    messages: list[str | bytes] = []
    pieces: list[Any] = []
    for event in events:
        if isinstance(event, Message):
            assert isinstance(event, TextMessage | BytesMessage)
            pieces.append(event.data)
            if event.message_finished:
                messages.append("".join(pieces) if isinstance(event, TextMessage) else b"".join(pieces))
                pieces = []
    return messages


# Servers


class Site:
    """A running application.

    Attributes:
      kind: of its transports; "memory" for "compressed", too.
      compression: what its peers offer.
      server: the `Server`.
      listener: with memory streams, what accepts them.
      scope: around `serve`; cancelling it is cancelling the server.
      ended: set when `serve` has returned or raised.
    """

    def __init__(
        self, kind: Kind, server: Server, listener: MemoryListener, scope: trio.CancelScope, ended: trio.Event
    ) -> None:
        self.kind: Kind = "memory" if kind == "compressed" else kind
        self.compression = EVERYTHING if kind == "compressed" else None
        self.server = server
        self.listener = listener
        self.scope = scope
        self.ended = ended

    async def open_stream(self) -> trio.abc.Stream:
        """A stream to the server; with TLS, before its handshake."""
        if self.kind == "memory":
            return self.listener.connect()
        if self.kind == "unix":
            [path] = self.server.addresses
            assert isinstance(path, str)
            return await trio.open_unix_socket(path)
        plain = await trio.open_tcp_stream("127.0.0.1", self.server.port)
        if self.kind == "tls":
            # As browsers do: no alert is expected or sent at the end.
            return trio.SSLStream(plain, shared_tls().client, server_hostname="localhost", https_compatible=True)
        return plain

    @asynccontextmanager
    async def connect(
        self,
        path: str = "/",
        *,
        headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        subprotocols: Sequence[str] = (),
    ) -> AsyncGenerator[Peer]:
        """A peer whose opening handshake is done. Leaving the block drops its stream."""
        stream = await self.open_stream()
        faults = self.listener.faults if self.kind == "memory" else None
        try:
            peer = await shake_hands(
                stream,
                path,
                headers=headers,
                subprotocols=subprotocols,
                compression=self.compression,
                faults=faults,
            )
            assert (peer.compression is None) is (self.compression is None)
            yield peer
        finally:
            if faults is not None:
                faults.flow()
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def serving(
    app: App, kind: Kind = "memory", *, lockstep: bool = False, patience: float | None = None
) -> AsyncGenerator[Site]:
    """Serve `app` on one kind of transport; leaving the block shuts it down and waits until `serve` has returned.

    Args:
      app: the application.
      kind: of the transports; with "compressed" every route gets the option.
      lockstep: with memory streams, a sender waits for its reader.
      patience: seconds for all of it; by default `PATIENCE`, and without a real clock very many.
    """
    if patience is None:
        patience = 1e6 if isinstance(trio.lowlevel.current_clock(), trio.testing.MockClock) else PATIENCE
    if kind == "compressed":
        for route in app.routes:
            route.options = dataclasses.replace(route.options, compression=EVERYTHING)
    listener = MemoryListener(lockstep=lockstep)
    scope, ended = trio.CancelScope(), trio.Event()
    with unwrapped(), tempfile.TemporaryDirectory() as folder, trio.fail_after(patience):
        serve = _ways_to_serve(app, kind, listener, folder)

        async def run(*, task_status: trio.TaskStatus[Server]) -> None:
            try:
                with scope:
                    await serve(task_status=task_status)
            finally:
                ended.set()

        async with trio.open_nursery() as nursery:
            site = Site(kind, await nursery.start(run), listener, scope, ended)
            try:
                yield site
                assert site.server.closing or not ended.is_set()
                await site.server.aclose()
            except BaseException:
                scope.cancel()
                raise


def _ways_to_serve(app: App, kind: Kind, listener: MemoryListener, folder: str) -> Callable[..., Any]:
    if kind in ("memory", "compressed"):
        return functools.partial(app.serve_listeners, [listener])
    if kind == "unix":
        return functools.partial(app.serve, unix=Path(folder, "socket"))
    return functools.partial(app.serve, "127.0.0.1", 0, ssl_context=shared_tls().server if kind == "tls" else None)


# Callbacks


class Note(NamedTuple):
    """One call of a callback."""

    name: str
    conn: Connection
    value: Any


class Recorder:
    """A route whose callbacks write down what they are told; messages are echoed.

    Args:
      app: where the route is made.
      path: of the route.
      style: how the handler is written. In "class" the methods are async, in "object" they are plain. In "async" and
        "class" there is an `on_accept` in any case, in the others if there is a hook for it.
      hooks: what else to do, by the name of the callback: `open=f` calls `f(conn)`, `message=f` calls
        `f(conn, message)` in place of echoing. In plain callbacks the hooks are plain, too.
      options: of the route.

    Attributes:
      route: the route.
      requests: what `on_accept` was asked about.
      notes: the calls, in order.
    """

    def __init__(
        self,
        app: App,
        path: str = "/",
        style: Style = "async",
        *,
        hooks: Mapping[str, Callable[..., Any]] | None = None,
        **options: Any,
    ) -> None:
        self.requests: list[Request] = []
        self.notes: list[Note] = []
        self._changed = trio.Event()
        plain = style in ("sync", "object")
        self._hooks: dict[str, Callable[..., Any]] = {"message": _echo_plain if plain else _echo, **(hooks or {})}
        self.route = app.websocket(path, **options)
        functions = self._plain_callbacks() if plain else self._async_callbacks()
        if style not in ("async", "class") and "accept" not in self._hooks:
            del functions["on_accept"]  # a request that nobody is asked about takes a shorter way
        if style in ("class", "object"):
            methods = {name: _as_method(function) for name, function in functions.items()}
            handler = type("Recording", (Handler,), methods)
            self.route(handler if style == "class" else handler())
            return
        if style == "session":
            del functions["on_open"], functions["on_message"]
            self.route(self._session)
        for name, function in functions.items():
            getattr(self.route, name)(function)

    def _names(self) -> list[str]:
        return ["open", "message", "error", "close", *(name for name in ("ping", "pong") if name in self._hooks)]

    def _async_callbacks(self) -> dict[str, Callable[..., Any]]:
        def make(name: str) -> Callable[..., Any]:
            async def told(conn: Connection, *value: Any) -> None:
                await self._call(name, conn, *value)

            return told

        async def accept(request: Request) -> Any:
            result = self._accept(request)
            return await result if inspect.isawaitable(result) else result

        return {"on_accept": accept, **{f"on_{name}": make(name) for name in self._names()}}

    def _plain_callbacks(self) -> dict[str, Callable[..., Any]]:
        def make(name: str) -> Callable[..., Any]:
            return lambda conn, *value: self._note(name, conn, *value)

        return {"on_accept": self._accept, **{f"on_{name}": make(name) for name in self._names()}}

    async def _session(self, conn: Connection) -> None:
        await self._call("open", conn)
        async for message in conn:
            await self._call("message", conn, message)

    def _accept(self, request: Request) -> Any:
        self.requests.append(request)
        hook = self._hooks.get("accept")
        return None if hook is None else hook(request)

    async def _call(self, name: str, conn: Connection, *value: Any) -> None:
        result = self._note(name, conn, *value)
        if inspect.isawaitable(result):
            await result

    def _note(self, name: str, conn: Connection, *value: Any) -> Any:
        self.notes.append(Note(name, conn, value[0] if value else None))
        self._changed.set()
        self._changed = trio.Event()
        hook = self._hooks.get(name)
        return None if hook is None else hook(conn, *value)

    # What was recorded

    @property
    def conn(self) -> Connection:
        """The only connection."""
        [conn] = {note.conn for note in self.notes}
        return conn

    @property
    def names(self) -> list[str]:
        """The callbacks that ran, in order."""
        return [note.name for note in self.notes]

    def values(self, name: str) -> list[Any]:
        """What the callback `name` was given, call by call."""
        return [note.value for note in self.notes if note.name == name]

    @property
    def info(self) -> CloseInfo:
        """What `on_close` was given, the only time that it ran."""
        [info] = self.values("close")
        assert isinstance(info, CloseInfo)
        return info

    async def wait(self, name: str, count: int = 1) -> None:
        """Wait until the callback `name` has run `count` times."""
        while len(self.values(name)) < count:
            await self._changed.wait()

    def check(self) -> None:
        """Every connection has its `on_open` first, its `on_close` last and once, and `on_error` before, if ever."""
        conns = {note.conn for note in self.notes}
        for conn in conns:
            notes = [note for note in self.notes if note.conn is conn]
            names = [note.name for note in notes]
            assert names[0] == "open", names
            assert names[-1] == "close", names
            assert [names.count(name) for name in ("open", "close")] == [1, 1], names
            info: CloseInfo = notes[-1].value
            assert conn.close_info is info
            assert conn.state is State.CLOSED
            assert ("error" in names) is (info.error is not None), names
            if info.error is not None:
                assert notes[-2].name == "error", names
                assert names.count("error") == 1
                assert notes[-2].value is info.error

    async def check_end(
        self,
        code: int,
        reason: str = "",
        *,
        clean: bool,
        initiator: Literal["local", "remote"],
        sent: CloseFrame | int | None,
        received: CloseFrame | int | None,
        error: type[Exception] | None,
    ) -> CloseInfo:
        """Wait for the end of the only connection; it is exactly this one. Plain codes are frames without a reason."""
        await self.wait("close")
        self.check()
        info = self.info
        frames = [CloseFrame(frame) if isinstance(frame, int) else frame for frame in (sent, received)]
        assert info == CloseInfo(code, reason, clean, initiator, frames[0], frames[1], info.error)
        assert type(info.error) is (error or type(None)), repr(info.error)
        return info


async def _echo(conn: Connection, message: str | bytes) -> None:
    await conn.send(message)


def _echo_plain(conn: Connection, message: str | bytes) -> None:
    conn.send_nowait(message)


def _as_method(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as a method, which gets the handler object first."""
    if inspect.iscoroutinefunction(function):

        async def method(_: Handler, *arguments: Any) -> Any:
            return await function(*arguments)

        return method
    return lambda _, *arguments: function(*arguments)
