"""The line that is typed on a terminal: which keys do what, and where it is drawn."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_crowws._cli import editing
from trio_crowws._cli.editing import Editor, Row
from trio_crowws._cli.showing import Piece, cells

UP, DOWN, RIGHT, LEFT = b"\x1b[A", b"\x1b[B", b"\x1b[C", b"\x1b[D"
HOME, END, DELETE = b"\x1b[H", b"\x1b[F", b"\x1b[3~"


def after(*keys: bytes) -> tuple[str, str]:
    """What is before and behind the cursor after some keys, none of which ends the line."""
    editor = Editor()
    for key in keys:
        assert editor.feed(key) == []
    return editor.view(1000)


def sent(*keys: bytes) -> list[bytes]:
    """The lines that were sent."""
    editor = Editor()
    return [line for key in keys for line in editor.feed(key)]


# Editing


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([b"helo", LEFT, b"l"], ("hell", "o")),
        ([b"ab", LEFT, LEFT, LEFT, b"x"], ("x", "ab")),
        ([b"ab", RIGHT, b"c"], ("abc", "")),
        ([b"ab", LEFT, RIGHT, b"c"], ("abc", "")),
        ([b"ab", b"\x02", b"x", b"\x06", b"y"], ("axby", "")),
        ([b"ab", HOME, b"x"], ("x", "ab")),
        ([b"ab", HOME, END, b"x"], ("abx", "")),
        ([b"ab", b"\x01", b"x", b"\x05", b"y"], ("xaby", "")),
        ([b"ab", b"\x7f"], ("a", "")),
        ([b"ab", b"\x08"], ("a", "")),
        ([b"\x7f"], ("", "")),
        ([b"ab", HOME, DELETE], ("", "b")),
        ([b"ab", HOME, b"\x04"], ("", "b")),
        ([b"ab", b"\x04"], ("ab", "")),
        ([b"abcd", LEFT, LEFT, b"\x0b"], ("ab", "")),
        ([b"abcd", LEFT, LEFT, b"\x0b", HOME, b"\x19"], ("cd", "ab")),
        ([b"abcd", LEFT, LEFT, b"\x15"], ("", "cd")),
        ([b"one two.three ", b"\x17"], ("one ", "")),
        ([b"one", b"\x17"], ("", "")),
        ([b"  one", b"\x17"], ("  ", "")),
        ([b"one two.three", b"\x1b\x7f"], ("one two.", "")),
        ([b"one two.three", b"\x1b\x08", b"\x1b\x08", b"\x19"], ("one two.", "")),
        ([b"one two", b"\x1bb"], ("one ", "two")),
        ([b"one two", b"\x1b[1;5D", b"\x1b[1;3D"], ("", "one two")),
        ([b"one two", HOME, b"\x1bf"], ("one", " two")),
        ([b"one two", HOME, b"\x1b[1;5C", b"\x1bOc"], ("one two", "")),
        ([b"one two", HOME, b"\x1bd"], ("", " two")),
        ([b"one two", HOME, b"\x1bd", END, b"\x19"], (" twoone", "")),
        ([b"ab", b"\x14"], ("ba", "")),
        ([b"abc", LEFT, b"\x14"], ("acb", "")),
        ([b"a", b"\x14"], ("a", "")),
        ([b"\x14"], ("", "")),
        ([b"ab", HOME, b"\x14"], ("", "ab")),
        ([b"a\tb"], ("a\\tb", "")),
        ([b"a", b"\x16", b"\x1b", b"[A"], ("a\\x1b[A", "")),
        ([b"a", b"\x0c", b"\x00", b"\x07", b"b"], ("ab", "")),
    ],
    ids=repr,
)
def test_keys(keys: list[bytes], expected: tuple[str, str]) -> None:
    """Each key does what it does in a shell; what has no meaning does nothing."""
    assert after(*keys) == expected


@pytest.mark.parametrize(
    "key",
    [
        b"\x1b[5~",
        b"\x1b[15;2~",
        b"\x1b[?1;2c",
        b"\x1bOP",
        b"\x1bz",
        b"\x1b[I",
        b"\x1b\x1b[Z",
        b"\x1b[" + b"1" * 32 + b"A",
    ],
    ids=repr,
)
def test_keys_without_a_meaning(key: bytes) -> None:
    """Nothing of them gets into the line, in whatever pieces they come."""
    assert after(b"a", key, b"b") == ("ab", "")
    assert after(b"a", *(key[at : at + 1] for at in range(len(key))), b"b") == ("ab", "")


def test_a_sequence_that_never_ends() -> None:
    """It is bounded, and ends with the line."""
    assert sent(b"a\x1b[" + b"1" * 1000 + b"\n") == [b"a" + b"1" * 967]
    assert sent(b"a\x1b[", b"\n") == [b"a"]
    assert sent(b"a\x1b", b"\n", b"[A\n") == [b"a", b"[A"]


@pytest.mark.parametrize("variant", [b"\x1bO%b", b"\x1b[%b"])
def test_both_modes_of_the_arrow_keys(variant: bytes) -> None:
    """A terminal in application mode sends other sequences for the same keys."""
    keys = {name: variant.replace(b"%b", name.encode()) for name in "ABCDHF"}
    assert after(b"ab", keys["D"], keys["D"], keys["C"], b"x") == ("ax", "b")
    assert after(b"ab", keys["H"], b"x", keys["F"], b"y") == ("xaby", "")
    assert sent(b"one\n", keys["A"], b"\n", keys["A"], keys["B"], b"two\n") == [b"one", b"one", b"two"]


def test_accents_belong_to_their_letter() -> None:
    """The cursor passes them, and a key deletes them, with it."""
    line = "e\u0301\u0302x".encode()
    assert after(line, LEFT, LEFT, b"a") == ("a", "e\u0301\u0302x")
    assert after(line, HOME, RIGHT, b"a") == ("e\u0301\u0302a", "x")
    assert after(line, LEFT, b"\x7f") == ("", "x")
    assert after(line, HOME, DELETE) == ("", "x")


def test_letters_in_pieces() -> None:
    """The bytes of a letter may come one by one."""
    data = "日é🦅".encode()
    assert after(*(data[at : at + 1] for at in range(len(data)))) == ("日é🦅", "")


# Lines


@pytest.mark.parametrize("end", [b"\n", b"\r"])
def test_a_line_is_sent_as_a_whole(end: bytes) -> None:
    """Wherever the cursor is; the next one begins empty."""
    assert sent(b"helo", LEFT, b"l", end, b"x", end, end) == [b"hello", b"x", b""]


def test_pasted_lines() -> None:
    """What comes in one piece is as many lines as it has ends, and the rest is edited."""
    editor = Editor()
    assert editor.feed(b"one\ntwo\nthr") == [b"one", b"two"]
    assert editor.view(80) == ("thr", "")


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_any_bytes_can_be_sent(parts: list[bytes]) -> None:
    """Bytes that are no text, and those that are keys, if each of the latter is quoted."""
    line = b"".join(parts)
    keys = re.sub(rb"[\x00-\x1f\x7f]", lambda found: b"\x16" + found[0], line)
    assert sent(keys, b"\n") == [line]


@given(st.lists(st.binary(max_size=9), max_size=9))
def test_no_keys_do_harm(keys: list[bytes]) -> None:
    """Whatever is typed, what is drawn is printable and fits."""
    editor = Editor()
    for key in keys:
        editor.feed(key)
        seen = "".join(editor.view(20))
        assert re.sub(r"\s", "", seen) == "" or re.sub(r"\s", "", seen).isprintable()
        assert cells(seen) <= 20


def test_the_end() -> None:
    """Ctrl-D on an empty line, but not on another one; nothing is taken after it."""
    editor = Editor()
    assert editor.feed(b"a\x04\x7f") == []
    assert not editor.ended
    assert editor.feed(b"\x04b\n") == []
    assert editor.ended


# History


def test_the_history() -> None:
    """Lines come back in the order in which they were sent, and may be edited and sent again."""
    assert sent(b"one\n", b"two\n", UP, UP, b"!\n", UP, b"\n") == [b"one", b"two", b"one!", b"one!"]


def test_the_line_that_was_not_sent_comes_back() -> None:
    """Behind the last line of the history."""
    assert after_history(b"dra", UP, UP, UP, DOWN, DOWN, DOWN) == "dra"
    assert after_history(b"dra", b"\x10", b"\x0e", b"ft") == "draft"


def after_history(*keys: bytes) -> str:
    editor = Editor()
    editor.feed(b"one\ntwo\n")
    for key in keys:
        editor.feed(key)
    return "".join(editor.view(80))


def test_what_is_not_remembered() -> None:
    """Lines without anything in them, and the same line twice in a row."""
    assert sent(b"one\n", b"two\n", b"two\n", b" \n", b"\n", UP, UP, b"\n")[-1] == b"one"


def test_the_history_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest lines are forgotten."""
    monkeypatch.setattr(editing, "HISTORY", 2)
    assert sent(b"one\n", b"two\n", b"three\n", UP, UP, UP, UP, b"\n")[-1] == b"two"


