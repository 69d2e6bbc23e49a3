"""`trio_crowws.testing`: what the tests of an application can do with it."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from wsproto.events import Ping, Pong
from wsproto.utilities import generate_accept_token

from support.rawclient import echo_app, until
from trio_crowws import (
    Accept,
    App,
    CloseFrame,
    CloseInfo,
    Connection,
    Deflate,
    HandshakeError,
    HeartbeatTimeout,
    Reject,
    SlowConsumer,
)
from trio_crowws.testing import FaultyStream, Peer, PeerClosed, Refused, connect, shake_hands


class Watched:
    """An echo application that keeps what it hears of its connections."""

    def __init__(self, **options: Any) -> None:
        self.conns: list[Connection] = []
        self.errors: list[Exception] = []
        self.ends: list[CloseInfo] = []
        self.app = App(**options)
        route = self.app.websocket("/echo")

        @route
        async def echo(conn: Connection) -> None:
            self.conns.append(conn)
            async for message in conn:
                await conn.send(message)

        @route.on_error
        def error(conn: Connection, error: Exception) -> None:
            self.errors.append(error)

        @route.on_close
        async def close(conn: Connection, info: CloseInfo) -> None:
            await trio.lowlevel.checkpoint()
            self.ends.append(info)


# Connecting


async def test_a_conversation() -> None:
    """A peer sends text and bytes, and gets what the application answers, with its types."""
    async with connect(echo_app(), "/echo") as peer:
        for message in ("text", b"bytes", "", b"", "\U0001f389" * 1000, bytes(300_000)):
            await peer.send(message)
            assert await peer.receive() == message


async def test_the_request() -> None:
    """Path, query, headers and subprotocols of the request are what the test says; headers may be pairs."""
    for headers in ({"Cookie": "lang=en", "X-A": "1"}, [("Cookie", "lang=en"), ("X-A", "1")]):
        watched = Watched(subprotocols=["v2"])
        async with connect(watched.app, "/echo?a=b", headers=headers, subprotocols=["v1", "v2"]) as peer:
            assert peer.subprotocol == "v2"
        request = watched.conns[0].request
        assert (request.path, request.query["a"], request.cookies, request.headers["x-a"]) == (
            "/echo",
            "b",
            {"lang": "en"},
            "1",
        )
        assert request.subprotocols == ("v1", "v2")
        assert (request.remote_address, request.local_address) == (("testclient", 0), ("testserver", 0))


async def test_the_headers_of_the_101() -> None:
    """A peer knows the headers with which it was accepted."""
    app = echo_app()
    app.routes[0].on_accept(lambda request: Accept(headers=[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]))
    async with connect(app, "/echo") as peer:
        assert peer.headers.get_all("set-cookie") == ("a=1", "b=2")


async def test_a_refusal() -> None:
    """A refusal is raised by itself, with status, headers and body, and takes no time."""
    app = echo_app()
    app.routes[0].on_accept(lambda request: Reject(401, "who?", {"WWW-Authenticate": "Bearer"}))
    with pytest.raises(Refused, match=r"HTTP status 401: b'who\?'") as caught:
        async with connect(app, "/echo"):
            pytest.fail("it was accepted")
    assert (caught.value.status, caught.value.body) == (401, b"who?")
    assert caught.value.headers["www-authenticate"] == "Bearer"


async def test_a_refusal_takes_no_time(autojump_clock: trio.testing.MockClock) -> None:
    """After a refusal nothing is waited for."""
    app = echo_app()
    app.routes[0].on_accept(lambda request: False)
    for path in ("/echo", "/nothing"):
        with pytest.raises(Refused):
            async with connect(app, path):
                pass
    assert trio.current_time() == 0


@pytest.mark.parametrize("error", [AssertionError("no"), KeyError("no")])
async def test_exceptions_of_the_test_come_out_as_they_are(error: Exception) -> None:
    """What is raised in the block leaves it as it is, with its cause, and not in a group."""
    cause = ValueError("why")
    with pytest.raises(type(error)) as caught:
        async with connect(echo_app(), "/echo"):
            raise error from cause
    assert caught.value is error
    assert caught.value.__cause__ is cause


async def test_a_group_of_the_test_stays_a_group() -> None:
    """Only the group that the kit itself would add is taken away."""
    with pytest.raises(ExceptionGroup, match="mine") as caught:
        async with connect(echo_app(), "/echo"):
            raise ExceptionGroup("mine", [KeyError("no")])
    assert [type(error) for error in caught.value.exceptions] == [KeyError]


async def test_an_application_that_cannot_be_served() -> None:
    """A route without a handler is the same ValueError as when serving."""
    app = App()
    app.websocket("/chat")
    with pytest.raises(ValueError, match="has no handler"):
        async with connect(app, "/chat"):
            pytest.fail("it was accepted")


@pytest.mark.parametrize(
    ("app", "message"),
    [
        ("ws://localhost/", r"takes an App and a path, not a URL; use trio_crowws\.connect\(url\)"),
        (None, "takes an App and a path, not NoneType"),
    ],
)
def test_what_is_not_an_application(app: Any, message: str) -> None:
    """It is refused at the call, and whoever has given a URL is told what takes one."""
    with pytest.raises(TypeError, match=message):
        connect(app, "/")


def test_a_wrong_compression() -> None:
    """It is refused at the call, in the words of `connect`."""
    with pytest.raises(TypeError, match=r"option compression=True is not allowed; it must be Deflate\(...\) or None"):
        connect(echo_app(), "/echo", compression=True)  # type: ignore[arg-type]


async def test_leaving_waits_for_on_close() -> None:
    """When the block has ended, on_close has run; a peer that just leaves has closed nothing: 1006."""
    watched = Watched()
    async with connect(watched.app, "/echo") as peer:
        await peer.send("x")
        await peer.receive()
        assert watched.ends == []
    assert [info.code for info in watched.ends] == [1006]
    assert watched.app.connections == frozenset()


async def test_leaving_takes_no_time(autojump_clock: trio.testing.MockClock) -> None:
    """However the block is left, no deadline has to pass."""
    watched = Watched()
    async with connect(watched.app, "/echo"):
        pass
    async with connect(watched.app, "/echo") as peer:
        await peer.close()
    with pytest.raises(KeyError):
        async with connect(watched.app, "/echo"):
            raise KeyError
    with trio.move_on_after(5):
        async with connect(watched.app, "/echo"):
            await trio.sleep_forever()
    assert trio.current_time() == 5
    assert [info.code for info in watched.ends] == [1006, 1000, 1006, 1006]


async def test_peers_of_one_application_meet() -> None:
    """Several peers of one application are in the same rooms, and count for max_connections."""
    app = App(max_connections=2)
    route = app.websocket("/room").onopen(lambda conn: conn.join("lobby"))
    route.onmessage(lambda conn, message: conn.publish("lobby", message))
    async with connect(app, "/room") as ann, connect(app, "/room") as bob:
        await ann.send("hello bob")
        assert await bob.receive() == "hello bob"
        with pytest.raises(Refused) as caught:
            async with connect(app, "/room"):
                pass
        assert caught.value.status == 503


# The peer


async def test_the_server_closes() -> None:
    """When the server closes, receive raises PeerClosed with its Close frame, as often as it is asked."""
    app = App()
    app.websocket("/").onopen(lambda conn: conn.close_nowait(4000, "go"))
    async with connect(app) as peer:
        for _ in range(3):
            with pytest.raises(PeerClosed, match="4000") as caught:
                await peer.receive()
            assert caught.value.close == CloseFrame(4000, "go")
        assert await peer.close() == CloseFrame(4000, "go")


async def test_the_server_aborts() -> None:
    """When the stream ends without a Close frame, PeerClosed has none."""
    app = App()
    app.websocket("/").onopen(lambda conn: conn.abort())
    async with connect(app) as peer:
        with pytest.raises(PeerClosed, match="without a Close frame") as caught:
            await peer.receive()
        assert caught.value.close is None
        assert await peer.receive_close() is None


async def test_the_peer_closes() -> None:
    """Peer.close sends Close and returns the server's; what comes before that is dropped."""
    watched = Watched()
    async with connect(watched.app, "/echo") as peer:
        await peer.send("never read")
        assert await peer.close(4001, "bye") == CloseFrame(4001, "bye")
    [info] = watched.ends
    assert (info.code, info.reason, info.clean, info.initiator) == (4001, "bye", True, "remote")


