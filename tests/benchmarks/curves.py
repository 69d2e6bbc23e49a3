"""`python -m tests.benchmarks.curves`: how the cost grows with connections, message size and subscribers.

One workload, one thing that grows, and the CPU time that the server spends on one message (or one delivery) at each
step. CPU time because that is what grows; the rate of a busy server is its inverse.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .fleet import BenchmarkError, LoadGenerator
from .report import best, pyplot
from .workloads import ASYNC, BARE_SEND, BARE_TRIO, PUBLISH, SYNC, Server

ROUNDS = 3
SECONDS = 1.0


@dataclass(frozen=True)
class Curve:
    """One thing that grows.

    Attributes:
      steps: its values.
      load: the load generator's arguments for a value.
      options: more arguments of the servers.
    """

    key: str
    title: str
    x: str
    y: str
    steps: tuple[int, ...]
    servers: tuple[Server, ...]
    load: Callable[[int], tuple[str, ...]]
    options: tuple[str, ...] = ()


CURVES = (
    Curve(
        "connections",
        "echo of 64 B, one message in flight on each connection",
        "connections",
        "us of CPU for a message",
        (1, 4, 16, 64, 256, 1000, 5000),
        (SYNC, ASYNC, BARE_TRIO),
        lambda count: ("echo", f"--connections={count}", "--depth=1", "--size=64"),
    ),
    Curve(
        "size",
        "echo of binary messages, 8 connections x 2 in flight",
        "bytes",
        "us of CPU for a message",
        tuple(1 << bits for bits in range(4, 23, 2)),
        (SYNC, ASYNC, BARE_TRIO),
        lambda size: ("echo", "--connections=8", "--depth=2", f"--size={size}", "--binary"),
        (f"--max-payload={8 << 20}",),
    ),
    Curve(
        "subscribers",
        "64 B published to all",
        "subscribers",
        "us of CPU for a delivery",
        (1, 10, 100, 1000, 5000),
        (PUBLISH, BARE_SEND),
        lambda count: ("publish", f"--connections={count}"),
    ),
)


@dataclass(frozen=True)
class Points:
    """What was measured of a curve: the cost at each step, by server."""

    curve: Curve
    costs: dict[str, list[float]]


def measure(curve: Curve, load: LoadGenerator, rounds: int, seconds: float) -> Points:
    """Measure a curve; the servers take turns at each step."""
    costs: dict[str, list[float]] = {server.name: [] for server in curve.servers}
    with ExitStack() as stack:
        running = {server.name: stack.enter_context(load.serving(server, *curve.options)) for server in curve.servers}
        for step in curve.steps:
            arguments = (*curve.load(step), f"--seconds={seconds}", "--warmup=0.2")
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in running}
            for _ in range(rounds):
                for server in curve.servers:
                    runs[server.name].append(load.run(arguments, server, running[server.name], tls=False))
            for name, results in runs.items():
                costs[name].append(best(results, "server_us"))
    return Points(curve, costs)


def format_points(points: Points) -> str:
    """The measured curve as a Markdown table."""
    names = list(points.costs)
    lines = [f"| {points.curve.x} | " + " | ".join(names) + " |", "|---:" * (len(names) + 1) + "|"]
    for number, step in enumerate(points.curve.steps):
        cells = [f"{points.costs[name][number]:,.1f}" for name in names]
        lines.append(f"| {step:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(measured: Sequence[Points], path: Path) -> None:
    """One chart for each curve, side by side, in one PNG."""
    drawing = pyplot()
    figure, axes = drawing.subplots(1, len(measured), figsize=(5.5 * len(measured), 4), squeeze=False)
    for axis, points in zip(axes.flat, measured, strict=True):
        for name, costs in points.costs.items():
            axis.plot(
                points.curve.steps, costs, marker="o", linewidth=2 if name.startswith("crowws") else 1, label=name
            )
        axis.set(xscale="log", yscale="log", xlabel=points.curve.x, ylabel=points.curve.y)
        axis.set_title(points.curve.title, fontsize=10)
        axis.legend(fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    drawing.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.curves", description=__doc__)
    parser.add_argument("--curve", action="append", choices=[curve.key for curve in CURVES], help="only this one")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    options = parser.parse_args(arguments)
    measured: list[Points] = []
    try:
        load = LoadGenerator.build()
        for curve in CURVES:
            if options.curve is None or curve.key in options.curve:
                measured.append(measure(curve, load, options.rounds, options.seconds))
                print(f"\n{curve.title}: {curve.y}\n\n{format_points(measured[-1])}", flush=True)
    except BenchmarkError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 2
    if options.json is not None:
        rows = [{"key": each.curve.key, "steps": each.curve.steps, "costs": each.costs} for each in measured]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if options.plot is not None:
        plot(measured, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
