"""Bytes from the peer to messages and control events (RFC 6455 sections 5 to 8).

Theory of operation
-------------------

wsproto is the referee: it decides what is legal. But nearly every frame of a living connection is as plain as a frame
can be, and for those there is nothing to decide and wsproto's care costs ten times what the work itself costs. So there
are two lanes, and this module is mostly about when to change between them.

*Plain* is a text, binary, ping, pong or Close frame that is not fragmented, has no reserved bit set, is masked as it
must be, states its length in the shortest form, and is within the limits. Such a frame is decoded right here.
*Everything else* goes to the referee, a wsproto `Connection` with the `Limits` extension that is made when first
needed: fragmented messages and all that comes between their frames, and whatever is wrong in any way. The fast lane
does not fail a connection: it declines a frame, and wsproto produces the close code and the reason.

For the lanes to change, wsproto must stand at the beginning of a frame whenever the fast lane runs. What it once got
cannot be taken back, so it is given exactly one frame at a time (in pieces, as they come), and it owns the connection
until that frame, and the message which that frame may have opened, is complete. `FrameReader._owner` says whose turn it
is: nobody's (a frame begins and no message is open: the fast lane may look), a `_Partial`'s, or the referee's.

Where permessage-deflate was agreed on there is an `Inflater`, which serves both lanes: a compressed message that is not
fragmented and has come completely is given to it right here, and for all others it is an extension of the referee's
wsproto. It keeps what it inflates until the message is complete. It has only one verdict on one message, and once it
has seen a part of it nobody else can judge the rest, so here alone the fast lane reports a fault.

Turns. What a frame costs depends on its kind, by a factor of a thousand for the same number of bytes. So a call of
`receive` ends when it has done a certain amount of work: so many plain frames, and as many of those for the referee and
of the compressed messages as cost one turn together. A compressed message that costs several is inflated in parts.

Failing early. A bad frame must be known as bad from its first bad byte, not from its last (that is what strict
conformance asks, and it is what keeps memory bounded):

- The fast lane needs to see a whole header. Where the part that has come is already not plain, the referee gets that
  part at once and the rest as it comes: a reserved opcode fails at the second byte, an excessive length at its last.
- A plain data frame whose header is here and whose end is not is a `_Partial`: it collects chunks. For text it runs a
  decoder over them, since invalid UTF-8 in the first bytes of a long frame must not wait for the last ones. When that
  decoder objects, the referee gets the frame so far and says why.
- Otherwise, what may remain unparsed is shorter than a header or a control frame, so joining it to the next read costs
  nothing, even when bytes come one by one.

Memory. Between two calls a reader holds at most: what has come of one message (its headers may not declare more than
`max_payload`, and it is inflated no further than that), one incomplete header or control frame, and what `limit` left
over of the last read. After a Close frame or a fault it holds nothing and drops whatever comes.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable
from typing import Final

from .._closeinfo import check_close
from ..errors import ProtocolError
from .chunks import Chunks
from .deflate import COMPRESSED, TURN, Inflater
from .encoding import BINARY, CLOSE, MAX_SHORT, PING, PONG, TEXT, frame_header
from .events import CloseReceived, Event, Fault, Ping, Pong
from .headers import LENGTH_FIELD, MASKED, NO_LIMIT, mask_header
from .limits import ControlRate, Limits
from .masking import unmask
from .referee import Referee

__all__ = ["FrameReader"]

_from_bytes = int.from_bytes  # looked up for every frame
_DATA: Final = (TEXT, BINARY)
_CONTROL: Final = (PING, PONG, CLOSE)
_ZERO_KEY: Final = bytes(4)
_REFERRED: Final = 12  # the work of the referee on one frame, in units of `TURN`

# A key, as an integer, times one of these repeats it for itself and a payload of that length, and the shift cuts what
# is too much. So the XOR with key and payload in one integer takes the key away and the mask off.
_REPEAT: Final = tuple(sum(1 << 32 * word for word in range((size + 7) // 4)) for size in range(MAX_SHORT + 1))
_SURPLUS: Final = tuple(8 * (-size % 4) for size in range(MAX_SHORT + 1))


class FrameReader:
    """Turns what the peer sends into whole messages and control events.

    Args:
      max_payload: bytes of one message (of text, too, it is bytes that count); `None` for no limit.
      max_fragments: frames of one message, empty ones included; `None` for no limit.
      control_rate: control frames and empty fragments, per second and at once; `None` for no limit.
      allow_unmasked: take a client's frames without a mask, against RFC 6455 section 5.1.
      clock: seconds that never go backwards, for `control_rate`.
      client: this side is the client, so the peer's frames must not be masked.
      inflater: for compressed messages, with the same `max_payload`; `None` if there must not be any.

    Attributes:
      backlog: the last call of `receive` stopped at its limit and unread bytes remain: call it again, without data.
      finished: a `CloseReceived` or a `Fault` was returned; there will be no more events.
    """

    __slots__ = (
        "_allow_unmasked",
        "_at_rest",
        "_client",
        "_head",
        "_inflater",
        "_mask_bit",
        "_masking",
        "_max_fragments",
        "_max_payload",
        "_max_short",
        "_owner",
        "_position",
        "_rate",
        "_referee",
        "_rest",
        "_work",
        "backlog",
        "finished",
    )

    def __init__(
        self,
        *,
        max_payload: int | None,
        max_fragments: int | None,
        control_rate: tuple[float, float] | None,
        clock: Callable[[], float],
        allow_unmasked: bool = False,
        client: bool = False,
        inflater: Inflater | None = None,
    ) -> None:
        self.backlog = False
        self.finished = False
        self._max_payload = NO_LIMIT if max_payload is None else max_payload
        self._max_fragments = max_fragments
        self._rate = None if control_rate is None else ControlRate(control_rate, clock)
        self._client = client
        self._inflater = inflater
        self._allow_unmasked = allow_unmasked
        self._masking = (False,) if client else (True, False) if allow_unmasked else (True,)
        # `receive` itself takes short frames up to this size; they are masked where this side is the server.
        self._max_short = min(MAX_SHORT, self._max_payload)
        self._mask_bit = 0 if client else MASKED
        self._head = 2 if client else 6
        self._at_rest = inflater is None  # there is nothing under way that a frame could belong to or come behind
        self._owner: _Partial | Referee | None = None
        self._referee: Referee | None = None
        self._rest = b""  # bytes that were not parsed, from `_position` on
        self._position = 0
        self._work = 0  # of the referee, in this call of `receive`

    @property
    def missing(self) -> int:
        """Bytes that are still to come of a frame whose beginning has come; 0 between two frames."""
        return 0 if self._owner is None else self._owner.missing

    def credit_ping(self) -> None:
        """Note that this side sent a ping, so that its pong does not count against `control_rate`."""
        if self._rate is not None:
            self._rate.credit()

    def receive(self, data: bytes, limit: int = 64) -> list[Event]:
        """Parse what has come, and return the events in order.

        Args:
          data: the next bytes of the stream; empty to go on with the backlog.
          limit: how many frames to look at; fewer of those that cost more work. A frame makes one event at most, and
            the first frames of a fragmented message make none, nor does a message of which only a part was inflated:
            `backlog`, not the number of events, says whether to call again.
        """
        if self._at_rest:
            # All that a calm connection ever needs: one short data frame, masked or not as it must be, and no more.
            length = len(data) - self._head
            if 0 <= length <= self._max_short and data[1] - self._mask_bit == length:
                first = data[0]
                if self._mask_bit:
                    masked = _from_bytes(data[2:])
                    mask = (masked >> 8 * length) * _REPEAT[length] >> _SURPLUS[length]
                    payload = (masked ^ mask).to_bytes(length)
                else:
                    payload = data[2:]
                try:
                    if first == TEXT:
                        return [payload.decode()]
                    if first == BINARY:
                        return [payload]
                except UnicodeDecodeError:
                    pass  # the referee will say so
        events: list[Event] = []
        if self.finished:
            return events
        self.backlog = False
        self._work = 0
        inflater = self._inflater
        if inflater is not None:
            inflater.work = 0
            if inflater.busy:
                self._inflate(inflater, events)
                if self.finished:
                    return events
                if inflater.busy or inflater.work >= TURN:
                    limit = 0
        position = 0
        if self._rest:
            if data:
                data = self._rest[self._position :] + data
            else:
                data = self._rest
                position = self._position
        end = len(data)
        max_short = self._max_short
        mask_bit = self._mask_bit
        head = self._head
        plain = self._owner is None
        for _ in range(limit):
            # The same as above for a short frame that is one of many, or that something precedes or follows.
            if plain and (start := position + head) <= end:
                first = data[position]
                length = data[position + 1] - mask_bit
                stop = start + length
                if 0 <= length <= max_short and stop <= end and first in _DATA:
                    if mask_bit:
                        masked = _from_bytes(data[position + 2 : stop])
                        mask = (masked >> 8 * length) * _REPEAT[length] >> _SURPLUS[length]
                        payload = (masked ^ mask).to_bytes(length)
                    else:
                        payload = data[start:stop]
                    try:
                        events.append(payload if first == BINARY else payload.decode())
                    except UnicodeDecodeError:
                        pass  # the referee will say so
                    else:
                        position = stop
                        continue
            if position == end:
                break
            before = position
            position = self._take_plain(data, position, events) if plain else self._take_owned(data, position, events)
            if position == before or self.finished:
                break
            plain = self._owner is None
            if inflater is None:
                if self._work >= TURN:
                    self.backlog = position < end
                    break
            elif inflater.busy:
                self.backlog = True
                break
            elif self._work + inflater.work >= TURN:
                self.backlog = position < end
                break
        else:
            self.backlog = position < end or (inflater is not None and inflater.busy)
        if position < end or self._rest:
            self._keep(data, position)
        self._at_rest = not (self._owner or self._rest or self.finished or self._inflater)
        return events

    def _keep(self, data: bytes, position: int) -> None:
        """Hold on to what was not parsed."""
        if self.finished:
            self._rest = b""
        elif self.backlog:
            # Not a copy: going through a read in many small steps must not copy its end many times.
            self._rest = data
            self._position = position
        else:
            self._rest = data[position:]  # often nothing
            self._position = 0

    def _take_plain(self, data: bytes, position: int, events: list[Event]) -> int:
        """Decode a frame if it is plain, refer it if not; return the position behind, unchanged if too little came."""
        end = len(data)
        if end - position < 2:
            return position
        first = data[position]
        length = data[position + 1] & LENGTH_FIELD
        masked = data[position + 1] != length
        is_data = first in _DATA
        if masked not in self._masking or not (is_data or (first in _CONTROL and length <= MAX_SHORT)):
            if first in COMPRESSED and self._inflater is not None:
                return self._take_compressed(self._inflater, data, position, events)
            return self._refer(data, position, events)
        start = position + 2
        if length > MAX_SHORT:
            shortest, size = (126, 2) if length == 126 else (1 << 16, 8)
            start += size
            if start > end:
                return position
            length = int.from_bytes(data[position + 2 : start])
            if length < shortest:
                return self._refer(data, position, events)
        if is_data and length > self._max_payload:
            return self._refer(data, position, events)
        key = b""
        if masked:
            key = data[start : start + 4]
            start += 4
        stop = start + length
        if stop <= end:
            event = self._decode(first, unmask(data[start:stop], key) if masked else data[start:stop])
            if event is None:
                return self._refer(data, position, events)
            events.append(event)
            if first == CLOSE:
                self.finish()
            return stop
        if start <= end and is_data:
            self._owner = _Partial(first, key, length)
            return self._take_owned(data, start, events)
        return position

    def _take_compressed(self, inflater: Inflater, data: bytes, position: int, events: list[Event]) -> int:
        """Inflate a message that has come completely, in one frame; refer any other frame; return as `_take_plain`."""
        try:
            taken = inflater.take_frame(data, position, self._masking)
        except ProtocolError as error:
            events.append(Fault(error))
            self.finish()
            return len(data)
        if taken is None:
            return self._refer(data, position, events)
        message, position = taken
        if message is not None:
            events.append(message)
        return position

    def _inflate(self, inflater: Inflater, events: list[Event]) -> None:
        """Let the inflater work on what it has got."""
        try:
            message = inflater.go_on()
        except ProtocolError as error:
            events.append(Fault(error))
            self.finish()
        else:
            if message is not None:
                events.append(message)

    def _decode(self, first: int, payload: bytes) -> Event | None:
        """The event that a plain frame makes; `None` if the referee has to say what is wrong with it."""
        if first == BINARY:
            return payload
        if first == TEXT:
            try:
                return payload.decode()
            except UnicodeDecodeError:
                return None
        if first == CLOSE:
            return _decode_close(payload)
        if self._rate is not None and not self._rate.take():
            return None
        return Ping(payload) if first == PING else Pong(payload)

    def _take_owned(self, data: bytes, position: int, events: list[Event]) -> int:
        """Give what has come to the one whose turn it is; return the position behind that, as `_take_plain` does."""
        partial = self._owner
        if not isinstance(partial, _Partial):
            return self._refer(data, position, events)
        stop = min(position + partial.missing, len(data))
        try:
            partial.add(data[position:stop])
            if partial.missing == 0:
                self._owner = None
                events.append(partial.message())
        except UnicodeDecodeError:
            self._refer(partial.frame(masked=not self._client), 0, events)
        return stop

    def _refer(self, data: bytes, position: int, events: list[Event]) -> int:
        """Let the referee have a frame, or what has come of it; return the position behind, as `_take_plain` does."""
        referee = self._referee
        if referee is None:
            inflater = self._inflater
            # The inflater knows which messages are compressed, and judges the size of those that are not.
            most = None if inflater is None else inflater.compressed_limit
            limits = Limits(self._max_payload, self._max_fragments, self._rate, on_the_wire=most)
            self._referee = referee = Referee(self._client, self._allow_unmasked, limits, inflater)
        position = referee.take(data, position, events)
        self._work += _REFERRED
        if referee.finished:
            self.finish()
            return position
        self._owner = referee if referee.busy else None
        if self._inflater is not None and self._inflater.busy:
            self._inflate(self._inflater, events)
        return position

    def finish(self) -> None:
        """Take nothing more, and let go of everything."""
        self.finished = True
        self._at_rest = False
        self._rest = b""
        self._owner = self._referee = self._inflater = None


class _Partial:
    """A plain data frame whose header has come and whose end has not."""

    __slots__ = ("_chunks", "_decoder", "_first", "_key", "_length", "missing")

    def __init__(self, first: int, key: bytes, length: int) -> None:
        self._first = first
        self._key = key
        self._length = length
        self._chunks = Chunks()
        self._decoder = getincrementaldecoder("utf-8")() if first == TEXT else None
        self.missing = length

    def add(self, chunk: bytes) -> None:
        """Take some payload as it came; `UnicodeDecodeError` as soon as it cannot become valid text."""
        if self._key:
            chunk = unmask(chunk, self._key, self._length - self.missing)
        self.missing -= len(chunk)
        self._chunks.add(chunk)
        if self._decoder is not None and self.missing:
            # Only the verdict counts: pieces of text would take up to four times, and if short fifty times, the memory.
            self._decoder.decode(chunk)

    def message(self) -> str | bytes:
        """The payload, when none of it is missing; `UnicodeDecodeError` if the end of the text was bad."""
        payload = self._chunks.join()
        return payload if self._decoder is None else payload.decode()

    def frame(self, *, masked: bool) -> bytes:
        """The frame so far, in an equivalent form."""
        header = frame_header(self._first, self._length)
        return (mask_header(header) + _ZERO_KEY if masked else header) + self._chunks.join()


def _decode_close(payload: bytes) -> CloseReceived | None:
    """What an orderly Close frame says; `None` if the referee has to say what is wrong with it."""
    if not payload:
        return CloseReceived(None, "")
    try:
        return CloseReceived(*check_close(int.from_bytes(payload[:2]), payload[2:].decode()))
    except ValueError:  # a code that must not be sent, half a code, or a reason that is not UTF-8
        return None
