"""websockets on Trio: echo; /subscribe and /publish."""

from __future__ import annotations

from functools import partial

import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.connection import broadcast
from websockets.trio.server import Server, ServerConnection, serve

from .common import BACKLOG, DEFAULT_INTERVAL, announce, read_settings

subscribers: set[ServerConnection] = set()


async def handle(connection: ServerConnection) -> None:
    request = connection.request
    assert request is not None
    if request.path == "/subscribe":
        subscribers.add(connection)
    try:
        async for message in connection:
            if request.path == "/publish":
                await broadcast(subscribers, message)
            else:
                await connection.send(message)
    except ConnectionClosed:  # the load generator leaves in the middle of its traffic
        pass
    finally:
        subscribers.discard(connection)


async def main() -> None:
    settings = read_settings()
    async with trio.open_nursery() as nursery:
        start = partial(
            serve,
            handle,
            0,
            host="127.0.0.1",
            backlog=BACKLOG,
            ssl=settings.tls,
            ping_interval=settings.ping_interval or DEFAULT_INTERVAL,
            max_size=settings.max_size,
        )
        server: Server = await nursery.start(start)
        announce(server.listeners[0].socket.getsockname()[1])


if __name__ == "__main__":
    trio.run(main)
