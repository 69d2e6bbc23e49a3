"""How long a client waits before it connects again. Arithmetic only: no clock, no Trio, no sleeping.

Three things decide about a wait, and each is a number of seconds:

- *Backoff.* Full jitter: uniform between zero and a ceiling that grows with each failure in a row. Thousands of clients
  that lost the same server in the same moment come back spread over the whole range, where a fixed pause with a little
  noise would bring them back in waves.
- *Retry-After* (RFC 9110 section 10.2.3). The server has said when to come back, so nobody comes earlier. The jitter of
  the backoff is added, because all who were refused in the same second were told the same thing.
- *A restart.* After close code 1012 (service restart) or 1013 (try again later) all clients of a server lose it at once
  while nothing is wrong with any of them, so even the first wait is spread over some seconds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

__all__ = ["Backoff", "parse_retry_after"]

Uniform = Callable[[float, float], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """The waits between the connections of `keep_connected`, in seconds.

    Raises:
      TypeError: a value is not a number.
      ValueError: a value is negative or not finite, `factor` is below 1, or `maximum` is below `initial`.
    """

    initial: float = 1
    """The longest wait after the first failure."""
    maximum: float = 60
    """The longest wait after any number of failures."""
    factor: float = 2
    """By what the longest wait grows with each failure in a row."""
    healthy: float = 30
    """A connection that lasted so long was a good one: what comes after it is a first failure again."""
    spread: float = 10
    """After close code 1012 or 1013 the wait is at least uniform between zero and this."""
    max_retry_after: float = 300
    """How much of a `Retry-After` is obeyed; a server that asks for more than that is asked again."""

    def __post_init__(self) -> None:
        for name in ("initial", "maximum", "factor", "healthy", "spread", "max_retry_after"):
            value: object = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and not negative, not {value!r}")
        if self.factor < 1:
            raise ValueError(f"factor must be at least 1, not {self.factor!r}; the waits would get shorter")
        if self.maximum < self.initial:
            raise ValueError(f"maximum must be at least initial ({self.initial!r}), not {self.maximum!r}")

    def ceiling(self, failures: int) -> float:
        """The longest wait after so many failures in a row, the present one not counted."""
        try:
            return min(self.maximum, self.initial * self.factor**failures)
        except OverflowError:  # a float has no room for it, after more failures than anybody will ever see
            return self.maximum

    def delay(
        self,
        failures: int,
        *,
        retry_after: float | None = None,
        restart: bool = False,
        uniform: Uniform = random.uniform,
    ) -> float:
        """How long to wait before the next attempt.

        Args:
          failures: failures in a row before this one.
          retry_after: what the server has asked for, if anything.
          restart: it has said that it restarts.
          uniform: the source of chance, as `random.uniform`.
        """
        ceiling = self.ceiling(failures)
        if restart:
            ceiling = max(ceiling, self.spread)
        wait = uniform(0, ceiling)
        return wait if retry_after is None else wait + min(retry_after, self.max_retry_after)


def parse_retry_after(value: str | None, date: str | None, now: float) -> float | None:
    """The seconds that a `Retry-After` header asks for; `None` where it is missing or makes no sense.

    Args:
      value: the header: a number of seconds, or a date (RFC 9110 section 5.6.7).
      date: the `Date` header beside it. The distance between the two dates is right even if the clocks of the two
        machines differ.
      now: seconds since the epoch, for a response without a `Date`.
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    until = _timestamp(value)
    if until is None:
        return None
    since = _timestamp(date) if date is not None else None
    return max(0.0, until - (now if since is None else since))


def _timestamp(text: str) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):  # what is no date, and what no datetime can hold
        return None
