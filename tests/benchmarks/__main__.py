"""`python -m tests.benchmarks`: this framework and its peers, one processor for the server and one for the load.

All servers of a workload run at the same time, idle but for the one whose turn it is, and they take turns several
times, so that a slow moment of the machine hits all of them. Of several runs the best one counts.

The exit status is 0 when every target that could be measured was reached, 1 when one was missed, 2 when something
failed. With --smoke the targets are half as high, and only CPU time and memory are judged: that is for noticing a
collapse, also on a busy machine, and not for measuring.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from .fleet import HEARTBEAT, BenchmarkError, LoadGenerator, RunningServer, missing
from .report import Result, Table, Verdict, as_json, format_table, judge, plot
from .workloads import CEILING, SERVERS, WORKLOADS, Subject, Workload

DESCRIPTION = (__doc__ or "").partition("\n")[0]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=DESCRIPTION)
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="under three minutes: fewer servers, shorter runs")
    extent.add_argument("--smoke", action="store_true", help="only what the targets need; half as high, by CPU time")
    keys = [workload.key for workload in WORKLOADS]
    parser.add_argument("--workload", action="append", choices=keys, help="only this one; may be repeated")
    names = ", ".join(server.name for server in SERVERS)
    parser.add_argument("--servers", metavar="TEXT,...", help=f"only servers whose name holds one of these: {names}")
    parser.add_argument("--seconds", type=float, help="length of a run")
    parser.add_argument("--rounds", type=int, help="runs of each server")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it")
    return parser.parse_args()


class Benchmark:
    """One call of the program: how long, how often, and which servers."""

    def __init__(self, arguments: argparse.Namespace, load: LoadGenerator) -> None:
        short = arguments.quick or arguments.smoke
        self.seconds: float = arguments.seconds or (0.5 if short else 2.0)
        self.rounds: int = arguments.rounds or (2 if short else 5)
        self._quick: bool = arguments.quick
        self._smoke: bool = arguments.smoke
        self._wanted: list[str] | None = arguments.servers.split(",") if arguments.servers else None
        self._load = load

    def measure(self, workload: Workload) -> Table:
        """Measure one workload."""
        left_out: dict[str, str] = {}
        chosen = [subject for subject in workload.subjects if self._is_wanted(workload, subject)]
        if workload.tls and not self._load.tls:
            return Table(workload, {}, {subject.name: "OpenSSL's headers are not there" for subject in chosen})
        for subject in chosen:
            if module := missing(subject.server):
                left_out[subject.name] = f"{module} is not installed"
        subjects = [subject for subject in chosen if subject.name not in left_out]
        run = self._weigh_all if workload.connections else self._run_clients if workload.clients else self._run_all
        return Table(workload, run(workload, subjects), left_out)

    def _is_wanted(self, workload: Workload, subject: Subject) -> bool:
        if self._wanted is not None:
            return any(text in subject.name for text in self._wanted)
        if self._smoke or (self._quick and workload is not WORKLOADS[0]):
            return subject.name in workload.needed or (self._quick and subject.server.ceiling)
        return True

    def _run_all(self, workload: Workload, subjects: list[Subject]) -> dict[str, list[Result]]:
        runs: dict[str, list[Result]] = {subject.name: [] for subject in subjects}
        seconds = self.seconds * workload.seconds
        with ExitStack() as stack:
            running: dict[str, RunningServer] = {}
            for server in {subject.server.name: subject.server for subject in subjects}.values():
                running[server.name] = stack.enter_context(self._load.serving(server, tls=workload.tls))
            for _ in range(self.rounds):
                for subject in subjects:
                    arguments = (*workload.load, *subject.arguments, f"--seconds={seconds}", "--warmup=0.2")
                    server = subject.server
                    runs[subject.name].append(self._load.run(arguments, server, running[server.name], tls=workload.tls))
        return runs

    def _run_clients(self, workload: Workload, subjects: list[Subject]) -> dict[str, list[Result]]:
        """Clients take turns at one server, which has the processor that is the load generator's otherwise."""
        runs: dict[str, list[Result]] = {subject.name: [] for subject in subjects}
        load = self._load.swapped()
        arguments = (*workload.load, f"--seconds={self.seconds * workload.seconds}", "--warmup=0.2")
        with load.serving(CEILING) as running:
            for _ in range(self.rounds):
                for subject in subjects:
                    runs[subject.name].append(load.run_client(arguments, subject.server, running))
        return runs

    def _weigh_all(self, workload: Workload, subjects: list[Subject]) -> dict[str, list[Result]]:
        """Memory, of a fresh process each; it hardly varies, so once is enough."""
        runs: dict[str, list[Result]] = {}
        for subject in subjects:
            with self._load.serving(subject.server, f"--ping-interval={HEARTBEAT}") as running:
                runs[subject.name] = [self._load.weigh(workload, subject.server, running)]
        return runs


def main() -> int:
    """Measure, print, write; the exit status."""
    arguments = parse_arguments()
    began = time.monotonic()
    tables: list[Table] = []
    verdicts: list[list[Verdict]] = []
    try:
        load = LoadGenerator.build()
        if load.own_processor is None:
            print("there is only one processor: server and load generator share it, so the ratios are too small")
        benchmark = Benchmark(arguments, load)
        for workload in WORKLOADS:
            if arguments.workload is None or workload.key in arguments.workload:
                tables.append(benchmark.measure(workload))
                verdicts.append(judge(tables[-1], loosen=2 if arguments.smoke else 1))
                print(format_table(tables[-1], verdicts[-1]), flush=True)
    except BenchmarkError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 2
    settings = {"seconds": benchmark.seconds, "rounds": benchmark.rounds, "arguments": sys.argv[1:]}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(as_json(tables, verdicts, settings), indent=1) + "\n")
    if arguments.plot is not None:
        plot([table for table in tables if table.runs], arguments.plot)
    judged = [verdict for each in verdicts for verdict in each if verdict.judged is not None]
    missed = [verdict for verdict in judged if verdict.missed]
    print(f"\n{len(judged) - len(missed)} of {len(judged)} targets reached, {time.monotonic() - began:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
