"""What can be read from a request."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_crowws._request import Headers, Query, Request, split_list


def make(target: str = "/", *headers: tuple[str, str]) -> Request:
    return Request("GET", target, Headers(headers))


def test_headers_ignore_case() -> None:
    """A header is found by its name in any case, whatever the case in which it was sent."""
    headers = Headers([("X-Token", "a"), ("host", "h")])
    assert headers["x-token"] == headers["X-TOKEN"] == headers["X-Token"] == "a"
    assert headers.get("HOST") == "h"
    assert "x-ToKeN" in headers
    assert headers.get_all("X-TOKEN") == ("a",)


def test_headers_keep_every_line() -> None:
    """Of several lines with one name the first is the value, and get_all has all of them in their order."""
    headers = Headers([("A", "1"), ("B", "2"), ("a", "3")])
    assert headers["a"] == headers.get("a") == "1"
    assert headers.get_all("a") == ("1", "3")
    assert list(headers) == ["a", "b"]
    assert len(headers) == 2
    assert dict(headers) == {"a": "1", "b": "2"}


def test_missing_header() -> None:
    """A header that was not sent is a KeyError, None or the default, and no values."""
    headers = Headers()
    assert headers.get("a") is None
    assert headers.get("a", "x") == headers.get("a", default="x") == "x"
    assert headers.get_all("a") == ()
    assert "a" not in headers
    with pytest.raises(KeyError):
        headers["a"]


def test_something_else_than_a_name() -> None:
    """Asking whether something that is no str is a name is answered, with no."""
    for key in (5, None, b"a"):
        assert not Headers([("a", "1")]).__contains__(key)
        assert not Query([("a", "1")]).__contains__(key)


def test_headers_are_a_mapping() -> None:
    """Headers and Query are mappings without a way to change them."""
    for kind in (Headers, Query):
        mapping = kind([("a", "1")])
        assert isinstance(mapping, Mapping)
        assert not hasattr(mapping, "__setitem__")


def test_comparison_sees_every_value() -> None:
    """Headers are equal when all their values are, not only the first ones."""
    assert Headers([("A", "1"), ("a", "2")]) == Headers([("a", "1"), ("A", "2")])
    assert Headers([("a", "1"), ("a", "2")]) != Headers([("a", "1"), ("a", "3")])
    assert Headers([("a", "1")]) != Query([("a", "1")])
    assert repr(Headers([("A", "1"), ("a", "2")])) == "Headers([('a', '1'), ('a', '2')])"


def test_query_minds_case() -> None:
    """Two fields of a query whose names differ in case are two fields."""
    query = make("/?a=1&A=2&a=3").query
    assert query["a"] == "1"
    assert query["A"] == "2"
    assert query.get_all("a") == ("1", "3")


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("", []),
        ("a", [("a", "")]),
        ("a=", [("a", "")]),
        ("=a", [("", "a")]),
        ("a=b=c", [("a", "b=c")]),
        ("a=b+c%20d", [("a", "b c d")]),
        ("%61=%c3%a9", [("a", "é")]),
        ("a=1&&b=2&", [("a", "1"), ("b", "2")]),
        ("a=1?b=2", [("a", "1?b=2")]),
        ("a=1;b=2", [("a", "1;b=2")]),
        ("a=%zz%", [("a", "%zz%")]),
        ("a=%ff", [("a", "\ufffd")]),
        ("a=%2526", [("a", "%26")]),
    ],
)
def test_query_decoding(text: str, fields: list[tuple[str, str]]) -> None:
    """A query is decoded as forms are, once; what is not UTF-8 becomes U+FFFD and what is no encoding stays."""
    request = make("/x?" + text)
    assert request.query_string == text
    assert request.query == Query(fields)
    assert request.query is request.query


@pytest.mark.parametrize(
    ("target", "path", "segments"),
    [
        ("/", "/", [""]),
        ("/chat", "/chat", ["chat"]),
        ("/chat/", "/chat/", ["chat", ""]),
        ("//a", "//a", ["", "a"]),
        ("/a%20b/%C3%A9", "/a b/é", ["a b", "é"]),
        ("/a%2Fb/c", "/a/b/c", ["a/b", "c"]),
        ("/a%252Fb", "/a%2Fb", ["a%2Fb"]),
        ("/a+b", "/a+b", ["a+b"]),
        ("/%", "/%", ["%"]),
        ("/%zz", "/%zz", ["%zz"]),
        ("/%ff%fe", "/\ufffd\ufffd", ["\ufffd\ufffd"]),
        ("/%00", "/\0", ["\0"]),
        ("/a/../b", "/a/../b", ["a", "..", "b"]),
        ("/a;b=c", "/a;b=c", ["a;b=c"]),
        ("/a://b", "/a://b", ["a:", "", "b"]),
        ("http://h:80/a%2Fb", "/a/b", ["a/b"]),
        ("http://h", "/", [""]),
        ("http://h/", "/", [""]),
    ],
)
def test_path_decoding(target: str, path: str, segments: list[str]) -> None:
    """A path is decoded once, and its segments are told apart before that."""
    for suffix, query in (("", ""), ("?q=/a/b", "q=/a/b")):
        request = make(target + suffix)
        assert request.target == target + suffix
        assert request.path == path
        assert request.segments == segments
        assert request.query_string == query


def test_host() -> None:
    """The host is the one of the Host header, or that of an absolute target, which goes first (RFC 9112 3.2.2)."""
    assert make("/", ("Host", "a:80")).host == "a:80"
    assert make("http://b:81/x?y=http://c", ("Host", "a:80")).host == "b:81"
    assert make("http://b?x", ("Host", "a:80")).host == "b"
    assert make("/?http://b/", ("Host", "a:80")).host == "a:80"
    assert make("/").host == ""


@pytest.mark.parametrize(
    ("lines", "cookies"),
    [
        ([], {}),
        (["a=1"], {"a": "1"}),
        (["a=1; b=2"], {"a": "1", "b": "2"}),
        (["a=1;b=2"], {"a": "1", "b": "2"}),
        (["a=1", "b=2"], {"a": "1", "b": "2"}),
        (["a=1; a=2"], {"a": "1"}),
        ([' a = "x y" ; b="'], {"a": "x y", "b": '"'}),
        (["a=x=y=="], {"a": "x=y=="}),
        (["a=; b"], {"a": ""}),
        ([";;, ;"], {}),
        (["a=%20+\xe9"], {"a": "%20+\xe9"}),
        (["A=1; a=2"], {"A": "1", "a": "2"}),
        (['a=""'], {"a": ""}),
    ],
)
def test_cookies(lines: list[str], cookies: dict[str, str]) -> None:
    """Cookies come from every Cookie header; the first of a name counts; quotes around a value do not."""
    request = make("/", *[("Cookie", line) for line in lines])
    assert request.cookies == cookies
    assert request.cookies is request.cookies


def test_origin() -> None:
    """The origin is what the header says, and None where there is none."""
    assert make("/").origin is None
    assert make("/", ("origin", "null")).origin == "null"


def test_list_header() -> None:
    """A list header is read over all of its lines, and empty elements are left out."""
    assert split_list(["a, b ,\tc", "", ",", ",,d e,"]) == ["a", "b", "c", "d e"]


def test_subprotocols_are_normalised() -> None:
    """C1 row 20: empty subprotocols are left out, and each is there once, in the client's order."""
    request = make("/", ("Sec-WebSocket-Protocol", "chat,, b,chat"), ("sec-websocket-protocol", "a, b"))
    assert request.subprotocols == ("chat", "b", "a")
    assert make("/").subprotocols == ()


def test_defaults() -> None:
    """A request that was just parsed knows no addresses and no route, and each has a state of its own."""
    request, other = make("/"), make("/")
    assert (request.remote_address, request.local_address, request.secure) == (None, None, False)
    assert request.path_params == request.state == {}
    assert request.state is not other.state
    assert request.path_params is not other.path_params


def test_repr_shows_no_secrets() -> None:
    """What ends up in logs has neither the query nor the headers in it, and no line ends."""
    request = make("/a%0ab?token=secret", ("Cookie", "secret"))
    request.remote_address = ("::1", 5)
    assert repr(request) == "<Request GET '/a\\nb' from ('::1', 5)>"


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E)), st.text(st.characters(max_codepoint=0xFF)))
def test_reading_never_fails(target: str, value: str) -> None:
    """Whatever the target and the headers, every attribute can be read."""
    names = ("Host", "Cookie", "Origin", "Sec-WebSocket-Protocol")
    request = make("/" + target, *[(name, value) for name in names])
    assert "".join(request.segments).replace("/", "") == request.path.replace("/", "")
    assert isinstance(repr((request.query, request.cookies, request.origin, request.subprotocols, request.host)), str)
