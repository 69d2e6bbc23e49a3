"""Routes: a path, options, and what to call. And the table that finds a route by the path of a request."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar, final, overload
from urllib.parse import unquote

from ._options import Options
from ._rooms import PublishResult, deliver
from ._session.connection import Connection
from ._session.handlers import Callback, Callbacks, Handler, HandlerPlan
from ._types import MessageLike

__all__ = ["HTTPRoute", "Route", "Router"]

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


@final
class Route:
    """A WebSocket route, as `App.websocket` makes it.

    Give it a handler in one of three ways: call it with a session function, a `Handler` class or a `Handler` object (or
    use it as their decorator); chain `onaccept`, `onopen`, `onmessage`, `onerror`, `onclose`, which return the route;
    or use `on_accept` and its sisters as decorators, which return the function.

    Attributes:
      path: the path as it was registered.
      options: the route's `Options`.
    """

    def __init__(self, path: str, app_options: Options, given: dict[str, Any]) -> None:
        self.path = path
        self.options = app_options._for_route(path, given)
        self._callbacks = Callbacks()
        self._plan: HandlerPlan | None = None
        self._connections: set[Connection] = set()

    def __repr__(self) -> str:
        return f"<Route {self.path!r} with {len(self._connections)} connections>"

    @property
    def connections(self) -> frozenset[Connection]:
        """The open connections of this route, from before `on_open` until just before `on_close`."""
        return frozenset(self._connections)

    @overload
    def __call__(self, handler: type[Handler]) -> type[Handler]: ...
    @overload
    def __call__(self, handler: F) -> F: ...
    @overload
    def __call__(self, handler: Handler) -> Handler: ...
    def __call__(self, handler: Any) -> Any:
        """Set the handler and return it: an async function of one parameter, a `Handler` class or a `Handler` object.

        Raises:
          TypeError: it is none of these, or a callback is unknown or has the wrong parameters.
          ValueError: the route has handlers that this one does not go together with.
        """
        if isinstance(handler, type) and issubclass(handler, Handler):
            self._refuse_second()
            try:
                inspect.signature(handler).bind()
            except TypeError as error:
                raise TypeError(
                    f"{handler.__qualname__} is made once for each connection, without arguments: {error}"
                ) from None
            self._plan = HandlerPlan(handler)
        elif isinstance(handler, Handler):
            self._refuse_second()
            self._callbacks = HandlerPlan(type(handler)).bind(handler)
        elif isinstance(handler, type):
            raise TypeError(f"{handler.__qualname__} is a class but no subclass of Handler")
        else:
            self._refuse_class()
            self._callbacks.set_session(handler)
        return handler

    def _refuse_second(self) -> None:
        self._refuse_class()
        if not self._callbacks.untouched:
            raise ValueError(f"the route {self.path!r} already has callbacks or a session handler")

    def _refuse_class(self) -> None:
        if self._plan is not None:
            raise ValueError(f"the route {self.path!r} already has the handler class {self._plan.name}")

    def _set(self, name: str, function: F) -> F:
        self._refuse_class()
        self._callbacks.set(name, function)
        return function

    # The Crow spellings return the route.

    def onaccept(self, function: Callable[..., Any]) -> Route:
        """`function(request)` decides before the 101: `None`, `True`, `False`, `Accept` or `Reject`."""
        self._set("on_accept", function)
        return self

    def onopen(self, function: Callable[..., Any]) -> Route:
        """`function(conn)` runs when the 101 is out, and ends before the first message."""
        self._set("on_open", function)
        return self

    def onmessage(self, function: Callable[..., Any]) -> Route:
        """`function(conn, message)` gets each message, one after the other."""
        self._set("on_message", function)
        return self

    def onerror(self, function: Callable[..., Any]) -> Route:
        """`function(conn, error)` runs at most once, when something went wrong, before `on_close`."""
        self._set("on_error", function)
        return self

    def onclose(self, function: Callable[..., Any]) -> Route:
        """`function(conn, info)` runs exactly once for each connection that was opened, last."""
        self._set("on_close", function)
        return self

    def max_payload(self, size: int | None) -> Route:
        """Set the option `max_payload` for this route; `None` turns the limit off."""
        return self._option("max_payload", size)

    def subprotocols(self, *names: str) -> Route:
        """Set the option `subprotocols` for this route, in the server's order of preference."""
        return self._option("subprotocols", names)

    def _option(self, name: str, value: object) -> Route:
        self.options = self.options._for_route(self.path, {name: value})
        return self

    # The Python spellings return the function.

    def on_accept(self, function: F) -> F:
        """Decorator; see `onaccept`."""
        return self._set("on_accept", function)

    def on_open(self, function: F) -> F:
        """Decorator; see `onopen`."""
        return self._set("on_open", function)

    def on_message(self, function: F) -> F:
        """Decorator; see `onmessage`. A plain `def` is called by whoever reads, so it must not block."""
        return self._set("on_message", function)

    def on_text(self, function: F) -> F:
        """Decorator: `function(conn, text)` gets text; without `on_binary` beside it, binary is refused with 1003."""
        return self._set("on_text", function)

    def on_binary(self, function: F) -> F:
        """Decorator: `function(conn, data)` gets binary; without `on_text` beside it, text is refused with 1003."""
        return self._set("on_binary", function)

    def on_ping(self, function: F) -> F:
        """Decorator: `function(conn, payload)` hears of the peer's pings, which are answered without it.

        Beside a session, an async one runs in a task of the connection: no timeout around `receive` cuts it.
        """
        return self._set("on_ping", function)

    def on_pong(self, function: F) -> F:
        """Decorator: `function(conn, payload)` hears of the peer's pongs; an async one runs as `on_ping` does."""
        return self._set("on_pong", function)

    def on_error(self, function: F) -> F:
        """Decorator; see `onerror`."""
        return self._set("on_error", function)

    def on_close(self, function: F) -> F:
        """Decorator; see `onclose`."""
        return self._set("on_close", function)

    def broadcast(self, data: MessageLike, *, compress: bool | None = None) -> PublishResult:
        """Send `data` to every connection of this route; never waits. See `App.publish`."""
        return deliver(self._connections, data, compress=compress)

    # For the server

    def _check(self) -> None:
        """Raises ValueError if nothing would ever look at a connection of this route."""
        if self._plan is None and self._callbacks.empty:
            raise ValueError(
                f"the route {self.path!r} has no handler; give it a session function, a Handler, or callbacks"
            )

    def _enter(self, conn: Connection) -> None:
        """List a connection that has been opened."""
        self._connections.add(conn)

    def _leave(self, conn: Connection) -> None:
        """Take a connection that has ended out of the list."""
        self._connections.discard(conn)

    @property
    def _shared_callbacks(self) -> Callbacks | None:
        """The callbacks for all connections; `None` where the handler is a class, and each has its own object."""
        return self._callbacks if self._plan is None else None

    def _make_callbacks(self) -> Callbacks:
        """The callbacks of a new object of the handler class."""
        assert self._plan is not None
        return self._plan.make()


