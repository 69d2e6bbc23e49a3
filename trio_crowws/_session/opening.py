"""The HTTP part of a connection: from the accepted socket to the request, and the answers that are not a 101.

No task is needed until a request is complete. A peer that connects and says nothing, or drips its request, costs a
small object and one timer, and has `handshake_timeout` seconds from the moment its socket was accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .._foreign import describe, explain, place, quoted, quoted_text, text_of
from .._log import log
from .._protocol.handshake import RequestReader, http_response
from .._transport.timers import FairScope, Timer
from ..errors import HandshakeError

if TYPE_CHECKING:
    from .._request import Request
    from .._transport.base import Transport
    from .._transport.timers import Timers
    from .accepting import Response
    from .handshakes import Handshakes

__all__ = ["Opening"]

LINGER = 5.0
"""Seconds that a peer has to read the answer and to close; they begin anew while it takes some of it."""

_CROWDED_OUT = HandshakeError(503, "too many handshakes", [("Retry-After", "1")])


class Opening:
    """The receiver of a transport until its request is answered.

    Attributes:
      deadline: absolute time by which the 101 has to be out.
      answered: whether the request has its answer, or does not need one any more.
    """

    __slots__ = (
        "_admit",
        "_handshakes",
        "_on_gone",
        "_reader",
        "_request",
        "_start",
        "_timer",
        "_timers",
        "answered",
        "deadline",
        "transport",
    )

    transport: Transport

    def __init__(
        self,
        timers: Timers,
        reader: RequestReader,
        handshakes: Handshakes,
        handshake_timeout: float,
        admit: Callable[[Opening, Request], None],
        on_gone: Callable[[Opening], None],
    ) -> None:
        self._timers = timers
        self._reader = reader
        self._handshakes = handshakes
        self._admit = admit
        self._on_gone = on_gone
        self._request: Request | None = None
        self._start = timers.tick()
        self.answered = False
        self.deadline = self._start + handshake_timeout
        self._timer = Timer(timers, self._on_timer, self)
        self._timer.arm(self.deadline)
        handshakes.wait_for(self)

    @property
    def early_data(self) -> bytes:
        """What came behind the request: the first frames of a peer that does not wait for the 101."""
        return self._reader.trailing

    def allow(self, handshake_timeout: float) -> None:
        """The route is known, and with it the time that its opening handshakes may take."""
        self.deadline = self._start + handshake_timeout

    def _on_data(self, data: bytes) -> None:
        """Take bytes from the peer."""
        try:
            request = self._reader.feed(data)
        except HandshakeError as error:
            self.refuse(error)
            return
        if request is None:
            return
        request.remote_address = self.transport.remote_address
        request.local_address = self.transport.local_address
        request.secure = self.transport.secure
        # What the peer sends from here on waits in the kernel until the application has decided.
        self.transport.pause()
        self._timer.cancel()
        self._request = request
        self._handshakes.hold(self)
        self._admit(self, request)

    def fair_scope(self) -> FairScope:
        """A scope that ends at `deadline`, for what is done with the request."""
        return FairScope(self._timers, self.deadline)

    def hand_over(self) -> None:
        """The request is accepted; from here on the transport belongs to the connection."""
        self._finish()

    def refuse(self, error: HandshakeError, *, linger: bool = True) -> None:
        """Answer with the status of `error` and close; without `linger`, do not wait for the peer to read and close."""
        if self.answered:
            return
        try:
            answer = self._as_answer(error)
        except Exception as wrong:  # the application has raised it, with what cannot be sent
            log.error("cannot answer with %s: %s", describe(error), describe(wrong))
            error = HandshakeError(500, "internal server error")
            answer = self._as_answer(error)
        self._send(answer, linger=linger)
        path = "-" if self._request is None else quoted(self._request.path)
        address = place(self.transport.remote_address)
        # Who had to make room for others comes at the rate of an attack, and a warning has said so once.
        say = log.debug if error is _CROWDED_OUT else log.info
        say("refused %s for %s with %d: %s", address, path, error.status, quoted_text(error))

    def respond(self, response: Response, maker: object) -> None:
        """Answer with `response`, which the functions of the route `maker` have made, and close."""
        body = response.body
        answer = self._render(response.status, response.headers, body)
        self._send(answer)
        if not self.transport.closed and len(answer) > 1:
            self._handshakes.count_body(self, body, maker)

    @property
    def taken(self) -> int:
        """Bytes that the peer has taken so far."""
        return self.transport.acknowledged

    def _as_answer(self, error: HandshakeError) -> list[bytes]:
        headers = (*error.headers, ("Content-Type", "text/plain; charset=utf-8"))
        return self._render(error.status, headers, f"{text_of(error)}\n".encode("ascii"))

    def _render(self, status: int, headers: tuple[tuple[str, str], ...], body: bytes) -> list[bytes]:
        head_only = self._request is not None and self._request.method == "HEAD"
        return http_response(status, headers, body, head_only=head_only)

    def drop(self) -> None:
        """Let go of the peer, for the sake of those who come. One that has no answer yet gets what the kernel takes."""
        try:
            if self.answered:
                self.transport.end_linger()
            else:
                self.refuse(_CROWDED_OUT, linger=False)
        except Exception as error:  # of this one transport; whoever comes must not pay for it
            self.transport.report(error)

    def _send(self, answer: list[bytes], *, linger: bool = True) -> None:
        self._finish()
        for piece in answer:
            self.transport.write(piece)
        # Lingering: what the peer has sent behind its request must not destroy the answer (and is never interpreted).
        self.transport.close(self._timers.tick() + (LINGER if linger else 0), linger=linger)
        if linger:
            self._await_release()

    def _await_release(self) -> None:
        """The answer counts as a handshake until its socket is let go."""
        self._handshakes.wait_for(self)
        self.transport.when_released(self._on_released)

    def _on_released(self) -> None:
        self._handshakes.discard(self)

    def _finish(self) -> None:
        self.answered = True
        self._timer.cancel()
        self._handshakes.discard(self)
        self._on_gone(self)

    # What else the transport reports

    def _on_eof(self) -> None:
        """The peer has gone, or at least will not finish its request."""
        self._finish()
        self.transport.close(self._timers.now, linger=False)

    def _on_lost(self, error: Exception | None) -> None:
        """The transport is gone."""
        address, reason = place(self.transport.remote_address), "-" if error is None else explain(error)
        log.debug("%s went away during the handshake: %s", address, reason)
        self._finish()
        self._await_release()  # below TLS that was refused, the socket lingers for the alert

    def _on_broken(self, error: Exception) -> None:
        """Nothing can be said to the peer any more; `_on_lost` follows."""

    def report(self, error: Exception) -> None:
        """An exception that nobody expects costs this one peer."""
        self.transport.report(error)

    def _on_stalled(self) -> None:
        """The answer does not fit into the kernel's buffers; the deadline of the transport's close bounds that."""

    def _on_drained(self) -> None:
        """Some of the answer has left."""

    def _on_timer(self, now: float) -> float | None:
        stood_still = self._timers.stood_still
        if stood_still and self.transport.shook_hands_at >= now:
            # What the peer has to say next, it could not say before it was answered.
            return now + min(stood_still, self.deadline - self._start)
        self.refuse(HandshakeError(408, "the request did not arrive in time"))
        return None
