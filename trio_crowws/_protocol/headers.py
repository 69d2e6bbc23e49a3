"""The header of a frame: where its payload begins, and how long it is (RFC 6455 section 5.2)."""

from __future__ import annotations

from typing import Final

from .encoding import MAX_SHORT

__all__ = ["LENGTH_FIELD", "MASKED", "NO_LIMIT", "mask_header", "scan"]

MASKED: Final = 0x80  # in the second byte; the rest of that is the length, or says where the length stands
LENGTH_FIELD: Final = 0x7F
NO_LIMIT: Final = (1 << 63) - 1  # a length is a 63-bit number


def mask_header(header: bytes) -> bytes:
    """The same header with the mask bit set."""
    return bytes((header[0], header[1] | MASKED)) + header[2:]


def scan(data: bytes, position: int) -> tuple[int, int]:
    """Where a frame's payload begins (beyond the end if the header is incomplete), and how long it is."""
    start = position + 2
    if start > len(data):
        return start, 0
    second = data[position + 1]
    length = second & LENGTH_FIELD
    if length > MAX_SHORT:
        field = start
        start += 2 if length == 126 else 8
        length = int.from_bytes(data[field:start])
    return start + (4 if second >= MASKED else 0), length
