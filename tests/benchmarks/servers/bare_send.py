"""The floor of publishing: `socket.send` in a loop, once for each subscriber, and nothing else.

The first byte of a connection says what it is: S for a subscriber, P for the publisher.
"""

from __future__ import annotations

import socket
from contextlib import suppress

from .common import announce, listen


def publish(publisher: socket.socket, subscribers: list[socket.socket]) -> None:
    """Send what comes in to all subscribers until the publisher leaves."""
    while data := publisher.recv(65536):
        for subscriber in subscribers:
            subscriber.send(data)


def main() -> None:
    listener = listen()
    listener.setblocking(True)
    announce(listener.getsockname()[1])
    subscribers: list[socket.socket] = []
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if connection.recv(1) == b"S":
            connection.setblocking(False)
            subscribers.append(connection)
            continue
        with suppress(ConnectionError):  # the load generator is done
            publish(connection, subscribers)
        for each in (connection, *subscribers):
            each.close()
        subscribers.clear()


if __name__ == "__main__":
    main()
