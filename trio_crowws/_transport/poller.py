"""Plain non-blocking sockets, read by one task for all of them.

What costs in a small-message server is not the protocol but the machinery around each `await receive_some()`: two
checkpoints, an exception for "would block", a change of the epoll registration and a task switch. None of it is needed.
Every socket is registered once, edge-triggered, in an epoll object of our own; one task waits for that object's
descriptor with Trio's own `wait_readable`, then reads all ready sockets, feeds their connections, and writes what they
have to say to it.

Edge-triggered means that the kernel tells about a *change* once. So: read until a read comes back short; remember what
was not read (because reading is paused, or because the turn was used up) in `_readable`; and after a short write wait
for the edge that says there is room again.

Where there is no epoll, sockets are served as streams (`stream.py`), behind the same interface.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter

import trio

from .base import JOIN_LIMIT, PASS_TIME, READ_SIZE, Address, Transport, TurnQueue, count_small
from .kernel import AF_UNIX, ANYTHING, ENDING, IN, IN_AND_OUT, INPUT, READABLE, limit_unsent, unacknowledged
from .timers import Timers

__all__ = ["Poller", "SocketTransport"]

READS_PER_TURN = 4
"""Reads of one socket, after the first, before the others get their turn, so that large messages do not crawl."""

EVENTS_PER_POLL = 64
"""Sockets of one round. More are no faster, and would wait longer for their answers."""

EXTRA_POLLS = 8
"""Polls in a row before going back to Trio's loop; the traffic of a busy server is served without its overhead."""

_PATIENCE = 0.001
"""Seconds of callbacks within a round, after which the connections that are finished are flushed."""

_ROUNDS_TIME = 3 * PASS_TIME
"""Seconds after which a round is broken off. What was read, or is ready to be read, then goes by the turn queue. That
costs more than a round, so it is for floods: a publish to a thousand members takes about as long."""

_ROUND_TIME = 0.75 * PASS_TIME
"""Begin another round only if so many seconds of `_ROUNDS_TIME` are left: nearly all rounds take less, so they are not
broken off."""

_CROWD = 16
"""Sockets of one round, from which on the writing of their tasks is put off; with fewer that would be slower."""

_LOOK_TIME = 60e-6
"""Seconds of looking at an empty epoll object before the process may sleep; one look takes less than a microsecond."""

_MOST_PASSED_OVER = 63
"""Chances to look that are passed over after many looks in vain."""

_SMALL_READ = 1024
"""Bytes; so little of each socket is kept until a round has read all of them."""


