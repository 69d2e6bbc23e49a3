"""Deciding about a request, and the step from an accepted request to a connection.

A request gets exactly one answer. There is one place that writes a 101, and it is behind every check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from ._foreign import describe, is_a, name_of, place, quoted
from ._log import log
from ._protocol.deflate import Inflater
from ._protocol.deflate_offer import negotiate
from ._protocol.framing import FrameReader
from ._protocol.handshake import accept_response, choose_subprotocol
from ._session.accepting import TEXT, Accept, Reject, Response, as_response
from ._session.calling import call
from ._session.connection import Connection
from ._session.ending import Parts
from ._session.handlers import Callback, Callbacks
from ._session.tasks import sort_out
from .errors import HandshakeError

if TYPE_CHECKING:
    from ._options import Options
    from ._protocol.compressing import Packers
    from ._protocol.deflate_offer import Agreement
    from ._request import Request
    from ._route import HTTPRoute, Route
    from ._session.connection import RoomsLike
    from ._session.opening import Opening
    from ._site import Site
    from ._transport.timers import Timers

__all__ = [
    "PLAINLY",
    "SHUTTING_DOWN",
    "Decider",
    "Undecided",
    "Upgrade",
    "internal_error",
    "open_connection",
    "produce",
]

_LARGE_TEXT = 64 * 1024
"""Characters of a page from which on it matters whether it is in memory once or once for each peer."""

PLAINLY = Accept()
"""Accepted, and nothing said beyond that."""

SHUTTING_DOWN = HandshakeError(503, "the server is shutting down", [("Retry-After", "1")])


class Upgrade(NamedTuple):
    """A request for an upgrade that has passed the protocol's checks.

    Attributes:
      options: those of the route, as they were when the request came.
      callbacks: what to call; `None` until the connection has its own handler object.
    """

    opening: Opening
    request: Request
    route: Route
    options: Options
    callbacks: Callbacks | None
    accept: str
    nursery: trio.Nursery


def internal_error() -> HandshakeError:
    """What a peer is told when the application has failed; what happened is for the log alone."""
    return HandshakeError(500, "internal server error")


class Undecided(Exception):
    """There is no decision: the deadline has passed, the server shuts down, or the application failed."""

    def __init__(self, error: HandshakeError) -> None:
        super().__init__(error)
        self.error = error


class Decider:
    """Asks the application about requests, each under the deadline of its handshake."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._asking: dict[Opening, trio.CancelScope] = {}

    def interrupt(self, opening: Opening) -> bool:
        """Stop asking about the request of `opening`; `False` if nobody is being asked."""
        scope = self._asking.get(opening)
        if scope is not None:
            scope.cancel()
        return scope is not None

    def agrees(self, accept: Callback | None) -> bool:
        """Whether there is nobody to ask about a request, neither a middleware nor `accept`."""
        return accept is None and not self._site._middlewares

    async def decide(
        self, opening: Opening, request: Request, route: Route | HTTPRoute, accept: Callback | None
    ) -> Accept | Reject:
        """Ask the middlewares, then `accept`, about a request for `route`.

        Raises:
          Undecided: there is no decision; it says what to answer.
        """
        if opening.answered:  # the server began to shut down before this task had its first turn
            raise Undecided(SHUTTING_DOWN)
        outcome: Accept | Reject = PLAINLY
        for callback in self._site._middlewares:
            outcome = _interpret(await self.ask(opening, request, route, callback), may_accept=False)
            if is_a(outcome, Reject):
                return outcome
        if accept is not None:
            outcome = _interpret(await self.ask(opening, request, route, accept), may_accept=True)
        return outcome

    async def ask(self, opening: Opening, request: Request, route: Route | HTTPRoute, callback: Callback) -> Any:
        """Call one function of the application about `request`, once there is memory for what it may answer.

        Raises:
          Undecided: it failed or took too long, or the server shuts down.
        """
        with opening.fair_scope() as scope:
            self._asking[opening] = scope
            try:
                await self._site._handshakes.reserve(opening, route)
                return await call(callback, request)
            except Reject as reject:
                return reject
            except BaseException as error:
                own, rest = sort_out(None, error)
                try:
                    if own is not None and is_a(own, Reject):
                        return own
                    if own is not None:
                        _log_failure(callback, request, own)
                    if rest is not None:
                        raise rest from None
                    raise Undecided(internal_error()) from own
                finally:
                    del own, rest  # they refer to this frame, and so to themselves
            finally:
                del self._asking[opening]
        if trio.current_time() < opening.deadline:
            raise Undecided(SHUTTING_DOWN)
        raise Undecided(HandshakeError(503, "the decision took too long", [("Retry-After", "1")]))


