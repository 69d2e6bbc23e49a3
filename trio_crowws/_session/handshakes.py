"""What holds a socket and is no open connection: counted, and bounded by the option `max_handshakes`.

Theory of operation
    A peer that has been accepted is in one of three states until it is a connection or gone:

    * *waiting*: it is for the peer to go on. Its TLS handshake or its request is not complete, or it has been answered
      and has to take the answer and close.
    * *held*: its request is complete, and the application decides about it, within `handshake_timeout`.
    * a connection, for which `max_connections` counts, or gone.

    Where the bound is reached and somebody new comes, the one that has been *waiting* for longest is dropped. An honest
    peer is done in milliseconds, so this one is nearly always a peer that drips, or one that does not read. It has at
    least `PATIENCE` seconds, though; until then, and where all are held, nobody is accepted: a storm of honest peers
    waits in the kernel's queue for as long as the work of this process takes, and is not sent away.

    The same is done, after `HURRY` seconds, where the process has no descriptor left.

    Bodies of answers have a bound of their own, `MOST_BYTES`. What counts is the object: a page that is the same one
    for all who ask is in memory once, one that is made anew for each request once for each peer that has not taken it.
    Where the bound is reached, nothing more is asked of a function that has made such a body before; it waits until
    another one is taken, or until one is dropped whose peer takes nothing. Who takes its answer is not dropped.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Protocol

import trio

from .._log import log

__all__ = ["Handshakes"]

PATIENCE = 0.5
"""Seconds that a peer may be waited for, however many others there are: some round trips in most networks."""

HURRY = 0.1
"""The same where there is no descriptor left, and so no queue in which honest peers get on."""

MOST_BYTES = 64 * 1024 * 1024
"""Bytes in the bodies of answers under way; beyond that no more of them are made."""

SMALL_BODY = 4 * 1024
"""Bytes of a body that is not counted, as that of a health check: `max_handshakes` bounds these."""

LEAST_RATE = 1024
"""Bytes a second that a peer has to take of its answer; the same that keeps other clocks of the framework going."""


class Handshake(Protocol):
    """One peer, as it is seen from here."""

    @property
    def taken(self) -> int:
        """Bytes that the peer has taken so far."""
        ...

    def drop(self) -> None:
        """Let go of the peer now."""


class _Answer:
    """A body under way to one peer, and when the peer was last seen to take some of it."""

    __slots__ = ("body", "since", "taken")

    def __init__(self, body: bytes, taken: int) -> None:
        self.body = body
        self.taken = taken
        self.since = trio.current_time()

    def look(self, taken: int) -> float:
        """Look whether the peer has gone on taking it since it was last seen to; return when that was."""
        now = trio.current_time()
        gained = taken - self.taken
        if gained > 0 and gained >= LEAST_RATE * (now - self.since):
            self.taken, self.since = taken, now
        return self.since


class Handshakes:
    """All handshakes and answers of an application, over all its servers.

    Attributes:
      limit: how many there may be.
      dropped: how many were dropped for the sake of others.
      bytes: in the bodies of the answers among them, each object once, and in those that are being made.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.dropped = 0
        self._waiting: OrderedDict[Handshake, float] = OrderedDict()  # with the time since when, the longest first
        self._held: set[Handshake] = set()
        self._answers: dict[Handshake, _Answer] = {}  # in the order in which they were given
        self._bodies: dict[int, int] = {}  # how many answers have the body with this id, which none but theirs can have
        self._reserved: dict[Handshake, int] = {}
        self._largest: dict[object, int] = {}
        self.bytes = 0
        self._turn = trio.Lock()
        self._changed = trio.lowlevel.ParkingLot()
        self._told = False

    def __len__(self) -> int:
        return len(self._waiting) + len(self._held)

    def wait_for(self, handshake: Handshake) -> None:
        """It is for the peer to go on."""
        self._held.discard(handshake)
        self._waiting.pop(handshake, None)
        self._waiting[handshake] = trio.current_time()
        self._wake()

    def hold(self, handshake: Handshake) -> None:
        """It is for the application to go on."""
        if self._waiting.pop(handshake, None) is not None:
            self._held.add(handshake)

    def discard(self, handshake: Handshake) -> None:
        """It is a connection now, or gone. May be called again."""
        self._waiting.pop(handshake, None)
        self._held.discard(handshake)
        answer = self._answers.pop(handshake, None)
        if answer is not None:
            self._let_go(answer.body)
        self._wake()
        if self._told and 2 * len(self) < self.limit:
            self._told = False

    def _wake(self) -> None:
        if self._changed:
            self._changed.unpark_all()

    @property
    def full(self) -> bool:
        """Whether who comes now has to take the place of somebody."""
        return len(self) >= self.limit

    def make_room(self) -> bool:
        """Drop whom it takes to let one more in; `False` while there is nobody who may be dropped."""
        while self.full:
            if not self._told:  # once, until it is over
                self._told = True
                log.warning("max_handshakes=%d is reached; peers that are waited for longest are dropped", self.limit)
            if not self.drop_oldest():
                return False
        return True

    def drop_oldest(self, *, hurry: bool = False) -> bool:
        """Drop the one that has been waited for longest, if that is long enough; whether there was one."""
        now = trio.current_time()
        patience = min(HURRY, PATIENCE) if hurry else PATIENCE
        while now >= self._due(patience):
            oldest = next(iter(self._waiting))
            answer = self._answers.get(oldest)
            if answer is None or now >= answer.look(oldest.taken) + patience:
                self._drop(oldest)
                return True
            self._waiting[oldest] = answer.since  # it is taking its answer
            self._waiting.move_to_end(oldest)
        return False

    def _drop(self, handshake: Handshake) -> None:
        self.discard(handshake)
        self.dropped += 1
        handshake.drop()

    def _due(self, patience: float) -> float:
        """When somebody may be dropped."""
        return next(iter(self._waiting.values()), math.inf) + patience

    async def wait_for_room(self) -> None:
        """Wait until `make_room` can do it. Cancellation stops the waiting only."""
        while self.full and trio.current_time() < self._due(PATIENCE):
            with trio.CancelScope(deadline=self._due(PATIENCE)):
                await self._changed.park()

    # The bodies of answers

    def count_body(self, handshake: Handshake, body: bytes, maker: object) -> None:
        """An answer with this body, which `maker` has made, is under way to one that is waited for now."""
        size = len(body)
        if size < SMALL_BODY:
            return
        self._largest[maker] = max(size, self._largest.get(maker, 0))
        self._answers[handshake] = _Answer(body, handshake.taken)
        holders = self._bodies.get(id(body), 0)
        self._bodies[id(body)] = holders + 1
        if not holders:
            self.bytes += size

    def _let_go(self, body: bytes) -> None:
        self._bodies[id(body)] -= 1
        if not self._bodies[id(body)]:
            del self._bodies[id(body)]
            self.bytes -= len(body)

    async def reserve(self, handshake: Handshake, maker: object) -> None:
        """Before `maker` makes an answer, wait for the memory that its largest one has taken, in the order of coming.

        Until `release` it counts as if it was made. Nobody waits for a maker of small answers.

        Cancellation: stops the waiting only.
        """
        size = self._largest.get(maker)
        if size is None or handshake in self._reserved:
            return
        async with self._turn:
            due = -math.inf
            while self.bytes >= MOST_BYTES:
                with trio.CancelScope(deadline=due):
                    await self._changed.park()
                if trio.current_time() >= due:
                    due = self._drop_idle()
            self._reserved[handshake] = size
            self.bytes += size

    def release(self, handshake: Handshake) -> None:
        """The answer is made, and counted, or there is none. May be called without `reserve`."""
        self.bytes -= self._reserved.pop(handshake, 0)
        self._wake()

    def _drop_idle(self) -> float:
        """Drop, as long as memory is short, whose answers do not move; return when to look again."""
        now = trio.current_time()
        due = math.inf
        for handshake, answer in list(self._answers.items()):
            if self.bytes < MOST_BYTES:
                break
            limit = answer.look(handshake.taken) + PATIENCE
            if now >= limit:
                self._drop(handshake)
            else:
                due = min(due, limit)
        return max(min(due, now + PATIENCE), now + PATIENCE / 5)  # a look costs a call of the system for each of them
