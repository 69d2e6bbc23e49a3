"""The runner of the Autobahn cases notices what it is there to notice."""

from __future__ import annotations

import pytest

from autobahn import caselist, run

OK = {"behavior": "OK", "behaviorClose": "OK", "duration": 5}


def entry(behaviour: str, closing: str) -> dict[str, object]:
    return {"behavior": behaviour, "behaviorClose": closing, "duration": 5}


@pytest.mark.parametrize(
    ("patterns", "count"),
    [("*", 517), ("1-7,9,10", 301), ("1-7,10", 247), ("1-7", 246), ("12,13", 216), ("6.4", 4), ("1, 1.1.1", 16)],
)
def test_patterns_choose_the_known_number_of_cases(patterns: str, count: int) -> None:
    """Each pattern names as many cases as the testsuite has of them."""
    assert len(caselist.resolve(patterns)) == count


def test_a_section_is_not_a_prefix() -> None:
    """`1` takes section 1 only, and not 10.1.1 or section 12."""
    assert {caselist.section(case) for case in caselist.resolve("1")} == {1}


def test_cases_come_in_the_order_of_the_testsuite() -> None:
    """However they are named, cases come once and in numerical order."""
    assert caselist.resolve("10,2.2,2.1,2.2") == ("2.1", "2.2", "10.1.1")


@pytest.mark.parametrize("pattern", ["8", "9.9", "7.1.7", "", "1,", "7-1", "x"])
def test_a_pattern_without_a_case_is_refused(pattern: str) -> None:
    """A pattern that names nothing is an error, not an empty run."""
    with pytest.raises(ValueError, match="names no Autobahn case"):
        caselist.resolve(pattern)


def test_a_case_that_the_report_lacks_is_missing() -> None:
    """A server that dies half-way leaves cases without an entry, and they count."""
    assert [verdict.outcome for verdict in run.judge(("1.1.1", "1.1.2"), {"1.1.1": OK})] == ["ok", "missing"]


@pytest.mark.parametrize(
    ("case", "behaviour", "closing", "outcome"),
    [
        ("7.1.6", "INFORMATIONAL", "INFORMATIONAL", "informational"),
        ("7.1.5", "INFORMATIONAL", "INFORMATIONAL", "bad"),
        ("7.1.6", "FAILED", "INFORMATIONAL", "bad"),
        ("7.1.6", "INFORMATIONAL", "UNCLEAN", "bad"),
        ("3.2", "NON-STRICT", "OK", "non-strict"),
        ("3.2", "NON-STRICT", "UNCLEAN", "bad"),
        ("2.1", "OK", "WRONG CODE", "bad"),
        ("2.1", "OK", "FAILED BY CLIENT", "bad"),
        ("12.1.1", "UNIMPLEMENTED", "OK", "bad"),
        ("2.1", "SOMETHING NEW", "OK", "bad"),
    ],
)
def test_every_outcome_but_ok_has_its_name(case: str, behaviour: str, closing: str, outcome: str) -> None:
    """Only the cases that RFC 6455 leaves open may be informational, and only in every respect."""
    (verdict,) = run.judge((case,), {case: entry(behaviour, closing)})
    assert verdict.outcome == outcome
