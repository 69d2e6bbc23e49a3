"""What the kernel can be told about a socket and the queue behind it, and what it tells."""

from __future__ import annotations

import select
import socket
import sys
from contextlib import suppress
from typing import Protocol

__all__ = ["AF_UNIX", "ANYTHING", "ENDING", "IN", "INPUT", "IN_AND_OUT", "READABLE", "limit_unsent", "unacknowledged"]

# What epoll tells of a socket, where there is epoll.
IN = select.EPOLLIN if hasattr(select, "epoll") else 0
IN_AND_OUT = select.EPOLLIN | select.EPOLLOUT if hasattr(select, "epoll") else 0
INPUT = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET if hasattr(select, "epoll") else 0
ENDING = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR if hasattr(select, "epoll") else 0
READABLE = ENDING | select.EPOLLIN if hasattr(select, "epoll") else 0
ANYTHING = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP if hasattr(select, "epoll") else 0

_NOTSENT_LOWAT: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", 25 if sys.platform == "linux" else None)
"""The option of TCP sockets, which not every version of Python knows by name."""


AF_UNIX: int | None = getattr(socket, "AF_UNIX", None)
"""The family of Unix sockets, where there are any."""


class SocketLike(Protocol):
    """A socket of the standard library or of Trio."""

    @property
    def family(self) -> int: ...
    def fileno(self) -> int: ...
    def getsockopt(self, level: int, optname: int, /) -> int: ...
    def setsockopt(self, level: int, optname: int, value: int, /) -> None: ...


def limit_unsent(sock: SocketLike, size: int | None) -> None:
    """See `Transport.limit_unsent`.

    A TCP socket that Trio has made into a stream has a limit already, of 16 KiB. A Unix socket has none but the size of
    its buffer, in which whatever the peer has not read counts; it is made smaller where that helps, and never larger.
    """
    with suppress(OSError):  # reset meanwhile
        if sock.family in (socket.AF_INET, socket.AF_INET6) and _NOTSENT_LOWAT is not None:
            sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, size or 0)
        elif (
            size is not None
            and sock.family == AF_UNIX
            and 2 * size < sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        ):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)  # Linux doubles it, for what it needs itself


if sys.platform == "linux":
    import fcntl
    import termios

    def unacknowledged(sock: SocketLike) -> int | None:
        """Bytes that the kernel has taken and the peer's has not acknowledged; `None` where it does not tell.

        Over a Unix socket it is the memory of what the peer has not read.
        """
        try:
            answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
        except (OSError, ValueError):  # ValueError: it has been closed
            return None
        return int.from_bytes(answer, sys.byteorder)

else:  # pragma: no cover -- coverage is measured on Linux

    def unacknowledged(sock: SocketLike) -> int | None:
        """Not known here."""
        return None
