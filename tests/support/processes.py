"""Servers and tools as child processes: each in a process group of its own, its output in a file, none left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["ProcessError", "port_of", "started", "status", "tail", "unmeasured", "wait"]

_LISTENING = re.compile(r"listening on .*:(\d+)\D*\n")


class ProcessError(Exception):
    """A process did not start, or ended too early or too late; the text ends with what it printed."""


def unmeasured() -> dict[str, str]:
    """The environment for a process that coverage does not look at, where time counts and other tests reach as much."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


@contextmanager
def started(
    command: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Generator[subprocess.Popen[bytes], None, None]:
    """Run `command` with its output in `log`; when the block ends, whatever is left of its process group is killed.

    In the block use `status` and `wait` of this module, not the methods of the process: they leave the ended process to
    be waited for, so that its number still belongs to its group when the group is killed.

    Raises:
      ProcessError: the program is not there.
    """
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=folder,
                start_new_session=True,
            )
        except OSError as error:
            raise ProcessError(f"cannot start {command[0]}: {error}") from error
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def status(process: subprocess.Popen[bytes]) -> int | None:
    """The exit status (negative: the signal), or `None` while it runs."""
    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def wait(process: subprocess.Popen[bytes], timeout: float) -> int | None:
    """The exit status, or `None` when it still runs after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while (ended := status(process)) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return ended


def port_of(server: subprocess.Popen[bytes], log: Path, timeout: float) -> int:
    """The port in the line `listening on ...`, once `server` has printed it.

    Raises:
      ProcessError: the server ended, or did not listen within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        ended = status(server)  # asked before the file is read, so that nothing of what it printed is missed
        found = _LISTENING.search(log.read_text(errors="replace"))
        if found:
            return int(found[1])
        if ended is not None:
            raise ProcessError(f"the server ended with status {ended} before it listened{tail(log)}")
        time.sleep(0.05)
    raise ProcessError(f"the server did not print 'listening on ...' within {timeout:g} s{tail(log)}")


def tail(log: Path, lines: int = 15) -> str:
    """The end of `log`, to be added to a sentence."""
    last = log.read_text(errors="replace").splitlines()[-lines:]
    return "; the end of its output:\n" + "\n".join(last) if last else "; it printed nothing"
