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

    A page that the application makes anew for each request is in memory once for each peer that has not taken it. Such
    pages have a bound of their own, `MOST_BYTES`: beyond it, the answer that has been waited for longest is dropped
    before another one is made.
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
"""Bytes of answers under way that no two peers share; beyond that no more are made."""


class Handshake(Protocol):
    """One peer, as it is seen from here."""

    def drop(self) -> None:
        """Let go of the peer now."""


class Handshakes:
    """All handshakes and answers of an application, over all its servers.

    Attributes:
      limit: how many there may be.
      dropped: how many were dropped for the sake of others.
      bytes: of the answers among them that no two peers share.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.dropped = 0
        self._waiting: OrderedDict[Handshake, float] = OrderedDict()  # with the time since when, the longest first
        self._held: set[Handshake] = set()
        self._sizes: OrderedDict[Handshake, int] = OrderedDict()  # of answers that nobody shares, in the same order
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
        self.bytes -= self._sizes.pop(handshake, 0)
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
        if trio.current_time() < self._due(min(HURRY, PATIENCE) if hurry else PATIENCE):
            return False
        self._drop(next(iter(self._waiting)))
        return True

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

    def count_bytes(self, handshake: Handshake, size: int) -> None:
        """An answer of this size, which no other peer shares, is under way to the one that is now waited for."""
        self._sizes[handshake] = size
        self.bytes += size

    async def wait_to_answer(self) -> None:
        """Wait, in the order of coming, until there is memory for one more answer that no two peers share.

        Cancellation: stops the waiting only.
        """
        if self.bytes < MOST_BYTES:
            return
        async with self._turn:
            while self.bytes >= MOST_BYTES:
                oldest = next(iter(self._sizes))
                due = self._waiting[oldest] + PATIENCE
                if trio.current_time() >= due:
                    self._drop(oldest)
                else:
                    with trio.CancelScope(deadline=due):
                        await self._changed.park()
