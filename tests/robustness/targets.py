"""What both fuzzers attack: an application over memory streams, with any bytes, and what must be true afterwards."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio
import trio.testing

from support.heads import UPGRADE, write_head
from support.servers import EVERYTHING, decode
from trio_crowws import App, Connection
from trio_crowws.testing import connect

__all__ = ["PATHS", "attack", "check_frames", "check_handshake", "upgrade_to"]

PATHS = ("/echo", "/plain", "/busy", "/compressed")

app = App(
    max_payload=4096, max_fragments=16, control_rate=(10, 10), send_limit=8192, max_header_bytes=4096, max_headers=20
)


@app.websocket("/echo")
async def echo(conn: Connection) -> None:
    async for message in conn:
        await conn.send(message)


app.websocket("/compressed", compression=EVERYTHING)(echo)

plain = app.websocket("/plain")
plain.onmessage(lambda conn, message: conn.send_nowait(message)).onerror(lambda conn, error: str(error))
plain.on_ping(lambda conn, payload: None)
plain.on_pong(lambda conn, payload: None)


@app.websocket("/busy", subprotocols="first").on_text
async def busy(conn: Connection, text: str) -> None:
    await trio.sleep(0.1)
    await conn.send(text)


@app.http("/page/{name}")
def page(request: object) -> str:
    return repr(request)


class Log(logging.Handler):
    """What the package has logged as errors: here there is nothing that it should."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))


def upgrade_to(path: str) -> bytes:
    """A right request, with an offer where it is accepted."""
    offer = [("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")] if "compressed" in path else []
    return write_head([*UPGRADE.items(), *offer], f"GET {path} HTTP/1.1")


def attack(pieces: Sequence[bytes]) -> bytes:
    """Send `pieces` one by one to a new connection of the application, then the end of the stream.

    Raises whatever comes out of the server, and `AssertionError` where it has logged an error, or does not serve an
    honest peer any more.

    Returns:
      Everything that the server said.
    """
    log = Log()
    logger = logging.getLogger("trio_crowws")
    logger.addHandler(log)
    try:
        said = trio.run(_attack, pieces, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        logger.removeHandler(log)
    assert not log.records, log.records
    assert not app.connections
    return said


async def _attack(pieces: Sequence[bytes]) -> bytes:
    said = bytearray()
    near, far = trio.testing.memory_stream_pair()

    async def send() -> None:
        try:
            for piece in pieces:
                await near.send_all(piece)
                for _ in range(3):  # time enough for the server to read it
                    await trio.lowlevel.checkpoint()
            await near.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    with trio.fail_after(600):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(app.serve_stream, far)
            nursery.start_soon(send)
            try:
                while data := await near.receive_some(65536):
                    said += data
            except trio.BrokenResourceError:
                pass
            await near.aclose()
        async with connect(app, "/echo") as peer:
            await peer.send("still there?")
            assert await peer.receive() == "still there?"
            await peer.close()
    return bytes(said)


def check_handshake(said: bytes) -> None:
    """There is one complete response and nothing behind it; or a 101, and frames that a client understands."""
    if not said:
        return  # the peer has left before its request was complete
    head, separator, body = said.partition(b"\r\n\r\n")
    assert separator, said
    if head.startswith(b"HTTP/1.1 101 "):
        decode(said)
        return
    lines = head.decode("latin-1").split("\r\n")
    status = int(lines[0].split(" ")[1])
    assert status == 200 or 400 <= status <= 505, said
    assert status != 500, said
    [length] = [int(line.split(": ")[1]) for line in lines if line.startswith("Content-Length: ")]
    assert length == len(body) or (not body), said


def check_frames(said: bytes) -> None:
    """There is a 101, and behind it nothing but frames that a client understands."""
    decode(said)
