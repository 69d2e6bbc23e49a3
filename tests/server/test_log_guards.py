"""The log cannot hurt who logs, and nobody can write into it what looks like a record."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import trio

from support.rawclient import echo_app, open_raw, plain, serving, until, upgrade
from trio_crowws import App, Connection, ConnectionClosed, HandshakeError, Reject
from trio_crowws import connect as connect_client
from trio_crowws._foreign import consists_of
from trio_crowws._log import log, render
from trio_crowws._running import print_urls
from trio_crowws.testing import PeerClosed, connect

LOGGER = logging.getLogger("trio_crowws")


# What fails in the log


class Failing(logging.Handler):
    """Fails at a record of some number, or at all of them."""

    def __init__(self, error: BaseException, number: int | None = None) -> None:
        super().__init__(logging.DEBUG)
        self.error = error
        self.number = number
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.getMessage())
        if self.number is None or len(self.seen) == self.number:
            raise self.error

    def filter(self, record: logging.LogRecord) -> bool:
        return True


class FailingFilter(Failing):
    """The same as a filter of the logger."""

    def filter(self, record: logging.LogRecord) -> bool:
        self.emit(record)
        return True


@pytest.fixture
def watch(request: pytest.FixtureRequest) -> Iterator[Callable[[Failing], Failing]]:
    """Put a handler or filter in place, at the level DEBUG; in the end all is as it was."""
    placed: list[Failing] = []
    level = LOGGER.level
    LOGGER.setLevel(logging.DEBUG)

    def place(failing: Failing) -> Failing:
        placed.append(failing)
        if isinstance(failing, FailingFilter):
            LOGGER.addFilter(failing)
        else:
            LOGGER.addHandler(failing)
        return failing

    yield place
    LOGGER.setLevel(level)
    for each in placed:
        LOGGER.removeFilter(each)
        LOGGER.removeHandler(each)


async def everything() -> list[tuple[str, int]]:
    """A server's life with all that is logged in it; the closes that its callbacks were told."""
    closed: list[tuple[str, int]] = []
    app = App(close_timeout=1)

    def watch(path: str, **options: Any) -> Any:
        route = app.websocket(path, **options)
        route.on_close(lambda conn, info: closed.append((path, info.code)))
        return route

    async def shout(conn: Connection, *_: object) -> None:
        raise ValueError("the handler")

    async def echo(conn: Connection) -> None:
        async for message in conn:
            await conn.send(message)

    def wrong_end(conn: Connection, info: object) -> None:
        closed.append(("/end", 0))
        raise ValueError("the end")

    watch("/echo", allow_unmasked=True)(echo)
    watch("/session")(shout)
    watch("/async").on_message(shout)
    watch("/plain").on_message(lambda conn, message: 1 / 0)
    watch("/task").onopen(lambda conn: conn.start_soon(shout, conn))
    app.websocket("/end").on_message(lambda conn, message: None)
    app.routes[-1].on_close(wrong_end)
    watch("/rejected").onaccept(lambda request: Reject(401))(echo)
    watch("/broken").onaccept(lambda request: 1 / 0)(echo)
    watch("/odd").onaccept(lambda request: "odd")(echo)
    app.http("/page")(lambda request: 1 / 0)
    async with serving(app) as server:
        for path in ("/session", "/async", "/plain", "/task", "/end"):
            await provoke(f"ws://127.0.0.1:{server.port}{path}", close=path == "/end")
        for path, status in (("/rejected", 401), ("/broken", 500), ("/odd", 500), ("/page", 500), ("/none", 404)):
            async with open_raw(server) as client:
                await client.send(plain(path) if path == "/page" else upgrade(path))
                assert (await client.read_answer()).status == status
        async with connect_client(f"ws://127.0.0.1:{server.port}/echo") as conn:
            await conn.send("still here")
            assert await conn.receive() == "still here"
        await until(lambda: not app.connections)
    return closed


async def provoke(url: str, *, close: bool = False) -> None:
    """Send a message, and see the connection to its end."""
    async with connect_client(url) as conn:
        with suppress(ConnectionClosed):
            await conn.send("x")
        if close:
            await conn.close()
        with suppress(ConnectionClosed):
            await conn.receive()


EXPECTED = [("/session", 1011), ("/async", 1011), ("/plain", 1011), ("/task", 1011), ("/end", 0), ("/echo", 1000)]

