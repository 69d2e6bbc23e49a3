"""The options of an application and of its routes: one frozen dataclass, checked when it is made.

An option is given to `App(...)` for every route, or to `app.websocket(path, ...)` for one. Each check stands beside its
field, so that a wrong value fails where it is written, with the name, the value and what is allowed.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeGuard, cast

from ._deflate import Deflate
from ._request import Request
from ._types import SlowPolicy

__all__ = ["Options", "check_context", "check_option", "check_seconds"]

KIB = 1024
MIB = 1024 * KIB

_LATEST_UNSENT = 16 * KIB
"""`unsent_limit="auto"` with `on_slow="latest"`: a few messages of the usual size. For the other policies, fresh is no
better than old, and a limit makes large messages slower."""


class _Check(NamedTuple):
    allowed: str
    accepts: Callable[[object], bool]
    wanted: tuple[Any, ...]


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    # NaN compares false with everything, so it is refused here as well.
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _int(minimum: int, *, optional: bool = False) -> _Check:
    allowed = f"an int of at least {minimum}" + (", or None" if optional else "")

    def accepts(value: object) -> bool:
        return optional if value is None else _is_int(value) and value >= minimum

    return _Check(allowed, accepts, (int, type(None)) if optional else (int,))


def _seconds(*, optional: bool = False, zero: bool = False) -> _Check:
    bound = "0 or more" if zero else "more than 0"
    allowed = f"a number of seconds, {bound}" + (", or None" if optional else "")

    def accepts(value: object) -> bool:
        if value is None:
            return optional
        return _is_number(value) and (value >= 0 if zero else value > 0)

    return _Check(allowed, accepts, (int, float, type(None)) if optional else (int, float))


def _one_of(*values: str) -> _Check:
    def accepts(value: object) -> bool:
        return value in values

    return _Check("one of " + ", ".join(map(repr, values)), accepts, (str,))


def _items(value: object) -> Sequence[object] | None:
    """What a sequence holds; a text counts as a single value, not as a sequence of characters."""
    return (
        cast("Sequence[object]", value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else None
    )


def _is_token(name: object) -> bool:
    """Whether `name` is an RFC 9110 token, which is what a subprotocol must be (RFC 6455 section 4.1)."""
    return isinstance(name, str) and name != "" and all(char in _TOKEN for char in name)


_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def _accepts_subprotocols(value: object) -> bool:
    return value == "first" or _accepts_offer(value)


def _accepts_offer(value: object) -> bool:
    names = _items(value)
    return names is not None and all(map(_is_token, names)) and len(set(names)) == len(names)


def _accepts_origins(value: object) -> bool:
    if isinstance(value, str):
        return value in ("same", "*")
    if callable(value):
        # A coroutine is true, whatever it would return.
        return not any(map(inspect.iscoroutinefunction, (value, getattr(value, "__call__", None))))  # noqa: B004
    origins = _items(value)
    return origins is not None and len(origins) > 0 and all(map(_is_origin, origins))


_ORIGIN = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*://(\*\.)?([A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?"
)


def _is_origin(item: object) -> bool:
    """`scheme://host[:port]`; the host may begin with the wildcard label `*.`, and may not hold another one.

    Or one of the two that have no host: `null` and `file://`.
    """
    if not isinstance(item, str):
        return False
    return item in ("null", "file://") or _ORIGIN.fullmatch(item) is not None


def _accepts_rate(value: object) -> bool:
    if not isinstance(value, tuple):
        return value is None
    rate = cast("tuple[object, ...]", value)
    return len(rate) == 2 and all(_is_number(item) and item >= 1 for item in rate)


def _accepts_unsent(value: object) -> bool:
    return value is None or value == "auto" or (_is_int(value) and value >= 1)


def _accepts_bool(value: object) -> bool:
    return isinstance(value, bool)


_BOOL = _Check("True or False", _accepts_bool, (bool,))


def _accepts_compression(value: object) -> bool:
    return value is None or isinstance(value, Deflate)


_CHECKS: Mapping[str, _Check] = {
    "max_payload": _int(1, optional=True),
    "max_fragments": _int(1, optional=True),
    "control_rate": _Check(
        "a pair (per second, burst) of numbers of at least 1, or None",
        _accepts_rate,
        (tuple, type(None)),
    ),
    "allow_unmasked": _BOOL,
    "origins": _Check(
        "'same', '*', a sequence of origins such as 'https://*.example.org', or a callable that is not async",
        _accepts_origins,
        (Sequence, Callable),
    ),
    "subprotocols": _Check(
        "'first', or a sequence of distinct tokens (RFC 6455 section 4.1)", _accepts_subprotocols, (Sequence,)
    ),
    "compression": _Check("Deflate(...) or None", _accepts_compression, (Deflate, type(None))),
    "ping_interval": _seconds(optional=True),
    "ping_timeout": _seconds(optional=True),
    "handshake_timeout": _seconds(),
    "close_timeout": _seconds(),
    "callback_timeout": _seconds(),
    "receive_buffer": _int(1, optional=True),
    "send_high_water": _int(1),
    "send_limit": _int(1),
    "on_slow": _one_of("close", "drop", "latest"),
    "unsent_limit": _Check("'auto', an int of at least 1, or None", _accepts_unsent, (str, int, type(None))),
    "send_timeout": _seconds(optional=True),
    "max_header_bytes": _int(1),
    "max_headers": _int(1),
    "max_connections": _int(1, optional=True),
    "max_handshakes": _int(1),
    "shutdown_grace": _seconds(zero=True),
}

_OFFER = _Check(
    "a sequence of distinct tokens (RFC 6455 section 4.1), such as ['v2', 'v1']", _accepts_offer, (Sequence,)
)
"""The subprotocols of a client."""

APP_ONLY = frozenset({"max_header_bytes", "max_headers", "max_connections", "max_handshakes", "shutdown_grace"})
"""Options that are needed before a route is known, or that count over all of them."""

CLIENT_OPTIONS = (
    "compression",
    "max_payload",
    "max_fragments",
    "control_rate",
    "receive_buffer",
    "subprotocols",
    "max_header_bytes",
    "max_headers",
    "ping_interval",
    "ping_timeout",
    "close_timeout",
    "callback_timeout",
    "send_high_water",
    "send_limit",
    "on_slow",
    "unsent_limit",
    "send_timeout",
)
"""Options that have a meaning for a client's connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What an application, or one of its routes, allows and for how long.

    Sizes are in bytes, times in seconds.
    """

    # Limits on what the peer sends.
    max_payload: int | None = MIB
    """The largest message, after inflation; a larger one ends the connection with 1009. `None`: no limit."""
    max_fragments: int | None = 1024
    """The most frames of one message, empty ones included; 1008 beyond. `None`: no limit. However small they are, the
    work for them counts in the turn of the connection that sends them, and in nobody else's."""
    control_rate: tuple[float, float] | None = (50, 100)
    """Control frames and empty fragments: how many per second, and how many at once; 1008 beyond. `None`: no limit.
    Fragments that carry something have no rate, because some honest peers send all they have in very small ones."""
    allow_unmasked: bool = False
    """Take frames without a mask, against RFC 6455 section 5.1. For debugging only; a start logs a warning."""
    receive_buffer: int | None = None
    """How much is read ahead while a handler is busy. `None`: as much as `max_payload`, or 1 MiB where that is off."""

    # The opening handshake.
    origins: str | Sequence[str] | Callable[[Request], bool] = "same"
    """Which pages may connect: `"same"` (the origin's host is the request's `Host`), `"*"`, a sequence of origins in
    which a host may begin with the label `*.` and which may hold `"null"` and `"file://"`, or a function of the
    request. A request without `Origin` passes."""
    subprotocols: str | Sequence[str] = ()
    """Names in the server's order of preference, or `"first"` for the first one that the client offers."""
    compression: Deflate | None = None
    """`Deflate()` to compress messages with peers that can do that as well. `None`: never."""
    max_header_bytes: int = 16 * KIB
    """The largest request head; 431 beyond. For the application, not for a route. At a client, the largest head of the
    server's answer; `InvalidHandshake` beyond."""
    max_headers: int = 100
    """The most header lines of a request; 431 beyond. For the application, not for a route. At a client, those of the
    server's answer; `InvalidHandshake` beyond."""

    # Deadlines.
    ping_interval: float | None = 20
    """A ping goes out when nothing was received for this long. `None`: no heartbeat."""
    ping_timeout: float | None = 20
    """How long to wait for a sign of life after a ping, longer while the ping is behind data that the peer is taking.
    `None`: for ever."""
    handshake_timeout: float = 10
    """From the accepted socket to the 101: TLS, request and `on_accept` together. What a route sets here counts from
    the same moment, as soon as the request has been read and the route is known."""
    close_timeout: float = 5
    """From the first Close frame to the end of the transport. It begins anew while the peer takes what was sent before
    the Close, 60 times at most. As long is read what a peer has sent before a write to it failed."""
    callback_timeout: float = 5
    """For `on_error` and `on_close` together, and for a handler that still runs after its connection has closed; in a
    shutdown such a handler has `shutdown_grace` instead."""

    # Sending.
    send_high_water: int = 64 * KIB
    """`send` waits while more than this is queued (or more than what `send_limit` says, where that is less)."""
    send_limit: int = MIB
    """The most that `send_nowait` and `publish` queue for a peer that does not read; then `on_slow` decides. With
    `on_slow="latest"` it decides at `unsent_limit`, where that is less."""
    on_slow: SlowPolicy = "close"
    """`"close"` (1013), `"drop"` (the newest message, counted) or `"latest"` (only the newest message of each room)."""
    unsent_limit: int | Literal["auto"] | None = "auto"
    """How many bytes the operating system takes that it cannot send yet (`TCP_NOTSENT_LOWAT`): no policy reaches what
    it has taken. `"auto"`: 16 KiB with `on_slow="latest"`, and `None` with the other policies. `None`: as much as the
    system thinks good, which may be megabytes. With `on_slow="latest"` no more than this is queued on this side either.
    Of no effect where the system has no such limit; for a Unix socket it is the size of its buffer."""
    send_timeout: float | None = 10
    """The connection is aborted when a peer takes nothing of what is queued for this long, or less than 1 KiB for each
    second and a hundredth of what waits. `None`: never."""

    # The whole application.
    max_connections: int | None = None
    """Open connections at the same time; 503 with `Retry-After` beyond. For the application, not for a route."""
    max_handshakes: int = 16 * KIB
    """What holds a socket and is no open connection, at the same time: peers whose TLS handshake or request is not
    complete, requests that are being decided about, and answers under way. Beyond that, a new peer takes the place of
    the one that has been waited for longest; while there is none, it has to wait. For the application, not for a
    route."""
    shutdown_grace: float = 10
    """How long a shutdown waits for handlers before it cancels them, from the Close frame on; also for one that runs on
    after its connection has closed. For the application, not for a route."""

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            _check(name, getattr(self, name), check)
        # A list that the caller changes later must not change the options.
        for name in ("origins", "subprotocols"):
            value = getattr(self, name)
            items = _items(value)
            if items is not None:
                object.__setattr__(self, name, tuple(items))

    @property
    def _read_ahead(self) -> int:
        """The receive buffer in bytes, with the default filled in."""
        return self.receive_buffer or self.max_payload or MIB

    @property
    def _unsent(self) -> int | None:
        """`unsent_limit` in bytes, with `"auto"` decided; `None` to leave it to the operating system."""
        if self.unsent_limit != "auto":
            return self.unsent_limit
        return _LATEST_UNSENT if self.on_slow == "latest" else None

    @property
    def _queue_limit(self) -> int:
        """From how many queued bytes on `on_slow` decides."""
        if self.on_slow == "latest" and self._unsent is not None:
            return min(self.send_limit, self._unsent)
        return self.send_limit

    @classmethod
    def _for_app(cls, given: Mapping[str, Any]) -> Options:
        """The options of `App(**given)`."""
        _refuse_unknown("App", given)
        return cls(**given)

    def _for_route(self, path: str, given: Mapping[str, Any]) -> Options:
        """These options with the ones `given` to the route at `path` in place of the application's."""
        _refuse_unknown(f"the route {path!r}", given)
        for name in given:
            if name in APP_ONLY:
                raise TypeError(f"option {name} is for App(...), not for the route {path!r}")
        return dataclasses.replace(self, **given)

    @classmethod
    def _for_client(cls, own: Sequence[str], given: Mapping[str, Any]) -> Options:
        """The options of `connect(..., **given)`, which has others of its `own`."""
        for name in given:
            if name not in CLIENT_OPTIONS:
                known = ", ".join(sorted({*own, *CLIENT_OPTIONS}))
                raise TypeError(f"unknown option {name!r} for connect; the options are {known}")
        if given.get("subprotocols") == "first":
            raise TypeError("option subprotocols='first' is for a server; a client offers a sequence of names")
        _check("subprotocols", given.get("subprotocols", ()), _OFFER)
        return cls(**given)