class SocketTransport(Transport):
    """One connected, non-blocking socket."""

    __slots__ = ("_fd", "_last_pass", "_poller", "_readable", "_sock", "_unfed", "_watches_room")

    def __init__(
        self,
        sock: socket.socket,
        poller: Poller,
        turns: TurnQueue,
        timers: Timers,
        local_address: Address,
        remote_address: Address,
    ) -> None:
        super().__init__(turns, timers, local_address, remote_address)
        self._sock = sock
        self._fd = sock.fileno()
        self._poller = poller
        self._last_pass = -1
        self._readable = False
        self._unfed = b""  # what was read when it was too late to work on it
        self._watches_room = False

    def start(self) -> None:
        """Begin to read, with what is here already: most peers send their request as soon as they are connected.

        Raises:
          OSError: the system cannot watch one more descriptor; the socket is still the caller's.
        """
        self._poller.register(self._fd, self)
        try:
            self.read_on(False)
        except Exception as error:
            self.report(error)

    def read(self) -> bytes:
        """One read. Empty if there was nothing, or if it is not the time to read: then it is kept in mind."""
        if self.paused or self._readable or self.more:
            self._readable = True  # read at the next turn, or when reading goes on
            return b""
        try:
            data = self._sock.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return b""
        except OSError as error:
            self._fail(error)
            return b""
        if not data:
            self._ended()
        return data

    def read_on(self, ending: bool) -> None:
        """Read and feed until a short read, or until the turn is used up.

        A short read means that the kernel had no more, unless the end of the stream is already behind it.

        Args:
          ending: the peer has also ended its direction.
        """
        until = perf_counter() + _PATIENCE
        for _ in range(READS_PER_TURN):
            data = self.read()
            if not data or not self._feed(data) or (len(data) < READ_SIZE and not ending):
                return  # what comes next is a change, which the kernel reports
            if perf_counter() > until:
                break
        self._readable = True
        self.ask_for_turn()

    def put_off(self, data: bytes) -> None:
        """The time for this pass is used up; continue in the next turn, with `data` if that was read already."""
        if data:
            self._unfed = data
            self.more = True
        else:
            self._readable = True
        self.ask_for_turn()

    def limit_unsent(self, size: int | None) -> None:
        limit_unsent(self._sock, size)

    def close(self, deadline: float, *, linger: bool, patient: bool = False) -> None:
        self._unfed = b""  # nobody listens any more
        super().close(deadline, linger=linger, patient=patient)

    @property
    def in_kernel(self) -> int | None:
        return unacknowledged(self._sock)

    def on_writable(self) -> None:
        """There is room in the kernel again."""
        self.blocked = False
        self.flush()
        if not self.closed:
            self.receiver._on_drained()

    def turn(self) -> None:
        self._waits_for_turn = False
        if self._out:
            self.flush()
        if not (self.more or self._readable) or self.paused or self.closed:
            return
        if self.more:
            self.more = False
            data, self._unfed = self._unfed, b""
            if not self._feed(data) or self.more or self.paused:
                return
        if self._readable:
            self._readable = False
            self.read_on(True)  # whether the stream ends was not kept, so read to the last byte

    @property
    def unread(self) -> bool:
        return self._readable or self.more

    def resume(self) -> None:
        super().resume()
        if self._readable or self.more:
            self.ask_for_turn()

    def _ended(self) -> None:
        if self._closing is not None:
            # What was queued may still be on its way to a peer that ended its own direction only.
            if not self._out:
                self._release()
            return
        self._report_end()

    def _read_out(self) -> None:
        self._readable = True
        self.ask_for_turn()

    @trio.lowlevel.enable_ki_protection  # what the kernel has taken must not be queued as well, nor the rest be lost
    def write_at_once(self, data: bytes | memoryview) -> None:
        # A second walk through a thousand members, to flush, would find none of them in the processor's cache any more.
        # What else is published in this pass waits for a turn, so it takes two system calls at most.
        turns = self._turns
        if self._last_pass == turns.passes or self._out or self._shut:
            self.write(data)
            return
        self._last_pass = turns.passes
        self.eager = False
        if turns.parked:
            turns.count_pass()
        try:
            try:
                taken = self._sock.send(data)
            except OSError:
                taken = 0  # the next attempt, in `flush`, sees the same and knows what to do
            self.bytes_sent += taken
            if taken < len(data):
                self._out.append(memoryview(data)[taken:])
                self.buffered = len(data) - taken
                self.flush()
        except Exception as error:
            self.report(error)

    @trio.lowlevel.enable_ki_protection  # as above
    def flush(self) -> None:
        out = self._out
        while out and not self.blocked:
            data = out[0]
            if len(out) > 1 and len(data) < JOIN_LIMIT:
                count = len(out) if self.buffered < JOIN_LIMIT else count_small(out)
                data = b"".join(out[:count])
                out[:count] = (data,)
            try:
                taken = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                self._block()
                return
            except OSError as error:
                self._write_failed(error)
                return
            self.bytes_sent += taken
            self.buffered -= taken
            if taken == len(data):
                del out[0]
            else:
                out[0] = memoryview(data)[taken:]
                # The next attempt says "would block" and so makes sure that the kernel will report room.
        if not out and self._closing is not None:
            self._flushed_for_close()

    def _block(self) -> None:
        """The kernel takes no more: wait until it says that there is room."""
        self.blocked = True
        if not self._watches_room:
            self._watches_room = True
            self._poller.watch_room(self._fd)
        self.receiver._on_stalled()

    def _flushed_for_close(self) -> None:
        if not self._closing and not self._has_unread_bytes():
            self._release()
            return
        if not self._patient:
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:  # the peer has reset the connection, which ends the lingering
                self._release()
                return
        self._readable = True
        self.ask_for_turn()

    def _has_unread_bytes(self) -> bool:
        try:
            return bool(self._sock.recv(1))  # if there is one, it is dropped with the others
        except OSError:  # "would block" is the good case, a reset leaves nothing to protect either
            return False

    def abort(self) -> None:
        if self.closed:
            return
        if self._sock.family != AF_UNIX:
            # Zero linger time: a reset instead of an orderly end that the peer's full buffers would never let finish.
            with suppress(OSError):  # some systems refuse it where the peer has reset the connection before
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._release()

    def _release(self) -> None:
        self._forget()
        self._unfed = b""
        try:
            self._poller.unregister(self._fd)
        finally:
            self._sock.close()


