"""What the tests of the client share."""

from __future__ import annotations

import pytest

from support.servers import KINDS, Kind


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of transport, one after the other."""
    param: Kind = request.param
    return param
