"""Networks and peers that fail, over real sockets: the server goes on, nobody else waits, nothing is left behind.

The server is a process of its own (`victim.py`). Each fault happens twice: the first time fills caches and free lists,
the second time must not cost anything any more. A canary measures an honest peer's round trips all the while.
"""

from __future__ import annotations

import resource
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio

from robustness.canary import canary, show
from robustness.victim import KIB, MIB, Victim, until, victim
from support.heads import UPGRADE, write_head
from support.rawclient import RawClient, open_raw, reset, upgrade
from trio_crowws.testing import make_frame

Fault = Callable[[Victim], Awaitable[None]]

TOLERANCE = 1 * MIB
"""How much more memory a second round of a fault may leave behind than the first: caches grow in steps. Fifty
connections that leaked one frame of the largest size each would be three times that."""


@pytest.fixture(scope="module", autouse=True)
def descriptors() -> Generator[int]:
    """As many descriptors as the system allows, for this process and for the servers that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 20_000 if hard == resource.RLIM_INFINITY else min(20_000, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Victim]:
    with victim(tmp_path_factory.mktemp("faults") / "log") as running:
        yield running


async def survive(server: Victim, fault: Fault, *, tolerance: int = TOLERANCE) -> None:
    """Do `fault` twice: others are served in time, and the second time leaves nothing behind.

    What is left behind is left every time. An allocator that got in its own way is given another two chances.
    """
    before = server.descriptors
    grown = 0
    with canary(server.port), trio.fail_after(60):
        await fault(server)
        await server.wait_quiet(before + 1)
        for _ in range(3):
            memory = server.memory
            await fault(server)
            await server.wait_quiet(before + 1)
            grown = server.memory - memory
            show(f"{grown / KIB:.0f} KiB more memory")
            if grown <= tolerance:
                break
    await server.wait_quiet(before)
    assert grown <= tolerance, f"{grown / KIB:.0f} KiB are left behind"
    server.check()


@asynccontextmanager
async def crowd(server: Victim, size: int, path: str | None = "/echo") -> AsyncGenerator[list[RawClient]]:
    """Peers that are connected, and whose opening handshake is done unless `path` is `None`."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(open_raw(server.port)) for _ in range(size)]
        if path is not None:
            for client in clients:
                await client.send(upgrade(path))
            for client in clients:
                await client.accepted()
        yield clients


async def in_parallel(clients: list[RawClient], act: Callable[[RawClient], Awaitable[object]]) -> None:
    async with trio.open_nursery() as nursery:
        for client in clients:
            nursery.start_soon(act, client)


async def pour(data: bytes, client: RawClient) -> None:
    """Send as much of `data` as the server and the buffers on the way take."""
    with trio.move_on_after(0.2):
        await client.stream.send_all(data)


async def wait_gone(client: RawClient) -> None:
    """Read until the server has ended the stream in any way."""
    with suppress(trio.BrokenResourceError):
        await client.read_to_end()


LARGE = make_frame(2, bytes(60 * KIB))

BEFORE: dict[str, bytes] = {
    "at once": b"",
    "within the request": upgrade("/echo")[:60],
    "behind the request": upgrade("/echo"),
    "behind a refused request": upgrade("/nowhere"),
}
"""What a peer sends before something happens to its connection that is not open yet."""

AFTER: dict[str, bytes] = {
    "in silence": b"",
    "within a header": LARGE[:5],
    "within a payload": LARGE[:3000],
    "within a message": make_frame(1, b"the first half", fin=False),
    "before an answer": make_frame(1, b"?") * 100,
    "before large answers": LARGE * 10,
    "behind a ping": make_frame(9, b"?"),
    "behind a Close frame": make_frame(8, struct.pack("!H", 1000)),
    "behind a bad frame": b"\xff\xff",
}
"""What a peer sends before something happens to its connection that is open."""


