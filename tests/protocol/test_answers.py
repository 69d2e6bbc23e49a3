"""What is answered to a request, and which headers an application may add."""

from __future__ import annotations

from typing import Any

import h11
import pytest
import wsproto
from wsproto.events import AcceptConnection, Request

from support.heads import ACCEPT, read, replaced, upgrade_error
from trio_crowws._protocol.handshake import accept_response, check_headers, check_upgrade, http_response


def test_check_headers_forms() -> None:
    """Headers may be a mapping or pairs; what comes back is pairs, in order, without white space around values."""
    assert check_headers({"X-A": "1", "b": " 2\t"}, owned=True) == (("X-A", "1"), ("b", "2"))
    assert check_headers([("Set-Cookie", "a"), ("Set-Cookie", "\xe9")], owned=True) == (
        ("Set-Cookie", "a"),
        ("Set-Cookie", "\xe9"),
    )
    assert check_headers((), owned=True) == ()


@pytest.mark.parametrize("value", ["a\r\nb", "a\n", "\ra", "a\0", "\x7f", "a\x0bb", "a€"])
def test_row_15_bad_header_value(value: str) -> None:
    """C1 row 15: a value that would break out of its line, or has no bytes, is a ValueError that names the header."""
    with pytest.raises(ValueError, match="X-Name"):
        check_headers({"X-Name": value}, owned=True)


@pytest.mark.parametrize("name", ["", "a b", "a:", "é", "a\r\nb", "a\n"])
def test_bad_header_name(name: str) -> None:
    """A name that is not a token is a ValueError."""
    with pytest.raises(ValueError, match="is not the name of a header"):
        check_headers([(name, "x")], owned=False)


@pytest.mark.parametrize(
    "name",
    ["Upgrade", "connection", "CONTENT-LENGTH", "Transfer-Encoding", "Sec-WebSocket-Accept", "sec-websocket-protocol"],
)
def test_owned_headers(name: str) -> None:
    """Headers that the library sets are refused by name where that is asked for."""
    with pytest.raises(ValueError, match=name):
        check_headers({name: "x"}, owned=True)
    assert check_headers({name: "x"}, owned=False) == ((name, "x"),)


@pytest.mark.parametrize("headers", [None, "ab", b"ab", 5, ["ab"], [("a",)], [("a", 1)], [(b"a", b"b")], {"a": None}])
def test_no_headers(headers: Any) -> None:
    """Anything but names and values of type str is a TypeError."""
    with pytest.raises(TypeError, match="headers must be"):
        check_headers(headers, owned=True)


# Answers


def test_accept_response() -> None:
    """The 101 has what RFC 6455 section 4.2.2 asks for, and the application's headers behind it."""
    assert accept_response(ACCEPT, subprotocol=None, extensions=None, headers=()) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + ACCEPT.encode() + b"\r\n\r\n"
    )
    full = accept_response(ACCEPT, subprotocol="v1", extensions="x; y=1", headers=[("Set-Cookie", "\xe9")])
    assert full.endswith(b"Sec-WebSocket-Protocol: v1\r\nSec-WebSocket-Extensions: x; y=1\r\nSet-Cookie: \xe9\r\n\r\n")


def test_client_takes_the_101() -> None:
    """A client of wsproto takes the 101 as the answer to its request."""
    client = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    request = read(client.send(Request(host="h", target="/", subprotocols=["a", "b"])))
    accept = check_upgrade(request)
    client.receive_data(accept_response(accept, subprotocol="b", extensions=None, headers=[("X-A", "1")]))
    (event,) = client.events()
    assert isinstance(event, AcceptConnection)
    assert event.subprotocol == "b"
    assert event.extra_headers == [(b"x-a", b"1")]


def read_answer(pieces: list[bytes], method: str = "GET") -> tuple[h11.Response, bytes]:
    """What h11, as a client, makes of an answer."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
    client.send(h11.EndOfMessage())
    client.receive_data(b"".join(pieces))
    response = client.next_event()
    assert isinstance(response, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert client.trailing_data == (b"", False)
    assert client.their_state is h11.MUST_CLOSE
    return response, body


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (200, b"OK"),
        (403, b"Forbidden"),
        (426, b"Upgrade Required"),
        (503, b"Service Unavailable"),
        (599, b"Unnamed Status"),
    ],
)
def test_row_17_complete_answer(status: int, reason: bytes) -> None:
    """C1 row 17: an answer has a reason phrase and its length, and says that the connection closes."""
    response, body = read_answer(http_response(status, [("X-A", "1")], b"body"))
    assert (response.status_code, response.reason, body) == (status, reason, b"body")
    assert dict(response.headers) == {b"connection": b"close", b"content-length": b"4", b"x-a": b"1"}


def test_the_body_of_an_answer_is_not_copied() -> None:
    """The body is a piece of its own, and the object that was given: one page for however many peers."""
    body = b"x" * 1000
    pieces = http_response(200, (), body)
    assert len(pieces) == 2
    assert pieces[1] is body


def test_answer_without_body() -> None:
    """An empty body has a length of 0, and the answers that must not have a body have no length either."""
    response, body = read_answer(http_response(404, (), b""))
    assert (dict(response.headers)[b"content-length"], body) == (b"0", b"")
    for status in (204, 304):
        response, body = read_answer(http_response(status, (), b"ignored"))
        assert dict(response.headers) == {b"connection": b"close"}
        assert body == b""


def test_answer_to_head() -> None:
    """The answer to a HEAD has the length of the body and not the body."""
    response, body = read_answer(http_response(200, (), b"body", head_only=True), "HEAD")
    assert (dict(response.headers)[b"content-length"], body) == (b"4", b"")


def test_answer_that_asks_for_an_upgrade() -> None:
    """An answer with an Upgrade header names it in Connection as well (RFC 9110 section 7.8)."""
    error = upgrade_error(replaced("Upgrade"))
    response, _ = read_answer(http_response(error.status, error.headers, b""))
    assert dict(response.headers)[b"connection"] == b"close, Upgrade"
    assert dict(response.headers)[b"upgrade"] == b"websocket"


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\n", "a\r", "\r\n"])
def test_row_15_answers_cannot_be_split(value: str) -> None:
    """C1 row 15: a line end in a header is a ValueError, also when nobody has checked the headers before."""
    with pytest.raises(ValueError, match="line end"):
        http_response(403, [("X-A", value)], b"")
    with pytest.raises(ValueError, match="line end"):
        accept_response(ACCEPT, subprotocol=None, extensions=None, headers=[("X-A", value)])
    with pytest.raises(ValueError, match="line end"):
        accept_response(ACCEPT, subprotocol=None, extensions=value, headers=())
    with pytest.raises(ValueError, match="not a subprotocol"):
        accept_response(ACCEPT, subprotocol=value, extensions=None, headers=())


@pytest.mark.parametrize("status", [0, 100, 101, 199, 600])
def test_status_is_a_final_one(status: int) -> None:
    """An answer cannot have a status that is not a final one; a 101 is made in one place only."""
    with pytest.raises(ValueError, match="not a final one"):
        http_response(status, (), b"")
