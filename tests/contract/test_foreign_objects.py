"""Objects of the application's, in every place where the framework touches one, that fail in every way there is.

However an exception, a result, a function, a stream or a listener fails when it is looked at: the connection that it
belongs to ends with 1011, or the request with 500, and has its `on_close` once. Another connection lives, and so does
the server.
"""

from __future__ import annotations

import functools
import logging
import zlib
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NoReturn

import pytest
import trio
import trio.testing

from support.servers import KINDS, STYLES, Kind, MemoryListener, Recorder, Site, Style, serving
from trio_crowws import (
    Accept,
    App,
    CloseInfo,
    Connection,
    ConnectionClosed,
    ConnectionClosedError,
    Handler,
    HandlerError,
    HandshakeError,
    ProtocolError,
    Reject,
    Response,
    connect_stream,
    keep_connected,
)
from trio_crowws import connect as connect_client
from trio_crowws._admission import Membership
from trio_crowws._foreign import leaves_of, members_of
from trio_crowws._session import lifecycle
from trio_crowws.testing import PeerClosed, Refused, shake_hands

# How an object fails


def endless() -> NoReturn:
    endless()


def value_error() -> NoReturn:
    raise ValueError("x\nINFO trio_crowws forged")


def memory_error() -> NoReturn:
    raise MemoryError


def recursion_error() -> NoReturn:
    raise RecursionError


FAILURES: dict[str, Callable[[], NoReturn]] = {
    "ValueError": value_error,
    "RecursionError": recursion_error,
    "MemoryError": memory_error,
    "endless": endless,
}


@pytest.fixture(params=FAILURES)
def fail(request: pytest.FixtureRequest) -> Callable[[], NoReturn]:
    """Each way to fail."""
    return FAILURES[request.param]


@pytest.fixture
def some(request: pytest.FixtureRequest) -> Callable[[], NoReturn]:
    """One of the ways, another one for each of many tests."""
    return list(FAILURES.values())[zlib.crc32(request.node.name.encode()) % len(FAILURES)]


def bad(base: Any, fail: Callable[[], NoReturn], *names: str, **namespace: Any) -> Any:
    """A class whose methods and attributes of these names fail, whatever they are asked."""
    for name in names:
        special = name.startswith("__") and name not in ATTRIBUTES
        function = (lambda *_, **__: fail()) if special or name in METHODS else property(lambda self: fail())
        namespace[name] = function
    return type("Bad", base if isinstance(base, tuple) else (base,), namespace)


def made(thing: Any) -> Any:
    """The thing; of a class, an object that nothing was done with but making it."""
    make: Any = thing
    return make.__new__(make) if isinstance(thing, type) else thing


METHODS = ("derive", "split", "subgroup", "items", "keys", "receive_some", "send_all", "aclose", "send_eof", "accept")
ATTRIBUTES = ("__class__", "__cause__", "__context__", "__traceback__", "__notes__", "__suppress_context__")
TEXT = ("__repr__", "__str__", "__format__")
VALUE = ("__bool__", "__len__", "__eq__", "__ne__", "__hash__")
PARTS = ("derive", "split", "subgroup", "exceptions", "message")


@asynccontextmanager
async def surviving(app: App, kind: Kind = "memory") -> AsyncGenerator[Site]:
    """Serve `app`. A connection lives through the block; then it, new ones and the server are still there."""

    @app.websocket("/other")
    async def other(conn: Connection) -> None:
        async for message in conn:
            await conn.send(message)

    async with serving(app, kind) as site, site.connect("/other") as one:
        await one.send("before")
        assert await one.receive() == "before"
        yield site
        await one.send("after")
        assert await one.receive() == "after"
        async with site.connect("/other") as two:
            await two.send("new")
            assert await two.receive() == "new"
        assert not site.ended.is_set()


# Exceptions


