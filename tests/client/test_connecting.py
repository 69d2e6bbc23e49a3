"""From the call of `connect` to the block, and every way in which that can fail."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import sys
from typing import Any

import pytest
import trio
import trio.testing

from support.clients import client_of, nothing_left
from support.rawserver import RawPeer, accept_head, echo, raw_server
from support.servers import Kind, Recorder, serving, shared_tls
from trio_crowws import (
    App,
    ConnectFailed,
    CrowWSError,
    HandshakeTimeout,
    InvalidHandshake,
    InvalidURL,
    Reject,
    Rejected,
    ServerResponse,
    connect,
    connect_stream,
)
from trio_crowws._client import connecting
from trio_crowws._client.opening import Opening
from trio_crowws._options import CLIENT_OPTIONS
from trio_crowws._protocol.answer import AnswerReader, UpgradeRequest
from trio_crowws._protocol.url import parse_url
from trio_crowws._transport.poller import Poller

# Arguments


@pytest.mark.parametrize(
    ("options", "error", "complaint"),
    [
        ({"max_payloads": 1}, TypeError, "unknown option 'max_payloads' for connect; the options are callback_timeout"),
        ({"origins": "*"}, TypeError, "unknown option 'origins' for connect"),
        ({"handshake_timeout": 5}, TypeError, "unknown option 'handshake_timeout'.*open_timeout"),
        ({"allow_unmasked": True}, TypeError, "unknown option 'allow_unmasked'"),
        ({"max_payload": 0}, ValueError, "option max_payload=0 is not allowed"),
        ({"max_payload": "1"}, TypeError, "option max_payload='1' is not allowed"),
        ({"ping_interval": -1}, ValueError, "option ping_interval=-1"),
        ({"on_slow": "wait"}, ValueError, "option on_slow='wait'"),
        ({"open_timeout": 0}, ValueError, "option open_timeout=0 is not allowed"),
        ({"open_timeout": None}, TypeError, "option open_timeout=None is not allowed"),
        ({"open_timeout": True}, TypeError, "option open_timeout=True"),
        ({"open_timeout": float("nan")}, ValueError, "option open_timeout=nan"),
        ({"heartbeat": 0}, ValueError, "option heartbeat=0"),
        ({"heartbeat": "1"}, TypeError, "option heartbeat='1'"),
        ({"heartbeat": 1, "ping_interval": 1}, TypeError, "heartbeat sets ping_interval"),
        ({"heartbeat": None, "ping_timeout": 1}, TypeError, "heartbeat sets ping_timeout"),
        (
            {"subprotocols": "chat"},
            ValueError,
            "option subprotocols='chat' is not allowed; it must be a sequence of .*such as",
        ),
        ({"subprotocols": "first"}, TypeError, "is for a server"),
        ({"subprotocols": ["a b"]}, ValueError, "option subprotocols"),
        ({"subprotocols": ["a", "a"]}, ValueError, "option subprotocols"),
        ({"subprotocols": 5}, TypeError, "option subprotocols"),
        ({"headers": {"Upgrade": "x"}}, ValueError, "the header Upgrade is set by the library"),
        ({"headers": {"sec-websocket-key": "x"}}, ValueError, "is set by the library"),
        ({"headers": {"Content-Length": "0"}}, ValueError, "is set by the library"),
        ({"headers": {"A": "x\r\nB: y"}}, ValueError, "header A holds a control character"),
        ({"headers": {"A": "\u20ac"}}, ValueError, "beyond U.00FF"),
        ({"headers": {"A b": "x"}}, ValueError, "not the name of a header"),
        ({"headers": [("A",)]}, TypeError, "pairs"),
        ({"headers": "A: b"}, TypeError, "headers must be a mapping"),
        ({"headers": [("Host", "a"), ("host", "b")]}, ValueError, "only one Host"),
        ({"origin": "http://a\r\n"}, ValueError, "control character"),
        ({"origin": 5}, TypeError, "option origin=5 is not allowed; it must be a str or None"),
        ({"origin": "http://a", "headers": {"origin": "http://b"}}, ValueError, "not by both"),
    ],
    ids=str,
)
@pytest.mark.parametrize("over_stream", [False, True])
async def test_wrong_arguments(
    options: dict[str, Any], error: type[Exception], complaint: str, over_stream: bool
) -> None:
    """They are refused at the call, by their name, before anything was done."""
    near, _ = trio.testing.memory_stream_pair()
    with pytest.raises(error, match=complaint) as caught:
        _ = connect_stream(near, "ws://h/", **options) if over_stream else connect("ws://h/", **options)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("url", "options", "error", "complaint"),
    [
        ("http://h", {}, InvalidURL, "must begin with ws://"),
        (5, {}, TypeError, "the URL must be a str"),
        ("ws://h", {"proxy": "socks5://p"}, InvalidURL, "must begin with http://"),
        (
            "ws://h",
            {"proxy": "p"},
            InvalidURL,
            "the URL of the proxy 'p' has no scheme; it looks like http://host:port$",
        ),
        ("h", {}, InvalidURL, "the URL 'h' has no scheme; it looks like ws://host:port/path$"),
        ("ws://h", {"proxy": True}, TypeError, "the URL of the proxy must be a str"),
        ("ws+unix:///s", {"proxy": "http://p"}, ValueError, "proxy is not for ws.unix"),
        ("ws://h", {"ssl_context": ssl.create_default_context()}, ValueError, "ssl_context is for wss://, not for ws"),
        ("wss://h", {"ssl_context": True}, TypeError, "ssl_context must be an ssl.SSLContext"),
        (
            "wss://h",
            {"ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)},
            ValueError,
            r"is one for a server; a client needs one as of ssl.create_default_context\(\)",
        ),
        ("ws://h", {"follow_redirects": -1}, ValueError, "option follow_redirects=-1"),
        ("ws://h", {"follow_redirects": "yes"}, TypeError, "option follow_redirects='yes'"),
        ("ws://h", {"follow_redirects": None}, TypeError, "option follow_redirects=None"),
    ],
)
def test_wrong_arguments_of_connect(url: Any, options: dict[str, Any], error: type[Exception], complaint: str) -> None:
    """These are for `connect` only; they too are refused at the call, even outside of Trio."""
    with pytest.raises(error, match=complaint) as caught:
        connect(url, **options)
    assert type(caught.value) is error


@pytest.mark.parametrize(("places", "names"), [(("/x",), ()), ((), ()), ((), ("url",))])
def test_an_application_is_no_url(places: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Whoever wants to test an application is told where that is done, with or without a path."""
    app = App()
    arguments = () if names else (app, *places)
    with pytest.raises(TypeError, match=r"not an App; use trio_crowws\.testing\.connect\(app, path\)"):
        connect(*arguments, **dict.fromkeys(names, app))  # type: ignore[arg-type]


