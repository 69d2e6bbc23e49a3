"""The Trio client of websockets."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from websockets.trio.client import connect

from .common import Echoes, Settings, run


@asynccontextmanager
async def open_connection(settings: Settings) -> AsyncGenerator[Echoes]:
    # Without compression, which the server would decline anyway, and without a proxy from the environment.
    async with connect(settings.url, compression=None, proxy=None) as connection:
        yield Echoes(connection.send, connection.recv)


if __name__ == "__main__":
    run(open_connection)
