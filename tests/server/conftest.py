"""What the tests of the server share."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.certificates import TLS, make_tls


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    """Contexts for both ends, and the files of the server's certificate."""
    return make_tls(Path(tmp_path_factory.mktemp("tls")))