def test_no_option_is_listed_twice() -> None:
    """The complaint about an unknown option names each of those that there are once."""
    with pytest.raises(TypeError) as caught:
        connect("ws://h/", nothing=1)
    names = str(caught.value).partition("the options are ")[2].split(", ")
    assert "subprotocols" in names
    assert len(names) == len(set(names))


def test_a_stream_must_be_one() -> None:
    """A socket is not enough."""
    with socket.socket() as sock, pytest.raises(TypeError, match=r"must be a trio.abc.Stream, not socket"):
        connect_stream(sock, "ws://h/")  # type: ignore[arg-type]


def test_every_option_is_named_in_the_docstring() -> None:
    """What `connect` takes beside its own parameters is listed where users look."""
    doc = connect.__doc__ or ""
    assert all(f"`{name}`" in doc for name in CLIENT_OPTIONS if name != "subprotocols")


# The request


async def test_the_request_on_the_wire() -> None:
    """Target, headers and their order; the caller's own headers come last, with their spelling."""
    async with raw_server(echo) as server:
        headers = [("X-Token", "t\xe9"), ("Cookie", "a=b"), ("x-token", "2")]
        async with connect(
            f"{server.url}a/b?c=d", headers=headers, subprotocols=("x", "y"), origin="https://o.example"
        ) as conn:
            assert conn.request.headers.get_all("x-token") == ("t\xe9", "2")
            assert conn.request.origin == "https://o.example"
            assert conn.subprotocol is None
    [peer] = server.peers
    assert peer.request_line == "GET /a/b?c=d HTTP/1.1"
    assert peer.headers == [
        ("Host", f"127.0.0.1:{server.port}"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", peer.key),
        ("Sec-WebSocket-Protocol", "x, y"),
        ("User-Agent", "trio_crowws"),
        ("Origin", "https://o.example"),
        ("X-Token", "t\xe9"),
        ("Cookie", "a=b"),
        ("x-token", "2"),
    ]


async def test_another_host() -> None:
    """`Host` in the headers replaces that of the URL, for servers that stand behind another name."""
    async with raw_server(echo) as server, connect(server.url, headers={"Host": "virtual.example"}) as conn:
        assert conn.request.host == "virtual.example"
        assert server.peers[0].header("Host") == "virtual.example"


async def test_ipv6() -> None:
    """An IPv6 address stands in brackets."""
    try:
        listeners = await trio.open_tcp_listeners(0, host="::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    port = listeners[0].socket.getsockname()[1]
    app = App()
    recorder = Recorder(app)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(app.serve_listeners, listeners)
        async with connect(f"ws://[::1]:{port}/") as conn:
            assert conn.remote_address == ("::1", port)
            await recorder.wait("open")
            assert recorder.conn.request.host == f"[::1]:{port}"
        await server.aclose()


async def test_the_first_address_that_answers_is_taken() -> None:
    """`localhost` may be IPv6 and IPv4; only one of the two listens."""
    async with raw_server(echo) as server, connect(f"ws://localhost:{server.port}/") as conn:
        assert conn.remote_address == ("127.0.0.1", server.port)


# Refusals


async def test_a_refusal(kind: Kind) -> None:
    """It carries status, headers and body, and nothing is left of the attempt."""
    app = App()
    Recorder(app, hooks={"accept": lambda request: Reject(403, "not you", {"X-Reason": "because"})})
    async with serving(app, kind) as site:
        await trio.testing.wait_all_tasks_blocked()
        async with nothing_left():
            with pytest.raises(Rejected, match="HTTP status 403") as caught:
                async with client_of(site):
                    pytest.fail("there is no connection")
            await trio.testing.wait_all_tasks_blocked(0.01)
        error = caught.value
        assert isinstance(error.response, ServerResponse)
        assert (error.status, error.body, error.headers["X-Reason"]) == (403, b"not you", "because")
        assert not error.response.truncated
        assert isinstance(error, CrowWSError)
        assert not isinstance(error, OSError)


@pytest.mark.parametrize("status", [200, 204, 301, 302, 400, 401, 404, 426, 429, 500, 503])
async def test_every_other_status_is_a_refusal(status: int) -> None:
    """A redirect too, as long as nobody has asked to follow it."""

    async def script(peer: RawPeer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 %d X\r\nLocation: /x\r\nRetry-After: 7\r\n\r\nbody" % status)

    async with raw_server(script) as server:
        with pytest.raises(Rejected) as caught:
            async with connect(server.url):
                pass
    assert caught.value.status == status
    assert caught.value.headers["retry-after"] == "7"
    assert caught.value.body == (b"" if status in (204, 304) else b"body")


async def test_a_refusal_with_an_endless_body() -> None:
    """Its first 64 KiB are kept."""

    async def script(peer: RawPeer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 500 X\r\n\r\n")
        while True:
            await peer.send(b"x" * 10000)

    async with raw_server(script) as server:
        with pytest.raises(Rejected) as caught:
            async with connect(server.url):
                pass
    assert len(caught.value.body) == 65536
    assert caught.value.response.truncated


async def test_a_refusal_whose_body_does_not_come(autojump_clock: trio.testing.MockClock) -> None:
    """The status is what counts, so it is a refusal and not a timeout; but it takes `open_timeout`."""
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def script() -> None:
            await RawPeer(far).read_head()
            await far.send_all(b"HTTP/1.1 503 X\r\nContent-Length: 100\r\n\r\nhalf")
            await trio.sleep_forever()

        nursery.start_soon(script)
        began = trio.current_time()
        with pytest.raises(Rejected) as caught:
            async with connect_stream(near, "ws://h/", open_timeout=3):
                pass
        assert trio.current_time() - began == pytest.approx(3)
        assert (caught.value.status, caught.value.body, caught.value.response.truncated) == (503, b"half", True)
        nursery.cancel_scope.cancel()


async def test_a_refusal_that_ends_with_a_reset() -> None:
    """What has come is what there is."""

    async def script(peer: RawPeer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 503 X\r\nContent-Length: 100\r\n\r\nhalf")
        await trio.sleep(0.05)
        assert isinstance(peer.stream, trio.SocketStream)
        peer.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")

    async with raw_server(script) as server:
        with pytest.raises(Rejected) as caught:
            async with connect(server.url):
                pass
    assert (caught.value.status, caught.value.body, caught.value.response.truncated) == (503, b"half", True)


# Wrong answers


@pytest.mark.parametrize(
    ("more", "accept", "complaint"),
    [
        ((), "wrong", "Sec-WebSocket-Accept: 'wrong'"),
        (("Sec-WebSocket-Protocol: chat",), None, "Sec-WebSocket-Protocol: 'chat'"),
        (("Sec-WebSocket-Extensions: permessage-deflate",), None, "Sec-WebSocket-Extensions: 'permessage-deflate'"),
    ],
)
async def test_a_wrong_101(more: tuple[str, ...], accept: str | None, complaint: str) -> None:
    """The block is not entered, no frame is sent, and the connection is closed."""

    async def script(peer: RawPeer) -> None:
        await peer.accept(*more, accept=accept)
        await peer.wait_end()

    async with raw_server(script) as server, nothing_left():
        with pytest.raises(InvalidHandshake, match=complaint):
            async with connect(server.url):
                pytest.fail("there is no connection")
        await trio.sleep(0.05)
    assert not server.peers[0].frames


async def test_an_answer_that_is_not_http() -> None:
    """The error shows the beginning of it."""

    async def script(peer: RawPeer) -> None:
        await peer.send(b"220 mail.example.org ESMTP\r\n\r\n")
        await peer.wait_end()

    async with raw_server(script) as server:
        with pytest.raises(InvalidHandshake, match=r"malformed.*220 mail"):
            async with connect(server.url):
                pass


@pytest.mark.parametrize("when", ["at once", "when asked"])
async def test_a_banner(when: str, autojump_clock: trio.testing.MockClock) -> None:
    """A server of another protocol, which waits for an answer of its own kind, costs no time."""
    near, far = trio.testing.memory_stream_pair()
    if when == "at once":
        await far.send_all(b"220 mail.example.org ESMTP\r\n")

    async def talk() -> None:
        await far.receive_some()
        if when != "at once":
            await far.send_all(b"500 what?\r\n")
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk)
        began = trio.current_time()
        with pytest.raises(InvalidHandshake, match=r"'220 mail\.example\.org ESMTP'|'500 what\?'"):
            async with connect_stream(near, "ws://mail.example.org/"):
                pass
        assert trio.current_time() - began < 2
        nursery.cancel_scope.cancel()


ALERT = b"\x15\x03\x01\0\x02\x02F"


async def test_a_server_that_speaks_tls() -> None:
    """It complains by an alert, or ends the connection; the error says which scheme is meant."""

    async def complain(peer: RawPeer) -> None:
        await peer.stream.receive_some()
        await peer.send(ALERT)

    async def hang_up(peer: RawPeer) -> None:
        await peer.stream.receive_some()

    async def reset(peer: RawPeer) -> None:
        await peer.stream.receive_some()
        assert isinstance(peer.stream, trio.SocketStream)
        peer.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        peer.stream.socket.close()

    async with raw_server(complain, hang_up, reset) as server:
        for complaint in (
            f"^the server at 127.0.0.1:{server.port} seems to speak TLS; use wss://$",
            "the server closed the connection before it had answered; if it speaks TLS, use wss://$",
            "the connection broke before the server had answered: .*; if it speaks TLS, use wss://$",
        ):
            with pytest.raises(ConnectFailed, match=complaint):
                async with connect(server.url):
                    pass


@pytest.mark.parametrize(
    ("url", "complaint"), [("ws://h/", "use wss://$"), ("ws+unix:///s", "this connection does not$")]
)
async def test_an_alert_over_a_stream(url: str, complaint: str) -> None:
    """The scheme is not what is wrong where there is no other one."""
    near, far = trio.testing.memory_stream_pair()
    await far.send_all(ALERT)
    with pytest.raises(ConnectFailed, match=complaint) as caught:
        async with connect_stream(near, url):
            pass
    assert isinstance(caught.value.__cause__, InvalidHandshake)


async def test_a_unix_socket_that_hangs_up() -> None:
    """It is not advised to speak TLS."""
    near, far = trio.testing.memory_stream_pair()
    await far.send_eof()
    with pytest.raises(ConnectFailed, match=r"before it had answered$"):
        async with connect_stream(near, "ws+unix:///s"):
            pass


async def test_an_answer_in_many_pieces_after_others() -> None:
    """1xx answers are passed over, and the pieces do not matter."""

    async def script(peer: RawPeer) -> None:
        await peer.read_head()
        for byte in b"HTTP/1.1 103 Early Hints\r\n\r\n" + accept_head(peer.key) + b"\x81\x01a":
            await peer.send(bytes((byte,)))
        await peer.receive()
        await peer.wait_end()

    async with raw_server(script) as server, connect(server.url, close_timeout=0.1) as conn:
        assert await conn.receive() == "a"


@pytest.mark.parametrize("limit", [{"max_header_bytes": 100}, {"max_headers": 2}])
async def test_limits_of_the_head(limit: dict[str, Any]) -> None:
    """They are options, as on a server."""
    async with raw_server(echo) as server:
        with pytest.raises(InvalidHandshake, match=r"larger than 100|more than 2"):
            async with connect(server.url, **limit):
                pass


# Nobody there


async def test_nobody_listens(kind: Kind) -> None:
    """An `OSError`, which names the place, and whose cause is that of the system."""
    app = App()
    Recorder(app)
    async with serving(app, kind) as site:
        url = {
            "unix": "ws+unix:///nowhere/sock",
            "tls": "wss://127.0.0.1:9/",
        }.get(kind, "ws://127.0.0.1:9/")
        await trio.testing.wait_all_tasks_blocked()
        async with nothing_left():
            with pytest.raises(ConnectFailed, match=r"cannot connect to .*(127.0.0.1:9|/nowhere/sock)") as caught:
                async with connect(url):
                    pass
        assert isinstance(caught.value, OSError)
        assert isinstance(caught.value, CrowWSError)
        assert isinstance(caught.value.__cause__, OSError)
        assert site.server.connections == frozenset()


async def test_why_nobody_could_be_reached() -> None:
    """The text has the reason and nothing of the attempts, and errno is that of the system."""
    with pytest.raises(ConnectFailed) as caught:
        async with connect("ws://127.0.0.1:1/"):
            pass
    assert str(caught.value) == f"cannot connect to 127.0.0.1:1: {os.strerror(errno.ECONNREFUSED)}"
    assert caught.value.errno == errno.ECONNREFUSED


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")
async def test_an_abstract_socket() -> None:
    """It is connected to by its name, which is the peer's address then."""
    name = f"\0trio_crowws-test-{os.getpid()}"
    app = App()
    Recorder(app, "/c")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(name)
        listening.listen()
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))

        async def serve() -> None:
            await app.serve_stream(await listener.accept())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            async with connect(f"ws+unix:///%00{name[1:]}:/c") as conn:
                assert conn.remote_address == "@" + name[1:]
                await conn.ping()


async def test_why_there_is_no_socket() -> None:
    """It is the same with a Unix socket."""
    with pytest.raises(ConnectFailed) as caught:
        async with connect("ws+unix:///nowhere/sock"):
            pass
    assert str(caught.value) == f"cannot connect to the Unix socket '/nowhere/sock': {os.strerror(errno.ENOENT)}"
    assert caught.value.errno == errno.ENOENT


async def test_a_name_that_nobody_has() -> None:
    """The resolver's error is an `OSError`, too."""

    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *arguments: object, **more: object) -> Any:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        async def getnameinfo(self, *arguments: object, **more: object) -> Any:
            raise AssertionError

    trio.socket.set_custom_hostname_resolver(Resolver())
    try:
        with pytest.raises(ConnectFailed, match=r"nobody.example:80.*not known") as caught:
            async with connect("ws://nobody.example/"):
                pass
    finally:
        trio.socket.set_custom_hostname_resolver(None)
    assert isinstance(caught.value.__cause__, socket.gaierror)


async def test_a_name_is_looked_up_in_its_ascii_form() -> None:
    """And so it is sent."""
    seen: list[object] = []

    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, host: object, port: object, *arguments: object, **more: object) -> Any:
            seen.append(host)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        async def getnameinfo(self, *arguments: object, **more: object) -> Any:
            raise AssertionError

    async with raw_server(echo) as server:
        trio.socket.set_custom_hostname_resolver(Resolver())
        try:
            async with connect(f"ws://bücher.example:{server.port}/"):
                pass
        finally:
            trio.socket.set_custom_hostname_resolver(None)
        assert server.peers[0].header("Host") == f"xn--bcher-kva.example:{server.port}"
    assert seen == [b"xn--bcher-kva.example"]


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 101 Swi"])
async def test_the_server_hangs_up(answer: bytes) -> None:
    """Before its answer is complete."""

    async def script(peer: RawPeer) -> None:
        await peer.read_head()
        await peer.send(answer)

    async with raw_server(script) as server:
        with pytest.raises(ConnectFailed, match="closed the connection before it had answered") as caught:
            async with connect(server.url):
                pass
    assert caught.value.__cause__ is None