async def test_a_close_without_a_code() -> None:
    """A Close frame without a code is seen as such."""
    watched = Watched()
    async with connect(watched.app, "/echo") as peer:
        await peer.send_frame(8)
        assert await peer.receive_close() == CloseFrame(None)
    assert watched.ends[0].code == 1005


async def test_a_peer_that_does_not_answer_the_close(autojump_clock: trio.testing.MockClock) -> None:
    """With auto_close off the server's Close is not answered, and the server gives up at its deadline."""
    ends: list[CloseInfo] = []
    app = App()
    app.websocket("/").onopen(lambda conn: conn.close_nowait()).onclose(lambda conn, info: ends.append(info))
    async with connect(app) as peer:
        peer.auto_close = False
        assert await peer.receive_close() == CloseFrame(1000)
        assert trio.current_time() == 5
    assert ends[0].code == 1006


async def test_pings_are_answered() -> None:
    """A peer answers pings while it receives, and reports them as events."""
    app = App()
    latencies: list[float] = []

    @app.websocket("/")
    async def session(conn: Connection) -> None:
        latencies.append(await conn.ping())
        await conn.send("alive")

    async with connect(app) as peer:
        assert isinstance(await peer.receive_event(), Ping)
        assert await peer.receive_event() == "alive"
        assert await peer.receive_event() == CloseFrame(1000)
        assert await peer.receive_event() is None
    assert len(latencies) == 1


