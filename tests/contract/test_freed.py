"""An ended connection is freed at once, not when the collector finds it: nothing of ours refers to it in a circle."""

from __future__ import annotations

import contextlib
import gc
import logging
import traceback
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

import pytest
import trio
import trio.testing

from support.clients import client_of
from support.servers import KINDS, Kind, Site, break_off, serving
from trio_crowws import App, Backoff, Connection, ConnectionClosed, Handler, Rejected, keep_connected
from trio_crowws._foreign import leaves_of
from trio_crowws.testing import Peer


@pytest.fixture(autouse=True)
def no_collector(request: pytest.FixtureRequest) -> Generator[None]:
    logger = logging.getLogger("trio_crowws")
    if "caplog" not in request.fixturenames:
        logger.setLevel(logging.CRITICAL)  # the records that pytest collects would keep the tracebacks
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    logger.setLevel(logging.NOTSET)


class Registry:
    """The connections of a test, without keeping them."""

    def __init__(self) -> None:
        self._refs: list[weakref.ref[Connection]] = []

    def add(self, conn: Connection) -> None:
        self._refs.append(weakref.ref(conn))

    @property
    def empty(self) -> bool:
        """Whether there has been none yet."""
        return not self._refs

    async def check(self, count: int = 1) -> None:
        """All have been there, and none is any more."""
        with trio.move_on_after(2):
            while any(ref() is not None for ref in self._refs):  # noqa: ASYNC110 -- there is no event for it
                await trio.sleep(0.001)
        assert [ref() for ref in self._refs] == [None] * count


# The server's side


async def by_the_peer(peer: Peer) -> None:
    await peer.send("hello")
    await peer.receive()
    await peer.close()


async def by_a_reset(peer: Peer) -> None:
    await peer.send("hello")
    await peer.receive()
    await break_off(peer)


async def by_a_fault(peer: Peer) -> None:
    await peer.send_frame(3)
    await peer.receive_close()


async def by_the_application(peer: Peer) -> None:
    await peer.send("close")
    await peer.receive_close()


async def by_an_exception(peer: Peer) -> None:
    await peer.send("raise")
    await peer.receive_close()


ENDS = [by_the_peer, by_a_reset, by_a_fault, by_the_application, by_an_exception]


def act(message: str | bytes) -> None:
    if message == "raise":
        try:
            raise LookupError("first")
        except LookupError:
            raise ValueError("second") from ExceptionGroup("third", [ValueError("leaf")])


def make_app(style: str, seen: Registry) -> App:
    app = App(close_timeout=0.5)
    route = app.websocket("/")

    async def on_open(conn: Connection) -> None:
        seen.add(conn)
        conn.join("room")
        conn.start_soon(trio.sleep_forever)

    async def on_message(conn: Connection, message: str | bytes) -> None:
        act(message)
        if message == "close":
            await conn.close(4000)
        else:
            await conn.send(message)

    async def session(conn: Connection) -> None:
        await on_open(conn)
        async for message in conn:
            await on_message(conn, message)

    def plain(conn: Connection, message: str | bytes) -> None:
        act(message)
        if message == "close":
            conn.close_nowait(4000)
        else:
            conn.send_nowait(message)

    class Keeping(Handler):
        def on_open(self, conn: Connection) -> None:
            self.conn = conn
            seen.add(conn)

        async def on_message(self, conn: Connection, message: str | bytes) -> None:
            await on_message(self.conn, message)

        def on_error(self, conn: Connection, error: Exception) -> None:
            self.error = error

    if style == "session":
        route(session)
    elif style == "async":
        route.onopen(on_open).onmessage(on_message).onerror(lambda conn, error: None)
    elif style == "plain":
        route.onopen(lambda conn: seen.add(conn)).onmessage(plain).onclose(lambda conn, info: None)
    else:
        route(Keeping)
    return app


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("style", ["session", "async", "plain", "class"])
async def test_of_a_server(style: str, end: Callable[[Peer], Awaitable[None]]) -> None:
    """In every style, and however it has ended; its tasks and a handler object that refers to it change nothing."""
    await check_server("memory", style, end)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", ["tcp", "tls", "unix"])
async def test_of_a_server_on_sockets(kind: Kind, end: Callable[[Peer], Awaitable[None]]) -> None:
    """The same on sockets, where a reset is an OSError with frames of its own."""
    await check_server(kind, "session", end)


async def check_server(kind: Kind, style: str, end: Callable[[Peer], Awaitable[None]]) -> None:
    seen = Registry()
    async with serving(make_app(style, seen), kind) as site:
        async with site.connect() as peer:
            await end(peer)
        await seen.check()


@pytest.mark.parametrize("style", ["session", "async", "plain", "class"])
async def test_of_a_route_that_was_cancelled(style: str) -> None:
    """Cancelled, which is on its way out, does not keep the connections that it came by."""
    seen = Registry()
    app = make_app(style, seen)
    async with serving(app) as site, site.connect() as peer:
        await peer.send("hello")
        await peer.receive()
        site.server.route_scope(app.routes[0]).cancel()
        await peer.receive_close()
        await seen.check()


async def test_of_a_server_whose_task_failed() -> None:
    """The exception of a task of `start_soon` does not keep it either."""
    app, seen = App(), Registry()

    async def fail(conn: Connection) -> None:
        raise ValueError("a task")

    @app.websocket("/")
    async def session(conn: Connection) -> None:
        seen.add(conn)
        conn.start_soon(fail, conn)
        await conn.receive()

    async with serving(app) as site, site.connect() as peer:
        await peer.receive_close()
        await seen.check()


# The client's side


