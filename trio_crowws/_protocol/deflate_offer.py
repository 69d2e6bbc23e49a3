"""permessage-deflate in the opening handshake: what is configured, offered, answered and agreed (RFC 7692 section 7.1).

Decisions where the standards leave a choice
* Names are matched as they are written; white space may stand around `,`, `;` and `=`.
* An element of the header that is malformed is an offer that cannot be accepted; it does not spoil its neighbours.
* A window of 8 bits is a promise that zlib cannot keep when it compresses. A server declines an offer that asks it for
  one. A client whose server allows it no more sends all messages as they are, which it may say of each of them, and
  inflates what the server compresses. The peer may limit itself to 8.
* A server answers with parameters that were offered, and with no others, although section 7.1 would allow it three of
  the four: there are clients that fail the handshake then. What concerns only itself it does without a word: a
  compressor may use a smaller window than was agreed on, and forget its context at any time. What concerns the client
  it cannot have then: it has to be ready for a client that keeps a context and uses a window of 15 bits.
* A client offers what browsers offer, because every server has been tried with that. There are servers that refuse the
  whole handshake because of another parameter, or because the extension is named twice. So there is no alternative in
  the offer, unless the application asks for a smaller window of the server than it would have by default.
* What a client is configured for are its wishes. An answer is agreed to when this side can do what it says, whatever
  was offered: there are servers that answer the same line to everybody. Not to keep a context, and the window of what
  it sends, are a client's own business, and need not be offered.

Each header line is read once from left to right, by patterns that cannot go back (their loops are possessive), so the
work is proportional to the size of a head that is limited already.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from .._deflate import MAX_WINDOW_BITS, MIN_WINDOW_BITS, Deflate
from ..errors import HandshakeError

__all__ = ["Agreement", "Setting", "check_answer", "make_offer", "negotiate"]

NAME: Final = "permessage-deflate"

_SERVER_CONTEXT: Final = "server_no_context_takeover"
_CLIENT_CONTEXT: Final = "client_no_context_takeover"
_SERVER_BITS: Final = "server_max_window_bits"
_CLIENT_BITS: Final = "client_max_window_bits"
_FLAGS: Final = (_SERVER_CONTEXT, _CLIENT_CONTEXT)

_USUAL_WINDOW_BITS: Final = Deflate().server_max_window_bits

# Decimal, without leading zeros (RFC 7692 section 7.1.2): `int` would take signs, spaces, underscores and other digits.
_BITS: Final = {str(bits): bits for bits in range(8, MAX_WINDOW_BITS + 1)}

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED: Final = r'"((?:[^"\\]++|\\.)*+)"'
_ELEMENT = re.compile(r'(?:[^",]++|"(?:[^"\\]++|\\.)*+"?+)*+')  # up to a comma that is not within quotes
_NAME = re.compile(rf"[ \t]*+({_TOKEN})[ \t]*+")
_PARAMETER = re.compile(rf";[ \t]*+({_TOKEN})[ \t]*+(?:=[ \t]*+(?:({_TOKEN})|{_QUOTED})[ \t]*+)?+")
_QUOTED_PAIR = re.compile(r"\\(.)")

Parameters: TypeAlias = dict[str, str | None]
"""The parameters of one extension; `None` for one without a value."""


class _Malformed(Exception):
    """An element of the header cannot be read, or has a parameter that must not be there."""


class Setting(NamedTuple):
    """All that decides how a message is compressed.

    Where no context is kept, equal settings make equal frames: one frame is good for all connections that share it.
    """

    window_bits: int
    level: int
    mem_level: int
    keeps_context: bool


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the two sides of a connection have agreed on.

    Attributes:
      header: the value of the `Sec-WebSocket-Extensions` header of the answer.
      server_no_context_takeover: the server compresses each message by itself.
      client_no_context_takeover: the client does.
      server_max_window_bits: the largest window of what the server sends.
      client_max_window_bits: the largest window of what the client sends.
      setting: how this side compresses; the key under which frames can be shared if it keeps no context. `None` where
        it cannot compress so, and sends its messages as they are.
    """

    header: str
    server_no_context_takeover: bool
    client_no_context_takeover: bool
    server_max_window_bits: int
    client_max_window_bits: int
    setting: Setting | None


# The server's side


def negotiate(offers: Sequence[str], config: Deflate) -> Agreement | None:
    """Accept the first acceptable offer of permessage-deflate, or none.

    Args:
      offers: the values of the request's `Sec-WebSocket-Extensions` lines; whatever they hold, nothing is raised.
      config: what this side wants.

    Returns:
      What is to be answered and done; `None` to answer nothing and send messages as they are.
    """
    for element in _elements(offers):
        try:
            name, parameters = _parse(element)
            if name == NAME:
                return _accept(parameters, config)
        except _Malformed:
            pass  # the offer is declined, and the next one gets its turn
    return None