async def test_the_server_resets(kind: Kind) -> None:
    """The cause is the system's error; a stream breaks in its own way."""
    near, far = trio.testing.memory_stream_pair()

    async def script(peer: RawPeer) -> None:
        await peer.read_head()
        if isinstance(peer.stream, trio.SocketStream):
            peer.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            peer.stream.socket.close()
        else:
            await far.aclose()

    if kind == "memory":
        async with trio.open_nursery() as nursery:
            nursery.start_soon(script, RawPeer(far))
            with pytest.raises(ConnectFailed):
                async with connect_stream(near, "ws://h/"):
                    pass
    else:
        async with raw_server(script) as server:
            with pytest.raises(ConnectFailed, match="broke before the server had answered") as caught:
                async with connect(server.url):
                    pass
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.ECONNRESET


async def test_a_socket_that_cannot_be_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's limits are an `OSError`, and the socket is closed."""

    def register(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "no space left for one more")

    async with raw_server(echo) as server, nothing_left():
        with monkeypatch.context() as patch:
            patch.setattr(Poller, "register", register)
            with pytest.raises(ConnectFailed, match="no space left"):
                async with connect(server.url):
                    pass
        await trio.sleep(0.05)


async def test_a_stream_that_is_closed_already() -> None:
    """The attempt fails as it does with a server that hangs up."""
    near, far = trio.testing.memory_stream_pair()
    await far.aclose()
    with pytest.raises(ConnectFailed, match=r"broke|closed"):
        async with connect_stream(near, "ws://h/"):
            pass