@pytest.mark.parametrize("path", ["/echo", "/plain", "/deaf", "/goodbye"])
async def test_resets_of_open_connections(server: Victim, path: str) -> None:
    """A reset ends its connection and nothing else, whatever was on its way in either direction."""

    async def fault(server: Victim) -> None:
        for sent in AFTER.values():
            async with crowd(server, 5, path) as clients:
                await in_parallel(clients, partial(pour, sent))
                for client in clients:
                    reset(client)

    await survive(server, fault)


async def test_resets_during_the_handshake(server: Victim) -> None:
    """A peer may break off at any point of the opening handshake."""

    async def fault(server: Victim) -> None:
        for sent in BEFORE.values():
            async with crowd(server, 20, None) as clients:
                for client in clients:
                    if sent:
                        await client.send(sent)
                    reset(client)

    await survive(server, fault)


async def test_five_hundred_connects_and_resets(server: Victim) -> None:
    """Five hundred peers that connect and reset cost nothing that lasts."""

    async def fault(server: Victim) -> None:
        for _ in range(500):
            sock = socket.create_connection(("127.0.0.1", server.port))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
            await trio.lowlevel.checkpoint()

    await survive(server, fault)


@pytest.mark.parametrize("path", ["/echo", "/plain", "/goodbye"])
async def test_half_closed_connections(server: Victim, path: str) -> None:
    """A peer that ends its direction gets what it asked for before, and then the end of the other direction."""

    async def fault(server: Victim) -> None:
        for sent in AFTER.values():
            async with crowd(server, 5, path) as clients:
                await in_parallel(clients, partial(pour, sent))
                for client in clients:
                    assert isinstance(client.stream, trio.SocketStream)
                    await client.stream.send_eof()
                await in_parallel(clients, wait_gone)

    await survive(server, fault)


async def test_half_closed_handshakes(server: Victim) -> None:
    """A peer that ends its direction during the opening handshake is let go of at once."""

    async def fault(server: Victim) -> None:
        for sent in BEFORE.values():
            async with crowd(server, 10, None) as clients:
                for client in clients:
                    if sent:
                        await client.send(sent)
                    assert isinstance(client.stream, trio.SocketStream)
                    await client.stream.send_eof()
                await in_parallel(clients, wait_gone)

    await survive(server, fault)


async def test_peers_that_vanish(server: Victim) -> None:
    """A peer that is gone without a sign, as when a cable is cut, is found by the heartbeat."""

    async def fault(server: Victim) -> None:
        async with crowd(server, 30) as clients:
            for client in clients[10:]:
                await client.send(LARGE[:3000])
            for client in clients[20:]:
                await client.send(make_frame(1, b"a message within a message is a fault", fin=False)[:9])
            # Nothing is read and nothing is answered from here on; the sockets stay open.
            with trio.fail_after(10):
                while (await server.settle())["connections"] > 2:  # the canary has two
                    assert len(clients) == 30
                    await trio.sleep(0.1)

    await survive(server, fault)


