"""Every exception that this package raises or delivers.

    CrowWSError
    ├── HandshakeError              an upgrade request that is refused; carries the HTTP status
    ├── InvalidURL                  what connect was given is not a URL for it; a ValueError
    ├── ConnectFailed               no connection to the server, or it broke before there was an answer; an OSError
    │   └── ProxyError              the proxy did not make a tunnel; carries its answer
    ├── HandshakeTimeout            connect took longer than open_timeout; a TimeoutError
    ├── Rejected                    the server answered without a 101; carries the answer
    ├── InvalidHandshake            the server answered with what is not a correct 101
    ├── ConnectionClosed            raised by send, receive, ping; carries the CloseInfo
    │   ├── ConnectionClosedOK      both Close frames were exchanged
    │   └── ConnectionClosedError   they were not
    ├── ProtocolError               the peer broke RFC 6455; carries the close code
    │   ├── InvalidUTF8             1007
    │   └── PayloadTooBig           1009
    ├── HeartbeatTimeout            no sign of life within ping_timeout
    ├── SlowConsumer                the peer does not read fast enough
    ├── ConnectionLost              the transport ended without a Close frame
    ├── CloseTimeout                the closing handshake did not finish within close_timeout
    └── HandlerError                a callback broke its contract

`on_error` gets one of those that carry a `code` (the close code that describes the end), or the exception that the
application's own callback raised. Exceptions of h11, wsproto, ssl and the operating system never come out bare: where
one of them is the reason, it is the `__cause__`.
"""

from __future__ import annotations

import copyreg
from collections.abc import Sequence
from typing import Any

from ._closeinfo import CloseInfo
from ._copying import reduce_error, survives
from ._foreign import describe, quoted, text_of
from ._request import Headers
from ._response import ServerResponse

__all__ = [
    "CloseTimeout",
    "ConnectFailed",
    "ConnectionClosed",
    "ConnectionClosedError",
    "ConnectionClosedOK",
    "ConnectionLost",
    "CrowWSError",
    "HandlerError",
    "HandshakeError",
    "HandshakeTimeout",
    "HeartbeatTimeout",
    "InvalidHandshake",
    "InvalidURL",
    "InvalidUTF8",
    "PayloadTooBig",
    "ProtocolError",
    "ProxyError",
    "Rejected",
    "SlowConsumer",
]