# Drawing


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([b"abcdefgh"], ("abcdefgh", "")),
        ([b"abcdefghi"], ("abcdefghi", "")),
        ([b"abcdefghij"], ("bcdefghij", "")),
        ([b"abcdefghij", HOME], ("", "abcdefghij")),
        ([b"abcdefghijk", HOME], ("", "abcdefghij")),
        ([b"abcdefghijk", LEFT], ("bcdefghij", "k")),
        (["日本日本日本".encode()], ("日本日本", "")),
    ],
    ids=repr,
)
def test_a_line_that_is_too_long(keys: list[bytes], expected: tuple[str, str]) -> None:
    """The part around the cursor is seen."""
    editor = Editor()
    for key in keys:
        editor.feed(key)
    assert editor.view(10) == expected


class Screen:
    """As much of a terminal as the program uses: rows of text and a cursor."""

    def __init__(self, columns: int, height: int) -> None:
        self.rows = [""] * height
        self._columns, self._height = columns, height
        self._row = self.column = 0

    def write(self, piece: Piece) -> None:
        for token in re.findall(r"\x1b\[[0-9]*[A-Za-z]|.|\n", piece.data.decode(), re.DOTALL):
            self._do(token)

    @property
    def shown(self) -> list[str]:
        return [row.rstrip() for row in self.rows if row.strip()]

    def _do(self, token: str) -> None:
        if token == "\r":
            self.column = 0
        elif token == "\n":
            self.column = 0  # a terminal driver adds the return
            if self._row == self._height - 1:
                self.rows = [*self.rows[1:], ""]
            else:
                self._row += 1
        elif token == "\x1b[K":
            self.rows[self._row] = self.rows[self._row][: self.column]
        elif not token.startswith("\x1b"):
            assert token.isprintable()
            if self.column == self._columns:
                self._do("\n")
            row = self.rows[self._row].ljust(self.column)
            self.rows[self._row] = row[: self.column] + token + row[self.column + 1 :]
            self.column += 1


