"""`trio-crowws run --reload`, as a process whose files are edited while it runs."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from support.processes import ProcessError, started, status, tail, wait
from support.rawclient import until
from support.require import missing
from trio_crowws._cli import reloading, serving
from trio_crowws._cli.reloading import _names
from trio_crowws.cli import main
from trio_crowws.testing import PeerClosed, shake_hands

ROOT = Path(__file__).parents[2]
PATIENCE = 20

SERVICE = """
from pathlib import Path
from trio_crowws import App
import words

app = App()

@app.websocket("/say")
async def say(conn):
    await conn.send(words.GREETING)
    async for message in conn:
        pass
"""
BLOCKING = SERVICE.replace("        pass", "        import time; time.sleep(60)")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an application of two modules."""
    if importlib.util.find_spec("watchfiles") is None:
        missing("needs watchfiles")
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "service.py").write_text(SERVICE)
    (folder / "words.py").write_text("GREETING = 'one'\n")
    return folder


class Watched:
    """A running `--reload`, and what it prints."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def wait_for(self, pattern: str, count: int = 1) -> list[str]:
        """All that `pattern` has found in the output, once it is there so often."""
        deadline = time.monotonic() + PATIENCE
        while len(found := re.findall(pattern, self.log.read_text(), re.MULTILINE)) < count:
            if status(self.process) is not None or time.monotonic() > deadline:
                raise ProcessError(f"{pattern!r} did not come{tail(self.log)}")
            time.sleep(0.02)
        return [str(each) for each in found]

    def port(self, count: int = 1) -> int:
        """Where the child number `count` listens."""
        return int(self.wait_for(r"^listening on ws://127\.0\.0\.1:(\d+)\n", count)[count - 1])

    def children(self) -> list[int]:
        """The process numbers of the children."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        return [int(each) for listed in tasks.glob("*/children") for each in listed.read_text().split()]


@contextmanager
def watching(folder: Path, *arguments: str) -> Generator[Watched]:
    """`run --reload` in `folder`."""
    log = folder.parent / "log"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-m", "trio_crowws", "run", "service:app", "--port", "0", "--reload", *arguments]
    with started(command, log, environment=environment, folder=folder) as process:
        yield Watched(process, log)


async def greeting(port: int) -> str:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        with trio.fail_after(PATIENCE):
            return str(await (await shake_hands(stream, "/say")).receive())


