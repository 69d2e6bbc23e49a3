"""trio-websocket: echo."""

from __future__ import annotations

from functools import partial

import trio
from trio_websocket import ConnectionClosed, WebSocketRequest, WebSocketServer, serve_websocket

from .common import announce, read_settings


async def handle(request: WebSocketRequest) -> None:
    connection = await request.accept()
    try:
        while True:
            await connection.send_message(await connection.get_message())
    except ConnectionClosed:
        pass


async def main() -> None:
    settings = read_settings()
    async with trio.open_nursery() as nursery:
        start = partial(serve_websocket, handle, "127.0.0.1", 0, settings.tls)
        server: WebSocketServer = await nursery.start(start)
        announce(server.port)


if __name__ == "__main__":
    trio.run(main)
