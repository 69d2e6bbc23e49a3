"""What a transport says of a TLS handshake, and how an answer over a TLS stream of Trio's ends."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import trio
import trio.testing

from support.certificates import make_tls
from support.servers import Kind, serving
from trio_crowws import App, Connection


@pytest.mark.parametrize("kind", ["tcp", "unix", "memory"])
async def test_no_tls_handshake_moves(kind: Kind) -> None:
    """Where there is no TLS, nobody gets time back for a handshake of it."""
    app = App()
    opened: list[Connection] = []

    @app.websocket("/").on_open
    def note(conn: Connection) -> None:
        opened.append(conn)

    async with serving(app, kind) as site, site.connect() as peer:
        await peer.close()
    assert [conn._transport.shook_hands_at for conn in opened] == [-math.inf]


async def test_an_answer_over_a_tls_stream(tmp_path: Path) -> None:
    """A refusal over a TLS stream of Trio's is read to its end, and the server waits for the peer to close."""
    app, tls = App(), make_tls(tmp_path)
    server_end, client_end = trio.testing.memory_stream_pair()
    server = trio.SSLStream(server_end, tls.server, server_side=True)
    client = trio.SSLStream(client_end, tls.client, server_hostname="localhost", https_compatible=True)
    answer = b""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(app.serve_stream, server)
            await client.send_all(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")
            while data := await client.receive_some():
                answer += data
            await client.aclose()
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert answer.endswith(b"not found\n")
