"""`trio-crowws run --reload`: the application in a child process that is replaced when a file changes.

The parent never imports the application, so no edit can break it, and a child starts with nothing left over from the
one before. Parent and child are in one process group: the terminal is the child's as well, so a debugger works in it,
and what kills the group kills both. What the terminal sends therefore reaches both; the child ignores it, and the
parent passes it on as SIGTERM, once for each time.

A child is told to end by SIGTERM, then by a second one, which aborts its connections, then by SIGKILL. How long each
step may take is bounded, so that a handler that blocks the loop for ever cannot stop the next edit from being tried.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import trio

from .._foreign import cause_of, unwrap
from .showing import visible

__all__ = ["SIGNALS", "is_available", "serve_and_watch"]

RELOAD_PATIENCE = 2.0
"""Seconds that a child has for an orderly end when a file has changed."""
STOP_PATIENCE = 30.0
"""Seconds that it has when the user ends everything, unless there is another signal."""
ABORT_PATIENCE = 2.0
"""Seconds after the second SIGTERM."""

# The end of a terminal is an end for what runs in it; Windows has no such signal.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def is_available() -> bool:
    """Whether the library that watches files is installed."""
    return find_spec("watchfiles") is not None


def serve_and_watch(command: Sequence[str], app: str, folders: Sequence[Path]) -> None:
    """Run `command` for `app`, and again after each change of a Python file in `folders`, until a signal comes.

    Raises:
      OSError: the folders cannot be watched.
    """
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # what has changed is said here
    try:
        trio.run(_Reloader(command, app, folders).run)
    except BaseExceptionGroup as group:
        error = unwrap(group)
        raise error from cause_of(error)


class _Reloader:
    def __init__(self, command: Sequence[str], app: str, folders: Sequence[Path]) -> None:
        self._command = command
        self._app = app
        self._folders = folders
        self._changed: set[str] = set()
        self._signals = 0
        self._news = trio.Event()
        """Set when a file has changed or a signal has come."""
        self._patience = trio.CancelScope()
        """Around the present wait for the end of a child; cancelling it goes on to the next step."""

    async def run(self) -> None:
        """Watch, serve, restart, until a signal comes."""
        stop_watching = threading.Event()
        with trio.open_signal_receiver(*SIGNALS) as signals, _pipe() as alive:
            async with trio.open_nursery() as nursery:
                try:
                    nursery.start_soon(trio.to_thread.run_sync, self._watch, stop_watching)
                    nursery.start_soon(self._obey, signals)
                    while not self._signals:
                        await self._serve_once(alive)
                finally:
                    stop_watching.set()  # it looks at this every few milliseconds
                    nursery.cancel_scope.cancel()

    async def _serve_once(self, alive: int) -> None:
        """Start a child, and end it when there is news."""
        options: dict[str, Any] = {"pass_fds": (alive,)}
        if sys.platform == "win32":  # pragma: no cover - where no descriptor is inherited
            alive, options = -1, {}
        child = await trio.lowlevel.open_process([*self._command, f"--reloaded={alive}", "--", self._app], **options)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._report_end, child)
                await self._news.wait()
                nursery.cancel_scope.cancel()
            if not self._signals:
                _say(f"{_names(self._changed)} changed; starting again")
            await self._end(child, STOP_PATIENCE if self._signals else RELOAD_PATIENCE)
            # What was written in the meantime is in what the next child will read.
            self._changed.clear()
            self._news = trio.Event()
        finally:
            if child.returncode is None:  # whatever has gone wrong, no child is left behind
                child.kill()
                with trio.CancelScope(deadline=trio.current_time() + ABORT_PATIENCE, shield=True):
                    await child.wait()

    async def _report_end(self, child: trio.Process) -> None:
        status = await child.wait()
        _say(f"the application has ended with the status {status}; waiting for a change")

    async def _end(self, child: trio.Process, patience: float) -> None:
        for enough, seconds in ((1, patience), (2, ABORT_PATIENCE)):
            child.terminate()
            with trio.CancelScope(deadline=trio.current_time() + seconds) as self._patience:
                if self._signals > enough:  # some of them were quicker than this
                    self._patience.cancel()
                await child.wait()
                return
        child.kill()
        await child.wait()

    async def _obey(self, signals: AsyncIterator[int]) -> None:
        """The first signal ends everything; each further one makes that quicker."""
        async for _ in signals:
            self._signals += 1
            self._news.set()
            if self._signals > 1:
                self._patience.cancel()

    def _watch(self, stop: threading.Event) -> None:
        """In a thread: tell the loop about each change."""
        watchfiles = import_module("watchfiles")
        try:
            for changes in watchfiles.watch(
                *self._folders, watch_filter=watchfiles.PythonFilter(), stop_event=stop, raise_interrupt=False
            ):
                trio.from_thread.run_sync(self._note, {path for _, path in changes})
        except RuntimeError as error:  # what the library makes of the system's refusals
            raise OSError(f"cannot watch {', '.join(map(str, self._folders))}: {error}") from error

    def _note(self, paths: set[str]) -> None:
        self._changed |= paths
        self._news.set()


@contextmanager
def _pipe() -> Generator[int]:
    """A descriptor to read from that ends when this process does, because nobody else has its other end."""
    reader, writer = os.pipe()
    try:
        yield reader
    finally:
        os.close(reader)
        os.close(writer)


def _names(paths: set[str]) -> str:
    here = Path.cwd()
    names = sorted(str(path.relative_to(here)) if path.is_relative_to(here) else str(path) for path in map(Path, paths))
    return visible(", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""))


def _say(text: str) -> None:
    print(f"trio-crowws: {text}", file=sys.stderr, flush=True)
