"""What the handler and the peer may do at odd moments of a connection's life."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Generator
from typing import Any

import pytest
import trio
import trio.testing

from support.servers import Recorder, serving
from trio_crowws import App, CloseFrame, Connection, ConnectionClosed, Handler, State
from trio_crowws.errors import HandlerError
from trio_crowws.testing import connect, make_frame

# Two tasks that receive


async def test_a_message_is_taken_by_another_task() -> None:
    """A task whose message was taken by another one, which waits for the next, is told that there are two."""
    app = App()
    waits, busy = trio.Event(), trio.Event()
    taken: list[str | bytes] = []

    @app.websocket("/")
    async def session(conn: Connection) -> None:
        taken.append(await conn.receive())

        async def wait() -> None:
            waits.set()
            with pytest.raises(trio.BusyResourceError, match="another task is already waiting"):
                await conn.receive()
            busy.set()

        conn.start_soon(wait)
        await waits.wait()
        await trio.testing.wait_all_tasks_blocked()
        conn._transport.receiver._on_data(make_frame(1, b"two"))  # the task is woken, but has not had its turn
        taken.append(await conn.receive())
        taken.append(await conn.receive())

    async with connect(app) as peer:
        await peer.send("one")
        await busy.wait()
        await peer.send("three")
        await peer.receive_close()
    assert taken == ["one", "two", "three"]


# A handler that takes its time


async def test_a_handler_that_gets_on_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    """The peer's Close is answered behind all answers where the handler takes a message within every quarter second."""
    app = App()

    async def work(conn: Connection, message: str) -> None:
        await trio.sleep(0.2)
        await conn.send(message)

    recorder = Recorder(app, hooks={"message": work})
    async with serving(app) as site, site.connect() as peer:
        began = trio.current_time()
        for number in range(5):
            await peer.send(f"{number}")
        await peer.send_raw(make_frame(8, b"\x03\xe8"))
        assert [await peer.receive() for _ in range(5)] == ["0", "1", "2", "3", "4"]
        assert await peer.receive_event() == CloseFrame(1000)
        assert trio.current_time() - began == pytest.approx(1)
        await recorder.wait("close")


async def test_very_many_small_messages_for_a_peer_that_does_not_read() -> None:
    """However many messages wait for a peer, each of them arrives, whole and in order, when it reads on."""
    app = App()
    recorder = Recorder(app)
    messages = [f"{number}" for number in range(3000)]
    async with serving(app) as site, site.connect() as peer:
        await recorder.wait("open")
        assert peer.faults is not None
        peer.faults.stall()
        assert all(recorder.conn.send_nowait(message) for message in messages)
        peer.faults.flow()
        assert [await peer.receive() for _ in messages] == messages


# Control frames


@pytest.mark.parametrize("opcode", [9, 10])
async def test_control_frames_behind_our_close(opcode: int) -> None:
    """`on_ping` and `on_pong` do not run any more when this side has begun to close."""
    app = App()
    recorder = Recorder(app, hooks={"ping": lambda conn, payload: None, "pong": lambda conn, payload: None})
    async with serving(app) as site, site.connect() as peer:
        await recorder.wait("open")
        recorder.conn.close_nowait()
        await peer.send_raw(make_frame(opcode, b"late") + make_frame(8, b"\x03\xe8"))
        await recorder.wait("close")
    assert recorder.names == ["open", "close"]


@pytest.mark.parametrize("opcode", [9, 10])
async def test_a_control_frame_for_the_next_handler(opcode: int) -> None:
    """A ping or pong that waits when the handler is exchanged for one that does not care about it is passed over."""
    app = App()
    heard: list[str | bytes] = []

    class First(Handler):
        async def on_message(self, conn: Connection, message: str | bytes) -> None:
            await waiting.wait()
            heard.append(message)
            conn.set_handler(Second)

        async def on_ping(self, conn: Connection, payload: bytes) -> None:
            heard.append("ping")

        async def on_pong(self, conn: Connection, payload: bytes) -> None:
            heard.append("pong")

    class Second(Handler):
        async def on_message(self, conn: Connection, message: str | bytes) -> None:
            heard.append(message)
            await conn.close()

    waiting = trio.Event()
    app.websocket("/")(First)
    async with connect(app) as peer:
        await peer.send_raw(make_frame(1, b"one") + make_frame(opcode, b"between") + make_frame(1, b"two"))
        await trio.testing.wait_all_tasks_blocked()
        waiting.set()
        await peer.receive_close()
    assert heard == ["one", "two"]


