"""The heartbeat, in virtual time: who is pinged, who is given up, and who is left alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from trio.testing import MockClock
from wsproto.events import Ping

from support.servers import Recorder, Style, serving
from trio_crowws import App, CloseFrame, CloseInfo, Connection, ConnectionClosed, HeartbeatTimeout, SlowConsumer
from trio_crowws.testing import Peer, connect, make_frame

TEXT, BINARY, PING, PONG = 1, 2, 9, 10


class Listener:
    """Reads for a peer and notes when pings came; pongs go back unless it is told otherwise."""

    def __init__(self, peer: Peer, *, answer: bool = True) -> None:
        peer.auto_pong = answer
        self._peer = peer
        self._start = trio.current_time()
        self.pings: list[float] = []
        self.ended: float | None = None

    async def run(self) -> None:
        while (event := await self._peer.receive_event()) is not None:
            if isinstance(event, Ping):
                self.pings.append(round(trio.current_time() - self._start, 6))
        self.ended = trio.current_time() - self._start


def sleeper(seconds: float) -> Callable[..., Awaitable[None]]:
    """A callback that sleeps."""

    async def sleep(*_: object) -> None:
        await trio.sleep(seconds)

    return sleep


async def test_a_silent_peer_is_pinged_every_interval(autojump_clock: MockClock) -> None:
    """A peer that sends nothing but pongs gets a ping after each `ping_interval`, and stays connected for a day."""
    app = App()
    recorder = Recorder(app)
    async with serving(app) as site, site.connect() as peer, trio.open_nursery() as nursery:
        listener = Listener(peer)
        nursery.start_soon(listener.run)
        await trio.sleep(86_000.5)
        assert listener.pings[:3] == [20, 40, 60]
        assert len(listener.pings) == 86_000 / 20
        assert recorder.names == ["open"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("opcode", [TEXT, PING, PONG])
async def test_whoever_sends_is_not_pinged(autojump_clock: MockClock, opcode: int) -> None:
    """Any frame is a sign of life: the ping comes `ping_interval` seconds after the last one."""
    app = App()
    Recorder(app)
    async with serving(app) as site, site.connect() as peer, trio.open_nursery() as nursery:
        listener = Listener(peer)
        nursery.start_soon(listener.run)
        for _ in range(10):
            await trio.sleep(15)
            await peer.send_frame(opcode)
        await trio.sleep(25)
        assert listener.pings == [170]
        nursery.cancel_scope.cancel()


async def test_a_dead_peer_is_given_up(autojump_clock: MockClock, style: Style) -> None:
    """Without a sign of life within `ping_timeout` after the ping, the connection ends: 1006 and `HeartbeatTimeout`."""
    app = App(ping_interval=20, ping_timeout=15)
    recorder = Recorder(app, style=style)
    async with serving(app) as site, site.connect() as peer, trio.open_nursery() as nursery:
        listener = Listener(peer, answer=False)
        nursery.start_soon(listener.run)
        await recorder.check_end(1006, clean=False, initiator="local", sent=None, received=None, error=HeartbeatTimeout)
        await trio.testing.wait_all_tasks_blocked()
        assert listener.pings == [20]
        assert listener.ended == pytest.approx(35)


async def test_any_frame_after_the_ping_is_life(autojump_clock: MockClock) -> None:
    """A peer that does not answer pings but sends something else is alive."""
    app = App()
    recorder = Recorder(app)
    async with serving(app) as site, site.connect() as peer, trio.open_nursery() as nursery:
        listener = Listener(peer, answer=False)
        nursery.start_soon(listener.run)
        for _ in range(20):
            await trio.sleep(35)
            await peer.send_frame(BINARY, b"I live")
        assert "close" not in recorder.names
        await recorder.wait("close")
        assert isinstance(recorder.info.error, HeartbeatTimeout)
        assert trio.current_time() == pytest.approx(20 * 35 + 40)


async def test_a_part_of_a_frame_is_life(autojump_clock: MockClock) -> None:
    """A peer that is in the middle of a large message is alive."""
    app = App()
    recorder = Recorder(app)
    async with serving(app) as site, site.connect() as peer, trio.open_nursery() as nursery:
        nursery.start_soon(Listener(peer, answer=False).run)
        frame = make_frame(BINARY, bytes(100))
        for index in range(len(frame)):
            await peer.send_raw(frame[index : index + 1])
            await trio.sleep(30)
        assert recorder.values("message") == [bytes(100)]
        assert "close" not in recorder.names
        nursery.cancel_scope.cancel()


async def test_a_pong_in_the_last_moment_counts(autojump_clock: MockClock) -> None:
    """The pong may take all of `ping_timeout`, which may be longer than `ping_interval`."""
    app = App(ping_interval=10, ping_timeout=60)
    recorder = Recorder(app)
    async with serving(app) as site, site.connect() as peer, trio.open_nursery() as nursery:
        listener = Listener(peer, answer=False)
        nursery.start_soon(listener.run)
        for _ in range(5):
            await trio.sleep(69)
            await peer.send_frame(PONG)
        assert "close" not in recorder.names
        assert len(listener.pings) == 5
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("style", ["session", "async", "class"])
async def test_a_slow_handler_is_no_dead_peer(autojump_clock: MockClock, style: Style) -> None:
    """A handler that sleeps three times `ping_interval + ping_timeout` keeps its connection."""
    app = App()

    async def sleep(conn: Connection, message: str) -> None:
        await trio.sleep(3 * (20 + 20))
        await conn.send("good morning")

    recorder = Recorder(app, style=style, hooks={"message": sleep})
    async with serving(app) as site, site.connect() as peer:
        await peer.send("good night")
        assert await peer.receive() == "good morning"
        assert trio.current_time() == pytest.approx(120)
        assert await peer.close() == CloseFrame(1000)
    recorder.check()


async def test_the_clock_stands_still_while_nothing_is_read(autojump_clock: MockClock) -> None:
    """While the receive buffer is full, the peer's pongs cannot be seen, so the peer is not given up."""
    app = App(receive_buffer=1000)
    recorder = Recorder(app, hooks={"message": sleeper(100)})
    async with serving(app) as site, site.connect() as peer, trio.open_nursery() as nursery:
        nursery.start_soon(Listener(peer).run)
        await peer.send_raw(make_frame(BINARY, bytes(500)) * 20)
        await recorder.wait("message", 20)
        assert trio.current_time() == pytest.approx(1900)
        assert "close" not in recorder.names
        await trio.sleep(1000)
        assert "close" not in recorder.names
        nursery.cancel_scope.cancel()


