"""Many sockets at once: turns, order, and what happens to the others when one of them ends or never stops."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
import trustme
from trio.testing import MockClock

from support.rawclient import Frame, RawClient, echo_app, open_raw, reset, serving, until, upgrade
from support.servers import Kind, Recorder, Style
from support.servers import serving as serving_kind
from trio_crowws import App, Connection
from trio_crowws._transport.base import PASS_TIME, TurnQueue
from trio_crowws._transport.poller import EXTRA_POLLS, Poller, SocketTransport
from trio_crowws._transport.timers import Timer, Timers
from trio_crowws.testing import make_frame


def send_now(client: RawClient, data: bytes) -> None:
    """Send in this very step of the task, so that the server cannot run in between."""
    assert isinstance(client.stream, trio.SocketStream)
    assert os.write(client.stream.socket.fileno(), data) == len(data)


BIG = b"x" * 8_000_000
"""More than the buffers of any kernel take."""


@pytest.mark.parametrize("kind", ["tcp", "tls", "unix", "memory"])
async def test_many_messages_with_the_request(kind: Kind) -> None:
    """Messages that come together with the request are all delivered, in order, however many they are."""
    app = App()
    recorder = Recorder(app)
    messages = [f"{number}" for number in range(400)]
    async with serving_kind(app, kind) as site:
        stream = await site.open_stream()
        async with stream:
            await stream.send_all(upgrade("/") + b"".join(make_frame(1, message.encode()) for message in messages))
            with trio.fail_after(5):
                await recorder.wait("message", len(messages))
            assert recorder.values("message") == messages


@pytest.mark.parametrize("size", [1, 2000])
async def test_a_callback_that_ends_another_connection(size: int) -> None:
    """A connection that is aborted by another one's callback gets no callback for what it has just sent.

    What is short has been read by then, what is long has not.
    """
    app = App()
    heard: list[str] = []

    @app.websocket("/").on_message
    def only_one(conn: Connection, message: str) -> None:
        heard.append(message)
        for other in app.connections - {conn}:
            other.abort()

    async with serving(app) as server, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(open_raw(server)) for _ in range(5)]
        for client in clients:
            await client.upgrade("/")
        await trio.testing.wait_all_tasks_blocked(0.001)
        for number, client in enumerate(clients):
            send_now(client, make_frame(1, b"%d" % number * size))
        await trio.testing.wait_all_tasks_blocked(0.001)
        assert len(heard) == 1
        assert len(app.connections) == 1


@pytest.mark.parametrize("style", ["session", "async", "sync"])
async def test_a_crowd(style: Style) -> None:
    """Where many have something to say at the same time, all are answered, in order."""
    app = App()
    recorder = Recorder(app, style=style)
    crowded: list[bool] = []
    async with serving(app) as server, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(open_raw(server)) for _ in range(40)]
        for client in clients:
            await client.upgrade("/")
        await trio.testing.wait_all_tasks_blocked(0.01)
        for number in range(3):
            for client in clients:
                send_now(client, make_frame(1, b"one %d" % number) + make_frame(1, b"two %d" % number))
            while not crowded or len(recorder.values("message")) < 80 * (number + 1):
                await trio.lowlevel.checkpoint()
                crowded.append(server._engine.turns.crowded)
            for client in clients:
                assert await client.read_frame() == Frame(1, b"one %d" % number)
                assert await client.read_frame() == Frame(1, b"two %d" % number)
        assert any(crowded)
        send_now(clients[0], make_frame(1, b"and me"))
        assert await clients[0].read_frame() == Frame(1, b"and me")
        assert not server._engine.turns.crowded


async def test_a_slow_callback_does_not_keep_all_answers() -> None:
    """The answers of a round that are ready leave when a callback has taken long, before the next one is called."""
    app = App()
    kept: list[int] = []

    @app.websocket("/").on_message
    def slow(conn: Connection, message: str) -> None:
        kept.append(sum(other.buffered for other in app.connections))
        conn.send_nowait(message)
        time.sleep(0.0012)

    async with serving(app) as server, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(open_raw(server)) for _ in range(5)]
        for client in clients:
            await client.upgrade("/")
        await trio.testing.wait_all_tasks_blocked(0.01)
        for client in clients:
            send_now(client, make_frame(1, b"hello"))
        for client in clients:
            assert await client.read_frame() == Frame(1, b"hello")
    assert kept == [0] * 5


async def test_sockets_that_never_rest() -> None:
    """Where sockets are ready again as soon as they were read, other tasks get their turn all the same."""
    app = App()
    clients: list[RawClient] = []
    heard = 0

    @app.websocket("/").on_message
    def keep_them_busy(conn: Connection, message: str) -> None:
        nonlocal heard
        heard += 1
        assert heard < 100 * EXTRA_POLLS, "no other task had its turn"
        if heard % 2 == 0:  # both were read in this round, so both are ready in the next one
            for client in clients:
                send_now(client, make_frame(1, b"again"))

    async with serving(app) as server, open_raw(server) as first, open_raw(server) as second:
        await first.upgrade("/")
        await second.upgrade("/")
        await trio.testing.wait_all_tasks_blocked(0.001)
        clients += [first, second]
        for client in clients:
            send_now(client, make_frame(1, b"begin"))
        while heard < 6 * EXTRA_POLLS:
            await trio.lowlevel.checkpoint()
        clients.clear()


async def test_a_defect_of_the_poller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the task that reads all sockets fails, `serve` raises that, and every connection has its `on_close`."""
    app = App()
    recorder = Recorder(app)

    def fail(self: Poller) -> list[tuple[int, int]]:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):  # noqa: PT012 -- it leaves the block of the server
        async with serving(app) as server, open_raw(server) as client:
            await client.upgrade("/")
            await recorder.wait("open")
            await trio.testing.wait_all_tasks_blocked(0.001)
            monkeypatch.setattr(Poller, "_ready", fail)
            await client.send_frame(1, b"hello")
            await trio.sleep_forever()
    recorder.check()
    assert recorder.names[-1] == "close"


