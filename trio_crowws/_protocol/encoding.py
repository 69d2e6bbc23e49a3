"""Frames to the peer: from a message to the bytes of one unmasked frame (RFC 6455 section 5.2).

Only a server's frames are made here; a client's are masked. Every function either returns a whole frame or raises, so a
wrong argument never leaves half a frame behind.
"""

from __future__ import annotations

from struct import Struct

from .._closeinfo import check_close
from .._types import BytesLike, MessageLike

__all__ = [
    "BINARY",
    "CLOSE",
    "MAX_SHORT",
    "PING",
    "PONG",
    "TEXT",
    "encode_binary",
    "encode_close",
    "encode_message",
    "encode_ping",
    "encode_pong",
    "encode_text",
    "frame_header",
]

# The first byte of an unfragmented frame without reserved bits: FIN and the opcode.
TEXT, BINARY, CLOSE, PING, PONG = 0x81, 0x82, 0x88, 0x89, 0x8A

MAX_SHORT = 125  # the largest length that stands in the second byte itself, and the most a control frame carries
_MAX_16_BIT = 65535

_TEXT_SHORT = tuple(bytes((TEXT, size)) for size in range(MAX_SHORT + 1))
_BINARY_SHORT = tuple(bytes((BINARY, size)) for size in range(MAX_SHORT + 1))
_pack_16_bit = Struct("!BBH").pack
_pack_64_bit = Struct("!BBQ").pack


def encode_message(data: MessageLike) -> bytes:
    """Return the frame of a message: text for a `str`, binary for everything else.

    Raises:
      TypeError: `data` is none of the four types.
      ValueError: a lone surrogate in a `str` (`UnicodeEncodeError`).
    """
    if isinstance(data, str):
        return encode_text(data)
    if isinstance(data, (bytes, bytearray, memoryview)):
        return encode_binary(data)
    raise TypeError(f"a message must be str, bytes, bytearray or memoryview, not {type(data).__name__}")


def encode_text(text: str) -> bytes:
    """Return the frame of a text message; `UnicodeEncodeError`, a `ValueError`, where there is a lone surrogate."""
    payload = text.encode()
    size = len(payload)
    if size <= MAX_SHORT:
        return _TEXT_SHORT[size] + payload
    return frame_header(TEXT, size) + payload


def encode_binary(data: BytesLike) -> bytes:
    """Return the frame of a binary message; a `memoryview` of any shape and item size is sent as its raw bytes."""
    if isinstance(data, memoryview):
        # len() counts items, and only what lies in one piece can be joined.
        size = data.nbytes
        if not data.c_contiguous:
            data = data.tobytes()
    else:
        size = len(data)
    if size <= MAX_SHORT:
        return _BINARY_SHORT[size] + data
    return frame_header(BINARY, size) + data


def frame_header(first: int, size: int) -> bytes:
    """Return the header of an unmasked frame.

    Args:
      first: the first byte: FIN, the reserved bits and the opcode.
      size: bytes of payload that follow.
    """
    if size <= MAX_SHORT:
        return bytes((first, size))
    if size <= _MAX_16_BIT:
        return _pack_16_bit(first, 126, size)
    return _pack_64_bit(first, 127, size)


def encode_ping(payload: BytesLike) -> bytes:
    """Return a ping frame; `ValueError` for a payload of more than 125 bytes (RFC 6455 section 5.5)."""
    return _encode_control(PING, payload)


def encode_pong(payload: BytesLike) -> bytes:
    """Return a pong frame; `ValueError` for a payload of more than 125 bytes (RFC 6455 section 5.5)."""
    return _encode_control(PONG, payload)


def encode_close(code: int | None, reason: str = "") -> bytes:
    """Return a Close frame (RFC 6455 section 5.5.1).

    Args:
      code: one of the codes that may travel, or `None` for a frame without a payload.
      reason: at most 123 bytes as UTF-8; `check_close` cuts one to that.

    Raises:
      TypeError: `code` is not an int, or `reason` is not a str.
      ValueError: the code must not be sent, there is a reason without a code, or the reason is too long or holds a lone
        surrogate.
    """
    if code is None:
        if reason:
            raise ValueError("a close reason needs a close code")
        return bytes((CLOSE, 0))
    code, _ = check_close(code, reason)
    return _encode_control(CLOSE, code.to_bytes(2) + reason.encode())


def _encode_control(first: int, payload: BytesLike) -> bytes:
    if not isinstance(payload, (bytes, bytearray, memoryview)):
        raise TypeError(f"the payload must be bytes, bytearray or memoryview, not {type(payload).__name__}")
    data = bytes(payload)
    if len(data) > MAX_SHORT:
        raise ValueError(f"a control frame carries at most {MAX_SHORT} bytes, not {len(data)}")
    return bytes((first, len(data))) + data