EXCEPTIONS: dict[str, Callable[[Callable[[], NoReturn]], Exception]] = {
    "text": lambda fail: bad(ValueError, fail, *TEXT)("text"),
    "argument": lambda fail: ValueError(bad(object, fail, *TEXT)()),
    "value": lambda fail: bad(ValueError, fail, *VALUE)("value"),
    "class": lambda fail: bad(ValueError, fail, "__class__")("class"),
    "attributes": lambda fail: bad(ValueError, fail, *ATTRIBUTES, "args")("attributes"),
    "unchangeable": lambda fail: bad(ValueError, fail, "__setattr__", "__delattr__")("unchangeable"),
    "getattribute": lambda fail: bad(ValueError, fail, "__getattribute__")("getattribute"),
    "group": lambda fail: bad(ExceptionGroup, fail, *PARTS, *TEXT, *VALUE)("group", [ValueError(), TypeError()]),
    "group of one": lambda fail: bad(ExceptionGroup, fail, *PARTS, *TEXT, *VALUE)("group", [ValueError()]),
    "group in a group": lambda fail: ExceptionGroup(
        "", [bad(ExceptionGroup, fail, *PARTS)("group", [ValueError(), TypeError()]), KeyError()]
    ),
    "code": lambda fail: bad(HandlerError, fail, "code", *TEXT)("code"),
    "own code": lambda fail: bad(ProtocolError, fail, *TEXT)(
        bad(int, fail, "__int__", "__index__", *TEXT)(4000), "own"
    ),
    "code that is none": lambda fail: ProtocolError("no code", "code that is none"),  # type: ignore[arg-type]
    "connection_id": lambda fail: made(bad(ConnectionClosedError, fail, "connection_id", *TEXT)),
    "reject": lambda fail: bad(Reject, fail, *TEXT)(400),
}

INFO = CloseInfo(1000, "", True, "local", None, None, None)


@pytest.mark.parametrize("style", ["session", "sync"])
@pytest.mark.parametrize("name", EXCEPTIONS)
async def test_an_exception_of_a_handler(name: str, style: Style, fail: Callable[[], NoReturn]) -> None:
    """It ends its connection with 1011, and is what `on_error` gets."""
    await check_exception(EXCEPTIONS[name](fail), style)


@pytest.mark.parametrize("style", [style for style in STYLES if style not in ("session", "sync")])
@pytest.mark.parametrize("name", EXCEPTIONS)
async def test_an_exception_in_the_other_styles(name: str, style: Style, some: Callable[[], NoReturn]) -> None:
    """The same."""
    await check_exception(EXCEPTIONS[name](some), style)


@pytest.mark.parametrize("style", ["session", "sync"])
@pytest.mark.parametrize("kind", KINDS)
async def test_an_exception_over_each_transport(kind: Kind, style: Style) -> None:
    """The same, however the bytes come."""
    await check_exception(EXCEPTIONS["argument"](endless), style, kind)


async def check_exception(error: Exception, style: Style, kind: Kind = "memory") -> None:
    def message(conn: Connection, message: object) -> None:
        raise error

    app = App()
    recorder = Recorder(app, "/odd", style, hooks={"message": message})
    async with surviving(app, kind) as site, site.connect("/odd") as peer:
        await peer.send("x")
        with pytest.raises(PeerClosed):
            await peer.receive()
        await recorder.wait("close")
        recorder.check()
        [given] = recorder.values("error")
        assert id(given) in map(id, (error, *members_of(error)))
        assert recorder.info.code == 1011


@pytest.mark.parametrize("how", ["open", "error", "close", "ping", "task"])
@pytest.mark.parametrize("name", ["text", "value", "class", "getattribute", "group"])
async def test_an_exception_of_another_callback(name: str, how: str, some: Callable[[], NoReturn]) -> None:
    """The same in every callback and in a task; one in the last two changes nothing any more."""
    error = EXCEPTIONS[name](some)
    closed: list[CloseInfo] = []

    async def raises(conn: Connection, *_: object) -> None:
        raise error

    app = App()
    route = app.websocket("/odd")
    route.on_message(lambda conn, message: conn.close_nowait(4000) if message == "close" else 1 / 0)
    if how == "task":
        route.on_open(lambda conn: conn.start_soon(raises, conn))
    elif how != "close":
        getattr(route, f"on_{how}")(raises)

    async def close(conn: Connection, info: CloseInfo) -> None:
        closed.append(info)
        if how == "close":
            raise error

    route.on_close(close)
    async with surviving(app) as site, site.connect("/odd") as peer:
        if how == "ping":
            await peer.send_frame(9, b"x")
        elif how in ("error", "close"):
            await peer.send("fail" if how == "error" else "close")
        with pytest.raises(PeerClosed):
            await peer.receive()
        await trio.testing.wait_all_tasks_blocked()
        [info] = closed
        assert info.code == (1011 if how != "close" else 1005) or info.code == 4000