async def test_a_peer_that_died_while_nothing_was_read_is_given_up_later(autojump_clock: MockClock) -> None:
    """When reading goes on, a peer that stays silent has `ping_timeout` seconds from then."""
    app = App(receive_buffer=1000)
    recorder = Recorder(app, hooks={"message": sleeper(50)})
    async with serving(app) as site, site.connect() as peer, trio.open_nursery() as nursery:
        nursery.start_soon(Listener(peer, answer=False).run)
        await peer.send_raw(make_frame(BINARY, bytes(500)) * 5)
        await recorder.wait("close")
        assert isinstance(recorder.info.error, HeartbeatTimeout)
        assert trio.current_time() < 50 * 5 + 20 + 20 + 1


async def test_off_by_none(autojump_clock: MockClock) -> None:
    """With `ping_interval=None` nobody is pinged and nobody given up."""
    app = App(ping_interval=None)
    recorder = Recorder(app)
    async with serving(app) as site, site.connect() as peer, trio.open_nursery() as nursery:
        listener = Listener(peer, answer=False)
        nursery.start_soon(listener.run)
        await trio.sleep(86400)
        assert listener.pings == []
        assert recorder.names == ["open"]
        nursery.cancel_scope.cancel()


async def test_pings_without_a_timeout(autojump_clock: MockClock) -> None:
    """With `ping_timeout=None` a silent peer is pinged on and on, and never given up."""
    app = App(ping_timeout=None)
    recorder = Recorder(app)
    async with serving(app) as site, site.connect() as peer, trio.open_nursery() as nursery:
        listener = Listener(peer, answer=False)
        nursery.start_soon(listener.run)
        await trio.sleep(20_001)
        assert len(listener.pings) == 1000
        assert recorder.names == ["open"]
        nursery.cancel_scope.cancel()


