"""The echo example passes the fuzzing client of Autobahn|Testsuite, strictly, whatever the style of its handler."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from autobahn import caselist, run
from support.processes import ProcessError
from support.require import program

pytestmark = [pytest.mark.autobahn, pytest.mark.usefixtures("testsuite")]

PROTOCOL = "1-7,10"
WITH_SIZES = "1-7,9,10"


def assert_passes(patterns: str, style: str, out: Path, *more: str, cpu: int | None = None) -> None:
    result = run.fuzz(run.Plan(caselist.resolve(patterns), style, out, cpu, server_args=more))
    summary = "\n".join((result.table(), *result.problems))
    print(summary)
    assert not result.problems, summary


def plan(directory: Path, body: str, cases: Sequence[str]) -> run.Plan:
    script = directory / "server.py"
    script.write_text(body)
    return run.Plan(tuple(cases), "async", directory / "out", timeout=60, server=script)


@pytest.mark.parametrize(
    ("style", "patterns"),
    [("async", WITH_SIZES), ("session", PROTOCOL), ("sync", PROTOCOL), ("class", PROTOCOL)],
    ids=["async", "session", "sync", "class"],
)
def test_every_case_passes_in_each_style(style: str, patterns: str, tmp_path: Path) -> None:
    """Every case is OK and closed OK, but the three that RFC 6455 leaves open."""
    assert_passes(patterns, style, tmp_path)


@pytest.mark.parametrize(
    ("patterns", "style", "more"),
    [(caselist.SMALL_COMPRESSION, "async", ()), (caselist.SMALL_NEGOTIATION, "sync", ("--context-takeover",))],
    ids=["12", "13"],
)
def test_compression_passes(patterns: str, style: str, more: tuple[str, ...], tmp_path: Path) -> None:
    """Compressed messages, and everything that a client may offer, are OK and closed OK."""
    assert_passes(patterns, style, tmp_path, "--compression", *more)


def test_every_case_passes_on_one_processor(tmp_path: Path) -> None:
    """The order of events that one shared processor brings about changes nothing."""
    program("taskset", package="util-linux")
    assert_passes(PROTOCOL, "async", tmp_path, cpu=0)


def test_the_list_of_cases_is_that_of_the_testsuite(testsuite: Path) -> None:
    """The cases that a run expects are the ones that the installed testsuite has."""
    script = (
        "from autobahntestsuite import case, caseset\n"
        "cases = caseset.CaseSet(case.CaseSetname, case.CaseBasename, case.Cases, case.CaseCategories,"
        " case.CaseSubCategories)\n"
        "print(' '.join(cases.caseClasstoId(each) for each in case.Cases))\n"
    )
    listed = subprocess.run([testsuite, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert tuple(listed.stdout.split()) == caselist.ALL_CASES


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("import sys; print('sorry'); sys.exit(4)", "ended with status 4 before it listened.*\nsorry"),
        ("", "ended with status 0 before it listened; it printed nothing"),
    ],
)
def test_a_server_that_does_not_start_is_an_error(tmp_path: Path, body: str, complaint: str) -> None:
    """A server that ends before it listens ends the run with what it printed."""
    with pytest.raises(ProcessError, match=complaint):
        run.fuzz(plan(tmp_path, body, ("1.1.1",)))


def test_a_server_that_is_no_websocket_server_fails_every_case(tmp_path: Path) -> None:
    """The run goes to its end, and each case counts as bad or missing."""
    body = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}/", flush=True)
while True:
    connection, _ = listener.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 404 Not Found\\r\\nContent-Length: 0\\r\\n\\r\\n")
"""
    result = run.fuzz(plan(tmp_path, body, ("1.1.1", "1.1.2")))
    assert len(result.problems) == 2


def test_a_server_that_ends_during_the_run_is_reported(tmp_path: Path) -> None:
    """The testsuite reports success then; the runner does not."""
    body = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(f"listening on ws://127.0.0.1:{listener.getsockname()[1]}/", flush=True)
connection, _ = listener.accept()
sys.exit(7)
"""
    result = run.fuzz(plan(tmp_path, body, ("1.1.1", "1.1.2")))
    assert "the server ended by itself with status 7" in result.problems
    assert "case 1.1.2: not in the report" in result.problems
