"""Peers whose every step is the test's own: nothing of the process under test runs while they send."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import trio
import trio.testing

from support.rawclient import upgrade
from support.servers import Site, shared_tls
from trio_crowws.testing import make_frame

__all__ = ["WAIT", "Blocking", "peers", "settle", "until"]

WAIT = trio.to_thread.run_sync
"""How the process under test goes on while a peer waits."""


class Blocking:
    """A peer that sends in one step of the test, so that the process under test has no chance to read between."""

    def __init__(self, site: Site, receive_buffer: int | None = None) -> None:
        [address] = site.server.addresses
        if isinstance(address, str):
            self.sock = socket.socket(socket.AF_UNIX)
        else:
            self.sock = socket.socket()
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(5)
        self.sock.connect(address)
        self._secure = site.kind == "tls"

    def shake_hands(self) -> None:
        if self._secure:
            self.sock = shared_tls().client.wrap_socket(self.sock, server_hostname="localhost")

    def open(self) -> None:
        self.shake_hands()
        self.sock.sendall(upgrade("/"))
        assert self.read_head().startswith(b"HTTP/1.1 101 ")

    def read_head(self) -> bytes:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = self.sock.recv(1)
            assert byte, head
            head += byte
        return head

    def read_frame(self) -> tuple[int, bytes]:
        """A short one."""
        first, size = self.sock.recv(1)[0], self.sock.recv(1)[0]
        return first & 15, self.sock.recv(size) if size else b""

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        data = bytearray()
        while len(data) < size:
            more = self.sock.recv(size - len(data))
            assert more, f"the stream ended after {len(data)} of {size} bytes"
            data += more
        return bytes(data)

    def send(self, opcode: int, payload: bytes = b"") -> None:
        self.sock.sendall(make_frame(opcode, payload))


@asynccontextmanager
async def peers(
    site: Site, begin: Callable[[Blocking], None] = Blocking.open, *, count: int = 1, receive_buffer: int | None = None
) -> AsyncGenerator[list[Blocking]]:
    """Peers that have begun; in the end the server is dropped, because nobody speaks to it any more."""
    everybody = [Blocking(site, receive_buffer) for _ in range(count)]
    try:
        for peer in everybody:
            await WAIT(begin, peer)
        yield everybody
    finally:
        for peer in everybody:
            peer.sock.close()
        site.server.abort()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what no event tells, although the clock stands still."""
    while not condition():
        await WAIT(time.sleep, 0.0005)


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked(0.01)
