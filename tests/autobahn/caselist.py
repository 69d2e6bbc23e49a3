"""The cases of Autobahn|Testsuite 25.10.1, and the patterns that choose among them.

The list is written down here, so that a run knows which cases it must find in the report. The testsuite's own patterns
are no help in that: they match prefixes (`1*` also takes 10.1.1) and say nothing when they match no case.
"""

from __future__ import annotations

__all__ = ["ALL_CASES", "LEFT_OPEN", "SMALL_COMPRESSION", "SMALL_NEGOTIATION", "resolve", "section"]

# Number of cases in each subsection; there is no section 8 and no section 11. Sections 1 to 7 are the protocol, 9 the
# sizes, 10 the automatic fragmentation, 12 and 13 the compression.
_COUNTS = """
    1.1:8 1.2:8
    2:11
    3:7
    4.1:5 4.2:5
    5:20
    6.1:3 6.2:4 6.3:2 6.4:4 6.5:5 6.6:11 6.7:4 6.8:2 6.9:4 6.10:3 6.11:5 6.12:8
    6.13:5 6.14:10 6.15:1 6.16:3 6.17:5 6.18:5 6.19:5 6.20:7 6.21:8 6.22:34 6.23:7
    7.1:6 7.3:6 7.5:1 7.7:13 7.9:9 7.13:2
    9.1:6 9.2:6 9.3:9 9.4:9 9.5:6 9.6:6 9.7:6 9.8:6
    10.1:1
    12.1:18 12.2:18 12.3:18 12.4:18 12.5:18
    13.1:18 13.2:18 13.3:18 13.4:18 13.5:18 13.6:18 13.7:18
"""

ALL_CASES = tuple(
    f"{subsection}.{number}"
    for subsection, _, count in (item.partition(":") for item in _COUNTS.split())
    for number in range(1, int(count) + 1)
)
"""The identifiers of all 517 cases, in the order of the testsuite."""

LEFT_OPEN = frozenset({"7.1.6", "7.13.1", "7.13.2"})
"""Cases whose outcome RFC 6455 leaves open: the testsuite never calls them OK, only INFORMATIONAL."""


# A thousand messages of up to 8 KiB make a case; those of up to 128 KiB take minutes, and are for `.ci/run --all`. The
# eleventh case is the first in which the messages come in fragments.
_SMALL = (1, 11)
SMALL_COMPRESSION = ",".join(f"12.{each}.{number}" for each in range(1, 6) for number in _SMALL)
SMALL_NEGOTIATION = ",".join(f"13.{each}.{number}" for each in range(1, 8) for number in _SMALL)


def section(case: str) -> int:
    """The section that `case` belongs to, as 7 for 7.1.6."""
    return int(case.partition(".")[0])


def resolve(patterns: str) -> tuple[str, ...]:
    """The cases that `patterns` name, each once, in the order of the testsuite.

    Args:
      patterns: separated by commas, each one a section (`7`), a range of sections (`1-7`), a subsection (`6.4`), a case
        (`7.1.6`) or `*`. Labels are compared as a whole: `1` does not take 10.1.1.

    Raises:
      ValueError: a pattern names no case.
    """
    chosen: set[str] = set()
    for pattern in patterns.split(","):
        found = _matches(pattern.strip())
        if not found:
            raise ValueError(f"the pattern {pattern!r} names no Autobahn case")
        chosen.update(found)
    return tuple(case for case in ALL_CASES if case in chosen)


def _matches(pattern: str) -> set[str]:
    if pattern == "*":
        return set(ALL_CASES)
    first, dash, last = pattern.partition("-")
    if dash and first.isdecimal() and last.isdecimal():
        return {case for case in ALL_CASES if int(first) <= section(case) <= int(last)}
    return {case for case in ALL_CASES if f"{case}.".startswith(f"{pattern}.")}
