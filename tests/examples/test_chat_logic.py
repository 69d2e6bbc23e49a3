"""The chat example without a network: what it takes for a message, who is in a room, and what is kept of it."""

from __future__ import annotations

import json
import string
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "chat"))

from chat import HISTORY, KEEP_ROOMS, KEEP_SECONDS, Allowance, Lobby, Member
from messages import (
    MAX_KEY,
    MAX_NAME,
    MAX_TEXT,
    ChatError,
    Incoming,
    Join,
    Leave,
    Message,
    Ping,
    Typing,
    clean_name,
    clean_room,
    parse,
)
from tokens import LIFETIME, Tokens


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def refusal(data: str | bytes) -> str:
    """The code of the error with which `data` is answered."""
    with pytest.raises(ChatError) as caught:
        parse(data)
    assert caught.value.text  # there is always something for a person to read
    return caught.value.code


# Messages


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ('{"type": "join", "session": "s-1"}', Join("s-1", None)),
        ('{"type": "join", "session": "s", "after": "ab-7"}', Join("s", "ab-7")),
        ('{"type": "join", "session": "s", "after": null}', Join("s", None)),
        ('{"type": "message", "text": "hello"}', Message("hello", None)),
        ('{"type": "message", "text": "hello", "ref": "r1"}', Message("hello", "r1")),
        ('{"type": "message", "text": "  a\\r\\n\\tb \\n"}', Message("a\n\tb", None)),
        ('{"type": "message", "text": "\\ud83e\\udd85"}', Message("\N{EAGLE}", None)),
        ('{"type": "typing"}', Typing()),
        ('{"type": "typing", "mood": ["any"]}', Typing()),
        ('{"type": "leave"}', Leave()),
        ('{"type": "ping", "t": 12.5}', Ping(12.5)),
        ('{"type": "ping", "t": -3}', Ping(-3)),
    ],
)
def test_a_message_is_read(data: str, expected: Incoming) -> None:
    """Each of the five messages is read with its fields, and fields that nobody asked for are ignored."""
    assert parse(data) == expected


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b'{"type": "typing"}', "not_text"),
        ("", "bad_json"),
        ("{", "bad_json"),
        ("hello", "bad_json"),
        ("[]", "bad_json"),
        ("null", "bad_json"),
        ('"message"', "bad_json"),
        ('{"type": "ping", "t": NaN}', "bad_json"),
        ('{"type": "ping", "t": -Infinity}', "bad_json"),
        ('{"type": "ping", "t": ' + "1" * 6000 + "}", "bad_json"),
        ("[" * 16_000, "bad_json"),
        ("{}", "unknown_type"),
        ('{"type": null}', "unknown_type"),
        ('{"type": 7}', "unknown_type"),
        ('{"type": ["join"]}', "unknown_type"),
        ('{"type": "welcome"}', "unknown_type"),
        ('{"type": "join"}', "bad_field"),
        ('{"type": "join", "session": ""}', "bad_field"),
        ('{"type": "join", "session": 5}', "bad_field"),
        ('{"type": "join", "session": "a b"}', "bad_field"),
        ('{"type": "join", "session": "' + "s" * (MAX_KEY + 1) + '"}', "bad_field"),
        ('{"type": "join", "session": "s\\n"}', "bad_field"),
        ('{"type": "join", "session": "s", "after": 3}', "bad_field"),
        ('{"type": "message"}', "bad_field"),
        ('{"type": "message", "text": null}', "bad_field"),
        ('{"type": "message", "text": {"a": 1}}', "bad_field"),
        ('{"type": "message", "text": ""}', "bad_field"),
        ('{"type": "message", "text": " \\n\\t "}', "bad_field"),
        ('{"type": "message", "text": "' + "x" * (MAX_TEXT + 1) + '"}', "bad_field"),
        ('{"type": "message", "text": "a\\u0000b"}', "bad_field"),
        ('{"type": "message", "text": "a\\ud83e"}', "bad_field"),
        ('{"type": "message", "text": "a", "ref": "<b>"}', "bad_field"),
        ('{"type": "ping"}', "bad_field"),
        ('{"type": "ping", "t": "1"}', "bad_field"),
        ('{"type": "ping", "t": true}', "bad_field"),
        ('{"type": "ping", "t": 1e999}', "bad_field"),
        ('{"type": "ping", "t": ' + "1" * 400 + "}", "bad_field"),
    ],
)
def test_what_is_no_message_is_refused(data: str | bytes, code: str) -> None:
    """Whatever is no message gets an error that names what is wrong with it."""
    assert refusal(data) == code


