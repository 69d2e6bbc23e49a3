"""A client's connection keeps the same contract as a server's, over every kind of transport."""

from __future__ import annotations

import gc
import logging
import zlib
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import trio
import trio.testing

from support.clients import client_of, end_of, nothing_left, tasks
from support.rawserver import RawPeer, echo, raw_server
from support.servers import Kind, Recorder, serving, until
from trio_crowws import (
    App,
    CloseFrame,
    CloseTimeout,
    Connection,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    ConnectionLost,
    Deflate,
    Handler,
    HeartbeatTimeout,
    InvalidUTF8,
    PayloadTooBig,
    ProtocolError,
    SlowConsumer,
    State,
    connect,
    connect_stream,
)


def echo_app(**options: Any) -> tuple[App, Recorder]:
    app = App()
    return app, Recorder(app, **options)


# Talking


async def test_messages_go_both_ways(kind: Kind) -> None:
    """Text stays text and binary stays binary, whatever the size."""
    app, _ = echo_app()
    async with serving(app, kind) as site, client_of(site) as conn:
        for message in ("", "hello", "ü" * 100, b"", b"\x00\xff", b"x" * 125, b"x" * 126, "y" * 65535, b"z" * 65536):
            await conn.send(message)
            assert await conn.receive() == message
        await conn.send_json({"a": 1})
        assert await conn.receive() == '{"a": 1}'
        assert (conn.messages_sent, conn.messages_received) == (10, 10)


async def test_a_megabyte_goes_both_ways(kind: Kind) -> None:
    """Larger than every buffer on the way."""
    app, _ = echo_app()
    data = bytes(range(256)) * 4096
    async with serving(app, kind) as site, client_of(site) as conn:
        await conn.send(data)
        assert await conn.receive() == data


async def test_many_messages_at_once(kind: Kind) -> None:
    """They come back in their order; sends of all three sorts keep it too."""
    app, _ = echo_app()
    async with serving(app, kind) as site, client_of(site) as conn:
        for number in range(500):
            if number % 3:
                conn.send_nowait(str(number))
            else:
                await conn.send(str(number))
        assert [await conn.receive() for _ in range(500)] == [str(number) for number in range(500)]


async def test_what_a_connection_knows(kind: Kind) -> None:
    """Request, answer, addresses and subprotocol, from the first moment to beyond the end."""
    app, recorder = echo_app(subprotocols=["v2", "v1"])
    async with serving(app, kind) as site:
        async with client_of(site, "/?a=b", subprotocols=["v1", "v2"], headers={"X-Name": "ann"}, origin=None) as conn:
            assert conn.is_open
            assert conn.state.value == "open"
            assert conn.close_info is None
        assert conn.state.value == "closed"
        assert not conn.is_open
        assert conn.subprotocol == "v2"
        assert conn.request.method == "GET"
        assert conn.request.path == "/"
        assert conn.request.query["a"] == "b"
        assert conn.request.headers["x-name"] == "ann"
        assert conn.request.subprotocols == ("v1", "v2")
        assert conn.request.secure is (kind == "tls")
        assert conn.request.remote_address == conn.remote_address
        assert conn.request.local_address == conn.local_address
        assert conn.response is not None
        assert conn.response.status == 101
        assert conn.response.headers["sec-websocket-protocol"] == "v2"
        assert conn.id.startswith("client")
        assert f"{conn.id} '/' to" in repr(conn)
        assert conn.bytes_sent > 100
        seen = recorder.conn
        assert seen.request.host == conn.request.host
        assert seen.response is None
        if kind in ("tcp", "tls"):
            assert conn.remote_address == ("127.0.0.1", site.server.port)
            assert conn.local_address == seen.remote_address
        elif kind == "unix":
            assert conn.remote_address == site.server.addresses[0]
            assert conn.local_address is None
            assert conn.request.host == "localhost"
        else:
            assert conn.remote_address is None
            assert conn.request.host == "testserver"


async def test_ids_are_unique() -> None:
    """No two connections have the same id, on neither side."""
    app, recorder = echo_app()
    async with serving(app) as site, client_of(site) as one, client_of(site) as two:
        await recorder.wait("open", 2)
        assert len({one.id, two.id, *(note.conn.id for note in recorder.notes)}) == 4


