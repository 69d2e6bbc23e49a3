"""The benchmarks as a test: does everything run, and has nothing collapsed?"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks.fleet import LoadGenerator
from benchmarks.workloads import CEILING, ROOT, find

pytestmark = pytest.mark.benchmark

ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 section 1.3, for the key that the load generator sends


def test_smoke(tmp_path: Path) -> None:
    """The benchmarks run from the command line and reach half of each target."""
    file = tmp_path / "results.json"
    command = [sys.executable, "-m", "tests.benchmarks", "--smoke", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(workload["runs"] or workload["left_out"] for workload in json.loads(file.read_text())["workloads"])


def answer_wrongly(listener: socket.socket) -> None:
    """Shake hands with one peer, then answer its first message with other bytes."""
    connection, _ = listener.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(f"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n".encode())
        connection.recv(4096)
        connection.sendall(b"\x81\x40" + b"?" * 64)


def test_wrong_bytes_are_noticed() -> None:
    """An answer that is not the echo is an error and not a result."""
    load = LoadGenerator.build()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_wrongly, args=(listener,))
        thread.start()
        command = [str(load.program), "echo", f"--port={listener.getsockname()[1]}", "--seconds=0.1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        thread.join()
    assert done.returncode == 1
    assert "byte 2 of the stream is 3f and not" in done.stderr


def test_load_generator_is_ahead() -> None:
    """Against the trivial server the load generator spends less time for a message than any server in Python could."""
    load = LoadGenerator.build()
    workload = find("pipelined")
    with load.serving(CEILING) as running:
        result = load.run((*workload.load, "--seconds=0.3"), CEILING, running, tls=False)
    assert result["client_cpu"] / result["rate"] < 1e-6
