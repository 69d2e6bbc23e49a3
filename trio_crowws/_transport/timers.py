"""Deadlines of all connections in one heap, served by one task.

A `Timer` belongs to one connection and is armed for the earliest moment at which something could be due. It is cheap to
arm again and again: an entry that is no longer the timer's own is skipped when its time comes, so nothing is ever
searched for in the heap. Most timers are armed once per ping interval, whatever the traffic is.

Read first, then judge
    A process may stand still: stopped, suspended, or in a callback that blocks. When it goes on, all its deadlines have
    passed, and what its peers have sent in time still waits in the kernel. So whatever has been waiting is read before
    any timer fires (`Engine._catch_up`). Trio's own deadlines know nothing of that: a scope is cancelled in the very
    pass in which its task could have gone on. Where a deadline is about a peer, a `FairScope` takes the place of
    Trio's, or the task that is late calls `catch_up` and looks again.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from heapq import heapify, heappop, heappush
from itertools import count
from time import perf_counter
from types import TracebackType
from typing import Protocol

import trio

__all__ = ["PASS_TIME", "FairScope", "Timer", "Timers"]

PASS_TIME = 0.002
"""Seconds of work for peers within one scheduler pass, for each of those who do it. Going round costs about a hundredth
of it; all other tasks of the program wait for that long a few times over."""

LATE = 0.05
"""Seconds. A loop this late was stopped or blocked; a smaller delay is normal work, and the sockets were read during
it."""

_CATCH_UP_TIME = 1.0
"""Seconds for `catch_up`, which usually takes milliseconds."""

_PURGE_AT = 1024
"""Below so many entries, stale ones are not worth a search."""


class Owner(Protocol):
    """Whose timer it is."""

    def report(self, error: Exception) -> None:
        """Take an exception that nobody expects; it must cost the owner alone."""


class Timer:
    """One connection's next deadline.

    `callback(now)` runs at the deadline and returns the next one, or `None`. What it raises goes to `owner`.
    """

    __slots__ = ("_callback", "_owner", "_timers", "deadline")

    def __init__(self, timers: Timers, callback: Callable[[float], float | None], owner: Owner) -> None:
        self._timers = timers
        self._callback: Callable[[float], float | None] | None = callback
        self._owner: Owner | None = owner
        self.deadline = math.inf

    def arm(self, deadline: float) -> None:
        """Fire at `deadline`, or before that if an earlier deadline is already set."""
        if deadline < self.deadline and self._callback is not None:
            self.deadline = deadline
            self._timers.push(self)

    def cancel(self) -> None:
        """Never fire again, and let go of the callback and the owner."""
        self._callback = self._owner = None
        if self.deadline != math.inf:
            self.deadline = math.inf
            self._timers.note_stale()

    def fire(self, now: float) -> None:
        """Called by `Timers` when the deadline has come; a timer that was cancelled has none."""
        self.deadline = math.inf
        owner = self._owner
        assert self._callback is not None
        assert owner is not None
        try:
            following = self._callback(now)
            if following is not None:
                self.arm(following)
        except Exception as error:
            owner.report(error)


class Timers:
    """The heap, the task that serves it, and the time as of the current scheduler pass.

    Attributes:
      clock: the time, as a function for those who keep it.
      now: the time when the current batch of events began; cheaper than asking for the time at every message.
      stood_still: for how many seconds the loop did not run when what is being judged was due; 0 if it did.
      reader: reads whatever has been waiting, and all of it if the loop has stood still; set by the engine.
    """

    __slots__ = (
        "_ended",
        "_heap",
        "_order",
        "_readings",
        "_scope",
        "_scopes",
        "_stale",
        "_time",
        "clock",
        "now",
        "reader",
        "stood_still",
    )

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = count()
        self._scope: trio.CancelScope | None = None
        self._stale = 0
        self._readings: dict[bool, trio.Event] = {}  # those under way: whether of everything, and when they are over
        self._ended = False
        self._scopes: set[FairScope] = set()
        self.stood_still = 0.0
        self.reader: Callable[[bool], Awaitable[None]] | None = None
        self._time = trio.lowlevel.current_clock().current_time  # `trio.current_time`, without a way through the runner
        self.now = self._time()
        self.clock = self._time

    def tick(self) -> float:
        """Bring `now` up to date and return it."""
        self.now = self._time()
        return self.now

    def push(self, timer: Timer) -> None:
        """Enter `timer` at its deadline."""
        heappush(self._heap, (timer.deadline, next(self._order), timer))
        if self._scope is not None and timer.deadline < self._scope.deadline:
            self._scope.deadline = timer.deadline

    def note_stale(self) -> None:
        """One entry has become stale; when most are, they are thrown out, so that dead connections hold no memory."""
        self._stale += 1
        if len(self._heap) > _PURGE_AT and self._stale * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[0] == entry[2].deadline]
            heapify(self._heap)
            self._stale = 0

    async def catch_up(self, *, all_of_it: bool = True) -> None:
        """Read whatever has been waiting, so that nobody is judged by what was not heard of them.

        Shielded, because who calls it is mostly cancelled already; the deadline bounds it. However many do so at the
        same time, they share one reading.
        """
        with trio.CancelScope(deadline=self._time() + _CATCH_UP_TIME, shield=True):
            if all_of_it in self._readings:  # it began before, so it may have passed by what the caller waits for
                await self._readings[all_of_it].wait()
            if all_of_it in self._readings:  # another one who has waited for it has begun the next
                await self._readings[all_of_it].wait()
            else:
                await self._read(all_of_it)

    async def _read(self, all_of_it: bool) -> None:
        if self.reader is None or self._ended:
            return
        self._readings[all_of_it] = over = trio.Event()
        try:
            await self.reader(all_of_it)
        finally:
            if self._readings.get(all_of_it) is over:
                del self._readings[all_of_it]
            over.set()

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Fire timers until cancelled."""
        try:
            while True:
                deadline = self._heap[0][0] if self._heap else math.inf
                with trio.CancelScope(deadline=deadline) as self._scope:
                    await trio.sleep_forever()
                self._scope = None
                await self._judge(self.tick())
        finally:
            self._ended = True
            for scope in self._scopes:  # nobody else is left who could end them
                scope.leave_to_trio()
            self._heap.clear()  # and nothing refers to itself
            self.reader = None

    async def _judge(self, now: float) -> None:
        """Fire what is due at `now`, after everything has been read that came until then."""
        if not self._heap or self._heap[0][0] > now:
            return
        late = now - self._heap[0][0]
        stood_still = late > LATE
        await self._read(stood_still)
        while True:
            self.stood_still = late if stood_still else 0.0
            done = self._fire_due(now)
            self.stood_still = 0.0
            if done:
                return
            await trio.lowlevel.checkpoint()

    def _fire_due(self, now: float) -> bool:
        """Fire what is due, as long as there is time for it in this pass; whether that was all."""
        until = perf_counter() + PASS_TIME
        while self._heap and self._heap[0][0] <= now:
            if perf_counter() > until:
                return False
            deadline, _, timer = heappop(self._heap)
            if timer.deadline == deadline:
                timer.fire(now)
            else:
                self._stale = max(0, self._stale - 1)
        return True