async def test_ping_and_latency(kind: Kind) -> None:
    """`ping` waits for the pong, and the latency is kept."""
    app, _ = echo_app()
    async with serving(app, kind) as site, client_of(site) as conn:
        assert conn.latency is None
        seconds = await conn.ping()
        assert 0 <= seconds < 5
        assert conn.latency == seconds


async def test_pings_of_the_server_are_answered_while_the_block_is_busy(kind: Kind) -> None:
    """The block need not receive for that."""
    app, recorder = echo_app()
    async with serving(app, kind) as site, client_of(site):
        await recorder.wait("open")
        assert await recorder.conn.ping() >= 0


async def test_early_frames_are_not_lost() -> None:
    """Frames that come in one piece with the 101 are the first messages."""

    async def script(peer: RawPeer) -> None:
        await peer.accept(early=b"\x81\x02hi\x82\x01b\x81\x0512")
        await peer.send(b"345")
        await peer.receive_close()
        await peer.close()

    async with raw_server(script) as server, connect(server.url) as conn:
        assert [await conn.receive() for _ in range(3)] == ["hi", b"b", "12345"]


async def test_early_frames_beyond_the_receive_buffer() -> None:
    """Reading goes on when the block has taken enough."""

    async def script(peer: RawPeer) -> None:
        await peer.accept(early=b"\x82\x7e\x40\x00" + bytes(0x4000) + b"\x82\x01a")
        await peer.send_message("last")
        await peer.receive_close()
        await peer.close()

    async with raw_server(script) as server, connect(server.url, receive_buffer=1000) as conn:
        await trio.sleep(0.01)
        assert await conn.receive() == bytes(0x4000)
        assert await conn.receive() == b"a"
        assert await conn.receive() == "last"


async def test_a_close_that_comes_with_the_101() -> None:
    """The connection was open; the block learns of its end from its first `receive`."""

    async def script(peer: RawPeer) -> None:
        await peer.accept(early=b"\x81\x02hi\x88\x02\x03\xe9")
        await peer.wait_end()

    async with raw_server(script) as server, connect(server.url) as conn:
        assert [message async for message in conn] == ["hi"]
        assert conn.close_info is not None
        assert conn.close_info.code == 1001


# Masking (RFC 6455 section 5.3)


async def test_every_frame_is_masked_with_a_fresh_key() -> None:
    """Data of any size, pings, pongs and Close; no key is there twice, and none can be foreseen."""

    async def greet(peer: RawPeer) -> None:
        await peer.accept()
        await peer.send_frame(9, b"are you there")
        while await peer.receive() is not None:
            if peer.frames[-1].first == 0x88:
                await peer.close(1000)
                return

    async with raw_server(greet) as server:
        async with connect(server.url) as conn:
            sent: list[str | bytes] = ["", b"", "a", b"abc", "x" * 125, b"y" * 126, "z" * 1100, b"w" * 70000]
            for message in sent * 5:
                await conn.send(message)
            conn.send_nowait("last")
            await until(lambda: any(frame.first == 0x8A for frame in server.peers[0].frames))
        frames = server.peers[0].frames
    assert [frame.first for frame in frames].count(0x8A) == 1
    assert frames[-1].first == 0x88
    data = [frame for frame in frames if frame.first in (0x81, 0x82)]
    payloads = [frame.payload.decode() if frame.first == 0x81 else frame.payload for frame in data]
    assert payloads == [*sent * 5, "last"]
    assert all(frame.masked and len(frame.key) == 4 for frame in frames)
    assert len({frame.key for frame in frames}) == len(frames)


async def test_masked_frames_of_a_server_fail_the_connection() -> None:
    """A client must not take them (RFC 6455 section 5.1)."""

    async def script(peer: RawPeer) -> None:
        await peer.accept()
        await peer.send_frame(1, b"hello", mask=True)
        assert (await peer.receive_close())[0] == 1002

    async with raw_server(script) as server, connect(server.url) as conn:
        with pytest.raises(ConnectionClosedError) as caught:
            await conn.receive()
        assert type(caught.value.info.error) is ProtocolError
        assert caught.value.info.code == 1002


# Leaving the block


