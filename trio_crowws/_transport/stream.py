"""Any `trio.abc.Stream` as a transport: streams of the application's own, sockets where there is no epoll.

One task pumps each way. The reading pump feeds; the writing pump sleeps until `flush` finds something to send. Both
run in the engine's nursery, under its shield, and end when the transport is closed: by themselves after an orderly
close, by cancellation after `abort` or at the deadline of `close`.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

import trio

from .._foreign import class_name, is_a, select
from .._log import log
from .addresses import plain_address
from .base import READ_SIZE, Address, Transport, TurnQueue, count_small
from .kernel import limit_unsent, unacknowledged
from .timers import FairScope, Timers

__all__ = ["StreamTransport", "addresses_of", "as_tls", "close_stream"]

T = TypeVar("T")

_PIECE = 64 * 1024

_SLOW_PIECE = 4 * 1024
"""What is sent to a peer at once that took longer than `_SLOW` for the last piece."""

_SLOW = 0.1
"""Seconds."""


class StreamTransport(Transport):
    """One stream, with the tasks that pump its bytes."""

    __slots__ = (
        "_at_end",
        "_below",
        "_handshake_deadline",
        "_idle_writer",
        "_resumed",
        "_running",
        "_scope",
        "_shaking",
        "_stream",
        "_tls",
        "_unfed",
    )

    def __init__(
        self,
        stream: trio.abc.Stream,
        turns: TurnQueue,
        timers: Timers,
        local_address: Address,
        remote_address: Address,
        *,
        handshake_deadline: float = math.inf,
    ) -> None:
        super().__init__(turns, timers, local_address, remote_address)
        self._stream = stream
        self._handshake_deadline = handshake_deadline
        self._scope = trio.CancelScope()
        self._running = True
        self._at_end = False
        self._resumed = trio.Event()
        self._idle_writer: trio.lowlevel.Task | None = None
        self._unfed = b""  # what was read when it was too late to work on it
        self._tls = as_tls(stream)
        self._below: _Below | None = None
        self.secure = self._shaking = self._tls is not None

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Pump until the transport is closed. TLS shakes hands here, within the deadline of the opening handshake.

        A stream of the application's own that breaks Trio's rules ends alone: no `Exception` gets out of here.
        """
        try:
            with self._scope:
                if await self._guard(self._tls_handshake):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._guard, self._write_pump)
                        await self._guard(self._read_pump)
        finally:
            self._fail(None)  # nothing but the end of the engine itself comes here with an open transport
            if self._below is not None:
                self._below.take_away()
                self._below = None  # it refers to this object
            try:
                await close_stream(self._stream)
            finally:
                self._running = False
                self._turns.note_release()

    @property
    def released(self) -> bool:
        """Whether the pumps have ended and the stream is closed."""
        return not self._running

    @trio.lowlevel.enable_ki_protection
    async def _guard(self, step: Callable[[], Awaitable[T]]) -> T | None:
        """Do one step of `run`. What the stream raises ends here: nurseries and scopes look at what comes to them."""
        try:
            return await step()
        except BaseException as error:
            own, rest = split(error)
            try:
                if own is not None:
                    self.report(own)
                if rest is not None:
                    raise rest from None
                return None
            finally:
                del own, rest  # they refer to this frame, and so to themselves

    async def _tls_handshake(self) -> bool:
        if self._tls is None:
            return True
        with FairScope(self._timers, self._handshake_deadline, lambda now: True) as scope:
            try:
                await self._tls.do_handshake()
                self._shaking = False
                self._below = _Below.put_under(self._tls, self._write_failed)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self._fail(error)
                return False
        if scope.cancelled_caught:
            self._fail(None)
        return not scope.cancelled_caught

    async def _read_pump(self) -> None:
        while not self.closed:
            if self.paused or self.more:
                # There may be as many pumps as peers. So that they take turns, they are not served by themselves.
                if not self.paused:
                    self.ask_for_turn()
                self._resumed = trio.Event()
                await self._resumed.wait()
                continue
            try:
                data = await self._stream.receive_some(READ_SIZE)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self._fail(error)
                return
            self._timers.tick()
            self._turns.pumped += 1
            if not data:
                self._ended()
                return
            if self._turns.has_time():
                self._feed(bytes(data))
            else:
                self._unfed = bytes(data)
                self.more = True

    def _ended(self) -> None:
        if self._closing is not None:
            if not self.buffered:
                self._release()
            return
        self._at_end = True
        self._report_end()

    def _read_out(self) -> None:
        """The reading pump does it."""

    @trio.lowlevel.enable_ki_protection
    async def _write_pump(self) -> None:
        while True:
            if not self._out:
                if self._closing is not None:
                    await self._close_stream()
                    return
                self._idle_writer = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._stop_waiting)
                continue
            count = count_small(self._out)
            data = self._out[0] if count == 1 else b"".join(self._out[:count])
            del self._out[:count]
            self.blocked = True
            self.receiver._on_stalled()
            try:
                await self._send_pieces(memoryview(data))
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self._write_failed(error)
            if self.broken is not None:
                return

    async def _send_pieces(self, data: memoryview) -> None:
        """Send `data` piece by piece, so that progress shows while a slow peer takes a large message."""
        start, size = 0, _PIECE
        while start < len(data):
            piece = data[start : start + size]
            start += size
            began = self._timers.tick()
            await self._stream.send_all(piece)
            if self.broken is not None:
                return
            # How much of a piece the kernel has taken does not show, so pieces that take long have to be small.
            size = _SLOW_PIECE if self._timers.tick() - began > _SLOW and self._socket is not None else _PIECE
            self.bytes_sent += len(piece)
            self.buffered -= len(piece)
            self.blocked = start < len(data)
            self.receiver._on_drained()

    def _stop_waiting(self, _: object) -> trio.lowlevel.Abort:
        self._idle_writer = None
        return trio.lowlevel.Abort.SUCCEEDED

    async def _close_stream(self) -> None:
        """Everything is sent. A stream that can end one direction lingers in the reading pump; others just close."""
        if self._patient and not self._at_end:
            self._resumed.set()
            return
        if self._closing and not self._at_end:
            # Below TLS there is a stream that can do what TLS as Trio offers it cannot.
            stream = self._stream if self._tls is None else self._tls.transport_stream
            if isinstance(stream, _Below):
                stream = stream.stream
            if isinstance(stream, trio.abc.HalfCloseableStream):
                try:
                    await stream.send_eof()
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self._release()
                self._resumed.set()  # reading may have been paused when the end began
                return
        await self._stream.aclose()
        self._release()

    def start(self) -> None:
        """The pumps begin by themselves when `run` does."""

    def flush(self) -> None:
        if self._idle_writer is not None:
            task, self._idle_writer = self._idle_writer, None
            trio.lowlevel.reschedule(task)

    @property
    def in_kernel(self) -> int | None:
        return None if self._socket is None else unacknowledged(self._socket)

    @property
    def _socket(self) -> trio.socket.SocketType | None:
        return socket_of(self._stream)

    @property
    def shook_hands_at(self) -> float:
        # What comes in meanwhile does not show, so after a standstill there is more time in any case.
        return math.inf if self._shaking else -math.inf

    def limit_unsent(self, size: int | None) -> None:
        if (socket := self._socket) is not None:
            limit_unsent(socket, size)

    def resume(self) -> None:
        super().resume()
        self._resumed.set()

    def turn(self) -> None:
        super().turn()
        if self.more and not self.paused:
            self.more = False
            data, self._unfed = self._unfed, b""
            self._feed(data)
            if not self.more:
                self._resumed.set()

    def _flushed_for_close(self) -> None:
        self._resumed.set()
        self.flush()

    def abort(self) -> None:
        self._release()

    def _release(self) -> None:
        self._forget()
        self._scope.cancel()


