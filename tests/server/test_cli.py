"""The command line: `trio-crowws run module:app` and `python -m trio_crowws run module:app`, as processes."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from support.certificates import TLS
from support.processes import port_of, started, status, wait
from support.rawclient import until
from support.require import missing
from trio_crowws import App, Server, __version__
from trio_crowws._cli import serving
from trio_crowws._running import print_urls
from trio_crowws.cli import main
from trio_crowws.testing import PeerClosed, shake_hands

ROOT = Path(__file__).parents[2]
MODULE = [sys.executable, "-m", "trio_crowws"]

SERVICE = """
import trio
from trio_crowws import App

class Holder:
    app = App()

app = Holder.app
number = 5
unfinished = App()
unfinished.websocket("/chat")

@app.websocket("/echo")
async def echo(conn):
    async for message in conn:
        await conn.send(message)

@app.websocket("/stubborn")
async def stubborn(conn):
    await trio.sleep_forever()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with modules that hold applications, and some that fail."""
    (tmp_path / "service.py").write_text(SERVICE)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "service.py").write_text(SERVICE)
    (tmp_path / "needy.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "unset.py").write_text("open('settings')\n")
    (tmp_path / "unread.py").write_text("int('port')\n")
    return tmp_path


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "error"}


@contextmanager
def running(
    folder: Path, *arguments: str, command: Sequence[str] = MODULE
) -> Generator[tuple[subprocess.Popen[bytes], Path]]:
    """The command line with these arguments in `folder`, and the file with its output."""
    log = folder / "log"
    with started([*command, *arguments], log, environment=environment(), folder=folder) as process:
        yield process, log


def run_to_end(folder: Path, *arguments: str, command: Sequence[str] = MODULE) -> subprocess.CompletedProcess[str]:
    """The same for a command that ends by itself."""
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environment(), capture_output=True, text=True, timeout=20, check=False
    )


async def echo(stream: trio.abc.Stream) -> None:
    peer = await shake_hands(stream, "/echo")
    await peer.send("hello")
    with trio.fail_after(5):
        assert await peer.receive() == "hello"


@pytest.fixture(params=["module", "script"])
def command(request: pytest.FixtureRequest) -> list[str]:
    """The two ways to start it; the script is there where the package is installed."""
    if request.param == "module":
        return MODULE
    script = shutil.which("trio-crowws", path=str(Path(sys.executable).parent))
    return [script] if script is not None else missing("needs the package to be installed, with its script")


async def test_it_serves_until_sigterm(folder: Path, command: list[str]) -> None:
    """It prints where it listens, serves, and after SIGTERM it closes its connections with 1001 and ends with 0."""
    with running(folder, "run", "service:app", "--port", "0", command=command) as (process, log):
        port = port_of(process, log, 10)
        assert f"listening on ws://127.0.0.1:{port}\n" in log.read_text()
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            peer = await shake_hands(stream, "/echo")
            await peer.send("hello")
            assert await peer.receive() == "hello"
            process.send_signal(signal.SIGTERM)
            with pytest.raises(PeerClosed) as caught:
                await peer.receive()
            assert caught.value.close is not None
            assert caught.value.close.code == 1001
        assert wait(process, 5) == 0
        assert "Traceback" not in log.read_text()


async def test_sigint_ends_it_in_the_same_way(folder: Path) -> None:
    """Ctrl-C is no error: the exit status is 0 and there is no traceback."""
    with running(folder, "run", "service:app", "--port", "0") as (process, log):
        port_of(process, log, 10)
        process.send_signal(signal.SIGINT)
        assert wait(process, 5) == 0
        assert "Traceback" not in log.read_text()
        assert "KeyboardInterrupt" not in log.read_text()


async def test_a_second_signal_does_not_wait(folder: Path) -> None:
    """With a peer that does not answer the first signal waits, and a second one ends everything at once."""
    with running(folder, "run", "service:app", "--port", "0") as (process, log):
        port = port_of(process, log, 10)
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            peer = await shake_hands(stream, "/stubborn")
            process.send_signal(signal.SIGTERM)
            peer.auto_close = False
            with pytest.raises(PeerClosed):
                await peer.receive()
            assert status(process) is None
            process.send_signal(signal.SIGTERM)
            assert wait(process, 2) == 0


@pytest.mark.parametrize("place", ["package.service:app", "service:Holder.app"])
async def test_where_an_application_can_be(folder: Path, place: str) -> None:
    """The module may be in a package, and the application an attribute of an attribute."""
    with running(folder, "run", place, "--port", "0", "--log-level", "error") as (process, log):
        async with await trio.open_tcp_stream("127.0.0.1", port_of(process, log, 10)) as stream:
            await echo(stream)
        assert log.read_text().startswith("listening on")


async def test_tls(folder: Path, tls: TLS) -> None:
    """With a certificate it serves TLS."""
    with running(folder, "run", "service:app", "--port", "0", "--certfile", tls.certfile, "--keyfile", tls.keyfile) as (
        process,
        log,
    ):
        port = port_of(process, log, 10)
        assert f"listening on wss://127.0.0.1:{port}\n" in log.read_text()
        async with await trio.open_ssl_over_tcp_stream("localhost", port, ssl_context=tls.client) as stream:
            await echo(stream)


async def test_tls_with_one_file(folder: Path, tls: TLS) -> None:
    """Certificate and key may be in one file."""
    both = folder / "both.pem"
    both.write_text(Path(tls.keyfile).read_text() + Path(tls.certfile).read_text())
    with running(folder, "run", "service:app", "--port", "0", "--certfile", str(both)) as (process, log):
        port = port_of(process, log, 10)
        async with await trio.open_ssl_over_tcp_stream("localhost", port, ssl_context=tls.client) as stream:
            await echo(stream)


async def test_a_unix_socket(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """It can listen on a Unix socket, which is gone when it has ended."""
    path = tmp_path_factory.mktemp("u") / "s"
    with running(folder, "run", "service:app", "--unix", str(path)) as (process, log):
        await until(lambda: f"listening on ws+unix://{path}\n" in log.read_text())
        async with await trio.open_unix_socket(str(path)) as stream:
            await echo(stream)
        process.send_signal(signal.SIGTERM)
        assert wait(process, 5) == 0
    assert not path.exists()


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
async def test_an_ipv6_address_has_brackets(folder: Path) -> None:
    """An IPv6 address is printed as it is written in a URL."""
    with running(folder, "run", "service:app", "--host", "::1", "--port", "0") as (process, log):
        port = port_of(process, log, 10)
        assert f"listening on ws://[::1]:{port}\n" in log.read_text()


def test_it_returns_after_a_signal(
    in_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process that does other things as well, `main` returns 0 after a signal."""

    def announce(server: Server) -> None:
        real(server)
        os.kill(os.getpid(), signal.SIGINT)

    real = print_urls
    monkeypatch.setattr(serving, "print_urls", announce)
    assert main(["run", "service:app", "--port", "0", "--log-level", "error"]) == 0
    assert capsys.readouterr().out.startswith("listening on ws://127.0.0.1:")


