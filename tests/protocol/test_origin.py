"""Which pages may connect."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_crowws._protocol.origin import check_origin
from trio_crowws._request import Headers, Request
from trio_crowws.errors import HandshakeError
from trio_crowws.typing import OriginPolicy


def make(*origins: str, host: str = "example.org", secure: bool = False) -> Request:
    headers = Headers([("Host", host), *[("Origin", origin) for origin in origins]])
    return Request("GET", "/", headers, secure=secure)


def may_connect(policy: OriginPolicy, *origins: str, host: str = "example.org", secure: bool = False) -> bool:
    try:
        check_origin(policy, make(*origins, host=host, secure=secure))
    except HandshakeError as error:
        assert error.status == 403  # noqa: PT017 - any other exception fails the test
        return False
    return True


@pytest.mark.parametrize("policy", ["same", "*", ["https://a"], ["https://*.a"]])
def test_without_origin(policy: OriginPolicy) -> None:
    """A request without Origin does not come from a page, so it passes."""
    assert may_connect(policy)


@pytest.mark.parametrize(
    ("origin", "host", "secure"),
    [
        ("http://example.org", "example.org", False),
        ("http://example.org:80", "example.org", False),
        ("http://example.org", "example.org:80", False),
        ("http://example.org", "example.org:", False),
        ("http://example.org:8000", "example.org:8000", False),
        ("HTTP://EXAMPLE.org", "Example.ORG", False),
        ("https://example.org", "example.org", True),
        ("https://example.org:443", "example.org", True),
        ("https://example.org", "example.org:443", True),
        ("https://example.org:8443", "example.org:8443", True),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", False),
        ("http://[::1]:8000", "[::1]:8000", False),
        ("http://[::1]", "[::1]", False),
        ("http://xn--bcher-kva.example", "xn--bcher-kva.example", False),
    ],
)
def test_same_origin(origin: str, host: str, secure: bool) -> None:
    """With "same" a page connects to its own host and port; no port is the default port, and case does not matter."""
    assert may_connect("same", origin, host=host, secure=secure)


@pytest.mark.parametrize(
    ("origin", "host", "secure"),
    [
        ("ws://example.org", "example.org", False),
        ("ws://example.org", "example.org:80", False),
        ("WSS://example.org", "example.org:443", True),
        ("wss://example.org:8443/", "example.org:8443", True),
        ("wss://example.org", "example.org", False),  # TLS ended at a proxy
        ("http://example.org:8000/", "example.org:8000", False),
        ("http://[::1]/", "[::1]", False),
    ],
)
def test_same_origin_made_from_the_url(origin: str, host: str, secure: bool) -> None:
    """Clients that are not browsers make an origin from their URL: its scheme may be ws or wss, with a slash behind."""
    assert may_connect("same", origin, host=host, secure=secure)


@pytest.mark.parametrize(
    ("origin", "host"),
    [("https://example.org", "example.org"), ("https://example.org:8443", "example.org:8443")],
)
def test_same_origin_behind_a_proxy(origin: str, host: str) -> None:
    """Where TLS ends at a proxy, a request that comes without it may be from a page that was loaded with it."""
    assert may_connect("same", origin, host=host, secure=False)


@pytest.mark.parametrize(
    ("origin", "host", "secure"),
    [
        ("http://example.com", "example.org", False),
        ("http://example.org:81", "example.org", False),
        ("http://example.org", "example.org:81", False),
        ("http://example.org", "example.org", True),
        ("http://example.org:443", "example.org", True),
        ("http://example.org", "example.org:443", False),
        ("https://example.org", "example.org:80", True),
        ("https://example.org", "example.org:80", False),
        ("http://www.example.org", "example.org", False),
        ("http://example.org", "www.example.org", False),
        ("http://example.org.evil.example", "example.org", False),
        ("http://evil-example.org", "example.org", False),
        ("http://localhost", "127.0.0.1", False),
        ("ws://example.org", "example.org:443", False),
        ("wss://example.org:8000", "example.org", False),
        ("ws://example.org", "example.org", True),
        ("chrome-extension://example.org", "example.org", False),
        ("http://*.org", "*.org", False),
        ("http://", "", False),
    ],
)
def test_other_origin(origin: str, host: str, secure: bool) -> None:
    """With "same" another scheme, host or port is refused, and so is a page without TLS where there is TLS."""
    assert not may_connect("same", origin, host=host, secure=secure)


@pytest.mark.parametrize("policy", ["same", ["http://example.org"], ["http://*.example.org", "file://x"]])
@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "NULL",
        "",
        "example.org",
        "//example.org",
        "http:example.org",
        "http://example.org//",
        "http://example.org/path",
        "file://",
        "file:///",
        "http://example.org?q",
        "http://example.org#f",
        "http://user@example.org",
        "http://example.org:",
        "http://example.org:port",
        "http://example.org:80:80",
        "http://example.org:123456",
        "http://example.org:" + "9" * 5000,
        "http://example.org http://example.org",
        "http://example.org, http://example.org",
        "http://\xe9xample.org",
        "http://[::1",
        "http://*.example.org",
        "http://exa*mple.org",
    ],
)
def test_malformed_origin(policy: OriginPolicy, origin: str) -> None:
    """An origin that is null or malformed is refused and never an exception of another kind."""
    assert not may_connect(policy, origin)


@pytest.mark.parametrize("policy", ["same", ["http://example.org"]])
def test_several_origins(policy: OriginPolicy) -> None:
    """Two Origin headers are refused, even if each of them would pass."""
    assert may_connect(policy, "http://example.org")
    assert not may_connect(policy, "http://example.org", "http://example.org")


@pytest.mark.parametrize(
    ("item", "origin"), [("null", "null"), ("file://", "file://"), ("file://", "file:///"), ("null", "NULL")]
)
def test_origins_without_a_host(item: str, origin: str) -> None:
    """The two origins that have no host pass where they are listed, and each only for itself."""
    assert may_connect(["https://a", item], origin)
    assert not may_connect(["https://a", "file://" if item == "null" else "null"], origin)


def test_null_host() -> None:
    """An origin of null does not match a host of that name."""
    assert not may_connect("same", "null", host="null")


@pytest.mark.parametrize("origin", ["http://a", "null", "\xff", ""])
def test_all_origins(origin: str) -> None:
    """With "*" every page connects."""
    assert may_connect("*", origin, origin)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://example.org", True),
        ("https://example.org:443", True),
        ("HTTPS://Example.Org", True),
        ("http://example.org", False),
        ("https://example.org:444", False),
        ("https://www.example.org", False),
        ("http://localhost:5173", True),
        ("http://localhost", False),
        ("capacitor://localhost", True),
        ("ionic://localhost", False),
        ("capacitor://localhost:1", False),
        ("https://[2001:db8::1]", True),
    ],
)
def test_list_of_origins(origin: str, allowed: bool) -> None:
    """With a list the scheme, host and port of one entry have to be the page's."""
    policy = ("https://Example.org", "http://localhost:5173", "capacitor://localhost", "https://[2001:DB8::1]:443")
    assert may_connect(policy, origin) is allowed


