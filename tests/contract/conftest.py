"""What the tests of the contract share."""

from __future__ import annotations

import pytest

from support.servers import KINDS, STYLES, Kind, Style


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of transport, one after the other."""
    param: Kind = request.param
    return param


@pytest.fixture(params=STYLES)
def style(request: pytest.FixtureRequest) -> Style:
    """Each way to write a handler, one after the other."""
    param: Style = request.param
    return param
