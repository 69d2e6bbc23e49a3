"""Names for the types in the signatures of this package, to annotate your own functions with.

    from trio_crowws.typing import Message


    async def on_message(conn: Connection, message: Message) -> None: ...

The classes themselves, as `Connection` and `Request`, are in `trio_crowws`.
"""

from __future__ import annotations

from ._request import OriginPolicy
from ._types import Address, BytesLike, HeadersLike, Message, MessageLike, SlowPolicy

__all__ = ["Address", "BytesLike", "HeadersLike", "Message", "MessageLike", "OriginPolicy", "SlowPolicy"]