async def test_a_connection_that_breaks_with_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anybody could use it, it has failed."""
    answer = Opening.answer

    async def broken(self: Opening) -> ServerResponse:
        response = await answer(self)
        assert self.transport is not None
        self.transport.abort()
        return response

    monkeypatch.setattr(Opening, "answer", broken)
    async with raw_server(echo) as server:
        with pytest.raises(ConnectFailed, match="broke when the server had answered"):
            async with connect(server.url):
                pass


# Time


async def test_the_first_word_counts() -> None:
    """An answer stays what it is when the connection breaks behind it, and so does an error."""

    class Paused:
        secure = False
        paused = False

        def pause(self) -> None:
            self.paused = True

    for data, error in ((b"HTTP/1.1 204 No\r\n\r\n", None), (b"220 hello\r\n", InvalidHandshake)):
        request = UpgradeRequest("/", "h", (), None, ())
        reader = AnswerReader(request.as_event(), max_header_bytes=1000, max_headers=10)
        opening = Opening(reader, parse_url("ws://h/"))
        opening.transport = transport = Paused()  # type: ignore[assignment]
        opening._on_data(data)
        opening._on_eof()
        opening._on_lost(OSError("broken"))
        assert transport.paused
        if error is None:
            assert (await opening.answer()).status == 204
        else:
            with pytest.raises(error):
                await opening.answer()


async def test_a_server_that_never_answers(kind: Kind) -> None:
    """After `open_timeout`, and it is a `TimeoutError`."""

    async def script(peer: RawPeer) -> None:
        await peer.wait_end()

    async with raw_server(script) as server, nothing_left():
        with pytest.raises(HandshakeTimeout, match=r"within open_timeout=0.1 s") as caught:
            async with connect(server.url, open_timeout=0.1):
                pass
        await trio.sleep(0.05)
    assert isinstance(caught.value, TimeoutError)


async def test_a_tls_handshake_that_never_ends() -> None:
    """It counts."""

    async def script(peer: RawPeer) -> None:
        await peer.wait_end()

    async with raw_server(script) as server:
        with pytest.raises(HandshakeTimeout):
            async with connect(f"wss://localhost:{server.port}/", open_timeout=0.1, ssl_context=shared_tls().client):
                pass


async def test_a_resolver_that_never_answers(autojump_clock: trio.testing.MockClock) -> None:
    """It counts, too."""

    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *arguments: object, **more: object) -> Any:
            await trio.sleep_forever()

        async def getnameinfo(self, *arguments: object, **more: object) -> Any:
            raise AssertionError

    trio.socket.set_custom_hostname_resolver(Resolver())
    try:
        began = trio.current_time()
        with pytest.raises(HandshakeTimeout):
            async with connect("ws://h.example/"):
                pass
        assert trio.current_time() - began == pytest.approx(10)
    finally:
        trio.socket.set_custom_hostname_resolver(None)


async def test_one_deadline_for_everything(autojump_clock: trio.testing.MockClock) -> None:
    """A server that drips its answer has no more time than one that is silent."""
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def drip() -> None:
            await RawPeer(far).read_head()
            for byte in b"HTTP/1.1 101 Switching Protocols\r\n" + b"A: b\r\n" * 1000:
                await trio.sleep(1)
                await far.send_all(bytes((byte,)))

        nursery.start_soon(drip)
        began = trio.current_time()
        with pytest.raises(HandshakeTimeout):
            async with connect_stream(near, "ws://h/", open_timeout=5):
                pass
        assert trio.current_time() - began == pytest.approx(5)
        nursery.cancel_scope.cancel()


async def test_the_caller_s_own_deadline_is_no_handshake_timeout() -> None:
    """Its cancellation goes on as such."""

    async def script(peer: RawPeer) -> None:
        await peer.wait_end()

    async with raw_server(script) as server:
        with trio.move_on_after(0.05) as scope:
            async with connect(server.url):
                pytest.fail("there is no connection")
        assert scope.cancelled_caught


# Redirects


def redirect(location: str, status: int = 302) -> Any:
    async def script(peer: RawPeer) -> None:
        await peer.read_head()
        head = f"HTTP/1.1 {status} X\r\nLocation: {location}\r\nContent-Length: 2\r\n\r\nno"
        await peer.send(head.encode("latin-1"))

    return script


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed_if_asked_for(status: int) -> None:
    """To the same origin with all headers, and with a key of its own."""
    async with raw_server(redirect("/there?x=y", status), echo) as server:
        headers = {"Authorization": "Basic abc", "Cookie": "a=b", "X-Any": "1", "Host": "virtual"}
        async with connect(server.url, headers=headers, follow_redirects=True, origin="http://o") as conn:
            assert conn.request.target == "/there?x=y"
            await conn.send("x")
            assert await conn.receive() == "x"
        first, second = server.peers
    assert second.request_line == "GET /there?x=y HTTP/1.1"
    assert first.key != second.key
    for name, value in {**headers, "Origin": "http://o"}.items():
        assert first.header(name) == second.header(name) == value


PERSONAL: Any = {
    "headers": {"Authorization": "Basic SECRET", "Cookie": "a=SECRET", "X-Any": "SECRET", "Host": "SECRET"},
    "subprotocols": ["v1", "bearer.SECRET"],
    "origin": "http://SECRET",
}


async def test_what_is_personal_is_for_the_origin_that_it_was_given_for() -> None:
    """Another one gets a plain request: no headers, no cookies, no subprotocols, no origin."""
    async with raw_server(echo) as target, raw_server(redirect(f"{target.url}x")) as server:
        async with connect(server.url, **PERSONAL, follow_redirects=1) as conn:
            assert conn.subprotocol is None
        [first], [second] = server.peers, target.peers
    assert first.head.count(b"SECRET") == 6
    assert b"SECRET" not in second.head
    assert b"Sec-WebSocket-Protocol" not in second.head
    assert second.header("Host") == f"127.0.0.1:{target.port}"


async def test_what_is_personal_does_not_come_back() -> None:
    """A stranger that sends the client back cannot have it ask for something in the caller's name."""

    async def send_back(peer: RawPeer) -> None:
        await redirect(f"{server.url}delete")(peer)

    async with raw_server(send_back) as stranger, raw_server(redirect(stranger.url), echo) as server:
        async with connect(server.url, **PERSONAL, follow_redirects=True):
            pass
        first, last = server.peers
    assert b"SECRET" in first.head
    assert last.request_line == "GET /delete HTTP/1.1"
    assert b"SECRET" not in last.head


