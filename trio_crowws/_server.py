"""One running server: who listens, where connections run, and the way to its end.

Theory of operation
    serve
    └── nursery: the engine, under a shield (it must outlive the connections, which say goodbye through it)
        └── nursery: the accept loops, the HTTP answers, and for each route
            └── a nursery with one task for each connection of the route

    There is one way down for everything. `aclose`, `drain` and signals come to `_shut_down`; after a cancellation each
    task does the same by itself in a shorter time: stop accepting, 503 to half-open handshakes, Close to all
    connections, wait, cancel what is left, run every `on_close`, release the transports. With a `linger`, `drain` lets
    handshakes that have begun finish first.
"""

from __future__ import annotations

import random
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, final

import trio

from ._admission import Admission
from ._closeinfo import check_close
from ._foreign import cause_of, describe, explain, is_a, unwrap
from ._listeners import EXHAUSTED_PAUSE, ListeningSocket, format_address, is_exhausted, url_of
from ._log import log
from ._options import check_seconds
from ._route import Route
from ._session.connection import Connection
from ._site import Site
from ._transport.addresses import plain_address
from ._transport.engine import Engine
from ._transport.stream import addresses_of, close_stream
from ._types import Address

__all__ = ["Server"]

_PASSES_TO_ACCEPT = 3
"""Scheduler passes in which a listener of streams gives what it has, if it has anything."""

_CLOSE_LISTENERS = 1.0
"""Seconds for listeners and streams of the application's own to be closed by force."""


class _Shutdown(NamedTuple):
    grace: float
    code: int
    spread: float = 0
    linger: float = 0


