"""websockets on Trio: echo; /subscribe and /publish."""

from __future__ import annotations

import trio
from websockets.trio.connection import broadcast
from websockets.trio.server import ServerConnection, serve

from .common import BACKLOG, announce, read_settings

subscribers: set[ServerConnection] = set()


async def handle(connection: ServerConnection) -> None:
    request = connection.request
    assert request is not None
    if request.path == "/subscribe":
        subscribers.add(connection)
    async for message in connection:
        if request.path == "/publish":
            await publish(message)
        else:
            await connection.send(message)


async def publish(message: str | bytes) -> None:
    sending = broadcast(subscribers, message)
    if sending is not None:
        await sending


async def main() -> None:
    settings = read_settings()
    async with trio.open_nursery() as nursery:
        start = lambda task_status: serve(  # noqa: E731
            handle,
            0,
            host="127.0.0.1",
            backlog=BACKLOG,
            ssl=settings.tls,
            ping_interval=settings.ping_interval,
            task_status=task_status,
        )
        server = await nursery.start(start)
        announce(server.listeners[0].socket.getsockname()[1])


if __name__ == "__main__":
    trio.run(main)