def test_list_does_not_contain_the_same_origin() -> None:
    """A list is complete: the server's own host has to be in it like any other."""
    assert not may_connect(["https://a.example"], "http://example.org")
    assert not may_connect([], "http://example.org")


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://www.example.org", True),
        ("https://a.b.example.org", True),
        ("https://www.example.org:443", True),
        ("https://example.org", False),
        ("https://.example.org", False),
        ("https://evilexample.org", False),
        ("https://www.example.org.evil.example", False),
        ("https://www.example.org:8443", False),
        ("http://www.example.org", False),
        ("https://*.example.org", False),
        ("http://dev.example.org:8000", True),
        ("http://dev.example.org", False),
    ],
)
def test_wildcard(origin: str, allowed: bool) -> None:
    """A leading `*.` stands for one label or more, whole ones, and not for none."""
    assert may_connect(["https://*.Example.org", "http://*.example.org:8000"], origin) is allowed


def test_callable_decides() -> None:
    """A callable gets the request and decides alone, also about requests without an origin or with several."""
    seen: list[Request] = []

    def decide(request: Request) -> bool:
        seen.append(request)
        return request.origin == "null"

    request = make("null", "b")
    check_origin(decide, request)
    assert seen == [request]
    assert not may_connect(decide)
    assert not may_connect(decide, "http://example.org")


def test_callable_that_fails() -> None:
    """An exception of the callable goes through."""

    def fail(request: Request) -> bool:
        raise KeyError(request.path)

    with pytest.raises(KeyError):
        check_origin(fail, make("http://example.org"))


@pytest.mark.parametrize("value", [None, 1, "yes", object()])
def test_callable_that_returns_no_bool(value: Any) -> None:
    """A callable that returns something else than a bool, as an async function does, lets nobody in."""
    with pytest.raises(TypeError, match="must return a bool"):
        check_origin(lambda request: value, make("http://example.org"))


def test_message() -> None:
    """A refusal names the origin, cut to a bearable length and with nothing but printable ASCII in it."""
    with pytest.raises(HandshakeError, match=r"^origin 'http://\\xe9\\n' is not allowed$"):
        check_origin("same", make("http://\xe9\n"))
    with pytest.raises(HandshakeError) as caught:
        check_origin("same", make("\xe9" * 10_000))
    assert len(str(caught.value)) < 500
    with pytest.raises(HandshakeError, match=r"^origin None is not allowed$"):
        check_origin(lambda request: False, make())


@given(
    st.text(st.characters(max_codepoint=0xFF)),
    st.text(st.characters(max_codepoint=0xFF)),
    st.booleans(),
    st.sampled_from(["", "http://", "https://", "http://h:"]),
)
def test_any_text(text: str, host: str, secure: bool, prefix: str) -> None:
    """Whatever Origin and Host are, the request passes or is refused with 403."""
    may_connect("same", prefix + text, host=host, secure=secure)
    may_connect(["http://*.example.org"], prefix + text, host=host, secure=secure)
