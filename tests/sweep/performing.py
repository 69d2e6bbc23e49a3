"""Performing a play, and what must be true after it, whatever was cancelled: the contract's lines 1 to 5 and 12."""

from __future__ import annotations

import functools
import logging
import os
import signal
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from itertools import count, pairwise
from pathlib import Path

import trio
import trio.testing
from wsproto.connection import Connection as Wire
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, TextMessage

from support.certificates import TLS, make_tls
from sweep.peers import MemoryListener, RawPeer, inflated, next_frame
from sweep.playing import PATIENCE, Cut, Cutter, Play, Script, Style
from trio_crowws import CloseTimeout, ConnectionLost, HeartbeatTimeout, Server, SlowConsumer, State

__all__ = [
    "InterruptedPerformance",
    "Performance",
    "SocketPerformance",
    "StreamPerformance",
    "TLSPerformance",
    "perform",
    "sweep",
]

BROKEN = (CloseTimeout, ConnectionLost, HeartbeatTimeout, SlowConsumer)
"""The reasons for which a stream may end anywhere."""


class Log(logging.Handler):
    """What the package has logged as errors."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def logged() -> Generator[Log]:
    log = Log()
    logger = logging.getLogger("trio_crowws")
    logger.addHandler(log)
    propagate, logger.propagate = logger.propagate, False
    try:
        yield log
    finally:
        logger.removeHandler(log)
        logger.propagate = propagate


class Performance:
    """One run of a play over memory streams, beside a canary on the same server."""

    threshold = 0.0
    """Seconds without anything to do before the clock jumps."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.cutter = play.cutter
        self.listener = MemoryListener()
        self.busy_at_cut = False
        self.handling_at_cut = False
        self.closing_at_cut = False
        self.cutter.on_cut = self._note_cut

    def _note_cut(self) -> None:
        play = self.play
        self.busy_at_cut = play.server._admission.tasks > 0
        self.handling_at_cut = play.conn is not None and play.conn.is_open and play.task not in self.cutter.runnable
        self.closing_at_cut = play.server.closing

    async def run(self) -> None:
        with logged() as log:
            before = trio.lowlevel.current_statistics().tasks_living
            with trio.fail_after(PATIENCE):
                async with trio.open_nursery() as nursery:
                    await self._start(nursery)
                    await self._play_all()
            assert trio.lowlevel.current_statistics().tasks_living == before
        check_log(self.play, log)
        self._check_end()

    async def _start(self, nursery: trio.Nursery) -> None:
        self.play.server = await nursery.start(self._serve)

    async def _serve(self, *, task_status: trio.TaskStatus[Server]) -> None:
        self.cutter.count_below(trio.lowlevel.current_task())
        with self.play.scope:
            await self.play.app.serve_listeners([self.listener], task_status=task_status)

    async def _connect(self) -> RawPeer:
        return self.listener.connect()

    async def _play_all(self) -> None:
        play, server = self.play, self.play.server
        self.canary = canary = await self._connect()
        assert await canary.open("canary") == 101
        self.subject = await self._connect()
        if play.cut == "server":
            self.cutter.open(play.scope)
        elif play.cut == "route":
            self.cutter.open(server.route_scope(play.route))
        await play_subject(play, self.subject)
        await self._subject_gone()
        if play.cut == "route":
            self.cutter.shut(server.route_scope(play.route))
        elif play.cut == "handler" and play.conn is not None:
            self.cutter.shut(play.conn.cancel_scope)
        cancelled = play.cut == "server" and self.cutter.done
        if play.cut != "server" and not server.closing:
            await self._check_canary()
            await self._check_route()
        elif not cancelled and not server.closing:
            await canary.send_close()
        await canary.read_to_end()
        await canary.drop()
        if not cancelled:
            await server.aclose()
        await server.wait_closed()

    async def _subject_gone(self) -> None:
        """Wait until the server has nothing left of the subject."""
        play, server = self.play, self.play.server

        def is_there() -> bool:
            # The canary has a task and a transport, too.
            return play.conn in server.connections or max(server._admission.tasks, len(server._engine.transports)) > 1

        with trio.fail_after(30):
            while is_there():  # noqa: ASYNC110 -- there is no event for it
                await trio.sleep(0.1)

    async def _check_canary(self) -> None:
        """The other connection goes on as if nothing had happened."""
        canary = self.canary
        await canary.send("sing")
        while (message := await canary.receive_message()) != b"sing":
            assert message is not None, "the canary has died"
        await canary.send_close()

    async def _check_route(self) -> None:
        """A route whose scope was cancelled is closed, and says so."""
        if self.play.cut == "route" and self.cutter.done:
            late = await self._connect()
            assert await late.open() == 503
            await late.drop()

    # Afterwards

    def _check_end(self) -> None:
        play, server = self.play, self.play.server
        check_order(play, self.subject)
        check_wire(play, self.subject)
        check_canary_wire(play, self.canary)
        check_nothing_left(play)
        assert not server.connections
        assert server._admission.tasks == 0
        assert not server._admission._openings
        assert not server._engine.transports
        heap = server._engine.timers._heap
        assert not [timer for deadline, _, timer in heap if timer.deadline == deadline]
        if self.cutter.done:
            self._check_cancelled()

    def _check_cancelled(self) -> None:
        """The cancellation arrived where it was meant to, and was not swallowed on its way."""
        play = self.play
        if play.cut == "server":
            assert play.scope.cancelled_caught or not self.busy_at_cut
        elif play.cut == "route":
            # Where the whole server ends as well, it is not the route's scope that catches.
            caught = play.server.route_scope(play.route).cancelled_caught
            assert caught or self.closing_at_cut or play.script.aborts
        elif play.cut == "handler" and self.handling_at_cut and not play.script.shields:
            conn = play.conn
            assert conn is not None
            assert conn.cancel_scope.cancelled_caught