def test_deep_nesting_is_refused() -> None:
    """Thousands of nested objects are refused: as no JSON where Python does not go so deep, else as an unknown type."""
    assert refusal('{"a":' * 3000 + "1" + "}" * 3000) in ("bad_json", "unknown_type")


def test_the_longest_text_is_taken() -> None:
    """A text of the greatest length goes through."""
    assert parse(json.dumps({"type": "message", "text": "x" * MAX_TEXT})) == Message("x" * MAX_TEXT, None)


@given(st.text() | st.binary())
def test_no_text_and_no_bytes_do_harm(data: str | bytes) -> None:
    """Any text and any bytes are a message or a ChatError, and never another exception."""
    try:
        parse(data)
    except ChatError:
        return
    pytest.fail(f"{data!r} can hardly be a message")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NEARLY_A_MESSAGE = st.fixed_dictionaries(
    {"type": st.sampled_from(["join", "message", "typing", "leave", "ping"]) | JSON},
    optional=dict.fromkeys(("session", "after", "text", "ref", "t"), JSON),
)


@given(NEARLY_A_MESSAGE)
def test_no_field_does_harm(fields: dict[str, Any]) -> None:
    """Whatever stands in the fields, the result is a ChatError, or a message that can be sent as UTF-8."""
    try:
        message = parse(json.dumps(fields))
    except ChatError:
        return
    if isinstance(message, Message):
        assert 1 <= len(message.text.encode()) <= 4 * MAX_TEXT


# Names


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("Ada", "Ada"),
        ("  Ada   Lovelace ", "Ada Lovelace"),
        ("O'Brien-Smith Jr.", "O'Brien-Smith Jr."),
        ("Zoe\u0308", "Zo\u00eb"),
        ("\u0928\u092e\u0938\u094d\u0924\u0947", "\u0928\u092e\u0938\u094d\u0924\u0947"),
        ("\u738b\u5c0f\u660e", "\u738b\u5c0f\u660e"),
        ("x" * MAX_NAME, "x" * MAX_NAME),
        ("7of9", "7of9"),
    ],
)
def test_a_name_is_cleaned(raw: str, name: str) -> None:
    """A name of any script is shown in one Unicode form and with single spaces."""
    assert clean_name(raw) == name


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "   ",
        "x" * (MAX_NAME + 1),
        "<b>",
        "a\u202eb",
        "a\u200bb",
        "a\x00b",
        "\ud800",
        "\u0308a",
        "-a",
        "a/b",
        "\U0001f985",
        "\u3164",
        "\u115fAda",
        "\u1160 \uffa0",
    ],
)
def test_a_bad_name_is_refused(raw: str) -> None:
    """A name that is empty, too long, or made of what cannot be seen or spoken is refused."""
    with pytest.raises(ChatError) as caught:
        clean_name(raw)
    assert caught.value.code == "bad_name"


# Letters, marks and formats that are drawn as nothing; those that a name may not hold at all are here, too.
UNSEEN = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b\u180e\u180f\u200b\u200d\u2060\u2064\u3164\ufe00\ufe0f\ufeff\uffa0"
    "\U00016fe4\U0001bc9d\U000e0001\U000e0041\U000e007f\U000e0100\U000e01ef"
)


