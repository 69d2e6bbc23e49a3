"""Handlers and how they are given to a route: three styles, and every mistake named where it is made."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio
import trio.testing

from support.rawclient import serving
from trio_crowws import App, CloseInfo, Connection, Handler, Request, Route
from trio_crowws.testing import Refused, connect, shake_hands

CALLBACKS = ["on_accept", "on_open", "on_message", "on_text", "on_binary", "on_ping", "on_pong", "on_error", "on_close"]
OF_ONE = {"on_accept", "on_open"}
CHAIN = ["onaccept", "onopen", "onmessage", "onerror", "onclose"]
SIGNATURES = {
    "on_accept": "request",
    "on_open": "conn",
    "on_message": "conn, message",
    "on_text": "conn, message",
    "on_binary": "conn, message",
    "on_ping": "conn, payload",
    "on_pong": "conn, payload",
    "on_error": "conn, error",
    "on_close": "conn, info",
}


def new_route() -> Route:
    return App().websocket("/")


def giver(name: str) -> Callable[[Any], Any]:
    """What gives a function to a new route as the callback `name`, in either spelling."""
    return getattr(new_route(), name)  # type: ignore[no-any-return]


# The styles


async def talk(app: App, log: list[str]) -> list[str]:
    """Connect, say something as text, as bytes and as a ping, and close: what the application has logged."""
    async with connect(app, "/") as peer:
        await peer.ping(b"p")
        await peer.send("text")
        assert await peer.receive() == "text"
        await peer.send(b"bytes")
        assert await peer.receive() == b"bytes"
        await peer.close(4000, "bye")
    return log


EVERYTHING = ["accept /", "open", "ping b'p'", "message 'text'", "message b'bytes'", "close 4000"]


def make_session(log: list[str]) -> App:
    app = App()

    @app.websocket("/")
    async def session(conn: Connection) -> None:
        log.append("open")
        async for message in conn:
            log.append(f"message {message!r}")
            await conn.send(message)

    app.routes[0].on_accept(lambda request: log.append(f"accept {request.path}"))
    app.routes[0].on_ping(lambda conn, payload: log.append(f"ping {payload!r}"))
    app.routes[0].on_close(lambda conn, info: log.append(f"close {info.code}"))
    return app


def make_plain(log: list[str]) -> App:
    app = App()

    def accept(request: Request) -> None:
        log.append(f"accept {request.path}")

    def message(conn: Connection, data: str | bytes) -> None:
        log.append(f"message {data!r}")
        conn.send_nowait(data)

    route = app.websocket("/").onaccept(accept).onopen(lambda conn: log.append("open")).onmessage(message)
    route.onclose(lambda conn, info: log.append(f"close {info.code}"))
    route.on_ping(lambda conn, payload: log.append(f"ping {payload!r}"))
    return app


def make_async(log: list[str]) -> App:
    app = App()
    route = app.websocket("/")

    @route.on_accept
    async def accept(request: Request) -> None:
        log.append(f"accept {request.path}")

    @route.on_open
    async def opened(conn: Connection) -> None:
        await trio.lowlevel.checkpoint()
        log.append("open")

    @route.on_message
    async def message(conn: Connection, data: str | bytes) -> None:
        log.append(f"message {data!r}")
        await conn.send(data)

    @route.on_ping
    async def ping(conn: Connection, payload: bytes) -> None:
        await trio.lowlevel.checkpoint()
        log.append(f"ping {payload!r}")

    @route.on_close
    async def closed(conn: Connection, info: CloseInfo) -> None:
        await trio.lowlevel.checkpoint()
        log.append(f"close {info.code}")

    return app


class Everything(Handler):
    """All of it as methods, plain and async ones mixed."""

    log: list[str] = []  # noqa: RUF012 -- the log of the test that runs

    async def on_accept(self, request: Request) -> None:
        self.log.append(f"accept {request.path}")

    def on_open(self, conn: Connection) -> None:
        self.log.append("open")

    async def on_text(self, conn: Connection, text: str) -> None:
        self.log.append(f"message {text!r}")
        await conn.send_text(text)

    def on_binary(self, conn: Connection, data: bytes) -> None:
        self.log.append(f"message {data!r}")
        conn.send_nowait(data)

    def on_ping(self, conn: Connection, payload: bytes) -> None:
        self.log.append(f"ping {payload!r}")

    async def on_close(self, conn: Connection, info: CloseInfo) -> None:
        self.log.append(f"close {info.code}")


def make_class(log: list[str]) -> App:
    Everything.log = log
    app = App()
    app.websocket("/")(Everything)
    return app


def make_object(log: list[str]) -> App:
    Everything.log = log
    app = App()
    app.websocket("/")(Everything())
    return app


@pytest.mark.parametrize("make", [make_session, make_plain, make_async, make_class, make_object])
async def test_every_style(make: Callable[[list[str]], App]) -> None:
    """Session, chain, decorators, class and object hear of the same events in the same order."""
    log: list[str] = []
    assert await talk(make(log), log) == EVERYTHING


async def test_a_class_is_made_for_each_connection() -> None:
    """A Handler class is called once for each connection, so its attributes belong to that one."""
    made: list[Handler] = []
    app = App()

    @app.websocket("/")
    class Counter(Handler):
        def __init__(self) -> None:
            self.count = 0
            made.append(self)

        def on_message(self, conn: Connection, message: str | bytes) -> None:
            self.count += 1
            conn.send_nowait(str(self.count))

    assert made == []
    async with connect(app) as ann, connect(app) as bob:
        for peer, count in ((ann, "1"), (ann, "2"), (bob, "1"), (ann, "3")):
            await peer.send("")
            assert await peer.receive() == count
    assert len(made) == 2


async def test_an_object_is_shared() -> None:
    """A Handler object serves all connections of its route."""

    class Counter(Handler):
        count = 0

        def on_message(self, conn: Connection, message: str | bytes) -> None:
            self.count += 1
            conn.send_nowait(str(self.count))

    app = App()
    app.websocket("/")(Counter())
    async with connect(app) as ann, connect(app) as bob:
        for peer, count in ((ann, "1"), (bob, "2"), (ann, "3")):
            await peer.send("")
            assert await peer.receive() == count


async def test_a_constructor_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """An exception in the constructor of a Handler class is a 500, and an error in the log."""
    app = App()

    @app.websocket("/")
    class Broken(Handler):
        def __init__(self) -> None:
            raise RuntimeError("the secret")

        def on_open(self, conn: Connection) -> None: ...

    with pytest.raises(Refused) as caught:
        async with connect(app):
            pass
    assert (caught.value.status, caught.value.body) == (500, b"internal server error\n")
    assert "the secret" in caplog.text


async def test_inherited_callbacks() -> None:
    """A Handler inherits the callbacks of its bases, and may override them."""
    log: list[str] = []

    class Base(Handler):
        def on_open(self, conn: Connection) -> None:
            log.append("base open")

        def on_close(self, conn: Connection, info: CloseInfo) -> None:
            log.append("base close")

    class Derived(Base):
        def on_open(self, conn: Connection) -> None:
            super().on_open(conn)
            log.append("derived open")

    app = App()
    app.websocket("/")(Derived)
    async with connect(app):
        pass
    assert log == ["base open", "derived open", "base close"]


# What comes back


def test_the_chain_returns_the_route() -> None:
    """The Crow spellings return the route."""
    route = new_route()
    for name in CHAIN:
        assert getattr(route, name)(lambda first, second=None: None) is route


@pytest.mark.parametrize("name", CALLBACKS)
def test_the_decorators_return_the_function(name: str) -> None:
    """The Python spellings return the function that they got."""

    def function(first: object, second: object = None) -> None: ...

    assert giver(name)(function) is function


def test_a_route_returns_its_handler() -> None:
    """A route that is called returns what it was given, be it a function, a class or an object."""

    async def session(conn: Connection) -> None: ...

    handler = Everything()
    assert new_route()(session) is session
    assert new_route()(Everything) is Everything
    assert new_route()(handler) is handler


# Signatures


class Callable_:  # noqa: N801
    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


def good_functions(count: int) -> list[Any]:
    """Everything that can be called with `count` arguments."""

    def exact1(a: Any) -> None: ...
    def exact2(a: Any, b: Any) -> None: ...
    async def async1(a: Any) -> None: ...
    async def async2(a: Any, b: Any) -> None: ...
    def more(a: Any, b: Any = 1, *rest: Any, c: Any = 2, **others: Any) -> None: ...
    def extra(a: Any, b: Any, c: Any) -> None: ...

    class Holder:
        def method1(self, a: Any) -> None: ...
        def method2(self, a: Any, b: Any) -> None: ...
        @staticmethod
        def static1(a: Any) -> None: ...
        @staticmethod
        def static2(a: Any, b: Any) -> None: ...
        @classmethod
        def class1(cls, a: Any) -> None: ...
        @classmethod
        def class2(cls, a: Any, b: Any) -> None: ...

    two = count == 2
    return [
        exact2 if two else exact1,
        async2 if two else async1,
        more,
        lambda *args: None,
        functools.partial(extra, 1) if two else functools.partial(extra, 1, 2),
        functools.partial(async2 if two else async1),
        Holder().method2 if two else Holder().method1,
        Holder.static2 if two else Holder.static1,
        Holder.class2 if two else Holder.class1,
        Callable_(exact1),
        print,
    ]


def bad_functions(count: int) -> list[Any]:
    """What cannot be called with `count` arguments."""

    def none() -> None: ...
    def one(a: Any) -> None: ...
    def two(a: Any, b: Any) -> None: ...
    def three(a: Any, b: Any, c: Any) -> None: ...
    def keyword(*, a: Any, b: Any = 1) -> None: ...
    def needs_keyword(*args: Any, a: Any) -> None: ...
    async def none_async() -> None: ...

    class Holder:
        def none(self) -> None: ...
        def three(self, a: Any, b: Any, c: Any) -> None: ...

    wrong = one if count == 2 else two
    bound = (1, 2) if count == 2 else (1,)
    return [
        none,
        wrong,
        three,
        keyword,
        needs_keyword,
        none_async,
        lambda: None,
        functools.partial(two if count == 2 else one, *bound),
        Holder().none,
        Holder().three,
    ]


@pytest.mark.parametrize("name", [*CALLBACKS, *CHAIN])
def test_whatever_can_be_called_is_a_callback(name: str) -> None:
    """Functions, methods, partials and callable objects are taken, as long as they can be called with the arguments."""
    for function in good_functions(1 if name in (*OF_ONE, "onaccept", "onopen") else 2):
        giver(name)(function)


@pytest.mark.parametrize("name", [*CALLBACKS, *CHAIN])
def test_a_wrong_signature_is_refused(name: str) -> None:
    """A function that cannot be called with what the callback gets is a TypeError that shows both."""
    python_name = name if name in CALLBACKS else name.replace("on", "on_")
    for function in bad_functions(1 if python_name in OF_ONE else 2):
        with pytest.raises(TypeError) as caught:
            giver(name)(function)
        message = str(caught.value)
        assert message.startswith(f"{python_name} is called with ({SIGNATURES[python_name]}), but ")
        assert " takes (" in message


@pytest.mark.parametrize("name", [*CALLBACKS, *CHAIN])
@pytest.mark.parametrize("value", [None, "function", 5, ["f"]])
def test_a_callback_is_a_function(name: str, value: Any) -> None:
    """What cannot be called is a TypeError that names the callback and the type."""
    with pytest.raises(TypeError, match=rf"on_?\w+ must be a function, not {type(value).__name__}"):
        giver(name)(value)


async def async_generator(first: Any, second: Any = None) -> AsyncIterator[None]:
    yield


def generator(first: Any, second: Any = None) -> Iterator[None]:
    yield


class AsyncGeneratorObject:
    async def __call__(self, first: Any, second: Any = None) -> AsyncIterator[None]:
        yield


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize(
    "function", [async_generator, generator, functools.partial(async_generator), AsyncGeneratorObject()]
)
def test_a_generator_is_no_callback(name: str, function: Any) -> None:
    """A function with a yield would never run, so it is a TypeError."""
    with pytest.raises(TypeError, match="generator; a callback is an async or a plain function"):
        giver(name)(function)


async def test_async_callable_objects_and_partials() -> None:
    """An object whose call is async, and a partial of an async function, are awaited."""
    log: list[str] = []

    class Opened:
        async def __call__(self, conn: Connection) -> None:
            await trio.lowlevel.checkpoint()
            log.append("open")

    async def closed(prefix: str, conn: Connection, info: CloseInfo) -> None:
        await trio.lowlevel.checkpoint()
        log.append(prefix)

    app = App()
    app.websocket("/").onopen(Opened()).onclose(functools.partial(closed, "closed"))
    async with connect(app):
        pass
    assert log == ["open", "closed"]


# Sessions


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda conn: None, "a session handler must be an async function, but .* is a plain one"),
        (print, "a session handler must be an async function"),
        (async_generator, "async_generator is an async generator"),
        (None, "a session handler must be a function, not NoneType"),
        ("echo", "a session handler must be a function, not str"),
        (bad_functions(1)[5], r"a session handler is called with \(conn\), but .* takes \(\)"),
        (int, "int is a class but no subclass of Handler"),
        (object(), "a session handler must be a function, not object"),
    ],
)
def test_a_session_is_an_async_function(function: Any, message: str) -> None:
    """A session that is not an async function of one parameter is a TypeError that says so."""
    with pytest.raises(TypeError, match=message):
        new_route()(function)


@pytest.mark.parametrize("name", ["on_open", "on_message", "on_text", "on_binary"])
def test_a_session_excludes_message_callbacks(name: str) -> None:
    """A session and callbacks for opening or messages do not go together, in either order."""

    async def session(conn: Connection) -> None: ...

    route = new_route()
    route(session)
    with pytest.raises(ValueError, match=rf"{name} does not go together with the session handler .*session"):
        getattr(route, name)(lambda first, second=None: None)
    route = new_route()
    getattr(route, name)(lambda first, second=None: None)
    with pytest.raises(ValueError, match="either a session handler or on_open/on_message callbacks, not both"):
        route(session)


@pytest.mark.parametrize("name", ["on_accept", "on_ping", "on_pong", "on_error", "on_close"])
def test_a_session_goes_with_the_other_callbacks(name: str) -> None:
    """Beside a session a route can have all callbacks that the session does not replace."""

    async def session(conn: Connection) -> None: ...

    route = new_route()
    route(session)
    getattr(route, name)(lambda first, second=None: None)
    route = new_route()
    getattr(route, name)(lambda first, second=None: None)
    route(session)


# Twice


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_is_set_once(name: str) -> None:
    """A callback that is there already is not replaced in silence."""
    route = new_route()

    def first(a: Any, b: Any = None) -> None: ...

    getattr(route, name)(first)
    with pytest.raises(ValueError, match=rf"{name} is already set to .*first"):
        getattr(route, name)(lambda a, b=None: None)


@pytest.mark.parametrize("names", [("on_message", "on_text"), ("on_message", "on_binary")])
def test_a_message_has_one_callback(names: tuple[str, str]) -> None:
    """on_message does not go together with on_text or on_binary, in either order."""
    for first, second in (names, names[::-1]):
        route = new_route()
        getattr(route, first)(lambda conn, message: None)
        with pytest.raises(ValueError, match=f"{second} is already set"):
            getattr(route, second)(lambda conn, message: None)


async def session(conn: Connection) -> None: ...


FIRST: list[Any] = [session, Everything, Everything()]


@pytest.mark.parametrize("first", FIRST, ids=["session", "class", "object"])
@pytest.mark.parametrize("second", [session, Everything, Everything()], ids=["session", "class", "object"])
def test_a_route_has_one_handler(first: Any, second: Any) -> None:
    """A second handler on one route is a ValueError."""
    route = new_route()
    route(first)
    with pytest.raises(ValueError, match=r"already|either a session handler or"):
        route(second)


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_handler_excludes_callbacks(name: str) -> None:
    """A Handler class excludes further callbacks, and callbacks exclude it."""
    route = new_route()
    route(Everything)
    with pytest.raises(ValueError, match="already has the handler class Everything"):
        getattr(route, name)(lambda a, b=None: None)
    for handler in (Everything, Everything()):
        route = new_route()
        getattr(route, name)(lambda a, b=None: None)
        with pytest.raises(ValueError, match="already has callbacks or a session handler"):
            route(handler)


# Handler classes


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("on_mesage", "on_message"),
        ("on_connect", None),
        ("on_closed", "on_close"),
        ("on_", None),
        ("on_Open", "on_open"),
    ],
)
@pytest.mark.parametrize("shared", [False, True])
def test_an_unknown_callback_is_refused(name: str, suggestion: str | None, shared: bool) -> None:
    """A method whose name begins with on_ and is no callback is a TypeError, with a suggestion if one is near."""
    cls = type("Chat", (Handler,), {name: lambda self, conn: None, "on_open": lambda self, conn: None})
    with pytest.raises(TypeError) as caught:
        new_route()(cls() if shared else cls)
    message = str(caught.value)
    assert message.startswith(f"Chat has an unknown callback {name}")
    assert (f"did you mean {suggestion}?" in message) == (suggestion is not None)
    assert message.endswith("The callbacks are " + ", ".join(CALLBACKS))


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_wrong_method_is_refused(name: str) -> None:
    """A method that cannot be called with what its callback gets is a TypeError that names class and method."""
    for method in (lambda self: None, lambda self, a, b, c: None, lambda: None):
        cls = type("Chat", (Handler,), {name: method})
        with pytest.raises(TypeError, match=rf"Chat.{name} is called with \(self, {SIGNATURES[name]}\), but"):
            new_route()(cls)
    with pytest.raises(TypeError, match=rf"Chat.{name} must be a function, not NoneType"):
        new_route()(type("Chat", (Handler,), {name: None}))


async def test_static_and_class_methods() -> None:
    """Callbacks of a Handler may be static methods and class methods."""
    log: list[str] = []

    class Chat(Handler):
        @staticmethod
        async def on_open(conn: Connection) -> None:
            log.append("open")

        @classmethod
        def on_close(cls, conn: Connection, info: CloseInfo) -> None:
            log.append(f"close {cls.__name__}")

    for handler in (Chat, Chat()):
        app = App()
        app.websocket("/")(handler)
        async with connect(app):
            pass
    assert log == ["open", "close Chat"] * 2


def test_a_class_that_needs_arguments_is_refused() -> None:
    """A Handler class whose constructor needs arguments is a TypeError; an object of it is fine."""

    class Chat(Handler):
        def __init__(self, lobby: object) -> None:
            self.lobby = lobby

        def on_open(self, conn: Connection) -> None: ...

    with pytest.raises(TypeError, match=r"Chat is made once for each connection, without arguments: .*lobby"):
        new_route()(Chat)
    new_route()(Chat("lobby"))


def test_a_class_with_defaults_is_taken() -> None:
    """A constructor may have parameters with defaults."""

    class Chat(Handler):
        def __init__(self, lobby: object = None, *, more: int = 1) -> None: ...

        def on_open(self, conn: Connection) -> None: ...

    new_route()(Chat)


@pytest.mark.parametrize("shared", [False, True])
def test_a_handler_without_callbacks_is_refused(shared: bool) -> None:
    """A Handler that defines nothing, or only what is no use alone, is a ValueError."""

    class Nothing(Handler):
        def on_error(self, conn: Connection, error: Exception) -> None: ...

        def message(self, conn: Connection) -> None: ...

    for cls in (Handler, Nothing):
        with pytest.raises(ValueError, match=f"{cls.__name__} defines no callback"):
            new_route()(cls() if shared else cls)


def test_both_forms_of_messages_in_a_class() -> None:
    """A Handler with on_message and on_text is a ValueError."""

    class Chat(Handler):
        def on_message(self, conn: Connection, message: str | bytes) -> None: ...

        def on_text(self, conn: Connection, message: str) -> None: ...

    with pytest.raises(ValueError, match="on_text is already set"):
        new_route()(Chat)


def test_another_class_is_refused() -> None:
    """A class that is no Handler is a TypeError."""

    class Chat:
        def on_open(self, conn: Connection) -> None: ...

    with pytest.raises(TypeError, match="Chat is a class but no subclass of Handler"):
        new_route()(Chat)


# Routes without a handler


def half_registered() -> list[App]:
    """Applications with a route that nobody would look after."""
    nothing, only_accept, only_error = App(), App(), App()
    nothing.websocket("/chat")
    only_accept.websocket("/chat").onaccept(lambda request: True)
    only_error.websocket("/chat").onerror(lambda conn, error: None)
    return [nothing, only_accept, only_error]


@pytest.mark.parametrize("number", range(3))
async def test_a_route_without_a_handler(number: int) -> None:
    """A route without a handler is a ValueError before anything listens, however the application is served."""
    app = half_registered()[number]
    app.websocket("/fine")(session)
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    near, far = trio.testing.memory_stream_pair()
    ways: list[Callable[[], Awaitable[None]]] = [
        lambda: app.serve("127.0.0.1", 0),
        lambda: app.serve_listeners([listener]),
        lambda: app.serve_stream(far),
    ]
    for serve in ways:
        with pytest.raises(ValueError, match="the route '/chat' has no handler; give it a session function"):
            with trio.fail_after(2):
                await serve()
    # What was handed over is still the caller's.
    assert listener.socket.getsockname()[1] == port
    await listener.aclose()
    with trio.fail_after(2):
        await far.send_all(b"x")
    assert await near.receive_some(1) == b"x"


def test_run_refuses_a_route_without_a_handler() -> None:
    """App.run raises the ValueError as it is."""
    with pytest.raises(ValueError, match="the route '/chat' has no handler"):
        half_registered()[0].run("127.0.0.1", 0)


async def test_a_route_for_watchers_only() -> None:
    """A route with on_close alone is complete; what the peer says is read and dropped."""
    closed: list[CloseInfo] = []
    app = App()
    app.websocket("/").onclose(lambda conn, info: closed.append(info))
    async with connect(app) as peer:
        await peer.send("anybody?")
        await peer.close(4001)
    assert [info.code for info in closed] == [4001]


async def test_a_route_that_comes_late() -> None:
    """A route that is registered while its application is served already is not served: 503."""
    app = App()
    app.websocket("/")(session)
    async with serving(app) as server:
        app.websocket("/late")(session)
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            with pytest.raises(Refused) as caught:
                await shake_hands(stream, "/late")
        assert caught.value.status == 503
