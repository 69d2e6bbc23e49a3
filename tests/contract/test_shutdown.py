"""The end of a server: everybody is told, every `on_close` runs, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from support.processes import port_of, started, status, wait
from support.servers import Kind, Recorder, Site, Style, serving, shared_tls, until
from trio_crowws import App, CloseFrame, CloseTimeout, Connection
from trio_crowws.testing import Peer, PeerClosed, Refused, make_frame, shake_hands

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: testserver\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


async def sleep_forever(*_: object) -> None:
    """A callback that never returns."""
    await trio.sleep_forever()


async def read_all(stream: trio.abc.Stream) -> bytes:
    """Everything until the end of the stream; a Close frame is answered, and a reset counts as an end."""
    data = b""
    try:
        while chunk := await stream.receive_some():
            data += chunk
            if data[-4:-2] == b"\x88\x02":
                await stream.send_all(make_frame(8, data[-2:]))
    except trio.BrokenResourceError:
        pass
    return data


async def shut(site: Site, how: str) -> None:
    """Shut down in one of three ways, and wait until that is done."""
    if how == "cancel":
        site.scope.cancel()
    elif how == "aclose":
        await site.server.aclose()
    else:
        await site.server.drain(linger=0)
    await site.ended.wait()


CODES = {"aclose": 1001, "drain": 1012, "cancel": 1001}


@pytest.fixture(params=CODES)
def how(request: pytest.FixtureRequest) -> str:
    """Each way to shut a server down."""
    param: str = request.param
    return param


# Who is told


async def test_cooperative_peers_see_the_close_frame(kind: Kind, how: str) -> None:
    """Every peer that reads sees a Close frame, 1012 after `drain` and else 1001, and each connection ends cleanly."""
    app = App()
    recorder = Recorder(app)
    closes: list[CloseFrame | None] = []

    async with serving(app, kind) as site, trio.open_nursery() as nursery:

        async def stay() -> None:
            async with site.connect() as peer:
                await peer.send("hello")
                closes.append(await peer.receive_close())

        for _ in range(20):
            nursery.start_soon(stay)
        await recorder.wait("message", 20)
        await shut(site, how)
        assert not app.connections
        assert not site.server.connections
    recorder.check()
    assert closes == [CloseFrame(CODES[how])] * 20
    assert [info.clean for info in recorder.values("close")] == [True] * 20


async def test_cooperative_peers_see_the_close_frame_in_every_style(style: Style, how: str) -> None:
    """The same in every style of handler."""
    app = App()
    recorder = Recorder(app, style=style)
    async with serving(app) as site, site.connect() as peer, trio.open_nursery() as nursery:
        await recorder.wait("open")
        nursery.start_soon(shut, site, how)
        code = CODES[how]
        assert await peer.receive_close() == CloseFrame(code)
        await recorder.check_end(code, clean=True, initiator="local", sent=code, received=code, error=None)


async def test_what_was_sent_arrives_before_the_close_frame(kind: Kind, how: str) -> None:
    """Messages that a handler has sent before the shutdown are not lost by it."""
    app = App(send_limit=1 << 24)

    def flood(conn: Connection) -> None:
        for number in range(200):
            conn.send_nowait(number.to_bytes(4) + bytes(10_000))

    Recorder(app, hooks={"open": flood})
    async with serving(app, kind) as site, site.connect() as peer, trio.open_nursery() as nursery:
        nursery.start_soon(shut, site, how)
        numbers: list[int] = []
        with pytest.raises(PeerClosed) as caught:
            await collect_numbers(peer, numbers)
        assert numbers == list(range(200))
        assert caught.value.close == CloseFrame(CODES[how])


async def collect_numbers(peer: Peer, numbers: list[int]) -> None:
    while True:
        message = await peer.receive()
        assert isinstance(message, bytes)
        numbers.append(int.from_bytes(message[:4]))


async def test_every_on_close_has_run_when_serve_returns(kind: Kind, how: str) -> None:
    """`serve` returns behind the last `on_close`, even if that takes its time."""
    app = App()
    done: list[Connection] = []

    async def store(conn: Connection, info: object) -> None:
        await trio.sleep(0.05)
        done.append(conn)

    recorder = Recorder(app, hooks={"close": store})
    async with serving(app, kind) as site, site.connect() as one, site.connect() as two:
        await recorder.wait("open", 2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.receive_close)
            nursery.start_soon(two.receive_close)
            await shut(site, how)
            assert len(done) == 2


async def test_drain_with_a_code(kind: Kind) -> None:
    """`drain(code=...)` closes with that code."""
    app = App()
    Recorder(app)
    async with serving(app, kind) as site, site.connect() as peer, trio.open_nursery() as nursery:
        nursery.start_soon(partial(site.server.drain, code=4321))
        assert await peer.receive_close() == CloseFrame(4321)


async def test_drain_refuses_nonsense() -> None:
    """A code that must not be sent, or a negative time, is a ValueError, and the server serves on."""
    app = App()
    Recorder(app)
    async with serving(app) as site, site.connect() as peer:
        nonsense: list[dict[str, Any]] = [{"code": 1005}, {"linger": float("nan")}]
        nonsense += [{"grace": -1}, {"spread": -1}, {"linger": -1}]
        for wrong in nonsense:
            with pytest.raises((ValueError, TypeError), match=f"code|{next(iter(wrong))}="):
                await site.server.drain(**wrong)
        for name in ("grace", "spread", "linger"):
            with pytest.raises(TypeError, match=f"{name}='1' is not allowed"):
                await site.server.drain(**{name: "1"})  # type: ignore[arg-type]
        assert not site.server.closing
        await peer.send("hello")
        assert await peer.receive() == "hello"


async def test_the_first_shutdown_counts() -> None:
    """A second `drain` or `aclose` waits for the first one, whose code it is; both return when the server has ended."""
    app = App()
    Recorder(app)
    async with serving(app) as site, site.connect() as peer, trio.open_nursery() as nursery:
        nursery.start_soon(partial(site.server.drain, code=4321))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(site.server.aclose)
        assert site.server.closing
        assert await peer.receive_close() == CloseFrame(4321)
    assert site.ended.is_set()
    await site.server.aclose()


async def test_a_cancelled_drain_goes_on() -> None:
    """Cancelling `drain` only stops the waiting."""
    app = App()
    recorder = Recorder(app)
    async with serving(app) as site, site.connect() as peer:
        await recorder.wait("open")
        with trio.move_on_after(0):
            await site.server.drain()
        assert await peer.receive_close() == CloseFrame(1012)
        await site.ended.wait()


async def test_a_spread_drain(autojump_clock: trio.testing.MockClock) -> None:
    """`drain(spread=...)` sends the Close frames one after the other over that time."""
    app = App()
    recorder = Recorder(app)
    times: list[float] = []
    async with serving(app) as site, trio.open_nursery() as nursery:
        start = trio.current_time()

        async def stay() -> None:
            async with site.connect() as peer:
                assert await peer.receive_close() == CloseFrame(1012)
                times.append(trio.current_time() - start)

        for _ in range(30):
            nursery.start_soon(stay)
        await recorder.wait("open", 30)
        nursery.start_soon(partial(site.server.drain, spread=30))
        await trio.sleep(15.5)
        assert 14 <= len(times) <= 17
        assert site.server.closing
    assert sorted(times) == pytest.approx([float(number) for number in range(30)])
    recorder.check()


async def test_aclose_makes_a_drain_hurry(autojump_clock: trio.testing.MockClock) -> None:
    """`aclose` during a spread `drain`: all that have no Close yet get it now, with the code of the `drain`."""
    app = App(shutdown_grace=10)
    recorder = Recorder(app)
    async with serving(app) as site, trio.open_nursery() as nursery:
        start = trio.current_time()

        async def stay() -> None:
            async with site.connect() as peer:
                assert await peer.receive_close() == CloseFrame(1012)

        for _ in range(10):
            nursery.start_soon(stay)
        await recorder.wait("open", 10)
        nursery.start_soon(partial(site.server.drain, 500, spread=1000))
        await trio.sleep(150)
        assert len(recorder.values("close")) == 2
        await site.server.aclose()
        assert trio.current_time() - start < 152
    recorder.check()


async def test_aclose_shortens_the_grace_of_a_drain(autojump_clock: trio.testing.MockClock) -> None:
    """`aclose` in the grace of a `drain` leaves the handlers `shutdown_grace`, unless the `drain` leaves them less."""
    app = App(shutdown_grace=10)
    recorder = Recorder(app, hooks={"message": sleep_forever})
    for grace, after in ((500, 60), (55, 55)):
        async with serving(app) as site, site.connect() as peer, trio.open_nursery() as nursery:
            await peer.send("sleep")
            await recorder.wait("message")
            start = trio.current_time()
            nursery.start_soon(partial(site.server.drain, grace, linger=0))
            nursery.start_soon(peer.receive_close)
            await trio.sleep(50)
            assert not site.ended.is_set()
            await site.server.aclose()
            assert trio.current_time() - start == pytest.approx(after, abs=1)
        recorder.notes.clear()


# Handshakes that have begun, and a drain that lets them finish


@pytest.mark.parametrize("sent", [b"", REQUEST[:5], REQUEST[:-2]], ids=["nothing", "a-little", "nearly-all"])
async def test_a_drain_lets_handshakes_finish(kind: Kind, sent: bytes) -> None:
    """A peer in the middle of its request may finish it while `drain` lingers: it gets its 101 and then the Close."""
    app = App()
    recorder = Recorder(app)
    async with serving(app, kind) as site, trio.open_nursery() as nursery:
        stream = await site.open_stream()
        if isinstance(stream, trio.SSLStream):
            await stream.do_handshake()
        if sent:
            await stream.send_all(sent)
        await until_quiet(kind)
        nursery.start_soon(partial(site.server.drain, linger=60))
        await until_quiet(kind)
        assert site.server.closing
        await stream.send_all(REQUEST[len(sent) :])
        answer = await read_all(stream)
        await trio.aclose_forcefully(stream)
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert answer.endswith(b"\r\n\r\n\x88\x02" + (1012).to_bytes(2))
    recorder.check()


async def test_a_drain_lets_a_decision_finish(kind: Kind) -> None:
    """A request that is being decided about is decided while `drain` lingers."""
    app = App()
    asked = trio.Event()
    decided = trio.Event()

    async def decide(request: object) -> None:
        asked.set()
        await decided.wait()

    recorder = Recorder(app, hooks={"accept": decide})
    async with serving(app, kind) as site, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def drain_when_asked() -> None:
            await asked.wait()
            nursery.start_soon(partial(site.server.drain, linger=60))
            await until_quiet(kind)
            decided.set()

        async with site.connect() as peer:
            assert await peer.receive_close() == CloseFrame(1012)
    recorder.check()
    assert recorder.info.clean


@pytest.mark.parametrize("count", [3, 100])
async def test_a_drain_takes_those_whom_the_kernel_has_connected(kind: Kind, count: int) -> None:
    """Peers that wait to be accepted when `drain` begins are accepted: nobody who was connected is reset."""
    app = App()
    recorder = Recorder(app)
    answers: list[bytes] = []
    async with serving(app, kind) as site, trio.open_nursery() as nursery:
        await trio.testing.wait_all_tasks_blocked()
        streams = [connect_without_a_turn(site) for _ in range(count)]
        nursery.start_soon(partial(site.server.drain, linger=60))

        async def ask(stream: trio.abc.Stream) -> None:
            await stream.send_all(REQUEST)
            answers.append(await read_all(stream))
            await trio.aclose_forcefully(stream)

        for stream in streams:
            nursery.start_soon(ask, stream)
    assert [answer[:13] for answer in answers] == [b"HTTP/1.1 101 "] * count
    assert {answer[-4:] for answer in answers} == {b"\x88\x02" + (1012).to_bytes(2)}
    recorder.check()


def connect_without_a_turn(site: Site) -> trio.abc.Stream:
    """A stream to the server, which gets no chance to accept it meanwhile."""
    if site.kind == "memory":
        return site.listener.connect()
    sock = socket.socket(socket.AF_UNIX if site.kind == "unix" else socket.AF_INET)
    [address] = site.server.addresses
    sock.connect(address)
    plain = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    if site.kind == "tls":
        return trio.SSLStream(plain, shared_tls().client, server_hostname="localhost", https_compatible=True)
    return plain


async def test_the_end_while_the_queue_is_emptied() -> None:
    """`abort` in the moment when `drain` accepts the last peers ends the server."""
    for delay in range(6):
        app = App()
        Recorder(app)
        async with serving(app, "tcp") as site, trio.open_nursery() as nursery:
            await trio.testing.wait_all_tasks_blocked()
            streams = [connect_without_a_turn(site) for _ in range(200)]
            nursery.start_soon(site.server.drain)
            for _ in range(delay):
                await trio.lowlevel.checkpoint()
            site.server.abort()
            await site.ended.wait()
            for stream in streams:
                await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("hurry", [False, True], ids=["linger-is-over", "aclose"])
async def test_a_handshake_that_lasts_longer_gets_503(autojump_clock: trio.testing.MockClock, hurry: bool) -> None:
    """What has not finished its handshake when `linger` is over, or when `aclose` is called, gets a 503."""
    app = App(handshake_timeout=1000)
    recorder = Recorder(app)
    async with serving(app) as site, site.connect() as peer, trio.open_nursery() as nursery:
        stream = await site.open_stream()
        await stream.send_all(REQUEST[:-2])
        await recorder.wait("open")
        nursery.start_soon(partial(site.server.drain, linger=100))
        assert await peer.receive_close() == CloseFrame(1012)
        start = trio.current_time()
        if hurry:
            await trio.sleep(50)
            nursery.start_soon(site.server.aclose)
        assert (await read_all(stream)).startswith(b"HTTP/1.1 503 ")
        assert trio.current_time() - start == pytest.approx(50 if hurry else 100, abs=1)
    recorder.check()


async def test_a_drain_without_handshakes_does_not_linger(autojump_clock: trio.testing.MockClock) -> None:
    """Where no handshake has begun there is nothing to wait for."""
    app = App()
    Recorder(app)
    async with serving(app) as site, site.connect() as peer, trio.open_nursery() as nursery:
        nursery.start_soon(peer.receive_close)
        start = trio.current_time()
        await site.server.drain(linger=100)
        assert trio.current_time() - start < 2


async def test_who_opens_during_a_spread_drain_is_told_last(autojump_clock: trio.testing.MockClock) -> None:
    """A connection that opens while the Close frames are spread gets its own behind the last of them, and no later."""
    app = App(handshake_timeout=1000, ping_interval=None)
    recorder = Recorder(app)
    async with serving(app) as site, trio.open_nursery() as nursery:
        start = trio.current_time()
        stream = await site.open_stream()
        await stream.send_all(REQUEST[:-2])

        async def stay() -> None:
            async with site.connect() as peer:
                assert await peer.receive_close() == CloseFrame(1012)

        for _ in range(2):
            nursery.start_soon(stay)
        await recorder.wait("open", 2)
        nursery.start_soon(partial(site.server.drain, spread=100, linger=1000))
        await trio.sleep(10)
        await stream.send_all(REQUEST[-2:])
        assert (await read_all(stream))[-4:] == b"\x88\x02" + (1012).to_bytes(2)
        assert trio.current_time() - start == pytest.approx(100, abs=2)
        await trio.aclose_forcefully(stream)
    recorder.check()


# Who cannot hold it up


async def test_handlers_that_sleep_do_not_hold_it_up(autojump_clock: trio.testing.MockClock, how: str) -> None:
    """A handler in `trio.sleep_forever()` is cancelled when the grace is over, and after a cancellation at once."""
    app = App(shutdown_grace=20)
    recorder = Recorder(app, hooks={"message": sleep_forever})
    async with serving(app) as site, site.connect() as peer, trio.open_nursery() as nursery:
        await peer.send("sleep")
        await recorder.wait("message")
        nursery.start_soon(peer.receive_close)
        start = trio.current_time()
        await shut(site, how)
        assert trio.current_time() - start == pytest.approx(0 if how == "cancel" else 20, abs=1)
        code = CODES[how]
        await recorder.check_end(code, clean=True, initiator="local", sent=code, received=code, error=None)


@pytest.mark.parametrize("how", ["aclose", "drain"])
@pytest.mark.parametrize("style", ["async", "session", "class"])
async def test_a_handler_has_the_grace(autojump_clock: trio.testing.MockClock, style: Style, how: str) -> None:
    """A handler that runs on after its connection has closed has until the grace is over, not `callback_timeout`."""
    app = App(shutdown_grace=20, callback_timeout=1)
    saved: list[float] = []

    async def save(conn: Connection, message: object) -> None:
        await conn.wait_closed()
        await trio.sleep(15)
        saved.append(trio.current_time())

    recorder = Recorder(app, style=style, hooks={"message": save})
    async with serving(app) as site, site.connect() as peer, trio.open_nursery() as nursery:
        await peer.send("save")
        await recorder.wait("message")
        nursery.start_soon(peer.receive_close)
        start = trio.current_time()
        await shut(site, how)
        assert saved == [pytest.approx(start + 15, abs=1)]
        assert trio.current_time() == pytest.approx(saved[0], abs=1)
    recorder.check()


async def test_peers_that_do_not_answer_do_not_hold_it_up(autojump_clock: trio.testing.MockClock, how: str) -> None:
    """A peer that does not answer has `close_timeout` seconds, and one second after a cancellation."""
    app = App()
    recorder = Recorder(app)
    async with serving(app) as site, site.connect() as peer:
        peer.auto_close = False
        await recorder.wait("open")
        start = trio.current_time()
        await shut(site, how)
        took = trio.current_time() - start
        code = CODES[how]
        await recorder.check_end(1006, clean=False, initiator="local", sent=code, received=None, error=CloseTimeout)
    assert took <= (1 if how == "cancel" else 6)


async def test_the_grace_bounds_everything(autojump_clock: trio.testing.MockClock) -> None:
    """After `grace` seconds what still runs is cancelled, and ends as after a cancellation."""
    app = App()
    recorder = Recorder(app, hooks={"message": sleep_forever})
    async with serving(app) as site, site.connect() as peer:
        peer.auto_close = False
        await peer.send("sleep")
        await recorder.wait("message")
        start = trio.current_time()
        await site.server.drain(grace=2)
        assert trio.current_time() - start <= 3
    recorder.check()


async def test_callbacks_that_hang_do_not_hold_it_up(autojump_clock: trio.testing.MockClock, how: str) -> None:
    """`on_error` and `on_close` have `callback_timeout` seconds in a shutdown as well, and no more."""
    app = App(callback_timeout=3)
    recorder = Recorder(app, hooks={"close": sleep_forever})
    async with serving(app) as site, site.connect() as peer, trio.open_nursery() as nursery:
        await recorder.wait("open")
        nursery.start_soon(peer.receive_close)
        start = trio.current_time()
        await shut(site, how)
        assert 3 <= trio.current_time() - start <= 4
    recorder.check()


async def test_a_peer_that_does_not_read_does_not_hold_it_up(autojump_clock: trio.testing.MockClock, how: str) -> None:
    """A peer whose stream is full never gets its Close frame; the server ends all the same, in bounded time."""
    app = App()
    recorder = Recorder(app)
    async with serving(app) as site, site.connect():
        await recorder.wait("open")
        site.listener.faults.stall()
        recorder.conn.send_nowait(bytes(100_000))
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
        await shut(site, how)
        assert trio.current_time() - start <= 7
    recorder.check()


# Half-open handshakes


@pytest.mark.parametrize("sent", [b"", REQUEST[:5], REQUEST[:-2]], ids=["nothing", "a-little", "nearly-all"])
async def test_half_open_handshakes_get_503(kind: Kind, how: str, sent: bytes) -> None:
    """A peer that is in the middle of its request is answered with a complete 503."""
    app = App()
    recorder = Recorder(app)
    async with serving(app, kind) as site:
        stream = await site.open_stream()
        if isinstance(stream, trio.SSLStream):
            await stream.do_handshake()
        if sent:
            await stream.send_all(sent)
        await until_quiet(kind)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shut, site, how)
            answer = await read_all(stream)
            await trio.aclose_forcefully(stream)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"\r\n\r\n" in answer
    assert recorder.names == []


async def until_quiet(kind: Kind) -> None:
    """Let the server read what was sent."""
    await trio.testing.wait_all_tasks_blocked(0 if kind == "memory" else 0.01)


@pytest.mark.parametrize("where", ["accept", "middleware"])
async def test_a_request_that_is_being_decided_about_gets_503(kind: Kind, how: str, where: str) -> None:
    """While `on_accept` or a middleware runs, a shutdown interrupts it, and the peer gets a 503."""
    app = App()
    asked = trio.Event()
    ended: list[type[BaseException]] = []

    async def decide(request: object) -> None:
        asked.set()
        try:
            await trio.sleep_forever()
        except BaseException as error:
            ended.append(type(error))
            raise

    recorder = Recorder(app, hooks={"accept": decide} if where == "accept" else {})
    if where == "middleware":
        app.middleware(decide)
    async with serving(app, kind) as site, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def shut_when_asked() -> None:
            await asked.wait()
            await shut(site, how)

        with pytest.raises(Refused) as caught:
            async with site.connect():
                pass
        assert caught.value.status == 503
        assert caught.value.headers.get("retry-after") is not None
    assert ended == [trio.Cancelled]
    assert recorder.names == []


@pytest.mark.parametrize("how", ["aclose", "drain"])
async def test_a_connection_that_is_accepted_all_the_same_is_closed(kind: Kind, how: str) -> None:
    """An `on_accept` that cannot be interrupted may accept; its connection gets the Close of the others."""
    app = App()
    asked = trio.Event()

    async def decide(request: object) -> None:
        asked.set()
        with trio.CancelScope(shield=True):
            await trio.sleep(0.02)

    recorder = Recorder(app, style="session", hooks={"accept": decide})
    async with serving(app, kind) as site, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def shut_when_asked() -> None:
            await asked.wait()
            await shut(site, how)

        async with site.connect() as peer:
            assert await peer.receive_close() == CloseFrame(CODES[how])
            await recorder.wait("close")
    recorder.check()
    assert recorder.info.clean


@pytest.mark.parametrize("delay", range(0, 16, 3))
async def test_a_connection_in_the_moment_of_the_shutdown(kind: Kind, how: str, delay: int) -> None:
    """Whoever comes while the server shuts down gets a Close, a 503, or no answer at all, and `serve` ends well."""
    app = App()
    recorder = Recorder(app)
    for extra in range(3):
        async with serving(app, kind) as site, trio.open_nursery() as nursery:
            streams = [await site.open_stream() for _ in range(3)]
            answers: list[bytes] = []

            async def ask(stream: trio.abc.Stream, answers: list[bytes] = answers) -> None:
                try:
                    await stream.send_all(REQUEST)
                    answers.append(await read_all(stream))
                except trio.BrokenResourceError:
                    answers.append(b"")
                await trio.aclose_forcefully(stream)

            for stream in streams:
                nursery.start_soon(ask, stream)
            for _ in range(delay + extra):
                await trio.lowlevel.checkpoint()
            nursery.start_soon(shut, site, how)
        for answer in answers:
            head, _, frames = answer.partition(b"\r\n\r\n")
            if head.startswith(b"HTTP/1.1 101 "):
                assert frames == b"\x88\x02" + CODES[how].to_bytes(2)
            else:
                assert answer == b"" or head.startswith(b"HTTP/1.1 503 ")
    recorder.check()


async def test_a_peer_that_arrives_with_the_shutdown(how: str) -> None:
    """A connection that the kernel has accepted in the very pass in which the server stops does not break `serve`."""
    for number in range(40):
        app = App()
        Recorder(app)
        async with serving(app, "tcp") as site, trio.open_nursery() as nursery:
            await trio.testing.wait_all_tasks_blocked()
            with socket.socket() as sock:
                sock.connect(("127.0.0.1", site.server.port))
                nursery.start_soon(shut, site, how)
                for _ in range(number % 4):
                    await trio.lowlevel.checkpoint()


# What is left: nothing


@pytest.mark.parametrize("busy", [False, True], ids=["at-the-end", "while-draining"])
async def test_the_port_is_free_at_once(busy: bool) -> None:
    """Another server can listen on the port as soon as the shutdown has begun, whatever the old one still has to do."""
    app = App()
    release = trio.Event()

    async def linger(conn: Connection, info: object) -> None:
        await release.wait()

    Recorder(app, hooks={"close": linger} if busy else {})
    async with serving(app, "tcp") as site, site.connect() as peer, trio.open_nursery() as nursery:
        port = site.server.port
        nursery.start_soon(site.server.drain)
        await peer.receive_close()
        if not busy:
            await site.ended.wait()
        second = App()
        Recorder(second)
        server = await nursery.start(second.serve, "127.0.0.1", port)
        assert server.port == port
        assert site.ended.is_set() is not busy
        newcomer = await shake_hands(await trio.open_tcp_stream("127.0.0.1", port))
        await newcomer.send("hello")
        assert await newcomer.receive() == "hello"
        release.set()
        await newcomer.close()
        await newcomer.stream.aclose()
        await server.aclose()


async def test_the_path_is_free_at_once() -> None:
    """The path of a Unix socket is gone when the shutdown has begun."""
    app = App()
    Recorder(app)
    async with serving(app, "unix") as site, site.connect() as peer, trio.open_nursery() as nursery:
        [path] = site.server.addresses
        assert isinstance(path, str)
        assert Path(path).is_socket()
        nursery.start_soon(site.server.drain)
        await peer.receive_close()
        assert not Path(path).exists()
        with pytest.raises(OSError, match="No such file"):
            await trio.open_unix_socket(path)


def descriptors() -> int:
    """How many file descriptors are open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def tasks() -> int:
    """How many tasks there are."""
    found = 0
    root = trio.lowlevel.current_root_task()
    assert root is not None
    todo = [root]
    while todo:
        task = todo.pop()
        found += 1
        for nursery in task.child_nurseries:
            todo.extend(nursery.child_tasks)
    return found


