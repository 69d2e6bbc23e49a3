"""The internal form of all handler styles: `Callbacks`, a record of functions with their kind.

A session function, chained or decorated callbacks, a `Handler` class and a `Handler` object all become the same record,
and nothing above this module knows which of them the application wrote. Names and signatures are checked while the
record is filled, so that a mistake shows at registration.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from .._foreign import name_of

__all__ = ["CALLBACKS", "Callback", "Callbacks", "Handler", "HandlerPlan"]

CALLBACKS: dict[str, tuple[str, ...]] = {
    "on_accept": ("request",),
    "on_open": ("conn",),
    "on_message": ("conn", "message"),
    "on_text": ("conn", "message"),
    "on_binary": ("conn", "message"),
    "on_ping": ("conn", "payload"),
    "on_pong": ("conn", "payload"),
    "on_error": ("conn", "error"),
    "on_close": ("conn", "info"),
}
"""Every callback by name, with the names of what it gets."""

SESSION = ("conn",)


class Callback(NamedTuple):
    """A function of the application, and whether it has to be awaited."""

    function: Callable[..., Any]
    is_async: bool


class Callbacks:
    """What to call for each event of a connection; `None` where the application has nothing."""

    __slots__ = ("accept", "binary", "close", "error", "inline", "open", "ping", "pong", "session", "text")

    def __init__(self) -> None:
        self.accept: Callback | None = None
        self.open: Callback | None = None
        self.text: Callback | None = None
        self.binary: Callback | None = None
        self.ping: Callback | None = None
        self.pong: Callback | None = None
        self.error: Callback | None = None
        self.close: Callback | None = None
        self.session: Callback | None = None
        self.inline = False

    def set(self, name: str, function: Callable[..., Any]) -> None:
        """Enter `function` as the callback called `name`.

        Raises:
          TypeError: it is not callable, or cannot be called with what this callback gets.
          ValueError: there is one already, or it does not go together with the ones that are there.
        """
        self.place(name, make_callback(name, function, CALLBACKS[name]))

    def place(self, name: str, callback: Callback) -> None:
        """Enter a callback that was checked before.

        Raises:
          ValueError: there is one already, or it does not go together with the ones that are there.
        """
        self._check_combination(name)
        if name == "on_message":
            self.text = self.binary = callback
        else:
            setattr(self, name.removeprefix("on_"), callback)
        self._settle()

    def set_session(self, function: Callable[..., Any]) -> None:
        """Enter `function` as the session of each connection.

        Raises:
          TypeError: it is not an async function of one parameter.
          ValueError: there is one already, or there are message callbacks.
        """
        callback = make_callback("a session handler", function, SESSION)
        if not callback.is_async:
            raise TypeError(
                f"a session handler must be an async function, but {name_of(function)} is a plain one; "
                "a plain function can be on_message"
            )
        if self.session is not None:
            raise ValueError(f"the route already has the session handler {name_of(self.session.function)}")
        if self.open or self.text or self.binary:
            raise ValueError("a route has either a session handler or on_open/on_message callbacks, not both")
        self.session = callback

    def _check_combination(self, name: str) -> None:
        short = name.removeprefix("on_")
        taken = (self.text or self.binary) if name == "on_message" else getattr(self, short)
        if taken is not None:
            raise ValueError(f"{name} is already set to {name_of(taken.function)}")
        if self.session is not None and short in ("open", "message", "text", "binary"):
            raise ValueError(f"{name} does not go together with the session handler {name_of(self.session.function)}")

    def _settle(self) -> None:
        handlers = (self.text, self.binary)
        # Plain functions are called by whoever feeds; one async function and the order needs the connection's task.
        self.inline = any(handlers) and not any(handler is not None and handler.is_async for handler in handlers)

    @property
    def untouched(self) -> bool:
        """Whether nothing was entered yet."""
        return self.empty and not (self.accept or self.error)

    @property
    def empty(self) -> bool:
        """Whether there is nothing that would ever look at a message or at the connection."""
        return not any((self.session, self.open, self.text, self.binary, self.close, self.ping, self.pong))


class Handler:
    """Base of handler objects: subclass it and define the callbacks that you need.

    The class itself as the handler of a route means one object for each connection; an instance means one object that
    all connections share. Every method may be a plain or an async one, and all are optional:
    `on_accept(self, request)`, `on_open(self, conn)`, `on_message(self, conn, message)` or `on_text` and `on_binary`,
    `on_ping(self, conn, payload)`, `on_pong(self, conn, payload)`, `on_error(self, conn, error)` and
    `on_close(self, conn, info)`.
    """


class HandlerPlan:
    """What a `Handler` class defines, checked once, so that the objects of its connections are bound quickly.

    Raises:
      TypeError: an `on_...` name is unknown, or a method cannot be called with what its callback gets.
      ValueError: `on_message` together with `on_text` or `on_binary`.
    """

    def __init__(self, cls: type[Handler]) -> None:
        self.name = cls.__qualname__
        self._cls = cls
        self._methods: dict[str, bool] = {}
        rehearsal = Callbacks()
        for name in dir(cls):
            if not name.startswith("on_"):
                continue
            if name not in CALLBACKS:
                raise TypeError(unknown_callback(name, self.name))
            method = getattr(cls, name)
            unbound = not isinstance(inspect.getattr_static(cls, name), (staticmethod, classmethod))
            arguments = ("self", *CALLBACKS[name]) if unbound else CALLBACKS[name]
            callback = make_callback(f"{self.name}.{name}", method, arguments)
            rehearsal.place(name, callback)
            self._methods[name] = callback.is_async
        if rehearsal.empty:
            raise ValueError(f"{self.name} defines no callback; the callbacks are {', '.join(CALLBACKS)}")

    def bind(self, handler: Handler) -> Callbacks:
        """The callbacks of `handler`, which is an object of the class."""
        callbacks = Callbacks()
        for name, is_async in self._methods.items():
            callbacks.place(name, Callback(getattr(handler, name), is_async))
        return callbacks

    def make(self) -> Callbacks:
        """The callbacks of a new object of the class."""
        return self.bind(self._cls())


def unknown_callback(name: str, owner: str) -> str:
    """The message for a callback name that does not exist."""
    near = difflib.get_close_matches(name, CALLBACKS, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    return f"{owner} has an unknown callback {name}{hint} The callbacks are {', '.join(CALLBACKS)}"


def make_callback(name: str, function: Callable[..., Any], arguments: tuple[str, ...]) -> Callback:
    """Check that `function` can be called with `arguments`, and find out whether it is async.

    Raises:
      TypeError: it cannot.
    """
    if not callable(function):
        raise TypeError(f"{name} must be a function, not {type(function).__name__}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin without one, which only the call can judge
        return Callback(function, False)
    try:
        signature.bind(*arguments)
    except TypeError:
        raise TypeError(
            f"{name} is called with ({', '.join(arguments)}), but {name_of(function)} takes {signature}"
        ) from None
    return Callback(function, _is_async(function))


def _is_async(function: Callable[..., Any]) -> bool:
    while isinstance(function, partial):
        function = function.func
    forms = (function, getattr(function, "__call__", None))  # noqa: B004 -- an object may have a call that is async
    # The call of a generator function runs nothing of it, so nobody would ever see what it was meant to do.
    if any(map(inspect.isasyncgenfunction, forms)):
        raise TypeError(f"{name_of(function)} is an async generator; a callback is an async or a plain function")
    if any(map(inspect.isgeneratorfunction, forms)):
        raise TypeError(f"{name_of(function)} is a generator; a callback is an async or a plain function")
    return any(map(inspect.iscoroutinefunction, forms))