@pytest.mark.parametrize("unseen", UNSEEN, ids=ascii)
@pytest.mark.parametrize("place", ["Ada{}", "A{}da", "A{0}{0}da{0}", "Ada {}", "Ada {} {}"])
def test_what_is_not_seen_makes_no_other_name(place: str, unseen: str) -> None:
    """A name with characters that are drawn as nothing is the same name as without them, wherever they stand."""
    assert Member(place.format(unseen, unseen), "r").key == Member("Ada", "r").key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ada", "ADA"),
        ("Ada", "\uff21\uff44\uff41"),
        ("Ada", "\u1d2cda"),
        ("\ufb01n", "fin"),
        ("Zo\u00eb", "Zoe\u0308"),
        ("Zo\u00eb", "Zoe\u034f\u0308"),
        ("Ada Byron", "Ada\u2009\u00a0Byron"),
        ("Ada Byron", "Ada \u3164 Byron"),
        ("\u1112\u1161", "\ud558"),
        ("Stra\u00dfe", "STRASSE"),
    ],
)
def test_what_looks_alike_is_one_name(one: str, other: str) -> None:
    """The case, the width, the form of a letter and the kind of a space make no other name."""
    assert Member(one, "r").key == Member(other, "r").key


@pytest.mark.parametrize(
    ("one", "other"),
    [("Ada", "Ida"), ("Ada", "Ad\u00e1"), ("Ada B", "AdaB"), ("A-da", "A_da"), ("\u0915\u093f", "\u0915\u0940")],
)
def test_what_looks_different_is_two_names(one: str, other: str) -> None:
    """Letters, accents, vowel signs, spaces and punctuation tell names apart."""
    assert Member(one, "r").key != Member(other, "r").key


@given(st.text(max_size=60))
def test_a_key_is_its_own_key(name: str) -> None:
    """The key of a key is the same key, so no detour over it makes a twin."""
    key = Member(name, "r").key
    assert Member(key, "r").key == key


@given(st.text(max_size=60))
def test_a_clean_name_stays_as_it_is(raw: str) -> None:
    """Cleaning a name twice gives what cleaning it once gives."""
    try:
        name = clean_name(raw)
    except ChatError:
        return
    assert clean_name(name) == name


@pytest.mark.parametrize(
    ("raw", "room"),
    [
        ("Garden", "garden"),
        ("a-b_2", "a-b_2"),
        ("", None),
        ("a b", None),
        ("a/b", None),
        ("\u00e4", None),
        ("a\n", None),
    ],
)
def test_a_room_is_named_by_few_characters(raw: str, room: str | None) -> None:
    """A room's name is lower case, and a name with anything but letters, digits, - and _ is none."""
    assert clean_room(raw) == room


def test_a_room_name_has_a_longest_length() -> None:
    """32 characters name a room, 33 do not."""
    assert clean_room("r" * 32) == "r" * 32
    assert clean_room("r" * 33) is None


# Tokens


def test_a_token_gives_the_name_back() -> None:
    """A token is good for the name that it was made for."""
    tokens = Tokens()
    assert tokens.name(tokens.issue("Zo\u00eb: the 2nd")) == "Zo\u00eb: the 2nd"


def test_a_token_needs_no_escaping() -> None:
    """A token consists of what may stand in a query and in a cookie as it is."""
    assert set(Tokens().issue("\u738b > ?")) <= set(string.ascii_letters + string.digits + "-_.")


def test_a_token_becomes_too_old() -> None:
    """A token is good until its lifetime is over."""
    clock = Clock()
    tokens = Tokens(clock)
    token = tokens.issue("Ada")
    clock.now += LIFETIME - 1
    assert tokens.name(token) == "Ada"
    clock.now += 1
    assert tokens.name(token) is None


def test_a_token_of_another_server_is_refused() -> None:
    """A token that was signed with another key is no token."""
    assert Tokens().name(Tokens().issue("Ada")) is None


def test_a_changed_token_is_refused() -> None:
    """A token in which one character was changed, anywhere, is no token."""
    tokens = Tokens()
    token = tokens.issue("Ada")
    for index, char in enumerate(token):
        changed = token[:index] + ("A" if char != "A" else "B") + token[index + 1 :]
        assert tokens.name(changed) is None, changed


@given(st.text())
def test_no_text_is_a_token(text: str) -> None:
    """Any text at all is refused quietly."""
    assert Tokens().name(text) is None


# Rooms


def member(name: str = "Ada", room: str = "garden") -> Member:
    return Member(name, room)


