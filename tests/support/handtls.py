"""TLS spoken by hand, so that a test decides which records leave together, and can break one.

tls = await TLSByHand.connect(port)
await tls.send_records(tls.seal(b"data") + tls.farewell())
"""

from __future__ import annotations

import os
import ssl
from contextlib import suppress

import trio

from support.servers import shared_tls

__all__ = ["TLSByHand", "broken"]


class TLSByHand(trio.abc.HalfCloseableStream):
    """The client's side of TLS over a TCP stream.

    Attributes:
      stream: the stream below.
      tls: OpenSSL's object.
    """

    def __init__(self, stream: trio.SocketStream, context: ssl.SSLContext) -> None:
        self.stream = stream
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")

    @classmethod
    async def connect(cls, port: int, context: ssl.SSLContext | None = None) -> TLSByHand:
        """Connect to a port of this machine, and shake hands."""
        self = cls(await trio.open_tcp_stream("127.0.0.1", port), context or shared_tls().client)
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.send_records(self._outgoing.read())
                self._incoming.write(bytes(await self.stream.receive_some(65536)))
            else:
                await self.send_records(self._outgoing.read())
                return self

    def seal(self, data: bytes) -> bytes:
        """The records of `data`, each full but the last one."""
        self.tls.write(data)
        return self._outgoing.read()

    def farewell(self) -> bytes:
        """The record of `close_notify`."""
        with suppress(ssl.SSLError):  # the peer's is still to come
            self.tls.unwrap()
        return self._outgoing.read()

    async def send_records(self, records: bytes) -> None:
        """Send what is encrypted already, in one call."""
        if records:
            await self.stream.send_all(records)

    def send_now(self, records: bytes) -> None:
        """As `send_records`, in this very step of the task."""
        assert os.write(self.stream.socket.fileno(), records) == len(records)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.send_records(self.seal(bytes(data)))

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        while True:
            try:
                return self.tls.read(max_bytes or 65536)
            except ssl.SSLWantReadError:
                data = await self.stream.receive_some(65536)
                if not data:
                    return b""
                self._incoming.write(bytes(data))
            except ssl.SSLZeroReturnError:
                return b""

    async def send_eof(self) -> None:
        """`close_notify`, but not the end of the TCP stream."""
        await self.send_records(self.farewell())

    async def aclose(self) -> None:
        await self.stream.aclose()


def broken(records: bytes) -> bytes:
    """`records` with a bit of the last one turned round."""
    return records[:-1] + bytes([records[-1] ^ 1])
