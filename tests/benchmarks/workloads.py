"""What is measured: the servers, the workloads, and what must be reached.

Targets are ratios between two rows of one table, because only those mean anything on another machine. Where a target
does not say which style of this framework it is about, it is about `async`, which is the one that most handlers have.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["SERVERS", "WORKLOADS", "Server", "Subject", "Target", "Workload", "find"]

ROOT = Path(__file__).resolve().parents[2]
ECHO = (sys.executable, str(ROOT / "examples/echo/server.py"), "--port", "0")
SCRIPT = (sys.executable, "-m", "tests.benchmarks.servers.{}")


def _script(name: str) -> tuple[str, ...]:
    return tuple(part.format(name) for part in SCRIPT)


@dataclass(frozen=True)
class Server:
    """A program that prints `listening on HOST:PORT` when it is ready.

    Attributes:
      needs: the modules without which it is left out.
      raw: it knows no WebSocket; the bytes that it gets are the same all the same.
      ceiling: it is the trivial server of the load generator, there to show how far that reaches.
      heartbeat: it understands `--ping-interval`.
    """

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    raw: bool = False
    ceiling: bool = False
    heartbeat: bool = True


SESSION, ASYNC, SYNC = (Server(f"crowws {style}", (*ECHO, "--style", style)) for style in ("session", "async", "sync"))
DEFLATE = Server("crowws async, compression", (*ECHO, "--style", "async", "--compression"))
BARE = Server("crowws async, no extras", (*_script("without_numpy"), "--port", "0", "--style", "async"))
PUBLISH = Server("crowws publish", _script("publish_crowws"))
WS_TRIO = Server("websockets.trio", _script("websockets_on_trio"), ("websockets",))
WS_ASYNCIO = Server("websockets asyncio + uvloop", _script("websockets_on_asyncio"), ("websockets", "uvloop"))
TRIO_WEBSOCKET = Server("trio-websocket", _script("trio_websocket_echo"), ("trio_websocket",))
AIOHTTP = Server("aiohttp + uvloop", _script("aiohttp_echo"), ("aiohttp", "uvloop"))
PICOWS = Server("picows + uvloop", _script("picows_on_uvloop"), ("picows", "uvloop"))
BARE_TRIO = Server("bare SocketStream", _script("bare_trio"), raw=True, heartbeat=False)
BARE_SEND = Server("bare socket.send", _script("bare_send"), raw=True, heartbeat=False)
CEILING = Server("trivial C server", ("{loadgen}", "serve"), ceiling=True, heartbeat=False)

# Clients of the trivial server, in the same form: for them the server is the one that makes the load.
CLIENT_SCRIPT = tuple(part.replace(".servers.", ".clients.") for part in SCRIPT)
CLIENT = Server("crowws client", tuple(part.format("crowws") for part in CLIENT_SCRIPT))
BARE_CLIENT = Server("crowws client, no extras", (*CLIENT.command, "--without-numpy"))
WS_CLIENT = Server(
    "websockets.trio client", tuple(part.format("websockets_on_trio") for part in CLIENT_SCRIPT), ("websockets",)
)

STYLES = (SESSION, ASYNC, SYNC)
PEERS = (WS_TRIO, WS_ASYNCIO, TRIO_WEBSOCKET, AIOHTTP, PICOWS)
CLIENTS = (CLIENT, BARE_CLIENT, WS_CLIENT)
SERVERS = (*STYLES, DEFLATE, BARE, PUBLISH, *PEERS, BARE_TRIO, BARE_SEND, CEILING, *CLIENTS)


@dataclass(frozen=True)
class Subject:
    """One row of a table: a server, and what the load generator does differently for it."""

    server: Server
    suffix: str = ""
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How the row is called."""
        return self.server.name + self.suffix


@dataclass(frozen=True)
class Target:
    """A bound on `ours.metric / other.metric`, or on `ours.metric` alone where there is no other."""

    ours: str
    metric: str
    other: str | None = None
    at_least: float | None = None
    at_most: float | None = None

    def __str__(self) -> str:
        sign, bound = (">=", self.at_least) if self.at_least is not None else ("<=", self.at_most)
        unit = {"rate": "", "p99_us": "p99 ", "kib": "KiB "}[self.metric]
        if self.other is None:
            return f"{self.ours}: {unit}{sign} {bound:g}"
        return f"{self.ours}: {unit}{sign} {bound:g} x {self.other}"

    def loosened(self, factor: float) -> Target:
        """The same target, easier by `factor`."""
        return Target(
            self.ours,
            self.metric,
            self.other,
            None if self.at_least is None else self.at_least / factor,
            None if self.at_most is None else self.at_most * factor,
        )

    def reached(self, value: float) -> bool:
        """Whether `value` is within the bound."""
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


@dataclass(frozen=True)
class Workload:
    """One table.

    Attributes:
      key: its name on the command line.
      unit: what is counted.
      load: arguments of the load generator, its mode first.
      seconds: how much longer than the others one run takes.
      tls: over TLS.
      connections: of the memory workload, which is measured in another way.
      clients: the subjects are clients, and the trivial server makes the load.
    """

    key: str
    title: str
    unit: str
    load: tuple[str, ...]
    subjects: tuple[Subject, ...]
    targets: tuple[Target, ...] = field(default=())
    seconds: float = 1.0
    tls: bool = False
    connections: int = 0
    clients: bool = False

    @property
    def needed(self) -> set[str]:
        """The rows without which the targets cannot be judged."""
        return {name for target in self.targets for name in (target.ours, target.other) if name is not None}


def _subjects(*servers: Server) -> tuple[Subject, ...]:
    return tuple(Subject(server) for server in servers)