def entered(lobby: Lobby, name: str = "Ada", room: str = "garden", session: str = "s") -> Member:
    someone = member(name, room)
    assert lobby.enter(someone, session) is None
    return someone


def code_of(caught: pytest.ExceptionInfo[ChatError]) -> str:
    return caught.value.code


def test_a_name_is_there_once() -> None:
    """A second person cannot take a name that is in the room, however it is written."""
    lobby = Lobby()
    entered(lobby, "Ada", session="first")
    for same in ("Ada", "ADA", "\uff21\uff24\uff21"):
        with pytest.raises(ChatError) as caught:
            lobby.enter(member(same), "second")
        assert code_of(caught) == "name_taken"


def test_a_name_is_free_in_another_room() -> None:
    """The same name can be in two rooms, for two people."""
    lobby = Lobby()
    entered(lobby, "Ada", "garden", "first")
    entered(lobby, "Ada", "kitchen", "second")


def test_a_name_is_free_after_its_owner_left() -> None:
    """Whoever leaves gives the name back."""
    lobby = Lobby()
    assert lobby.exit(entered(lobby, session="first"))
    entered(lobby, session="second")


def test_the_same_session_takes_its_own_place() -> None:
    """A page that lost its connection gets its name back although the server has not missed it yet."""
    lobby = Lobby()
    old = entered(lobby, session="mine")
    new = member()
    assert lobby.enter(new, "mine") is old
    assert list(lobby.room_of(new).members.values()) == [new]


def test_who_was_replaced_cannot_leave_any_more() -> None:
    """The end of a connection that was replaced does not take its successor out of the room."""
    lobby = Lobby()
    old = entered(lobby, session="mine")
    new = member()
    lobby.enter(new, "mine")
    assert not lobby.exit(old)
    assert list(lobby.room_of(new).members.values()) == [new]


def test_one_joins_once() -> None:
    """Who is in the room cannot join it again."""
    lobby = Lobby()
    someone = entered(lobby)
    with pytest.raises(ChatError) as caught:
        lobby.enter(someone, "s")
    assert code_of(caught) == "already_joined"


def test_who_has_not_joined_cannot_speak() -> None:
    """Only who is in a room can say something there; who has left is not."""
    lobby = Lobby()
    someone = member()
    with pytest.raises(ChatError) as caught:
        lobby.post(someone, "hello", None)
    assert code_of(caught) == "not_joined"
    lobby.enter(someone, "s")
    lobby.exit(someone)
    with pytest.raises(ChatError) as caught:
        lobby.post(someone, "hello", None)
    assert code_of(caught) == "not_joined"


def say(lobby: Lobby, someone: Member, text: str) -> str:
    someone.messages = Allowance(per_second=1, burst=1)
    return lobby.post(someone, text, None).id


def test_a_message_has_what_the_page_needs() -> None:
    """A message goes out with its id, who said what, when in milliseconds, and the sender's own mark."""
    lobby = Lobby()
    event = lobby.post(entered(lobby), "hello", "r1").event()
    assert event["type"] == "message"
    assert (event["user"], event["text"], event["ref"]) == ("Ada", "hello", "r1")
    assert event["at"] > 1_700_000_000_000
    assert isinstance(event["id"], str)


def test_the_last_messages_are_kept() -> None:
    """A room keeps its newest messages, as many as it says, in order."""
    lobby = Lobby()
    someone = entered(lobby)
    for number in range(HISTORY + 5):
        say(lobby, someone, str(number))
    posts, complete = lobby.room_of(someone).since(None)
    assert [post.text for post in posts] == [str(number) for number in range(5, HISTORY + 5)]
    assert complete


def test_who_comes_back_gets_what_was_missed() -> None:
    """History goes on after the last message that the page has."""
    lobby = Lobby()
    someone = entered(lobby)
    ids = [say(lobby, someone, text) for text in "abc"]
    posts, complete = lobby.room_of(someone).since(ids[0])
    assert [post.text for post in posts] == ["b", "c"]
    assert complete
    assert lobby.room_of(someone).since(ids[-1]) == ([], True)


