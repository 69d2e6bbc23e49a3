"""The inflater is an extension of wsproto, which takes part in frames and not in handshakes."""

from __future__ import annotations

from wsproto import ConnectionType, WSConnection
from wsproto.events import Request

from trio_crowws._protocol.deflate import Inflater
from trio_crowws._protocol.deflate_offer import Agreement, Setting


def test_it_offers_nothing() -> None:
    """A handshake that wsproto makes with the inflater in its list asks for no extension: ours was agreed on before."""
    agreement = Agreement("", True, False, 15, 15, Setting(15, 6, 8, keeps_context=False))
    inflater = Inflater(agreement, 1000)
    client = WSConnection(ConnectionType.CLIENT)
    request = client.send(Request(host="example.org", target="/", extensions=[inflater]))
    assert inflater.enabled()
    assert b"upgrade: websocket" in request.lower()
    assert b"sec-websocket-extensions" not in request.lower()
