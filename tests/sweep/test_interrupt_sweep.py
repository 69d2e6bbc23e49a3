"""Ctrl-C at every line of the package's own code: whatever is struck, the contract holds.

A scene is played again and again; SIGINT comes at the first, the second, the third ... line of the package that is run.
First lines at which Trio raises KeyboardInterrupt on the spot, then all lines, where most are protected and the main
task is told. A sample is taken of both; `SWEEP=all` tries every line of every scene, and takes long.
"""

from __future__ import annotations

import gc
import math
import os
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from typing import Any

import pytest
import trio
import trio.testing
from wsproto.utilities import LocalProtocolError

from support.servers import MemoryListener, shared_tls
from sweep.lines import Striker
from trio_crowws import (
    App,
    Backoff,
    Connection,
    ConnectionClosed,
    CrowWSError,
    Handler,
    LinkPhase,
    LinkState,
    Reject,
    Request,
    Server,
    connect,
    connect_stream,
    keep_connected,
)
from trio_crowws.testing import connect as connect_in_memory
from trio_crowws.testing import make_frame, shake_hands

ALL = os.environ.get("SWEEP") == "all"

SPOTS, LINES = (math.inf, math.inf) if ALL else (8, 4)
"""How many are struck of the lines at which Trio raises on the spot, and how many of all lines."""

LONG: dict[str, Any] = {"close_timeout": 1000, "send_timeout": 1000, "ping_interval": None}
"""Time is virtual and jumps when nothing is to be done, so nothing may depend on how fast the kernel is."""

STYLES = ("session", "async", "plain", "class")
KINDS = ("memory", "tcp", "tls")
SERVERS = [
    (style, kind)
    for style in STYLES
    for kind in KINDS
    if ALL or kind == "memory" or (style, kind) in (("session", "tcp"), ("plain", "tls"))
]

struck: Counter[str] = Counter()


