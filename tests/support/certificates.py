"""TLS for tests: a certificate for `localhost` from an authority that only the tests trust."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme

__all__ = ["TLS", "make_tls"]


@dataclass(frozen=True)
class TLS:
    """Contexts for both ends, and the files that hold the server's certificate and key."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    certfile: str
    keyfile: str


def make_tls(folder: Path) -> TLS:
    """Make an authority and a certificate; its files are put into `folder`."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    certfile, keyfile = folder / "cert.pem", folder / "key.pem"
    certfile.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    keyfile.write_bytes(certificate.private_key_pem.bytes())
    return TLS(server, client, str(certfile), str(keyfile))
