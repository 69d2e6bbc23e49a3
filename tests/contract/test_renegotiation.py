"""TLS that talks by itself: peers that renegotiate, which TLS 1.2 allows, and peers that have the keys changed."""

from __future__ import annotations

import random
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from OpenSSL import SSL

from support.rawclient import Frame, RawClient
from support.rawserver import RawPeer
from support.renegotiating import Renegotiating, tls_1_2
from support.servers import Recorder, noise, until
from trio_crowws import App, Connection, ConnectionClosed, ConnectionLost, Server, SlowConsumer, connect
from trio_crowws._transport.engine import Engine
from trio_crowws._transport.tls import TLSTransport
from trio_crowws.testing import make_frame


@pytest.fixture(params=["epoll", "streams"], autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Sockets by the poller, and where there is none."""
    if request.param == "streams":
        monkeypatch.setattr("trio_crowws._server.Engine", partial(Engine, use_epoll=False))
        monkeypatch.setattr("trio_crowws._client.running.Engine", partial(Engine, use_epoll=False))
    return str(request.param)


@asynccontextmanager
async def serving(app: App) -> AsyncGenerator[Server]:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(partial(app.serve, "127.0.0.1", 0, ssl_context=tls_1_2().server))
            yield server
            await server.aclose()


async def begin(peer: Renegotiating, conn: Connection) -> None:
    """Have `peer` negotiate anew, and wait until the other side has said what it has to say to that."""
    before = conn.bytes_sent
    await peer.ask()
    await until(lambda: conn.bytes_sent > before)


async def in_the_middle(conn: Connection) -> None:
    """Wait until nothing can be encrypted, which shows with the next message."""
    transport = conn._transport
    assert isinstance(transport, TLSTransport)
    await until(lambda: transport._piece is not None)


# A client renegotiates


async def test_a_client_that_renegotiates_now_and_then() -> None:
    """All messages arrive, in order and once, both ways, however often a client has the keys negotiated anew."""
    app = App()
    recorder = Recorder(app)
    async with serving(app) as server, await Renegotiating.connect(server.port) as peer:
        client = RawClient(peer)
        await client.upgrade("/")
        await recorder.wait("open")
        for number in range(20):
            await client.assert_echoes(f"echo {number}".encode())
            await begin(peer, recorder.conn)
            for what in ("one", "two"):
                await recorder.conn.send(f"{what} {number}")
            for what in ("one", "two"):
                assert await client.read_frame() == Frame(1, f"{what} {number}".encode())
        assert recorder.values("message") == [f"echo {number}" for number in range(20)]
        await client.close()
    recorder.check()


async def test_what_is_sent_in_the_middle() -> None:
    """What is sent while a negotiation is under way waits, small and large, and arrives whole and in order."""
    app = App()
    recorder = Recorder(app, send_limit=4_000_000, send_high_water=4_000_000)
    large = noise(1_000_000)
    async with serving(app) as server, await Renegotiating.connect(server.port) as peer:
        client = RawClient(peer)
        await client.upgrade("/")
        await recorder.wait("open")
        conn = recorder.conn
        await begin(peer, conn)
        conn.send_nowait("one")
        await in_the_middle(conn)
        conn.send_nowait(large)
        conn.send_nowait("three")
        assert conn.buffered > len(large)
        await trio.testing.wait_all_tasks_blocked(0.01)
        conn.close_nowait(4000)
        assert [await client.read_frame() for _ in range(3)] == [
            Frame(1, b"one"),
            Frame(2, large),
            Frame(1, b"three"),
        ]
        assert (await client.read_frame()).opcode == 8
        await client.send_frame(8, b"\x0f\xa0")
        await recorder.wait("close")
    assert recorder.info.clean


async def test_a_task_that_waits_in_send() -> None:
    """A `send` that waits for room goes on when the negotiation is over."""
    app = App()
    recorder = Recorder(app, send_high_water=1000)
    async with serving(app) as server, await Renegotiating.connect(server.port) as peer:
        client = RawClient(peer)
        await client.upgrade("/")
        await recorder.wait("open")
        await begin(peer, recorder.conn)
        recorder.conn.send_nowait(b"x" * 2000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recorder.conn.send, "waits")
            await in_the_middle(recorder.conn)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert recorder.conn._waiting
            assert (await client.read_frame()).payload == b"x" * 2000
        assert (await client.read_frame()).payload == b"waits"


async def test_a_client_that_does_not_go_on() -> None:
    """A peer that never ends its negotiation is one that takes nothing: it is given up after `send_timeout`."""
    app = App()
    recorder = Recorder(app, send_timeout=0.1, ping_interval=0.05)
    async with serving(app) as server, await Renegotiating.connect(server.port) as peer:
        await RawClient(peer).upgrade("/")
        await recorder.wait("open")
        await begin(peer, recorder.conn)
        with suppress(ConnectionClosed):
            await recorder.conn.send("hello")
        await recorder.wait("close")
    assert type(recorder.info.error) is SlowConsumer


@pytest.mark.parametrize("how", ["no record", "the end", "no write"])
async def test_a_client_that_breaks_off_in_the_middle(how: str) -> None:
    """A peer that breaks off in the middle of its negotiation is lost, and so is what waited for it."""
    app = App()
    recorder = Recorder(app, close_timeout=0.1)
    async with serving(app) as server, await Renegotiating.connect(server.port) as peer:
        await RawClient(peer).upgrade("/")
        await recorder.wait("open")
        await begin(peer, recorder.conn)
        recorder.conn.send_nowait("hello")
        await in_the_middle(recorder.conn)
        if how == "the end":
            await peer.stream.send_eof()
        elif how == "no record":
            await peer.stream.send_all(b"this is no record")
        else:
            transport = recorder.conn._transport
            assert isinstance(transport, TLSTransport)
            transport._tls = NoWrite(transport._tls)  # type: ignore[assignment]
            with suppress(SSL.Error, trio.BrokenResourceError):  # it is cut off
                await peer.receive_some()
        await recorder.wait("close")
    assert recorder.info.code == 1006
    assert isinstance(recorder.info.error, ConnectionLost)


class NoWrite:
    """TLS that cannot encrypt any more."""

    def __init__(self, tls: ssl.SSLObject) -> None:
        self._tls = tls

    def write(self, data: object) -> int:
        raise ssl.SSLError(ssl.SSL_ERROR_SSL, "no more")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tls, name)


async def test_no_write() -> None:
    """Where nothing can be encrypted any more, the connection is lost."""
    app = App()
    recorder = Recorder(app)
    async with serving(app) as server, await Renegotiating.connect(server.port) as peer:
        await RawClient(peer).upgrade("/")
        await recorder.wait("open")
        transport = recorder.conn._transport
        assert isinstance(transport, TLSTransport)
        transport._tls = NoWrite(transport._tls)  # type: ignore[assignment]
        recorder.conn.send_nowait("hello")
        await peer.stream.send_eof()
        await recorder.wait("close")
    assert "no more" in str(recorder.info.error)


@pytest.mark.parametrize("flushed", [False, True])
async def test_a_page_that_is_asked_for_in_the_middle(flushed: bool) -> None:
    """What is closed in the middle of a negotiation still gets out, and then the end."""
    app = App()
    recorder = Recorder(app)
    async with serving(app) as server, await Renegotiating.connect(server.port) as peer:
        client = RawClient(peer)
        await client.upgrade("/")
        await recorder.wait("open")
        conn = recorder.conn
        transport = conn._transport
        await begin(peer, conn)
        conn.send_nowait("last")
        if flushed:
            await in_the_middle(conn)
        transport.close(trio.current_time() + 5, linger=True)
        assert await client.read_frame() == Frame(1, b"last")
        assert await client.read_to_end() == b""
        await peer.stream.send_eof()
        await until(lambda: transport.released)
        conn.abort()


# A server renegotiates


Script = Callable[[Renegotiating, RawPeer], Awaitable[None]]


@asynccontextmanager
async def renegotiating_server(script: Script) -> AsyncGenerator[str]:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def serve() -> None:
        peer = Renegotiating(await listener.accept(), server=True)
        async with peer:
            await peer.shake_hands()
            raw = RawPeer(peer)
            await raw.accept()
            await script(peer, raw)

    with trio.fail_after(10):
        async with listener, trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            yield f"wss://localhost:{listener.socket.getsockname()[1]}/"
            nursery.cancel_scope.cancel()


async def echo(peer: Renegotiating, raw: RawPeer) -> None:
    """Echo, and ask for a negotiation now and then, as a server does that wants to see a certificate."""
    count = 0
    while (event := await raw.receive()) is not None:
        data = getattr(event, "data", None)
        if data is None:
            await raw.close()
            return
        await raw.send_message(data)
        count += 1
        if count % 5 == 1:
            await peer.ask()


async def test_a_server_that_renegotiates() -> None:
    """A client goes on through the negotiations that a server asks for, and nothing is lost or overtaken."""
    texts = [f"{number}" * random.randint(1, 1000) for number in range(60)]
    async with (
        renegotiating_server(echo) as url,
        connect(url, ssl_context=tls_1_2().client) as conn,
        trio.open_nursery() as nursery,
    ):

        async def send() -> None:
            for text in texts:
                await conn.send(text)
                await trio.sleep(0.0005)

        nursery.start_soon(send)
        assert [await conn.receive() for _ in texts] == texts
    assert conn.close_info is not None
    assert conn.close_info.clean


async def test_a_negotiation_while_nobody_reads() -> None:
    """A client whose block is busy still ends the negotiation, so that what it sends leaves; no message is lost."""
    burst = [f"{number}" for number in range(300)]

    async def script(peer: Renegotiating, raw: RawPeer) -> None:
        await asked.wait()
        await peer.ask()
        await go_on.wait()
        await peer.send_all(b"".join(make_frame(1, text.encode(), mask=False) for text in burst))
        while (event := await raw.receive()) is not None:
            heard.append(getattr(event, "data", None))
            done.set()

    heard: list[object] = []
    asked, go_on, done = trio.Event(), trio.Event(), trio.Event()
    async with (
        renegotiating_server(script) as url,
        connect(url, ssl_context=tls_1_2().client, receive_buffer=100) as conn,
    ):
        before = conn.bytes_sent
        asked.set()
        await until(lambda: conn.bytes_sent > before)
        await conn.send("hello")
        await in_the_middle(conn)
        go_on.set()
        await done.wait()
        assert heard == ["hello"]
        assert conn._transport.paused
        assert [await conn.receive() for _ in burst] == burst
        conn.abort()


async def test_a_negotiation_that_the_server_does_not_go_on_with() -> None:
    """Another connection of the same program lives on, whatever this one waits for."""

    async def script(peer: Renegotiating, raw: RawPeer) -> None:
        await peer.ask()
        await trio.sleep_forever()

    app = App()
    Recorder(app)
    async with (
        serving(app) as server,
        connect(f"wss://localhost:{server.port}/", ssl_context=tls_1_2().client) as other,
        renegotiating_server(script) as url,
    ):
        conn: Connection | None = None
        with pytest.raises(ConnectionClosed):  # noqa: PT012 -- when, is for the clock to say
            async with connect(url, ssl_context=tls_1_2().client, send_timeout=0.1, ping_interval=0.05) as conn:
                while True:
                    await conn.send("hello")
                    await trio.sleep(0.001)
        assert conn is not None
        assert conn.close_info is not None
        await other.send("and I?")
        assert await other.receive() == "and I?"
