"""permessage-deflate, the way in (RFC 7692 section 7.2.2): inflating what the peer has compressed.

A message is compressed as a whole, and the last four bytes of what zlib makes, always 00 00 FF FF, are left out. The
first frame of a compressed message has RSV1 set.

A few bytes can become a thousand times as many, so nothing is ever inflated further than to the first byte
beyond `max_payload`, and that in small steps, so that not even the step that goes too far takes much memory. zlib may
hold back output when it was not given enough room for it, even when it has taken all of its input: a step that filled
its room is followed by another one. The work is bounded as well. The compressed message may not be larger than
incompressible data becomes (`compressed_limit`), and its deflate streams are counted.

A block may say that it is the last one of its stream (BFINAL). Then the rest, if there is one, is another stream, which
knows nothing of what was before (section 7.2.3.4). That is legal, and rare.

Decisions where the standard leaves a choice
* Data that is not valid deflate fails the connection with 1007, as text that is not UTF-8 does: the payload is not what
  its frames say it is.
* So does a stream that ends within the four bytes which belong to the frame format, because then it was cut.
* A compressed message without any payload is an empty message, although a sender should have put a 00 there; so is a
  message that lacks the 00 after its last stream complete.
* What is larger than `max_payload` once inflated fails with 1009, as every message does that is too large.
"""

from __future__ import annotations

import zlib
from codecs import IncrementalDecoder, getincrementaldecoder
from typing import TYPE_CHECKING, Final

from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits

from ..errors import InvalidUTF8, PayloadTooBig, ProtocolError
from .chunks import Chunks
from .encoding import BINARY, MAX_SHORT, TEXT
from .headers import MASKED, NO_LIMIT, scan
from .masking import unmask

if TYPE_CHECKING:
    from .deflate_offer import Agreement

__all__ = ["COMPRESSED", "ENOUGH", "RSV1", "Inflater"]

RSV1: Final = 0x40  # in the first byte of a frame
COMPRESSED: Final = (TEXT | RSV1, BINARY | RSV1)  # first bytes of a compressed message in one frame

_TAIL: Final = b"\x00\x00\xff\xff"

# One step: as much as CPython's zlib module allocates at once, and an input that is short enough for being copied after
# every step that did not use all of it.
_STEP: Final = 32 * 1024
_INPUT: Final = 16 * 1024

# Bytes that compressed messages may become before somebody looks whether to read on: about what a read without
# compression brings at most. A read full of small bombs would else be a hundred times that.
ENOUGH: Final = 64 * 1024

# Streams of one message. A sender may end one with every frame; but each needs some seven kilobytes made ready, and may
# be two bytes long.
_MAX_STREAMS: Final = 1024


