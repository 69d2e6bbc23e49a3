"""The worst that one connection can take, as `docs/topics/memory.md` states it."""

from __future__ import annotations

from trio_crowws._options import Options

__all__ = ["IDLE", "READ", "TLS", "handshake_bytes", "receiving_bytes", "sending_bytes", "worst_bytes"]

KIB = 1024

READ = 64 * KIB
"""One read from the socket."""

IDLE = 16 * KIB
"""The objects of a connection that does nothing."""

TLS = 256 * KIB
"""What TLS keeps for itself: its state, and two buffers that each hold one read."""


def receiving_bytes(options: Options, *, text: bool) -> int:
    """What the peer has sent and the handler has not finished with."""
    assert options.max_payload is not None
    waiting = options.read_ahead + options.max_payload + READ
    handled = options.max_payload
    return (4 if text else 1) * (waiting + handled)


def sending_bytes(options: Options, *, largest: int, senders: int = 0, rooms: int = 0) -> int:
    """What was sent and the peer has not taken: `largest` is the size of the application's own largest message."""
    queued = max(options.send_limit, options.send_high_water + largest)
    return 2 * queued + senders * largest + rooms * largest


def handshake_bytes(options: Options) -> int:
    """What is kept of a request."""
    return 6 * options.max_header_bytes


def worst_bytes(options: Options, *, text: bool, largest: int, senders: int = 0, rooms: int = 0) -> int:
    """All of it."""
    return (
        receiving_bytes(options, text=text)
        + sending_bytes(options, largest=largest, senders=senders, rooms=rooms)
        + handshake_bytes(options)
        + IDLE
    )
