"""From results to a verdict: ratios, the table, JSON and the plot."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .workloads import Target, Workload

__all__ = [
    "Table",
    "Verdict",
    "as_json",
    "best",
    "format_table",
    "judge",
    "limited_by_load_generator",
    "plot",
    "pyplot",
]

Result = dict[str, float]

_LOWER_IS_BETTER = frozenset({"p50_us", "p99_us", "max_us", "server_us", "kib"})
_PACKAGES = ("trio-crowws", "trio", "wsproto", "websockets", "trio-websocket", "aiohttp", "picows", "uvloop", "numpy")

BUSY = 0.95


@dataclass(frozen=True)
class Table:
    """All runs of one workload, by row; and the rows that were left out, with the reason."""

    workload: Workload
    runs: dict[str, list[Result]]
    left_out: dict[str, str] = field(default_factory=dict[str, str])

    def metric(self, row: str, metric: str) -> float | None:
        """The best value of a row; `None` if it was not measured."""
        runs = self.runs.get(row)
        return best(runs, metric) if runs else None


@dataclass(frozen=True)
class Verdict:
    """What became of a target.

    Attributes:
      value: the measured ratio; `None` if a row is missing.
      by_cpu_time: the same ratio from the servers' CPU time, which other programs on the machine disturb less.
      smoke: only what other programs on the machine hardly disturb is judged: CPU time and memory. A rate counts by its
        CPU time; a latency is shown and not judged.
    """

    target: Target
    value: float | None
    by_cpu_time: float | None
    smoke: bool = False

    @property
    def judged(self) -> float | None:
        """The value that decides; `None` if nothing was measured that may."""
        if not self.smoke or self.target.metric == "kib":
            return self.value
        return self.by_cpu_time

    @property
    def missed(self) -> bool:
        """Whether what decides is out of bounds."""
        return self.judged is not None and not self.target.reached(self.judged)

    @property
    def word(self) -> str:
        """The verdict in a word."""
        if self.value is None:
            return "not measured"
        if self.judged is None:
            return "not judged"
        return "MISSED" if self.missed else "reached"


def best(runs: Sequence[Result], metric: str) -> float:
    """The best of several runs: whatever disturbs a run makes it worse, never better."""
    values = [run[metric] for run in runs if metric in run]
    return min(values) if metric in _LOWER_IS_BETTER else max(values)


def judge(table: Table, *, loosen: float = 1) -> list[Verdict]:
    """Compare what was measured with the targets, made easier by the factor `loosen`.

    Targets that were made easier are for noticing a collapse, also on a machine that is busy with something else. Rates
    and latencies say little there, so only CPU time and memory are judged.
    """
    verdicts: list[Verdict] = []
    for target in table.workload.targets:
        value = _ratio(table, target, target.metric)
        by_cpu_time = None
        if target.metric == "rate" and target.other is not None:
            inverse = _ratio(table, target, "server_us")
            by_cpu_time = 1 / inverse if inverse else None
        verdicts.append(Verdict(target.loosened(loosen), value, by_cpu_time, smoke=loosen > 1))
    return verdicts


def _ratio(table: Table, target: Target, metric: str) -> float | None:
    value = table.metric(target.ours, metric)
    if target.other is None or value is None:
        return value
    other = table.metric(target.other, metric)
    return value / other if other else None


def limited_by_load_generator(table: Table) -> list[str]:
    """The rows that say more about the load generator than about the server: it was busy and the server was not."""
    ceilings = {subject.name for subject in table.workload.subjects if subject.server.ceiling}
    return [
        row
        for row, runs in table.runs.items()
        if row not in ceilings
        and (fastest := max(runs, key=lambda run: run.get("rate", 0))).get("client_cpu", 0) > BUSY
        and fastest["server_cpu"] < BUSY
    ]


def format_table(table: Table, verdicts: Sequence[Verdict]) -> str:
    """The table as text."""
    workload = table.workload
    lines = ["", workload.title]
    subject, load = ("client", "server busy") if workload.clients else ("server", "client busy")
    if workload.connections:
        lines.append(f"  {'server':<28}{'KiB each':>12}{'pings':>10}")
        lines += [
            f"  {row:<28}{best(runs, 'kib'):>12.1f}{best(runs, 'pings'):>10,.0f}" for row, runs in table.runs.items()
        ]
    else:
        head = (workload.unit + "/s", "us of CPU", "p50 us", "p99 us", load)
        lines.append(f"  {subject:<28}" + "".join(f"{name:>14}" for name in head))
        for row, runs in table.runs.items():
            fastest = max(runs, key=lambda run: run["rate"])
            cells = [f"{fastest['rate']:,.0f}", f"{best(runs, 'server_us'):,.2f}"]
            cells += [f"{best(runs, 'p50_us'):,.0f}", f"{best(runs, 'p99_us'):,.0f}", f"{fastest['client_cpu']:.0%}"]
            lines.append(f"  {row:<28}" + "".join(f"{cell:>14}" for cell in cells))
    lines += [f"  {row}: left out, {reason}" for row, reason in table.left_out.items()]
    lines += [f"  {row}: the load generator was the limit" for row in limited_by_load_generator(table)]
    for verdict in verdicts:
        value = "" if verdict.value is None else f": {verdict.value:.2f}"
        by_cpu_time = "" if verdict.by_cpu_time is None else f" (by CPU time {verdict.by_cpu_time:.2f})"
        lines.append(f"  {verdict.word:<8} {verdict.target}{value}{by_cpu_time}")
    return "\n".join(lines)


def as_json(tables: Sequence[Table], verdicts: Sequence[Sequence[Verdict]], settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured, with what it was measured on."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processors": os.cpu_count(),
            "system": platform.platform(),
            "python": sys.version.split()[0],
            "packages": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
        },
        "settings": settings,
        "workloads": [
            {
                "key": table.workload.key,
                "title": table.workload.title,
                "unit": table.workload.unit,
                "load": table.workload.load,
                "runs": table.runs,
                "left_out": table.left_out,
                "targets": [
                    asdict(verdict.target)
                    | {"value": verdict.value, "by_cpu_time": verdict.by_cpu_time, "verdict": verdict.word}
                    for verdict in judged
                ],
            }
            for table, judged in zip(tables, verdicts, strict=True)
        ],
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def plot(tables: Sequence[Table], path: Path) -> None:
    """One bar chart for each workload, in one PNG."""
    drawing = pyplot()
    columns = min(2, len(tables))
    height = -(-len(tables) // columns)
    figure, axes = drawing.subplots(height, columns, figsize=(8 * columns, 3.4 * height), squeeze=False)
    for axis in axes.flat[len(tables) :]:
        axis.axis("off")
    for axis, table in zip(axes.flat, tables, strict=False):
        metric = _plotted_metric(table.workload)
        ceilings = {subject.name for subject in table.workload.subjects if subject.server.ceiling}
        rows = [row for row in table.runs if row not in ceilings]
        values = [best(table.runs[row], metric) for row in rows]
        colours = ["#1f6fb4" if row.startswith("crowws") else "#b9bec5" for row in rows]
        bars = axis.barh(rows[::-1], values[::-1], color=colours[::-1])
        axis.bar_label(bars, fmt="{:,.0f}" if max(values) > 100 else "{:,.1f}", padding=3, fontsize=8)
        axis.set_title(f"{table.workload.title}\n{_axis_label(table.workload)}", fontsize=10)
        axis.tick_params(labelsize=8)
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    drawing.close(figure)


def pyplot() -> Any:
    """matplotlib, which takes long to import and is needed for nothing else."""
    import_module("matplotlib").use("Agg")
    return import_module("matplotlib.pyplot")


def _plotted_metric(workload: Workload) -> str:
    return "kib" if workload.connections else "p99_us" if workload.key == "flood" else "rate"


def _axis_label(workload: Workload) -> str:
    label = {"kib": "KiB of each connection, less is better", "p99_us": "p99 in us, less is better"}
    return label.get(_plotted_metric(workload), f"{workload.unit} per second, more is better")
