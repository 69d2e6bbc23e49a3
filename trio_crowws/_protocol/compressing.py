"""permessage-deflate, the way out (RFC 7692 section 7.2.1): from a plain frame to a compressed one.

A message is made into a plain frame first, whether it will be compressed or not: that checks its type, and copies what
the application may change while a `send` waits. What is compressed then is the payload of that frame. So a frame can be
kept, counted and shared before anybody has decided how it will travel.

Where no context is kept, one zlib object does for all connections, because the full flush behind every message makes it
forget what it has seen, and that costs less than making a new object. Such a frame is the same for all connections that
have the same setting.

Where a context is kept, what was compressed must be sent, and in that order: the next message may refer to it. So a
message is compressed in the very step in which its frame is written, and not before. (A compressor may start afresh at
any time. What it makes then refers to nothing that came earlier, so dropping one loses nothing but context.)
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from .deflate import RSV1
from .encoding import frame_header

if TYPE_CHECKING:
    from .deflate_offer import Setting

__all__ = ["Compressor", "Packer", "Packers", "check_compress", "most"]

_EMPTY: Final = b"\x00"  # a message without payload, without its tail
_LENGTHS: Final = {126: 4, 127: 10}  # bytes of a header, by its second byte; 2 for all others


class Compressor:
    """Compresses payloads, each as a whole.

    One that keeps no context may serve any number of connections; one that does belongs to one connection, and all that
    it has compressed must be sent, in that order. Neither is for more than one thread.

    Args:
      setting: how, as in `Agreement.setting`.

    Attributes:
      setting: the same.
    """

    __slots__ = ("_flush", "_stream", "setting")

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._stream: zlib._Compress | None = None  # made when first needed; it is not small
        self._flush = zlib.Z_SYNC_FLUSH if setting.keeps_context else zlib.Z_FULL_FLUSH

    def compress(self, payload: bytes | bytearray | memoryview) -> bytes:
        """Return `payload` compressed, without the last four bytes."""
        if not payload:  # zlib does nothing where there is nothing to flush, so it is not asked
            return _EMPTY
        # Taken out meanwhile: what is interrupted half-way, by KeyboardInterrupt or for want of memory, must not leave
        # a part of one peer's message in what another one gets.
        stream, self._stream = self._stream, None
        if stream is None:
            bits, level, mem_level, _ = self.setting
            stream = zlib.compressobj(level, zlib.DEFLATED, -bits, mem_level)
        compressed = (stream.compress(payload) + stream.flush(self._flush))[:-4]
        self._stream = stream
        return compressed


class Packer:
    """Decides which messages are compressed, and makes their frames.

    Args:
      compressor: of one connection, or shared.
      threshold: messages of fewer bytes are not compressed unless somebody asks for it.

    Attributes:
      compressor: the same. Those who share one get equal frames.
      keeps_context: what was packed must be sent, in that order.
    """

    __slots__ = ("_threshold", "compressor", "keeps_context")

    def __init__(self, compressor: Compressor, threshold: int) -> None:
        self.compressor = compressor
        self.keeps_context = compressor.setting.keeps_context
        self._threshold = threshold

    def wants(self, frame: bytes, compress: bool | None) -> bool:
        """Whether the message in `frame` is to be compressed; `compress` as in `Connection.send`."""
        return len(frame) - _LENGTHS.get(frame[1], 2) >= self._threshold if compress is None else compress

    def pack(self, frame: bytes) -> bytes:
        """Return the plain `frame` compressed; as it is where it would not get smaller and no context is kept."""
        start = _LENGTHS.get(frame[1], 2)
        compressed = self.compressor.compress(memoryview(frame)[start:])
        if self.keeps_context or len(compressed) < len(frame) - start:
            return frame_header(frame[0] | RSV1, len(compressed)) + compressed
        return frame


def check_compress(compress: object) -> None:
    """Check what somebody has said about one message; for one with a secret in it a mistake would matter.

    Raises:
      TypeError: it is not True, False or None.
    """
    if compress is not None and not isinstance(compress, bool):
        raise TypeError(f"compress={compress!r} is not allowed; it must be True, False or None")


def most(size: int) -> int:
    """How large a frame of `size` bytes can become: what cannot be compressed gets larger."""
    return size + size // 8 + 64


class Packers:
    """The packers of one application: one for all connections that keep no context and agree in everything else."""

    def __init__(self) -> None:
        self._compressors: dict[Setting, Compressor] = {}
        self._packers: dict[tuple[Setting, int], Packer] = {}

    def get(self, setting: Setting, threshold: int) -> Packer:
        """The packer for a connection."""
        if setting.keeps_context:
            return Packer(Compressor(setting), threshold)
        packer = self._packers.get((setting, threshold))
        if packer is None:
            compressor = self._compressors.setdefault(setting, Compressor(setting))
            packer = self._packers[setting, threshold] = Packer(compressor, threshold)
        return packer
