"""Where an application can be served: TCP, Unix sockets, TLS, ready listeners, single streams; and what goes wrong."""

from __future__ import annotations

import errno
import logging
import os
import re
import select
import socket
import ssl
import struct
import sys
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from support.certificates import TLS
from support.processes import port_of, started
from support.rawclient import RawClient, assert_serves, echo_app, open_raw, plain, serving, until, upgrade
from support.servers import Recorder
from trio_crowws import App, ConnectFailed, Connection, Reject, Request, Server, connect
from trio_crowws._listeners import url_of
from trio_crowws._transport.addresses import check_unix_path
from trio_crowws._transport.poller import Poller, SocketTransport
from trio_crowws.testing import Peer, PeerClosed, shake_hands


def _has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as sock:
        try:
            sock.bind(("::1", 0))
        except OSError:
            return False
    return True


HAS_IPV6 = socket.has_ipv6 and _has_ipv6()


async def echo_once(stream: trio.abc.Stream, path: str = "/echo") -> None:
    """A whole conversation over `stream`."""
    async with stream:
        peer = await shake_hands(stream, path, host="localhost")
        await peer.send("hello")
        with trio.fail_after(5):
            assert await peer.receive() == "hello"
            assert await peer.close() is not None


async def over_tls(server: Server | int, tls: TLS) -> trio.SSLStream[trio.SocketStream]:
    port = server if isinstance(server, int) else server.port
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    return trio.SSLStream(stream, tls.client, server_hostname="localhost", https_compatible=True)


def app_that_looks(seen: list[Connection]) -> App:
    """An echo application that keeps its connections."""
    app = App()

    @app.websocket("/echo")
    async def echo(conn: Connection) -> None:
        seen.append(conn)
        async for message in conn:
            await conn.send(message)

    return app


# TCP


async def test_start_returns_the_server() -> None:
    """nursery.start returns a Server that knows its addresses; port 0 means a free one."""
    async with trio.open_nursery() as nursery:
        first = await nursery.start(echo_app().serve, "127.0.0.1", 0)
        second = await nursery.start(echo_app().serve, "127.0.0.1", 0)
        assert isinstance(first, Server)
        assert first.port > 0
        assert second.port not in (0, first.port)
        assert first.addresses == [("127.0.0.1", first.port)]
        assert repr(first) == f"<Server on 127.0.0.1:{first.port} with 0 connections>"
        await assert_serves(first)
        await assert_serves(second)
        await first.aclose()
        await second.aclose()


async def test_the_port_is_free_at_once() -> None:
    """When a server has ended its port can be served again at once, even if connections were open."""
    async with serving(echo_app()) as server, open_raw(server) as client:
        await client.upgrade()
        await client.assert_echoes()
        await server.drain(0)
        async with serving(echo_app(), port=server.port) as again:
            assert again.port == server.port
            await assert_serves(again)


async def test_one_application_on_two_ports() -> None:
    """An application can be served more than once at the same time; each Server knows its own connections."""
    app = echo_app()
    async with serving(app) as one, serving(app) as two, open_raw(one) as first, open_raw(two) as second:
        await first.upgrade()
        await second.upgrade()
        await first.assert_echoes()
        await second.assert_echoes()
        assert len(app.connections) == 2
        assert one.connections | two.connections == app.connections
        assert len(one.connections) == len(two.connections) == 1
        await first.close()
        await second.close()


async def test_all_interfaces() -> None:
    """The host None means every interface, of IPv4 and, where it is there, of IPv6."""
    async with serving(echo_app(), host=None) as server:
        hosts = {address[0] for address in server.addresses}
        assert hosts == ({"0.0.0.0", "::"} if HAS_IPV6 else {"0.0.0.0"})
        for address in server.addresses:
            assert isinstance(address, tuple)
            await echo_once(await trio.open_tcp_stream("::1" if address[0] == "::" else "127.0.0.1", address[1]))


@pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")
async def test_ipv6() -> None:
    """An IPv6 address is served; addresses are pairs, and are shown with brackets."""
    seen: list[Connection] = []
    async with serving(app_that_looks(seen), host="::1") as server:
        assert server.addresses == [("::1", server.port)]
        assert f"[::1]:{server.port}" in repr(server)
        await echo_once(await trio.open_tcp_stream("::1", server.port))
    [conn] = seen
    assert conn.local_address == ("::1", server.port)
    assert conn.remote_address is not None
    assert conn.remote_address[0] == "::1"


async def test_addresses_of_a_connection() -> None:
    """A connection and its request know both addresses, and for ever."""
    seen: list[Connection] = []
    async with serving(app_that_looks(seen)) as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        name = stream.socket.getsockname()
        await echo_once(stream)
    [conn] = seen
    assert conn.remote_address == conn.request.remote_address == name
    assert conn.local_address == conn.request.local_address == ("127.0.0.1", server.port)
    assert not conn.request.secure


async def test_a_busy_port() -> None:
    """A port that is in use is an OSError with the address in it, and the reason."""
    async with serving(echo_app()) as server:
        message = rf"cannot listen on 127\.0\.0\.1:{server.port}: Address already in use"
        with pytest.raises(OSError, match=message) as caught:
            await echo_app().serve("127.0.0.1", server.port)
        assert caught.value.errno == errno.EADDRINUSE
        assert isinstance(caught.value.__cause__, OSError)
        await assert_serves(server)


def test_run_on_a_busy_port() -> None:
    """App.run raises the same OSError as it is."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f":{port}: Address already in use") as caught:
            echo_app().run("127.0.0.1", port)
        assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
async def test_an_address_that_is_not_ours(host: str) -> None:
    """A host that is not this machine is an OSError with the address in it."""
    with pytest.raises(OSError, match=rf"cannot listen on {host}:8000: "):
        await echo_app().serve(host, 8000)


@pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")
async def test_a_busy_ipv6_port() -> None:
    """An IPv6 address has brackets in the message."""
    async with serving(echo_app(), host="::1") as server:
        with pytest.raises(OSError, match=rf"cannot listen on \[::1\]:{server.port}: "):
            await echo_app().serve("::1", server.port)


@pytest.mark.parametrize("port", [-1, 65536, 70000])
async def test_a_port_out_of_range(port: int) -> None:
    """A port that does not exist is a ValueError, and not another port."""
    with pytest.raises(ValueError, match=rf"port {port} is not allowed; it must be an int from 0 to 65535"):
        with trio.fail_after(2):
            await echo_app().serve("127.0.0.1", port)


@pytest.mark.parametrize("port", ["8000", None, 80.0, True])
async def test_a_port_is_a_number(port: Any) -> None:
    """A port that is no int is a TypeError."""
    with pytest.raises(TypeError, match="port must be an int"):
        with trio.fail_after(2):
            await echo_app().serve("127.0.0.1", port)


async def test_a_failed_start_leaves_nothing_behind() -> None:
    """When one of several addresses is busy, none of them is served."""
    with socket.socket(socket.AF_INET) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=r"cannot listen on \*:"):
            await echo_app().serve(None, port)
        if HAS_IPV6:
            with socket.socket(socket.AF_INET6) as free:
                free.bind(("::1", port))


# Unix sockets


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A path that is short enough for a Unix socket."""
    return str(tmp_path_factory.mktemp("u") / "s")


async def test_a_unix_socket(path: str) -> None:
    """A Unix socket is served at its path, which is the address, and is removed at the end."""
    seen: list[Connection] = []
    async with serving(app_that_looks(seen), unix=path) as server:
        assert server.addresses == [path]
        assert repr(server) == f"<Server on {path} with 0 connections>"
        with pytest.raises(ValueError, match="does not listen on TCP"):
            server.port  # noqa: B018
        await echo_once(await trio.open_unix_socket(path))
        assert Path(path).is_socket()
    assert not Path(path).exists()
    assert seen[0].local_address == seen[0].remote_address == path


async def test_a_unix_path_object(path: str) -> None:
    """The path may be a Path."""
    async with serving(echo_app(), unix=Path(path)) as server:
        assert server.addresses == [path]
        await echo_once(await trio.open_unix_socket(path))


