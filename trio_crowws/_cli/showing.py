"""How `trio-crowws connect` shows what happens: for people, for pipes, for programs. Text in, bytes out; nothing waits.

Each event becomes one `Piece`, which is written as a whole. What a peer sent reaches a terminal only through `visible`,
whatever kind of event it came with: a message, the reason of a Close frame, the body of a refusal. A pipe gets messages
as they are, because the program behind it wants the data and not a picture of it.
"""

from __future__ import annotations

import base64
import json
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._closeinfo import CloseInfo

__all__ = ["JsonShow", "Piece", "PlainShow", "Refusal", "Show", "TerminalShow", "cells", "visible"]

BODY_SHOWN = 500
BYTES_SHOWN = 64

BOLD, DIM, RED, GREEN, YELLOW = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m"
RESET = "\x1b[0m"


def visible(text: str) -> str:
    """`text` with everything escaped that a terminal would obey instead of showing it."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or unicodedata.category(each) == "Zs" else each.encode("unicode_escape").decode()
        for each in text
    )


def cells(text: str) -> int:
    """How many cells of a terminal printable text takes."""
    return sum(map(_cells, text))


def _cells(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


@dataclass(frozen=True, slots=True)
class Piece:
    """What is written for one event, to the standard output or to the standard error."""

    data: bytes
    to_error: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """The HTTP response of a server that refused."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    hint: str = ""
    """What it seems to mean."""


class Show(ABC):
    """What can be shown; each way to show it says how."""

    def opened(self, url: str, subprotocol: str | None, seconds: float) -> Piece:
        """The opening handshake is done; it took so many seconds."""
        chosen = "" if subprotocol is None else f", subprotocol {subprotocol}"
        return self.note(f"connected to {url} in {_milliseconds(seconds)}{chosen}")

    @abstractmethod
    def message(self, data: str | bytes) -> Piece:
        """A message has come."""

    def ping(self, payload: bytes) -> Piece:
        """The peer has sent a ping, which was answered."""
        return self.note(f"ping {_hex(payload)}".rstrip())

    def pong(self, latency: float) -> Piece:
        """A ping of ours was answered."""
        return self.note(f"pong after {_milliseconds(latency)}")

    def closed(self, info: CloseInfo, latency: float | None) -> Piece:
        """The connection has ended."""
        text = f"closed with {info.code}" + (f" {info.reason!r}" if info.reason else "")
        text += f" by the {'server' if info.initiator == 'remote' else 'client'}"
        text += f": {info.error}" if info.error is not None and str(info.error) != info.reason else ""
        text += f" (latency {_milliseconds(latency)})" if latency is not None else ""
        return self.note(text, RED if info.error is not None else YELLOW)

    def refused(self, url: str, refusal: Refusal) -> Piece:
        """The server answered with an HTTP response."""
        body = refusal.body[:BODY_SHOWN].decode("utf-8", "backslashreplace").strip()
        hint = f" ({refusal.hint})" if refusal.hint else ""
        return self.error(f"{url} was refused with HTTP {refusal.status}{hint}" + (f": {body}" if body else ""))

    def error(self, text: str) -> Piece:
        """Something went wrong on this side."""
        return Piece(f"trio-crowws: {visible(text)}\n".encode(), to_error=True)

    @abstractmethod
    def note(self, text: str, style: str = DIM) -> Piece:
        """A line about the connection."""


class PlainShow(Show):
    """Messages to the standard output, one per line; all else to the standard error.

    Args:
      escaped: the standard output is a terminal, though one without colours.
    """

    def __init__(self, *, escaped: bool) -> None:
        self._escaped = escaped

    def message(self, data: str | bytes) -> Piece:
        if self._escaped:
            return Piece(f"{_describe(data)}\n".encode())
        return Piece((data.encode() if isinstance(data, str) else data) + b"\n")

    def note(self, text: str, style: str = DIM) -> Piece:
        return Piece(f"{visible(text)}\n".encode(), to_error=True)


class TerminalShow(Show):
    """Everything on one terminal, with colours."""

    def message(self, data: str | bytes) -> Piece:
        return self.note(f"< {_describe(data)}", GREEN if isinstance(data, str) else GREEN + BOLD)

    def error(self, text: str) -> Piece:
        return self.note(f"trio-crowws: {text}", RED)

    def note(self, text: str, style: str = DIM) -> Piece:
        return Piece(f"{style}{visible(text)}{RESET}\n".encode())


class JsonShow(Show):
    """One JSON object per line and event, on the standard output. Pure ASCII; bytes are base64.

    Args:
      clock: seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def opened(self, url: str, subprotocol: str | None, seconds: float) -> Piece:
        return self._event("open", url=url, subprotocol=subprotocol, seconds=round(seconds, 6))

    def message(self, data: str | bytes) -> Piece:
        if isinstance(data, str):
            return self._event("message", type="text", data=data)
        return self._event("message", type="binary", data=_base64(data))

    def ping(self, payload: bytes) -> Piece:
        return self._event("ping", data=_base64(payload))

    def pong(self, latency: float) -> Piece:
        return self._event("pong", latency=round(latency, 6))

    def closed(self, info: CloseInfo, latency: float | None) -> Piece:
        return self._event(
            "close",
            code=info.code,
            reason=info.reason,
            clean=info.clean,
            by=info.initiator,
            error=None if info.error is None else str(info.error),
            latency=None if latency is None else round(latency, 6),
        )

    def refused(self, url: str, refusal: Refusal) -> Piece:
        body = refusal.body.decode("utf-8", "replace")
        values = {"status": refusal.status, "headers": refusal.headers, "body": body, "hint": refusal.hint or None}
        return self._event("refused", url=url, **values)

    def error(self, text: str) -> Piece:
        return self._event("error", message=text)

    def note(self, text: str, style: str = DIM) -> Piece:
        return self._event("note", message=text)

    def _event(self, event: str, **values: Any) -> Piece:
        line = json.dumps({"event": event, "time": round(self._clock(), 6), **values})
        return Piece(line.replace("\x7f", "\\u007f").encode() + b"\n")  # JSON allows DEL as it is; a terminal obeys it


def _describe(data: str | bytes) -> str:
    """A message as a line of text."""
    return visible(data) if isinstance(data, str) else f"binary, {len(data):,} bytes: {_hex(data)}"


def _hex(data: bytes) -> str:
    return data[:BYTES_SHOWN].hex(" ") + (" ..." if len(data) > BYTES_SHOWN else "")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