@pytest.mark.parametrize("ending", ["close", "break", "none"])
async def test_nothing_is_left(kind: Kind, how: str, ending: str) -> None:
    """When `serve` has returned there is not one task or descriptor more than before."""
    app = App()
    recorder = Recorder(app)

    async def once() -> tuple[int, int]:
        async with serving(app, kind) as site:
            async with site.connect() as one, site.connect() as two, trio.open_nursery() as nursery:
                await one.send("hello")
                await one.receive()
                if ending == "close":
                    await two.close()
                elif ending == "break":
                    await trio.aclose_forcefully(two.stream)
                nursery.start_soon(one.receive_close)
                nursery.start_soon(two.receive_close) if ending == "none" else None
                await shut(site, how)
            await trio.testing.wait_all_tasks_blocked()
            return descriptors(), tasks()

    first = await once()  # what is loaded only once is loaded now
    assert await once() == first
    assert await once() == first
    recorder.check()


async def test_an_ended_connection_leaves_nothing(kind: Kind) -> None:
    """While the server runs on, an ended connection leaves no task and no descriptor, however it ended."""
    app = App()
    recorder = Recorder(app)
    async with serving(app, kind) as site:

        async def once(number: int) -> tuple[int, int]:
            async with site.connect() as peer:
                await peer.send("hello")
                await peer.receive()
                if number % 2:
                    await peer.close()
            await recorder.wait("close", number)
            await trio.testing.wait_all_tasks_blocked(0.005)
            return descriptors(), tasks()

        first = await once(1)
        assert [await once(number) for number in range(2, 6)] == [first] * 4
    recorder.check()


