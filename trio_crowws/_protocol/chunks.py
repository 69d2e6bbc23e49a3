"""A payload that comes in pieces."""

from __future__ import annotations

from typing import Final

__all__ = ["Chunks"]

# Smaller pieces than this are copied together, so that a peer who sends a few bytes at a time does not make this side
# keep an object for each of them.
_SMALL: Final = 4096

# A bytearray that grows asks for up to an eighth more than it needs. At this size a new one is begun, so that the
# surplus stays small whatever the payload.
_FULL: Final = 64 * 1024


class Chunks:
    """A payload that comes in pieces; holds little more than its bytes however small they are."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[bytes | bytearray] = []

    def add(self, chunk: bytes) -> None:
        """Append a piece of any size."""
        parts = self._parts
        if len(chunk) >= _SMALL:
            parts.append(chunk)
        elif parts and isinstance(parts[-1], bytearray) and len(parts[-1]) < _FULL:
            parts[-1] += chunk
        else:
            parts.append(bytearray(chunk))

    def join(self) -> bytes:
        """Return all of it in one piece."""
        return b"".join(self._parts)