def check_seconds(name: str, value: object, *, optional: bool = False, zero: bool = False) -> None:
    """Check an option that is not a field of `Options`, with the words of those that are.

    Raises:
      TypeError: it has the wrong type.
      ValueError: it is not allowed.
    """
    _check(name, value, _seconds(optional=optional, zero=zero))


def check_context(context: object, *, server_side: bool) -> None:
    """Check an `ssl_context`: `ssl` itself says that it is for the other side only when a peer is there.

    Raises:
      TypeError: it is no `ssl.SSLContext`.
      ValueError: it is one for the other side.
    """
    if not isinstance(context, ssl.SSLContext):
        raise TypeError(f"option ssl_context must be an ssl.SSLContext, not {type(context).__name__}")
    if server_side and context.protocol is ssl.PROTOCOL_TLS_CLIENT:
        made = "ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)"
        raise ValueError(f"option ssl_context is one for a client; a server needs one as of {made}")
    if not server_side and context.protocol is ssl.PROTOCOL_TLS_SERVER:
        made = "ssl.create_default_context()"
        raise ValueError(f"option ssl_context is one for a server; a client needs one as of {made}")


def check_option(name: str, value: object) -> None:
    """Check a value for the field of `Options` called `name`.

    Raises:
      TypeError: it has the wrong type.
      ValueError: it is not allowed.
    """
    _check(name, value, _CHECKS[name])


def _check(name: str, value: object, check: _Check) -> None:
    if not check.accepts(value):
        kind = ValueError if isinstance(value, check.wanted) and not isinstance(value, bool) else TypeError
        raise kind(f"option {name}={value!r} is not allowed; it must be {check.allowed}")


def _refuse_unknown(owner: str, given: Mapping[str, Any]) -> None:
    for name in given:
        if name not in _CHECKS:
            raise TypeError(f"unknown option {name!r} for {owner}; the options are {', '.join(sorted(_CHECKS))}")
