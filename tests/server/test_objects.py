"""How the objects of the public interface show themselves, in a log, in a debugger and in a condition."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
import trio

from support.rawclient import plain
from support.servers import Recorder, serving
from trio_crowws import App, CloseFrame, CloseInfo, ConnectionClosed, PayloadTooBig, PublishResult, Reject
from trio_crowws._request import Headers
from trio_crowws.testing import Peer, connect, make_frame


async def test_an_application_and_its_routes() -> None:
    """An application and a route say how many connections they have."""
    app = App()
    route = app.websocket("/chat/{room}")
    route.on_message(lambda conn, message: None)
    assert repr(app) == "<App with 1 routes and 0 connections>"
    assert repr(route) == "<Route '/chat/{room}' with 0 connections>"
    async with connect(app, "/chat/lobby"), connect(app, "/chat/lobby"):
        await trio.testing.wait_all_tasks_blocked()
        assert repr(app) == "<App with 1 routes and 2 connections>"
        assert repr(route) == "<Route '/chat/{room}' with 2 connections>"


async def test_a_room() -> None:
    """A room says how many members it has; an empty one is still true."""
    app = App()
    room = app.room("lobby")
    app.websocket("/").on_open(lambda conn: conn.join("lobby"))
    assert repr(room) == "<Room 'lobby' with 0 members>"
    assert len(room) == 0
    assert bool(room) is True
    async with connect(app):
        await trio.testing.wait_all_tasks_blocked()
        assert repr(room) == "<Room 'lobby' with 1 members>"
        assert len(room) == 1
        assert bool(room) is True


async def test_a_member_that_is_closing() -> None:
    """A member whose end has begun counts as closed when something is published, and gets nothing."""
    app = App()
    recorder = Recorder(app, hooks={"open": lambda conn: conn.join("lobby")})
    async with serving(app) as site, site.connect() as peer:
        await recorder.wait("open")
        recorder.conn.close_nowait(4000)
        assert app.publish("lobby", "news") == PublishResult(sent=0, dropped=0, closed=1)
        assert await peer.receive_event() == CloseFrame(4000)


async def test_a_member_that_is_too_slow(autojump_clock: trio.testing.MockClock) -> None:
    """A member that does not read and may lose messages counts as dropped, from the first one that it loses on."""
    app = App()
    recorder = Recorder(app, hooks={"open": lambda conn: conn.join("lobby")}, on_slow="drop", send_limit=100)
    async with serving(app) as site, site.connect() as peer:
        await recorder.wait("open")
        assert peer.faults is not None
        peer.faults.stall()
        results = [app.publish("lobby", "x" * 60) for _ in range(3)]
        assert results == [PublishResult(1, 0, 0), PublishResult(0, 1, 0), PublishResult(0, 1, 0)]
        peer.faults.stall()  # a second time changes nothing
        peer.faults.flow()
        assert await peer.receive() == "x" * 60
        assert recorder.conn.dropped == 2


async def test_what_was_counted() -> None:
    """The counters of an application hold what ended connections have done and what open ones do."""
    app = App()
    recorder = Recorder(app)
    async with serving(app) as site:
        async with site.connect() as peer:
            await peer.send("one")
            await peer.close()
        await recorder.wait("close")
        async with site.connect() as peer:
            await peer.send("two")
            await peer.receive()
            stats = app.stats()
    assert (stats.connections, stats.accepted, stats.refused) == (1, 2, 0)
    assert stats.closed == {1000: 1}
    assert stats.messages_received == 2


def test_a_refusal() -> None:
    """A Reject that was raised where nobody expected it says its status."""
    assert str(Reject(401, "who are you?")) == "rejected with HTTP status 401"


@pytest.mark.parametrize(
    ("reason", "error", "text"),
    [
        ("", None, "closed with 1009 by the local side"),
        ("too big", None, "closed with 1009 'too big' by the local side"),
        ("too big", PayloadTooBig("too big"), "closed with 1009 'too big' by the local side"),
        ("too big", PayloadTooBig("5 bytes"), "closed with 1009 'too big' by the local side: 5 bytes"),
        ("", PayloadTooBig("5 bytes"), "closed with 1009 by the local side: 5 bytes"),
    ],
)
def test_how_a_connection_was_closed(reason: str, error: Exception | None, text: str) -> None:
    """Code, reason, side and error; but an error that is the reason is not said twice."""
    assert str(ConnectionClosed(CloseInfo(1009, reason, False, "local", None, None, error))) == text


def test_importing_the_command_line() -> None:
    """Importing `trio_crowws.__main__`, as tools do that look at every module, runs nothing."""
    module = importlib.import_module("trio_crowws.__main__")
    assert importlib.reload(module).main is module.main


def test_run_without_a_callback(tmp_path: Path) -> None:
    """App.run serves until it gets a signal, also where nobody wants to know when it listens."""
    app = App()

    @app.http("/stop")
    def stop(request: object) -> str:
        signal.raise_signal(signal.SIGTERM)  # which cannot be too early here
        return "good night"

    path = tmp_path / "socket"
    answers: list[bytes] = []

    def ask() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            for _ in range(500):
                try:
                    client.connect(os.fspath(path))
                except OSError:
                    time.sleep(0.01)
                else:
                    client.sendall(plain("/stop"))
                    answers.append(client.recv(1000))
                    return

    client = threading.Thread(target=ask)
    client.start()
    app.run(unix=path)
    client.join()
    assert answers[0].startswith(b"HTTP/1.1 200 OK\r\n")
    assert not path.exists()


# The testing kit


async def test_a_peer_passes_over_what_follows_a_close() -> None:
    """What a server sends behind the Close frames is nothing to a peer of the testing kit."""
    near, far = trio.testing.memory_stream_pair()
    peer = Peer(near, Headers([]), b"", None)
    await far.send_all(make_frame(8, b"\x03\xe8", mask=False))
    assert await peer.receive_event() == CloseFrame(1000)
    await far.send_all(make_frame(1, b"one more thing", mask=False))
    await far.aclose()
    assert await peer.receive_event() is None
