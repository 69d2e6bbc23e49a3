"""The processes: the load generator, compiled when first needed, and the servers, each pinned to its processor."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .messages import write_messages
from .workloads import ROOT, Server, Workload

__all__ = ["BenchmarkError", "LoadGenerator", "RunningServer", "missing", "pick_processors"]

SOURCES = Path(__file__).parent
START_TIMEOUT = 20.0
HEARTBEAT = 5.0
"""Seconds between pings while memory is measured: short, so that every connection has had one before it is weighed."""

_LISTENING = re.compile(r"listening on .*:(\d+)")


class BenchmarkError(Exception):
    """A server or the load generator failed; the text says what it printed."""


def missing(server: Server) -> str | None:
    """The first module that `server` needs and that is not installed."""
    return next((name for name in server.needs if find_spec(name) is None), None)


def pick_processors() -> tuple[int | None, int | None]:
    """One processor for the server and one for the load generator; `None` where there is only one."""
    available = sorted(os.sched_getaffinity(0))
    return (available[0], available[1]) if len(available) > 1 else (None, None)


def _pin(pid: int, processor: int | None) -> None:
    if processor is not None:
        os.sched_setaffinity(pid, {processor})


class RunningServer:
    """A server that listens.

    Attributes:
      port: where.
      pid: its process.
    """

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pid = pid

    def resident(self) -> int:
        """Its resident memory in bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise BenchmarkError("the server has ended")


@dataclass(frozen=True)
class LoadGenerator:
    """The compiled load generator.

    Attributes:
      program: its path.
      tls: whether it was compiled with OpenSSL.
      certificate: a file with a key and a certificate, where it has TLS.
      server_processor, own_processor: where the two sides run.
    """

    program: Path
    tls: bool
    certificate: Path | None
    server_processor: int | None
    own_processor: int | None

    @classmethod
    def build(cls, processors: tuple[int | None, int | None] | None = None) -> LoadGenerator:
        """Compile it, unless that was done before; with TLS where OpenSSL's headers are.

        Raises:
          BenchmarkError: there is no compiler, or it fails.
        """
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trio_crowws-benchmarks"
        folder.mkdir(parents=True, exist_ok=True)
        source = b"".join((SOURCES / name).read_bytes() for name in ("wire.h", "accept.h", "echoserver.h", "loadgen.c"))
        digest = hashlib.sha256(source).hexdigest()[:16]
        problem = ""
        for tls in (True, False):
            program = folder / f"loadgen-{digest}{'-tls' if tls else ''}"
            problem = "" if program.exists() else _compile(program, tls)
            if not problem:
                certificate = folder / "certificate.pem" if tls else None
                if certificate is not None:
                    subprocess.run([program, "certificate", certificate], check=True)
                return cls(program, tls, certificate, *(processors or pick_processors()))
        raise BenchmarkError(f"cannot compile the load generator: {problem}")

    def run(self, arguments: Sequence[str], server: Server, running: RunningServer, *, tls: bool) -> dict[str, float]:
        """One run against a server; the load generator's result.

        Raises:
          BenchmarkError: it failed, which includes an answer that is not what it must be.
        """
        return _result_of(self._start(arguments, server, running, tls=tls), server)

    def run_client(self, arguments: Sequence[str], client: Server, running: RunningServer) -> dict[str, float]:
        """One run of a client against a running server; its result.

        Raises:
          BenchmarkError: it failed, which includes an answer that is not what it must be.
        """
        command = [*client.command, *arguments, f"--port={running.port}", f"--pid={running.pid}"]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)
        _pin(process.pid, self.own_processor)
        return _result_of(process, client)

    def swapped(self) -> LoadGenerator:
        """The same with the two processors exchanged."""
        return replace(self, server_processor=self.own_processor, own_processor=self.server_processor)

    def weigh(self, workload: Workload, server: Server, running: RunningServer) -> dict[str, float]:
        """Memory of one idle connection, after its first ping if the server has a heartbeat."""
        first = ("echo", "--connections=1", "--seconds=0.1", "--warmup=0")  # so that everything is imported
        self.run(first, server, running, tls=False)
        before = running.resident()
        process = self._start(workload.load, server, running, tls=False)
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise BenchmarkError(f"{server.name}: {process.communicate()[1].strip()}")
            time.sleep(HEARTBEAT + 1)
            after = running.resident()
            output, errors = process.communicate(timeout=60)  # ends its stdin, and so the run
        finally:
            process.kill()
            process.wait()
        if not output:
            raise BenchmarkError(f"{server.name}: {errors.strip()}")
        return {"kib": (after - before) / workload.connections / 1024, "pings": json.loads(output)["pings"]}

    def _start(
        self, arguments: Sequence[str], server: Server, running: RunningServer, *, tls: bool
    ) -> subprocess.Popen[str]:
        command = [
            str(self.program),
            *map(self._with_messages, arguments),
            f"--port={running.port}",
            f"--pid={running.pid}",
        ]
        if server.raw:
            command.append("--raw")
        if tls:
            command.append("--tls")
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        _pin(process.pid, self.own_processor)
        return process

    def _with_messages(self, argument: str) -> str:
        """`--deflate=SIZE` as `--deflate=FILE`, with messages that were of this size before they were compressed."""
        name, _, size = argument.partition("=")
        if name != "--deflate":
            return argument
        path = self.program.with_name(f"messages-{size}")
        if not path.exists():
            write_messages(path, int(size))
        return f"{name}={path}"

    @contextmanager
    def serving(self, server: Server, *more: str, tls: bool = False) -> Generator[RunningServer, None, None]:
        """Start `server`, wait until it listens, and stop it in the end.

        Raises:
          BenchmarkError: it does not start.
        """
        command = [part.format(loadgen=self.program) for part in server.command]
        if tls:
            option = "--cert" if server.ceiling else "--certfile"
            command += [option, str(self.certificate)]
        if server.heartbeat:
            command += more
        with ExitStack() as stack:
            log = stack.enter_context(tempfile.NamedTemporaryFile())
            process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.kill)
            _pin(process.pid, self.server_processor)
            yield RunningServer(_wait_for_port(server, process, Path(log.name)), process.pid)


def _result_of(process: subprocess.Popen[str], server: Server) -> dict[str, float]:
    """What a run has printed, when it has ended."""
    try:
        output, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"{server.name}: the run did not end") from None
    finally:
        process.kill()
        process.wait()
    if not output:
        raise BenchmarkError(f"{server.name}: {errors.strip()}")
    result: dict[str, float] = json.loads(output.splitlines()[0])
    return result


def _wait_for_port(server: Server, process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        printed = log.read_text(errors="replace")
        if found := _LISTENING.search(printed):
            return int(found[1])
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise BenchmarkError(f"{server.name} does not listen: {log.read_text(errors='replace')[-2000:]}")


def _compile(program: Path, tls: bool) -> str:
    """Compile into a file of its own name first, so that nobody ever runs half a program; what went wrong, or ""."""
    fresh = program.with_suffix(f".{os.getpid()}")
    command: list[Any] = [os.environ.get("CC", "cc"), "-O2", "-o", fresh, SOURCES / "loadgen.c"]
    if tls:
        command += ["-DWITH_TLS", "-lssl", "-lcrypto"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    if done.returncode:
        return done.stderr[-2000:]
    fresh.rename(program)
    return ""
