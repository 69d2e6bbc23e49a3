"""How `trio-crowws connect` shows what happens: events in, bytes out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_crowws import CloseFrame, CloseInfo, ConnectionLost, PayloadTooBig
from trio_crowws._cli.showing import JsonShow, Piece, PlainShow, Refusal, Show, TerminalShow, cells, visible

NORMAL = CloseInfo(1000, "", True, "local", CloseFrame(1000), CloseFrame(1000), None)
LOST = CloseInfo(1006, "", False, "remote", None, None, ConnectionLost("the transport was closed"))
TOLD = CloseInfo(1009, "too big", False, "local", CloseFrame(1009, "too big"), None, PayloadTooBig("too big"))
EVIL = "\x1b]0;title\x07\r\n\x9b31m\x00\u202e\x7fend"


def evil_close() -> CloseInfo:
    return CloseInfo(4001, EVIL, True, "remote", CloseFrame(4001, EVIL), CloseFrame(4001, EVIL), None)


EVENTS: dict[str, Callable[[Show], Piece]] = {
    "opened": lambda show: show.opened("ws://h/\x1b", "v1", 0.0015),
    "text": lambda show: show.message(EVIL),
    "binary": lambda show: show.message(EVIL.encode()),
    "ping": lambda show: show.ping(EVIL.encode()),
    "pong": lambda show: show.pong(0.0123),
    "closed": lambda show: show.closed(evil_close(), 0.001),
    "refused": lambda show: show.refused("ws://h/", Refusal(403, [("x", EVIL)], EVIL.encode())),
    "error": lambda show: show.error(EVIL),
    "note": lambda show: show.note(EVIL),
}


@pytest.mark.parametrize("event", EVENTS)
def test_a_peer_cannot_command_a_terminal(event: str) -> None:
    """Whatever a peer sends, and wherever it sends it, a terminal gets no control character of it."""
    data = EVENTS[event](TerminalShow()).data.decode()
    assert data.endswith("\n")
    assert re.sub(r"\x1b\[[0-9]*m", "", data[:-1]).isprintable()


@pytest.mark.parametrize("event", EVENTS)
def test_nor_one_without_colours(event: str) -> None:
    """The same holds where no colours are wanted: one printable line per event."""
    line = EVENTS[event](PlainShow(escaped=True)).data.decode()
    assert line.endswith("\n")
    assert line[:-1].isprintable()


@given(st.text())
def test_visible(text: str) -> None:
    """Any text becomes printable, but for the spaces of other scripts."""
    assert re.sub(r"[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]", " ", visible(text)).isprintable()


@pytest.mark.parametrize("text", ["plain", "žluťoučký", "日本　語", "a\u00a0b", ""])
def test_what_is_harmless_stays(text: str) -> None:
    """Letters of all scripts, and their spaces, are shown as they are."""
    assert visible(text) == text


# Pipes


@pytest.mark.parametrize(("data", "expected"), [(EVIL, EVIL.encode()), (b"\x00\xff", b"\x00\xff")])
def test_a_pipe_gets_messages_as_they_are(data: str | bytes, expected: bytes) -> None:
    """A message is its own bytes and a line end, on the standard output."""
    assert PlainShow(escaped=False).message(data) == Piece(expected + b"\n")


@pytest.mark.parametrize("event", sorted(EVENTS.keys() - {"text", "binary"}))
def test_a_pipe_gets_nothing_but_messages(event: str) -> None:
    """All else goes to the standard error."""
    assert EVENTS[event](PlainShow(escaped=False)).to_error


@pytest.mark.parametrize(
    ("piece", "line"),
    [
        (lambda show: show.opened("ws://h/", None, 0.0015), "connected to ws://h/ in 1.5 ms"),
        (lambda show: show.opened("ws://h/", "v1", 0.0015), "connected to ws://h/ in 1.5 ms, subprotocol v1"),
        (lambda show: show.ping(b""), "ping"),
        (lambda show: show.ping(b"ab"), "ping 61 62"),
        (lambda show: show.pong(0.0123), "pong after 12.3 ms"),
        (lambda show: show.closed(NORMAL, None), "closed with 1000 by the client"),
        (
            lambda show: show.closed(LOST, 0.001),
            "closed with 1006 by the server: the transport was closed (latency 1.0 ms)",
        ),
        (lambda show: show.closed(TOLD, None), "closed with 1009 'too big' by the client"),
        (lambda show: show.refused("ws://h/", Refusal(404, [], b"")), "trio-crowws: ws://h/ was refused with HTTP 404"),
        (
            lambda show: show.refused("ws://h/", Refusal(404, [], b"no\n")),
            "trio-crowws: ws://h/ was refused with HTTP 404: no",
        ),
        (
            lambda show: show.refused("ws://h/", Refusal(400, [], b"no", "so it is")),
            "trio-crowws: ws://h/ was refused with HTTP 400 (so it is): no",
        ),
    ],
)
def test_lines(piece: Callable[[Show], Piece], line: str) -> None:
    """What happens is a short line."""
    assert piece(PlainShow(escaped=False)) == Piece(f"{line}\n".encode(), to_error=True)


# Terminals


def test_coloured_lines() -> None:
    """An event is one coloured line."""
    show = TerminalShow()
    assert show.message("hello").data == b"\x1b[32m< hello\x1b[0m\n"
    assert show.closed(NORMAL, None).data.startswith(b"\x1b[33mclosed with 1000")
    assert show.closed(LOST, None).data.startswith(b"\x1b[31mclosed with 1006")


def test_binary_messages_are_shown_in_part() -> None:
    """Of a long binary message the size and the first bytes are shown."""
    assert b"binary, 2 bytes: 00 ff" in TerminalShow().message(b"\x00\xff").data
    assert b"binary, 1,000 bytes: " + b" ".join([b"78"] * 64) + b" ...\x1b" in TerminalShow().message(b"x" * 1000).data


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", 0), ("abcd", 4), ("日本", 4), ("a日", 3), ("e\u0301", 1), ("e\u20dd", 1), ("\u2764\ufe0f", 1)],
)
def test_cells(text: str, expected: int) -> None:
    """Wide characters take two cells, accents and variation selectors none."""
    assert cells(text) == expected


# Programs


def as_json(piece: Piece) -> dict[str, object]:
    assert not piece.to_error
    assert piece.data.endswith(b"\n")
    line = piece.data[:-1].decode("ascii")
    assert line.isprintable()
    event: dict[str, object] = json.loads(line)
    return event


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            lambda show: show.opened("ws://h/", "v1", 0.5),
            {"event": "open", "url": "ws://h/", "subprotocol": "v1", "seconds": 0.5},
        ),
        (lambda show: show.message(EVIL), {"event": "message", "type": "text", "data": EVIL}),
        (lambda show: show.message(b"\x00\xff"), {"event": "message", "type": "binary", "data": "AP8="}),
        (lambda show: show.ping(b"\x00"), {"event": "ping", "data": "AA=="}),
        (lambda show: show.pong(0.25), {"event": "pong", "latency": 0.25}),
        (
            lambda show: show.closed(evil_close(), 0.25),
            {
                "event": "close",
                "code": 4001,
                "reason": EVIL,
                "clean": True,
                "by": "remote",
                "error": None,
                "latency": 0.25,
            },
        ),
        (
            lambda show: show.closed(LOST, None),
            {
                "event": "close",
                "code": 1006,
                "reason": "",
                "clean": False,
                "by": "remote",
                "error": "the transport was closed",
                "latency": None,
            },
        ),
        (
            lambda show: show.refused("ws://h/", Refusal(403, [("a", "b")], b"no\xff")),
            {
                "event": "refused",
                "url": "ws://h/",
                "status": 403,
                "headers": [["a", "b"]],
                "body": "no\ufffd",
                "hint": None,
            },
        ),
        (
            lambda show: show.refused("ws://h/", Refusal(400, [], b"", "so it is")),
            {"event": "refused", "url": "ws://h/", "status": 400, "headers": [], "body": "", "hint": "so it is"},
        ),
        (lambda show: show.error("no"), {"event": "error", "message": "no"}),
        (lambda show: show.note("so"), {"event": "note", "message": "so"}),
    ],
)
def test_json(make: Callable[[Show], Piece], expected: dict[str, object]) -> None:
    """An event is one line of ASCII, and nothing is lost or changed in it."""
    assert as_json(make(JsonShow(lambda: 1.5))) == {**expected, "time": 1.5}


@given(st.text())
def test_any_text_as_json(text: str) -> None:
    """Any text survives, on a line that a terminal may show."""
    assert as_json(JsonShow(lambda: 1).message(text))["data"] == text
