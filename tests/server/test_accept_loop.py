"""The loop that accepts: peers that went away, a system that is out of something, and very many peers at once."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from support.rawclient import Frame, assert_serves, echo_app, open_raw, plain, reset, serving, until, upgrade
from support.servers import Recorder
from trio_crowws import App, Connection, Handler
from trio_crowws._admission import Admission
from trio_crowws._listeners import ACCEPTS_PER_TURN
from trio_crowws._transport.engine import Engine
from trio_crowws.errors import CrowWSError


def fail_to_accept(monkeypatch: pytest.MonkeyPatch, *errors: int) -> list[int]:
    """Have the next calls of `accept` fail with these errors; returns the list of those that are left."""
    accept = socket.socket.accept
    left = list(errors)

    def failing(sock: socket.socket) -> tuple[socket.socket, object]:
        if left:
            number = left.pop(0)
            raise OSError(number, os.strerror(number))
        return accept(sock)

    monkeypatch.setattr(socket.socket, "accept", failing)
    return left


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
async def test_a_system_that_is_out_of_something(
    number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While the system cannot accept, the server says so once, tries again, and serves the peer when it can."""
    async with serving(echo_app()) as server:
        left = fail_to_accept(monkeypatch, number, number, number)
        await assert_serves(server)
        assert left == []
        complaint = f"cannot accept on 127.0.0.1:{server.port}: {os.strerror(number)}; trying again"
        assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [complaint]


async def test_a_system_without_epoll_that_is_out_of_something(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the same where Trio waits for the listening socket."""
    monkeypatch.setattr("trio_crowws._server.Engine", partial(Engine, use_epoll=False))
    async with serving(echo_app()) as server:
        await assert_serves(server)
        left = fail_to_accept(monkeypatch, errno.EMFILE, errno.EMFILE)
        await assert_serves(server)
        assert left == []
    assert [record.levelname for record in caplog.records].count("ERROR") == 1


@pytest.mark.parametrize("where", ["new_opening", "add_socket"])
async def test_a_defect_in_letting_in(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody expects there costs the one peer, whose socket is closed; the next one is let in."""
    owner: Any = Admission if where == "new_opening" else Engine
    works = getattr(owner, where)

    def fail(self: Any, *arguments: Any) -> Any:
        monkeypatch.setattr(owner, where, works)
        raise MemoryError("none is left")

    async with serving(echo_app()) as server:
        monkeypatch.setattr(owner, where, fail)
        async with open_raw(server) as client:
            assert await client.read_to_end() == b""
        await assert_serves(server)
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.getMessage().startswith("internal error; a connection at 127.0.0.1:")


async def test_an_interruption_in_letting_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no `Exception` ends the server, but by way of its own task: the connections are still told."""
    app = App()
    recorder = Recorder(app, style="sync")

    def leave(self: Admission) -> Any:
        raise SystemExit("enough")

    with pytest.raises(SystemExit, match="enough"):  # noqa: PT012 -- it leaves the block of the server
        async with serving(app) as server, open_raw(server) as client:
            await client.upgrade("/")
            monkeypatch.setattr(Admission, "new_opening", leave)
            async with open_raw(server):
                assert await client.read_frame() == Frame(8, b"\x03\xe9")
                await client.send_frame(8, b"\x03\xe9")
                await server.wait_closed()
    assert recorder.info.code == 1001
    assert recorder.info.clean


async def test_it_complains_about_each_time(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A system that was well in between and is out of something again is news again."""
    async with serving(echo_app()) as server:
        for _ in range(2):
            fail_to_accept(monkeypatch, errno.EMFILE)
            await assert_serves(server)
            monkeypatch.undo()
        assert [record.levelname for record in caplog.records].count("ERROR") == 2


@pytest.mark.parametrize("said", [OSError("no number"), OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))])
async def test_a_peer_that_cannot_be_looked_at(
    said: OSError, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of one socket costs this peer alone: nothing pauses, and the log does not speak of accepting."""
    works = Engine.add_socket

    def fail(self: Any, *arguments: Any) -> Any:
        monkeypatch.setattr(Engine, "add_socket", works)
        raise said

    async with serving(echo_app()) as server:
        monkeypatch.setattr(Engine, "add_socket", fail)
        async with open_raw(server) as client:
            assert await client.read_to_end() == b""
        await assert_serves(server)
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


async def test_peers_that_went_away(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A peer that has gone before it is accepted is no error, and the one behind it does not wait."""
    async with serving(echo_app()) as server:
        left = fail_to_accept(monkeypatch, errno.ECONNABORTED, errno.ECONNABORTED)
        await assert_serves(server)
        assert left == []
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


async def test_more_peers_than_one_turn_takes() -> None:
    """All peers are served that have come at once, also where others get their turn in between."""
    app = App()
    app.http("/")(lambda request: "hello")
    async with serving(app, backlog=2 * ACCEPTS_PER_TURN) as server:
        with ExitStack() as crowd:
            # Nothing here waits for the server, so it finds all of them in its queue.
            clients = [
                crowd.enter_context(socket.create_connection(("127.0.0.1", server.port)))
                for _ in range(ACCEPTS_PER_TURN + 3)
            ]
            for client in clients:
                client.sendall(plain("/"))
            await until(lambda: all(has_answer(client) for client in clients))


def has_answer(client: socket.socket) -> bool:
    try:
        return client.recv(12, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"HTTP/1.1 200"
    except BlockingIOError:
        return False


async def test_no_unix_sockets(monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]) -> None:
    """Where the platform has no Unix sockets, asking for one says so."""
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(CrowWSError, match="Unix sockets are not available on this platform"):
        await echo_app().serve(unix=os.path.join(tmp_path, "socket"))  # noqa: PTH118 -- any path will do


async def test_a_page_that_is_interrupted() -> None:
    """A peer whose page is still being made when the server is cancelled is told that with a 503."""
    app = App()
    asked = trio.Event()

    @app.http("/slow")
    async def slow(request: object) -> str:
        asked.set()
        await trio.sleep_forever()

    scope = trio.CancelScope()

    async def serve(*, task_status: trio.TaskStatus[object]) -> None:
        with scope:
            await app.serve("127.0.0.1", 0, task_status=task_status)

    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve)
        async with open_raw(server.port) as client:
            await client.send(plain("/slow"))
            await asked.wait()
            scope.cancel()
            answer = await client.refused()
    assert answer.status == 503
    assert scope.cancelled_caught