async def test_the_heartbeat_ends_with_the_connection(autojump_clock: MockClock) -> None:
    """After the peer's Close there are no more pings, and after the end no callback."""
    app = App(ping_interval=1)
    recorder = Recorder(app, hooks={"pong": lambda conn, payload: None, "message": sleeper(100)})
    async with serving(app) as site, site.connect() as peer:
        await peer.send("work")
        await recorder.wait("message")
        assert await peer.close() == CloseFrame(1000)
        await trio.sleep(200)
    recorder.check()


# `conn.ping()`


async def answer_after(peer: Peer, delay: float) -> None:
    peer.auto_pong = False
    while (event := await peer.receive_event()) is not None:
        if isinstance(event, Ping):
            await trio.sleep(delay)
            await peer.send_frame(PONG, bytes(event.payload))


async def test_ping_returns_the_round_trip(autojump_clock: MockClock) -> None:
    """`conn.ping()` returns the seconds until its pong came, and they are `conn.latency`."""
    app = App()
    recorder = Recorder(app)
    async with serving(app) as site, site.connect() as peer, trio.open_nursery() as nursery:
        await recorder.wait("open")
        assert recorder.conn.latency is None
        nursery.start_soon(answer_after, peer, 0.25)
        assert await recorder.conn.ping() == pytest.approx(0.25)
        assert recorder.conn.latency == pytest.approx(0.25)
        nursery.cancel_scope.cancel()


async def test_the_heartbeat_measures_the_latency(autojump_clock: MockClock) -> None:
    """`conn.latency` is kept up to date by the heartbeat."""
    app = App()
    recorder = Recorder(app)
    async with serving(app) as site, site.connect() as peer, trio.open_nursery() as nursery:
        nursery.start_soon(answer_after, peer, 0.5)
        await trio.sleep(21)
        assert recorder.conn.latency == pytest.approx(0.5)
        nursery.cancel_scope.cancel()


async def test_a_foreign_pong_is_no_answer(autojump_clock: MockClock) -> None:
    """A pong that quotes no ping of ours measures nothing (RFC 6455 section 5.5.3)."""
    app = App()
    recorder = Recorder(app)
    async with serving(app) as site, site.connect() as peer:
        await recorder.wait("open")
        peer.auto_pong = False
        with trio.move_on_after(5) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(recorder.conn.ping)
                await peer.receive_event()
                await peer.send_frame(PONG, b"unasked")
        assert scope.cancelled_caught
        assert recorder.conn.latency is None


async def test_one_pong_answers_all_earlier_pings(autojump_clock: MockClock) -> None:
    """A peer may answer only the newest of several pings; none of the callers waits for ever, however many they are."""
    app = App()
    recorder = Recorder(app)
    done: list[float] = []
    async with serving(app) as site, site.connect() as peer:
        await recorder.wait("open")
        peer.auto_pong = False

        async def ping() -> None:
            done.append(await recorder.conn.ping())

        async with trio.open_nursery() as nursery:
            payload = b""
            for _ in range(100):
                nursery.start_soon(ping)
                event = await peer.receive_event()
                assert isinstance(event, Ping)
                payload = bytes(event.payload)
            await peer.send_frame(PONG, payload)
    assert len(done) == 100


