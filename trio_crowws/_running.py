"""`App.run`: a Trio loop, and what signals mean for it."""

from __future__ import annotations

import os
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TYPE_CHECKING

import trio

from ._session.tasks import unwrap

if TYPE_CHECKING:
    from ._app import App
    from ._server import Server

__all__ = ["run"]


def run(
    app: App,
    host: str | None,
    port: int,
    unix: str | os.PathLike[str] | None,
    ssl_context: ssl.SSLContext | None,
    backlog: int | None,
    on_listening: Callable[[Server], object] | None,
) -> None:
    """See `App.run`."""
    serve = partial(app.serve, host, port, unix=unix, ssl_context=ssl_context, backlog=backlog)

    async def main() -> None:
        # The signals are caught before anything listens, so that none is lost in between.
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            try:
                async with trio.open_nursery() as nursery:
                    server = await nursery.start(serve)
                    nursery.start_soon(_obey, signals, server, nursery.cancel_scope)
                    if on_listening is not None:
                        on_listening(server)
                    await server.wait_closed()
                    nursery.cancel_scope.cancel()
            except BaseExceptionGroup as group:
                raise unwrap(group) from None

    trio.run(main)


async def _obey(signals: AsyncIterator[int], server: Server, scope: trio.CancelScope) -> None:
    """The first signal asks for a shutdown, the second one ends everything."""
    async with trio.open_nursery() as nursery:
        async for _ in signals:
            if server.closing:
                server.abort()
                scope.cancel()
            else:
                nursery.start_soon(server.aclose)
