"""The reader against plain wsproto: any bytes, cut anywhere, make the same events in both.

Wanted differences: close code 1014 is accepted, and the detail of a UTF-8 failure may name another position, because
that depends on the pieces in which the decoder gets the text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wsproto import events as wsproto_events
from wsproto.connection import Connection, ConnectionState, ConnectionType

from trio_crowws._protocol.events import CloseReceived, Event, Fault, Ping, Pong
from trio_crowws._protocol.framing import FrameReader

Seen: TypeAlias = tuple[object, ...]

NO_SUCH_CODE = ("fault", 1002, "CLOSE with unknown reserved code")


# What wsproto says


class Plain:
    """A wsproto connection without any extension, its messages joined."""

    def __init__(self, client: bool) -> None:
        self.connection = Connection(ConnectionType.CLIENT if client else ConnectionType.SERVER)
        self.parts: list[str | bytes] = []
        self.finished = False

    def receive(self, data: bytes) -> list[Seen]:
        if self.finished:
            return []
        self.connection.receive_data(data)
        return [seen for event in self.connection.events() if (seen := self.translate(event)) is not None]

    def translate(self, event: wsproto_events.Event) -> Seen | None:
        if isinstance(event, (wsproto_events.TextMessage, wsproto_events.BytesMessage)):
            self.parts.append(event.data if isinstance(event.data, str) else bytes(event.data))
            if not event.message_finished:
                return None
            parts, self.parts = self.parts, []
            if isinstance(event, wsproto_events.TextMessage):
                return "text", "".join(part for part in parts if isinstance(part, str))
            return "binary", b"".join(part for part in parts if isinstance(part, bytes))
        if isinstance(event, wsproto_events.Ping):
            return "ping", bytes(event.payload)
        if isinstance(event, wsproto_events.Pong):
            return "pong", bytes(event.payload)
        assert isinstance(event, wsproto_events.CloseConnection)
        self.finished = True
        if self.connection.state is ConnectionState.OPEN:
            return fault(event.code, event.reason or "")
        return "close", None if event.code == 1005 else event.code, event.reason or ""


def fault(code: int, detail: str) -> Seen:
    return "fault", code, "" if code == 1007 else detail


# What the reader says


def ours(event: Event) -> Seen:
    match event:
        case str():
            return "text", event
        case bytes():
            return "binary", event
        case Ping(payload):
            return "ping", payload
        case Pong(payload):
            return "pong", payload
        case CloseReceived(code, reason):
            return "close", code, reason
        case Fault(error):
            return fault(error.code, str(error))


def unlimited(client: bool, *, allow_unmasked: bool = False) -> FrameReader:
    return FrameReader(
        max_payload=None,
        max_fragments=None,
        control_rate=None,
        allow_unmasked=allow_unmasked,
        clock=lambda: 0.0,
        client=client,
    )


def receive(reader: FrameReader, data: bytes, limit: int = 64) -> list[Seen]:
    events = reader.receive(data, limit)
    while reader.backlog:
        events += reader.receive(b"", limit)
    return [ours(event) for event in events]


def agree(mine: list[Seen], theirs: list[Seen]) -> bool:
    if mine != theirs and theirs and theirs[-1] == NO_SUCH_CODE:
        # The code is looked at before the reason, so with 1014 a bad reason is found only here.
        return mine[:-1] == theirs[:-1] and mine[-1][:2] in [("close", 1014), ("fault", 1007)]
    return mine == theirs


# What the peer sends


@dataclass(frozen=True)
class Frame:
    """Everything that can be right or wrong about one frame."""

    opcode: int
    payload: bytes
    fin: bool = True
    rsv: int = 0
    masked: bool | None = None  # `None`: as it has to be
    form: int = 0  # bytes of the length field; 0: the shortest form
    key: bytes = b"\x37\xfa\x21\x3d"

    def encode(self, client: bool) -> bytes:
        """The bytes of the frame, sent to a client or a server."""
        size = len(self.payload)
        form = max(self.form, 1 if size < 126 else 2 if size < 1 << 16 else 8)
        second, extended = {1: (size, b""), 2: (126, size.to_bytes(8)[-2:]), 8: (127, size.to_bytes(8))}[form]
        masked = not client if self.masked is None else self.masked
        head = bytes((self.fin << 7 | self.rsv << 4 | self.opcode, masked << 7 | second)) + extended
        if not masked:
            return head + self.payload
        key = self.key * (size // 4 + 1)
        return head + self.key + bytes(a ^ b for a, b in zip(self.payload, key, strict=False))


def close_frame(code: int, reason: bytes) -> Frame:
    return Frame(8, code.to_bytes(2) + reason)


keys = st.one_of(st.just(bytes(4)), st.binary(min_size=4, max_size=4))
texts = st.one_of(
    st.text(max_size=20).map(str.encode),
    st.text(alphabet="a\u00e9\u2603\U0001f600", max_size=80).map(str.encode),
    st.just("\u2603".encode() * 23_000),
    st.sampled_from(
        [b"\xff", b"ok\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf" * 90, b"\xe2\x98", b"a" * 200 + b"\xc3"]
    ),
)
payloads = st.one_of(texts, st.binary(max_size=20), st.integers(110, 140).map(bytes), st.sampled_from([bytes(66_000)]))
good_texts = st.text(alphabet="a\u00e9\u2603\U0001f600", max_size=60).map(str.encode)
reasons = st.one_of(good_texts.filter(lambda reason: len(reason) < 124), st.sampled_from([b"\xff", b"a\xe2\x98"]))
close_codes = st.one_of(st.integers(990, 1020), st.integers(2990, 3010), st.integers(0, 65_535))
closes = st.one_of(
    st.builds(close_frame, close_codes, reasons),
    st.sampled_from([Frame(8, b""), Frame(8, b"\x03"), Frame(8, b"\x03\xf6bye"), Frame(8, b"\x03\xf6\xff")]),
)
controls = st.builds(Frame, st.sampled_from([9, 10]), st.binary(max_size=125), key=keys)
plain = st.builds(Frame, st.just(1), good_texts, key=keys) | st.builds(Frame, st.just(2), payloads, key=keys)
anything = st.builds(
    Frame,
    opcode=st.sampled_from([0, 0, 1, 1, 2, 2, 8, 9, 10, 3, 7, 11, 15]),
    payload=payloads,
    fin=st.sampled_from([True, True, False]),
    rsv=st.sampled_from([0, 0, 0, 0, 1, 2, 4, 7]),
    masked=st.sampled_from([None, None, None, None, True, False]),
    form=st.sampled_from([0, 0, 0, 2, 8]),
    key=keys,
)


@st.composite
def fragmented(draw: st.DrawFn) -> list[Frame]:
    """A message in fragments cut anywhere, with control frames between them."""
    opcode = draw(st.sampled_from([1, 2]))
    payload = draw(good_texts if opcode == 1 else payloads)
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), min_size=1, max_size=4)))
    frames: list[Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(payload)], strict=True):
        frames.append(Frame(0 if frames else opcode, payload[start:end], fin=False, key=draw(keys)))
        frames += draw(st.lists(controls, max_size=2))
    last = max(index for index, frame in enumerate(frames) if frame.opcode < 8)
    frames[last] = replace(frames[last], fin=True)
    return frames


@st.composite
def streams(draw: st.DrawFn, client: bool = False) -> bytes:
    """Some good traffic, perhaps something odd in it, perhaps a few bytes changed, perhaps cut off."""
    good = st.one_of(plain.map(lambda frame: [frame]), controls.map(lambda frame: [frame]), fragmented())
    odd = st.one_of(anything.map(lambda frame: [frame]), closes.map(lambda frame: [frame]))
    groups = draw(st.lists(st.one_of(good, good, good, odd), max_size=6))
    if draw(st.booleans()):
        groups = [*groups, *draw(st.lists(odd, min_size=1, max_size=2))]
    data = bytearray(b"".join(frame.encode(client) for group in groups for frame in group))
    if data and draw(st.sampled_from([False, False, True])):
        for _ in range(draw(st.integers(1, 3))):
            data[draw(st.integers(0, len(data) - 1))] ^= draw(st.integers(1, 255))
    if draw(st.sampled_from([False, False, True])):
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)


roles = pytest.mark.parametrize("client", [False, True], ids=["server", "client"])


@roles
@given(data=st.data())
@settings(max_examples=300)
def test_any_pieces(client: bool, data: st.DataObject) -> None:
    """A stream in any pieces, read with any limit, makes the events that wsproto makes of the whole."""
    stream = data.draw(streams(client))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    limit = data.draw(st.integers(1, 5))
    reader = unlimited(client)
    mine: list[Seen] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        mine += receive(reader, stream[start:end], limit)
    theirs = Plain(client)
    assert agree(mine, theirs.receive(stream))
    assert reader.finished == theirs.finished or mine[-1][1] == 1014


@roles
@given(data=st.data())
@settings(max_examples=100)
def test_every_byte(client: bool, data: st.DataObject) -> None:
    """Byte by byte, every event, and above all every failure, comes with the very byte with which wsproto has it."""
    stream = data.draw(streams(client).filter(lambda stream: len(stream) < 3000))
    reader = unlimited(client)
    theirs = Plain(client)
    for index in range(len(stream)):
        byte = stream[index : index + 1]
        assert agree(receive(reader, byte), theirs.receive(byte)), index


@given(st.binary(max_size=60), st.booleans())
@settings(max_examples=500)
@example(b"\x81\xfe\x00\x7d", False)
@example(b"\x82\x7f" + b"\xff" * 8, True)
def test_noise(noise: bytes, client: bool) -> None:
    """Bytes that are no frames at all fail as they fail in wsproto."""
    assert agree(receive(unlimited(client), noise), Plain(client).receive(noise))


@given(st.lists(st.one_of(plain, anything, closes, controls), max_size=6), st.integers(1, 9), st.integers(0, 2**30))
@settings(max_examples=200)
def test_without_a_mask(frames: list[Frame], size: int, choice: int) -> None:
    """With `allow_unmasked`, a stream in which some frames lack the mask reads as if all had one."""
    masked = [replace(frame, masked=True) for frame in frames]
    mixed = [replace(frame, masked=bool(choice >> index & 1)) for index, frame in enumerate(frames)]
    stream = b"".join(frame.encode(client=False) for frame in mixed)
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)] if len(stream) < 5000 else [stream]
    reader = unlimited(client=False, allow_unmasked=True)
    mine = [event for piece in pieces for event in receive(reader, piece)]
    assert agree(mine, Plain(client=False).receive(b"".join(frame.encode(client=False) for frame in masked)))
