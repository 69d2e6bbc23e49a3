"""Peers and streams that end, break or stop at the worst moments, and what the connection makes of it."""

from __future__ import annotations

import ssl
import struct
from contextlib import suppress

import pytest
import trio
import trio.testing

from support.rawclient import RawClient, echo_app, plain, upgrade
from support.servers import Kind, Recorder, TapStream, break_off, end_stream, serving
from trio_crowws import App, CloseInfo, Connection, ConnectionClosedError, ConnectionLost
from trio_crowws._session.opening import Opening
from trio_crowws.testing import make_frame

BIG = b"x" * 8_000_000
"""More than the buffers of any kernel take."""


async def check_lost(recorder: Recorder) -> CloseInfo:
    """Wait for the end of the only connection: the peer has gone without a Close frame."""
    return await recorder.check_end(
        1006, clean=False, initiator="remote", sent=None, received=None, error=ConnectionLost
    )


# A peer that is gone while the handler sends to it


async def test_a_send_that_finds_the_peer_gone() -> None:
    """Where `send_nowait` has to make room and finds the connection broken, the message is not sent: `False`."""
    app = App()
    recorder = Recorder(app, send_limit=1000)
    async with serving(app, "tcp") as site, site.connect() as peer:
        await recorder.wait("open")
        conn = recorder.conn
        await break_off(peer)
        assert conn.send_nowait(b"x" * 600) is True
        assert conn.send_nowait(b"y" * 600) is False
        assert conn.messages_sent == 1
        await check_lost(recorder)


async def test_a_send_that_makes_room() -> None:
    """Where only what the kernel was not offered yet stands in the way of a message, it leaves, and there is room."""
    app = App()
    recorder = Recorder(app, send_limit=1000)
    async with serving(app, "tcp") as site, site.connect() as peer:
        await recorder.wait("open")
        for text in ("a" * 600, "b" * 600, "c" * 600):
            assert recorder.conn.send_nowait(text) is True
        assert [await peer.receive() for _ in range(3)] == ["a" * 600, "b" * 600, "c" * 600]


async def test_a_receive_that_finds_the_peer_gone() -> None:
    """Where what was queued cannot leave because the peer has gone, the next `receive` raises at once."""
    app = App()
    ended: list[ConnectionClosedError] = []

    @app.websocket("/")
    async def session(conn: Connection) -> None:
        await conn.receive()
        await conn.send("the first answer leaves at once")
        await break_off(peer)
        await conn.send("what follows is collected")
        try:
            await conn.receive()
        except ConnectionClosedError as error:
            ended.append(error)

    async with serving(app, "tcp") as site, site.connect() as peer:
        await peer.send("hello")
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert [error.info.code for error in ended] == [1006]


@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_a_reset(kind: Kind) -> None:
    """A peer whose machine resets the connection is lost, and the reason is in the log and in `on_error`."""
    app = App()
    recorder = Recorder(app)
    async with serving(app, kind) as site, site.connect() as peer:
        await recorder.wait("open")
        await break_off(peer)
        info = await check_lost(recorder)
    assert isinstance(info.error, ConnectionLost)
    assert isinstance(info.error.__cause__, ConnectionResetError)


# A peer that says goodbye and does not wait


@pytest.mark.parametrize("busy", [False, True])
async def test_a_peer_that_closes_and_is_gone(busy: bool, autojump_clock: trio.testing.MockClock) -> None:
    """A peer that sends Close and breaks off is no error, whether our answer was on its way or the handler was busy."""
    app = App()

    async def work(conn: Connection, message: object) -> None:
        await conn.send(b"on its way")
        if busy:
            await trio.sleep(0.1)

    recorder = Recorder(app, hooks={"message": work})
    async with serving(app) as site, site.connect() as peer:
        assert peer.faults is not None
        peer.faults.stall()
        await peer.send("hello")
        await recorder.wait("message")
        await peer.send_raw(make_frame(8, struct.pack("!H", 4001)))
        await trio.testing.wait_all_tasks_blocked()
        await peer.faults.break_off()
        sent = None if busy else 4001
        await recorder.check_end(4001, clean=not busy, initiator="remote", sent=sent, received=4001, error=None)


# Both sides have ended, and something is still queued


async def test_a_refusal_for_a_peer_that_has_ended_its_side() -> None:
    """A refusal arrives whole, although its reader has ended its own direction before it reads."""
    near, far = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo_app().serve_stream, far)
        client = RawClient(near)
        await client.send(upgrade("/nothing"))
        await trio.testing.wait_all_tasks_blocked()
        await near.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        assert (await client.refused()).status == 404


