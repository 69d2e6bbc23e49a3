"""Listening sockets: TCP by host and port, Unix by path, and what to do when accepting fails."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING
from urllib.parse import quote

import trio

from ._foreign import explain
from ._log import log
from ._transport.addresses import check_unix_path, plain_address, show_unix_path, unix_socket_is_alive
from ._transport.base import PASS_TIME
from .errors import CrowWSError

if TYPE_CHECKING:
    from ._session.handshakes import Handshakes
    from ._transport.base import Address
    from ._transport.engine import Engine

__all__ = ["ListeningSocket", "format_address", "is_exhausted", "open_tcp", "open_unix", "url_of"]

_WILDCARDS = {"0.0.0.0": ("127.0.0.1", " (and all IPv4 addresses)"), "::": ("::1", " (and all IPv6 addresses)")}

ACCEPTS_PER_TURN = 64
_ACCEPT_TIME = 0.5 * PASS_TIME
"""Seconds for those who wait, before the connections that are there have their turn: most of them are read at once."""
_FULL = OSError("max_handshakes is reached")

Take = Callable[[socket.socket, "Address", "Address"], None]

LONGEST_QUEUE = 0xFFFF
"""How many may wait in the kernel's queue to be accepted, unless the system allows less."""

EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC))
"""What the system is out of; ENOSPC is what epoll says where it can watch no more."""
EXHAUSTED_PAUSE = 0.1
"""Seconds before the next try when the process or the system is out of descriptors or memory."""


class ListeningSocket:
    """One listening socket and its loop.

    Attributes:
      address: where it listens: `(host, port)`, or the path of a Unix socket.
    """

    def __init__(self, sock: socket.socket, *, path: str | None = None) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._path = path
        self._exhausted = False
        self._inode = Path(path).stat().st_ino if path is not None else None
        name = sock.getsockname()
        self.address = plain_address(name)
        # One address for all connections, unless it stands for several.
        self._local = None if name[0] in ("0.0.0.0", "::") else self.address
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it

    def __str__(self) -> str:
        return self.address if isinstance(self.address, str) else format_address(self.address)

    @trio.lowlevel.enable_ki_protection
    async def accept_forever(self, engine: Engine, handshakes: Handshakes, take: Take) -> None:
        """Call `take(sock, local, remote)` for every peer, until cancelled; then the socket is closed.

        Args:
          engine: of the server.
          handshakes: who else is there. While there is no room for one more, nobody is accepted.
          take: what is called.
        """
        try:
            while True:
                await trio.lowlevel.checkpoint_if_cancelled()  # closed before the first wait: there is no descriptor
                error = await engine.watch(self._sock, partial(self._accept_some, handshakes, take))
                if error is _FULL:
                    await handshakes.wait_for_room()
                    continue
                if not self._exhausted:  # it may last for hours, and ten lines a second would fill the disk as well
                    log.error("cannot accept on %s: %s; trying again", self, error.strerror or explain(error))
                self._exhausted = True
                await trio.sleep(EXHAUSTED_PAUSE)
        finally:
            self.close()

    async def accept_waiting(self, handshakes: Handshakes, take: Take) -> None:
        """Accept those who wait in the kernel's queue, until it is empty or the caller loses patience."""
        for number in count():  # pragma: no branch - it returns
            await handshakes.wait_for_room()
            if self._sock.fileno() < 0 or not handshakes.make_room() or self._accept_one(handshakes, take) is not None:
                return
            if number % ACCEPTS_PER_TURN == ACCEPTS_PER_TURN - 1:
                await trio.lowlevel.checkpoint()

    def _accept_some(self, handshakes: Handshakes, take: Take) -> OSError | None:
        """Accept those who wait; return what makes it pointless to go on right now."""
        until = perf_counter() + _ACCEPT_TIME
        number = 0
        while True:
            # Nobody is dropped before it is known that somebody is there, as it is in the first round.
            # After a lack of descriptors it has to be seen that nobody is left, or the next lack would not be told.
            late = perf_counter() > until and not self._exhausted
            if number and (number == ACCEPTS_PER_TURN or handshakes.full or late):
                return None
            number += 1
            if not handshakes.make_room():
                return _FULL
            error = self._accept_one(handshakes, take)
            if isinstance(error, BlockingIOError):
                self._exhausted = False  # nobody is left who could not be accepted
                return None
            if error is not None:
                return error

    def _accept_one(self, handshakes: Handshakes, take: Take, *, again: bool = False) -> OSError | None:
        """Accept one who waits; return why there is none, `BlockingIOError` where nobody waits."""
        try:
            sock, remote = self._sock.accept()
        except BlockingIOError as error:
            return error.with_traceback(None)  # whose frames would refer to it
        except OSError as error:
            if not is_exhausted(error):
                return None  # this one peer went away before it was accepted
            # One descriptor less for a peer that drips is one more for somebody else.
            if not again and handshakes.drop_oldest(hurry=True):
                return self._accept_one(handshakes, take, again=True)
            return error.with_traceback(None)
        try:
            if isinstance(self.address, str):
                take(sock, self.address, self.address)
            else:
                take(sock, self._local or sock.getsockname()[:2], remote[:2])
        except OSError as error:
            sock.close()
            if is_exhausted(error):
                return error.with_traceback(None)
            log.debug("a connection at %s is dropped: %s", self, explain(error))  # it costs this one peer
        except Exception as error:  # so does a defect
            sock.close()
            log.error("internal error; a connection at %s is dropped", self, exc_info=error)
        except BaseException:
            sock.close()
            raise
        return None

    def close(self) -> None:
        """Stop listening; the port is free at once, and so is the path."""
        self._sock.close()
        if self._path is not None:
            with suppress(FileNotFoundError):
                if Path(self._path).stat().st_ino == self._inode:
                    Path(self._path).unlink()
            self._path = None


