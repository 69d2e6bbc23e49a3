"""`receive` is for sessions and clients: where callbacks take the messages, nobody else may wait for one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from support.servers import Kind, Recorder, Style, serving, until
from trio_crowws import App, CloseFrame, Connection, ConnectionClosed, Handler, connect_stream

Wait = Callable[[Connection], Awaitable[object]]


async def receive(conn: Connection) -> object:
    return await conn.receive()


async def iterate(conn: Connection) -> object:
    return [message async for message in conn]


WAYS: list[Wait] = [receive, iterate]


def fails_at_once(coroutine: Any) -> BaseException | None:
    """What a coroutine raises before it waits for anything."""
    try:
        coroutine.send(None)
    except StopIteration:
        raise AssertionError("a message was taken") from None
    except Exception as error:
        return error
    coroutine.close()
    return None


@pytest.fixture(params=["async", "sync", "class", "object"])
def callbacks(request: pytest.FixtureRequest) -> Style:
    """Each way to write a handler that is called for each message."""
    param: Style = request.param
    return param


@pytest.mark.parametrize("name", ["open", "message", "ping"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_callback_cannot_receive(kind: Kind, callbacks: Style, name: str, way: Wait) -> None:
    """Within a callback `receive` raises `trio.BusyResourceError` at once; the messages go on to `on_message`."""
    app = App()
    seen: list[BaseException | None] = []

    def hook(conn: Connection, *_: object) -> None:
        seen.append(fails_at_once(way(conn)))

    recorder = Recorder(app, style=callbacks, hooks={"ping": hook, name: hook})
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.ping()
        await peer.send("one")
        await peer.send("two")
        assert await peer.close() == CloseFrame(1000)
    recorder.check()
    assert recorder.values("message") == ["one", "two"]
    assert seen
    assert [type(error).__mro__[1] for error in seen] == [trio.BusyResourceError] * len(seen)
    assert "go to its callbacks" in str(seen[0])


async def test_a_task_of_the_connection_cannot_receive(kind: Kind, callbacks: Style) -> None:
    """A task of `start_soon` is refused, whenever it asks, and may catch that; the callbacks get every message."""
    app = App()
    refused: list[BaseException] = []

    async def try_to(conn: Connection) -> None:
        for _ in range(3):
            with pytest.raises(trio.BusyResourceError) as caught, trio.move_on_after(0):
                await conn.receive()
            refused.append(caught.value)
            await trio.lowlevel.checkpoint()
        await conn.send("refused")

    recorder = Recorder(app, style=callbacks, hooks={"open": lambda conn: conn.start_soon(try_to, conn)})
    async with serving(app, kind) as site, site.connect() as peer:
        assert await peer.receive() == "refused"
        await peer.send("hello")
        assert await peer.receive() == "hello"
        await peer.close()
    recorder.check()
    assert len(refused) == 3


@pytest.mark.parametrize("grouped", [False, True])
async def test_a_task_that_was_refused_ends_alone(
    kind: Kind, callbacks: Style, grouped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A task that does not catch the refusal is logged; it has changed nothing, so the connection goes on."""
    app = App()

    async def wait_for_login(conn: Connection) -> None:
        if not grouped:
            await conn.receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, conn)
            nursery.start_soon(receive, conn)

    recorder = Recorder(app, style=callbacks, hooks={"open": lambda conn: conn.start_soon(wait_for_login, conn)})
    async with serving(app, kind) as site, site.connect() as peer:
        await recorder.wait("open")
        await until(lambda: "a task of '/' failed" in caplog.text)
        await peer.send("hello")
        assert await peer.receive() == "hello"
        assert await peer.close() == CloseFrame(1000)
    await recorder.check_end(1000, clean=True, initiator="remote", sent=1000, received=1000, error=None)


@pytest.mark.parametrize("foreign", [False, True])
async def test_what_else_a_task_raises_ends_the_connection(foreign: bool) -> None:
    """A refusal beside another exception, or by another connection, ends the connection as any exception does."""
    app = App()
    app.websocket("/other").on_open(lambda conn: others.append(conn))
    others: list[Connection] = []

    async def fail(conn: Connection) -> None:
        if foreign:
            await others[0].receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, conn)
            raise ValueError("oops")

    Recorder(app, hooks={"open": lambda conn: conn.start_soon(fail, conn)})
    async with serving(app) as site, site.connect("/other") as other:
        while not others:
            await trio.lowlevel.checkpoint()
        async with site.connect() as peer:
            assert await peer.receive_close() == CloseFrame(1011)
        assert await other.close() == CloseFrame(1000)


@pytest.mark.parametrize("name", ["error", "close"])
async def test_the_last_callbacks_see_that_it_has_ended(kind: Kind, style: Style, name: str) -> None:
    """In `on_error` and `on_close` the connection has ended, and so says `receive`, in a session's route as well."""
    app = App(max_payload=10)
    seen: list[BaseException | None] = []

    recorder = Recorder(app, style=style, hooks={name: lambda conn, _: seen.append(fails_at_once(conn.receive()))})
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.send("more than ten bytes")
        await peer.receive_close()
        await recorder.wait("close")
    [error] = seen
    assert isinstance(error, ConnectionClosed)
    assert error.info.code == 1009


async def test_a_task_that_lives_longer_than_the_end_is_told() -> None:
    """A task of a callback route that asks when the connection has closed gets `ConnectionClosed`, and never waits."""
    app = App()
    seen: list[BaseException | None] = []

    async def late(conn: Connection) -> None:
        with trio.CancelScope(shield=True):
            await conn.wait_closed()
        seen.append(fails_at_once(conn.receive()))

    recorder = Recorder(app, hooks={"open": lambda conn: conn.start_soon(late, conn)})
    async with serving(app) as site, site.connect() as peer:
        await recorder.wait("open")
        await peer.close(4001)
        await recorder.wait("close")
    [error] = seen
    assert isinstance(error, ConnectionClosed)


async def test_a_session_that_is_over_may_still_be_asked() -> None:
    """What a session or a client's block has not received may be received behind its end, and then it has ended."""
    app = App()
    app.websocket("/").on_open(lambda conn: (conn.send_nowait("late"), conn.close_nowait(4000))[1])
    conns: list[Connection] = []
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.serve_stream, far)
        with pytest.raises(ConnectionClosed):  # noqa: PT012 -- the block has to be left by it
            async with connect_stream(near, "ws://x/") as conn:
                conns.append(conn)
                await conn.wait_closed()
                await conn.send("too late")
    [ended] = conns
    assert await ended.receive() == "late"
    with pytest.raises(ConnectionClosed):
        await ended.receive()
    with pytest.raises(RuntimeError, match="call another function"):
        ended.set_handler(Handler())
