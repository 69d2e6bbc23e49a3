"""How long a client waits before it connects again: numbers in, numbers out."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_crowws._client.backoff import Backoff, parse_retry_after


def longest(_: float, ceiling: float) -> float:
    return ceiling


def shortest(floor: float, _: float) -> float:
    return floor


def test_the_longest_wait_grows_up_to_the_maximum() -> None:
    """Each failure in a row multiplies the longest wait by the factor, up to the maximum."""
    backoff = Backoff(initial=1, maximum=60, factor=2)
    assert [backoff.delay(n, uniform=longest) for n in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_full_jitter() -> None:
    """The wait may be anything from zero on, however many failures there were."""
    assert [Backoff().delay(n, uniform=shortest) for n in (0, 3, 100)] == [0, 0, 0]


@given(failures=st.integers(0, 10**6), seed=st.integers(0, 2**32))
def test_a_wait_is_never_longer_than_the_maximum(failures: int, seed: int) -> None:
    """After any number of failures the wait is between zero and the maximum."""
    backoff = Backoff(initial=0.5, maximum=7, factor=3)
    assert 0 <= backoff.delay(failures, uniform=random.Random(seed).uniform) <= min(7, 0.5 * 3 ** min(failures, 9))


def test_the_source_of_chance_is_used() -> None:
    """Without a source of chance it is that of the module `random`."""
    random.seed(1)
    first = Backoff().delay(3)
    random.seed(1)
    assert Backoff().delay(3) == first


def test_nobody_comes_earlier_than_asked() -> None:
    """What the server asks for is the least wait, and the jitter comes on top."""
    backoff = Backoff(initial=1)
    assert backoff.delay(0, retry_after=20, uniform=shortest) == 20
    assert backoff.delay(0, retry_after=20, uniform=longest) == 21


@pytest.mark.parametrize("asked", [301, 1e9, math.inf])
def test_a_server_cannot_send_a_client_away_for_ever(asked: float) -> None:
    """No more than `max_retry_after` is obeyed."""
    assert Backoff(max_retry_after=300).delay(0, retry_after=asked, uniform=shortest) == 300


def test_after_a_restart_even_the_first_wait_is_spread() -> None:
    """After a restart the longest wait is at least `spread`."""
    backoff = Backoff(initial=1, spread=10)
    assert backoff.delay(0, restart=True, uniform=longest) == 10
    assert backoff.delay(0, restart=True, uniform=shortest) == 0
    assert backoff.delay(5, restart=True, uniform=longest) == 32


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Backoff)])
@pytest.mark.parametrize("value", [-1, math.inf, math.nan, "1", None, True])
def test_wrong_values(field: str, value: Any) -> None:
    """A value that is no time is refused when the object is made."""
    with pytest.raises((ValueError, TypeError), match=field):
        Backoff(**{field: value})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Backoff(factor=0.5), "factor must be at least 1"),
        (lambda: Backoff(initial=5, maximum=1), "maximum must be at least initial"),
    ],
)
def test_values_that_do_not_go_together(make: Callable[[], Backoff], message: str) -> None:
    """Waits that get shorter, or begin above their maximum, are refused."""
    with pytest.raises(ValueError, match=message):
        make()


# Retry-After

NOW = 784111777.0  # Sun, 06 Nov 1994 08:49:37 GMT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120),
        (" 7 ", 7),
        ("0", 0),
        ("Sun, 06 Nov 1994 08:50:37 GMT", 60),
        ("Sunday, 06-Nov-94 08:50:37 GMT", 60),
        ("Sun Nov  6 08:50:37 1994", 60),
        ("Sun, 06 Nov 1994 08:00:00 GMT", 0),
        ("9" * 5000, math.inf),
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("\u0663", None),
        ("Sun, 99 Nov 1994 08:50:37 GMT", None),
        ("Sun, 06 Nov 99999999999 08:50:37 GMT", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    """Seconds and all three forms of dates are understood, a date that has passed is now, and nonsense is nothing."""
    assert parse_retry_after(value, None, NOW) == seconds


def test_the_clocks_may_differ() -> None:
    """Where the response has a Date, the distance between its two dates counts."""
    date, until = "Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:57 GMT"
    assert parse_retry_after(until, date, NOW + 5000) == 20
    assert parse_retry_after(until, "nonsense", NOW + 5) == 15


@given(st.text(), st.one_of(st.none(), st.text()))
def test_any_header(value: str, date: str | None) -> None:
    """Whatever a server sends, it is a number of seconds or nothing."""
    seconds = parse_retry_after(value, date, NOW)
    assert seconds is None or seconds >= 0
