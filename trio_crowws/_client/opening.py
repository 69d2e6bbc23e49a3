"""The opening handshake of a client: the receiver of a transport from its first byte to the answer."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import trio

from .._foreign import cause_of, is_a, text_of
from .._protocol.answer import AnswerReader, SpeaksTLS
from ..errors import ConnectFailed, InvalidHandshake
from .tls import describe

if TYPE_CHECKING:
    from .._protocol.url import Target
    from .._response import ServerResponse
    from .._transport.base import Transport

__all__ = ["Opening"]


class Opening:
    """Waits for the answer to a request that was written to `transport`.

    Args:
      reader: has the request, and reads the answer.
      target: whom the request is for.

    Attributes:
      transport: what it is the receiver of.
    """

    def __init__(self, reader: AnswerReader, target: Target) -> None:
        self._reader = reader
        self._target = target
        self._answered = trio.Event()
        self._response: ServerResponse | None = None
        self._error: InvalidHandshake | ConnectFailed | None = None
        self.transport: Transport | None = None

    @property
    def answered(self) -> bool:
        """Whether it is known what the answer is, or that there is none."""
        return self._answered.is_set()

    @property
    def early_data(self) -> bytes:
        """What came behind the 101: the first frames."""
        return self._reader.trailing

    @property
    def partial(self) -> ServerResponse | None:
        """What is known of a refusal whose body is not complete."""
        return self._reader.partial()

    async def answer(self) -> ServerResponse:
        """Wait for the answer.

        Raises:
          InvalidHandshake: what came is no answer.
          ConnectFailed: the connection broke before.

        Cancellation: stops the waiting only.
        """
        await self._answered.wait()
        if self._error is not None:
            raise self._error from self._error.__cause__
        assert self._response is not None
        return self._response

    def _settle(self, response: ServerResponse | None, error: InvalidHandshake | ConnectFailed | None = None) -> None:
        if not self._answered.is_set():
            self._response = response
            self._error = error
            self._answered.set()
            # What the server sends from here on waits in the kernel until somebody is there for it.
            assert self.transport is not None
            self.transport.pause()

    # What the transport reports

    def _on_data(self, data: bytes) -> None:
        """Take bytes from the server."""
        try:
            response = self._reader.feed(data)
        except SpeaksTLS as error:
            self._settle(None, self._without_tls(error))
            return
        except InvalidHandshake as error:
            self._settle(None, error)
            return
        if response is not None:
            self._settle(response)

    def _on_eof(self) -> None:
        """The server will send nothing more."""
        self._end(self._hung_up())

    def _on_lost(self, error: Exception | None) -> None:
        """The transport is gone."""
        cause = None if error is None else cause_of(error)
        while is_a(error, trio.BrokenResourceError) and is_a(cause, Exception):
            error, cause = cause, cause_of(cause)  # which says what a stream does not
        if is_a(error, ssl.SSLEOFError):  # how a stream over TLS says that the server has hung up
            failure = self._hung_up()
        elif is_a(error, ssl.SSLError):
            failure = ConnectFailed(describe(error, self._target))
        else:
            reason = "" if error is None else f": {text_of(error)}"
            guess = self._guess() if is_a(error, ConnectionError) else ""
            failure = ConnectFailed(f"the connection broke before the server had answered{reason}{guess}")
        failure.__cause__ = error
        self._end(failure)

    def _hung_up(self) -> ConnectFailed:
        return ConnectFailed(f"the server closed the connection before it had answered{self._guess()}")

    def _without_tls(self, error: SpeaksTLS) -> ConnectFailed | InvalidHandshake:
        """The server has complained in TLS about a request in plain text."""
        if self._is_secure:  # in TLS already, so it is only one more answer that is no HTTP
            return InvalidHandshake(str(error))
        todo = "use wss://" if self._target.scheme == "ws" else "this connection does not"
        failure = ConnectFailed(f"the server at {self._target.tunnel} seems to speak TLS; {todo}")
        failure.__cause__ = error
        return failure

    def _guess(self) -> str:
        """What the reason may be where a server has ended the connection without a word."""
        if self._is_secure:
            return "; perhaps this port does not speak TLS, or the server demands a certificate of the client"
        return "; if it speaks TLS, use wss://" if self._target.scheme == "ws" else ""

    @property
    def _is_secure(self) -> bool:
        assert self.transport is not None
        return self.transport.secure

    def _end(self, failure: ConnectFailed) -> None:
        response = self._reader.eof()
        self._settle(response, None if response is not None else failure)

    def _on_broken(self, error: Exception) -> None:
        """The server takes no more of the request; it may have answered all the same."""

    def _on_stalled(self) -> None:
        """The server does not read the request; `open_timeout` bounds that."""

    def _on_drained(self) -> None:
        """Some of the request has left."""
