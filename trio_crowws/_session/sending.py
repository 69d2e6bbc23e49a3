"""The way out: whole frames into the transport's queue, and what happens when a peer does not read.

Two families
    `send` waits while more than `send_high_water` is queued, so a producer runs at the speed of its peer. It encodes
    and checks first, waits second and queues last, in one step: a cancelled `send` has queued nothing, never a part.

    `send_nowait` and `publish` never wait. Up to `send_limit` they queue; beyond it `on_slow` decides. They write and
    wake tasks, but they never call the application, so a publisher cannot be re-entered by its subscribers.

Compression
    A message that is to be compressed with a context has to be compressed in the step in which it is written
    (`_protocol/compressing.py`). Until then it is kept and counted as it is: while `send` waits, and where `on_slow`
    may yet drop it or put a newer one in its place. Without a context it makes no difference when that is done, so
    whoever publishes does it once for all.

Control frames are outside this accounting. A Close is always queued. Of the pongs that a peer asks for without reading
them only the newest is kept, as RFC 6455 section 5.5.3 allows.
"""

from __future__ import annotations

from enum import Enum, auto

import trio

from .._closeinfo import CloseFrame
from .._protocol.closing import Phase
from .._protocol.compressing import Compressor, Packer, check_compress, most
from .._protocol.encoding import encode_message, encode_pong, encode_text
from .._types import MessageLike
from ..errors import ConnectionClosed, SlowConsumer
from .ending import Ending, Parts

__all__ = ["Offered", "Sending"]

_OPEN, _ANSWERING = Phase.OPEN, Phase.ANSWERING  # looked up for every message


class Offered(Enum):
    """What became of a frame that was offered without waiting."""

    SENT = auto()
    DROPPED = auto()
    CLOSED = auto()