def _faster(ours: Server, bounds: dict[Server, float]) -> tuple[Target, ...]:
    return tuple(Target(ours.name, "rate", other.name, at_least=bound) for other, bound in bounds.items())


def _echo(connections: int, depth: int = 1, size: int = 64, *more: str) -> tuple[str, ...]:
    return ("echo", f"--connections={connections}", f"--depth={depth}", f"--size={size}", *more)


CALM = " (no flood)"

WORKLOADS = (
    Workload(
        "echo",
        "echo 64 B, 64 connections x 1 in flight",
        "messages",
        _echo(64),
        _subjects(*STYLES, *PEERS, BARE_TRIO, CEILING),
        (
            *_faster(ASYNC, {WS_TRIO: 3.5, BARE_TRIO: 1.3}),
            *_faster(SYNC, {WS_TRIO: 5, BARE_TRIO: 1.8, AIOHTTP: 1.3}),
        ),
    ),
    Workload(
        "many",
        "echo 64 B, 512 connections x 1 in flight",
        "messages",
        _echo(512),
        _subjects(*STYLES, *PEERS, BARE_TRIO, CEILING),
        _faster(SYNC, {PICOWS: 0.9}),
    ),
    Workload(
        "pipelined",
        "echo 64 B, 64 connections x 32 in flight",
        "messages",
        _echo(64, 32),
        _subjects(*STYLES, *PEERS, BARE_TRIO, CEILING),
        _faster(ASYNC, {WS_TRIO: 10, PICOWS: 2}),
    ),
    Workload(
        "latency",
        "echo 64 B, 1 connection x 1 in flight",
        "messages",
        _echo(1),
        _subjects(*STYLES, *PEERS, BARE_TRIO, CEILING),
        (*_faster(ASYNC, {WS_TRIO: 1.5}), Target(ASYNC.name, "p99_us", BARE_TRIO.name, at_most=1.3)),
    ),
    Workload(
        "large",
        "echo 1 MiB binary, 8 connections x 2 in flight",
        "messages",
        _echo(8, 2, 1 << 20, "--binary"),
        _subjects(*STYLES, BARE, *PEERS, BARE_TRIO, CEILING),
        (*_faster(BARE, {WS_TRIO: 1}), *_faster(ASYNC, {WS_TRIO: 1.5})),
        seconds=1.5,
    ),
    Workload(
        "tls",
        "echo 1 KiB JSON text over TLS, 64 connections x 4 in flight",
        "messages",
        _echo(64, 4, 1024),
        _subjects(*STYLES, *PEERS, CEILING),
        _faster(ASYNC, {WS_TRIO: 2}),
        tls=True,
    ),
    Workload(
        "deflate",
        "echo 1 KiB JSON text, compressed, 64 connections x 4 in flight",
        "messages",
        _echo(64, 4, 1024, "--deflate=1024"),
        _subjects(DEFLATE, WS_TRIO, WS_ASYNCIO),
        _faster(DEFLATE, {WS_TRIO: 1.5}),
    ),
    Workload(
        "publish",
        "publish 64 B to 1,000 subscribers",
        "deliveries",
        ("publish", "--connections=1000"),
        _subjects(PUBLISH, WS_TRIO, WS_ASYNCIO, PICOWS, BARE_SEND, CEILING),
        _faster(PUBLISH, {WS_TRIO: 5, BARE_SEND: 0.8}),
    ),
    Workload(
        "handshake",
        "opening handshakes, one at a time",
        "handshakes",
        ("handshake",),
        _subjects(*STYLES, *PEERS, CEILING),
        _faster(ASYNC, {WS_TRIO: 2}),
    ),
    Workload(
        "client",
        "a client's echo 64 B, 64 connections x 1 in flight",
        "messages",
        ("--connections=64", "--size=64"),
        _subjects(*CLIENTS),
        _faster(CLIENT, {WS_CLIENT: 2}),
        clients=True,
    ),
    Workload(
        "client-large",
        "a client's echo 1 MiB binary, 8 connections x 1 in flight",
        "messages",
        ("--connections=8", f"--size={1 << 20}", "--binary"),
        _subjects(*CLIENTS),
        _faster(CLIENT, {WS_CLIENT: 1}),
        seconds=1.5,
        clients=True,
    ),
    Workload(
        "memory",
        "memory of an idle connection, heartbeat on, 5,000 connections",
        "KiB",
        ("idle", "--connections=5000"),
        _subjects(*STYLES, *PEERS),
        (Target(ASYNC.name, "kib", at_most=8), Target(ASYNC.name, "kib", WS_TRIO.name, at_most=0.25)),
        connections=5000,
    ),
    Workload(
        "deflate-memory",
        "memory of an idle connection that has compressed, 2,000 connections",
        "KiB",
        ("idle", "--connections=2000", "--deflate=1024"),
        _subjects(DEFLATE, WS_TRIO, WS_ASYNCIO),
        (Target(DEFLATE.name, "kib", WS_TRIO.name, at_most=0.5),),
        connections=2000,
    ),
    Workload(
        "flood",
        "63 polite connections, with and without one that floods",
        "messages",
        ("echo", "--size=64"),
        tuple(
            Subject(server, suffix, arguments)
            for server in (*STYLES, WS_TRIO, WS_ASYNCIO, AIOHTTP, PICOWS)
            for suffix, arguments in (("", ("--connections=64", "--flood=1")), (CALM, ("--connections=63",)))
        ),
        tuple(Target(style.name, "p99_us", style.name + CALM, at_most=5) for style in STYLES),
    ),
)


def find(key: str) -> Workload:
    """The workload with that key.

    Raises:
      KeyError: there is none.
    """
    return {workload.key: workload for workload in WORKLOADS}[key]
