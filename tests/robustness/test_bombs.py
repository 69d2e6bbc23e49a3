"""Compressed messages that mean harm, over real sockets, against servers whose memory is measured from outside.

What single bytes mean is tested in `tests/protocol/test_deflate.py`; here it is what a peer and the machine see.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress

import pytest
import trio

from robustness.canary import show
from robustness.victim import KIB, MIB, Victim, victim
from support.rawclient import Frame, RawClient, open_raw
from trio_crowws.testing import make_frame

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

PAYLOAD = MIB
OFFER = [("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")]
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
RSV1 = 4
TAIL = b"\x00\x00\xff\xff"
TOO_BIG = (1009).to_bytes(2)
CORRUPT = (1007).to_bytes(2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Victim]:
    # Its answers are not compressed, so that what is measured is the inflating.
    with victim(
        tmp_path_factory.mktemp("bombs") / "log",
        compression={"threshold": 1 << 30},
        max_payload=PAYLOAD,
        send_limit=4 * PAYLOAD,
        max_fragments=20_000,
        ping_interval=None,
    ) as running:
        yield running


def deflate(data: bytes, bits: int = 12) -> bytes:
    """A message by itself."""
    stream = zlib.compressobj(6, zlib.DEFLATED, -bits)
    return (stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH)).removesuffix(TAIL)


def final(data: bytes) -> bytes:
    """A whole deflate stream, whose last block says that it is the last one (BFINAL)."""
    stream = zlib.compressobj(6, zlib.DEFLATED, -12)
    return stream.compress(data) + stream.flush()


def bomb(size: int) -> bytes:
    """A payload that inflates to `size` zeros, a multiple of 1 MiB."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -12)
    return ((stream.compress(bytes(MIB)) + stream.flush(zlib.Z_FULL_FLUSH)) * (size // MIB)).removesuffix(TAIL)


def split(payload: bytes, count: int) -> list[bytes]:
    size = -(-len(payload) // count)
    return [payload[start : start + size] for start in range(0, len(payload), size)]


def fragments(opcode: int, parts: Sequence[bytes], between: Iterable[bytes] = ()) -> bytes:
    """A compressed message in as many frames as there are parts, and frames that come between all of them."""
    frames = [
        make_frame(CONTINUATION if index else opcode, part, fin=index == len(parts) - 1, rsv=0 if index else RSV1)
        for index, part in enumerate(parts)
    ]
    return b"".join(between).join(frames)


async def upgraded(client: RawClient, path: str = "/echo") -> None:
    answer = await client.upgrade(path, headers=OFFER)
    assert answer["Sec-WebSocket-Extensions"] == "permessage-deflate; client_max_window_bits=12"


async def pour(client: RawClient, data: bytes) -> None:
    """Send what the server takes: it may have heard enough."""
    with suppress(trio.BrokenResourceError):
        await client.stream.send_all(data)


async def ends_with(server: Victim, data: bytes, code: bytes) -> None:
    """The server answers `data` with a Close frame, and before it echoes nothing of it."""
    async with open_raw(server.port) as client, trio.open_nursery() as nursery:
        await upgraded(client)
        nursery.start_soon(pour, client, data)
        frame = await client.read_frame()
        assert (frame.opcode, frame.payload[:2]) == (CLOSE, code), frame
        nursery.cancel_scope.cancel()


async def echoes(server: Victim, data: bytes, *messages: Frame) -> None:
    """The server answers `data` with these frames, and lives on."""
    async with open_raw(server.port) as client:
        await upgraded(client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour, client, data)
            for message in messages:
                assert await client.read_frame() == message
        await client.assert_echoes()
        await client.close()


# Row 21: bombs


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("count", [1, 2, 1000])
async def test_a_bomb_of_one_gibibyte(server: Victim, opcode: int, count: int) -> None:
    """It ends with 1009, in one frame and over fragments, and the server grows by less than `max_payload` + 1 MiB."""
    data = fragments(opcode, split(bomb(1 << 30), count))
    await echoes(server, fragments(TEXT, [deflate(b"x" * PAYLOAD)]), Frame(TEXT, b"x" * PAYLOAD))
    await server.settle()
    before = server.forget_peak()
    await ends_with(server, data, TOO_BIG)
    grown = server.peak - before
    show(f"a bomb of 1 GiB in {count}: {len(data) / KIB:.0f} KiB sent, {grown / KIB:.0f} KiB grown")
    assert grown < PAYLOAD + MIB
    await echoes(server, b"")


@pytest.mark.parametrize("beyond", [0, 1, 2])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("how", [deflate, final], ids=["flushed", "final"])
async def test_exactly_the_limit(server: Victim, how: Callable[[bytes], bytes], count: int, beyond: int) -> None:
    """A message of exactly `max_payload` passes, one byte more and two are too many: however it is compressed."""
    for byte in (b"\0", b"x"):
        text = byte * (PAYLOAD + beyond)
        data = fragments(BINARY, split(how(text), count))
        if beyond:
            await ends_with(server, data, TOO_BIG)
        else:
            await echoes(server, data, Frame(BINARY, text))


async def test_a_read_full_of_small_bombs(server: Victim) -> None:
    """Messages that are each within the limit are read no faster than the handler takes them.

    In one read there is room for some sixty of them. Neither they nor the echoes pile up.
    """
    await server.settle()
    count = 300
    one = make_frame(BINARY, deflate(bytes(PAYLOAD)), rsv=RSV1)
    before = server.forget_peak()
    async with open_raw(server.port) as client, trio.open_nursery() as nursery:
        await upgraded(client, "/deaf")
        nursery.start_soon(pour, client, one * count)
        await trio.sleep(0.5)
        grown = server.peak - before
        nursery.cancel_scope.cancel()
    show(f"{count} bombs of {PAYLOAD // KIB} KiB: {len(one)} bytes each, {grown / KIB:.0f} KiB grown")
    # `receive_buffer`, the message beyond it, and the one that is being made.
    assert grown < 3 * PAYLOAD + 2 * MIB


# Row 22: control frames between fragments


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
async def test_control_frames_between_every_pair_of_fragments(server: Victim, opcode: int) -> None:
    """Pings and pongs within a compressed message change nothing about it, and are answered at once."""
    text = b"what was said before, and what was said before that " * 10
    payload = deflate(text)
    count = 12
    between = [make_frame(PING, b"?"), make_frame(PONG, b"!")]
    data = fragments(opcode, split(payload, count), between)
    pongs = [Frame(PONG, b"?")] * (len(split(payload, count)) - 1)
    again = fragments(opcode, [payload])
    await echoes(server, data + again, *pongs, Frame(opcode, text), Frame(opcode, text))


# Row 23 and what else there is between the lines of the standard

HELLO = deflate(b"Hello")


@pytest.mark.parametrize(
    "payload",
    [
        final(b"Hello") + b"\x00",
        final(b"Hello"),
        b"\x00\x00\x00\xff\xff" * 3 + HELLO,  # empty blocks
        HELLO + b"\x00\x00\xff\xff\x00",
        final(b"Hel") + deflate(b"lo"),
        final(b"") + final(b"Hello") + b"\x00",
    ],
    ids=["BFINAL", "BFINAL alone", "empty blocks before", "empty block behind", "two streams", "three streams"],
)
async def test_unusual_blocks(server: Victim, payload: bytes) -> None:
    """Blocks that are marked as the last one, and empty ones, make the same message; and the next one is as good."""
    for count in (1, len(payload)):
        data = fragments(TEXT, split(payload, count)) + fragments(TEXT, [HELLO])
        await echoes(server, data, Frame(TEXT, b"Hello"), Frame(TEXT, b"Hello"))


@pytest.mark.parametrize("payload", [b"\x00", b"", b"\x03\x00"], ids=["a byte", "none", "BFINAL"])
async def test_empty_messages(server: Victim, payload: bytes) -> None:
    """An empty message is one however it is said."""
    for opcode in (TEXT, BINARY):
        await echoes(
            server, fragments(opcode, [payload]) + fragments(opcode, [payload, b""]), *[Frame(opcode, b"")] * 2
        )


@pytest.mark.parametrize(
    "payload",
    [b"\xff" * 20, HELLO + b"garbage", final(b"Hello") + b"garbage", b"\x06"],
    ids=["noise", "trailing garbage", "garbage behind BFINAL", "a reserved kind of block"],
)
async def test_what_is_not_deflate(server: Victim, payload: bytes) -> None:
    """What cannot be inflated ends with 1007, the code for data that is not what it should be."""
    for parts in ([payload], split(payload, 3)):
        await ends_with(server, fragments(BINARY, parts), CORRUPT)


async def test_a_frame_that_must_not_be_compressed(server: Victim) -> None:
    """The bit is for the first frame of a message alone."""
    refused = (1002).to_bytes(2)
    await ends_with(server, make_frame(PING, b"?", rsv=RSV1), refused)
    first = make_frame(TEXT, HELLO, fin=False, rsv=RSV1)
    await ends_with(server, first + make_frame(CONTINUATION, b"", rsv=RSV1), refused)
