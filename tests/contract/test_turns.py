"""Turns: what peers send is worked on for a few milliseconds, then everybody else has a turn."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from support.servers import Kind, serving
from trio_crowws import App, Connection
from trio_crowws._transport.engine import Engine
from trio_crowws.testing import Peer, make_frame

TEXT = 1
PEERS = 8
SLOW = 0.003
"""Seconds that a callback takes here: more than all that is done for peers in one pass of the scheduler."""


class Work:
    """Slow work for many peers, and how much of it was done between two turns of somebody else.

    Attributes:
      done: pieces of work so far.
      most: so many were done at most without a turn of the other task.
    """

    def __init__(self) -> None:
        self.done = self.most = 0
        self._seen = 0

    def do(self) -> None:
        self.done += 1
        self.most = max(self.most, self.done - self._seen)
        time.sleep(SLOW)

    async def watch(self) -> None:
        while True:
            await trio.lowlevel.checkpoint()
            self._seen = self.done


@asynccontextmanager
async def watched(app: App, kind: Kind, work: Work) -> AsyncGenerator[list[Peer]]:
    """Peers of `app`, and a task that has nothing to do with them."""
    async with serving(app, kind) as site, AsyncExitStack() as stack, trio.open_nursery() as nursery:
        peers = [await stack.enter_async_context(site.connect()) for _ in range(PEERS)]
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.start_soon(work.watch)
        yield peers
        nursery.cancel_scope.cancel()


async def send_at_once(peers: list[Peer], data: bytes) -> None:
    async with trio.open_nursery() as nursery:
        for peer in peers:
            nursery.start_soon(peer.send_raw, data)


@pytest.fixture(params=["tcp", "tls", "unix", "memory", "compressed", "tcp without epoll", "tls without epoll"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kind:
    """Each kind of transport; sockets are read by the poller, or as Trio's streams."""
    kind: Kind
    kind, _, without = request.param.partition(" ")
    if without:
        monkeypatch.setattr("trio_crowws._server.Engine", partial(Engine, use_epoll=False))
    return kind


@pytest.mark.parametrize("size", [1, 65_536 - 8])
async def test_many_peers_share_a_pass(kind: Kind, size: int) -> None:
    """However many peers have sent something, other tasks wait for the work on a few of them only."""
    app = App()
    work = Work()

    @app.websocket("/").on_message
    def slow(conn: Connection, message: str) -> None:
        work.do()
        conn.send_nowait(str(len(message)))

    async with watched(app, kind, work) as peers:
        await send_at_once(peers, make_frame(TEXT, b"a" * size))
        assert [await peer.receive() for peer in peers] == [str(size)] * PEERS
    assert work.done == PEERS
    assert work.most <= 4  # one for each of those who work in one pass


async def test_many_backlogs_share_a_pass(kind: Kind) -> None:
    """What is left of many long reads is worked on in turns, which are not all given in one pass."""
    app = App()
    work = Work()

    @app.websocket("/").on_message
    def slow_now_and_then(conn: Connection, message: str) -> None:
        if message.endswith("00"):
            work.do()
        conn.send_nowait(message)

    count = 301
    messages = [str(number) for number in range(count)]
    async with watched(app, kind, work) as peers:
        await send_at_once(peers, b"".join(make_frame(TEXT, message.encode()) for message in messages))
        for peer in peers:
            assert [await peer.receive() for _ in range(count)] == messages
    assert work.done == 3 * PEERS  # 100, 200 and 300
    assert work.most <= 8  # two in one turn


async def test_the_end_of_the_stream_waits_behind_what_was_put_off(kind: Kind) -> None:
    """Peers that say something and end their stream at once are heard, though most of them have to wait."""
    app = App()
    work = Work()
    heard: list[str] = []

    @app.websocket("/").on_message
    def slow(conn: Connection, message: str) -> None:
        work.do()
        heard.append(message)

    async with watched(app, kind, work) as peers:
        await send_at_once(peers, make_frame(TEXT, b"last words") + make_frame(8, b"\x03\xe8"))
        for peer in peers:
            close = await peer.receive_close()
            assert close is not None
            assert close.code == 1000
    assert heard == ["last words"] * PEERS
    assert work.most <= 4
