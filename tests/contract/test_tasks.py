"""`conn.start_soon`: tasks that belong to a connection, and end with it."""

from __future__ import annotations

import contextvars
import logging

import pytest
import trio
import trio.testing

from support.servers import Kind, Recorder, Style, break_off, serving
from trio_crowws import App, CloseFrame, Connection, ConnectionClosedError


class Trouble(Exception):
    """What a task raises here."""


@pytest.mark.parametrize("ending", ["close", "break", "cancel", "fail"])
async def test_tasks_have_ended_before_the_last_callbacks(kind: Kind, style: Style, ending: str) -> None:
    """However the connection ends, its tasks are cancelled and have ended before `on_error` and `on_close` run."""
    app = App()
    steps: list[str] = []

    async def work(name: str) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.005)
            steps.append(name)

    def start(conn: Connection) -> None:
        conn.start_soon(work, "one")
        conn.start_soon(work, "two")

    def fail(conn: Connection, message: str) -> None:
        raise Trouble

    recorder = Recorder(
        app,
        style=style,
        hooks={
            "open": start,
            "message": fail,
            "error": lambda conn, error: steps.append("error"),
            "close": lambda conn, info: steps.append("close"),
        },
    )
    async with serving(app, kind) as site, site.connect() as peer:
        await recorder.wait("open")
        await trio.testing.wait_all_tasks_blocked(0.001)
        if ending == "close":
            await peer.close()
        elif ending == "break":
            await break_off(peer)
        elif ending == "cancel":
            recorder.conn.cancel_scope.cancel()
            await peer.receive_close()
        else:
            await peer.send("fail")
            await peer.receive_close()
        await recorder.wait("close")
    recorder.check()
    assert sorted(steps[:2]) == ["one", "two"]
    assert steps[2:] == (["error", "close"] if ending in ("break", "fail") else ["close"])


async def test_a_failing_task_ends_its_connection(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """An exception in a task closes with 1011, reaches `on_error`, is logged once, and interrupts the handler."""
    app = App()
    interrupted: list[str] = []

    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise Trouble("secret")

    async def handle(conn: Connection, message: str) -> None:
        conn.start_soon(fail)
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            interrupted.append(message)
            raise

    recorder = Recorder(app, hooks={"message": handle})
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.send("start")
        assert await peer.receive_close() == CloseFrame(1011)
        await recorder.check_end(1011, clean=True, initiator="local", sent=1011, received=1011, error=Trouble)
    assert interrupted == ["start"]
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1


async def test_a_task_that_ends_changes_nothing(kind: Kind) -> None:
    """A task may end while its connection goes on."""
    app = App()

    async def say(conn: Connection, text: str) -> None:
        await conn.send(text)

    recorder = Recorder(app, hooks={"message": lambda conn, message: conn.start_soon(say, conn, message)})
    async with serving(app, kind) as site, site.connect() as peer:
        for text in ("one", "two"):
            await peer.send(text)
            assert await peer.receive() == text
        await peer.close()
        await recorder.check_end(1000, clean=True, initiator="remote", sent=1000, received=1000, error=None)


async def test_connection_closed_in_a_task_is_a_normal_end(caplog: pytest.LogCaptureFixture) -> None:
    """A task that sends until its connection has ended is no error."""
    app = App()
    ends: list[type[BaseException]] = []

    async def tick(conn: Connection) -> None:
        try:
            with trio.CancelScope(shield=True):
                while True:
                    await conn.send("tick")
                    await trio.sleep(0.001)
        except BaseException as error:
            ends.append(type(error))
            raise

    recorder = Recorder(app, hooks={"open": lambda conn: conn.start_soon(tick, conn)})
    async with serving(app) as site, site.connect() as peer:
        assert await peer.receive() == "tick"
        await break_off(peer)
        await recorder.wait("close")
    recorder.check()
    assert ends == [ConnectionClosedError]
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_task_may_close_its_connection(kind: Kind) -> None:
    """A task that closes the connection and waits for that is not in its own way."""
    app = App()

    async def close(conn: Connection) -> None:
        await conn.close(4000, "time")

    recorder = Recorder(app, hooks={"open": lambda conn: conn.start_soon(close, conn)})
    async with serving(app, kind) as site, site.connect() as peer:
        frame = CloseFrame(4000, "time")
        assert await peer.receive_close() == frame
        await recorder.check_end(4000, "time", clean=True, initiator="local", sent=frame, received=frame, error=None)


async def test_a_task_that_does_not_react_is_waited_for_in_vain(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A task that shields itself holds up `on_close` for `callback_timeout` seconds, and a warning is logged."""
    app = App(callback_timeout=5)

    async def ignore() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(30)

    recorder = Recorder(app, hooks={"open": lambda conn: conn.start_soon(ignore)})
    async with serving(app) as site, site.connect() as peer:
        await recorder.wait("open")
        await peer.close()
        start = trio.current_time()
        await recorder.wait("close")
        assert trio.current_time() - start == pytest.approx(5)
    recorder.check()
    assert "does not react" in caplog.text


async def test_an_interrupt_in_a_task_goes_on(kind: Kind) -> None:
    """What is not an `Exception` passes from a task to `serve`; the peers see 1001, and every `on_close` runs."""
    app = App()

    async def leave() -> None:
        raise SystemExit(3)

    recorder = Recorder(app, hooks={"message": lambda conn, message: conn.start_soon(leave)})

    async def meet_the_interrupt() -> None:
        async with serving(app, kind) as site, site.connect() as peer:
            await peer.send("leave")
            with trio.CancelScope(shield=True):
                assert await peer.receive_close() == CloseFrame(1001)
                await site.ended.wait()

    with pytest.raises(SystemExit):
        await meet_the_interrupt()
    await recorder.check_end(1001, clean=True, initiator="local", sent=1001, received=1001, error=None)


VAR = contextvars.ContextVar("VAR", default="nobody")


async def test_a_task_has_the_context_of_whoever_started_it(style: Style) -> None:
    """A task sees the context variables of the callback that started it."""
    app = App()
    seen: list[str] = []

    async def look(conn: Connection) -> None:
        seen.append(VAR.get())
        await conn.send("seen")

    def on_open(conn: Connection) -> None:
        VAR.set("the connection")

    def on_message(conn: Connection, message: str) -> None:
        conn.start_soon(look, conn)

    Recorder(app, style=style, hooks={"open": on_open, "message": on_message})
    async with serving(app) as site, site.connect() as peer:
        await peer.send("start")
        assert await peer.receive() == "seen"
    assert seen == ["the connection"]
