"""Every Python snippet of docs/ and of README.md is run.

A page is a row of stories. A story is a `python` block together with the blocks below it that continue it; they share
one namespace, in which `__name__` is `"__main__"`. A comment on the line above a block says what it needs:

    <!-- snippet: continues -->             goes on where the block before it stopped
    <!-- snippet: setup=app, certificate --> the named things of `SETUPS` are there before it starts

A block runs as it stands. What differs from a reader's machine is only this:

- `await` may stand outside a function, as on the pages that show a conversation; such a block runs in `trio.run`.
- Servers listen on a free port of the loopback address, whatever port the page names.
- `connect(...)` has its arguments checked, and then finds a server in memory, whatever host its URL names.
- `app.run(...)` and `trio.run(...)` come back: the program is cancelled when all its tasks wait.
- The `test_...` functions of a block are run, with the fixtures `nursery` and `autojump_clock` of pytest-trio.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import trio
import trio.testing
import trustme

import trio_crowws
from support.rawclient import unwrapped
from trio_crowws import App, Connection, Reject, Request, connect_stream
from trio_crowws._options import APP_ONLY, Options

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [*([README] if README.exists() else []), *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"console", "cpp", "ini", "nginx", "python", "sh", "text"}  # without "py": each language has one name
SECONDS_PER_STORY = 20
FENCE = re.compile(r" *```(?P<info>[^`]*)$")
COMMENT = re.compile(r" *<!-- snippet: (?P<what>.*) -->$")

Namespace = dict[str, Any]


# ------------------------------------------------------------------------------------------------ reading the pages


@dataclasses.dataclass
class Block:
    page: Path
    line: int
    language: str
    source: str
    continues: bool
    setups: tuple[str, ...]

    def code(self) -> CodeType:
        padded = "\n" * (self.line - 1) + self.source  # tracebacks then show the line of the page
        code: CodeType = compile(
            padded, str(self.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
        )
        return code


def blocks_of(page: Path) -> list[Block]:
    found: list[Block] = []
    open_block: Block | None = None
    comment = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = FENCE.match(line)
        if open_block is not None:
            if fence:
                found.append(open_block)
                open_block = None
            else:
                open_block.source += line + "\n"
        elif fence:
            continues, setups = parse_comment(comment)
            open_block = Block(page, number + 1, fence["info"].strip(), "", continues, setups)
        match = COMMENT.match(line)
        comment = match["what"] if match else ""
    assert open_block is None, f"{page}: the block that begins in line {open_block.line - 1} does not end"
    return found


def parse_comment(what: str) -> tuple[bool, tuple[str, ...]]:
    """`continues` or `setup=...`; any other text is a mistake in the page."""
    if what in ("", "continues"):
        return what == "continues", ()
    assert what.startswith("setup="), f"unknown snippet comment {what!r}"
    return False, tuple(name.strip() for name in what.removeprefix("setup=").split(","))


def stories() -> list[list[Block]]:
    found: list[list[Block]] = []
    for page in PAGES:
        in_page: list[list[Block]] = []
        for block in blocks_of(page):
            if block.language != "python":
                continue
            if block.continues:
                in_page[-1].append(block)
            else:
                in_page.append([block])
        found += in_page
    return found


def name_of(story: list[Block]) -> str:
    return f"{story[0].page.relative_to(ROOT)}:{story[0].line}"


# ------------------------------------------------------------------------------------------------ running them


def provide_app(namespace: Namespace) -> None:
    namespace["app"] = App()


def provide_certificate(namespace: Namespace) -> None:
    """`cert.pem` and `key.pem` in the current folder."""
    certificate = trustme.CA().issue_cert("localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path("cert.pem")
    certificate.private_key_pem.write_to_path("key.pem")


SETUPS: dict[str, Callable[[Namespace], None]] = {"app": provide_app, "certificate": provide_certificate}

real_trio_run = trio.run
real_run = App.run
real_serve = App.serve
real_connect = trio_crowws.connect


async def serve_on_a_free_port(
    app: App, host: str | None = "127.0.0.1", port: int = 8000, *, unix: str | None = None, **options: Any
) -> None:
    inspect.signature(real_serve).bind(app, host, port, unix=unix, **options)
    await real_serve(app, "127.0.0.1", 0, unix=unix, **options)


def client_app() -> App:
    """The server that the pages about the client talk to."""
    app = App(subprotocols="first")

    @app.websocket("/echo")
    async def echo(conn: Connection) -> None:
        async for message in conn:
            await conn.send(message)

    @app.websocket("/feed")
    async def feed(conn: Connection) -> None:
        for reading in range(3):
            await conn.send_json(reading)

    private = app.websocket("/private")
    private(echo)

    @private.on_accept
    def check(request: Request) -> Reject | None:
        return None if "authorization" in request.headers else Reject(401, "who are you?\n")

    return app


@asynccontextmanager
async def connect_in_memory(url: str, **options: Any) -> AsyncGenerator[Connection]:
    real_connect(url, **options)
    for name in ("ssl_context", "proxy", "follow_redirects"):
        options.pop(name, None)
    near, far = trio.testing.memory_stream_pair()
    with unwrapped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client_app().serve_stream, far)
            async with connect_stream(near, url, **options) as conn:
                yield conn


def run_until_listening(app: App, *args: Any, **options: Any) -> None:
    """`App.run`, without signals, until the server listens and nothing more happens."""
    inspect.signature(real_run).bind(app, *args, **options)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(app.serve, *args, **options))
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()

    real_trio_run(limited(main))


def run_until_idle(async_fn: Callable[..., Awaitable[object]], *args: Any) -> None:
    """`trio.run`, cancelled when nothing more happens."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(async_fn, *args)
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()

    real_trio_run(limited(main))