@pytest.mark.parametrize("how", ["Cancelled", "SystemExit"])
@pytest.mark.parametrize("style", ["session", "async"])
async def test_a_group_of_several_kinds(style: Style, how: str, fail: Callable[[], NoReturn]) -> None:
    """What must pass is taken out of a group that cannot be split, before Trio tries to split it."""
    mixed = bad(BaseExceptionGroup, fail, *PARTS, *TEXT, *VALUE)

    async def message(conn: Connection, message: object) -> None:
        if how == "SystemExit":
            raise mixed("mixed", [SystemExit(3), ValueError()])
        conn.cancel_scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as error:
            raise mixed("mixed", [error, ValueError()]) from None

    app = App()
    recorder = Recorder(app, "/odd", style, hooks={"message": message})

    async def run() -> None:
        async with surviving(app) as site, site.connect("/odd") as peer:
            await peer.send("x")
            with suppress(PeerClosed, trio.BrokenResourceError):
                await peer.receive()
            await recorder.wait("close")

    if how == "SystemExit":
        with pytest.raises((SystemExit, BaseExceptionGroup)):
            await run()
    else:
        await run()
    assert recorder.info.code == 1011
    assert type(recorder.info.error) is ValueError
    recorder.check()


async def test_a_connection_that_has_closed_in_a_class_of_its_own(fail: Callable[[], NoReturn]) -> None:
    """Whose connection a `ConnectionClosed` is about is found out without an accident."""
    kind = bad(ConnectionClosedError, fail, *TEXT)
    odd = bad(str, fail, *VALUE)

    async def message(conn: Connection, message: object) -> None:
        raise kind(INFO, odd(conn.id))

    app = App()
    recorder = Recorder(app, "/odd", "session", hooks={"message": message})
    async with surviving(app) as site, site.connect("/odd") as peer:
        await peer.send("x")
        with pytest.raises(PeerClosed):
            await peer.receive()
        await recorder.wait("close")
        assert recorder.info.code == 1011


# Results and functions


@pytest.mark.parametrize("kind", ["tcp", "memory"])
async def test_a_result_that_nobody_asked_for(kind: Kind, fail: Callable[[], NoReturn]) -> None:
    """What a plain callback returns is not looked at, unless it can be awaited."""
    names = ("__class__", "__getattribute__", "__getattr__", *TEXT, *VALUE)
    app = App()
    route = app.websocket("/odd")
    route.on_open(lambda conn: bad(object, fail, *names)())
    route.on_close(lambda conn, info: bad(object, fail, *names)())

    @route.on_message
    def on_message(conn: Connection, message: str) -> object:
        conn.send_nowait(message)
        return bad(object, fail, *names)()

    async with surviving(app, kind) as site, site.connect("/odd") as peer:
        for text in ("a", "b"):
            await peer.send(text)
            assert await peer.receive() == text


@pytest.mark.parametrize("what", ["awaitable", "coroutine that runs"])
async def test_a_result_that_can_be_awaited(what: str, fail: Callable[[], NoReturn]) -> None:
    """It is refused, whatever it is."""

    async def stubborn() -> None:
        try:
            await trio.lowlevel.cancel_shielded_checkpoint()
        finally:
            fail()

    def result() -> Any:
        if what == "awaitable":
            return bad(object, fail, "__await__", "__class__", "close", *TEXT)()
        coroutine = stubborn()
        coroutine.send(None)
        return coroutine

    app = App()
    recorder = Recorder(app, "/odd", "sync", hooks={"message": lambda conn, message: result()})
    async with surviving(app) as site, site.connect("/odd") as peer:
        await peer.send("x")
        with pytest.raises(PeerClosed):
            await peer.receive()
        await recorder.wait("close")
        assert recorder.info.code == 1011


@pytest.mark.parametrize("style", ["plain", "async"])
async def test_a_callback_that_is_an_object(style: str, fail: Callable[[], NoReturn]) -> None:
    """What it is called is found out without it."""

    def plain(self: object, conn: Connection, message: object) -> object:
        return bad(object, fail, "__await__")()

    async def a_coroutine(self: object, conn: Connection, message: object) -> None:
        raise ValueError

    call = plain if style == "plain" else a_coroutine
    app = App()
    closed: list[int] = []
    route = app.websocket("/odd")
    function = bad(object, fail, *TEXT, __call__=call)()
    route.on_message(function)
    route.on_close(lambda conn, info: closed.append(info.code))
    async with surviving(app) as site, site.connect("/odd") as peer:
        await peer.send("x")
        with pytest.raises(PeerClosed):
            await peer.receive()
        await trio.testing.wait_all_tasks_blocked()
    assert closed == [1011]


