"""The server that the tests of this folder attack, as a program of its own, so that its memory can be measured.

    python victim.py OPTIONS

The argument is JSON: options of the `App`, with the keywords of `Deflate` as `compression`; `descriptors`, how many the
process may have; and `certificate`, the files of certificate and key, for TLS. `victim` starts it from a test, and
`Victim` reads from the system what it uses.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import resource
import ssl
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from support.processes import port_of, started, status, tail
from support.rawclient import open_raw, plain
from trio_crowws import App, Connection, Deflate, Server

__all__ = ["KIB", "MIB", "OPTIONS", "Victim", "until", "victim"]

KIB = 1024
MIB = 1024 * KIB

PATIENCE = 10
"""Seconds after which what has not ended is taken for lasting."""

OPTIONS: dict[str, Any] = {
    "handshake_timeout": 2,
    "close_timeout": 0.5,
    "callback_timeout": 1,
    "send_timeout": 1,
    "ping_interval": 0.5,
    "ping_timeout": 1,
    "max_payload": 64 * KIB,
    "send_limit": 256 * KIB,
}
"""Deadlines that a test can wait for, and limits that a memory measurement can tell from noise."""


def make_app(*, compression: dict[str, Any] | None = None, **options: Any) -> App:
    app = App(compression=None if compression is None else Deflate(**compression), **options)

    @app.websocket("/echo")
    async def echo(conn: Connection) -> None:
        async for message in conn:
            await conn.send(message)

    @app.websocket("/plain").on_message
    def echo_at_once(conn: Connection, message: str | bytes) -> None:
        conn.send_nowait(message)

    @app.websocket("/deaf")
    async def deaf(conn: Connection) -> None:
        await conn.wait_closed()

    @app.websocket("/goodbye")
    async def goodbye(conn: Connection) -> None:
        await conn.close(4000, "that was it")

    page = b"x" * (4 * MIB)

    @app.http("/page")
    def show(_: object) -> bytes:
        return page

    @app.http("/settle")
    def settle(_: object) -> dict[str, int]:
        """Give back what is free, so that what the system says is what is used."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        return {"connections": len(app.connections), "accepted": app.stats().accepted}

    return app


def main() -> None:
    options = json.loads(sys.argv[1])
    descriptors = options.pop("descriptors", None)
    certificate = options.pop("certificate", None)
    context = None
    if certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*certificate)
    if descriptors is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    logging.basicConfig(level=logging.WARNING)
    app = make_app(**options)

    def announce(server: Server) -> None:
        print(f"listening on 127.0.0.1:{server.port}", flush=True)

    app.run("127.0.0.1", 0, ssl_context=context, on_listening=announce, announce=False)


class Victim:
    """A running server under attack.

    Attributes:
      port: where it listens.
    """

    def __init__(self, port: int, pid: int, log: Path, alive: Callable[[], bool]) -> None:
        self.port = port
        self._pid = pid
        self._log = log
        self._alive = alive

    @property
    def descriptors(self) -> int:
        """How many files and sockets it has open."""
        return sum(1 for _ in Path(f"/proc/{self._pid}/fd").iterdir())

    @property
    def memory(self) -> int:
        """Bytes of memory of its own, as the system counts them."""
        for line in Path(f"/proc/{self._pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Private_Dirty:"):
                return int(line.split()[1]) * KIB
        raise AssertionError("the system does not say how much memory a process has")

    def forget_peak(self) -> int:
        """Let the peak begin anew; the memory that is resident now."""
        Path(f"/proc/{self._pid}/clear_refs").write_text("5")
        return self._status("VmRSS")

    @property
    def peak(self) -> int:
        """The most memory that was resident since."""
        return self._status("VmHWM")

    def _status(self, name: str) -> int:
        return int(Path(f"/proc/{self._pid}/status").read_text().split(f"{name}:")[1].split()[0]) * KIB

    async def settle(self) -> dict[str, int]:
        """Have it give back what is free; the counters of its application."""
        async with open_raw(self.port) as client:
            await client.send(plain("/settle"))
            answer: dict[str, int] = json.loads((await client.refused()).body)
        return answer

    async def wait_quiet(self, descriptors: int) -> None:
        """Wait until it has let go of everything but so many descriptors, and give back the memory."""
        await until(lambda: self.descriptors <= descriptors)
        await self.settle()

    def check(self) -> None:
        """It runs, and it has nothing to complain about but peers that cannot be accepted."""
        assert self._alive(), f"the server has ended{tail(self._log)}"
        bad = [
            line
            for line in self._log.read_text(errors="replace").splitlines()
            if not line.startswith("listening on") and "cannot accept" not in line
        ]
        assert not bad, bad[:40]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what no event tells; the test fails when it takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await trio.sleep(0.02)


@contextmanager
def victim(log: Path, **options: Any) -> Generator[Victim]:
    """Run the server with `OPTIONS`, and with `options` in their place where they differ."""
    command = [sys.executable, __file__, json.dumps({**OPTIONS, **options})]
    root = Path(__file__).parents[2]
    environment = {"PYTHONPATH": f"{root}:{root / 'tests'}", "PYTHONUNBUFFERED": "1", "MALLOC_ARENA_MAX": "1"}
    with started(command, log, environment=environment, folder=root) as process:
        running = Victim(port_of(process, log, 20), process.pid, log, lambda: status(process) is None)
        yield running
        running.check()


if __name__ == "__main__":
    main()
