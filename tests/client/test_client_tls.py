"""`wss:` is verified, over sockets and through streams: who is trusted, who is not, and what the error says."""

from __future__ import annotations

import datetime
import ssl
from functools import partial

import pytest
import trio
import trustme

from support.clients import nothing_left
from support.rawserver import RawPeer, echo, raw_server
from support.servers import shared_tls
from trio_crowws import ConnectFailed, connect, connect_stream
from trio_crowws._client import running
from trio_crowws._transport.engine import Engine


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture(params=["poller", "streams"])
def transports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Sockets as they are served with epoll, and as they are where there is none."""
    if request.param == "streams":
        monkeypatch.setattr(running, "Engine", partial(Engine, use_epoll=False))
    return str(request.param)


def serving_as(authority: trustme.CA, *names: str, expired: bool = False) -> ssl.SSLContext:
    when = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc) if expired else None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names, not_after=when).configure_cert(context)
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.usefixtures("transports")
async def test_a_trusted_server(authority: trustme.CA, trusting: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    """Messages of all sizes go both ways, and the connection knows that it is secure."""
    context = serving_as(authority, "localhost")
    context.minimum_version = context.maximum_version = version
    async with raw_server(echo, tls=context) as server, nothing_left():
        async with connect(server.url, ssl_context=trusting) as conn:
            assert conn.request.secure
            for message in ("hello", b"x" * 100_000):
                await conn.send(message)
                assert await conn.receive() == message
        assert conn.close_info is not None
        assert conn.close_info.clean
        await trio.sleep(0.05)


async def test_an_address_in_a_certificate(authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    """It is compared as an address."""
    async with raw_server(echo, tls=serving_as(authority, "127.0.0.1"), host="127.0.0.1") as server:
        async with connect(server.url, ssl_context=trusting):
            pass


WRONG = ["untrusted", "other name", "other address", "expired", "self-signed"]


@pytest.mark.parametrize("why", WRONG)
@pytest.mark.usefixtures("transports")
async def test_a_server_that_is_not_trusted(authority: trustme.CA, trusting: ssl.SSLContext, why: str) -> None:
    """The request is not sent, nothing is left, and the cause says what is wrong with the certificate."""
    host = "127.0.0.1" if why == "other address" else "localhost"
    context = {
        "untrusted": lambda: serving_as(trustme.CA(), "localhost"),
        "other name": lambda: serving_as(authority, "example.org"),
        "other address": lambda: serving_as(authority, "localhost", "127.0.0.2"),
        "expired": lambda: serving_as(authority, "localhost", expired=True),
        "self-signed": self_signed,
    }[why]()
    complaint = {
        "untrusted": "unable to get local issuer|self.signed certificate in certificate chain",
        "other name": "Hostname mismatch",
        "other address": "IP address mismatch",
        "expired": "expired",
        "self-signed": "self.signed certificate",
    }[why]
    heads: list[bytes] = []

    async def script(peer: RawPeer) -> None:
        heads.append(await peer.read_head())

    async with raw_server(script, tls=context, host=host) as server, nothing_left():
        with pytest.raises(ConnectFailed, match=complaint) as caught:
            async with connect(server.url, ssl_context=trusting):
                pytest.fail("there is no connection")
        await trio.sleep(0.05)
    assert isinstance(caught.value, OSError)
    causes: list[BaseException | None] = [caught.value.__cause__]
    while causes[-1] is not None:
        causes.append(causes[-1].__cause__)
    assert any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes)
    assert not heads


def self_signed() -> ssl.SSLContext:
    """A certificate that signs itself: an authority used as a server."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority = trustme.CA()
    with authority.cert_pem.tempfile() as certificate, authority.private_key_pem.tempfile() as key:
        context.load_cert_chain(certificate, key)
    return context


async def test_the_system_s_authorities_are_the_default() -> None:
    """Without a context of the caller's own, an unknown authority is not trusted."""
    async with raw_server(echo, tls=shared_tls().server) as server:
        with pytest.raises(ConnectFailed, match="certificate verify failed"):
            async with connect(server.url):
                pass


async def test_the_default_offers_http_1_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that would rather speak HTTP/2 is told not to."""
    seen: list[str | None] = []
    server_context = serving_as(authority := trustme.CA(), "localhost")
    server_context.set_alpn_protocols(["h2", "http/1.1"])

    async def script(peer: RawPeer) -> None:
        assert isinstance(peer.stream, trio.SSLStream)
        await peer.accept()
        seen.append(peer.stream.selected_alpn_protocol())
        await peer.receive_close()
        await peer.close()

    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    monkeypatch.setattr(ssl, "create_default_context", lambda: trusting)
    async with raw_server(script, tls=server_context) as server, connect(server.url):
        pass
    assert seen == ["http/1.1"]


async def test_a_server_without_tls(trusting: ssl.SSLContext) -> None:
    """What it says is no record of TLS."""

    async def script(peer: RawPeer) -> None:
        await peer.stream.receive_some()
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await peer.wait_end()

    async with raw_server(script) as server:
        with pytest.raises(ConnectFailed) as caught:
            async with connect(f"wss://localhost:{server.port}/", ssl_context=trusting):
                pass
    assert isinstance(caught.value.__cause__, ssl.SSLError)


async def test_a_context_that_cannot_even_begin() -> None:
    """No version of TLS is left to offer."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with raw_server(echo) as server, nothing_left():
        with pytest.raises(ConnectFailed) as caught:
            async with connect(f"wss://localhost:{server.port}/", ssl_context=context):
                pass
        assert isinstance(caught.value.__cause__, ssl.SSLError)
        await trio.sleep(0.05)


async def test_a_server_that_hangs_up_during_the_handshake(trusting: ssl.SSLContext) -> None:
    """As one that hangs up before its answer."""

    async def script(peer: RawPeer) -> None:
        await peer.stream.receive_some()

    async with raw_server(script) as server:
        with pytest.raises(ConnectFailed, match="closed the connection before it had answered"):
            async with connect(f"wss://localhost:{server.port}/", ssl_context=trusting):
                pass


async def test_a_client_certificate(authority: trustme.CA) -> None:
    """The caller's context may hold one."""
    context = serving_as(authority, "localhost")
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    with_certificate, without = ssl.create_default_context(), ssl.create_default_context()
    for client in (with_certificate, without):
        authority.configure_trust(client)
    authority.issue_cert("client@example.org").configure_cert(with_certificate)
    async with raw_server(echo, tls=context) as server:
        async with connect(server.url, ssl_context=with_certificate) as conn:
            await conn.ping()
        with pytest.raises(ConnectFailed):
            async with connect(server.url, ssl_context=without):
                pass


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_stream_over_tls(trusting: ssl.SSLContext, authority: trustme.CA, trusted: bool) -> None:
    """`connect_stream` takes one whose handshake is still to be done."""
    context = serving_as(authority if trusted else trustme.CA(), "localhost")
    async with raw_server(echo, tls=context) as server:
        plain = await trio.open_tcp_stream("127.0.0.1", server.port)
        stream = trio.SSLStream(plain, trusting, server_hostname="localhost")
        if trusted:
            async with connect_stream(stream, "wss://localhost/") as conn:
                assert conn.request.secure
                assert conn.request.host == "localhost"
                assert conn.remote_address == ("127.0.0.1", server.port)
                await conn.ping()
        else:
            with pytest.raises(ConnectFailed, match="broke before"):
                async with connect_stream(stream, "wss://localhost/"):
                    pass
