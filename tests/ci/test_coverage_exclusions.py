"""What is not measured says why: CI demands that the tests reach every other line and branch of the package."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
JUSTIFIED = re.compile(r"# pragma: no (?:cover|branch) --? \w.{9,}")


@pytest.mark.parametrize(
    ("line", "holds"),
    [
        ("    return 1  # pragma: no cover - Windows has no such signal", True),
        ("    return 1  # pragma: no cover", False),
        ("    if found:  # pragma: no branch - ", False),
    ],
)
def test_what_a_justification_is(line: str, holds: bool) -> None:
    """A reason stands behind the pragma, in the same comment."""
    assert bool(JUSTIFIED.search(line)) is holds


def test_every_exclusion_has_a_reason() -> None:
    """No line of the package is excluded without a reason."""
    excluded = [
        (path.name, line)
        for path in sorted((ROOT / "trio_crowws").rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if "pragma: no" in line
    ]
    assert [entry for entry in excluded if not JUSTIFIED.search(entry[1])] == []


def test_nothing_else_is_excluded() -> None:
    """What the settings exclude everywhere is what only type checkers read; lines and branches are measured."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["coverage"]
    assert settings["report"]["exclude_also"] == ["if TYPE_CHECKING:", "@overload"]
    assert settings["run"]["branch"] is True
    assert settings["run"]["source"] == ["trio_crowws"]
    assert "omit" not in settings["run"] | settings["report"]
