"""The HTTP half of the opening handshake: bytes to a `Request`, the checks of RFC 6455 section 4.2, and the answers.

h11 is the referee of the syntax, but it sees a request head only once, when it is complete and its size is known to be
within the limits. What can be said earlier is said earlier, line by line: a peer that speaks something else than HTTP
is refused at its first byte or its first line, and not when its time is over.

Decisions where the standards leave a choice
* Lines end with CR LF. A bare LF or CR, a folded header line, or a control character other than a tab is malformed.
* A request must not announce a body, whatever its method: the bytes that follow a head are frames, or nothing.
* The version: HTTP/1.1, or a later minor version, which means the same (RFC 9110 section 6.2). HTTP/1.0 as well, which
  needs no `Host`; but its `Upgrade` is ignored (RFC 9110 section 7.8). Another major version is 505 (section 15.6.6).
* `Host` has to be of the form that RFC 3986 section 3.2 allows. It may be empty, unless a port follows.
* The target is a path or an absolute `http`, `https`, `ws` or `wss` URI, whose authority then counts instead of `Host`
  (RFC 9112 section 3.2.2) and must name a host (RFC 9110 section 4.2.1).
* Empty elements of lists are ignored (RFC 9110 section 5.6.1.2), and so are subprotocols that are offered again.
* A request without `Sec-WebSocket-Version` is malformed (400); one for another version gets 426.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final, Literal

import h11
from wsproto.utilities import generate_accept_token

from .._request import Headers, Request, split_list
from ..errors import HandshakeError
from .origin import check_origin

__all__ = [
    "MAX_TARGET",
    "RequestReader",
    "accept_response",
    "check_headers",
    "check_origin",
    "check_upgrade",
    "choose_subprotocol",
    "http_response",
    "is_upgrade",
    "offered_subprotocols",
]

MAX_TARGET: Final = 8 * 1024
"""Bytes of a request target; 414 beyond."""

_MAX_METHOD: Final = 32  # how far to look for the target in a request line that is not complete

_CR: Final = 0x0D
_TOKEN_CHARS: Final = "!#$%&'*+.^_`|~0-9A-Za-z-"
_TOKEN = re.compile(f"[{_TOKEN_CHARS}]+")
_REQUEST_LINE = re.compile(rf"[{_TOKEN_CHARS}]+ ([!-~]+) HTTP/([0-9])\.[0-9]\r".encode())
_FIRST_BYTES: Final = frozenset(byte for byte in range(128) if _TOKEN.fullmatch(chr(byte)))
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]*)(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(r"(?:https?|wss?)://", re.IGNORECASE)
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")

# Everything but the control characters that a head must not hold.
_HEAD_CHARS: Final = bytes({*range(0x20, 0x100)} - {0x7F} | {*b"\t\r\n"})
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

_UPGRADE_REQUIRED: Final = (("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"))

_OWNED: Final = frozenset({"connection", "content-length", "transfer-encoding", "upgrade"})
_OWNED_PREFIX: Final = "sec-websocket-"

_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}
_BODILESS: Final = frozenset({204, 304})  # RFC 9110 section 6.4.1


class RequestReader:
    """Reads one request head from bytes in whatever pieces they come.

    The pieces make no difference: the same bytes give the same request, or the same error, at the same byte.

    Args:
      max_header_bytes: of the whole head, from the request line to the empty line; 431 beyond.
      max_headers: header lines; 431 beyond.

    Attributes:
      trailing: what has followed the head. The first frames, where the request is for an upgrade and the peer did not
        wait for the answer.
    """

    __slots__ = (
        "_buffer",
        "_line_start",
        "_lines",
        "_max_header_bytes",
        "_max_headers",
        "_over",
        "_searched",
        "trailing",
    )

    def __init__(self, *, max_header_bytes: int, max_headers: int) -> None:
        self._max_header_bytes = max_header_bytes
        self._max_headers = max_headers
        self._buffer = bytearray()
        self._line_start = 0
        self._searched = 0  # for the end of the line
        self._lines = 0  # complete ones, the request line included
        self._over: Literal["read", "refused"] | None = None
        self.trailing = b""

    @property
    def started(self) -> bool:
        """Whether anything has come at all."""
        return bool(self._buffer) or self._over is not None

    def feed(self, data: bytes) -> Request | None:
        """Take bytes from the peer.

        After the request has been returned, what else comes is added to `trailing`; after an error it is dropped.

        Args:
          data: any number of bytes; none changes nothing.

        Returns:
          The request, as soon as its head is complete, and `None` before and after.

        Raises:
          HandshakeError: the request is refused. 400: it is malformed, announces a body, or has no usable host. 414:
            its target is too long. 431: its head is too large. 505: it is neither HTTP/1.1 nor HTTP/1.0.
        """
        if self._over is not None:
            if self._over == "read":
                self.trailing += data
            return None
        self._buffer += data
        try:
            end = self._find_end()
            if end is None:
                return None
            request = _parse_head(bytes(self._buffer[:end]))
        except HandshakeError:
            self._finish("refused")
            raise
        self.trailing = bytes(self._buffer[end:])
        self._finish("read")
        return request

    def _finish(self, how: Literal["read", "refused"]) -> None:
        self._over = how
        self._buffer = bytearray()

    def _find_end(self) -> int | None:
        """Judge the lines that have come, and return where the head ends once that is known.

        Faults are looked for in the order of the bytes that make them certain, which is why it does not matter in which
        pieces those came. Each call looks at what is new and, while the first line is incomplete, at a part of that.
        """
        buffer, limit = self._buffer, self._max_header_bytes
        if not buffer:
            return None
        if buffer[0] not in _FIRST_BYTES:
            raise HandshakeError(400, "this is not HTTP")
        while (newline := buffer.find(b"\n", self._searched, limit)) >= 0:
            start, self._line_start = self._line_start, newline + 1
            self._searched = newline + 1
            if newline == start + 1 and buffer[start] == _CR:
                return newline + 1
            self._end_line(newline)
        self._searched = min(len(buffer), limit)
        if self._lines == 0:
            _check_target_length(buffer[: min(limit, MAX_TARGET + _MAX_METHOD + 2)])
        if len(buffer) > limit:
            raise HandshakeError(431, f"the request head is larger than {limit} bytes")
        return None

    def _end_line(self, newline: int) -> None:
        if self._lines == 0:
            line = self._buffer[:newline]
            _check_target_length(line)
            _check_request_line(line)
        elif self._buffer[newline - 1] != _CR:
            raise HandshakeError(400, "a line does not end with CR LF")
        elif self._lines > self._max_headers:
            raise HandshakeError(431, f"the request has more than {self._max_headers} header lines")
        self._lines += 1


def _check_target_length(line: bytearray) -> None:
    """Refuse too long a target, whether or not the line is complete; it may still have its CR, but not its LF."""
    _, _, rest = line.partition(b" ")
    if rest.find(b" ", 0, MAX_TARGET + 1) < 0 and len(rest) > MAX_TARGET:
        raise HandshakeError(414, f"the request target is longer than {MAX_TARGET} bytes")


def _check_request_line(line: bytearray) -> None:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise HandshakeError(400, "the request line is malformed")
    if match[2] != b"1":
        raise HandshakeError(505, "this server speaks HTTP/1.1")


def _parse_head(head: bytes) -> Request:
    # h11 would take folded lines, and its patterns are at their fastest where no control character is left.
    if head.translate(None, _HEAD_CHARS) or head.count(b"\r") != head.count(b"\r\n"):
        raise HandshakeError(400, "the request head holds a control character")
    if b"\n " in head or b"\n\t" in head:
        raise HandshakeError(400, "a header line is folded")
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(head)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        # What h11 says goes on with what the peer sent, which may be long, or a secret.
        raise HandshakeError(400, "malformed request: " + str(error).partition(":")[0][:60]) from error
    assert isinstance(event, h11.Request)
    lines = b"\n".join([b"%b: %b" % line for line in event.headers])
    # h11 has checked the target and the method: both are ASCII.
    request = Request(
        event.method.decode("ascii"),
        event.target.decode("ascii"),
        Headers._of_lines(lines),
        lines=lines,
        http_version="1.0" if event.http_version == b"1.0" else "1.1",
    )
    _check_request(request)
    return request


def _check_request(request: Request) -> None:
    """Refuse what h11 lets pass, but no server should (RFC 9112), and what has no place before an upgrade."""
    if not (request.target.startswith("/") or _ABSOLUTE.match(request.target)) or "#" in request.target:
        raise HandshakeError(400, "the request target is neither a path nor a URI of this server")
    host = request.headers.get("host")
    if host is None and request.http_version != "1.0":  # h11 demands it of 1.1 alone, and not of a later one
        raise HandshakeError(400, "the Host header is missing")
    for authority in (host or "", request.host):
        if not _HOST.fullmatch(authority) or authority.startswith(":"):
            raise HandshakeError(400, "the Host header is malformed")
    if not (request.host or request.target.startswith("/")):
        raise HandshakeError(400, "the request target names no host")
    if "transfer-encoding" in request.headers or request.headers.get("content-length", "0").strip("0"):
        raise HandshakeError(400, "a request with a body is not accepted")


def is_upgrade(request: Request) -> bool:
    """Whether the request asks for a WebSocket; not whether it does so correctly."""
    return request.http_version != "1.0" and _has_token(request, "upgrade", "websocket")


def check_upgrade(request: Request) -> str:
    """Check an upgrade request (RFC 6455 section 4.2.1).

    Returns:
      The value of `Sec-WebSocket-Accept`.

    Raises:
      HandshakeError: the request cannot be accepted. 405: it is not a GET. 426: it is for something else than version
        13 of the WebSocket protocol, for no upgrade at all, or comes with HTTP/1.0. 400: a header is
        missing, malformed, or there twice.
    """
    headers = request.headers
    if request.method != "GET":
        raise HandshakeError(405, "a WebSocket is opened with GET", (("Allow", "GET"),))
    if request.http_version == "1.0":
        raise HandshakeError(426, "a WebSocket needs HTTP/1.1, also from a proxy in between", _UPGRADE_REQUIRED)
    if not is_upgrade(request):
        raise HandshakeError(426, "this is a WebSocket endpoint", _UPGRADE_REQUIRED)
    if not _has_token(request, "connection", "upgrade"):
        raise HandshakeError(400, "the Connection header does not say Upgrade")
    versions = headers.get_all("sec-websocket-version")
    if versions != ("13",):
        if any(version != "13" for version in versions):
            raise HandshakeError(426, "only version 13 of the WebSocket protocol is supported", _UPGRADE_REQUIRED)
        raise HandshakeError(400, "there must be one Sec-WebSocket-Version header", _UPGRADE_REQUIRED[1:])
    keys = headers.get_all("sec-websocket-key")
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise HandshakeError(400, "there must be one Sec-WebSocket-Key header, 16 bytes in base64")
    offered_subprotocols(request)
    return generate_accept_token(keys[0].encode("ascii")).decode("ascii")


def _has_token(request: Request, header: str, token: str) -> bool:
    value = request.headers.get(header)
    if value is None or value.lower() == token:
        return value is not None
    return any(element.lower() == token for element in split_list(request.headers.get_all(header)))


def offered_subprotocols(request: Request) -> tuple[str, ...]:
    """Return the subprotocols that the client offers, each once, in its order.

    Raises:
      HandshakeError: 400; one of them is not a token (RFC 6455 section 4.1, item 10).
    """
    if "sec-websocket-protocol" not in request.headers:
        return ()
    offered = request.subprotocols
    if not all(map(_TOKEN.fullmatch, offered)):
        raise HandshakeError(400, "the Sec-WebSocket-Protocol header is malformed")
    return offered


def choose_subprotocol(policy: Sequence[str] | Literal["first"], offered: Sequence[str]) -> str | None:
    """Return the subprotocol to speak, or `None` for none.

    Args:
      policy: names in the server's order of preference, or `"first"` for the first one that is offered.
      offered: what the client offers, in its order of preference.
    """
    if policy == "first":
        return offered[0] if offered else None
    return next((name for name in policy if name in offered), None)


def check_headers(
    headers: Mapping[str, str] | Sequence[tuple[str, str]], *, owned: bool
) -> tuple[tuple[str, str], ...]:
    """Return headers for an answer as pairs, without white space around the values.

    Args:
      headers: a mapping, or pairs where a name may come again.
      owned: whether to refuse the headers that this package sets by itself: `Connection`, `Upgrade`, `Content-Length`,
        `Transfer-Encoding`, and all that begin with `Sec-WebSocket-`.

    Raises:
      TypeError: `headers` is something else, or a name or value is not a str.
      ValueError: a name is not a token, a value holds a control character or one beyond U+00FF, or the header is owned.
    """
    pairs: Sequence[object] = list(headers.items()) if isinstance(headers, Mapping) else headers
    if isinstance(pairs, (str, bytes)) or not isinstance(pairs, Sequence):
        raise TypeError(f"headers must be a mapping or a sequence of pairs, not {type(headers).__name__}")
    return tuple([_check_header(pair, owned=owned) for pair in pairs])


def _check_header(pair: object, *, owned: bool) -> tuple[str, str]:
    match pair:
        case [str(name), str(value)]:
            pass
        case _:
            raise TypeError("headers must be pairs of name and value, both of them str")
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a header")
    if owned and (name.lower() in _OWNED or name.lower().startswith(_OWNED_PREFIX)):
        raise ValueError(f"the header {name} is set by the library")
    # The value may be a secret, so only its fault is shown.
    if _CONTROLS.search(value):
        raise ValueError(f"the value of the header {name} holds a control character")
    if not value.isascii() and max(value) > "\xff":
        raise ValueError(f"the value of the header {name} holds a character beyond U+00FF")
    return name, value.strip(" \t")


def accept_response(
    accept: str, *, subprotocol: str | None, extensions: str | None, headers: Sequence[tuple[str, str]]
) -> bytes:
    """Return the 101 that accepts an upgrade (RFC 6455 section 4.2.2).

    Args:
      accept: what `check_upgrade` returned.
      subprotocol: one of those that the client offers, or `None`.
      extensions: the value of `Sec-WebSocket-Extensions`, or `None`.
      headers: more headers, as `check_headers` returned them.

    Raises:
      ValueError: `subprotocol` is not a token, or a header would break out of its line.
    """
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
    lines.append(f"Sec-WebSocket-Accept: {accept}")
    if subprotocol is not None:
        if not _TOKEN.fullmatch(subprotocol):
            raise ValueError(f"{subprotocol!r} is not a subprotocol")
        lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
    if extensions is not None:
        lines.append(f"Sec-WebSocket-Extensions: {extensions}")
    return _join(lines, headers)


def http_response(
    status: int, headers: Sequence[tuple[str, str]], body: bytes, *, head_only: bool = False
) -> list[bytes]:
    """Return the pieces of an answer that is not a 101; the connection is to be closed after it.

    The body is a piece of its own, and the same object: a page that many peers read at once is in memory once.

    Args:
      status: 200 to 599. The answers 204 and 304 have no body.
      headers: more headers than `Content-Length` and `Connection`, as `check_headers` returned them.
      body: the body.
      head_only: leave the body out, but not its length: the answer to a HEAD.

    Raises:
      ValueError: the status is out of range, or a header would break out of its line.
    """
    if not 200 <= status <= 599:
        raise ValueError(f"HTTP status {status} is not a final one")
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Unnamed Status')}"]
    # Whoever sends Upgrade has to name it in Connection as well (RFC 9110 section 7.8).
    upgrade = any(name.lower() == "upgrade" for name, _ in headers)
    lines.append("Connection: close, Upgrade" if upgrade else "Connection: close")
    if status in _BODILESS:
        return [_join(lines, headers)]
    lines.append(f"Content-Length: {len(body)}")
    head = _join(lines, headers)
    return [head, body] if body and not head_only else [head]


def _join(lines: list[str], headers: Sequence[tuple[str, str]]) -> bytes:
    lines += [f"{name}: {value}" for name, value in headers]
    text = "\r\n".join(lines) + "\r\n\r\n"
    # The last line of defence against a header that smuggles in another one, or a whole answer.
    if not text.count("\n") == text.count("\r") == len(lines) + 1:
        raise ValueError("a header of the answer holds a line end")
    return text.encode("latin-1")
