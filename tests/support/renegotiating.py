"""A peer that renegotiates TLS 1.2, by OpenSSL itself: the standard library cannot.

peer = await Renegotiating.connect(port)
await peer.ask()            # from here on, the other side can encrypt nothing until it has been answered
await peer.receive_some()   # which goes on with the negotiation, as reading always does
"""

from __future__ import annotations

import functools
import ssl
import tempfile
import warnings
from pathlib import Path

import trio
from OpenSSL import SSL, crypto

from support.certificates import TLS, make_tls

__all__ = ["Renegotiating", "tls_1_2"]

_ALLOW_CLIENT_RENEGOTIATION = 1 << 8
"""OpenSSL's option, for which the standard library has no name."""


@functools.cache
def _files() -> tuple[tempfile.TemporaryDirectory[str], TLS]:
    folder = tempfile.TemporaryDirectory()
    return folder, make_tls(Path(folder.name))


def tls_1_2() -> TLS:
    """Contexts for both sides; the server's lets clients renegotiate."""
    tls = _files()[1]
    tls.server.maximum_version = ssl.TLSVersion.TLSv1_2
    tls.server.options |= _ALLOW_CLIENT_RENEGOTIATION
    return tls


class Renegotiating(trio.abc.HalfCloseableStream):
    """TLS 1.2 over a stream, on either side.

    Attributes:
      tls: OpenSSL's object.
    """

    def __init__(self, stream: trio.SocketStream, *, server: bool) -> None:
        self.stream = stream
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        if server:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the kinds of keys that are taken
                context.use_certificate_chain_file(tls_1_2().certfile)
                context.use_privatekey_file(tls_1_2().keyfile, crypto.FILETYPE_PEM)
        self.tls = SSL.Connection(context, None)
        self._data = b""
        self._ended = False
        if server:
            self.tls.set_accept_state()
        else:
            self.tls.set_connect_state()

    @classmethod
    async def connect(cls, port: int) -> Renegotiating:
        """A client that has shaken hands."""
        self = cls(await trio.open_tcp_stream("127.0.0.1", port), server=False)
        await self.shake_hands()
        return self

    async def shake_hands(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except SSL.WantReadError:
                await self._pump_out()
                await self._pump_in()
            else:
                await self._pump_out()
                return

    async def ask(self) -> None:
        """Begin to negotiate anew."""
        self.tls.renegotiate()  # which does nothing where the last one is still under way
        self._read()
        await self._pump_out()

    def _read(self) -> bool:
        """Go on with what has come; `False` if more has to come first. Unlike a handshake, this bears data."""
        try:
            data = self.tls.recv(65536)
        except SSL.WantReadError:
            return False
        except (SSL.ZeroReturnError, SSL.SysCallError):
            self._ended = True
        else:
            self._data += data
        return True

    async def _pump_out(self) -> None:
        while True:
            try:
                records = self.tls.bio_read(65536)
            except SSL.WantReadError:
                return
            await self.stream.send_all(records)

    async def _pump_in(self) -> None:
        data = await self.stream.receive_some(65536)
        if data:
            self.tls.bio_write(bytes(data))
        else:
            self.tls.bio_shutdown()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        while not self._data and not self._ended:
            if not self._read():
                await self._pump_out()
                await self._pump_in()
        data, self._data = self._data, b""
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        while True:
            try:
                self.tls.sendall(bytes(data))
            except SSL.WantReadError:
                if not self._read():
                    await self._pump_out()
                    await self._pump_in()
            else:
                await self._pump_out()
                return

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self.stream.send_eof()

    async def aclose(self) -> None:
        await self.stream.aclose()