async def test_a_peer_can_ping() -> None:
    """The server's pong is an event too."""
    async with connect(echo_app(), "/echo") as peer:
        await peer.ping(b"here?")
        event = await peer.receive_event()
        assert isinstance(event, Pong)
        assert event.payload == b"here?"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ({"opcode": 3}, 1002),
        ({"opcode": 1, "payload": b"\xff"}, 1007),
        ({"opcode": 1, "rsv": 4}, 1002),
        ({"opcode": 1, "mask": False}, 1002),
        ({"opcode": 9, "payload": bytes(126)}, 1002),
        ({"opcode": 9, "fin": False}, 1002),
        ({"opcode": 0}, 1002),
        ({"opcode": 8, "payload": b"\x03"}, 1002),
        ({"opcode": 2, "payload": bytes(70_000)}, 1009),
        ({"opcode": 2, "payload": bytes(200)}, 1009),
    ],
)
async def test_illegal_frames(frame: dict[str, Any], code: int) -> None:
    """A peer can send frames that are illegal in every way."""
    async with connect(echo_app(max_payload=100), "/echo") as peer:
        await peer.send_frame(**frame)
        close = await peer.receive_close()
        assert close is not None
        assert close.code == code


async def test_fragments() -> None:
    """A peer can send a message frame by frame."""
    async with connect(echo_app(), "/echo") as peer:
        await peer.send_frame(1, b"in ", fin=False)
        await peer.send_frame(9, b"ping between")
        await peer.send_frame(0, b"two", fin=True)
        assert await peer.receive() == "in two"


async def test_raw_bytes_and_the_end_of_the_stream() -> None:
    """A peer can send any bytes, and end its direction in the middle of a frame."""
    watched = Watched()
    async with connect(watched.app, "/echo") as peer:
        await peer.send_raw(b"\x81\x85abcd")
        await peer.send_eof()
        assert await peer.receive_close() is None
    assert watched.ends[0].code == 1006


# Faults and time


async def test_a_broken_stream() -> None:
    """A stream that is broken off is a lost connection for the application."""
    watched = Watched()
    async with connect(watched.app, "/echo") as peer:
        assert peer.faults is not None
        await peer.send("x")
        assert await peer.receive() == "x"
        await peer.faults.break_off()
        with pytest.raises(PeerClosed):
            await peer.receive()
    assert [type(error).__name__ for error in watched.errors] == ["ConnectionLost"]