def _accept(offer: Parameters, config: Deflate) -> Agreement:
    """Answer one offer (RFC 7692 section 7.1); `_Malformed` if it has to be declined."""
    server_no_context = _flag(offer, _SERVER_CONTEXT)
    client_no_context = _flag(offer, _CLIENT_CONTEXT)
    server_bits = min(config.server_max_window_bits, _bits(offer, _SERVER_BITS) or MAX_WINDOW_BITS)
    client_bits = MAX_WINDOW_BITS
    if _CLIENT_BITS in offer:
        client_bits = min(config.client_max_window_bits, _bits(offer, _CLIENT_BITS, optional=True) or MAX_WINDOW_BITS)
    if offer.keys() - {*_FLAGS, _SERVER_BITS, _CLIENT_BITS}:
        raise _Malformed("an unknown parameter")
    if server_bits < MIN_WINDOW_BITS:
        raise _Malformed("a window that zlib does not have")
    answer = [NAME]
    if server_no_context:
        answer.append(_SERVER_CONTEXT)
    if client_no_context:
        answer.append(_CLIENT_CONTEXT)
    if _SERVER_BITS in offer:
        answer.append(f"{_SERVER_BITS}={server_bits}")
    if client_bits < MAX_WINDOW_BITS:
        answer.append(f"{_CLIENT_BITS}={client_bits}")
    server_no_context = server_no_context or config.server_no_context_takeover
    setting = Setting(server_bits, config.level, config.mem_level, not server_no_context)
    return Agreement("; ".join(answer), server_no_context, client_no_context, server_bits, client_bits, setting)


# The client's side


def make_offer(config: Deflate) -> str:
    """Return the value of the `Sec-WebSocket-Extensions` header with which a client offers compression.

    It is what browsers offer: the server may do as it likes, and may limit the client's window. Before that stands what
    `config` says of the server, if its window is to be smaller than it is by default.
    """
    offer = f"{NAME}; {_CLIENT_BITS}"
    if config.server_max_window_bits >= _USUAL_WINDOW_BITS:
        return offer
    wish = f"{NAME}; {_SERVER_CONTEXT}" if config.server_no_context_takeover else NAME
    return f"{wish}; {_SERVER_BITS}={config.server_max_window_bits}; {_CLIENT_BITS}, {offer}"


def check_answer(answers: Sequence[str], config: Deflate) -> Agreement | None:
    """Check what a server has answered to `make_offer(config)`.

    Args:
      answers: the values of the `Sec-WebSocket-Extensions` lines of its 101.
      config: what this side would like; a server that does otherwise is agreed with.

    Returns:
      What is agreed; `None` if the server has declined.

    Raises:
      HandshakeError: it has answered something else than permessage-deflate, or what has no meaning there, so the
        connection must be failed (RFC 6455 section 4.1, RFC 7692 section 5.1); the status is that of the answer, 101.
    """
    try:
        elements = [_parse(element) for element in _elements(answers)]
        if not elements:
            return None
        if len(elements) > 1 or elements[0][0] != NAME:
            raise _Malformed("more than the one extension that was offered")
        return _agree(elements[0][1], config)
    except _Malformed as error:
        raise HandshakeError(101, f"the server accepts an extension that was not offered so: {error}") from None


def _agree(answer: Parameters, config: Deflate) -> Agreement:
    server_no_context = _flag(answer, _SERVER_CONTEXT)
    client_no_context = _flag(answer, _CLIENT_CONTEXT) or config.client_no_context_takeover
    server_bits = _bits(answer, _SERVER_BITS) or MAX_WINDOW_BITS
    client_bits = _bits(answer, _CLIENT_BITS) or MAX_WINDOW_BITS
    if answer.keys() - {*_FLAGS, _SERVER_BITS, _CLIENT_BITS}:
        raise _Malformed("an unknown parameter")
    setting = None
    if client_bits >= MIN_WINDOW_BITS:
        client_bits = min(client_bits, config.client_max_window_bits)  # less than it may is always allowed
        setting = Setting(client_bits, config.level, config.mem_level, not client_no_context)
    header = _format(answer)
    return Agreement(header, server_no_context, client_no_context, server_bits, client_bits, setting)


def _format(parameters: Parameters) -> str:
    return "; ".join([NAME, *(name if value is None else f"{name}={value}" for name, value in parameters.items())])


# The grammar (RFC 6455 section 9.1)


def _elements(lines: Sequence[str]) -> Iterator[str]:
    """The elements of the list, over all of its lines; empty ones do not count."""
    for line in lines:
        position = 0
        while position < len(line):
            match = _ELEMENT.match(line, position)
            assert match is not None  # it matches the empty string, too
            element = match[0].strip(" \t")
            if element:
                yield element
            position = match.end() + 1


def _parse(element: str) -> tuple[str, Parameters]:
    """Name and parameters of one extension; `_Malformed` for everything that the grammar does not have."""
    match = _NAME.match(element)
    if match is None:
        raise _Malformed("a malformed name")
    name = match[1]
    parameters: Parameters = {}
    while match.end() < len(element):
        match = _PARAMETER.match(element, match.end())
        if match is None:
            raise _Malformed("a malformed parameter")
        key, value, quoted = match.groups()
        if key in parameters:
            raise _Malformed("a parameter that comes twice")
        if quoted is not None:
            value = _QUOTED_PAIR.sub(r"\1", quoted)
            if not re.fullmatch(_TOKEN, value):
                raise _Malformed("a quoted value that is not a token")
        parameters[key] = value
    return name, parameters


def _flag(parameters: Parameters, name: str) -> bool:
    """Whether the parameter is there; it must not have a value."""
    if parameters.get(name) is not None:
        raise _Malformed(f"{name} with a value")
    return name in parameters


def _bits(parameters: Parameters, name: str, *, optional: bool = False) -> int | None:
    """The value of the parameter; `None` if it is not there, or has none and need not have one."""
    if name not in parameters:
        return None
    value = parameters[name]
    if value is None:
        if optional:
            return None
        raise _Malformed(f"{name} without a value")
    if value not in _BITS:
        raise _Malformed(f"{name} with a value that is not 8 to 15")
    return _BITS[value]