class Sending(Ending):
    """The outbox of one connection.

    Attributes:
      compression: what was agreed on about compression, or `None`.
      messages_sent: messages queued so far.
      dropped: messages that `on_slow` has dropped so far.
    """

    __slots__ = (
        "_high_water",
        "_latest",
        "_limit",
        "_line",
        "_packer",
        "_pong",
        "_progress",
        "_waiting",
        "compression",
        "dropped",
        "messages_sent",
    )

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._limit = parts.options._queue_limit
        self._high_water = min(parts.options.send_high_water, self._limit)
        self._progress: trio.lowlevel.ParkingLot | None = None
        self._line: trio.StrictFIFOLock | None = None
        self._waiting = 0
        self._pong: bytes | None = None
        self._latest: dict[str | None, tuple[bytes, bool]] | None = None
        self._packer: Packer | None = None
        self.compression: str | None = None
        self.messages_sent = 0
        self.dropped = 0

    def _compress_with(self, packer: Packer | None, agreed: str) -> None:
        """The peer has agreed on compression; without a packer only what comes from it is compressed."""
        self._packer = packer
        self._dressed = True
        self.compression = agreed

    @trio.lowlevel.enable_ki_protection
    async def send(self, data: MessageLike, *, compress: bool | None = None) -> None:
        """Send one message: `str` as text, bytes-like data as binary.

        Returns when the message is queued. It waits while more than `send_high_water` bytes are queued before it, so a
        loop of sends runs at the speed of its peer; otherwise it does not yield to other tasks.

        Args:
          data: the message.
          compress: `None` to compress from the `threshold` of the option `compression` on, `True` whatever the size,
            `False` never, as for a message with a secret in it. Where no compression was agreed on it says nothing.

        Raises:
          TypeError: `data` or `compress` is of another type; nothing was sent.
          ValueError: the text holds a lone surrogate; nothing was sent.
          ConnectionClosed: the connection is closing or closed.

        Cancellation: always a cancellation point. A cancelled `send` has sent nothing.
        """
        frame = encode_message(data)
        if compress is not None:
            check_compress(compress)
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._phase > _ANSWERING:
            raise await self._reason_to_stop()
        transport = self._transport
        if transport.buffered > self._high_water or self._waiting:
            await self._wait_for_room()
        if self._latest is not None:  # it was sent before this message
            self._write_latest()
        if self._packer is not None and self._packer.wants(frame, compress):
            self._write_packed(frame)
        else:
            self._write(frame)
        self.messages_sent += 1

    @trio.lowlevel.enable_ki_protection
    def send_nowait(self, data: MessageLike, *, compress: bool | None = None) -> bool:
        """Send one message without waiting; for plain callbacks, and for data that a slow peer may lose.

        Args:
          data: the message.
          compress: as for `send`.

        Returns:
          `False` when the message was not queued because the peer is too slow (`on_slow`).

        Raises:
          TypeError: `data` or `compress` is of another type; nothing was sent.
          ValueError: the text holds a lone surrogate; nothing was sent.
          ConnectionClosed: the connection is closing or closed.
        """
        frame = encode_text(data) if type(data) is str else encode_message(data)
        if compress is not None:
            check_compress(compress)
        transport = self._transport
        if self._phase is _OPEN and not (transport.buffered or self._latest or self._dressed):  # nearly always
            transport.write(frame)
            self.messages_sent += 1
            return True
        if self._phase > _ANSWERING:
            raise self._closed_error()
        if self._packer is None:
            return self._offer(frame, None) is Offered.SENT
        return self._offer_packed(frame, None, compress, {}) is Offered.SENT

    @property
    def buffered(self) -> int:
        """Bytes that are queued and not yet taken by the operating system."""
        return self._transport.buffered

    async def _wait_flushed(self) -> None:
        """Wait until nothing is queued, or the connection is closing. Cancellation stops the waiting only."""
        await self._wait_for_queue(0)

    async def _wait_for_queue(self, size: int) -> None:
        """Wait until at most `size` bytes are queued, or the connection is closing."""
        transport = self._transport
        while transport.buffered > size and self._phase <= Phase.ANSWERING:
            # Only what does not leave at once will be reported when it has left.
            transport.push()
            if transport.buffered > size and self._phase <= Phase.ANSWERING:
                await self._wait_for_progress()

    async def _wait_for_progress(self) -> None:
        if self._progress is None:
            self._progress = trio.lowlevel.ParkingLot()
        await self._progress.park()

    async def _wait_for_room(self) -> None:
        """Wait until little is queued.

        The tasks that wait stand in a line, of which only the first one looks at the queue. It leaves the line in the
        step in which it writes, so nobody overtakes it in between.
        """
        self._transport.push()
        if self._line is None:
            self._line = trio.StrictFIFOLock()
        self._waiting += 1
        try:
            # Even with a fast peer and an empty line this yields, or a loop of sends would never let anybody else run.
            async with self._line:
                await self._wait_for_queue(self._high_water)
        finally:
            self._waiting -= 1
        if self._phase > Phase.ANSWERING:
            raise await self._reason_to_stop()

    async def _reason_to_stop(self) -> ConnectionClosed:
        """Why nothing can be sent any more.

        Where that is a broken transport, what the peer has sent before is just being read, and may hold its reasons; so
        they are waited for, unless reading waits for the handler, which may be the one that waits here.
        """
        while self._phase is Phase.MUTE and not self._transport.paused:
            await self._wait_for_progress()
        return self._closed_error()

    @trio.lowlevel.enable_ki_protection  # what was compressed with a context must get into the queue
    def _write_packed(self, frame: bytes) -> None:
        """Compress the message in `frame`, and queue it."""
        assert self._packer is not None
        try:
            packed = self._packer.pack(frame)
        except Exception as error:  # its context is spoilt now; that ends this connection, and not who publishes to it
            self._transport.report(error)
        else:
            self._write(packed)

    def _write_published(self, frame: bytes) -> bool:
        """Write a frame that goes to many; `False`, and nothing is done, where there is more to it than that."""
        transport = self._transport
        if self._phase is not _OPEN or transport.buffered or self._latest or self._dressed:
            return False
        transport.write_at_once(frame)
        self.messages_sent += 1
        return True

    def _offer(self, frame: bytes, room: str | None, later: bool = False) -> Offered:
        """Queue `frame`, which came through `room` or was sent directly, or do what `on_slow` says. Never waits.

        With `later` it is compressed when it is written.
        """
        if self._phase > Phase.ANSWERING:
            return Offered.CLOSED
        transport = self._transport
        if self._latest is not None:  # what comes later does not overtake what is kept
            return self._keep_latest(self._latest, frame, room, later)
        # What is queued and what is new decide together. On an empty queue even an oversize message may go.
        size = most(len(frame)) if later else len(frame)
        if transport.buffered and transport.buffered + size > self._limit:
            transport.push()
            if self._phase > Phase.ANSWERING:
                return Offered.CLOSED
            if transport.buffered and transport.buffered + size > self._limit:
                return self._overflow(frame, room, later)
        self._write_now(frame, later)
        self.messages_sent += 1
        return Offered.SENT

    def _offer_packed(
        self, frame: bytes, room: str | None, compress: bool | None, packed: dict[Compressor, bytes]
    ) -> Offered:
        """As `_offer`, where compression was agreed on; `packed` has the frame as it was compressed for others."""
        packer = self._packer
        assert packer is not None
        if not packer.wants(frame, compress):
            return self._offer(frame, room)
        if packer.keeps_context:
            return self._offer(frame, room, later=True)
        ready = packed.get(packer.compressor)
        if ready is None:
            packed[packer.compressor] = ready = packer.pack(frame)
        return self._offer(ready, room)

    def _overflow(self, frame: bytes, room: str | None, later: bool) -> Offered:
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
        self._latest = {}  # nothing is kept yet, or this would not be asked
        return self._keep_latest(self._latest, frame, room, later)

    def _keep_latest(
        self, latest: dict[str | None, tuple[bytes, bool]], frame: bytes, room: str | None, later: bool
    ) -> Offered:
        replaced = latest.pop(room, None) is not None
        latest[room] = frame, later
        if replaced:
            self.dropped += 1
        else:
            self.messages_sent += 1
        return Offered.SENT

    def _write_now(self, frame: bytes, later: bool) -> None:
        if later:
            self._write_packed(frame)
        else:
            self._write(frame)

    def _write_latest(self) -> None:
        """Queue all that "latest" keeps: what is sent now must not overtake it.

        It does not wait for more room. Publishers can put newer messages in its place as fast as the peer takes them,
        and then a `send` that waits until nothing is kept would never have its turn.
        """
        latest, self._latest = self._latest, None
        for kept in (latest or {}).values():
            self._write_now(*kept)

    def _answer_ping(self, payload: bytes) -> None:
        if self._phase > Phase.ANSWERING:
            return
        frame = encode_pong(payload)
        if self._transport.blocked:
            self._pong = frame
        else:
            self._write(frame)

    def _on_drained(self) -> None:
        """Some of what was queued has left: let in what waits."""
        self._progress_at = self._timers.now
        if self._phase > Phase.ANSWERING:
            self._check_flushed()
            return
        if self._pong is not None:
            pong, self._pong = self._pong, None
            self._write(pong)
        while self._latest and self._transport.buffered <= self._high_water:
            room = next(iter(self._latest))
            self._write_now(*self._latest.pop(room))
        if not self._latest:
            self._latest = None
        if self._progress is not None:
            self._progress.unpark_all()

    def _send_close(self, frame: CloseFrame) -> None:
        self._write_latest()  # it was sent before the Close
        super()._send_close(frame)

    def _wake_all(self) -> None:
        super()._wake_all()
        self._latest = None
        self._packer = None
        self._pong = None
        if self._progress is not None:
            self._progress.unpark_all()
