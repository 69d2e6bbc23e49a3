"""Where there is no epoll, sockets are served as Trio's streams, and nobody can tell the difference."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from support.servers import Kind, Recorder, serving
from trio_crowws import App, CloseFrame
from trio_crowws._transport.engine import Engine


@pytest.fixture(autouse=True)
def no_epoll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_crowws._server.Engine", partial(Engine, use_epoll=False))


@pytest.mark.parametrize("kind", ["tcp", "tls", "unix"])
async def test_a_conversation(kind: Kind) -> None:
    """Messages of every size are echoed in order, and the closing handshake is complete."""
    app = App()
    recorder = Recorder(app)
    messages: list[str | bytes] = ["hello", b"\x00" * 300_000, "good" * 100_000, ""]
    async with serving(app, kind) as site, site.connect() as peer:
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for message in messages:
                    await peer.send(message)

            nursery.start_soon(send)
            assert [await peer.receive() for _ in messages] == messages
        assert await peer.close(4000) == CloseFrame(4000)
        await recorder.check_end(4000, clean=True, initiator="remote", sent=4000, received=4000, error=None)
        assert recorder.conn.request.secure is (kind == "tls")
    assert site.server._engine.transports == []


@pytest.mark.parametrize("kind", ["tcp", "tls", "unix"])
async def test_a_shutdown(kind: Kind) -> None:
    """A server that is closed says 1001 to its peers."""
    app = App()
    recorder = Recorder(app)
    async with serving(app, kind) as site, site.connect() as peer:
        await recorder.wait("open")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(site.server.aclose)
            assert await peer.receive_close() == CloseFrame(1001)
    await recorder.check_end(1001, clean=True, initiator="local", sent=1001, received=1001, error=None)
