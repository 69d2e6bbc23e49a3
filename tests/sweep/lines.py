"""SIGINT at one chosen line of the package's own code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import trio

import trio_crowws

__all__ = ["Striker"]

PACKAGE = str(Path(trio_crowws.__file__).parent)


class Striker:
    """Counts the lines of the package as they are run, and has a signal arrive just before one of them.

    It is Trio's own handler that judges what becomes of the signal: it raises on the spot, or tells the main task.

    Args:
      at: the number of the line, from 1; 0 for none.
      everywhere: count all lines; otherwise only those at which Trio would raise on the spot.
      testing: count those of the testing kit, too.

    Attributes:
      lines: how many there were, until the signal came.
      functions: in which functions they were.
      place: where it came.
    """

    def __init__(self, at: int, *, everywhere: bool = False, testing: bool = False) -> None:
        self._testing = testing
        self._at = at
        self._everywhere = everywhere
        self.lines = 0
        self.functions: set[str] = set()
        self.place: str | None = None

    @contextmanager
    def watching(self) -> Generator[None]:
        """Count what is run in the block."""
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        ours = name.startswith(PACKAGE) and (self._testing or "testing" not in name[len(PACKAGE) :])
        return self._look if ours and self.place is None else None

    def _look(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event != "line" or self.place is not None:
            return self._look
        if not self._everywhere and trio.lowlevel.currently_ki_protected():
            return self._look
        self.lines += 1
        self.functions.add(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_qualname}")
        if self.lines == self._at:
            self.place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_qualname}"
            signal.raise_signal(signal.SIGINT)
        return self._look
