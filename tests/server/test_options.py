"""Options: each one is checked where it is written, and the message says what to write instead."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from trio_crowws import App, Deflate, Options, Request, Route

NAN, INF = math.nan, math.inf


async def _async_policy(request: Request) -> bool:
    return True


class _AsyncPolicy:
    async def __call__(self, request: Request) -> bool:
        return True


# For each option: what is allowed, values of a wrong type, and values of the right type that are out of range.
SIZE = ("an int of at least 1", [None, "5", 1.0, b"", True], [0, -1])
OPTIONAL_SIZE = ("an int of at least 1, or None", ["5", 1.0, [], True], [0, -1])
SECONDS = ("a number of seconds, more than 0", [None, "5", True, 1j], [0, -1, NAN, -INF])
OPTIONAL_SECONDS = ("a number of seconds, more than 0, or None", ["5", False, []], [0, -0.5, NAN])

TABLE: dict[str, tuple[str, list[Any], list[Any]]] = {
    "max_payload": OPTIONAL_SIZE,
    "max_fragments": OPTIONAL_SIZE,
    "control_rate": (
        "a pair (per second, burst) of numbers of at least 1, or None",
        [50, "ab", [50, 100], True],
        [(), (50,), (50, 100, 150), (0, 1), (1, 0), ("1", 1), (True, 1), (NAN, 1)],
    ),
    "allow_unmasked": ("True or False", [None, 0, 1, "yes"], []),
    "receive_buffer": OPTIONAL_SIZE,
    "origins": (
        "'same', '*', a sequence of origins such as 'https://*.example.org', or a callable that is not async",
        [None, 5, True, {"https://a.example"}],
        [
            "",
            "https://a.example",
            "all",
            [],
            ["*"],
            ["a.example"],
            ["https://"],
            ["https://a.example/"],
            ["https://a.*.example"],
            ["https://*"],
            ["https://*a.example"],
            ["https://a.example, https://b.example"],
            ["Null"],
            [None],
            _async_policy,
            _AsyncPolicy(),
        ],
    ),
    "subprotocols": (
        "'first', or a sequence of distinct tokens (RFC 6455 section 4.1)",
        [None, 5, True, {"v1"}, iter(["v1"])],
        ["", "v1", b"v1", [""], ["v 1"], ["v1", "v1"], ["v1,v2"], ["\xe9"], [5], [None], [["v1"]]],
    ),
    "compression": ("Deflate(...) or None", [True, "deflate", 5, {}, Deflate], []),
    "max_header_bytes": SIZE,
    "max_headers": SIZE,
    "ping_interval": OPTIONAL_SECONDS,
    "ping_timeout": OPTIONAL_SECONDS,
    "handshake_timeout": SECONDS,
    "close_timeout": SECONDS,
    "callback_timeout": SECONDS,
    "send_high_water": SIZE,
    "send_limit": SIZE,
    "on_slow": ("one of 'close', 'drop', 'latest'", [None, 5, True, ["drop"]], ["", "Close", "block"]),
    "unsent_limit": ("'auto', an int of at least 1, or None", [1.5, True, ["auto"]], ["", "Auto", 0, -1]),
    "send_timeout": OPTIONAL_SECONDS,
    "max_connections": OPTIONAL_SIZE,
    "max_handshakes": SIZE,
    "shutdown_grace": ("a number of seconds, 0 or more", [None, "5", True], [-1, NAN]),
}

APP_ONLY = {"max_header_bytes", "max_headers", "max_connections", "max_handshakes", "shutdown_grace"}

ALLOWED: dict[str, list[Any]] = {
    "max_payload": [None, 1, 1 << 40],
    "max_fragments": [None, 1],
    "control_rate": [None, (1, 1), (0.5 + 0.5, 100)],
    "allow_unmasked": [True, False],
    "receive_buffer": [None, 1],
    "origins": [
        "same",
        "*",
        ("https://a.example",),
        ("http://localhost:8000", "https://*.a.example:8443", "http://[::1]:80", "app://x"),
        ("null", "file://"),
        (lambda request: True),
        print,
    ],
    "subprotocols": ["first", (), ("v1.chat", "a!#$%&'*+-.^_`|~9")],
    "compression": [None, Deflate(), Deflate(threshold=0, level=9)],
    "max_header_bytes": [1],
    "max_headers": [1],
    "ping_interval": [None, 0.1, 1, INF],
    "ping_timeout": [None, 0.1],
    "handshake_timeout": [0.1, INF],
    "close_timeout": [0.1],
    "callback_timeout": [0.1],
    "send_high_water": [1],
    "send_limit": [1],
    "on_slow": ["close", "drop", "latest"],
    "unsent_limit": ["auto", None, 1, 1 << 20],
    "send_timeout": [None, 0.1],
    "max_connections": [None, 1],
    "max_handshakes": [1, 1 << 40],
    "shutdown_grace": [0, 0.0, 1, INF],
}


def cases(kind: int) -> list[Any]:
    return [
        pytest.param(name, value, row[0], id=f"{name}-{number}")
        for name, row in TABLE.items()
        for number, value in enumerate(row[kind])
    ]


def test_the_tables_are_complete() -> None:
    """The tests below know every option."""
    assert set(TABLE) == set(ALLOWED) == {field.name for field in dataclasses.fields(Options)}


def check_message(error: BaseException, name: str, value: object, allowed: str) -> None:
    assert str(error) == f"option {name}={value!r} is not allowed; it must be {allowed}"


@pytest.mark.parametrize(("name", "value", "allowed"), cases(1))
def test_a_value_of_a_wrong_type(name: str, value: Any, allowed: str) -> None:
    """A value of a wrong type is a TypeError that names the option, the value and what is allowed."""
    with pytest.raises(TypeError) as caught:
        App(**{name: value})
    check_message(caught.value, name, value, allowed)
    if name not in APP_ONLY:
        with pytest.raises(TypeError) as caught:
            App().websocket("/", **{name: value})
        check_message(caught.value, name, value, allowed)


@pytest.mark.parametrize(("name", "value", "allowed"), cases(2))
def test_a_value_that_is_not_allowed(name: str, value: Any, allowed: str) -> None:
    """A value that is out of range is a ValueError that names the option, the value and what is allowed."""
    with pytest.raises(ValueError, match=f"option {name}=") as caught:
        App(**{name: value})
    check_message(caught.value, name, value, allowed)
    if name not in APP_ONLY:
        with pytest.raises(ValueError, match=f"option {name}=") as caught:
            App().websocket("/", **{name: value})
        check_message(caught.value, name, value, allowed)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ALLOWED.items() for value in values])
def test_a_value_that_is_allowed(name: str, value: Any) -> None:
    """What is allowed is taken, for the application and for a route."""
    assert getattr(App(**{name: value}).options, name) == value
    if name not in APP_ONLY:
        assert getattr(App().websocket("/", **{name: value}).options, name) == value


def test_a_failed_registration_registers_nothing() -> None:
    """A route whose options are wrong does not take its path."""
    app = App()
    with pytest.raises(ValueError, match="max_payload"):
        app.websocket("/", max_payload=0)
    app.websocket("/")


def test_an_unknown_option() -> None:
    """An option that does not exist is a TypeError that names it and those that exist."""
    with pytest.raises(TypeError, match=r"unknown option 'max_size' for App; the options are .*max_payload") as caught:
        App(max_size=5)
    assert all(name in str(caught.value) for name in TABLE)
    with pytest.raises(TypeError, match="unknown option 'compres' for the route '/a'"):
        App().websocket("/a", compres=True)


@pytest.mark.parametrize("name", sorted(APP_ONLY))
def test_an_option_of_the_application(name: str) -> None:
    """An option that only an application can have is a TypeError on a route."""
    with pytest.raises(TypeError, match=rf"option {name} is for App\(...\), not for the route '/a'"):
        App().websocket("/a", **{name: 5})


def test_options_are_keywords() -> None:
    """Options have no positions."""
    with pytest.raises(TypeError):
        App({"max_payload": 5})  # type: ignore[call-arg]


def test_the_defaults() -> None:
    """Without options an application has the documented defaults."""
    assert dataclasses.asdict(App().options) == {
        "max_payload": 1 << 20,
        "max_fragments": 1024,
        "control_rate": (50, 100),
        "allow_unmasked": False,
        "receive_buffer": None,
        "origins": "same",
        "subprotocols": (),
        "compression": None,
        "max_header_bytes": 16 * 1024,
        "max_headers": 100,
        "ping_interval": 20,
        "ping_timeout": 20,
        "handshake_timeout": 10,
        "close_timeout": 5,
        "callback_timeout": 5,
        "send_high_water": 64 * 1024,
        "send_limit": 1 << 20,
        "on_slow": "close",
        "unsent_limit": "auto",
        "send_timeout": 10,
        "max_connections": None,
        "max_handshakes": 16384,
        "shutdown_grace": 10,
    }


def test_a_route_overrides_the_application() -> None:
    """A route has the options of its application but for those that it sets itself, to None as well."""
    app = App(max_payload=1000, ping_interval=5, subprotocols=["v1"])
    route = app.websocket("/", max_payload=None, subprotocols=())
    assert (route.options.max_payload, route.options.ping_interval, route.options.subprotocols) == (None, 5, ())
    assert (app.options.max_payload, app.options.subprotocols) == (1000, ("v1",))
    assert app.websocket("/other").options == app.options


def test_the_chain_sets_options() -> None:
    """max_payload and subprotocols can be chained, return the route, and override what was given before."""
    app = App(max_payload=1000, ping_timeout=5)
    route = app.websocket("/", max_payload=10, close_timeout=1)
    assert route.max_payload(20).subprotocols("v2", "v1") is route
    options = route.options
    assert (options.max_payload, options.subprotocols, options.close_timeout, options.ping_timeout) == (
        20,
        ("v2", "v1"),
        1,
        5,
    )
    assert route.max_payload(None).options.max_payload is None
    assert route.subprotocols().options.subprotocols == ()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda route: route.max_payload(0), "option max_payload=0 is not allowed"),
        (lambda route: route.max_payload("5"), "option max_payload='5' is not allowed"),
        (lambda route: route.subprotocols("a b"), r"option subprotocols=\('a b',\) is not allowed"),
        (lambda route: route.subprotocols("a", "a"), r"option subprotocols=\('a', 'a'\) is not allowed"),
        (lambda route: route.subprotocols(["a"]), r"option subprotocols=\(\['a'\],\) is not allowed"),
    ],
)
def test_the_chain_checks_options(call: Any, message: str) -> None:
    """A wrong value in the chain is refused like one in the call, and changes nothing."""
    route = App().websocket("/", max_payload=10)
    before = route.options
    with pytest.raises((TypeError, ValueError), match=message):
        call(route)
    assert route.options == before


def test_a_list_is_copied() -> None:
    """What happens to a list after it was given as an option does not change the option."""
    lists: dict[str, Any] = {"origins": ["https://a.example"], "subprotocols": ["v1"]}
    app = App(**lists)
    route = app.websocket("/", **lists)
    for given in lists.values():
        given.clear()

    def check(options: Options) -> None:
        assert (options.origins, options.subprotocols) == (("https://a.example",), ("v1",))

    check(app.options)
    check(route.options)
    check(route.max_payload(5).options)
    check(app.websocket("/other").options)


def test_options_do_not_change() -> None:
    """Options are frozen: what was checked stays as it is."""
    options = App().options
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.max_payload = 5  # type: ignore[misc]


def test_read_ahead() -> None:
    """Where receive_buffer is not set it is max_payload, and 1 MiB where that is off."""

    def read_ahead(route: Route) -> int:
        return route.options._read_ahead

    app = App()
    assert read_ahead(app.websocket("/1")) == 1 << 20
    assert read_ahead(app.websocket("/2", max_payload=5)) == 5
    assert read_ahead(app.websocket("/3", max_payload=None)) == 1 << 20
    assert read_ahead(app.websocket("/4", max_payload=None, receive_buffer=7)) == 7