def is_gone(pid: int) -> bool:
    """Whether a process that is not ours to wait for has ended."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


async def test_an_edit_starts_it_again(folder: Path) -> None:
    """After an edit of any of its modules the application is a new one; peers of the old one get Close 1001."""
    with watching(folder) as watched:
        async with await trio.open_tcp_stream("127.0.0.1", watched.port()) as stream:
            peer = await shake_hands(stream, "/say")
            assert await peer.receive() == "one"
            (folder / "words.py").write_text("GREETING = 'two'\n")
            with trio.fail_after(PATIENCE), pytest.raises(PeerClosed) as caught:
                await peer.receive()
            assert caught.value.close is not None
            assert caught.value.close.code == 1001
        assert await greeting(watched.port(2)) == "two"
        assert watched.wait_for("trio-crowws: words.py changed; starting again\n")


async def test_a_broken_edit_does_not_end_it(folder: Path) -> None:
    """A syntax error is shown, and the next edit is tried."""
    with watching(folder) as watched:
        watched.port()
        (folder / "words.py").write_text("GREETING = 'two\n")
        watched.wait_for("SyntaxError")
        watched.wait_for("trio-crowws: the application has ended with the status 1; waiting for a change\n")
        (folder / "words.py").write_text("GREETING = 'three'\n")
        assert await greeting(watched.port(2)) == "three"


async def test_it_waits_for_an_application_that_is_not_there_yet(folder: Path) -> None:
    """A module that is missing at first is found once it has been written."""
    (folder / "service.py").rename(folder / "service.txt")
    with watching(folder) as watched:
        watched.wait_for("there is no module 'service'")
        watched.wait_for("has ended with the status 2")
        (folder / "service.txt").rename(folder / "service.py")
        assert await greeting(watched.port()) == "one"


def test_other_files_are_not_watched(folder: Path) -> None:
    """A change of what is no Python code changes nothing."""
    with watching(folder) as watched:
        watched.port()
        (folder / "notes.txt").write_text("nothing to see")
        (folder / "words.py").write_text("GREETING = 'two'\n")
        watched.port(2)
        assert len(watched.wait_for("changed; starting again")) == 1
        assert "notes.txt" not in watched.log.read_text()


def test_another_folder(folder: Path, tmp_path: Path) -> None:
    """--reload-dir watches that folder, and not the current one."""
    other = tmp_path / "library"
    other.mkdir()
    with watching(folder, "--reload-dir", str(other)) as watched:
        watched.port()
        (folder / "words.py").write_text("GREETING = 'two'\n")
        (other / "thing.py").write_text("")
        watched.port(2)
        assert watched.wait_for("trio-crowws: (.*) changed; starting again") == [str(other / "thing.py")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_both(folder: Path, number: signal.Signals) -> None:
    """A signal to the parent is passed on: the child closes its connections, and the exit status is 0."""
    with watching(folder) as watched:
        watched.port()
        [child] = watched.children()
        watched.process.send_signal(number)
        assert wait(watched.process, PATIENCE) == 0
        assert is_gone(child)
        assert "Traceback" not in watched.log.read_text()


async def test_ctrl_c_counts_once(folder: Path) -> None:
    """Ctrl-C, which reaches parent and child together, is one signal: peers are closed in good order."""
    with watching(folder) as watched:
        async with await trio.open_tcp_stream("127.0.0.1", watched.port()) as stream:
            peer = await shake_hands(stream, "/say")
            assert await peer.receive() == "one"
            os.killpg(watched.process.pid, signal.SIGINT)
            with trio.fail_after(PATIENCE), pytest.raises(PeerClosed) as caught:
                await peer.receive()
            assert caught.value.close is not None
            assert caught.value.close.code == 1001
        assert wait(watched.process, PATIENCE) == 0


def test_a_signal_while_nothing_runs(folder: Path) -> None:
    """A parent that waits for an edit ends with 0 as well."""
    (folder / "words.py").write_text("1 / 0\n")
    with watching(folder) as watched:
        watched.wait_for("waiting for a change")
        watched.process.send_signal(signal.SIGTERM)
        assert wait(watched.process, PATIENCE) == 0


async def test_a_child_that_blocks_is_killed(folder: Path) -> None:
    """A handler that never lets the loop go does not keep an edit from being tried."""
    (folder / "service.py").write_text(BLOCKING)
    with watching(folder) as watched:
        async with await trio.open_tcp_stream("127.0.0.1", watched.port()) as stream:
            [child] = watched.children()
            peer = await shake_hands(stream, "/say")
            assert await peer.receive() == "one"
            await peer.send("block")
            (folder / "words.py").write_text("GREETING = 'two'\n")
            assert await greeting(watched.port(2)) == "two"
            assert is_gone(child)


async def test_further_signals_do_not_wait(folder: Path) -> None:
    """The second signal aborts the child's connections, and the third kills it."""
    (folder / "service.py").write_text(BLOCKING)
    with watching(folder) as watched:
        async with await trio.open_tcp_stream("127.0.0.1", watched.port()) as stream:
            [child] = watched.children()
            peer = await shake_hands(stream, "/say")
            assert await peer.receive() == "one"
            await peer.send("block")
            for _ in range(3):
                watched.process.send_signal(signal.SIGTERM)
                await trio.sleep(0.1)
            assert wait(watched.process, reloading.STOP_PATIENCE / 2) == 0
        assert is_gone(child)


def test_the_child_does_not_outlive_its_parent(folder: Path) -> None:
    """Even if the parent is killed, the child ends and the port is free."""
    with watching(folder) as watched:
        watched.port()
        [child] = watched.children()
        watched.process.kill()
        assert is_gone(child)


# In this process, with children that are small scripts

SCRIPT = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGINT, signal.SIG_IGN)
if sys.argv[2] == "stubborn":
    signal.signal(signal.SIGTERM, lambda *_: None)
number = len(list(folder.glob("started*")))
(folder / f"started{number}").write_text(" ".join(sys.argv[3:]))
if sys.argv[2] != "brief":
    while True:
        time.sleep(0.05)
"""


class Here:
    """A reloader in this process."""

    def __init__(self, nursery: trio.Nursery, folder: Path, kind: str) -> None:
        self._folder = folder
        command = [sys.executable, "-c", SCRIPT, str(folder), kind]
        self.ended = trio.Event()
        self.reloader = reloading._Reloader(command, "module:app", [folder])
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        await self.reloader.run()
        self.ended.set()

    async def started(self, number: int) -> list[str]:
        """The arguments of the child `number`, once it has started."""
        path = self._folder / f"started{number}"
        await until(lambda: path.exists() and bool(path.read_text()), PATIENCE)
        return path.read_text().split()

    def edit(self) -> None:
        (self._folder / "module.py").write_text(f"# {time.monotonic()}")


async def test_the_cycle(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Start, change, start again, signal, end."""
    async with trio.open_nursery() as nursery:
        here = Here(nursery, folder, "obedient")
        arguments = await here.started(0)
        assert arguments[0].startswith("--reloaded=")
        assert arguments[1:] == ["--", "module:app"]
        here.edit()
        await here.started(1)
        os.kill(os.getpid(), signal.SIGTERM)
        with trio.fail_after(PATIENCE):
            await here.ended.wait()
    assert "module.py changed; starting again" in capfd.readouterr().err


