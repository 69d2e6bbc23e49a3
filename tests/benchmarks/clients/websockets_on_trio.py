"""The Trio client of websockets."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from websockets.trio.client import connect

from .common import Echoes, Settings, run


class _Connection(NamedTuple):
    send: Callable[[str | bytes], Awaitable[None]]
    receive: Callable[[], Awaitable[str | bytes]]


@asynccontextmanager
async def open_connection(settings: Settings) -> AsyncGenerator[Echoes]:
    # Without compression, which the server would decline anyway, and without a proxy from the environment.
    async with connect(settings.url, compression=None, proxy=None) as connection:
        yield _Connection(connection.send, connection.recv)


if __name__ == "__main__":
    run(open_connection)
