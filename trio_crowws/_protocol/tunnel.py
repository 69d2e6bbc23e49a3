"""The request for a tunnel through an HTTP proxy (RFC 9110 section 9.3.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import h11

from .._response import ServerResponse
from ..errors import InvalidHandshake, ProxyError
from .answer import AnswerReader, SpeaksTLS, shown

if TYPE_CHECKING:
    from .url import Proxy, Target

__all__ = ["Tunnel"]


class Tunnel:
    """Asks a proxy for a tunnel, and reads its answer.

    Args:
      proxy: whom to ask.
      target: what the tunnel shall lead to.
      max_header_bytes: of the head of the answer.
      max_headers: header lines of the answer.

    Attributes:
      proxy: whom to ask.
      request: the request as bytes.
    """

    def __init__(self, proxy: Proxy, target: Target, *, max_header_bytes: int, max_headers: int) -> None:
        headers = [("Host", target.tunnel), ("User-Agent", "trio_crowws")]
        if proxy.authorization is not None:
            headers.append(("Proxy-Authorization", proxy.authorization))
        self.proxy = proxy
        self._reader = AnswerReader(
            h11.Request(method="CONNECT", target=target.tunnel, headers=headers),
            max_header_bytes=max_header_bytes,
            max_headers=max_headers,
        )
        self.request = self._reader.request

    def feed(self, data: bytes) -> bool:
        """Take bytes from the proxy; none when its stream has ended.

        Returns:
          Whether the tunnel is there. What comes from then on is the server's.

        Raises:
          ProxyError: it will not be there.
        """
        try:
            response = self._reader.feed(data) if data else self._reader.eof()
        except SpeaksTLS as error:
            raise ProxyError(f"the proxy {self.proxy} seems to speak TLS, and only http:// is possible") from error
        except InvalidHandshake as error:
            raise ProxyError(f"the proxy {self.proxy} answered with what cannot be understood: {error}") from error
        if response is None:
            if data:
                return False
            raise ProxyError(f"the proxy {self.proxy} closed the connection before it had answered")
        if not 200 <= response.status < 300:
            raise self._refused(response)
        if self._reader.trailing:
            # Nobody has asked the server for anything yet, so these are not its bytes.
            unasked = shown(self._reader.trailing.decode("latin-1"))
            raise ProxyError(f"the proxy {self.proxy} sent more than its answer: {unasked}", response)
        return True

    def refusal(self) -> ProxyError | None:
        """What the proxy has said when no more of its answer will come; `None` if not even the head is there."""
        # A 2xx is complete with its head, so what is not complete is a refusal.
        partial = self._reader.partial()
        return None if partial is None else self._refused(partial)

    def _refused(self, response: ServerResponse) -> ProxyError:
        return ProxyError(f"the proxy {self.proxy} refused with HTTP status {response.status}", response)