class HTTPRoute:
    """A path that answers GET and HEAD, as `App.http` makes it."""

    def __init__(self, path: str, callback: Callback, content_type: str | None) -> None:
        self.path = path
        self.callback = callback
        self.content_type = content_type
        self._text = ""
        self._encoded = b""

    def encode(self, text: str) -> bytes:
        """A large text that is the answer again and again is encoded once, and in memory once for all who read it."""
        if text is not self._text:
            self._text, self._encoded = text, text.encode("utf-8")
        return self._encoded


class _Node(Generic[T]):
    __slots__ = ("by_name", "integer", "rest", "static", "text", "value")

    def __init__(self) -> None:
        self.static: dict[str, _Node[T]] = {}
        self.integer: _Node[T] | None = None
        self.text: _Node[T] | None = None
        self.rest: _Node[T] | None = None
        self.value: tuple[T, tuple[str, ...]] | None = None


class Router(Generic[T]):
    """Finds what is registered for a path. Static segments go before `{name:int}`, `{name}` and `{name:path}`.

    The work for one path is bounded by the depth and the number of the routes; no regular expression sees what a peer
    sent.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._root: _Node[T] = _Node()
        self._values: list[T] = []

    def __iter__(self) -> Iterator[T]:
        return iter(self._values)

    def add(self, path: str, value: T) -> None:
        """Register `value` at `path`.

        Raises:
          TypeError: the path is not a str.
          ValueError: it is malformed, or taken.
        """
        if not isinstance(path, str):
            raise TypeError(f"a path must be a str, not {type(path).__name__}")
        if not path.startswith("/") or any(char in path for char in "?# \r\n"):
            raise ValueError(f"path {path!r} is not allowed; it must begin with '/' and hold no query, space or '#'")
        node = self._root
        names: list[str] = []
        segments = path[1:].split("/")
        for index, segment in enumerate(segments):
            node = self._descend(node, path, segment, names, last=index == len(segments) - 1)
        if node.value is not None:
            raise ValueError(f"the path {path!r} is taken by another {self._kind}")
        node.value = (value, tuple(names))
        self._values.append(value)

    def _descend(self, node: _Node[T], path: str, segment: str, names: list[str], *, last: bool) -> _Node[T]:
        if "{" not in segment and "}" not in segment:
            if (spelling := _spelling(segment)) is not None:
                raise ValueError(
                    f"path {path!r}: {segment!r} is no parameter here; write {spelling!r} for one (and a '<', '>', '*'"
                    " or first ':' that is meant as it stands in percent-encoding)"
                )
            # As in requests, whose segments are decoded one by one: `/a%20b` can only be written that way.
            return node.static.setdefault(unquote(segment), _Node())
        name, _, kind = segment[1:-1].partition(":")
        if not (segment.startswith("{") and segment.endswith("}") and name.isidentifier()):
            raise ValueError(f"path {path!r}: a parameter is a whole segment, as in '/room/{{name}}', not {segment!r}")
        if name in names:
            raise ValueError(f"path {path!r} has two parameters called {name!r}")
        names.append(name)
        if kind in ("", "str"):
            node.text = node.text or _Node()
            return node.text
        if kind == "int":
            node.integer = node.integer or _Node()
            return node.integer
        if kind == "path" and last:
            node.rest = node.rest or _Node()
            return node.rest
        if kind == "path":
            raise ValueError(f"path {path!r}: {segment!r} takes the rest of the path, so it must come last")
        raise ValueError(f"path {path!r}: unknown kind {kind!r}; allowed are int, str and path")

    def find(self, segments: list[str]) -> tuple[T, dict[str, str | int]] | None:
        """What is registered for the path with these decoded segments, and the values of its parameters."""
        values: list[str | int] = []
        node = self._match(self._root, segments, 0, values)
        if node is None or node.value is None:
            return None
        value, names = node.value
        return value, dict(zip(names, values, strict=True))

    def _match(self, node: _Node[T], segments: list[str], index: int, values: list[str | int]) -> _Node[T] | None:
        if index == len(segments):
            return node if node.value is not None else None
        segment = segments[index]
        child = node.static.get(segment)
        if child is not None and (found := self._match(child, segments, index + 1, values)) is not None:
            return found
        if node.integer is not None and _is_integer(segment):
            values.append(int(segment))
            if (found := self._match(node.integer, segments, index + 1, values)) is not None:
                return found
            values.pop()
        if node.text is not None and segment:
            values.append(segment)
            if (found := self._match(node.text, segments, index + 1, values)) is not None:
                return found
            values.pop()
        if node.rest is not None:
            values.append("/".join(segments[index:]))
            return node.rest
        return None


_KINDS = {"int": "int", "uint": "int", "path": "path"}
"""Kinds of parameters elsewhere that there are here as well; of all others the value is a text."""

_FOREIGN_KINDS = frozenset({*_KINDS, "str", "string", "float", "double", "uuid"})


def _spelling(segment: str) -> str | None:
    """A parameter as other frameworks write it (`<name>`, `<int:name>`, `:name`, `*`) in the spelling of this one."""
    if "<" in segment or ">" in segment:
        kind, _, name = segment.strip("<>").rpartition(":")
        if not kind and name in _FOREIGN_KINDS:
            kind, name = name, ""
        kind = _KINDS.get(kind, "")
    elif segment.startswith(":"):
        kind, name = "", segment[1:]
    elif "*" in segment:
        kind, name = "path", segment.strip("*")
    else:
        return None
    if not name.isidentifier():
        name = "rest" if kind == "path" else "name"
    return f"{{{name}:{kind}}}" if kind else f"{{{name}}}"


def _is_integer(segment: str) -> bool:
    digits = segment.removeprefix("-")
    # Bounded, because a conversion of thousands of digits is slow, and beyond a point refused by Python.
    return digits.isascii() and digits.isdigit() and len(digits) <= 18
