"""The client's half of the opening handshake, byte by byte: the request, and every answer that must not be taken."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_crowws import Deflate, InvalidHandshake, ServerResponse
from trio_crowws._protocol.answer import MAX_BODY, AnswerReader, UpgradeRequest, check_accepted
from trio_crowws._protocol.handshake import RequestReader, check_upgrade
from trio_crowws._protocol.tunnel import Tunnel
from trio_crowws._protocol.url import parse_proxy, parse_url
from trio_crowws.errors import ProxyError


def make_request(*subprotocols: str, compression: Deflate | None = None) -> UpgradeRequest:
    headers = [("X-More", "1"), ("Cookie", "a=b")]
    return UpgradeRequest("/chat?a=b", "example.org:81", subprotocols, compression, headers)


def make_reader(request: UpgradeRequest, *, max_header_bytes: int = 4096, max_headers: int = 20) -> AnswerReader:
    return AnswerReader(request.as_event(), max_header_bytes=max_header_bytes, max_headers=max_headers)


def good(request: UpgradeRequest) -> dict[str, str]:
    return {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": request.accept}


def answer(headers: list[tuple[str, str]], status: str = "HTTP/1.1 101 Switching Protocols") -> bytes:
    lines = [status, *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


# The request


def test_the_request_is_one_that_our_server_takes() -> None:
    """All headers of RFC 6455 section 4.1 are there, once, and the given ones behind them."""
    request = make_request("chat", "superchat")
    reader = RequestReader(max_header_bytes=4096, max_headers=20)
    seen = reader.feed(make_reader(request).request)
    assert seen is not None
    assert check_upgrade(seen) == request.accept
    assert seen.target == request.target == "/chat?a=b"
    assert seen.host == "example.org:81"
    assert seen.subprotocols == request.subprotocols == ("chat", "superchat")
    assert seen.headers == request.headers
    assert seen.headers["x-more"] == "1"
    assert seen.headers["user-agent"] == "trio_crowws"
    assert "origin" not in seen.headers
    assert "sec-websocket-extensions" not in seen.headers


def test_every_key_is_new() -> None:
    """The key is 16 random bytes for each request (RFC 6455 section 4.1, item 7)."""
    keys = {make_request().headers["sec-websocket-key"] for _ in range(100)}
    assert len(keys) == 100


def test_host_and_user_agent_can_be_replaced() -> None:
    """Then they are there once, with the given value."""
    request = UpgradeRequest("/", "example.org", (), None, [("host", "other"), ("USER-AGENT", "me")])
    assert request.headers.get_all("host") == ("other",)
    assert request.headers.get_all("user-agent") == ("me",)
    assert "sec-websocket-protocol" not in request.headers


# Answers that are taken


@pytest.mark.parametrize("size", [1, 7, 10000])
def test_a_101_is_taken_in_any_pieces(size: int) -> None:
    """The answer comes with its last byte; what follows it is kept."""
    request = make_request()
    reader = make_reader(request)
    data = answer([*good(request).items(), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]) + b"\x81\x01a\x81"
    responses = [reader.feed(data[start : start + size]) for start in range(0, len(data), size)]
    [response] = [each for each in responses if each is not None]
    assert check_accepted(request, response) == (None, None)
    assert response.status == 101
    assert response.headers.get_all("set-cookie") == ("a=1", "b=2")
    assert (response.body, response.truncated) == (b"", False)
    assert reader.trailing == b"\x81\x01a\x81"
    assert reader.eof() is None


@pytest.mark.parametrize(
    "changed",
    [
        {"Upgrade": "WebSocket"},
        {"Connection": "keep-alive, upgrade"},
        {"Connection": "UPGRADE"},
        {"Sec-WebSocket-Extensions": ""},
        {"Sec-WebSocket-Version": "13"},
        {"X-Latin": "\xe9"},
    ],
    ids=str,
)
def test_correct_forms_of_a_101(changed: dict[str, str]) -> None:
    """Upper and lower case do not matter where RFC 6455 says so, nor do headers of no meaning here."""
    request = make_request()
    response = make_reader(request).feed(answer([*(good(request) | changed).items()]))
    assert response is not None
    assert check_accepted(request, response) == (None, None)


def test_the_subprotocol_of_the_server() -> None:
    """It is one that was offered."""
    request = make_request("a", "b")
    response = make_reader(request).feed(answer([*good(request).items(), ("Sec-WebSocket-Protocol", "b")]))
    assert response is not None
    assert check_accepted(request, response) == ("b", None)


def test_earlier_answers_are_passed_over() -> None:
    """Any number of 1xx, as far as the limit of the head goes, in one piece or several (RFC 9110 section 15.2)."""
    request = make_request()
    reader = make_reader(request)
    assert reader.feed(answer([("Link", "</x>")], "HTTP/1.1 103 Early Hints")) is None
    early = answer([], "HTTP/1.1 100 Continue") + answer([], "HTTP/1.1 102 Processing")
    response = reader.feed(early + answer([*good(request).items()]))
    assert response is not None
    assert response.status == 101


# Answers that are not taken

WRONG: list[tuple[str, list[tuple[str, str | None]], str]] = [
    ("no upgrade", [("Upgrade", None)], "no Upgrade header"),
    ("other upgrade", [("Upgrade", "h2c")], "wrong header Upgrade: 'h2c'"),
    ("two upgrades", [("Upgrade", "websocket, h2c")], "wrong header Upgrade"),
    ("upgrade twice", [("Upgrade", "websocket"), ("upgrade", "websocket")], "wrong header Upgrade: .* and "),
    ("no connection", [("Connection", None)], "no Connection header"),
    ("other connection", [("Connection", "close")], "wrong header Connection: 'close'"),
    ("part of a token", [("Connection", "Upgraded")], "wrong header Connection"),
    ("no accept", [("Sec-WebSocket-Accept", None)], "no Sec-WebSocket-Accept"),
    ("wrong accept", [("Sec-WebSocket-Accept", "AAAA")], "wrong header Sec-WebSocket-Accept: 'AAAA'"),
    ("empty accept", [("Sec-WebSocket-Accept", "")], "wrong header Sec-WebSocket-Accept: ''"),
    ("no offer, protocol", [("Sec-WebSocket-Protocol", "z")], "Sec-WebSocket-Protocol: 'z' which was not offered"),
    ("empty protocol", [("Sec-WebSocket-Protocol", "")], "Sec-WebSocket-Protocol"),
    ("two protocols", [("Sec-WebSocket-Protocol", "a, b")], "Sec-WebSocket-Protocol: 'a, b'"),
    ("other case", [("Sec-WebSocket-Protocol", "A")], "Sec-WebSocket-Protocol: 'A'"),
    ("protocol twice", [("Sec-WebSocket-Protocol", "a"), ("sec-websocket-protocol", "a")], "Sec-WebSocket-Protocol"),
    ("extension", [("Sec-WebSocket-Extensions", "x-foo; y=1")], "Sec-WebSocket-Extensions: 'x-foo; y=1' which was not"),
    ("two", [("Sec-WebSocket-Extensions", "a"), ("sec-websocket-extensions", "b")], "'a' and 'b' which was not"),
    ("escaped", [("Upgrade", "\x9b1m")], r"'\\x9b1m'"),
    ("long", [("Upgrade", "x" * 1000)], r"'x{100}\.\.\.'"),
]


@pytest.mark.parametrize(("changes", "complaint"), [pytest.param(*rest, id=name) for name, *rest in WRONG])
def test_a_101_that_is_not_correct(changes: list[tuple[str, str | None]], complaint: str) -> None:
    """The error names the header, and shows its value escaped and not too long."""
    request = make_request("a", "b")
    headers = good(request)
    for name, _ in changes:
        headers.pop(name, None)
    lines = [*headers.items(), *((name, value) for name, value in changes if value is not None)]
    response = make_reader(request).feed(answer(lines))
    assert response is not None
    with pytest.raises(InvalidHandshake, match=complaint) as caught:
        check_accepted(request, response)
    assert str(caught.value).isascii()


def test_compression_is_offered_and_agreed_on() -> None:
    """The offer is one line, and the answer to it is part of what the 101 is checked for."""
    request = make_request(compression=Deflate())
    offer = request.headers["sec-websocket-extensions"]
    assert offer == "permessage-deflate; client_max_window_bits"
    header = "permessage-deflate; server_no_context_takeover; server_max_window_bits=10"
    response = make_reader(request).feed(answer([*good(request).items(), ("Sec-WebSocket-Extensions", header)]))
    assert response is not None
    _, agreement = check_accepted(request, response)
    assert agreement is not None
    assert (agreement.header, agreement.server_max_window_bits, agreement.client_max_window_bits) == (header, 10, 12)
    declined = make_reader(request).feed(answer([*good(request).items()]))
    assert declined is not None
    assert check_accepted(request, declined) == (None, None)


@pytest.mark.parametrize(
    "header",
    [
        "x-other",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; client_max_window_bits",
        "permessage-deflate; server_no_context_takeover; server_max_window_bits=12; unknown",
        "permessage-deflate; server_no_context_takeover; server_max_window_bits=12, permessage-deflate",
    ],
)
def test_compression_that_was_not_offered_so(header: str) -> None:
    """The error shows the header and says what is wrong with it."""
    request = make_request(compression=Deflate())
    response = make_reader(request).feed(answer([*good(request).items(), ("Sec-WebSocket-Extensions", header)]))
    assert response is not None
    with pytest.raises(InvalidHandshake, match=r"wrong header Sec-WebSocket-Extensions: '.*': .*not offered so"):
        check_accepted(request, response)


def test_an_accept_value_that_is_there_twice() -> None:
    """Even with the right value both times."""
    request = make_request()
    response = make_reader(request).feed(answer([*good(request).items(), ("sec-websocket-accept", request.accept)]))
    assert response is not None
    with pytest.raises(InvalidHandshake, match="Sec-WebSocket-Accept"):
        check_accepted(request, response)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "malformed"),
        (b"\x15\x03\x03\x00\x02\x02\x46\r\n\r\n", "malformed"),
        (b"HTTP/1.1 abc\r\n\r\n", "malformed"),
        (b"HTTP/1.1 101 Switching\r\nno colon\r\n\r\n", "malformed"),
        (b"HTTP/1.1 101 Switching\r\nA: \x00\r\n\r\n", "malformed"),
        (b"HTTP/1.0 101 Switching\r\n\r\n", "HTTP/'1.0'"),
    ],
)
def test_what_is_no_answer(data: bytes, complaint: str) -> None:
    """The stream does not speak HTTP/1.1; nothing of it is taken afterwards."""
    request = make_request()
    reader = make_reader(request)
    with pytest.raises(InvalidHandshake, match=complaint):
        reader.feed(data)
    assert reader.feed(answer([*good(request).items()])) is None
    assert reader.eof() is None


BANNERS = {
    "SMTP": (b"220 mail.example.org ESMTP\r\n250 more", "and not HTTP/1.1: '220 mail.example.org ESMTP'$"),
    "SSH": (b"SSH-2.0-OpenSSH_9.6\r\n", "and not HTTP/1.1: 'SSH-2.0-OpenSSH_9.6'$"),
    "Redis": (b"-ERR unknown command\r\n", "and not HTTP/1.1: '-ERR unknown command'$"),
    "MySQL": (b"J\0\0\0\n8.0.33\0\x0b", r"and not HTTP/1.1: 'J\\x00\\x00\\x00\\n8\.0\.33\\x00\\x0b'$"),
    "HTTP/2": (bytes.fromhex("000012040000000000") + bytes(18), "one of HTTP/2, which has no upgrade"),
    "HTTP/2 in a line": (b"HTTP/2 400 Bad Request\r\n", "and not HTTP/1.1: 'HTTP/2 400 Bad Request'$"),
    "an alert of TLS": (b"\x15\x03\x03\0\x02\x02F", "a record of TLS: "),
    "a handshake of TLS": (b"\x16\x03\x03", "a record of TLS: "),
    "one byte of TLS": (b"\x15", "a record of TLS: "),
    "no TLS": (b"\x15\x04\x00", r"and not HTTP/1.1: '\\x15\\x04\\x00'$"),
    "a terminal's command": (b"\x1b]0;a\x07" + b"x" * 500, r"and not HTTP/1.1: '\\x1b\]0;a\\x07x{88}\.\.\.'$"),
    "a status of two digits": (b"HTTP/1.1 20 OK", "and not HTTP/1.1: 'HTTP/1.1 20 OK'$"),
    "small letters": (b"http/1.1 101", "and not HTTP/1.1: 'http/1.1 101'$"),
}


@pytest.mark.parametrize("name", BANNERS)
def test_another_protocol(name: str) -> None:
    """It is noticed without the end of a head, which will never come, and shown: its first line, or all if binary."""
    data, complaint = BANNERS[name]
    reader = make_reader(make_request())
    with pytest.raises(InvalidHandshake, match=complaint):
        reader.feed(data)
    assert reader.feed(b"more") is None
    assert reader.eof() is None


def test_another_protocol_after_a_hint() -> None:
    """What follows a 1xx is the beginning of an answer, too."""
    reader = make_reader(make_request())
    with pytest.raises(InvalidHandshake, match=r"and not HTTP/1\.1: '220 hello'"):
        reader.feed(b"HTTP/1.1 103 Early Hints\r\n\r\n220 hello\r\n")


@pytest.mark.parametrize("first", [b"HTTP/1.1 103 Early Hints\r\n\r\n", b""])
@pytest.mark.parametrize("line", [b"HTTP/1.1 101 Switching", b"HTTP/1.1 101 ", b"HTTP/1.1 101"])
def test_a_status_line_in_pieces(first: bytes, line: bytes) -> None:
    """A line that comes byte by byte is waited for, with a reason and without."""
    request = make_request()
    reader = make_reader(request)
    data = first + answer([*good(request).items()], line.decode())
    responses = [reader.feed(data[at : at + 1]) for at in range(len(data))]
    assert responses[:-1] == [None] * (len(data) - 1)
    assert responses[-1] is not None
    assert responses[-1].status == 101


@pytest.mark.parametrize("complete", [True, False])
def test_too_large_a_head(complete: bool) -> None:
    """It is refused as soon as it is too large, and also when it came in one piece."""
    request = make_request()
    data = answer([*good(request).items(), ("X-Large", "x" * 4096)])
    with pytest.raises(InvalidHandshake, match="larger than 4096 bytes"):
        make_reader(request).feed(data if complete else data[:-2])


def test_all_heads_count_together() -> None:
    """A server cannot go on with 1xx for ever."""
    request = make_request()
    reader = make_reader(request, max_header_bytes=1000)
    hint = answer([("Link", "x" * 200)], "HTTP/1.1 103 Early Hints")
    for _ in range(4):
        assert reader.feed(hint) is None
    with pytest.raises(InvalidHandshake, match="larger than 1000 bytes"):
        reader.feed(hint)


def test_too_many_header_lines() -> None:
    """They are counted."""
    request = make_request()
    lines = [*good(request).items(), *(("X", "y") for _ in range(18))]
    with pytest.raises(InvalidHandshake, match="more than 20 header lines"):
        make_reader(request).feed(answer(lines))
    assert make_reader(request).feed(answer(lines[1:])) is not None


# Refusals


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    ("lines", "body"),
    [
        ([("Content-Length", "6")], b"no way"),
        ([("Transfer-Encoding", "chunked")], b"2\r\nno\r\n4;x=y\r\n way\r\n0\r\nT: x\r\n\r\n"),
    ],
)
def test_a_refusal_has_a_body(lines: list[tuple[str, str]], body: bytes, size: int) -> None:
    """With a length or in chunks, the answer comes with the last byte of the body."""
    reader = make_reader(make_request())
    data = answer([*lines, ("X-Reason", "tired")], "HTTP/1.1 503 Not Now") + body
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    *before, last = [reader.feed(piece) for piece in pieces]
    assert not any(before)
    assert last is not None
    assert (last.status, last.headers["x-reason"], last.body, last.truncated) == (503, "tired", b"no way", False)


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
def test_a_body_that_ends_with_the_stream(version: str) -> None:
    """Without a length the body goes on to the end."""
    reader = make_reader(make_request())
    assert reader.feed(answer([], f"{version} 200 OK") + b"hello") is None
    response = reader.eof()
    assert response is not None
    assert (response.status, response.body, response.truncated) == (200, b"hello", False)


@pytest.mark.parametrize("status", [204, 304])
def test_a_refusal_without_a_body(status: int) -> None:
    """It is complete with its head."""
    response = make_reader(make_request()).feed(answer([("Content-Length", "5")], f"HTTP/1.1 {status} X"))
    assert response is not None
    assert (response.status, response.body, response.truncated) == (status, b"", False)


def test_a_large_body_is_cut() -> None:
    """The first 64 KiB are kept, and `truncated` says so."""
    reader = make_reader(make_request())
    assert reader.feed(answer([("Content-Length", "1000000")], "HTTP/1.1 404 X")) is None
    assert reader.feed(b"x" * (MAX_BODY - 1)) is None
    response = reader.feed(b"yz")
    assert response is not None
    assert (len(response.body), response.body[-2:], response.truncated) == (MAX_BODY, b"xy", True)
    assert reader.feed(b"more") is None
    exact = make_reader(make_request())
    whole = exact.feed(answer([("Content-Length", str(MAX_BODY))], "HTTP/1.1 404 X") + b"x" * MAX_BODY)
    assert whole is not None
    assert (len(whole.body), whole.truncated) == (MAX_BODY, False)


def test_a_body_that_breaks_off() -> None:
    """What has come of it is there, and `truncated` says that there was more."""
    reader = make_reader(make_request())
    assert reader.partial() is None
    assert reader.feed(answer([("Content-Length", "10")], "HTTP/1.1 500 X") + b"half") is None
    partial = reader.partial()
    assert partial is not None
    assert (partial.status, partial.body, partial.truncated) == (500, b"half", True)
    assert reader.eof() == partial


def test_a_body_in_broken_chunks() -> None:
    """A refusal is one even if its body is not well-formed."""
    reader = make_reader(make_request())
    data = answer([("Transfer-Encoding", "chunked")], "HTTP/1.1 500 X") + b"2\r\nno\r\nnonsense\r\n"
    response = reader.feed(data)
    assert response is not None
    assert (response.status, response.body, response.truncated) == (500, b"no", True)


def test_the_end_before_an_answer() -> None:
    """There is no answer then, not a wrong one."""
    reader = make_reader(make_request())
    assert reader.feed(b"HTTP/1.1 101 Swi") is None
    assert reader.eof() is None
    assert reader.eof() is None


@given(st.binary(max_size=200), st.integers(1, 200))
def test_any_bytes_are_an_answer_or_an_error(data: bytes, size: int) -> None:
    """Whatever comes, the only error is InvalidHandshake."""
    for prefix in (b"", b"HTTP/1.1 ", b"HTTP/1.1 404 X\r\n", b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n"):
        reader = make_reader(make_request())
        whole = prefix + data
        with suppress(InvalidHandshake):
            for start in range(0, len(whole), size):
                reader.feed(whole[start : start + size])
            reader.eof()


# Tunnels


def make_tunnel(proxy: str = "http://proxy:3128", url: str = "wss://example.org/x") -> Tunnel:
    return Tunnel(parse_proxy(proxy), parse_url(url), max_header_bytes=1000, max_headers=20)


def test_the_request_for_a_tunnel() -> None:
    """Host and port, in both places, and the credentials."""
    lines = make_tunnel("http://user:pass@proxy", "ws://[::1]/x").request.split(b"\r\n")
    assert lines[0] == b"CONNECT [::1]:80 HTTP/1.1"
    assert b"Host: [::1]:80" in lines
    assert b"Proxy-Authorization: Basic dXNlcjpwYXNz" in lines
    assert b"CONNECT example.org:443 HTTP/1.1" in make_tunnel().request
    assert b"Proxy-Authorization" not in make_tunnel().request


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.0 200 Connection established\r\n\r\n", b"HTTP/1.1 204 X\r\nA: b\r\n\r\n"],
)
def test_a_tunnel_in_any_pieces(head: bytes) -> None:
    """Any 2xx makes a tunnel; the head is all that comes of it (RFC 9110 section 9.3.6)."""
    tunnel = make_tunnel()
    assert [tunnel.feed(bytes((byte,))) for byte in head] == [False] * (len(head) - 1) + [True]
    assert make_tunnel().feed(b"HTTP/1.1 100 Continue\r\n\r\n" + head)


def test_a_proxy_that_refuses() -> None:
    """The error names proxy and status, carries the answer, and is an `OSError`."""
    tunnel = make_tunnel("http://user:s3cret@proxy:3128")
    with pytest.raises(ProxyError, match="proxy http://proxy:3128 refused with HTTP status 407") as caught:
        tunnel.feed(b"HTTP/1.1 407 X\r\nProxy-Authenticate: Basic\r\nContent-Length: 2\r\n\r\nno")
    assert isinstance(caught.value, OSError)
    response = caught.value.response
    assert isinstance(response, ServerResponse)
    assert (response.status, response.headers["proxy-authenticate"], response.body) == (407, "Basic", b"no")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("body", [b"", b"no"])
def test_a_refusal_of_a_proxy_that_is_not_complete(body: bytes) -> None:
    """What is there of it counts, whether the proxy closes or nobody waits any longer."""
    tunnel = make_tunnel()
    head = b"HTTP/1.1 407 X\r\nContent-Length: 9\r\n\r\n"
    assert not tunnel.feed(head[:-1])
    assert tunnel.refusal() is None
    assert not tunnel.feed(head[-1:] + body)
    refusal = tunnel.refusal()
    with pytest.raises(ProxyError) as caught:
        tunnel.feed(b"")
    assert refusal is not None
    for error in (refusal, caught.value):
        assert str(error) == "the proxy http://proxy:3128 refused with HTTP status 407"
        assert error.response is not None
        assert (error.response.status, error.response.body, error.response.truncated) == (407, body, True)


@pytest.mark.parametrize(
    ("pieces", "complaint"),
    [
        ([b""], "closed the connection before it had answered"),
        ([b"HTTP/1.1 2", b""], "closed the connection before it had answered"),
        ([b"\x05\x00"], "cannot be understood"),
        ([b"HTTP/1.1 200 OK\r\nA: " + b"x" * 2000], "cannot be understood.*larger than 1000"),
        ([b"HTTP/1.1 200 OK\r\n\r\nextra"], "sent more than its answer: 'extra'"),
    ],
)
def test_a_proxy_that_does_not_answer(pieces: list[bytes], complaint: str) -> None:
    """The error says what came instead."""
    tunnel = make_tunnel()
    with pytest.raises(ProxyError, match=complaint):  # noqa: PT012 -- only the last piece is wrong
        for piece in pieces:
            tunnel.feed(piece)
