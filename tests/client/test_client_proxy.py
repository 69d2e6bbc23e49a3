"""HTTP proxies: the tunnel, the credentials, and what a proxy may answer instead."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from support.clients import nothing_left
from support.proxies import small_proxy
from support.rawserver import RawPeer, echo, raw_server
from support.servers import shared_tls
from trio_crowws import (
    ConnectFailed,
    Connection,
    HandshakeTimeout,
    InvalidURL,
    ProxyError,
    Rejected,
    connect,
    is_final,
    keep_connected,
)
from trio_crowws._client import connecting
from trio_crowws._protocol.tunnel import Tunnel


def answer(data: bytes) -> Callable[[trio.SocketStream, bytes], Awaitable[None]]:
    async def behave(stream: trio.SocketStream, head: bytes) -> None:
        await stream.send_all(data)

    return behave


async def test_through_a_proxy() -> None:
    """The proxy is asked for host and port, and then sees nothing but bytes."""
    async with small_proxy() as proxy, raw_server(echo) as server:
        async with connect(f"{server.url}x", proxy=proxy.url, headers={"Authorization": "Basic s3cret"}) as conn:
            for message in ("hello", b"x" * 200_000):
                await conn.send(message)
                assert await conn.receive() == message
            assert conn.remote_address == ("127.0.0.1", proxy.port)
        [head] = proxy.heads
        [peer] = server.peers
    assert head.startswith(f"CONNECT 127.0.0.1:{server.port} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n".encode())
    assert b"s3cret" not in head
    assert b"Proxy-Authorization" not in head
    assert peer.request_line == "GET /x HTTP/1.1"


async def test_credentials() -> None:
    """They are percent-decoded and sent to the proxy, and to nobody else."""
    async with small_proxy() as proxy, raw_server(echo) as server:
        url = f"http://us%40er:p%3Ass@127.0.0.1:{proxy.port}"
        async with connect(server.url, proxy=url):
            pass
        assert b"Proxy-Authorization: Basic dXNAZXI6cDpzcw==\r\n" in proxy.heads[0]
        assert server.peers[0].header("Proxy-Authorization") is None


async def test_tls_through_a_proxy() -> None:
    """The certificate has to be that of the server, not of the proxy."""
    async with small_proxy() as proxy, raw_server(echo, tls=shared_tls().server) as server:
        async with connect(server.url, proxy=proxy.url, ssl_context=shared_tls().client) as conn:
            assert conn.request.secure
            await conn.send("hello")
            assert await conn.receive() == "hello"
        assert proxy.heads[0].startswith(f"CONNECT localhost:{server.port} ".encode())
        with pytest.raises(ConnectFailed, match="certificate verify failed"):
            async with connect(server.url, proxy=proxy.url):
                pass


async def test_redirects_go_through_the_proxy_too() -> None:
    """Each one by a tunnel of its own."""

    async def redirect(peer: RawPeer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 302 X\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n")

    async with small_proxy() as proxy, raw_server(redirect, echo) as server:
        async with connect(server.url, proxy=proxy.url, follow_redirects=True):
            pass
        assert len(proxy.heads) == 2


@pytest.mark.parametrize("status", [301, 403, 407, 502])
async def test_a_proxy_that_refuses(status: int) -> None:
    """An `OSError` with the name of the proxy, the status and the answer, but without the password."""
    refusal = answer(b"HTTP/1.1 %d X\r\nX-Why: because\r\nContent-Length: 2\r\n\r\nno" % status)
    async with small_proxy(refusal) as proxy, raw_server(echo) as server, nothing_left():
        with pytest.raises(ProxyError, match=f"{proxy.url} refused with HTTP status {status}") as caught:
            async with connect(server.url, proxy=f"http://user:s3cret@127.0.0.1:{proxy.port}"):
                pass
        await trio.sleep(0.02)
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, ConnectFailed)
    assert not isinstance(caught.value, Rejected)
    assert caught.value.response is not None
    assert (caught.value.response.status, caught.value.response.body) == (status, b"no")
    assert "s3cret" not in str(caught.value)
    assert not server.peers


async def stay(stream: trio.SocketStream) -> None:
    """Leave it open, as long as the client does."""
    await stream.receive_some()


async def reset(stream: trio.SocketStream) -> None:
    stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    stream.socket.close()


async def close(stream: trio.SocketStream) -> None:
    await stream.aclose()


@pytest.mark.parametrize("then", [stay, close])
@pytest.mark.parametrize("head", [b"Content-Length: 9\r\n", b"Transfer-Encoding: chunked\r\n", b""])
async def test_a_refusal_whose_body_does_not_come(
    head: bytes, then: Callable[[trio.SocketStream], Awaitable[None]]
) -> None:
    """The status is what counts, so it is a refusal and not a timeout."""

    async def refuse(stream: trio.SocketStream, _: bytes) -> None:
        await stream.send_all(b"HTTP/1.1 407 X\r\nProxy-Authenticate: Basic\r\n%b\r\n" % head)
        await then(stream)

    async with small_proxy(refuse) as proxy, nothing_left():
        with pytest.raises(ProxyError, match=f"{proxy.url} refused with HTTP status 407") as caught:
            async with connect("ws://example.org/", proxy=proxy.url, open_timeout=0.2):
                pass
        await trio.sleep(0.02)
    response = caught.value.response
    assert response is not None
    assert (response.status, response.headers["proxy-authenticate"], response.body) == (407, "Basic", b"")
    assert response.truncated == (then is stay or head != b"")
    assert is_final(caught.value)


async def test_a_refusal_that_ends_with_a_reset() -> None:
    """What has come is what there is; the cause is the system's."""
    seen = trio.Event()

    async def refuse(stream: trio.SocketStream, _: bytes) -> None:
        await stream.send_all(b"HTTP/1.1 407 X\r\nContent-Length: 9\r\n\r\nno")
        await seen.wait()
        await reset(stream)

    class Watching(Tunnel):
        def feed(self, data: bytes) -> bool:
            there = super().feed(data)
            seen.set()
            return there

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connecting, "Tunnel", Watching)
        async with small_proxy(refuse) as proxy:
            with pytest.raises(ProxyError, match="refused with HTTP status 407") as caught:
                async with connect("ws://example.org/", proxy=proxy.url):
                    pass
    assert caught.value.response is not None
    assert (caught.value.response.body, caught.value.response.truncated) == (b"no", True)
    assert isinstance(caught.value.__cause__, trio.BrokenResourceError)