async def test_tls_on_a_unix_socket(path: str, tls: TLS) -> None:
    """A Unix socket can be served with TLS as well."""
    async with serving(echo_app(), unix=path, ssl_context=tls.server):
        stream = trio.SSLStream(await trio.open_unix_socket(path), tls.client, server_hostname="localhost")
        peer = await shake_hands(stream, "/echo")
        await peer.send("hello")
        assert await peer.receive() == "hello"
        await trio.aclose_forcefully(stream)


async def test_a_stale_socket_is_replaced(path: str) -> None:
    """A socket that nobody listens on any more, as after a crash, is replaced."""
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(path)
    assert Path(path).is_socket()
    async with serving(echo_app(), unix=path):
        await echo_once(await trio.open_unix_socket(path))


async def test_a_live_socket_is_left_alone(path: str) -> None:
    """A socket that somebody listens on is an OSError with the path in it, and is served on."""
    async with serving(echo_app(), unix=path):
        with pytest.raises(OSError, match=rf"cannot listen on {path}: Address already in use") as caught:
            await echo_app().serve(unix=path)
        assert caught.value.errno == errno.EADDRINUSE
        await echo_once(await trio.open_unix_socket(path))


async def test_a_busy_socket_is_left_alone(path: str) -> None:
    """A socket whose queue is full counts as live."""
    with socket.socket(socket.AF_UNIX) as taken, socket.socket(socket.AF_UNIX) as waiting:
        taken.bind(path)
        taken.listen(0)
        waiting.connect(path)
        with pytest.raises(OSError, match="Address already in use"):
            await echo_app().serve(unix=path)
        assert Path(path).is_socket()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
async def test_a_socket_that_does_not_listen_yet_is_left_alone(path: str, kind: socket.SocketKind) -> None:
    """A socket that a process has bound is its own, also before it listens, and of whatever kind it is."""
    with socket.socket(socket.AF_UNIX, kind) as starting:
        starting.bind(path)
        with pytest.raises(OSError, match=rf"cannot listen on {path}: Address already in use"):
            await echo_app().serve(unix=path)
        assert Path(path).is_socket()
        if kind == socket.SOCK_STREAM:
            starting.listen()
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)


