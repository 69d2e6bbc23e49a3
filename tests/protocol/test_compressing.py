"""permessage-deflate, the way out (row 30): what is compressed, and what is sent as it is."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_crowws._protocol.compressing import Compressor, Packer, Packers, most
from trio_crowws._protocol.deflate import Inflater
from trio_crowws._protocol.deflate_offer import Agreement, Setting
from trio_crowws._protocol.encoding import encode_message
from trio_crowws._protocol.framing import FrameReader

KIB = 1 << 10
TAIL = b"\x00\x00\xff\xff"


def encoded(data: Any, compressor: Compressor, threshold: int = 0, compress: bool | None = None) -> bytes:
    """What is sent for a message."""
    packer = Packer(compressor, threshold)
    frame = encode_message(data)
    return packer.pack(frame) if packer.wants(frame, compress) else frame


def inflated(payload: bytes, bits: int = 15) -> bytes:
    return zlib.decompressobj(-bits).decompress(payload + TAIL)


def payload_of(data: bytes, first: int) -> bytes:
    """The payload of an unmasked frame that begins with the byte `first`."""
    assert data[0] == first
    start = {126: 4, 127: 10}.get(data[1], 2)
    assert len(data) - start == (data[1] if start == 2 else int.from_bytes(data[2:start]))
    return data[start:]


SHARED = Setting(12, 3, 5, keeps_context=False)
OWN = Setting(12, 3, 5, keeps_context=True)
JSON = b'{"name": "value", "list": [1, 2, 3], "text": "the quick brown fox"}' * 20


def test_compressed_frames() -> None:
    """A message is one frame with the bit set; a str is text and everything else binary."""
    compressor = Compressor(SHARED)
    assert inflated(payload_of(encoded(JSON.decode(), compressor), 0xC1)) == JSON
    for data in (JSON, bytearray(JSON), memoryview(JSON)):
        assert inflated(payload_of(encoded(data, compressor), 0xC2)) == JSON
    large = bytes(range(256)) * 30 * KIB
    assert inflated(payload_of(encoded(large, compressor), 0xC2)) == large


def test_memoryview_of_any_shape() -> None:
    """A `memoryview` is sent as its raw bytes."""
    wide = memoryview(JSON[: len(JSON) // 8 * 8]).cast("Q")
    assert inflated(payload_of(encoded(wide, Compressor(SHARED)), 0xC2)) == wide.tobytes()
    sparse = memoryview(JSON)[::2]
    assert inflated(payload_of(encoded(sparse, Compressor(SHARED)), 0xC2)) == JSON[::2]


def test_threshold() -> None:
    """A message of fewer bytes than the threshold goes as it is, and it is bytes that count."""
    compressor = Compressor(SHARED)
    assert encoded("a" * 99, compressor, 100) == encode_message("a" * 99)
    assert encoded(b"a" * 99, compressor, 100) == encode_message(b"a" * 99)
    assert inflated(payload_of(encoded("a" * 100, compressor, 100), 0xC1)) == b"a" * 100
    assert payload_of(encoded("é" * 50, compressor, 100), 0xC1)


def test_message_that_does_not_get_smaller() -> None:
    """What compression would make larger goes as it is, unless the context needs it."""
    data = os.urandom(5000)
    assert encoded(data, Compressor(SHARED)) == encode_message(data)
    assert encoded("", Compressor(SHARED)) == encode_message("")
    assert inflated(payload_of(encoded(data, Compressor(OWN)), 0xC2)) == data


def test_empty_messages() -> None:
    """An empty message is one byte, however many of them there are, and wherever they come."""
    for setting in (OWN, SHARED):
        compressor = Compressor(setting)
        for _ in range(3):
            assert compressor.compress(b"") == compressor.compress(b"") == b"\x00"
            assert inflated(Compressor(setting).compress(JSON)) == JSON
            compressor.compress(JSON)
    assert encoded(b"", Compressor(OWN)) == b"\xc2\x01\x00"


@pytest.mark.parametrize("data", [None, 1, ["a"], object()])
def test_wrong_type(data: object) -> None:
    """What is no message is a `TypeError`, and a lone surrogate a `ValueError`; the compressor stays good."""
    compressor = Compressor(OWN)
    with pytest.raises(TypeError, match="a message must be str, bytes, bytearray or memoryview, not"):
        encoded(data, compressor)
    with pytest.raises(ValueError, match="surrogates"):
        encoded("\ud800", compressor)
    assert inflated(compressor.compress(JSON)) == JSON


def test_shared_frames_are_equal_to_everybody() -> None:
    """A compressor without a context makes messages that need nothing of what was before, in any order."""
    compressor = Compressor(SHARED)
    frames = [compressor.compress(JSON[number:]) for number in range(50)]
    for number in reversed(range(50)):
        assert inflated(frames[number], 12) == JSON[number:]
    assert frames[0] == compressor.compress(JSON)


def test_context_makes_messages_smaller() -> None:
    """A compressor with a context refers to earlier messages, and the receiver has to have seen them."""
    compressor = Compressor(OWN)
    first, second = compressor.compress(JSON), compressor.compress(JSON)
    assert len(second) < len(first)
    stream = zlib.decompressobj(-12)
    assert [stream.decompress(payload + TAIL) for payload in (first, second, compressor.compress(b""))] == [
        JSON,
        JSON,
        b"",
    ]


settings_ = st.builds(Setting, st.integers(9, 15), st.integers(1, 9), st.integers(1, 9), st.booleans())


@given(settings_, st.lists(st.binary(max_size=3000), max_size=6))
@settings(max_examples=150, deadline=None)
def test_round_trip(setting: Setting, messages: list[bytes]) -> None:
    """What is compressed with any setting is inflated by a reader, and by a plain zlib with that window."""
    compressor = Compressor(setting)
    agreement = Agreement("", not setting.keeps_context, False, setting.window_bits, 15, setting)
    target = FrameReader(
        max_payload=None,
        max_fragments=None,
        control_rate=None,
        clock=lambda: 0.0,
        client=True,
        inflater=Inflater(agreement, None, client=True),
    )
    stream = zlib.decompressobj(-setting.window_bits)
    for message in messages:
        data = encoded(message, compressor)
        assert target.receive(data) == [message]
        if data[0] & 0x40:
            if not setting.keeps_context:
                stream = zlib.decompressobj(-setting.window_bits)
            assert stream.decompress(payload_of(data, 0xC2) + TAIL) == message


@given(settings_, st.integers(0, 100_000), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_how_large_a_frame_can_become(setting: Setting, size: int, random: Any) -> None:
    """`most` is not less than what any setting makes of the worst that there is."""
    frame = encode_message(random.randbytes(size))
    packer = Packer(Compressor(setting), 0)
    assert len(packer.pack(frame)) <= most(len(frame))


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536])
def test_headers_of_every_length(size: int) -> None:
    """The threshold is that of the payload, and the payload is compressed, however long the header is."""
    data = b"x" * size
    compressor = Compressor(OWN)
    assert Packer(compressor, size).wants(encode_message(data), None)
    assert not Packer(compressor, size + 1).wants(encode_message(data), None)
    assert inflated(payload_of(encoded(data, compressor), 0xC2)) == data


@pytest.mark.parametrize("threshold", [0, 1000])
def test_what_is_asked_for_goes_before_the_threshold(threshold: int) -> None:
    """`True` and `False` say it for one message, whatever its size."""
    text = "a" * 500
    assert encoded(text, Compressor(SHARED), threshold, compress=True)[0] == 0xC1
    assert encoded(text, Compressor(SHARED), threshold, compress=False) == encode_message(text)


class Interrupting:
    """A zlib object that is interrupted between its two steps."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def compress(self, data: Any) -> bytes:
        result: bytes = self._stream.compress(data)
        return result

    def flush(self, mode: int) -> bytes:
        raise KeyboardInterrupt


