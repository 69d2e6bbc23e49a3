"""Context variables: each connection's code runs in one context of its own, from `origins` to `on_close`."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from support.certificates import make_tls
from support.rawclient import RawClient
from support.servers import Kind, MemoryListener, Recorder, Style, serving
from trio_crowws import App, Connection, Handler, Request, connect
from trio_crowws.testing import FaultyStream, make_frame, shake_hands

STEPS = contextvars.ContextVar[tuple[str, ...]]("STEPS", default=())
TEXT, RESERVED = 1, 3


class Steps:
    """Notes each step of a connection in a context variable, and what that held at the end of each connection.

    Attributes:
      seen: what the variable held in `on_close`.
      tokens: what undoes the first step of each connection, by the target of its request.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[str, ...]] = []
        self.tokens: dict[str, contextvars.Token[tuple[str, ...]]] = {}

    def step(self, name: str) -> Callable[..., Any]:
        def take(*arguments: object) -> Any:
            token = STEPS.set((*STEPS.get(), name))
            for argument in arguments:
                if isinstance(argument, Request):
                    self.tokens.setdefault(argument.target, token)
            return True if name == "origins" else None

        return take

    def close(self, conn: Connection, _: object) -> None:
        self.seen.append(STEPS.get())
        STEPS.reset(self.tokens.pop(conn.request.target))  # a ValueError in any other context than the first step's
        assert STEPS.get() == ()


def make_app(steps: Steps, style: Style) -> tuple[App, Recorder, list[str]]:
    """An application in which each step is noted, and the names of the steps up to the second message."""
    app = App()

    def message(conn: Connection, text: str) -> None:
        steps.step("message")()
        conn.send_nowait(text)

    hooks = {
        "accept": steps.step("accept"),
        "open": steps.step("open"),
        "message": message,
        "error": steps.step("error"),
        "close": steps.close,
    }
    recorder = Recorder(app, style=style, hooks=hooks, origins=steps.step("origins"))
    app.middleware(steps.step("middleware"))
    names = ["origins", "middleware", "accept", "open", "message", "message", "error"]
    if style == "class":
        assert recorder.route._plan is not None
        recorder.route._plan._cls.__init__ = steps.step("constructor")  # type: ignore[method-assign]
        names.insert(1, "constructor")
    return app, recorder, names


async def test_one_connection_has_one_context(kind: Kind, style: Style) -> None:
    """What a step sets is seen by all later ones of that connection, and can be reset; no other connection sees it."""
    steps = Steps()
    app, recorder, names = make_app(steps, style)
    async with serving(app, kind) as site:
        async with site.connect("/?1") as first, site.connect("/?2") as second:
            for peer in (first, second, second, first):
                await peer.send("hello")
                await peer.receive()
            for peer in (second, first):
                await peer.send_frame(RESERVED)
        async with site.connect("/?3") as third:
            await third.send_raw(make_frame(TEXT, b"one") + make_frame(TEXT, b"two") + make_frame(RESERVED))
            await third.receive_close()
        await recorder.wait("close", 3)
    recorder.check()
    assert steps.seen == [tuple(names)] * 3
    assert not steps.tokens
    assert STEPS.get() == ()


@pytest.mark.parametrize("source", ["constructor", "origins"])
async def test_what_is_called_before_the_101_leaves_nothing_behind(kind: Kind, source: str) -> None:
    """A constructor or `origins` that nothing else precedes has a context of its own, too."""
    app = App()
    seen: list[tuple[str, ...]] = []

    class Setting(Handler):
        def __init__(self) -> None:
            STEPS.set(("private",))

        def on_message(self, conn: Connection, message: str) -> None:
            raise AssertionError("nobody sends one")

    def allow(request: Request) -> bool:
        STEPS.set(("private",))
        return True

    async def look(conn: Connection) -> None:
        seen.append(STEPS.get())
        await conn.send("seen")

    app.websocket("/public")(look)
    if source == "constructor":
        app.websocket("/private")(Setting)
    else:
        app.websocket("/private", origins=allow)(look)
    app.http("/page")(lambda request: repr(STEPS.get()))
    async with serving(app, kind) as site:
        for _ in range(2):
            async with site.connect("/private") as peer:
                await peer.close()
            async with site.connect("/public") as peer:
                await peer.receive()
        client = RawClient(await site.open_stream())
        await client.send(b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.read_answer()).body == b"()"
        await client.stream.aclose()
    assert [steps for steps in seen if steps != ("private",)] == [(), ()]


