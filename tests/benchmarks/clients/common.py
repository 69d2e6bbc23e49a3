"""What every client program shares: the command line, the loop of echoes, and the result.

The loop is the same for all of them, and what a client does beside it costs nothing worth mentioning: one comparison
and two readings of the clock for each message.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from array import array
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

__all__ = ["Echoes", "Settings", "run"]


class Echoes(Protocol):
    """A connection of any client."""

    @property
    def send(self) -> Callable[[str | bytes], Awaitable[None]]: ...
    @property
    def receive(self) -> Callable[[], Awaitable[str | bytes]]: ...


@dataclass(frozen=True)
class Settings:
    """How a client is to run.

    Attributes:
      url: where to.
      connections: how many, each with one message in flight.
      message: what is sent.
      seconds: how long it is measured.
      warmup: how long it runs before that.
      pid: the process of the server.
    """

    url: str
    connections: int
    message: str | bytes
    seconds: float
    warmup: float
    pid: int

    @classmethod
    def read(cls) -> Settings:
        """The command line, which is the same for all of them."""
        parser = argparse.ArgumentParser()
        parser.add_argument("--port", type=int, required=True)
        parser.add_argument("--pid", type=int, required=True)
        parser.add_argument("--connections", type=int, default=1)
        parser.add_argument("--size", type=int, default=64)
        parser.add_argument("--binary", action="store_true")
        parser.add_argument("--seconds", type=float, default=1)
        parser.add_argument("--warmup", type=float, default=0.2)
        given = parser.parse_args()
        message = os.urandom(given.size) if given.binary else ("0123456789abcdef" * given.size)[: given.size]
        url = f"ws://127.0.0.1:{given.port}/"
        return cls(url, given.connections, message, given.seconds, given.warmup, given.pid)


class _Window:
    """The time that counts."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.latencies = array("q")
        self.is_open = False
        self._began = (0, 0, 0)

    def _now(self) -> tuple[int, int, int]:
        return time.perf_counter_ns(), time.process_time_ns(), _cpu_time_of(self._pid)

    def open(self) -> None:
        self.is_open = True
        self._began = self._now()

    def close(self) -> dict[str, float]:
        """The result, with the names that the load generator has: what is measured here is called the server there."""
        self.is_open = False
        wall, own, other = (now - began for now, began in zip(self._now(), self._began, strict=True))
        latencies = sorted(self.latencies)
        count = len(latencies)
        return {
            "count": count,
            "seconds": wall / 1e9,
            "rate": count * 1e9 / wall,
            "p50_us": latencies[count // 2] / 1000,
            "p99_us": latencies[count * 99 // 100] / 1000,
            "max_us": latencies[-1] / 1000,
            "client_cpu": other / wall,
            "server_cpu": own / wall,
            "server_us": own / count / 1000,
        }


def _cpu_time_of(pid: int) -> int:
    """Nanoseconds of CPU time of a process with one thread."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def run(connect: Callable[[Settings], AbstractAsyncContextManager[Echoes]]) -> None:
    """Measure a client and print the result.

    Args:
      connect: opens one connection.
    """
    settings = Settings.read()
    print(json.dumps(trio.run(_measure, settings, connect)), flush=True)


async def _measure(
    settings: Settings, connect: Callable[[Settings], AbstractAsyncContextManager[Echoes]]
) -> dict[str, float]:
    window = _Window(settings.pid)

    async def echo(*, task_status: trio.TaskStatus[None]) -> None:
        async with connect(settings) as conn:
            send, receive, message, clock = conn.send, conn.receive, settings.message, time.perf_counter_ns
            task_status.started()
            while True:
                began = clock()
                await send(message)
                if await receive() != message:
                    raise RuntimeError("what came back is not what was sent")
                if window.is_open:
                    window.latencies.append(clock() - began)

    async with trio.open_nursery() as nursery:
        for _ in range(settings.connections):
            await nursery.start(echo)
        await trio.sleep(settings.warmup)
        window.open()
        await trio.sleep(settings.seconds)
        result = window.close()
        nursery.cancel_scope.cancel()
    return result