async def test_a_peer_that_stops_reading(autojump_clock: trio.testing.MockClock) -> None:
    """A stalled stream is a peer that does not read: a sender waits, and the connection is given up in time."""
    ends: list[Exception | None] = []
    app = App()

    async def flood(conn: Connection) -> None:
        while True:
            await conn.send(bytes(10_000))

    route = app.websocket("/")
    route(flood)
    route.onclose(lambda conn, info: ends.append(info.error))
    async with connect(app) as peer:
        assert peer.faults is not None
        await peer.receive()
        peer.faults.stall()
        await until(lambda: ends, 60)
    assert isinstance(ends[0], SlowConsumer)
    assert 10 <= trio.current_time() <= 21  # no progress for send_timeout, looked at once in send_timeout


async def test_a_stall_that_ends(autojump_clock: trio.testing.MockClock) -> None:
    """When a stalled stream flows again, everything arrives."""
    async with connect(echo_app(), "/echo") as peer:
        assert peer.faults is not None
        peer.faults.stall()
        await peer.send("late")
        with trio.move_on_after(3) as waiting:
            await peer.receive()
        assert waiting.cancelled_caught
        peer.faults.flow()
        assert await peer.receive() == "late"


async def test_hours_of_heartbeats(autojump_clock: trio.testing.MockClock) -> None:
    """With a MockClock hours pass in a moment, and a peer that answers pings is still connected."""
    async with connect(echo_app(), "/echo") as peer, trio.open_nursery() as nursery:
        pings = 0

        async def listen() -> None:
            nonlocal pings
            while True:
                if isinstance(await peer.receive_event(), Ping):
                    pings += 1

        nursery.start_soon(listen)
        await trio.sleep(6 * 3600)
        nursery.cancel_scope.cancel()
        await peer.send("good morning")
        assert await peer.receive() == "good morning"
    assert pings == pytest.approx(6 * 3600 / 20, abs=2)


async def test_a_dead_peer(autojump_clock: trio.testing.MockClock) -> None:
    """With auto_pong off a peer is dead, and is given up after interval and timeout."""
    watched = Watched(ping_interval=30, ping_timeout=7)
    async with connect(watched.app, "/echo") as peer:
        peer.auto_pong = False
        assert await peer.receive_close() is None
        assert trio.current_time() == pytest.approx(37)
    assert [type(error) for error in watched.errors] == [HeartbeatTimeout]


async def test_streams_of_ones_own() -> None:
    """Other streams can be used, so that a sender waits for its reader, for example."""
    streams = trio.testing.lockstep_stream_pair
    async with connect(echo_app(), "/echo", streams=streams) as peer, trio.open_nursery() as nursery:
        nursery.start_soon(peer.send, "x")
        assert await peer.receive() == "x"


async def test_shaking_hands_over_any_stream() -> None:
    """shake_hands makes a peer of any stream that leads to a server; it has no faults to offer."""
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo_app().serve_stream, far)
        peer: Peer = await shake_hands(near, "/echo", host="example.org", headers={"Origin": "https://example.org"})
        assert peer.faults is None
        await peer.send("x")
        assert await peer.receive() == "x"
        await peer.close()
        await near.aclose()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 101", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhal"])
async def test_a_server_that_breaks_off_its_answer(answer: bytes) -> None:
    """A stream that ends before the answer is complete is a PeerClosed."""
    near, far = trio.testing.memory_stream_pair()
    await far.send_all(answer)
    await far.send_eof()
    with pytest.raises((PeerClosed, Refused)) as caught:
        await shake_hands(near)
    assert isinstance(caught.value, PeerClosed)


async def answer_with(stream: trio.abc.Stream, extensions: str) -> None:
    """Accept a request, and agree on `extensions`, whatever was offered."""
    request = b""
    while not request.endswith(b"\r\n\r\n"):
        request += await stream.receive_some()
    key = request.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {generate_accept_token(key).decode()}",
        f"Sec-WebSocket-Extensions: {extensions}",
    ]
    await stream.send_all("\r\n".join([*lines, "", ""]).encode())


