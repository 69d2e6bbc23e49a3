"""An async `on_ping` or `on_pong` beside a session: it is not part of the waiting for a message."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from support.servers import Kind, serving
from trio_crowws import App, CloseFrame, CloseInfo, Connection, ConnectionClosed
from trio_crowws.testing import make_frame

PING, PONG = 9, 10

Control = Callable[[Connection, bytes], Awaitable[None]]


class Told:
    """A route with a session and async control callbacks, and what has happened."""

    def __init__(self, app: App, control: Control, session: Callable[[Connection], Awaitable[None]]) -> None:
        self.names: list[str] = []
        self.errors: list[Exception] = []
        self.is_out = trio.Event()
        self.is_closed = trio.Event()
        self._control = control
        self.route = route = app.websocket("/")
        route(session)
        route.on_ping(self._on_control)
        route.on_pong(self._on_control)
        route.on_error(lambda conn, error: self.errors.append(error))
        route.on_close(self._on_close)

    async def _on_control(self, conn: Connection, payload: bytes) -> None:
        self.names.append(f"begin {payload.decode()}")
        try:
            await self._control(conn, payload)
            self.names.append(f"end {payload.decode()}")
        finally:
            self.names.append("out")
            self.is_out.set()

    async def _on_close(self, conn: Connection, info: CloseInfo) -> None:
        self.names.append("close")
        self.is_closed.set()


async def take_a_while(conn: Connection, payload: bytes) -> None:
    await trio.sleep(1)


async def impatient(conn: Connection) -> None:
    while conn.is_open:
        with trio.move_on_after(0.1):
            await conn.receive()


@pytest.mark.parametrize("opcode", [PING, PONG])
@pytest.mark.parametrize("kind", ["memory", "tcp"])
async def test_a_timeout_around_receive_does_not_cut_it(kind: Kind, opcode: int) -> None:
    """`receive` is cancelled again and again while the callback runs, which comes to its own end."""
    app = App()

    async def rest(conn: Connection, payload: bytes) -> None:
        await trio.sleep(0.05)

    async def session(conn: Connection) -> None:
        while conn.is_open:
            with trio.move_on_after(0.005):
                await conn.receive()

    told = Told(app, rest, session)
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.send_frame(opcode, b"x")
        await told.is_out.wait()
        await peer.close()
        await told.is_closed.wait()
    assert told.names == ["begin x", "end x", "out", "close"]


async def test_what_comes_behind_waits_for_it(autojump_clock: trio.testing.MockClock) -> None:
    """One runs at a time, and a message is given out when those before it have ended, whoever calls `receive` next."""
    app = App()

    async def session(conn: Connection) -> None:
        while True:
            with trio.move_on_after(0.3):
                try:
                    told.names.append(str(await conn.receive()))
                except ConnectionClosed:
                    return

    told = Told(app, take_a_while, session)
    async with serving(app) as site, site.connect() as peer:
        await peer.send_raw(make_frame(PING, b"1") + make_frame(PONG, b"2") + make_frame(1, b"message"))
        await trio.sleep(5)
        await peer.close()
    assert told.names == ["begin 1", "end 1", "out", "begin 2", "end 2", "out", "message", "close"]


async def test_its_exception_ends_the_connection() -> None:
    """As one in the session does: 1011, and `on_error` gets it. The session is cancelled."""
    app = App()

    async def fail(conn: Connection, payload: bytes) -> None:
        raise ValueError(payload)

    async def session(conn: Connection) -> None:
        try:
            await conn.receive()
            told.names.append("a message")
        finally:
            told.names.append("session")

    told = Told(app, fail, session)
    async with serving(app) as site, site.connect() as peer:
        await peer.send_raw(make_frame(PING, b"x") + make_frame(1, b"message"))
        assert await peer.receive_close() == CloseFrame(1011)
    assert told.names == ["begin x", "out", "session", "close"]
    assert repr(told.errors) == repr([ValueError(b"x")])


async def test_it_cannot_wait_for_the_message_behind_it() -> None:
    """`receive` within it would wait for itself."""
    app = App()
    refused: list[trio.BusyResourceError] = []

    async def receive(conn: Connection, payload: bytes) -> None:
        with pytest.raises(trio.BusyResourceError) as caught:
            await conn.receive()
        refused.append(caught.value)

    told = Told(app, receive, impatient)
    async with serving(app) as site, site.connect() as peer:
        await peer.send_frame(PING, b"x")
        await trio.testing.wait_all_tasks_blocked(0.01)
        await peer.close()
    assert told.names == ["begin x", "end x", "out", "close"]
    assert [str(error) for error in refused] == [
        "the next message comes after on_ping or on_pong, which cannot wait for it"
    ]


async def test_the_session_ends_before_it(autojump_clock: trio.testing.MockClock) -> None:
    """It has the time that a handler has after the end of its connection, and `on_close` waits for it."""
    app = App()

    async def session(conn: Connection) -> None:
        with trio.move_on_after(0.1):
            await conn.receive()

    told = Told(app, take_a_while, session)
    async with serving(app) as site, site.connect() as peer:
        await peer.send_frame(PING, b"x")
        assert await peer.receive_close() == CloseFrame(1000)
        await trio.sleep(2)
        assert told.names == ["begin x", "end x", "out", "close"]


async def test_it_does_not_end(autojump_clock: trio.testing.MockClock) -> None:
    """After that time it is cancelled."""
    app = App(callback_timeout=3)

    async def hang(conn: Connection, payload: bytes) -> None:
        await trio.sleep_forever()

    async def session(conn: Connection) -> None:
        with trio.move_on_after(0.1):
            await conn.receive()

    told = Told(app, hang, session)
    async with serving(app) as site, site.connect() as peer:
        await peer.send_frame(PING, b"x")
        await peer.receive_close()
        await trio.sleep(2)
        assert told.names == ["begin x"]
        await trio.sleep(2)
        assert told.names == ["begin x", "out", "close"]


@pytest.mark.parametrize("returns", [False, True])
async def test_the_route_is_cancelled(returns: bool, autojump_clock: trio.testing.MockClock) -> None:
    """With the route's scope it is cancelled, too, whether the session is still there or not; then comes `on_close`."""
    app = App()

    async def session(conn: Connection) -> None:
        with trio.move_on_after(0.1 if returns else 10):
            await conn.receive()

    told = Told(app, take_a_while, session)
    async with serving(app) as site, site.connect() as peer:
        await peer.send_frame(PING, b"x")
        if returns:
            await peer.receive_close()
        await trio.sleep(0.3)
        site.server.route_scope(told.route).cancel()
        await peer.receive_close()
        await trio.testing.wait_all_tasks_blocked()
    assert told.names == ["begin x", "out", "close"]
