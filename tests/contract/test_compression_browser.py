"""Compression with an implementation that many people use: a page in Chromium."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from support.browser import Endpoint, chromium, open_browser
from support.rawclient import serving
from support.require import program
from trio_crowws import App, Connection, Deflate

pytestmark = pytest.mark.browser

TALK = r"""new Promise((resolve, reject) => {
    const socket = new WebSocket(location.origin.replace("http", "ws") + "/echo");
    const line = "the quick brown fox jumps over the lazy dog ";
    const messages = [line.repeat(200), "", "short", line.repeat(2), line.repeat(20000), "\u{1f98a}".repeat(3000)];
    const answers = [];
    socket.onopen = () => messages.forEach(message => socket.send(message));
    socket.onmessage = event => {
        answers.push(event.data);
        if (answers.length === messages.length) socket.close(1000);
    };
    socket.onclose = event => resolve({
        extensions: socket.extensions,
        code: event.code,
        clean: event.wasClean,
        right: JSON.stringify(answers) === JSON.stringify(messages),
        sum: messages.reduce((sum, message) => sum + new TextEncoder().encode(message).length, 0),
    });
})"""


@pytest.fixture(scope="module")
def endpoint() -> Generator[Endpoint]:
    with chromium(program("chromium", "chromium-browser", "google-chrome", package="chromium")) as running:
        yield running


@pytest.mark.parametrize(
    ("compression", "agreed"),
    [
        (Deflate(), "permessage-deflate; client_max_window_bits=12"),
        (
            Deflate(
                threshold=0,
                server_no_context_takeover=False,
                server_max_window_bits=15,
                client_max_window_bits=9,
            ),
            "permessage-deflate; client_max_window_bits=9",
        ),
    ],
    ids=["default", "context"],
)
async def test_a_browser_talks_compressed(endpoint: Endpoint, compression: Deflate, agreed: str) -> None:
    """Chromium agrees on it, both sides compress, and every message comes back as it was."""
    app = App(compression=compression)
    conns: list[Connection] = []

    @app.http("/", content_type="text/html")
    def page(_: object) -> str:
        return "<!doctype html><title>echo</title>"

    @app.websocket("/echo")
    async def echo(conn: Connection) -> None:
        conns.append(conn)
        async for message in conn:
            await conn.send(message)

    async with serving(app) as server, open_browser(endpoint) as browser:
        tab = await browser.open(f"http://127.0.0.1:{server.port}/")
        result = await tab.evaluate(TALK)
        total = result.pop("sum")
        assert result == {"extensions": agreed, "code": 1000, "clean": True, "right": True}
        [conn] = conns
        assert conn.compression == agreed
        assert total > 890_000
        assert conn.bytes_received < total / 20
        assert conn.bytes_sent < total / 20