def url_of(address: tuple[str, int] | str, *, secure: bool) -> str:
    """Where a client connects to, for people: a URL, and what else it stands for."""
    if isinstance(address, str):
        if address.startswith("@"):
            return f"ws+unix:///%00{quote(os.fsencode(address[1:]), safe='')}"
        return f"ws+unix://{quote(os.fsencode(Path(address).absolute()))}"
    host, port = address
    reachable, note = _WILDCARDS.get(host, (host, ""))
    return f"{'wss' if secure else 'ws'}://{format_address((reachable, port))}{note}"


def is_exhausted(error: Exception) -> bool:
    """Whether the process or the system is out of descriptors or memory."""
    return type(error) is OSError and type(error.errno) is int and error.errno in EXHAUSTED


def format_address(address: tuple[str, int]) -> str:
    """`host:port`, with brackets around an IPv6 host."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def open_tcp(host: str | None, port: int, backlog: int | None) -> list[ListeningSocket]:
    """Listen on every address of `host`; `None` means all interfaces, port 0 a free port.

    Raises:
      OSError: an address is in use or not ours; the message holds it.
      TypeError: the port is not an int.
      ValueError: there is no such port.
    """
    if not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f"port must be an int, not {type(port).__name__}")
    if not 0 <= port <= 0xFFFF:  # the system would take what is left of it beyond 16 bits
        raise ValueError(f"port {port} is not allowed; it must be an int from 0 to 65535")
    try:
        listeners = await trio.open_tcp_listeners(port, host=host, backlog=backlog)
    except OSError as error:
        where = format_address((host or "*", port))
        raise _listen_error(where, error) from error
    # `detach` gives the descriptor away, and with it the only thing the trio socket owned.
    return [ListeningSocket(socket.socket(fileno=listener.socket.detach())) for listener in listeners]


def open_unix(path: str | os.PathLike[str], backlog: int | None) -> ListeningSocket:
    """Listen on a Unix socket at `path`, where a socket that no process has any more is replaced.

    Raises:
      OSError: the path is in use, too long, or cannot be made; the message holds it.
      TypeError: the path is bytes.
      ValueError: the path is empty, or holds a NUL that is not the one of an abstract name.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise CrowWSError("Unix sockets are not available on this platform")
    path = os.fspath(path)
    if not isinstance(path, str):
        raise TypeError("the path of a Unix socket must be a str or a path object of one, not bytes")
    abstract = path.startswith("\0")
    if not path or ("\0" in path and not abstract):
        raise ValueError(f"the path of a Unix socket must not be empty or hold a NUL, not {path!r}")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        check_unix_path(path)
        if not abstract:
            _remove_stale(path)
        sock.bind(path)
        sock.listen(backlog if backlog is not None else LONGEST_QUEUE)
    except OSError as error:
        sock.close()
        raise _listen_error(show_unix_path(path), error) from error
    return ListeningSocket(sock, path=None if abstract else path)


def _listen_error(where: str, error: OSError) -> OSError:
    return OSError(error.errno, f"cannot listen on {where}: {error.strerror or error}")


def _remove_stale(path: str) -> None:
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "there is a file that is not a socket")
    if unix_socket_is_alive(path):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    Path(path).unlink()
