"""The client's part of the opening handshake, for a peer over any stream."""

from __future__ import annotations

from collections.abc import Sequence

import h11
import trio
from wsproto.utilities import generate_accept_token, generate_nonce

from .._deflate import Deflate
from .._protocol.deflate_offer import check_answer, make_offer
from .._protocol.handshake import check_headers
from .._protocol.url import parse_resource
from .._request import Headers
from .._types import HeadersLike
from ..errors import CrowWSError
from .faults import FaultyStream
from .peer import READ_SIZE, Peer, PeerClosed

__all__ = ["Refused", "shake_hands"]


class Refused(CrowWSError):
    """The server answered a request for an upgrade with something else than a 101.

    Attributes:
      status: the HTTP status.
      headers: the headers of the answer.
      body: the complete body.
    """

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        super().__init__(f"HTTP status {status}: {body[:200]!r}")
        self.status = status
        self.headers = headers
        self.body = body


async def shake_hands(
    stream: trio.abc.Stream,
    path: str = "/",
    *,
    host: str = "testserver",
    headers: HeadersLike = (),
    subprotocols: Sequence[str] = (),
    compression: Deflate | None = None,
    faults: FaultyStream | None = None,
) -> Peer:
    """Do the client's part of the opening handshake over `stream`.

    Args:
      stream: connected to the server.
      path: path and query; what is beyond ASCII is encoded as `trio_crowws.connect` does it.
      host: the `Host` header.
      headers: more headers, as `Cookie` or `Origin`.
      subprotocols: those that the client offers.
      compression: what the client offers to compress with.
      faults: becomes `Peer.faults`.

    Raises:
      InvalidURL: the path holds a space, a control character or a fragment; nothing was sent.
      TypeError, ValueError: the headers cannot be sent, as with `trio_crowws.connect`; nothing was sent.
      HandshakeError: the server has agreed on compression in a way that was not offered.
      Refused: the server answered with something else than a 101.
      PeerClosed: the stream ended before the answer was complete.
    """
    nonce = generate_nonce()
    fields = [
        ("Host", host),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", nonce.decode("ascii")),
        *([("Sec-WebSocket-Protocol", ", ".join(subprotocols))] if subprotocols else ()),
        *([("Sec-WebSocket-Extensions", make_offer(compression))] if compression is not None else ()),
        *check_headers(headers, owned=False),
    ]
    http = h11.Connection(h11.CLIENT)
    lines = [(name.encode(), value.encode("latin-1")) for name, value in fields]
    request = h11.Request(method="GET", target=parse_resource(path), headers=lines)
    sent = http.send(request)
    assert sent is not None
    await stream.send_all(sent)
    answer = await _next_http_event(http, stream)
    assert isinstance(answer, (h11.InformationalResponse, h11.Response))
    got = Headers((name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.headers)
    if answer.status_code != 101:
        body = b""
        while isinstance(event := await _next_http_event(http, stream), h11.Data):
            body += event.data
        raise Refused(answer.status_code, got, body)
    assert got.get("sec-websocket-accept") == generate_accept_token(nonce).decode("ascii"), "wrong Sec-WebSocket-Accept"
    answers = got.get_all("sec-websocket-extensions")
    agreement = None if compression is None else check_answer(answers, compression)
    return Peer(stream, got, http.trailing_data[0], faults, agreement)


async def _next_http_event(http: h11.Connection, stream: trio.abc.Stream) -> h11.Event:
    if http.our_state is h11.SEND_BODY:
        http.send(h11.EndOfMessage())
    while True:
        try:
            event = http.next_event()
        except h11.RemoteProtocolError as error:
            raise PeerClosed(None) from error
        if event is h11.NEED_DATA:
            data = bytes(await stream.receive_some(READ_SIZE))
            if not data and http.their_state is h11.SEND_RESPONSE:
                raise PeerClosed(None)
            http.receive_data(data)
        else:
            assert isinstance(event, h11.Event), event  # nobody reads on behind an answer, so h11 never pauses
            return event