class CrowWSError(Exception):
    """Base of every exception of this package.

    Those that describe the end of a connection have an attribute `code`, the close code that belongs to it. All of
    them, and subclasses of your own, can be copied and pickled, with all attributes that can be. An exception of the
    application's in a `CloseInfo` that cannot be pickled becomes a `HandlerError` that says what it was.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return reduce_error(self)


class HandshakeError(CrowWSError):
    """An upgrade request that cannot be accepted (RFC 6455 section 4.2).

    Attributes:
      status: the HTTP status of the answer.
      headers: headers that the answer needs beyond the usual ones, as `Retry-After`.
    """

    def __init__(self, status: int, detail: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = tuple(headers)


class InvalidURL(CrowWSError, ValueError):
    """What `connect` was given is not a URL that it can use; a `ValueError`. Nothing was sent."""


class ConnectFailed(CrowWSError, OSError):
    """There is no connection to the server, or it broke before the server had answered; an `OSError`.

    What went wrong is the `__cause__`: an `OSError` of the system, an `ssl.SSLError` for a certificate that is not
    accepted, or `None` where the server has closed without an answer.

    Attributes:
      errno: the system's number where nobody could be reached, as `errno.ECONNREFUSED`; `None` if several addresses
        failed for different reasons, if the name could not be resolved, and for all else.
    """


class ProxyError(ConnectFailed):
    """The proxy did not make a tunnel to the server; an `OSError`.

    Attributes:
      response: what the proxy answered, or `None` if it was nothing that could be understood. The body may be
        `truncated`, as that of a `Rejected`.
    """

    def __init__(self, detail: str, response: ServerResponse | None = None) -> None:
        super().__init__(detail)
        self.response = response


class HandshakeTimeout(CrowWSError, TimeoutError):
    """`connect` had no connection after `open_timeout` seconds; a `TimeoutError`, and so an `OSError` too."""


class Rejected(CrowWSError):
    """The server answered the request for an upgrade with something else than a 101.

    Attributes:
      response: the answer.
    """

    def __init__(self, response: ServerResponse, detail: str = "") -> None:
        super().__init__(response, detail)
        self.response = response
        self._detail = detail

    def __str__(self) -> str:
        return f"the server answered with HTTP status {self.status}" + (f": {self._detail}" if self._detail else "")

    @property
    def status(self) -> int:
        """The status of the answer."""
        return self.response.status

    @property
    def headers(self) -> Headers:
        """The headers of the answer."""
        return self.response.headers

    @property
    def body(self) -> bytes:
        """The body of the answer, as far as it was read; see `ServerResponse`."""
        return self.response.body


class InvalidHandshake(CrowWSError):
    """The server answered with what is not a correct answer (RFC 6455 section 4.1); the message names the header."""


class ConnectionClosed(CrowWSError):
    """The connection is closing or closed, so the operation cannot be done.

    Attributes:
      info: the `CloseInfo`. While the closing handshake still runs it says what is known so far.
      connection_id: the `id` of the connection that has ended.
    """

    def __init__(self, info: CloseInfo, connection_id: str = "") -> None:
        super().__init__(info, connection_id)
        self.info = info
        self.connection_id = connection_id

    def __str__(self) -> str:
        info = self.info
        text = f"closed with {info.code}"
        if info.reason:
            text += f" {quoted(info.reason)}"
        text += f" by the {info.initiator} side"
        if info.error is None:
            return text
        # The peer is often told what the error says, and nobody needs that twice.
        return text if (said := text_of(info.error)) == info.reason else f"{text}: {said}"


class ConnectionClosedOK(ConnectionClosed):
    """The connection ended with a complete closing handshake."""


class ConnectionClosedError(ConnectionClosed):
    """The connection ended without a complete closing handshake."""


class ProtocolError(CrowWSError):
    """The peer broke RFC 6455 or exceeded a limit.

    Attributes:
      code: the close code that the peer was told: 1002, 1003, 1007, 1008 or 1009.
    """

    code: int

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class InvalidUTF8(ProtocolError):
    """A text message, or the reason of a Close frame, is not UTF-8 (RFC 6455 section 8.1); close code 1007."""

    def __init__(self, detail: str) -> None:
        super().__init__(1007, detail)


class PayloadTooBig(ProtocolError):
    """A message is larger than `max_payload`; close code 1009."""

    def __init__(self, detail: str) -> None:
        super().__init__(1009, detail)


class HeartbeatTimeout(CrowWSError):
    """Nothing was received for `ping_timeout` seconds after a ping; the connection is aborted, code 1006."""

    code: int = 1006


class SlowConsumer(CrowWSError):
    """The peer does not read fast enough: `send_limit` or `send_timeout` was exceeded; close code 1013."""

    code: int = 1013


class ConnectionLost(CrowWSError):
    """The transport ended without a Close frame from the peer; code 1006."""

    code: int = 1006


class CloseTimeout(CrowWSError):
    """The peer did not finish the closing handshake within `close_timeout`; code 1006."""

    code: int = 1006


class HandlerError(CrowWSError):
    """A callback broke its contract: it returned what it must not, or did not end in time; close code 1011."""

    code: int = 1011


def _reduce_close_info(info: CloseInfo) -> tuple[Any, ...]:
    """How a `CloseInfo` is pickled: the end of a connection can be told anywhere, whatever the application raised."""
    error = info.error
    if error is not None and not survives(error):
        error = HandlerError(describe(error))
    return CloseInfo, (info.code, info.reason, info.clean, info.initiator, info.sent, info.received, error)


# Not `CloseInfo.__reduce__`: the exceptions are built on that module, so it does not know them.
copyreg.pickle(CloseInfo, _reduce_close_info)