class SocketPerformance(Performance):
    """The same over TCP, where the poller reads and writes."""

    # Long enough for the kernel to carry a packet from one end to the other.
    threshold = 0.002

    async def run(self) -> None:
        before = open_files()
        await super().run()
        assert open_files() == before

    async def _serve(self, *, task_status: trio.TaskStatus[Server]) -> None:
        self.cutter.count_below(trio.lowlevel.current_task())
        with self.play.scope:
            await self.play.app.serve("127.0.0.1", 0, task_status=task_status)

    async def _connect(self) -> RawPeer:
        return RawPeer(await trio.open_tcp_stream("127.0.0.1", self.play.server.port), None)


class TLSPerformance(SocketPerformance):
    """The same over TLS on TCP. A peer cannot end one direction alone, so there is no `send_eof`."""

    async def _serve(self, *, task_status: trio.TaskStatus[Server]) -> None:
        self.cutter.count_below(trio.lowlevel.current_task())
        with self.play.scope:
            await self.play.app.serve("127.0.0.1", 0, ssl_context=_tls().server, task_status=task_status)

    async def _connect(self) -> RawPeer:
        plain = await trio.open_tcp_stream("127.0.0.1", self.play.server.port)
        # As browsers do: no alert is expected or sent at the end.
        stream = trio.SSLStream(plain, _tls().client, server_hostname="localhost", https_compatible=True)
        return RawPeer(stream, None)


@functools.cache
def _tls() -> TLS:
    with tempfile.TemporaryDirectory() as folder:
        return make_tls(Path(folder))


class InterruptedPerformance(Performance):
    """The server runs in the main task, and Ctrl-C is pressed: Trio raises KeyboardInterrupt there, shielded or not."""

    def __init__(self, play: Play) -> None:
        super().__init__(play)
        self.cutter.strike = lambda _: signal.raise_signal(signal.SIGINT)
        self.interrupted = False

    async def run(self) -> None:
        with logged() as log:
            before = trio.lowlevel.current_statistics().tasks_living
            try:
                with trio.fail_after(PATIENCE):
                    async with trio.open_nursery() as nursery:
                        started = trio.Event()
                        nursery.start_soon(self._play_beside, started)
                        await self._serve(task_status=Started(self.play, started))
                        self.cutter.shut(self.play.scope)
                    await trio.lowlevel.checkpoint()  # at the latest here, where it came with the last step
            except* KeyboardInterrupt:
                self.interrupted = True
            assert trio.lowlevel.current_statistics().tasks_living == before
        check_log(self.play, log)
        self._check_end()

    async def _play_beside(self, started: trio.Event) -> None:
        # Shielded: what is cancelled is the server's business, and the peers are its judges.
        self.cutter.ignore(trio.lowlevel.current_task())
        with trio.CancelScope(shield=True, deadline=trio.current_time() + PATIENCE / 2) as patience:
            await started.wait()
            await self._play_all()
        assert not patience.cancelled_caught, "the play does not end"

    def _check_cancelled(self) -> None:
        assert self.interrupted


