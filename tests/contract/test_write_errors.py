"""Writing fails, and what the peer has sent before is still there to be read: it counts, and only then the loss."""

from __future__ import annotations

import os
import socket
import struct
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from support.handtls import TLSByHand
from support.rawclient import RawClient
from support.rawserver import RawPeer, raw_server
from support.servers import STYLES, Kind, Recorder, Site, Style, TapStream, noise, serving, shared_tls, until
from trio_crowws import App, CloseFrame, Connection, ConnectionClosed, ConnectionLost, ProtocolError, connect
from trio_crowws._transport.engine import Engine
from trio_crowws.testing import make_frame

LAST = make_frame(1, b"quota exceeded") + make_frame(8, struct.pack("!H", 1008) + b"quota")
CLOSE = CloseFrame(1008, "quota")
LARGE = noise(8_000_000)
"""More than the buffers of any kernel take."""


@pytest.fixture(params=["epoll", "streams"], autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Sockets by the poller, and where there is none."""
    if request.param == "streams":
        monkeypatch.setattr("trio_crowws._server.Engine", partial(Engine, use_epoll=False))
        monkeypatch.setattr("trio_crowws._client.running.Engine", partial(Engine, use_epoll=False))
    return str(request.param)


def leave(sock: Any, data: bytes) -> None:
    """Send `data` and break off, in one step of the task: nobody can read in between."""
    assert not data or os.write(sock.fileno(), data) == len(data)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Leaver:
    """A peer that can leave so that the next write to it fails."""

    def __init__(self, stream: trio.SocketStream | TLSByHand) -> None:
        self.client = RawClient(stream)
        self._stream = stream

    @classmethod
    async def connect(cls, site: Site) -> Leaver:
        if site.kind == "tls":
            return cls(await TLSByHand.connect(site.server.port))
        stream = await site.open_stream()
        assert isinstance(stream, trio.SocketStream)
        return cls(stream)

    def leave(self, data: bytes) -> None:
        if isinstance(self._stream, TLSByHand):
            leave(self._stream.stream.socket, self._stream.seal(data) if data else b"")
        else:
            leave(self._stream.socket, data)


async def listen(conn: Connection, message: object) -> None:
    """Take a message, and say nothing to that."""


KINDS: tuple[Kind, ...] = ("tcp", "tls", "unix")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("style", STYLES)
async def test_the_last_words_of_a_peer_that_is_gone(kind: Kind, style: Style) -> None:
    """The message and the Close frame that came before the reset count, though a write finds out about it first."""
    app = App()
    recorder = Recorder(app, style=style)
    async with serving(app, kind) as site:
        peer = await Leaver.connect(site)
        await peer.client.upgrade("/")
        await recorder.wait("open")
        await trio.testing.wait_all_tasks_blocked(0.005)
        peer.leave(LAST)
        recorder.conn.send_nowait("who is there?")
        recorder.conn._transport.push()
        await recorder.wait("close")
    assert recorder.values("message") == ["quota exceeded"]
    recorder.check()
    assert recorder.info.received == CLOSE
    assert (recorder.info.code, recorder.info.reason) == (1008, "quota")
    assert recorder.info.initiator == "remote"


@pytest.mark.parametrize("kind", KINDS)
async def test_no_last_words(kind: Kind, engine: str) -> None:
    """Where a peer is gone without a word, that is what is told; what it has sent before is delivered."""
    app = App()
    recorder = Recorder(app, hooks={"message": listen})
    async with serving(app, kind) as site:
        peer = await Leaver.connect(site)
        await peer.client.upgrade("/")
        await recorder.wait("open")
        peer.leave(make_frame(1, b"one") + make_frame(1, b"two"))
        recorder.conn.send_nowait("who is there?")
        recorder.conn._transport.push()
        await recorder.check_end(1006, clean=False, initiator="remote", sent=None, received=None, error=ConnectionLost)
    assert recorder.values("message") == ["one", "two"]
    assert isinstance(recorder.info.error, ConnectionLost)
    assert engine == "streams" or recorder.info.error.__cause__ is not None  # there, a reader may be the first to see


@pytest.mark.parametrize("kind", KINDS)
async def test_a_fault_among_the_last_words(kind: Kind) -> None:
    """A frame that breaks the protocol is what ended the connection, also where nothing can be said to that."""
    app = App()
    recorder = Recorder(app)
    async with serving(app, kind) as site:
        peer = await Leaver.connect(site)
        await peer.client.upgrade("/")
        await recorder.wait("open")
        peer.leave(make_frame(3))
        recorder.conn.send_nowait("who is there?")
        recorder.conn._transport.push()
        await recorder.wait("close")
    recorder.check()
    assert recorder.info.received is None
    assert not recorder.info.clean
    assert type(recorder.info.error) is ProtocolError


@pytest.mark.parametrize("kind", KINDS)
async def test_a_task_that_waits_in_send(kind: Kind) -> None:
    """Whoever waits to send is told, with the peer's reasons; so is who sends afterwards."""
    app = App()
    raised: list[ConnectionClosed] = []

    async def upload(conn: Connection) -> None:
        for data in (LARGE, "waits", "more"):
            try:
                await conn.send(data)
            except ConnectionClosed as error:
                raised.append(error)

    recorder = Recorder(app, send_limit=2 * len(LARGE))
    async with serving(app, kind) as site, trio.open_nursery() as nursery:
        peer = await Leaver.connect(site)
        await peer.client.upgrade("/")
        await recorder.wait("open")
        nursery.start_soon(upload, recorder.conn)
        await until(lambda: bool(recorder.conn._waiting))
        await trio.testing.wait_all_tasks_blocked(0.005)
        peer.leave(LAST)
        await recorder.wait("close")
    assert [error.info.code for error in raised] == [1008, 1008]
    assert recorder.values("message") == ["quota exceeded"]
    assert recorder.info.received == CLOSE


@pytest.mark.parametrize("kind", KINDS)
async def test_a_send_before_the_last_words_were_read(kind: Kind, engine: str) -> None:
    """A `send` that comes when writing has failed, but not all was read, waits for the peer's reasons."""
    app = App()
    recorder = Recorder(app)
    async with serving(app, kind) as site:
        peer = await Leaver.connect(site)
        await peer.client.upgrade("/")
        await recorder.wait("open")
        await trio.testing.wait_all_tasks_blocked(0.005)
        peer.leave(LAST)
        recorder.conn.send_nowait("who is there?")
        recorder.conn._transport.push()
        assert recorder.conn.is_open is (engine == "streams")
        with pytest.raises(ConnectionClosed) as caught:  # noqa: PT012 -- where a stream is pumped, not the first one
            while True:
                await recorder.conn.send("hello")
                await trio.lowlevel.checkpoint()
        await recorder.wait("close")
    assert caught.value.info.code == 1008


# Where the handler is busy, so that nothing is read


MANY = [f"{number}" for number in range(300)]
BURST = b"".join(make_frame(1, text.encode()) for text in MANY)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_busy_handler_takes_what_is_there(kind: Kind) -> None:
    """While the handler is busy nothing more is read than `receive_buffer`; then it gets the rest, and then the end."""
    app = App()
    release = trio.Event()

    async def work(conn: Connection, message: object) -> None:
        await release.wait()

    recorder = Recorder(app, hooks={"message": work}, receive_buffer=200)
    async with serving(app, kind) as site:
        peer = await Leaver.connect(site)
        await peer.client.upgrade("/")
        await peer.client.stream.send_all(BURST)
        await recorder.wait("message")
        conn = recorder.conn
        await until(lambda: conn._transport.paused)
        peer.leave(LAST)
        conn.send_nowait("who is there?")
        conn._transport.push()
        await until(lambda: not conn.is_open)
        with pytest.raises(ConnectionClosed):  # at once: it may be the handler who asks
            await conn.send("hello")
        release.set()
        await recorder.wait("close")
    assert recorder.values("message") == [*MANY, "quota exceeded"]
    assert recorder.info.received == CLOSE


@pytest.mark.parametrize("kind", KINDS)
async def test_a_busy_handler_is_not_waited_for_for_ever(kind: Kind) -> None:
    """What is not read within `close_timeout` is lost: a handler may be busy for long, and the memory is needed."""
    app = App()
    release = trio.Event()

    async def work(conn: Connection, message: object) -> None:
        await release.wait()

    recorder = Recorder(app, hooks={"message": work}, receive_buffer=200, close_timeout=0.05)
    async with serving(app, kind) as site:
        peer = await Leaver.connect(site)
        await peer.client.upgrade("/")
        await peer.client.stream.send_all(BURST)
        await recorder.wait("message")
        conn = recorder.conn
        await until(lambda: conn._transport.paused)
        peer.leave(LAST)
        conn.send_nowait("who is there?")
        conn._transport.push()
        assert (await conn.wait_closed()).code == 1006
        await until(lambda: not site.server._engine.transports)
        release.set()
        await recorder.wait("close")
    assert len(recorder.values("message")) < len(MANY)
    assert type(recorder.info.error) is ConnectionLost


@pytest.mark.parametrize("how", ["close", "return", "raise", "abort"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_handler_that_has_had_enough(kind: Kind, how: str) -> None:
    """A handler that ends the connection meanwhile ends it; the Close frame in what was not read yet still counts."""
    app = App()
    release = trio.Event()

    async def session(conn: Connection) -> None:
        await conn.receive()
        await release.wait()
        if how == "close":
            await conn.close(4000)
        elif how == "abort":
            conn.abort()
        elif how == "raise":
            raise RuntimeError("a fault of the handler's own")

    recorder = Recorder(app, style="session", hooks={"open": session}, receive_buffer=200, close_timeout=2)
    async with serving(app, kind) as site:
        peer = await Leaver.connect(site)
        await peer.client.upgrade("/")
        await recorder.wait("open")
        await peer.client.stream.send_all(BURST)
        conn = recorder.conn
        await until(lambda: conn._transport.paused)
        peer.leave(LAST)
        conn.send_nowait("who is there?")
        conn._transport.push()
        await until(lambda: not conn.is_open)
        release.set()
        await recorder.wait("close")
    recorder.check()
    assert recorder.info.sent is None
    assert recorder.info.received == (None if how == "abort" else CLOSE)
    assert isinstance(recorder.info.error, RuntimeError) is (how == "raise")


async def test_a_peer_that_reads_no_more_and_writes_on() -> None:
    """A peer of a Unix socket that has ended its reading alone may write on for `close_timeout`, and no longer."""
    app = App()
    recorder = Recorder(app, close_timeout=0.1)
    async with serving(app, "unix") as site:
        stream = await site.open_stream()
        async with stream:
            assert isinstance(stream, trio.SocketStream)
            await RawClient(stream).upgrade("/")
            await recorder.wait("open")
            stream.socket.shutdown(socket.SHUT_RD)
            with pytest.raises(trio.BrokenResourceError):  # noqa: PT012 -- when, is for the server to say
                while True:
                    await stream.send_all(make_frame(1, b"on and on"))
                    await trio.sleep(0.001)
        await recorder.wait("close")
    assert type(recorder.info.error) is ConnectionLost
    assert recorder.values("message")


class Mute(TapStream):
    """A stream that takes nothing any more, but still has what came in."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if len(self.writes) > 0:
            raise trio.BrokenResourceError("nobody is there")
        await super().send_all(data)


async def test_a_stream_that_takes_nothing_more() -> None:
    """The same holds for streams of the application's own."""
    app = App()
    recorder = Recorder(app)
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.serve_stream, Mute(far))
        client = RawClient(near)
        await client.upgrade("/")
        await recorder.wait("open")
        recorder.conn.send_nowait("who is there?")
        await trio.testing.wait_all_tasks_blocked()
        assert not recorder.conn.is_open
        await near.send_all(LAST)
        await recorder.wait("close")
    assert recorder.values("message") == ["quota exceeded"]
    assert recorder.info.received == CLOSE


@pytest.mark.parametrize("kind", KINDS)
async def test_a_peer_that_has_said_goodbye_and_is_gone(kind: Kind) -> None:
    """Where all that the peer had to say was read, a write that fails ends the connection at once."""
    app = App()
    release = trio.Event()

    async def work(conn: Connection, message: object) -> None:
        await release.wait()

    recorder = Recorder(app, hooks={"message": work})
    async with serving(app, kind) as site:
        peer = await Leaver.connect(site)
        await peer.client.upgrade("/")
        await recorder.wait("open")
        await peer.client.stream.send_all(LAST)
        await until(lambda: not recorder.conn.is_open)
        peer.leave(b"")
        recorder.conn.send_nowait("who is there?")
        recorder.conn._transport.push()
        await recorder.conn.wait_closed()
        release.set()
        await recorder.wait("close")
    assert recorder.info.received == CLOSE
    assert recorder.info.error is None


@pytest.mark.parametrize("busy", [False, True])
async def test_a_stream_of_trio_over_tls(busy: bool) -> None:
    """The same holds for TLS that the application has made of Trio's streams, however many records are left."""
    app = App()
    release = trio.Event()

    async def work(conn: Connection, message: object) -> None:
        if busy:
            await release.wait()

    recorder = Recorder(app, hooks={"message": work}, receive_buffer=200)
    [below] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        over = trio.SSLListener(below, shared_tls().server, https_compatible=True)
        server = await nursery.start(app.serve_listeners, [over])
        tls = await TLSByHand.connect(below.socket.getsockname()[1])
        await RawClient(tls).upgrade("/")
        await recorder.wait("open")
        if busy:
            await tls.send_all(BURST)
            await until(lambda: recorder.conn._transport.paused)
        await trio.testing.wait_all_tasks_blocked(0.005)
        records = b"".join(tls.seal(make_frame(1, text.encode())) for text in MANY) + tls.seal(LAST)
        leave(tls.stream.socket, records)
        recorder.conn.send_nowait("who is there?")
        recorder.conn._transport.push()
        await until(lambda: not recorder.conn.is_open)
        release.set()
        await recorder.wait("close")
        await server.aclose()
    assert recorder.values("message") == [*(MANY if busy else []), *MANY, "quota exceeded"]
    assert recorder.info.received == CLOSE


async def test_trio_s_tls_is_left_as_it_was() -> None:
    """Streams over TLS, also over several layers of it, show their sockets meanwhile, and are whole afterwards."""
    app = App()
    recorder = Recorder(app, hooks={"message": listen})
    near, far = trio.testing.memory_stream_pair()
    outer = trio.SSLStream(far, shared_tls().server, server_side=True, https_compatible=True)
    inner = trio.SSLStream(outer, shared_tls().server, server_side=True, https_compatible=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.serve_stream, inner)
        lower = trio.SSLStream(near, shared_tls().client, server_hostname="localhost", https_compatible=True)
        upper = trio.SSLStream(lower, shared_tls().client, server_hostname="localhost", https_compatible=True)
        client = RawClient(upper)
        await client.upgrade("/")
        await recorder.wait("open")
        assert inner.transport_stream is outer
        assert outer.transport_stream.send_stream is far.send_stream
        await outer.transport_stream.wait_send_all_might_not_block()
        await client.close()
    assert outer.transport_stream is far


# A client


async def test_a_server_that_refuses_an_upload() -> None:
    """A client sees the message and the code with which a server has refused an upload, and not the reset behind it."""
    frames = make_frame(1, b"quota exceeded", mask=False)
    frames += make_frame(8, struct.pack("!H", 1008) + b"quota", mask=False)
    peers: list[RawPeer] = []

    async def refuse(peer: RawPeer) -> None:
        await peer.accept()
        peers.append(peer)
        await trio.sleep_forever()

    async with raw_server(refuse) as server, connect(server.url) as conn:
        await until(lambda: bool(peers))
        await trio.testing.wait_all_tasks_blocked(0.005)
        [peer] = peers
        assert isinstance(peer.stream, trio.SocketStream)
        leave(peer.stream.socket, frames)
        with pytest.raises(ConnectionClosed) as caught:  # noqa: PT012 -- the kernel may have taken the first
            while True:
                await conn.send(b"u" * 100_000)
        assert await conn.receive() == "quota exceeded"
        with pytest.raises(ConnectionClosed):
            await conn.receive()
    assert caught.value.info.code == 1008
    assert conn.close_info is not None
    assert (conn.close_info.code, conn.close_info.reason) == (1008, "quota")
