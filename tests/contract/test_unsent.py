"""How much of what a slow peer has not read is out of reach of the policy that decides about it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from support.rawclient import RawClient, open_raw
from support.rawclient import serving as serving_raw
from support.servers import Kind, Recorder, serving
from trio_crowws import App, Connection, Options, connect, connect_stream
from trio_crowws._transport.engine import Engine
from trio_crowws._transport.kernel import limit_unsent
from trio_crowws._transport.poller import SocketTransport
from trio_crowws._transport.stream import StreamTransport, socket_of
from trio_crowws._transport.tls import TLSTransport

KIB = 1024

LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
UNLIMITED = 0  # by us; the system may have a limit of its own


def lowest(conn: Connection) -> Any:
    """The transport that has the socket."""
    transport = conn._transport
    return transport._lower if isinstance(transport, TLSTransport) else transport


def told(conn: Connection) -> int:
    """What the kernel was told about the socket of `conn`."""
    transport = lowest(conn)
    sock = transport._sock if isinstance(transport, SocketTransport) else socket_of(transport._stream)
    assert sock is not None
    value: int = sock.getsockopt(socket.IPPROTO_TCP, LOWAT)
    return value


OPTIONS: list[tuple[dict[str, Any], int]] = [
    ({}, UNLIMITED),
    ({"on_slow": "drop"}, UNLIMITED),
    ({"unsent_limit": 128 * KIB}, 128 * KIB),
    ({"on_slow": "latest"}, 16 * KIB),
    ({"on_slow": "latest", "unsent_limit": 4 * KIB}, 4 * KIB),
    ({"on_slow": "latest", "unsent_limit": None}, UNLIMITED),
    ({"unsent_limit": None}, UNLIMITED),
]


@pytest.mark.parametrize("epoll", [True, False])
@pytest.mark.parametrize("kind", ["tcp", "tls"])
@pytest.mark.parametrize(("options", "limit"), OPTIONS)
async def test_the_kernel_is_told(
    kind: Kind, options: dict[str, Any], limit: int, epoll: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel takes what `unsent_limit` says of what it cannot send, or by default what suits `on_slow`."""
    monkeypatch.setattr("trio_crowws._server.Engine", partial(Engine, use_epoll=epoll))
    app = App()
    recorder = Recorder(app, **options)
    async with serving(app, kind) as site, site.connect():
        await recorder.wait("open")
        assert isinstance(lowest(recorder.conn), StreamTransport) is not epoll
        assert told(recorder.conn) == limit


@pytest.mark.parametrize(("options", "limit"), OPTIONS)
async def test_a_clients_kernel_is_told(options: dict[str, Any], limit: int) -> None:
    """A client has the same option, over a socket and over a stream."""
    app = App()
    Recorder(app)
    async with serving_raw(app) as server:
        url = f"ws://127.0.0.1:{server.port}/"
        async with connect(url, **options) as conn:
            assert told(conn) == limit
        async with connect_stream(await trio.open_tcp_stream("127.0.0.1", server.port), url, **options) as conn:
            assert told(conn) == limit


@pytest.mark.parametrize("options", [options for options, _ in OPTIONS])
async def test_the_buffer_of_a_unix_socket(options: dict[str, Any]) -> None:
    """Over a Unix socket the send buffer is made smaller where that helps, and never larger."""
    app = App()
    recorder = Recorder(app, **options)
    with socket.socket(socket.AF_UNIX) as fresh:
        usual = fresh.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    async with serving(app, "unix") as site, site.connect():
        await recorder.wait("open")
        size = lowest(recorder.conn)._sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        limit = recorder.conn.options._unsent
        assert size == (usual if limit is None or 2 * limit >= usual else max(4608, 2 * limit))


async def test_where_there_is_no_such_limit() -> None:
    """Whatever carries the bytes, the option is allowed."""
    app = App()
    Recorder(app, unsent_limit=4 * KIB)
    async with serving(app, "memory") as site, site.connect() as peer:
        await peer.send("hello")
        assert await peer.receive() == "hello"


def test_a_socket_that_was_reset_has_no_options() -> None:
    """A socket that takes no options any more costs nothing but the limit."""
    sock = socket.socket()
    sock.close()
    limit_unsent(sock, 1)


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({}, 1024 * KIB),
        ({"on_slow": "latest"}, 16 * KIB),
        ({"on_slow": "latest", "send_limit": 4 * KIB}, 4 * KIB),
        ({"on_slow": "latest", "unsent_limit": 100 * KIB}, 100 * KIB),
        ({"on_slow": "latest", "unsent_limit": None}, 1024 * KIB),
        ({"on_slow": "drop", "unsent_limit": 4 * KIB}, 1024 * KIB),
    ],
)
def test_where_the_policy_begins(options: dict[str, Any], limit: int) -> None:
    """With `on_slow="latest"` no more than `unsent_limit` is queued, else as much as `send_limit` says."""
    assert Options(**options)._queue_limit == limit


def waiting() -> dict[str, Callable[..., Any]]:
    return {"open": lambda conn: conn.wait_closed()}


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_latest_means_latest(kind: Kind) -> None:
    """A peer that begins to read sees few of the old values before the newest one."""
    app = App(on_slow="latest")
    recorder = Recorder(app, hooks=waiting())
    async with serving(app, kind) as site:
        [address] = site.server.addresses
        sock = trio.socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * KIB)
        await sock.connect(address)
        async with trio.SocketStream(sock) as stream:
            client = RawClient(stream)
            await client.upgrade("/")
            await recorder.wait("open")
            recorder.conn.join("prices")
            for number in range(4000):
                app.publish("prices", str(number).ljust(KIB))
                await trio.lowlevel.checkpoint()
            old = 0
            while int((await client.read_frame()).payload) < 3999:
                old += 1
            assert old < 150


@pytest.mark.parametrize("limit", [1, 16 * KIB, None])
async def test_a_large_message_with_any_limit(limit: int | None) -> None:
    """However little the kernel takes at once, the rest follows as soon as the peer has read."""
    app = App(unsent_limit=limit)
    size = 2_000_000
    Recorder(app, hooks={"open": lambda conn: conn.send(bytes(size))})
    async with serving_raw(app) as server, open_raw(server) as client:
        await client.upgrade("/")
        assert len((await client.read_frame()).payload) == size


async def test_what_is_queued_shows_early() -> None:
    """With a limit, `conn.buffered` tells what a peer has not read, although the kernel would have room for more."""
    app = App(send_limit=8_000_000, send_timeout=None, unsent_limit=128 * KIB)
    recorder = Recorder(app, hooks=waiting())
    async with serving_raw(app) as server, open_raw(server) as client:
        await client.upgrade("/")
        await recorder.wait("open")
        for _ in range(50):
            recorder.conn.send_nowait(bytes(100_000))
            await trio.testing.wait_all_tasks_blocked()
        assert recorder.conn.buffered > 4_000_000