class Started(trio.TaskStatus[Server]):
    """Hands the server to its play."""

    def __init__(self, play: Play, event: trio.Event) -> None:
        self._play = play
        self._event = event

    def started(self, value: Server) -> None:
        self._play.server = value
        self._event.set()


def open_files() -> dict[str, str]:
    """What the descriptors of this process stand for."""
    files = {}
    for entry in os.scandir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that reads the folder
            files[entry.name] = str(Path(entry.path).readlink())
    return files


class StreamPerformance(Performance):
    """One connection alone, served by `serve_stream`."""

    def _note_cut(self) -> None:
        self.handling_at_cut = self.play.conn is not None and self.play.conn.is_open

    async def _start(self, nursery: trio.Nursery) -> None:
        self.subject = self.listener.connect()
        nursery.start_soon(self._serve_stream)

    async def _serve_stream(self) -> None:
        play = self.play
        self.cutter.count_below(trio.lowlevel.current_task())
        if play.cut == "server":
            self.cutter.open(play.scope)
        with play.scope:
            await play.app.serve_stream(await self.listener.accept())

    async def _play_all(self) -> None:
        await play_subject(self.play, self.subject)

    def _check_end(self) -> None:
        play = self.play
        check_order(play, self.subject)
        check_wire(play, self.subject)
        check_nothing_left(play)
        if self.cutter.done and self.handling_at_cut:
            assert play.cut == "server"
            assert play.scope.cancelled_caught


async def play_subject(play: Play, subject: RawPeer) -> None:
    """The life of the subject, as its peer sees it."""
    subject.compresses = "compression" in play.script.options
    async with trio.open_nursery() as beside:
        beside.start_soon(play.script.beside, play)
        if await subject.open() == 101:
            await play.script.peer(play, subject)
        await subject.read_to_end()
        await subject.drop()


def check_nothing_left(play: Play) -> None:
    """No task, no list and no room knows a connection any more."""
    assert play.children == 0
    assert not play.app.connections
    assert not play.route.connections
    assert not play.app.rooms
    assert play.app._occupied == 0


def check_log(play: Play, log: Log) -> None:
    """Nothing went wrong but what was meant to."""
    for message in log.messages:
        assert play.script.raises, message
        assert "internal error" not in message, message


def check_order(play: Play, subject: RawPeer) -> None:
    """Lines 1 to 3: on_close once if on_open was entered; the order; on_error if and only if there is an error."""
    names = [name for name in play.names if name != "event"]
    conn = play.conn
    if conn is None:
        assert not {"open", "message", "error", "close"} & set(names), names
        return
    assert not play.script.refused
    assert names.count("open") == names.count("close") == 1, names
    info = conn.close_info
    assert info is not None
    assert conn.state is State.CLOSED
    begins = [name for name in names if " " not in name]
    assert [name for name in begins if name != "message"] == [
        *(["accept"] if play.asks else []),
        "open",
        *(["error"] if info.error is not None else []),
        "close",
    ] or play.style == "sync", names
    assert begins[-1] == "close", names
    # Serial: what has begun ends before anything else begins.
    order = [name for name in names if not name.endswith(" done")]
    for first, second in pairwise(order):
        assert first.endswith(" end") or second == f"{first} end", names
    assert order[-1] == "close end"
    if play.script.completes:
        assert "close done" in names, names
        assert info.error is None or "error done" in names, names
    heard = [note.value for note in play.notes if note.name == "message"]
    assert heard == subject.messages[: len(heard)], (heard, subject.messages)
    told = [note for note in play.notes if note.name in ("error", "close")]
    assert told[-1].value is info
    assert info.error is None or told[0].value is info.error
    assert play.notes[-1].time - told[0].time <= conn.options.callback_timeout + 0.001
    # A peer that has said goodbye and then breaks off makes an end that is not clean, but no error either.
    left = play.script.breaks and info.received is not None
    assert info.clean or info.error is not None or play.script.aborts or left, info
    # Line 14: the names stay readable.
    assert conn.request.path == "/subject"
    assert isinstance(repr(conn), str)


def split(data: bytes) -> tuple[bytes, bytes]:
    head, separator, rest = data.partition(b"\r\n\r\n")
    return head + separator, rest


