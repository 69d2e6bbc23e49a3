"""Masking: one result, whichever way it is computed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.require import missing
from trio_crowws._protocol import masking
from trio_crowws._protocol.masking import unmask

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