async def test_a_socket_that_nobody_may_ask(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system does not say whether a socket is alive, that is an OSError, and the socket stays."""

    def refuse(sock: socket.socket, address: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(path)
    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        with pytest.raises(OSError, match=rf"cannot listen on {path}: Permission denied"):
            await echo_app().serve(unix=path)
    assert Path(path).is_socket()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="abstract sockets are there on Linux only")
async def test_an_abstract_socket(caplog: pytest.LogCaptureFixture) -> None:
    """A name that begins with NUL is abstract: no file; wherever it is shown there is an @ in place of the NUL."""
    caplog.set_level(logging.INFO, "trio_crowws")
    name = f"crowws-{os.getpid()}"
    app = App()
    recorder = Recorder(app)
    async with serving(app, unix=f"\0{name}") as server:
        assert server.addresses == [f"@{name}"]
        assert repr(server).startswith(f"<Server on @{name} ")
        peer = await shake_hands(await trio.open_unix_socket(f"\0{name}"))
        await recorder.wait("open")
        assert recorder.conn.local_address == recorder.conn.remote_address == f"@{name}"
        await peer.close()
        await peer.stream.aclose()
        with pytest.raises(OSError, match=f"cannot listen on @{name}: Address already in use"):
            await echo_app().serve(unix=f"\0{name}")
        assert not Path(f"@{name}").exists()
    assert f"listening on @{name}" in caplog.text
    assert "\0" not in caplog.text


async def test_listeners_on_an_abstract_socket() -> None:
    """A Trio listener on an abstract or a plain Unix socket is served with the same addresses."""
    name = f"\0crowws-{os.getpid()}-listener"
    sock = trio.socket.socket(socket.AF_UNIX)
    await sock.bind(name)
    sock.listen()
    app = App()
    recorder = Recorder(app)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(app.serve_listeners, [trio.SocketListener(sock)])
        assert server.addresses == ["@" + name[1:]]
        peer = await shake_hands(await trio.open_unix_socket(name))
        await recorder.wait("open")
        assert recorder.conn.remote_address == "@" + name[1:]
        await peer.stream.aclose()
        nursery.cancel_scope.cancel()


def test_abstract_sockets_are_for_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere an abstract name is an OSError that says so."""
    monkeypatch.setattr("trio_crowws._transport.addresses.sys.platform", "darwin")
    with pytest.raises(OSError, match="there on Linux only"):
        check_unix_path("\0name")


@pytest.mark.parametrize("first", ["/", "\0", "/\xe4"])
async def test_a_path_that_is_too_long(first: str) -> None:
    """A path beyond what the system takes is an OSError that names the limit, for a server and for a client."""
    path = first + "x" * 200
    limit = 107 if sys.platform.startswith("linux") else 103
    with pytest.raises(OSError, match=f"at most {limit} bytes, and this one has 20[0-3]") as caught:
        await echo_app().serve(unix=path)
    assert caught.value.errno == errno.ENAMETOOLONG
    if first == "/":
        with pytest.raises(ConnectFailed, match=f"at most {limit} bytes"):
            async with connect(f"ws+unix://{path}"):
                pass


async def test_the_longest_path(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The longest path that the system takes is taken."""
    limit = 107 if sys.platform.startswith("linux") else 103
    folder = str(tmp_path_factory.mktemp("l"))
    path = folder + "/" + "x" * (limit - len(folder) - 1)
    async with serving(echo_app(), unix=path):
        await echo_once(await trio.open_unix_socket(path))


async def test_a_path_is_no_bytes() -> None:
    """A path of bytes is a TypeError that says so."""
    with pytest.raises(TypeError, match="not bytes"):
        await echo_app().serve(unix=b"/x")  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["", "/tmp/a\0b"])
async def test_a_path_that_names_no_socket(path: str) -> None:
    """An empty path, or a NUL within it, is a ValueError that shows it, and no socket is left behind."""
    with pytest.raises(ValueError, match=re.escape(f"must not be empty or hold a NUL, not {path!r}")):
        await echo_app().serve(unix=path)


# What `run` says


@pytest.mark.parametrize(
    ("address", "secure", "text"),
    [
        (("127.0.0.1", 80), False, "ws://127.0.0.1:80"),
        (("127.0.0.1", 443), True, "wss://127.0.0.1:443"),
        (("::1", 8000), False, "ws://[::1]:8000"),
        (("0.0.0.0", 8000), False, "ws://127.0.0.1:8000 (and all IPv4 addresses)"),
        (("::", 8000), True, "wss://[::1]:8000 (and all IPv6 addresses)"),
        ("/run/a b/s", False, "ws+unix:///run/a%20b/s"),
        ("@a/name", False, "ws+unix:///%00a%2Fname"),
        ("/run/\udcff", False, "ws+unix:///run/%FF"),
        ("@\udcff", False, "ws+unix:///%00%FF"),
    ],
)
def test_the_url_of_an_address(address: tuple[str, int] | str, secure: bool, text: str) -> None:
    """An address is shown as what a client connects to; one that stands for all of them as one that can be reached."""
    assert url_of(address, secure=secure) == text


def run_and_stop(app: App, **options: Any) -> None:
    """Run `app` until it listens."""

    def stop(server: Server) -> None:
        trio.lowlevel.spawn_system_task(server.aclose)

    app.run("127.0.0.1", 0, on_listening=stop, **options)


def test_run_says_where_it_listens(capsys: pytest.CaptureFixture[str], tls: TLS) -> None:
    """`run` prints one line with the URL when it accepts connections, and none with `announce=False`."""
    run_and_stop(echo_app())
    assert re.fullmatch(r"listening on ws://127\.0\.0\.1:[0-9]+\n", capsys.readouterr().out)
    run_and_stop(echo_app(), ssl_context=tls.server)
    assert re.fullmatch(r"listening on wss://127\.0\.0\.1:[0-9]+\n", capsys.readouterr().out)
    run_and_stop(echo_app(), announce=False)
    assert capsys.readouterr().out == ""


def test_run_needs_nobody_who_listens_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A standard output that cannot be written to does not end the server."""
    for output in (None, Deaf()):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", output)
            run_and_stop(echo_app())


class Deaf:
    """An output that does not work."""

    def write(self, text: str) -> int:
        raise OSError("nobody reads this")


# A context for the other side


@pytest.mark.parametrize(
    ("context", "error", "message"),
    [
        (ssl.create_default_context(), ValueError, "is one for a client"),
        (ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ValueError, "ssl.Purpose.CLIENT_AUTH"),
        (True, TypeError, "ssl_context must be an ssl.SSLContext, not bool"),
        ("cert.pem", TypeError, "not str"),
    ],
)
async def test_a_context_of_the_wrong_side(context: Any, error: type[Exception], message: str) -> None:
    """A context that no server can use is refused when `serve` or `run` is called, before anything listens."""
    with pytest.raises(error, match=message):
        await echo_app().serve("127.0.0.1", 0, ssl_context=context)
    with pytest.raises(error, match=message):
        echo_app().run("127.0.0.1", 0, ssl_context=context)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
async def test_another_file_is_left_alone(path: str, kind: str) -> None:
    """A file that is no socket is an OSError with the path in it, and stays."""
    if kind == "file":
        Path(path).write_text("precious")
    elif kind == "folder":
        Path(path).mkdir()
    else:
        Path(path + "x").write_text("precious")
        Path(path).symlink_to(path + "x")
    with pytest.raises(OSError, match=rf"cannot listen on {path}: there is a file that is not a socket"):
        await echo_app().serve(unix=path)
    assert Path(path).exists()
    assert kind == "folder" or Path(path).read_text() == "precious"


async def test_a_path_that_cannot_be(path: str) -> None:
    """A folder that does not exist, and a path that is too long, are OSErrors with the path in them."""
    for wrong in (path + "/no/s", path + "x" * 200):
        with pytest.raises(OSError, match=f"cannot listen on {wrong}: "):
            await echo_app().serve(unix=wrong)


async def test_the_socket_of_a_successor_is_left_alone(path: str) -> None:
    """A server removes its own socket at the end, and not the one that has taken its place."""
    async with serving(echo_app(), unix=path):
        Path(path).unlink()
        successor = socket.socket(socket.AF_UNIX)
        successor.bind(path)
    assert Path(path).is_socket()
    successor.close()


# TLS


async def test_tls(tls: TLS) -> None:
    """With a context TLS is served, and requests know that they are secure."""
    seen: list[Connection] = []
    async with serving(app_that_looks(seen), ssl_context=tls.server) as server:
        stream = await over_tls(server, tls)
        name = stream.transport_stream.socket.getsockname()
        await echo_once(stream)
    [conn] = seen
    assert conn.request.secure
    assert conn.remote_address == name
    assert conn.local_address == ("127.0.0.1", server.port)


async def test_only_secure_pages_over_tls(tls: TLS) -> None:
    """Over TLS the same origin is an https one."""
    async with serving(echo_app(), ssl_context=tls.server) as server:
        for origin, status in (("https://example.org", 101), ("http://example.org", 403)):
            async with await over_tls(server, tls) as stream:
                client = RawClient(stream)
                await client.send(upgrade(headers=[("Origin", origin)]))
                assert (await client.read_answer()).status == status


async def test_a_refusal_over_tls_ends_the_stream(tls: TLS) -> None:
    """A refusal over TLS is complete, and then the stream ends, without a wait for the peer."""
    app = echo_app()
    app.routes[0].on_accept(lambda request: Reject(403, "no" * 50_000))
    async with serving(app, ssl_context=tls.server) as server, await over_tls(server, tls) as stream:
        client = RawClient(stream)
        await client.send(upgrade())
        with trio.fail_after(2):
            assert len((await client.refused()).body) == 100_000


async def test_large_messages_over_tls(tls: TLS) -> None:
    """Messages of a megabyte go both ways over TLS."""
    data = os.urandom(1 << 20)
    async with serving(echo_app(), ssl_context=tls.server) as server, await over_tls(server, tls) as stream:
        peer = await shake_hands(stream, "/echo")
        for _ in range(3):
            await peer.send(data)
            assert await peer.receive() == data


# Ready listeners


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    """A listener that no socket is behind."""

    def __init__(self) -> None:
        self.send, self._receive = trio.open_memory_channel[Any](10)
        self.closed = False

    async def accept(self) -> trio.abc.Stream:
        stream = await self._receive.receive()
        if isinstance(stream, Exception):
            raise stream
        assert isinstance(stream, trio.abc.Stream)
        return stream

    async def aclose(self) -> None:
        self.closed = True
        self._receive.close()
        await trio.lowlevel.checkpoint()

    async def connect(self) -> trio.abc.Stream:
        near, far = trio.testing.memory_stream_pair()
        await self.send.send(far)
        return near


def port_behind(listener: trio.SSLListener[trio.SocketStream]) -> int:
    below = listener.transport_listener
    assert isinstance(below, trio.SocketListener)
    port: int = below.socket.getsockname()[1]
    return port


async def serve_on(nursery: trio.Nursery, app: App, *listeners: Any) -> Server:
    server: Server = await nursery.start(partial(app.serve_listeners, listeners))
    return server


async def test_ready_sockets(nursery: trio.Nursery) -> None:
    """Trio's SocketListeners are served, and closed in the end."""
    listeners = [listener for _ in range(2) for listener in await trio.open_tcp_listeners(0, host="127.0.0.1")]
    ports = [listener.socket.getsockname()[1] for listener in listeners]
    server = await serve_on(nursery, echo_app(), *listeners)
    assert server.addresses == [("127.0.0.1", port) for port in ports]
    for port in ports:
        await echo_once(await trio.open_tcp_stream("127.0.0.1", port))
    await server.aclose()
    for port in ports:
        with pytest.raises(OSError, match=f"port.*{port}|{port}.*port|all attempts"):
            await trio.open_tcp_stream("127.0.0.1", port)


async def test_a_ready_unix_listener(nursery: trio.Nursery, path: str) -> None:
    """A SocketListener on a Unix socket is served; its file is the caller's."""
    sock = trio.socket.socket(socket.AF_UNIX)
    await sock.bind(path)
    sock.listen()
    server = await serve_on(nursery, echo_app(), trio.SocketListener(sock))
    assert server.addresses == [path]
    await echo_once(await trio.open_unix_socket(path))
    await server.aclose()
    assert Path(path).is_socket()


async def test_a_ready_tls_listener(nursery: trio.Nursery, tls: TLS) -> None:
    """An SSLListener is served, and its address is known."""
    seen: list[Connection] = []
    [listener] = await trio.open_ssl_over_tcp_listeners(0, tls.server, host="127.0.0.1", https_compatible=True)
    server = await serve_on(nursery, app_that_looks(seen), listener)
    await echo_once(await over_tls(server.port, tls))
    assert seen[0].request.secure
    assert seen[0].local_address == ("127.0.0.1", server.port)
    await server.aclose()


async def test_listeners_of_several_kinds(nursery: trio.Nursery, tls: TLS) -> None:
    """Plain, TLS and other listeners can be served together; all are closed in the end."""
    [plain_listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    [tls_listener] = await trio.open_ssl_over_tcp_listeners(0, tls.server, host="127.0.0.1", https_compatible=True)
    memory = MemoryListener()
    port = plain_listener.socket.getsockname()[1]
    tls_port = port_behind(tls_listener)
    server = await serve_on(nursery, echo_app(), memory, tls_listener, plain_listener)
    assert set(server.addresses) == {("127.0.0.1", port), ("127.0.0.1", tls_port)}
    await echo_once(await trio.open_tcp_stream("127.0.0.1", port))
    await echo_once(await over_tls(tls_port, tls))
    await echo_once(await memory.connect())
    await server.aclose()
    assert memory.closed
    for closed in (port, tls_port):
        with pytest.raises(OSError, match=r"."):
            await trio.open_tcp_stream("127.0.0.1", closed)


async def test_what_is_served_is_closed_in_every_case(tls: TLS) -> None:
    """Listeners and streams are closed even if the server is cancelled before it has begun."""
    memory = MemoryListener()
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    near, far = trio.testing.memory_stream_pair()
    for serve in (partial(echo_app().serve_listeners, [memory, listener]), partial(echo_app().serve_stream, far)):
        with trio.CancelScope() as scope:
            scope.cancel()
            await serve()
        assert scope.cancelled_caught
    assert memory.closed
    assert listener.socket.fileno() == -1
    assert await near.receive_some() == b""


async def test_no_listeners() -> None:
    """Without a listener there is nothing to serve: ValueError."""
    with pytest.raises(ValueError, match="at least one listener"):
        await echo_app().serve_listeners([])


async def test_a_listener_that_fails_for_a_moment(nursery: trio.Nursery, caplog: pytest.LogCaptureFixture) -> None:
    """An OSError of a listener is logged, and accepting goes on."""
    memory = MemoryListener()
    server = await serve_on(nursery, echo_app(), memory)
    await memory.send.send(OSError(errno.EMFILE, "too many"))
    await echo_once(await memory.connect())
    await server.aclose()
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "too many" in record.getMessage()


@pytest.mark.parametrize("with_tls", [False, True])
async def test_a_peer_that_is_gone_before_it_is_accepted(
    nursery: trio.Nursery, tls: TLS, caplog: pytest.LogCaptureFixture, with_tls: bool
) -> None:
    """Peers that reset the connection while they wait in the queue are no error, and the next one is served."""
    listener: trio.abc.Listener[trio.abc.Stream]
    if with_tls:
        [tls_listener] = await trio.open_ssl_over_tcp_listeners(0, tls.server, host="127.0.0.1", https_compatible=True)
        listener = tls_listener
        port = port_behind(tls_listener)
    else:
        [plain_listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = plain_listener.socket.getsockname()[1]
        listener = plain_listener
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", port)) as gone:
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server = await serve_on(nursery, echo_app(), listener)
    await echo_once(await over_tls(port, tls) if with_tls else await trio.open_tcp_stream("127.0.0.1", port))
    await server.aclose()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# Single streams


async def test_one_stream(nursery: trio.Nursery) -> None:
    """One connection can be served over any stream, with the addresses that are given; serve_stream ends with it."""
    seen: list[Connection] = []
    near, far = trio.testing.memory_stream_pair()

    async def serve() -> None:
        await app_that_looks(seen).serve_stream(far, remote_address=("peer", 1), local_address="here")

    async with trio.open_nursery() as inner:
        inner.start_soon(serve)
        await echo_once(near)
    assert (seen[0].remote_address, seen[0].local_address) == (("peer", 1), "here")


async def test_the_addresses_of_a_socket_stream() -> None:
    """The addresses of a stream over a socket are found out."""
    seen: list[Connection] = []
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, trio.open_nursery() as nursery:
        near = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        nursery.start_soon(app_that_looks(seen).serve_stream, await listener.accept())
        name = near.socket.getsockname()
        await echo_once(near)
    assert seen[0].remote_address == name


async def test_serve_stream_over_tls(tls: TLS) -> None:
    """A TLS stream shakes hands by itself."""
    seen: list[Connection] = []
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        server_end = trio.SSLStream(far, tls.server, server_side=True, https_compatible=True)
        nursery.start_soon(app_that_looks(seen).serve_stream, server_end)
        await echo_once(trio.SSLStream(near, tls.client, server_hostname="localhost", https_compatible=True))
    assert seen[0].request.secure


async def refuse_slowly(request: Request) -> Reject:
    await trio.lowlevel.checkpoint()
    return Reject(403)


@pytest.mark.parametrize("path", ["/nothing", "/slow", "/page"])
async def test_a_refused_stream_is_released_with_its_peer(path: str, autojump_clock: trio.testing.MockClock) -> None:
    """When the peer has read a refusal, or a page, and closes, serve_stream ends at once."""
    app = App()
    app.websocket("/slow").onaccept(refuse_slowly).onmessage(lambda conn, message: None)
    app.http("/page")(lambda request: "page")
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.serve_stream, far)
        client = RawClient(near)
        await client.send(plain(path) if path == "/page" else upgrade(path))
        await client.refused()
        await near.send_all(b"still talking")
        await near.aclose()
    assert trio.current_time() == 0


async def test_a_refused_stream_is_released_at_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    """A refused peer that reads nothing and closes nothing holds its stream for some seconds, no longer."""
    near, far = trio.testing.lockstep_stream_pair()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo_app().serve_stream, far)
            await near.send_all(upgrade("/nothing"))
    assert trio.current_time() < 10


class ClumsyStream(trio.abc.Stream):
    """A stream that breaks Trio's rules: it fails with whatever it is given."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        raise self._error

    async def wait_send_all_might_not_block(self) -> None:
        raise self._error

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        raise self._error

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    "error", [OSError(5, "oops"), ValueError("oops"), ssl.SSLError("oops"), trio.BusyResourceError("oops")]
)
async def test_a_stream_that_breaks_the_rules_ends_alone(nursery: trio.Nursery, error: Exception) -> None:
    """A stream that raises what no stream should raise costs its own connection, and not the server."""
    memory = MemoryListener()
    server = await serve_on(nursery, echo_app(), memory)
    await memory.send.send(ClumsyStream(error))
    await echo_once(await memory.connect())
    await server.aclose()


# Out of descriptors


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="there is no epoll here")
async def test_a_socket_that_cannot_be_watched(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When the system cannot watch one more socket, that peer is dropped, and accepting goes on."""
    failures = 1
    register = Poller.register

    def fail_first(self: Poller, fd: int, transport: SocketTransport) -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        register(self, fd, transport)

    async with serving(echo_app()) as server:
        monkeypatch.setattr(Poller, "register", fail_first)
        async with open_raw(server) as client:
            with trio.fail_after(5):
                assert await client.read_to_end() == b""
        await assert_serves(server)
    assert "No space left on device" in caplog.text


CROWDED = """
import logging, resource, sys
from trio_crowws import App
resource.setrlimit(resource.RLIMIT_NOFILE, (40, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
logging.basicConfig(level=logging.WARNING)
app = App()

@app.websocket("/echo")
async def echo(conn):
    async for message in conn:
        await conn.send(message)

app.run("127.0.0.1", 0, on_listening=lambda server: print("listening on", "127.0.0.1:%d" % server.port, flush=True))
"""


async def test_out_of_descriptors(tmp_path: Path) -> None:
    """A server that has no descriptors left keeps its connections, says so once, and accepts again when it has some."""
    log = tmp_path / "log"
    with started([sys.executable, "-c", CROWDED], log, folder=Path(__file__).parents[2]) as process:
        port = port_of(process, log, 10)
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            first = await shake_hands(stream, "/echo")
            async with AsyncExitStack() as crowd:
                for _ in range(60):
                    await crowd.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port))
                await until(lambda: "cannot accept" in log.read_text())
                for _ in range(3):
                    await first.send("still there?")
                    assert await first.receive() == "still there?"
                    await trio.sleep(0.15)
            with trio.fail_after(10):
                await echo_once(await trio.open_tcp_stream("127.0.0.1", port))
        assert log.read_text().count("cannot accept") == 1
        assert "Too many open files" in log.read_text()


async def test_peers_of_a_closed_server_are_told(nursery: trio.Nursery) -> None:
    """A peer that was accepted sees a Close frame when its server ends, whatever it was accepted by."""
    memory = MemoryListener()
    server = await serve_on(nursery, echo_app(), memory)
    stream = await memory.connect()
    peer: Peer = await shake_hands(stream, "/echo")
    nursery.start_soon(server.aclose)
    with pytest.raises(PeerClosed) as caught:
        await peer.receive()
    assert caught.value.close is not None
    assert caught.value.close.code == 1001
