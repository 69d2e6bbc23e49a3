"""The way in: bytes to messages, messages to the handler, in order and within a bounded buffer.

Theory of operation
    Whoever reads calls `_on_data`. It parses, answers control frames on the spot, and delivers messages. There are
    three ways to deliver, and all keep the order:

    * The connection's task is parked and waits for a message: the message is put into the inbox and the task is woken.
    * The task is busy: the message waits in the inbox. Beyond `receive_buffer` the transport is paused, and the kernel
      makes the peer wait.
    * All message callbacks are plain functions, the task is parked and the inbox is empty: `_on_data` itself calls the
      function, in the task's context. That saves two task switches for each batch.

    An async `on_ping` or `on_pong` beside a session runs in a task of its own, one at a time: a deadline around
    `receive` must not cut it in its middle. `receive` waits for it before it takes what came behind, whoever calls it.

    Two kinds of consumers take from the inbox: `receive`, for sessions, and `run_callbacks`, the loop of the callback
    styles. When the inbox is empty, what comes next is the end: the peer's Close, a fault, or the end of the stream.
    So the consumer that finds the inbox empty in the phase `ANSWERING` concludes it (`Ending._conclude`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import trio

from .._closeinfo import CloseCode, CloseFrame
from .._log import log
from .._protocol.closing import Event, Phase
from .._protocol.events import CloseReceived, Fault, Ping, Pong
from .._protocol.events import Event as FrameEvent
from .._types import Message
from ..errors import ConnectionLost, ProtocolError
from .calling import call, refuse_awaitable
from .ending import Parts
from .handlers import Callback, Callbacks
from .sending import Sending
from .tasks import CallbacksReceive, log_failure, sort_out

__all__ = ["Receiving"]

_OPEN, _ANSWERING, _MUTE, _CLOSING = Phase.OPEN, Phase.ANSWERING, Phase.MUTE, Phase.CLOSING  # used for every message

EVENTS_PER_TURN = 128
"""Messages and control frames of one connection before the others get their turn."""

TAKEN_PER_TURN = 256
"""Messages that a handler takes from the inbox before it has to yield once."""

_OVERHEAD = 64
"""Bytes that a message in the inbox is counted for beyond its length: what Python needs to keep it."""


class _Control:
    """An async `on_ping` or `on_pong` that runs in a task of its own."""

    __slots__ = ("ended", "task")

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.task: trio.lowlevel.Task | None = None


class Receiving(Sending):
    """The inbox of one connection.

    Attributes:
      messages_received: messages that came in so far.
      bytes_received: bytes that came in so far, headers and control frames included.
    """

    __slots__ = (
        "_callbacks",
        "_control",
        "_idle",
        "_inbox",
        "_inbox_size",
        "_interrupt",
        "_read_ahead",
        "_waiter",
        "bytes_received",
        "messages_received",
    )

    def __init__(self, parts: Parts, callbacks: Callbacks) -> None:
        super().__init__(parts)
        self._callbacks = callbacks
        self._inbox: deque[str | bytes | Ping | Pong] | None = None  # made with the first message; it is not small
        self._inbox_size = 0
        self._read_ahead = parts.options._read_ahead
        self._interrupt: BaseException | None = None
        self._waiter: trio.lowlevel.Task | None = None
        self._control: _Control | None = None
        self._idle = False
        self.messages_received = 0
        self.bytes_received = 0

    def _begin(self, early_data: bytes) -> None:
        """Take the frames that came together with the request, and read on."""
        if early_data:
            self._on_data(early_data)
        if self._transport.broken is not None:
            self._on_broken(self._transport.broken)
        if self._inbox_size <= self._read_ahead:  # else it goes on when the handler has taken enough
            self._transport.resume()

    # What the transport brings

    def _on_data(self, data: bytes) -> None:
        """Take bytes from the peer."""
        self.bytes_received += len(data)
        self._last_received = self._timers.now
        if self._phase is not _OPEN and self._phase is not _CLOSING and self._phase is not _MUTE:
            return
        reader = self._reader
        inbox = self._inbox
        events = reader.receive(data, EVENTS_PER_TURN)
        if self._debug:
            self._log_received(events)
        for event in events:
            if isinstance(event, str):
                callback = self._callbacks.text
            elif isinstance(event, bytes):
                callback = self._callbacks.binary
            else:
                self._take_control(event)
                inbox = self._inbox
                continue
            self.messages_received += 1
            if self._idle and not inbox and self._callbacks.inline:
                self._call_inline(callback, event)
                inbox = self._inbox
            elif self._phase is _OPEN or self._phase is _MUTE:
                if inbox is None:
                    inbox = self._inbox = deque()
                inbox.append(event)
                self._inbox_size += len(event) + _OVERHEAD
        if reader.backlog:
            self._transport.more = True
        if inbox:
            if self._waiter is not None:
                self._wake()
            if self._inbox_size > self._read_ahead and not self._transport.paused:
                self._transport.pause()
                if self._phase is _MUTE and self._progress is not None:
                    self._progress.unpark_all()  # see `_reason_to_stop`

    def _on_eof(self) -> None:
        """The stream has ended, perhaps without a Close frame. May be told more than once."""
        if self._phase is Phase.OPEN or self._phase is Phase.CLOSING:
            self._record(ConnectionLost("the peer ended the stream without a Close frame"), "remote")
            if self._phase is Phase.OPEN:
                self._apply(Event.PEER_CLOSE)
                self._conclude_if_idle()
            else:
                self._apply(Event.PEER_ENDED)
        # Otherwise the end has begun already, and a peer that has ended its direction may still read ours.

    def _take_control(self, event: Ping | Pong | CloseReceived | Fault) -> None:
        if isinstance(event, Ping):
            self._answer_ping(event.payload)
            if self._callbacks.ping is not None:
                self._enqueue_control(event)
        elif isinstance(event, Pong):
            self._pong_received(event.payload)
            if self._callbacks.pong is not None:
                self._enqueue_control(event)
        else:
            self._take_terminal(event)

    def _log_received(self, events: list[FrameEvent]) -> None:
        """What came, but never what it says."""
        for event in events:
            if isinstance(event, str):
                log.debug("[%s] received text of %d characters", self.id, len(event))
            elif isinstance(event, bytes):
                log.debug("[%s] received binary of %d bytes", self.id, len(event))
            else:
                log.debug("[%s] received %s", self.id, type(event).__name__)

    def _enqueue_control(self, event: Ping | Pong) -> None:
        if self._phase is _OPEN or self._phase is _MUTE:
            if self._inbox is None:
                self._inbox = deque()
            self._inbox.append(event)
            self._inbox_size += len(event.payload) + _OVERHEAD

    def _take_terminal(self, event: CloseReceived | Fault) -> None:
        if isinstance(event, CloseReceived):
            self._received = CloseFrame(event.code, event.reason)
            self._initiate("remote")
            moved = Event.PEER_CLOSE
        else:
            self._record(event.error, "local")
            # With a Close of ours on its way there is nothing left to be said.
            moved = Event.FAIL if self._phase is _CLOSING else Event.PEER_CLOSE
        self._terminal = event
        self._apply(moved)
        self._conclude_if_idle()

    def _conclude_if_idle(self) -> None:
        if self._phase is Phase.ANSWERING and self._waiter is not None:
            if self._inbox:
                self._wake()
            else:
                self._conclude()

    def _call_inline(self, callback: Callback | None, message: str | bytes) -> None:
        """Call a plain message callback right here, in the context of the connection's task."""
        if callback is None:
            self._no_callback(message)
            return
        assert self._waiter is not None
        self._taken += 1
        try:
            result = self._waiter.context.run(callback.function, self, message)
            if result is not None:
                refuse_awaitable(callback, result)
        except BaseException as error:
            own, rest = sort_out(self.id, error)
            try:
                if own is not None:
                    self._handler_failed(own)
                if rest is not None:
                    # SystemExit and its like end the program, but by way of the connection's task, as from an async
                    # callback. The poller (or the read pump) must not end.
                    self._interrupt = rest
                    self._wake()
            finally:
                del own, rest  # they refer to this frame, and so to themselves

    def _handler_failed(self, error: Exception) -> None:
        """The application raised: the connection ends, and the log says why."""
        self._fail(error)
        log_failure(self, "the handler", error)

    @trio.lowlevel.enable_ki_protection
    def _no_callback(self, message: str | bytes) -> None:
        """A kind of message that the application has no callback for: nobody listens at all, or only to the other."""
        if self._callbacks.text is self._callbacks.binary:
            return
        kind = "text" if type(message) is str else "binary"
        self._record(ProtocolError(CloseCode.UNSUPPORTED_DATA, f"{kind} messages are not accepted here"), "local")
        self._begin_local_close(CloseCode.UNSUPPORTED_DATA, f"{kind} messages are not accepted here")

    # What the handler takes

    @trio.lowlevel.enable_ki_protection
    async def receive(self) -> Message:
        """Wait for the next message.

        Returns:
          `str` for a text message, `bytes` for a binary one.

        Raises:
          ConnectionClosed: the connection has ended and everything that came before has been taken.
          trio.BusyResourceError: at once; another task is waiting in `receive`, or the messages go to callbacks: beside
            `on_open`, `on_message` and their like nobody else can take one. Where that leaves a task of `start_soon`,
            it is logged and costs that task alone.

        Cancellation: always a cancellation point; a message is never lost by it. A point where other tasks run when
        there is nothing to take, and now and then when there is.
        """
        if self._waiter is not None or self._callbacks.session is None:
            raise self._busy()
        if self._inbox and self._taken % TAKEN_PER_TURN:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
            if self._inbox:
                await trio.lowlevel.checkpoint()
        while True:
            if self._control is not None:
                await self._wait_control(self._control)
                continue
            while not self._inbox:
                if self._phase is Phase.CLOSED:
                    raise self._closed_error()
                if self._waiter is not None:  # another task took the message that this one was woken for
                    raise self._busy()
                if self._prepare_to_park():
                    await trio.lowlevel.wait_task_rescheduled(self._stop_waiting)
            event = self._take(self._inbox)
            if not isinstance(event, (Ping, Pong)):
                return event
            callback = self._callbacks.ping if isinstance(event, Ping) else self._callbacks.pong
            if callback is None or not callback.is_async:
                await self._call_control(event)
            else:
                # Whoever has a deadline around `receive` means the waiting for a message, and not what is done here.
                self._control = _Control()
                self._start_child(self._run_control, self._control, callback, event.payload)

    def _start_child(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        """Start a task that belongs to this connection."""

    @trio.lowlevel.enable_ki_protection
    async def _run_control(self, control: _Control, callback: Callback, payload: bytes) -> None:
        """The task of an async `on_ping` or `on_pong` beside a session."""
        control.task = trio.lowlevel.current_task()
        try:
            await call(callback, self, payload)
        finally:
            self._control = None
            control.ended.set()

    async def _wait_control(self, control: _Control) -> None:
        """Wait for the `on_ping` or `on_pong` that comes before the next message."""
        if control.task is trio.lowlevel.current_task():
            raise trio.BusyResourceError("the next message comes after on_ping or on_pong, which cannot wait for it")
        await control.ended.wait()

    def _busy(self) -> Exception:
        """Why a task must not wait for a message."""
        if self._callbacks.session is not None:
            return trio.BusyResourceError("another task is already waiting for the next message")
        if self._phase is Phase.CLOSED:
            return self._closed_error()
        return CallbacksReceive(self.id)

    async def _run_callbacks(self) -> None:
        """Call the callbacks for every message, until the connection has ended and the inbox is empty."""
        # Protection from KeyboardInterrupt belongs to the code of a function: parking needs it, and the callbacks must
        # not have it. So `_work`, which calls them, is a coroutine of its own; this one has the protection of `live`.
        while True:
            if self._inbox:
                await self._work()
            if self._phase > _MUTE:
                return
            if self._prepare_to_park():
                self._idle = True
                await trio.lowlevel.wait_task_rescheduled(self._stop_waiting)
                if self._interrupt is not None:
                    interrupt, self._interrupt = self._interrupt, None
                    try:
                        raise interrupt
                    finally:
                        del interrupt  # it refers to this frame, and so to itself

    @trio.lowlevel.disable_ki_protection  # an interrupt ends the handler, wherever it comes, so no harm is done
    async def _work(self) -> None:
        """Call the callbacks for what is in the inbox."""
        while self._inbox:
            event = self._take(self._inbox)
            if isinstance(event, str):
                callback = self._callbacks.text
            elif isinstance(event, bytes):
                callback = self._callbacks.binary
            else:
                await self._call_control(event)
                continue
            if callback is None:
                self._no_callback(event)
            elif callback.is_async:
                await callback.function(self, event)
            else:
                refuse_awaitable(callback, callback.function(self, event))
            if self._taken % TAKEN_PER_TURN == 0:
                await trio.lowlevel.checkpoint()

    @trio.lowlevel.enable_ki_protection
    def _take(self, inbox: deque[str | bytes | Ping | Pong]) -> str | bytes | Ping | Pong:
        event = inbox.popleft()
        self._taken += 1
        if inbox:
            self._inbox_size -= _OVERHEAD + (len(event) if isinstance(event, (str, bytes)) else len(event.payload))
        else:
            self._inbox_size = 0
            self._transport.eager = True
        if self._transport.paused and self._inbox_size <= self._read_ahead // 2:
            self._resume()
        return event

    def _resume(self) -> None:
        self._resumed_at = self._timers.tick()
        try:
            self._transport.resume()
        except Exception as error:
            self._transport.report(error)

    async def _call_control(self, event: Ping | Pong) -> None:
        callback = self._callbacks.ping if isinstance(event, Ping) else self._callbacks.pong
        if callback is not None:
            await call(callback, self, event.payload)

    def _prepare_to_park(self) -> bool:
        """Flush, and have the current task woken by the next message or change of phase.

        `False` when there is no need to park, because this very call has changed the phase.
        """
        self._transport.flush_to_park()
        if self._phase is not _OPEN:
            if self._phase is _ANSWERING:
                self._conclude()
                return False
            if self._phase is Phase.CLOSED:
                return False
        self._waiter = trio.lowlevel.current_task()
        return True

    def _stop_waiting(self, _: object) -> trio.lowlevel.Abort:
        # From here on `_on_data` sees a busy task, so a cancelled connection gets no more plain callbacks.
        self._waiter = None
        self._idle = False
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake(self) -> None:
        task, self._waiter = self._waiter, None
        self._idle = False
        if task is not None:
            trio.lowlevel.reschedule(task)

    def _wake_all(self) -> None:
        super()._wake_all()
        if self._phase is Phase.CLOSING and self._transport.paused:
            self._resume()  # the peer's Close is still read
        self._wake()

    def _begin_local_close(self, code: int | None, reason: str = "") -> None:
        # What was not taken before our Close is not delivered any more, nor is what comes (RFC 6455 section 1.4).
        self._inbox = None
        self._inbox_size = 0
        super()._begin_local_close(code, reason)
