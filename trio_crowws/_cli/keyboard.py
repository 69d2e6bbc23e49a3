"""Keys from a terminal, one by one; and the terminal as it was when that is over, or when the process is stopped."""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, final

import trio

from .editing import Editor
from .standard import Lines, check_size

if sys.platform != "win32":  # pragma: no branch - a console of Windows edits lines by itself
    import termios

__all__ = ["CAN_EDIT", "Keyboard"]

CAN_EDIT = sys.platform != "win32"

_LOCAL = 3
_CONTROL = 6
"""Where `termios` has the local modes and the control characters."""


@final
class Keyboard:
    """The lines that are typed and edited on a terminal.

    Args:
      descriptor: the terminal.
      editor: takes the keys.
      changed: called after keys were taken, with the lines that they have completed.
    """

    def __init__(self, descriptor: int, editor: Editor, changed: Callable[[list[bytes]], Awaitable[None]]) -> None:
        self._descriptor = descriptor
        self._input = Lines(descriptor)
        self._editor = editor
        self._changed = changed
        self._ready: deque[bytes] = deque()
        self._before: list[Any] | None = None
        """The settings of the terminal from before, as long as they are changed."""
        self._is_open = False
        self._has_read = False

    @property
    def signals(self) -> tuple[signal.Signals, ...]:
        """The signals that are about the terminal; who gets one calls `obey`."""
        if sys.platform == "win32":  # pragma: no cover - there is no Keyboard
            return ()
        # A shell without job control ignores Ctrl-Z, and so do its children.
        stop = (signal.SIGTSTP,) if signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL else ()
        return (signal.SIGWINCH, signal.SIGCONT, *stop)

    def obey(self, number: int) -> None:
        """The size of the terminal has changed, or the process is to stop, or goes on."""
        if sys.platform == "win32":  # pragma: no cover - there is no Keyboard
            return
        if number == signal.SIGTSTP:
            self._restore()
            os.kill(os.getpid(), signal.SIGSTOP)  # the next line runs when it goes on
        if self._is_open:
            self._change()

    def open(self) -> None:
        """From now on keys come one by one, and are not shown by the terminal itself."""
        self._is_open = True
        self._change()

    def close(self) -> None:
        """The terminal is as it was before."""
        self._is_open = False
        self._restore()

    def _change(self) -> None:
        # In the background the terminal belongs to others; there will be a SIGCONT.
        if sys.platform == "win32" or self._before is not None or self._is_in_background:
            return
        before = termios.tcgetattr(self._descriptor)
        changed: list[Any] = [*before[:_CONTROL], [*before[_CONTROL]]]
        # Ctrl-C and Ctrl-Z go on to be signals (ISIG), and Ctrl-V is a key as any other (IEXTEN).
        changed[_LOCAL] &= ~(termios.ICANON | termios.ECHO | termios.IEXTEN)
        changed[_CONTROL][termios.VMIN], changed[_CONTROL][termios.VTIME] = 1, 0
        termios.tcsetattr(self._descriptor, termios.TCSANOW, changed)
        self._before = before

    def _restore(self) -> None:
        before, self._before = self._before, None
        if sys.platform != "win32" and before is not None:
            with suppress(termios.error):  # a terminal that is gone
                termios.tcsetattr(self._descriptor, termios.TCSANOW, before)

    async def next(self) -> bytes | None:
        """The next line without its end, or `None` after the last one.

        Raises:
          InputError: the line is longer than 64 MiB.
          OSError: the terminal cannot be read.

        Cancellation: nothing is lost.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._ready:
            if self._editor.ended or not (data := await self._input.read()):
                return None
            lines = self._editor.feed(data if self._has_read else _typed_ahead(data))
            self._has_read = True
            self._ready += lines
            check_size(self._editor.size)
            await self._changed(lines)
        return self._ready.popleft()

    def discard_typed(self) -> None:
        """Forget what was typed and not taken."""
        self._input.discard_typed()

    @property
    def _is_in_background(self) -> bool:
        try:
            return os.tcgetpgrp(self._descriptor) != os.getpgrp()
        except OSError:  # it is not the terminal that controls this process
            return False


def _typed_ahead(data: bytes) -> bytes:
    """What was typed before keys came one by one, when Linux has stored a NUL in place of each Ctrl-D."""
    return data.replace(b"\x00", b"\x04")