async def test_a_stubborn_child(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that ignores SIGTERM is killed, after each of the two waits."""
    monkeypatch.setattr(reloading, "RELOAD_PATIENCE", 0.2)
    monkeypatch.setattr(reloading, "ABORT_PATIENCE", 0.2)
    async with trio.open_nursery() as nursery:
        here = Here(nursery, folder, "stubborn")
        await here.started(0)
        here.edit()
        await here.started(1)
        for _ in range(2):  # the second one saves STOP_PATIENCE
            os.kill(os.getpid(), signal.SIGTERM)
            await trio.sleep(0.1)
        with trio.fail_after(PATIENCE):
            await here.ended.wait()


async def test_signals_that_are_quicker_than_the_steps(folder: Path) -> None:
    """Three signals at once are still three: the child is killed without any wait."""
    async with trio.open_nursery() as nursery:
        here = Here(nursery, folder, "stubborn")
        await here.started(0)
        here.reloader._signals = 2
        os.kill(os.getpid(), signal.SIGTERM)
        with trio.fail_after(reloading.ABORT_PATIENCE):
            await here.ended.wait()


async def test_a_child_that_ends_by_itself(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A child that has ended is reported, and started again after a change."""
    async with trio.open_nursery() as nursery:
        here = Here(nursery, folder, "brief")
        await here.started(0)
        await trio.sleep(0.3)
        here.edit()
        await here.started(1)
        os.kill(os.getpid(), signal.SIGINT)
        with trio.fail_after(PATIENCE):
            await here.ended.wait()
    assert "the application has ended with the status 0; waiting for a change" in capfd.readouterr().err


async def test_a_crash_leaves_no_child(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong in the parent, its child is killed."""
    children: list[trio.Process] = []
    real = trio.lowlevel.open_process

    async def open_process(*arguments: Any, **options: Any) -> trio.Process:
        children.append(await real(*arguments, **options))
        return children[0]

    monkeypatch.setattr(trio.lowlevel, "open_process", open_process)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await Here(nursery, folder, "obedient").started(0)
            scope.cancel()
    with trio.fail_after(PATIENCE):
        assert await children[0].wait() == -signal.SIGKILL


def test_a_folder_that_cannot_be_watched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system refuses is an OSError that names the folder."""
    import watchfiles

    def refuse(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no more watches")

    monkeypatch.setattr(watchfiles, "watch", refuse)
    with pytest.raises(OSError, match=f"cannot watch {folder}: no more watches"):
        reloading.serve_and_watch([sys.executable, "-c", "pass"], "x:y", [folder])


# Mistakes


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str, app: str = "service:app") -> str:
    with pytest.raises(SystemExit) as caught:
        main(["run", app, *arguments])
    assert caught.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_the_library_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library that watches files the message names the extra that brings it."""
    monkeypatch.setattr(serving, "is_available", lambda: False)
    assert "pip install 'trio-crowws[reload]'" in refuse(capsys, "--reload")


def test_a_folder_that_is_not_there(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """A folder to watch that does not exist is a wrong argument."""
    assert "--reload-dir /nowhere: there is no such folder" in refuse(capsys, "--reload", "--reload-dir", "/nowhere")


def test_reload_dir_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """A folder to watch without --reload is a mistake."""
    assert "--reload-dir needs --reload" in refuse(capsys, "--reload-dir", ".")


@pytest.mark.parametrize(
    ("app", "arguments", "message"),
    [
        ("service", [], "'service' is not of the form MODULE:APP"),
        ("service:", [], "'service:' is not of the form MODULE:APP"),
        ("service:app", ["--port", "65536"], "'65536' is not a port"),
        ("service:app", ["--keyfile", "k"], "--keyfile needs --certfile"),
    ],
)
def test_what_no_edit_can_repair(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, app: str, arguments: list[str], message: str
) -> None:
    """Arguments that no edit makes right end it with the status 2, before anything is started or watched."""
    monkeypatch.setattr(serving, "is_available", lambda: True)
    monkeypatch.setattr(serving, "serve_and_watch", lambda *_: pytest.fail("it was started"))
    assert message in refuse(capsys, "--reload", *arguments, app=app)


def test_what_has_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Changed files are named from here, and only some of many."""
    monkeypatch.chdir(tmp_path)
    assert _names({f"{tmp_path}/a.py"}) == "a.py"
    assert _names({"/x/b.py", f"{tmp_path}/a.py"}) == "/x/b.py, a.py"
    assert _names({f"{tmp_path}/{name}\x1b.py" for name in "abcde"}) == "a\\x1b.py, b\\x1b.py, c\\x1b.py and 2 more"


def test_the_arguments_of_the_child(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child gets what its parent got, but for what is about reloading."""
    calls: list[tuple[list[str], str, list[Path]]] = []
    monkeypatch.setattr(serving, "serve_and_watch", lambda *arguments: calls.append(arguments))
    arguments = ["--host", "::1", "--port", "0", "--log-level", "error", "--certfile", "c", "--keyfile", "k"]
    assert main(["run", "service:app", "--reload", "--reload-dir", str(folder), *arguments]) == 0
    [(command, app, folders)] = calls
    assert command[1:4] == ["-m", "trio_crowws", "run"]
    assert command[4:] == ["--host=::1", "--port=0", "--log-level=error", "--certfile=c", "--keyfile=k"]
    assert (app, folders) == ("service:app", [folder])