def limited(main: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        with trio.fail_after(SECONDS_PER_STORY):
            await main()

    return run


def run_block(block: Block, namespace: Namespace) -> None:
    for setup in block.setups:
        SETUPS[setup](namespace)
    before = dict(namespace)
    running = eval(block.code(), namespace)  # a coroutine where the block has an `await` outside a function
    if inspect.iscoroutine(running):
        real_trio_run(limited(partial(finish, running)))
    for name, value in list(namespace.items()):
        if name.startswith("test_") and before.get(name) is not value:
            run_test(value)


async def finish(coroutine: Coroutine[Any, Any, object]) -> None:
    await coroutine


def run_test(test: Callable[..., Any]) -> None:
    wanted = set(inspect.signature(test).parameters)
    assert wanted <= {"nursery", "autojump_clock"}, f"{test.__name__} wants fixtures that are not provided: {wanted}"
    if not inspect.iscoroutinefunction(test):
        test()
        return
    clock = trio.testing.MockClock(autojump_threshold=0) if "autojump_clock" in wanted else None

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            available = {"nursery": nursery, "autojump_clock": clock}
            await test(**{name: available[name] for name in wanted})
            nursery.cancel_scope.cancel()

    real_trio_run(main if clock else limited(main), clock=clock)


@pytest.mark.parametrize("story", stories(), ids=name_of)
def test_the_snippets_of_the_documentation_run(
    story: list[Block], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a page shows is a program that runs, and what it claims by `assert` is so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(App, "run", run_until_listening)
    monkeypatch.setattr(App, "serve", serve_on_a_free_port)
    monkeypatch.setattr(trio, "run", run_until_idle)
    monkeypatch.setattr(trio_crowws, "connect", connect_in_memory)
    namespace: Namespace = {"__name__": "__main__"}
    for block in story:
        run_block(block, namespace)


# ------------------------------------------------------------------------------------------------ other promises


def test_the_readme_has_a_program_that_runs() -> None:
    """README.md is one of the pages, with at least one block of Python."""
    assert any(story[0].page == README for story in stories())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_snippet_escapes_by_its_language(page: Path) -> None:
    """A block that is not run says what language it is in, or is a directive of the documentation."""
    for block in blocks_of(page):
        known = block.language in LANGUAGES or block.language.startswith("{")
        assert known, f"{page.relative_to(ROOT)}:{block.line - 1}: unknown language {block.language!r}"


def test_the_table_of_options_is_complete() -> None:
    """The table in the reference names each option with its default, and says which are for `App` only."""
    rows = {}
    for line in (ROOT / "docs" / "reference" / "options.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            name, default, given_to, *_ = (cell.strip().strip("`") for cell in line.strip("|").split("|"))
            rows[name] = (default, given_to)
    expected = {
        field.name: (repr(field.default), "app" if field.name in APP_ONLY else "app, route")
        for field in dataclasses.fields(Options)
    }
    assert rows == expected
