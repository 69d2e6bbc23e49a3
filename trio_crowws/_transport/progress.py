"""Whether a peer takes what was sent to it: the one notion of progress for every clock that could end a connection.

What counts are bytes that the peer's kernel has acknowledged: how much this side's kernel has taken says nothing,
because a kernel that is full takes nothing for a long time and then a third of its buffer at once. Where the kernel
does not tell, it is what it has taken. Nothing is measured for a message, only when a clock is over.

A peer that took a byte now and then could hold memory for ever. So what it takes while a clock runs has to be 1 KiB for
each second, or a hundredth of what waits for it, whichever is less: a share, so that a peer with little to take may
take it slowly. What is begun to be closed has an absolute end beside that.
"""

from __future__ import annotations

import math
from typing import Protocol

__all__ = ["MOST_WINDOWS", "Progress", "Rest", "Watched"]

MOST_WINDOWS = 60
"""What is being closed is over after so many times its timeout, however steadily the peer takes it."""

_LEAST_RATE = 1024
"""Bytes per second; the slowest links that people have are faster."""

_SHARE = 100
"""A peer may take as long as so many timeouts for what waits for it."""

_LITTLE = 4096
"""Bytes that are no reason to wait: they are as good as delivered."""


class Watched(Protocol):
    """What is known of the way to a peer; a `Transport`.

    Attributes:
      written: bytes that were given to it so far.
      acknowledged: how many of them the peer's kernel has.
    """

    @property
    def written(self) -> int: ...
    @property
    def acknowledged(self) -> int: ...


class Coming(Protocol):
    """What is known of a frame that comes in; a `FrameReader`.

    Attributes:
      missing: bytes that are still to come.
    """

    @property
    def missing(self) -> int: ...


class Rest:
    """The rest of a frame that a peer has begun to send, looked at like what it takes."""

    __slots__ = ("_coming", "written")

    def __init__(self, coming: Coming) -> None:
        self._coming = coming
        self.written = coming.missing

    @property
    def acknowledged(self) -> int:
        """Bytes that have come; none once another, larger frame has begun."""
        return max(0, self.written - self._coming.missing)


class Progress:
    """What a peer takes of what was sent to it.

    Args:
      way: to the peer.
      window: seconds between two looks.
      limit: absolute time from which on nothing counts any more.
      endless: what is sent from now on counts as well; else only what is there now, and little of that is as good as
        delivered.

    Attributes:
      window: seconds between two looks.
    """

    __slots__ = ("_end", "_limit", "_mark", "window")

    def __init__(self, way: Watched, window: float, limit: float = math.inf, *, endless: bool = False) -> None:
        self.window = window
        self._limit = limit
        self._end = math.inf if endless else way.written
        mark = way.acknowledged
        self._mark: int | None = mark if endless or self._end - mark > _LITTLE else None

    @property
    def pending(self) -> bool:
        """Whether there is something to look at."""
        return self._mark is not None

    def look(self, way: Watched, now: float) -> float | None:
        """When to look again, if the peer took enough since the last look; `None` if it did not.

        When it has taken everything, it gets one more window, to say what it has to say to that.
        """
        if self._mark is None or now >= self._limit:
            return None
        acknowledged = way.acknowledged
        moved = acknowledged - self._mark
        self._mark = acknowledged if acknowledged < self._end else None
        waiting = way.written - acknowledged
        if moved < max(1, min(_LEAST_RATE * self.window, waiting // _SHARE)):
            return None
        return min(now + self.window, self._limit)