class FairScope:
    """A cancel scope whose deadline is judged as all timers are: after what came in time was read.

    Used as `with FairScope(timers, deadline) as scope`.

    Args:
      timers: who judge it. When they have ended, Trio does.
      deadline: absolute.
      has_moved: asked when the loop has stood still: whether the peer has done its part at `now` or later. Then it gets
        the time back in which the loop stood still, but no more than it had at first.
    """

    __slots__ = ("_deadline", "_has_moved", "_most", "_scope", "_timer", "_timers")

    def __init__(self, timers: Timers, deadline: float, has_moved: Callable[[float], bool] | None = None) -> None:
        self._timers = timers
        self._deadline = deadline
        self._most = deadline - timers.tick()
        self._has_moved = has_moved
        self._scope = trio.CancelScope()
        self._timer = Timer(timers, self._on_timer, self)

    @trio.lowlevel.enable_ki_protection
    def __enter__(self) -> trio.CancelScope:
        if self._timers._ended:
            self.leave_to_trio()
        else:
            self._timers._scopes.add(self)
            self._timer.arm(self._deadline)
        return self._scope.__enter__()

    @trio.lowlevel.enable_ki_protection
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._timers._scopes.discard(self)
        self._timer.cancel()
        return bool(self._scope.__exit__(kind, error, traceback))

    def leave_to_trio(self) -> None:
        """There are no timers any more."""
        self._scope.deadline = self._deadline

    def report(self, error: Exception) -> None:
        """Whoever was asked has failed: that is no reason for more time."""
        self._scope.cancel()

    def _on_timer(self, now: float) -> float | None:
        if self._timers.stood_still and self._has_moved is not None and self._has_moved(now):
            return now + min(self._timers.stood_still, self._most)
        self._scope.cancel()
        return None
