"""`keep_connected` against real servers that come and go under load."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import trio

from support.rawclient import until
from trio_crowws import (
    App,
    Backoff,
    Connection,
    LinkPhase,
    LinkState,
    Reject,
    Rejected,
    Server,
    connect,
    keep_connected,
)

RESTARTS = 20
CLIENTS = 25
QUICK = Backoff(initial=0.01, maximum=0.05, spread=0.02)


class Farm:
    """One server at a time on one port, stopped in four ways in turn."""

    def __init__(self) -> None:
        self.app = App(shutdown_grace=1)
        self.app.websocket("/echo", close_timeout=1)(self._echo)
        self.port = 0
        self.opened = self.closed = 0

    async def _echo(self, conn: Connection) -> None:
        self.opened += 1
        try:
            async for message in conn:
                await conn.send(message)
        finally:
            self.closed += 1

    @asynccontextmanager
    async def serving(self, number: int) -> AsyncGenerator[None]:
        """Serve during the block, then stop."""
        async with trio.open_nursery() as nursery:
            server: Server = await nursery.start(self.app.serve, "127.0.0.1", self.port)
            self.port = server.port
            yield
            if number % 4 == 0:
                await server.aclose()
            elif number % 4 == 1:
                await server.drain(grace=0.1, code=1012)
            elif number % 4 == 2:
                server.abort()
            nursery.cancel_scope.cancel()


class Client:
    """One supervised client that sends all the time and counts what comes back."""

    def __init__(self, farm: Farm, number: int) -> None:
        self._farm = farm
        self._number = number
        self.states: list[LinkState] = []
        self.handlers = 0
        self.attempts = 0
        self.echoes = 0
        self.alive = trio.Event()
        self.enough = False

    @asynccontextmanager
    async def _connect(self, url: str, **options: Any) -> AsyncGenerator[Connection]:
        self.attempts += 1
        async with connect(url, **options) as conn:
            yield conn

    async def run(self) -> None:
        await keep_connected(
            self._handle,
            f"ws://127.0.0.1:{self._farm.port}/echo",
            backoff=QUICK,
            on_state=self.states.append,
            rng=random.Random(self._number),
            connect=self._connect,
        )

    async def _handle(self, conn: Connection) -> str:
        self.handlers += 1
        while not self.enough:
            await conn.send(f"{self._number}/{self.echoes}")
            assert await conn.receive() == f"{self._number}/{self.echoes}"
            self.echoes += 1
            self.alive.set()
        return "enough"

    def check(self) -> None:
        """Every attempt became a connection or a wait, and every connection ran the handler."""
        phases = [state.phase for state in self.states]
        assert phases[-1] is LinkPhase.STOPPED
        assert phases[-2] is LinkPhase.CONNECTED
        for before, after in pairwise(phases):
            assert after in FOLLOWERS[before]
        count = Counter(phases)
        assert count[LinkPhase.CONNECTING] == self.attempts == count[LinkPhase.WAITING] + 1
        assert count[LinkPhase.CONNECTED] == self.handlers > RESTARTS


FOLLOWERS = {
    LinkPhase.CONNECTING: {LinkPhase.CONNECTED, LinkPhase.WAITING},
    LinkPhase.CONNECTED: {LinkPhase.WAITING, LinkPhase.STOPPED},
    LinkPhase.WAITING: {LinkPhase.CONNECTING},
}


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def test_twenty_restarts_under_load() -> None:
    """A server that is restarted 20 times under load loses no attempt of any client, no connection, and no task."""
    before = tasks()
    farm = Farm()
    clients = [Client(farm, number) for number in range(CLIENTS)]
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(RESTARTS + 1):
                for client in clients:
                    client.alive = trio.Event()
                async with farm.serving(number):
                    if number == 0:
                        for client in clients:
                            nursery.start_soon(client.run)
                    for client in clients:
                        await client.alive.wait()
                    if number == RESTARTS:
                        for client in clients:
                            client.enough = True
                        await until(lambda: not nursery.child_tasks)
    for client in clients:
        client.check()
    assert farm.opened == farm.closed == sum(client.handlers for client in clients)
    assert tasks() == before


async def test_a_server_that_is_too_busy() -> None:
    """A refusal with Retry-After is waited for, and what is final for the application is raised."""
    app = App()
    refusals = [Reject(503, headers={"Retry-After": "0"}), Reject(429), Reject(404)]

    @app.middleware
    def refuse(request: Any) -> Reject:
        return refusals.pop(0)

    app.websocket("/")(Farm()._echo)
    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(app.serve, "127.0.0.1", 0)
        with pytest.raises(Rejected) as caught, trio.fail_after(5):
            await keep_connected(Farm()._echo, f"ws://127.0.0.1:{server.port}/", backoff=QUICK)
        nursery.cancel_scope.cancel()
    assert caught.value.status == 404
    assert refusals == []


async def test_cancelling_it_tells_the_server() -> None:
    """Cancelled while it is connected, the server gets Close 1001."""
    app = App()
    codes: list[int] = []
    route = app.websocket("/")
    route.on_message(lambda conn, message: None)
    route.on_close(lambda conn, info: codes.append(info.code))
    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(app.serve, "127.0.0.1", 0)

        async def handler(conn: Connection) -> None:
            scope.cancel()
            await conn.receive()

        with trio.CancelScope() as scope:
            await keep_connected(handler, f"ws://127.0.0.1:{server.port}/")
        await server.aclose()
        nursery.cancel_scope.cancel()
    assert codes == [1001]
