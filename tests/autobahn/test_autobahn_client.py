"""The client passes the fuzzing server of Autobahn|Testsuite, strictly."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from autobahn import caselist, install
from autobahn.run import Verdict, judge
from support.processes import started, status, tail, unmeasured, wait

pytestmark = [pytest.mark.autobahn, pytest.mark.usefixtures("testsuite")]

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "tests" / "autobahn" / "client.py"
AGENT = "trio_crowws & co"
SOME = ("1-7,9,10", caselist.SMALL_COMPRESSION, caselist.SMALL_NEGOTIATION)
# `.ci/run --all` names all of the 517 cases.
PATTERNS = [os.environ["AUTOBAHN_CLIENT"]] if "AUTOBAHN_CLIENT" in os.environ else SOME


def run_client(
    testsuite: Path, cases: Sequence[str], out: Path, timeout: float
) -> tuple[int | None, str, list[Verdict]]:
    """Start the fuzzing server, run the client, and judge the report: status, output and verdicts."""
    port = free_port()
    url = f"ws://127.0.0.1:{port}"
    spec = out / "spec.json"
    options = {"openHandshakeTimeout": 30, "closeHandshakeTimeout": 5}
    spec.write_text(json.dumps({"url": url, "outdir": str(out / "reports"), "cases": cases, "options": options}))
    server_log, client_log = out / "wstest.log", out / "client.log"
    wstest = [str(testsuite), "-u", str(testsuite.with_name("wstest"))]
    command = [*wstest, "--mode", "fuzzingserver", "--webport", "0", "--spec", str(spec)]
    with started(command, server_log, environment=install.environment(), folder=out) as server:
        wait_for_port(server, port, server_log)
        command = [sys.executable, str(CLIENT), f"{url}/", AGENT]
        with started(command, client_log, environment=unmeasured(), folder=out) as client:
            ended = wait(client, timeout)
    index = out / "reports" / "index.json"
    report = json.loads(index.read_text()).get(AGENT, {}) if index.exists() else {}
    return ended, client_log.read_text(), list(judge(cases, report))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wait_for_port(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert status(server) is None, tail(log)
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"nobody listens{tail(log)}")


@pytest.mark.parametrize(
    "patterns",
    [os.environ["AUTOBAHN_CLIENT"]]
    if "AUTOBAHN_CLIENT" in os.environ
    else ["1-7,9,10", caselist.SMALL_COMPRESSION, caselist.SMALL_NEGOTIATION],
    ids=lambda patterns: str(patterns)[:9],
)
def test_every_case_passes(testsuite: Path, tmp_path: Path, patterns: str) -> None:
    """Every case is OK and closed OK, but the three that RFC 6455 leaves open."""
    cases = caselist.resolve(patterns)
    ended, output, verdicts = run_client(testsuite, cases, tmp_path, timeout=float(os.environ.get("PATIENCE", "300")))
    assert ended == 0, output
    assert f"{len(cases)} cases were run" in output
    assert "Traceback" not in output
    assert not [verdict for verdict in verdicts if verdict.outcome not in ("ok", "informational")]


def test_nobody_to_talk_to(tmp_path: Path) -> None:
    """The client says so in one line, and its exit status is 1."""
    result = subprocess.run(
        [sys.executable, str(CLIENT), f"ws://127.0.0.1:{free_port()}", "me"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ},
        cwd=tmp_path,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("client.py: ConnectFailed: cannot connect to 127.0.0.1:")
    assert len(result.stderr.splitlines()) == 1