@pytest.mark.parametrize("inherits", [True, False])
def test_a_child_of_reload(in_folder: Path, monkeypatch: pytest.MonkeyPatch, inherits: bool) -> None:
    """A child of --reload leaves what a terminal sends to its parent, and ends when its parent has gone."""
    reader, writer = os.pipe()

    def announce(server: Server) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGHUP)
        if inherits:
            os.close(writer)
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(serving, "print_urls", announce)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        assert main(["run", "service:app", "--port", "0", f"--reloaded={reader if inherits else -1}"]) == 0
    finally:
        for number, action in before.items():
            signal.signal(number, action)
        os.close(reader)
        if not inherits:
            os.close(writer)


# Mistakes


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit status and message of a command line that cannot work."""
    try:
        code: object = main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    assert isinstance(code, int)
    out, err = capsys.readouterr()
    assert out == ""
    return code, err.strip().splitlines()[-1]


@pytest.fixture
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Path]:
    """The same folder as the current one, whose modules are forgotten in the end."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("service", "package", "needy", "broken", "server", "chat", "messages", "tokens"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("service", "'service' is not of the form MODULE:APP, as in server:app"),
        ("service:", "'service:' is not of the form MODULE:APP"),
        (":app", "':app' is not of the form MODULE:APP"),
        ("", "'' is not of the form MODULE:APP"),
        (".service:app", "'.service:app' is not of the form MODULE:APP"),
        ("package..service:app", "'package..service:app' is not of the form MODULE:APP"),
        ("service:Holder.", "'service:Holder.' is not of the form MODULE:APP"),
        ("nothing:app", "there is no module 'nothing' (looked in "),
        ("service.py:app", "there is no module 'service.py'"),
        ("package.nothing:app", "there is no module 'package.nothing'"),
        ("nothing.service:app", "there is no module 'nothing.service'"),
        ("service:nothing", "service has no 'nothing'"),
        ("service:app.nothing", "service has no 'app.nothing'"),
        ("service:number", "service:number is of the type int, not an App"),
        ("service:Holder", "service:Holder is of the type type, not an App"),
    ],
)
def test_a_wrong_place(in_folder: Path, capsys: pytest.CaptureFixture[str], place: str, message: str) -> None:
    """A place where no application is gets a message that says what is wrong with it, and the status 2."""
    code, error = refuse(capsys, "run", place)
    assert code == 2
    assert message in error


def test_the_place_that_is_the_example(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place that the help names is one, in the folder of an example."""
    monkeypatch.chdir(ROOT / "examples" / "chat")
    assert isinstance(serving.load_app("server:app"), App)


def test_the_place_is_looked_for_here(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message about a missing module says where it was looked for."""
    assert str(in_folder) in refuse(capsys, "run", "nothing:app")[1]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("needy", "a_module_that_is_not_there"),
        ("broken", "ZeroDivisionError"),
        ("unset", "FileNotFoundError"),
        ("unread", "ValueError"),
    ],
)
def test_a_module_that_fails(folder: Path, module: str, message: str) -> None:
    """A module that cannot be imported shows its own traceback, so that the mistake can be found."""
    result = run_to_end(folder, "run", f"{module}:app")
    assert result.returncode == 1
    assert message in result.stderr
    assert f"{module}.py" in result.stderr