class Slow:
    """A receiver that does not get through in one turn."""

    def __init__(self, transport: SocketTransport, turns: int) -> None:
        self.transport = transport
        self.left = turns
        self.fed: list[bytes] = []

    def _on_data(self, data: bytes) -> None:
        self.fed.append(data)
        self.left -= 1
        self.transport.more = self.left > 0

    def _on_eof(self) -> None:
        raise AssertionError("the peer has not ended anything")

    def _on_lost(self, error: Exception | None) -> None:
        pass

    def _on_broken(self, error: Exception) -> None:
        pass

    def _on_stalled(self) -> None:
        pass

    def _on_drained(self) -> None:
        pass


async def test_a_receiver_that_does_not_get_through_in_one_turn() -> None:
    """A receiver that was given its first bytes by somebody else gets turn after turn, until it has done its work."""
    timers, turns = Timers(), TurnQueue()
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        transport = SocketTransport(near, Poller(turns, timers), turns, timers, None, None)
        transport.receiver = slow = Slow(transport, 4)
        transport.start()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(turns.run)
            slow._on_data(b"what came with the request")
            transport.resume()
            await trio.testing.wait_all_tasks_blocked()
            transport.abort()
            transport.abort()  # which changes nothing
            nursery.cancel_scope.cancel()
    assert slow.fed == [b"what came with the request", b"", b"", b""]
    assert near.fileno() == -1


# Looking for more before the process sleeps


class Waking(Slow):
    """A receiver that wakes a task for each read, which is as it is with an async callback."""

    def __init__(self, transport: SocketTransport) -> None:
        super().__init__(transport, 0)
        self.send, self.receive = trio.open_memory_channel[bytes](10)

    def _on_data(self, data: bytes) -> None:
        super()._on_data(data)
        self.send.send_nowait(data)


