"""The URLs of a client and of its proxies: what each form means, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_crowws import InvalidURL
from trio_crowws._protocol.url import Target, parse_proxy, parse_url, redirected

GOOD = [
    # URL, host, port, authority, resource
    ("ws://example.org", "example.org", 80, "example.org", "/"),
    ("ws://example.org/", "example.org", 80, "example.org", "/"),
    ("wss://example.org/", "example.org", 443, "example.org", "/"),
    ("WSS://Example.ORG/A", "example.org", 443, "example.org", "/A"),
    ("ws://example.org:80/", "example.org", 80, "example.org", "/"),
    ("ws://example.org:/", "example.org", 80, "example.org", "/"),
    ("wss://example.org:80/", "example.org", 80, "example.org:80", "/"),
    ("ws://example.org:443/", "example.org", 443, "example.org:443", "/"),
    ("ws://example.org:1/", "example.org", 1, "example.org:1", "/"),
    ("ws://example.org:65535/", "example.org", 65535, "example.org:65535", "/"),
    ("ws://example.org:00080/", "example.org", 80, "example.org", "/"),
    ("ws://example.org./", "example.org.", 80, "example.org.", "/"),
    ("ws://my_host-1/", "my_host-1", 80, "my_host-1", "/"),
    ("ws://127.0.0.1:8000/chat", "127.0.0.1", 8000, "127.0.0.1:8000", "/chat"),
    ("ws://[::1]/", "::1", 80, "[::1]", "/"),
    ("ws://[::1]:8000/", "::1", 8000, "[::1]:8000", "/"),
    ("ws://[2001:DB8:0:0::1]/", "2001:db8::1", 80, "[2001:db8::1]", "/"),
    ("ws://[::ffff:127.0.0.1]/", "::ffff:7f00:1", 80, "[::ffff:7f00:1]", "/"),
    ("ws://bücher.example/", "xn--bcher-kva.example", 80, "xn--bcher-kva.example", "/"),
    ("ws://BÜCHER.example/", "xn--bcher-kva.example", 80, "xn--bcher-kva.example", "/"),
    ("ws://例え.テスト:81/", "xn--r8jz45g.xn--zckzah", 81, "xn--r8jz45g.xn--zckzah:81", "/"),
    ("ws://h?a=b", "h", 80, "h", "/?a=b"),
    ("ws://h/?a=b&c", "h", 80, "h", "/?a=b&c"),
    ("ws://h/a/b;c=1/../d", "h", 80, "h", "/a/b;c=1/../d"),
    ("ws://h/%20%2F%23", "h", 80, "h", "/%20%2F%23"),
    ("ws://h/ü?ß=€", "h", 80, "h", "/%C3%BC?%C3%9F=%E2%82%AC"),
    ('ws://h/<>"\\^`{}', "h", 80, "h", "/%3C%3E%22%5C%5E%60%7B%7D"),
    ("ws://h/a?b?c", "h", 80, "h", "/a?b?c"),
    ("ws://h/@:a", "h", 80, "h", "/@:a"),
]


@pytest.mark.parametrize(("url", "host", "port", "authority", "resource"), GOOD)
def test_a_url_that_can_be_used(url: str, host: str, port: int, authority: str, resource: str) -> None:
    """Scheme, host, port, `Host` header and request target of each form."""
    target = parse_url(url)
    assert (target.host, target.port, target.authority, target.resource) == (host, port, authority, resource)
    assert target.secure is url.lower().startswith("wss:")
    assert target.unix is None
    assert target.dialled == host
    assert parse_url(f"{target.scheme}://{target.authority}{target.resource}") == target


BAD = [
    ("", "has no scheme"),
    ("example.org", "has no scheme"),
    ("ws:example.org", "has no scheme"),
    ("ws:/example.org", "has no scheme"),
    ("://example.org", "has no scheme"),
    ("1ws://example.org", "has no scheme"),
    ("http://example.org/", "must begin with ws://, wss:// or ws.unix://"),
    ("https://example.org/", "must begin with"),
    ("wsx://example.org/", "must begin with"),
    ("wss+unix:///x", "must begin with"),
    ("ws://", "has no host"),
    ("ws:///path", "has no host"),
    ("ws://:80/", "has no host"),
    ("ws://?x", "has no host"),
    ("ws://h/#", "fragment"),
    ("ws://h/a#b", "fragment"),
    ("ws://h#b", "fragment"),
    ("ws://h/?a#b", "fragment"),
    ("ws://user@h/", "user name.*Authorization"),
    ("ws://user:pass@h/", "user name"),
    ("ws://@h/", "user name"),
    ("ws://h:0/", "port"),
    ("ws://h:65536/", "port"),
    ("ws://h:123456/", "port"),
    ("ws://h:-1/", "port"),
    ("ws://h:+1/", "port"),
    ("ws://h:8_0/", "port"),
    ("ws://h:x/", "port"),
    ("ws://h:٨/", "port"),
    ("ws://h:80:80/", "port"),
    ("ws://::1/", "has no host"),
    ("ws://[::1/", "malformed"),
    ("ws://[::1]x/", "malformed"),
    ("ws://[]/", "IPv6"),
    ("ws://[1.2.3.4]/", "IPv6"),
    ("ws://[::12345]/", "IPv6"),
    ("ws://[fe80::1%eth0]/", "zone"),
    ("ws://[fe80::1%25]/", "zone"),
    ("ws://[fe80::1%25e/0]/", "malformed|zone|IPv6"),
    ("ws://[fe80::1%25%0A]/", "zone"),
    ("ws://ex%61mple.org/", "malformed"),
    ("ws://a..b/", "malformed"),
    ("ws://.a/", "malformed"),
    ("ws://-a/", "malformed"),
    ("ws://a-/", "malformed"),
    ("ws://a,b/", "malformed"),
    ("ws://a\\b/", "malformed"),
    ("ws://" + "a" * 64 + "/", "malformed"),
    ("ws://" + ".".join(["a" * 60] * 5) + "/", "malformed"),
    ("ws://\u0300a/", "not a valid name"),
    ("ws://a\u2488/", "not a valid name|malformed"),
    (" ws://h/", "space"),
    ("ws://h/ ", "space"),
    ("ws://h/a b", "space"),
    ("ws://h /", "space"),
    ("ws://h/\t", "control character"),
    ("ws://h/\r\nHost: evil", "control character"),
    ("ws://h\n/", "control character"),
    ("ws://h/\x00", "control character"),
    ("ws://h/\x7f", "control character"),
    ("ws://h/\x85", "control character"),
    ("ws://h/\ud800", "surrogate"),
]


@pytest.mark.parametrize(("url", "complaint"), BAD, ids=ascii)
def test_a_url_that_cannot_be_used(url: str, complaint: str) -> None:
    """It is refused, with what is wrong with it; the error is a `ValueError` in plain ASCII."""
    with pytest.raises(InvalidURL, match=complaint) as caught:
        parse_url(url)
    assert isinstance(caught.value, ValueError)
    assert str(caught.value).isascii() or "not a valid name" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", [b"ws://h/", None, 5, ["ws://h/"]])
def test_a_url_is_a_str(url: Any) -> None:
    """Anything else is a mistake of the program, not a bad URL."""
    with pytest.raises(TypeError, match="the URL must be a str"):
        parse_url(url)


def test_errors_do_not_show_secrets() -> None:
    """Neither a password nor a query stands in an error, which may be logged."""
    for bad in (
        "ws://user:s3cret@h/",
        "ws://h/?token=s3cret#",
        "wsx://h/?s3cret",
        "ws://a:s3cret@b:99999/x?s3cret",
        "ws://u:pa/s3cret@h/",
        "wss://u:se#s3cret@h/",
        "ws:u:s3cret@h/x",
        "u:s3cret@h:80",
        "ws://u:p?s3cret@h/",
    ):
        with pytest.raises(InvalidURL) as caught:
            parse_url(bad)
        assert "s3cret" not in str(caught.value)
    for bad in (
        "http://user:s3cret#x@h",
        "http://u:pa/s3cret@h",
        "http://u:p?s3cret@h",
        "u:s3cret@h:80",
        "//u:s3cret@h",
    ):
        with pytest.raises(InvalidURL) as caught:
            parse_proxy(bad)
        assert "s3cret" not in str(caught.value)
    with pytest.raises(InvalidURL) as caught:
        parse_url("ws://h/" + "x" * 10000 + "#")
    assert len(str(caught.value)) < 400


def test_the_zone_of_an_address_is_never_sent() -> None:
    """It is for the resolver of this machine (RFC 6874)."""
    target = parse_url("ws://[fe80::1%25eth0]:81/")
    assert target.dialled == "fe80::1%eth0"
    assert target.authority == target.tunnel == "[fe80::1]:81"
    assert target.server_hostname == "fe80::1"


def test_what_a_certificate_and_a_proxy_are_asked_for() -> None:
    """A certificate has no trailing dot; a tunnel always has a port."""
    assert parse_url("wss://example.org./").server_hostname == "example.org"
    assert parse_url("wss://example.org/").tunnel == "example.org:443"


UNIX = [
    ("ws+unix:///tmp/sock", "/tmp/sock", "/"),
    ("ws+unix:///tmp/sock:", "/tmp/sock", "/"),
    ("ws+unix:///tmp/sock:/", "/tmp/sock", "/"),
    ("ws+unix:///tmp/sock:/chat/x?y=z", "/tmp/sock", "/chat/x?y=z"),
    ("ws+unix:///tmp/sock?y=z", "/tmp/sock", "/?y=z"),
    ("WS+UNIX:///tmp/Sock", "/tmp/Sock", "/"),
    ("ws+unix:///tmp/a%3Ab%20c%3F:/d", "/tmp/a:b c?", "/d"),
    ("ws+unix:///tmp/ü:/ü", "/tmp/ü", "/%C3%BC"),
    ("ws+unix:///tmp/sock:/a:b", "/tmp/sock", "/a:b"),
]


@pytest.mark.parametrize(("url", "path", "resource"), UNIX)
def test_a_unix_socket(url: str, path: str, resource: str) -> None:
    """The path of the socket ends at the first colon; the host is this machine."""
    target = parse_url(url)
    assert (target.unix, target.resource, target.authority) == (path, resource, "localhost")
    assert not target.secure


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("ws+unix://tmp/sock", "must look like"),
        ("ws+unix://", "must look like"),
        ("ws+unix:///", "must look like"),
        ("ws+unix:///:/x", "must look like"),
        ("ws+unix:tmp", "no scheme"),
        ("ws+unix:///tmp/s:chat", "must begin with a slash"),
        ("ws+unix:///tmp/%00", "NUL"),
        ("ws+unix:///%00", "NUL"),
        ("ws+unix:///%00a%00b", "NUL"),
        ("ws+unix:///tmp/s#f", "fragment"),
    ],
)
def test_a_unix_socket_that_cannot_be_used(url: str, complaint: str) -> None:
    """What is wrong with it is said."""
    with pytest.raises(InvalidURL, match=complaint):
        parse_url(url)


@given(st.text())
def test_any_text_is_a_url_or_is_refused(text: str) -> None:
    """No text brings out another error, and what is accepted can be written into a request."""
    for prefix in ("", "ws://", "wss://h:8/", "ws+unix:///a"):
        try:
            target = parse_url(prefix + text)
        except InvalidURL:
            continue
        assert target.resource.startswith("/")
        assert all("!" <= char <= "~" for char in target.resource + target.authority)


# Proxies


@pytest.mark.parametrize(
    ("url", "host", "port", "authorization"),
    [
        ("http://proxy", "proxy", 80, None),
        ("http://proxy:3128/", "proxy", 3128, None),
        ("HTTP://[::1]:3128", "::1", 3128, None),
        ("http://user:pass@proxy:3128", "proxy", 3128, "Basic dXNlcjpwYXNz"),
        ("http://user@proxy", "proxy", 80, "Basic dXNlcjo="),
        ("http://us%40er:p%3A%2F%C3%BC@proxy", "proxy", 80, "Basic dXNAZXI6cDovw7w="),
        ("http://user:a:b@proxy", "proxy", 80, "Basic dXNlcjphOmI="),
    ],
)
def test_a_proxy(url: str, host: str, port: int, authorization: str | None) -> None:
    """Where it is, and what it is told about the user, whose name and password are percent-decoded."""
    proxy = parse_proxy(url)
    assert (proxy.host, proxy.port, proxy.authorization, proxy.dialled) == (host, port, authorization, host)
    assert "pass" not in repr(proxy)
    assert "Basic" not in repr(proxy)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("proxy:3128", "no scheme"),
        ("https://proxy", "must begin with http://"),
        ("socks5://proxy", "must begin with http://"),
        ("http://", "no host"),
        ("http://user:s3cret@", "no host"),
        ("http://proxy/path", "path"),
        ("http://proxy?x", "path"),
        ("http://proxy:0", "port"),
        ("http://user:s3cret@proxy:x", "port"),
        ("http://a%3Ab:s3cret@proxy", "colon"),
        ("http://user:s3 cret@proxy", "space"),
        ("http://proxy#x", "fragment"),
    ],
)
def test_a_proxy_that_cannot_be_used(url: str, complaint: str) -> None:
    """It is refused, and the password is not shown."""
    with pytest.raises(InvalidURL, match=complaint) as caught:
        parse_proxy(url)
    assert "s3cret" not in str(caught.value)


def test_a_proxy_with_a_zone() -> None:
    """As in the URL of a server."""
    assert parse_proxy("http://[fe80::1%25eth0]:1").dialled == "fe80::1%eth0"


@pytest.mark.parametrize("url", [b"http://h", 5])
def test_a_proxy_is_a_str(url: Any) -> None:
    """Anything else is a mistake of the program."""
    with pytest.raises(TypeError, match="the URL of the proxy must be a str"):
        parse_proxy(url)


def test_an_abstract_name() -> None:
    """A Unix socket of Linux that has no path is named behind a NUL."""
    assert parse_url("ws+unix:///%00app%2Fone:/x").unix == "\0app/one"


# Redirects


@pytest.mark.parametrize(
    ("url", "location", "expected"),
    [
        ("ws://a/x/y", "/z?q", "ws://a/z?q"),
        ("ws://a/x/y", "z", "ws://a/x/z"),
        ("ws://a:81/x/y", "../z", "ws://a:81/z"),
        ("ws://a/x", "//b/z", "ws://b/z"),
        ("wss://a/x", "//b/z", "wss://b/z"),
        ("ws://a/x", "ws://b:82/z", "ws://b:82/z"),
        ("ws://a/x", "wss://b/z", "wss://b/z"),
        ("ws://a/x", "http://b/z", "ws://b/z"),
        ("ws://a/x", "HTTPS://b/z", "wss://b/z"),
        ("wss://a/x", "https://b/z", "wss://b/z"),
        ("ws://a/x", "/z#part", "ws://a/z"),
        ("ws+unix:///s:/x", "/z?q", "ws+unix:///s:/z?q"),
        ("ws+unix:///s%3A:/x", "/z", "ws+unix:///s%3A:/z"),
        ("ws://a/x", "/a b?c d", "ws://a/a%20b?c%20d"),
        ("ws://a/x", "/caf\xc3\xa9?\xe9#\xe9", "ws://a/caf%C3%A9?%E9"),
        ("ws://a/x", "\x80\x9f", "ws://a/%80%9F"),
        ("ws://a/x", "/%E9%zz<>^`{}\\", "ws://a/%E9%zz%3C%3E%5E%60%7B%7D%5C"),
        ("ws://a/x", "ws://b\xc3\xbccher.example/\xfc", "ws://b\u00fccher.example/%FC"),
        ("ws://a/x", "//b\xc3\xbccher.example?\xfc", "ws://b\u00fccher.example/?%FC"),
        ("ws+unix:///s:/x", "/\xe9 z", "ws+unix:///s:/%E9%20z"),
        ("ws+unix:///%00s:/x", "/z", "ws+unix:///%00s:/z"),
    ],
)
def test_where_a_redirect_leads(url: str, location: str, expected: str) -> None:
    """`Location` may be relative, and may say `http` for `ws`."""
    assert redirected(parse_url(url), location) == parse_url(expected)


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("wss://a/x", "ws://a/x"),
        ("wss://a/x", "http://a/x"),
        ("ws://a/x", "ftp://a/x"),
        ("ws://a/x", "ws://u:p@a/x"),
        ("ws://a/x", "ws://a:99999/x"),
        ("ws://a/x", "ws://b\xfccher.example/"),
        ("ws://a/x", "ws://b c/"),
        ("ws://a/x", "//b\xc2\xa0c/"),
        ("ws://a/x", "/\u20ac"),
        ("ws://a/x", "/a\tb"),
        ("ws://a/x", "/a\x7fb"),
        ("ws://a/x", "//["),
        ("ws://a/x", "\x00"),
        ("ws://a/x", "ws+unix:///etc/x"),
        ("ws+unix:///s", "ws://a/"),
        ("ws+unix:///s", "//a/"),
        ("ws+unix:///s", "x"),
    ],
)
def test_redirects_that_are_not_followed(url: str, location: str) -> None:
    """Never from TLS to none, never from a Unix socket to a machine or the other way, never to what is no URL."""
    assert redirected(parse_url(url), location) is None


@pytest.mark.parametrize(
    ("location", "zone"),
    [
        ("/b", "lo"),
        ("b?q", "lo"),
        ("//[fe80::1]/", "lo"),
        ("ws://[fe80::1]:82/b", "lo"),
        ("ws://[FE80:0::1]/b", "lo"),
        ("ws://[fe80::1%25lo]/b", "lo"),
        ("wss://[fe80::2]/b", "lo"),
        ("ws://[fe80::2%25eth7]/b", "lo"),
        ("ws://[2001:db8::1]/b", ""),
        ("ws://10.0.0.1/b", ""),
        ("ws://fe80.example/b", ""),
    ],
)
def test_a_redirect_within_the_link_keeps_the_zone(location: str, zone: str) -> None:
    """A server cannot know the zones of the client's machine, so what it says of the link is over that same link."""
    found = redirected(parse_url("ws://[fe80::1%25lo]:81/a"), location)
    assert found is not None
    assert found.zone == zone


def test_no_zone_comes_from_nowhere() -> None:
    """Where the client has named none, a link-local address gets none."""
    found = redirected(parse_url("ws://a/"), "ws://[fe80::1]/")
    assert found is not None
    assert found.zone == ""


def test_a_target_is_a_value() -> None:
    """Equal URLs give equal targets."""
    assert parse_url("ws://H:80") == parse_url("ws://h/") == Target("ws", "h", "", 80, None, "/")
