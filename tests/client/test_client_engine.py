"""The engine that all client connections of a Trio run share: when it starts and ends, and what its failure costs."""

from __future__ import annotations

import errno
import logging
from functools import partial

import pytest
import trio
import trio.testing

from support.clients import client_of, nothing_left, tasks
from support.rawserver import RawPeer, echo, raw_server
from support.servers import Kind, Recorder, TapStream, serving
from trio_crowws import App, ConnectFailed, Connection, ConnectionClosedError, ConnectionLost, connect, connect_stream
from trio_crowws._client import running
from trio_crowws._transport.engine import Engine

NAME = "trio_crowws client engine"


def engines() -> list[trio.lowlevel.Task]:
    return [task for task in tasks() if task.name == NAME]


async def test_one_engine_for_all() -> None:
    """The first connection starts it, the last one ends it, in whatever order they leave."""
    async with raw_server(echo) as server:
        assert engines() == []
        first, second = connect(server.url), connect(server.url)
        one = await first.__aenter__()
        [engine] = engines()
        two = await second.__aenter__()
        assert engines() == [engine]
        await first.__aexit__(None, None, None)
        assert one.close_info is not None
        assert engines() == [engine]
        assert await two.ping() >= 0
        await second.__aexit__(None, None, None)
        assert engines() == []
        async with connect(server.url):
            assert engines() != [engine]
        assert engines() == []


async def test_many_connections_at_once() -> None:
    """Each has its own messages, and all of them leave nothing behind."""
    app = App()
    Recorder(app)
    async with serving(app, "tcp") as site:
        await trio.testing.wait_all_tasks_blocked()
        async with nothing_left():

            async def talk(number: int) -> None:
                async with client_of(site) as conn:
                    for count in range(10):
                        await conn.send(f"{number} {count}")
                        assert await conn.receive() == f"{number} {count}"

            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(talk, number)
            await trio.testing.wait_all_tasks_blocked(0.02)


async def test_a_failed_attempt_ends_the_engine_too() -> None:
    """Also if it was the first one."""
    async with nothing_left():
        for _ in range(3):
            with pytest.raises(OSError, match="cannot connect"):
                async with connect("ws://127.0.0.1:9/"):
                    pass
            assert engines() == []


def test_every_run_has_its_own() -> None:
    """One Trio run after the other works."""

    async def main() -> None:
        async with raw_server(echo) as server, connect(server.url) as conn:
            await conn.ping()

    for _ in range(2):
        trio.run(main)