@pytest.mark.parametrize("path", ["/echo", "/plain"])
async def test_a_hundred_mebibytes_that_nobody_reads(server: Victim, path: str) -> None:
    """Peers that ask for 100 MiB of echoes each and read nothing are given up, and hold little memory until then."""
    size, total = 8, 100 * MIB

    async def ask(client: RawClient) -> None:
        # Once the server has begun to close it reads on and drops what comes, so it may well take all of this.
        with suppress(trio.BrokenResourceError):
            for _ in range(total // len(LARGE)):
                await client.stream.send_all(LARGE)

    async def fault(server: Victim) -> None:
        before = server.memory
        highest = 0
        async with crowd(server, size, path) as clients, trio.open_nursery() as nursery:
            with trio.fail_after(15):
                for client in clients:
                    nursery.start_soon(ask, client)
                while len(nursery.child_tasks) > 0:
                    await trio.sleep(0.05)
                    highest = max(highest, server.memory - before)
                while (await server.settle())["connections"] > 2:  # the canary has two
                    assert len(clients) == size
                    await trio.sleep(0.1)
        show(f"{highest / KIB / size:.0f} KiB for each of {size} connections")
        # receive_buffer, a partial message, one read, what is queued and what is being sent.
        assert highest < size * (3 * 64 * KIB + 2 * 256 * KIB + 64 * KIB) + 4 * MIB

    await survive(server, fault)


async def test_peers_that_stall_for_ever(server: Victim) -> None:
    """A peer that stops reading in the middle of an answer is given up after `send_timeout`, however alive it looks."""

    async def stall(client: RawClient) -> None:
        try:
            for _ in range(160):  # more than the kernel's buffers take
                await client.stream.send_all(LARGE)
            while True:
                await client.stream.send_all(make_frame(10, b"I am alive"))
                await trio.sleep(0.1)
        except trio.BrokenResourceError:
            pass

    async def fault(server: Victim) -> None:
        async with crowd(server, 8) as clients:
            with trio.fail_after(15):
                await in_parallel(clients, stall)

    await survive(server, fault)


async def test_peers_that_read_byte_by_byte(server: Victim) -> None:
    """A peer that reads one byte now and then is served at its own pace, or given up; nobody else notices."""

    async def sip(client: RawClient) -> None:
        assert isinstance(client.stream, trio.SocketStream)
        client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        with trio.move_on_after(1.5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood, client)
                with suppress(trio.BrokenResourceError):
                    for _ in range(1000):
                        assert await client.stream.receive_some(1)
                        await trio.sleep(0.02)
                nursery.cancel_scope.cancel()

    async def flood(client: RawClient) -> None:
        try:
            while True:
                await client.stream.send_all(LARGE)
        except trio.BrokenResourceError:
            pass

    async def fault(server: Victim) -> None:
        async with crowd(server, 10, "/echo") as sipping, crowd(server, 10, "/plain") as others:
            await in_parallel([*sipping, *others], sip)

    await survive(server, fault)


async def test_two_thousand_idle_connections(tmp_path: Path, descriptors: int) -> None:
    """Two thousand connections that do nothing take a few KiB each, and when all close at once nothing is left."""
    count = min(2000, (descriptors - 200) // 2)
    request = write_head(UPGRADE.items(), "GET /deaf HTTP/1.1")

    def connect(server: Victim) -> list[socket.socket]:
        sockets = []
        for _ in range(count // 100):
            some = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(100)]
            for sock in some:
                sock.sendall(request)
            sockets += some
        for sock in sockets:
            assert sock.recv(4096).startswith(b"HTTP/1.1 101")
        return sockets

    async def fault(server: Victim) -> None:
        await server.settle()
        before = server.memory
        sockets = await trio.to_thread.run_sync(connect, server)
        await server.settle()
        each = (server.memory - before) / len(sockets)
        for sock in sockets:
            sock.close()
        show(f"{each / KIB:.1f} KiB for each of {len(sockets)} idle connections")
        assert each < 12 * KIB, f"an idle connection takes {each / KIB:.1f} KiB"

    with victim(tmp_path / "log", ping_interval=None) as server:
        await survive(server, fault, tolerance=2 * MIB)


async def test_out_of_descriptors(tmp_path: Path) -> None:
    """A server without a free descriptor serves those that it has, and takes new ones as soon as it can."""
    with victim(tmp_path / "log", descriptors=64, ping_interval=None) as server:
        before = server.descriptors
        with canary(server.port, fresh=False):
            for _ in range(2):
                async with crowd(server, 100, None):
                    await until(lambda: server.descriptors == 64)
                    await trio.sleep(0.3)
                await server.wait_quiet(before + 1)
        with canary(server.port):
            await trio.sleep(0.2)
        await server.wait_quiet(before)
