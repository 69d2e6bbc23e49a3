"""Redirects over TLS: what of the caller's context is for the server of the URL alone."""

from __future__ import annotations

import ssl
import warnings
from typing import Any

import pytest
import trio
import trustme

from support.rawserver import RawPeer, echo, raw_server
from trio_crowws import ConnectFailed, connect
from trio_crowws._client.tls import default_context, without_certificate


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def personal(authority: trustme.CA) -> ssl.SSLContext:
    """A context with a private authority and a client certificate."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    authority.issue_cert("client@example.org").configure_cert(context)
    return context


def asking(authority: trustme.CA, verify_mode: ssl.VerifyMode = ssl.CERT_OPTIONAL) -> ssl.SSLContext:
    """The context of a server that asks for a client certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = verify_mode
    return context


class Certificates:
    """Remembers what certificate each client has shown.

    Attributes:
      seen: one for each request.
    """

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def _note(self, peer: RawPeer) -> None:
        assert isinstance(peer.stream, trio.SSLStream)
        await peer.stream.do_handshake()
        self.seen.append(peer.stream.getpeercert())

    async def echo(self, peer: RawPeer) -> None:
        await self._note(peer)
        await echo(peer)

    def redirect(self, location: str) -> Any:
        async def script(peer: RawPeer) -> None:
            await self._note(peer)
            await peer.read_head()
            await peer.send(f"HTTP/1.1 302 X\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())

        return script


async def test_a_client_certificate_is_for_the_server_of_the_url(
    authority: trustme.CA, personal: ssl.SSLContext
) -> None:
    """Another origin is checked by the same authority, and sees no certificate, even if it asks for one."""
    certificates = Certificates()
    async with (
        raw_server(certificates.echo, tls=asking(authority)) as other,
        raw_server(certificates.redirect(other.url), tls=asking(authority)) as server,
        connect(server.url, ssl_context=personal, follow_redirects=True) as conn,
    ):
        await conn.ping()
    first, second = certificates.seen
    assert first
    assert not second


async def test_within_the_origin_the_certificate_goes_along(authority: trustme.CA, personal: ssl.SSLContext) -> None:
    """A redirect to another path changes nothing."""
    certificates = Certificates()
    scripts = certificates.redirect("/there"), certificates.echo
    async with (
        raw_server(*scripts, tls=asking(authority, ssl.CERT_REQUIRED)) as server,
        connect(server.url, ssl_context=personal, follow_redirects=True),
    ):
        assert len(certificates.seen) == 2
    assert all(certificates.seen)


async def test_who_is_not_trusted_is_not_trusted_after_a_redirect(
    authority: trustme.CA, personal: ssl.SSLContext
) -> None:
    """The other origin needs a certificate of an authority that the caller's context knows."""
    certificates = Certificates()
    async with (
        raw_server(echo, tls=asking(trustme.CA())) as other,
        raw_server(certificates.redirect(other.url), tls=asking(authority)) as server,
    ):
        with pytest.raises(ConnectFailed, match="certificate verify failed"):
            async with connect(server.url, ssl_context=personal, follow_redirects=True):
                pass


def test_the_copy_trusts_what_the_context_trusts(authority: trustme.CA) -> None:
    """A private authority instead of those of the system stays the only one; beside them it is one more."""
    alone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(alone)
    assert without_certificate(alone).get_ca_certs() == alone.get_ca_certs()
    beside = ssl.create_default_context()
    authority.configure_trust(beside)
    copy = without_certificate(beside)
    assert copy.cert_store_stats() == beside.cert_store_stats()
    assert without_certificate(default_context()).cert_store_stats() == default_context().cert_store_stats()


def test_the_copy_of_what_trusts_nobody() -> None:
    """Nobody is trusted either where the system trusts somebody."""
    system = default_context().cert_store_stats()["x509_ca"]
    copy = without_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    assert copy.verify_mode == ssl.CERT_REQUIRED
    assert copy.cert_store_stats()["x509_ca"] == (0 if system else system)


def test_the_copy_of_what_does_not_tell() -> None:
    """Subclasses exist that leave the matter to the system, which is asked then."""

    class Silent(ssl.SSLContext):
        def get_ca_certs(self, binary_form: bool = False) -> Any:
            raise NotImplementedError

    copy = without_certificate(Silent(ssl.PROTOCOL_TLS_CLIENT))
    assert copy.cert_store_stats() == default_context().cert_store_stats()
    assert copy.verify_mode == ssl.CERT_REQUIRED


def test_the_copy_checks_as_the_context_checks() -> None:
    """Versions, ciphers, flags and checks are those of the original."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.options |= ssl.OP_NO_TLSv1_3
        context.minimum_version = ssl.TLSVersion.TLSv1_1
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    context.set_ciphers("ECDHE+AESGCM:@SECLEVEL=1")
    copy = without_certificate(context)
    for name in ("check_hostname", "verify_mode", "verify_flags", "options", "minimum_version", "maximum_version"):
        assert getattr(copy, name) == getattr(context, name), name
    assert not copy.hostname_checks_common_name
    assert copy.security_level == 1
    assert copy.get_ciphers() == context.get_ciphers()
    assert copy.get_ciphers() != default_context().get_ciphers()
