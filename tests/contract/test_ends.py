"""The end of a stream behind data: what came before it is delivered first, over TLS as over TCP."""

from __future__ import annotations

import re
import ssl
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from support.handtls import TLSByHand, broken
from support.rawclient import RawClient, plain, upgrade
from support.rawserver import accept_head
from support.servers import STYLES, Kind, Recorder, Site, Style, serving, shared_tls, until
from trio_crowws import App, CloseFrame, Connection, ConnectionLost, connect
from trio_crowws._transport.engine import Engine
from trio_crowws.testing import make_frame

MANY = [f"{number}" for number in range(300)]
"""More messages than are worked on in one turn."""

BURST = b"".join(make_frame(1, text.encode()) for text in MANY)
GOODBYE = make_frame(8, struct.pack("!H", 4000) + b"enough")


@pytest.fixture(params=["epoll", "streams"], autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Sockets by the poller, and where there is none."""
    if request.param == "streams":
        monkeypatch.setattr("trio_crowws._server.Engine", partial(Engine, use_epoll=False))
        monkeypatch.setattr("trio_crowws._client.running.Engine", partial(Engine, use_epoll=False))
    return str(request.param)


class Ender:
    """A peer that can send data and the end of its stream in one segment."""

    def __init__(self, site: Site, stream: trio.abc.HalfCloseableStream) -> None:
        self._site = site
        self.stream = stream
        self.client = RawClient(stream)

    async def send_and_end(self, data: bytes) -> None:
        if isinstance(self.stream, TLSByHand):
            await self.stream.send_records(self.stream.seal(data) + self.stream.farewell())
        else:
            await self.stream.send_all(data)
            await self.stream.send_eof()


@asynccontextmanager
async def ender(site: Site) -> AsyncGenerator[Ender]:
    if site.kind == "tls":
        stream: trio.abc.Stream = await TLSByHand.connect(site.server.port)
    else:
        stream = await site.open_stream()
    assert isinstance(stream, trio.abc.HalfCloseableStream)
    try:
        yield Ender(site, stream)
    finally:
        await trio.aclose_forcefully(stream)


ENDS: tuple[Kind, ...] = ("tcp", "tls", "unix", "memory")


@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("style", STYLES)
async def test_a_close_frame_and_the_end_behind_many_messages(kind: Kind, style: Style) -> None:
    """All messages are delivered, and then the Close frame counts, though the end of the stream came with it."""
    app = App()
    recorder = Recorder(app, style=style)
    async with serving(app, kind) as site, ender(site) as peer:
        await peer.client.upgrade("/")
        await peer.send_and_end(BURST + GOODBYE)
        await recorder.wait("close")
        assert recorder.values("message") == MANY
        close = CloseFrame(4000, "enough")
        assert recorder.info.received == close
        assert recorder.info.error is None


@pytest.mark.parametrize("kind", ENDS)
async def test_the_end_alone_behind_many_messages(kind: Kind) -> None:
    """All messages are delivered and answered before the end of the stream is told, which had no Close frame."""
    app = App()
    recorder = Recorder(app)
    async with serving(app, kind) as site, ender(site) as peer:
        await peer.client.upgrade("/")
        await peer.send_and_end(BURST)
        for text in MANY:
            assert (await peer.client.read_frame()).payload == text.encode()
        await recorder.wait("close")
    assert recorder.values("message") == MANY
    assert (recorder.info.code, type(recorder.info.error)) == (1006, ConnectionLost)


@pytest.mark.parametrize("kind", ENDS)
async def test_a_page_for_a_peer_that_has_ended_its_side(kind: Kind) -> None:
    """A request whose peer has ended its direction with it gets its answer, whether that takes time or not."""
    app = App()

    @app.http("/slow")
    async def slow(request: object) -> str:
        await trio.sleep(0.02)
        return "here you are"

    async with serving(app, kind) as site, ender(site) as peer:
        await peer.send_and_end(plain("/slow"))
        assert (await peer.client.read_answer()).body == b"here you are"


@pytest.mark.parametrize("kind", ENDS)
async def test_an_upgrade_for_a_peer_that_has_ended_its_side(kind: Kind) -> None:
    """A peer that says all it has to say together with its request is heard, and gets its answers."""
    app = App()
    recorder = Recorder(app)
    async with serving(app, kind) as site, ender(site) as peer:
        await peer.send_and_end(upgrade("/") + make_frame(1, b"one") + GOODBYE)
        await peer.client.accepted()
        assert (await peer.client.read_frame()).payload == b"one"
        await recorder.wait("close")
    assert recorder.values("message") == ["one"]
    assert recorder.info.code == 4000


@pytest.mark.parametrize("kind", ENDS)
async def test_the_end_while_nobody_reads(kind: Kind) -> None:
    """An end that comes while the handler is busy is told when the handler has taken what was before it."""
    app = App()
    release = trio.Event()

    async def work(conn: Connection, message: object) -> None:
        await release.wait()

    recorder = Recorder(app, hooks={"message": work}, receive_buffer=200)
    async with serving(app, kind) as site, ender(site) as peer:
        await peer.client.upgrade("/")
        await recorder.wait("open")
        transport = recorder.conn._transport
        await peer.stream.send_all(BURST)
        await until(lambda: transport.paused)
        await peer.send_and_end(make_frame(1, b"last"))
        await trio.sleep(0.01)
        assert "close" not in recorder.names
        assert recorder.conn.is_open
        release.set()
        await recorder.wait("close")
    assert recorder.values("message") == [*MANY, "last"]
    assert type(recorder.info.error) is ConnectionLost


# Only TLS


@asynccontextmanager
async def over_tls(app: App) -> AsyncGenerator[tuple[TLSByHand, RawClient]]:
    async with serving(app, "tls") as site:
        stream = await TLSByHand.connect(site.server.port)
        async with stream:
            client = RawClient(stream)
            await client.upgrade("/")
            yield stream, client


@pytest.mark.parametrize("busy", [False, True])
async def test_a_bad_record_behind_good_ones(busy: bool) -> None:
    """A record that cannot be decrypted ends the connection, after the messages before it were delivered."""
    app = App()
    release = trio.Event()

    async def work(conn: Connection, message: object) -> None:
        if busy:
            await release.wait()

    recorder = Recorder(app, hooks={"message": work}, receive_buffer=200)
    async with over_tls(app) as (tls, _):
        await recorder.wait("open")
        await tls.send_records(tls.seal(BURST) + broken(tls.seal(make_frame(1, b"never"))))
        await recorder.wait("message")
        await until(lambda: not recorder.conn.is_open)
        release.set()
        await recorder.wait("close")
    assert recorder.values("message") == MANY
    assert recorder.info.code == 1006
    assert isinstance(recorder.info.error, ConnectionLost)
    assert isinstance(recorder.info.error.__cause__, ssl.SSLError)


async def test_nothing_is_sent_behind_a_bad_record() -> None:
    """Whoever sends to a peer whose TLS is broken is told at once, and the peer gets its alert and the end."""
    app = App()
    recorder = Recorder(app)
    async with over_tls(app) as (tls, client):
        await recorder.wait("open")
        await tls.send_records(broken(tls.seal(make_frame(1, b"never"))))
        await recorder.wait("close")
        with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
            await client.read_frame()


async def test_a_bad_record_while_an_answer_leaves() -> None:
    """A peer that reads slowly what it is answered, and whose TLS breaks meanwhile, is dropped."""
    app = App()
    app.http("/large")(lambda request: b"x" * 8_000_000)
    async with serving(app, "tls") as site:
        stream = await TLSByHand.connect(site.server.port)
        async with stream:
            await stream.send_all(plain("/large"))
            await until(lambda: any(transport.blocked for transport in site.server._engine.transports))
            await stream.send_records(broken(stream.seal(b"anything")))
            await until(lambda: not site.server._engine.transports)


async def test_what_comes_behind_close_notify() -> None:
    """Nothing is read behind `close_notify`, and the stream below may go on or break."""
    app = App()
    release = trio.Event()

    async def work(conn: Connection, message: object) -> None:
        await release.wait()

    recorder = Recorder(app, hooks={"message": work})
    async with over_tls(app) as (tls, _):
        await tls.send_records(tls.seal(make_frame(1, b"hello")) + tls.farewell())
        await recorder.wait("message")
        await until(lambda: not recorder.conn.is_open)
        await tls.send_records(b"this is no record at all")
        await tls.stream.send_eof()
        await trio.sleep(0.01)
        release.set()
        await recorder.wait("close")
    assert recorder.values("message") == ["hello"]
    assert isinstance(recorder.info.error, ConnectionLost)
    assert recorder.info.error.__cause__ is None


@pytest.mark.parametrize("listener", [False, True])
async def test_streams_of_trio_over_tls(listener: bool) -> None:
    """The same holds for TLS that the application has made of Trio's streams, on both sides."""
    app = App()
    recorder = Recorder(app)
    got: list[str | bytes] = []

    async def talk(port: int) -> None:
        if listener:
            stream = await TLSByHand.connect(port)
            async with stream:
                await RawClient(stream).upgrade("/")
                await stream.send_records(stream.seal(BURST + GOODBYE) + stream.farewell())
                await recorder.wait("close")
        else:
            async with connect(f"wss://localhost:{port}/", ssl_context=shared_tls().client) as conn:
                for text in MANY:
                    await conn.send(text)
                got.extend([await conn.receive() for _ in MANY])

    [below] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        over = trio.SSLListener(below, shared_tls().server, https_compatible=True)
        server = await nursery.start(app.serve_listeners, [over])
        await talk(below.socket.getsockname()[1])
        await server.aclose()
    assert recorder.values("message") == MANY
    if listener:
        assert recorder.info.code == 4000
    else:
        assert got == MANY


# A client


async def test_a_server_that_ends_in_the_same_breath() -> None:
    """A client gets all messages and the Close frame that came in one segment with the server's `close_notify`."""
    frames = b"".join(make_frame(1, text.encode(), mask=False) for text in MANY)
    frames += make_frame(8, struct.pack("!H", 4000), mask=False)
    got: list[str | bytes] = []
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def serve() -> None:
        stream = await listener.accept()
        async with stream:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = shared_tls().server.wrap_bio(incoming, outgoing, server_side=True)
            head = b""
            while b"\r\n\r\n" not in head:
                try:
                    head += tls.read(65536)
                except ssl.SSLWantReadError:
                    if outgoing.pending:
                        await stream.send_all(outgoing.read())
                    incoming.write(bytes(await stream.receive_some(65536)))
            [key] = re.findall(rb"(?i)sec-websocket-key: (\S+)", head)
            tls.write(accept_head(key.decode()) + frames)
            with pytest.raises(ssl.SSLError):
                tls.unwrap()
            await stream.send_all(outgoing.read())
            while await stream.receive_some(65536):
                pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        url = f"wss://localhost:{listener.socket.getsockname()[1]}/"
        async with connect(url, ssl_context=shared_tls().client) as conn:
            got.extend([message async for message in conn])
    assert got == MANY
    assert conn.close_info is not None
    assert conn.close_info.received == CloseFrame(4000)
    await listener.aclose()