async def test_leaving_normally_closes_with_1000(kind: Kind) -> None:
    """Both Close frames are exchanged when the block has been left, and nothing is left of it."""
    app, recorder = echo_app()
    async with serving(app, kind) as site:
        await trio.sleep(0.01)
        before = tasks()
        async with client_of(site) as conn:
            await conn.send("hello")
            await recorder.wait("message")
        info = conn.close_info
        assert info is not None
        assert (info.code, info.clean, info.initiator, info.error) == (1000, True, "local", None)
        await recorder.check_end(1000, clean=True, initiator="remote", sent=1000, received=1000, error=None)
        assert not tasks() - before


async def test_leaving_by_an_exception_closes_with_1011(kind: Kind) -> None:
    """The exception goes on as it is; the server sees no more than the code."""
    app, recorder = echo_app()
    mistake = ValueError("secret")
    async with serving(app, kind) as site:
        conns: list[Connection] = []
        with pytest.raises(ValueError, match="secret") as caught:  # noqa: PT012 -- the block has to be left by it
            async with client_of(site) as conn:
                conns.append(conn)
                raise mistake
        assert caught.value is mistake
        assert end_of(conns).error is mistake
        await recorder.check_end(1011, clean=True, initiator="remote", sent=1011, received=1011, error=None)


async def test_leaving_by_a_cancellation_closes_with_1001(kind: Kind) -> None:
    """The cancellation goes on, and the server sees a Close frame and not a broken connection."""
    app, recorder = echo_app()
    async with serving(app, kind) as site:
        conns: list[Connection] = []
        with trio.CancelScope() as scope:
            async with client_of(site) as conn:
                conns.append(conn)
                await recorder.wait("open")
                scope.cancel()
                await conn.receive()
        assert scope.cancelled_caught
        assert end_of(conns).clean
        await recorder.check_end(1001, clean=True, initiator="remote", sent=1001, received=1001, error=None)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()], ids=lambda e: type(e).__name__)
async def test_leaving_by_what_is_no_exception_closes_with_1001(error: BaseException) -> None:
    """As a cancellation does."""
    app, recorder = echo_app()
    async with serving(app) as site:
        with pytest.raises(type(error)) as caught:  # noqa: PT012 -- the block has to be left by it
            async with client_of(site):
                await recorder.wait("open")
                raise error
        assert caught.value is error
        await recorder.check_end(1001, clean=True, initiator="remote", sent=1001, received=1001, error=None)


async def test_leaving_by_a_group(kind: Kind) -> None:
    """A nursery in the block raises its group, as it would without a connection."""
    app, recorder = echo_app()
    async with serving(app, kind) as site:
        with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 -- the block has to be left by it
            async with client_of(site) as conn, trio.open_nursery() as nursery:
                nursery.start_soon(conn.receive)
                raise ValueError("own")
        assert [type(error) for error in caught.value.exceptions] == [ValueError]
        await recorder.check_end(1011, clean=True, initiator="remote", sent=1011, received=1011, error=None)


async def test_connection_closed_leaves_the_block(kind: Kind) -> None:
    """That the server has closed is for the caller to know, and no failure of the block."""
    app, _ = echo_app(hooks={"open": lambda conn: conn.close(4000, "enough")})
    async with serving(app, kind) as site:
        conns: list[Connection] = []
        with pytest.raises(ConnectionClosedOK) as caught:  # noqa: PT012 -- the block has to be left by it
            async with client_of(site) as conn:
                conns.append(conn)
                await conn.receive()
        info = end_of(conns)
        assert caught.value.info.code == info.code == 4000
        assert info.error is None
        assert info.sent == info.received == CloseFrame(4000, "enough")


async def test_the_block_may_close_by_itself(kind: Kind) -> None:
    """Leaving it then does nothing more; the code is that of the block."""
    app, recorder = echo_app()
    async with serving(app, kind) as site:
        async with client_of(site) as conn:
            info = await conn.close(4001, "done")
            assert (info.code, info.reason) == (4001, "done")
            with pytest.raises(ConnectionClosed):
                await conn.send("more")
        done = CloseFrame(4001, "done")
        await recorder.check_end(4001, "done", clean=True, initiator="remote", sent=done, received=done, error=None)


