"""Turns: what is put off to the next scheduler pass, and the task that does it then; see `base`."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import trio

from .timers import PASS_TIME

if TYPE_CHECKING:
    from .base import Transport

__all__ = ["TurnQueue"]


class TurnQueue:
    """The transports that want a turn in the next scheduler pass, and the task that gives it to them.

    Attributes:
      crowded: many connections have got something to work on just now. Their answers are collected for one turn: a
        system call after each task would leave little of the interpreter in the processor's caches for the next one.
      passes: a counter of scheduler passes, which goes on after each `count_pass`; equality with a transport's
        `_last_pass` means "already written in this pass".
      parked: nobody has asked for the next pass; see `count_pass`.
      pumped: how often a stream has been read.
    """

    __slots__ = (
        "_release",
        "_shared_pass",
        "_shared_until",
        "_task",
        "_waiting",
        "crowded",
        "parked",
        "passes",
        "pumped",
    )

    def __init__(self) -> None:
        self._shared_pass = -1
        self._shared_until = 0.0
        self.crowded = False
        self.passes: int = 0
        self.parked = False
        self.pumped: int = 0
        self._waiting: list[Transport] = []
        self._task: trio.lowlevel.Task | None = None
        self._release: trio.Event | None = None

    def add(self, transport: Transport) -> None:
        """Give `transport` a turn in the next pass."""
        self._waiting.append(transport)
        if self.parked:
            self.count_pass()

    @property
    def behind(self) -> list[Transport]:
        """The transports that have something to read that waits for a turn."""
        return [transport for transport in self._waiting if transport.behind]

    def has_time(self) -> bool:
        """Whether one of many tasks that work for peers may do so in this pass; else it asks for a turn."""
        now = perf_counter()
        if self._shared_pass != self.passes:  # the first one of them in this pass
            self._shared_pass = self.passes
            self._shared_until = now + PASS_TIME
            if self.parked:
                self.count_pass()
        return now < self._shared_until

    def count_pass(self) -> None:
        """Have the task, which is `parked`, run in the next pass, with or without turns to give."""
        assert self._task is not None
        self.parked = False
        trio.lowlevel.reschedule(self._task)

    def note_release(self) -> None:
        """A transport has let go of its socket or stream."""
        if self._release is not None:
            self._release.set()

    async def wait_release(self) -> None:
        """Wait until the next transport has let go. Cancellation has no effect beyond the waiting."""
        if self._release is None or self._release.is_set():
            self._release = trio.Event()
        await self._release.wait()

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Give turns until cancelled."""
        while True:
            self.passes += 1
            if self._waiting:
                await trio.lowlevel.checkpoint()
            else:
                self._task = trio.lowlevel.current_task()
                self.parked = True
                await trio.lowlevel.wait_task_rescheduled(self._abort)
            batch, self._waiting = self._waiting, []
            fed = 0.0
            turns = iter(batch)
            for transport in turns:
                # Only what is fed is counted, because peers decide how much that is. A publish is flushed in one pass.
                began = perf_counter() if transport.unread else 0.0
                try:
                    transport.turn()
                except Exception as error:
                    transport.report(error)
                if began:
                    fed += perf_counter() - began
                    if fed > PASS_TIME:
                        self._waiting[:0] = turns  # they come first in the next pass
                        break

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self.parked = False
        return trio.lowlevel.Abort.SUCCEEDED