# Handlers that do what they should not


class Promise(Awaitable[None]):
    """Something to be awaited that is no coroutine."""

    def __await__(self) -> Generator[Any, None, None]:
        raise AssertionError("nobody awaits it")


async def test_a_plain_callback_that_returns_an_awaitable_object() -> None:
    """A plain function must not return anything that would have to be awaited, coroutine or not: 1011."""
    app = App()
    recorder = Recorder(app, style="sync", hooks={"message": lambda conn, message: Promise()})
    async with serving(app) as site, site.connect() as peer:
        await peer.send("hello")
        await peer.receive_close()
        info = await recorder.check_end(
            1011, clean=True, initiator="local", sent=1011, received=1011, error=HandlerError
        )
    assert "returned an awaitable; declare it with async def" in str(info.error)


async def test_a_builtin_without_a_signature() -> None:
    """A callback whose signature Python does not know is judged when it is called."""
    app = App()
    route = app.websocket("/").onmessage(getattr)  # called as getattr(conn, message)
    errors: list[Exception] = []
    route.on_error(lambda conn, error: errors.append(error))
    async with connect(app) as peer:
        await peer.send("userdata")
        await peer.send("nonsense")
        assert await peer.receive_close() == CloseFrame(1011)
    assert [type(error) for error in errors] == [AttributeError]


async def test_an_interruption_in_a_nursery_of_the_session() -> None:
    """KeyboardInterrupt in a nursery of the session ends `serve`, after 1001 and `on_close`; it is no error."""
    app = App()
    recorder = Recorder(app, style="session", hooks={"message": interrupt})
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 -- the server is around what is said to it
        async with serving(app) as site, site.connect() as peer:
            await peer.send("hello")
            assert await peer.receive_close() == CloseFrame(1001)
            await site.ended.wait()
    assert recorder.names == ["open", "message", "close"]


async def interrupt(conn: Connection, message: object) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        raise KeyboardInterrupt


async def test_an_exception_behind_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """An exception of a session whose connection has closed already is logged, and `on_error` does not run."""
    app = App()

    async def fail_late(conn: Connection, message: object) -> None:
        await conn.wait_closed()
        raise ValueError("too late")

    recorder = Recorder(app, style="session", hooks={"message": fail_late})
    async with serving(app) as site, site.connect() as peer:
        await peer.send("hello")
        await peer.close()
        await recorder.check_end(1000, clean=True, initiator="remote", sent=1000, received=1000, error=None)
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "ValueError('too late')" in record.getMessage()
    assert recorder.names == ["open", "message", "close"]


# What is known about a connection


async def test_the_states_of_a_connection(autojump_clock: trio.testing.MockClock) -> None:
    """A connection is open, then closing, then closed."""
    app = App()
    recorder = Recorder(app)
    states: list[State] = []
    async with serving(app) as site, site.connect() as peer:
        await recorder.wait("open")
        conn = recorder.conn
        assert repr(conn).endswith(" open>")
        states.append(conn.state)
        conn.close_nowait()
        states.append(conn.state)
        await peer.receive_close()
        await recorder.wait("close")
        states.append(conn.state)
    assert states == [State.OPEN, State.CLOSING, State.CLOSED]


async def test_what_a_closed_connection_says(autojump_clock: trio.testing.MockClock) -> None:
    """The text of ConnectionClosed names the code, the reason, the side and the error."""
    app = App()
    texts: list[str] = []

    @app.websocket("/")
    async def session(conn: Connection) -> None:
        await conn.wait_closed()
        for call in (conn.receive, lambda: conn.send("late")):
            try:
                await call()
            except ConnectionClosed as error:
                texts.append(str(error))

    async with connect(app) as peer:
        await peer.close(4001, "see you")
    assert texts == ["closed with 4001 'see you' by the remote side"] * 2


@pytest.mark.parametrize("message", ["secret", b"secret"])
async def test_the_log_says_what_kind_of_message_came(message: str | bytes, caplog: pytest.LogCaptureFixture) -> None:
    """At the level DEBUG the log has the kind and the size of each message, and never what it says."""
    app = App()
    recorder = Recorder(app)
    caplog.set_level(logging.DEBUG, "trio_crowws")
    async with serving(app) as site, site.connect() as peer:
        await peer.send(message)
        await recorder.wait("message")
    kind = "text of 6 characters" if isinstance(message, str) else "binary of 6 bytes"
    assert f"[{recorder.conn.id}] received {kind}" in caplog.text
    assert "secret" not in caplog.text