async def test_an_abort_with_a_silent_peer() -> None:
    """`Server.abort` also drops the peers that have not sent their request yet, and `serve` returns."""
    async with serving(echo_app()) as server, open_raw(server) as silent:
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(server._engine.transports) == 1
        server.abort()
        with trio.fail_after(5), suppress(trio.BrokenResourceError):  # it may see a 503 before the reset
            await silent.read_to_end()
            await server.wait_closed()
        assert server._engine.transports == []


# Between the 101 and the first step of the connection's task


def between(monkeypatch: pytest.MonkeyPatch, action: Callable[[Admission], None]) -> None:
    """Have `action` done when a connection is open and its task has not begun."""
    start = Admission._start

    def start_and_act(self: Admission, nursery: trio.Nursery, function: Any, *args: object) -> None:
        start(self, nursery, function, *args)
        action(self)

    monkeypatch.setattr(Admission, "_start", start_and_act)


async def test_an_abort_before_the_task_of_a_connection_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Server.abort` at that moment waits for nobody, and leaves nothing behind."""
    app = App()
    recorder = Recorder(app, style="sync")
    async with serving(app) as server:
        between(monkeypatch, lambda admission: server.abort())
        async with open_raw(server) as client:
            with trio.fail_after(0.5), suppress(trio.BrokenResourceError):
                await client.send(upgrade("/"))
                await client.read_to_end()
            with trio.fail_after(0.5):
                await server.wait_closed()
        assert server._engine.transports == []
    recorder.check()
    assert app.connections == frozenset()


async def test_a_route_that_is_cancelled_before_the_task_of_a_connection_has_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The connection is told with 1001, as the others of its route, and gives its place free."""
    app = App(max_connections=1)
    recorder = Recorder(app, style="sync")
    async with serving(app) as server:
        between(monkeypatch, lambda admission: server.route_scope(recorder.route).cancel())
        async with open_raw(server) as client:
            await client.upgrade("/")
            assert await client.read_frame() == Frame(8, b"\x03\xe9")
            await client.send_frame(8, b"\x03\xe9")
            await recorder.wait("close")
        assert recorder.info.code == 1001
        assert app._occupied == 0
    recorder.check()


async def test_a_peer_that_resets_before_the_task_of_its_connection_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection is never opened, and the server serves on."""
    app = echo_app(max_connections=1)
    recorder = Recorder(app, "/recorded", style="sync")
    async with serving(app) as server:
        async with open_raw(server) as client:
            between(monkeypatch, lambda admission: reset(client))
            with suppress(trio.ClosedResourceError):
                await client.send(upgrade("/recorded"))
            await until(lambda: server._engine.transports == [] and app._occupied == 0)
        monkeypatch.undo()
        assert recorder.names == []
        await assert_serves(server)


async def test_a_handler_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """SystemExit from the constructor of a handler ends the server with it; the others are told with 1001."""
    app = App()
    recorder = Recorder(app, "/recorded", style="sync")

    @app.websocket("/fatal")
    class Fatal(Handler):
        def __init__(self) -> None:
            raise SystemExit(3)

        def on_message(self, conn: Connection, message: str) -> None:
            pass

    with pytest.raises(SystemExit):  # noqa: PT012 -- it leaves the block of the server
        async with serving(app) as server, open_raw(server) as other, open_raw(server) as client:
            await other.upgrade("/recorded")
            await client.send(upgrade("/fatal"))
            assert (await client.refused()).status == 503
            assert await other.read_frame() == Frame(8, b"\x03\xe9")
            await other.send_frame(8, b"\x03\xe9")
            await server.wait_closed()
    recorder.check()
    assert recorder.info.code == 1001
    assert recorder.info.clean


async def test_a_constructor_that_aborts_the_server() -> None:
    """Whoever is being let in when the application aborts the server gets one answer, and no connection."""
    app = App()
    calls: list[str] = []

    @app.websocket("/")
    class Aborting(Handler):
        def __init__(self) -> None:
            server.abort()

        def on_open(self, conn: Connection) -> None:
            calls.append("open")

    async with serving(app) as server, open_raw(server) as client:
        await client.send(upgrade("/"))
        with trio.fail_after(0.5):
            await server.wait_closed()
    assert calls == []


async def test_a_server_that_is_cancelled_by_whom_it_lets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A constructor may cancel the server, and the system be out of something, in one turn of accepting."""
    app = App()

    @app.websocket("/")
    class Cancelling(Handler):
        def __init__(self) -> None:
            scope.cancel()

        def on_open(self, conn: Connection) -> None:
            pass

    accept = socket.socket.accept

    def accept_one(sock: socket.socket) -> tuple[socket.socket, object]:
        if scope.cancel_called:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return accept(sock)

    monkeypatch.setattr(socket.socket, "accept", accept_one)
    with trio.fail_after(5), trio.CancelScope() as scope:
        async with serving(app) as server:
            # Nothing here waits, so the request is there when the peer is let in.
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(upgrade("/"))
                await trio.sleep_forever()
    assert scope.cancelled_caught
    assert app.connections == frozenset()


async def test_a_system_that_cannot_watch_the_listening_socket_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """That is treated as the other things that the system may be out of: the server serves on, and tries again."""
    async with serving(echo_app()) as server:
        fail_to_accept(monkeypatch, errno.EMFILE)
        register = select.epoll.register
        refused = 0

        class Epoll:
            def __init__(self, real: select.epoll) -> None:
                self._real = real

            def __getattr__(self, name: str) -> Any:
                return getattr(self._real, name)

            def register(self, fd: int, mask: int) -> None:
                nonlocal refused
                if mask == select.EPOLLIN and refused < 2:
                    refused += 1
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                register(self._real, fd, mask)

        poller = server._engine._poller
        assert poller is not None
        monkeypatch.setattr(poller, "_epoll", Epoll(poller._epoll))
        await assert_serves(server)
        assert refused == 2
    assert [record.levelname for record in caplog.records].count("ERROR") == 1
