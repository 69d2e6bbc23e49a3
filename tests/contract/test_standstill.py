"""A process that did not run for a while: what its peers have sent in time is read before they are judged."""

from __future__ import annotations

import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from support.blocking import WAIT, Blocking, peers, settle, until
from support.rawclient import upgrade
from support.rawserver import accept_head
from support.servers import Kind, Recorder, serving, shared_tls
from trio_crowws import App, Connection, connect
from trio_crowws._client.dialing import dial
from trio_crowws._transport.base import TurnQueue
from trio_crowws._transport.engine import Engine
from trio_crowws._transport.poller import Poller
from trio_crowws._transport.timers import FairScope, Timer, Timers
from trio_crowws.testing import make_frame

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10

PEERS = 6
"""Trio runs the tasks of a pass in random order, so what may go wrong for one of them hardly goes well for six."""


@pytest.fixture(params=["tcp", "tls", "unix"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of transport whose peers send while the process stands still."""
    param: Kind = request.param
    return param


@pytest.fixture(params=[True, False], ids=["epoll", "streams"])
def epoll(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With the poller, and with pumps."""
    use_epoll: bool = request.param
    monkeypatch.setattr("trio_crowws._server.Engine", partial(Engine, use_epoll=use_epoll))
    monkeypatch.setattr("trio_crowws._client.running.Engine", partial(Engine, use_epoll=use_epoll))
    return use_epoll


@pytest.mark.usefixtures("epoll")
async def test_a_pong_that_was_there_in_time(mock_clock: MockClock, kind: Kind) -> None:
    """Peers whose pongs came while the process stood still are alive; one that said nothing is not."""
    app = App()
    recorder = Recorder(app)
    async with serving(app, kind) as site, peers(site, count=PEERS) as (silent, *others):
        await recorder.wait("open", PEERS)
        await settle()
        mock_clock.jump(20.001)
        assert (await WAIT(silent.read_frame))[0] == PING
        pings = [await WAIT(peer.read_frame) for peer in others]
        await settle()
        for peer, (opcode, payload) in zip(others, pings, strict=True):
            assert opcode == PING
            peer.send(PONG, payload)
        mock_clock.jump(1000)
        await settle()
        assert len(app.connections) == PEERS - 1


@pytest.mark.usefixtures("epoll")
@pytest.mark.parametrize("late", [0.01, 100])
async def test_a_close_that_was_there_in_time(mock_clock: MockClock, kind: Kind, late: float) -> None:
    """A peer whose Close came while the process stood still, however shortly, has closed in time."""
    app = App()
    recorder = Recorder(app, hooks={"open": lambda conn: conn.close(4000)})
    async with serving(app, kind) as site, peers(site, count=PEERS) as everybody:
        for peer in everybody:
            assert await WAIT(peer.read_frame) == (CLOSE, struct.pack("!H", 4000))
        await settle()
        for peer in everybody:
            peer.send(CLOSE, struct.pack("!H", 4000))
        mock_clock.jump(5 + late)
        await recorder.wait("close", PEERS)
        assert all(info.clean for info in recorder.values("close"))


@pytest.mark.parametrize("kind", ["tcp", "tls"])
@pytest.mark.parametrize("size", [10, 60_000])
async def test_a_close_behind_much_else(mock_clock: MockClock, kind: Kind, size: int) -> None:
    """A Close that waits behind more than is read in one turn has come in time as well."""
    app = App()
    recorder = Recorder(app, hooks={"open": lambda conn: conn.close(4000)})
    async with serving(app, kind) as site, peers(site, count=PEERS) as everybody:
        for peer in everybody:
            await WAIT(peer.read_frame)
        await settle()
        for peer in everybody:
            peer.sock.sendall(make_frame(TEXT, b"x" * size) * min(5000, 1_000_000 // size))
            peer.send(CLOSE, struct.pack("!H", 4000))
        mock_clock.jump(100)
        await recorder.wait("close", PEERS)
        assert all(info.clean for info in recorder.values("close"))


async def test_more_sockets_than_one_look_is_for(mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many peers there are, each of them is read before it is judged."""
    monkeypatch.setattr("trio_crowws._transport.poller.EVENTS_PER_POLL", 1)
    monkeypatch.setattr("trio_crowws._transport.engine.EXTRA_POLLS", 1)
    app = App()
    recorder = Recorder(app, hooks={"open": lambda conn: conn.close(4000)})
    async with serving(app, "tcp") as site, peers(site, count=PEERS) as everybody:
        for peer in everybody:
            await WAIT(peer.read_frame)
        await settle()
        for peer in everybody:
            peer.send(CLOSE, struct.pack("!H", 4000))
        mock_clock.jump(100)
        await recorder.wait("close", PEERS)
        assert all(info.clean for info in recorder.values("close"))


async def test_a_poller_that_has_ended() -> None:
    """Where nothing can be read any more, nobody waits for it."""
    timers = Timers()
    poller = Poller(TurnQueue(), timers)
    poller._epoll.close()
    assert poller.catch_up(3) == 0


@pytest.mark.usefixtures("epoll")
@pytest.mark.parametrize("late", [0.01, 1000])
async def test_a_pong_behind_slow_work(mock_clock: MockClock, kind: Kind, late: float) -> None:
    """To read what has waited may take several passes of the scheduler; nobody is judged before that is done."""
    app = App()

    def work(conn: Connection, message: str | bytes) -> None:
        time.sleep(0.004)

    recorder = Recorder(app, style="sync", hooks={"message": work})
    async with serving(app, kind) as site, peers(site, count=PEERS) as everybody:
        await recorder.wait("open", PEERS)
        await settle()
        mock_clock.jump(20.001)
        pings = [await WAIT(peer.read_frame) for peer in everybody]
        await settle()
        for peer, (opcode, payload) in zip(everybody, pings, strict=True):
            assert opcode == PING
            peer.send(TEXT, b"work")
            peer.send(PONG, payload)
        mock_clock.jump(20 + late)
        await settle()
        assert len(app.connections) == PEERS
        assert len(recorder.values("message")) == PEERS


async def test_a_peer_that_never_stops_is_judged(mock_clock: MockClock) -> None:
    """Whoever sends without an end, as fast as it is read, does not keep the others from being judged."""
    app = App()
    recorder = Recorder(app, hooks={"open": lambda conn: conn.close(4000)})
    async with serving(app, "tcp") as site, peers(site, count=PEERS) as everybody:
        for peer in everybody:
            await WAIT(peer.read_frame)
        await settle()
        flood = make_frame(TEXT, b"x" * 60_000) * 50
        flooding = everybody[0].sock
        flooding.setblocking(False)
        mock_clock.jump(100)
        while len(recorder.values("close")) < PEERS:
            try:
                flooding.send(flood)
            except OSError:
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.checkpoint()
        assert not any(info.clean for info in recorder.values("close"))


@pytest.mark.usefixtures("epoll")
async def test_a_request_that_was_there_in_time(mock_clock: MockClock, kind: Kind) -> None:
    """A request that came while the process stood still is answered with 101, not with 408."""
    app = App()
    Recorder(app)
    async with serving(app, kind) as site, peers(site, Blocking.shake_hands, count=PEERS) as everybody:
        await until(lambda: len(site.server._engine.transports) == PEERS)
        await settle()
        for peer in everybody:
            peer.sock.sendall(upgrade("/"))
        mock_clock.jump(11)
        for peer in everybody:
            assert (await WAIT(peer.read_head)).startswith(b"HTTP/1.1 101 ")


@pytest.mark.usefixtures("epoll")
async def test_a_tls_handshake_that_waited(mock_clock: MockClock) -> None:
    """A peer that could not go on with its TLS handshake gets the time back in which the process stood still."""
    app = App()
    Recorder(app)
    async with serving(app, "tls") as site, AsyncExitStack() as stack:
        sock = Blocking(site).sock
        stack.callback(site.server.abort)
        stack.enter_context(sock)
        await until(lambda: len(site.server._engine.transports) == 1)
        await settle()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = shared_tls().client.wrap_bio(incoming, outgoing, server_hostname="localhost")

        async def converse(step: Callable[[], Any]) -> Any:
            while True:
                try:
                    result = step()
                except ssl.SSLWantReadError:
                    sock.sendall(outgoing.read())
                    if not mock_clock.current_time():
                        mock_clock.jump(11)
                    data = await WAIT(sock.recv, 65536)
                    assert data
                    incoming.write(data)
                else:
                    sock.sendall(outgoing.read())
                    return result

        await converse(tls.do_handshake)
        await converse(lambda: tls.write(upgrade("/")))
        assert (await converse(lambda: tls.read(65536))).startswith(b"HTTP/1.1 101 ")


async def test_a_decision_that_was_possible_in_time(mock_clock: MockClock) -> None:
    """An `on_accept` whose answer came while the process stood still gets its turn before it is too late."""
    app = App()
    doors = [socket.socketpair() for _ in range(PEERS)]

    async def ask(request: object) -> None:
        near = trio.socket.from_stdlib_socket(doors[len(recorder.requests) - 1][0])
        await near.recv(1)

    recorder = Recorder(app, hooks={"accept": ask})

    def begin(peer: Blocking) -> None:
        peer.sock.sendall(upgrade("/"))

    with Closing(doors):
        async with serving(app, "tcp") as site, peers(site, begin, count=PEERS) as everybody:
            await until(lambda: len(recorder.requests) == PEERS)
            await settle()
            for _, far in doors:
                far.send(b"x")
            mock_clock.jump(11)
            for peer in everybody:
                assert (await WAIT(peer.read_head)).startswith(b"HTTP/1.1 101 ")


class Closing:
    """Closes what has not been closed in the block."""

    def __init__(self, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
        self._pairs = pairs

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for near, far in self._pairs:
            near.close()
            far.close()


async def test_a_cancelled_connection(mock_clock: MockClock) -> None:
    """A peer that has answered the 1001 of a cancelled connection in time has closed cleanly."""
    app = App()
    recorder = Recorder(app)
    async with serving(app, "tcp") as site, peers(site, count=PEERS) as everybody:
        await recorder.wait("open", PEERS)
        for conn in app.connections:
            conn.cancel_scope.cancel()
        for peer in everybody:
            assert await WAIT(peer.read_frame) == (CLOSE, struct.pack("!H", 1001))
        await settle()
        for peer in everybody:
            peer.send(CLOSE, struct.pack("!H", 1001))
        mock_clock.jump(1.5)
        await recorder.wait("close", PEERS)
        assert all(info.clean for info in recorder.values("close"))


async def test_the_grace_of_a_shutdown(mock_clock: MockClock) -> None:
    """Peers that have answered the Close of a shutdown in time have closed cleanly, and no handler is cancelled."""
    app = App(close_timeout=100)
    recorder = Recorder(app)
    async with serving(app, "tcp") as site, peers(site, count=PEERS) as everybody, trio.open_nursery() as nursery:
        await recorder.wait("open", PEERS)
        nursery.start_soon(site.server.aclose)
        for peer in everybody:
            assert await WAIT(peer.read_frame) == (CLOSE, struct.pack("!H", 1001))
        await settle()
        for peer in everybody:
            peer.send(CLOSE, struct.pack("!H", 1001))
        mock_clock.jump(11)
        await recorder.wait("close", PEERS)
        assert all(info.clean for info in recorder.values("close"))
        for peer in everybody:
            peer.sock.close()


@pytest.mark.usefixtures("epoll")
async def test_a_client_whose_answer_was_there_in_time(mock_clock: MockClock) -> None:
    """A client that stood still until its `open_timeout` was over reads the answer before it gives up."""
    opened: list[Connection] = []
    with socket.create_server(("127.0.0.1", 0)) as listener, Closing(pairs := []):
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}/"

        async def client() -> None:
            async with connect(url) as conn:
                opened.append(conn)
                conn.abort()

        async with trio.open_nursery() as nursery:
            for _ in range(PEERS):
                nursery.start_soon(client)
            answers: list[tuple[socket.socket, bytes]] = []
            for _ in range(PEERS):
                sock, _ = await WAIT(listener.accept)
                pairs.append((sock, sock))
                request = await WAIT(sock.recv, 65536)
                key = request.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
                answers.append((sock, accept_head(key.decode())))
            await settle()
            for sock, answer in answers:
                sock.sendall(answer)
            mock_clock.jump(11)
    assert len(opened) == PEERS


async def test_a_client_that_was_still_on_its_way(mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that could not even ask while it stood still gets the time back, and the server that time to answer."""
    gate = trio.Event()
    opened: list[Connection] = []

    async def dial_slowly(*args: Any) -> socket.socket:
        sock = await dial(*args)
        await gate.wait()
        return sock

    monkeypatch.setattr("trio_crowws._client.connecting.dial", dial_slowly)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        async def client() -> None:
            async with connect(f"ws://127.0.0.1:{listener.getsockname()[1]}/") as conn:
                opened.append(conn)
                conn.abort()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(client)
            sock, _ = await WAIT(listener.accept)
            with sock:
                await settle()
                gate.set()
                mock_clock.jump(11)
                request = await WAIT(sock.recv, 65536)
                await settle()
                mock_clock.jump(0.5)
                await settle()
                key = request.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
                sock.sendall(accept_head(key.decode()))
                await settle()
    assert len(opened) == 1


# The scope


async def test_a_fair_scope_of_timers_that_have_ended(autojump_clock: MockClock) -> None:
    """Where the timers end, or have ended, the deadline holds all the same."""
    timers = Timers()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        with FairScope(timers, trio.current_time() + 5) as scope:
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
            assert scope.deadline == trio.current_time() + 5
    start = trio.current_time()
    with FairScope(timers, start + 5) as scope:
        await trio.sleep(10)
    assert scope.cancelled_caught
    assert trio.current_time() == start + 5
    await timers.catch_up()  # which has nothing to read


@pytest.mark.parametrize("moved", [True, False])
async def test_time_that_is_given_back(mock_clock: MockClock, moved: bool) -> None:
    """Who has done its part while the loop stood still gets that time back, but no more than it had at first."""
    timers = Timers()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        with FairScope(timers, 5, lambda now: moved) as scope:
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(1000)
            await trio.testing.wait_all_tasks_blocked()
            assert not scope.cancel_called
            mock_clock.jump(5)
            await trio.sleep_forever()
        assert scope.cancelled_caught
        nursery.cancel_scope.cancel()


async def test_nobody_knows_whether_it_has_moved(mock_clock: MockClock) -> None:
    """If it cannot be said whether the peer has done its part, the deadline holds."""

    def fail(now: float) -> bool:
        raise RuntimeError("a defect")

    timers = Timers()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        with FairScope(timers, 5, fail) as scope:
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(1000)
            await trio.sleep_forever()
        assert scope.cancelled_caught
        nursery.cancel_scope.cancel()


async def test_deadlines_that_were_thrown_out(autojump_clock: MockClock) -> None:
    """Where the deadline for which the timers wake was thrown out, nothing fires before the next one."""
    timers = Timers()
    fired: list[float] = []

    class Owner:
        def report(self, error: Exception) -> None:
            raise error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        await trio.testing.wait_all_tasks_blocked()
        some = [Timer(timers, fired.append, Owner()) for _ in range(2010)]
        for number, timer in enumerate(some):
            timer.arm(5 if number < 10 else 50)
        for timer in some[:1200]:
            timer.cancel()
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert fired == [50] * 810


# Processes that are stopped

PROGRAM = """
import trio
from trio_crowws import App
app = App(ping_interval=0.4, ping_timeout=0.4)
route = app.websocket("/")
@route
async def session(conn):
    await conn.wait_closed()
@route.on_close
def closed(conn, info):
    print(info, flush=True)
async def main():
    async with trio.open_nursery() as nursery:
        server = await nursery.start(app.serve, "127.0.0.1", 0)
        print(server.port, flush=True)
trio.run(main)
"""


def test_a_server_that_is_stopped() -> None:
    """SIGSTOP for longer than `ping_timeout`: peers whose pongs have come meanwhile stay connected."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            socks = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(PEERS)]
            for sock in socks:
                sock.sendall(upgrade("/"))
                while not sock.recv(65536, socket.MSG_PEEK).endswith(b"\r\n\r\n"):
                    pass
                sock.recv(65536)
            pings = [sock.recv(10) for sock in socks]
            process.send_signal(signal.SIGSTOP)
            for sock, ping in zip(socks, pings, strict=True):
                sock.sendall(make_frame(PONG, ping[2:]))
            time.sleep(1)
            process.send_signal(signal.SIGCONT)
            # Whoever is alive is pinged again; whoever was given up sees the end of its connection.
            assert [sock.recv(2)[0] & 15 for sock in socks] == [PING] * PEERS
            for sock in socks:
                sock.close()
        finally:
            process.kill()


@pytest.mark.parametrize("passes", [0, 3])
async def test_what_was_put_off_without_epoll(passes: int) -> None:
    """Without the poller as well, nobody is judged before what was put off is fed, also if that comes meanwhile."""
    engine = Engine(use_epoll=False, shielded=False)

    class Busy:
        left = 30
        unread = True

        @property
        def behind(self) -> bool:
            return self.left > 0

        def turn(self) -> None:
            self.left -= 1
            if self.left:
                engine.turns.add(busy)

    busy: Any = Busy()

    async def begin() -> None:
        for _ in range(passes):
            await trio.lowlevel.checkpoint()
        engine.turns.add(busy)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        await engine.wait_running()
        if passes:
            nursery.start_soon(begin)
        else:
            await begin()
        await engine._catch_up(True)
        assert busy.left == 0
        await engine.aclose()


async def test_many_who_catch_up_share_a_reading() -> None:
    """However many are late at the same time, they share the reading under way and the one after it."""
    timers = Timers()
    readings = 0

    async def read(all_of_it: bool) -> None:
        nonlocal readings
        readings += 1
        await trio.lowlevel.checkpoint()

    timers.reader = read
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(timers.catch_up)
    assert readings == 2
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers._read, True)
        nursery.start_soon(timers._read, True)
    assert not timers._readings


async def test_a_reading_that_does_not_end(autojump_clock: MockClock) -> None:
    """Whoever is late reads for a second at most."""
    timers = Timers()

    async def read(all_of_it: bool) -> None:
        await trio.sleep_forever()

    timers.reader = read
    began = trio.current_time()
    await timers.catch_up()
    assert trio.current_time() - began == pytest.approx(1)
