"""The one way to the log `trio_crowws`, which never raises into the code that logs, and never quotes what it must not.

Handlers, filters, formatters and streams of a log are the application's, and any of them may fail: on a stderr that is
closed, `logging` itself raises. Whatever it is, a line is lost and nothing else. There is no other place to say so.

Records are made of text that is ours or went through `_foreign`. An exception of the application's own is logged with
its traceback. The text of an exception often quotes what a peer sent, so the traceback is rendered here, where every
exception is one line of ASCII, every line is indented, and there is a limit to all of it. Formatters show that text
(`record.exc_text`), and tools that want the exception itself find it in `record.exc_info`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from traceback import extract_tb, format_list
from types import TracebackType
from typing import Final

from ._foreign import cause_of, class_name, context_of, describe, members_of, plain, text_of, traceback_of

__all__ = ["log"]

_EXCEPTIONS: Final = 20
"""Exceptions of one record: the first, its causes and contexts, and the members of groups."""

_MEMBERS: Final = 10
"""Members of one group that are shown."""

_TOP: Final = 10
_BOTTOM: Final = 30
"""Frames of one traceback that are shown: the outermost, and those nearest to where it was raised."""

_FURTHER_TOP: Final = 3
_FURTHER_BOTTOM: Final = 7
"""The same for every exception but the first."""

_LINE: Final = 300
"""Characters of one line of a traceback."""

_NOTES: Final = 10

_module: Callable[[type], object] = type.__dict__["__module__"].__get__


class _Log:
    """The log, as the methods of `logging.Logger`; arguments are ours, or went through `_foreign`."""

    def __init__(self) -> None:
        self._logger = logging.getLogger("trio_crowws")

    def shows(self, level: int) -> bool:
        """Whether anybody sees records of that level."""
        try:
            return self._logger.isEnabledFor(level)
        except Exception:
            return False

    def debug(self, message: str, *arguments: object) -> None:
        """Log at DEBUG."""
        self._write(logging.DEBUG, message, arguments)

    def info(self, message: str, *arguments: object) -> None:
        """Log at INFO."""
        self._write(logging.INFO, message, arguments)

    def warning(self, message: str, *arguments: object) -> None:
        """Log at WARNING."""
        self._write(logging.WARNING, message, arguments)

    def error(self, message: str, *arguments: object, exc_info: BaseException | None = None) -> None:
        """Log at ERROR; with `exc_info` the traceback of that exception follows."""
        self._write(logging.ERROR, message, arguments, exc_info)

    def _write(
        self, level: int, message: str, arguments: tuple[object, ...], error: BaseException | None = None
    ) -> None:
        logger = self._logger
        try:
            if not logger.isEnabledFor(level):
                return
            path, line, function, _ = logger.findCaller(stacklevel=3)  # whoever called `info` or its like
            record = logger.makeRecord(logger.name, level, path, line, message, arguments, None, function)
            if error is not None:
                record.exc_info = (type(error), error, traceback_of(error))
                record.exc_text = render(error)
            logger.handle(record)
        except Exception:  # the log cannot be written, so there is no place to say that
            return


log = _Log()


# Tracebacks


def render(error: BaseException) -> str:
    """An exception with its traceback, causes, contexts, notes and members, as lines that nothing can forge."""
    try:
        return "\n".join(_Rendering().chain(error, "  "))
    except Exception as other:  # memory is short, or the stack of whoever logs is nearly at its end
        return f"  (no traceback: {class_name(other)})"


class _Rendering:
    """One record's text. It is made from the outermost exception inwards, so the limits cut what is further away."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def chain(self, error: BaseException, indent: str) -> list[str]:
        """`error` and, before it as Python has it, what led to it."""
        lines: list[str] = []
        link: list[str] = []
        following: BaseException | None = error
        while following is not None:
            if id(following) in self._seen or len(self._seen) >= _EXCEPTIONS:
                return [f"{indent}(further exceptions are left out)", *link, *lines]
            self._seen.add(id(following))
            lines = [*self._one(following, indent), *link, *lines]
            reason = cause_of(following)
            link = ["", f"{indent}The above exception was the direct cause of the following exception:", ""]
            if reason is None:
                reason = context_of(following)
                link[1] = f"{indent}During handling of the above exception, another exception occurred:"
            following = reason
        return lines

    def _one(self, error: BaseException, indent: str) -> list[str]:
        top, bottom = (_TOP, _BOTTOM) if len(self._seen) == 1 else (_FURTHER_TOP, _FURTHER_BOTTOM)
        lines = [indent + line for line in _frames(traceback_of(error), top, bottom)]
        lines.append(f"{indent}{_full_name(error)}: {text_of(error)}".removesuffix(": "))
        lines += [indent + note for note in _notes(error)]
        members = members_of(error)
        for number, member in enumerate(members[:_MEMBERS], 1):
            lines.append(f"{indent}  [{number} of {len(members)}]")
            lines += self.chain(member, indent + "    ")
            if len(self._seen) >= _EXCEPTIONS:
                break
        return lines


def _full_name(error: BaseException) -> str:
    module = _module(type(error))
    if type(module) is not str or module in ("builtins", "__main__"):
        return class_name(error)
    return f"{plain(module)}.{class_name(error)}"


def _notes(error: BaseException) -> list[str]:
    """The notes of `add_note`; they are an attribute like any other, so anything may be in their place."""
    try:
        notes = getattr(error, "__notes__", ())
        return [plain(note) if type(note) is str else describe(note) for note in list(notes)[:_NOTES]]
    except Exception as other:
        return [f"(no notes: {class_name(other)})"]


def _frames(traceback: TracebackType | None, top: int, bottom: int) -> list[str]:
    """The frames as Python shows them; source lines keep what letters they have."""
    count, step = 0, traceback
    while step is not None:
        count, step = count + 1, step.tb_next
    if count == 0:
        return []
    if count <= top + bottom:
        entries = _entries(traceback, None)
    else:
        left_out = f"  ({count - top - bottom} frames are left out)"
        entries = [*_entries(traceback, top), left_out, *_entries(traceback, -bottom)]
    lines = [line for entry in entries for line in entry.removesuffix("\n").split("\n")]
    return ["Traceback (most recent call last):", *map(_printable, lines)]


def _entries(traceback: TracebackType | None, limit: int | None) -> list[str]:
    frames = extract_tb(traceback, limit)
    for frame in frames:
        frame.filename, frame.name = _printable(frame.filename), _printable(frame.name)
    return format_list(frames)


def _printable(line: str) -> str:
    if len(line) > _LINE:
        line = line[:_LINE] + "..."
    if line.isprintable():
        return line
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
