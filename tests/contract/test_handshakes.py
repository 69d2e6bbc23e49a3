"""What is not an open connection is bounded by `max_handshakes`: peers that drip make room for those that do not."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial

import pytest
import trio
import trio.testing

from support.servers import Kind, Recorder, Site, serving, until
from trio_crowws import App, Connection, Reject, Response
from trio_crowws._session import handshakes
from trio_crowws._session.handshakes import Handshakes
from trio_crowws._session.opening import Opening
from trio_crowws._transport.engine import Engine
from trio_crowws.testing import Refused

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: testserver\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
PAGE = b"GET /page HTTP/1.1\r\nHost: testserver\r\n\r\n"


class Peer:
    """A handshake that notes when it is dropped."""

    def __init__(self, dropped: list[Peer]) -> None:
        self._dropped = dropped
        self.taken = 0

    def drop(self) -> None:
        self._dropped.append(self)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is waited for may be dropped at once."""
    monkeypatch.setattr(handshakes, "PATIENCE", -1)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is dropped."""
    monkeypatch.setattr(handshakes, "PATIENCE", 1e6)


# The book-keeping


async def test_the_longest_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    """The one that has been waited for longest is dropped, if that is long enough; never one that is decided about."""
    dropped: list[Peer] = []
    all_of_them = Handshakes(3)
    one, two, three = (Peer(dropped) for _ in range(3))
    for peer in (one, two, three):
        all_of_them.wait_for(peer)
    all_of_them.hold(one)
    assert len(all_of_them) == 3
    assert not all_of_them.make_room()
    await trio.sleep(1)
    all_of_them.wait_for(two)  # it is being answered now
    assert all_of_them.make_room()
    assert (dropped, all_of_them.dropped) == ([three], 1)
    assert all_of_them.make_room()
    assert len(all_of_them) == 2
    all_of_them.hold(two)
    all_of_them.wait_for(three)
    all_of_them.hold(three)
    await trio.sleep(1)
    assert not all_of_them.make_room()
    for peer in (one, two, three, three):
        all_of_them.discard(peer)
    all_of_them.hold(one)  # it is gone
    assert len(all_of_them) == 0
    assert dropped == [three]


async def test_waiting_for_room(autojump_clock: trio.testing.MockClock) -> None:
    """Room comes when somebody may be dropped, when somebody is to be waited for again, and when somebody is gone."""
    peers = [Peer([]) for _ in range(2)]
    full = Handshakes(2)
    await full.wait_for_room()
    for peer in peers:
        full.wait_for(peer)
    start = trio.current_time()
    await full.wait_for_room()
    assert trio.current_time() - start == pytest.approx(handshakes.PATIENCE)
    assert len(full) == 2
    for peer in peers:
        full.hold(peer)
    for change, patience in ((full.wait_for, handshakes.PATIENCE), (full.discard, 0)):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def change_later(change: object = change) -> None:
                await trio.sleep(50)
                assert callable(change)
                change(peers[0])

            start = trio.current_time()
            await full.wait_for_room()
            assert trio.current_time() - start == pytest.approx(50 + patience)
        full.hold(peers[0])


async def test_it_is_said_once(autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """That the bound is reached is one line in the log, until less than half of it is used again."""
    full = Handshakes(4)

    async def overrun() -> int:
        for _ in range(6):
            await trio.sleep(1)
            assert full.make_room()
            full.wait_for(Peer([]))
        return len([record for record in caplog.records if "max_handshakes=4" in record.getMessage()])

    assert await overrun() == 1
    assert await overrun() == 1
    for peer in list(full._waiting)[:2]:
        full.discard(peer)
    assert await overrun() == 1
    for peer in list(full._waiting)[:3]:
        full.discard(peer)
    assert await overrun() == 2


# A server


@asynccontextmanager
async def silent_peers(site: Site, count: int, said: bytes) -> AsyncGenerator[list[trio.abc.Stream]]:
    """Peers that say something and nothing more; they come one after the other."""
    async with AsyncExitStack() as stack:
        streams = []
        there = len(handshakes_of(site))
        for number in range(count):
            stream = await site.open_stream()
            stack.push_async_callback(trio.aclose_forcefully, stream)
            if isinstance(stream, trio.SSLStream):
                await stream.do_handshake()
            await stream.send_all(said)
            await until(lambda number=number: len(handshakes_of(site)) == there + number + 1)  # type: ignore[misc]
            streams.append(stream)
        yield streams


def handshakes_of(site: Site) -> Handshakes:
    """What the server counts."""
    return site.server._site._handshakes


async def serves(site: Site) -> None:
    """An honest peer gets in."""
    async with site.connect() as peer:
        await peer.send("hello")
        assert await peer.receive() == "hello"


@pytest.mark.usefixtures("impatient")
async def test_peers_that_drip_make_room(kind: Kind) -> None:
    """Who comes when the bound is reached takes the place of the peer that drips for longest, which gets a 503."""
    app = App(max_handshakes=3, max_connections=1)
    Recorder(app)
    async with serving(app, kind) as site, silent_peers(site, 3, b"GET / HT") as streams:
        await serves(site)
        assert app.stats().refused == 1
        assert len(handshakes_of(site)) == 2
        answer = await read_all(streams[0])
        assert answer == b"" or answer.startswith(b"HTTP/1.1 503 ")
        assert answer or kind not in ("tcp", "unix")
        for stream in streams[1:]:
            with trio.move_on_after(0.01) as scope:
                await stream.receive_some()
            assert scope.cancelled_caught


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("said", [b"\x16", b"GET / HTTP/1.1\r\n"], ids=["drips", "no-tls"])
@pytest.mark.parametrize("use_epoll", [True, False], ids=["epoll", "streams"])
async def test_tls_handshakes_make_room(said: bytes, use_epoll: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer whose TLS handshake does not get on, or was refused, counts and makes room like any other."""
    monkeypatch.setattr("trio_crowws._server.Engine", partial(Engine, use_epoll=use_epoll))
    app = App(max_handshakes=3)
    Recorder(app)
    async with serving(app, "tls") as site, AsyncExitStack() as stack:
        for _ in range(6):
            plain = await trio.open_tcp_stream("127.0.0.1", site.server.port)
            await stack.enter_async_context(plain)
            await plain.send_all(said)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert len(handshakes_of(site)) <= 3
        await serves(site)
        assert handshakes_of(site).dropped >= (4 if said == b"\x16" else 0)


