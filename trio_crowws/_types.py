"""Types that have a name because many signatures share them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

__all__ = ["Address", "BytesLike", "HeadersLike", "Message", "MessageLike", "SlowPolicy"]

BytesLike: TypeAlias = bytes | bytearray | memoryview
"""What can be sent as a binary message."""

Message: TypeAlias = str | bytes
"""A message as it is received: `str` is text, `bytes` are binary."""

MessageLike: TypeAlias = str | BytesLike
"""What can be sent: `str` as text, bytes-like data as binary."""

Address: TypeAlias = tuple[str, int] | str | None
"""`(host, port)`, the path of a Unix socket, or `None` where there is no address, as with a stream in memory."""

HeadersLike: TypeAlias = Mapping[str, str] | Sequence[tuple[str, str]]
"""Headers to send: a mapping, or pairs, in which a name may come more than once."""

SlowPolicy: TypeAlias = Literal["close", "drop", "latest"]
"""The option `on_slow`."""