async def test_what_was_sent_before_leaving_arrives(kind: Kind) -> None:
    """The Close frame stands behind it."""
    app, recorder = echo_app(hooks={"message": lambda conn, message: None})
    async with serving(app, kind) as site:
        async with client_of(site) as conn:
            for _ in range(100):
                await conn.send(b"x" * 10000)
        await recorder.wait("close")
        assert len(recorder.values("message")) == 100


async def test_abort(kind: Kind) -> None:
    """Both sides see 1006."""
    app, recorder = echo_app()
    async with serving(app, kind) as site:
        async with client_of(site) as conn:
            await recorder.wait("open")
            conn.abort()
        assert conn.close_info is not None
        assert conn.close_info.code == 1006
        await recorder.wait("close")
        assert recorder.info.code == 1006
        assert type(recorder.info.error) is ConnectionLost


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_server_that_does_not_answer_the_close(cancelled: bool, autojump_clock: trio.testing.MockClock) -> None:
    """Leaving takes `close_timeout`, and when cancelled one second; then the connection is dropped."""
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def mute() -> None:
            peer = RawPeer(far)
            await peer.accept()
            await peer.receive_close()
            await trio.sleep_forever()

        nursery.start_soon(mute)
        conns: list[Connection] = []
        with trio.CancelScope() as scope:
            async with connect_stream(near, "ws://h/", close_timeout=7) as conn:
                conns.append(conn)
                if cancelled:
                    scope.cancel()
        assert trio.current_time() == pytest.approx(1 if cancelled else 7)
        assert type(end_of(conns).error) is CloseTimeout
        nursery.cancel_scope.cancel()


async def test_a_server_that_does_not_end_the_stream(autojump_clock: trio.testing.MockClock) -> None:
    """It is the server's to end it (RFC 6455 section 7.1.1), but not for ever: after a second the client does."""
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def slow() -> None:
            peer = RawPeer(far)
            await peer.accept()
            await peer.receive_close()
            await peer.close()
            assert await peer.receive() is None
            assert trio.current_time() - began == pytest.approx(1)

        nursery.start_soon(slow)
        async with connect_stream(near, "ws://h/") as conn:
            began = trio.current_time()
        assert conn.close_info is not None
        assert conn.close_info.clean


async def test_the_server_ends_the_stream_first() -> None:
    """The client waits for that, and so its port is free at once (RFC 6455 section 7.1.1)."""
    ended: list[str] = []

    async def script(peer: RawPeer) -> None:
        await peer.accept()
        await peer.receive_close()
        await peer.close()
        with trio.move_on_after(0.05):
            await peer.receive()
            ended.append("client")
        ended.append("server")

    async with raw_server(script) as server:
        async with connect(server.url):
            pass
        await until(lambda: bool(ended))
    assert ended == ["server"]


async def test_a_server_that_has_ended_the_stream_is_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    """Its end may have come before the block is left."""
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def leave() -> None:
            peer = RawPeer(far)
            await peer.accept()
            await peer.send_message("last")
            await peer.close()
            assert isinstance(far, trio.abc.HalfCloseableStream)
            await far.send_eof()
            await peer.wait_end()

        nursery.start_soon(leave)
        async with connect_stream(near, "ws://h/") as conn:
            await trio.sleep(0.1)
            began = trio.current_time()
            assert await conn.receive() == "last"
        assert trio.current_time() == began
        assert conn.close_info is not None
        assert conn.close_info.clean


async def test_cancelled_while_leaving() -> None:
    """The wait gets shorter, and the cancellation goes on."""
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def mute() -> None:
            peer = RawPeer(far)
            await peer.accept()
            await peer.receive_close()
            scope.cancel()
            await peer.close()

        nursery.start_soon(mute)
        conns: list[Connection] = []
        with trio.CancelScope() as scope:
            async with connect_stream(near, "ws://h/") as conn:
                conns.append(conn)
        assert scope.cancelled_caught
        assert end_of(conns).clean


async def test_an_exception_is_not_lost_by_a_cancellation_while_leaving() -> None:
    """What the block raised is what is raised."""
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def mute() -> None:
            peer = RawPeer(far)
            await peer.accept()
            await peer.receive_close()
            scope.cancel()
            await peer.close()

        nursery.start_soon(mute)
        with pytest.raises(ValueError, match="mine"), trio.CancelScope() as scope:
            async with connect_stream(near, "ws://h/"):
                raise ValueError("mine")
        assert scope.cancel_called