@pytest.mark.usefixtures("impatient")
async def test_answers_that_nobody_reads_make_room(kind: Kind) -> None:
    """An answer counts until its socket is let go, and makes room as a peer that drips does."""
    app = App(max_handshakes=3)
    Recorder(app)
    app.http("/page")(lambda request: b"x" * (1 << 24))
    async with serving(app, kind, lockstep=True) as site, silent_peers(site, 3, PAGE):
        for _ in range(3):
            await serves(site)
        assert app.stats().refused == 1  # the others had been answered
        assert len(handshakes_of(site)) <= 2


@pytest.mark.parametrize("secure", [False, True], ids=["tcp", "tls"])
async def test_pages_that_are_made_anew(secure: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that no two peers share are made while they take less than the bound; then the oldest makes room."""
    size = 1 << 24
    monkeypatch.setattr(handshakes, "MOST_BYTES", 3 * size)
    app = App()
    app.http("/page")(lambda request: bytes(size))
    async with serving(app, "tls" if secure else "tcp") as site, AsyncExitStack() as stack:
        most = 0
        for _ in range(8):
            stream = await site.open_stream()
            stack.push_async_callback(trio.aclose_forcefully, stream)
            await stream.send_all(PAGE)
            assert (await stream.receive_some(12)).startswith(b"HTTP/1.1 200")
            most = max(most, handshakes_of(site).bytes)
            assert len(handshakes_of(site)) <= 5
        assert 2 * size < most <= 3 * size
        assert app.stats().refused >= 4
    assert handshakes_of(site).bytes == 0


async def test_a_page_that_is_shared_counts_once() -> None:
    """A page that is one object for several peers counts once, also after it was made anew; small answers do not."""
    size = 1 << 24
    pages = [bytes(size), bytes(size)]
    app = App()
    app.http("/page")(lambda request: pages[0])
    app.http("/small")(lambda request: "ok")
    app.http("/nothing")(lambda request: Response(204))
    async with serving(app, "tcp") as site:
        async with silent_peers(site, 3, PAGE):
            assert handshakes_of(site).bytes == size
            del pages[0]
            async with silent_peers(site, 3, PAGE):
                assert handshakes_of(site).bytes == 2 * size
                small, nothing = (PAGE.replace(b"page", name) for name in (b"small", b"nothing"))
                async with silent_peers(site, 1, small), silent_peers(site, 1, nothing):
                    assert handshakes_of(site).bytes == 2 * size
        await until(lambda: handshakes_of(site).bytes == 0)


async def test_who_takes_its_answer_is_not_dropped(autojump_clock: trio.testing.MockClock) -> None:
    """Where memory is short, who takes nothing is dropped, and not who takes its answer, however old that is."""
    dropped: list[Peer] = []
    all_of_them = Handshakes(10)
    slow, idle, comes = (Peer(dropped) for _ in range(3))
    for peer in (slow, idle):
        all_of_them.wait_for(peer)
        all_of_them.count_body(peer, bytes(handshakes.MOST_BYTES // 2), "page")

    async def read() -> None:
        while True:
            await trio.sleep(0.1)
            slow.taken += 1024

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.sleep(3)
        await all_of_them.reserve(comes, "page")
        assert dropped == [idle]
        assert all_of_them.drop_oldest() is False
        nursery.cancel_scope.cancel()
    await trio.sleep(1)
    assert all_of_them.drop_oldest()
    assert dropped == [idle, slow]


async def test_who_has_just_been_answered_has_its_time(autojump_clock: trio.testing.MockClock) -> None:
    """Nobody is dropped for memory before its time; it comes out again when somebody has taken an answer."""
    dropped: list[Peer] = []
    all_of_them = Handshakes(10)
    one, two, comes = (Peer(dropped) for _ in range(3))
    all_of_them.wait_for(one)
    all_of_them.count_body(one, bytes(handshakes.MOST_BYTES), "page")
    start = trio.current_time()
    await all_of_them.reserve(comes, "page")
    assert trio.current_time() - start == pytest.approx(handshakes.PATIENCE)
    assert dropped == [one]

    async with trio.open_nursery() as nursery:  # what is being made counts as if it was
        nursery.start_soon(all_of_them.reserve, two, "page")
        await trio.sleep(10)
        assert all_of_them.bytes == handshakes.MOST_BYTES
        all_of_them.release(comes)
    assert all_of_them.bytes == handshakes.MOST_BYTES
    all_of_them.release(two)
    assert all_of_them.bytes == 0


@pytest.mark.parametrize("where", ["accept", "middleware", "page"])
async def test_refusals_with_a_large_body(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The body of a `Reject` counts as that of a page does, whoever has made it."""
    size = 1 << 24
    monkeypatch.setattr(handshakes, "MOST_BYTES", 2 * size)
    app = App()

    def refuse(request: object) -> Reject:
        return Reject(403, bytes(size))

    app.websocket("/").onmessage(lambda conn, message: None).onaccept(refuse)
    app.http("/page")(refuse if where == "page" else lambda request: "page")
    if where == "middleware":
        app.middleware(refuse)
    async with serving(app, "tcp") as site, AsyncExitStack() as stack:
        for _ in range(6):
            stream = await site.open_stream()
            stack.push_async_callback(trio.aclose_forcefully, stream)
            await stream.send_all(REQUEST if where == "accept" else PAGE)
            assert (await stream.receive_some(12)).startswith(b"HTTP/1.1 403")
            assert size <= handshakes_of(site).bytes <= 2 * size
        assert len(handshakes_of(site)) <= 2


async def test_large_pages_are_not_made_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that an async function is making has its memory from the beginning, once its size is known."""
    size = 1 << 20
    monkeypatch.setattr(handshakes, "MOST_BYTES", 3 * size)
    app = App()
    go_on = trio.Event()
    go_on.set()
    making = 0

    @app.http("/page")
    async def page(request: object) -> bytes:
        nonlocal making
        making += 1
        await go_on.wait()
        return bytes(size)

    async with serving(app, "tcp") as site, AsyncExitStack() as stack:
        streams = [await site.open_stream() for _ in range(9)]
        for stream in streams:
            stack.push_async_callback(trio.aclose_forcefully, stream)
        await streams[0].send_all(PAGE)
        await read_all(streams[0])
        await trio.aclose_forcefully(streams[0])
        await until(lambda: handshakes_of(site).bytes == 0)
        go_on = trio.Event()
        for stream in streams[1:]:
            await stream.send_all(PAGE)
        await until(handshakes_of(site)._turn.locked)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert making == 1 + 3
        assert handshakes_of(site).bytes == 3 * size
        go_on.set()
        async with trio.open_nursery() as nursery:
            for stream in streams[1:]:
                nursery.start_soon(read_all, stream)
        assert making == 9


@pytest.mark.parametrize("ending", ["timeout", "shutdown"])
async def test_who_waits_for_memory_is_not_forgotten(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that waits for memory is refused when `handshake_timeout` is over, and when the server shuts down."""
    monkeypatch.setattr(handshakes, "MOST_BYTES", 1)
    monkeypatch.setattr(handshakes, "PATIENCE", 1e6)
    app = App(handshake_timeout=0.3 if ending == "timeout" else 1000)
    asked: list[object] = []

    @app.http("/page")
    def page(request: object) -> bytes:
        asked.append(request)
        return bytes(1 << 24)

    async with serving(app, "tcp") as site, AsyncExitStack() as stack, trio.open_nursery() as nursery:
        streams = [await site.open_stream() for _ in range(2)]
        for stream in streams:
            stack.push_async_callback(trio.aclose_forcefully, stream)
        await streams[0].send_all(PAGE)
        assert (await streams[0].receive_some(12)).startswith(b"HTTP/1.1 200")
        await streams[1].send_all(PAGE)
        if ending == "shutdown":
            await until(lambda: bool(handshakes_of(site)._turn.statistics().locked))
            nursery.start_soon(site.server.aclose)
        assert (await read_all(streams[1])).startswith(b"HTTP/1.1 503 ")
        assert len(asked) == 1


@pytest.mark.usefixtures("patient")
async def test_aclose_hurries_a_drain_that_finds_no_room() -> None:
    """A `drain` that waits for room, to accept those in the kernel's queue, does not wait on after `aclose`."""
    app = App(max_handshakes=1, handshake_timeout=1000)
    Recorder(app)
    async with serving(app, "tcp") as site, silent_peers(site, 1, b"GET"), trio.open_nursery() as nursery:
        nursery.start_soon(partial(site.server.drain, linger=1000))
        await until(lambda: bool(handshakes_of(site)._changed))
        await site.server.aclose()


@pytest.mark.usefixtures("impatient")
async def test_refusals_that_nobody_takes_make_room(kind: Kind) -> None:
    """A peer that is refused and does not close counts, and makes room."""
    app = App(max_handshakes=2)
    Recorder(app)
    async with serving(app, kind) as site, silent_peers(site, 2, b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"):
        await serves(site)
        assert app.stats().refused == 1


@pytest.mark.usefixtures("impatient")
async def test_nobody_is_dropped_for_nobody(kind: Kind) -> None:
    """As long as nobody else comes, as many peers as the bound allows may take their time."""
    app = App(max_handshakes=2)
    Recorder(app)
    async with serving(app, kind) as site, silent_peers(site, 2, b"GET") as streams:
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert len(handshakes_of(site)) == 2
        assert app.stats().refused == 0
        await streams[0].send_all(REQUEST.removeprefix(b"GET"))
        assert (await streams[0].receive_some()).startswith(b"HTTP/1.1 101 ")


@pytest.mark.usefixtures("impatient")
async def test_who_is_decided_about_is_not_dropped(kind: Kind) -> None:
    """While the application decides about as many as there may be, the next one waits, and gets in afterwards."""
    app = App(max_handshakes=2)
    go = trio.Semaphore(0)

    async def decide(request: object) -> None:
        await go.acquire()

    recorder = Recorder(app, hooks={"accept": decide})
    async with serving(app, kind) as site, trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(serves, site)
            await until(lambda number=number: len(recorder.requests) == min(number + 1, 2))  # type: ignore[misc]
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert len(recorder.requests) == 2
        for _ in range(3):
            go.release()
    assert len(recorder.values("message")) == 3
    assert app.stats().refused == 0


@pytest.mark.usefixtures("patient")
async def test_a_storm_of_honest_peers(kind: Kind) -> None:
    """Honest peers all get in, however many come at once: who finds no room waits."""
    app = App(max_handshakes=2)
    recorder = Recorder(app)
    async with serving(app, kind) as site, trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(serves, site)
    assert len(recorder.values("message")) == 40
    assert app.stats().refused == 0


@pytest.mark.usefixtures("impatient")
async def test_a_system_out_of_descriptors(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the process has no descriptor left, a peer that drips is dropped for the one that comes."""
    app = App()
    Recorder(app)
    async with serving(app, kind) as site, silent_peers(site, 2, b"GET / HT"):
        fail_once(site, monkeypatch)
        for _ in range(2):
            await serves(site)
        assert len(handshakes_of(site)) == 1


@pytest.mark.usefixtures("impatient")
async def test_one_descriptor_costs_one_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is not closed at once after its peer was dropped does not cost another peer."""
    app = App()
    Recorder(app)
    async with serving(app, "memory") as site, silent_peers(site, 3, b"GET / HT"):
        fail_once(site, monkeypatch, times=2)
        for _ in range(2):
            await serves(site)
        assert len(handshakes_of(site)) == 2
        assert app.stats().refused == 1


@pytest.mark.usefixtures("impatient")
async def test_who_makes_room_is_no_line_in_the_log(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """Peers are dropped as fast as others come, so only debugging sees each of them; one warning says it for all."""
    caplog.set_level(logging.DEBUG, "trio_crowws")
    app = App(max_handshakes=2)
    Recorder(app)
    async with serving(app, kind) as site, silent_peers(site, 2, b"GET / HT"):
        await serves(site)
    [record] = [record for record in caplog.records if "too many handshakes" in record.getMessage()]
    assert record.levelname == "DEBUG"


def fail_once(site: Site, monkeypatch: pytest.MonkeyPatch, *, times: int = 1) -> None:
    """Have the next attempt to accept, or so many, fail for want of descriptors."""
    left = [OSError(errno.EMFILE, os.strerror(errno.EMFILE)) for _ in range(times)]
    if site.kind == "memory":
        accept = site.listener.accept

        async def fail_or_accept() -> trio.abc.Stream:
            stream = await accept()
            if left:
                site.listener._queue.send_nowait(stream)
                raise left.pop()
            return stream

        monkeypatch.setattr(site.listener, "accept", fail_or_accept)
        return
    plainly = socket.socket.accept

    def fail_or_accept_socket(sock: socket.socket) -> tuple[socket.socket, object]:
        if left:
            raise left.pop()
        return plainly(sock)

    monkeypatch.setattr(socket.socket, "accept", fail_or_accept_socket)


@pytest.mark.parametrize("use_epoll", [True, False], ids=["epoll", "streams"])
async def test_nothing_is_counted_for_ever(kind: Kind, use_epoll: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a handshake ends, it is not counted any more when its socket is let go."""
    monkeypatch.setattr("trio_crowws._server.Engine", partial(Engine, use_epoll=use_epoll))
    app = App(handshake_timeout=0.5)
    Recorder(app)
    Recorder(app, "/refusing", hooks={"accept": lambda request: False})
    app.http("/page")(lambda request: "page")
    async with serving(app, kind) as site:
        await serves(site)
        for path in ("/refusing", "/nowhere"):
            with pytest.raises(Refused):
                async with site.connect(path):
                    pass
        for said in (PAGE, b"GET", b"\0", b""):  # answered, cut off, malformed, and silent
            stream = await site.open_stream()
            if said and isinstance(stream, trio.SSLStream):
                await stream.do_handshake()
            if said:
                await stream.send_all(said)
                await trio.testing.wait_all_tasks_blocked(0.01)
            await trio.aclose_forcefully(stream)
        if kind == "tls":
            async with await trio.open_tcp_stream("127.0.0.1", site.server.port) as plain:
                await plain.send_all(PAGE)
                await trio.testing.wait_all_tasks_blocked(0.01)
        stream = await site.open_stream()
        await read_all(stream)  # it says nothing, and the server loses patience
        await trio.aclose_forcefully(stream)
        await until(lambda: len(handshakes_of(site)) == 0)
        assert app.stats().handshakes == 0


async def read_all(stream: trio.abc.Stream) -> bytes:
    """Everything until the end of the stream; a reset counts as an end."""
    data = b""
    with suppress(trio.BrokenResourceError):
        while chunk := await stream.receive_some():
            data += chunk
    return data


async def test_a_connection_is_none_of_them(kind: Kind) -> None:
    """Open connections do not count."""
    app = App(max_handshakes=1)
    opened: list[Connection] = []
    Recorder(app, hooks={"open": opened.append})
    async with serving(app, kind) as site, AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(site.connect())
        await until(lambda: len(opened) == 3)
        assert app.stats().handshakes == 0
        assert app.stats().refused == 0


async def test_a_transport_that_cannot_be_dropped(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transport that fails when it has to make room costs itself alone: whoever comes gets in."""
    monkeypatch.setattr(handshakes, "PATIENCE", -1)
    app = App(max_handshakes=1)
    Recorder(app)

    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError

    async with serving(app, kind) as site, silent_peers(site, 1, b"GET / HT"):
        with monkeypatch.context() as patch:
            patch.setattr(Opening, "refuse", fail)
            await serves(site)
    assert app.stats().handshakes == 0


async def test_a_stream_that_waits_for_room_is_closed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that was accepted and finds no room is closed when the server ends."""
    monkeypatch.setattr(handshakes, "PATIENCE", 1e6)
    app = App(max_handshakes=1)
    Recorder(app)
    async with serving(app) as site, silent_peers(site, 1, b"GET / HT"):
        waiting = await site.open_stream()
        await waiting.send_all(b"GET")
        await trio.testing.wait_all_tasks_blocked()
        assert len(handshakes_of(site)) == 1
        site.scope.cancel()
        await site.ended.wait()
        assert await read_all(waiting) == b""
