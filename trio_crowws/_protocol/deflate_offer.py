"""permessage-deflate in the opening handshake: what is configured, offered, answered and agreed (RFC 7692 section 7.1).

Decisions where the standards leave a choice
* Names are matched as they are written; white space may stand around `,`, `;` and `=`.
* An element of the header that is malformed is an offer that cannot be accepted; it does not spoil its neighbours.
* A window of 8 bits is a promise that zlib cannot keep when it compresses, so an offer that asks this side for one is
  declined. The peer may limit itself to 8.
* The server tells its window and that it keeps no context whenever that is the case, asked or not: it costs a client
  nothing to know, and may save it memory. About the client's window it may speak only if asked (section 7.1.2.2).

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
      setting: how this side compresses; the key under which frames can be shared if it keeps no context.
    """

    header: str
    server_no_context_takeover: bool
    client_no_context_takeover: bool
    server_max_window_bits: int
    client_max_window_bits: int
    setting: Setting


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
    # The flags are looked at whatever is configured, because one with a value is malformed.
    server_no_context = _flag(offer, _SERVER_CONTEXT) or config.server_no_context_takeover
    client_no_context = _flag(offer, _CLIENT_CONTEXT) or config.client_no_context_takeover
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
    if server_bits < MAX_WINDOW_BITS or _SERVER_BITS in offer:
        answer.append(f"{_SERVER_BITS}={server_bits}")
    if client_bits < MAX_WINDOW_BITS:
        answer.append(f"{_CLIENT_BITS}={client_bits}")
    setting = Setting(server_bits, config.level, config.mem_level, not server_no_context)
    return Agreement("; ".join(answer), server_no_context, client_no_context, server_bits, client_bits, setting)


# The client's side


def make_offer(config: Deflate) -> str:
    """Return the value of the `Sec-WebSocket-Extensions` header with which a client offers what it wants.

    The server may limit the client's window, because that can always be done.
    """
    offer = [NAME]
    if config.server_no_context_takeover:
        offer.append(_SERVER_CONTEXT)
    if config.client_no_context_takeover:
        offer.append(_CLIENT_CONTEXT)
    if config.server_max_window_bits < MAX_WINDOW_BITS:
        offer.append(f"{_SERVER_BITS}={config.server_max_window_bits}")
    bits = config.client_max_window_bits
    offer.append(_CLIENT_BITS if bits == MAX_WINDOW_BITS else f"{_CLIENT_BITS}={bits}")
    return "; ".join(offer)


def check_answer(answers: Sequence[str], config: Deflate) -> Agreement | None:
    """Check what a server has answered to `make_offer(config)`.

    Args:
      answers: the values of the `Sec-WebSocket-Extensions` lines of its 101.
      config: what was offered.

    Returns:
      What is agreed; `None` if the server has declined.

    Raises:
      HandshakeError: it has answered what was not offered, or what it must not, so the connection must be failed
        (RFC 6455 section 4.1, RFC 7692 section 5.1); the status is that of the answer, 101.
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
    if config.server_no_context_takeover and not server_no_context:
        raise _Malformed(f"{_SERVER_CONTEXT} is missing")
    if server_bits > config.server_max_window_bits:
        raise _Malformed(f"{_SERVER_BITS} is missing or larger than offered")
    if _CLIENT_BITS in answer and client_bits > config.client_max_window_bits:
        raise _Malformed(f"{_CLIENT_BITS} is larger than offered")
    if client_bits < MIN_WINDOW_BITS:
        raise _Malformed(f"{_CLIENT_BITS} is less than zlib can do")
    # What a client said about itself in its offer holds, whether or not the server repeats it.
    client_bits = min(client_bits, config.client_max_window_bits)
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