# The other side's end


async def test_the_end_of_the_iteration(kind: Kind) -> None:
    """`async for` ends with the closing handshake, and raises if there was none."""
    app, recorder = echo_app(hooks={"message": lambda conn, message: conn.close(1000)})
    async with serving(app, kind) as site:
        async with client_of(site) as conn:
            await conn.send("x")
            assert [message async for message in conn] == []
        recorder._hooks["message"] = lambda conn, message: conn.abort()
        async with client_of(site) as conn:
            await conn.send("x")
            with pytest.raises(ConnectionClosedError):
                async for _ in conn:
                    pass
            assert conn.close_info is not None
            assert type(conn.close_info.error) is ConnectionLost


@pytest.mark.parametrize(
    ("frame", "code", "error"),
    [
        (b"\x81\x02\xc3\x28", 1007, InvalidUTF8),
        (b"\x83\x00", 1002, ProtocolError),
        (b"\xc1\x00", 1002, ProtocolError),
        (b"\x82\x7e\x08\x00", 1009, PayloadTooBig),
        (b"\x89\x7e\x00\x7e" + bytes(126), 1002, ProtocolError),
        (b"\x82\x7e\x00\x01a", 1002, ProtocolError),
    ],
)
async def test_faults_of_the_server(frame: bytes, code: int, error: type[Exception]) -> None:
    """They fail the connection as they do on the other side; what came before is delivered first."""
    seen: list[int] = []

    async def script(peer: RawPeer) -> None:
        await peer.accept()
        await peer.send(b"\x81\x02ok" + frame)
        seen.append((await peer.receive_close())[0])

    async with raw_server(script) as server, connect(server.url, max_payload=1000) as conn:
        assert await conn.receive() == "ok"
        with pytest.raises(ConnectionClosedError) as caught:
            await conn.receive()
        assert type(caught.value.info.error) is error
        assert caught.value.info.code == code
    assert seen == [code]


async def test_many_short_frames_in_one_read() -> None:
    """Other frames between them change nothing."""

    async def script(peer: RawPeer) -> None:
        await peer.accept()
        short = b"".join(b"\x81\x02%02d" % number for number in range(100))
        await peer.send(short + b"\x89\x01p" + b"\x01\x01a\x80\x01b" + b"\x82\x7e\x00\x7e" + bytes(126) + short * 3)
        await peer.receive_close()
        await peer.close()

    async with raw_server(script) as server, connect(server.url) as conn:
        numbers = [f"{number:02}" for number in range(100)]
        got = [await conn.receive() for _ in range(402)]
        assert got == [*numbers, "ab", bytes(126), *numbers * 3]


async def test_a_silent_server_is_found_out(autojump_clock: trio.testing.MockClock) -> None:
    """The heartbeat pings, and then drops the connection; `heartbeat` sets both of its times."""
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def mute() -> None:
            peer = RawPeer(far)
            await peer.accept()
            await trio.sleep_forever()

        nursery.start_soon(mute)
        async with connect_stream(near, "ws://h/", heartbeat=3) as conn:
            began = trio.current_time()
            with pytest.raises(ConnectionClosedError):
                await conn.receive()
            assert trio.current_time() - began == pytest.approx(6)
            assert conn.close_info is not None
            assert type(conn.close_info.error) is HeartbeatTimeout
        nursery.cancel_scope.cancel()


async def test_no_heartbeat(autojump_clock: trio.testing.MockClock) -> None:
    """`heartbeat=None` turns it off."""
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo, peer := RawPeer(far))
        async with connect_stream(near, "ws://h/", heartbeat=None) as conn:
            await trio.sleep(1000)
            await conn.send("x")
            assert await conn.receive() == "x"
        await far.aclose()
        assert all(frame.first != 0x89 for frame in peer.frames)
        nursery.cancel_scope.cancel()