@final
class Server:
    """A running server, as `await nursery.start(app.serve, ...)` returns it."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._engine = Engine()
        self._admission = Admission(site, self._engine)
        self._accepting = trio.CancelScope()
        self._listening: list[ListeningSocket] = []
        self._addresses: list[tuple[str, int] | str] = []
        self._ssl_context: ssl.SSLContext | None = None
        self._streams_accepted = 0
        self._asked = trio.Event()
        self._shutdown: _Shutdown | None = None
        self._spreading = trio.CancelScope()
        self._accepting_last = trio.CancelScope()
        self._lingering = trio.CancelScope()
        self._grace = trio.CancelScope()
        self._finished = trio.Event()

    def __repr__(self) -> str:
        return f"<Server on {self._where()} with {len(self._admission.connections)} connections>"

    def _where(self) -> str:
        names = (name if isinstance(name, str) else format_address(name) for name in self._addresses)
        return ", ".join(names) or "a stream"

    def _urls(self) -> str:
        secure = self._ssl_context is not None
        return ", ".join([url_of(address, secure=secure) for address in self._addresses])

    # What is known about it

    @property
    def addresses(self) -> list[tuple[str, int] | str]:
        """Where it listens: `(host, port)`, or the path of a Unix socket, with `@` before an abstract name."""
        return list(self._addresses)

    @property
    def port(self) -> int:
        """The port of its first TCP listener.

        Raises:
          ValueError: it listens on none.
        """
        for address in self._addresses:
            if isinstance(address, tuple):
                return address[1]
        raise ValueError("the server does not listen on TCP")

    @property
    def connections(self) -> frozenset[Connection]:
        """Its open connections, from before `on_open` until just before `on_close`."""
        return frozenset(self._admission.connections)

    @property
    def closing(self) -> bool:
        """Whether it has begun to shut down."""
        return self._shutdown is not None or self._admission.closing

    def route_scope(self, route: Route) -> trio.CancelScope:
        """The scope around the connections of `route`: cancelling it ends them with 1001 and the route answers 503.

        Raises:
          KeyError: the server does not serve the route.
        """
        return self._admission.nurseries[route].cancel_scope

    # The end

    @trio.lowlevel.enable_ki_protection
    async def drain(
        self, grace: float | None = None, code: int = 1012, spread: float = 0, *, linger: float = 1.0
    ) -> None:
        """Shut down in an orderly way, as for a restart, and wait until that is done.

        Stops accepting, lets the handshakes finish that have begun, sends every connection a Close, waits for the
        handlers, cancels those that are left, and returns when every `on_close` has run. The first call of `drain` or
        `aclose` decides; a later `drain` waits for it, a later `aclose` makes it hurry.

        Args:
          grace: seconds to wait for the handlers after the last Close was sent; `None` for `shutdown_grace`. A handler
            that runs on after its connection has closed has this time as well.
          code: 1012 (service restart) tells clients to come back, 1001 (going away) that this was it.
          spread: seconds over which the Close frames are spread at random, so that the clients do not all come back
            at once.
          linger: seconds for handshakes that have begun, those that wait in the kernel's queue included. Connections
            that open meanwhile get their Close last. Then 503; with 0, at once.

        Raises:
          TypeError: `grace`, `spread` or `linger` is not a number.
          ValueError: one of them is negative or not a number of seconds, or the code must not be sent.

        Cancellation: stops the waiting only; the shutdown goes on.
        """
        if grace is None:
            grace = self._site.options.shutdown_grace
        for name, seconds in (("grace", grace), ("spread", spread), ("linger", linger)):
            check_seconds(name, seconds, zero=True)
        code, _ = check_close(code, "")
        self._begin_shutdown(_Shutdown(grace, code, spread, linger))
        await self._finished.wait()

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """Shut down for good, and wait until that is done: Close 1001, 503 for handshakes, `shutdown_grace`.

        During a `drain` it makes that hurry: who has not got a Close yet gets it now, handshakes that have begun get
        503, and the handlers have `shutdown_grace` seconds from now, unless the `drain` leaves them less.

        Cancellation: stops the waiting only; the shutdown goes on.
        """
        grace = self._site.options.shutdown_grace
        if not self._begin_shutdown(_Shutdown(grace, 1001)):
            self._accepting_last.cancel()
            self._lingering.cancel()
            self._spreading.cancel()
            self._grace.deadline = min(self._grace.deadline, trio.current_time() + grace)
        await self._finished.wait()

    def _begin_shutdown(self, shutdown: _Shutdown) -> bool:
        """Ask for a shutdown; `False` if there is one already, which then counts."""
        if self._shutdown is not None:
            return False
        self._shutdown = shutdown
        self._asked.set()
        return True

    async def wait_closed(self) -> None:
        """Wait until the server has ended, for whatever reason."""
        await self._finished.wait()

    @trio.lowlevel.enable_ki_protection
    def abort(self) -> None:
        """Drop every connection at once, without a Close frame. `on_error` and `on_close` still run."""
        self._stop_accepting()
        for conn in list(self._admission.connections):
            conn.abort()
        for transport in self._engine.transports:
            transport.break_down(None)
        assert self._admission.nursery is not None  # there was one before anybody was given the server
        self._admission.nursery.cancel_scope.cancel()

    # The ways to serve

    @trio.lowlevel.enable_ki_protection
    async def _serve_sockets(
        self,
        listening: list[ListeningSocket],
        ssl_context: ssl.SSLContext | None,
        task_status: trio.TaskStatus[Server],
    ) -> None:
        """Serve on listening sockets of our own until the server is closed."""
        self._ssl_context = ssl_context
        await self._serve(listening, (), task_status)

    @trio.lowlevel.enable_ki_protection
    async def _serve_listeners(
        self, listeners: Sequence[trio.abc.Listener[Any]], task_status: trio.TaskStatus[Server]
    ) -> None:
        """Serve on the application's listeners until the server is closed.

        Plain sockets are taken out of their listeners and served like our own; everything else is served as streams.
        """
        plain = [listener for listener in listeners if isinstance(listener, trio.SocketListener)]
        others = [listener for listener in listeners if not isinstance(listener, trio.SocketListener)]
        listening = [ListeningSocket(socket.socket(fileno=listener.socket.detach())) for listener in plain]
        try:
            await self._serve(listening, others, task_status)
        finally:  # a server that was cancelled before it began has not taken them
            # Without the shield the first `aclose` would raise Cancelled and leave the others open.
            with trio.CancelScope(deadline=trio.current_time() + _CLOSE_LISTENERS, shield=True):
                for listener in others:
                    await close_stream(listener)

    @trio.lowlevel.enable_ki_protection
    async def _serve_stream(self, stream: trio.abc.Stream, local: Address, remote: Address) -> None:
        """Serve one connection over `stream`."""

        async def serve() -> None:
            self._begin_stream(stream, local, remote)
            await self._admission.wait_quiet()

        try:
            await self._run(serve)
        finally:  # a server that was cancelled before it began has not taken it
            # Shielded, or a cancellation would come in place of what is raised here, an interrupt for example.
            with trio.CancelScope(deadline=trio.current_time() + _CLOSE_LISTENERS, shield=True):
                await close_stream(stream)

    async def _serve(
        self,
        listening: list[ListeningSocket],
        others: Sequence[trio.abc.Listener[Any]],
        task_status: trio.TaskStatus[Server],
    ) -> None:
        self._listening = listening
        self._addresses = [listener.address for listener in listening]
        self._addresses += [address for listener in others if (address := _address_of(listener)) is not None]

        async def serve() -> None:
            assert self._admission.nursery is not None
            self._admission.nursery.start_soon(self._accept, listening, others)
            task_status.started(self)
            log.info("listening on %s%s", self._where(), " with TLS" if self._ssl_context else "")
            await self._asked.wait()

        try:
            await self._run(serve)
        finally:
            for listener in listening:
                listener.close()

    async def _run(self, serve: Callable[[], Awaitable[None]]) -> None:
        """Run `serve()` in its nurseries, then shut down."""
        self._site._warn_about_options()
        try:
            async with trio.open_nursery() as outer:
                outer.start_soon(self._engine.run)
                try:
                    await self._engine.wait_running()
                    await self._run_connections(serve)
                finally:
                    self._stop_accepting()
                    await self._engine.aclose()
        except BaseExceptionGroup as group:
            error = unwrap(group)
            try:
                raise error from cause_of(error)
            finally:
                del error  # it refers to this frame, and so to itself
        finally:
            self._finished.set()

    async def _run_connections(self, serve: Callable[[], Awaitable[None]]) -> None:
        async with trio.open_nursery() as nursery:
            self._admission.nursery = nursery
            for route in self._site.routes:
                await nursery.start(self._host_route, route)
            try:
                await serve()
                await self._shut_down(self._shutdown or _Shutdown(self._site.options.shutdown_grace, 1001))
            finally:
                self._stop_accepting()
            nursery.cancel_scope.cancel()

    @trio.lowlevel.enable_ki_protection
    async def _host_route(self, route: Route, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._admission.nurseries[route] = nursery
            task_status.started()
            await trio.sleep_forever()

    # Shutting down

    def _close_listeners(self) -> None:
        self._accepting.cancel()
        for listener in self._listening:
            listener.close()

    def _stop_accepting(self) -> None:
        self._close_listeners()
        self._admission.stop()

    async def _shut_down(self, shutdown: _Shutdown) -> None:
        grace, code, spread, linger = shutdown
        end_of_linger = trio.current_time() + linger
        if linger:
            with self._accepting_last:
                self._accepting_last.deadline = end_of_linger
                await self._accept_the_last()
        self._close_listeners()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_all, code, spread)
            if linger:
                with self._lingering:
                    self._lingering.deadline = end_of_linger
                    await self._admission.wait_no_handshakes()
            self._admission.stop()
        with self._grace:
            self._grace.deadline = min(self._grace.deadline, trio.current_time() + grace)
            await self._admission.wait_quiet()
        if self._admission.tasks:
            await self._engine.timers.catch_up()  # perhaps the last answers have been waiting in the kernel
        if self._admission.tasks:
            log.warning("%d handlers still ran after the grace of %g s and are cancelled", self._admission.tasks, grace)

    async def _accept_the_last(self) -> None:
        """Accept those whom the kernel has connected already: closing the listeners would reset them."""
        for sock in self._listening:
            await sock.accept_waiting(self._site._handshakes, self._begin_socket)
        accepted = -1
        while accepted != self._streams_accepted:  # a listener of streams has no end of its queue that shows
            accepted = self._streams_accepted
            for _ in range(_PASSES_TO_ACCEPT):
                await trio.lowlevel.checkpoint()

    @trio.lowlevel.enable_ki_protection
    async def _tell_all(self, code: int, spread: float) -> None:
        """Send every connection its Close, spread over so many seconds; those that open meanwhile come last."""

        def tell(conn: Connection) -> None:
            conn._wait_for_handler()
            conn.close_nowait(code)

        conns = list(self._admission.connections)
        random.shuffle(conns)
        waiting = deque(conns)
        self._admission.welcome = waiting.append
        start = trio.current_time()
        with self._spreading:
            for number in range(len(conns)):
                if spread:
                    await trio.sleep_until(start + spread * number / len(conns))
                tell(waiting.popleft())
            if waiting:
                await trio.sleep_until(start + spread)
        while waiting:
            tell(waiting.popleft())
        self._admission.welcome = tell

    # Accepting

    @trio.lowlevel.enable_ki_protection
    async def _accept(self, listening: list[ListeningSocket], others: Sequence[trio.abc.Listener[Any]]) -> None:
        with self._accepting:
            async with trio.open_nursery() as nursery:
                for sock in listening:
                    nursery.start_soon(sock.accept_forever, self._engine, self._site._handshakes, self._begin_socket)
                for listener in others:
                    nursery.start_soon(self._accept_streams, listener)

    @trio.lowlevel.enable_ki_protection
    async def _accept_streams(self, listener: trio.abc.Listener[Any]) -> None:
        """Accept for ever. A listener of the application's own that fails costs nothing but what it does not accept."""
        failed = dropped = False
        try:
            while True:
                try:
                    stream = await listener.accept()
                except trio.ClosedResourceError:
                    log.error("nothing more is accepted on %s, which is closed", describe(listener))
                    return
                except Exception as error:
                    if is_exhausted(error) and (dropped or self._site._handshakes.drop_oldest(hurry=True)):
                        # Its stream is closed in the next pass or a little later; one descriptor costs one peer.
                        await trio.sleep(EXHAUSTED_PAUSE if dropped else 0)
                        dropped = not dropped
                        continue
                    if not failed:  # it may last for hours, and ten lines a second would fill the disk
                        reason = None if is_a(error, OSError) else error
                        log.error(
                            "cannot accept on %s: %s; trying again", describe(listener), explain(error), exc_info=reason
                        )
                    failed = True
                    await trio.sleep(EXHAUSTED_PAUSE)
                    continue
                failed = dropped = False
                self._streams_accepted += 1
                try:
                    while not self._site._handshakes.make_room():
                        await self._site._handshakes.wait_for_room()
                    self._begin_stream(stream, None, None)
                except Exception as error:  # it cannot even be looked at; that costs this one peer
                    log.error("cannot serve a stream: %s", describe(error), exc_info=error)
                    await close_stream(stream)
                except BaseException:
                    await close_stream(stream)
                    raise  # pragma: no cover - a cancellation has gone on from within the line above
        finally:
            await close_stream(listener)

    def _begin_socket(self, sock: socket.socket, local: Address, remote: Address) -> None:
        opening = self._admission.new_opening()
        try:
            opening.transport = self._engine.add_socket(sock, opening, local, remote, self._ssl_context)
            opening.transport.start()
        except Exception:  # the system cannot watch one more socket, or memory is short
            opening.hand_over()
            raise

    def _begin_stream(self, stream: trio.abc.Stream, local: Address, remote: Address) -> None:
        if local is None and remote is None:
            local, remote = addresses_of(stream)
        opening = self._admission.new_opening()
        try:
            opening.transport = self._engine.add_stream(
                stream, opening, local, remote, handshake_deadline=opening.deadline
            )
        except Exception:
            opening.hand_over()
            raise


def _address_of(listener: trio.abc.Listener[Any]) -> tuple[str, int] | str | None:
    below = getattr(listener, "transport_listener", None)  # TLS over something
    return plain_address(below.socket.getsockname()) if isinstance(below, trio.SocketListener) else None
