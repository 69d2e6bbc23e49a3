"""Connecting, talking and leaving, cancelled at each of their scheduling points in turn.

Each time: the cancellation comes out, nothing is left (no task, no descriptor), a connection that was open has ended
with a Close frame, no message is torn or lost in the middle, and the next connection works.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from itertools import count
from typing import Any

import pytest
import trio
import trio.testing

from support.clients import client_of, open_files, tasks
from support.proxies import small_proxy
from support.servers import KINDS, Kind, Recorder, Site, serving, shared_tls, until
from sweep.playing import Cutter
from trio_crowws import App, Connection, ConnectionClosed, connect

KIND_OR_PROXY = (*KINDS, "proxy", "tls over proxy")

swept: dict[str, int] = {}


class Scene:
    """A server for all runs of one sweep, and the ways to connect to it."""

    def __init__(self, site: Site, recorder: Recorder, proxy: str | None) -> None:
        self.site = site
        self.recorder = recorder
        self.proxy = proxy

    def connect(self) -> AbstractAsyncContextManager[Connection]:
        if self.proxy is None:
            return client_of(self.site, close_timeout=3)
        tls = self.site.kind == "tls"
        url = f"{'wss://localhost' if tls else 'ws://127.0.0.1'}:{self.site.server.port}/"
        context = shared_tls().client if tls else None
        return connect(url, proxy=self.proxy, ssl_context=context, close_timeout=3)


async def just_connect(scene: Scene, scope: trio.CancelScope, cutter: Cutter) -> None:
    async with watched(scene, cutter, scope):
        pass


async def echo_once(scene: Scene, scope: trio.CancelScope, cutter: Cutter) -> None:
    async with watched(scene, cutter, scope) as conn:
        await conn.send("hello")
        assert await conn.receive() == "hello"


async def send_much(scene: Scene, scope: trio.CancelScope, cutter: Cutter) -> None:
    async with watched(scene, cutter, scope) as conn:
        for number in range(4):
            await conn.send(f"{number}" * 100_000)
        for number in range(4):
            assert await conn.receive() == f"{number}" * 100_000


async def close_oneself(scene: Scene, scope: trio.CancelScope, cutter: Cutter) -> None:
    async with watched(scene, cutter, scope) as conn:
        await conn.send("hello")
        await conn.close(1000)


async def ping_and_tasks(scene: Scene, scope: trio.CancelScope, cutter: Cutter) -> None:
    async with watched(scene, cutter, scope) as conn:
        conn.start_soon(conn.ping)
        await conn.ping()
        conn.start_soon(trio.sleep_forever)
        await conn.ping()


def watched(scene: Scene, cutter: Cutter, scope: trio.CancelScope) -> AbstractAsyncContextManager[Connection]:
    return _Watched(scene, cutter, scope)


class _Watched:
    """Remembers the connection, so that its end can be looked at."""

    def __init__(self, scene: Scene, cutter: Cutter, scope: trio.CancelScope) -> None:
        self._inner = scene.connect()

    async def __aenter__(self) -> Connection:
        conn = await self._inner.__aenter__()
        conns.append(conn)
        return conn

    async def __aexit__(self, *details: Any) -> bool | None:
        return await self._inner.__aexit__(*details)


conns: list[Connection] = []

Play = Callable[[Scene, trio.CancelScope, Cutter], Awaitable[None]]
PLAYS: tuple[Play, ...] = (just_connect, echo_once, send_much, close_oneself, ping_and_tasks)


async def perform(kind: Any, play: Play, cutters: Callable[[int], Cutter]) -> int:
    """Play again and again, cancelled one point later each time, until it comes to its end; return the points."""
    app = App()
    recorder = Recorder(app)
    real: Kind = "tls" if kind == "tls over proxy" else "tcp" if kind == "proxy" else kind
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(serving(app, real, patience=120))
        proxy = await stack.enter_async_context(small_proxy(patience=120)) if kind not in KINDS else None
        scene = Scene(site, recorder, None if proxy is None else proxy.url)
        await play(scene, trio.CancelScope(), cutters(0))  # what is made once is made now
        await settled(site)
        for number in count(1):
            if not await play_once(scene, play, cutters(number)):
                return number - 1
    raise AssertionError


async def settled(site: Site) -> None:
    await until(lambda: not site.server.connections)
    await trio.testing.wait_all_tasks_blocked(0.002)


async def play_once(scene: Scene, play: Play, cutter: Cutter) -> bool:
    conns.clear()
    seen = len(scene.recorder.values("close"))
    before, files = tasks(), open_files()
    scope = trio.CancelScope()
    trio.lowlevel.add_instrument(cutter)
    try:
        cutter.count_below(trio.lowlevel.current_task())
        cutter.open(scope)
        with trio.fail_after(10), scope:
            await play(scene, scope, cutter)
        cutter.shut(scope)
    finally:
        trio.lowlevel.remove_instrument(cutter)
    left = tasks() - before
    assert not [task for task in left if "client engine" in task.name], left
    await settled(scene.site)
    with trio.fail_after(10):  # server and proxy may need some steps more
        await until(lambda: not tasks() - before and not open_files() - files)
    for conn in conns:
        info = conn.close_info
        assert info is not None
        assert info.clean, info
        assert info.code in ((1000, 1001) if cutter.done else (1000,))
    check_server(scene.recorder, seen, opened=bool(conns))
    return cutter.done


def check_server(recorder: Recorder, seen: int, *, opened: bool) -> None:
    """What the server was told: whole messages, and the Close frame of every connection that was open."""
    recorder.check()
    infos = recorder.values("close")[seen:]
    assert len(infos) <= 1
    if opened:
        assert [info.code for info in infos] in ([1000], [1001])
        assert infos[0].clean
    for message in recorder.values("message"):
        assert message == "hello" or (len(message) == 100_000 and len(set(message)) == 1)
    recorder.notes.clear()


@pytest.mark.parametrize("play", PLAYS, ids=lambda play: play.__name__)
@pytest.mark.parametrize("kind", KIND_OR_PROXY)
async def test_every_cancellation_leaves_nothing_behind(kind: str, play: Play) -> None:
    """Whatever it interrupts: the resolver, the socket, the proxy, TLS, the answer, a send, a receive, the end."""
    points = await perform(kind, play, Cutter)
    swept[f"{kind} {play.__name__}"] = points
    assert points > 5


async def test_a_cancelled_receive_loses_no_message() -> None:
    """A message that has come is there for the next `receive`."""
    app = App()
    Recorder(app)
    async with serving(app) as site, client_of(site) as conn:
        for number in range(50):
            await conn.send(str(number))
            with trio.CancelScope() as scope:
                for _ in range(number % 7):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
                await conn.receive()
            assert await conn.receive() == str(number)


async def test_a_cancelled_send_sends_nothing() -> None:
    """The frames of a connection stay whole, however often a blocked `send` is cancelled."""
    app = App()
    release = trio.Event()

    async def slow(conn: Connection, message: str | bytes) -> None:
        await release.wait()

    recorder = Recorder(app, hooks={"message": slow}, receive_buffer=1000)
    async with serving(app, "tcp") as site, client_of(site) as conn:
        conn_socket = getattr(conn._transport, "_sock")  # noqa: B009 -- to fill it early
        conn_socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sent = []
        for number in range(60):
            with trio.move_on_after(0.005) as scope:
                await conn.send(f"{number:03}" * 30_000)
            if not scope.cancelled_caught:
                sent.append(number)
        assert len(sent) < 60
        release.set()
        await conn.send("last")
        await recorder.wait("message", len(sent) + 1)
        assert [message[:3] for message in recorder.values("message")] == [f"{number:03}" for number in sent] + ["las"]


async def test_a_cancelled_close_goes_on() -> None:
    """Cancelling it stops the waiting only."""
    app = App()
    recorder = Recorder(app)
    async with serving(app) as site:
        async with client_of(site) as conn:
            with trio.CancelScope() as scope:
                scope.cancel()
                await conn.close(4000)
            assert scope.cancelled_caught
            with pytest.raises(ConnectionClosed):
                await conn.receive()
        await recorder.check_end(4000, clean=True, initiator="remote", sent=4000, received=4000, error=None)


def test_the_client_s_sweep_was_wide(capsys: pytest.CaptureFixture[str]) -> None:
    """Hundreds of moments were tried. Runs behind the sweeps."""
    with capsys.disabled():
        print(f"\n{sum(swept.values())} cancellation points in {len(swept)} sweeps of the client")
    if len(swept) == len(PLAYS) * len(KIND_OR_PROXY):  # not where single tests were asked for
        assert sum(swept.values()) > 500