async def test_start_soon(fail: Callable[[], NoReturn], autojump_clock: trio.testing.MockClock) -> None:
    """The name of a task is found without the object that its method belongs to, and nobody waits for it in the end."""

    async def run(self: object) -> None:
        done.append("run")

    kind = bad(object, fail, *TEXT, *VALUE, run=run, __call__=run)
    done: list[str] = []
    app = App()

    async def opened(conn: Connection) -> None:
        conn.start_soon(kind().run)
        conn.start_soon(kind())
        conn.start_soon(functools.partial(kind().run))
        await trio.testing.wait_all_tasks_blocked()

    recorder = Recorder(app, "/odd", hooks={"open": opened})
    async with surviving(app) as site:
        async with site.connect("/odd") as peer:
            await recorder.wait("open")
            await trio.testing.wait_all_tasks_blocked()
            assert done == ["run"] * 3
            start = trio.current_time()
            await peer.close()
        await recorder.wait("close")
        assert trio.current_time() == start


async def test_a_task_that_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch, fail: Callable[[], NoReturn], autojump_clock: trio.testing.MockClock
) -> None:
    """What `start_soon` raises goes to its caller, and nobody waits for the task afterwards."""

    def opened(conn: Connection) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(type(conn._nursery), "start_soon", lambda *_, **__: fail())
            with pytest.raises((ValueError, MemoryError, RecursionError)):
                conn.start_soon(trio.sleep_forever)

    app = App()
    recorder = Recorder(app, "/odd", "sync", hooks={"open": opened})
    async with surviving(app) as site:
        async with site.connect("/odd") as peer:
            await recorder.wait("open")
            start = trio.current_time()
            await peer.close()
        await recorder.wait("close")
        assert trio.current_time() == start


@pytest.mark.parametrize("call", ["send", "publish", "start_soon", "join", "send_json", "close"])
async def test_an_argument(call: str, fail: Callable[[], NoReturn]) -> None:
    """What a method of the connection cannot take goes to its caller as an exception, and no further."""
    thing = bad(object, fail, "__class__", "__iter__", *TEXT, *VALUE)()
    calls: dict[str, Callable[[Connection], Any]] = {
        "send": lambda conn: conn.send_nowait(thing),
        "publish": lambda conn: app.publish("room", "x", exclude=thing),
        "start_soon": lambda conn: conn.start_soon(thing),
        "join": lambda conn: conn.join(thing),
        "send_json": lambda conn: conn.send_json(bad(dict, fail, "items", *VALUE)(a=1)),
        "close": lambda conn: conn.close_nowait(thing, thing),
    }

    async def message(conn: Connection, message: object) -> None:
        result = calls[call](conn)
        if call == "send_json":
            await result
        await trio.sleep_forever()

    app = App()
    recorder = Recorder(app, "/odd", hooks={"message": message})
    async with surviving(app) as site, site.connect("/odd") as peer:
        await peer.send("x")
        with pytest.raises(PeerClosed):
            await peer.receive()
        await recorder.wait("close")
        assert recorder.info.code == 1011


# Before the 101, and HTTP


async def refused(site: Site, path: str = "/odd") -> int:
    with pytest.raises(Refused) as caught:
        async with site.connect(path):
            pass
    return caught.value.status


ANSWERS: dict[str, Callable[[Callable[[], NoReturn]], object]] = {
    "object": lambda fail: bad(object, fail, "__class__", *TEXT, *VALUE)(),
    "reject": lambda fail: bad(Reject, fail, "status", "headers", "body", "__setattr__", *TEXT),
    "reject without a body": lambda fail: bad(Reject, fail, "body", __init__=lambda self: None),
    "accept": lambda fail: bad(Accept, fail, "subprotocol", "headers", "userdata", "__class__"),
    "subprotocol": lambda fail: Accept(subprotocol=bad(str, fail, *TEXT, *VALUE)("x")),
    "lying": lambda fail: bad(object, fail, __class__=property(lambda self: Reject))(),
}