ERRORS: dict[str, BaseException] = {
    "ValueError": ValueError("I/O operation on closed file"),
    "RecursionError": RecursionError(),
    "MemoryError": MemoryError(),
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("kind", [Failing, FailingFilter])
async def test_a_log_that_fails(kind: type[Failing], error: str, watch: Callable[[Failing], Failing]) -> None:
    """A log that raises at every record costs its records; every connection has its end, and the server goes on."""
    failing = watch(kind(ERRORS[error]))
    assert await everything() == EXPECTED
    for what in ("listening on", "open: ", "closed: ", "refused ", "failed", "without a mask", "cannot", "must be"):
        assert any(what in line for line in failing.seen) or what == "cannot", what


async def test_a_log_that_fails_once(watch: Callable[[Failing], Failing]) -> None:
    """It may be any record that cannot be written: nothing but that record is missing then."""
    number, count = 1, 2
    while number <= count:
        failing = watch(FailingFilter(ValueError(), number))
        assert await everything() == EXPECTED
        LOGGER.removeFilter(failing)
        number, count = number + 9, len(failing.seen)
    assert count > 60


class EndingProgram(logging.Handler):
    """Some log handlers end the program at the first error."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            raise SystemExit(3)


@pytest.mark.parametrize("style", ["session", "async", "plain", "task", "error", "close"])
async def test_a_log_that_ends_the_program(style: str) -> None:
    """What is no Exception passes, and every connection that was opened has its end all the same."""
    closed: list[str] = []
    app = App()

    async def fail_async(conn: Connection, *_: object) -> None:
        raise ValueError

    def fail(conn: Connection, *_: object) -> None:
        closed.append(conn.id)
        raise ValueError

    route = app.websocket("/")
    if style == "session":
        route(fail_async)
    elif style == "task":
        route.on_open(lambda conn: conn.start_soon(fail_async, conn))
    else:
        route.on_message(fail_async if style == "async" else lambda conn, message: 1 / 0)
    route.on_error(fail if style == "error" else lambda conn, error: None)
    route.on_close(fail if style == "close" else lambda conn, info: closed.append(conn.id))
    app.websocket("/other").onopen(lambda conn: None).onclose(lambda conn, info: closed.append(conn.id))
    handler = EndingProgram()
    LOGGER.addHandler(handler)

    async def run() -> None:
        async with serving(app) as server:
            async with connect_client(f"ws://127.0.0.1:{server.port}/other"):
                await provoke(f"ws://127.0.0.1:{server.port}/")
            await trio.sleep_forever()

    with pytest.raises(BaseException, match=r".") as caught:
        await run()
    LOGGER.removeHandler(handler)
    assert consists_of(caught.value, SystemExit)
    assert len(closed) == (3 if style == "error" else 2)


async def test_a_logger_that_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the question whether a level is shown raises."""

    def fail(level: int) -> bool:
        raise ValueError

    monkeypatch.setattr(LOGGER, "isEnabledFor", fail)
    assert not log.shows(logging.INFO)
    assert await everything() == EXPECTED


def test_a_closed_stderr() -> None:
    """A daemon that has closed its standard error serves on: `logging` itself raises then."""
    program = """
import logging, sys
import trio
from trio_crowws import App, connect
logging.basicConfig(level=logging.DEBUG)
app = App()

@app.websocket("/")
async def echo(conn):
    async for message in conn:
        await conn.send(message)
        if message == "fail":
            raise ValueError

async def main():
    async with trio.open_nursery() as nursery:
        server = await nursery.start(app.serve, "127.0.0.1", 0)
        sys.stderr.close()
        for message in ("fail", "echo"):
            async with connect(f"ws://127.0.0.1:{server.port}/") as conn:
                await conn.send(message)
                print(await conn.receive())
        await server.aclose()

trio.run(main)
print("ended")
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert run.stdout.split() == ["fail", "echo", "ended"], run


async def test_a_closed_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line serves on, too, where it cannot print its address."""
    closed = io.StringIO()
    closed.close()
    async with serving(echo_app()) as server:
        monkeypatch.setattr("sys.stdout", closed)
        print_urls(server)
        monkeypatch.undo()
        async with open_raw(server) as client:
            await client.upgrade()


def test_the_record_names_the_line_that_logs(caplog: pytest.LogCaptureFixture) -> None:
    """A record is from where it was logged, not from the guard."""
    with caplog.at_level(logging.DEBUG, "trio_crowws"):
        for write in (log.debug, log.info, log.warning, log.error):
            write("%s", "x")
    assert [record.levelno for record in caplog.records] == [10, 20, 30, 40]
    for record in caplog.records:
        assert record.filename == "test_log_guards.py"
        assert record.funcName == "test_the_record_names_the_line_that_logs"
        assert record.exc_info is None


# Tracebacks


FORGED = "x\nINFO trio_crowws [c9] open: ('10.0.0.1', 1) '/admin'\r\x1b]0;pwned\x07\x85\u2028\u202e\x0b"


class Noted(ValueError):
    """Its notes cannot be had."""

    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]
        raise RuntimeError(FORGED)


