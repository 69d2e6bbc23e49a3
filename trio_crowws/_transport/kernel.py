"""What the kernel can be told about the queue behind a socket, and asked about it."""

from __future__ import annotations

import socket
import sys
from contextlib import suppress
from typing import Protocol

__all__ = ["limit_unsent"]

_NOTSENT_LOWAT: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", 25 if sys.platform == "linux" else None)
"""The option of TCP sockets, which not every version of Python knows by name."""


class SocketLike(Protocol):
    """A socket of the standard library or of Trio."""

    @property
    def family(self) -> int: ...
    def fileno(self) -> int: ...
    def setsockopt(self, level: int, optname: int, value: int, /) -> None: ...


def limit_unsent(sock: SocketLike, size: int | None) -> None:
    """See `Transport.limit_unsent`. A socket that Trio has made into a stream has a limit already, of 16 KiB."""
    if _NOTSENT_LOWAT is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):  # reset meanwhile
            sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, size or 0)
