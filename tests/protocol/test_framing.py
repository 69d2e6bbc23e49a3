"""What the peer sends, from bytes to messages and control events."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterable

import pytest

from trio_crowws._protocol.events import CloseReceived, Event, Fault, Ping, Pong
from trio_crowws._protocol.framing import FrameReader
from trio_crowws.errors import InvalidUTF8, PayloadTooBig, ProtocolError

KEY = b"\x37\xfa\x21\x3d"
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MIB = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    key: bytes | None = KEY,
    length: int | None = None,
    form: int | None = None,
) -> bytes:
    """One frame.

    Args:
      opcode: the opcode.
      payload: what it carries, before masking.
      fin: whether it ends its message.
      rsv: the three reserved bits.
      key: the masking key; `None` for no mask.
      length: claims another length than the payload has.
      form: how the length is written: in 1, 2 or 8 bytes; the shortest that fits if not given.
    """
    size = len(payload) if length is None else length
    form = form or (1 if size < 126 else 2 if size < 1 << 16 else 8)
    second, extended = {1: (size, b""), 2: (126, size.to_bytes(9)[-2:]), 8: (127, size.to_bytes(9)[-8:])}[form]
    head = bytes(((0x80 if fin else 0) | rsv << 4 | opcode, second | (0 if key is None else 0x80))) + extended
    if key is None:
        return head + payload
    whole = key * (len(payload) // 4 + 1)
    masked = bytes(a ^ b for a, b in zip(payload, whole, strict=False))
    return head + key + masked


def reader(
    *,
    max_payload: int | None = MIB,
    max_fragments: int | None = 1024,
    control_rate: tuple[float, float] | None = (50, 100),
    allow_unmasked: bool = False,
    clock: Clock | None = None,
    client: bool = False,
) -> FrameReader:
    return FrameReader(
        max_payload=max_payload,
        max_fragments=max_fragments,
        control_rate=control_rate,
        allow_unmasked=allow_unmasked,
        clock=clock or Clock(),
        client=client,
    )


def one_by_one(data: bytes) -> Iterable[bytes]:
    return (bytes((byte,)) for byte in data)


def feed(target: FrameReader, pieces: Iterable[bytes]) -> list[Event]:
    events: list[Event] = []
    for piece in pieces:
        events += target.receive(piece)
        while target.backlog:
            events += target.receive(b"")
    return events


def read(data: bytes, target: FrameReader | None = None) -> list[Event]:
    """The events of `data`, which must be the same whether it comes at once or byte by byte."""
    if target is not None:
        return feed(target, [data])
    events = feed(reader(), [data])
    assert [comparable(event) for event in feed(reader(), one_by_one(data))] == [comparable(event) for event in events]
    return events


def comparable(event: Event) -> object:
    # Where in the text a decoder objects depends on the pieces that it got.
    if not isinstance(event, Fault):
        return event
    error = event.error
    return type(error), error.code, "" if isinstance(error, InvalidUTF8) else str(error)


def fault(events: list[Event]) -> ProtocolError:
    """The error of the only event."""
    (event,) = events
    assert isinstance(event, Fault)
    return event.error


# Plain frames


def test_example_of_the_rfc() -> None:
    """The masked "Hello" of RFC 6455 section 5.7."""
    assert read(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58") == ["Hello"]


@pytest.mark.parametrize(
    "size", [0, 1, 2, 3, 4, 5, 63, 64, 124, 125, 126, 127, 1000, 1024, 1025, 65_535, 65_536, 70_001]
)
def test_sizes(size: int) -> None:
    """Messages of both types arrive whole at every length form."""
    payload = bytes(index % 128 for index in range(size))
    assert read(frame(BINARY, payload) + frame(TEXT, payload)) == [payload, payload.decode()]


def test_types() -> None:
    """Text is a str, binary is bytes, and so are the payloads of control frames."""
    events = read(frame(TEXT, b"a") + frame(BINARY, b"b") + frame(PING, b"c") + frame(PONG, b"d"))
    assert events == ["a", b"b", Ping(b"c"), Pong(b"d")]
    assert [type(event) for event in events] == [str, bytes, Ping, Pong]


def test_ping_is_not_pong() -> None:
    """Control events of different kinds are different, even with the same payload."""
    assert Ping(b"x") != Pong(b"x")  # type: ignore[comparison-overlap]


@pytest.mark.parametrize("size", [0, 1, 125])
def test_control_payloads(size: int) -> None:
    """Control frames carry from nothing to 125 bytes."""
    assert read(frame(PING, b"p" * size) + frame(PONG, b"q" * size)) == [Ping(b"p" * size), Pong(b"q" * size)]


def test_unicode() -> None:
    """Characters of every width arrive, also at the edges of the code space."""
    text = "a\x00\x7f\x80\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff\r\n"
    assert read(frame(TEXT, text.encode())) == [text]


def test_many_frames_at_once_and_across_reads() -> None:
    """Frames are found wherever the reads cut them."""
    data = b"".join(frame(TEXT, b"%d" % number) for number in range(50))
    expected: list[Event] = [str(number) for number in range(50)]
    for size in range(1, 24):
        assert feed(reader(), (data[start : start + size] for start in range(0, len(data), size))) == expected


def test_nothing() -> None:
    """No bytes make no events."""
    target = reader()
    assert target.receive(b"") == []
    assert not target.backlog
    assert not target.finished


def test_cut_frame_makes_no_event() -> None:
    """What is cut off by the end of the stream is never delivered."""
    for data in (frame(TEXT, b"hello"), frame(BINARY, bytes(300)), frame(PING, b"x"), frame(CLOSE, b"\x03\xe8bye")):
        for end in range(len(data)):
            assert feed(reader(), [data[:end]]) == []


# Fragmented messages


def test_fragments_are_joined() -> None:
    """A fragmented message is delivered once, when it is complete."""
    data = frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b", fin=False) + frame(CONTINUATION, b"c")
    assert read(data) == ["abc"]
    data = frame(BINARY, b"a", fin=False) + frame(CONTINUATION) + frame(TEXT, b"next")
    assert read(data) == [b"a", "next"]


def test_code_point_across_fragments() -> None:
    """A code point may be split between frames."""
    snowman = "\u2603".encode()
    data = frame(TEXT, snowman[:1], fin=False) + frame(CONTINUATION, snowman[1:2], fin=False)
    assert read(data + frame(CONTINUATION, snowman[2:])) == ["\u2603"]


def test_newlines_in_fragments() -> None:
    """Newlines of every kind pass through a fragmented message unchanged."""
    assert read(frame(TEXT, b"a\r", fin=False) + frame(CONTINUATION, b"\nb\rc\n")) == ["a\r\nb\rc\n"]


def test_control_between_fragments() -> None:
    """Control frames between fragments are delivered at once and disturb nothing."""
    data = frame(BINARY, b"a", fin=False) + frame(PING, b"1") + frame(CONTINUATION, b"b", fin=False) + frame(PONG)
    assert read(data + frame(CONTINUATION, b"c")) == [Ping(b"1"), Pong(b""), b"abc"]


def test_close_between_fragments() -> None:
    """A Close frame amid a fragmented message is a Close frame; the message is never delivered."""
    assert read(frame(TEXT, b"a", fin=False) + frame(CLOSE, b"\x03\xe8")) == [CloseReceived(1000, "")]
    assert read(frame(TEXT, b"a", fin=False) + frame(CLOSE, b"\x03\xf6x")) == [CloseReceived(1014, "x")]


def test_empty_fragments_only() -> None:
    """A message may consist of empty fragments."""
    assert read(frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) + frame(CONTINUATION)) == [""]
    assert read(frame(BINARY, fin=False) + frame(CONTINUATION)) == [b""]


def test_lanes_alternate() -> None:
    """Plain and fragmented messages follow each other in any order."""
    part = frame(BINARY, b"x" * 200, fin=False) + frame(PING) + frame(CONTINUATION, b"y" * 5000)
    plain = frame(TEXT, b"plain") + frame(BINARY, b"z" * 300)
    whole: list[Event] = [Ping(b""), b"x" * 200 + b"y" * 5000]
    assert read(part + plain + part + part + plain) == [
        *whole,
        "plain",
        b"z" * 300,
        *whole,
        *whole,
        "plain",
        b"z" * 300,
    ]


def test_new_message_within_a_message() -> None:
    """A text frame where a continuation is due is 1002, plain as it looks."""
    error = fault(read(frame(TEXT, b"a", fin=False) + frame(TEXT, b"b")))
    assert (error.code, str(error)) == (1002, "expected CONTINUATION, got <Opcode.TEXT: 1>")


def test_continuation_of_nothing() -> None:
    """A continuation with no message open is 1002."""
    assert str(fault(read(frame(CONTINUATION, b"a")))) == "unexpected CONTINUATION"
    assert read(frame(TEXT, b"a", fin=False) + frame(CONTINUATION) + frame(CONTINUATION))[0] == "a"


# Order, faults, the end


def test_messages_before_a_fault_come_first() -> None:
    """What was read before a bad frame is delivered before the fault."""
    events = read(frame(TEXT, b"a") + frame(PING) + frame(BINARY, b"b") + frame(TEXT, b"\xff") + frame(TEXT, b"c"))
    assert events[:3] == ["a", Ping(b""), b"b"]
    assert fault(events[3:]).code == 1007


def test_failure_is_not_the_peers_close() -> None:
    """A failure and a Close frame with the same code and reason are different events."""
    broken = read(frame(3))
    said = read(frame(CLOSE, b"\x03\xeaInvalid opcode 0x3"))
    assert str(fault(broken)) == "Invalid opcode 0x3"
    assert fault(broken).code == 1002
    assert said == [CloseReceived(1002, "Invalid opcode 0x3")]


@pytest.mark.parametrize(
    "last", [frame(CLOSE, b"\x03\xe8"), frame(3), frame(BINARY, length=1 << 40), frame(TEXT, b"\xff")]
)
def test_nothing_after_the_end(last: bytes) -> None:
    """After a Close frame or a fault whatever comes is dropped: no event, no error, no memory."""
    target = reader()
    assert len(feed(target, [last + frame(TEXT, b"late") + frame(CLOSE)])) == 1
    assert target.finished
    assert not target.backlog
    assert feed(target, [frame(TEXT, b"late"), frame(CLOSE), b"\xff" * 1000]) == []
    tracemalloc.start()
    try:
        for _ in range(100):
            target.receive(b"x" * 10_000)
        assert tracemalloc.get_traced_memory()[0] < 20_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("last", [frame(3), frame(CLOSE, b"\x03\xe8")])
def test_nothing_is_kept_after_the_end(last: bytes) -> None:
    """With its last event a reader lets go of an open message and of what was not read."""
    target = reader()
    tracemalloc.start()
    try:
        target.receive(frame(BINARY, bytes(500_000), fin=False))
        assert tracemalloc.get_traced_memory()[0] > 500_000
        target.receive(last + bytes(300_000), 1)
        assert target.finished
        assert tracemalloc.get_traced_memory()[0] < 50_000
    finally:
        tracemalloc.stop()


def test_finished_only_at_the_end() -> None:
    """Messages and control frames do not finish a reader."""
    target = reader()
    feed(target, [frame(TEXT, b"a") + frame(PING) + frame(TEXT, b"b", fin=False)])
    assert not target.finished


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
def test_reserved_opcodes(opcode: int) -> None:
    """A reserved opcode is 1002 at the second byte of the frame."""
    target = reader()
    assert target.receive(frame(opcode)[:1]) == []
    error = fault(target.receive(frame(opcode)[1:2]))
    assert (error.code, str(error)) == (1002, f"Invalid opcode {opcode:#x}")


@pytest.mark.parametrize("rsv", range(1, 8))
@pytest.mark.parametrize("opcode", [TEXT, BINARY, CLOSE, PING, PONG])
def test_reserved_bits(opcode: int, rsv: int) -> None:
    """A reserved bit that no extension has negotiated is 1002 at the second byte."""
    error = fault(reader().receive(frame(opcode, b"\x03\xe8", rsv=rsv)[:2]))
    assert (error.code, str(error)) == (1002, "Reserved bit set unexpectedly")


@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
def test_fragmented_control(opcode: int) -> None:
    """A fragmented control frame is 1002."""
    assert fault(read(frame(opcode, fin=False))).code == 1002


@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
@pytest.mark.parametrize("size", [126, 127, 65_536])
def test_long_control(opcode: int, size: int) -> None:
    """A control frame of more than 125 bytes is 1002, known from its second byte."""
    error = fault(reader().receive(frame(opcode, bytes(size))[:2]))
    assert (error.code, str(error)) == (1002, "Control frame with payload len > 125")


@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
@pytest.mark.parametrize("form", [2, 8])
def test_control_length_not_in_its_shortest_form(opcode: int, form: int) -> None:
    """A control frame whose length has another form than the shortest is 1002, however much of it comes at once."""
    whole = frame(opcode, length=2, form=form)
    for end in range(2, len(whole) + 1):
        assert fault(reader().receive(whole[:end])).code == 1002


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize(("size", "form"), [(0, 2), (125, 2), (0, 8), (125, 8), (126, 8), (65_535, 8)])
def test_length_not_in_its_shortest_form(opcode: int, size: int, form: int) -> None:
    """A length that is written longer than it needs to be is 1002 at its last byte."""
    head = frame(opcode, length=size, form=form)[: 2 + form]
    target = reader()
    assert target.receive(head[:-1]) == []
    assert fault(target.receive(head[-1:])).code == 1002


@pytest.mark.parametrize("limit", [None, MIB])
def test_length_with_its_highest_bit_set(limit: int | None) -> None:
    """A length of 2**63 or more is 1002, with or without a limit."""
    error = fault(reader(max_payload=limit).receive(frame(BINARY, length=1 << 63)[:10]))
    assert (error.code, str(error)) == (1002, "8-byte payload length with non-zero MSB")


@pytest.mark.parametrize("opcode", [TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG])
def test_unmasked_frame_from_a_client(opcode: int) -> None:
    """A frame without a mask is 1002 at its second byte."""
    error = fault(reader().receive(frame(opcode, b"ab", key=None)[:2]))
    assert (error.code, str(error)) == (1002, "server received unexpected unmasked frame")


# UTF-8


@pytest.mark.parametrize(
    "text",
    [
        b"\x80",
        b"abc\xff",
        b"\xc0\xaf",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
        b"ab\xe2\x98",
    ],
)
@pytest.mark.parametrize("prefix", [b"", b"a" * 300, b"\xe2\x98\x83" * 30_000])
def test_invalid_text(prefix: bytes, text: bytes) -> None:
    """Text that is not UTF-8 is 1007, whole or in fragments: overlong forms, surrogates, beyond 10FFFF, cut off."""
    assert isinstance(fault(feed(reader(), [frame(TEXT, prefix + text)])), InvalidUTF8)
    assert isinstance(fault(feed(reader(), [frame(TEXT, prefix, fin=False) + frame(CONTINUATION, text)])), InvalidUTF8)


@pytest.mark.parametrize("declared", [20, 300, 70_000])
@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4", b"\x90"),
        (b"ab\xed\xa0", b"\x80"),
        (b"", b"\xff"),
        (b"\xf0\x9f\x98", b"a"),
    ],
)
def test_invalid_text_fails_early(declared: int, good: bytes, bad: bytes) -> None:
    """In a text frame that is not complete yet, the first byte that cannot be right fails, and no byte before it."""
    target = reader()
    start = frame(TEXT, good + bad, length=declared)
    for byte in one_by_one(start[:-1]):
        assert target.receive(byte) == []
    assert isinstance(fault(target.receive(start[-1:])), InvalidUTF8)


def test_text_that_ends_within_a_code_point() -> None:
    """A text frame that ends within a code point fails with its last byte."""
    data = frame(TEXT, b"a" * 200 + b"\xe2\x98")
    target = reader()
    assert feed(target, one_by_one(data[:-1])) == []
    assert isinstance(fault(target.receive(data[-1:])), InvalidUTF8)


def test_invalid_text_fails_early_in_chunks() -> None:
    """The same when the frame comes in two reads, as a peer sends that looks whether it is believed."""
    data = frame(TEXT, b"good so far \xf4\x90\x80\x80 and more", length=4000)
    target = reader()
    assert target.receive(data[:18]) == []
    assert isinstance(fault(target.receive(data[18:30])), InvalidUTF8)


def test_invalid_text_fails_early_within_a_fragment() -> None:
    """A fragment that is not complete fails early as well."""
    target = reader()
    assert target.receive(frame(TEXT, b"good", fin=False)) == []
    assert isinstance(fault(target.receive(frame(CONTINUATION, b"bad\xff", length=4000))), InvalidUTF8)


def test_valid_text_in_small_pieces() -> None:
    """Valid text of every width never fails early."""
    text = "a\u00e9\u2603\U0001f600" * 100
    assert read(frame(TEXT, text.encode())) == [text]


def test_binary_is_not_text() -> None:
    """Bytes that are no UTF-8 are fine in a binary message."""
    assert read(frame(BINARY, b"\xff\xfe") + frame(BINARY, b"\xff", fin=False) + frame(CONTINUATION, b"\xc0")) == [
        b"\xff\xfe",
        b"\xff\xc0",
    ]


# Close frames


def test_close_without_code() -> None:
    """An empty Close frame has no code."""
    assert read(frame(CLOSE)) == [CloseReceived(None, "")]


@pytest.mark.parametrize(
    "code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999]
)
def test_close_codes(code: int) -> None:
    """Every code that may travel is accepted, and is a plain int."""
    (event,) = read(frame(CLOSE, code.to_bytes(2) + "bye \u2603".encode()))
    assert event == CloseReceived(code, "bye \u2603")
    assert isinstance(event, CloseReceived)
    assert type(event.code) is int


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535])
def test_close_codes_that_must_not_travel(code: int) -> None:
    """Every other code is 1002."""
    assert fault(read(frame(CLOSE, code.to_bytes(2)))).code == 1002


def test_close_with_one_byte() -> None:
    """Half a code is 1002."""
    error = fault(read(frame(CLOSE, b"\x03")))
    assert (error.code, str(error)) == (1002, "CLOSE with 1 byte payload")


@pytest.mark.parametrize("code", [1000, 1014, 4000])
def test_close_reason_must_be_text(code: int) -> None:
    """A reason that is not UTF-8 is 1007, whatever the code."""
    assert isinstance(fault(read(frame(CLOSE, code.to_bytes(2) + b"\xff"))), InvalidUTF8)


def test_close_with_the_longest_reason() -> None:
    """A reason may have 123 bytes."""
    assert read(frame(CLOSE, b"\x03\xe8" + b"r" * 123)) == [CloseReceived(1000, "r" * 123)]


@pytest.mark.parametrize("key", [b"\x00\x00\x00\x00", b"\x03\xf6\x00\x00", b"\xff\xff\xff\xff", KEY])
def test_close_1013_and_1014_are_told_apart(key: bytes) -> None:
    """The codes 1013 and 1014 each arrive as themselves under any masking key."""
    assert read(frame(CLOSE, b"\x03\xf5a", key=key)) == [CloseReceived(1013, "a")]
    assert read(frame(CLOSE, b"\x03\xf6a", key=key)) == [CloseReceived(1014, "a")]


# Limits


def test_payload_at_the_limit() -> None:
    """A message of exactly `max_payload` bytes passes in every shape."""
    for limit in (1, 10, 125, 126, 1000, 70_000):
        payload = b"x" * limit
        data = frame(TEXT, payload) + frame(TEXT, payload[1:], fin=False) + frame(CONTINUATION, payload[:1])
        assert feed(reader(max_payload=limit), [data]) == [payload.decode(), payload.decode()]


@pytest.mark.parametrize("limit", [1, 10, 125, 126, 1000, 70_000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_payload_over_the_limit(limit: int, opcode: int) -> None:
    """One byte more is 1009 as soon as the length is known."""
    whole = frame(opcode, length=limit + 1)[:-4]
    parts = frame(opcode, bytes(limit), fin=False) + frame(CONTINUATION, length=1)[:2]
    for data in (whole, parts):
        target = reader(max_payload=limit)
        assert feed(target, one_by_one(data[:-1])) == []
        error = fault(target.receive(data[-1:]))
        assert isinstance(error, PayloadTooBig)
        assert str(error) == f"a message of at least {limit + 1} bytes; the limit is {limit}"


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_huge_length(opcode: int) -> None:
    """A frame that declares a tebibyte is 1009 at its header."""
    assert isinstance(fault(reader().receive(frame(opcode, length=1 << 40)[:10])), PayloadTooBig)
    started = frame(opcode, fin=False) + frame(CONTINUATION, length=1 << 40)[:10]
    assert isinstance(fault(reader().receive(started)), PayloadTooBig)


def test_payload_limit_counts_bytes_of_text() -> None:
    """The limit on a text message is in bytes, not in characters."""
    text = "\u00e9" * 5
    assert feed(reader(max_payload=10), [frame(TEXT, text.encode())]) == [text]
    assert isinstance(fault(feed(reader(max_payload=9), [frame(TEXT, text.encode())])), PayloadTooBig)


def test_payload_limit_is_for_each_message() -> None:
    """The sum begins anew with every message, and control frames do not count."""
    data = frame(TEXT, b"ab", fin=False) + frame(PING, b"12345") + frame(CONTINUATION, b"cd")
    assert feed(reader(max_payload=4), [data * 3]) == [Ping(b"12345"), "abcd"] * 3


def test_fragment_limit() -> None:
    """The most frames of one message pass, empty ones included; one more is 1008."""
    data = frame(BINARY, b"a", fin=False) + frame(CONTINUATION, fin=False) + frame(CONTINUATION, b"b")
    assert feed(reader(max_fragments=3), [data * 2]) == [b"ab", b"ab"]
    error = fault(feed(reader(max_fragments=2), [data]))
    assert (error.code, str(error)) == (1008, "a message of more than 2 frames")


def test_flood_of_empty_fragments() -> None:
    """Empty fragments without end are 1008 soon, by their number or by their rate."""
    flood = frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * 5000
    assert str(fault(feed(reader(), [flood]))) == "too many empty fragments"
    assert str(fault(feed(reader(control_rate=None), [flood]))) == "a message of more than 1024 frames"


@pytest.mark.parametrize("within", [b"", frame(TEXT, b"a", fin=False)])
@pytest.mark.parametrize("opcode", [PING, PONG])
def test_flood_of_control_frames(opcode: int, within: bytes) -> None:
    """Control frames beyond the burst are 1008, between messages and within one."""
    target = reader(control_rate=(50, 100))
    events = feed(target, [within + frame(opcode, b"x") * 5000])
    assert len(events) == 101
    error = fault(events[100:])
    assert (error.code, str(error)) == (1008, "too many control frames")


def test_control_frames_at_the_rate() -> None:
    """Control frames may come at the rate for ever, whichever lane they take."""
    clock = Clock()
    target = reader(control_rate=(10, 3), clock=clock)
    for _ in range(200):
        clock.now += 0.4
        assert (
            len(feed(target, [frame(PING) + frame(TEXT, b"a", fin=False) + frame(PONG) * 2 + frame(CONTINUATION)])) == 4
        )


def test_solicited_pongs_are_free() -> None:
    """As many pongs as this side sent pings do not count."""
    target = reader(control_rate=(1, 1))
    for _ in range(500):
        target.credit_ping()
    assert feed(target, [frame(PONG) * 501]) == [Pong(b"")] * 501
    assert fault(feed(target, [frame(PONG)])).code == 1008


def test_no_limits() -> None:
    """`None` turns each limit off."""
    target = reader(max_payload=None, max_fragments=None, control_rate=None)
    target.credit_ping()
    data = frame(PING) * 1000 + frame(BINARY, fin=False) + frame(CONTINUATION, fin=False) * 3000
    assert feed(target, [data, frame(CONTINUATION, bytes(2 * MIB))]) == [Ping(b"")] * 1000 + [bytes(2 * MIB)]
    assert target.receive(frame(BINARY, length=1 << 62)) == []


# At most so many at a time


def test_limit_and_backlog() -> None:
    """A call looks at no more frames than it is told to; the rest is the backlog and needs no new data."""
    target = reader()
    data = b"".join(frame(TEXT, b"%d" % number) for number in range(7))
    assert target.receive(data, 3) == ["0", "1", "2"]
    assert target.backlog
    assert target.receive(b"", 3) == ["3", "4", "5"]
    assert target.backlog
    assert target.receive(b"", 3) == ["6"]
    assert not target.backlog
    assert target.receive(b"", 3) == []


def test_limit_that_is_just_reached() -> None:
    """There is no backlog when the limit was reached with the last byte."""
    target = reader()
    assert target.receive(frame(TEXT, b"a") * 2, 2) == ["a", "a"]
    assert not target.backlog


def test_new_data_behind_a_backlog() -> None:
    """Data that comes while there is a backlog is read after it."""
    target = reader()
    data = b"".join(frame(TEXT, b"%d" % number) for number in range(6))
    events = target.receive(data[:20], 1) + target.receive(data[20:31], 1) + target.receive(data[31:], 1)
    while target.backlog:
        events += target.receive(b"", 1)
    assert events == ["0", "1", "2", "3", "4", "5"]


def test_limit_bounds_fragments_too() -> None:
    """Fragments make no event until the last, but count as work: a call may return nothing and leave a backlog."""
    target = reader()
    data = frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b", fin=False) * 10 + frame(CONTINUATION, b"c")
    assert target.receive(data, 4) == []
    assert target.backlog
    assert feed(target, [b""]) == ["a" + "b" * 10 + "c"]


def test_backlog_ends_with_a_fault() -> None:
    """After the last event there is no backlog."""
    target = reader()
    assert target.receive(frame(TEXT, b"a") + frame(3) + frame(TEXT, b"b"), 1) == ["a"]
    assert target.backlog
    assert fault(target.receive(b"", 1)).code == 1002
    assert not target.backlog


def test_backlog_with_an_incomplete_end() -> None:
    """What is left of a frame after the backlog was read waits for the rest of it."""
    target = reader()
    assert target.receive(frame(TEXT, b"a") * 2 + frame(TEXT, b"bc")[:-1], 2) == ["a", "a"]
    assert target.receive(b"", 2) == []
    assert not target.backlog
    assert target.receive(frame(TEXT, b"bc")[-1:], 2) == ["bc"]


# Memory and time


@pytest.mark.parametrize(
    "data", [frame(TEXT, length=MIB), frame(BINARY, length=MIB), frame(BINARY, fin=False, length=MIB)]
)
def test_declared_length_is_not_allocated(data: bytes) -> None:
    """A header that promises a large frame costs nothing until the frame comes."""
    target = reader()
    target.receive(frame(TEXT, b"a", fin=False) + frame(CONTINUATION))  # what is made only once
    tracemalloc.start()
    try:
        assert target.receive(data) == []
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "start", [frame(TEXT, length=MIB), frame(BINARY, length=MIB), frame(BINARY, fin=False, length=MIB)]
)
def test_more_of_a_large_frame_does_not_copy_it(start: bytes) -> None:
    """The next bytes of a large frame cost what they are, not what came before them."""
    target = reader()
    target.receive(start)
    for _ in range(12):
        target.receive(bytes(65_536))
    tracemalloc.start()
    try:
        for _ in range(100):
            target.receive(b"\x00\x00")
        assert tracemalloc.get_traced_memory()[1] < 50_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "start",
    [
        frame(TEXT, length=MIB),
        frame(BINARY, length=MIB),
        frame(BINARY, fin=False, length=MIB),
        frame(TEXT, fin=False, length=MIB),
    ],
)
@pytest.mark.parametrize("size", [3, 5000])
def test_memory_of_a_large_frame(start: bytes, size: int) -> None:
    """An incomplete frame takes little more memory than the bytes that have come, however small the pieces."""
    target = reader()
    tracemalloc.start()
    try:
        target.receive(start[:-4] + bytes(4))  # a key of zeros
        for _ in range(30_000 // size):
            target.receive(b"a" * size)
        assert tracemalloc.get_traced_memory()[1] < 120_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("start", [frame(TEXT, length=2 * MIB), frame(BINARY, fin=False, length=2 * MIB)])
def test_small_pieces_take_linear_time(start: bytes) -> None:
    """A large frame in small pieces takes time in proportion to its size: here a second, and not minutes."""
    target = reader(max_payload=None)
    begun = time.process_time()
    target.receive(start[:-4] + bytes(4))
    for _ in range(2 * MIB // 16):
        target.receive(b"a" * 16)
    assert time.process_time() - begun < 12


def test_small_steps_through_a_large_read() -> None:
    """Going through one read in small steps does not copy what remains at each step."""
    target = reader()
    target.receive(frame(TEXT, b"a") * 30_000, 1)
    tracemalloc.start()
    try:
        for _ in range(50):
            assert target.receive(b"", 1) == ["a"]
        assert tracemalloc.get_traced_memory()[1] < 50_000
    finally:
        tracemalloc.stop()


# The other ways to mask


def test_unmasked_frames_allowed() -> None:
    """With `allow_unmasked` a server takes frames with and without a mask, in both lanes."""
    parts = [
        frame(TEXT, b"a", key=None),
        frame(BINARY, b"b" * 300, key=None),
        frame(TEXT, b"c"),
        frame(BINARY, b"d" * 70_000, key=None),
        frame(PING, b"e", key=None),
        frame(TEXT, b"f", fin=False, key=None),
        frame(PONG, key=None),
        frame(CONTINUATION, b"g" * 200, fin=False),
        frame(CONTINUATION, b"h" * 70_000, key=None),
        frame(CLOSE, b"\x03\xf6bye", key=None),
    ]
    expected = ["a", b"b" * 300, "c", b"d" * 70_000, Ping(b"e"), Pong(b""), "f" + "g" * 200 + "h" * 70_000]
    for pieces in (parts, [b"".join(parts)], one_by_one(b"".join(parts))):
        assert feed(reader(allow_unmasked=True), pieces) == [*expected, CloseReceived(1014, "bye")]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(3, key=None), 1002),
        (frame(TEXT, b"\xff", key=None), 1007),
        (frame(TEXT, b"ab\xff", key=None, length=1000), 1007),
        (frame(BINARY, length=1 << 40, key=None), 1009),
        (frame(BINARY, length=5, form=8, key=None), 1002),
        (frame(CONTINUATION, b"a", key=None), 1002),
        (frame(CLOSE, b"\x03\xed", key=None), 1002),
        (frame(PING, bytes(126), key=None), 1002),
    ],
)
def test_unmasked_frames_are_judged_all_the_same(data: bytes, code: int) -> None:
    """`allow_unmasked` waives the mask and nothing else."""
    for pieces in ([data], one_by_one(data)):
        assert fault(feed(reader(allow_unmasked=True), pieces)).code == code


def test_client() -> None:
    """A client reads frames without a mask."""
    parts = [
        frame(TEXT, b"a", key=None),
        frame(BINARY, b"b" * 70_000, key=None),
        frame(PING, b"c", key=None),
        frame(TEXT, "\u2603".encode()[:1], fin=False, key=None),
        frame(CONTINUATION, "\u2603".encode()[1:], key=None),
        frame(CLOSE, b"\x03\xf6bye", key=None),
    ]
    expected = ["a", b"b" * 70_000, Ping(b"c"), "\u2603", CloseReceived(1014, "bye")]
    for pieces in (parts, [b"".join(parts)], one_by_one(b"".join(parts))):
        assert feed(reader(client=True), pieces) == expected


@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, CLOSE])
@pytest.mark.parametrize("size", [2, 100])
def test_masked_frame_from_a_server(opcode: int, size: int) -> None:
    """A client fails a masked frame with 1002."""
    error = fault(feed(reader(client=True), [frame(opcode, b"\x03\xe8" + b"x" * (size - 2))]))
    assert (error.code, str(error)) == (1002, "client received unexpected masked frame")


def test_client_fails_early_on_bad_text() -> None:
    """A client, too, fails at the first byte that cannot be text."""
    data = frame(TEXT, b"good\xff", length=1000, key=None)
    target = reader(client=True)
    assert feed(target, one_by_one(data[:-1])) == []
    assert isinstance(fault(target.receive(data[-1:])), InvalidUTF8)