class Stage:
    """One application, and what its callbacks have seen.

    Attributes:
      style: how the handler is written.
      kind: of the transports.
      app: the application.
      opened, closed: the connections whose `on_open` and `on_close` were entered.
      running: how many tasks of connections there are.
    """

    def __init__(self, style: str, kind: str = "memory") -> None:
        self.style = style
        self.kind = kind
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.running = 0
        self.listener = MemoryListener()
        self.states: list[LinkState] = []
        self.app = App(shutdown_grace=1, handshake_timeout=1000, **LONG)
        self.app.middleware(lambda request: None)
        self.app.http("/page")(lambda request: "a page")
        route = self.app.websocket("/", send_high_water=1024)
        if style == "session":
            route(self._session)
            route.onclose(self._on_close).onerror(self._on_error).on_ping(self._on_ping)
        elif style == "async":
            route.onaccept(self._on_accept).onopen(self._on_open).onmessage(self._on_message).onclose(self._on_close)
            route.onerror(self._on_error).on_ping(self._on_ping)
        elif style == "plain":
            route.onopen(self._plain_open).onmessage(self._plain_message).onclose(self._plain_close)
            route.onerror(lambda conn, error: None).on_ping(lambda conn, payload: None)
        else:
            route(self._make_handler_class())

    # The application

    def _make_handler_class(self) -> type[Handler]:
        stage = self

        class Telling(Handler):
            async def on_open(self, conn: Connection) -> None:
                await stage._on_open(conn)

            def on_text(self, conn: Connection, message: str) -> None:
                stage._plain_message(conn, message)

            async def on_binary(self, conn: Connection, message: bytes) -> None:
                await stage._on_message(conn, message)

            async def on_close(self, conn: Connection, info: Any) -> None:
                await stage._on_close(conn, info)

        return Telling

    async def _session(self, conn: Connection) -> None:
        await self._on_open(conn)
        async for message in conn:
            await self._on_message(conn, message)

    async def _on_accept(self, request: Request) -> None:
        await trio.lowlevel.checkpoint()
        if request.query.get("refuse"):
            raise Reject(403)

    async def _on_open(self, conn: Connection) -> None:
        self.opened.append(conn.id)
        conn.join("room")
        conn.start_soon(self._child)
        await trio.lowlevel.checkpoint()

    async def _on_message(self, conn: Connection, message: str | bytes) -> None:
        await conn.send(message)
        if message == "everything":
            conn.leave("room")
            conn.join("room")
            await conn.send_json([])
            await conn.ping()
            self.app.room("room").publish("everybody")
            conn.start_soon(conn.wait_closed)
            await conn.close(4000)
            return
        if message == "abort":
            conn.abort()
            return
        conn.publish("room", "everybody")
        if len(message) > 1000:
            await conn.send(message)

    async def _on_ping(self, conn: Connection, payload: bytes) -> None:
        await trio.lowlevel.checkpoint()

    async def _on_error(self, conn: Connection, error: Exception) -> None:
        await trio.lowlevel.checkpoint()

    async def _on_close(self, conn: Connection, info: Any) -> None:
        self.closed.append(conn.id)
        await trio.lowlevel.checkpoint()

    def _plain_open(self, conn: Connection) -> None:
        self.opened.append(conn.id)
        conn.join("room")

    def _plain_message(self, conn: Connection, message: str | bytes) -> None:
        conn.send_nowait(message)
        if message == "everything":
            conn.leave("room")
            conn.join("room")
            self.app.room("room").publish("everybody")
            conn.close_nowait(4000)
        elif message == "abort":
            conn.abort()
        else:
            self.app.broadcast("everybody")

    def _plain_close(self, conn: Connection, info: Any) -> None:
        self.closed.append(conn.id)

    async def _child(self) -> None:
        self.running += 1
        try:
            await trio.sleep_forever()
        finally:
            self.running -= 1

    # The transports

    async def serve(self, *, task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED) -> None:
        if self.kind == "memory":
            await self.app.serve_listeners([self.listener], task_status=task_status)
        else:
            context = shared_tls().server if self.kind == "tls" else None
            await self.app.serve("127.0.0.1", 0, ssl_context=context, task_status=task_status)

    async def open_stream(self, server: Server) -> trio.abc.Stream:
        if self.kind == "memory":
            return self.listener.connect()
        plain = await trio.open_tcp_stream("127.0.0.1", server.port)
        if self.kind == "tls":
            return trio.SSLStream(plain, shared_tls().client, server_hostname="localhost", https_compatible=True)
        return plain

    def connect(self, server: Server, path: str = "/") -> Any:
        if self.kind == "memory":
            return connect_stream(self.listener.connect(), f"ws://h{path}", open_timeout=1000, **LONG)
        if self.kind == "tls":
            context = shared_tls().client
            return connect(f"wss://localhost:{server.port}{path}", ssl_context=context, open_timeout=1000, **LONG)
        return connect(f"ws://127.0.0.1:{server.port}{path}", open_timeout=1000, **LONG)


class Status(trio.TaskStatus[Server]):
    """Starts the peers when there is a server."""

    def __init__(self, nursery: trio.Nursery, peers: Callable[[Server], Awaitable[None]]) -> None:
        self._nursery = nursery
        self._peers = peers

    def started(self, value: Server) -> None:
        self._nursery.start_soon(self._peers, value)


# The scenes


async def server_in_the_main_task(stage: Stage) -> None:
    """Peers come and go as they do, and then the server is closed."""

    async def peers(server: Server) -> None:
        async with trio.open_nursery() as nursery:
            for talk in TALKS:
                nursery.start_soon(begin, talk, server)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await (server.drain(spread=0.1) if stage.style == "async" else server.aclose())

    async def begin(talk: Callable[[trio.abc.Stream], Awaitable[None]], server: Server) -> None:
        async with await stage.open_stream(server) as stream:
            await talk(stream)

    async with trio.open_nursery() as nursery:
        await stage.serve(task_status=Status(nursery, peers))


async def talk_and_close(stream: trio.abc.Stream) -> None:
    peer = await shake_hands(stream)
    await peer.send("one")
    await peer.receive()
    await peer.ping()
    await peer.send_raw(make_frame(1, b"two") + make_frame(2, b"x" * 2000))
    for _ in range(2):
        await peer.receive()
    await peer.close()


async def talk_and_break_off(stream: trio.abc.Stream) -> None:
    peer = await shake_hands(stream)
    await peer.send("one")
    await trio.aclose_forcefully(stream)


async def break_the_protocol(stream: trio.abc.Stream) -> None:
    peer = await shake_hands(stream)
    await peer.send_frame(3)
    await peer.receive_close()