@pytest.mark.parametrize(
    "extensions", ["permessage-deflate; server_max_window_bits=16", "permessage-deflate; unknown", "x"]
)
async def test_a_server_that_answers_what_was_not_offered(extensions: str) -> None:
    """An answer about compression that is not one to the offer is a HandshakeError."""
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_with, far, extensions)
        with pytest.raises(HandshakeError, match="the server accepts an extension that was not offered so"):
            await shake_hands(near, compression=Deflate())


async def test_a_compressed_conversation() -> None:
    """Where both sides have agreed, messages of every kind are sent compressed, and arrive as they were."""
    watched = Watched(compression=Deflate(threshold=0))
    async with connect(watched.app, "/echo", compression=Deflate()) as peer:
        await until(lambda: bool(watched.conns))
        assert peer.compression is not None
        assert peer.compression == watched.conns[0].compression
        for message in ("text " * 1000, b"bytes" * 1000, "", b"", "\U0001f389" * 1000, bytes(300_000)):
            await peer.send(message)
            assert await peer.receive() == message
        await peer.ping(b"?")
        assert isinstance(await peer.receive_event(), Pong)
        assert watched.conns[0].bytes_received < 3000
        assert await peer.close() == CloseFrame(1000)


async def test_a_server_that_sends_what_cannot_be_inflated() -> None:
    """Corrupt data ends the conversation as every breach does: with a Close event that has the code."""
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_with, far, "permessage-deflate")
        peer = await shake_hands(near, compression=Deflate())
        await far.send_all(bytes((0xC2, 3)) + b"\xff\xff\xff")
        close = await peer.receive_event()
        assert isinstance(close, CloseFrame)
        assert close.code == 1007


# FaultyStream by itself


async def test_a_faulty_stream_passes_everything_on() -> None:
    """As long as nothing is wrong, a FaultyStream is the stream inside."""
    near, far = trio.testing.memory_stream_pair()
    faulty = FaultyStream(far)
    await faulty.wait_send_all_might_not_block()
    await faulty.send_all(b"x")
    assert await near.receive_some() == b"x"
    await near.send_all(b"y")
    assert await faulty.receive_some(1) == b"y"
    await faulty.send_eof()
    assert await near.receive_some() == b""
    await faulty.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await faulty.receive_some()
    with pytest.raises(trio.ClosedResourceError):
        await faulty.send_all(b"x")


async def test_a_broken_faulty_stream() -> None:
    """After break_off every operation fails as on a connection that was reset, those that wait as well."""
    _, far = trio.testing.memory_stream_pair()
    faulty = FaultyStream(far)
    faulty.stall()
    failed: list[str] = []

    async def fail(operation: Any, *arguments: object) -> None:
        with pytest.raises(trio.BrokenResourceError, match="broken off by the test"):
            await operation(*arguments)
        failed.append(operation.__name__)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail, faulty.send_all, b"x")
        nursery.start_soon(fail, faulty.receive_some)
        nursery.start_soon(fail, faulty.wait_send_all_might_not_block)
        await trio.testing.wait_all_tasks_blocked()
        assert failed == []
        await faulty.break_off()
    assert sorted(failed) == ["receive_some", "send_all", "wait_send_all_might_not_block"]
    for operation, arguments in ((faulty.send_all, (b"x",)), (faulty.receive_some, ()), (faulty.send_eof, ())):
        await fail(operation, *arguments)


async def test_a_peer_closes_without_a_code() -> None:
    """Peer.close(None) sends a Close frame without a payload; a reason cannot go with it."""
    watched = Watched()
    async with connect(watched.app, "/echo") as peer:
        with pytest.raises(ValueError, match="without a code has no reason"):
            await peer.close(None, "bye")
        assert await peer.close(None) == CloseFrame(None)
    assert watched.ends[0].received == CloseFrame(None)
