"""What the bytes of a peer come to: whole messages, and the four control events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ..errors import ProtocolError

__all__ = ["CloseReceived", "Event", "Fault", "Ping", "Pong"]


@dataclass(frozen=True, slots=True)
class Ping:
    """The peer asks for a pong with the same payload."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """The peer answers a ping, or sends a sign of life unasked."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class CloseReceived:
    """The peer's Close frame; `code` is `None` for one without a payload. It is the last event."""

    code: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Fault:
    """The peer broke a rule or a limit; the connection must be failed with `error.code`. It is the last event."""

    error: ProtocolError


Event: TypeAlias = str | bytes | Ping | Pong | CloseReceived | Fault
"""A whole message (`str` for text, `bytes` for binary) or one of the four control events."""