async def test_a_peer_that_ended_its_direction_is_let_go_at_once(kind: Kind) -> None:
    """When the peer has ended its direction and the connection is over, the stream is closed without waiting."""
    from support.servers import end_stream

    app = App()
    recorder = Recorder(app)
    async with serving(app, kind) as site, site.connect() as peer:
        await recorder.wait("open")
        start = trio.current_time()
        await end_stream(peer)
        await recorder.wait("close")
        await until(lambda: not site.server._engine.transports)
        assert trio.current_time() - start < 1


# `app.run`

PROGRAM = """
import sys
import trio
from trio_crowws import App

app = App(close_timeout={close_timeout}, shutdown_grace={grace})


@app.websocket("/")
async def session(conn):
    await conn.send("welcome")
    await trio.sleep_forever()


def say(text):
    print(text, flush=True)


app.routes[0].on_close(lambda conn, info: say(f"closed {{info.code}}"))
app.run("127.0.0.1", 0, on_listening=lambda server: say(f"listening on 127.0.0.1:{{server.port}}"), announce=False)
say("the end")
"""


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    return await trio.to_thread.run_sync(partial(function, *arguments))


def said(log: Path) -> list[str]:
    """What the program said beside its first line; logging goes to the same place."""
    return [line for line in log.read_text().splitlines() if line.startswith(("closed ", "the end"))]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_shuts_down(tmp_path: Path, number: signal.Signals) -> None:
    """SIGINT and SIGTERM close every connection with 1001, every `on_close` runs, and `run` returns."""
    log = tmp_path / "log"
    with started([sys.executable, "-c", PROGRAM.format(close_timeout=5, grace=0.2)], log, folder=Path.cwd()) as process:
        port = await in_thread(port_of, process, log, 10)
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            with trio.fail_after(10):
                peer = await shake_hands(stream)
                assert await peer.receive() == "welcome"
                os.kill(process.pid, number)
                assert await peer.receive_close() == CloseFrame(1001)
        assert await in_thread(wait, process, 5) == 0
    assert said(log) == ["closed 1001", "the end"]


