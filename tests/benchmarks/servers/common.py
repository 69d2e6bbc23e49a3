"""What every server script shares: the command line, the line that says where it listens, and TLS."""

from __future__ import annotations

import argparse
import socket
import ssl
from dataclasses import dataclass

__all__ = ["BACKLOG", "DEFAULT_INTERVAL", "Settings", "announce", "listen", "read_settings"]

BACKLOG = 4096
DEFAULT_INTERVAL = 20.0
"""Seconds between pings in this framework and in websockets; in the others the heartbeat is off unless it is set."""


@dataclass(frozen=True)
class Settings:
    """How a server is to run.

    Attributes:
      tls: a context when it is to serve TLS.
      ping_interval: seconds between the pings of the heartbeat; `None` for whatever is the server's default.
      max_size: bytes of the largest message that it must take.
    """

    tls: ssl.SSLContext | None
    ping_interval: float | None
    max_size: int


def read_settings() -> Settings:
    """The command line, which is the same for all of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--certfile", help="serve TLS; the file holds the key as well")
    parser.add_argument("--ping-interval", type=float, metavar="SECONDS")
    parser.add_argument("--max-payload", type=int, default=1 << 20, metavar="BYTES")
    arguments = parser.parse_args()
    tls = None
    if arguments.certfile:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(arguments.certfile)
    return Settings(tls, arguments.ping_interval, arguments.max_payload)


def announce(port: int) -> None:
    """Say that connections are welcome now; the benchmark waits for this line."""
    print(f"listening on 127.0.0.1:{port}", flush=True)


def listen() -> socket.socket:
    """A listening socket on a free port, not blocking."""
    sock = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    sock.setblocking(False)
    return sock
