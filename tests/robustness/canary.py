"""A client that measures, while others attack, how long an honest peer has to wait.

It is a process of its own, because in a test's process it would measure how busy the attackers are. It needs nothing
but the standard library, so that it starts quickly.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["canary", "show"]

LIMIT = 1.0
"""Seconds within which an honest peer must have its answer, whatever others do."""

AT_LEAST = 5
"""Round trips without which nothing was measured."""

_REQUEST = (
    b"GET /echo HTTP/1.1\r\nHost: example.org\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
_TEXT = b"are you still there?"
_QUESTION = bytes((0x81, 0x80 | len(_TEXT))) + bytes(4) + _TEXT
_ANSWER = bytes((0x81, len(_TEXT))) + _TEXT


@contextmanager
def canary(port: int, *, fresh: bool = True) -> Generator[None]:
    """Measure during the block; afterwards the longest round trip must have been short.

    Args:
      port: of the server.
      fresh: whether new connections are measured, too.
    """
    command = [sys.executable, "-I", "-S", __file__, str(port), str(int(fresh))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as bird:
        assert bird.stdout is not None
        try:
            first = bird.stdout.readline()
            yield
            song, complaint = bird.communicate(timeout=30)
        except BaseException:
            bird.kill()
            raise
    assert first == b"singing\n", complaint.decode()
    assert bird.returncode == 0, complaint.decode()
    trips, worst = json.loads(song)
    show(f"{trips} round trips of the canary, the longest {worst * 1000:.1f} ms")
    assert worst < LIMIT, f"the longest round trip took {worst:.2f} s"


def show(measured: str) -> None:
    """Print what was measured, for whoever runs with `-s` and wants to see it."""
    if os.environ.get("TRIO_CROWWS_SHOW"):
        print(f"    {measured}")


# In the process of the canary


def sing(port: int, fresh: bool) -> tuple[int, float]:
    """Echo until the end of standard input, and over a new connection now and then: how often, and the longest trip."""
    trips, worst = 0, 0.0
    with connect(port) as lasting:
        print("singing", flush=True)
        while trips < AT_LEAST or not select.select([sys.stdin], [], [], 0.005)[0]:
            start = time.monotonic()
            echo(lasting)
            worst = max(worst, time.monotonic() - start)
            if fresh and trips % 20 == 1:
                start = time.monotonic()
                with connect(port) as sock:
                    echo(sock)
                worst = max(worst, time.monotonic() - start)
            trips += 1
    return trips, worst


def connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(_REQUEST)
    head = b""
    while b"\r\n\r\n" not in head:
        data = sock.recv(4096)
        assert data, f"the stream ended after {head!r}"
        head += data
    assert head.startswith(b"HTTP/1.1 101 "), head
    return sock


def echo(sock: socket.socket) -> None:
    """One round trip; pings of the heartbeat, which come when this process had to wait, are passed over."""
    sock.sendall(_QUESTION)
    answer = b""
    while answer != _ANSWER:
        data = sock.recv(4096)
        assert data, f"the stream ended after {answer!r}"
        answer += data
        while answer[:1] == b"\x89" and len(answer) >= 10:
            answer = answer[10:]


if __name__ == "__main__":
    print(json.dumps(sing(int(sys.argv[1]), sys.argv[2] == "1")))