class Inflater(Extension):
    """Inflates what one connection receives.

    It is an extension of wsproto that keeps the messages to itself: wsproto sees their frames, and judges them, but as
    if they were empty, so that what was inflated is copied no more often than needed. `take` has the message once its
    last frame is complete. Between two messages, one that has come completely may be given to `take_frame` instead.

    Args:
      agreement: what was agreed with the peer.
      max_payload: bytes of one message, compressed or not; `None` for no limit.
      client: this side is the client.

    Attributes:
      breach: why wsproto was told to fail the connection, once it was.
      compressed_limit: the most bytes that a compressed message may have on the wire.
      inflated: bytes that compressed messages have become; for the caller to set back and look at.
    """

    name = "permessage-deflate"

    def __init__(self, agreement: Agreement, max_payload: int | None, *, client: bool = False) -> None:
        self.breach: ProtocolError | None = None
        self.inflated = 0
        self._limit = NO_LIMIT if max_payload is None else max_payload
        # Incompressible data grows by five bytes for each block, and by an eighth where it is coded all the same.
        self.compressed_limit = self._limit + self._limit // 8 + 1024
        # Negative: without the header of the zlib format.
        self._window_bits = -(agreement.server_max_window_bits if client else agreement.client_max_window_bits)
        self._keeps_context = not (
            agreement.server_no_context_takeover if client else agreement.client_no_context_takeover
        )
        self._stream: zlib._Decompress | None = None
        self._streams = 0  # of this message that have ended
        self._size = 0  # of this message as far as it is known
        self._pending = False  # something came that the tail belongs to
        self._text = False
        self._decoder: IncrementalDecoder | None = None
        self._chunks: Chunks | None = None
        self._message: str | bytes | None = None
        # For wsproto
        self._frame: Opcode | None = None  # the one that was judged and is not complete
        self._open = False  # a fragmented message is
        self._compressed = False  # that message is
        self._inflating = False  # the payload of this frame is for the stream

    def take(self) -> str | bytes | None:
        """Return the message that has just been completed, or `None` if it was not compressed."""
        message, self._message = self._message, None
        return message

    def take_frame(self, data: bytes, position: int, masking: tuple[bool, ...]) -> tuple[str | bytes, int] | None:
        """Inflate a message that has come completely, in one frame whose header is as plain as it can be.

        Args:
          data: what has come; at `position` the frame begins, with one of `COMPRESSED`.
          position: see there.
          masking: whether a frame may be masked.

        Returns:
          The message and the position behind its frame; `None` for any other frame.

        Raises:
          ProtocolError: as `inflate` does.
        """
        start, length = scan(data, position)
        stop = start + length
        masked = data[position + 1] >= MASKED
        shortest = 2 if length <= MAX_SHORT else 4 if length < 1 << 16 else 10
        plain = masked in masking and start - position == (shortest + 4 if masked else shortest)
        if not plain or stop > len(data) or length > self.compressed_limit:
            return None
        payload = data[start:stop]
        if masked and payload:
            payload = unmask(payload, data[start - 4 : start])
        return self.inflate(payload, text=data[position] == TEXT | RSV1), stop

    def inflate(self, payload: bytes, *, text: bool) -> str | bytes:
        """Inflate the payload of a message that came in one frame.

        Raises:
          ProtocolError: it is too large, or corrupt, or not UTF-8; nothing more can be inflated.
        """
        self._begin(text)
        if not payload:
            return self._join()
        data = payload + _TAIL
        if len(data) > _INPUT:
            self._feed(data, last=True)
            return self._join()
        piece, rest, full = self._step(data, True)
        if rest or full:
            self._add(piece)
            self._drain(rest, full=full, last=True)
            return self._join()
        return self._message_of(piece)

    # The hooks of wsproto

    def enabled(self) -> bool:
        """Always: what was not agreed on is not made."""
        return True

    def offer(self) -> bool:
        """Nothing: the opening handshake is not wsproto's."""
        return False

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        """Note what kind of frame comes; wsproto may show one header several times."""
        if self._frame is None:
            self._frame = opcode
            if not opcode.iscontrol():
                self._begin_frame(opcode, rsv.rsv1, payload_length)
        # Elsewhere the bit has no meaning, which wsproto takes as an error.
        return self._verdict() or RsvBits(opcode in (Opcode.TEXT, Opcode.BINARY), False, False)

    def frame_inbound_payload_data(self, proto: FrameDecoder | FrameProtocol, data: bytes) -> bytes | CloseReason:
        """Inflate a part of a payload."""
        if self._frame is None or self._frame.iscontrol() or not self._inflating:
            return data
        try:
            self._feed(data, last=False)
        except ProtocolError as error:
            self.breach = error
        return self._verdict() or b""

    def frame_inbound_complete(self, proto: FrameDecoder | FrameProtocol, fin: bool) -> CloseReason | None:
        """End a frame, and with the last frame the message; control frames between them change nothing."""
        frame, self._frame = self._frame, None
        if frame is None or frame.iscontrol():
            return None
        self._open = not fin
        if fin and self._inflating:
            try:
                self._message = self._finish()
            except ProtocolError as error:
                self.breach = error
        return self._verdict()

    def _begin_frame(self, opcode: Opcode, rsv1: bool, length: int) -> None:
        if opcode is Opcode.CONTINUATION:
            self._inflating = self._open and self._compressed
        elif self._open:
            self._inflating = False  # wsproto will refuse it
        else:
            self._begin(opcode is Opcode.TEXT)
            self._inflating = self._compressed = rsv1
        if not self._inflating:
            self._count(length)

    def _count(self, length: int) -> None:
        """Judge a message that is not compressed, since `compressed_limit` is too much for that."""
        self._size += length
        if self._size > self._limit:
            self.breach = _too_big(self._size, self._limit)

    def _verdict(self) -> CloseReason | None:
        return None if self.breach is None else CloseReason(self.breach.code)

    # One message

    def _begin(self, text: bool) -> None:
        self._text = text
        self._size = self._streams = 0
        self._pending = False

    def _finish(self) -> str | bytes:
        """End a message of which all that came has been fed."""
        if self._pending:
            self._feed(_TAIL, last=True)
        return self._join()

    def _join(self) -> str | bytes:
        chunks, self._chunks = self._chunks, None
        self._decoder = None
        return self._message_of(b"" if chunks is None else chunks.join())

    def _message_of(self, payload: bytes) -> str | bytes:
        if not self._keeps_context:
            self._stream = None
        self.inflated += len(payload)
        if not self._text:
            return payload
        try:
            return payload.decode()
        except UnicodeDecodeError as error:
            raise InvalidUTF8(str(error)) from error

    def _feed(self, data: bytes, *, last: bool) -> None:
        """Inflate a part of the message; the last part has the tail, and `last` must say so."""
        position = 0
        while position < len(data):
            end = position + _INPUT
            if end + len(_TAIL) >= len(data):  # the tail stays in one piece
                end = len(data)
            self._drain(data[position:end], full=True, last=last and end == len(data))
            position = end

    def _drain(self, rest: bytes, *, full: bool, last: bool) -> None:
        while rest or full:
            piece, rest, full = self._step(rest, last)
            self._add(piece)

    def _step(self, data: bytes, last: bool) -> tuple[bytes, bytes, bool]:
        """Return some output, the input that is left, and whether there may be more output even without input."""
        stream = self._stream
        if stream is None:
            stream = self._stream = zlib.decompressobj(self._window_bits)
        self._pending = True
        room = self._limit - self._size + 1
        if room > _STEP:
            room = _STEP
        try:
            piece = stream.decompress(data, room)
        except zlib.error as error:
            raise _corrupt() from error
        size = len(piece)
        self._size += size
        if self._size > self._limit:
            raise _too_big(self._size, self._limit)
        if not stream.eof:
            return piece, stream.unconsumed_tail, size == room
        return piece, self._end_stream(stream.unused_data, last), False

    def _end_stream(self, rest: bytes, last: bool) -> bytes:
        """Return what is to be inflated by the next stream."""
        self._stream = None
        self._pending = False
        self._streams += 1
        if self._streams > _MAX_STREAMS:
            raise ProtocolError(
                CloseReason.POLICY_VIOLATION.value, f"a message of more than {_MAX_STREAMS} deflate streams"
            )
        if last and len(rest) <= len(_TAIL):
            # Whoever ended a stream with the message may have left the tail without a block that it belongs to.
            if rest and rest != _TAIL:
                raise _corrupt()
            return b""
        return rest

    def _add(self, piece: bytes) -> None:
        if not piece:
            return
        if self._chunks is None:
            self._chunks = Chunks()
            if self._text:
                self._decoder = getincrementaldecoder("utf-8")()
        self._chunks.add(piece)
        if self._decoder is not None:
            try:
                self._decoder.decode(piece)  # only the verdict counts; see `framing`
            except UnicodeDecodeError as error:
                raise InvalidUTF8(str(error)) from error


def _too_big(size: int, limit: int) -> PayloadTooBig:
    return PayloadTooBig(f"a message of at least {size} bytes; the limit is {limit}")


def _corrupt() -> ProtocolError:
    return ProtocolError(CloseReason.INVALID_FRAME_PAYLOAD_DATA.value, "the compressed data is corrupt")