async def test_a_timeout_names_the_server_that_hangs() -> None:
    """After a redirect that is not the one of the URL."""

    async def script(peer: RawPeer) -> None:
        await peer.wait_end()

    async with raw_server(script) as silent, raw_server(redirect(silent.url)) as server:
        with pytest.raises(HandshakeTimeout, match=f"no connection to 127.0.0.1:{silent.port} within"):
            async with connect(server.url, open_timeout=0.3, follow_redirects=True):
                pass


def test_another_zone_is_another_origin() -> None:
    """The same link-local address on two links is two machines."""
    assert connecting._same_origin(parse_url("ws://[fe80::1%25a]/x"), parse_url("ws://[fe80::1%25a]/y"))
    assert not connecting._same_origin(parse_url("ws://[fe80::1%25a]/x"), parse_url("ws://[fe80::1%25b]/x"))


async def test_a_location_beyond_ascii() -> None:
    """Its bytes are percent-encoded as they came, whatever their encoding is."""
    async with raw_server(redirect("/\xe9 \xc3\xa9"), echo) as server:
        async with connect(server.url, follow_redirects=True):
            pass
        assert server.peers[1].request_line == "GET /%E9%20%C3%A9 HTTP/1.1"


@pytest.mark.parametrize(("follow", "made"), [(False, 1), (0, 1), (1, 2), (3, 4), (True, 6)])
async def test_only_so_many_redirects(follow: bool | int, made: int) -> None:
    """Then the last answer is a refusal; a circle ends."""
    async with raw_server(redirect("/again")) as server:
        with pytest.raises(Rejected, match="one redirect too many" if follow else "302$") as caught:
            async with connect(server.url, follow_redirects=follow):
                pass
        assert len(server.peers) == made
    assert caught.value.status == 302
    assert caught.value.headers["location"] == "/again"


