"""The client's public functions; what they return does the work (`connecting`)."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import trio

from .._options import Options, check_context, check_seconds
from .._protocol.handshake import check_headers
from .._protocol.url import parse_proxy, parse_url
from .._session.connection import Connection
from .._types import HeadersLike
from .connecting import Connecting, Plan

__all__ = ["connect", "connect_stream"]

_FOLLOWED = 5
"""Redirects that are followed with `follow_redirects=True`."""

_UNSET: Any = object()

P = ParamSpec("P")
T = TypeVar("T")


def _for_urls(function: Callable[P, T]) -> Callable[P, T]:
    """Say where to go with an application; it may come with a path, so `function` itself cannot see the mistake."""

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        url = args[0] if args else kwargs.get("url")
        if hasattr(url, "serve_stream"):  # the class itself belongs to a higher layer
            raise TypeError("connect takes a URL, not an App; use trio_crowws.testing.connect(app, path) for that")
        return function(*args, **kwargs)

    return checked


@_for_urls
def connect(
    url: str,
    *,
    subprotocols: Sequence[str] = (),
    headers: HeadersLike = (),
    origin: str | None = None,
    ssl_context: ssl.SSLContext | None = None,
    proxy: str | None = None,
    follow_redirects: bool | int = False,
    open_timeout: float = 10,
    heartbeat: float | None = _UNSET,
    **options: Any,
) -> AbstractAsyncContextManager[Connection]:
    """Open a connection to a server for the length of a block.

    Used as `async with connect("wss://example.org/feed") as conn`. The block is the handler. Leaving it closes with
    1000, leaving it by an exception with 1011, and leaving it by a cancellation with 1001; then the connection has
    ended and nothing of it is left. What the block raised goes on.

    Args:
      url: `ws://host[:port]/path?query`, `wss://...`, or `ws+unix:///path/of/the/socket:/path?query`.
      subprotocols: those to offer, in order of preference.
      headers: more headers for the request, as `Authorization` or `Cookie`; also `Host` in place of the URL's.
      origin: the `Origin` header, which only browsers have to send.
      ssl_context: for `wss:`; by default, the server's certificate must be one that the system trusts.
      proxy: `http://[user:password@]host[:port]` of a proxy to go through. No environment variable is looked at.
      follow_redirects: how many redirects to follow, or `True` for 5; never one from `wss:` to `ws:`. Another origin
        gets a plain request: without `headers`, `subprotocols` and `origin`, and instead of `ssl_context` a context
        that trusts the same authorities but holds no client certificate.
      open_timeout: seconds for all that comes before the block: names, sockets, proxy, TLS, redirects and answers.
      heartbeat: `heartbeat=15` is short for `ping_interval=15, ping_timeout=15`, and `None` turns both off.
      options: `compression`, `max_payload`, `max_fragments`, `control_rate`, `receive_buffer`, `ping_interval`,
        `ping_timeout`, `close_timeout`, `callback_timeout`, `send_high_water`, `send_limit`, `on_slow`,
        `unsent_limit`, `send_timeout`, `max_header_bytes` and `max_headers`, as in `Options`.

    Raises:
      InvalidURL: at the call; `url` or `proxy` cannot be used.
      TypeError, ValueError: at the call; another argument is unknown, of the wrong type, or not allowed.
      RuntimeError: at the beginning of a second block with the same result; a result makes one connection only.
      ConnectFailed: at the beginning of the block; nobody is there, or not one who is trusted. It is an `OSError`.
      ProxyError: at the beginning of the block; the proxy refused. It is a `ConnectFailed`.
      HandshakeTimeout: at the beginning of the block; `open_timeout` is over.
      Rejected: at the beginning of the block; the server answered without a 101.
      InvalidHandshake: at the beginning of the block; the server's answer is not correct HTTP, or not a correct 101.

    Cancellation: while connecting, nothing is left behind. In the block, the server is told 1001, within a second.
    """
    redirects = _check_redirects(follow_redirects)
    plan = _plan(url, subprotocols, headers, origin, open_timeout, heartbeat, options)
    if ssl_context is not None:
        check_context(ssl_context, server_side=False)
    if ssl_context is not None and not plan.target.secure and not redirects:
        raise ValueError(f"option ssl_context is for wss://, not for {plan.target.scheme}://")
    if proxy is not None and plan.target.unix is not None:
        raise ValueError("option proxy is not for ws+unix://; there is no way through a proxy to a Unix socket")
    parsed = None if proxy is None else parse_proxy(proxy)
    return Connecting(plan._replace(ssl_context=ssl_context, proxy=parsed, max_redirects=redirects))


def connect_stream(
    stream: trio.abc.Stream,
    url: str,
    *,
    subprotocols: Sequence[str] = (),
    headers: HeadersLike = (),
    origin: str | None = None,
    open_timeout: float = 10,
    heartbeat: float | None = _UNSET,
    **options: Any,
) -> AbstractAsyncContextManager[Connection]:
    """Open a connection over a stream that is there already, as `connect` does over one of its own.

    The stream belongs to the connection, which closes it in the end, whatever happens.

    Args:
      stream: any Trio stream; for TLS, a `trio.SSLStream`.
      url: what to ask for, and the `Host`.
      subprotocols: as for `connect`.
      headers: as for `connect`.
      origin: as for `connect`.
      open_timeout: as for `connect`.
      heartbeat: as for `connect`.
      options: as for `connect`.

    Raises:
      InvalidURL, TypeError, ValueError, ConnectFailed, HandshakeTimeout, Rejected, InvalidHandshake: as from `connect`.

    Cancellation: as for `connect`.
    """
    if not isinstance(stream, trio.abc.Stream):
        raise TypeError(f"stream must be a trio.abc.Stream, not {type(stream).__name__}")
    plan = _plan(url, subprotocols, headers, origin, open_timeout, heartbeat, options)
    return Connecting(plan._replace(stream=stream))


def _plan(
    url: str,
    subprotocols: Sequence[str],
    headers: HeadersLike,
    origin: str | None,
    open_timeout: float,
    heartbeat: float | None,
    options: dict[str, Any],
) -> Plan:
    target = parse_url(url)
    check_seconds("open_timeout", open_timeout)
    if heartbeat is not _UNSET:
        check_seconds("heartbeat", heartbeat, optional=True)
        for name in ("ping_interval", "ping_timeout"):
            if name in options:
                raise TypeError(f"heartbeat sets {name}; give one of the two")
            options[name] = heartbeat
    checked = Options._for_client(_OWN, {"subprotocols": subprotocols, **options})
    given = check_headers(headers, owned=True)
    names = [name.lower() for name, _ in given]
    if names.count("host") > 1:
        raise ValueError("there is only one Host header")
    if origin is not None:
        if not isinstance(origin, str):
            raise TypeError(f"option origin={origin!r} is not allowed; it must be a str or None")
        if "origin" in names:
            raise ValueError("give the Origin header by origin=, or in headers, not by both")
        check_headers([("Origin", origin)], owned=True)
    return Plan(target, checked, given, origin, open_timeout)


_OWN = ("subprotocols", "headers", "origin", "ssl_context", "proxy", "follow_redirects", "open_timeout", "heartbeat")


def _check_redirects(value: bool | int) -> int:
    if value is True:
        return _FOLLOWED
    if not isinstance(value, int) or value < 0:
        kind = ValueError if isinstance(value, int) else TypeError
        raise kind(f"option follow_redirects={value!r} is not allowed; it must be a bool, or an int of at least 0")
    return int(value)