async def test_a_second_signal_aborts(tmp_path: Path) -> None:
    """The second signal ends it at once: connections are dropped, and every `on_close` runs all the same."""
    log = tmp_path / "log"
    with started([sys.executable, "-c", PROGRAM.format(close_timeout=60, grace=60)], log, folder=Path.cwd()) as process:
        port = await in_thread(port_of, process, log, 10)
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            with trio.fail_after(10):
                peer = await shake_hands(stream)
                peer.auto_close = False
                assert await peer.receive() == "welcome"
                os.kill(process.pid, signal.SIGINT)
                assert await peer.receive_event() == CloseFrame(1001)
                assert status(process) is None
                start = time.monotonic()
                os.kill(process.pid, signal.SIGINT)
                assert await peer.receive_event() is None
        assert await in_thread(wait, process, 5) == 0
        assert time.monotonic() - start < 3
    assert said(log) == ["closed 1006", "the end"]


DRAINING = """
import trio
from trio_crowws import App

app = App(shutdown_grace=60, close_timeout=60)


@app.websocket("/")
async def session(conn):
    await conn.send("welcome")
    async for _ in conn:
        trio.lowlevel.spawn_system_task(servers[0].drain, 60, 1012, 1000)


servers = []
app.routes[0].on_close(lambda conn, info: print(f"closed {info.code}", flush=True))


def listening(server):
    servers.append(server)
    print(f"listening on 127.0.0.1:{server.port}", flush=True)


app.run("127.0.0.1", 0, on_listening=listening, announce=False)
print("the end")
"""


