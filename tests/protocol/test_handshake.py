"""Bytes to a request: what is read, what is refused with which status, and that splits make no difference."""

from __future__ import annotations

from itertools import pairwise
from typing import Any
from unittest import mock

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from support.heads import ACCEPT, UPGRADE, make_reader, read, read_error, replaced, write_head
from trio_crowws._protocol import handshake
from trio_crowws._protocol.handshake import MAX_TARGET, RequestReader, check_upgrade, is_upgrade
from trio_crowws.errors import HandshakeError


def test_valid_request() -> None:
    """A complete head becomes a request with everything that was in it."""
    request = read(write_head([*UPGRADE.items(), ("X-Name", "\xe9"), ("x-name", "2")], "GET /a?b=c HTTP/1.1"))
    assert (request.method, request.target, request.path, request.host) == ("GET", "/a?b=c", "/a", "example.org")
    assert request.headers.get_all("X-NAME") == ("\xe9", "2")
    assert {name: request.headers[name] for name in UPGRADE} == UPGRADE


def test_byte_by_byte() -> None:
    """A head that arrives byte by byte is read like one that comes at once, at its last byte."""
    data = write_head(UPGRADE.items())
    reader = make_reader()
    for index in range(len(data) - 1):
        assert reader.feed(data[index : index + 1]) is None
    request = reader.feed(data[-1:])
    assert request is not None
    assert request.headers == read(data).headers


def test_parsed_once() -> None:
    """However small the pieces, the head is parsed once, so a peer that drips cannot make that expensive."""
    data = write_head([*UPGRADE.items(), ("A", "b" * 4000)])
    reader = make_reader()
    with mock.patch.object(h11, "Connection", wraps=h11.Connection) as connection:
        for index in range(len(data)):
            reader.feed(data[index : index + 1])
    assert connection.call_count == 1


def test_nothing_fed() -> None:
    """No bytes change nothing."""
    reader = make_reader()
    assert reader.feed(b"") is None
    assert not reader.started


@pytest.mark.parametrize("first", [0x16, 0x80, 0x00, 0x0D, 0x0A, 0x20, 0x3A, 0xFF])
def test_first_byte(first: int) -> None:
    """What is not HTTP, as a TLS ClientHello, is refused at its first byte and not when its time is over."""
    assert read_error(bytes([first])) == 400


def test_other_protocol() -> None:
    """A protocol that begins like HTTP is refused at the end of its first line."""
    assert read_error(b"SSH-2.0-OpenSSH_9.9\r\n") == 400
    assert read_error(b"PRI * HTTP/2.0\r\n") == 505


@pytest.mark.parametrize(
    "data",
    [
        b"GET /\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1 \r\n\r\n",
        b"GET / http/1.1\r\n\r\n",
        b"GET / HTTP/1.10\r\n\r\n",
        b"G@T / HTTP/1.1\r\n\r\n",
        b"GET /\x01 HTTP/1.1\r\n\r\n",
        b"GET /\r HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n: no name\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\xe9: name\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n\tfolded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\x7f\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rC: d\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\n",
    ],
)
def test_malformed(data: bytes) -> None:
    """A head that breaks the syntax of RFC 9112 is refused with 400."""
    assert read_error(data) == 400


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\n", b"GET / HTTP/1.1\r\nHost: x\n", b"GET / HTTP/1.1\r\nHost: x\r\n\n"]
)
def test_bare_line_feed(data: bytes) -> None:
    """A line that ends with LF alone is refused right there."""
    assert make_reader().feed(data[:-1]) is None
    assert read_error(data) == 400


@pytest.mark.parametrize("control", [b"\x00", b"\x0c", b"\r", b"\x7f"])
def test_control_characters_are_found_before_parsing(control: bytes) -> None:
    """A head with a control character does not reach the parser."""
    with mock.patch.object(h11, "Connection") as connection:
        assert read_error(b"GET / HTTP/1.1\r\nHost: x\r\nA:" + b" " * 16_000 + control + b"\r\n\r\n") == 400
    assert connection.call_count == 0


def test_message_repeats_nothing_secret() -> None:
    """The text of a refusal, which goes to the log and to the peer, does not repeat malformed headers."""
    with pytest.raises(HandshakeError, match=r"^malformed request: illegal header line$"):
        read(b"GET / HTTP/1.1\r\nHost: x\r\nCookie : secret\r\n\r\n")


