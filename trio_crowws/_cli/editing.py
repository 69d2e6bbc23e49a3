"""The line that is typed on a terminal: keys in, lines and what to draw out. Nothing here waits, reads or writes.

Python's `readline` edits within one call that ends with the line. Whatever is written meanwhile would garble the line,
and a thread in that call cannot be told that the connection has ended. So the keys are read one by one, and the row of
the prompt is drawn anew below everything else that is written.

The keys are those of `readline` in its Emacs mode, as far as people know them by heart. The history is that of one
conversation; it is written nowhere, since messages may be secrets.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable
from typing import Final

from .showing import Piece, cells, visible

__all__ = ["Editor", "Row"]

HISTORY: Final = 1000
"""Lines that are remembered."""

_TYPED: Final = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]+")
"""Characters that stand for themselves; a tab is one of them, as there is nothing to complete."""

_PARAMETERS: Final = re.compile(r"\[[ -?]{0,32}|O")
"""The beginning of a sequence that a key sends (ECMA-48 section 5.4), without its last character."""


class Editor:
    """One line that is being edited, and those that were sent.

    Attributes:
      ended: Ctrl-D was typed on an empty line.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")  # so that all bytes come out again
        self._before = ""
        self._after = ""
        self._killed = ""
        self._history: list[str] = []
        self._place = 0
        """In the history; behind its end is the line that was never sent."""
        self._draft = ""
        self._sequence: str | None = None
        """What has come of the sequence of a key, without its escape character."""
        self._quoting = False
        self.ended = False

    @property
    def size(self) -> int:
        """Characters of the line."""
        return len(self._before) + len(self._after)

    def feed(self, data: bytes) -> list[bytes]:
        """Take what was typed.

        Returns:
          The lines that were completed by it, as they are sent; text is UTF-8.
        """
        lines: list[bytes] = []
        text = self._decoder.decode(data)
        at = 0
        while at < len(text) and not self.ended:
            typed = _TYPED.match(text, at)
            if self._quoting:
                self._quoting = False
                self._before += text[at]
            elif self._sequence is not None and text[at] not in "\r\n":
                self._continue(text[at])
            elif typed is not None:
                self._before += typed[0]
                at = typed.end()
                continue
            elif text[at] in "\r\n":
                lines.append(self._submit().encode("utf-8", "surrogateescape"))
            else:
                _KEYS.get(text[at], Editor._nothing)(self)
            at += 1
        return lines

    def view(self, width: int) -> tuple[str, str]:
        """What is to be seen before and behind the cursor, in so many cells at most: the part around the cursor."""
        before = _fitting(reversed(self._before), width - 1)[::-1]  # the cursor needs a cell, too
        after = _fitting(self._after, width - sum(map(cells, before)))
        return "".join(before), "".join(after)

    def _submit(self) -> str:
        line = self._before + self._after
        if line.strip() and self._history[-1:] != [line]:
            self._history.append(line)
            del self._history[:-HISTORY]
        self._place, self._draft, self._sequence = len(self._history), "", None
        self._before = self._after = ""
        return line

    def _continue(self, character: str) -> None:
        sequence = self._sequence
        assert sequence is not None
        sequence += character
        if _PARAMETERS.fullmatch(sequence):
            self._sequence = sequence
        elif character == "\x1b":
            self._sequence = ""
        else:
            self._sequence = None
            _SEQUENCES.get(sequence, Editor._nothing)(self)

    # Keys

    def _nothing(self) -> None:
        """A key without a meaning here."""

    def _escape(self) -> None:
        self._sequence = ""

    def _quote(self) -> None:
        self._quoting = True

    def _left(self) -> None:
        self._move(len(self._before) - _last(self._before))

    def _right(self) -> None:
        self._move(len(self._before) + _first(self._after))

    def _home(self) -> None:
        self._move(0)

    def _end(self) -> None:
        self._move(self.size)

    def _word_left(self) -> None:
        self._move(_word_begin(self._before))

    def _word_right(self) -> None:
        self._move(self.size - _word_begin(self._after[::-1]))

    def _move(self, place: int) -> None:
        line = self._before + self._after
        self._before, self._after = line[:place], line[place:]

    def _backspace(self) -> None:
        self._before = self._before[: len(self._before) - _last(self._before)]

    def _delete(self) -> None:
        self._after = self._after[_first(self._after) :]

    def _delete_or_end(self) -> None:
        if self.size:
            self._delete()
        else:
            self.ended = True

    def _kill_to_end(self) -> None:
        self._killed, self._after = self._after, ""

    def _kill_to_begin(self) -> None:
        self._killed, self._before = self._before, ""

    def _kill_word_left(self) -> None:
        self._kill_left(_word_begin(self._before))

    def _kill_blank_word_left(self) -> None:
        self._kill_left(self._before.rfind(" ", 0, len(self._before.rstrip())) + 1)

    def _kill_left(self, begin: int) -> None:
        self._killed, self._before = self._before[begin:], self._before[:begin]

    def _kill_word_right(self) -> None:
        end = len(self._after) - _word_begin(self._after[::-1])
        self._killed, self._after = self._after[:end], self._after[end:]

    def _yank(self) -> None:
        self._before += self._killed

    def _transpose(self) -> None:
        if not self._after and _last(self._before) < len(self._before):
            self._left()
        if self._before and self._after:
            first, second = _last(self._before), _first(self._after)
            begin = len(self._before) - first
            self._before = self._before[:begin] + self._after[:second] + self._before[begin:]
            self._after = self._after[second:]

    def _previous(self) -> None:
        self._recall(self._place - 1)

    def _next(self) -> None:
        self._recall(self._place + 1)

    def _recall(self, place: int) -> None:
        if not 0 <= place <= len(self._history):
            return
        if self._place == len(self._history):
            self._draft = self._before + self._after
        self._place = place
        self._before = self._draft if place == len(self._history) else self._history[place]
        self._after = ""