@pytest.mark.parametrize("kind", ["tcp", "tls", "unix", "memory"])
async def test_a_peer_that_has_ended_its_side_still_gets_everything(kind: Kind) -> None:
    """A page that is larger than all buffers arrives whole, although its reader has ended its own direction."""
    app = App()
    app.http("/big")(lambda request: BIG)
    async with serving(app, kind, lockstep=True) as site:
        stream = await site.open_stream()
        async with stream:
            client = RawClient(stream)
            await client.send(plain("/big"))
            await trio.sleep(0.05)  # until the buffers are full
            await end(stream)
            await trio.sleep(0.05)  # until the server has noticed
            answer = await client.read_answer()
            assert len(answer.body) == len(BIG)
            if kind != "tls":  # where the end of the stream is an alert that Trio would answer
                assert await client.read_to_end() == b""


async def end(stream: trio.abc.Stream) -> None:
    if isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    assert isinstance(stream, trio.abc.HalfCloseableStream)
    await stream.send_eof()


@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_a_peer_that_has_ended_its_side_and_does_not_read(kind: Kind) -> None:
    """What is queued for a peer that ended its direction and reads nothing is dropped after `close_timeout`."""
    app = App()
    recorder = Recorder(
        app, hooks={"message": lambda conn, _: conn.send(BIG)}, close_timeout=0.2, send_limit=2 * len(BIG)
    )
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.send("hello")
        await recorder.wait("message")
        await end_stream(peer)
        await check_lost(recorder)
        began = trio.current_time()
        while site.server._engine.transports:  # noqa: ASYNC110 -- there is no event for it
            await trio.sleep(0.01)
        assert 0.1 < trio.current_time() - began < 2
        raw = peer.stream.transport_stream if isinstance(peer.stream, trio.SSLStream) else peer.stream
        with pytest.raises(trio.BrokenResourceError):  # a reset: it must not take this for the end
            await RawClient(raw).read_to_end()


@pytest.mark.parametrize("kind", ["tcp", "tls", "unix"])
async def test_a_peer_that_was_failed_and_stays(kind: Kind) -> None:
    """A peer that broke the protocol, has its Close frame and does not leave is dropped after `close_timeout`."""
    app = App()
    recorder = Recorder(app, close_timeout=0.2)
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.send_raw(make_frame(3))
        await recorder.wait("close")
        began = trio.current_time()
        assert recorder.info.code == 1002
        while site.server._engine.transports:  # noqa: ASYNC110 -- there is no event for it
            await trio.sleep(0.01)
        assert 0.1 < trio.current_time() - began < 2
        assert await peer.receive_close() == recorder.info.sent


# Streams of the application's own


class OneWay(trio.abc.Stream):
    """A stream that cannot end one direction alone."""

    def __init__(self, inner: trio.abc.Stream) -> None:
        self.inner = inner

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.inner.aclose()


class NoGoodbye(TapStream):
    """A stream that breaks when its direction is to be ended."""

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError


@pytest.mark.parametrize("wrap", [OneWay, NoGoodbye])
async def test_a_refusal_over_a_stream_that_cannot_be_half_closed(
    wrap: type[OneWay | NoGoodbye], autojump_clock: trio.testing.MockClock
) -> None:
    """A refusal over a stream that can only be closed as a whole is complete, and the stream is closed at once."""
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo_app().serve_stream, wrap(far))
        client = RawClient(near)
        await client.send(upgrade("/nothing"))
        assert (await client.refused()).status == 404
    assert trio.current_time() == 0


async def test_a_stream_that_never_shakes_hands(autojump_clock: trio.testing.MockClock) -> None:
    """A TLS stream whose peer says nothing is given up when the opening handshake should have been over."""
    near, far = trio.testing.memory_stream_pair()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    await echo_app(handshake_timeout=7).serve_stream(trio.SSLStream(far, context, server_side=True))
    assert trio.current_time() == 7
    assert await near.receive_some() == b""


# Defects


@pytest.mark.parametrize("kind", ["tcp", "tls", "unix", "memory"])
async def test_an_internal_error(kind: Kind, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A defect of the framework that a peer brings out costs that connection alone, and is logged as what it is."""
    feed = Opening._on_data
    app = App()
    recorder = Recorder(app)

    def fail_once(self: Opening, data: bytes) -> None:
        monkeypatch.setattr(Opening, "_on_data", feed)
        raise RuntimeError("a defect")

    async with serving(app, kind) as site:
        monkeypatch.setattr(Opening, "_on_data", fail_once)
        unlucky = await site.open_stream()
        async with unlucky:
            await unlucky.send_all(upgrade("/"))
            with suppress(trio.BrokenResourceError):
                assert await unlucky.receive_some() == b""
        async with site.connect() as peer:
            await peer.send("hello")
            assert await peer.receive() == "hello"
            await peer.close()
        await recorder.wait("close")
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.getMessage().startswith("internal error; the connection with ")
    assert "a defect" in str(record.exc_info)
