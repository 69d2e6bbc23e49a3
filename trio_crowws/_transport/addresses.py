"""What sockets are called: addresses as an application sees them, and the paths of Unix sockets."""

from __future__ import annotations

import errno
import os
import socket
import sys
from typing import Any

__all__ = ["check_unix_path", "plain_address", "show_unix_path", "unix_socket_is_alive"]

_LONGEST_PATH = 107 if sys.platform.startswith("linux") else 103
"""Bytes; the systems have room for one more, which is NUL."""


def plain_address(name: tuple[Any, ...] | str | bytes) -> tuple[str, int] | str:
    """What a socket is called, without the fields that only IPv6 has, and with `@` before an abstract name."""
    if isinstance(name, tuple):
        return name[0], name[1]
    return name if isinstance(name, str) else show_unix_path(os.fsdecode(name))


def show_unix_path(path: str) -> str:
    """A path as it can be read: an abstract name begins with NUL, and is shown with `@` as other tools do."""
    return "@" + path[1:] if path.startswith("\0") else path


def check_unix_path(path: str) -> None:
    """Refuse what can be no Unix socket.

    Raises:
      OSError: it is too long, or an abstract name on a system without such names.
    """
    size = len(os.fsencode(path)) - path.startswith("\0")
    if size > _LONGEST_PATH:
        raise OSError(
            errno.ENAMETOOLONG, f"the path of a Unix socket has at most {_LONGEST_PATH} bytes, and this one has {size}"
        )
    if path.startswith("\0") and not sys.platform.startswith("linux"):
        raise OSError(errno.EINVAL, "abstract Unix sockets, whose name begins with NUL, are there on Linux only")


def unix_socket_is_alive(path: str) -> bool:
    """Whether some process has the socket at `path`, be it that it does not listen yet.

    A datagram socket asks, so nobody is connected: where there is a stream socket the answer is "wrong type", and where
    there is none any more, "refused".

    Raises:
      OSError: the system does not say.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise
    return True
