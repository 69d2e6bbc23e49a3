"""wsproto, which decides what is legal: it is given one frame at a time, as `framing` says.

Two deviations from wsproto, both wanted: close code 1014, which IANA has and wsproto has not, is accepted; and with
`allow_unmasked` a server takes frames without a mask.
"""

from __future__ import annotations

from typing import Final

from wsproto import events as wsproto_events
from wsproto.connection import Connection, ConnectionState, ConnectionType

from .._closeinfo import CloseCode
from ..errors import InvalidUTF8, ProtocolError
from .chunks import Chunks
from .deflate import Inflater
from .encoding import CLOSE, MAX_SHORT
from .events import CloseReceived, Event, Fault, Ping, Pong
from .headers import MASKED, mask_header, scan
from .limits import Limits
from .masking import unmask

__all__ = ["Referee"]

_ZERO_KEY: Final = bytes(4)


class Referee:
    """A wsproto connection that is given one frame at a time.

    Attributes:
      missing: bytes of a payload that are still to come, once wsproto has got the header.
      busy: wsproto is within a frame or within a message, so the next bytes are for it.
      finished: it gave a `CloseReceived` or a `Fault`.
    """

    def __init__(self, client: bool, allow_unmasked: bool, limits: Limits, inflater: Inflater | None) -> None:
        self._client = client
        self._allow_unmasked = allow_unmasked
        self._limits = limits
        self._inflater = inflater
        kind = ConnectionType.CLIENT if client else ConnectionType.SERVER
        self._connection = Connection(kind, [limits] if inflater is None else [limits, inflater])
        self._bad_gateway = False  # the Close frame said 1014
        self._open = False  # a fragmented message is
        self._chunks = Chunks()  # of that message
        self._handed = 0  # bytes of a header that wsproto has got, while others are missing
        self.missing = 0
        self.finished = False

    @property
    def busy(self) -> bool:
        return self._open or self.missing > 0 or self._handed > 0

    def take(self, data: bytes, position: int, events: list[Event]) -> int:
        """Hand over what has come of one frame; return the position behind it, or the same one within a header."""
        end = len(data)
        if self.missing:
            stop = min(position + self.missing, end)
            self.missing -= stop - position
            self._judge(data[position:stop], events)
            return stop
        start, length = scan(data, position)
        head = data[position : min(start, end)]
        if self._allow_unmasked and len(head) > 1 and head[1] < MASKED:
            head = mask_header(head) + (_ZERO_KEY if start <= end else b"")
        if start > end:
            fresh = head[self._handed :]
            self._handed = len(head)
            self._judge(fresh, events)
            return position
        stop = min(start + length, end)
        payload = data[start:stop]
        if head[0] == CLOSE and 2 <= length <= MAX_SHORT and head[1] == length + (0 if self._client else MASKED):
            if len(payload) < length:
                return position  # wsproto would wait for all of it, too
            payload = self._disguise(payload, _ZERO_KEY if self._client else head[-4:])
        self.missing = length - len(payload)
        handed, self._handed = self._handed, 0
        self._judge(head[handed:] + payload, events)
        return stop

    def _disguise(self, payload: bytes, key: bytes) -> bytes:
        """Put 1013 for 1014, which wsproto does not know, in a Close frame; the rest of the frame is for wsproto."""
        self._bad_gateway = int.from_bytes(unmask(payload[:2], key)) == CloseCode.BAD_GATEWAY
        if not self._bad_gateway:
            return payload
        low = payload[1] ^ CloseCode.BAD_GATEWAY ^ CloseCode.TRY_AGAIN_LATER
        return payload[:1] + bytes((low,)) + payload[2:]

    def _judge(self, chunk: bytes, events: list[Event]) -> None:
        """Let wsproto have some bytes, and translate what it says."""
        self._connection.receive_data(chunk)
        for event in self._connection.events():
            if isinstance(event, (wsproto_events.TextMessage, wsproto_events.BytesMessage)):
                self._add(event, events)
            elif isinstance(event, wsproto_events.Ping):
                events.append(Ping(bytes(event.payload)))
            elif isinstance(event, wsproto_events.Pong):
                events.append(Pong(bytes(event.payload)))
            else:
                assert isinstance(event, wsproto_events.CloseConnection), event
                self.finished = True
                # A failure looks like a Close frame of the peer with that code; but it does not change the state.
                failed = self._connection.state is ConnectionState.OPEN
                events.append(Fault(self._error(event)) if failed else self._closed(event))

    def _add(self, event: wsproto_events.TextMessage | wsproto_events.BytesMessage, events: list[Event]) -> None:
        data = event.data
        # Text is kept as bytes, because many small strings would take a multiple of the memory.
        self._chunks.add(data.encode() if isinstance(data, str) else bytes(data))
        self._open = not event.message_finished
        if not self._open:
            payload, self._chunks = self._chunks.join(), Chunks()
            if self._inflater is None or not self._inflater.busy:  # else the inflater has the message
                events.append(payload.decode() if isinstance(data, str) else payload)

    def _error(self, event: wsproto_events.CloseConnection) -> ProtocolError:
        breach = self._limits.breach or (None if self._inflater is None else self._inflater.breach)
        if breach is not None:
            return breach
        code, detail = int(event.code), event.reason or ""
        return InvalidUTF8(detail) if code == CloseCode.INVALID_DATA else ProtocolError(code, detail)

    def _closed(self, event: wsproto_events.CloseConnection) -> CloseReceived:
        code = CloseCode.BAD_GATEWAY if self._bad_gateway else event.code
        # A frame without a code is what 1005 stands for; a peer that sends 1005 has been failed.
        return CloseReceived(None if code == CloseCode.NO_STATUS else int(code), event.reason or "")
