"""Masking (RFC 6455 section 5.3): every byte a client sends is XORed with a key of four bytes that repeats.

Three ways, because none of them is the fastest everywhere; all give the same bytes.

- One XOR of two big integers. Least overhead, but a long integer does not fit into the processor's caches.
- The same in pieces of 16 KiB; a third less time for a megabyte than in one piece, or by `bytes.translate`.
- numpy, where it is installed (the extra `speed`): twenty times as fast on a megabyte.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from .encoding import BINARY, CLOSE, MAX_SHORT, PING, PONG, TEXT

__all__ = ["mask_frame", "unmask"]

# Up to this size the integers are fastest. Measured with CPython 3.11; the exact value hardly matters, since both other
# ways meet the first one near it.
_INTEGER_LIMIT = 1024

# Not an import statement, because type checkers disagree about it depending on whether numpy is installed. It is done
# at the start and not when first needed: it takes long enough to make every connection of a running server wait.
numpy: ModuleType | None = import_module("numpy") if find_spec("numpy") is not None else None

# An integer times one of these repeats a four-byte key often enough for a payload of that size.
_SMALL, _LARGE, _PIECE = 128, _INTEGER_LIMIT, 16 * 1024
_REPEAT_SMALL, _REPEAT_LARGE, _REPEAT_PIECE = (
    int.from_bytes(bytes((0, 0, 0, 1)) * (size // 4)) for size in (_SMALL, _LARGE, _PIECE)
)

# The first two bytes of every frame that states its length in the second one, without and with the mask bit.
_SHORT_HEADS = {
    bytes((first | reserved, size)): bytes((first | reserved, size | 0x80))
    for first in (TEXT, BINARY, CLOSE, PING, PONG)
    for reserved in (0, 0x40)
    for size in range(MAX_SHORT + 1)
}

# Bytes before a frame that `_mask_in_place` makes: with either length of header, payloads before and after then lie at
# the same distance from a multiple of eight.
_PAD = 4


def unmask(data: bytes, key: bytes, offset: int = 0) -> bytes:
    """Mask or unmask `data`, which is the same thing.

    Args:
      data: the payload, or a part of it.
      key: the four bytes of the frame's masking key.
      offset: where in the payload `data` begins.
    """
    if turn := offset & 3:
        key = key[turn:] + key[:turn]
    if len(data) <= _INTEGER_LIMIT:
        return by_integer(data, key)
    if numpy is None:
        return by_pieces(data, key)
    return by_numpy(data, key)


def mask_frame(frame: bytes, key: bytes) -> bytes | memoryview:
    """Return an unmasked frame as one that is masked with `key`.

    Args:
      frame: one whole frame.
      key: four bytes that nobody can foresee, and never the same ones again (RFC 6455 section 5.3).
    """
    head = _SHORT_HEADS.get(frame[:2])
    if head is not None:
        size = len(frame) - 2
        mask = int.from_bytes(key) * _REPEAT_SMALL >> 8 * (_SMALL - size)
        return head + key + (int.from_bytes(frame[2:]) ^ mask).to_bytes(size)
    start = 10 if frame[1] == 127 else 4 if frame[1] == 126 else 2
    head = bytes((frame[0], frame[1] | 0x80)) + frame[2:start] + key
    if len(frame) <= _INTEGER_LIMIT or numpy is None:
        return head + unmask(frame[start:], key)
    return _mask_in_place(frame, start, head, key)


def _mask_in_place(frame: bytes, start: int, head: bytes, key: bytes) -> memoryview:
    """`mask_frame` where numpy is installed: the one copy that is made is the result.

    numpy is fast with words that lie at multiples of eight. So it begins with the word that the payload begins in, on
    both sides, and the header is written over what that made of the bytes before.
    """
    assert numpy is not None
    before = start & 7
    offset = start - before
    out = numpy.empty(_PAD + len(frame) + 4, numpy.uint8)
    first = _PAD + len(head) - before
    count = (len(frame) - offset) >> 3
    turn = -before & 3
    word = numpy.frombuffer((key[turn:] + key[:turn]) * 2, numpy.uint64)[0]
    end = first + 8 * count
    numpy.bitwise_xor(numpy.frombuffer(frame, numpy.uint64, count, offset), word, out=out[first:end].view(numpy.uint64))
    masked = memoryview(out)
    if rest := frame[offset + 8 * count :]:
        masked[end:] = unmask(rest, key, 8 * count - before)
    masked[_PAD : _PAD + len(head)] = head
    return masked[_PAD:]


def by_integer(data: bytes, key: bytes) -> bytes:
    """`unmask` for at most 1 KiB."""
    size = len(data)
    if size <= _SMALL:
        mask = int.from_bytes(key) * _REPEAT_SMALL >> 8 * (_SMALL - size)
    else:
        mask = int.from_bytes(key) * _REPEAT_LARGE >> 8 * (_LARGE - size)
    return (int.from_bytes(data) ^ mask).to_bytes(size)


@lru_cache(maxsize=4)  # a large frame comes in many parts, with two rotations of its key; 18 KiB each
def _mask_of_piece(key: bytes) -> int:
    return int.from_bytes(key) * _REPEAT_PIECE


def by_pieces(data: bytes, key: bytes) -> bytes:
    """`unmask` for any size, without numpy."""
    mask = _mask_of_piece(key)
    pieces: list[bytes] = []
    for start in range(0, len(data), _PIECE):
        piece = data[start : start + _PIECE]
        size = len(piece)
        if size < _PIECE:
            mask >>= 8 * (_PIECE - size)
        pieces.append((int.from_bytes(piece) ^ mask).to_bytes(size))
    return b"".join(pieces)


def by_numpy(data: bytes, key: bytes) -> bytes:
    """`unmask` for any size but zero, where numpy is installed."""
    assert numpy is not None
    size = len(data)
    body = size & ~7  # whole words of eight bytes; up to seven bytes remain
    out = numpy.empty(size, numpy.uint8)
    words = numpy.frombuffer(data, numpy.uint64, body >> 3)
    numpy.bitwise_xor(words, numpy.frombuffer(key * 2, numpy.uint64)[0], out=out[:body].view(numpy.uint64))
    if body != size:
        out[body:] = numpy.frombuffer(by_integer(data[body:], key), numpy.uint8)
    unmasked: bytes = out.tobytes()
    return unmasked