async def test_backpressure(kind: Kind) -> None:
    """A server that does not read stops `send`, and `send_nowait` obeys `on_slow`."""
    release = trio.Event()

    async def wait(conn: Connection, message: str | bytes) -> None:
        await release.wait()

    app = App()
    Recorder(app, hooks={"message": wait}, receive_buffer=1000)
    options: dict[str, Any] = {"on_slow": "drop", "send_limit": 200_000}
    async with (
        serving(app, kind, lockstep=kind in ("memory", "compressed")) as site,
        client_of(site, **options) as conn,
    ):
        with trio.move_on_after(0.3) as scope:
            for _ in range(10000):
                await conn.send(b"x" * 10000)
        assert scope.cancelled_caught
        assert conn.buffered > 0
        while conn.send_nowait(b"y" * 50000):
            pass
        assert conn.dropped == 1
        assert conn.buffered <= 200_020
        release.set()
        assert await conn.ping() > 0


async def test_a_slow_server_is_given_up() -> None:
    """With `on_slow="close"` the connection ends with 1013."""

    async def script(peer: RawPeer) -> None:
        await peer.accept()
        await trio.sleep(0.3)
        await peer.wait_end()

    async with raw_server(script) as server, connect(server.url, send_limit=1000, close_timeout=0.2) as conn:
        while conn.send_nowait(b"x" * 1_000_000):
            pass
        assert not conn.is_open
        info = await conn.wait_closed()
        assert type(info.error) is SlowConsumer


# Tasks of the connection


async def test_tasks_end_with_the_block(kind: Kind) -> None:
    """They are cancelled when the connection has closed, and have ended when the block is left."""
    app, _ = echo_app()
    log: list[str] = []

    async def work(conn: Connection) -> None:
        try:
            await conn.send("from a task")
            await trio.sleep_forever()
        finally:
            assert conn.close_info is not None
            log.append("ended")

    async with serving(app, kind) as site:
        async with client_of(site) as conn:
            conn.start_soon(work, conn)
            assert await conn.receive() == "from a task"
        assert log == ["ended"]
        with pytest.raises(ConnectionClosed):
            conn.start_soon(work, conn)


