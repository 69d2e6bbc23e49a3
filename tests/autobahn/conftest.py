"""What the tests of both sides need of Autobahn|Testsuite."""

from __future__ import annotations

from pathlib import Path

import pytest

from autobahn import install
from support.require import missing


@pytest.fixture(scope="session")
def testsuite() -> Path:
    """The interpreter of Autobahn|Testsuite, which is installed where it is missing and can be."""
    try:
        return install.ensure()
    except install.NotAvailable as reason:
        missing(f"no Autobahn|Testsuite: {reason}")
