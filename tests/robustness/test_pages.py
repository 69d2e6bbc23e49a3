"""What the documentation says about the tests is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGES = TESTS.parent / "docs" / "topics"


@pytest.mark.parametrize("page", ["security.md", "delivery.md"])
def test_every_test_that_a_page_names_is_there(page: str) -> None:
    """Each `folder/file.py` exists, and each `::test` behind it is in the file that was named last in its line."""
    named = 0
    for line in (PAGES / page).read_text().splitlines():
        text = ""
        for place, test in re.findall(r"`([\w/.]*)(?:::(\w+))?`", line):
            if place.endswith(".py"):
                text = (TESTS / place.removeprefix("tests/")).read_text()
            elif place or not test:
                continue
            if test:
                assert f"def {test}(" in text, (line, test)
            named += 1
    assert named > 20