async def test_a_task_that_fails(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """The connection ends with 1011, the block hears of it, and the exception leaves the block as it is."""
    app, recorder = echo_app()
    mistake = ValueError("in a task")

    async def fail() -> None:
        raise mistake

    async with serving(app, kind) as site:
        with pytest.raises(ValueError, match="in a task") as caught:  # noqa: PT012 -- the block has to be left by it
            async with client_of(site) as conn:
                conn.start_soon(fail)
                await conn.receive()
        assert caught.value is mistake
        assert isinstance(caught.value.__context__, ConnectionClosed)
        await recorder.check_end(1011, clean=True, initiator="remote", sent=1011, received=1011, error=None)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_task_that_fails_while_the_block_ends_normally() -> None:
    """Its exception leaves the block all the same."""
    app, _ = echo_app()

    async def fail() -> None:
        raise ValueError("in a task")

    async with serving(app) as site:
        with pytest.raises(ValueError, match="in a task"):  # noqa: PT012 -- the block has to be left by it
            async with client_of(site) as conn:
                conn.start_soon(fail)
                await conn.wait_closed()


async def test_a_task_that_fails_beside_the_block(caplog: pytest.LogCaptureFixture) -> None:
    """The exception of the block goes on, and that of the task is logged."""
    app, _ = echo_app()

    async def fail() -> None:
        raise ValueError("in a task")

    async with serving(app) as site:
        with pytest.raises(KeyError, match="block"):  # noqa: PT012 -- the block has to be left by it
            async with client_of(site) as conn:
                conn.start_soon(fail)
                await conn.wait_closed()
                raise KeyError("block")
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "in a task" in record.getMessage()


async def test_a_task_that_exits() -> None:
    """What is no `Exception` leaves the block, and not the task that serves all connections."""
    app, recorder = echo_app()

    async def leave() -> None:
        raise SystemExit(5)

    async with serving(app) as site, client_of(site) as other:
        with pytest.raises(SystemExit):  # noqa: PT012 -- the block has to be left by it
            async with client_of(site) as conn:
                conn.start_soon(leave)
                await conn.receive()
        assert 1001 in [info.code for info in recorder.values("close")]
        await other.send("still here")
        assert await other.receive() == "still here"


# What only a server has


async def test_rooms_and_handlers_are_a_server_s() -> None:
    """Each of these says so."""
    app, _ = echo_app()
    async with serving(app) as site, client_of(site) as conn:
        with pytest.raises(RuntimeError, match="rooms belong to the application of a server"):
            conn.join("room")
        with pytest.raises(RuntimeError, match="rooms belong to the application of a server"):
            conn.leave("room")
        with pytest.raises(RuntimeError, match="rooms belong to the application of a server"):
            conn.publish("room", "x")
        assert conn.rooms == frozenset()
        with pytest.raises(RuntimeError, match="set_handler is for callbacks; a client's block can call"):
            conn.set_handler(Handler())
        with pytest.raises(RuntimeError, match="open one of your own"):
            _ = conn.cancel_scope


# The object that connect returns


async def test_it_is_for_one_connection() -> None:
    """A second use is a mistake, and says what to do."""
    app, _ = echo_app()
    async with serving(app) as site:
        connecting = client_of(site)
        async with connecting:
            with pytest.raises(RuntimeError, match="call connect again"):
                await connecting.__aenter__()
        with pytest.raises(RuntimeError, match="call connect again"):
            await connecting.__aenter__()


async def test_it_works_in_an_asynchronous_generator() -> None:
    """Nothing of it is suspended in a nursery or a cancel scope, so a generator may yield within it."""
    app, recorder = echo_app()

    async with serving(app) as site:

        async def messages() -> AsyncGenerator[str | bytes]:
            async with client_of(site) as conn:
                await conn.send("one")
                async for message in conn:
                    yield message
                    await conn.send("two")

        generator = messages()
        with trio.move_on_after(5):
            assert await anext(generator) == "one"
        with trio.move_on_after(5):
            assert await anext(generator) == "two"
        await generator.aclose()
        await recorder.check_end(1001, clean=True, initiator="remote", sent=1001, received=1001, error=None)


def test_a_generator_that_is_never_closed(recwarn: pytest.WarningsRecorder) -> None:
    """At the end of the Trio run its connection ends, and the run does not wait for it."""
    kept: list[object] = []

    async def main() -> None:
        app, _ = echo_app()

        async def messages(site: object) -> AsyncGenerator[Connection]:
            async with client_of(site) as conn:  # type: ignore[arg-type]
                yield conn

        async with serving(app) as site:
            generator = messages(site)
            conn = await anext(generator)
            kept.extend((generator, conn))
            await site.server.aclose()

    async def bounded() -> None:
        with trio.fail_after(10):
            await main()

    trio.run(bounded)
    conn = kept[1]
    assert isinstance(conn, Connection)
    assert conn.state is State.CLOSED


def test_an_open_connection_at_the_end_of_the_run() -> None:
    """Nobody closes it; the engine and its tasks go with the run, and the connection is lost."""
    kept: list[Connection] = []
    connecting: list[Any] = []
    ended: list[bool] = []

    async def work() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(True)

    async def main() -> None:
        near, far = trio.testing.memory_stream_pair()

        async def accept() -> None:
            await RawPeer(far).accept()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            connecting.append(connect_stream(near, "ws://h/"))
            kept.append(await connecting[0].__aenter__())
            kept[0].start_soon(work)
            await trio.testing.wait_all_tasks_blocked()

    trio.run(main)
    assert ended == [True]
    leaving = connecting[0].__aexit__(None, None, None)
    with pytest.raises(StopIteration):  # without Trio, there is nothing to wait for
        leaving.send(None)
    assert kept[0].state is State.CLOSED
    assert kept[0].close_info is not None
    assert kept[0].close_info.code == 1006


async def test_logging(caplog: pytest.LogCaptureFixture) -> None:
    """One line when a connection opens and one when it ends; with DEBUG, its frames by kind and size."""
    caplog.set_level(logging.DEBUG, "trio_crowws")
    app, _ = echo_app()
    async with serving(app) as site, client_of(site) as conn:
        await conn.send("s3cret")
        assert await conn.receive() == "s3cret"
    lines = [record.getMessage() for record in caplog.records if f"[{conn.id}]" in record.getMessage()]
    assert any("open:" in line for line in lines)
    assert any("closed:" in line and "code=1000" in line for line in lines)
    assert any("sent text, 8 bytes" in line for line in lines)
    assert "s3cret" not in caplog.text


async def test_everything_is_gone_afterwards(kind: Kind) -> None:
    """No task and no descriptor is left, whichever way the block was left."""
    app, recorder = echo_app()
    async with serving(app, kind) as site:
        await trio.testing.wait_all_tasks_blocked()
        for number in range(3):
            async with nothing_left():
                with trio.CancelScope() as scope:
                    try:
                        async with client_of(site) as conn:
                            await conn.send("x")
                            await conn.receive()
                            if number == 1:
                                raise ValueError
                            if number == 2:
                                scope.cancel()
                                await trio.lowlevel.checkpoint()
                    except ValueError:
                        pass
                await recorder.wait("close", number + 1)
                await trio.testing.wait_all_tasks_blocked()
        gc.collect()


# Compression


COMPRESSIONS = [Deflate(), Deflate(threshold=0, server_no_context_takeover=False, client_no_context_takeover=True)]


@pytest.mark.parametrize("compression", COMPRESSIONS, ids=["defaults", "other contexts"])
async def test_compressed_messages_go_both_ways(kind: Kind, compression: Deflate) -> None:
    """Where both sides want it, and large messages only; `compress=` decides for a single one."""
    app, recorder = echo_app(compression=compression)
    large = "all work and no play makes Jack a dull boy\n" * 400
    async with serving(app, kind) as site, client_of(site, compression=compression) as conn:
        assert conn.compression is not None
        assert conn.compression.startswith("permessage-deflate")
        await recorder.wait("open")
        assert recorder.conn.compression == conn.compression
        for message in ("small", large, large.encode(), b"", "ü" * 5000):
            await conn.send(message)
            assert await conn.receive() == message
        assert conn.bytes_received < 10_000
        assert recorder.conn.bytes_received < 10_000
        await conn.send(large, compress=False)
        assert await conn.receive() == large
        assert recorder.conn.bytes_received > len(large)


async def test_compressed_frames_are_masked() -> None:
    """They are frames like all others."""

    async def script(peer: RawPeer) -> None:
        await peer.accept("Sec-WebSocket-Extensions: permessage-deflate")
        while len(peer.frames) < 2:
            peer._take(bytes(await peer.stream.receive_some()))

    compression = Deflate(threshold=0, server_max_window_bits=15, server_no_context_takeover=False)
    async with raw_server(script) as server, connect(server.url, compression=compression, close_timeout=0.2) as conn:
        await conn.send("a" * 1000)
        await conn.send("b" * 1000)
        await until(lambda: len(server.peers[0].frames) >= 2)
        frames = server.peers[0].frames[:2]
    assert [frame.first for frame in frames] == [0xC1, 0xC1]
    assert all(frame.masked for frame in frames)
    assert frames[0].key != frames[1].key
    inflate = zlib.decompressobj(-15)
    assert inflate.decompress(frames[0].payload + b"\x00\x00\xff\xff") == b"a" * 1000


async def test_a_server_that_does_without_compression() -> None:
    """Messages are sent as they are then."""
    async with raw_server(echo) as server, connect(server.url, compression=Deflate(threshold=0)) as conn:
        assert conn.compression is None
        assert server.peers[0].header("Sec-WebSocket-Extensions") is not None
        await conn.send("x" * 5000)
        assert await conn.receive() == "x" * 5000


async def test_a_bomb_of_a_server() -> None:
    """The limit is for what a message becomes."""

    async def script(peer: RawPeer) -> None:
        await peer.accept("Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover")
        squeeze = zlib.compressobj(wbits=-15)
        bomb = (squeeze.compress(bytes(10_000_000)) + squeeze.flush(zlib.Z_SYNC_FLUSH))[:-4]
        await peer.send(b"\xc2\x7e" + len(bomb).to_bytes(2) + bomb)
        await peer.wait_end()

    compression = Deflate(server_max_window_bits=15)
    async with raw_server(script) as server, connect(server.url, compression=compression, close_timeout=0.2) as conn:
        with pytest.raises(ConnectionClosedError) as caught:
            await conn.receive()
        assert type(caught.value.info.error) is PayloadTooBig
