"""The memory of a connection, term by term as in `docs/topics/memory.md`: each is driven to its limit and measured.

`tracemalloc` counts every byte that Python has allocated, so a few connections are enough. The peers live in the same
process, but all that they send was made before. What OpenSSL allocates it cannot see, so TLS is measured from outside.
"""

from __future__ import annotations

import gc
import socket
import tracemalloc
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from robustness.canary import show
from robustness.formula import (
    IDLE,
    READ,
    TLS,
    compression_bytes,
    handshake_bytes,
    receiving_bytes,
    sending_bytes,
)
from robustness.victim import KIB, MIB, until, victim
from support.certificates import make_tls
from support.heads import UPGRADE, write_head
from support.rawclient import open_raw, serving
from support.servers import MemoryListener
from trio_crowws import App, Connection, ConnectionClosed, Deflate
from trio_crowws._options import Options
from trio_crowws.testing import make_frame, shake_hands

# Coverage keeps books of its own in the memory that is measured here, and makes the longest of these tests much longer.
pytestmark = pytest.mark.no_cover

COUNT = 3
"""Connections of which the average is taken."""

SMALL = {"max_payload": 256 * KIB, "send_limit": 256 * KIB, "ping_interval": None, "control_rate": None}
LIMITS = Options(**SMALL)  # type: ignore[arg-type]
PAYLOAD = 256 * KIB


@pytest.fixture(autouse=True)
def tracing() -> Generator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def used() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


class Lab:
    """An application whose connections do what the test says.

    Attributes:
      conns: the connections, in order, without the first one: that only fills caches, and does nothing.
      app: the application.
    """

    def __init__(self, session: Callable[[Connection], Awaitable[None]] | None = None, **options: Any) -> None:
        self.app = App(**{**SMALL, **options})
        self.conns: list[Connection] = []
        self._first: Connection | None = None
        self._session = session
        self.base = 0
        self.app.websocket("/{rest:path}")(self._run)

    async def _run(self, conn: Connection) -> None:
        if self._first is None:
            self._first = conn
        else:
            self.conns.append(conn)
            if self._session is not None:
                await self._session(conn)
        await conn.wait_closed()

    @asynccontextmanager
    async def peers(
        self, count: int = COUNT, *, request: bytes | None = None
    ) -> AsyncGenerator[list[trio.SocketStream]]:
        """Peers whose opening handshake is done; in a server that has had another one before."""
        async with serving(self.app) as server, AsyncExitStack() as stack:
            streams = []
            for number in range(count + 1):
                stream = await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", server.port))
                await stream.send_all(request or write_head(UPGRADE.items()))
                assert (await stream.receive_some(4096)).startswith(b"HTTP/1.1 101")
                if number == 0:
                    await trio.testing.wait_all_tasks_blocked(0.02)  # the 101 may come before the task has begun
                    self.base = used()
                streams.append(stream)
            await until(lambda: len(self.conns) == count)
            await trio.testing.wait_all_tasks_blocked(0.02)
            yield streams[1:]
            for conn in self.conns:
                conn.abort()

    def use_first(self, message: str) -> None:
        """Send something on the first connection, so that what all of them share has been made."""
        assert self._first is not None
        self._first.send_nowait(message)

    def each(self, count: int = COUNT) -> float:
        """Bytes for each of `count` peers, the objects of an idle connection included."""
        return (used() - self.base) / count


