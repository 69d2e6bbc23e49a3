"""From an accepted transport to the task that answers its request.

A request that is wrong in itself is refused on the spot, by whoever reads. What needs the application (a callable
`origins`, the constructor of a `Handler`, middleware, `on_accept`, a connection, a page) gets a task: connections in
the nursery of their route, pages in the server's.

Nothing of the application's runs in the task of whoever reads, nor do the new tasks inherit the context of that one:
each begins with a copy of the context in which the server was made. So what one connection sets in a context variable
is seen by its own code, from `origins` to `on_close`, and by no other connection.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextvars import copy_context
from itertools import count
from typing import TYPE_CHECKING, Any

import trio

from ._foreign import describe, place, quoted
from ._log import log
from ._protocol.handshake import RequestReader, check_upgrade, is_upgrade
from ._protocol.origin import check_origin
from ._session.accepting import Accept, Reject
from ._session.calling import call_plain
from ._session.lifecycle import live
from ._session.opening import Opening
from ._session.tasks import sift, sort_out
from ._upgrade import PLAINLY, SHUTTING_DOWN, Decider, Undecided, Upgrade, internal_error, open_connection, produce
from .errors import HandshakeError

if TYPE_CHECKING:
    from ._request import Request
    from ._route import HTTPRoute, Route
    from ._session.connection import Connection
    from ._session.handlers import Callbacks
    from ._site import Site
    from ._transport.engine import Engine

__all__ = ["Admission"]

_connection_numbers = count(1)
_RETRY = [("Retry-After", "1")]


class Admission:
    """The half-open handshakes and the running tasks of one server.

    Attributes:
      connections: open ones, from before `on_open` until just before `on_close`.
      nurseries: where the connections of each route run.
      tasks: connections and pages that are being served.
      closing: set once; every request from then on gets a 503.
      welcome: is given every connection that opens while the server shuts down.
      overrides: options in place of those of every route; for the testing kit.
    """

    def __init__(self, site: Site, engine: Engine) -> None:
        self._site = site
        self._engine = engine
        self._openings: set[Opening] = set()
        self._decider = Decider(site)
        self._quiet = trio.lowlevel.ParkingLot()
        self._context = copy_context()
        self.connections: set[Connection] = set()
        self.nurseries: dict[Route, trio.Nursery] = {}
        self.nursery: trio.Nursery | None = None
        self.tasks = 0
        self.closing = False
        self.welcome: Callable[[Connection], None] | None = None
        self.overrides: Mapping[str, Any] = {}

    def new_opening(self) -> Opening:
        """The receiver for a transport that was just accepted."""
        options = self._site.options
        reader = RequestReader(max_header_bytes=options.max_header_bytes, max_headers=options.max_headers)
        opening = Opening(
            self._engine.timers,
            reader,
            self._site._handshakes,
            options.handshake_timeout,
            self._admit,
            self._opening_gone,
        )
        self._openings.add(opening)
        return opening

    def stop(self) -> None:
        """Refuse what is half-open, and all that comes."""
        self.closing = True
        for opening in list(self._openings):
            if not self._decider.interrupt(opening):
                opening.refuse(SHUTTING_DOWN)

    async def wait_no_handshakes(self) -> None:
        """Wait until every handshake that has begun is answered. Cancellation stops the waiting only."""
        while self._openings:
            await self._quiet.park()

    async def wait_quiet(self) -> None:
        """Wait until no handshake, no page and no connection is left. Cancellation stops the waiting only."""
        while self._openings or self.tasks:
            await self._quiet.park()

    def _check_quiet(self) -> None:
        if not self._openings:
            self._quiet.unpark_all()

    def _opening_gone(self, opening: Opening) -> None:
        self._openings.discard(opening)
        self._check_quiet()

    # From a request to its task

    def _admit(self, opening: Opening, request: Request) -> None:
        """A request is complete: refuse it at once, or start the task that answers it. Called by whoever reads."""
        try:
            self._dispatch(opening, request)
        except HandshakeError as error:
            if is_upgrade(request):
                self._site._tally.refused += 1
            opening.refuse(error)
        except Exception as error:  # a defect of this package: nothing of the application's runs here
            opening.refuse(_internal_error(request, error))

    def _dispatch(self, opening: Opening, request: Request) -> None:
        if self.closing:
            raise SHUTTING_DOWN
        segments = request.segments
        found = self._site._find_route(segments)
        if found is not None and is_upgrade(request):
            request.path_params = found[1]
            self._dispatch_upgrade(opening, request, found[0])
            return
        page = self._site._find_page(segments)
        if page is not None:
            request.path_params = page[1]
            self._dispatch_page(opening, request, page[0])
        elif found is not None:
            check_upgrade(request)  # says what is missing
        else:
            raise HandshakeError(404, "not found")

    def _dispatch_page(self, opening: Opening, request: Request, route: HTTPRoute) -> None:
        if request.method not in ("GET", "HEAD"):
            raise HandshakeError(405, f"{request.method} is not allowed here", [("Allow", "GET, HEAD")])
        assert self.nursery is not None
        self._start(self.nursery, self._answer, opening, request, route)

    def _dispatch_upgrade(self, opening: Opening, request: Request, route: Route) -> None:
        accept = check_upgrade(request)
        options = route.options._for_route(route.path, self.overrides) if self.overrides else route.options
        opening.allow(options.handshake_timeout)
        limit = self._site.options.max_connections
        if limit is not None and self._site._occupied >= limit:
            raise HandshakeError(503, "too many connections", _RETRY)
        origins = options.origins
        if not callable(origins):
            check_origin(origins, request)
        nursery = self.nurseries.get(route)
        if nursery is None or nursery.cancel_scope.cancel_called:
            raise HandshakeError(503, "this route is not being served", _RETRY)
        upgrade = Upgrade(opening, request, route, options, route._shared_callbacks, accept, nursery)
        conn = None
        if upgrade.callbacks is not None and not callable(origins) and self._decider.agrees(upgrade.callbacks.accept):
            # Where nobody is to be asked, the peer does not have to wait until the task has its first turn.
            conn = self._open(upgrade, PLAINLY)
        self._start(nursery, self._run_connection, upgrade, conn)
        self._site._occupied += 1

    def _start(self, nursery: trio.Nursery, function: Callable[..., Awaitable[None]], *args: object) -> None:
        # In a copy, because Trio's instruments, which are told of the new task, are not ours.
        self._context.copy().run(nursery.start_soon, function, *args)
        self.tasks += 1

    def _task_ended(self) -> None:
        self.tasks -= 1
        self._check_quiet()

    def _open(self, upgrade: Upgrade, accepted: Accept) -> Connection:
        connection_id = f"c{next(_connection_numbers)}"
        return open_connection(
            connection_id, upgrade, accepted, self._engine.timers, self._site._registry, self._site._packers
        )

    # The tasks

    @trio.lowlevel.enable_ki_protection
    async def _answer(self, opening: Opening, request: Request, route: HTTPRoute) -> None:
        try:
            outcome = await self._decider.decide(opening, request, route, None)
            if isinstance(outcome, Reject):
                opening.respond(outcome, route)
            else:
                opening.respond(await produce(self._decider, opening, request, route), route)
        except Undecided as undecided:
            opening.refuse(undecided.error)
        except BaseException as error:
            _give_up(opening, request, error)
        finally:
            self._site._handshakes.release(opening)
            self._task_ended()

    @trio.lowlevel.enable_ki_protection
    async def _run_connection(self, upgrade: Upgrade, conn: Connection | None) -> None:
        """The task of one connection, which is open already if nobody had to be asked."""
        try:
            if conn is None:
                conn = await self._accept(upgrade)
            if conn is not None:
                listed = Membership(self, self._site, upgrade.route, conn)
                life = live(conn, upgrade.opening.deadline, upgrade.opening.early_data, listed)
                del upgrade  # what only the handshake needed is not kept for the life of the connection
                await life
        except BaseException as error:
            sift(None, error, _report)
        finally:
            self._site._occupied -= 1
            self._task_ended()

    async def _accept(self, upgrade: Upgrade) -> Connection | None:
        opening, request = upgrade.opening, upgrade.request
        try:
            callbacks = self._callbacks_for(upgrade)
            outcome = await self._decider.decide(opening, request, upgrade.route, callbacks.accept)
            if opening.answered:  # the peer has gone meanwhile, and nothing more would be heard of its transport
                return None
            if isinstance(outcome, Accept):
                return self._open(upgrade._replace(callbacks=callbacks), outcome)
            opening.respond(outcome, upgrade.route)
            log.info("refused %s for %s with %d", place(request.remote_address), quoted(request.path), outcome.status)
        except Undecided as undecided:
            opening.refuse(undecided.error)
        except HandshakeError as error:
            opening.refuse(error)
        except BaseException as error:
            _give_up(opening, request, error)
        finally:
            self._site._handshakes.release(opening)
        self._site._tally.refused += 1
        return None

    def _callbacks_for(self, upgrade: Upgrade) -> Callbacks:
        """Ask a callable `origins`, and make the handler object where each connection has its own.

        Raises:
          HandshakeError: the page may not connect, or the server began to shut down before this task had a turn.
          Exception: what the application's function or constructor raises.
        """
        if upgrade.opening.answered:
            raise SHUTTING_DOWN
        origins = upgrade.options.origins
        if callable(origins):
            call_plain(check_origin, origins, upgrade.request)
        return upgrade.callbacks or call_plain(upgrade.route._make_callbacks)


class Membership:
    """Where a connection is listed while it is open."""

    __slots__ = ("_admission", "_conn", "_route", "_site")

    def __init__(self, admission: Admission, site: Site, route: Route, conn: Connection) -> None:
        self._admission = admission
        self._site = site
        self._route = route
        self._conn = conn

    def enter(self) -> None:
        """The connection is open."""
        self._conn.request._compact()
        self._admission.connections.add(self._conn)
        self._site._enter(self._conn, self._route)
        if self._admission.welcome is not None:
            self._admission.welcome(self._conn)

    def leave(self) -> None:
        """The connection has ended: out of all rooms and lists."""
        self._admission.connections.discard(self._conn)
        self._site._leave(self._conn, self._route)


def _report(error: Exception) -> None:
    """The last line of defence: what gets here is a defect of this package, and costs the one connection."""
    log.error("internal error; a connection is given up: %s", describe(error), exc_info=error)


def _give_up(opening: Opening, request: Request, error: BaseException) -> None:
    """The application has raised: the peer hears of it, and what must pass is raised."""
    own, rest = sort_out(None, error)
    opening.refuse(SHUTTING_DOWN if own is None else _internal_error(request, own))
    try:
        if rest is not None:  # cancelled, or the program is being interrupted
            raise rest
    finally:
        del own, rest, error  # the last one refers to this frame, and so to itself


def _internal_error(request: Request, error: Exception) -> HandshakeError:
    path, address = quoted(request.path), place(request.remote_address)
    log.error("cannot answer %s from %s: %s", path, address, describe(error), exc_info=error)
    return internal_error()
