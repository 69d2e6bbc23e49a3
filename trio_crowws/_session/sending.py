"""The way out: whole frames into the transport's queue, and what happens when a peer does not read.

Two families
    `send` waits while more than `send_high_water` is queued, so a producer runs at the speed of its peer. It encodes
    and checks first, waits second and queues last, in one step: a cancelled `send` has queued nothing, never a part.

    `send_nowait` and `publish` never wait. Up to `send_limit` they queue; beyond it `on_slow` decides. They only queue
    and wake tasks, they never call the application, so a publisher cannot be re-entered by its subscribers.

Control frames are outside this accounting. A Close is always queued. Of the pongs that a peer asks for without reading
them only the newest is kept, as RFC 6455 section 5.5.3 allows.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

import trio

from .._protocol.closing import Phase
from .._protocol.encoding import encode_message, encode_pong
from ..errors import SlowConsumer
from .ending import Ending

if TYPE_CHECKING:
    from .._options import Options
    from .._protocol.framing import FrameReader
    from .._protocol.request import Request
    from .._transport.base import Transport
    from .._transport.timers import Timers

__all__ = ["Offered", "Sending"]

_ANSWERING = Phase.ANSWERING  # looked up for every message


class Offered(Enum):
    """What became of a frame that was offered without waiting."""

    SENT = auto()
    DROPPED = auto()
    CLOSED = auto()


class Sending(Ending):
    """The outbox of one connection.

    Attributes:
      messages_sent: messages queued so far.
      dropped: messages that `on_slow` has dropped so far.
    """

    __slots__ = ("_high_water", "_latest", "_pong", "_senders", "dropped", "messages_sent")

    def __init__(
        self,
        connection_id: str,
        request: Request,
        options: Options,
        transport: Transport,
        timers: Timers,
        reader: FrameReader,
    ) -> None:
        super().__init__(connection_id, request, options, transport, timers, reader)
        self._high_water = min(options.send_high_water, options.send_limit)
        self._senders: trio.lowlevel.ParkingLot | None = None
        self._pong: bytes | None = None
        self._latest: dict[str | None, bytes] | None = None
        self.messages_sent = 0
        self.dropped = 0

    async def send(self, data: str | bytes | bytearray | memoryview) -> None:
        """Send one message: `str` as text, bytes-like data as binary.

        Returns when the message is queued. It waits while more than `send_high_water` bytes are queued before it, so a
        loop of sends runs at the speed of its peer; otherwise it does not yield to other tasks.

        Raises:
          TypeError: `data` is of another type; nothing was sent.
          ValueError: the text holds a lone surrogate; nothing was sent.
          ConnectionClosed: the connection is closing or closed.

        Cancellation: always a cancellation point. A cancelled `send` has sent nothing.
        """
        frame = encode_message(data)
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._phase > _ANSWERING:
            raise self._closed_error()
        transport = self._transport
        if transport.buffered > self._high_water or self._senders:
            await self._wait_for_room()
        transport.write(frame)
        self.messages_sent += 1

    def send_nowait(self, data: str | bytes | bytearray | memoryview) -> bool:
        """Send one message without waiting; for plain callbacks, and for data that a slow peer may lose.

        Returns:
          `False` when the message was not queued because the peer is too slow (`on_slow`).

        Raises:
          TypeError: `data` is of another type; nothing was sent.
          ValueError: the text holds a lone surrogate; nothing was sent.
          ConnectionClosed: the connection is closing or closed.
        """
        frame = encode_message(data)
        if self._phase > _ANSWERING:
            raise self._closed_error()
        return self._offer(frame, None) is Offered.SENT

    @property
    def buffered(self) -> int:
        """Bytes that are queued and not yet taken by the operating system."""
        return self._transport.buffered

    async def wait_flushed(self) -> None:
        """Wait until nothing is queued, or the connection is closing. Cancellation stops the waiting only."""
        while self._transport.buffered and self._phase <= Phase.ANSWERING:
            if self._senders is None:
                self._senders = trio.lowlevel.ParkingLot()
            await self._senders.park()

    async def _wait_for_room(self) -> None:
        """Wait until little is queued; the tasks that wait are served in their order."""
        transport = self._transport
        transport.flush()
        if not self._senders and transport.buffered <= self._high_water:
            # The peer is fast. Yield all the same, or a loop of sends to it would never let anybody else run.
            await trio.lowlevel.checkpoint()
        else:
            if self._senders is None:
                self._senders = trio.lowlevel.ParkingLot()
            await self._senders.park()
            while transport.buffered > self._high_water and self._phase <= Phase.ANSWERING:
                await self._senders.park()
            self._let_senders_in()
        if self._phase > Phase.ANSWERING:
            raise self._closed_error()

    def _let_senders_in(self) -> None:
        if self._senders and self._transport.buffered <= self._high_water:
            self._senders.unpark()

    def _offer(self, frame: bytes, room: str | None) -> Offered:
        """Queue `frame`, which came through `room` or was sent directly, or do what `on_slow` says. Never waits."""
        if self._phase > _ANSWERING:
            return Offered.CLOSED
        transport = self._transport
        if self._latest is not None and room in self._latest:
            return self._keep_latest(self._latest, frame, room)
        # What is queued and what is new decide together. On an empty queue even an oversize message may go.
        if transport.buffered and transport.buffered + len(frame) > self._options.send_limit:
            transport.flush()
            if self._phase > Phase.ANSWERING:
                return Offered.CLOSED
            if transport.buffered and transport.buffered + len(frame) > self._options.send_limit:
                return self._overflow(frame, room)
        transport.write(frame)
        self.messages_sent += 1
        return Offered.SENT

    def _overflow(self, frame: bytes, room: str | None) -> Offered:
        policy = self._options.on_slow
        if policy == "close":
            self._record(
                SlowConsumer(f"more than send_limit={self._options.send_limit} bytes wait for the peer"), "local"
            )
            self._begin_local_close(SlowConsumer.code, "slow consumer")
            return Offered.CLOSED
        if policy == "drop":
            self.dropped += 1
            return Offered.DROPPED
        if self._latest is None:
            self._latest = {}
        return self._keep_latest(self._latest, frame, room)

    def _keep_latest(self, latest: dict[str | None, bytes], frame: bytes, room: str | None) -> Offered:
        replaced = latest.pop(room, None) is not None
        latest[room] = frame
        if replaced:
            self.dropped += 1
        else:
            self.messages_sent += 1
        return Offered.SENT

    def _answer_ping(self, payload: bytes) -> None:
        if self._phase > Phase.ANSWERING:
            return
        frame = encode_pong(payload)
        if self._transport.blocked:
            self._pong = frame
        else:
            self._transport.write(frame)

    def drained(self) -> None:
        """Some of what was queued has left: let in what waits."""
        if self._phase > Phase.ANSWERING:
            self._check_flushed()
            return
        if self._pong is not None:
            pong, self._pong = self._pong, None
            self._transport.write(pong)
        while self._latest and self._transport.buffered <= self._high_water:
            room = next(iter(self._latest))
            self._transport.write(self._latest.pop(room))
        if not self._latest:
            self._latest = None
        if self._transport.buffered <= self._high_water and self._senders:
            self._senders.unpark()

    def _wake_all(self) -> None:
        super()._wake_all()
        self._latest = None
        self._pong = None
        if self._senders:
            self._senders.unpark_all()
