"""Names for the types in the signatures of this package, to annotate your own functions with.

    from trio_crowws.typing import Message


    async def on_message(conn: Connection, message: Message) -> None: ...

The classes themselves, as `Connection` and `Request`, are in `trio_crowws`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from ._request import Request
from ._types import Address, BytesLike, HeadersLike, Message, MessageLike, SlowPolicy

__all__ = ["Address", "BytesLike", "HeadersLike", "Message", "MessageLike", "OriginPolicy", "SlowPolicy"]

OriginPolicy: TypeAlias = str | Sequence[str] | Callable[[Request], bool]
"""The option `origins`: `"same"`, `"*"`, a sequence of origins, or a function that decides about a request."""
