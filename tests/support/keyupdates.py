"""A peer of TLS 1.3 that makes its own records, so that it can have the keys changed (RFC 8446 section 4.6.3).

The standard library shakes hands and says which secret the client's records are protected with; everything that the
client sends behind that is made here.
"""

from __future__ import annotations

import ssl
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from support.handtls import TLSByHand

__all__ = ["KeyUpdating"]

_DATA, _HANDSHAKE = b"\x17", b"\x16"


class KeyUpdating:
    """A client's side of TLS that is past its handshake.

    Attributes:
      stream: the stream below, for what comes in.
    """

    def __init__(self, tls: TLSByHand, secret: bytes) -> None:
        self.stream = tls.stream
        self._use(secret)

    @classmethod
    async def connect(cls, port: int) -> KeyUpdating:
        """Connect to a port of this machine, and shake hands."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # of its own, because the secrets are written down
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "keys")
            context.keylog_filename = str(log)
            tls = await TLSByHand.connect(port, context)
            lines = log.read_text().splitlines()
        cipher = tls.tls.cipher()
        assert cipher is not None
        assert cipher[0] == "TLS_AES_256_GCM_SHA384"
        [secret] = [line.split()[2] for line in lines if line.startswith("CLIENT_TRAFFIC_SECRET_0 ")]
        return cls(tls, bytes.fromhex(secret))

    def _use(self, secret: bytes) -> None:
        self._secret = secret
        self._key = AESGCM(_expand(secret, b"key", 32))
        self._iv = int.from_bytes(_expand(secret, b"iv", 12))
        self._number = 0

    def seal(self, data: bytes, kind: bytes = _DATA) -> bytes:
        """The record of `data`."""
        header = b"\x17\x03\x03" + (len(data) + 17).to_bytes(2)
        nonce = (self._iv ^ self._number).to_bytes(12)
        self._number += 1
        return header + self._key.encrypt(nonce, data + kind, header)

    def update(self, *, asking: bool = True) -> bytes:
        """The record that says that the next one has other keys; `asking` for the same in return."""
        record = self.seal(b"\x18\x00\x00\x01" + (b"\x01" if asking else b"\x00"), _HANDSHAKE)
        self._use(_expand(self._secret, b"traffic upd", 48))
        return record


def _expand(secret: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand-Label (RFC 8446 section 7.1)."""
    label = b"tls13 " + label
    info = size.to_bytes(2) + bytes([len(label)]) + label + b"\x00"
    return HKDFExpand(SHA384(), size, info).derive(secret)
