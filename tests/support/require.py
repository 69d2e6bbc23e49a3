"""What a test needs from the machine: skipped where it is missing, failed where everything must be there.

`TRIO_CROWWS_REQUIRE_ALL=1`, which CI sets, turns "skipped, because the machine has no Chromium" into a failure, so that
a green run means that everything ran.
"""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

__all__ = ["VARIABLE", "missing", "program", "required"]

VARIABLE = "TRIO_CROWWS_REQUIRE_ALL"


def required() -> bool:
    """Whether a missing program is a failure rather than a skip."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


def missing(reason: str) -> NoReturn:
    """End the running test because of `reason`: fail it where `VARIABLE` is set, skip it elsewhere."""
    if required():
        pytest.fail(f"{reason} ({VARIABLE} is set, so this is not skipped)", pytrace=False)
    pytest.skip(reason)


def program(*names: str, package: str) -> str:
    """The path of the first of `names` that is on PATH; the test ends with `missing` where none is.

    Args:
      names: what the program may be called.
      package: the Debian package that brings it, for the message.
    """
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return path
    missing(f"needs {' or '.join(names)} on PATH (Debian package {package})")
