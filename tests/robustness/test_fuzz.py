"""Any bytes at all, before and behind the opening handshake: nothing comes out of the server but answers.

For long runs there is `fuzz_atheris.py`, which attacks the same targets.
"""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustness.targets import PATHS, attack, check_frames, check_handshake, upgrade_to
from support.heads import UPGRADE
from trio_crowws.testing import make_frame

fuzz = settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])

CUTS = st.lists(st.integers(0, 2000), max_size=6)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` in pieces, cut at these places."""
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:stop] for start, stop in pairwise(places)]


NAMES = st.sampled_from([*UPGRADE, "Origin", "Cookie", "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Expect"])
TOKENS = st.sampled_from(
    [
        *UPGRADE.values(),
        "chunked",
        "0",
        "12",
        "8",
        "h2c",
        "null",
        "http://example.org",
        "permessage-deflate",
        "close",
        ",",
        ";",
    ]
)
VALUES = st.one_of(
    TOKENS.map(str.encode),
    st.lists(TOKENS, max_size=4).map(", ".join).map(str.encode),
    st.binary(max_size=40),
    st.integers(0, 6000).map(lambda size: b"x" * size),
)
HEADER = st.tuples(
    st.one_of(
        NAMES.map(str.encode), st.sampled_from([b"Content-Length", b"Transfer-Encoding"]), st.binary(max_size=12)
    ),
    st.sampled_from([b": ", b":", b" : ", b""]),
    VALUES,
    st.sampled_from([b"\r\n", b"\n", b"\r", b"\r\n ", b""]),
).map(b"".join)
RIGHT = [f"{name}: {value}\r\n".encode() for name, value in UPGRADE.items()]
START = st.one_of(
    st.sampled_from(
        [f"GET {path} HTTP/1.1\r\n".encode() for path in (*PATHS, "/page/x", "/%ff", "//", "*", "http://a/echo")]
    ),
    st.tuples(
        st.sampled_from([b"GET", b"HEAD", b"POST", b"get", b"", b"\xff"]),
        st.sampled_from([b" ", b"\t", b"  ", b""]),
        st.one_of(st.binary(max_size=60), st.sampled_from([b"/echo", b"/echo?" + b"a&" * 90, b"/page/%2F%"])),
        st.sampled_from([b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b" HTTP/9.9\r\n", b"\r\n", b" HTTP/1.1\n"]),
    ).map(b"".join),
)
REQUEST = st.one_of(
    st.binary(max_size=300),
    st.tuples(
        START,
        st.lists(st.one_of(st.sampled_from(RIGHT), HEADER), max_size=30).map(b"".join),
        st.sampled_from([b"\r\n", b"\n", b""]),
        st.binary(max_size=50),
    ).map(b"".join),
    # Nearly right: all that is needed is there, and one thing more somewhere.
    st.tuples(START, st.integers(0, len(RIGHT)), HEADER, st.binary(max_size=50)).map(
        lambda parts: parts[0] + b"".join([*RIGHT[: parts[1]], parts[2], *RIGHT[parts[1] :]]) + b"\r\n" + parts[3]
    ),
)


@fuzz
@given(REQUEST, CUTS)
def test_any_request(data: bytes, cuts: list[int]) -> None:
    """Whatever comes instead of a request, in whatever pieces, is answered with HTTP, and the next peer is served."""
    check_handshake(attack(split(data, cuts)))


PAYLOADS = st.one_of(
    st.binary(max_size=140),
    st.text(max_size=60).map(str.encode),
    st.integers(0, 5000).map(bytes),
    st.integers(0, 65535).map(lambda code: struct.pack("!H", code)),
    st.sampled_from([b"\xce\xba\xe1\xbd", b"\xed\xa0\x80", b"\x03\xe8\xff", b"\x03\xe8bye"]),
)
PLAIN = st.builds(make_frame, st.sampled_from([1, 2, 9, 10]), PAYLOADS)


def deflate(payload: bytes, flush: int) -> bytes:
    stream = zlib.compressobj(wbits=-9)
    return (stream.compress(payload) + stream.flush(flush)).removesuffix(b"\x00\x00\xff\xff")


DEFLATED = st.builds(deflate, PAYLOADS, st.sampled_from([zlib.Z_SYNC_FLUSH, zlib.Z_SYNC_FLUSH, zlib.Z_FINISH]))
FRAME = st.one_of(
    PLAIN,
    PLAIN,
    st.builds(make_frame, st.sampled_from([0, 1, 2]), PAYLOADS, fin=st.booleans()),
    st.builds(
        make_frame,
        st.integers(0, 15),
        PAYLOADS,
        fin=st.booleans(),
        rsv=st.sampled_from([0, 0, 0, 1, 4]),
        mask=st.booleans(),
    ),
    st.builds(make_frame, st.sampled_from([0, 1, 2]), DEFLATED, fin=st.booleans(), rsv=st.just(4)),
    st.builds(make_frame, st.just(8), PAYLOADS),
    st.tuples(
        st.sampled_from([b"\x81", b"\x82", b"\x01", b"\x88"]),
        st.sampled_from([b"\xfe", b"\xff"]),
        st.binary(max_size=12),
    ).map(b"".join),
    st.binary(max_size=20),
)


@fuzz
@given(st.sampled_from(PATHS), st.lists(FRAME, max_size=25).map(b"".join), CUTS, st.booleans())
def test_any_frames(path: str, data: bytes, cuts: list[int], early: bool) -> None:
    """Whatever follows a 101 is answered with whole frames, and the next peer is served."""
    request = upgrade_to(path)
    pieces = split(request + data, cuts) if early else [request, *split(data, cuts)]
    check_frames(attack(pieces))
