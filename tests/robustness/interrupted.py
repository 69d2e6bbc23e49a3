"""A program under load that gets a real SIGINT at a random moment, again and again: `python interrupted.py RUNS SEED`.

Servers and clients of all styles come and go in one Trio run, which a signal ends. One line is printed for each run
that has not kept the contract, and then the number of runs, and how many connections there were in them.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import threading
import warnings
from typing import Any

import trio

from trio_crowws import App, Connection, CrowWSError, Handler, connect

CLIENTS = 6
AGAIN = 5.0
"""Seconds until the signal is repeated, should it have come where Python cannot raise, as in a destructor."""

EXPECTED = (KeyboardInterrupt, CrowWSError, OSError)
"""What may leave a run: the interrupt, and what the clients of a server that is interrupted see of it."""


class Run:
    """One Trio run."""

    def __init__(self, delay: float) -> None:
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.over = threading.Event()
        self._delay = delay
        self._app = App(shutdown_grace=1)
        self._add_routes()

    def _add_routes(self) -> None:
        opened, closed = self.opened, self.closed

        async def on_open(conn: Connection) -> None:
            opened.append(conn.id)
            conn.join("room")
            conn.start_soon(trio.sleep_forever)

        async def on_message(conn: Connection, message: str | bytes) -> None:
            await conn.send(message)
            conn.publish("room", "everybody")

        async def on_close(conn: Connection, info: object) -> None:
            closed.append(conn.id)
            await trio.lowlevel.checkpoint()

        async def session(conn: Connection) -> None:
            opened.append(conn.id)
            async for message in conn:
                await conn.send(message)

        def plain_open(conn: Connection) -> None:
            opened.append(conn.id)

        def plain_message(conn: Connection, message: str | bytes) -> None:
            conn.send_nowait(message)

        def plain_close(conn: Connection, info: object) -> None:
            closed.append(conn.id)

        methods: dict[str, Any] = {"on_open": on_open, "on_message": on_message, "on_close": on_close}
        handler = type("Each", (Handler,), {name: staticmethod(method) for name, method in methods.items()})

        self._app.websocket("/0")(session)
        self._app.websocket("/1").onopen(on_open).onmessage(on_message)
        self._app.websocket("/2").onopen(plain_open).onmessage(plain_message)
        self._app.websocket("/3")(handler)
        for route in self._app.routes[:3]:
            route.on_close(plain_close if route is self._app.routes[2] else on_close)

    def strike(self) -> None:
        """The thread that sends the signal."""
        while not self.over.wait(self._delay):
            os.kill(os.getpid(), signal.SIGINT)
            self._delay = AGAIN

    async def main(self) -> None:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(self._app.serve, "127.0.0.1", 0)
            threading.Thread(target=self.strike, daemon=True).start()
            for number in range(CLIENTS):
                nursery.start_soon(self._use, f"ws://127.0.0.1:{server.port}/{number % 4}")
            await self._use(f"ws://127.0.0.1:{server.port}/1")

    async def _use(self, url: str) -> None:
        while True:
            async with connect(url) as conn:
                for _ in range(5):
                    await conn.send("x" * 100)
                    await conn.receive()

    def check(self) -> str | None:
        """What is wrong with the run, if anything."""
        error: BaseException | None = None
        try:
            trio.run(self.main)
        except BaseException as raised:
            error = raised
        finally:
            self.over.set()
        leaves = list(leaves_of(error))
        if not any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
            return f"no interrupt came out: {error!r}"
        if not all(isinstance(leaf, EXPECTED) for leaf in leaves):
            return f"something else came out: {error!r}"
        if sorted(self.opened) != sorted(self.closed):
            return f"opened {sorted(self.opened)}, closed {sorted(self.closed)}"
        return None


def leaves_of(error: BaseException | None) -> Any:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from leaves_of(each)
    elif error is not None:
        yield error


def main() -> None:
    runs, seed = map(int, sys.argv[1:])
    chance = random.Random(seed)
    warnings.simplefilter("error")
    count = 0
    sys.unraisablehook = lambda what: print(f"unraisable: {what.exc_value!r} in {what.object!r}", flush=True)
    for number in range(runs):
        run = Run(chance.uniform(0, 0.15))
        wrong = run.check()
        count += len(run.opened)
        if wrong is not None:
            print(f"run {number}: {wrong}", flush=True)
    gc.collect()
    print(f"{runs} runs, {count} connections")


if __name__ == "__main__":
    main()
