"""The naive floor: a Trio `SocketStream` for each connection, and the bytes go back as they came."""

from __future__ import annotations

from functools import partial

import trio

from .common import BACKLOG, announce


async def echo(stream: trio.SocketStream) -> None:
    try:
        while data := await stream.receive_some():
            await stream.send_all(data)
    except trio.BrokenResourceError:
        pass


async def main() -> None:
    async with trio.open_nursery() as nursery:
        start = partial(trio.serve_tcp, echo, 0, host="127.0.0.1", backlog=BACKLOG)
        listeners: list[trio.SocketListener] = await nursery.start(start)
        announce(listeners[0].socket.getsockname()[1])


if __name__ == "__main__":
    trio.run(main)
