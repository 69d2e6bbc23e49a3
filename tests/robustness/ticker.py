"""A server that measures how long its loop is busy with peers, as a program of its own.

    python ticker.py [--without-epoll] [CERTIFICATE KEY]

Beside the server a task sleeps again and again for a moment. `/worst` answers with the most CPU time, in milliseconds,
that has passed between two of its turns since that was asked for the last time. CPU time, because the machine may have
other things to do; and without what the garbage collector takes for what was there before.
"""

from __future__ import annotations

import gc
import ssl
import sys
import time
from functools import partial

import trio

from trio_crowws import App, Connection, Deflate, Server, _server
from trio_crowws._transport.engine import Engine


def make_app(worst: list[float]) -> App:
    app = App(compression=Deflate(), control_rate=None, max_fragments=None)

    @app.websocket("/session")
    async def session(conn: Connection) -> None:
        async for _ in conn:
            pass

    @app.websocket("/async").on_message
    async def asynchronous(conn: Connection, message: str | bytes) -> None:
        pass

    @app.websocket("/plain").on_message
    def plain(conn: Connection, message: str | bytes) -> None:
        pass

    @app.http("/worst")
    def show(_: object) -> str:
        seconds, worst[0] = worst[0], 0.0
        return str(1000 * seconds)

    return app


async def tick(worst: list[float]) -> None:
    last = time.process_time()
    while True:
        await trio.sleep(0.002)
        now = time.process_time()
        worst[0] = max(worst[0], now - last)
        last = now


async def main(certificate: list[str]) -> None:
    worst = [0.0]
    context = None
    if certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*certificate)
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[Server]) -> None:
            await make_app(worst).serve("127.0.0.1", 0, ssl_context=context, task_status=task_status)

        server: Server = await nursery.start(serve)
        nursery.start_soon(tick, worst)
        gc.freeze()
        print(f"listening on 127.0.0.1:{server.port}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--without-epoll"]:
        _server.__dict__["Engine"] = partial(Engine, use_epoll=False)
        del sys.argv[1]
    trio.run(main, sys.argv[1:])