@pytest.mark.parametrize("near_by", [True, False])
async def test_looking_for_more_before_the_process_sleeps(near_by: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that reacts at once to each answer is heard without waiting; where none does, that is hardly tried."""
    timers, turns = Timers(), TurnQueue()
    poller = Poller(turns, timers)
    looks = waits = 0
    look, wait_readable = Poller._look, trio.lowlevel.wait_readable

    def count_look(self: Poller) -> bool:
        nonlocal looks
        looks += 1
        return look(self)

    async def count_wait(descriptor: int) -> None:
        nonlocal waits
        waits += 1
        await wait_readable(descriptor)

    monkeypatch.setattr(Poller, "_look", count_look)
    monkeypatch.setattr(trio.lowlevel, "wait_readable", count_wait)
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        transport = SocketTransport(near, poller, turns, timers, None, None)
        transport.receiver = waking = Waking(transport)
        transport.start()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(turns.run)
            nursery.start_soon(poller.run)
            await trio.testing.wait_all_tasks_blocked()
            far.send(b"x")
            for _ in range(1000):
                await waking.receive.receive()
                if not near_by:
                    await trio.testing.wait_all_tasks_blocked()
                far.send(b"x")
            transport.abort()
            nursery.cancel_scope.cancel()
    assert len(waking.fed) >= 1000
    if near_by:
        assert waits < 100
    else:
        assert waits > 900
        assert looks < 100


# What is published


class Quiet(Slow):
    """A receiver that notes what becomes of its transport."""

    def __init__(self, transport: SocketTransport) -> None:
        super().__init__(transport, 0)
        self.news: list[str] = []

    def _on_lost(self, error: Exception | None) -> None:
        self.news.append(f"lost by {type(error).__name__}")

    def _on_stalled(self) -> None:
        self.news.append("stalled")


@asynccontextmanager
async def publishing(kind: socket.SocketKind) -> AsyncGenerator[tuple[SocketTransport, Quiet, socket.socket]]:
    """A transport, its receiver, and the peer's socket."""
    timers, turns = Timers(), TurnQueue()
    near, far = socket.socketpair(type=kind)
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        transport = SocketTransport(near, Poller(turns, timers), turns, timers, None, None)
        transport.receiver = quiet = Quiet(transport)
        transport.start()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(turns.run)
            await trio.testing.wait_all_tasks_blocked()
            yield transport, quiet, far
            transport.abort()
            nursery.cancel_scope.cancel()


def writes(peer: socket.socket) -> list[bytes]:
    """What has come at a socket that keeps the bounds of the system calls."""
    seen: list[bytes] = []
    with suppress(BlockingIOError):
        while data := peer.recv(65536):
            seen.append(data)
    return seen


async def test_what_is_published_first_in_a_pass_leaves_at_once() -> None:
    """The first message of a scheduler pass does not wait; the others of that pass leave together, in order."""
    async with publishing(socket.SOCK_SEQPACKET) as (transport, _, peer):
        for _ in range(3):
            transport.write_at_once(b"one")
            assert writes(peer) == [b"one"]
            transport.write_at_once(b"two")
            transport.write(b"three")
            transport.write_at_once(b"four")
            assert writes(peer) == []
            await trio.testing.wait_all_tasks_blocked()
            assert writes(peer) == [b"twothreefour"]
        transport.write(b"five")
        transport.write_at_once(b"six")  # not before what was written before it
        assert writes(peer) == []
        await trio.testing.wait_all_tasks_blocked()
        assert writes(peer) == [b"fivesix"]
        assert transport.bytes_sent == 3 * len("onetwothreefour") + len("fivesix")


async def test_publishing_more_than_the_kernel_takes() -> None:
    """The kernel takes a part of what is published: the rest is queued and counted, and leaves in order."""
    async with publishing(socket.SOCK_STREAM) as (transport, quiet, peer):
        transport.write_at_once(BIG)
        assert quiet.news == ["stalled"]
        assert 0 < transport.buffered == len(BIG) - transport.bytes_sent
        transport.write_at_once(b"end")
        received = bytearray()
        with trio.fail_after(5):
            while len(received) < len(BIG) + 3:
                received += b"".join(writes(peer))
                transport.on_writable()
                await trio.lowlevel.checkpoint()
        assert received == BIG + b"end"
        assert transport.buffered == 0


async def test_publishing_is_not_interrupted() -> None:
    """Ctrl-C does not come between what the kernel has taken and the note of it, whoever writes."""
    async with publishing(socket.SOCK_STREAM) as (transport, _, peer):
        protected: list[bool] = []

        class Watched:
            def send(self, data: bytes) -> int:
                protected.append(trio.lowlevel.currently_ki_protected())
                return near.send(data)

        near = transport._sock
        transport._sock = Watched()  # type: ignore[assignment]
        assert not trio.lowlevel.currently_ki_protected()
        transport.write_at_once(b"one")
        transport.eager = True
        transport.write(b"two")
        transport._sock = near
        assert protected == [True, True]
        assert peer.recv(100) == b"onetwo"


async def test_publishing_to_somebody_who_is_about_to_answer() -> None:
    """What is published to a handler's own connection is what leaves at once; what follows leaves together."""
    async with publishing(socket.SOCK_SEQPACKET) as (transport, _, peer):
        transport.eager = True
        transport.write_at_once(b"one")
        transport.write_at_once(b"two")
        transport.write(b"three")
        assert writes(peer) == [b"one"]
        await trio.testing.wait_all_tasks_blocked()
        assert writes(peer) == [b"twothree"]


async def test_publishing_to_a_peer_that_is_gone() -> None:
    """A transport that breaks while something is published tells its receiver, once, and takes nothing more."""
    async with publishing(socket.SOCK_STREAM) as (transport, quiet, peer):
        peer.close()
        transport.write_at_once(b"one")
        transport.write_at_once(b"two")
        await trio.testing.wait_all_tasks_blocked()
        transport.write_at_once(b"three")
        assert quiet.news == ["lost by BrokenPipeError"]
        assert transport.closed
        assert transport.buffered == 0


# TLS


@pytest.fixture
def crowded_certificate(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of a server and a client, with a certificate for so many names that it does not fit into a packet."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", *(f"host-{number}.example.org" for number in range(1500)))
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


async def test_a_handshake_that_does_not_fit_into_the_kernel(
    crowded_certificate: tuple[ssl.SSLContext, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TLS handshake goes on where the kernel took a part of it only."""
    accept = socket.socket.accept

    def accept_narrow(sock: socket.socket) -> tuple[socket.socket, object]:
        accepted, address = accept(sock)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        return accepted, address

    monkeypatch.setattr(socket.socket, "accept", accept_narrow)
    server_context, client_context = crowded_certificate
    async with serving(echo_app(), ssl_context=server_context) as server:
        narrow = trio.socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        await narrow.connect(("127.0.0.1", server.port))
        tls = trio.SSLStream(
            trio.SocketStream(narrow), client_context, server_hostname="localhost", https_compatible=True
        )
        async with tls:
            client = RawClient(tls)
            await client.upgrade()
            await client.assert_echoes()


@pytest.mark.parametrize("garbage", [False, True], ids=["hello", "garbage"])
async def test_a_peer_that_is_gone_before_the_handshake_is_answered(
    garbage: bool, crowded_certificate: tuple[ssl.SSLContext, ssl.SSLContext], caplog: pytest.LogCaptureFixture
) -> None:
    """A peer that begins a TLS handshake, or something else, and breaks off is no error."""
    server_context, client_context = crowded_certificate
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        client_context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    app = echo_app()
    async with serving(app, ssl_context=server_context) as server:
        async with open_raw(server) as client:
            await trio.testing.wait_all_tasks_blocked(0.001)
            send_now(client, b"\x16\x03\x01\x00\x05hello" if garbage else outgoing.read())
            reset(client)
            await trio.testing.wait_all_tasks_blocked(0.001)
        assert server._engine.transports == []
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


async def test_a_peer_that_says_goodbye_to_tls(crowded_certificate: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """The alert with which TLS ends a direction is the end of the stream: what came before it is delivered first."""
    server_context, client_context = crowded_certificate
    app = App()
    recorder = Recorder(app, hooks={"message": lambda conn, message: None})  # no echo: the peer would not read it
    async with serving(app, ssl_context=server_context) as server:
        plain = await trio.open_tcp_stream("127.0.0.1", server.port)
        tls = trio.SSLStream(plain, client_context, server_hostname="localhost")
        async with plain:
            client = RawClient(tls)
            await client.upgrade("/")
            await client.send_frame(1, b"last words")
            await tls.unwrap()
            await recorder.wait("close")
    assert recorder.values("message") == ["last words"]
    assert recorder.info.code == 1006


async def test_a_peer_that_says_goodbye_to_tls_and_then_to_tcp(
    crowded_certificate: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    """While what is queued still leaves, the peer may end its direction of TLS, and then that of TCP: it is one end."""
    server_context, client_context = crowded_certificate
    app = App()

    async def answer_twice(conn: Connection, message: object) -> None:
        for _ in range(2):
            conn.send_nowait(BIG)
            await trio.sleep(0.01)

    recorder = Recorder(app, hooks={"message": answer_twice}, send_limit=3 * len(BIG))
    async with serving(app, ssl_context=server_context) as server:
        plain = await trio.open_tcp_stream("127.0.0.1", server.port)
        tls = trio.SSLStream(plain, client_context, server_hostname="localhost")
        async with plain:
            client = RawClient(tls)
            await client.upgrade("/")
            await client.send_frame(1, b"go on")
            await until(lambda: recorder.conn.messages_sent == 2)
            with pytest.raises(trio.BrokenResourceError):  # more data, where Trio expects the server's goodbye
                await tls.unwrap()
            await recorder.wait("close")
            await plain.send_eof()
            with trio.fail_after(5):
                received = 0
                while data := await plain.receive_some(65536):
                    received += len(data)
    assert received > len(BIG) * 1.5  # the rest is in the buffers of the TLS stream
    assert recorder.info.code == 1006


# Timers


class Owner:
    """Whose timers they are."""

    def report(self, error: Exception) -> None:
        raise AssertionError("no timer fires") from error


async def test_cancelled_timers_do_not_pile_up() -> None:
    """A timer that was cancelled long before its time is forgotten when it is one of very many."""
    timers, owner = Timers(), Owner()
    kept = Timer(timers, lambda now: None, owner)
    kept.arm(timers.now + 50)
    for _ in range(10_000):
        timer = Timer(timers, lambda now: None, owner)
        timer.arm(timers.now + 100)
        timer.cancel()
    assert len(timers._heap) < 2_000
    assert min(timers._heap)[2] is kept


async def test_the_pumps_of_streams_share_the_time_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """They ask whether there is time; there is again in the next pass, whether or not others have turns in it."""
    now = 0.0
    monkeypatch.setattr("trio_crowws._transport.turns.perf_counter", lambda: now)
    turns = TurnQueue()
    restless: Any = SimpleNamespace(unread=False, turn=lambda: turns.add(restless))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            assert turns.has_time()
            assert turns.has_time()
            now += PASS_TIME
            assert not turns.has_time()
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
        turns.add(restless)
        for _ in range(3):
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            assert turns.has_time()
            now += PASS_TIME
            assert not turns.has_time()
        nursery.cancel_scope.cancel()


async def test_many_timers_that_are_due_at_once(autojump_clock: MockClock) -> None:
    """They fire in their order, and the rest of the program has its turns between them."""
    timers, owner = Timers(), Owner()
    fired: list[tuple[int, int]] = []
    turns = 0

    def fire(number: int) -> None:
        time.sleep(1.5 * PASS_TIME)
        fired.append((number, turns))

    for number in range(8):
        Timer(timers, lambda now, number=number: fire(number), owner).arm(timers.now + 10)  # type: ignore[misc]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        await trio.sleep(10)
        while len(fired) < 8:
            await trio.lowlevel.checkpoint()
            turns += 1
        nursery.cancel_scope.cancel()
    assert [number for number, _ in fired] == [*range(8)]
    # Trio runs the tasks of a pass in any order, so two of them may fire between two turns, and three at the beginning.
    assert max(Counter(turn for _, turn in fired).values()) <= 3
    assert timers.stood_still == 0


async def test_a_publish_is_flushed_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is only written waits for no second pass, however long it takes; the time counts for what is fed."""
    monkeypatch.setattr("trio_crowws._transport.turns.PASS_TIME", 0.0)
    timers, turns = Timers(), TurnQueue()
    order: list[int] = []

    class Busy(SocketTransport):
        def turn(self) -> None:
            super().turn()
            self.more = False
            order.append(turns.passes)

    pairs = [socket.socketpair() for _ in range(8)]
    transports = [Busy(near, Poller(turns, timers), turns, timers, None, None) for near, _ in pairs]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        await trio.testing.wait_all_tasks_blocked()
        for transport in transports:
            transport.write(b"published")
        await trio.testing.wait_all_tasks_blocked()
        assert len(set(order)) == 1
        order.clear()
        for transport in transports:
            transport.more = True
            transport.ask_for_turn()
        await trio.testing.wait_all_tasks_blocked()
        assert len(set(order)) == len(transports)
        nursery.cancel_scope.cancel()
    for near, far in pairs:
        near.close()
        far.close()