def a_row(
    *, prompt: str = "> ", coloured: bool = True, columns: int = 40, places: tuple[bool, ...] = (False, True)
) -> Row:
    return Row(Editor(), prompt, coloured=coloured, places=frozenset(places), columns=lambda: columns)


def note(text: str, *, to_error: bool = False) -> Piece:
    return Piece(f"{text}\n".encode(), to_error)


@pytest.mark.parametrize("coloured", [True, False])
@pytest.mark.parametrize("height", [4, 24])
def test_what_is_being_typed_stays(height: int, coloured: bool) -> None:
    """What is shown appears above the row, in the middle of the screen and at its bottom."""
    screen, row = Screen(40, height), a_row(coloured=coloured)
    screen.write(row.around(note("connected")))
    screen.write(row.open())
    row._editor.feed(b"hel")
    screen.write(row.draw())
    for number in range(6):
        screen.write(row.around(note(f"message {number}", to_error=number % 2 == 0)))
    row._editor.feed(b"lo" + LEFT)
    screen.write(row.draw())
    assert screen.shown[-3:] == ["message 4", "message 5", "> hello"]
    assert screen.column == 6
    if height == 24:
        assert screen.shown[0] == "connected"
        assert len(screen.shown) == 8


@pytest.mark.parametrize("coloured", [True, False])
def test_a_line_that_was_sent_stays_as_a_whole(coloured: bool) -> None:
    """However long it is, and wherever the cursor was; below it there is a new row."""
    screen, row = Screen(30, 10), a_row(coloured=coloured, columns=30)
    screen.write(row.open())
    row._editor.feed(b"x" * 50 + LEFT)
    screen.write(row.draw())
    [line] = row._editor.feed(b"\n")
    screen.write(row.submitted(line))
    screen.write(row.draw())
    assert screen.shown == ["> " + "x" * 28, "x" * 22, ">"]


def test_a_line_that_was_sent_cannot_command_the_terminal() -> None:
    """What was quoted is shown."""
    assert a_row().submitted(b"a\x1b[31m\xff") == Piece(b"\r\x1b[K> a\\x1b[31m\\udcff\n> ")


@pytest.mark.parametrize("coloured", [True, False])
def test_the_row_goes_with_the_connection(coloured: bool) -> None:
    """When nothing more can be sent, what is shown next takes the place of the prompt."""
    screen, row = Screen(60, 10), a_row(coloured=coloured)
    assert not row.is_open
    screen.write(row.open())
    assert row.is_open
    row._editor.feed(b"half a li")
    screen.write(row.draw())
    screen.write(row.close())
    assert not row.is_open
    screen.write(row.around(note("closed")))
    assert screen.shown == ["closed"]


def test_without_escape_sequences() -> None:
    """A plain terminal gets none, and nothing at all where there is neither a prompt nor a line."""
    row = a_row(prompt="", coloured=False)
    assert row.open() == Piece(b"")
    assert row.around(note("a")) == note("a")
    row._editor.feed(b"abc" + LEFT)
    assert row.draw() == Piece(b"abc\rab")
    assert row.around(note("b")) == Piece(b"\r   \rb\nabc\rab")


def test_a_shorter_terminal() -> None:
    """The width is asked for each time, and is taken to be 20 at least."""
    width = 80
    row = Row(Editor(), "> ", coloured=True, places=frozenset((False,)), columns=lambda: width)
    row._editor.feed(b"x" * 100)
    assert row.draw().data.count(b"x") == 76
    width = 40
    assert row.draw().data.count(b"x") == 36
    width = 1
    assert row.draw().data.count(b"x") == 17


@pytest.mark.parametrize(("places", "where"), [((False, True), False), ((False,), False), ((True,), True)])
def test_which_output_is_the_terminal(places: tuple[bool, ...], where: bool) -> None:
    """The row is drawn there, and what goes to the other output has nothing to do with it."""
    row = a_row(places=places)
    assert row.open().to_error is where
    for to_error in (False, True):
        piece = note("x", to_error=to_error)
        assert (row.around(piece) == piece) is (to_error not in places)
