"""The end of a connection: the closing machine at work, and everything that happens by the clock.

`Ending` is the lowest of four layers that make a `Connection`: ending, sending, receiving, and the public face. Each
adds one concern and knows only those below it.

Theory of operation
    Whatever ends a connection is recorded (`_record`: the first error and the first initiator win) and then applied to
    the table in `_protocol/closing.py`, which says what the next phase is and what has to be done on the way. No code
    outside this module changes the phase. When the phase becomes `CLOSED` the `CloseInfo` is made, once, and everybody
    who waits is woken.

    One timer serves each connection. It fires at the earliest moment at which something could be due, looks at what is
    the case then, and is armed for the next moment. So traffic costs no timer operations: `_last_received` is stored at
    each read, and the heartbeat looks at it when the interval is over.
"""

from __future__ import annotations

import logging
import math
import os
from enum import Enum
from typing import Literal, NamedTuple

import trio

from .._closeinfo import CloseFrame, CloseInfo, check_close
from .._foreign import text_of
from .._log import log
from .._options import Options
from .._protocol.closing import TRANSITIONS, Action, Event, Phase
from .._protocol.encoding import encode_close, encode_ping, encode_pong
from .._protocol.events import CloseReceived, Fault
from .._protocol.framing import FrameReader
from .._protocol.masking import mask_frame
from .._request import Request
from .._transport.base import Transport
from .._transport.progress import MOST_WINDOWS, Progress, Rest, Watched
from .._transport.timers import Timer, Timers
from .._types import Address
from ..errors import (
    CloseTimeout,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    ConnectionLost,
    HeartbeatTimeout,
    SlowConsumer,
)

__all__ = ["Ending", "Parts", "State"]

ANSWER_STEP = 0.25
"""Seconds that a handler may take over one message while the peer waits for its Close to be answered."""

_FRAMES = {
    0x81: "text",
    0x82: "binary",
    0x88: "Close",
    0x89: "Ping",
    0x8A: "Pong",
    0xC1: "compressed text",
    0xC2: "compressed binary",
}


class State(Enum):
    """The state of a connection as an application sees it."""

    OPEN = "open"
    """Messages flow."""
    CLOSING = "closing"
    """One side has begun to close."""
    CLOSED = "closed"
    """The end; `close_info` is set."""


class PingSent:
    """A ping that waits for its pong."""

    __slots__ = ("answered", "latency", "sent_at")

    def __init__(self, sent_at: float) -> None:
        self.sent_at = sent_at
        self.latency: float | None = None
        self.answered: trio.Event | None = None


class Parts(NamedTuple):
    """What a connection is made of, on either side; the layers above add what is theirs."""

    id: str
    request: Request
    options: Options
    transport: Transport
    timers: Timers
    reader: FrameReader


