"""What the end of a connection is: close codes, close frames, and the record that `on_close` gets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

__all__ = ["CloseCode", "CloseFrame", "CloseInfo", "check_close", "check_close_frame"]


class CloseCode(IntEnum):
    """The close codes registered with IANA (RFC 6455 section 7.4.1 and later additions).

    Codes from 3000 to 3999 belong to libraries, codes from 4000 to 4999 to applications.
    """

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS = 1005
    ABNORMAL = 1006
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014
    TLS_HANDSHAKE = 1015


# 1004 is reserved; 1005, 1006 and 1015 describe an end without a code and never travel (RFC 6455 section 7.4.1).
_SENDABLE = frozenset((1000, 1001, 1002, 1003, *range(1007, 1015)))
_ALLOWED = "1000 to 1003, 1007 to 1014 or 3000 to 4999"
_MAX_REASON_BYTES = 123  # a control frame carries 125 bytes (RFC 6455 section 5.5), two of them the code


def check_close(code: int, reason: str) -> tuple[int, str]:
    """Return `code` and `reason` as they may go on the wire, the reason cut to 123 bytes on a code point.

    Raises:
      TypeError: `code` is not an int, or `reason` is not a str.
      ValueError: the code must not be sent, or the reason is not encodable as UTF-8.
    """
    if not isinstance(code, int) or isinstance(code, bool):
        raise TypeError(f"close code must be an int, not {type(code).__name__}")
    if not isinstance(reason, str):
        raise TypeError(f"close reason must be a str, not {type(reason).__name__}")
    code = int(code)
    if code not in _SENDABLE and not 3000 <= code <= 4999:
        raise ValueError(f"close code {code} must not be sent; allowed are {_ALLOWED}")
    encoded = reason.encode("utf-8")  # a lone surrogate is a UnicodeEncodeError, which is a ValueError
    if len(encoded) > _MAX_REASON_BYTES:
        reason = encoded[:_MAX_REASON_BYTES].decode("utf-8", errors="ignore")
    return code, reason


@dataclass(frozen=True, slots=True)
class CloseFrame:
    """One Close frame as it travelled.

    Attributes:
      code: `None` for a frame without a payload.
      reason: the text that stood behind the code.
    """

    code: int | None
    reason: str = ""


def check_close_frame(code: int | None, reason: str) -> CloseFrame:
    """The Close frame with `code` and `reason`, as `check_close` allows them; without a payload if `code` is `None`.

    Raises:
      TypeError: as from `check_close`.
      ValueError: as from `check_close`; or there is a reason, which has no place in a frame without a code.
    """
    if code is not None:
        return CloseFrame(*check_close(code, reason))
    if reason:
        raise ValueError("a Close frame without a code has no reason, either (RFC 6455 section 5.5.1)")
    return CloseFrame(None)


@dataclass(frozen=True, slots=True)
class CloseInfo:
    """How a connection ended: the `CloseEvent` of browsers, and what it leaves out.

    Attributes:
      code: what the peer said, if it has sent a Close frame (1005 for one without a code). Otherwise the code of the
        Close frame that this side has sent because of an `error` (1002, 1003, 1007, 1008, 1009, 1011, 1013), or, for a
        fault of the peer, would have sent if it still could. Otherwise 1006: there was no Close frame, or ours was an
        ordinary one and got no answer.
      reason: the text that belongs to `code`.
      clean: whether both Close frames were exchanged, whatever the code. A peer that has sent its own and leaves
        without waiting for ours, as browsers do, counts as one that got it.
      initiator: which side began the end: `"local"` or `"remote"`.
      sent: the Close frame that this side sent, or `None`.
      received: the Close frame that the peer sent, or `None`.
      error: what went wrong (the same object that `on_error` gets), or `None`.
    """

    code: int
    reason: str
    clean: bool
    initiator: Literal["local", "remote"]
    sent: CloseFrame | None
    received: CloseFrame | None
    error: Exception | None

    def __copy__(self) -> CloseInfo:
        return self  # it cannot be changed; and a copy by way of pickling may lose `error` (see `errors.py`)