def test_a_module_that_needs_another(in_folder: Path) -> None:
    """A module that is there but lacks one of its own is not "no such module"."""
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        main(["run", "needy:app"])


def test_the_current_folder_comes_once(in_folder: Path) -> None:
    """A current folder that is importable already is not entered again."""
    sys.path.append(str(in_folder))
    serving.load_app("service:app")
    assert sys.path.count(str(in_folder)) == 1


def test_a_route_without_a_handler(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An application that cannot be served is one line and the status 1."""
    code, error = refuse(capsys, "run", "service:unfinished", "--port", "0")
    assert code == 1
    assert error.startswith("trio-crowws: the route '/chat' has no handler")


def test_a_busy_port(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A port that is in use is one line with the address, and the status 1."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, error = refuse(capsys, "run", "service:app", "--port", str(port))
    assert code == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1:8000"),
        (["--unix", "/nowhere/at/all"], "cannot listen on /nowhere/at/all: No such file or directory"),
        (["--certfile", "nothing.pem"], "cannot use the certificate nothing.pem: No such file or directory"),
        (["--certfile", "service.py"], "cannot use the certificate service.py: "),
    ],
)
def test_it_cannot_serve(
    in_folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """Where it cannot listen, and which file it cannot use, is one line and the status 1."""
    code, error = refuse(capsys, "run", "service:app", *arguments)
    assert code == 1
    assert error.startswith("trio-crowws: ")
    assert message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["serve"], "invalid choice: 'serve'"),
        (["run"], "MODULE:APP"),
        (["run", "service:app", "--port", "http"], "argument --port: 'http' is not a port"),
        (["run", "service:app", "--port", "70000"], "'70000' is not a port; it must be a number from 0 to 65535"),
        (["run", "service:app", "--port", "65536"], "'65536' is not a port"),
        (["run", "service:app", "--port", "-1"], "'-1' is not a port"),
        (["run", "service:app", "--port", "9" * 5000], "is not a port"),
        (["run", "service:app", "--keyfile", "key.pem"], "--keyfile needs --certfile"),
        (["run", "service:app", "--log-level", "loud"], "invalid choice: 'loud'"),
        (["run", "service:app", "--workers", "4"], "unrecognized arguments: --workers 4"),
    ],
)
def test_wrong_arguments(
    in_folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """Arguments that do not exist, or lack something, are a message and the status 2."""
    code, error = refuse(capsys, *arguments)
    assert code == 2
    assert message in error


def test_the_highest_port() -> None:
    """Every port that there is is taken, and 0."""
    parser = argparse.ArgumentParser()
    serving.add_arguments(parser)
    assert [parser.parse_args(["x:y", "--port", port]).port for port in ("0", "80", "65535")] == [0, 80, 65535]


def test_the_module(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m trio_crowws` is the same, and importing it runs nothing."""
    importlib.import_module("trio_crowws.__main__")
    monkeypatch.delitem(sys.modules, "trio_crowws.__main__")
    monkeypatch.setattr(sys, "argv", ["trio-crowws", "--version"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("trio_crowws", run_name="__main__")
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"trio-crowws {__version__}\n"


def test_a_certificate_that_can_be_used(
    in_folder: Path, tls: TLS, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a certificate and its key it serves."""
    monkeypatch.setattr(serving, "print_urls", lambda server: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["run", "service:app", "--port", "0", "--certfile", tls.certfile, "--keyfile", tls.keyfile]) == 0


def test_version(folder: Path, command: list[str]) -> None:
    """--version prints the version."""
    result = run_to_end(folder, "--version", command=command)
    assert (result.returncode, result.stdout) == (0, f"trio-crowws {__version__}\n")


def help_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["run"], ["connect"]])
def test_help(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """--help explains the command, and lists the exit statuses."""
    text = help_of(capsys, *arguments)
    assert "SIGINT or SIGTERM" in text or arguments == ["connect"]
    assert "exit statuses:\n  0 " in text
    assert "--reloaded" not in text


@pytest.mark.parametrize("command", ["run", "connect"])
def test_the_reference_is_complete(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """The page about the command line has every option in its table, and every exit status."""
    page = (ROOT / "docs/reference/cli.md").read_text()
    section = page.partition(f"## `trio-crowws {command}`")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `--")]
    text = help_of(capsys, command)
    for option in set(re.findall(r"--[a-z-]+", text)) - {"--help"}:
        assert any(re.search(rf"`{option}\b(?!-)", row) for row in rows), option
    for number in re.findall(r"^  (\d+) ", text.partition("exit statuses:")[2], re.MULTILINE):
        assert re.search(rf"^\| (\d+, )?{number}\b", page, re.MULTILINE), number