class Poller:
    """One task and one epoll object for all sockets of a server."""

    def __init__(self, turns: TurnQueue, timers: Timers) -> None:
        self._epoll = select.epoll()
        self._turns = turns
        self._timers = timers
        self._by_fd: dict[int, SocketTransport] = {}
        self._listening: dict[int, Callable[[], None]] = {}
        self._in_vain = 0
        self._passed_over = 0
        self._until = 0.0  # nothing more is read after that, before Trio's loop has come round; 0 if nothing was
        self._late = False
        self._missed = False  # the kernel has told what is ready, and there was no memory to take it down

    @property
    def transports(self) -> list[SocketTransport]:
        """Those that are registered now."""
        return list(self._by_fd.values())

    def register(self, fd: int, transport: SocketTransport) -> None:
        """Watch `fd` until `unregister`, for what comes in.

        Not for room to write: that is there at once, and would wake the task for nothing once for each connection.
        """
        self._epoll.register(fd, INPUT)
        self._by_fd[fd] = transport  # not before: registering may fail, and then the socket is not ours

    def watch_room(self, fd: int) -> None:
        """From now on, watch `fd` for room to write as well; told at once if there is some by now."""
        self._epoll.modify(fd, INPUT | select.EPOLLOUT)

    def unregister(self, fd: int) -> None:
        """Forget `fd`, which is about to be closed."""
        if self._by_fd.pop(fd, None) is not None and not self._epoll.closed:
            self._epoll.unregister(fd)

    async def watch(self, fd: int, serve: Callable[[], OSError | None]) -> OSError:
        """Call `serve()` in each round in which `fd` is readable, until that returns an error, and return the error.

        What it raises is raised here, and not where all sockets are served.

        Cancellation: ends the watching at once, before `cancel` returns, so `fd` may be closed then.
        """
        task = trio.lowlevel.current_task()
        error: BaseException | None = None

        def serve_once() -> None:
            nonlocal error
            try:
                error = serve()
            except BaseException as raised:
                error = raised
            if error is not None and fd in self._listening:  # else it has been cancelled by what it served
                stop()
                trio.lowlevel.reschedule(task)

        def stop() -> None:
            del self._listening[fd]
            if not self._epoll.closed:
                self._epoll.unregister(fd)

        def abort(_: object) -> trio.lowlevel.Abort:
            stop()
            return trio.lowlevel.Abort.SUCCEEDED

        try:
            # Not edge-triggered: `serve` may leave something for the next round.
            self._epoll.register(fd, select.EPOLLIN)
        except OSError as refused:  # the system cannot watch one more descriptor
            return refused
        self._listening[fd] = serve_once
        await trio.lowlevel.wait_task_rescheduled(abort)
        assert error is not None
        if not isinstance(error, OSError):
            raise error
        return error

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Deliver events until cancelled."""
        try:
            while True:
                if self._missed:
                    await trio.lowlevel.checkpoint()
                else:
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                self._serve(self._ready())
                while self._may_look():
                    # After two passes every task that was woken has had its turn to answer.
                    await trio.lowlevel.checkpoint()
                    await trio.lowlevel.checkpoint()
                    if not self._look():
                        break
        finally:
            self._epoll.close()

    def _serve(self, events: list[tuple[int, int]]) -> None:
        """Rounds, as long as they find much; the first one has found `events`."""
        most = 0
        self._until = 0.0
        self._late = False
        polls = 0
        while True:
            self._work_on(events)
            polls += 1
            most = max(most, len(events))
            # With little to do, the tasks that were woken come first.
            if polls == EXTRA_POLLS or len(events) < 2 or perf_counter() > self._until - _ROUND_TIME:
                break
            events = self._ready()  # what it returns has to be worked on: the kernel does not tell twice
        self._turns.crowded = most >= _CROWD

    def catch_up(self, polls: int) -> int:
        """Read what has been waiting, in at most so many rounds; return how many are left for the next pass."""
        self._until = 0.0
        self._late = False
        while polls > 0 and not self._late:
            if self._epoll.closed or not (events := self._ready()):
                return 0
            self._work_on(events)
            polls -= 1
            self._late = perf_counter() > self._until
        return polls

    @property
    def rounds(self) -> int:
        """Rounds in which every socket has had its turn."""
        return len(self._by_fd) // EVENTS_PER_POLL + 1

    def _may_look(self) -> bool:
        """Whether it is worth to look for more; where there is a crowd, there will be."""
        if self._turns.crowded:
            return False
        if self._passed_over < self._in_vain:
            self._passed_over += 1
            return False
        return True

    def _look(self) -> bool:
        """Look whether there is more, for about as long as it takes to fall asleep and be woken.

        A peer that waits for each answer before it says more is heard at once, where it is as near as that. Where none
        is, that is tried more and more rarely.
        """
        self._passed_over = 0
        until = perf_counter() + _LOOK_TIME
        while True:
            if events := self._ready():  # not `_serve`: a look that finds nothing has to be cheap
                self._serve(events)
                self._in_vain //= 2
                return True
            if perf_counter() > until:
                break
        self._in_vain = min(2 * self._in_vain + 1, _MOST_PASSED_OVER)
        return False

    def _ready(self) -> list[tuple[int, int]]:
        """The sockets that have something, and what that is."""
        try:
            if not self._missed:
                return self._epoll.poll(0, EVENTS_PER_POLL)
            events = [(fd, ANYTHING) for fd in self._by_fd]
        except MemoryError:  # perhaps the kernel had told already, and it does not tell twice: so try all of them
            self._missed = True
            return []
        self._missed = False
        return events

    def _work_on(self, events: list[tuple[int, int]]) -> None:
        """One round: read all sockets that have something, work on all that came, write all that came of it.

        One after the other, because a system call leaves little of the interpreter in the processor's caches, and the
        interpreter little of the kernel: one socket at a time would cost a tenth more.
        """
        if not events:
            return
        if not self._until:
            self._until = perf_counter() + _ROUNDS_TIME
        self._timers.tick()
        by_fd = self._by_fd
        batch: list[tuple[SocketTransport, bytes]] = []
        for fd, mask in events:
            transport = by_fd.get(fd)
            if transport is None:  # a listening socket, or one that was closed by an earlier event of this round
                if fd in self._listening:
                    self._listening[fd]()
                    self._late = perf_counter() > self._until
                continue
            try:
                if self._late and mask & READABLE:
                    transport.put_off(b"")
                    mask &= ~READABLE
                # Once EPOLLOUT is registered, later events carry it too.
                if mask == IN or (mask == IN_AND_OUT and not transport.blocked):
                    data = transport.read()
                    if data:
                        batch.append((transport, data))
                        if len(data) > _SMALL_READ:
                            self._work(batch)
                            if len(data) == READ_SIZE and not transport.closed:
                                transport.read_on(False)
                    continue
                if transport.blocked and mask & select.EPOLLOUT:
                    transport.on_writable()
                if mask & READABLE and not transport.closed:
                    transport.read_on(mask & ENDING != 0)
                self._late = perf_counter() > self._until
            except Exception as error:
                transport.report(error)
        self._work(batch)

    def _work(self, batch: list[tuple[SocketTransport, bytes]]) -> None:
        """Feed what was read, then flush."""
        until = perf_counter() + _PATIENCE
        if until > self._until:
            until = self._until
        reads = iter(batch)
        try:
            for transport, data in reads:
                if transport.closed:  # by what another one has brought
                    continue
                transport.corked = True
                try:
                    transport.receiver._on_data(data)
                except Exception as error:
                    transport.report(error)
                if (now := perf_counter()) > until:
                    self._settle(batch)
                    until = now + _PATIENCE
                    if now > self._until:
                        self._late = True
                        for late, unfed in reads:  # what is closed has no more turns
                            try:
                                late.put_off(unfed)
                            except Exception as error:
                                late.report(error)
        finally:
            self._settle(batch)
            batch.clear()

    def _settle(self, batch: list[tuple[SocketTransport, bytes]]) -> None:
        """Flush those that were fed; those that were not are not corked."""
        for transport, _ in batch:
            if transport.corked:
                transport.corked = False
                try:
                    if transport._out:
                        transport.flush()
                    if transport.more:
                        transport.ask_for_turn()
                except Exception as error:
                    transport.report(error)