async def stay(stream: trio.abc.Stream) -> None:
    peer = await shake_hands(stream)
    await peer.receive_close()


async def have_all_done(stream: trio.abc.Stream) -> None:
    peer = await shake_hands(stream)
    await peer.send("everything")
    await peer.receive_close()


async def have_it_aborted(stream: trio.abc.Stream) -> None:
    peer = await shake_hands(stream)
    await peer.send("abort")
    await peer.receive_close()


async def ask_for_a_page(stream: trio.abc.Stream, path: bytes = b"page") -> None:
    await stream.send_all(b"GET /%s HTTP/1.1\r\nHost: testserver\r\n\r\n" % path)
    while await stream.receive_some():
        pass


async def ask_for_nothing(stream: trio.abc.Stream) -> None:
    await ask_for_a_page(stream, b"nothing")


TALKS = (
    talk_and_close,
    talk_and_break_off,
    break_the_protocol,
    stay,
    have_all_done,
    have_it_aborted,
    ask_for_a_page,
    ask_for_nothing,
)


async def client_in_the_main_task(stage: Stage) -> None:
    """A client uses all that it has, another one shares its engine, and a third one is refused."""

    async def other(server: Server) -> None:
        async with stage.connect(server) as conn:
            await conn.send("other")
            await conn.receive()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(stage.serve)
        nursery.start_soon(other, server)
        async with stage.connect(server) as conn:
            conn.start_soon(stage._child)
            await conn.send("one")
            await conn.receive()
            await conn.ping()
            conn.send_nowait(b"x" * 2000)
            async for message in conn:
                if len(message) == 2000:
                    break
            await conn.close(1000)
        with pytest.raises(Exception, match="404"):
            async with stage.connect(server, "/nothing"):
                pytest.fail("there is no connection")
        nursery.cancel_scope.cancel()


async def reconnecting_client_in_the_main_task(stage: Stage) -> None:
    """The first connection is ended by the peer, the second one by the handler."""
    attempts = count(1)

    async def handle(conn: Connection) -> str | None:
        if next(attempts) == 1:
            with pytest.raises(ConnectionClosed):
                await conn.receive()
            return None
        await conn.send("one")
        await conn.receive()
        return "done"

    async def end_the_first(server: Server) -> None:
        while not server.connections:
            await trio.lowlevel.checkpoint()
        for conn in server.connections:
            conn.close_nowait(1012)

    async with trio.open_nursery() as nursery:
        server = await nursery.start(stage.serve)
        nursery.start_soon(end_the_first, server)
        result = await keep_connected(
            handle,
            "ws://h/",
            backoff=Backoff(initial=0.01, maximum=0.01),
            on_state=stage.states.append,
            connect=lambda url, **options: stage.connect(server),
        )
        assert result == "done"
        await server.aclose()


async def kit_in_the_main_task(stage: Stage) -> None:
    """The application in memory, with a peer of the testing kit."""
    async with connect_in_memory(stage.app) as peer:
        await peer.send("one")
        await peer.receive()
        await peer.close()


# What must be true


def play(scene: Callable[[Stage], Awaitable[None]], stage: Stage, striker: Striker) -> None:
    """Play a scene, with a signal at one of its lines."""

    async def main() -> None:
        before = trio.lowlevel.current_statistics().tasks_living
        with trio.fail_after(1e6):
            try:
                await scene(stage)
            finally:
                assert trio.lowlevel.current_statistics().tasks_living == before
        await trio.lowlevel.checkpoint()  # at the latest here, where it came with the last step

    # Long enough for the kernel to carry a packet from one end to the other.
    clock = trio.testing.MockClock(autojump_threshold=0 if stage.kind == "memory" else 0.002)
    interrupted = False
    with striker.watching():
        try:
            trio.run(main, clock=clock)
        except* KeyboardInterrupt:
            interrupted = True
        except* (trio.BrokenResourceError, OSError, CrowWSError, LocalProtocolError):
            assert striker.place is not None  # a peer did not expect the end
    assert interrupted is (striker.place is not None)
    assert sorted(stage.opened) == sorted(stage.closed), (stage.opened, stage.closed)
    assert len(set(stage.opened)) == len(stage.opened)
    assert not stage.running
    assert not stage.app.connections
    assert not stage.app.rooms
    assert stage.app._occupied == 0
    phases = [state.phase for state in stage.states]
    assert not phases or (phases[-1] is LinkPhase.STOPPED and phases.count(LinkPhase.STOPPED) == 1), phases


