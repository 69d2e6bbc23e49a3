"""What an application consists of: routes, options, middlewares, rooms, and the connections of all its servers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from ._log import log
from ._options import Options
from ._protocol.compressing import Packers
from ._rooms import PublishResult, Room, Rooms, deliver
from ._route import HTTPRoute, Route, Router
from ._session.accepting import Response
from ._session.connection import Connection
from ._session.handlers import Callback, make_callback
from ._session.handshakes import Handshakes
from ._stats import Stats, Tally
from ._types import MessageLike

__all__ = ["Site"]

F = TypeVar("F", bound=Callable[..., Any])


class Site:
    """An application without the ways to serve it, which is all that a server needs to know of it."""

    def __init__(self, **options: Any) -> None:
        self.options = Options._for_app(options)
        self._routes: Router[Route] = Router("WebSocket route")
        self._pages: Router[HTTPRoute] = Router("HTTP route")
        self._middlewares: list[Callback] = []
        self._connections: set[Connection] = set()
        self._registry = Rooms()
        self._packers = Packers()
        self._tally = Tally()
        self._handshakes = Handshakes(self.options.max_handshakes)
        self._occupied = 0  # connections that are open or being decided about, for max_connections

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {len(self.routes)} routes and {len(self._connections)} connections>"

    # Registration

    def websocket(self, path: str, **options: Any) -> Route:
        """Register a WebSocket route and return it; as a decorator, the route takes its handler.

        Args:
          path: static segments, `{name}`, `{name:int}` and, last, `{name:path}`. The values are in
            `request.path_params`, decoded: that of a `{name:path}` may hold `..`, slashes that were sent as `%2F`, and
            empty parts, so it is a name to look up and never the path of a file.
          options: see `Options`; they replace the application's for this route.

        Raises:
          TypeError: an option is unknown, belongs to `App`, or has a value of the wrong type.
          ValueError: the path is malformed or taken, or an option has a value that is not allowed.
        """
        route = Route(path, self.options, options)
        self._routes.add(path, route)
        return route

    def http(self, path: str, *, content_type: str | None = None) -> Callable[[F], F]:
        """Decorator: `function(request)` answers GET and HEAD at `path`, for pages and health checks.

        The function is a plain or an async one and returns `str`, `bytes`, a `dict` or `list` (sent as JSON), or a
        `Response`; it may raise `Reject`. The connection is closed after the answer.

        Args:
          path: as for `websocket`.
          content_type: of what is returned, unless it is a `Response`.

        Raises:
          TypeError: the function does not take a request, or the content type is not a str.
          ValueError: the path is malformed or taken, or the content type cannot be in a header.
        """
        if content_type is not None:
            Response(headers={"Content-Type": content_type})  # fails here rather than at the first request

        def register(function: F) -> F:
            callback = make_callback(f"the HTTP route {path!r}", function, ("request",))
            self._pages.add(path, HTTPRoute(path, callback, content_type))
            return function

        return register

    def middleware(self, function: F) -> F:
        """Decorator: `function(request)` runs before every upgrade and every HTTP route, in order of registration.

        It returns `None` or `True` to go on, `False` for a 403, or a `Reject`, which it may also raise. A refusal is
        binding: nothing behind it runs. `request.state` carries values on.
        """
        self._middlewares.append(make_callback("middleware", function, ("request",)))
        return function

    # Connections and rooms

    @property
    def connections(self) -> frozenset[Connection]:
        """The open connections, from before `on_open` until just before `on_close`."""
        return frozenset(self._connections)

    def room(self, name: str) -> Room:
        """The room called `name`, whether it has members or not.

        Raises:
          TypeError: the name is not a str.
        """
        if not isinstance(name, str):
            raise TypeError(f"the name of a room must be a str, not {type(name).__name__}")
        return Room(self._registry, name)

    @property
    def rooms(self) -> frozenset[str]:
        """The names of the rooms that have members."""
        return self._registry.names()

    def publish(
        self,
        room: str,
        data: MessageLike,
        *,
        exclude: Iterable[Connection] = (),
        compress: bool | None = None,
    ) -> PublishResult:
        """Send `data` to every member of `room`, encoded once, and compressed at most once for each way to do it.

        Never waits and never calls your code: what a subscriber that does not read has queued beyond `send_limit` is
        treated as its route's `on_slow` says.

        Args:
          room: the room's name.
          data: `str` for a text message, bytes-like for a binary one.
          exclude: connections that do not get it.
          compress: as for `Connection.send`.

        Returns:
          How many got it, lost it, or were closed.

        Raises:
          TypeError: the data or the name is of another type; nothing was sent.
        """
        return self._registry.publish(room, data, exclude, compress)

    def broadcast(self, data: MessageLike, *, compress: bool | None = None) -> PublishResult:
        """Send `data` to every open connection; see `publish`."""
        return deliver(self._connections, data, compress=compress)

    def stats(self) -> Stats:
        """Counters since the application was made."""
        return self._tally.stats(self._connections, len(self._handshakes), self._handshakes.dropped)

    # For the server

    @property
    def routes(self) -> Sequence[Route]:
        """The WebSocket routes, in order of registration."""
        return tuple(self._routes)

    def _find_route(self, segments: list[str]) -> tuple[Route, dict[str, str | int]] | None:
        """The WebSocket route for a path, and the values of its parameters."""
        return self._routes.find(segments)

    def _find_page(self, segments: list[str]) -> tuple[HTTPRoute, dict[str, str | int]] | None:
        """The HTTP route for a path, and the values of its parameters."""
        return self._pages.find(segments)

    def _enter(self, conn: Connection, route: Route) -> None:
        """List a connection that has been opened."""
        self._connections.add(conn)
        route._enter(conn)
        self._tally.accepted += 1

    def _leave(self, conn: Connection, route: Route) -> None:
        """Take a connection that has ended out of all rooms and lists."""
        self._registry.leave_all(conn)
        self._connections.discard(conn)
        route._leave(conn)
        self._tally.add(conn)

    def _warn_about_options(self) -> None:
        """Say loudly what is for debugging only."""
        for route in self._routes:
            if route.options.allow_unmasked:
                log.warning(
                    "the route %s accepts frames without a mask, against RFC 6455: for debugging only", route.path
                )

    def _check_routes(self) -> None:
        """Raises ValueError for a route without a handler."""
        for route in self._routes:
            route._check()