async def test_all_begin_with_what_holds_where_the_server_was_made(kind: Kind) -> None:
    """Connections and pages see what was set before `serve`, and nothing of what its caller sets afterwards."""
    app = App()
    app.websocket("/").on_open(lambda conn: conn.send_nowait(repr(STEPS.get())))
    token = STEPS.set(("before",))
    async with serving(app, kind) as site:
        STEPS.reset(token)
        STEPS.set(("after",))
        async with site.connect() as peer:
            assert await peer.receive() == "('before',)"


async def test_a_listener_of_the_application_leaves_nothing_behind() -> None:
    """What a listener's `accept` sets, which runs in one task for all peers, is not seen by connections."""

    class Setting(MemoryListener):
        async def accept(self) -> FaultyStream:
            stream = await super().accept()
            STEPS.set((*STEPS.get(), "accepted"))
            return stream

    app = App()
    app.websocket("/").on_open(lambda conn: conn.send_nowait(repr(STEPS.get())))
    listener = Setting()
    async with trio.open_nursery() as nursery:
        server = await nursery.start(app.serve_listeners, [listener])
        for _ in range(2):
            peer = await shake_hands(listener.connect())
            assert await peer.receive() == "()"
            await peer.close()
        await server.aclose()


async def test_functions_of_an_ssl_context_leave_nothing_behind(tmp_path: Path) -> None:
    """What a callback for SNI sets, which runs where all peers are read, is seen by no connection and no later call."""
    seen: list[object] = []
    tls = make_tls(tmp_path)

    def choose(*_: object) -> None:
        seen.append(STEPS.get())
        STEPS.set(("sni",))

    tls.server.sni_callback = choose
    app = App()
    app.websocket("/").on_open(lambda conn: conn.send_nowait(repr(STEPS.get())))
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(app.serve, "127.0.0.1", 0, ssl_context=tls.server))
        for _ in range(2):
            plain = await trio.open_tcp_stream("127.0.0.1", server.port)
            stream = trio.SSLStream(plain, tls.client, server_hostname="localhost", https_compatible=True)
            peer = await shake_hands(stream)
            assert await peer.receive() == "()"
            await peer.close()
            await trio.aclose_forcefully(stream)
        await server.aclose()
    assert seen == [(), ()]


async def test_a_tasks_context_is_a_copy(style: Style) -> None:
    """What a task of `start_soon` sets stays in that task; the connection's own code does not see it."""
    app = App()
    seen: list[tuple[str, ...]] = []

    async def child(conn: Connection) -> None:
        STEPS.set((*STEPS.get(), "child"))
        seen.append(STEPS.get())
        await conn.send("set")

    def opened(conn: Connection) -> None:
        STEPS.set(("open",))
        conn.start_soon(child, conn)

    Recorder(app, style=style, hooks={"open": opened, "message": lambda conn, _: seen.append(STEPS.get())})
    async with serving(app) as site, site.connect() as peer:
        assert await peer.receive() == "set"
        await peer.send("look")
        await peer.close()
    assert seen == [("open", "child"), ("open",)]


async def test_client_connections_share_no_context() -> None:
    """The engine that clients share knows nothing of the task that started it; `start_soon` copies its caller's."""
    app = App()
    app.websocket("/").on_message(lambda conn, message: conn.send_nowait(message))
    seen: dict[str, tuple[str, ...]] = {}

    async def client(name: str, port: int, *, task_status: trio.TaskStatus[trio.Event]) -> None:
        STEPS.set((name,))
        done = trio.Event()
        async with connect(f"ws://127.0.0.1:{port}/") as conn:
            task_status.started(done)
            conn.start_soon(look, name, conn)
            assert await conn.receive() == name
            await done.wait()
        assert STEPS.get() == (name,)

    async def look(name: str, conn: Connection) -> None:
        seen[name] = STEPS.get()
        STEPS.set(("child",))
        await conn.send(name)

    async with serving(app, "tcp") as site, trio.open_nursery() as nursery:
        dones = [await nursery.start(client, name, site.server.port) for name in ("one", "two")]
        for done in dones:
            done.set()
    assert seen == {"one": ("one",), "two": ("two",)}
    assert STEPS.get() == ()
