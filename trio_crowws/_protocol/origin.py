"""Which web pages may open a connection (RFC 6455 section 10.2).

Browsers let every page connect to every server and send the server's cookies along, so the server has to look at the
`Origin` header, which pages cannot forge. Clients that are not browsers need not send it and could send anything, so
a request without it passes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from .._foreign import quoted
from .._request import OriginPolicy, Request
from ..errors import HandshakeError

__all__ = ["check_origin"]

# One pass over the text, whatever it is: no two neighbouring parts can match the same character.
# Clients that are not browsers make their origin from the URL, and may leave a slash behind it.
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://((?:\*\.)?[a-z0-9._~-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?/?")
_HOST = re.compile(r"([^:\[\]]+|\[[^\[\]]*\])(?::([0-9]{0,5}))?")

_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_SECURE: Final = frozenset({"https", "wss"})
_HOSTLESS: Final = {"null": "null", "file://": "file://", "file:///": "file://"}
_WILDCARD: Final = "*."


class _Origin(NamedTuple):
    scheme: str
    host: str
    port: int | None


def check_origin(policy: OriginPolicy, request: Request) -> None:
    """Refuse a request from a page that may not connect.

    Args:
      policy: `"*"`: every page. `"same"`: pages whose host and port are those of the request; over TLS only `https`
        pages, without it both `http` and `https` ones, because TLS may have ended at a proxy; `ws` and `wss`, which
        clients that are not browsers send, count as `http` and `https`. A sequence of origins: those pages; a host may
        begin with `*.`, which stands for one label or more, and `null` and `file://` may be among them. A callable:
        what it returns.
      request: the request.

    Raises:
      HandshakeError: 403; the page may not connect, or its `Origin` is malformed or there are several.
      TypeError: the callable returned something else than a bool.
      Exception: what the callable raises goes through.
    """
    if policy == "*":
        return
    if callable(policy):
        allowed = policy(request)
        if allowed is not True and allowed is not False:
            # An async function would let every page in if its coroutine counted as true.
            raise TypeError(f"the callable of the option origins must return a bool, not {type(allowed).__name__}")
    else:
        origins = request.headers.get_all("origin")
        if not origins:
            return
        allowed = len(origins) == 1 and _matches(policy, origins[0], request)
    if not allowed:
        shown = None if request.origin is None else quoted(request.origin)
        raise HandshakeError(403, f"origin {shown} is not allowed")


def _matches(policy: str | Sequence[str], text: str, request: Request) -> bool:
    hostless = _HOSTLESS.get(text.lower())
    if hostless is not None:
        return not isinstance(policy, str) and hostless in policy
    origin = _parse(text)
    if origin is None or origin.host.startswith(_WILDCARD):
        return False
    if isinstance(policy, str):
        return _is_same(origin, request)
    return any(_fits(origin, pattern) for item in policy if (pattern := _parse_pattern(item)) is not None)


def _parse(text: str) -> _Origin | None:
    """The parts of an origin, with the default port filled in; `None` for `null` and for what is malformed."""
    match = _ORIGIN.fullmatch(text.lower())
    if match is None:
        return None
    scheme, host, port = match.groups()
    return _Origin(scheme, host, _DEFAULT_PORTS.get(scheme) if port is None else int(port))


# For what stands in the options only: what a peer sends must not fill a cache.
_parse_pattern = lru_cache(maxsize=256)(_parse)


def _is_same(origin: _Origin, request: Request) -> bool:
    default = _DEFAULT_PORTS.get(origin.scheme)
    match = _HOST.fullmatch(request.host.lower())
    if match is None or default is None or (request.secure and origin.scheme not in _SECURE):
        return False
    host, port = match.groups()
    # A Host without a port means the default one of the scheme that the browser used, which a proxy may have hidden.
    return origin.host == host and origin.port == (int(port) if port else default)


def _fits(origin: _Origin, pattern: _Origin) -> bool:
    if origin.scheme != pattern.scheme or origin.port != pattern.port:
        return False
    if not pattern.host.startswith(_WILDCARD):
        return origin.host == pattern.host
    suffix = pattern.host[1:]  # with its dot, so that only whole labels match
    return origin.host.endswith(suffix) and origin.host != suffix