@pytest.mark.parametrize("location", ["ftp://h/", "ws://u:p@h/", "//[", "/a\tb", ""])
async def test_a_redirect_to_what_cannot_be_followed(location: str) -> None:
    """It is a refusal; an empty one leads back to where it came from."""
    async with raw_server(redirect(location)) as server:
        with pytest.raises(Rejected):
            async with connect(server.url, follow_redirects=1):
                pass


async def test_a_redirect_with_two_locations() -> None:
    """Nobody knows which of them is meant."""

    async def script(peer: RawPeer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 302 X\r\nLocation: /a\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n")

    async with raw_server(script) as server:
        with pytest.raises(Rejected):
            async with connect(server.url, follow_redirects=True):
                pass
        assert len(server.peers) == 1


async def test_never_from_wss_to_ws() -> None:
    """Whatever was asked for."""
    async with raw_server(echo) as plain:
        for location in (plain.url, plain.url.replace("ws:", "http:")):
            async with raw_server(redirect(location), tls=shared_tls().server) as server:
                with pytest.raises(Rejected):
                    async with connect(server.url, ssl_context=shared_tls().client, follow_redirects=True):
                        pass
        assert not plain.peers


async def test_from_ws_to_wss() -> None:
    """With the context that was given for it."""
    context = shared_tls().client
    async with (
        raw_server(echo, tls=shared_tls().server) as secure,
        raw_server(redirect(secure.url)) as server,
        connect(server.url, ssl_context=context, follow_redirects=True) as conn,
    ):
        assert conn.request.secure