@pytest.mark.parametrize("where", ["on_accept", "middleware"])
@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer(name: str, where: str, fail: Callable[[], NoReturn]) -> None:
    """What `on_accept` or a middleware returns that is no answer is a 500."""
    app = App()
    route = app.websocket("/odd").onmessage(lambda conn, message: None)

    def decide(request: Any) -> object:
        return made(ANSWERS[name](fail)) if request.path == "/odd" else None

    if where == "on_accept":
        route.on_accept(decide)
    else:
        app.middleware(decide)
    async with surviving(app) as site:
        assert await refused(site) == 500


@pytest.mark.parametrize("where", ["on_accept", "middleware", "origins", "constructor", "attribute", "page"])
@pytest.mark.parametrize("name", [name for name in EXCEPTIONS if name != "reject"])
async def test_an_exception_before_the_101(name: str, where: str, some: Callable[[], NoReturn]) -> None:
    """It is a 500, whatever it is."""

    def raises(*_: Any) -> Any:
        raise EXCEPTIONS[name](some)

    app = App()
    if where in ("constructor", "attribute"):
        handler = type("Made", (Handler,), {"on_message": lambda self, conn, message: None})
        setattr(handler, "__init__" if where == "constructor" else "on_text", raises)
        if where == "attribute":
            del handler.on_text  # type: ignore[attr-defined]
            handler.__getattribute__ = raises  # type: ignore[method-assign]
        app.websocket("/odd")(handler)
    elif where == "page":
        app.http("/odd")(raises)
    else:
        route = app.websocket("/odd", **({"origins": raises} if where == "origins" else {}))
        route.on_message(lambda conn, message: None)
        if where == "on_accept":
            route.on_accept(raises)
        elif where == "middleware":
            app.middleware(lambda request: raises() if request.path == "/odd" else None)
    async with surviving(app) as site:
        assert await refused(site) == 500


@pytest.mark.parametrize("name", ["status", "headers", "text", "no status", "bad header"])
async def test_a_handshake_error_of_the_application(name: str, fail: Callable[[], NoReturn]) -> None:
    """A callable `origins` may refuse by a HandshakeError; with one that cannot be sent it is a 500."""
    errors: dict[str, Callable[[], Exception]] = {
        "status": lambda: made(bad(HandshakeError, fail, "status", "__setattr__")),
        "headers": lambda: made(bad(HandshakeError, fail, "headers", *TEXT)),
        "text": lambda: bad(HandshakeError, fail, *TEXT)(403, "x"),
        "no status": lambda: HandshakeError(9999, "x"),
        "bad header": lambda: HandshakeError(403, "x", [("A", "b\r\nc: d")]),
    }

    def raises(request: Any) -> bool:
        raise errors[name]()

    app = App()
    app.websocket("/odd", origins=raises).onmessage(lambda conn, message: None)
    async with surviving(app) as site:
        assert await refused(site) == (403 if name == "text" else 500)


@pytest.mark.parametrize("name", ["object", "dict", "deep", "response", "text"])
async def test_a_page(name: str, fail: Callable[[], NoReturn]) -> None:
    """What an HTTP route returns that cannot be sent is a 500."""
    deep: list[Any] = []
    for _ in range(200_000):  # newer versions of Python encode thousands of levels
        deep = [deep]
    pages: dict[str, Callable[[], object]] = {
        "object": lambda: bad(object, fail, "__class__", *TEXT, *VALUE)(),
        "dict": lambda: bad(dict, fail, "items", "keys", "__iter__", *VALUE)(a=1),
        "deep": lambda: deep,
        "response": lambda: made(bad(Response, fail, "status", "headers", "body")),
        "text": lambda: bad(str, fail, "encode", "__class__", *VALUE)("x"),
    }
    app = App()
    app.http("/odd")(lambda request: pages[name]())
    async with surviving(app) as site:
        assert await refused(site) == 500


# Streams and listeners


class Wrapped(trio.abc.HalfCloseableStream):
    """A stream that works, in whose place one can fail."""

    def __init__(self, below: trio.abc.HalfCloseableStream) -> None:
        self.below = below

    async def receive_some(self, max_bytes: int | None = None) -> Any:
        return await self.below.receive_some(max_bytes)

    async def send_all(self, data: Any) -> None:
        await self.below.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.below.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self.below.send_eof()

    async def aclose(self) -> None:
        await self.below.aclose()


