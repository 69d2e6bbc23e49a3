"""The client's half of the opening handshake: the request of RFC 6455 section 4.1, and the check of what comes back.

h11 is the referee of the syntax, in both directions. What it leaves open is decided here.

Decisions where the standards leave a choice
* Answers before the last one (1xx, RFC 9110 section 15.2) are passed over. All heads together count as one against
  `max_header_bytes`, so there cannot be many.
* A header that must be there once must not be there twice, even with the same value.
* An answer that is not a 101 is read to its end, but no more than 64 KiB of its body are kept.
* What follows a 101 are frames; nothing of it is lost.
* What cannot be the beginning of an answer is refused at its first wrong byte. h11 waits for the end of the head, and a
  mail server that has said hello will never send one.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from typing import Final

import h11
from wsproto.utilities import generate_accept_token

from .._deflate import Deflate
from .._foreign import quoted
from .._request import Headers, split_list
from .._response import ServerResponse
from ..errors import HandshakeError, InvalidHandshake
from .deflate_offer import Agreement, check_answer, make_offer

__all__ = [
    "MAX_BODY",
    "AnswerReader",
    "SpeaksTLS",
    "UpgradeRequest",
    "check_accepted",
    "shown",
]

MAX_BODY: Final = 64 * 1024
"""Bytes that are kept of the body of an answer that is not a 101."""

_SHOWN: Final = 100
"""Characters of a foreign value that an error shows."""

_STATUS_LINE: Final = re.compile(rb"HTTP/[0-9]\.[0-9] [0-9]{3}[ \r\n]")
_STATUS_LINE_MODEL: Final = b"HTTP/1.1 200 "
"""A beginning that fits: what has come so far is completed with it."""

_TLS_RECORDS: Final = (0x15, 0x16)
"""Alert and handshake (RFC 8446 section 5.1)."""

_SETTINGS: Final = 4
_SETTINGS_HEADER: Final = 9
"""Type and header size of the frame that an HTTP/2 server begins with."""


class SpeaksTLS(InvalidHandshake):
    """What came is a record of TLS, in which a server complains about a client that does not speak TLS."""


class UpgradeRequest:
    """One request for an upgrade, with a key that was never used before.

    Args:
      target: path and query, as they are sent.
      host: the value of `Host`, unless `headers` has one.
      subprotocols: those to offer, in order of preference.
      compression: what to offer of permessage-deflate, or `None`.
      headers: more headers, as `check_headers` returned them.

    Attributes:
      target: path and query.
      headers: all header lines.
      subprotocols: those that are offered.
      compression: what is offered of permessage-deflate, or `None`.
      accept: what the server has to answer to the key.
    """

    def __init__(
        self,
        target: str,
        host: str,
        subprotocols: Sequence[str],
        compression: Deflate | None,
        headers: Sequence[tuple[str, str]],
    ) -> None:
        key = base64.b64encode(os.urandom(16))
        given = {name.lower() for name, _ in headers}
        lines = [] if "host" in given else [("Host", host)]
        lines += [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", key.decode("ascii")),
        ]
        if subprotocols:
            lines.append(("Sec-WebSocket-Protocol", ", ".join(subprotocols)))
        if compression is not None:
            lines.append(("Sec-WebSocket-Extensions", make_offer(compression)))
        if "user-agent" not in given:
            lines.append(("User-Agent", "trio_crowws"))
        self.target = target
        self.subprotocols = tuple(subprotocols)
        self.compression = compression
        self.accept = generate_accept_token(key).decode("ascii")
        self._lines = [*lines, *headers]
        self.headers = Headers(self._lines)

    def as_event(self) -> h11.Request:
        """The request as h11 has it."""
        lines = [(name.encode("ascii"), value.encode("latin-1")) for name, value in self._lines]
        return h11.Request(method="GET", target=self.target, headers=lines)


class AnswerReader:
    """Writes one request, and reads the answer from bytes in whatever pieces they come.

    Args:
      request: the request, for an upgrade or a tunnel.
      max_header_bytes: of the heads of all answers together.
      max_headers: header lines of one answer.

    Attributes:
      request: the request as bytes.
      response: the last answer as far as it is known: its body may not be complete.
      trailing: what has followed the head of an answer that switches the protocol.
    """

    def __init__(self, request: h11.Request, *, max_header_bytes: int, max_headers: int) -> None:
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=max_header_bytes)
        sent = self._http.send(request)
        assert sent is not None
        self.request = sent
        self._http.send(h11.EndOfMessage())
        self._max_header_bytes = max_header_bytes
        self._max_headers = max_headers
        self._received = 0
        self._body: list[bytes] = []
        self._body_size = 0
        self._done = False
        self._status_line_seen = False
        self.response: ServerResponse | None = None
        self.trailing = b""

    def feed(self, data: bytes) -> ServerResponse | None:
        """Take bytes from the server.

        After a 101 what else comes is added to `trailing`; after any other answer it is dropped.

        Args:
          data: any number of bytes, but not none.

        Returns:
          The answer, as soon as it is complete, and `None` before and after.

        Raises:
          SpeaksTLS: what came is a record of TLS.
          InvalidHandshake: it is something else that is no HTTP, or is malformed, or its head is too large.
        """
        if self._done:
            self.trailing += data
            return None
        self._received += len(data)
        try:
            self._http.receive_data(data)
            return self._read()
        except h11.RemoteProtocolError as error:
            self._done = True
            if self.response is not None:
                return self.partial()
            if error.error_status_hint == 431:
                raise self._too_large() from error
            raise InvalidHandshake(f"the answer is malformed: {shown(str(error))}") from error

    def partial(self) -> ServerResponse | None:
        """The answer as it stands when no more of it will come; `None` if not even its head is there."""
        response = self.response
        if response is None:
            return None
        return ServerResponse(response.status, response.headers, b"".join(self._body), truncated=True)

    def eof(self) -> ServerResponse | None:
        """The stream has ended: the answer, if that is where its body ends, or as much of it as there is."""
        if self._done:
            return None
        self._done = True
        if self.response is None:
            return None
        try:
            self._http.receive_data(b"")
            return self._read() or self.partial()
        except h11.RemoteProtocolError:
            return self.partial()

    def _read(self) -> ServerResponse | None:
        while True:
            if not self._status_line_seen:
                self._check_status_line()
            event = self._http.next_event()
            if isinstance(event, (h11.InformationalResponse, h11.Response)):
                response = self._take_head(event)
                if response is not None:
                    return response
            elif isinstance(event, h11.Data):
                self._body.append(bytes(event.data)[: MAX_BODY - self._body_size])
                self._body_size += len(self._body[-1])
                if len(self._body[-1]) < len(event.data):
                    self._done = True
                    return self.partial()
            elif isinstance(event, h11.EndOfMessage):
                self._done = True
                assert self.response is not None
                return ServerResponse(self.response.status, self.response.headers, b"".join(self._body))
            else:
                return None

    def _check_status_line(self) -> None:
        came = self._http.trailing_data[0]
        begins = came[: len(_STATUS_LINE_MODEL)]
        if not _STATUS_LINE.match(begins + _STATUS_LINE_MODEL[len(begins) :]):
            self._done = True
            raise _not_http(came)
        self._status_line_seen = len(begins) == len(_STATUS_LINE_MODEL)

    def _take_head(self, event: h11.InformationalResponse | h11.Response) -> ServerResponse | None:
        rest = self._http.trailing_data[0]
        if self._received - len(rest) > self._max_header_bytes:
            raise self._too_large()
        if len(event.headers) > self._max_headers:
            raise InvalidHandshake(f"the answer has more than {self._max_headers} header lines")
        headers = Headers((name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers)
        switched = self._http.their_state is h11.SWITCHED_PROTOCOL
        if event.status_code < 200 and not switched:
            self._status_line_seen = False  # that of the next answer
            return None
        response = ServerResponse(event.status_code, headers)
        if event.http_version != b"1.1" and event.status_code == 101:
            raise InvalidHandshake(f"the answer is of HTTP/{shown(event.http_version.decode('ascii'))}, not HTTP/1.1")
        if switched:
            self._done = True
            self.trailing = rest
            return response
        self.response = response
        return None

    def _too_large(self) -> InvalidHandshake:
        self._done = True
        return InvalidHandshake(f"the head of the answer is larger than {self._max_header_bytes} bytes")


def _not_http(came: bytes) -> InvalidHandshake:
    """The error for a beginning that is no status line: it says what came, or what it is known as."""
    if came[0] in _TLS_RECORDS and came[1:2] in (b"", b"\x03"):
        return SpeaksTLS(f"the answer is malformed, a record of TLS: {shown(came.decode('latin-1'))}")
    if len(came) >= _SETTINGS_HEADER and came[3] == _SETTINGS and came[5:9] == bytes(4):
        return InvalidHandshake("the answer is malformed, one of HTTP/2, which has no upgrade; HTTP/1.1 is needed")
    text = came.decode("latin-1")
    line = text.partition("\n")[0].removesuffix("\r")
    return InvalidHandshake(f"the answer is malformed, and not HTTP/1.1: {shown(line if line.isprintable() else text)}")


def check_accepted(request: UpgradeRequest, response: ServerResponse) -> tuple[str | None, Agreement | None]:
    """Check a 101 (RFC 6455 section 4.1, the second list).

    Returns:
      The subprotocol that the server has chosen, and what is agreed on about compression; `None` for none.

    Raises:
      InvalidHandshake: a header is missing, there twice, or does not answer what was asked.
    """
    headers = response.headers
    if [value.lower() for value in headers.get_all("upgrade")] != ["websocket"]:
        raise _wrong(headers, "Upgrade")
    if "upgrade" not in map(str.lower, split_list(headers.get_all("connection"))):
        raise _wrong(headers, "Connection")
    if list(headers.get_all("sec-websocket-accept")) != [request.accept]:
        raise _wrong(headers, "Sec-WebSocket-Accept")
    chosen = [*headers.get_all("sec-websocket-protocol")]
    if len(chosen) > 1 or not {*chosen} <= {*request.subprotocols}:
        raise _wrong(headers, "Sec-WebSocket-Protocol", " which was not offered")
    return chosen[0] if chosen else None, _agree(request, headers)


def _agree(request: UpgradeRequest, headers: Headers) -> Agreement | None:
    answers = headers.get_all("sec-websocket-extensions")
    if request.compression is not None:
        try:
            return check_answer(answers, request.compression)
        except HandshakeError as error:
            raise _wrong(headers, "Sec-WebSocket-Extensions", f": {error}") from error
    if split_list(answers):
        raise _wrong(headers, "Sec-WebSocket-Extensions", " which was not offered")
    return None


def _wrong(headers: Headers, name: str, why: str = "") -> InvalidHandshake:
    values = headers.get_all(name)
    if not values:
        return InvalidHandshake(f"the 101 has no {name} header")
    listed = " and ".join(map(shown, values[:3]))
    return InvalidHandshake(f"the 101 has the wrong header {name}: {listed}{why}")


def shown(value: str) -> str:
    """A foreign value for an error or a log: in quotes, escaped, and not long."""
    return quoted(value, _SHOWN)