class Unmodular(ValueError):
    """Its module is no name."""


Unmodular.__module__ = 5  # type: ignore[assignment]


def raised(error: BaseException, cause: BaseException | None = None) -> Any:
    """`error` with a traceback."""
    try:
        raise error from cause
    except BaseException as caught:
        return caught


def in_context(error: Exception, context: Exception) -> BaseException:
    try:
        try:
            raise context
        except Exception:
            raise error  # noqa: B904 -- the context is what it is about
    except Exception as caught:
        return caught


def noted(*notes: Any) -> Any:
    error = ValueError("noted")
    error.__notes__ = list(notes)
    return raised(error)


FORGERS: dict[str, Callable[[], BaseException]] = {
    "text": lambda: raised(ValueError(FORGED)),
    "text that was not raised": lambda: ValueError(FORGED),
    "cause": lambda: raised(ValueError("a"), raised(KeyError(FORGED))),
    "context": lambda: in_context(ValueError("a"), KeyError(FORGED)),
    "note": lambda: noted(FORGED, object, FORGED),
    "group": lambda: raised(ExceptionGroup(FORGED, [ValueError(FORGED), ExceptionGroup("", [TypeError(FORGED)])])),
    "class": lambda: raised(type(FORGED.replace("\0", ""), (Exception,), {})("a")),
    "syntax": lambda: raised(SyntaxError(FORGED, (FORGED, 1, 1, FORGED))),
    "notes that raise": lambda: raised(Noted(FORGED)),
    "a module that is none": lambda: raised(Unmodular(FORGED)),
    "file": lambda: compiled("1 / 0", FORGED),
}


def compiled(source: str, filename: str) -> BaseException:
    """What is raised by code of a file that is called so."""
    try:
        exec(compile(source, filename, "exec"), {})
    except Exception as error:
        return error
    raise AssertionError


@pytest.mark.parametrize("how", FORGERS)
def test_a_traceback_cannot_be_forged(how: str) -> None:
    """Every line of it is indented, and what an exception says is in one of them."""
    text = render(FORGERS[how]())
    for line in text.split("\n"):
        assert line == "" or line.startswith("  "), line
        assert "trio_crowws [c9]" not in line or r"\n" in line
        assert line.isprintable()
    assert len(text) < 5000