def wrong(result: object) -> Callable[..., Any]:
    async def receive_some(self: Wrapped, max_bytes: int | None = None) -> object:
        await trio.lowlevel.checkpoint()
        return result

    return receive_some


STREAMS: dict[str, Callable[[Callable[[], NoReturn]], Any]] = {
    "receive_some": lambda fail: bad(Wrapped, fail, "receive_some"),
    "send_all": lambda fail: bad(Wrapped, fail, "send_all"),
    "send_eof": lambda fail: bad(Wrapped, fail, "send_eof"),
    "aclose": lambda fail: bad(Wrapped, fail, "aclose"),
    "class": lambda fail: bad(Wrapped, fail, "__class__"),
    "text": lambda fail: bad(Wrapped, fail, *TEXT, *VALUE, "aclose", "receive_some"),
    "None": lambda fail: bad(Wrapped, fail, receive_some=wrong(None)),
    "str": lambda fail: bad(Wrapped, fail, receive_some=wrong("text")),
    "object": lambda fail: bad(Wrapped, fail, receive_some=wrong(bad(object, fail, *VALUE, "__bytes__")())),
    "error": lambda fail: bad(Wrapped, fail, receive_some=raising(lambda: EXCEPTIONS["text"](fail))),
    "group": lambda fail: bad(Wrapped, fail, receive_some=raising(lambda: EXCEPTIONS["group"](fail))),
}


def raising(make: Callable[[], Exception]) -> Callable[..., Any]:
    async def receive_some(self: Wrapped, max_bytes: int | None = None) -> NoReturn:
        await trio.lowlevel.checkpoint()
        raise make()

    return receive_some


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream(
    name: str, late: bool, some: Callable[[], NoReturn], autojump_clock: trio.testing.MockClock
) -> None:
    """A stream that breaks Trio's rules costs what it carries, before the 101 and behind it."""
    app = App(ping_interval=None)
    recorder = Recorder(app, "/odd")
    async with surviving(app) as site:
        near, far = trio.testing.memory_stream_pair()
        stream: Any = Wrapped(far) if late else STREAMS[name](some)(far)
        site.listener._queue.send_nowait(stream)
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, PeerClosed), trio.move_on_after(60):
            peer = await shake_hands(near, "/odd")
            if late:
                stream.__class__ = STREAMS[name](some)
            await peer.send("x")
            await peer.receive()
            await peer.close()
        await trio.aclose_forcefully(near)
        await trio.sleep(60)
        assert len(recorder.values("open")) == len(recorder.values("close"))
        assert not recorder.values("open") or recorder.conn.close_info is not None
        recorder.check()


class OddListener(MemoryListener):
    """Its first calls fail."""

    def __init__(self, errors: Iterator[Exception]) -> None:
        super().__init__()
        self.errors = errors

    async def accept(self) -> Any:
        for error in self.errors:
            await trio.lowlevel.checkpoint()
            raise error
        return await super().accept()