def test_who_comes_back_too_late_is_told_so() -> None:
    """When the last message that the page has is not kept any more, it gets all that there is, and the warning."""
    lobby = Lobby()
    someone = entered(lobby)
    first = say(lobby, someone, "first")
    for number in range(HISTORY):
        say(lobby, someone, str(number))
    posts, complete = lobby.room_of(someone).since(first)
    assert len(posts) == HISTORY
    assert not complete


def test_an_id_is_never_used_twice() -> None:
    """No id comes again, in another room or after a restart."""
    ids: list[str] = []
    for lobby in (Lobby(), Lobby()):
        for room in ("garden", "kitchen"):
            someone = entered(lobby, room=room)
            ids += [say(lobby, someone, "x") for _ in range(3)]
    assert len(set(ids)) == len(ids)


def test_an_empty_room_keeps_its_history() -> None:
    """Who comes into a room that everybody has left finds what was said."""
    lobby = Lobby(Clock())
    someone = entered(lobby)
    say(lobby, someone, "hello")
    lobby.exit(someone)
    posts, _ = lobby.room_of(entered(lobby, "Grace")).since(None)
    assert [post.text for post in posts] == ["hello"]


def test_an_empty_room_is_forgotten_in_time() -> None:
    """A room that was empty for long enough is gone with its history."""
    clock = Clock()
    lobby = Lobby(clock)
    someone = entered(lobby)
    say(lobby, someone, "hello")
    lobby.exit(someone)
    clock.now += KEEP_SECONDS
    newcomer = entered(lobby, "Grace")
    assert lobby.room_of(newcomer).since(None) == ([], True)
    assert len(lobby) == 1


def test_only_so_many_empty_rooms_are_kept() -> None:
    """The rooms that became empty first are forgotten when there are too many."""
    lobby = Lobby(Clock())
    for number in range(KEEP_ROOMS + 20):
        someone = entered(lobby, room=f"room-{number}")
        say(lobby, someone, "hello")
        lobby.exit(someone)
    assert len(lobby) == KEEP_ROOMS
    assert lobby.room_of(entered(lobby, room="room-0")).since(None) == ([], True)
    assert lobby.room_of(entered(lobby, room=f"room-{KEEP_ROOMS + 19}")).since(None)[0]


def test_a_room_with_people_is_never_forgotten() -> None:
    """Neither time nor number takes a room away from those who are in it."""
    clock = Clock()
    lobby = Lobby(clock)
    visitor = entered(lobby, "Grace")
    someone = entered(lobby)
    say(lobby, someone, "hello")
    lobby.exit(visitor)
    clock.now += 10 * KEEP_SECONDS
    for number in range(KEEP_ROOMS + 20):
        lobby.exit(entered(lobby, room=f"room-{number}"))
    assert lobby.room_of(someone).since(None)[0]


def test_an_attempt_that_failed_makes_no_room() -> None:
    """Rooms begin with somebody who is in them, so that nobody can fill the memory with names."""
    lobby = Lobby()
    with pytest.raises(ChatError):
        lobby.room_of(member(room="nowhere"))
    assert not lobby.exit(member(room="nowhere"))
    assert len(lobby) == 0


def test_nobody_can_shout_the_others_down() -> None:
    """Too many messages at once are refused, with the mark of the one that is lost; later there is room again."""
    clock = Clock()
    lobby = Lobby(clock)
    someone = entered(lobby)
    someone.messages = Allowance(per_second=2, burst=10, clock=clock)
    for _ in range(10):
        lobby.post(someone, "spam", None)
    with pytest.raises(ChatError) as caught:
        lobby.post(someone, "spam", "r11")
    assert (code_of(caught), caught.value.ref) == ("slow_down", "r11")
    clock.now += 0.5
    assert lobby.post(someone, "patience", None).text == "patience"


def test_an_allowance_does_not_grow_beyond_its_burst() -> None:
    """Whoever was silent for a day cannot say a day's worth at once."""
    clock = Clock()
    allowance = Allowance(per_second=1, burst=3, clock=clock)
    clock.now += 86_400
    assert [allowance.take() for _ in range(4)] == [True, True, True, False]