def sweep(scene: Callable[[Stage], Awaitable[None]], make: Callable[[], Stage], name: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for everywhere, plays in ((False, SPOTS), (True, LINES)):
            testing = scene is kit_in_the_main_task
            undisturbed = Striker(0, everywhere=everywhere, testing=testing)
            play(scene, make(), undisturbed)
            assert undisturbed.lines > 10
            stride = max(1, round(undisturbed.lines / plays))
            # The order of tasks is Trio's to choose, so a play may be a little shorter or longer than the one before.
            for number in range(sum(map(ord, name)) % stride + 1, undisturbed.lines + 1, stride):
                striker = Striker(number, everywhere=everywhere, testing=testing)
                try:
                    play(scene, make(), striker)
                except BaseException as error:
                    error.add_note(f"the signal came at {striker.place}, line {number}, everywhere={everywhere}")
                    raise
                struck[name] += striker.place is not None
        gc.collect()
    assert not [str(warning.message) for warning in caught]
    assert struck[name] > 10


@pytest.mark.parametrize(("style", "kind"), SERVERS)
def test_a_server_survives_ctrl_c_at_every_line(style: str, kind: str) -> None:
    """KeyboardInterrupt leaves the server, and `on_close` has run once for each `on_open`, and never otherwise."""
    sweep(server_in_the_main_task, partial(Stage, style, kind), f"server {style} {kind}")


@pytest.mark.parametrize("kind", KINDS if ALL else ("memory", "tls"))
def test_a_client_survives_ctrl_c_at_every_line(kind: str) -> None:
    """KeyboardInterrupt leaves the block, and nothing is left of the connection and its engine."""
    sweep(client_in_the_main_task, partial(Stage, "session", kind), f"client {kind}")


def test_a_reconnecting_client_survives_ctrl_c_at_every_line() -> None:
    """KeyboardInterrupt leaves `keep_connected`, which says once that it has stopped."""
    sweep(reconnecting_client_in_the_main_task, partial(Stage, "session"), "reconnecting client")


def test_the_testing_kit_survives_ctrl_c_at_every_line() -> None:
    """KeyboardInterrupt leaves `testing.connect`, and the application's connection has ended."""
    sweep(kit_in_the_main_task, partial(Stage, "async"), "testing kit")


def test_what_runs_unprotected() -> None:
    """Where Trio raises on the spot there is nothing of ours but what the interrupt cannot harm."""
    found: set[str] = set()
    scenes = [(server_in_the_main_task, Stage(style)) for style in STYLES]
    scenes += [(scene, Stage("session")) for scene in (client_in_the_main_task, reconnecting_client_in_the_main_task)]
    for scene, stage in scenes:
        striker = Striker(0)
        play(scene, stage, striker)
        found |= {name.partition(".<locals>")[0] for name in striker.functions}
    assert {name for name in found if name.partition(".")[0] not in VALUES} <= HARMLESS
    assert {"calling._call", "calling._wait", "calling.run_unprotected", "receiving.Receiving._work"} <= found


VALUES = {"_options", "backoff", "connect", "errors", "handlers", "handshake", "_request", "request", "url"}
"""Modules of values: who is interrupted there has checked or made some, and nobody else has seen them yet."""

HARMLESS = {
    # They call what is the application's.
    "calling.Call.__init__",
    "calling._call",
    "calling._wait",
    "calling.call",
    "calling.refuse_awaitable",
    "calling.run_unprotected",
    "receiving.Receiving._call_control",
    "receiving.Receiving._work",
    "_route.Route._make_callbacks",
    "supervisor.is_final",
    # They read, make something that nobody has seen yet, or call what is protected.
    "_rooms.Room.__init__",
    "_rooms.Room.publish",
    "_rooms.Rooms.publish",
    "_server.Server.connections",
    "_server.Server.port",
    "_site.Site.broadcast",
    "_site.Site.room",
    "connecting.Connecting.__init__",
    "connection.Connection.__aiter__",
    "connection.Connection.publish",
    "connection.Connection.send_json",
}
