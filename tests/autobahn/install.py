"""Install Autobahn|Testsuite, which runs on Python 2.7 only, into an environment of its own.

    python tests/autobahn/install.py

Nothing is installed into the Python that runs this script, nor into the base Python 2.7. The environment is made in
`~/.cache/trio-crowws/autobahn`, or where `AUTOBAHN_VENV` says; there it is used as it is when it has a `wstest`. Python
2.7 is looked for in `AUTOBAHN_PYTHON27`, on PATH, and among the versions of pyenv. One of its packages, wsaccel, is
compiled, so a C compiler is needed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["NotAvailable", "ensure", "environment"]

# The last release that makes environments for Python 2.7.
_VIRTUALENV = "virtualenv==20.21.1"
_TESTSUITE = "autobahntestsuite==25.10.1"
_CONSTRAINTS = Path(__file__).with_name("constraints.txt")
_WHICH_PYTHON = "import sys; sys.stdout.write('%d.%d %s' % (sys.version_info[:2] + (sys.executable,)))"
_STEP_TIMEOUT = 300  # seconds; the slowest step, which compiles, takes about 30


class NotAvailable(Exception):
    """The testsuite is not installed and cannot be; the text says why."""


def ensure() -> Path:
    """Return the interpreter of the environment with the testsuite; make the environment where it is missing.

    Raises:
      NotAvailable: there is no Python 2.7, or the installation failed.
    """
    if sys.platform == "win32":
        raise NotAvailable("the runner needs process groups, which Windows has not")
    import fcntl  # here, so that this module can be imported where there is no such thing

    given = os.environ.get("AUTOBAHN_VENV")
    directory = Path(given) if given else Path.home() / ".cache" / "trio-crowws" / "autobahn"
    python = directory / "bin" / "python"
    if given and (directory / "bin" / "wstest").exists():
        return python
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_name(directory.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at once: the second waits, then finds it done
        if not _is_complete(directory):
            _install(directory)
    return python


def _is_complete(directory: Path) -> bool:
    marker = directory / "complete"
    return marker.exists() and marker.read_text() == _fingerprint()


def _fingerprint() -> str:
    return hashlib.sha256(f"{_VIRTUALENV} {_TESTSUITE}\n{_CONSTRAINTS.read_text()}".encode()).hexdigest()


def _install(directory: Path) -> None:
    python27 = _find_python27()
    if directory.exists():
        if any(directory.iterdir()) and not (directory / "pyvenv.cfg").exists():
            raise NotAvailable(f"{directory} is not empty and not a virtual environment, so it is left alone")
        shutil.rmtree(directory)
    with tempfile.TemporaryDirectory(prefix="trio-crowws-virtualenv-") as temporary:
        _step(sys.executable, "-m", "venv", temporary)
        _step(f"{temporary}/bin/python", "-m", "pip", "install", "--quiet", _VIRTUALENV)
        _step(f"{temporary}/bin/python", "-m", "virtualenv", "--quiet", "--python", python27, str(directory))
    pip = (str(directory / "bin" / "python"), "-m", "pip", "--no-python-version-warning", "install", "--quiet")
    _step(*pip, "--constraint", str(_CONSTRAINTS), _TESTSUITE)
    (directory / "complete").write_text(_fingerprint())


def _find_python27() -> str:
    """The path of an interpreter that says it is 2.7: a name on PATH may be a shim that leads nowhere."""
    for candidate in _candidates():
        try:
            found = subprocess.run(
                [candidate, "-c", _WHICH_PYTHON],
                env=environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        version, _, path = found.stdout.partition(" ")
        if found.returncode == 0 and version == "2.7":
            return path
    raise NotAvailable("no Python 2.7 in AUTOBAHN_PYTHON27, on PATH or under pyenv; Autobahn|Testsuite needs one")


def _candidates() -> Iterator[str]:
    given = os.environ.get("AUTOBAHN_PYTHON27")
    if given and shutil.which(given):
        yield given
    on_path = shutil.which("python2.7")
    if on_path:
        yield on_path
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from (str(path) for path in sorted(pyenv.glob("versions/2.7*/bin/python2.7"), reverse=True))


def environment() -> dict[str, str]:
    """The environment variables for another interpreter: without the `PYTHON*` ones, which are meant for this one."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def _step(*command: str) -> None:
    try:
        done = subprocess.run(
            command,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_STEP_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NotAvailable(f"not finished within {_STEP_TIMEOUT} s: {' '.join(command)}") from error
    if done.returncode != 0:
        raise NotAvailable(f"exit status {done.returncode}: {' '.join(command)}\n{done.stdout}")


def main() -> int:
    """Install and print where; exit status 1 with the reason where that cannot be done."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    try:
        print(ensure().parent.parent)
    except NotAvailable as reason:
        print(f"install.py: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
