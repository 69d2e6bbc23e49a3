"""The tasks that serve all transports of one server, and their common end."""

from __future__ import annotations

import math
import select
import socket
import ssl
from collections.abc import Callable

import trio

from .base import Address, Receiver, Transport, TurnQueue
from .poller import EXTRA_POLLS, Poller, SocketTransport
from .stream import StreamTransport
from .timers import Timers
from .tls import TLSTransport

__all__ = ["Engine"]

_END_OF_LINGER = 1.0
"""How long `aclose` waits for peers that have not closed their side yet."""

_TASKS_TURNS = 8
"""Passes of the scheduler in which a task that has something to read gets it: the pumps of a stream, TLS included."""

_MOST_PASSES = 512
"""Passes for what has piled up while the process stood still, so that a peer that never stops does not hold it up."""

_LARGE_BLOCK = 8 * 1024 * 1024
"""Bytes; see `_teach_allocator`."""


class Engine:
    """Poller, turn queue, timers and stream pumps.

    The engine must outlive the connections: a cancelled connection still says goodbye through it. So its tasks run
    under a shield, and whoever runs it calls `aclose` when the last connection has ended, which is bounded by the
    connections' own deadlines.

    Args:
      use_epoll: serve sockets by a `Poller`, where there can be one.
      shielded: whether no cancellation from outside reaches it.
    """

    def __init__(self, *, use_epoll: bool = True, shielded: bool = True) -> None:
        self.timers = Timers()
        self.timers.reader = self._catch_up
        self.turns = TurnQueue()
        self._poller = Poller(self.turns, self.timers) if use_epoll and hasattr(select, "epoll") else None
        self._streams: set[StreamTransport] = set()
        self._nursery: trio.Nursery | None = None
        self._running = trio.Event()
        self._scope = trio.CancelScope(shield=shielded)  # ended by aclose, whose own wait has a deadline

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Serve until `aclose`.

        Not for `nursery.start`: a task that is cancelled before it has said `started` is waited for where it was
        started, and under its shield this one would never end there.
        """
        _teach_allocator()
        with self._scope:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self.turns.run)
                self._nursery.start_soon(self.timers.run)
                if self._poller is not None:
                    self._nursery.start_soon(self._poller.run)
                self._running.set()

    async def wait_running(self) -> None:
        """Wait until sockets and streams can be added. Cancellation stops the waiting only."""
        await self._running.wait()

    def add_socket(
        self,
        sock: socket.socket,
        receiver: Receiver,
        local_address: Address,
        remote_address: Address,
        ssl_context: ssl.SSLContext | None,
        server_hostname: str | None = None,
    ) -> Transport:
        """Serve a connected stdlib socket, from the moment when the transport is told to `start`.

        With a `server_hostname`, this is the client's side of TLS.
        """
        sock.setblocking(False)
        lower: SocketTransport | StreamTransport
        if self._poller is not None:
            lower = SocketTransport(sock, self._poller, self.turns, self.timers, local_address, remote_address)
        else:
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            lower = StreamTransport(stream, self.turns, self.timers, local_address, remote_address)
        transport: Transport = lower
        if ssl_context is not None:
            transport = tls = TLSTransport(lower, ssl_context, self.turns, self.timers, server_hostname)
            lower.receiver = tls
        transport.receiver = receiver
        if isinstance(lower, StreamTransport):
            self._pump(lower)
        return transport

    def add_stream(
        self,
        stream: trio.abc.Stream,
        receiver: Receiver,
        local_address: Address,
        remote_address: Address,
        *,
        handshake_deadline: float = math.inf,
    ) -> Transport:
        """Serve a Trio stream; a TLS handshake that it still needs has to end by `handshake_deadline`."""
        transport = StreamTransport(
            stream, self.turns, self.timers, local_address, remote_address, handshake_deadline=handshake_deadline
        )
        transport.receiver = receiver
        self._pump(transport)
        return transport

    def _pump(self, transport: StreamTransport) -> None:
        self.nursery.start_soon(self._run_stream, transport)
        self._streams.add(transport)

    @trio.lowlevel.enable_ki_protection
    async def _run_stream(self, transport: StreamTransport) -> None:
        try:
            await transport.run()
        finally:
            self._streams.discard(transport)
            self.turns.note_release()

    async def watch(self, sock: socket.socket, serve: Callable[[], OSError | None]) -> OSError:
        """Call `serve()` whenever a listening socket is readable, until that returns an error, and return the error.

        Cancellation: ends the watching at once.
        """
        if self._poller is not None:
            return await self._poller.watch(sock.fileno(), serve)
        while True:
            await trio.lowlevel.checkpoint_if_cancelled()  # the last `serve` may have had the socket closed
            await trio.lowlevel.wait_readable(sock)
            error = serve()
            if error is not None:
                return error

    async def wait_released(self, transport: Transport, deadline: float) -> None:
        """Wait until a transport of this engine has let go of its socket or stream; part with it at `deadline`.

        Shielded, because what was begun to be closed has to be closed; the deadline bounds it.
        """
        try:
            with trio.CancelScope(deadline=deadline, shield=True):
                while not transport.released:
                    await self.turns.wait_release()
            if not transport.released:
                await self.timers.catch_up()
        except KeyboardInterrupt:  # it comes through a shield
            _end(transport)
            raise
        if not transport.released:
            _end(transport)
            with trio.CancelScope(deadline=trio.current_time() + _END_OF_LINGER, shield=True):
                while not transport.released:
                    await self.turns.wait_release()

    async def _catch_up(self, all_of_it: bool) -> None:
        """Read whatever has been waiting; with `all_of_it` until each socket was read to its end, or was paused.

        What comes meanwhile does not count, or a flood would never let anybody be judged.
        """
        rest = _TASKS_TURNS if all_of_it or self._streams else 0
        if self._poller is not None:
            polls = self._poller.rounds if all_of_it else EXTRA_POLLS
            while (polls := self._poller.catch_up(polls)) > 0:
                await trio.lowlevel.checkpoint()
        behind = self.turns.behind  # also those that were put off because the time of this pass was used up
        looked_again = False
        pumped = self.turns.pumped
        for _ in range(_MOST_PASSES if all_of_it else _TASKS_TURNS):
            if rest <= 0 and not behind:
                if looked_again:
                    return
                looked_again = True
                behind = self.turns.behind  # what the pumps have read and put off meanwhile
                if not behind:
                    return
            await trio.lowlevel.checkpoint()
            rest -= 1
            behind = [transport for transport in behind if transport.behind]
            if all_of_it and self.turns.pumped != pumped:
                pumped, rest = self.turns.pumped, _TASKS_TURNS

    @property
    def nursery(self) -> trio.Nursery:
        """Where the tasks run."""
        assert self._nursery is not None, "the engine is not running"
        return self._nursery

    def fail(self, error: Exception | None) -> None:
        """The engine has ended with transports in it: each receiver is told that it is lost."""
        for transport in self.transports:
            try:
                transport.break_down(error)
            except Exception as defect:  # the others are told all the same
                transport.report(defect)

    @property
    def transports(self) -> list[Transport]:
        """Every transport that still holds a socket or a stream."""
        return [*(self._poller.transports if self._poller is not None else ()), *self._streams]

    async def aclose(self) -> None:
        """Wait for the last bytes to leave, at most a second, then end every transport and task.

        Shielded, because it is what makes a cancelled server say goodbye; the deadline above bounds it.
        """
        try:
            with trio.CancelScope(deadline=trio.current_time() + _END_OF_LINGER, shield=True):
                while self.transports:
                    await self.turns.wait_release()
            if self.transports:
                await self.timers.catch_up()
        finally:  # Ctrl-C comes through a shield, and nothing but this ends the tasks that are behind one
            for transport in self.transports:
                _end(transport)
            self._scope.cancel()


def _end(transport: Transport) -> None:
    """Part with `transport`; what it raises must not keep the others from being ended."""
    try:
        transport.end_linger()
    except Exception as error:
        transport.report(error)


def _teach_allocator() -> None:
    """Make glibc keep large blocks: it maps and unmaps them one by one until it has seen one of that size freed.

    For messages of a megabyte, the page faults of fresh mappings are a third of all that is done. The block here is
    never touched, so it takes no memory.
    """
    bytes(_LARGE_BLOCK)