async def test_keep_connected_does_not_repeat_what_the_proxy_has_refused() -> None:
    """A 407 without its body is as final as one with it."""

    async def refuse(stream: trio.SocketStream, _: bytes) -> None:
        await stream.send_all(b"HTTP/1.1 407 X\r\nContent-Length: 9\r\n\r\n")
        await stay(stream)

    async def handler(conn: Connection) -> None:
        raise AssertionError

    async with small_proxy(refuse) as proxy:
        with pytest.raises(ProxyError):
            await keep_connected(handler, "ws://example.org/", proxy=proxy.url, open_timeout=0.1)
        assert len(proxy.heads) == 1


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "closed the connection before it had answered"),
        (b"HTTP/1.1 200 O", "closed the connection before it had answered"),
        (b"\x05\x00\r\n\r\n", "cannot be understood"),
        (b"220 hello\r\n", "cannot be understood: .* '220 hello'$"),
        (b"\x15\x03\x01\0\x02\x02F", "seems to speak TLS, and only http:// is possible"),
        (b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 101", "sent more than its answer: 'HTTP/1.1 101'"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * 20_000, "larger than 16384 bytes"),
    ],
)
async def test_a_proxy_that_answers_wrongly(data: bytes, complaint: str) -> None:
    """What it said is in the error, bounded."""
    async with small_proxy(answer(data)) as proxy:
        with pytest.raises(ProxyError, match=complaint) as caught:
            async with connect("ws://example.org/", proxy=proxy.url):
                pass
    assert len(str(caught.value)) < 300


async def test_a_proxy_that_resets() -> None:
    """The cause is the system's."""

    async def behave(stream: trio.SocketStream, head: bytes) -> None:
        await reset(stream)

    async with small_proxy(behave) as proxy:
        with pytest.raises(ProxyError, match="broke before it had answered") as caught:
            async with connect("ws://example.org/", proxy=proxy.url):
                pass
    assert caught.value.__cause__ is not None


async def test_no_proxy_there() -> None:
    """The error names the proxy, not the server."""
    with pytest.raises(ConnectFailed, match=r"cannot connect to the proxy http://127\.0\.0\.1:9"):
        async with connect("ws://example.org/", proxy="http://user:s3cret@127.0.0.1:9"):
            pass


async def test_a_proxy_that_is_silent() -> None:
    """Its time is part of `open_timeout`, and the error says who was waited for, without the password."""

    async def wait(stream: trio.SocketStream, head: bytes) -> None:
        await stay(stream)

    async with small_proxy(wait) as proxy, nothing_left():
        with pytest.raises(HandshakeTimeout) as caught:
            async with connect(
                "ws://example.org/", proxy=f"http://user:s3cret@127.0.0.1:{proxy.port}", open_timeout=0.1
            ):
                pass
        await trio.sleep(0.02)
    waited_for = f"the proxy http://127.0.0.1:{proxy.port} has not answered"
    assert str(caught.value) == f"no connection to example.org within open_timeout=0.1 s; {waited_for}"


async def test_a_server_that_is_silent_behind_a_proxy() -> None:
    """The proxy has done its part, so the error does not name it."""

    async def wait(peer: RawPeer) -> None:
        await peer.wait_end()

    async with small_proxy() as proxy, raw_server(wait) as server:
        with pytest.raises(HandshakeTimeout, match=r"within open_timeout=0\.2 s$"):
            async with connect(server.url, proxy=proxy.url, open_timeout=0.2):
                pass
        assert proxy.heads


async def test_the_environment_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy is used only where it is given."""
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy", "WS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with raw_server(echo) as server, connect(server.url) as conn:
        await conn.ping()


def test_a_password_is_never_shown() -> None:
    """Not in the error about a proxy that cannot be used, either."""
    with pytest.raises(InvalidURL) as caught:
        connect("ws://example.org/", proxy="https://user:s3cret@proxy")
    assert "s3cret" not in str(caught.value)
