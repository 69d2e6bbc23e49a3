"""permessage-deflate, the way in: what is inflated, what is refused."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_crowws import Deflate
from trio_crowws._protocol import deflate as deflate_module
from trio_crowws._protocol import framing
from trio_crowws._protocol.deflate import TURN, Inflater
from trio_crowws._protocol.deflate_offer import Agreement, Setting, negotiate
from trio_crowws._protocol.events import CloseReceived, Event, Fault, Ping, Pong
from trio_crowws._protocol.framing import FrameReader
from trio_crowws.errors import InvalidUTF8, PayloadTooBig, ProtocolError

KEY = b"\x37\xfa\x21\x3d"
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
RSV1 = 4
TAIL = b"\x00\x00\xff\xff"
KIB, MIB = 1 << 10, 1 << 20
READ = 64 * KIB  # what a transport reads at once

FULL = Agreement("", True, False, 15, 15, Setting(15, 6, 8, keeps_context=False))
"""Both windows of 15 bits; the client keeps a context."""
FORGETFUL = Agreement("", True, True, 15, 15, Setting(15, 6, 8, keeps_context=False))
"""The client keeps none."""


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, key: bytes | None = KEY) -> bytes:
    size = len(payload)
    second, extended = (
        (size, b"") if size < 126 else (126, size.to_bytes(2)) if size < 1 << 16 else (127, size.to_bytes(8))
    )
    head = bytes(((0x80 if fin else 0) | rsv << 4 | opcode, second | (0 if key is None else 0x80))) + extended
    if key is None:
        return head + payload
    mask = (key * (size // 4 + 1))[:size]
    return head + key + (int.from_bytes(payload) ^ int.from_bytes(mask)).to_bytes(size)


def packed(opcode: int, payload: bytes, *, fin: bool = True, key: bytes | None = KEY) -> bytes:
    """A frame whose payload is compressed, or the first one of a message that is."""
    return frame(opcode, payload, fin=fin, rsv=RSV1, key=key)


def fragments(opcode: int, parts: Sequence[bytes], between: Iterable[bytes] = ()) -> bytes:
    """A compressed message in as many frames as there are parts, and frames that come between all of them."""
    frames = [
        frame(CONTINUATION if index else opcode, part, fin=index == len(parts) - 1, rsv=0 if index else RSV1)
        for index, part in enumerate(parts)
    ]
    return b"".join(between).join(frames)


def deflate(data: bytes, level: int = 6) -> bytes:
    """A message by itself."""
    stream = zlib.compressobj(level, zlib.DEFLATED, -15)
    return (stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH)).removesuffix(TAIL)


def final(data: bytes) -> bytes:
    """A whole deflate stream, its last block marked as such."""
    stream = zlib.compressobj(6, zlib.DEFLATED, -15)
    return stream.compress(data) + stream.flush()


def reader(
    agreement: Agreement = FULL,
    *,
    max_payload: int | None = MIB,
    max_fragments: int | None = None,
    client: bool = False,
) -> FrameReader:
    return FrameReader(
        max_payload=max_payload,
        max_fragments=max_fragments,
        control_rate=None,
        clock=lambda: 0.0,
        client=client,
        inflater=Inflater(agreement, max_payload, client=client),
    )


def feed(target: FrameReader, data: bytes, size: int = READ) -> list[Event]:
    """The events of `data` in reads of a size."""
    events: list[Event] = []
    for start in range(0, len(data), size):
        events += target.receive(data[start : start + size])
        while target.backlog:
            events += target.receive(b"")
    return events


def read(data: bytes, agreement: Agreement = FULL, **options: int | None) -> list[Event]:
    """The events of `data`, which must be the same in reads of any size."""
    make: Callable[[], FrameReader] = lambda: reader(agreement, **options)  # type: ignore[arg-type]  # noqa: E731
    events = feed(make(), data, len(data))
    for size in (1, 2, 7, 1000) if len(data) < 4000 else (16_000, READ):
        assert [comparable(event) for event in feed(make(), data, size)] == [comparable(event) for event in events]
    return events


def comparable(event: Event) -> object:
    # Data that is corrupt and no text either may be found to be the one or the other first; both are 1007.
    return (Fault, event.error.code) if isinstance(event, Fault) else event


def fault(events: list[Event]) -> ProtocolError:
    """The error of the only event."""
    (event,) = events
    assert isinstance(event, Fault)
    return event.error


# The examples of RFC 7692 section 7.2.3

HELLO = bytes.fromhex("f248cdc9c90700")


def test_example_in_one_frame() -> None:
    """7.2.3.1: a compressed message in one frame and in two."""
    assert read(packed(TEXT, HELLO)) == ["Hello"]
    assert read(fragments(TEXT, [HELLO[:3], HELLO[3:]])) == ["Hello"]
    assert read(packed(BINARY, HELLO)) == [b"Hello"]


def test_example_with_a_shared_window() -> None:
    """7.2.3.2: the second message refers to the first one."""
    assert read(packed(TEXT, HELLO) + packed(TEXT, bytes.fromhex("f200110000"))) == ["Hello", "Hello"]
    assert read(packed(TEXT, HELLO) * 2) == ["Hello", "Hello"]


def test_example_with_a_stored_block() -> None:
    """7.2.3.3: data in a block without compression."""
    assert read(packed(TEXT, bytes.fromhex("000500faff48656c6c6f00"))) == ["Hello"]


def test_example_with_a_final_block() -> None:
    """7.2.3.4: a block that is marked as the last one, and an empty one after it."""
    assert read(packed(TEXT, bytes.fromhex("f348cdc9c9070000"))) == ["Hello"]


def test_example_with_two_blocks() -> None:
    """7.2.3.5: two blocks in one message."""
    assert read(packed(TEXT, bytes.fromhex("f248050000 00ffffcac9c90700".replace(" ", "")))) == ["Hello"]


def test_example_of_an_empty_message() -> None:
    """7.2.3.6: an empty message is one byte."""
    assert read(packed(TEXT, b"\x00") + packed(BINARY, b"\x00") + packed(TEXT, HELLO)) == ["", b"", "Hello"]


# What may be mixed with what


def test_messages_that_are_not_compressed() -> None:
    """Each message says by itself whether it is compressed."""
    plain = frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b")
    data = frame(TEXT, b"plain") + packed(TEXT, HELLO) + plain + packed(TEXT, HELLO) + frame(BINARY, b"plain")
    assert read(data) == ["plain", "Hello", "ab", "Hello", b"plain"]


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("control", [PING, PONG])
def test_control_frames_between_fragments(opcode: int, control: int) -> None:
    """Row 22: control frames between every pair of fragments do not touch the message."""
    text = "Häufig " * 40
    payload = deflate(text.encode())
    message: Event = text if opcode == TEXT else text.encode()
    event = Ping(b"x") if control == PING else Pong(b"x")
    for size in (1, 2, 5):
        parts = [payload[start : start + size] for start in range(0, len(payload), size)]
        data = fragments(opcode, parts, [frame(control, b"x")])
        assert read(data + packed(TEXT, HELLO)) == [*[event] * (len(parts) - 1), message, "Hello"]


def test_control_frames_between_fragments_that_are_not_compressed() -> None:
    """Row 22: a control frame within a message that is not compressed leaves it as it is, and so the next one."""
    data = frame(BINARY, HELLO, fin=False) + frame(PING) + frame(CONTINUATION, HELLO) + packed(BINARY, HELLO)
    assert read(data) == [Ping(b""), HELLO * 2, b"Hello"]


def test_close_between_fragments() -> None:
    """A Close frame within a compressed message ends everything as it always does."""
    data = packed(TEXT, HELLO[:3], fin=False) + frame(CLOSE, b"\x03\xe8bye")
    assert read(data) == [CloseReceived(1000, "bye")]


def test_empty_fragments() -> None:
    """Fragments without payload are legal anywhere."""
    assert read(fragments(TEXT, [b"", HELLO[:3], b"", HELLO[3:], b""]) + packed(TEXT, HELLO)) == ["Hello", "Hello"]
    assert read(fragments(BINARY, [b"", b"\x00", b""])) == [b""]


def test_empty_compressed_payload() -> None:
    """A compressed message without any payload is empty, and the next one is not affected."""
    data = packed(TEXT, HELLO) + packed(TEXT, b"") + fragments(BINARY, [b"", b""]) + packed(TEXT, HELLO)
    assert read(data) == ["Hello", "", b"", "Hello"]


@pytest.mark.parametrize("flush", [zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_PARTIAL_FLUSH, zlib.Z_BLOCK])
def test_flush_points(flush: int) -> None:
    """A sender may flush wherever it likes."""
    stream = zlib.compressobj(6, zlib.DEFLATED, -15)
    payload = b"".join(stream.compress(b"%d," % number) + stream.flush(flush) for number in range(50))
    payload += stream.compress(b"end") + stream.flush(zlib.Z_SYNC_FLUSH)
    expected = "".join(f"{number}," for number in range(50)) + "end"
    assert read(packed(TEXT, payload.removesuffix(TAIL)) + packed(TEXT, HELLO)) == [expected, "Hello"]


def test_empty_blocks() -> None:
    """Blocks that hold nothing are legal before, within and after a message."""
    empty = b"\x00" + TAIL
    whole = empty * 3 + HELLO + TAIL + empty * 3 + b"\x00"
    assert read(packed(TEXT, whole) + packed(TEXT, HELLO)) == ["Hello", "Hello"]


# Row 23: blocks that are marked as the last one


def test_final_block_then_the_next_message() -> None:
    """Row 23: after a final block the next message begins a new stream."""
    data = b"".join(packed(TEXT, final(b"number %d" % number) + b"\x00") for number in range(5)) + packed(TEXT, HELLO)
    assert read(data) == [*(f"number {number}" for number in range(5)), "Hello"]


def test_final_block_without_an_empty_one() -> None:
    """A sender that leaves out the byte after its final block is understood all the same."""
    assert read(packed(TEXT, final(b"abc")) * 2 + packed(TEXT, HELLO)) == ["abc", "abc", "Hello"]


def test_final_block_that_needs_the_tail() -> None:
    """The final block may be the empty one whose length is in the bytes that are left out."""
    assert read(packed(TEXT, HELLO + TAIL + b"\x01") + packed(TEXT, HELLO)) == ["Hello", "Hello"]


def test_blocks_after_a_final_one() -> None:
    """A message may consist of several streams, cut anywhere."""
    whole = final(b"a" * 100) + final(b"") + final(b"b" * 100) + deflate(b"c" * 100)
    expected = "a" * 100 + "b" * 100 + "c" * 100
    assert read(packed(TEXT, whole) + packed(TEXT, HELLO)) == [expected, "Hello"]
    for cut in range(len(whole)):
        assert read(fragments(TEXT, [whole[:cut], whole[cut:]])) == [expected]


@pytest.mark.parametrize("garbage", [b"\xff", b"\xff" * 4, b"\x07garbage", b"\x00\x00\x01", b"GET / HTTP/1.1"])
def test_garbage_after_a_final_block(garbage: bytes) -> None:
    """What follows a final block has to be deflate data as well."""
    error = fault(read(packed(TEXT, final(b"abc") + garbage + b"\xff" * 9)))
    assert error.code == 1007
    assert "corrupt" in str(error)


@pytest.mark.parametrize("size", range(16_375, 16_395))
def test_final_block_at_the_end_of_a_step(size: int) -> None:
    """Where a stream ends makes no difference to how the end of the message is understood."""
    stream = zlib.compressobj(0, zlib.DEFLATED, -15)
    payload = stream.compress(noise(size - 5)) + stream.flush()
    assert len(payload) == size
    for end in (b"", b"\x00"):
        assert read(packed(BINARY, payload + end) + packed(TEXT, HELLO)) == [noise(size - 5), "Hello"]


def test_too_many_streams() -> None:
    """The streams of one message are counted, because each one costs far more than its two bytes: 1008."""
    assert read(packed(BINARY, final(b"") * 1024)) == [b""]
    error = fault(feed(reader(), packed(BINARY, final(b"") * 1025)))
    assert error.code == 1008
    assert "1024 deflate streams" in str(error)
    assert fault(feed(reader(), fragments(BINARY, [final(b"")] * 1025))).code == 1008
    assert feed(reader(), packed(BINARY, final(b"") * 1024) * 3) == [b""] * 3


# What is refused


@pytest.mark.parametrize("payload", [b"\xff", b"\x06", b"\x00\x01\x00\x00\x00", b"\xff" * 50, HELLO + b"\xff"])
def test_corrupt_data(payload: bytes) -> None:
    """Data that is not deflate fails with 1007."""
    error = fault(read(packed(BINARY, payload + b"\xff" * 4)))
    assert type(error) is ProtocolError
    assert error.code == 1007


def test_fault_is_the_last_event() -> None:
    """After a fault in either lane there are no more events, and what came before it is not lost."""
    for bad in (packed(TEXT, b"\xff\xff"), fragments(TEXT, [b"\xff", b"\xff"])):
        target = reader()
        events = target.receive(packed(TEXT, HELLO) + bad + packed(TEXT, HELLO))
        assert events[0] == "Hello"
        assert fault(events[1:]).code == 1007
        assert target.finished
        assert target.receive(packed(TEXT, HELLO)) == []


def test_final_block_that_was_cut() -> None:
    """A stream that ends within the four bytes of the frame format has lost its end: 1007."""
    assert fault(read(packed(TEXT, b"\x03"))).code == 1007  # the end of this block is all zeros


def test_invalid_text() -> None:
    """Text is UTF-8 after it was inflated: 1007."""
    for bad in (b"\xff", b"abc\xed\xa0\x80", b"abc\xe2\x98"):
        assert isinstance(fault(read(packed(TEXT, deflate(bad)))), InvalidUTF8)
        assert read(packed(BINARY, deflate(bad))) == [bad]


def test_invalid_text_fails_early() -> None:
    """Text that cannot become valid fails with the fragment that spoils it, not at the end of the message."""
    payload = deflate(b"\xff" * 10 + random.Random(1).randbytes(500))
    (event,) = reader().receive(packed(TEXT, payload[:200], fin=False))
    assert isinstance(event, Fault)
    assert isinstance(event.error, InvalidUTF8)


def test_code_point_across_steps() -> None:
    """A code point may be split between blocks, fragments, and the steps in which data is inflated."""
    text = "a" + "\u2603" * 50_000
    payload = deflate(text.encode())
    assert read(packed(TEXT, payload)) == [text]
    assert read(fragments(TEXT, [payload[:100], payload[100:]])) == [text]
    stream = zlib.compressobj(0, zlib.DEFLATED, -15)
    snowman = "\u2603".encode()
    pieces = [stream.compress(snowman[index : index + 1]) + stream.flush(zlib.Z_SYNC_FLUSH) for index in range(3)]
    assert read(fragments(TEXT, [*pieces[:2], pieces[2].removesuffix(TAIL)])) == ["\u2603"]


@pytest.mark.parametrize(
    "data",
    [
        packed(TEXT, HELLO[:3], fin=False) + frame(CONTINUATION, HELLO[3:], rsv=RSV1),
        frame(PING, b"x", rsv=RSV1),
        frame(CLOSE, b"\x03\xe8", rsv=RSV1),
        frame(TEXT, HELLO, rsv=RSV1 | 2),
        frame(TEXT, HELLO, rsv=1),
        frame(3, HELLO, rsv=RSV1),
        packed(TEXT, HELLO, key=None),
        packed(TEXT, HELLO[:3], fin=False) + packed(TEXT, HELLO),
        packed(TEXT, HELLO[:3], fin=False) + packed(TEXT, b"\xff\xff"),
        packed(TEXT, HELLO[:3], fin=False) + frame(BINARY, HELLO),
        frame(TEXT, b"a", fin=False) + packed(TEXT, HELLO),
        frame(CONTINUATION, HELLO),
        frame(CONTINUATION, HELLO, rsv=RSV1),
        b"\xc1\xfe\x00\x07" + KEY + bytes(7),
        b"\xc1\xff" + (300).to_bytes(8) + KEY + bytes(300),
    ],
)
def test_broken_framing(data: bytes) -> None:
    """The bit belongs to the first frame of a data message; everything else is as wrong as ever: 1002."""
    assert fault(read(data)).code == 1002


def test_continuation_of_nothing() -> None:
    """A continuation after a compressed message that is complete is a protocol error, whatever it holds: 1002."""
    events = read(fragments(TEXT, [HELLO[:3], HELLO[3:]]) + frame(CONTINUATION, b"\xff\xff"))
    assert events[0] == "Hello"
    assert fault(events[1:]).code == 1002


def test_bit_that_was_not_agreed_on() -> None:
    """Without an agreement a compressed message is a protocol error."""
    target = FrameReader(max_payload=MIB, max_fragments=None, control_rate=None, clock=lambda: 0.0)
    assert fault(target.receive(packed(TEXT, HELLO))).code == 1002


def test_max_fragments() -> None:
    """Compressed messages have no more frames than others."""
    parts = [bytes((byte,)) for byte in HELLO]
    assert read(fragments(TEXT, parts), max_fragments=7) == ["Hello"]
    assert fault(read(fragments(TEXT, parts), max_fragments=6)).code == 1008


# Limits


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize(
    "limit", [1, 2, 100, 257, 258, 259, 1000, 16 * KIB, 32 * KIB - 1, 32 * KIB, 32 * KIB + 1, 100_000]
)
@pytest.mark.parametrize("make", [bytes, noise], ids=["zeros", "noise"])
def test_exactly_the_limit(limit: int, make: Callable[[int], bytes]) -> None:
    """A message of exactly `max_payload` bytes passes, one or two more do not, however well they are compressed."""
    payload = deflate(make(limit))
    half = len(payload) // 2
    for data in (packed(BINARY, payload), fragments(BINARY, [payload[:half], payload[half:]])):
        assert read(data + packed(BINARY, b"\x00"), max_payload=limit) == [make(limit), b""]
    for size in (limit + 1, limit + 2):
        payload = deflate(make(size))
        half = len(payload) // 2
        for data in (packed(BINARY, payload), fragments(BINARY, [payload[:half], payload[half:]])):
            error = fault(read(data, max_payload=limit))
            assert isinstance(error, PayloadTooBig)
            assert str(error) == f"a message of at least {limit + 1} bytes; the limit is {limit}"


@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("memory", [1, 9])
def test_incompressible_message_at_the_limit(level: int, memory: int) -> None:
    """Data that gets larger by compression is measured by what it was."""
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY, zlib.Z_FIXED):
        stream = zlib.compressobj(level, zlib.DEFLATED, -9, memory, strategy)
        data = bytes(range(144, 256)) * 1000 if strategy == zlib.Z_FIXED else noise(112_000)
        payload = (stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH)).removesuffix(TAIL)
        assert read(packed(BINARY, payload), max_payload=len(data)) == [data]


def test_compressed_size_is_limited() -> None:
    """Blocks that hold nothing make no message larger, but what comes is bounded as well, at the header: 1009."""
    limit = reader(max_payload=1000)._inflater.compressed_limit  # type: ignore[union-attr]
    assert limit == 1000 + 125 + 1024
    empty = (b"\x00" + TAIL) * 600
    assert feed(reader(max_payload=1000), packed(BINARY, empty[: limit - 4])) == [b""]
    for header in (packed(BINARY, empty[: limit + 1])[:4], packed(BINARY, empty[: limit + 1], fin=False)[:4]):
        assert isinstance(fault(reader(max_payload=1000).receive(header)), PayloadTooBig)
    parts = [empty[start : start + 100] for start in range(0, len(empty), 100)]
    assert isinstance(fault(feed(reader(max_payload=1000), fragments(BINARY, parts))), PayloadTooBig)


def test_limit_is_exceeded_by_a_byte() -> None:
    """A message is too large with the very byte with which zlib can know, also where a step ends within a match."""
    limit = 32 * KIB + 10
    payload = deflate(b"a" + bytes(2 * limit))
    data = packed(BINARY, payload)
    header = len(data) - len(payload)
    for end in range(len(payload)):
        known = len(zlib.decompressobj(-15).decompress(payload[:end]))
        events = reader(max_payload=limit).receive(data[: header + end])
        assert len(events) == (known > limit), end


def test_control_frames_do_not_count() -> None:
    """The payloads of control frames are no part of the message between whose fragments they come."""
    ping = frame(PING, b"p" * 125)
    payload = deflate(noise(100))
    data = ping + fragments(BINARY, [payload[:50], payload[50:]], [ping, ping])
    data += frame(BINARY, noise(100)[:50], fin=False) + ping + frame(CONTINUATION, noise(100)[50:])
    pong = Ping(b"p" * 125)
    assert read(data, max_payload=100) == [pong, pong, pong, noise(100), pong, noise(100)]


def test_uncompressed_size_is_limited() -> None:
    """The margin for compressed payloads is not for messages that are not compressed: they fail at the header."""
    for data in (
        frame(BINARY, bytes(1001))[:8],
        frame(BINARY, bytes(1001), fin=False)[:8],
        frame(BINARY, bytes(600), fin=False) + frame(CONTINUATION, bytes(401))[:8],
    ):
        error = fault(reader(max_payload=1000).receive(data))
        assert str(error) == "a message of at least 1001 bytes; the limit is 1000"
    data = frame(BINARY, bytes(600), fin=False) + frame(PING) + frame(CONTINUATION, bytes(400))
    assert read(data * 2, max_payload=1000) == [Ping(b""), bytes(1000)] * 2


def test_sizes_do_not_add_up_over_messages() -> None:
    """Each message has the whole limit for itself."""
    payload = deflate(bytes(1000))
    data = packed(BINARY, payload) + fragments(BINARY, [payload[:3], payload[3:]]) + frame(BINARY, bytes(1000))
    assert read(data * 3, max_payload=1000) == [bytes(1000)] * 9


def test_no_limit() -> None:
    """Without `max_payload` a large message passes."""
    data = bytes(3 * MIB)
    assert feed(reader(max_payload=None), packed(BINARY, deflate(data))) == [data]


# Row 21: bombs


def bomb(size: int) -> bytes:
    """A payload that inflates to `size` zeros, a multiple of 1 MiB."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    return ((stream.compress(bytes(MIB)) + stream.flush(zlib.Z_FULL_FLUSH)) * (size // MIB)).removesuffix(TAIL)


