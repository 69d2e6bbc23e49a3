"""Frames that this side sends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import events as wsproto_events
from wsproto.connection import Connection, ConnectionType

from trio_crowws._protocol.encoding import (
    encode_binary,
    encode_close,
    encode_message,
    encode_ping,
    encode_pong,
    encode_text,
    frame_header,
)


def test_text_example_of_the_rfc() -> None:
    """The unmasked "Hello" of RFC 6455 section 5.7."""
    assert encode_text("Hello") == b"\x81\x05Hello"


@pytest.mark.parametrize(
    ("size", "header"),
    [
        (0, b"\x82\x00"),
        (1, b"\x82\x01"),
        (125, b"\x82\x7d"),
        (126, b"\x82\x7e\x00\x7e"),
        (127, b"\x82\x7e\x00\x7f"),
        (65_535, b"\x82\x7e\xff\xff"),
        (65_536, b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_length_forms(size: int, header: bytes) -> None:
    """The length stands in the shortest of its three forms, and no frame is masked."""
    payload = b"z" * size
    assert encode_binary(payload) == header + payload
    assert encode_text("z" * size) == b"\x81" + header[1:] + payload
    assert frame_header(0x82, size) == header


def test_text_length_counts_bytes() -> None:
    """The length of a text frame is in bytes, not in characters."""
    assert encode_text("é" * 63) == b"\x81\x7e\x00\x7e" + "é".encode() * 63


def test_message_type_decides() -> None:
    """A str is sent as text, each of the bytes-like types as binary."""
    assert encode_message("ab") == b"\x81\x02ab"
    for data in (b"ab", bytearray(b"ab"), memoryview(b"ab")):
        assert encode_message(data) == b"\x82\x02ab"


@pytest.mark.parametrize("size", [3, 200, 70_000])
def test_frame_does_not_follow_its_source(size: int) -> None:
    """A frame is a copy: a bytearray that is changed afterwards changes nothing."""
    source = bytearray(b"a" * size)
    frame = encode_binary(source)
    source[:] = b"b" * size
    assert frame.endswith(b"a" * size)


@pytest.mark.parametrize("value", [None, 1, 1.5, ["a"], object(), {"a": 1}])
def test_wrong_message_type(value: object) -> None:
    """Anything but the four types is a TypeError that names them and the type that was given."""
    with pytest.raises(TypeError, match=f"must be str, bytes, bytearray or memoryview, not {type(value).__name__}"):
        encode_message(value)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("text", ["\ud800", "ok\udfff", "z" * 200 + "\ud83d"])
def test_lone_surrogate(text: str) -> None:
    """Text that has no UTF-8 form is a ValueError."""
    with pytest.raises(ValueError, match="surrogates not allowed"):
        encode_message(text)


def test_memoryview_of_wide_items() -> None:
    """A memoryview of items of several bytes is sent as its raw bytes, with their number as the length."""
    view = memoryview(bytes(range(8))).cast("I")
    assert encode_message(view) == b"\x82\x08" + bytes(range(8))


def test_memoryview_that_is_not_contiguous() -> None:
    """A memoryview with a stride is sent as the bytes that it shows."""
    assert encode_message(memoryview(b"a-b-c-")[::2]) == b"\x82\x03abc"


def test_ping_and_pong() -> None:
    """Control frames carry their payload, from nothing to 125 bytes."""
    assert encode_ping(b"") == b"\x89\x00"
    assert encode_pong(bytearray(b"x" * 125)) == b"\x8a\x7d" + b"x" * 125


def test_control_payload_too_long() -> None:
    """A control frame of more than 125 bytes is refused."""
    with pytest.raises(ValueError, match="at most 125 bytes, not 126"):
        encode_ping(bytes(126))
    with pytest.raises(ValueError, match="at most 125 bytes, not 126"):
        encode_pong(memoryview(bytes(126)))


@pytest.mark.parametrize("value", ["text", 5, None])
def test_control_payload_type(value: object) -> None:
    """A control payload that is not bytes-like is a TypeError; above all a number is not a number of zero bytes."""
    with pytest.raises(TypeError, match="the payload must be bytes, bytearray or memoryview"):
        encode_ping(value)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_close() -> None:
    """A Close frame carries the code and the reason, or nothing at all."""
    assert encode_close(1000, "bye") == b"\x88\x05\x03\xe8bye"
    assert encode_close(1014) == b"\x88\x02\x03\xf6"
    assert encode_close(4999, "") == b"\x88\x02\x13\x87"
    assert encode_close(None) == b"\x88\x00"


@pytest.mark.parametrize(
    "code",
    [-1, 0, 999, 1004, 1005, 1006, 1015, 1016, 2500, 2999, 5000, 65_535, 70_000],
    ids=lambda code: f"code-{code}",
)
def test_close_code_that_must_not_travel(code: int) -> None:
    """A code that is reserved, unassigned or out of range is refused, never replaced by another one."""
    with pytest.raises(ValueError, match="must not be sent"):
        encode_close(code)


def test_close_reason_without_code() -> None:
    """A reason has no place in a frame without a code."""
    with pytest.raises(ValueError, match="needs a close code"):
        encode_close(None, "why")


def test_close_reason_length() -> None:
    """A reason of 123 bytes fits; one that is longer is refused here, since only the caller knows how to shorten it."""
    assert encode_close(1000, "é" * 61 + "x") == b"\x88\x7d\x03\xe8" + "é".encode() * 61 + b"x"
    with pytest.raises(ValueError, match="at most 125 bytes, not 126"):
        encode_close(1000, "é" * 62)


@given(st.one_of(st.text(max_size=300), st.binary(max_size=300), st.sampled_from(["é" * 40_000, bytes(70_000)])))
def test_wsproto_reads_it(data: str | bytes) -> None:
    """A client made of wsproto gets the message that was encoded."""
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(encode_message(data))
    (event,) = client.events()
    assert isinstance(event, (wsproto_events.TextMessage, wsproto_events.BytesMessage))
    assert event.data == data
    assert event.message_finished
