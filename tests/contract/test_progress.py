"""What moves, lives: the clocks run only while a peer takes nothing, and who takes next to nothing is no better.

The bytes travel through real sockets, the clock is the test's own.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from support.blocking import WAIT, Blocking, peers, settle
from support.rawclient import plain
from support.rawserver import accept_head
from support.servers import Kind, Recorder, serving
from trio_crowws import App, CloseTimeout, Connection, HeartbeatTimeout, SlowConsumer, connect
from trio_crowws._transport.base import TurnQueue
from trio_crowws._transport.engine import Engine
from trio_crowws._transport.kernel import unacknowledged
from trio_crowws._transport.poller import Poller, SocketTransport
from trio_crowws._transport.progress import MOST_WINDOWS, Progress, Rest
from trio_crowws._transport.stream import StreamTransport
from trio_crowws._transport.timers import Timers
from trio_crowws.testing import make_frame

KIB = 1024
MIB = 1024 * KIB

BINARY, CLOSE = 2, 8


@pytest.fixture(params=["tcp", "tls", "unix"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of transport with a socket below it."""
    param: Kind = request.param
    return param


@pytest.fixture(params=[True, False], ids=["epoll", "streams"])
def epoll(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With the poller, and with pumps."""
    use_epoll: bool = request.param
    monkeypatch.setattr("trio_crowws._server.Engine", partial(Engine, use_epoll=use_epoll))
    return use_epoll


def sending(size: int) -> Callable[[Connection], Awaitable[None]]:
    async def send(conn: Connection) -> None:
        await conn.send(bytes(size))

    return send


async def pass_by(clock: MockClock, seconds: float, times: int = 1) -> None:
    """Let time pass, and everybody act on it."""
    for _ in range(times):
        await settle()
        clock.jump(seconds)
        await settle()


# While a message is sent


@pytest.mark.usefixtures("epoll")
@pytest.mark.parametrize("send_timeout", [10, None])
async def test_who_reads_slowly_lives(mock_clock: MockClock, kind: Kind, send_timeout: float | None) -> None:
    """A peer that takes some of a large message before each clock is over stays; when it stops, it is given up."""
    app = App(send_timeout=send_timeout)
    recorder = Recorder(app, hooks={"open": sending(8 * MIB)})
    async with serving(app, kind) as site, peers(site, receive_buffer=32 * KIB) as [peer]:
        await recorder.wait("open")
        for _ in range(12):
            await WAIT(peer.read, 200 * KIB)
            await pass_by(mock_clock, 10.001)
            assert recorder.names == ["open"]
        await pass_by(mock_clock, 10.001, 6)
        await recorder.wait("close")
        assert isinstance(recorder.info.error, HeartbeatTimeout if send_timeout is None else SlowConsumer)


@pytest.mark.usefixtures("epoll")
async def test_who_reads_a_byte_now_and_then(mock_clock: MockClock, kind: Kind) -> None:
    """A peer that takes a few bytes before each clock is over does not hold what waits for it."""
    app = App()
    recorder = Recorder(app, hooks={"open": sending(8 * MIB)})
    async with serving(app, kind) as site, peers(site, receive_buffer=4 * KIB) as [peer]:
        await recorder.wait("open")
        for _ in range(4):
            await pass_by(mock_clock, 10.001)
            if "close" not in recorder.names:
                await WAIT(peer.read, 100)
        await pass_by(mock_clock, 10.001, 3)
        await recorder.wait("close")
        assert isinstance(recorder.info.error, SlowConsumer)


async def test_a_ping_behind_what_has_come_through(mock_clock: MockClock) -> None:
    """When everything before a ping has reached the peer, it has all of `ping_timeout` for its pong."""
    app = App()
    recorder = Recorder(app, hooks={"open": sending(MIB)})
    async with serving(app, "tcp") as site, peers(site, receive_buffer=32 * KIB) as [peer]:
        await recorder.wait("open")
        await WAIT(peer.read, 500 * KIB)
        await pass_by(mock_clock, 20.001)  # the ping is sent
        await WAIT(peer.read, 524 * KIB)
        await pass_by(mock_clock, 20.001)
        await pass_by(mock_clock, 19)
        assert recorder.names == ["open"]
        await pass_by(mock_clock, 20.001, 2)
        await recorder.wait("close")
        assert isinstance(recorder.info.error, HeartbeatTimeout)


# While a connection is closed


@pytest.mark.usefixtures("epoll")
async def test_a_close_behind_a_large_message(mock_clock: MockClock, kind: Kind) -> None:
    """What was sent before a Close gets through to a peer that is slow, and then the peer has its time to answer."""
    app = App()
    size = 4 * MIB

    async def send(conn: Connection) -> None:
        await conn.send(bytes(size))
        await conn.close(4000)

    recorder = Recorder(app, hooks={"open": send})
    async with serving(app, kind) as site, peers(site, receive_buffer=32 * KIB) as [peer]:
        left = size + 10
        for _ in range(8):
            await WAIT(peer.read, 200 * KIB)
            left -= 200 * KIB
            await pass_by(mock_clock, 5.001)
            assert "close" not in recorder.names
        await WAIT(peer.read, left)
        assert await WAIT(peer.read_frame) == (CLOSE, struct.pack("!H", 4000))
        await pass_by(mock_clock, 4)
        peer.send(CLOSE, struct.pack("!H", 4000))
        await recorder.wait("close")
        assert recorder.info.clean


@pytest.mark.usefixtures("epoll")
async def test_a_close_that_hardly_moves(mock_clock: MockClock, kind: Kind) -> None:
    """A peer that takes a few bytes now and then of what was sent before a Close is given up."""
    app = App()

    async def send(conn: Connection) -> None:
        await conn.send(bytes(4 * MIB))
        await conn.close(4000)

    recorder = Recorder(app, hooks={"open": send})
    async with serving(app, kind) as site, peers(site, receive_buffer=4 * KIB) as [peer]:
        for _ in range(3):
            if "close" not in recorder.names:
                await WAIT(peer.read, 100)
            await pass_by(mock_clock, 5.001)
        await pass_by(mock_clock, 5.001, 3)
        await recorder.wait("close")
        assert isinstance(recorder.info.error, CloseTimeout)


@pytest.mark.parametrize("fragmented", [True, False])
async def test_a_close_in_the_middle_of_a_frame(mock_clock: MockClock, fragmented: bool) -> None:
    """A peer that is sending a large frame slowly can answer a Close only behind it, and gets the time."""
    app = App()
    recorder = Recorder(app)
    async with serving(app, "tcp") as site, peers(site) as [peer]:
        await recorder.wait("open")
        frame = make_frame(BINARY, bytes(400_000), fin=not fragmented)
        peer.sock.sendall(frame[:50_000])
        await settle()
        recorder.conn.close_nowait(4000)
        for start in range(50_000, 350_000, 50_000):
            peer.sock.sendall(frame[start : start + 50_000])
            await pass_by(mock_clock, 5.001)
            assert "close" not in recorder.names
        peer.sock.sendall(frame[350_000:])
        peer.send(CLOSE, struct.pack("!H", 4000))
        await recorder.wait("close")
        assert recorder.info.clean


async def test_frames_behind_a_close_buy_no_time(mock_clock: MockClock) -> None:
    """A peer that goes on with new frames in place of its Close is given up at `close_timeout`."""
    app = App()
    recorder = Recorder(app)
    async with serving(app, "tcp") as site, peers(site) as [peer]:
        await recorder.wait("open")
        recorder.conn.close_nowait(4000)
        await pass_by(mock_clock, 2)
        peer.sock.sendall(make_frame(BINARY, bytes(400_000))[:50_000])
        await pass_by(mock_clock, 3.001)
        await recorder.wait("close")
        assert isinstance(recorder.info.error, CloseTimeout)


# Answers


def ask(peer: Blocking) -> None:
    peer.shake_hands()
    peer.sock.sendall(plain("/page"))


@pytest.mark.usefixtures("epoll")
async def test_an_answer_to_a_slow_peer(mock_clock: MockClock, kind: Kind) -> None:
    """A large page gets through to a peer that takes it slowly."""
    app = App()
    size = 4 * MIB

    @app.http("/page")
    def page(request: object) -> bytes:
        return bytes(size)

    async with serving(app, kind) as site, peers(site, ask, receive_buffer=32 * KIB) as [peer]:
        assert b" 200 " in await WAIT(peer.read_head)
        for _ in range(8):
            await WAIT(peer.read, 200 * KIB)
            await pass_by(mock_clock, 5.001)
        await WAIT(peer.read, size - 8 * 200 * KIB)


@pytest.mark.usefixtures("epoll")
async def test_an_answer_that_hardly_moves(mock_clock: MockClock, kind: Kind) -> None:
    """A peer that takes a few bytes now and then does not hold a page."""
    app = App()

    @app.http("/page")
    def page(request: object) -> bytes:
        return bytes(4 * MIB)

    async with serving(app, kind) as site, peers(site, ask, receive_buffer=4 * KIB) as [peer]:
        assert b" 200 " in await WAIT(peer.read_head)
        for _ in range(3):
            await pass_by(mock_clock, 5.001)
            if site.server._engine.transports:
                await WAIT(peer.read, 100)
        assert site.server._engine.transports == []


# The client's side


async def test_a_clients_upload(mock_clock: MockClock) -> None:
    """What a client has sent, and its Close, get through to a slow server before the block is over."""
    size = 4 * MIB
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * KIB)
        ended: list[Any] = []

        async def client() -> None:
            async with connect(f"ws://127.0.0.1:{listener.getsockname()[1]}/") as conn:
                await conn.send(bytes(size))
            ended.append(conn.close_info)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(client)
            sock = await accept(listener)
            left = size + 14
            for _ in range(8):
                await WAIT(drain, sock, 200 * KIB)
                left -= 200 * KIB
                await pass_by(mock_clock, 5.001)
                assert not ended
            await WAIT(drain, sock, left)
            assert (await WAIT(drain, sock, 8))[0] == 0x88
            sock.sendall(b"\x88\x02\x03\xe8")
            sock.close()
        assert ended[0].clean


async def test_what_the_kernel_has_taken_outlives_the_block(mock_clock: MockClock) -> None:
    """A client that leaves a server that has closed first does not reset what it has sent to it."""
    size = 100 * KIB
    with socket.create_server(("127.0.0.1", 0)) as listener:

        async def client() -> None:
            async with connect(f"ws://127.0.0.1:{listener.getsockname()[1]}/") as conn:
                await conn.send(bytes(size))
                await conn.wait_closed()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(client)
            sock = await accept(listener)
            sock.sendall(b"\x88\x02\x03\xe8")
            await pass_by(mock_clock, 0.26)  # the block takes no messages, so this is when the Close is answered
            await pass_by(mock_clock, 1.001)
        assert len(await WAIT(drain, sock, size + 14 + 8)) == size + 14 + 8
        assert sock.recv(1) == b""
        sock.close()


async def test_what_the_kernel_has_taken_outlives_the_server(mock_clock: MockClock, kind: Kind) -> None:
    """A server that ends does not reset what a slow peer has yet to read."""
    app = App(unsent_limit=None)
    size = 100 * KIB
    recorder = Recorder(app, hooks={"open": sending(size)})
    async with serving(app, kind) as site, peers(site) as [peer]:
        await recorder.wait("open")
        peer.send(CLOSE, struct.pack("!H", 1000))
        await recorder.wait("close")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(site.server.aclose)
            await pass_by(mock_clock, 1.001, 2)
        await WAIT(peer.read, size + 10)
        assert await WAIT(peer.read_frame) == (CLOSE, struct.pack("!H", 1000))
        assert peer.sock.recv(1) == b""


async def test_an_end_that_is_over() -> None:
    """Not waiting for the end of a transport that has ended changes nothing."""
    timers, turns = Timers(), TurnQueue()
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        poller = Poller(turns, timers)
        transport = SocketTransport(near, poller, turns, timers, None, None)
        transport.start()
        transport.close(timers.tick() + 5, linger=True)
        for _ in range(2):
            transport.end_linger()
            assert transport.closed
        poller._epoll.close()


async def accept(listener: socket.socket) -> socket.socket:
    """A server's end of a connection whose opening handshake is done."""
    sock, _ = await WAIT(listener.accept)
    sock.settimeout(5)
    request = await WAIT(sock.recv, 65536)
    key = request.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
    sock.sendall(accept_head(key.decode()))
    return sock


def drain(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (more := sock.recv(size - len(data))):
        data += more
    return bytes(data)


# What counts


class Way:
    """A way to a peer that has been told where it stands."""

    def __init__(self, written: int) -> None:
        self.written = written
        self.acknowledged = 0


@pytest.mark.parametrize(
    ("written", "taken", "enough"),
    [
        (10 * MIB, 10 * KIB, True),  # 1 KiB for each second
        (10 * MIB, 10 * KIB - 1, False),
        (100_000, 1000, True),  # a hundredth of what waits
        (100_000, 900, False),
        (5000, 50, True),
        (5000, 0, False),
        (5000, 5000, True),
    ],
)
def test_how_much_is_enough(written: int, taken: int, enough: bool) -> None:
    """A peer moves that takes 1 KiB for each second or a hundredth of what waits for it, whichever is less."""
    way = Way(written)
    progress = Progress(way, 10)
    assert progress.pending
    way.acknowledged = taken
    assert progress.look(way, 10) == (20 if enough else None)


def test_each_window_counts_alone() -> None:
    """What was taken in an earlier window does not help in a later one."""
    way = Way(10 * MIB)
    progress = Progress(way, 10)
    way.acknowledged = MIB
    assert progress.look(way, 10) == 20
    assert progress.look(way, 20) is None


def test_little_is_nothing_to_wait_for() -> None:
    """What is as good as delivered gives nobody more time, and neither does what was sent later."""
    way = Way(4096)
    progress = Progress(way, 10)
    assert not progress.pending
    way.written, way.acknowledged = 10 * MIB, 5 * MIB
    assert progress.look(way, 10) is None


def test_one_more_window_when_all_is_taken() -> None:
    """Who has taken everything has one more window, however much is sent meanwhile."""
    way = Way(10 * MIB)
    progress = Progress(way, 10)
    way.written, way.acknowledged = 20 * MIB, 10 * MIB
    assert progress.look(way, 10) == 20
    way.acknowledged = 15 * MIB
    assert progress.look(way, 20) is None


def test_an_endless_way() -> None:
    """Where what is sent later counts as well, a peer that moves has no end."""
    way = Way(MIB)
    progress = Progress(way, 10, endless=True)
    for number in range(1, 1000):
        way.acknowledged += MIB
        way.written += MIB
        assert progress.look(way, 10 * number) == 10 * number + 10


def test_the_absolute_end() -> None:
    """However steadily a peer moves, there is an end where there has to be one."""
    way = Way(10_000 * MIB)
    progress = Progress(way, 5, 5 * MOST_WINDOWS)
    looks: list[float] = [0]
    while looks[-1] < 1000:
        way.acknowledged += MIB
        looks.append(progress.look(way, looks[-1]) or 1000)
    assert looks[-2] == 300


def test_the_rest_of_a_frame() -> None:
    """A frame that comes in counts until its end; another one that has begun does not."""

    class Reader:
        missing = 100_000

    reader = Reader()
    rest = Rest(reader)
    assert (rest.written, rest.acknowledged) == (100_000, 0)
    reader.missing = 60_000
    assert rest.acknowledged == 40_000
    reader.missing = 200_000
    assert rest.acknowledged == 0


async def test_where_the_kernel_does_not_tell() -> None:
    """A closed socket, and a stream that is none, have nothing to tell."""
    sock = socket.socket()
    sock.close()
    assert unacknowledged(sock) is None
    near, _ = trio.testing.memory_stream_pair()
    transport = StreamTransport(near, TurnQueue(), Timers(), None, None)
    assert transport.in_kernel is None
    transport.bytes_sent, transport.buffered = 5, 7
    assert (transport.acknowledged, transport.written) == (5, 12)
