"""Which upgrade requests are accepted, and with which status the others are refused."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from support.heads import ACCEPT, KEY, UPGRADE, read, replaced, upgrade_error, write_head
from trio_crowws._protocol.handshake import check_upgrade, choose_subprotocol, is_upgrade, offered_subprotocols
from trio_crowws.errors import HandshakeError


def test_accept_value() -> None:
    """The value of Sec-WebSocket-Accept is the one of the example of RFC 6455 section 1.3."""
    request = read(write_head(UPGRADE.items()))
    assert is_upgrade(request)
    assert check_upgrade(request) == ACCEPT


@pytest.mark.parametrize(
    "keys",
    [(), ("",), ("x",), (KEY, KEY), (KEY[:-1],), ("A" * 24,), (KEY + "=",), ("dGhl IHNhbXBsZSBub25jZQ",), (KEY[4:],)],
)
def test_row_4_key(keys: tuple[str, ...]) -> None:
    """C1 row 4: there must be one key, and it must be 16 bytes in base64."""
    assert upgrade_error(replaced("Sec-WebSocket-Key", *keys)).status == 400


@pytest.mark.parametrize(
    "values",
    [("Upgrade", "keep-alive"), ("keep-alive", "Upgrade"), ("UPGRADE",), ("close ,\tuPgrade,",), ("", "upgrade")],
)
def test_row_5_connection_lines(values: tuple[str, ...]) -> None:
    """C1 row 5: the Connection header is one list over all of its lines, in any case."""
    assert check_upgrade(read(write_head(replaced("Connection", *values)))) == ACCEPT


@pytest.mark.parametrize("values", [(), ("keep-alive",), ("Upgraded",), ("not upgrade",), ("",)])
def test_row_5_connection_without_upgrade(values: tuple[str, ...]) -> None:
    """A Connection header without the token Upgrade is refused."""
    assert upgrade_error(replaced("Connection", *values)).status == 400


@pytest.mark.parametrize("values", [("h2c, websocket",), ("h2c", "WebSocket"), ("websocket,",)])
def test_row_6_upgrade_list(values: tuple[str, ...]) -> None:
    """C1 row 6: the Upgrade header is a list in which WebSocket may be one among others, in any case."""
    request = read(write_head(replaced("Upgrade", *values)))
    assert is_upgrade(request)
    assert check_upgrade(request) == ACCEPT


@pytest.mark.parametrize("values", [(), ("h2c",), ("websockets",), ("web socket",), ("websocket/13",), ("",)])
def test_no_upgrade(values: tuple[str, ...]) -> None:
    """A request for something else, or a plain one, gets a 426 that says what is spoken here."""
    request = read(write_head(replaced("Upgrade", *values)))
    assert not is_upgrade(request)
    error = upgrade_error(replaced("Upgrade", *values))
    assert error.status == 426
    assert dict(error.headers) == {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"}


@pytest.mark.parametrize(
    "versions", [("8",), ("13", "8"), ("8", "13"), ("13, 8",), ("013",), ("",), ("0",), ("1" * 5000,)]
)
def test_row_7_version(versions: tuple[str, ...]) -> None:
    """C1 row 7: a version other than 13, or several, get a 426 that names version 13."""
    error = upgrade_error(replaced("Sec-WebSocket-Version", *versions))
    assert error.status == 426
    assert dict(error.headers) == {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"}


@pytest.mark.parametrize("versions", [(), ("13", "13")])
def test_row_7_not_one_version(versions: tuple[str, ...]) -> None:
    """A version header that is missing, or there twice, is malformed."""
    assert upgrade_error(replaced("Sec-WebSocket-Version", *versions)).status == 400


def test_row_2_bytes_beyond_ascii() -> None:
    """C1 row 2: bytes beyond ASCII in the headers of the handshake are only another element, or malformed."""
    assert check_upgrade(read(write_head(replaced("Connection", "Upgrade, \xe9")))) == ACCEPT
    assert check_upgrade(read(write_head(replaced("Sec-WebSocket-Extensions", "\xe9; \xff=\x80")))) == ACCEPT
    assert upgrade_error(replaced("Sec-WebSocket-Protocol", "a, \xe9")).status == 400
    assert upgrade_error(replaced("Upgrade", "websocket\xe9")).status == 426
    assert upgrade_error(replaced("Sec-WebSocket-Version", "\xb9\xb3")).status == 426
    assert upgrade_error(replaced("Sec-WebSocket-Key", KEY[:-1] + "\xe9")).status == 400


@pytest.mark.parametrize("method", ["POST", "HEAD", "OPTIONS", "PUT", "get", "X"])
def test_row_10_method(method: str) -> None:
    """C1 row 10: a request with another method than GET can be read, and gets a 405 that names GET."""
    error = upgrade_error(UPGRADE.items(), f"{method} /path HTTP/1.1")
    assert error.status == 405
    assert error.headers == (("Allow", "GET"),)


def test_row_10_plain_get() -> None:
    """C1 row 10: a plain GET is read like any request, so it can be answered."""
    request = read(write_head([("Host", "h")], "GET /healthz HTTP/1.1"))
    assert request.path == "/healthz"
    assert not is_upgrade(request)


@pytest.mark.parametrize("name", UPGRADE)
def test_every_header_is_needed(name: str) -> None:
    """Without any one of the headers of the handshake there is no upgrade."""
    with pytest.raises(HandshakeError):
        check_upgrade(read(write_head(replaced(name))))


@pytest.mark.parametrize("name", [*UPGRADE, "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Origin", "Cookie"])
@given(values=st.lists(st.text(st.characters(max_codepoint=0xFF)), max_size=3))
@example(values=["\xe9"])
@example(values=["", ""])
def test_any_header_with_any_value(name: str, values: list[str]) -> None:
    """Whatever the value of a header, the request is accepted, or refused with a status."""
    try:
        accept = check_upgrade(read(write_head(replaced(name, *values))))
    except HandshakeError as error:
        assert error.status in (400, 426, 431)  # noqa: PT017 - any other exception fails the test
    else:
        assert len(accept) == len(ACCEPT)


def test_offered_subprotocols() -> None:
    """C1 row 20: what is offered comes from all lines, without empty elements, each once."""
    lines = [*UPGRADE.items(), ("Sec-WebSocket-Protocol", "chat,,chat ,b"), ("Sec-WebSocket-Protocol", "c")]
    assert offered_subprotocols(read(write_head(lines))) == ("chat", "b", "c")
    assert offered_subprotocols(read(write_head(UPGRADE.items()))) == ()


@pytest.mark.parametrize("value", ["a b", "a, b;c", '"a"', "a/b", "(a)", "\xe9"])
def test_subprotocols_are_tokens(value: str) -> None:
    """A subprotocol that is not a token makes the request malformed (RFC 6455 section 4.1)."""
    assert upgrade_error(replaced("Sec-WebSocket-Protocol", value)).status == 400


def test_choose_subprotocol() -> None:
    """The server's preference decides, "first" leaves it to the client, and nothing in common means none."""
    assert choose_subprotocol(("v2", "v1"), ("v1", "v2")) == "v2"
    assert choose_subprotocol(("v2", "v1"), ("x", "v1")) == "v1"
    assert choose_subprotocol(("v2",), ("V2", "x")) is None
    assert choose_subprotocol((), ("v1",)) is None
    assert choose_subprotocol(("v1",), ()) is None
    assert choose_subprotocol("first", ("b", "a")) == "b"
    assert choose_subprotocol("first", ()) is None