class _Below(trio.abc.Stream):
    """Stands between TLS of Trio's and the stream below, and has no send fail.

    `trio.SSLStream` reads no more when a send has failed. But what the peer has sent before may be its last messages
    and its Close frame; so the transport is told that nothing more goes out, and TLS goes on to read.
    """

    def __init__(
        self, tls: trio.SSLStream[trio.abc.Stream], stream: trio.abc.Stream, failed: Callable[[Exception], None]
    ) -> None:
        self._tls = tls
        self._failed = failed
        self.stream = stream

    @classmethod
    def put_under(cls, tls: trio.SSLStream[trio.abc.Stream], failed: Callable[[Exception], None]) -> _Below:
        """Put one under `tls`, or under the lowest of several layers."""
        while (lower := as_tls(tls.transport_stream)) is not None:
            tls = lower
        below = cls(tls, tls.transport_stream, failed)
        tls.transport_stream = below
        return below

    def take_away(self) -> None:
        """Leave all as it was found."""
        self._tls.transport_stream = self.stream

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)  # the application may look at its socket

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._failed(error)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.stream.aclose()


def split(error: BaseException) -> tuple[Exception | None, BaseException | None]:
    """What of `error` is an `Exception`, and what has to pass (Cancelled and its like)."""
    own = select(error, lambda leaf: is_a(leaf, Exception))
    return cast("Exception | None", own), select(error, lambda leaf: not is_a(leaf, Exception))


async def close_stream(stream: trio.abc.AsyncResource) -> None:
    """Close a stream or a listener at once. One that raises has to be forgotten all the same.

    Cancellation: closes it; what must pass does so afterwards.
    """
    try:
        await trio.aclose_forcefully(stream)
    except BaseException as error:
        own, rest = split(error)
        try:
            if own is not None:
                log.error("%s has raised when it was closed", class_name(stream), exc_info=own)
            if rest is not None:
                raise rest from None
        finally:
            del own, rest  # they refer to this frame, and so to themselves


def addresses_of(stream: trio.abc.Stream) -> tuple[Address, Address]:
    """The local and the remote address of a stream, where there is a socket below it."""
    socket = socket_of(stream)
    if socket is None:
        return None, None
    try:
        return plain_address(socket.getsockname()), plain_address(socket.getpeername())
    except OSError:  # the peer has reset the connection already, which is found out when it is read
        return None, None


def socket_of(stream: trio.abc.Stream) -> trio.socket.SocketType | None:
    """The socket below a stream, where Trio's own streams lead to one."""
    while (tls := as_tls(stream)) is not None:
        stream = tls.transport_stream
    if isinstance(stream, _Below):
        stream = stream.stream
    return stream.socket if isinstance(stream, trio.SocketStream) else None


def as_tls(stream: trio.abc.Stream) -> trio.SSLStream[trio.abc.Stream] | None:
    """`stream` if it is one over TLS."""
    return cast("trio.SSLStream[trio.abc.Stream]", stream) if isinstance(stream, trio.SSLStream) else None
