"""Random lives of a connection, against a model of the contract that fits on a page.

An example is a list of steps: frames of the peer, legal and not, split anywhere; calls of the application; time; faults
of the stream; a cancellation. After each one the contract's general lines hold (`performing.py`). Beyond that the model
says how the connection must have ended, wherever one step alone decided that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Literal

import trio
import trio.testing
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from sweep.peers import RawPeer
from sweep.performing import perform
from sweep.playing import Cut, Cutter, Play, Script, Style
from trio_crowws import (
    CloseInfo,
    Connection,
    ConnectionClosed,
    ConnectionLost,
    HeartbeatTimeout,
    InvalidUTF8,
    PayloadTooBig,
    ProtocolError,
)
from trio_crowws.testing import make_frame

MAX_PAYLOAD = 500


@dataclass(frozen=True)
class Step:
    """Something that happens.

    Attributes:
      kind: what.
      value: with what.
      splits: where the bytes of a frame are split.
      rush: whether the next step follows before this one has had its effect.
    """

    kind: str
    value: Any = None
    splits: tuple[int, ...] = ()
    rush: bool = False


FAULTS: dict[str, tuple[bytes, int, type[ProtocolError]]] = {
    "reserved opcode": (make_frame(3), 1002, ProtocolError),
    "reserved control": (make_frame(11), 1002, ProtocolError),
    "reserved bit": (make_frame(1, b"a", rsv=4), 1002, ProtocolError),
    "unmasked": (make_frame(1, b"a", mask=False), 1002, ProtocolError),
    "not UTF-8": (make_frame(1, b"ab\xff"), 1007, InvalidUTF8),
    "half a character": (make_frame(1, b"ab\xe2\x82"), 1007, InvalidUTF8),
    "too big": (make_frame(2, bytes(MAX_PAYLOAD + 1)), 1009, PayloadTooBig),
    "long ping": (make_frame(9, bytes(126)), 1002, ProtocolError),
    "fragmented ping": (make_frame(9, fin=False), 1002, ProtocolError),
    "close of one byte": (make_frame(8, b"\x03"), 1002, ProtocolError),
    "close with 1005": (make_frame(8, (1005).to_bytes(2)), 1002, ProtocolError),
    "close with bad reason": (make_frame(8, b"\x03\xe8\xff"), 1007, InvalidUTF8),
}

CLOSE_CODES = st.sampled_from([1000, 1001, 1008, 3000, 4999])
RUSH = st.sampled_from([False, False, False, True])
SPLITS = st.lists(st.integers(1, 40), max_size=3).map(tuple)
Side = Literal["local", "remote"]


def step(kind: str, value: st.SearchStrategy[Any] | None = None, *, split: bool = False) -> st.SearchStrategy[Step]:
    return st.builds(Step, st.just(kind), st.none() if value is None else value, SPLITS if split else st.just(()), RUSH)


TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)
STEPS = st.one_of(
    step("message", st.one_of(TEXTS, st.binary(max_size=130)), split=True),
    step("message", st.one_of(TEXTS, st.binary(max_size=130)), split=True),
    step("fragment", st.tuples(st.binary(max_size=30), st.booleans()), split=True),
    step("peer ping", st.binary(max_size=125), split=True),
    step("peer pong", st.binary(max_size=20), split=True),
    step("send", st.integers(0, 200)),
    step("send_nowait", st.integers(0, 200)),
    step("cancel send"),
    step("ping"),
    step("publish"),
    step("child", st.sampled_from([trio.lowlevel.checkpoint, trio.sleep_forever])),
    step("sleep", st.sampled_from([0.05, 1, 45])),
    step("stall"),
    step("flow"),
)
ENDS = st.one_of(
    step("peer close", st.one_of(st.none(), CLOSE_CODES), split=True),
    step("fault", st.sampled_from(sorted(FAULTS)), split=True),
    step("close", CLOSE_CODES),
    step("close waiting", CLOSE_CODES),
    step("abort"),
    step("raise"),
    step("child raises"),
    step("eof"),
    step("break"),
    step("vanish"),
    step("cancel", st.sampled_from(["server", "route", "handler"])),
)
LIVES = st.lists(st.one_of(STEPS, STEPS, STEPS, ENDS), max_size=12)


def stops(step: Step, frame: bytes) -> list[int]:
    """Where the pieces of a frame end."""
    return sorted({*(split for split in step.splits if split < len(frame)), len(frame)})


@dataclass
class Expected:
    """How a connection must have ended."""

    codes: tuple[int, ...]
    initiator: Side
    sent: int | None = None
    received: int | None = None
    error: tuple[type[Exception], ...] = ()
    complete: bool = False

    def check(self, info: CloseInfo) -> None:
        assert info.code in self.codes, (info, self)
        assert info.initiator == self.initiator, (info, self)
        assert info.clean is (self.received is not None), (info, self)
        if self.received is not None:
            assert info.received is not None
            assert (info.received.code or 1005) == self.received
        else:
            assert info.received is None
        if self.sent is None:
            assert info.sent is None, (info, self)
        else:
            assert info.sent is not None
            assert (info.sent.code or 1005) in (self.sent, *self.codes), (info, self)
        assert isinstance(info.error, self.error) if self.error else info.error is None, (info, self)


@dataclass
class Model:
    """What is known about a connection from the steps alone.

    Attributes:
      end: how it has ended; `None` while it is open.
      certain: whether the steps so far leave only one possibility.
      messages: what the peer has completely sent before the end.
    """

    end: Expected | None = None
    certain: bool = True
    stalled: bool = False
    fragments: list[bytes] | None = None
    messages: list[str | bytes] = field(default_factory=list)
    rushed: Step | None = None

    def take(self, step: Step) -> Expected | None:
        """Learn of a step; return how the connection ends by it, if it does."""
        if self.end is not None:
            if self.rushed is not None:
                self.certain = False  # the end and this step are at the same time
            self.rushed = step if step.rush and self.rushed is not None else None
            return None
        end = self._end_by(step)
        if end is not None and (self.stalled or self.rushed is not None):
            self.certain = False
        if step.kind in ("stall", "flow"):
            self.stalled = step.kind == "stall"
        if step.kind in ("send_nowait", "publish") and (self.stalled or self.rushed is not None):
            self.certain = False  # it may be too much at once
        if step.kind == "sleep" and self.stalled:
            self.certain = False
        self.rushed = step if step.rush else None
        self.end = end
        return end

    def _end_by(self, step: Step) -> Expected | None:
        kind, value = step.kind, step.value
        if kind == "peer close":
            code = value or 1005
            return Expected((code,), "remote", sent=code, received=code, complete=True)
        if kind == "fault":
            _, code, error = FAULTS[value]
            if self.fragments is None or value not in ("not UTF-8", "half a character", "too big"):
                return Expected((code,), "local", sent=code, error=(error,), complete=True)
            return Expected((1002, code), "local", sent=1002, error=(ProtocolError,), complete=True)
        if kind in ("message", "fragment"):
            return self._take_data(step)
        if kind in ("close", "close waiting"):
            return Expected((value,), "local", sent=value, received=value)
        if kind == "cancel":
            return Expected((1001,), "local", sent=1001, received=1001)
        if kind in ("raise", "child raises"):
            if kind == "raise" and self.fragments is not None:  # it is a message, and so a fault now
                return Expected((1002,), "local", sent=1002, error=(ProtocolError,), complete=True)
            return Expected((1011,), "local", sent=1011, received=1011, error=(ValueError,))
        simple = {
            "abort": Expected((1006,), "local"),
            "eof": Expected((1006,), "remote", error=(ConnectionLost,), complete=True),
            "break": Expected((1006,), "remote", error=(ConnectionLost,)),
            "vanish": Expected((1006,), "local", error=(HeartbeatTimeout,)),
        }
        return simple.get(kind)

    def _take_data(self, step: Step) -> Expected | None:
        if step.kind == "message":
            if self.fragments is None:
                self.messages.append(step.value)
                return None
            return Expected((1002,), "local", sent=1002, error=(ProtocolError,), complete=True)
        payload, last = step.value
        self.fragments = [*(self.fragments or []), payload]
        if last:
            self.messages.append(b"".join(self.fragments))
            self.fragments = None
        return None


class Life(Script):
    """The subject of one example."""

    options: ClassVar[dict[str, Any]] = {
        "max_payload": MAX_PAYLOAD,
        "send_high_water": 128,
        "send_limit": 400,
        "control_rate": None,
    }

    def __init__(self, steps: list[Step], delay: float) -> None:
        self.steps = steps
        self.delay = delay
        self.model = Model()
        self.sends: list[trio.CancelScope] = []
        self.serial = 0
        self.completes = True

    # The application

    async def on_message(self, play: Play, conn: Connection, message: str | bytes) -> None:
        if message == "raise":
            raise ValueError("on_message")
        if self.delay:
            await trio.sleep(self.delay)

    def plain_message(self, play: Play, conn: Connection, message: str | bytes) -> None:
        if message == "raise":
            raise ValueError("on_message")

    # The peer, and what happens beside

    async def peer(self, play: Play, peer: RawPeer) -> None:
        self.play, self._peer = play, peer
        async with trio.open_nursery() as self.nursery:
            self.nursery.start_soon(self._read)
            await trio.testing.wait_all_tasks_blocked()
            for step in self.steps:
                await self._take(step)
            await self._take(Step("flow"))
            await self._take(Step("peer close", 1000))
            await trio.sleep(10)
            self.nursery.cancel_scope.cancel()

    async def _read(self) -> None:
        while await self._peer.receive() is not None:
            pass

    async def _take(self, step: Step) -> None:
        fragments = self.model.fragments  # as they are before the step
        ends = self.model.take(step)
        await self._do(step, fragments)
        if not step.rush:
            await trio.testing.wait_all_tasks_blocked()
        if ends is not None and self.delay and self.model.certain:
            await trio.sleep(6)

    async def _do(self, step: Step, fragments: list[bytes] | None) -> None:
        if step.kind in ("message", "fragment", "peer ping", "peer pong", "peer close", "fault", "raise"):
            frame = self._frame(step, fragments)
            await self._peer.send_raw(*(frame[start:stop] for start, stop in pairwise([0, *stops(step, frame)])))
        elif step.kind == "sleep":
            await trio.sleep(step.value)
        elif step.kind in ("eof", "break", "vanish", "stall", "flow"):
            await self._spoil(step.kind)
        elif self.play.conn is not None:
            self._act(step, self.play.conn)

    def _frame(self, step: Step, fragments: list[bytes] | None) -> bytes:
        value = step.value
        if step.kind == "message":
            self._peer.messages.append(value)
            return make_frame(1, value.encode()) if isinstance(value, str) else make_frame(2, value)
        if step.kind == "raise":
            self.raises = True
            self._peer.messages.append("raise")
            return make_frame(1, b"raise")
        if step.kind == "fragment":
            payload, last = value
            if last:
                self._peer.messages.append(b"".join([*(fragments or []), payload]))
            return make_frame(2 if fragments is None else 0, payload, fin=last)
        if step.kind == "fault":
            return FAULTS[value][0]
        if step.kind == "peer close":
            self._peer.sent_close = True
            return make_frame(8, b"" if value is None else value.to_bytes(2))
        return make_frame(9 if step.kind == "peer ping" else 10, value)

    async def _spoil(self, kind: str) -> None:
        faults, stream = self._peer.faults, self._peer.stream
        assert faults is not None
        if kind == "eof":
            assert isinstance(stream, trio.abc.HalfCloseableStream)
            await stream.send_eof()
        elif kind == "break":
            self.breaks = True
            await faults.break_off()
        elif kind == "stall":
            self.aborts = True  # by `close_timeout`, if it lasts
            faults.stall()
        elif kind == "flow":
            faults.flow()
        else:
            self._peer.pongs = False
            await trio.sleep(60)
            self._peer.pongs = True

    def _act(self, step: Step, conn: Connection) -> None:
        kind, value = step.kind, step.value
        actions: dict[str, Callable[[], object]] = {
            "send": lambda: self.nursery.start_soon(self._send, conn, self._payload(value)),
            "send_nowait": lambda: self.play.send_nowait(conn, self._payload(value)),
            "cancel send": lambda: self.sends and self.sends.pop(0).cancel(),
            "ping": lambda: self.nursery.start_soon(self._wait, conn.ping),
            "publish": lambda: self._publish(conn),
            "child": lambda: self.play.child(
                conn, trio.sleep_forever if value == "endless" else trio.lowlevel.checkpoint
            ),
            "child raises": lambda: self._start_failing(conn),
            "close": lambda: conn.close_nowait(value),
            "close waiting": lambda: self.nursery.start_soon(self._wait, lambda: conn.close(value)),
            "abort": lambda: self._abort(conn),
            "cancel": lambda: self._cancel(conn, value),
        }
        try:
            actions[kind]()
        except ConnectionClosed:
            assert not conn.is_open

    def _payload(self, size: int) -> bytes:
        self.serial += 1
        return b"%d " % self.serial + bytes(size)

    async def _send(self, conn: Connection, data: bytes) -> None:
        scope = trio.CancelScope()
        self.sends.append(scope)
        self.play.unsent.append(data)
        with scope:
            try:
                await conn.send(data)
            except ConnectionClosed:
                assert not conn.is_open
            else:
                self.play.unsent.remove(data)
                self.play.sent.append(data)

    async def _wait(self, function: Callable[[], Any]) -> None:
        try:
            await function()
        except ConnectionClosed:
            assert self.play.conn is not None
            assert not self.play.conn.is_open

    def _publish(self, conn: Connection) -> None:
        conn.join("hall")
        result = self.play.app.publish("hall", "to all")
        assert result.sent + result.closed <= 2

    def _start_failing(self, conn: Connection) -> None:
        async def fail() -> None:
            raise ValueError("child")

        self.raises = True
        self.play.child(conn, fail)

    def _abort(self, conn: Connection) -> None:
        self.aborts = True
        conn.abort()

    def _cancel(self, conn: Connection, cut: Cut) -> None:
        play = self.play
        if play.cutter.done:
            return
        play.cut = cut
        scopes = {"server": play.scope, "handler": conn.cancel_scope}
        play.cutter.cut(scopes[cut] if cut in scopes else play.server.route_scope(play.route))


@settings(max_examples=1000)
@given(LIVES, st.sampled_from(["session", "async", "sync", "class", "mixed"]), st.sampled_from([0, 0.1]))
# The peer ends its direction while our Close is on its way: it still gets that Close.
@example([Step("raise", rush=True), Step("eof")], "session", 0)
# A stream that is stalled twice flows again.
@example([Step("stall"), Step("peer ping", b""), Step("stall")], "session", 0)
def test_a_connection_ends_as_the_model_says(steps: list[Step], style: Style, delay: float) -> None:
    """Whatever happens in whatever order: the contract holds, and what is certain comes out so."""
    life = Life(steps, delay if style in ("session", "async", "class") else 0)
    cutter = Cutter(0)
    play = Play(life, style, "handler", cutter)
    perform(play)
    conn, model = play.conn, life.model
    assert conn is not None
    info = conn.close_info
    assert info is not None
    heard = [note.value for note in play.notes if note.name == "message"]
    assert heard == [*model.messages, "raise"][: len(heard)]
    event(f"certain: {model.certain}")
    if model.certain:
        assert model.end is not None
        model.end.check(info)
        if model.end.complete:
            assert heard == model.messages
