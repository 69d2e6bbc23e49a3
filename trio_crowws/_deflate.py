"""How messages are compressed: the value of the option `compression`, checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

__all__ = ["MAX_WINDOW_BITS", "MIN_WINDOW_BITS", "Deflate"]

MAX_WINDOW_BITS: Final = 15  # what both sides use unless they agree otherwise
MIN_WINDOW_BITS: Final = 9  # of a window that zlib can compress with; it inflates with 8, too

_RANGES: Final[Mapping[str, tuple[int, int | None]]] = {
    "threshold": (0, None),
    "level": (1, 9),
    "mem_level": (1, 9),
    "server_max_window_bits": (MIN_WINDOW_BITS, MAX_WINDOW_BITS),
    "client_max_window_bits": (MIN_WINDOW_BITS, MAX_WINDOW_BITS),
}
_FLAGS: Final = ("server_no_context_takeover", "client_no_context_takeover")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Deflate:
    """How messages are compressed (permessage-deflate, RFC 7692) with peers that can do that as well.

    The defaults suit a server with many connections. It keeps no context between the messages it sends, so it needs no
    compressor per connection and sends one compressed frame to a whole room. Level 3 takes 60 to 80% of the time of
    zlib's usual 6 and makes frames that are 5 to 15% larger. Windows of 12 bits (4 KiB) find nearly all that larger
    ones find in messages of up to 16 KiB.

    A connection whose client compresses needs about `8 KiB + 2**client_max_window_bits` bytes from its first compressed
    message on: 12 KiB with the defaults, 40 KiB where the client cannot limit its window, and nothing between messages
    where the client has offered to keep no context. With `server_no_context_takeover=False` it needs another
    `6 KiB + 2**(server_max_window_bits + 2) + 2**(mem_level + 9)`: 38 KiB with the defaults, 262 KiB with 15 and 8.

    What concerns the server, a server does with every client. What concerns the client, it can have of those that offer
    it: a server never answers with a parameter that was not offered.

    The names keep their sides at a client. There what is said about the server is a wish: whatever the server answers
    is agreed to, and what it may send then costs `8 KiB + 2**15` bytes, or less if it limits itself. What is said about
    the client, the client does by itself. It keeps a context by default, and so has a compressor for each connection.

    Raises:
      TypeError: a value is of the wrong type.
      ValueError: a value is out of range.
    """

    threshold: int = 1024
    """Messages of fewer bytes are sent as they are."""
    level: int = 3
    """1, the fastest, to 9, the smallest."""
    mem_level: int = 5
    """1 to 9: how much memory zlib may use beyond the window."""
    server_max_window_bits: int = 12
    """9 to 15: the window of what the server sends has at most two to the power of this bytes. A client tells the
    server only of less than 12, because some servers refuse the handshake then."""
    client_max_window_bits: int = 12
    """9 to 15: the same for what the client sends; 15 where the client does not offer to limit it."""
    server_no_context_takeover: bool = True
    """The server compresses each message by itself. A client asks for it where it asks for a smaller window."""
    client_no_context_takeover: bool = False
    """The client compresses each message by itself. A server can have that only of a client that offers it."""

    def __post_init__(self) -> None:
        for name, (minimum, maximum) in _RANGES.items():
            value = getattr(self, name)
            allowed = f"an int of at least {minimum}" if maximum is None else f"an int from {minimum} to {maximum}"
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(_refusal(name, value, allowed))
            if value < minimum or (maximum is not None and value > maximum):
                raise ValueError(_refusal(name, value, allowed))
        for name in _FLAGS:
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise TypeError(_refusal(name, value, "True or False"))


def _refusal(name: str, value: object, allowed: str) -> str:
    return f"Deflate option {name}={value!r} is not allowed; it must be {allowed}"
