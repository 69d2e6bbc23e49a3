"""What an application answers to a request: accept, reject, or a small response."""

from __future__ import annotations

import json
from typing import Any

from .._copying import reduce_error
from .._protocol.handshake import check_headers
from .._types import HeadersLike

__all__ = ["Accept", "Reject", "Response", "as_response"]


class Accept:
    """Accept the upgrade; returned by `on_accept`.

    Args:
      userdata: becomes `conn.userdata`.
      subprotocol: one of those that the client offered; chosen by the `subprotocols` option where it is `None`.
      headers: more headers for the 101, as `Set-Cookie`. Those that belong to the handshake are refused.

    Raises:
      ValueError: a header holds CR, LF or NUL, has a bad name, or belongs to the handshake.
    """

    __slots__ = ("headers", "subprotocol", "userdata")

    def __init__(self, userdata: Any = None, subprotocol: str | None = None, headers: HeadersLike = ()) -> None:
        self.userdata = userdata
        self.subprotocol = subprotocol
        self.headers = check_headers(headers, owned=True)


class Response:
    """A complete answer to a plain HTTP request.

    Args:
      status: 200 to 599.
      body: text is sent as UTF-8.
      headers: `Content-Type` is set from the type of the body where it is missing; `Content-Length` and `Connection`
        are the library's.

    Raises:
      ValueError: the status is out of range, or a header is malformed or belongs to the library.
      TypeError: the body is neither str nor bytes.
    """

    def __init__(self, status: int = 200, body: str | bytes = b"", headers: HeadersLike = ()) -> None:
        if not isinstance(status, int) or isinstance(status, bool) or not 200 <= status <= 599:
            raise ValueError(f"HTTP status {status!r} is not allowed; it must be an int from 200 to 599")
        if not isinstance(body, (str, bytes)):
            raise TypeError(f"the body must be str or bytes, not {type(body).__name__}")
        self.status = status
        self.body = body.encode("utf-8") if isinstance(body, str) else body
        checked = check_headers(headers, owned=True)
        if self.body and not any(name.lower() == "content-type" for name, _ in checked):
            checked = (*checked, ("Content-Type", TEXT if isinstance(body, str) else BINARY))
        self.headers = checked


class Reject(Response, Exception):
    """Refuse a request with a complete HTTP response; returned or raised by `on_accept`, middleware and HTTP routes.

    Args:
      status: 300 to 599.
      body: text is sent as UTF-8.
      headers: more headers, as `WWW-Authenticate` or `Location`.

    Raises:
      ValueError: the status is out of range, or a header is malformed or belongs to the library.
      TypeError: the body is neither str nor bytes.
    """

    def __init__(self, status: int = 403, body: str | bytes = "", headers: HeadersLike = ()) -> None:
        if not isinstance(status, int) or isinstance(status, bool) or not 300 <= status <= 599:
            raise ValueError(f"HTTP status {status!r} does not refuse; it must be an int from 300 to 599")
        Response.__init__(self, status, body, headers)
        Exception.__init__(self, status, body)

    def __reduce__(self) -> tuple[Any, ...]:
        return reduce_error(self)

    def __str__(self) -> str:
        return f"rejected with HTTP status {self.status}"


TEXT = "text/plain; charset=utf-8"
BINARY = "application/octet-stream"


def as_response(value: object, content_type: str | None) -> Response:
    """What an HTTP route returned, as a `Response`.

    Raises:
      TypeError: it is none of str, bytes, dict, list and `Response`.
    """
    if isinstance(value, Response):
        return value
    if isinstance(value, (dict, list)):
        value = json.dumps(value)
        content_type = content_type or "application/json"
    if not isinstance(value, (str, bytes)):
        raise TypeError(f"an HTTP route must return str, bytes, dict, list or Response, not {type(value).__name__}")
    return Response(200, value, {"Content-Type": content_type} if content_type else ())