async def test_a_cancelled_ping_leaves_the_connection_as_it_was(autojump_clock: MockClock) -> None:
    """A cancelled `conn.ping()` only stops waiting; its pong is ignored."""
    app = App()
    recorder = Recorder(app)
    async with serving(app) as site, site.connect() as peer:
        await recorder.wait("open")
        for _ in range(200):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(recorder.conn.ping)
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
        await peer.send("hello")
        assert await peer.receive() == "hello"
        await peer.close()
    recorder.check()


async def test_ping_ends_with_the_connection(autojump_clock: MockClock) -> None:
    """A `conn.ping()` that is not answered raises `ConnectionClosed` when the heartbeat has ended the connection."""
    app = App()
    recorder = Recorder(app)
    async with serving(app) as site, site.connect() as peer:
        await recorder.wait("open")
        peer.auto_pong = False
        with pytest.raises(ConnectionClosed) as caught:
            await recorder.conn.ping()
        assert isinstance(caught.value.info.error, HeartbeatTimeout)
        await recorder.wait("close")


async def test_on_ping_and_on_pong_hear_of_them(autojump_clock: MockClock) -> None:
    """`on_ping` and `on_pong` get the payloads, in order with the messages; pings are answered without `on_ping`."""
    app = App()
    recorder = Recorder(app, hooks={"ping": lambda *_: None, "pong": lambda *_: None, "message": lambda *_: None})
    async with serving(app) as site, site.connect() as peer:
        await peer.send_raw(
            make_frame(TEXT, b"one") + make_frame(PING, b"p1") + make_frame(TEXT, b"two") + make_frame(PONG, b"p2")
        )
        await peer.close()
    assert [(note.name, note.value) for note in recorder.notes][1:-1] == [
        ("message", "one"),
        ("ping", b"p1"),
        ("message", "two"),
        ("pong", b"p2"),
    ]


async def test_each_connection_has_its_own_clock(autojump_clock: MockClock) -> None:
    """One dead peer is given up; the others are not disturbed."""
    app = App()
    recorder = Recorder(app)
    async with serving(app) as site, site.connect() as dead, site.connect() as alive, trio.open_nursery() as nursery:
        nursery.start_soon(Listener(dead, answer=False).run)
        nursery.start_soon(Listener(alive).run)
        await trio.sleep(300)
        assert len(recorder.values("close")) == 1
        assert len(app.connections) == 1
        nursery.cancel_scope.cancel()


async def test_a_slow_reader_is_no_dead_peer(autojump_clock: MockClock) -> None:
    """A ping that waits behind a large message which the peer takes slowly does not time out."""
    app = App()
    size = 1 << 20

    @app.websocket("/")
    async def send_it(conn: Connection) -> None:
        await conn.send(bytes(size))
        await conn.wait_closed()

    # In lockstep nothing is on its way: what the peer does not take, the server cannot send.
    async with connect(app, "/", streams=trio.testing.lockstep_stream_pair) as peer:
        peer.pause_reading()
        taken = 0
        while taken < size:
            await trio.sleep(8)
            taken += len(await peer.stream.receive_some(65536))
        (conn,) = app.connections
        assert conn.is_open
        assert trio.current_time() > 120


async def test_a_peer_that_takes_nothing_is_given_up_sooner(autojump_clock: MockClock) -> None:
    """A peer that takes nothing of a large message is given up by `send_timeout`, not by the heartbeat."""
    app = App(send_timeout=10)
    ended: list[CloseInfo] = []

    @app.websocket("/")
    async def send_it(conn: Connection) -> None:
        await conn.send(bytes(1 << 20))
        ended.append(await conn.wait_closed())

    async with connect(app, "/", streams=trio.testing.lockstep_stream_pair):
        await trio.sleep(11)
    assert isinstance(ended[0].error, SlowConsumer)