@pytest.mark.parametrize("keeps_context", [False, True])
def test_interrupted_message_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, keeps_context: bool) -> None:
    """Of a message whose compression was interrupted nothing gets into the next one, which may be somebody else's."""
    compressor = Compressor(Setting(12, 3, 5, keeps_context))
    before = compressor.compress(JSON)
    make: Callable[..., Any] = zlib.compressobj
    compressor = Compressor(compressor.setting)
    with monkeypatch.context() as patch:
        patch.setattr(zlib, "compressobj", lambda *how: Interrupting(make(*how)))
        with pytest.raises(KeyboardInterrupt):
            compressor.compress(b"secret" * 100)
    assert compressor.compress(JSON) == before


def test_packers_are_shared_where_no_context_is_kept() -> None:
    """Connections that agree share all of it; those that differ in the threshold alone share the compressor."""
    packers = Packers()
    first = packers.get(SHARED, 100)
    assert packers.get(Setting(*SHARED), 100) is first
    other = packers.get(SHARED, 200)
    assert other is not first
    assert other.compressor is first.compressor
    assert packers.get(SHARED._replace(window_bits=13), 100).compressor is not first.compressor
    assert packers.get(OWN, 100).compressor is not packers.get(OWN, 100).compressor


def test_compressor_that_is_not_used_is_small() -> None:
    """What zlib needs is allocated with the first message, and an empty one is not enough for that."""
    compressor = Compressor(OWN)
    assert compressor.compress(b"") == b"\x00"
    assert compressor._stream is None
