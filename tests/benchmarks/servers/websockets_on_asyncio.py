"""websockets on asyncio with uvloop: echo; /subscribe and /publish."""

from __future__ import annotations

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed

from .common import BACKLOG, DEFAULT_INTERVAL, announce, listen, read_settings

subscribers: set[ServerConnection] = set()


async def handle(connection: ServerConnection) -> None:
    request = connection.request
    assert request is not None
    if request.path == "/subscribe":
        subscribers.add(connection)
    try:
        async for message in connection:
            if request.path == "/publish":
                broadcast(subscribers, message)
            else:
                await connection.send(message)
    except ConnectionClosed:  # the load generator leaves in the middle of its traffic
        pass
    finally:
        subscribers.discard(connection)


async def main() -> None:
    settings = read_settings()
    sock = listen()
    async with serve(
        handle,
        sock=sock,
        backlog=BACKLOG,
        ssl=settings.tls,
        ping_interval=settings.ping_interval or DEFAULT_INTERVAL,
        max_size=settings.max_size,
    ) as server:
        announce(sock.getsockname()[1])
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
