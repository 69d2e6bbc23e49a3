"""What a server answered to a client: a value that errors carry, too."""

from __future__ import annotations

from dataclasses import dataclass

from ._request import Headers

__all__ = ["ServerResponse"]


@dataclass(frozen=True, slots=True)
class ServerResponse:
    """What a server answered to the request of a client.

    Attributes:
      status: the HTTP status; 101 if it accepted the upgrade.
      headers: the header lines.
      body: the body of a refusal, at most its first 64 KiB; nothing follows the head of a 101 but frames.
      truncated: whether there was more of the body, or would have been, had the server sent it in time.
    """

    status: int
    headers: Headers
    body: bytes = b""
    truncated: bool = False
