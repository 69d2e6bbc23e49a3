"""Deadlines of all connections in one heap, served by one task.

A `Timer` belongs to one connection and is armed for the earliest moment at which something could be due. It is cheap to
arm again and again: an entry that is no longer the timer's own is skipped when its time comes, so nothing is ever
searched for in the heap. Most timers are armed once per ping interval, whatever the traffic is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Protocol

import trio

__all__ = ["Timer", "Timers"]

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
      clock: `tick`, bound once for all who keep it.
      now: the time when the current batch of events began; cheaper than asking for the time at every message.
    """

    __slots__ = ("_heap", "_order", "_scope", "_stale", "_time", "clock", "now")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = count()
        self._scope: trio.CancelScope | None = None
        self._stale = 0
        self._time = trio.lowlevel.current_clock().current_time  # `trio.current_time`, without a way through the runner
        self.now = self._time()
        self.clock = self.tick

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

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Fire timers until cancelled."""
        while True:
            deadline = self._heap[0][0] if self._heap else math.inf
            with trio.CancelScope(deadline=deadline) as self._scope:
                await trio.sleep_forever()
            self._scope = None
            self._fire_due(self.tick())

    def _fire_due(self, now: float) -> None:
        while self._heap and self._heap[0][0] <= now:
            deadline, _, timer = heappop(self._heap)
            if timer.deadline == deadline:
                timer.fire(now)
            else:
                self._stale = max(0, self._stale - 1)