@asynccontextmanager
async def echoing(kind: Kind) -> AsyncGenerator[Site]:
    app = App(close_timeout=0.5)

    @app.websocket("/")
    async def echo(conn: Connection) -> None:
        async for message in conn:
            if message == "close":
                return
            if message == "abort":
                conn.abort()
            else:
                await conn.send(message)

    async with serving(app, kind) as site:
        yield site


async def talk(conn: Connection) -> None:
    await conn.send("hello")
    await conn.receive()
    await conn.ping()


async def be_closed(conn: Connection) -> None:
    await conn.send("close")
    with contextlib.suppress(ConnectionClosed):
        await conn.receive()


async def be_aborted(conn: Connection) -> None:
    await conn.send("abort")
    await conn.receive()


async def close(conn: Connection) -> None:
    await conn.close(4000)


async def have_tasks(conn: Connection) -> None:
    conn.start_soon(trio.sleep_forever)
    await conn.ping()


async def be_cancelled(conn: Connection) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await conn.receive()


BLOCKS = [talk, be_closed, be_aborted, close, have_tasks, be_cancelled]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("kind", KINDS)
async def test_of_a_client(kind: Kind, block: Callable[[Connection], Awaitable[None]]) -> None:
    """However its block was left."""
    seen = Registry()

    async def run(site: Site) -> None:
        async with client_of(site) as conn:
            seen.add(conn)
            await block(conn)

    async with echoing(kind) as site:
        with contextlib.suppress(ConnectionClosed):
            await run(site)
        await seen.check()


async def test_of_a_client_whose_block_raised() -> None:
    """Its exception, which the close info knows, goes on with its frames; without these, it is freed."""
    seen = Registry()
    async with echoing("memory") as site:
        with contextlib.suppress(ValueError):
            async with client_of(site) as conn:
                seen.add(conn)
                del conn
                raise ValueError("the block")
        await seen.check()


async def test_of_a_client_that_was_cancelled() -> None:
    """A scope around the whole of it was cancelled."""
    seen = Registry()
    async with echoing("memory") as site:

        async def run() -> None:
            with trio.CancelScope() as scope:
                async with client_of(site) as conn:
                    seen.add(conn)
                    scope.cancel()
                    await conn.receive()

        await run()
        await seen.check()


@pytest.mark.parametrize("end", [be_closed, be_aborted, have_tasks])
async def test_of_a_client_that_reconnects(end: Callable[[Connection], Awaitable[None]]) -> None:
    """While the next connection is there, the one before is not."""
    seen, before = Registry(), Registry()

    async def handle(conn: Connection) -> str | None:
        if before.empty:
            before.add(conn)
            await end(conn)
            await conn.send("abort")
            await conn.wait_closed()
            return None
        seen.add(conn)
        await before.check()
        return "done"

    async with echoing("memory") as site:
        done = await keep_connected(
            handle,
            "ws://testserver/",
            backoff=Backoff(initial=0.01, maximum=0.01),
            connect=lambda url: client_of(site),
        )
        assert done == "done"
        await seen.check()


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_left_to_the_collector(kind: Kind) -> None:
    """No transport, handshake, answer or engine of a client either."""
    async with echoing(kind) as site:

        async def use() -> None:
            async with client_of(site) as conn:
                await talk(conn)
            with contextlib.suppress(Rejected):
                async with client_of(site, "/nothing"):
                    pytest.fail("there is no connection")
            for request in (b"GET /nothing HTTP/1.1\r\nHost: h\r\n\r\n", b"nonsense\r\n\r\n", b"GET / HT"):
                stream = await site.open_stream()
                await stream.send_all(request)
                await trio.aclose_forcefully(stream)
            await trio.testing.wait_all_tasks_blocked(0.02)

        await use()
        gc.collect()
        await use()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        gc.set_debug(0)
        modules = [(thing, type(thing).__module__) for thing in gc.garbage]
        gc.garbage.clear()
        assert [x for x, name in modules if name.startswith("trio_crowws.") and "testing" not in name] == []


async def test_of_a_plain_callback_that_ends_the_program() -> None:
    """What it raised goes on by way of the connection's task, and is not kept by the frame that it came through."""
    app = App()

    def stop(conn: Connection, message: str | bytes) -> None:
        raise SystemExit(3)

    app.websocket("/").onmessage(stop)
    frames: list[FrameType] = []
    try:
        async with serving(app) as site, site.connect() as peer:
            await peer.send("stop")
            await trio.sleep_forever()
    except BaseException as error:
        [leaf] = [each for each in leaves_of(error) if isinstance(each, SystemExit)]
        frames = [frame for frame, _ in traceback.walk_tb(leaf.__traceback__)]
    [frame] = [frame for frame in frames if frame.f_code.co_name == "_call_inline"]
    assert not {"own", "rest", "error"} & set(frame.f_locals)


def test_what_the_exception_still_says(caplog: Any) -> None:
    """The traceback is in the log and in `on_error`; what is kept beyond `on_close` has its type, text and causes."""
    kept: list[BaseException] = []
    app = App()

    route = app.websocket("/")

    @route
    async def session(conn: Connection) -> None:
        raise ValueError("once") from KeyError("cause")

    @route.on_error
    def failed(conn: Connection, error: Exception) -> None:
        assert error.__traceback__ is not None
        kept.append(error)

    async def main() -> None:
        async with serving(app) as site, site.connect() as peer:
            await peer.receive_close()

    trio.run(main)
    [error] = kept
    assert repr(error) == "ValueError('once')"
    assert repr(error.__cause__) == "KeyError('cause')"
    assert error.__traceback__ is None
    assert "in session" in caplog.text
