"""KeyboardInterrupt at a client: while connecting, in the block, and while leaving it."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.lowlevel
import trio.testing

from support.clients import tasks
from support.rawserver import RawPeer
from trio_crowws import Connection, connect_stream


def interrupt() -> None:
    """Have a SIGINT arrive where no task is running that it could interrupt on the spot."""
    trio.lowlevel.current_trio_token().run_sync_soon(signal.raise_signal, signal.SIGINT)


def play(script: Callable[[RawPeer], Awaitable[None]], block: Callable[[Connection], Awaitable[None]]) -> list[str]:
    """Run a client whose block is `block` in the main task, and return what the server saw of its end."""
    seen: list[str] = []

    async def main() -> None:
        near, far = trio.testing.memory_stream_pair()
        peer = RawPeer(far)

        async def serve() -> None:
            await script(peer)
            seen.append(str((await peer.receive_close())[0]))
            await peer.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            try:
                async with connect_stream(near, "ws://h/", close_timeout=2) as conn:
                    await block(conn)
            finally:
                seen.append("left" if any("client engine" in task.name for task in tasks()) else "nothing left")
                nursery.cancel_scope.cancel()

    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(main)
    assert caught.group_contains(KeyboardInterrupt)
    return seen


async def accept(peer: RawPeer) -> None:
    await peer.accept()


def test_in_the_block() -> None:
    """The server is told 1001."""

    async def block(conn: Connection) -> None:
        interrupt()
        await conn.receive()

    assert play(accept, block) == ["1001", "nothing left"]


def test_while_connecting() -> None:
    """Nothing is left of the attempt."""

    async def script(peer: RawPeer) -> None:
        await peer.read_head()
        interrupt()
        await trio.sleep_forever()

    async def block(conn: Connection) -> None:
        pytest.fail("there is no connection")

    assert play(script, block) == ["nothing left"]


def test_while_leaving() -> None:
    """The closing handshake still comes to its end."""

    async def script(peer: RawPeer) -> None:
        await peer.accept()

    async def block(conn: Connection) -> None:
        conn.start_soon(interrupt_when_closing, conn)
        await trio.lowlevel.checkpoint()

    async def interrupt_when_closing(conn: Connection) -> None:
        while conn.is_open:
            await trio.lowlevel.checkpoint()
        interrupt()

    assert play(script, block) == ["1000", "nothing left"]


def test_while_a_task_of_the_connection_runs() -> None:
    """It is the main task's to be interrupted, not that of the task."""
    log: list[str] = []

    async def busy(conn: Connection) -> None:
        signal.raise_signal(signal.SIGINT)
        log.append("went on")
        await trio.sleep_forever()

    async def block(conn: Connection) -> None:
        conn.start_soon(busy, conn)
        await conn.receive()

    assert play(accept, block) == ["1001", "nothing left"]
    assert log == ["went on"]


def test_twice() -> None:
    """Whoever presses it again does not want to wait for a server that does not answer the Close frame."""

    async def script(peer: RawPeer) -> None:
        await peer.accept()
        await trio.sleep_forever()

    async def block(conn: Connection) -> None:
        conn.start_soon(interrupt_when_closing, conn)
        interrupt()
        await conn.receive()

    async def interrupt_when_closing(conn: Connection) -> None:
        with trio.CancelScope(shield=True):
            while conn.is_open:
                await trio.lowlevel.checkpoint()
            interrupt()

    assert play(script, block) == ["nothing left"]


def test_while_a_task_of_the_connection_ends() -> None:
    """The task is waited for all the same."""
    ended: list[str] = []

    async def block(conn: Connection) -> None:
        conn.start_soon(clean_up)
        await trio.lowlevel.checkpoint()

    async def clean_up() -> None:
        try:
            await trio.sleep_forever()
        finally:
            interrupt()
            with trio.CancelScope(shield=True):
                for _ in range(10):
                    await trio.lowlevel.checkpoint()
            ended.append("a task")

    assert play(accept, block) == ["1000", "nothing left"]
    assert ended == ["a task"]


def test_while_parting() -> None:
    """A server that has closed, but does not end the stream, is waited for no longer."""

    async def script(peer: RawPeer) -> None:
        await peer.accept()
        await peer.send_frame(8, (1000).to_bytes(2))
        await peer.receive_close()
        await trio.testing.wait_all_tasks_blocked(0.05)
        interrupt()
        await trio.sleep_forever()

    async def block(conn: Connection) -> None:
        await conn.wait_closed()

    assert play(script, block) == ["nothing left"]