def whole_frames(data: bytes) -> list[tuple[int, bytes]]:
    """The frames in `data`; what is left of it in the end is under the opcode -1."""
    frames = []
    position = 0
    while (frame := next_frame(data, position)) is not None:
        opcode, payload, position = frame
        frames.append((opcode, payload))
    if position < len(data):
        frames.append((-1, data[position:]))
    return frames


def check_frames(data: bytes) -> None:
    """Plain wsproto finds nothing wrong, and nothing follows a Close frame."""
    wire = Wire(ConnectionType.CLIENT)
    wire.receive_data(data)
    messages = 0
    for event in wire.events():
        if isinstance(event, CloseConnection):
            assert wire.state is ConnectionState.REMOTE_CLOSING, event
        elif isinstance(event, TextMessage | BytesMessage) and event.message_finished:
            messages += 1
    frames = whole_frames(data)
    assert messages == sum(opcode in (1, 2) for opcode, _ in frames)
    closes = [index for index, (opcode, _) in enumerate(frames) if opcode == 8]
    assert closes in ([], [len(frames) - 1]), frames


def check_wire(play: Play, subject: RawPeer) -> None:
    """Lines 5, 11 and 12: whole answers, whole frames, in the order of the sends, and nothing behind Close."""
    head, rest = split(bytes(subject.received))
    if not head.startswith(b"HTTP/1.1 101"):
        assert play.conn is None
        check_answer(play, head, rest)
        return
    assert not play.script.refused
    if play.script.options.get("compression") is not None:
        assert b"Sec-WebSocket-Extensions: permessage-deflate" in head
        rest = inflated(rest)
    frames = whole_frames(rest)
    check_frames(rest)
    messages = [payload for opcode, payload in frames if opcode in (1, 2) and payload != b"to all"]
    conn = play.conn
    if conn is None:
        assert not messages
        return
    info = conn.close_info
    assert info is not None
    closes = [payload for opcode, payload in frames if opcode == 8]
    # Where both Close frames were exchanged, nothing can be missing.
    aborted = not info.clean and (play.script.aborts or isinstance(info.error, BROKEN))
    if (aborted or play.script.breaks) and (not closes or frames[-1][0] == -1):
        assert messages == play.sent[: len(messages)]
    else:
        assert frames == [] or frames[-1][0] != -1
        assert messages == play.sent
        assert info.sent is not None
        expected = b"" if info.sent.code is None else info.sent.code.to_bytes(2) + info.sent.reason.encode()
        assert closes == [expected], (closes, info)
    if info.clean:
        assert info.received is not None
        assert subject.sent_close
    for data in play.unsent:
        assert data not in messages


def check_answer(play: Play, head: bytes, body: bytes) -> None:
    if not head:  # the server was gone before it accepted the stream
        assert play.cut == "server"
        return
    length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    assert int(length[0].partition(b":")[2]) == len(body), (head, body)
    assert b"connection: close" in head.lower()
    status = int(head[9:12])
    assert status == 503 or (play.script.refused and status == 403), head


def check_canary_wire(play: Play, canary: RawPeer) -> None:
    head, rest = split(bytes(canary.received))
    assert head.startswith(b"HTTP/1.1 101")
    check_frames(rest)
    frames = whole_frames(rest)
    if play.script.aborts:
        return
    assert frames, "the canary got no Close frame"
    opcode, payload = frames[-1]
    assert opcode == 8
    assert int.from_bytes(payload[:2]) in (1000, 1001, 1012)


def perform(play: Play, kind: type[Performance] = Performance) -> None:
    """Run a play and check it."""
    trio.run(
        kind(play).run,
        clock=trio.testing.MockClock(autojump_threshold=kind.threshold),
        instruments=[play.cutter],
        strict_exception_groups=True,
    )


def sweep(script: type[Script], style: Style, cut: Cut, kind: type[Performance] = Performance) -> int:
    """Cut at the first, second, third ... point, until a play ends before its point; return how many there were."""
    for number in count(1):
        cutter = Cutter(number)
        play = Play(script(), style, cut, cutter)
        try:
            perform(play, kind)
        except BaseException as error:
            error.add_note(f"{script.__name__}, style {style!r}, cut {cut!r} at point {number}, notes {play.names}")
            raise
        if not cutter.done:
            return number - 1
    raise AssertionError("not reached")