async def pour(streams: list[trio.SocketStream], data: bytes) -> None:
    """Send as much of `data` to each server as it and the kernel take, until nothing moves any more."""

    async def send(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(send, stream)
        await trio.sleep(0.4)
        await trio.testing.wait_all_tasks_blocked(0.05)  # what is dear is worked on in many turns
        nursery.cancel_scope.cancel()


def check(name: str, each: float, at_least: float, at_most: float) -> None:
    """The term was driven to its limit, and not beyond."""
    show(f"{name}: {each / KIB:.1f} KiB, between {at_least / KIB:.1f} and {at_most / KIB:.1f}")
    assert at_least <= each <= at_most, f"{name}: {each / KIB:.1f} KiB"


# What the peer sends

WIDE = ("a" * 60_000 + "😀").encode()  # one character that needs four bytes makes all the others take four

# Frames, whether they count as text, and what at least they take for each byte of `receive_buffer`.
MESSAGES = {
    "binary of the largest size": (make_frame(2, bytes(PAYLOAD)), False, 1),
    "binary": (make_frame(2, bytes(10_000)), False, 1),
    "binary of two bytes": (make_frame(2, b"xx"), False, 0.5),
    "text of four bytes": (make_frame(1, "😀".encode()), True, 0.8),
    "text": (make_frame(1, b"x" * 10_000), False, 1),
    "wide text": (make_frame(1, WIDE), True, 4),
    "wide text of the largest size": (make_frame(1, b"a" * (PAYLOAD - 4) + "😀".encode()), True, 4),
}


@pytest.mark.parametrize("name", MESSAGES)
async def test_what_waits_for_a_busy_handler(name: str) -> None:
    """`receive_buffer`: messages that nobody takes, in bytes, and text up to four times that."""
    frame, text, density = MESSAGES[name]
    data = frame * max(1, 3 * MIB // len(frame))

    async def busy(conn: Connection) -> None:
        handled = await conn.receive()
        await conn.wait_closed()
        del handled

    lab = Lab(busy)
    async with lab.peers() as streams:
        await pour(streams, data)
        each = lab.each()
        assert all(conn.is_open for conn in lab.conns)
    check(name, each, 0.9 * density * LIMITS._read_ahead, receiving_bytes(LIMITS, text=text) + IDLE)


@pytest.mark.parametrize("step", [7, 100, 5000, 100_000])
@pytest.mark.parametrize("opcode", [1, 2])
async def test_a_message_that_is_still_arriving(opcode: int, step: int) -> None:
    """`max_payload`: a message of which the last byte is missing, in whatever pieces it has come."""
    data = make_frame(opcode, b"x" * PAYLOAD)[:-1]
    if step < 1000:  # a slow start is enough to see what small pieces cost
        pieces = [data[start : start + step] for start in range(0, 300 * step, step)] + [data[300 * step :]]
    else:
        pieces = [data[start : start + step] for start in range(0, len(data), step)]
    lab = Lab()
    async with lab.peers() as streams:
        for stream in streams:
            for piece in pieces:
                await stream.send_all(piece)
                await trio.lowlevel.checkpoint()
        await trio.sleep(0.05)
        each = lab.each()
    check(f"opcode {opcode} in steps of {step}", each, 0.9 * PAYLOAD, 1.2 * PAYLOAD + IDLE)


@pytest.mark.parametrize("opcode", [1, 2])
async def test_a_message_in_many_fragments(opcode: int) -> None:
    """`max_payload` again: a message in as many fragments as may be takes what its bytes take."""
    size = PAYLOAD // 1024
    data = make_frame(opcode, b"x" * size, fin=False) + make_frame(0, b"x" * size, fin=False) * 1022
    lab = Lab()
    async with lab.peers() as streams:
        await pour(streams, data)
        each = lab.each()
    check(f"opcode {opcode} in fragments", each, 0.9 * PAYLOAD, 1.2 * PAYLOAD + IDLE + 16 * KIB)


async def test_the_last_message_is_not_kept() -> None:
    """A connection with callbacks that does nothing keeps neither its last message nor what came with its request."""
    frame = make_frame(2, bytes(60_000))
    heard: list[int] = []
    app = App(**SMALL)

    @app.websocket("/").on_message
    async def count(conn: Connection, message: str | bytes) -> None:
        heard.append(len(message))

    data = write_head(UPGRADE.items()) + frame + frame
    base = 0
    async with serving(app) as server, AsyncExitStack() as stack:
        for number in range(COUNT + 1):
            stream = await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", server.port))
            await stream.send_all(data)
            await until(lambda: len(heard) == 2)
            heard.clear()
            if number == 0:
                base = used()
        each = (used() - base) / COUNT
    check("an idle connection", each, 0, IDLE)


# What the peer does not read


@pytest.mark.parametrize("size", [1, 20, 600, 5000, 60_000])
@pytest.mark.parametrize("kind", [str, bytes])
async def test_what_waits_to_be_sent(kind: type[str] | type[bytes], size: int) -> None:
    """`send_limit`: what `send_nowait` queues, in messages of any size, and what the kernel is just taking."""
    large = bytes(LIMITS.send_limit - 100)

    async def push(conn: Connection) -> None:
        # A part of this is with the kernel, the rest stays; and then as much again as may be.
        while not conn.buffered:
            conn.send_nowait(large)
            await trio.sleep(0.005)
        while conn.send_nowait("x" * size if kind is str else b"x" * size):
            assert conn.buffered <= LIMITS.send_limit
        assert conn.buffered > LIMITS.send_limit - size - 10

    lab = Lab(push, on_slow="drop", send_timeout=None)
    async with lab.peers():
        await trio.sleep(0.1)
        await until(lambda: all(conn.dropped for conn in lab.conns))
        each = lab.each()
    check(f"{kind.__name__} of {size}", each, 0.5 * LIMITS.send_limit, sending_bytes(LIMITS, largest=size) + IDLE)


@pytest.mark.parametrize("size", [100_000, 300_000])
async def test_what_waiting_senders_hold(size: int) -> None:
    """`send` queues one message beyond `send_high_water`, and each task that waits in it holds one more."""
    senders = 5
    message = bytes(size)  # the application's own

    async def push(conn: Connection) -> None:
        async def send() -> None:
            while True:
                await conn.send(message)

        for _ in range(senders):
            conn.start_soon(send)
        await conn.wait_closed()

    lab = Lab(push, send_timeout=None)
    async with lab.peers():
        await trio.sleep(0.5)
        each = lab.each()
        assert all(conn.buffered <= LIMITS.send_high_water + size + 10 for conn in lab.conns)
    at_most = sending_bytes(LIMITS, largest=size, senders=senders) + IDLE + senders * 4 * KIB  # each is a task
    check(f"{senders} senders of {size}", each, senders * size, at_most)


async def test_the_latest_of_each_room() -> None:
    """With `on_slow="latest"` there is one message more for each room."""
    rooms, size = 20, 20_000

    async def follow(conn: Connection) -> None:
        for number in range(rooms):
            conn.join(f"room {number}")

    lab = Lab(follow, on_slow="latest", send_timeout=None)
    async with lab.peers():
        for _ in range(30):
            for number in range(rooms):
                lab.app.publish(f"room {number}", b"x" * size)
            await trio.lowlevel.checkpoint()
        each = lab.each()
    # A frame is shared by its subscribers.
    at_most = sending_bytes(LIMITS, largest=size, rooms=rooms) + IDLE + rooms * KIB
    check("the latest of each room", each, rooms * size / COUNT, at_most)


async def test_pongs_that_nobody_reads() -> None:
    """A peer that pings for ever and reads nothing has one pong waiting, however many it asked for."""
    lab = Lab(send_timeout=None)
    async with lab.peers() as streams:
        for conn in lab.conns:
            while conn.buffered < KIB:
                conn.send_nowait(bytes(50_000))
                await trio.lowlevel.checkpoint()
        before = lab.each()
        await pour(streams, make_frame(9, b"?" * 125) * 20_000)
        grown = lab.each() - before
    check("pongs", grown, -READ, 2 * READ)


async def test_pings_that_nobody_answers() -> None:
    """Of the pings that are never answered, however many, none is forgotten while a task waits for its pong."""
    refused: list[ConnectionClosed] = []

    async def ask(conn: Connection) -> None:
        try:
            await conn.ping()
        except ConnectionClosed as error:
            refused.append(error)

    lab = Lab()
    async with lab.peers(1):
        [conn] = lab.conns
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(ask, conn)
                await trio.testing.wait_all_tasks_blocked(0.02)
                conn.abort()
    assert len(refused) == 100


# Compression


def offering(offer: str) -> bytes:
    return write_head([*UPGRADE.items(), ("Sec-WebSocket-Extensions", offer)])


def deflated(opcode: int, payload: bytes) -> bytes:
    """A compressed message, which refers to nothing before it."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -9)
    return make_frame(opcode, (stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4], rsv=4)


SMALL_WINDOWS = "permessage-deflate; client_max_window_bits"
NO_CONTEXT = f"{SMALL_WINDOWS}; client_no_context_takeover"
CONTEXTS = {
    "the defaults": (Deflate(), SMALL_WINDOWS, 12),
    "a client that cannot limit its window": (Deflate(), "permessage-deflate", 15),
    "a client that does not offer to keep no context": (Deflate(client_no_context_takeover=True), SMALL_WINDOWS, 12),
    "no context at all": (Deflate(client_no_context_takeover=True), NO_CONTEXT, 12),
    "a context of the server": (Deflate(server_no_context_takeover=False), SMALL_WINDOWS, 12),
    "the largest context": (
        Deflate(
            server_no_context_takeover=False, server_max_window_bits=15, client_max_window_bits=15, mem_level=9, level=9
        ),
        SMALL_WINDOWS,
        15,
    ),
}


@pytest.mark.parametrize("name", CONTEXTS)
async def test_what_compression_keeps_between_two_messages(name: str) -> None:
    """A window for each direction that keeps a context, once it is used; without contexts nothing."""
    deflate, offer, bits = CONTEXTS[name]
    lab = Lab(echo, compression=deflate, max_payload=None, receive_buffer=1 << 20)
    message = deflated(1, b"x" * (1 << 18))
    expected = compression_bytes(deflate, client_bits=bits, client_keeps_context=offer != NO_CONTEXT)
    async with lab.peers(request=offering(offer)) as streams:
        unused = lab.each()
        lab.use_first("x" * KIB)
        shared = lab.each() - unused
        for stream in streams:
            for _ in range(2):
                await stream.send_all(message)
                await until(lambda: all(conn.messages_received == conn.messages_sent for conn in lab.conns))
        await until(lambda: all(conn.messages_sent == 2 for conn in lab.conns))
        await trio.testing.wait_all_tasks_blocked(0.02)
        each = lab.each()
    check(f"{name}, unused", unused, 0, IDLE)
    check(name, each - unused - shared, 0.7 * expected, expected + 2 * KIB)


async def echo(conn: Connection) -> None:
    async for message in conn:
        await conn.send(message)
        del message


@pytest.mark.parametrize("opcode", [1, 2])
@pytest.mark.parametrize("size", [1000, 60_000, PAYLOAD])
async def test_small_bombs_that_wait_for_a_busy_handler(opcode: int, size: int) -> None:
    """`receive_buffer` again: a read may hold a hundred times itself, and reading stops all the same."""
    data = deflated(opcode, b"a" * (size - 4) + "😀".encode()) * 4000

    async def busy(conn: Connection) -> None:
        handled = await conn.receive()
        await conn.wait_closed()
        del handled

    deflate = Deflate()
    lab = Lab(busy, compression=deflate)
    async with lab.peers(request=offering(SMALL_WINDOWS)) as streams:
        await pour(streams, data)
        each = lab.each()
        assert all(conn.is_open for conn in lab.conns)
    options = Options(**SMALL, compression=deflate)  # type: ignore[arg-type]
    at_most = receiving_bytes(options, text=opcode == 1) + compression_bytes(deflate) + IDLE
    check(f"bombs of {size} as opcode {opcode}", each, 0.9 * (4 if opcode == 1 else 1) * options._read_ahead, at_most)


@pytest.mark.parametrize("opcode", [1, 2])
async def test_a_compressed_message_that_is_still_arriving(opcode: int) -> None:
    """`max_payload` again: of a compressed message it is what it has become that is kept."""
    data = deflated(opcode, b"x" * PAYLOAD)
    lab = Lab(compression=Deflate())
    async with lab.peers(request=offering(SMALL_WINDOWS)) as streams:
        for stream in streams:
            for position in range(len(data) - 1):
                await stream.send_all(data[position : position + 1])
                await trio.lowlevel.checkpoint()
        await trio.sleep(0.05)
        each = lab.each()
    at_most = 1.2 * PAYLOAD + compression_bytes(Deflate()) + IDLE + 16 * KIB
    check(f"compressed, opcode {opcode}", each, 0.9 * PAYLOAD, at_most)


# The opening handshake

LONG_PATH = "/%F0%9F%98%80" + "a" * 8000  # four bytes for each character, in the path and in its parameter
HEADS = {
    "one long header": write_head([*UPGRADE.items(), ("X", "x" * 15_500)]),
    "many headers": write_head([*UPGRADE.items(), *[(f"X-{n}", "x" * 120) for n in range(90)]]),
    "many cookies": write_head([*UPGRADE.items(), ("Cookie", "; ".join(f"c{n}=1" for n in range(1900)))]),
    "a long path": write_head([*UPGRADE.items(), ("X", "x" * 7000)], f"GET {LONG_PATH} HTTP/1.1"),
}


@pytest.mark.parametrize("name", HEADS)
async def test_what_is_kept_of_a_request(name: str) -> None:
    """`max_header_bytes`: an open connection keeps its request, also when its handler has looked at all of it."""

    async def look(conn: Connection) -> None:
        assert conn.request.headers
        assert conn.request.path.startswith("/")

    lab = Lab(look)
    async with lab.peers(request=HEADS[name]):
        each = lab.each()
    check(name, each, 16 * KIB, handshake_bytes(LIMITS) + IDLE)


async def test_half_open_handshakes() -> None:
    """A request that is not complete takes no more than its bytes."""
    head = write_head([*UPGRADE.items(), ("X", "x" * 15_900)])[:-4]
    lab = Lab()
    async with serving(lab.app) as server, AsyncExitStack() as stack:
        base = used()
        for _ in range(20):
            client = await stack.enter_async_context(open_raw(server))
            await client.send(head)
        await trio.sleep(0.1)
        each = (used() - base) / 20
    check("a half-open handshake", each, len(head), handshake_bytes(LIMITS))


# TLS


async def test_tls(tmp_path: Path) -> None:
    """TLS keeps two buffers of one read each beside its state, however much has gone through them."""
    count = 30
    tls = make_tls(tmp_path)
    question = bytes(200 * KIB)
    with victim(
        tmp_path / "log", ping_interval=None, max_payload=PAYLOAD, certificate=[tls.certfile, tls.keyfile]
    ) as server:

        async def use(stack: AsyncExitStack) -> None:
            tcp = await trio.open_tcp_stream("127.0.0.1", server.port)
            stream = trio.SSLStream(tcp, tls.client, server_hostname="localhost", https_compatible=True)
            stack.push_async_callback(trio.aclose_forcefully, tcp)
            peer = await shake_hands(stream, "/echo")
            for _ in range(3):
                await peer.send(question)
                assert await peer.receive() == question
            await peer.send("and this is the last one")
            await peer.receive()

        async with AsyncExitStack() as stack:
            await use(stack)
            before = server.memory
            for _ in range(count):
                await use(stack)
            each = (server.memory - before) / count
    check("TLS", each, 0, TLS + IDLE)


# Pages


@pytest.mark.parametrize("secure", [False, True], ids=["tcp", "tls"])
async def test_a_page_that_many_peers_do_not_read(tmp_path: Path, secure: bool) -> None:
    """A page of 4 MiB is in memory once, and over TLS no more than a read of it as records, for each of 30 peers."""
    count = 30
    tls = make_tls(tmp_path)
    certificate = [tls.certfile, tls.keyfile] if secure else None
    with victim(tmp_path / "log", certificate=certificate) as server:
        async with AsyncExitStack() as stack:

            async def ask() -> None:
                sock = trio.socket.socket()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # or the kernel takes it all
                await sock.connect(("127.0.0.1", server.port))
                stream: trio.abc.Stream = trio.SocketStream(sock)
                stack.push_async_callback(trio.aclose_forcefully, stream)
                if secure:
                    stream = trio.SSLStream(stream, tls.client, server_hostname="localhost", https_compatible=True)
                await stream.send_all(b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await stream.receive_some(15)).startswith(b"HTTP/1.1 200")

            await ask()
            before = server.forget_peak()
            for _ in range(count):
                await ask()
            each = (server.peak - before) / count
    check("a page", each, 0, TLS + IDLE)


async def test_a_page_that_many_streams_do_not_read() -> None:
    """Over streams, too, a page is in memory once."""
    page = b"x" * (4 * MIB)
    app = App()
    app.http("/page")(lambda _: page)
    listener = MemoryListener(lockstep=True)  # whose streams hold nothing themselves

    async with trio.open_nursery() as nursery:
        await nursery.start(app.serve_listeners, [listener])
        base = used()
        for _ in range(10):
            await listener.connect().send_all(b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        each = (used() - base) / 10
        nursery.cancel_scope.cancel()
    check("a page over a stream", each, 0, 64 * KIB)
