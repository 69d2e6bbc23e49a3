"""`wss:` is verified, over sockets and through streams: who is trusted, who is not, and what the error says."""

from __future__ import annotations

import datetime
import re
import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio
import trio.testing
import trustme

from support.clients import nothing_left
from support.rawserver import RawPeer, echo, raw_server
from support.servers import shared_tls
from trio_crowws import ConnectFailed, InvalidHandshake, connect, connect_stream
from trio_crowws._client import running
from trio_crowws._client.tls import AT_A_COMMAND_LINE, describe
from trio_crowws._protocol.url import parse_url
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
    when = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC) if expired else None
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
    context = serving_as(authority, "127.0.0.1")
    async with raw_server(echo, tls=context, host="127.0.0.1") as server, connect(server.url, ssl_context=trusting):
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
    cafile = r"; give its authority by ssl_context=ssl\.create_default_context\(cafile=\.\.\.\)$"
    complaint = {
        "untrusted": rf"comes from an authority that is not trusted here .*{cafile}",
        "other name": "is one for another host .*Hostname mismatch.*; use a host name of the certificate in the URL$",
        "other address": "is one for another host .*IP address mismatch",
        "expired": "has expired .*; the server needs a new one, or the clock of this machine is wrong$",
        "self-signed": f"self.signed.*{cafile}",
    }[why]
    heads: list[bytes] = []

    async def script(peer: RawPeer) -> None:
        heads.append(await peer.read_head())

    async with raw_server(script, tls=context, host=host) as server, nothing_left():
        with pytest.raises(ConnectFailed, match=complaint) as caught:
            async with connect(server.url, ssl_context=trusting):
                pytest.fail("there is no connection")
        await trio.sleep(0.05)
        assert str(caught.value).startswith(f"TLS with {host}:{server.port} failed: the certificate of {host} ")
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


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"220 mail.example.org ESMTP\r\n"])
@pytest.mark.usefixtures("transports")
async def test_a_server_without_tls(trusting: ssl.SSLContext, said: bytes) -> None:
    """What it says is no record of TLS, and so is what is wrong."""

    async def script(peer: RawPeer) -> None:
        await peer.stream.receive_some()
        await peer.send(said)
        await peer.wait_end()

    async with raw_server(script) as server:
        with pytest.raises(ConnectFailed, match="this port does not speak TLS; is it one for ws://") as caught:
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


@pytest.mark.usefixtures("transports")
async def test_a_server_that_hangs_up_during_the_handshake(trusting: ssl.SSLContext) -> None:
    """As one that hangs up before its answer."""

    async def script(peer: RawPeer) -> None:
        await peer.stream.receive_some()

    async with raw_server(script) as server:
        with pytest.raises(
            ConnectFailed, match="closed the connection before it had answered; perhaps this port does not speak TLS"
        ):
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
            with pytest.raises(ConnectFailed, match="TLS with localhost:443 failed"):
                async with connect_stream(stream, "wss://localhost/"):
                    pass


async def test_a_stream_over_tls_whose_server_hangs_up(trusting: ssl.SSLContext) -> None:
    """It is said in the same words as over a socket."""
    near, far = trio.testing.memory_stream_pair()
    await far.send_eof()
    stream = trio.SSLStream(near, trusting, server_hostname="localhost")
    with pytest.raises(ConnectFailed, match="closed the connection before it had answered; perhaps this port does not"):
        async with connect_stream(stream, "wss://localhost/"):
            pass


@asynccontextmanager
async def openssl_server(context: ssl.SSLContext) -> AsyncGenerator[str]:
    """A server of the standard library for one client: unlike a stream of Trio, it sends the alert when it refuses."""

    def serve() -> None:
        sock, _ = listener.accept()
        with suppress(OSError):
            sock = context.wrap_socket(sock, server_side=True)
            while sock.recv(1000):
                pass
        sock.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, serve)
            yield f"wss://localhost:{listener.getsockname()[1]}/"


@pytest.mark.usefixtures("transports")
async def test_no_version_in_common(authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    """The attributes that may be set otherwise are named."""
    context = serving_as(authority, "localhost")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    trusting.minimum_version = ssl.TLSVersion.TLSv1_3
    async with openssl_server(context) as url:
        with pytest.raises(ConnectFailed, match="have no version of TLS in common; see minimum_version") as caught:
            async with connect(url, ssl_context=trusting):
                pass
    assert isinstance(caught.value.__cause__, ssl.SSLError)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.usefixtures("transports")
async def test_a_server_that_misses_a_certificate(
    authority: trustme.CA, trusting: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    """Whether its alert says that alone, may mean it, or is lost with the connection: the certificate is named."""
    context = serving_as(authority, "localhost")
    context.minimum_version = context.maximum_version = version
    context.verify_mode = ssl.CERT_REQUIRED
    async with openssl_server(context) as url:
        with pytest.raises(ConnectFailed, match="the server demands a certificate of the client"):
            async with connect(url, ssl_context=trusting):
                pass


async def test_an_alert_within_tls(authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    """It is an answer that is no HTTP, and nobody is told to speak TLS who does."""

    async def script(peer: RawPeer) -> None:
        await peer.read_head()
        await peer.send(b"\x15\x03\x01\0\x02\x02F")
        await peer.wait_end()

    async with raw_server(script, tls=serving_as(authority, "localhost")) as server:
        with pytest.raises(InvalidHandshake, match="a record of TLS"):
            async with connect(server.url, ssl_context=trusting):
                pass


TARGET = parse_url("wss://example.org/")


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "the server demands a certificate of the client; give one by load_cert"),
        ("TLSV1_ALERT_UNKNOWN_CA", "does not accept the certificate of the client, or misses one; give one by load"),
        ("SSLV3_ALERT_BAD_CERTIFICATE", "does not accept the certificate of the client"),
        ("TLSV1_UNRECOGNIZED_NAME", "the server does not know the name example.org"),
        ("UNSUPPORTED_PROTOCOL", "no version of TLS in common"),
        ("PACKET_LENGTH_TOO_LONG", "this port does not speak TLS"),
        ("SOMETHING_ELSE", "failed: what OpenSSL says$"),
    ],
)
def test_what_an_alert_means(reason: str, said: str) -> None:
    """Each reason of OpenSSL's that people meet has a sentence; the others are shown as they are."""
    error = ssl.SSLError(1, "what OpenSSL says")
    error.reason = reason
    assert re.search(f"^TLS with example.org:443 failed: .*{said}|{said}", describe(error, TARGET))
    assert "what OpenSSL says" in describe(error, TARGET)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (20, "--cafile FILE trusts its authority or --insecure accepts any certificate$"),
        (62, "use a host name of the certificate in the URL or --insecure accepts any certificate$"),
        (28, "is not accepted .*; --insecure accepts any certificate$"),
    ],
)
def test_what_can_be_done_at_a_command_line(code: int, said: str) -> None:
    """Its own options are named, and no arguments of Python."""
    error = ssl.SSLCertVerificationError(1, "what OpenSSL says")
    error.verify_code, error.verify_message = code, "in detail"
    text = describe(error, TARGET, AT_A_COMMAND_LINE)
    assert re.search(said, text)
    assert "(certificate verify failed: in detail)" in text
    assert "ssl_context" not in text


def test_a_certificate_that_is_refused_for_a_reason_of_its_own() -> None:
    """Where nothing can be done, nothing is advised."""
    error = ssl.SSLCertVerificationError(1, "what OpenSSL says")
    error.verify_code, error.verify_message = 28, "in detail"
    assert describe(error, TARGET).endswith("is not accepted (certificate verify failed: in detail)")