def split(payload: bytes, count: int) -> list[bytes]:
    size = -(-len(payload) // count)
    return [payload[start : start + size] for start in range(0, len(payload), size)]


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("count", [1, 2, 100, 5000])
@pytest.mark.parametrize("limit", [MIB, 8 * MIB])
def test_bomb(opcode: int, count: int, limit: int) -> None:
    """A bomb of 1 GiB in any number of fragments is 1009, and takes no more than the limit and a little."""
    payload = bomb(1 << 30)
    data = fragments(opcode, split(payload, count))
    reads = [data[start : start + READ] for start in range(0, len(data), READ)]
    target = reader(max_payload=limit)
    tracemalloc.start()
    try:
        events: list[Event] = []
        for piece in reads:
            events += target.receive(piece)
            while target.backlog:
                events += target.receive(b"")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(fault(events), PayloadTooBig)
    assert peak < limit + MIB


def test_slow_bomb() -> None:
    """A bomb that comes byte by byte, in fragments of one byte, takes no more memory than one that comes at once."""
    payload = bomb(4 * MIB)
    data = fragments(BINARY, split(payload, len(payload)))
    target = reader(max_payload=MIB)
    tracemalloc.start()
    try:
        events = feed(target, data, 3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(fault(events), PayloadTooBig)
    assert peak < 2 * MIB


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from test_deflate import MIB, READ, TEXT, bomb, fault, fragments, reader, split
def status(name):
    return int(Path("/proc/self/status").read_text().split(name)[1].split()[0])
data = fragments(TEXT, split(bomb(1 << 30), {count}))
reads = [data[start : start + READ] for start in range(0, len(data), READ)]
target = reader(max_payload={limit})
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = status("VmRSS:")
events = []
for piece in reads:
    events += target.receive(piece)
    while target.backlog:
        events += target.receive(b"")
print(fault(events).code, (status("VmHWM:") - before) * 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("count", [1, 1000])
@pytest.mark.parametrize("limit", [MIB, 16 * MIB])
def test_bomb_in_a_process(count: int, limit: int) -> None:
    """A process that is bombed with 1 GiB grows by less than the limit and 1 MiB."""
    here = Path(__file__)
    script = SCRIPT.format(root=str(here.parents[2]), tests=str(here.parent), count=count, limit=limit)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    code, grown = map(int, done.stdout.split())
    assert code == 1009
    assert grown < limit + MIB


def test_many_bombs_within_the_limit() -> None:
    """What was inflated for one message is not kept when it has been delivered."""
    data = packed(BINARY, bomb(MIB))
    target = reader(max_payload=MIB)
    tracemalloc.start()
    try:
        for _ in range(20):
            assert feed(target, data) == [bytes(MIB)]
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept < 128 * KIB


# Turns


def mixture() -> tuple[bytes, list[str | bytes]]:
    """Messages of every kind behind one another, and what they are."""
    text = "\U0001f600 is wide" * 5000
    large, wide = deflate(noise(50_000)), deflate(text.encode())
    data = [
        packed(BINARY, bomb(MIB)),
        packed(TEXT, HELLO),
        packed(BINARY, final(b"") * 500),
        fragments(BINARY, [final(b"ab")] * 300),
        fragments(TEXT, split(wide, 40)),
        packed(TEXT, wide),
        fragments(BINARY, split(bomb(MIB), 3)),
        frame(TEXT, b"plain"),
        packed(BINARY, large),
        fragments(BINARY, split(large, 100)),
        packed(BINARY, b""),
        packed(BINARY, final(b"end") + final(b"")),
    ]
    messages: list[str | bytes] = [
        bytes(MIB),
        "Hello",
        b"",
        b"ab" * 300,
        text,
        text,
        bytes(MIB),
        "plain",
        noise(50_000),
        noise(50_000),
        b"",
        b"end",
    ]
    return b"".join(data), messages


@pytest.mark.parametrize("turn", [1, 2, 3, 5, 8, 13, 50, 128, 129, 512, 10**9])
@pytest.mark.parametrize("size", [997, READ])
def test_turns_make_no_difference(monkeypatch: pytest.MonkeyPatch, turn: int, size: int) -> None:
    """Wherever a turn ends, be it within a message, what comes out is the same."""
    monkeypatch.setattr(deflate_module, "TURN", turn)
    monkeypatch.setattr(deflate_module, "_TURNS", 1)
    monkeypatch.setattr(framing, "TURN", turn)
    data, messages = mixture()
    assert feed(reader(), data, size) == messages


@pytest.mark.parametrize(
    ("payload", "calls"),
    [
        (bomb(MIB), 3),
        (final(b"") * 1000, 7),
        (deflate("\U0001f600".encode() * (MIB // 4)), 3),
        (deflate(noise(600_000)), 3),
    ],
    ids=["bomb", "streams", "wide text", "noise"],
)
def test_a_turn_is_short(payload: bytes, calls: int) -> None:
    """A message that takes long is inflated in a few calls; none of them does much more than is allowed."""
    target = reader()
    inflater = target._inflater
    assert inflater is not None
    target.receive(packed(BINARY, payload))
    work = [inflater.work]
    while target.backlog:
        target.receive(b"")
        work.append(inflater.work)
    assert calls <= len(work) <= calls + 1
    assert max(work[:-1]) < 4 * TURN + 300  # and one step
    assert target.receive(packed(TEXT, HELLO)) == ["Hello"]


@pytest.mark.parametrize("kind", ["tiny fragments", "fragments of bombs", "empty messages"])
def test_frames_of_one_turn(kind: str) -> None:
    """Frames that cost more than others do are fewer in one call."""
    data = {
        "tiny fragments": frame(BINARY, b"", fin=False) + frame(CONTINUATION, b"a", fin=False) * 500,
        "fragments of bombs": fragments(BINARY, split(bomb(MIB) * 100, 500)),
        "empty messages": packed(BINARY, b"\x00") * 500,
    }[kind]
    target = reader()
    calls = 1
    target.receive(data, 128)
    while target.backlog:
        target.receive(b"", 128)
        calls += 1
    assert calls >= {"tiny fragments": 11, "fragments of bombs": 5, "empty messages": 4}[kind]


@pytest.mark.parametrize("count", [32, 64])
def test_a_turn_is_long_enough(count: int) -> None:
    """A turn makes 64 KiB of small messages: their bytes are counted once."""
    target = reader()
    message = noise(1024).hex().encode()[:1024]
    assert target.receive(packed(BINARY, deflate(message)) * count, 128) == [message] * count
    assert not target.backlog


def test_all_work_of_a_turn_is_one_sum() -> None:
    """Compressed messages and fragments between them have one turn together."""
    target = reader()
    both = packed(BINARY, deflate(bytes(6144))) + frame(BINARY, b"a", fin=False) + frame(CONTINUATION, b"b")
    events = target.receive(both * 20, 128)
    assert 15 < len(events) < 30
    assert target.backlog


def test_the_end_of_a_long_message_may_end_the_turn() -> None:
    """Where the rest of a message took a whole turn, what comes behind it waits for the next one."""
    target = reader()
    size = MIB * 3 // 4
    assert target.receive(packed(BINARY, deflate(bytes(size))) + packed(TEXT, HELLO)) == []
    assert target.receive(b"") == [bytes(size)]
    assert target.backlog
    assert target.receive(b"") == ["Hello"]
    assert not target.backlog


def test_a_fault_in_a_later_turn() -> None:
    """What is wrong at the end of a long message is found when its turn comes, and nothing is read behind it."""
    for data in (
        packed(BINARY, bomb(MIB) + TAIL + b"\xff\xff"),
        fragments(BINARY, [bomb(MIB) + TAIL + b"\xff\xff", b""]),
    ):
        target = reader()
        assert target.receive(data + packed(TEXT, HELLO)) == []
        assert target.backlog
        events: list[Event] = []
        while target.backlog:
            assert events == []
            events = target.receive(b"")
        assert fault(events).code == 1007
        assert target.finished


# Windows and contexts


@pytest.mark.parametrize("bits", range(9, 16))
def test_window_of_the_client(bits: int) -> None:
    """Row 27: whatever window was agreed on, a client may make use of all of it."""
    agreement = negotiate([f"permessage-deflate; client_max_window_bits={bits}"], Deflate(client_max_window_bits=15))
    assert agreement is not None
    target = reader(agreement)
    stream = zlib.compressobj(9, zlib.DEFLATED, -bits)
    for number in range(5):
        data = noise((1 << bits) - 300)  # the same, so that each message refers to the beginning of the one before
        payload = (stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH)).removesuffix(TAIL)
        assert number == 0 or bits == 9 or len(payload) < len(data) // 2
        assert feed(target, packed(BINARY, payload)) == [data]


def test_client_that_did_not_offer_to_limit_its_window() -> None:
    """Row 27: a client that only said `permessage-deflate` uses 15 bits, whatever is configured."""
    agreement = negotiate(["permessage-deflate"], Deflate(client_max_window_bits=9))
    assert agreement is not None
    target = reader(agreement)
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    for _ in range(3):
        payload = (stream.compress(noise(30_000)) + stream.flush(zlib.Z_SYNC_FLUSH)).removesuffix(TAIL)
        assert feed(target, packed(BINARY, payload)) == [noise(30_000)]


def test_client_without_context() -> None:
    """A client that has agreed to keep no context gets none: a message that refers to an earlier one is corrupt."""
    data = packed(TEXT, HELLO) * 2
    assert read(data, FORGETFUL) == ["Hello", "Hello"]
    events = feed(reader(FORGETFUL), packed(TEXT, HELLO) + packed(TEXT, bytes.fromhex("f200110000")))
    assert events[0] == "Hello"
    assert fault(events[1:]).code == 1007
    assert reader(FORGETFUL)._inflater._stream is None  # type: ignore[union-attr]


def test_nothing_is_kept_without_context() -> None:
    """Between two messages a connection whose peer keeps no context needs no zlib object."""
    for data in (packed(TEXT, HELLO), fragments(TEXT, [HELLO[:3], HELLO[3:]]), packed(TEXT, final(b"abc"))):
        target = reader(FORGETFUL)
        target.receive(data)
        assert target._inflater is not None
        assert target._inflater._stream is None


def test_connections_do_not_mix() -> None:
    """Row 29: every connection has its own stream."""
    agreement = negotiate(["permessage-deflate"], Deflate())
    assert agreement is not None
    targets = [reader(agreement), reader(agreement)]
    streams = [zlib.compressobj(9, zlib.DEFLATED, -15) for _ in targets]
    for number in range(10):
        for index, (target, stream) in enumerate(zip(targets, streams, strict=True)):
            text = f"message {number} on connection {index}"
            payload = (stream.compress(text.encode()) + stream.flush(zlib.Z_SYNC_FLUSH)).removesuffix(TAIL)
            assert target.receive(packed(TEXT, payload)) == [text]


def test_client_inflates_with_the_window_of_the_server() -> None:
    """On the client's side it is the server's parameters that count."""
    agreement = Agreement("", True, False, 15, 9, Setting(9, 6, 8, keeps_context=True))
    payload = deflate(noise(20_000) * 2)
    target = reader(agreement, client=True)
    assert feed(target, packed(BINARY, payload, key=None)) == [noise(20_000) * 2]
    assert target._inflater is not None
    assert target._inflater._stream is None


# Any sender

flushes = st.sampled_from([zlib.Z_NO_FLUSH, zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_BLOCK, zlib.Z_FINISH])
contents = st.one_of(
    st.text(max_size=200).map(str.encode),
    st.binary(max_size=200),
    st.builds(lambda seed, size: random.Random(seed).randbytes(size), st.integers(0, 9), st.integers(0, 70_000)),
    st.builds(lambda text, count: text.encode() * count, st.text(max_size=9), st.integers(0, 5000)),
)


class Sender:
    """A peer that compresses with zlib in every way that is legal."""

    def __init__(self, data: st.DataObject, client: bool) -> None:
        self.draw = draw = data.draw
        self.client = client  # the reader is one, so this peer is a server
        bits, context = draw(st.integers(9, 15)), draw(st.booleans())
        other = draw(st.integers(9, 15)), draw(st.booleans())
        server, client_ = ((bits, context), other) if client else (other, (bits, context))
        setting = Setting(other[0], 6, 8, keeps_context=True)
        self.agreement = Agreement("", server[1], client_[1], server[0], client_[0], setting)
        self.forgets = context
        self.arguments = (draw(st.integers(0, 9)), zlib.DEFLATED, -draw(st.integers(9, bits)), draw(st.integers(1, 9)))
        self.stream = zlib.compressobj(*self.arguments)
        self.key = None if client else draw(st.binary(min_size=4, max_size=4))

    def compress(self, data: bytes) -> bytes:
        if self.forgets:
            self.stream = zlib.compressobj(*self.arguments)
        out = b""
        cuts = sorted(self.draw(st.lists(st.integers(0, len(data)), max_size=4)))
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            out += self.stream.compress(data[start:end])
            flush = self.draw(flushes)
            out += self.stream.flush(flush) if flush != zlib.Z_NO_FLUSH else b""
            if flush == zlib.Z_FINISH:
                self.stream = zlib.compressobj(*self.arguments)
        out += self.stream.flush(zlib.Z_SYNC_FLUSH)
        return out.removesuffix(TAIL) or b"\x00"

    def message(self, message: str | bytes) -> bytes:
        draw = self.draw
        opcode = TEXT if isinstance(message, str) else BINARY
        payload = message.encode() if isinstance(message, str) else message
        rsv = 0
        if draw(st.sampled_from([True, True, True, False])):
            payload, rsv = self.compress(payload), RSV1
        cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=4)))
        parts = [payload[start:end] for start, end in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
        data = b""
        for index, part in enumerate(parts):
            fin = index == len(parts) - 1
            data += frame(0 if index else opcode, part, fin=fin, rsv=0 if index else rsv, key=self.key)
            if not fin and draw(st.booleans()):
                data += frame(PING, b"p", key=self.key)
        return data


@given(st.data(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_sender(data: st.DataObject, client: bool) -> None:
    """Messages come out as they went in: any parameters, any flushes, any fragments, in any reads."""
    sender = Sender(data, client)
    messages: list[str | bytes] = []
    for content in data.draw(st.lists(contents, max_size=5)):
        try:
            messages.append(content.decode())
        except UnicodeDecodeError:
            messages.append(content)
    stream = b"".join(sender.message(message) for message in messages)
    target = reader(sender.agreement, max_payload=100_000, client=client)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    events: list[Event] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        events += target.receive(stream[start:end], data.draw(st.integers(1, 3)))
        while target.backlog:
            events += target.receive(b"")
    assert [event for event in events if not isinstance(event, Ping)] == messages


@given(st.binary(max_size=300), st.integers(1, 300), st.booleans())
@settings(max_examples=300)
def test_any_payload(payload: bytes, size: int, text: bool) -> None:
    """Any bytes as a compressed payload make a message or a fault, the same in every lane and at every cut."""
    opcode = TEXT if text else BINARY
    whole = [comparable(event) for event in feed(reader(), packed(opcode, payload))]
    assert len(whole) == 1
    parts = [payload[start : start + size] for start in range(0, len(payload), size)] or [b""]
    assert [comparable(event) for event in feed(reader(), fragments(opcode, parts))] == whole
    assert [comparable(event) for event in feed(reader(), packed(opcode, payload), size)] == whole