@pytest.mark.parametrize("host", ["\xff", "xn--\x80", "a b", "a/b", "u@h", "a:b", "[::1", "a:123456", "a\\b", "[]x"])
def test_row_1_malformed_host(host: str) -> None:
    """C1 row 1: a Host that is none is refused, whatever its bytes."""
    assert read_error(write_head(replaced("Host", host))) == 400


@pytest.mark.parametrize(
    "host", ["a", "a..b", "a" * 64, "xn--bcher-kva:80", "127.0.0.1:8000", "[::1]:80", "A_b.example", "h:", ""]
)
def test_row_1_host_is_not_translated(host: str) -> None:
    """C1 row 1: a Host stays as it was sent: its labels are not counted, and nothing is made of punycode."""
    assert read(write_head(replaced("Host", host))).host == host


def test_row_1_host_exactly_once() -> None:
    """A request without Host, or with two, is refused (RFC 9112 section 3.2)."""
    assert read_error(write_head(replaced("Host"))) == 400
    assert read_error(write_head(replaced("Host", "a", "a"))) == 400


@pytest.mark.parametrize("target", ["/\xe9", "", "/a b", "a", "*", "/a#b", "ftp://h/", "h:80", "http:///\xff"])
def test_row_3_malformed_target(target: str) -> None:
    """C1 row 3: a target that is neither a path nor a URI of this server is refused."""
    assert read_error(write_head(UPGRADE.items(), f"GET {target} HTTP/1.1")) == 400


def test_row_3_absolute_target() -> None:
    """An absolute target is taken, and its authority is checked like a Host (RFC 9112 section 3.2.2)."""
    request = read(write_head(UPGRADE.items(), "GET HTTP://other:81/a?b HTTP/1.1"))
    assert (request.host, request.path, request.query_string) == ("other:81", "/a", "b")
    assert read_error(write_head(UPGRADE.items(), "GET http://user@h/a HTTP/1.1")) == 400
    assert read_error(write_head(replaced("Host"), "GET http://h/a HTTP/1.1")) == 400
    assert read_error(write_head(replaced("Host", "\xff"), "GET http://h/a HTTP/1.1")) == 400


@pytest.mark.parametrize("version", ["0.9", "2.0", "3.7"])
def test_row_8_http_version(version: str) -> None:
    """C1 row 8: another major version of HTTP is a 505, at the end of its line (RFC 9110 section 15.6.6)."""
    assert read_error(f"GET / HTTP/{version}\r\n".encode()) == 505


@pytest.mark.parametrize("version", ["1.2", "1.9"])
def test_a_later_minor_version(version: str) -> None:
    """A later minor version means the same as 1.1 (RFC 9110 section 6.2), and needs a Host as well."""
    request = read(write_head(UPGRADE.items(), f"GET / HTTP/{version}"))
    assert request.http_version == "1.1"
    check_upgrade(request)
    assert read_error(write_head(replaced("Host"), f"GET / HTTP/{version}")) == 400


def test_http_1_0() -> None:
    """HTTP/1.0 is read, also without any header line; the host is then unknown."""
    request = read(b"GET /a HTTP/1.0\r\n\r\n")
    assert (request.http_version, request.path, request.host, list(request.headers)) == ("1.0", "/a", "", [])
    request._compact()
    assert list(request.headers) == []
    request = read(b"HEAD http://h:81/a HTTP/1.0\r\nA: b\r\n\r\n")
    assert (request.host, request.headers["a"]) == ("h:81", "b")
    assert read_error(b"GET / HTTP/1.0\r\nHost: a/b\r\n\r\n") == 400


def test_http_1_0_is_never_an_upgrade() -> None:
    """The Upgrade of an HTTP/1.0 request is ignored (RFC 9110 section 7.8); a WebSocket route asks for one with 426."""
    request = read(write_head(UPGRADE.items(), "GET / HTTP/1.0"))
    assert not is_upgrade(request)
    with pytest.raises(HandshakeError, match=r"HTTP/1\.1") as caught:
        check_upgrade(request)
    assert caught.value.status == 426
    assert ("Upgrade", "websocket") in caught.value.headers


