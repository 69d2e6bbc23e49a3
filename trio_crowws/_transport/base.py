"""What moves the bytes of one connection, seen from both sides.

A transport has one way up and one way down, and both are plain calls that never wait. Bytes from the peer go up by
`receiver._on_data(data)`. Bytes for the peer go down by `transport.write(data)`, which only collects them: they leave
when the writer gives up control, so that ten answers to ten requests are one system call. Five things flush:

* whoever feeds, after `_on_data` has returned (the transport is *corked* meanwhile);
* the first write of a handler that has taken the last message of a batch (*eager*): most handlers answer with one
  message, and then there is nothing to wait for;
* the connection's task, before it parks to wait for the next message. It does not, and a write is not eager, when many
  connections have got something at the same time (*crowded*);
* whoever publishes, for what is published first in a scheduler pass, where there is a socket right below
  (`write_at_once`);
* the `TurnQueue`, one scheduler pass later, for everything else.

The `TurnQueue` is one task for each server. It also gives a turn to transports that have more to read than one turn
allows, which keeps a flooding peer from starving the others.

Whatever goes wrong in a transport costs that transport alone. The tasks that serve all of them, and the tasks of others
that publish to it, never see an exception of it: who calls a transport or a receiver catches every `Exception` (a
`MemoryError` is one) and hands it to `Transport.report`, which logs it, gives the transport up and cannot raise itself.

What peers send costs as much as they like, so what is done for them in one scheduler pass is bounded by time, not by
how many they are: the poller, the `TurnQueue`, the timers and the pumps of streams each stop after `PASS_TIME` and go
on in the next pass. What one transport does in one go is bounded by its receiver, which sets `more` where there is too
much.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from .._foreign import place
from .._log import log
from .._types import Address
from .progress import MOST_WINDOWS, Progress
from .timers import PASS_TIME, Timer, Timers
from .turns import TurnQueue

__all__ = ["PASS_TIME", "Address", "Receiver", "Transport", "TurnQueue", "count_small"]

READ_SIZE = 64 * 1024
"""Bytes of one read. A larger buffer makes the allocator map and unmap memory on every call."""

JOIN_LIMIT = 64 * 1024
"""Bytes. Pieces of this size and beyond are sent alone: joining them to their neighbours would only copy them, and a
page that many peers read at once would be in memory once for each."""

_PIECES = 512
"""So many pieces wait as they came, which shares the frame of a published message between all its subscribers."""

_SMALL = 512
"""Beyond `_PIECES`, pieces below this size are copied together: each bytes object costs about 50 bytes of
overhead."""


class Receiver(Protocol):
    """The upper end of a transport.

    The names are private because a `Connection` is one, and its public names are for applications.
    """

    def _on_data(self, data: bytes) -> None:
        """Take bytes from the peer; `b""` means "go on with what you have"."""

    def _on_eof(self) -> None:
        """The peer will send nothing more."""

    def _on_lost(self, error: Exception | None) -> None:
        """The transport is gone: nothing more comes in, nothing more goes out."""

    def _on_broken(self, error: Exception) -> None:
        """Nothing more goes out. What has come in is still read to its end, as far as reading is not paused.

        `_on_lost` follows, and says the same error, when it was read; or when the receiver has had enough and calls
        `Transport.break_down`.
        """

    def _on_stalled(self) -> None:
        """The operating system took less than was offered: the peer does not read."""

    def _on_drained(self) -> None:
        """Some of what was queued has left after a stall."""


class Transport(ABC):
    """The bytes of one connection: collected on the way down, fed on the way up.

    Attributes:
      receiver: the upper end; may be exchanged at any time.
      buffered: bytes collected and not yet taken by the operating system.
      blocked: whether the operating system took less than was offered.
      broken: why nothing more can be written, though there may be something left to be read.
      bytes_sent: bytes that the operating system has taken so far.
      paused: whether reading is stopped.
      corked: set from the moment when `receiver._on_data` is called until the feeder flushes, which may have others to
        feed before; `write` leaves the flushing to it.
      eager: set when a handler takes the last message of a batch; the next `write` then leaves at once, if not crowded.
      more: set by a receiver that stopped before it had worked through what it was fed.
    """

    __slots__ = (
        "_closing",
        "_on_release",
        "_out",
        "_patient",
        "_progress",
        "_shut",
        "_timer",
        "_timers",
        "_turns",
        "_waits_for_turn",
        "blocked",
        "broken",
        "buffered",
        "bytes_sent",
        "closed",
        "corked",
        "eager",
        "local_address",
        "more",
        "paused",
        "receiver",
        "remote_address",
        "secure",
    )

    def __init__(self, turns: TurnQueue, timers: Timers, local_address: Address, remote_address: Address) -> None:
        self.receiver: Receiver = _NOBODY
        self.local_address = local_address
        self.remote_address = remote_address
        self.secure = False
        self.buffered: int = 0
        self.bytes_sent: int = 0
        self.blocked = False
        self.broken: Exception | None = None
        self.closed = False
        self.corked = False
        self.eager = False
        self.more = False
        self._out: list[bytes | bytearray | memoryview] = []
        self.paused = False
        self._shut = False  # broken, closing or closed: takes nothing more
        self._closing: bool | None = None
        self._on_release: Callable[[], None] | None = None
        self._patient = False
        self._progress: Progress | None = None
        self._turns = turns
        self._timers = timers
        self._timer: Timer | None = None
        self._waits_for_turn = False

    @abstractmethod
    def start(self) -> None:
        """Begin to read, where that does not begin by itself; the receiver is in place.

        Raises:
          OSError: the system cannot watch one more descriptor; the socket is still the caller's.
        """

    @trio.lowlevel.enable_ki_protection
    def write(self, data: bytes | memoryview) -> None:
        """Collect `data`; it leaves when the caller gives up control. Ignored once the transport is closed."""
        if self._shut:
            return
        try:
            if len(self._out) < _PIECES or len(data) >= _SMALL:
                self._out.append(data)
            else:
                self._append_small(data)
            self.buffered += len(data)
            if self.corked:
                return
            if self.eager:
                self.eager = False
                if not self._turns.crowded:
                    self.flush()
                    return
            if not self._waits_for_turn:
                self._waits_for_turn = True
                self._turns.add(self)
        except Exception as error:
            self.report(error)

    def write_at_once(self, data: bytes | memoryview) -> None:
        """As `write`, for one message to many; where it can, the first one of a scheduler pass leaves right now."""
        self.write(data)

    def _append_small(self, data: bytes | memoryview) -> None:
        last = self._out[-1]
        if isinstance(last, bytearray):
            last += data
        else:
            self._out.append(bytearray(data))

    def ask_for_turn(self) -> None:
        """Have `turn` called in the next scheduler pass."""
        if not self._waits_for_turn:
            self._waits_for_turn = True
            self._turns.add(self)

    def turn(self) -> None:
        """Flush, then read on where reading stopped for the sake of the others."""
        self._waits_for_turn = False
        if self._out:
            self.flush()

    @abstractmethod
    def flush(self) -> None:
        """Offer what was collected to the operating system, now. It may raise; from outside, `push` is what to call."""

    def push(self) -> None:
        """Flush for somebody who has to know what has left, and is no part of the transport."""
        try:
            self.flush()
        except Exception as error:
            self.report(error)

    def flush_to_park(self) -> None:
        """Flush for a task that is about to wait for the next message, unless a turn comes for a whole crowd."""
        if self._out and not (self._waits_for_turn and self._turns.crowded):
            self.push()

    @abstractmethod
    def limit_unsent(self, size: int | None) -> None:
        """Let the kernel take no more than about `size` bytes that it cannot send yet, where it can be told so.

        `None` leaves it to the kernel.
        """

    @property
    @abstractmethod
    def in_kernel(self) -> int | None:
        """Bytes that the kernel has taken and the peer's has not acknowledged; `None` where that is not known."""

    @property
    def written(self) -> int:
        """Bytes that were collected so far, whatever has become of them."""
        return self.bytes_sent + self.buffered

    @property
    def acknowledged(self) -> int:
        """Bytes that the peer's kernel has, or where that is not known, those that this one has taken."""
        return self.bytes_sent - (self.in_kernel or 0)

    @property
    def behind(self) -> bool:
        """Whether there is something to read that waits for a turn."""
        if self.paused:  # by the layer above, perhaps only until that has worked through what it has
            return not self.closed and isinstance(self.receiver, Transport) and self.receiver.behind
        return self.unread and not self.closed

    @property
    def unread(self) -> bool:
        """Whether there is something that was not read, or not worked on, when it came."""
        return self.more

    @property
    def shook_hands_at(self) -> float:
        """When something of a TLS handshake that still goes on came in the last time."""
        return -math.inf

    def pause(self) -> None:
        """Stop reading. What the peer sends stays in the kernel, and the peer notices."""
        self.paused = True

    def resume(self) -> None:
        """Read on."""
        self.paused = False

    def close(self, deadline: float, *, linger: bool, patient: bool = False) -> None:
        """Send what was collected, then close. The receiver hears nothing more, and `write` does nothing.

        Args:
          deadline: absolute time by which everything is released, unless the peer is taking what was collected; then
            as much time again, and so on. A steady peer has `MOST_WINDOWS` times as long.
          linger: end the sending direction only, then read and drop what comes until the peer closes too. Closing
            with unread bytes in the kernel makes it send a reset, which can destroy the last frames on their way.
          patient: leave it to the peer to end the stream first, and do not even end the sending direction before.
        """
        if self.closed or self._closing is not None:
            return
        self._shut = True
        self._detach()
        self.paused = self.more = False
        self._closing = linger or patient
        self._patient = patient
        try:
            if self.broken is not None:
                self.abort()
                return
            now = self._timers.tick()
            window = max(0.0, deadline - now)
            self._progress = Progress(self, window, now + MOST_WINDOWS * window)
            self._timer = Timer(self._timers, self._linger_ended, self)
            self._timer.arm(deadline)
            if self._out:
                self.flush()
            else:
                self._flushed_for_close()
        except Exception as error:
            self.report(error)

    def end_linger(self) -> None:
        """Do not wait any longer for the peer of a transport that is being closed: the kernel delivers what it has.

        One that is not being closed, or holds more than that, is aborted.
        """
        if self._closing is None or self._out:
            self.abort()
        elif not self.closed:
            self._release()

    def when_released(self, callback: Callable[[], None]) -> None:
        """Call `callback`, which must not raise, once the socket or stream is let go; now, if that was before."""
        if self.closed:
            callback()
        else:
            self._on_release = callback

    @abstractmethod
    def abort(self) -> None:
        """Close at once and drop what was collected; a TCP peer sees a reset."""

    @property
    def released(self) -> bool:
        """Whether nothing is left of it, below neither; see `Engine.wait_released`."""
        return self.closed

    @abstractmethod
    def _flushed_for_close(self) -> None:
        """Everything has left after `close`; what follows depends on `_closing`."""

    @abstractmethod
    def _release(self) -> None:
        """Let go of the socket or stream."""

    def _forget(self) -> None:
        """What every `_release` does first."""
        self.closed = self._shut = True
        self.receiver = _NOBODY
        self._out.clear()
        self.buffered = 0
        if self._timer is not None:
            self._timer.cancel()
        self._turns.note_release()
        if self._on_release is not None:
            callback, self._on_release = self._on_release, None
            callback()

    def _linger_ended(self, now: float) -> float | None:
        assert self._progress is not None
        following = self._progress.look(self, now)
        if following is not None:
            return following
        self.end_linger()
        return None

    def _feed(self, data: bytes) -> bool:
        """Feed the receiver, corked, and flush; `False` when that ended the transport.

        The receiver guards itself against the application's exceptions. What arrives here is a defect of this
        package, or that memory is short; it costs the one connection, never the task that reads for all of them.
        """
        self.corked = True
        try:
            self.receiver._on_data(data)
            self.corked = False
            if self._out:
                self.flush()
        except Exception as error:
            self.report(error)
        finally:
            self.corked = False
        if self.more:
            self.ask_for_turn()
        return not self.closed

    def _report_end(self) -> None:
        """The peer will send nothing more: tell the receiver, and flush what it has to say to that."""
        if self.broken is not None:
            self._fail(self.broken)
            return
        self.corked = True
        try:
            self.receiver._on_eof()
            self.corked = False
            if self._out:
                self.flush()
        except Exception as error:
            self.report(error)
        finally:
            self.corked = False

    def report(self, error: Exception) -> None:
        """An exception that nobody expects: log it with its traceback and give this one connection up. Never raises."""
        self._log("internal error; the connection with %s is aborted", error)
        self._fail(error)

    def break_down(self, error: Exception | None) -> None:
        """What serves this transport is gone, or nobody wants to wait for it any more."""
        self._fail(error)

    def _write_failed(self, error: Exception) -> None:
        """Nothing more can be written. What the peer has sent is read to its end first: it may say why (a Close frame).

        Drops what is queued. The receiver bounds the time by `break_down`, because a peer on the same machine can
        end its reading only and write on for ever.
        """
        if self.broken is not None or self.closed:
            return
        self.broken = _bare(error)
        self._shut = True
        self._out.clear()
        self.buffered = 0
        self.blocked = False
        if self._closing is not None:
            self.abort()
            return
        self.receiver._on_broken(error)
        if not self.closed:
            self._read_out()

    @abstractmethod
    def _read_out(self) -> None:
        """Have everything read that has come, though no sign of it may come any more."""

    def _fail(self, error: Exception | None) -> None:
        """The transport broke: tell the receiver once and release everything. Never raises."""
        if self.closed:
            return
        receiver = self._detach()
        try:
            self.abort()
        except Exception as defect:
            self._log("cannot abort the connection with %s", defect)
        for _ in range(2):  # where memory was short, there is more of it now
            try:
                receiver._on_lost(self.broken or error)
                return
            except Exception as defect:
                self._log("cannot end the connection with %s", defect)

    def _log(self, text: str, error: Exception) -> None:
        log.error(text, place(self.remote_address), exc_info=error)

    def _detach(self) -> Receiver:
        """Take the receiver away; what still comes up is dropped."""
        receiver, self.receiver = self.receiver, _NOBODY
        return receiver


def _bare(error: Exception) -> Exception:
    """Drop the tracebacks: their frames would keep the transport and its callers in memory.

    What was being handled when the system refused a call has nothing to do with it.
    """
    if type(error) is OSError or isinstance(error, ConnectionError):
        error.__context__ = None
    chain: list[BaseException | None] = [error]
    for each in chain:
        if each is not None and each.__traceback__ is not None:  # one that was here before has none any more
            each.__traceback__ = None
            chain += (each.__cause__, each.__context__)
    return error


def count_small(pieces: Sequence[bytes | bytearray | memoryview]) -> int:
    """How many of `pieces` go out together: those before the first large one, or that one alone if it comes first."""
    for count, piece in enumerate(pieces):
        if len(piece) >= JOIN_LIMIT:
            return count or 1
    return len(pieces)


class _Discard:
    """The receiver of a transport that nobody listens to any more."""

    __slots__ = ()

    def _on_data(self, data: bytes) -> None:
        pass

    def _on_eof(self) -> None:
        pass

    def _on_lost(self, error: Exception | None) -> None:
        pass

    def _on_broken(self, error: Exception) -> None:
        pass

    def _on_stalled(self) -> None:
        pass

    def _on_drained(self) -> None:
        pass


_NOBODY = _Discard()
