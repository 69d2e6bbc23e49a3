"""`App.run`: a Trio loop, and what signals mean for it."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from ._foreign import cause_of, unwrap

if TYPE_CHECKING:
    from ._server import Server

__all__ = ["print_urls", "run_until_signal"]


def run_until_signal(
    serve: Callable[..., Awaitable[None]],
    on_listening: Callable[[Server], object],
    signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
) -> None:
    """Run `serve`, which can be started in a nursery, in a Trio loop of its own; see `App.run`."""

    async def main() -> None:
        # The signals are caught before anything listens, so that none is lost in between.
        with trio.open_signal_receiver(*signals) as received:
            try:
                async with trio.open_nursery() as nursery:
                    server: Server = await nursery.start(serve)
                    nursery.start_soon(_obey, received, server, nursery.cancel_scope)
                    on_listening(server)
                    await server.wait_closed()
                    nursery.cancel_scope.cancel()
            except BaseExceptionGroup as group:
                error = unwrap(group)
                try:
                    raise error from cause_of(error)
                finally:
                    del error  # it refers to this frame, and so to itself

    trio.run(main)


def print_urls(server: Server) -> None:
    """Print where a server listens, in one line."""
    with suppress(Exception):  # a standard output that is closed, or that nobody reads, is no reason to end
        print(f"listening on {server._urls()}", flush=True)


async def _obey(signals: AsyncIterator[int], server: Server, scope: trio.CancelScope) -> None:
    """The first signal asks for a shutdown, or makes the program's own one hurry; the second one ends everything."""
    async with trio.open_nursery() as nursery:
        await anext(signals)
        nursery.start_soon(server.aclose)
        await anext(signals)
        server.abort()
        scope.cancel()
