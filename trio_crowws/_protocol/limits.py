"""What a peer may send, decided at the header of each frame, before a byte of its payload is kept.

`Limits` is a wsproto extension that is always on and never negotiated: nothing in the opening handshake speaks of it,
but wsproto shows it opcode and length of every frame as soon as they are known. (wsproto shows the same header again
when the masking key is still on its way, so a header is judged once and the verdict kept until the frame is complete.)
wsproto lets an extension fail a connection with a close code but not say why, so the reason is kept here, as `breach`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits

from ..errors import PayloadTooBig, ProtocolError

__all__ = ["ControlRate", "Limits"]

_NO_RSV_BITS: Final = RsvBits(False, False, False)


class ControlRate:
    """A token bucket for what costs work but carries nothing: control frames and empty fragments.

    Args:
      rate: how many per second, and how many at once.
      clock: seconds that never go backwards; read only when a token is taken.
    """

    __slots__ = ("_burst", "_clock", "_per_second", "_time", "_tokens")

    def __init__(self, rate: tuple[float, float], clock: Callable[[], float]) -> None:
        self._per_second, self._burst = rate
        self._clock = clock
        self._tokens = self._burst
        self._time: float | None = None

    def take(self) -> bool:
        """Take a token for one frame; `False`, and nothing is taken, when there is none."""
        now = self._clock()
        # Credit may have lifted the bucket above `burst`: it stays there until used, but time adds nothing to it.
        if self._time is not None and self._tokens < self._burst:
            self._tokens = min(self._burst, self._tokens + (now - self._time) * self._per_second)
        self._time = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def credit(self) -> None:
        """Give one token on top, for a ping that this side sent: its pong is asked for and must not count."""
        self._tokens += 1


class Limits(Extension):
    """The limits on one connection's incoming frames, as an extension of wsproto.

    Args:
      max_payload: bytes of one message, over all of its frames; `None` for no limit.
      max_fragments: frames of one message, empty ones included; `None` for no limit.
      rate: the bucket that ping, pong and empty fragments draw from; `None` for no limit.
      on_the_wire: as much of a message is let through where it may be compressed; `max_payload` is for somebody else to
        judge then.

    Attributes:
      breach: what was exceeded, once something was.
    """

    name = "trio-crowws-limits"

    def __init__(
        self,
        max_payload: int | None,
        max_fragments: int | None,
        rate: ControlRate | None,
        *,
        on_the_wire: int | None = None,
    ) -> None:
        self.breach: ProtocolError | None = None
        self._max_payload = max_payload
        self._most = max_payload if on_the_wire is None else on_the_wire
        self._max_fragments = max_fragments
        self._rate = rate
        self._frame: Opcode | None = None  # of the frame that was judged and is not complete
        self._frame_length = 0
        self._payload = 0
        self._fragments = 0

    def enabled(self) -> bool:
        """Always: wsproto leaves out extensions that were not negotiated."""
        return True

    def offer(self) -> bool:
        """Never offered to a server."""
        return False

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        """Judge a frame by its header."""
        if self._frame is None:
            self._frame = opcode
            self._frame_length = payload_length
            self.breach = self._count_control(opcode) if opcode.iscontrol() else self._count_data(opcode)
        return _NO_RSV_BITS if self.breach is None else CloseReason(self.breach.code)

    def frame_inbound_complete(self, proto: FrameDecoder | FrameProtocol, fin: bool) -> CloseReason | None:
        """Make ready for the next header; only here is it known whether an empty frame ends its message."""
        opcode, self._frame = self._frame, None
        if opcode is None or opcode.iscontrol():
            return None
        if fin:
            # An empty last frame is how some senders end a message, so it is free: each message has one at most.
            self._payload = self._fragments = 0
        elif self._frame_length == 0:
            self.breach = self._draw("empty fragments")
        return None if self.breach is None else CloseReason(self.breach.code)

    def _count_control(self, opcode: Opcode) -> ProtocolError | None:
        # A Close frame is the last one: refusing it would only turn an orderly end into a failure.
        return None if opcode is Opcode.CLOSE else self._draw("control frames")

    def _draw(self, what: str) -> ProtocolError | None:
        if self._rate is None or self._rate.take():
            return None
        return ProtocolError(CloseReason.POLICY_VIOLATION.value, f"too many {what}")

    def _count_data(self, opcode: Opcode) -> ProtocolError | None:
        if opcode is not Opcode.CONTINUATION:
            self._payload = self._fragments = 0
        self._payload += self._frame_length
        self._fragments += 1
        if self._most is not None and self._payload > self._most:
            if self._most == self._max_payload:
                return PayloadTooBig(f"a message of at least {self._payload} bytes; the limit is {self._most}")
            return PayloadTooBig(
                f"a message of at least {self._payload} bytes on the wire; max_payload={self._max_payload} allows"
                f" {self._most} there"
            )
        if self._max_fragments is not None and self._fragments > self._max_fragments:
            return ProtocolError(
                CloseReason.POLICY_VIOLATION.value, f"a message of more than {self._max_fragments} frames"
            )
        return None