class Ending:
    """State, end and timers of one connection."""

    __slots__ = (
        "__weakref__",
        "_answer_due",
        "_answer_limit",
        "_answer_mark",
        "_client",
        "_close_deadline",
        "_close_info",
        "_closed",
        "_debug",
        "_dressed",
        "_error",
        "_failing",
        "_handler_grace",
        "_initiator",
        "_last_received",
        "_latency",
        "_options",
        "_paused_mark",
        "_phase",
        "_ping_on_its_way",
        "_ping_sent_at",
        "_pings",
        "_progress_at",
        "_reader",
        "_received",
        "_resumed_at",
        "_scope",
        "_sent",
        "_stall_deadline",
        "_taken",
        "_terminal",
        "_timer",
        "_timers",
        "_transport",
        "_watched",
        "id",
        "request",
    )

    def __init__(self, parts: Parts) -> None:
        self.id, self.request, options, self._transport, timers, self._reader = parts
        self._options = options
        self._timers = timers
        self._timer = Timer(timers, self._on_timer, self._transport)
        self._scope = trio.CancelScope()
        self._debug = log.shows(logging.DEBUG)
        self._client = False
        self._dressed = self._debug  # whether anything is done with a frame before it is queued

        self._phase = Phase.OPEN
        self._error: Exception | None = None
        self._failing = False
        self._initiator: Literal["local", "remote"] | None = None
        self._sent: CloseFrame | None = None
        self._received: CloseFrame | None = None
        self._terminal: CloseReceived | Fault | None = None
        self._close_info: CloseInfo | None = None
        self._closed: trio.Event | None = None

        self._taken: int = 0
        self._answer_mark: int = 0
        self._answer_limit = math.inf
        self._answer_due = math.inf
        self._close_deadline = math.inf
        self._handler_grace = options.callback_timeout

        now = timers.tick()
        self._last_received = now
        self._resumed_at = now
        self._paused_mark = -1
        self._ping_sent_at: float | None = None
        self._pings: dict[bytes, PingSent] | None = None
        self._latency: float | None = None
        self._progress_at = now
        self._ping_on_its_way: Progress | None = None
        self._watched: tuple[tuple[Watched, Progress], ...] = ()
        self._stall_deadline = math.inf
        if options.ping_interval is not None:
            self._timer.arm(now + options.ping_interval)

    def _act_as_client(self) -> None:
        """Be the client's side: frames are masked (section 5.3), and the server ends the stream (section 7.1.1)."""
        self._client = self._dressed = True

    @property
    def remote_address(self) -> Address:
        """`(host, port)` of the peer, or the path of a Unix socket; readable for ever."""
        return self._transport.remote_address

    @property
    def local_address(self) -> Address:
        """`(host, port)` of this side, or the path of a Unix socket; readable for ever."""
        return self._transport.local_address

    # The closing machine

    def _apply(self, event: Event, frame: CloseFrame | None = None) -> bool:
        """Move on as the table says; `False` where the event means nothing any more."""
        row = TRANSITIONS.get((self._phase, event))
        if row is None:
            return False
        before = self._phase
        self._phase, actions = row
        if self._debug:
            log.debug("[%s] %s: %s -> %s", self.id, event.name, before.name, self._phase.name)
        for action in actions:
            if action is Action.SEND_CLOSE:
                self._send_close(frame or CloseFrame(None))
            elif action is Action.FINISH:
                both = self._sent is not None and self._received is not None
                self._transport.close(
                    self._timers.tick() + self._options.close_timeout, linger=not both, patient=both and self._client
                )
            else:
                self._drop()
        if self._phase is Phase.ANSWERING:
            self._begin_answering()
        elif self._phase is Phase.CLOSED:
            if self._close_info is None:  # else a transport that could not be aborted has said that it is lost
                self._become_closed(clean=event is Event.FLUSHED)
        else:
            self._begin_closing()
        return True

    def _drop(self) -> None:
        try:
            self._transport.abort()
        except Exception as error:  # whoever ends the connection is often somebody else
            self._transport.report(error)

    def _send_close(self, frame: CloseFrame) -> None:
        self._sent = frame
        self._initiate("local")
        # An error of the peer's side is that it has gone: it failed the connection, and not we.
        self._failing = self._error is not None and self._initiator == "local"
        self._write(encode_close(frame.code, frame.reason))

    def _write(self, frame: bytes) -> None:
        """Queue a whole frame."""
        self._transport.write(self._dress(frame) if self._dressed else frame)

    def _dress(self, frame: bytes) -> bytes | memoryview:
        if self._debug:
            log.debug("[%s] sent %s, %d bytes as a frame", self.id, _FRAMES[frame[0]], len(frame))
        return mask_frame(frame, os.urandom(4)) if self._client else frame

    def _initiate(self, side: Literal["local", "remote"]) -> None:
        if self._initiator is None:
            self._initiator = side

    def _record(self, error: Exception, side: Literal["local", "remote"]) -> None:
        """Something went wrong. The first error is the one that counts."""
        if self._error is None and self._phase is not Phase.CLOSED:
            self._error = error
        self._initiate(side)

    def _begin_answering(self) -> None:
        self._answer_mark = self._taken
        self._answer_limit = self._timers.now + self._options.close_timeout
        self._answer_due = min(self._timers.now + ANSWER_STEP, self._answer_limit)
        self._timer.arm(self._answer_due)

    def _begin_closing(self) -> None:
        if self._close_deadline == math.inf:
            now, timeout = self._timers.tick(), self._options.close_timeout
            self._close_deadline = now + timeout
            self._timer.arm(self._close_deadline)
            # The peer cannot answer a Close that has not reached it, nor in the middle of a frame of its own.
            self._watch(timeout, now + MOST_WINDOWS * timeout, self._transport, Rest(self._reader))
        self._wake_all()
        if self._phase is Phase.ENDING:
            self._transport.push()
            self._check_flushed()

    def _check_flushed(self) -> None:
        if self._phase is Phase.ENDING and self._transport.buffered == 0:
            self._apply(Event.FLUSHED)

    def _become_closed(self, *, clean: bool) -> None:
        self._close_info = self._describe(clean=clean and self._sent is not None and self._received is not None)
        self._timer.cancel()
        self._reader.finish()
        if self._closed is not None:
            self._closed.set()
        self._wake_all()
        # A handler that still runs has this long to notice; its scope is the one that the connection's task entered.
        self._scope.deadline = min(self._scope.deadline, self._timers.tick() + self._handler_grace)

    def _describe(self, *, clean: bool) -> CloseInfo:
        """The `CloseInfo`, final or as far as it is known.

        The code is the peer's, if it has sent a Close frame; that of ours, if an error made us send it; that of a fault
        of the peer which it could not be told any more; otherwise 1006. Until the end, an ordinary Close of ours stands
        for the answer that it will have. The class of `error` has no say: an application may raise any of the package's
        own.
        """
        frame, terminal = self._received, self._terminal
        if frame is None and self._failing:
            frame = self._sent
        elif isinstance(terminal, Fault):
            frame = CloseFrame(terminal.error.code)
        elif frame is None and self._phase is not Phase.CLOSED:
            frame = self._sent
        if frame is None:
            code, reason = 1006, ""
        else:
            code, reason = 1005 if frame.code is None else frame.code, frame.reason
        return CloseInfo(code, reason, clean, self._initiator or "local", self._sent, self._received, self._error)

    def _closed_error(self) -> ConnectionClosed:
        info = self._close_info
        if info is None:
            info = self._describe(clean=self._sent is not None and self._received is not None)
        kind = ConnectionClosedOK if info.clean else ConnectionClosedError
        return kind(info, self.id)

    def _conclude(self) -> None:
        """Everything before it is delivered; act on the Close, the fault or the end of the stream."""
        terminal = self._terminal
        if isinstance(terminal, CloseReceived):
            # Section 5.5.1: the answer echoes the code, and as it does with browsers, the reason too.
            self._apply(Event.ANSWERED, self._received)
        elif isinstance(terminal, Fault):
            self._apply(Event.FAIL, CloseFrame(*check_close(terminal.error.code, text_of(terminal.error))))
        else:
            self._apply(Event.PEER_ENDED)

    def _begin_local_close(self, code: int | None, reason: str = "") -> None:
        """Start the closing handshake, or finish the one that the peer started."""
        self._timers.tick()
        self._apply(Event.LOCAL_CLOSE, CloseFrame(code, reason))

    def _fail(self, error: Exception) -> None:
        """The application raised: the peer gets 1011 and no text (the text could hold secrets)."""
        self._record(error, "local")
        self._begin_local_close(1011)

    def _wait_for_handler(self) -> None:
        """The server shuts down: how long a handler may run on after the connection has closed is for the server."""
        self._handler_grace = math.inf

    @property
    def options(self) -> Options:
        """The options of its route."""
        return self._options

    async def _wait_closed(self) -> CloseInfo:
        if self._close_info is None:
            if self._closed is None:
                self._closed = trio.Event()
            self._transport.push()
            await self._closed.wait()
        else:
            await trio.lowlevel.checkpoint()
        assert self._close_info is not None
        return self._close_info

    # What the transport reports

    def _on_lost(self, error: Exception | None) -> None:
        """The transport is gone. It may say so twice, where the first time has failed half-way."""
        if self._phase is Phase.CLOSED and self._close_info is None:
            self._become_closed(clean=False)
            return
        reason = ConnectionLost(
            "the transport was closed" if error is None else f"the transport broke: {text_of(error)}"
        )
        reason.__cause__ = error
        if self._received is None:
            self._record(reason, "remote")
            self._apply(Event.LOST)
        else:
            # The peer has said goodbye and left: a browser whose tab is closed does not wait for the answer.
            self._apply(Event.FLUSHED if self._phase is Phase.ENDING else Event.LOST)

    def _on_broken(self, error: Exception) -> None:
        """Nothing more can be sent. What the peer has sent before may say why, so that is read first.

        Not for ever: a peer on the same machine can end its reading alone, and a handler may be busy. The time is the
        one that a closing handshake has.
        """
        if self._phase is Phase.OPEN:
            self._apply(Event.BROKEN)
        elif self._phase is not Phase.CLOSING:  # where the peer's Close is awaited, it may be among what has come
            self._transport.break_down(error)

    def _on_stalled(self) -> None:
        """The peer does not read; from here on its progress is watched."""
        self._progress_at = self._timers.tick()
        timeout = self._options.send_timeout
        if timeout is not None and self._stall_deadline == math.inf:
            self._stall_deadline = self._progress_at + timeout
            self._timer.arm(self._stall_deadline)
            if self._phase is Phase.OPEN and self._transport.in_kernel is not None:
                self._watched = ((self._transport, Progress(self._transport, timeout, endless=True)),)

    def _watch(self, window: float, limit: float, *ways: Watched) -> None:
        self._watched = tuple((way, Progress(way, window, limit)) for way in ways)

    def _look(self, now: float) -> float | None:
        """When to look again at a peer that moves; `None` if it does not."""
        following = [progress.look(way, now) for way, progress in self._watched]
        return max((moment for moment in following if moment is not None), default=None)

    # What the clock brings

    def _on_timer(self, now: float) -> float | None:
        if self._phase is Phase.OPEN:
            return self._watch_open(now)
        if self._phase is Phase.ANSWERING:
            if now >= self._answer_due:  # the timer may also fire for a heartbeat that was due
                if now >= self._answer_limit or self._taken == self._answer_mark:
                    self._conclude()
                    return None
                self._answer_mark = self._taken
                self._answer_due = min(now + ANSWER_STEP, self._answer_limit)
            return self._answer_due
        if self._phase is not Phase.CLOSED and now >= self._close_deadline:
            # A peer that takes nothing any more gets no more time for what it sends.
            following = None if self._transport.broken is not None else self._look(now)
            if following is None:
                self._give_up_closing()
                return None
            self._close_deadline = following
        return self._close_deadline

    def _finish(self, code: int) -> None:
        """The handler is done: close with `code`, or answer the peer that has closed."""
        self._timers.tick()
        if self._phase is Phase.ANSWERING:
            self._conclude()
        elif self._phase is Phase.OPEN or self._phase is Phase.MUTE:
            self._begin_local_close(code)

    def _give_up_closing(self) -> None:
        """The peer had its time to finish the closing handshake."""
        if self._transport.broken is not None:
            self._transport.break_down(None)
        elif self._phase is not Phase.CLOSED:
            self._record(CloseTimeout("the peer did not finish the closing handshake in time"), "local")
            self._apply(Event.TIMEOUT)
        if self._close_info is None:  # a transport says only once that it is lost, and here that has failed
            self._on_lost(self._transport.broken)

    def _watch_open(self, now: float) -> float | None:
        following = min(self._watch_stall(now), self._watch_heartbeat(now))
        return None if self._phase is not Phase.OPEN or following == math.inf else following

    def _watch_stall(self, now: float) -> float:
        """When to look again at a peer that does not read. It is given up when it took too little in `send_timeout`."""
        timeout = self._options.send_timeout
        if timeout is None or self._stall_deadline == math.inf:
            return math.inf
        if not self._transport.blocked:
            self._stall_deadline, self._watched = math.inf, ()
            return math.inf
        if now < self._stall_deadline:
            return self._stall_deadline
        # The kernel wants more only when a good part of what it has was acknowledged; until then it is asked.
        following = max(self._look(now) or 0, self._progress_at + timeout)
        if following <= now:
            self._record(SlowConsumer(f"the peer took nothing for {timeout} s, or next to nothing"), "local")
            self._apply(Event.LOST)
            return math.inf
        self._stall_deadline = following
        return following

    def _watch_heartbeat(self, now: float) -> float:
        """Ping a silent peer, give up a dead one, and say when to look again.

        Everything that is received is life. While *we* do not read, the peer's pong could not be seen, so the clock
        stands still and starts anew when reading goes on. While reading is paused we send
        an unsolicited pong; the write fails if the peer is gone.
        """
        interval, timeout = self._options.ping_interval, self._options.ping_timeout
        if interval is None or self._phase is not Phase.OPEN:
            return math.inf
        if self._transport.paused:
            if self._taken == self._paused_mark and not self._transport.blocked:
                # Nobody reads, so nobody would ever see the end of the stream. A pong that is not asked for (section
                # 5.5.3) wants no answer, but fails where there is no peer any more.
                self._write(encode_pong(b""))
            self._paused_mark = self._taken
            return now + interval
        if self._ping_sent_at is not None and self._last_received >= self._ping_sent_at:
            self._ping_sent_at = None
        if self._ping_sent_at is not None and timeout is not None:
            if self._transport.blocked and self._options.send_timeout is not None:
                # The ping waits behind what the peer is still taking, which `send_timeout` watches over.
                self._resumed_at = now
                return now + min(interval, timeout)
            due = max(self._ping_sent_at, self._resumed_at) + timeout
            if now >= due and self._ping_on_its_way is not None:
                following = self._ping_on_its_way.look(self._transport, now)
                if following is not None:
                    self._resumed_at = now
                    due = following
            if now >= due:
                self._record(HeartbeatTimeout(f"no sign of life for {timeout} s after a ping"), "local")
                self._apply(Event.LOST)
                return math.inf
            return min(due, now + interval)  # the pong may come long before it is due
        due = max(self._last_received, self._ping_sent_at or 0) + interval
        if now < due:
            return due
        self._ping_sent_at = now
        self._send_ping(now)
        if timeout is not None:
            progress = Progress(self._transport, timeout)
            self._ping_on_its_way = progress if progress.pending else None
        return now + (interval if timeout is None else min(interval, timeout))

    def _send_ping(self, now: float) -> PingSent:
        payload = os.urandom(8)  # a forged pong should not measure as a latency
        if self._pings is None:
            self._pings = {}
        if len(self._pings) >= 64:  # only without ping_timeout does a silent peer let them pile up
            forgotten = next((sent for sent, ping in self._pings.items() if ping.answered is None), None)
            if forgotten is not None:  # one that a task waits for must stay
                del self._pings[forgotten]
        self._pings[payload] = ping = PingSent(now)
        self._reader.credit_ping()
        self._write(encode_ping(payload))
        return ping

    def _pong_received(self, payload: bytes) -> None:
        """Section 5.5.3: a pong answers the ping that it quotes, and with it all earlier ones."""
        if not self._pings or payload not in self._pings:
            return
        now = self._timers.tick()
        sent: bytes | None = None
        while sent != payload:
            sent = next(iter(self._pings))
            ping = self._pings.pop(sent)
            self._latency = ping.latency = now - ping.sent_at
            if ping.answered is not None:
                ping.answered.set()
        if not self._pings:
            self._pings = None  # an empty dict that once held something is not small

    def _wake_all(self) -> None:
        """Whoever waits for something that an ending connection cannot give any more."""
        if self._phase is Phase.CLOSED and self._pings:
            for ping in self._pings.values():
                if ping.answered is not None:
                    ping.answered.set()
            self._pings = None