@pytest.mark.parametrize("signals", [1, 2])
async def test_a_signal_while_the_program_drains(tmp_path: Path, signals: int) -> None:
    """A first signal during the program's own `drain` makes it hurry and drops nobody; the second signal aborts."""
    log = tmp_path / "log"
    begun = trio.Event()

    async def see_the_close(peer: Peer) -> None:
        assert await peer.receive_event() == CloseFrame(1012)
        begun.set()

    with started([sys.executable, "-c", DRAINING], log, folder=Path.cwd()) as process, trio.fail_after(20):
        port = await in_thread(port_of, process, log, 10)
        async with AsyncExitStack() as stack:
            streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(3)]
            peers = [await shake_hands(await stack.enter_async_context(stream)) for stream in streams]
            async with trio.open_nursery() as nursery:
                for peer in peers:
                    assert await peer.receive() == "welcome"
                    peer.auto_close = signals == 1
                    nursery.start_soon(see_the_close, peer)
                await peers[0].send("drain")
                await begun.wait()  # one of them has its Close; the others would wait for minutes
                os.kill(process.pid, signal.SIGTERM)
            if signals == 2:
                assert status(process) is None
                os.kill(process.pid, signal.SIGTERM)
            assert await in_thread(wait, process, 10) == 0
    code = 1012 if signals == 1 else 1006
    assert said(log) == [f"closed {code}"] * 3 + ["the end"]