def _interpret(outcome: object, *, may_accept: bool) -> Accept | Reject:
    if outcome is None or outcome is True:
        return PLAINLY
    if outcome is False:
        return Reject(403, "forbidden\n")
    if is_a(outcome, Reject) or (may_accept and is_a(outcome, Accept)):
        return outcome
    allowed = "None, True, False, Accept or Reject" if may_accept else "None, True, False or Reject"
    callback = "on_accept" if may_accept else "a middleware"
    log.error("%s returned %s; it must be %s", callback, describe(outcome), allowed)
    raise Undecided(internal_error())


def _log_failure(callback: Callback, request: Request, error: Exception) -> None:
    log.error(
        "%s failed for %s from %s: %s",
        name_of(callback.function),
        quoted(request.path),
        place(request.remote_address),
        describe(error),
        exc_info=error,
    )


async def produce(decider: Decider, opening: Opening, request: Request, route: HTTPRoute) -> Response:
    """Run an HTTP route.

    Raises:
      Undecided: it failed, took too long, or returned what cannot be sent.
    """
    result = await decider.ask(opening, request, route, route.callback)
    content_type = route.content_type
    try:
        if type(result) is str and len(result) >= _LARGE_TEXT:
            result, content_type = route.encode(result), content_type or TEXT
        return as_response(result, content_type)
    except (TypeError, ValueError) as error:
        _log_failure(route.callback, request, error)
        raise Undecided(internal_error()) from error


def open_connection(
    connection_id: str, upgrade: Upgrade, accepted: Accept, timers: Timers, rooms: RoomsLike, packers: Packers
) -> Connection:
    """Write the 101 and make the connection.

    Raises:
      Undecided: `accepted` names a subprotocol that the client has not offered.
    """
    route, request, opening = upgrade.route, upgrade.request, upgrade.opening
    options = upgrade.options
    subprotocol = accepted.subprotocol
    if subprotocol is None:
        if options.subprotocols:
            subprotocol = choose_subprotocol(options.subprotocols, request.subprotocols)
    elif subprotocol in (offered := request.subprotocols):
        subprotocol = offered[offered.index(subprotocol)]  # a plain str, whatever the application's is
    else:
        wrong = describe(subprotocol)
        log.error("on_accept of %s chose the subprotocol %s, which was not offered", route.path, wrong)
        raise Undecided(internal_error())
    agreement = _agree(request, options)
    extensions = None if agreement is None else agreement.header
    answer = accept_response(upgrade.accept, subprotocol=subprotocol, extensions=extensions, headers=accepted.headers)
    reader = FrameReader(
        max_payload=options.max_payload,
        max_fragments=options.max_fragments,
        control_rate=options.control_rate,
        allow_unmasked=options.allow_unmasked,
        clock=timers.clock,
        inflater=None if agreement is None else Inflater(agreement, options.max_payload),
    )
    parts = Parts(connection_id, request, options, opening.transport, timers, reader)
    assert upgrade.callbacks is not None
    conn = Connection(parts, upgrade.callbacks, rooms, upgrade.nursery)
    if agreement is not None and options.compression is not None:
        assert agreement.setting is not None  # an offer that asks for what zlib cannot do is declined
        conn._compress_with(packers.get(agreement.setting, options.compression.threshold), agreement.header)
    conn.subprotocol = subprotocol
    conn.userdata = accepted.userdata
    opening.transport.limit_unsent(options._unsent)
    opening.hand_over()
    opening.transport.receiver = conn
    opening.transport.eager = not opening.transport.corked  # nothing will follow that could go along with it
    opening.transport.write(answer)
    return conn


def _agree(request: Request, options: Options) -> Agreement | None:
    """What is agreed on about compression; `None` if this side or the peer does without."""
    if options.compression is None:
        return None
    return negotiate(request.headers.get_all("sec-websocket-extensions"), options.compression)
