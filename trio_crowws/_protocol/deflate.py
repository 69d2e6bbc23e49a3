"""permessage-deflate, the way in (RFC 7692 section 7.2.2): inflating what the peer has compressed.

A message is compressed as a whole, and the last four bytes of what zlib makes, always 00 00 FF FF, are left out. The
first frame of a compressed message has RSV1 set.

A few bytes can become a thousand times as many, so nothing is ever inflated further than to the first byte
beyond `max_payload`, and that in small steps, so that not even the step that goes too far takes much memory. zlib may
hold back output when it was not given enough room for it, even when it has taken all of its input: a step that filled
its room is followed by another one. The work is bounded as well. The compressed message may not be larger than
incompressible data becomes (`compressed_limit`), and its deflate streams are counted.

All of it may still take long, so it is done in turns: each step is counted as `work`, by what it costs. Beyond `TURN`
no other message is begun. A message that has been begun goes on for up to four turns, because each interruption costs a
pass of the scheduler; then its rest waits until `go_on` is called again. Until then the inflater is `busy`, and nothing
else of the connection may be read. So what came of one message and is not inflated is never more than one read.

A block may say that it is the last one of its stream (BFINAL). Then the rest, if there is one, is another stream, which
knows nothing of what was before (section 7.2.3.4). That is legal, and rare.

Decisions where the standard leaves a choice
* Data that is not valid deflate fails the connection with 1007, as text that is not UTF-8 does: the payload is not what
  its frames say it is.
* So does a stream that ends within the four bytes which belong to the frame format, because then it was cut.
* A compressed message without any payload is an empty message, although a sender should have put a 00 there; so is a
  message that lacks the 00 after its last stream complete.
* A message may have 1024 deflate streams. Senders end one with a message, or with a frame of it, if at all.
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

__all__ = ["COMPRESSED", "RSV1", "TURN", "Inflater"]

RSV1: Final = 0x40  # in the first byte of a frame
COMPRESSED: Final = (TEXT | RSV1, BINARY | RSV1)  # first bytes of a compressed message in one frame

_TAIL: Final = b"\x00\x00\xff\xff"

# One step: as much as CPython's zlib module allocates at once, and an input that is short enough for being copied after
# every step that did not use all of it.
_STEP: Final = 32 * 1024
_INPUT: Final = 16 * 1024

# Work is counted in microseconds of a usual machine, roughly.
TURN: Final = 512  # at most, and one message, before somebody looks whether others have to have their turn
_TURNS: Final = 4  # of one message, and one step, before it has to wait
_STEP_WORK: Final = 2
_BYTES_FOR_ONE: Final = 256  # bytes taken and bytes made; so a turn makes 64 KiB, or up to twice that if they are zeros
_STREAM_WORK: Final = 8  # making some seven kilobytes ready, for what may be two bytes long

_MAX_STREAMS: Final = 1024


class Inflater(Extension):
    """Inflates what one connection receives.

    It is an extension of wsproto that keeps the messages to itself: wsproto sees their frames, and judges them, but as
    if they were empty, so that what was inflated is copied no more often than needed. What wsproto has shown to it is
    inflated by `go_on`. Between two messages, one that has come completely may be given to `take_frame` instead.

    Args:
      agreement: what was agreed with the peer.
      max_payload: bytes of one message, compressed or not; `None` for no limit.
      client: this side is the client.

    Attributes:
      breach: why wsproto was told to fail the connection, once it was.
      busy: `go_on` has something to do.
      compressed_limit: the most bytes that a compressed message may have on the wire.
      work: what was done, in units of `TURN`; for the caller to set back and look at.
    """

    name = "permessage-deflate"

    def __init__(self, agreement: Agreement, max_payload: int | None, *, client: bool = False) -> None:
        self.breach: ProtocolError | None = None
        self.busy = False
        self.work = 0
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
        # What is to be inflated: first the rest of the last step, or the output that it had no room for; then the
        # input, step by step; then, if the message ends there, its tail.
        self._rest = b""
        self._full = False
        self._input = b""
        self._position = 0
        self._ending = False
        self._tail = False  # has been begun
        # For wsproto
        self._frame: Opcode | None = None  # the one that was judged and is not complete
        self._open = False  # a fragmented message is
        self._compressed = False  # that message is
        self._inflating = False  # the payload of this frame is for the stream

    def go_on(self) -> str | bytes | None:
        """Inflate what came, for a few turns at most; return the message if that was all of it.

        Raises:
          ProtocolError: as `inflate` does.
        """
        most = _TURNS * TURN
        while self.work < most:
            if self._rest or self._full:
                piece, self._rest, self._full = self._step(self._rest, self._tail)
                self._add(piece)
            elif self._input:
                start, self._position = self._position, self._position + _INPUT
                self._rest = self._input[start : self._position]
                if self._position >= len(self._input):
                    self._input, self._position = b"", 0
            elif self._pending and self._ending and not self._tail:
                self._rest, self._tail = _TAIL, True
            elif self._ending:
                return self._join()
            else:
                break
        self.busy = self._ending or self._full or bool(self._rest or self._input)
        return None

    def take(self) -> str | bytes | None:
        """As `go_on`, but for as many turns as it takes."""
        message = None
        while self.busy:
            self.work = 0
            message = self.go_on()
        return message

    def take_frame(
        self, data: bytes, position: int, masking: tuple[bool, ...]
    ) -> tuple[str | bytes | None, int] | None:
        """Inflate a message that has come completely, in one frame whose header is as plain as it can be.

        Args:
          data: what has come; at `position` the frame begins, with one of `COMPRESSED`.
          position: see there.
          masking: whether a frame may be masked.

        Returns:
          The message, as `inflate` does, and the position behind its frame; `None` for any other frame.

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

    def inflate(self, payload: bytes, *, text: bool) -> str | bytes | None:
        """Inflate the payload of a message that came in one frame; `None` if it takes more than a few turns.

        Raises:
          ProtocolError: it is too large, or corrupt, or not UTF-8; nothing more can be inflated.
        """
        self._begin(text)
        if 0 < len(payload) <= _INPUT:
            piece, rest, full = self._step(payload + _TAIL, True)
            if not rest and not full:  # nearly always
                return self._message_of(piece)
            self._rest, self._full, self._tail = rest, full, True
            self._add(piece)
        else:
            self._input = payload
        self._ending = True
        return self.go_on()

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
        """Keep a part of a payload, to be inflated."""
        if self._frame is None or self._frame.iscontrol() or not self._inflating:
            return data
        self._input += data
        self.busy = True
        return b""

    def frame_inbound_complete(self, proto: FrameDecoder | FrameProtocol, fin: bool) -> CloseReason | None:
        """End a frame, and with the last frame the message; control frames between them change nothing."""
        frame, self._frame = self._frame, None
        if frame is None or frame.iscontrol():
            return None
        self._open = not fin
        self._ending = fin and self._inflating
        self.busy = self.busy or self._ending
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
        self._pending = self._tail = False

    def _join(self) -> str | bytes:
        chunks, self._chunks = self._chunks, None
        self._decoder = None
        self._ending = self.busy = False
        return self._message_of(b"" if chunks is None else chunks.join())

    def _message_of(self, payload: bytes) -> str | bytes:
        if not self._keeps_context:
            self._stream = None
        if not self._text:
            return payload
        try:
            return payload.decode()
        except UnicodeDecodeError as error:
            raise InvalidUTF8(str(error)) from error

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
        rest = stream.unconsumed_tail
        self._size += size
        self.work += _STEP_WORK + (size + len(data) - len(rest)) // _BYTES_FOR_ONE
        if self._size > self._limit:
            raise _too_big(self._size, self._limit)
        if not stream.eof:
            return piece, rest, size == room
        return piece, self._end_stream(stream.unused_data, last), False

    def _end_stream(self, rest: bytes, last: bool) -> bytes:
        """Return what is to be inflated by the next stream."""
        self._stream = None
        self._pending = False
        self._streams += 1
        self.work += _STREAM_WORK
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
