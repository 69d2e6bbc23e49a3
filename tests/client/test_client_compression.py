"""permessage-deflate on the client's side: what is offered, what a server may answer, and what is on the wire."""

from __future__ import annotations

import zlib

import pytest

from support.rawserver import RawPeer, raw_server
from trio_crowws import Deflate, InvalidHandshake, connect

TEXT = "all work and no play makes jack a dull boy, " * 100
EXTENSION = "Sec-WebSocket-Extensions: "
PLAIN = "permessage-deflate; server_no_context_takeover; server_max_window_bits=12"
RSV1 = 0x40


def inflated(*payloads: bytes, bits: int = 15) -> list[bytes]:
    """What the payloads of messages hold that were compressed with a context."""
    stream = zlib.decompressobj(-bits)
    return [stream.decompress(payload + b"\x00\x00\xff\xff") for payload in payloads]


async def serve_to_the_end(peer: RawPeer) -> None:
    """Read until the client's Close frame, answer it, and end the stream."""
    while not any(frame.first == 0x88 for frame in peer.frames):
        peer._take(bytes(await peer.stream.receive_some(65536)))
    await peer.send_frame(8)
    await peer.stream.aclose()


def unmasked(peer: RawPeer, opcode: int) -> list[bytes]:
    """The payloads of the compressed frames with this opcode."""
    return [frame.payload for frame in peer.frames if frame.first & ~0x80 == RSV1 | opcode]


async def test_nothing_is_offered_by_default() -> None:
    """Without the option the request names no extension, and a server that accepts one has made a mistake."""
    heads: list[bytes] = []

    async def script(peer: RawPeer) -> None:
        heads.append(await peer.read_head())
        await peer.accept(EXTENSION + PLAIN)

    async with raw_server(script) as server:
        with pytest.raises(InvalidHandshake, match=r"Sec-WebSocket-Extensions.*not offered"):
            async with connect(server.url):
                pass
    assert b"xtensions" not in heads[0]


async def test_what_is_on_the_wire() -> None:
    """Frames are masked over what was compressed, with a context, and each message decides for itself."""
    peers: list[RawPeer] = []

    async def script(peer: RawPeer) -> None:
        peers.append(peer)
        await peer.accept(EXTENSION + PLAIN)
        await serve_to_the_end(peer)

    async with raw_server(script) as server, connect(server.url, compression=Deflate()) as conn:
        await conn.send(TEXT)
        await conn.send("short")
        await conn.send("short", compress=True)
        await conn.send(TEXT, compress=False)
        await conn.send(TEXT)
        offer = peers[0].header("sec-websocket-extensions")
        assert conn.compression == PLAIN
        conn.close_nowait()
    assert offer is not None
    assert offer.startswith("permessage-deflate; ")
    texts = [frame for frame in peers[0].frames if frame.first & 0x0F == 1]
    assert [bool(frame.first & RSV1) for frame in texts] == [True, False, True, False, True]
    assert all(frame.masked for frame in texts)
    assert inflated(*unmasked(peers[0], 1)) == [TEXT.encode(), b"short", TEXT.encode()]
    assert len(texts[4].payload) < len(texts[0].payload)  # it refers to the first one


@pytest.mark.parametrize(
    "answer",
    [
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_no_context_takeover; server_max_window_bits=12; unknown",
        "permessage-deflate; server_no_context_takeover; server_max_window_bits=12; client_max_window_bits=7",
        "permessage-bzip2",
        f"{PLAIN}, {PLAIN}",
    ],
)
async def test_an_answer_that_was_not_offered(answer: str) -> None:
    """A server that accepts something else than what was offered fails the handshake, and the error shows it."""

    async def script(peer: RawPeer) -> None:
        await peer.accept(EXTENSION + answer)
        await peer.wait_end()

    async with raw_server(script) as server:
        with pytest.raises(InvalidHandshake, match=r"Sec-WebSocket-Extensions: 'perm.*was not offered"):
            async with connect(server.url, compression=Deflate()):
                pass


def test_the_option_is_checked_at_the_call() -> None:
    """Something else than `Deflate(...)` is refused before anything is done."""
    with pytest.raises(TypeError, match=r"option compression=True is not allowed; it must be Deflate"):
        connect("ws://h/", compression=True)


async def test_a_window_that_zlib_cannot_make() -> None:
    """Where the server allows a window of 8 bits, the client sends messages as they are, and inflates what comes."""
    peers: list[RawPeer] = []
    answer = "permessage-deflate; server_max_window_bits=8; client_max_window_bits=8"
    stream = zlib.compressobj(9, zlib.DEFLATED, -9)
    compressed = (stream.compress(TEXT.encode()[:200]) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]

    async def script(peer: RawPeer) -> None:
        peers.append(peer)
        await peer.accept(EXTENSION + answer)
        await peer.send(bytes((0x81 | RSV1, len(compressed))) + compressed)
        await serve_to_the_end(peer)

    async with raw_server(script) as server, connect(server.url, compression=Deflate(threshold=0)) as conn:
        assert conn.compression == answer
        assert await conn.receive() == TEXT[:200]
        await conn.send(TEXT)
        await conn.send(TEXT, compress=True)
        assert conn.send_nowait(TEXT, compress=True)
        conn.close_nowait()
    texts = [frame for frame in peers[0].frames if frame.first & 0x0F == 1]
    assert [(frame.first, frame.payload) for frame in texts] == [(0x81, TEXT.encode())] * 3


async def test_a_server_that_refuses_parameters() -> None:
    """What browsers offer is accepted by servers that refuse the handshake because of any other parameter."""

    async def script(peer: RawPeer) -> None:
        await peer.read_head()
        assert peer.header("sec-websocket-extensions") == "permessage-deflate; client_max_window_bits"
        await peer.accept(EXTENSION + "permessage-deflate; client_no_context_takeover; server_no_context_takeover")
        await serve_to_the_end(peer)

    async with raw_server(script) as server, connect(server.url, compression=Deflate()) as conn:
        assert conn.compression is not None
        conn.close_nowait()
