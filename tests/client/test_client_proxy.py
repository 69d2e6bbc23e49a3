"""HTTP proxies: the tunnel, the credentials, and what a proxy may answer instead."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from support.clients import nothing_left
from support.proxies import small_proxy
from support.rawserver import RawPeer, echo, raw_server
from support.servers import shared_tls
from trio_crowws import ConnectFailed, HandshakeTimeout, InvalidURL, ProxyError, Rejected, connect


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


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "closed the connection before it had answered"),
        (b"HTTP/1.1 200 O", "closed the connection before it had answered"),
        (b"\x05\x00\r\n\r\n", "cannot be understood"),
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

    async def reset(stream: trio.SocketStream, head: bytes) -> None:
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        stream.socket.close()

    async with small_proxy(reset) as proxy:
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
    """Its time is part of `open_timeout`."""

    async def wait(stream: trio.SocketStream, head: bytes) -> None:
        await stream.receive_some()

    async with small_proxy(wait) as proxy, nothing_left():
        with pytest.raises(HandshakeTimeout):
            async with connect("ws://example.org/", proxy=proxy.url, open_timeout=0.1):
                pass
        await trio.sleep(0.02)


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
