"""The worst that one connection can take, as `docs/topics/memory.md` states it."""

from __future__ import annotations

from trio_crowws import Deflate
from trio_crowws._options import Options

__all__ = [
    "IDLE",
    "READ",
    "TLS",
    "compression_bytes",
    "handshake_bytes",
    "receiving_bytes",
    "sending_bytes",
    "worst_bytes",
]

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
    waiting = options._read_ahead + options.max_payload + (READ if options.compression is None else 2 * READ)
    handled = options.max_payload
    return (4 if text else 1) * (waiting + handled)


def sending_bytes(options: Options, *, largest: int, senders: int = 0, rooms: int = 0) -> int:
    """What was sent and the peer has not taken: `largest` is the size of the application's own largest message."""
    queued = max(options.send_limit, options.send_high_water + largest)
    return 2 * queued + senders * largest + rooms * largest


def compression_bytes(deflate: Deflate, *, client_bits: int | None = None, client_keeps_context: bool = True) -> int:
    """What zlib keeps between two messages; `client_bits` where the client has not agreed to limit its window."""
    inflating = 8 * KIB + 2 ** (client_bits or deflate.client_max_window_bits)
    deflating = 6 * KIB + 2 ** (deflate.server_max_window_bits + 2) + 2 ** (deflate.mem_level + 9)
    return (inflating if client_keeps_context else 0) + (0 if deflate.server_no_context_takeover else deflating)


def handshake_bytes(options: Options) -> int:
    """What is kept of a request."""
    return 6 * options.max_header_bytes


def worst_bytes(options: Options, *, text: bool, largest: int, senders: int = 0, rooms: int = 0) -> int:
    """All of it."""
    return (
        receiving_bytes(options, text=text)
        + sending_bytes(options, largest=largest, senders=senders, rooms=rooms)
        + handshake_bytes(options)
        + (0 if options.compression is None else compression_bytes(options.compression, client_bits=15))
        + IDLE
    )
