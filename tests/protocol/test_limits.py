"""Limits on what the peer sends, as wsproto meets them: without the reader and its fast lane."""

from __future__ import annotations

import pytest
from wsproto import events as wsproto_events
from wsproto.connection import Connection, ConnectionState, ConnectionType

from trio_crowws._protocol.limits import ControlRate, Limits
from trio_crowws.errors import PayloadTooBig, ProtocolError

KEY = bytes(4)  # the payload travels as it is
TEXT, BINARY, CONTINUATION, CLOSE, PING = 1, 2, 0, 8, 9


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0
        self.reads = 0

    def __call__(self) -> float:
        self.reads += 1
        return self.now


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, length: int | None = None) -> bytes:
    """A masked frame; `length` claims another length than the payload has."""
    size = len(payload) if length is None else length
    first = opcode | (0x80 if fin else 0)
    if size < 126:
        return bytes((first, 0x80 | size)) + KEY + payload
    if size < 1 << 16:
        return bytes((first, 0x80 | 126)) + size.to_bytes(2) + KEY + payload
    return bytes((first, 0x80 | 127)) + size.to_bytes(8) + KEY + payload


class Server:
    """A wsproto connection with limits."""

    def __init__(
        self, max_payload: int | None = None, max_fragments: int | None = None, rate: ControlRate | None = None
    ) -> None:
        self.limits = Limits(max_payload, max_fragments, rate)
        self.connection = Connection(ConnectionType.SERVER, [self.limits])

    def feed(self, data: bytes) -> list[wsproto_events.Event]:
        self.connection.receive_data(data)
        return list(self.connection.events())

    def failure(self, data: bytes) -> ProtocolError:
        """What `data` is refused for, which must be its last event and not a Close frame."""
        event = self.feed(data)[-1]
        assert isinstance(event, wsproto_events.CloseConnection)
        assert self.connection.state is ConnectionState.OPEN
        assert self.limits.breach is not None
        assert event.code == self.limits.breach.code
        return self.limits.breach


def test_rate_begins_with_the_burst() -> None:
    """The burst can be used at once, and not one token more."""
    rate = ControlRate((50, 3), Clock())
    assert [rate.take() for _ in range(5)] == [True, True, True, False, False]


def test_rate_refills_with_time() -> None:
    """Tokens come back at the rate, up to the burst."""
    clock = Clock()
    rate = ControlRate((2, 3), clock)
    for _ in range(3):
        rate.take()
    clock.now += 0.4
    assert not rate.take()  # 0.8 of a token
    clock.now += 0.1
    assert rate.take()
    assert not rate.take()
    clock.now += 3600
    assert [rate.take() for _ in range(4)] == [True, True, True, False]


def test_rate_credit() -> None:
    """Credit is not lost to the burst: as many solicited pongs as there were pings are free, whenever they come."""
    clock = Clock()
    rate = ControlRate((1, 2), clock)
    for _ in range(10):
        rate.credit()
    assert rate.take()
    clock.now += 3600
    assert [rate.take() for _ in range(12)] == [True] * 11 + [False]


def test_rate_reads_the_clock_only_for_a_token() -> None:
    """Making a bucket and crediting it do not ask for the time."""
    clock = Clock()
    rate = ControlRate((1, 1), clock)
    rate.credit()
    assert clock.reads == 0
    rate.take()
    assert clock.reads == 1


def test_extension_is_never_negotiated() -> None:
    """The extension is always on, and a client would not offer it."""
    limits = Limits(None, None, None)
    assert limits.enabled()
    assert limits.offer() is False
    assert limits.accept("x") is None


def test_payload_at_the_limit() -> None:
    """A message of exactly `max_payload` bytes passes, whole or in fragments."""
    server = Server(max_payload=4)
    server.feed(frame(TEXT, b"abcd"))
    server.feed(frame(BINARY, b"ab", fin=False) + frame(CONTINUATION, b"cd") + frame(TEXT, b"abcd"))
    assert server.limits.breach is None


def test_payload_over_the_limit() -> None:
    """One byte more is 1009, and the error says how much and what is allowed."""
    error = Server(max_payload=4).failure(frame(TEXT, b"abcde"))
    assert isinstance(error, PayloadTooBig)
    assert str(error) == "a message of at least 5 bytes; the limit is 4"


