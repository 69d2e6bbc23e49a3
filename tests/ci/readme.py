"""Run the two commands of README.md as they are written there, so that what it promises cannot drift.

    python tests/ci/readme.py example     the first command: it installs the package and starts the chat example
    python tests/ci/readme.py tests       the second command: it installs what the tests need and runs them

Each is the first line of a fenced block, the first and the second block of shell commands in the file. They are run in
the current folder, which should be a fresh copy of the project.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.append(str(Path(__file__).resolve().parents[1]))  # a script is told of its own folder only

from support.processes import ProcessError, port_of, started, tail, wait

__all__ = ["commands"]

_START_TIMEOUT = 300  # seconds; most of it is for the installation
_STOP_TIMEOUT = 20


def commands(readme: str) -> tuple[str, str]:
    """The first lines of the first two shell blocks in `readme`, the text of the file.

    Raises:
      ValueError: they are not the command that starts the chat and the one that runs the tests.
    """
    first_lines = re.findall(r"^```(?:sh|console)\n(?:\$ )?(.*)\n", readme, re.MULTILINE)
    if len(first_lines) < 2 or "examples/chat/server.py" not in first_lines[0] or "pytest" not in first_lines[1]:
        raise ValueError(f"expected the command of the chat and the command of the tests, found {first_lines[:2]}")
    return first_lines[0], first_lines[1]


def run_example(command: str, log: Path) -> None:
    """Start the server with `command`, ask for its health, stop it with SIGTERM, and expect the exit status 0.

    Raises:
      ProcessError: the server did not start or stop as it should.
      OSError: it did not answer.
    """
    with started(["bash", "-c", command], log) as shell:
        port = port_of(shell, log, _START_TIMEOUT)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
            print(f"GET /healthz: {answer.status} {answer.read(200)!r}")
        os.kill(_last_descendant(shell.pid), signal.SIGTERM)
        ended = wait(shell, _STOP_TIMEOUT)
        if ended != 0:
            raise ProcessError(f"after SIGTERM the exit status was {ended}, not 0{tail(log)}")


def _last_descendant(process: int) -> int:
    """The server: the child of the child of ... the shell. The shell itself would not pass a signal on."""
    while children := Path(f"/proc/{process}/task/{process}/children").read_text().split():
        process = int(children[-1])
    return process


def main() -> int:
    """Run the command that is named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("example", "tests"))
    which = parser.parse_args().which
    example, tests = commands(Path("README.md").read_text(encoding="utf-8"))
    print(f"$ {example if which == 'example' else tests}", flush=True)
    if which == "tests":
        os.execvp("bash", ["bash", "-c", tests])
    with TemporaryDirectory(prefix="trio-crowws-readme-") as directory:
        log = Path(directory) / "output"
        try:
            run_example(example, log)
        except (OSError, ProcessError) as error:
            print(f"readme.py: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
