"""The opening handshake of a client: the receiver of a transport from its first byte to the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from .._protocol.answer import AnswerReader
from ..errors import ConnectFailed, InvalidHandshake

if TYPE_CHECKING:
    from .._protocol.answer import ServerResponse
    from .._transport.base import Transport

__all__ = ["Opening"]


class Opening:
    """Waits for the answer to a request that was written to `transport`.

    Attributes:
      transport: what it is the receiver of.
    """

    def __init__(self, reader: AnswerReader) -> None:
        self._reader = reader
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
        except InvalidHandshake as error:
            self._settle(None, error)
            return
        if response is not None:
            self._settle(response)

    def _on_eof(self) -> None:
        """The server will send nothing more."""
        self._end(ConnectFailed("the server closed the connection before it had answered"))

    def _on_lost(self, error: Exception | None) -> None:
        """The transport is gone."""
        if isinstance(error, trio.BrokenResourceError) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # which says what a stream does not
        failure = ConnectFailed(f"the connection broke before the server had answered: {error}")
        failure.__cause__ = error
        self._end(failure)

    def _end(self, failure: ConnectFailed) -> None:
        response = self._reader.eof()
        self._settle(response, None if response is not None else failure)

    def _on_stalled(self) -> None:
        """The server does not read the request; `open_timeout` bounds that."""

    def _on_drained(self) -> None:
        """Some of the request has left."""