@pytest.mark.parametrize("name", ["text", "group", "value", "OSError", "closed"])
async def test_a_listener(
    name: str,
    fail: Callable[[], NoReturn],
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """One that fails is tried again, and one that is closed is not; the others go on in any case."""
    app = App()
    Recorder(app)
    good = MemoryListener()
    errors = {"OSError": lambda fail: OSError("full"), "closed": lambda fail: trio.ClosedResourceError(), **EXCEPTIONS}
    kind = bad(OddListener, fail, "aclose", *TEXT)
    odd = kind(errors[name](fail) for _ in range(3))
    async with trio.open_nursery() as nursery:
        server = await nursery.start(functools.partial(app.serve_listeners, [odd, good]))
        for listener in (good, odd) if name != "closed" else (good,):
            peer = await shake_hands(listener.connect(), "/")
            await peer.send("x")
            assert await peer.receive() == "x"
            await peer.close()
        await server.aclose()
    [complaint] = [line for line in map(logging.LogRecord.getMessage, caplog.records) if "accept" in line]
    assert ("is closed" in complaint) is (name == "closed")


# The client


@pytest.mark.parametrize("name", [*EXCEPTIONS, "mixed"])
async def test_the_block_of_a_client(name: str, fail: Callable[[], NoReturn]) -> None:
    """What it raises goes on as it is, and the server is told 1011."""
    app = App()
    recorder = Recorder(app)
    mixed = bad(BaseExceptionGroup, fail, *PARTS, *TEXT, *VALUE)
    error = mixed("", [ValueError(), KeyboardInterrupt()]) if name == "mixed" else EXCEPTIONS[name](fail)
    caught: list[BaseException] = []
    async with serving(app, "tcp") as site:
        try:
            async with connect_client(f"ws://127.0.0.1:{site.server.port}/"):
                raise error
        except BaseException as other:
            caught.append(other)
        await recorder.wait("close")
    assert [id(each) for each in caught] == [id(error)]
    assert recorder.info.code in (1011, 1001)


@pytest.mark.parametrize("name", ["text", "value", "class", "group"])
async def test_a_task_of_a_client(name: str, fail: Callable[[], NoReturn]) -> None:
    """What a task raises is raised when the block is left, as it is."""
    app = App()
    Recorder(app)
    error = EXCEPTIONS[name](fail)

    async def raises() -> None:
        raise error

    caught: list[BaseException] = []
    async with serving(app, "tcp") as site:
        try:
            async with connect_client(f"ws://127.0.0.1:{site.server.port}/") as conn:
                conn.start_soon(raises)
                with suppress(ConnectionClosed):
                    await conn.receive()
        except BaseException as other:
            caught.append(other)
    assert [id(each) for each in caught] == [id(error)]


@pytest.mark.parametrize("name", [*EXCEPTIONS, "mixed"])
async def test_the_handler_of_keep_connected(name: str, some: Callable[[], NoReturn]) -> None:
    """What it raises goes on as it is, too."""
    app = App()
    recorder = Recorder(app)
    mixed = bad(BaseExceptionGroup, some, *PARTS, *TEXT, *VALUE)
    members = [ValueError(), SystemExit()]
    error = mixed("", members) if name == "mixed" else EXCEPTIONS[name](some)
    caught: list[BaseException] = []

    async def handler(conn: Connection) -> None:
        raise error

    async with serving(app, "tcp") as site:
        try:
            await keep_connected(handler, f"ws://127.0.0.1:{site.server.port}/")
        except BaseException as other:
            caught.append(other)
        await recorder.wait("close")
    [found] = caught
    assert id(found) == id(error) or (name == "mixed" and leaves_of(found) == members)
    assert recorder.info.code in (1011, 1001)


async def test_a_handler_of_keep_connected_that_is_late(
    some: Callable[[], NoReturn], autojump_clock: trio.testing.MockClock
) -> None:
    """One that is cancelled because its connection has ended, and makes a group of that, raises the rest of it."""
    odd = bad(BaseExceptionGroup, some, *PARTS, *TEXT, *VALUE)
    own = ValueError()
    app = App()
    Recorder(app, "/", "sync", hooks={"open": lambda conn: conn.close_nowait()})

    async def handler(conn: Connection) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled as error:
            raise odd("", [error, own]) from None

    @asynccontextmanager
    async def connect(url: str) -> AsyncGenerator[Connection]:
        async with connect_stream(site.listener.connect(), url) as conn:
            yield conn

    async with serving(app) as site:
        with pytest.raises(ExceptionGroup) as caught:
            await keep_connected(handler, "ws://test/", connect=connect, grace=1)
    assert caught.value.exceptions == (own,)


# What should not happen


@pytest.mark.parametrize("where", ["enter", "leave", "_begin", "log_start", "_log_end", "_end_children"])
async def test_a_defect_of_the_framework(
    where: str, some: Callable[[], NoReturn], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One in the life of a connection costs that connection, too."""
    place: Any = (
        Connection if where.startswith(("_b", "_e")) else Membership if where in ("enter", "leave") else lifecycle
    )
    works = getattr(place, where)

    def fails(*arguments: Any) -> Any:
        [conn] = [getattr(argument, "_conn", argument) for argument in arguments[:1]]
        return some() if conn.request.path == "/odd" else works(*arguments)

    monkeypatch.setattr(place, where, fails)
    app = App()
    route = app.websocket("/odd").onopen(lambda conn: conn.close_nowait(1011))
    assert route.onclose(lambda conn, info: None) is route
    async with surviving(app) as site, site.connect("/odd") as peer:
        with pytest.raises(PeerClosed) as caught:
            await peer.receive()
        assert caught.value.close is not None
        assert caught.value.close.code == 1011
    assert "Error" in caplog.text