@pytest.mark.parametrize("transport", ["socket", "stream"])
async def test_a_defect_of_the_engine_costs_its_connections(
    transport: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, each connection is lost, and the next one gets a new engine; the Trio run goes on."""
    near, far = trio.testing.memory_stream_pair()
    async with raw_server(echo) as server, trio.open_nursery() as nursery:
        if transport == "stream":
            nursery.start_soon(RawPeer(far).accept)
        with pytest.raises(ConnectionClosedError) as caught:  # noqa: PT012 -- the block has to be left by it
            async with connect(server.url) if transport == "socket" else connect_stream(near, server.url) as conn:
                with monkeypatch.context() as patch:
                    patch.setattr(type(conn._timers), "_fire_due", partial(crash, "defect"))
                    patch.setattr(type(conn._timers), "tick", lambda self: self.now)
                    conn._timer.arm(0)
                    await conn.receive()
        assert type(caught.value.info.error) is ConnectionLost
        assert engines() == []
        async with connect(server.url) as conn:
            await conn.ping()
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "internal error" in record.getMessage()
    assert record.exc_info is not None
    caplog.clear()


def crash(text: str, *arguments: object) -> None:
    raise RuntimeError(text)


async def test_without_epoll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is none, sockets are served as streams."""
    monkeypatch.setattr(running, "Engine", partial(Engine, use_epoll=False))
    async with raw_server(echo) as server, nothing_left():
        async with connect(server.url) as conn:
            await conn.send("hello")
            assert await conn.receive() == "hello"
            await conn.send(b"x" * 1_000_000)
            assert len(await conn.receive()) == 1_000_000
        assert conn.close_info is not None
        assert conn.close_info.clean
        await trio.sleep(0.05)


async def test_a_stream_that_breaks_trio_s_rules(caplog: pytest.LogCaptureFixture) -> None:
    """It costs its own connection, whose block hears of it."""

    class Odd(trio.abc.Stream):
        """Raises what no stream may raise, also when it is closed."""

        async def send_all(self, data: object) -> None:
            await trio.lowlevel.checkpoint()

        async def wait_send_all_might_not_block(self) -> None:
            await trio.lowlevel.checkpoint()

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            await trio.lowlevel.checkpoint()
            raise ZeroDivisionError("odd")

        async def aclose(self) -> None:
            raise IndexError("odd, too")

    with pytest.raises(OSError, match="broke before the server had answered"):
        async with connect_stream(Odd(), "ws://h/"):
            pass
    assert "internal error" in caplog.text
    caplog.clear()


async def test_an_engine_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no descriptor is left, the attempt fails, and a stream is closed all the same."""

    def no_engine(**options: object) -> Engine:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(running, "Engine", no_engine)
    near, _ = trio.testing.memory_stream_pair()
    for connecting in (connect("ws://127.0.0.1:9/"), connect_stream(near, "ws://h/")):
        with pytest.raises(ConnectFailed, match="too many open files"):
            async with connecting:
                pass
    with pytest.raises(trio.ClosedResourceError):
        await near.send_all(b"x")


async def test_a_stream_that_does_not_close(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    """The block is left all the same, after a bounded time."""
    near, far = trio.testing.memory_stream_pair()

    class Stuck(TapStream):
        async def aclose(self) -> None:
            with trio.CancelScope(shield=True):
                await trio.sleep(100)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(RawPeer(far).accept)
        began = trio.current_time()
        async with connect_stream(Stuck(near), "ws://h/", close_timeout=2) as conn:
            pass
        assert conn.close_info is not None
        assert trio.current_time() - began < 10
    assert not conn.is_open


async def test_a_stream_belongs_to_the_connection() -> None:
    """It is closed in the end, also where the attempt ends before anything was done."""
    for cancelled in (False, True):
        near, far = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            if not cancelled:
                nursery.start_soon(echo, RawPeer(far))
            with trio.CancelScope() as scope:
                if cancelled:
                    scope.cancel()
                async with connect_stream(near, "ws://h/"):
                    pass
            assert scope.cancelled_caught is cancelled
            with pytest.raises(trio.ClosedResourceError):
                await near.send_all(b"x")
            nursery.cancel_scope.cancel()


async def test_the_engine_of_a_cancelled_run_says_goodbye(kind: Kind) -> None:
    """Cancelling everything at once still shows the server 1001."""
    app = App()
    recorder = Recorder(app)
    async with serving(app, kind) as site:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def idle(*, task_status: trio.TaskStatus[None]) -> None:
                    async with client_of(site) as conn:
                        task_status.started()
                        await conn.receive()

                for _ in range(5):
                    await nursery.start(idle)
                scope.cancel()
        await recorder.wait("close", 5)
        assert [info.code for info in recorder.values("close")] == [1001] * 5


async def test_connections_of_client_and_server_in_one_run() -> None:
    """A handler may be a client: the two engines do not know each other."""
    app = App()

    async with raw_server(echo) as upstream:

        @app.websocket("/")
        async def relay(conn: Connection) -> None:
            async with connect(upstream.url) as onward:
                async for message in conn:
                    await onward.send(message)
                    await conn.send(await onward.receive())

        async with serving(app, "tcp") as site, client_of(site) as conn:
            await conn.send("hello")
            assert await conn.receive() == "hello"


async def test_small_messages_are_not_held_back() -> None:
    """Nagle's algorithm is off, as it is on a server's sockets."""
    async with raw_server(echo) as server, connect(server.url) as conn:
        sock: trio.socket.SocketType = getattr(conn._transport, "_sock")  # noqa: B009 -- there is no other way to see it
        assert sock.getsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY) != 0