@pytest.mark.parametrize("target", ["http:///x", "https://:80/x", "ws://", "wss://?x"])
def test_an_absolute_target_names_a_host(target: str) -> None:
    """An absolute target without a host is refused (RFC 9110 section 4.2.1), whatever the Host header says."""
    assert read_error(write_head(UPGRADE.items(), f"GET {target} HTTP/1.1")) == 400


def test_an_empty_host() -> None:
    """A Host may be empty, which names nobody (RFC 9112 section 3.2), but not have a port only."""
    assert read(write_head(replaced("Host", ""))).host == ""
    assert read_error(write_head(replaced("Host", ":80"))) == 400


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "announcement",
    [
        ("Content-Length", "5"),
        ("Content-Length", "00009"),
        ("Transfer-Encoding", "chunked"),
        ("Transfer-Encoding", "gzip"),
        ("Transfer-Encoding", ""),
    ],
)
def test_row_9_body(method: str, announcement: tuple[str, str]) -> None:
    """C1 row 9: a request that announces a body is refused, whether or not the body is there."""
    data = write_head([*UPGRADE.items(), announcement], f"{method} / HTTP/1.1")
    assert read_error(data) == 400
    assert read_error(data + b"12345") == 400


def test_row_9_no_body() -> None:
    """C1 row 9: a body of no bytes is no body."""
    assert check_upgrade(read(write_head([*UPGRADE.items(), ("Content-Length", "0")]))) == ACCEPT


@pytest.mark.parametrize("pieces", ["at once", "byte by byte"])
class TestRow11Limits:
    """C1 row 11: the limits are the same in one piece and byte by byte, and each has its status."""

    def feed(self, data: bytes, pieces: str, **limits: int) -> int | None:
        reader = make_reader(**limits)
        step = len(data) if pieces == "at once" else 1
        request = None
        try:
            for index in range(0, len(data), step):
                request = reader.feed(data[index : index + step])
        except HandshakeError as error:
            return error.status
        assert request is not None
        return None

    def test_header_bytes(self, pieces: str) -> None:
        """A head of max_header_bytes is taken; one byte more is a 431."""
        data = write_head(UPGRADE.items())
        assert self.feed(data, pieces, max_header_bytes=len(data)) is None
        assert self.feed(data, pieces, max_header_bytes=len(data) - 1) == 431
        assert self.feed(write_head([*UPGRADE.items(), ("A", "b" * 17_000)]), pieces) == 431

    def test_header_lines(self, pieces: str) -> None:
        """Header lines up to max_headers are taken; one more is a 431."""
        data = write_head(UPGRADE.items())
        assert self.feed(data, pieces, max_headers=len(UPGRADE)) is None
        assert self.feed(data, pieces, max_headers=len(UPGRADE) - 1) == 431
        assert self.feed(write_head([*UPGRADE.items(), *[("A", "")] * 1500]), pieces) == 431

    def test_target(self, pieces: str) -> None:
        """A target of 8 KiB is taken; one byte more is a 414."""
        target = "/" + "a" * (MAX_TARGET - 1)
        assert self.feed(write_head(UPGRADE.items(), f"GET {target} HTTP/1.1"), pieces) is None
        assert self.feed(write_head(UPGRADE.items(), f"GET {target}a HTTP/1.1"), pieces) == 414
        assert self.feed(f"GET {target}aaaaaaaaaaaaaaaa".encode(), pieces) == 414

    def test_limits_do_not_count_early_data(self, pieces: str) -> None:
        """What follows the head does not count against the limit on it."""
        data = write_head(UPGRADE.items())
        reader = make_reader(max_header_bytes=len(data))
        assert reader.feed(data + b"x" * 20_000) is not None
        assert len(reader.trailing) == 20_000


def test_endless_line() -> None:
    """A peer that never ends its first line is refused at the limit."""
    reader = make_reader(max_header_bytes=1000)
    assert reader.feed(b"A" * 1000) is None
    assert read_error(b"A", reader) == 431


def test_row_12_early_data() -> None:
    """C1 row 12: frames behind the request, in its segment or before the answer, are kept as they are."""
    data = write_head(UPGRADE.items())
    reader = make_reader()
    assert reader.feed(data + b"\x81\x80\0\r\n\r\n") is not None
    assert reader.trailing == b"\x81\x80\0\r\n\r\n"
    assert reader.feed(b"\x89\x80") is None
    assert reader.trailing == b"\x81\x80\0\r\n\r\n\x89\x80"


