"""One session, played from the request to the end of the server, with one scope cancelled at one chosen moment.

    sweep = Sweep(script, style="async", cut="route")
    for number in sweep.points(): ...

A *script* says what the application does and what its peer does. A *play* is one run of it: a server with two
connections, the subject that the script is about and a canary that must not notice anything. The `Cutter` counts the
scheduling points of the server's tasks while the chosen scope is open, and cancels it at one of them.

A scheduling point is a moment at which Trio has just suspended a task or is about to go on with it. At the first, a
cancellation ends the waiting of that very task; at the second it finds a task that was woken for another reason and
learns of the cancellation when it waits next.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import trio

from sweep.peers import RawPeer
from trio_crowws import App, Connection, ConnectionClosed, Handler, Request, Server

__all__ = ["CUTS", "STYLES", "Cut", "Cutter", "Play", "Script", "Style"]

Style = Literal["session", "async", "sync", "class", "mixed"]
STYLES: tuple[Style, ...] = ("session", "async", "sync", "class", "mixed")

Cut = Literal["server", "route", "handler", "call"]
CUTS: tuple[Cut, ...] = ("server", "route", "handler", "call")

PATIENCE = 2000
"""Virtual seconds after which a play that does not end fails."""


class Cutter(trio.abc.Instrument):
    """Counts scheduling points while a scope is open, and cancels the scope at one of them.

    Where several scopes are open it is about the one that was opened first.

    Args:
      at: the number of that point, from 1; 0 for none.

    Attributes:
      points: how many there were.
      done: whether a scope was cancelled.
      runnable: the tasks that wait for nothing but their turn.
      on_cut: called just before the scope is cancelled.
      strike: what is done to the scope instead of cancelling it.
    """

    def __init__(self, at: int) -> None:
        self._at = at
        self._scopes: list[trio.CancelScope] = []
        self._inside: dict[trio.lowlevel.Task, bool] = {}
        self.on_cut: Callable[[], None] = lambda: None
        self.strike: Callable[[trio.CancelScope], None] = trio.CancelScope.cancel
        self.points = 0
        self.done = False
        self.runnable: set[trio.lowlevel.Task] = set()

    def count_below(self, root: trio.lowlevel.Task) -> None:
        """Only tasks at or below `root` count."""
        self._inside[root] = True

    def ignore(self, root: trio.lowlevel.Task) -> None:
        """Nor do tasks at or below `root`."""
        self._inside[root] = False

    def open(self, scope: trio.CancelScope) -> None:
        """Count from now on."""
        self._scopes.append(scope)

    def shut(self, scope: trio.CancelScope) -> None:
        """Count no more."""
        if scope in self._scopes:
            self._scopes.remove(scope)

    def point(self) -> None:
        """Count a point."""
        if self._scopes and not self.done:
            self.points += 1
            if self.points == self._at:
                self.cut(self._scopes[0])

    def cut(self, scope: trio.CancelScope) -> None:
        """Cancel a scope now."""
        self.done = True
        self.on_cut()
        self.strike(scope)

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self.runnable.add(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._scopes and self._is_inside(task):
            self.point()
        self.runnable.discard(task)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._scopes and self._is_inside(task):
            self.point()

    def _is_inside(self, task: trio.lowlevel.Task) -> bool:
        known = self._inside.get(task)
        if known is None:
            nursery = task.parent_nursery
            known = self._inside[task] = nursery is not None and self._is_inside(nursery.parent_task)
        return known


class Script:
    """What an application and its peer do. The defaults make an echo server and a peer that just closes.

    Attributes:
      options: of the route.
      styles: in which styles it can be played.
      calls: the calls that the cut "call" is about.
      refused: whether the application refuses the request.
      raises: whether the application raises on purpose.
      shields: whether the handler shields itself from cancellation.
      aborts: whether something is aborted on purpose.
      breaks: whether the stream is broken off.
      served: whether it needs the `Server`.
      completes: whether `on_error` and `on_close` end within `callback_timeout`.
    """

    options: ClassVar[dict[str, Any]] = {}
    styles: tuple[Style, ...] = STYLES
    cuts: tuple[Cut, ...] = ("server", "route", "handler")
    refused = False
    raises = False
    shields = False
    aborts = False
    breaks = False
    served = False
    completes = True

    async def on_accept(self, play: Play, request: Request) -> Any:
        return None

    async def on_open(self, play: Play, conn: Connection) -> None:
        pass

    async def on_message(self, play: Play, conn: Connection, message: str | bytes) -> None:
        await play.send(conn, message)

    async def on_error(self, play: Play, conn: Connection, error: Exception) -> None:
        pass

    async def on_close(self, play: Play, conn: Connection) -> None:
        pass

    # The same for plain callbacks.

    def plain_open(self, play: Play, conn: Connection) -> None:
        pass

    def plain_message(self, play: Play, conn: Connection, message: str | bytes) -> None:
        play.send_nowait(conn, message)

    async def session(self, play: Play, conn: Connection) -> None:
        """The messages of the session style."""
        while True:
            try:
                message = await play.receive(conn)
            except ConnectionClosed:
                return
            if message is not None:
                with play.noted("message", message):
                    await self.on_message(play, conn, message)

    async def peer(self, play: Play, peer: RawPeer) -> None:
        """What the peer does once its handshake is done; afterwards it behaves well until the stream ends."""
        await peer.send_close()

    async def beside(self, play: Play) -> None:
        """What happens beside, from the moment when the subject connects."""


@dataclass(frozen=True)
class Note:
    """An event in the life of the subject."""

    name: str
    value: Any
    time: float


class Play:
    """One run of a script.

    Attributes:
      app, server, route, conn: of the subject.
      notes: what the subject's callbacks saw, in order.
      sent: the messages whose `send` returned.
      unsent: those whose `send` was cancelled or raised.
    """

    app: App
    server: Server
    task: trio.lowlevel.Task

    def __init__(self, script: Script, style: Style, cut: Cut, cutter: Cutter) -> None:
        self.script = script
        self.style = style
        self.cut = cut
        self.cutter = cutter
        self.conn: Connection | None = None
        self.notes: list[Note] = []
        self.sent: list[bytes] = []
        self.unsent: list[bytes] = []
        self.children = 0
        self.scope = trio.CancelScope()  # around the call that serves
        self.build()

    # What scripts use

    def note(self, name: str, value: Any = None) -> None:
        self.notes.append(Note(name, value, trio.current_time()))

    @contextmanager
    def noted(self, name: str, value: Any = None) -> Generator[None]:
        """Note the beginning and the end of a callback, and whether it came to its own end."""
        self.note(name, value)
        try:
            yield
            self.note(f"{name} done")
        finally:
            self.note(f"{name} end")

    @contextmanager
    def call(self) -> Generator[trio.CancelScope]:
        """Around a call of the application; this is what the cut "call" cancels."""
        with trio.CancelScope() as scope:
            if self.cut != "call":
                yield scope
                return
            self.cutter.open(scope)
            self.cutter.point()
            try:
                yield scope
            finally:
                self.cutter.shut(scope)

    async def send(self, conn: Connection, message: str | bytes) -> bool:
        """Send a message; `False` if that was cancelled by the cut."""
        data = message.encode() if isinstance(message, str) else message
        self.unsent.append(data)
        with self.call() as scope:
            await conn.send(message)
            self.unsent.remove(data)
            self.sent.append(data)
        return not scope.cancelled_caught

    def send_nowait(self, conn: Connection, message: str | bytes) -> None:
        data = message.encode() if isinstance(message, str) else message
        if conn.send_nowait(message):
            self.sent.append(data)

    async def receive(self, conn: Connection) -> str | bytes | None:
        """Receive a message; `None` if that was cancelled by the cut."""
        with self.call():
            return await conn.receive()
        return None

    def child(self, conn: Connection, function: Callable[[], Awaitable[None]]) -> None:
        """Start a task of the connection."""

        async def run() -> None:
            self.children += 1
            try:
                await function()
            finally:
                self.children -= 1
                assert "close" not in self.names, "a task ran on after on_close had begun"

        conn.start_soon(run)

    @property
    def names(self) -> list[str]:
        return [note.name for note in self.notes]

    # The application

    def build(self) -> None:
        self.app = App(shutdown_grace=3)
        self.route = self.app.websocket("/subject", **self.script.options)
        self.build_styled(self.route)
        canary = self.app.websocket("/canary", ping_interval=None)

        @canary
        async def sing(conn: Connection) -> None:
            conn.join("hall")
            async for message in conn:
                await conn.send(message)

    @property
    def asks(self) -> bool:
        """Whether there is an `on_accept`. A request that nobody is asked about takes a shorter way."""
        return self.style in ("async", "class") or type(self.script).on_accept is not Script.on_accept

    async def _on_accept(self, request: Request) -> Any:
        with self.noted("accept"):
            return await self.script.on_accept(self, request)

    def _opened(self, conn: Connection) -> None:
        assert self.conn is None, "opened twice"
        self.conn = conn
        self.task = trio.lowlevel.current_task()
        if self.cut == "handler":
            self.cutter.open(conn.cancel_scope)

    async def _on_open(self, conn: Connection) -> None:
        self._opened(conn)
        with self.noted("open"):
            await self.script.on_open(self, conn)

    async def _on_message(self, conn: Connection, message: str | bytes) -> None:
        with self.noted("message", message):
            await self.script.on_message(self, conn, message)

    async def _on_error(self, conn: Connection, error: Exception) -> None:
        with self.noted("error", error):
            await self.script.on_error(self, conn, error)

    async def _on_close(self, conn: Connection, info: Any) -> None:
        with self.noted("close", info):
            assert conn not in self.app.connections
            assert not conn.rooms
            await self.script.on_close(self, conn)

    async def _session(self, conn: Connection) -> None:
        await self._on_open(conn)
        await self.script.session(self, conn)

    def _plain_open(self, conn: Connection) -> None:
        self._opened(conn)
        with self.noted("open"):
            self.script.plain_open(self, conn)

    def _plain_message(self, conn: Connection, message: str | bytes) -> None:
        with self.noted("message", message):
            self.script.plain_message(self, conn, message)

    def _plain_error(self, conn: Connection, error: Exception) -> None:
        with self.noted("error", error):
            pass

    def _plain_close(self, conn: Connection, info: Any) -> None:
        with self.noted("close", info):
            assert conn not in self.app.connections
            assert not conn.rooms

    def build_styled(self, route: Any) -> None:
        if self.style == "class":
            route(self._handler_class())
            return
        if self.asks:
            route.on_accept(self._on_accept)
        if self.style == "session":
            route(self._session)
        elif self.style == "sync":
            route.on_open(self._plain_open)
            route.on_message(self._plain_message)
            route.on_error(self._plain_error)
            route.on_close(self._plain_close)
            return
        elif self.style == "async":
            route.on_open(self._on_open)
            route.on_message(self._on_message)
        else:
            route.on_open(self._on_open)
            route.on_message(self._plain_message)
        route.on_error(self._on_error)
        route.on_close(self._on_close)

    def _handler_class(self) -> type[Handler]:
        play = self

        class Subject(Handler):
            async def on_accept(self, request: Request) -> Any:
                return await play._on_accept(request)

            async def on_open(self, conn: Connection) -> None:
                await play._on_open(conn)

            async def on_message(self, conn: Connection, message: str | bytes) -> None:
                await play._on_message(conn, message)

            async def on_error(self, conn: Connection, error: Exception) -> None:
                await play._on_error(conn, error)

            async def on_close(self, conn: Connection, info: Any) -> None:
                await play._on_close(conn, info)

        return Subject
