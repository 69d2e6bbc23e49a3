"""Masking: one result, whichever way it is computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.require import missing
from trio_crowws._protocol import masking
from trio_crowws._protocol.encoding import encode_binary, encode_text, frame_header
from trio_crowws._protocol.framing import FrameReader
from trio_crowws._protocol.masking import mask_frame, unmask

KEY = b"\x37\xfa\x21\x3d"
NOISE = bytes((index * index + 7 * index) % 251 for index in range(70_000))

# Around every size at which another way is taken, or a way has a boundary of its own.
SIZES = [*range(140), *range(1018, 1032), 4095, 4096, 4097, 16_383, 16_384, 16_385, 65_535, 65_536, 65_537, 70_000]


def by_definition(data: bytes, key: bytes, offset: int = 0) -> bytes:
    return bytes(byte ^ key[(offset + index) % 4] for index, byte in enumerate(data))


def test_example_of_the_rfc() -> None:
    """The masked "Hello" of RFC 6455 section 5.7 is unmasked."""
    assert unmask(b"\x7f\x9f\x4d\x51\x58", KEY) == b"Hello"


@pytest.mark.parametrize("size", SIZES)
def test_every_size(size: int) -> None:
    """Payloads of every size around the boundaries come out as the definition says."""
    assert unmask(NOISE[:size], KEY) == by_definition(NOISE[:size], KEY)


@pytest.mark.parametrize("offset", range(9))
@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 127, 129, 1023, 1025, 5000])
def test_every_offset(size: int, offset: int) -> None:
    """A piece of a payload is unmasked with the key turned to where the piece begins."""
    assert unmask(NOISE[:size], KEY, offset) == by_definition(NOISE[:size], KEY, offset)


@pytest.mark.parametrize("size", SIZES)
def test_pieces_agree(size: int) -> None:
    """The way for large payloads gives the same bytes at every size."""
    assert masking.by_pieces(NOISE[:size], KEY) == by_definition(NOISE[:size], KEY)


def test_numpy_agrees() -> None:
    """The way with numpy gives the same bytes at every size from one byte on."""
    if masking.numpy is None:
        missing("needs numpy")
    for size in SIZES[1:]:
        assert masking.by_numpy(NOISE[:size], KEY) == by_definition(NOISE[:size], KEY), size


def test_without_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large payloads are unmasked without numpy as well."""
    monkeypatch.setattr(masking, "numpy", None)
    assert unmask(NOISE, KEY, 3) == by_definition(NOISE, KEY, 3)


@pytest.mark.parametrize("key", [bytes(4), b"\x00\x00\x00\x01", b"\x80\x00\x00\x00", b"\xff\xff\xff\xff"])
@pytest.mark.parametrize("size", [1, 125, 1000, 2000])
def test_extreme_keys(size: int, key: bytes) -> None:
    """Zero bytes at either end of a key or a payload are not lost."""
    data = bytes(size)
    assert unmask(data, key) == by_definition(data, key)


@given(st.binary(max_size=3000), st.binary(min_size=4, max_size=4), st.integers(0, 1 << 40))
def test_twice_is_nothing(data: bytes, key: bytes, offset: int) -> None:
    """Masking and unmasking are the same operation."""
    assert unmask(unmask(data, key, offset), key, offset) == data


@given(st.binary(max_size=3000), st.binary(min_size=4, max_size=4), st.integers(0, 3000))
def test_pieces(data: bytes, key: bytes, cut: int) -> None:
    """A payload that comes in two pieces is unmasked to the same bytes as one that comes whole."""
    head, tail = data[:cut], data[cut:]
    assert unmask(head, key) + unmask(tail, key, len(head)) == unmask(data, key)


# Whole frames


def masked_by_definition(frame: bytes, key: bytes) -> bytes:
    head = {126: 4, 127: 10}.get(frame[1], 2)
    return frame[:1] + bytes((frame[1] | 0x80,)) + frame[2:head] + key + by_definition(frame[head:], key)


@pytest.mark.parametrize("with_numpy", [True, False])
@pytest.mark.parametrize("encode", [encode_binary, lambda data: encode_text("a" * len(data))], ids=["binary", "text"])
def test_frames_of_every_size(
    encode: Callable[[bytes], bytes], with_numpy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame becomes the same one with the mask bit, the key, and a masked payload."""
    if not with_numpy:
        monkeypatch.setattr(masking, "numpy", None)
    elif masking.numpy is None:
        missing("needs numpy")
    for size in SIZES:
        frame = encode(NOISE[:size])
        assert bytes(mask_frame(frame, KEY)) == masked_by_definition(frame, KEY), size


@pytest.mark.parametrize("first", [0x81, 0x82, 0x88, 0x89, 0x8A, 0xC1, 0xC2, 0x01, 0x80, 0x00])
def test_frames_of_every_kind(first: int) -> None:
    """Control frames, compressed messages and fragments are masked as well."""
    for size in (0, 1, 125, 126, 2000):
        frame = frame_header(first, size) + NOISE[:size]
        assert bytes(mask_frame(frame, KEY)) == masked_by_definition(frame, KEY)


@given(st.binary(max_size=3000), st.binary(min_size=4, max_size=4))
def test_a_masked_frame_is_read_by_a_server(data: bytes, key: bytes) -> None:
    """What goes in at one end comes out at the other."""
    reader = FrameReader(max_payload=None, max_fragments=None, control_rate=None, clock=lambda: 0)
    assert reader.receive(bytes(mask_frame(encode_binary(data), key))) == [data]