def test_row_13_second_request() -> None:
    """C1 row 13: a second request behind the first is not read as one; it is early data like any other."""
    data = write_head(UPGRADE.items())
    reader = make_reader()
    assert reader.feed(data + data) is not None
    assert reader.trailing == data
    assert reader.feed(data) is None


def test_row_14_after_an_error() -> None:
    """C1 row 14: a request is refused once; what comes after that is dropped."""
    reader = make_reader()
    assert read_error(b"\x16", reader) == 400
    assert reader.feed(write_head(UPGRADE.items())) is None
    assert reader.trailing == b""


def test_row_16_end_of_stream() -> None:
    """C1 row 16: whether a stream ended before the request or within it can be told."""
    reader = make_reader()
    assert not reader.started
    reader.feed(b"G")
    assert reader.started
    reader.feed(write_head(UPGRADE.items())[1:])
    assert reader.started


# Whatever the bytes, and however they are split

FRAGMENTS = [
    *[b"GET", b" ", b"/", b"http://h", b"HTTP/1.1", b"HTTP/1.0", b"\r\n", b"\r\n\r\n", b"\n", b"\r", b":", b",", b"\t"],
    *[b"Host: x\r\n", b"Host: \xff\r\n", b"Content-Length: 1\r\n", b"a" * 20, b"\0", b"\xff", b"\x16"],
    *[b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n", write_head(UPGRADE.items())],
]
streams = st.one_of(
    st.binary(max_size=60),
    st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=3)), max_size=12).map(b"".join),
)


def outcome(reader: RequestReader, data: bytes) -> Any:
    """What a reader makes of some bytes, in a form that can be compared."""
    try:
        request = reader.feed(data)
    except HandshakeError as error:
        return error.status, str(error), error.headers
    return request and (request.method, request.target, request.headers)


@given(streams, st.integers(1, 300), st.integers(1, 8), st.integers(1, 12))
@example(b"GET /aaaaaaaa\r\n", 300, 8, 8)
@example(b"GET /aaaaaaaaaaa", 15, 8, 12)
@example(b"A" * 50 + b" /aaaaaaaaaaa HTTP/1.1\r\n", 300, 8, 8)
def test_splits_make_no_difference(data: bytes, max_header_bytes: int, max_headers: int, max_target: int) -> None:
    """Byte by byte or at once, the same bytes have the same outcome, at the same byte, for every limit."""
    limits = {"max_header_bytes": max_header_bytes, "max_headers": max_headers}
    with mock.patch.object(handshake, "MAX_TARGET", max_target):
        dripped = make_reader(**limits)
        for index in range(len(data)):
            if (result := outcome(dripped, data[index : index + 1])) is not None:
                assert outcome(make_reader(**limits), data[:index]) is None
                assert outcome(make_reader(**limits), data[: index + 1]) == result
                assert outcome(make_reader(**limits), data) == result
                return
        assert outcome(make_reader(**limits), data) is None


@given(st.binary(max_size=40), st.lists(st.integers(0, 300), max_size=6))
def test_early_data_is_exact(early: bytes, cuts: list[int]) -> None:
    """Whatever follows the head, and however all of it is split, is in `trailing` byte for byte."""
    data = write_head(UPGRADE.items()) + early
    reader = make_reader()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    results = [reader.feed(data[start:end]) for start, end in pairwise(edges)]
    assert sum(result is not None for result in results) == 1
    assert reader.trailing == early


@given(st.data())
def test_mutations(data: st.DataObject) -> None:
    """A valid request in which bytes were changed, added or lost is read or refused, and never anything else."""
    head = bytearray(write_head([*UPGRADE.items(), ("Sec-WebSocket-Protocol", "a"), ("Content-Length", "0")]))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(head)))
        end = data.draw(st.integers(start, min(start + 3, len(head))))
        head[start:end] = data.draw(st.binary(max_size=3))
    result = outcome(make_reader(), bytes(head))
    if isinstance(result, tuple) and isinstance(result[0], str):
        request = read(bytes(head))
        try:
            check_upgrade(request)
        except HandshakeError as error:
            assert error.status in (400, 405, 426)  # noqa: PT017 - any other exception fails the test