def _fitting(characters: Iterable[str], room: int) -> list[str]:
    """What is shown of the first characters, as far as they fit into so many cells."""
    shown: list[str] = []
    for character in characters:
        text = visible(character)
        room -= cells(text)
        if room < 0:
            break
        shown.append(text)
    return shown


def _first(text: str) -> int:
    """How many characters the first one that is seen has, with its accents."""
    size = min(1, len(text))
    while size < len(text) and not cells(text[size]):
        size += 1
    return size


def _last(text: str) -> int:
    """The same for the last one."""
    size = min(1, len(text))
    while 0 < size < len(text) and not cells(text[-size]):
        size += 1
    return size


def _word_begin(text: str) -> int:
    """Where the last word of a text begins."""
    place = len(text)
    while place and not text[place - 1].isalnum():
        place -= 1
    while place and text[place - 1].isalnum():
        place -= 1
    return place


_Key = Callable[[Editor], None]

_KEYS: Final[dict[str, _Key]] = {
    "\x01": Editor._home,
    "\x02": Editor._left,
    "\x04": Editor._delete_or_end,
    "\x05": Editor._end,
    "\x06": Editor._right,
    "\x08": Editor._backspace,
    "\x0b": Editor._kill_to_end,
    "\x0e": Editor._next,
    "\x10": Editor._previous,
    "\x14": Editor._transpose,
    "\x15": Editor._kill_to_begin,
    "\x16": Editor._quote,
    "\x17": Editor._kill_blank_word_left,
    "\x19": Editor._yank,
    "\x1b": Editor._escape,
    "\x7f": Editor._backspace,
}

# What the keys of common terminals send behind an escape character, or the Alt key with another one.
_SEQUENCES: Final[dict[str, _Key]] = {
    **dict.fromkeys(("[A", "OA"), Editor._previous),
    **dict.fromkeys(("[B", "OB"), Editor._next),
    **dict.fromkeys(("[C", "OC"), Editor._right),
    **dict.fromkeys(("[D", "OD"), Editor._left),
    **dict.fromkeys(("[H", "OH", "[1~", "[7~"), Editor._home),
    **dict.fromkeys(("[F", "OF", "[4~", "[8~"), Editor._end),
    "[3~": Editor._delete,
    **dict.fromkeys(("[1;5C", "[1;3C", "Oc", "f"), Editor._word_right),
    **dict.fromkeys(("[1;5D", "[1;3D", "Od", "b"), Editor._word_left),
    "d": Editor._kill_word_right,
    **dict.fromkeys(("\x7f", "\x08"), Editor._kill_word_left),
}


class Row:
    """The row of a terminal in which a line is typed, below all that is shown.

    Args:
      editor: the line.
      prompt: what stands before it.
      coloured: the terminal obeys escape sequences; without them, a row is cleared by spaces.
      places: of which outputs this is the terminal: `False` the standard output, `True` the standard error.
      columns: asks for the width of the terminal, which may change.

    Attributes:
      is_open: there is a row.
    """

    def __init__(
        self, editor: Editor, prompt: str, *, coloured: bool, places: frozenset[bool], columns: Callable[[], int]
    ) -> None:
        self._editor = editor
        self._prompt = prompt
        self._coloured = coloured
        self._places = places
        self._columns = columns
        self.is_open = False
        self._drawn = 0
        """Cells of what stands there now."""

    def open(self) -> Piece:
        """From now on there is a row."""
        self.is_open = True
        return self.draw()

    def draw(self) -> Piece:
        """The row as it is now, in place of what it was."""
        return self._piece(self._clear() + self._draw(), min(self._places))

    def submitted(self, line: bytes) -> Piece:
        """The row becomes the line that was sent, as a whole, and a new one comes below it."""
        text = visible(line.decode("utf-8", "surrogateescape"))
        return self._piece(f"{self._clear()}{self._prompt}{text}\n{self._draw()}", min(self._places))

    def around(self, piece: Piece) -> Piece:
        """What is written above the row, if it is written to the terminal."""
        if not self.is_open or piece.to_error not in self._places:
            return piece
        return Piece(self._clear().encode() + piece.data + self._draw().encode(), piece.to_error)

    def close(self) -> Piece:
        """The row goes, and whatever was typed there: nothing more can be sent."""
        self.is_open = False
        return self._piece(self._clear(), min(self._places))

    def _piece(self, text: str, to_error: bool) -> Piece:
        return Piece(text.encode(), to_error)

    def _clear(self) -> str:
        drawn, self._drawn = self._drawn, 0
        if self._coloured:
            return "\r\x1b[K"
        return f"\r{' ' * drawn}\r" if drawn else ""

    def _draw(self) -> str:
        width = max(20, self._columns() - 1) - len(self._prompt)
        before, after = self._editor.view(width)
        text = f"{self._prompt}{before}{after}"
        self._drawn = cells(text)
        return f"{text}\r{self._prompt}{before}" if after else text