async def test_a_peer_cannot_forge_a_line() -> None:
    """The same in what a handler writes, whatever splits it into lines: the peer's text is inside of one."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
    handler.setLevel(logging.ERROR)
    LOGGER.addHandler(handler)
    app = App()

    @app.websocket("/")
    async def session(conn: Connection) -> None:
        raise ValueError(f"unknown command {await conn.receive()!s}")

    async with connect(app) as peer:
        await peer.send(FORGED)
        with pytest.raises(PeerClosed):
            await peer.receive()
    LOGGER.removeHandler(handler)
    lines = stream.getvalue().splitlines()
    assert lines == stream.getvalue().rstrip("\n").split("\n")
    assert all(line.isprintable() for line in lines)
    assert [line[:1] for line in lines] == ["E", *" " * (len(lines) - 1)]
    assert lines[1] == "  Traceback (most recent call last):"
    assert lines[-1].startswith(r"  ValueError: unknown command x\nINFO trio_crowws [c9] open:")
    assert any("test_log_guards.py" in line for line in lines)


def test_a_traceback_says_what_python_says() -> None:
    """Frames, causes, contexts, notes and groups are there."""
    group = ExceptionGroup("several", [raised(KeyError("one")), TypeError("two")])
    group.add_note("a note")
    text = render(raised(group, in_context(ValueError("three"), OSError("four"))))
    order = [
        "OSError: four",
        "During handling",
        "ValueError: three",
        "direct cause",
        "ExceptionGroup: several (2 sub-ex",
    ]
    order += ["a note", "[1 of 2]", "KeyError: 'one'", "[2 of 2]", "TypeError: two"]
    places = [text.index(each) for each in order]
    assert places == sorted(places)
    assert text.count("Traceback (most recent call last):") == 4
    assert "raise error from cause" in text
    assert "test_log_guards.raised" not in text
    assert render(raised(HandshakeError(400, "named"))).endswith("  trio_crowws.errors.HandshakeError: named")
    assert render(raised(ValueError())).endswith("\n  ValueError")


def test_a_suppressed_context_is_left_out() -> None:
    """As Python does it."""
    error = in_context(ValueError(), KeyError())
    assert "KeyError" in render(error)
    error.__suppress_context__ = True
    assert "KeyError" not in render(error)


def deep(depth: int, error: Exception) -> None:
    if depth:
        deep(depth - 1, error)
    other(depth, error)


def other(depth: int, error: Exception) -> None:
    raise error


def chain(length: int) -> Any:
    error = raised(ValueError("the first"))
    for number in range(length):
        error = raised(ValueError(str(number)), error)
    return error


def recursion() -> BaseException:
    def ping() -> None:
        pong()

    def pong() -> None:
        ping()

    try:
        ping()
    except RecursionError as error:
        return error
    raise AssertionError


def deeply_raised() -> BaseException:
    try:
        deep(500, ValueError("deep"))
    except ValueError as error:
        return error
    raise AssertionError


def circle() -> BaseException:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    return one


def nested(depth: int) -> Any:
    error: Any = ValueError()
    for _ in range(depth):
        error = ExceptionGroup("", [error, TypeError()])
    return raised(error)


LARGE: dict[str, Callable[[], BaseException]] = {
    "text": lambda: raised(ValueError("x" * 10_000_000)),
    "text of many lines": lambda: raised(ValueError("x\n" * 1_000_000)),
    "chain": lambda: chain(5000),
    "circle": circle,
    "group": lambda: raised(ExceptionGroup("", [raised(ValueError(str(number))) for number in range(5000)])),
    "nested": lambda: nested(2000),
    "recursion": recursion,
    "deep": deeply_raised,
    "notes": lambda: noted(*["note" * 1000] * 5000),
    "a line of source": lambda: compiled("1 / 0", "x" * 100_000),
}


@pytest.mark.parametrize("how", LARGE)
def test_a_traceback_has_a_limit(how: str) -> None:
    """However much there is, a record of it is bounded, and the outermost exception is in it."""
    error = LARGE[how]()
    text = render(error)
    assert len(text) < 30_000
    assert f"  {type(error).__name__}" in text


def test_what_is_left_out_is_said() -> None:
    """Where something is missing, there is a line about that."""
    assert "frames are left out" in render(deeply_raised())
    assert "further exceptions are left out" in render(chain(5000))
    assert "[10 of 5000]" in render(ExceptionGroup("", [ValueError()] + [ValueError() for _ in range(4999)]))


def test_source_keeps_its_letters(tmp_path: Any) -> None:
    """A line of the application's own code is shown with the letters that it is written in, but with no others."""
    path = tmp_path / "module.py"
    path.write_text("raise ValueError('не тот')  # \u202e ход\n", encoding="utf-8")
    text = render(compiled(path.read_text(encoding="utf-8"), str(path)))
    assert r"raise ValueError('не тот')  # \u202e ход" in text
    assert text.endswith(r"ValueError: \u043d\u0435 \u0442\u043e\u0442")


def test_a_traceback_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """When there is no memory for it, that is what is logged."""

    def fail(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("trio_crowws._log.extract_tb", fail)
    assert render(raised(ValueError())) == "  (no traceback: MemoryError)"


async def test_tools_get_the_exception_itself(caplog: pytest.LogCaptureFixture) -> None:
    """`exc_info` has the object, and `exc_text` the text that formatters show."""
    error = ValueError(FORGED)
    app = App()

    @app.websocket("/")
    async def session(conn: Connection) -> None:
        raise error

    async with connect(app) as peer:
        with pytest.raises(PeerClosed):
            await peer.receive()
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert record.exc_info[:2] == (ValueError, error)
    assert record.exc_info[2] is not None
    assert record.exc_text is not None

    class Own(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return "own " + super().format(record)

    for formatter in (logging.Formatter(), Own()):
        text = formatter.format(record)
        assert text.endswith("\n" + record.exc_text)
    assert record.exc_text in caplog.text
