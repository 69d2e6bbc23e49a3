"""Drive the echo example with the fuzzing client of Autobahn|Testsuite and judge every case.

    python tests/autobahn/run.py --cases 1-7,9,10 --style async
    python tests/autobahn/run.py --cases 7.1,7.5.1 --cpu 0 -- --ping-interval 5

What follows `--` goes to the server as it is. The exit status is 0 when every chosen case was run and passed, 1 when
not, 2 when the run could not be made. The reports of the testsuite (`index.html`) and the output of both processes stay
in the directory of `--out`.

The testsuite itself is trusted with nothing but running the cases: it exits with 0 whatever it found, also when the
server died half-way. So the cases are counted here against the list in `caselist.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

sys.path.append(str(Path(__file__).resolve().parents[1]))  # a script is told of its own folder only

from autobahn import caselist, install
from support.processes import ProcessError, port_of, started, status, tail, unmeasured, wait

__all__ = ["STYLES", "Plan", "Result", "Verdict", "fuzz", "judge"]

ROOT = Path(__file__).resolve().parents[2]
STYLES = ("session", "async", "sync", "class")

_AGENT = "server"
_START_TIMEOUT = 20  # seconds until the server listens
_STOP_TIMEOUT = 15  # seconds from SIGTERM to the end; the server's own grace is 10
# The testsuite's own patience (1 s for a Close or the end of TCP) is too little for a machine under load.
_CLIENT_OPTIONS = {"openHandshakeTimeout": 30, "closeHandshakeTimeout": 5, "serverConnectionDropTimeout": 5}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Attributes:
      cases: identifiers, as `caselist.resolve` returns them.
      style: the handler style of the echo server.
      out: where reports and logs go; what an earlier run left there is removed.
      cpu: the one processor that both processes may use, or `None` for all.
      strict: whether NON-STRICT is a failure.
      timeout: seconds for all cases together.
      server: the script that is the server.
      server_args: more arguments for it.
    """

    cases: tuple[str, ...]
    style: str
    out: Path
    cpu: int | None = None
    strict: bool = True
    timeout: float = 300
    server: Path = ROOT / "examples" / "echo" / "server.py"
    server_args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the testsuite says of one case, and what that means here."""

    case: str
    behaviour: str
    closing: str
    seconds: float
    outcome: Literal["ok", "informational", "non-strict", "bad", "missing"]


@dataclass(frozen=True, slots=True)
class Result:
    """The verdicts on all cases of a plan, and everything that keeps the run from being a success."""

    plan: Plan
    verdicts: tuple[Verdict, ...]
    seconds: float
    problems: list[str] = field(default_factory=list[str])

    def table(self) -> str:
        """One line for each section and one for the sum."""
        header = ("section", "cases", "ok", "informational", "non-strict", "bad", "missing", "seconds")
        lines = ["  ".join(header)]
        for number in sorted({caselist.section(verdict.case) for verdict in self.verdicts}):
            part = [verdict for verdict in self.verdicts if caselist.section(verdict.case) == number]
            lines.append(_row(str(number), header, part, sum(verdict.seconds for verdict in part)))
        lines.append(_row("all", header, self.verdicts, self.seconds))
        return "\n".join(lines)


def _row(name: str, header: Sequence[str], verdicts: Sequence[Verdict], seconds: float) -> str:
    counts = [sum(verdict.outcome == outcome for verdict in verdicts) for outcome in header[2:-1]]
    cells = [name, str(len(verdicts)), *map(str, counts), f"{seconds:.1f}"]
    return "  ".join(cell.rjust(len(title)) for cell, title in zip(cells, header, strict=True))


def fuzz(plan: Plan) -> Result:
    """Start the server, run the cases against it, stop it, and judge the report.

    Both processes have ended when this returns or raises, also when it is interrupted.

    Raises:
      ProcessError: the server does not start, or the testsuite is not finished within the timeout.
      install.NotAvailable: the testsuite is not installed and cannot be.
    """
    python27 = install.ensure()
    reports = plan.out / "reports"
    shutil.rmtree(reports, ignore_errors=True)  # the testsuite leaves an old report in place when it fails
    plan.out.mkdir(parents=True, exist_ok=True)
    server_log, client_log = plan.out / "server.log", plan.out / "wstest.log"
    command = _pinned(_server_command(plan), plan.cpu)
    with started(command, server_log, environment=_server_environment(), folder=plan.out) as server:
        url = f"ws://127.0.0.1:{port_of(server, server_log, _START_TIMEOUT)}/"
        spec = plan.out / "spec.json"
        spec.write_text(json.dumps(_spec(plan, url, reports), indent=2))
        command = _pinned(_client_command(python27, spec), plan.cpu)
        began = time.monotonic()
        with started(command, client_log, environment=install.environment(), folder=plan.out) as client:
            _wait_for_client(client, plan, client_log)
        seconds = time.monotonic() - began
        problems = _stop_server(server)
    log = server_log.read_text(errors="replace")
    if "Traceback (most recent call last)" in log:
        problems.append(f"the server logged a traceback:\n{log[-4000:]}")
    verdicts = judge(plan.cases, _read_report(reports / "index.json"))
    problems += [_complaint(verdict, reports) for verdict in verdicts if _is_problem(verdict, plan.strict)]
    return Result(plan, verdicts, seconds, problems)


def judge(cases: Sequence[str], report: Mapping[str, Mapping[str, Any]]) -> tuple[Verdict, ...]:
    """The verdict on each of `cases`, whether or not it is in `report` (the part of index.json on one server)."""
    return tuple(_judge_case(case, report.get(case)) for case in cases)


def _judge_case(case: str, entry: Mapping[str, Any] | None) -> Verdict:
    if entry is None:
        return Verdict(case, "-", "-", 0, "missing")
    behaviour, closing = str(entry["behavior"]), str(entry["behaviorClose"])
    outcome: Literal["ok", "informational", "non-strict", "bad"] = "bad"
    if (behaviour, closing) == ("OK", "OK"):
        outcome = "ok"
    elif (behaviour, closing) == ("NON-STRICT", "OK"):
        outcome = "non-strict"
    elif case in caselist.LEFT_OPEN and {behaviour, closing} <= {"OK", "INFORMATIONAL"}:
        outcome = "informational"
    return Verdict(case, behaviour, closing, entry["duration"] / 1000, outcome)


def _is_problem(verdict: Verdict, strict: bool) -> bool:
    return verdict.outcome in ("bad", "missing") or (strict and verdict.outcome == "non-strict")


def _complaint(verdict: Verdict, reports: Path) -> str:
    if verdict.outcome == "missing":
        return f"case {verdict.case}: not in the report"
    page = reports / f"{_AGENT}_case_{verdict.case.replace('.', '_')}.html"
    return f"case {verdict.case}: behaviour {verdict.behaviour}, closing {verdict.closing}; see {page}"


def _read_report(index: Path) -> Mapping[str, Mapping[str, Any]]:
    if not index.exists():
        return {}
    report: dict[str, dict[str, dict[str, Any]]] = json.loads(index.read_text())
    return report.get(_AGENT, {})


def _spec(plan: Plan, url: str, reports: Path) -> dict[str, Any]:
    return {
        "outdir": str(reports),
        "servers": [{"agent": _AGENT, "url": url}],
        "cases": plan.cases,
        "exclude-cases": [],
        "exclude-agent-cases": {},
        "options": _CLIENT_OPTIONS,
    }


def _server_command(plan: Plan) -> list[str]:
    # Sections 9 and 10 send messages of 16 MiB and messages in 65,536 fragments.
    limits = ("--max-payload", "0", "--max-fragments", "0")
    address = ("--host", "127.0.0.1", "--port", "0")
    return [sys.executable, "-u", str(plan.server), *address, "--style", plan.style, *limits, *plan.server_args]


def _server_environment() -> dict[str, str]:
    """The server runs the package of this checkout, whether or not one is installed."""
    return {**unmeasured(), "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}


def _client_command(python27: Path, spec: Path) -> list[str]:
    return [str(python27), "-u", str(python27.with_name("wstest")), "--mode", "fuzzingclient", "--spec", str(spec)]


def _pinned(command: list[str], cpu: int | None) -> list[str]:
    return command if cpu is None else ["taskset", "--cpu-list", str(cpu), *command]


def _wait_for_client(client: subprocess.Popen[bytes], plan: Plan, log: Path) -> None:
    ended = wait(client, plan.timeout)
    if ended is None:
        raise ProcessError(f"the cases were not done within {plan.timeout:g} s{tail(log)}")
    if ended != 0:
        raise ProcessError(f"the testsuite ended with status {ended}{tail(log)}")


def _stop_server(server: subprocess.Popen[bytes]) -> list[str]:
    ended = status(server)
    if ended is not None:
        return [f"the server ended by itself with status {ended}"]
    server.terminate()
    ended = wait(server, _STOP_TIMEOUT)
    if ended is None:
        return [f"the server was still running {_STOP_TIMEOUT} s after SIGTERM"]
    return [] if ended in (0, -signal.SIGTERM) else [f"the server ended with status {ended} after SIGTERM"]


def _parse(arguments: Sequence[str]) -> Plan:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases", default="1-7,10", help="sections, ranges, subsections or cases (default: %(default)s)"
    )
    parser.add_argument("--style", choices=STYLES, default="async", help="default: %(default)s")
    parser.add_argument("--strict", action=argparse.BooleanOptionalAction, default=True, help="NON-STRICT is a failure")
    parser.add_argument("--cpu", type=int, metavar="N", help="pin both processes to processor N, which provokes races")
    parser.add_argument("--timeout", type=float, default=300, metavar="S", help="for all cases (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", default=ROOT / ".autobahn", help="default: %(default)s")
    parser.add_argument("--server", type=Path, metavar="FILE", default=ROOT / "examples" / "echo" / "server.py")
    parser.add_argument("server_args", nargs="*", metavar="ARG", help="for the server, after --")
    given = parser.parse_args(arguments)
    try:
        cases = caselist.resolve(given.cases)
    except ValueError as error:
        parser.error(str(error))
    return Plan(
        cases,
        given.style,
        given.out.resolve(),
        given.cpu,
        given.strict,
        given.timeout,
        given.server.resolve(),
        tuple(given.server_args),
    )


def _terminated(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)  # an exception, so that the children are ended on the way out


def main() -> int:
    """Run what the command line says and print a table."""
    plan = _parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, _terminated)
    try:
        result = fuzz(plan)
    except (ProcessError, install.NotAvailable) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    print(result.table())
    for problem in result.problems:
        print(problem)
    print(f"style {plan.style}: {'PASSED' if not result.problems else 'FAILED'}; reports in {plan.out / 'reports'}")
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