def test_payload_over_the_limit_by_its_header() -> None:
    """A length that is too large fails at its last byte, before masking key and payload have come."""
    server = Server(max_payload=1 << 20)
    header = frame(BINARY, length=1 << 40)[:10]
    assert server.feed(header[:9]) == []
    assert isinstance(server.failure(header[9:]), PayloadTooBig)


def test_payload_counts_bytes_over_fragments() -> None:
    """The sum over the fragments counts, in bytes of UTF-8 and not in characters."""
    server = Server(max_payload=4)
    assert server.feed(frame(TEXT, "é".encode(), fin=False) + frame(CONTINUATION, b"ab", fin=False))
    assert isinstance(server.failure(frame(CONTINUATION, b"c")), PayloadTooBig)


def test_control_payload_does_not_count() -> None:
    """Control frames between fragments belong to no message."""
    server = Server(max_payload=4, max_fragments=2)
    server.feed(frame(TEXT, b"ab", fin=False) + frame(PING, b"123456") * 5 + frame(CONTINUATION, b"cd"))
    assert server.limits.breach is None


def test_fragments() -> None:
    """`max_fragments` frames pass, empty ones included; the next one is 1008."""
    server = Server(max_fragments=3)
    server.feed(frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) + frame(CONTINUATION))
    server.feed(frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) + frame(CONTINUATION, fin=False))
    assert server.limits.breach is None
    error = server.failure(frame(CONTINUATION))
    assert (error.code, str(error)) == (1008, "a message of more than 3 frames")


def test_rate_of_control_frames() -> None:
    """Pings and pongs draw from the bucket; without a token it is 1008."""
    server = Server(rate=ControlRate((1, 2), Clock()))
    assert len(server.feed(frame(PING) + frame(10))) == 2
    error = server.failure(frame(PING))
    assert (error.code, str(error)) == (1008, "too many control frames")


def test_rate_spares_the_close_frame() -> None:
    """A peer that used up its rate can still close in order."""
    server = Server(rate=ControlRate((1, 1), Clock()))
    server.feed(frame(PING) + frame(CLOSE, b"\x03\xe8"))
    assert server.connection.state is ConnectionState.REMOTE_CLOSING
    assert server.limits.breach is None


def test_rate_of_empty_fragments() -> None:
    """Empty fragments draw from the same bucket, but not one that ends its message."""
    server = Server(rate=ControlRate((1, 2), Clock()))
    for _ in range(5):
        server.feed(frame(TEXT, b"x", fin=False) + frame(CONTINUATION))
    server.feed(frame(TEXT, fin=False) + frame(CONTINUATION, fin=False))
    assert server.limits.breach is None
    error = server.failure(frame(CONTINUATION, fin=False))
    assert (error.code, str(error)) == (1008, "too many empty fragments")


@pytest.mark.parametrize("length", [3, 300, 70_000])
def test_header_in_pieces_counts_once(length: int) -> None:
    """A header that wsproto shows again for each byte of the key that is missing counts as one frame all the same."""
    clock = Clock()
    server = Server(max_payload=length, max_fragments=1, rate=ControlRate((1, 2), clock))
    for opcode in (BINARY, TEXT):
        for byte in frame(opcode, length=length)[:-1]:
            assert server.feed(bytes((byte,))) == []
        server.feed(KEY[:1] + b"x" * length)
    for byte in frame(PING) * 2:
        server.feed(bytes((byte,)))
    assert server.limits.breach is None
    assert clock.reads == 2


def test_no_limits() -> None:
    """`None` turns each of them off."""
    server = Server()
    server.feed(frame(PING) * 500 + frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * 3000)
    server.feed(frame(CONTINUATION, length=1 << 62))
    assert server.limits.breach is None


def test_breach_stays() -> None:
    """The first breach is the one that is reported, whatever comes after it."""
    server = Server(max_payload=1)
    error = server.failure(frame(TEXT, b"ab"))
    server.feed(frame(TEXT, b"a") + frame(CLOSE))
    assert server.limits.breach is error


def test_unexpected_continuation_is_not_a_limit() -> None:
    """A continuation of nothing is a protocol error, however large the message before it was."""
    server = Server(max_payload=4, max_fragments=1)
    server.feed(frame(TEXT, b"abcd"))
    (event,) = server.feed(frame(CONTINUATION, b"e"))
    assert isinstance(event, wsproto_events.CloseConnection)
    assert event.code == 1002
    assert server.limits.breach is None
