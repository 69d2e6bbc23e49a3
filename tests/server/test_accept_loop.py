"""The loop that accepts: peers that went away, a system that is out of something, and very many peers at once."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack, suppress

import pytest
import trio
import trio.testing

from support.rawclient import assert_serves, echo_app, open_raw, plain, serving, until
from trio_crowws import App
from trio_crowws._listeners import ACCEPTS_PER_TURN
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


async def test_it_complains_about_each_time(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A system that was well in between and is out of something again is news again."""
    async with serving(echo_app()) as server:
        for _ in range(2):
            fail_to_accept(monkeypatch, errno.EMFILE)
            await assert_serves(server)
            monkeypatch.undo()
        assert [record.levelname for record in caplog.records].count("ERROR") == 2


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
