"""What comes in: every message is checked here, field by field, before the chat sees it.

A message is a JSON object in a text frame; `type` says which one. Fields that nobody asked for are ignored. Whatever
else is wrong becomes a `ChatError`, which is answered and never ends the connection.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from typing import Any, NoReturn, cast

MAX_NAME = 24
MAX_TEXT = 2000
MAX_KEY = 64
"""The longest name, text, and key that a client makes up itself (`session`, `after`, `ref`), in characters."""

_ROOM = re.compile(r"[a-z0-9_-]{1,32}")
_KEY = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_KEY}}}")
_NAME_PUNCTUATION = " ._-'"
# What is drawn as nothing although some of it are letters and marks: Unicode's Default_Ignorable_Code_Point (fillers,
# variation selectors, tags, joiners), and two selectors of scripts that fonts seldom draw.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U00016fe4\U0001bc9d\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


class ChatError(Exception):
    """Something that the sender should be told.

    Attributes:
      code: what a program looks at, as `"bad_json"`.
      text: what a person reads.
      ref: the `ref` of the message that was refused, where it had one.
    """

    def __init__(self, code: str, text: str, ref: str | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.ref = ref


@dataclass(frozen=True, slots=True)
class Join:
    """Enter the room. `session` tells a returning page from a stranger; `after` is the last message it has."""

    session: str
    after: str | None


@dataclass(frozen=True, slots=True)
class Message:
    """Say something. `ref` comes back with it, so that the sender recognises its own words."""

    text: str
    ref: str | None


@dataclass(frozen=True, slots=True)
class Typing:
    """The sender is writing."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Go, and be told goodbye with a Close frame."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Measure the round trip: browsers cannot send ping frames. `t` comes back as it was."""

    t: float


Incoming = Join | Message | Typing | Leave | Ping


def parse(data: str | bytes) -> Incoming:
    """Return the message in `data`.

    Raises:
      ChatError: it is not one; the error says why.
    """
    fields = _read_object(data)
    match fields.get("type"):
        case "join":
            return Join(_key(fields, "session"), _optional_key(fields, "after"))
        case "message":
            return Message(_text(fields), _optional_key(fields, "ref"))
        case "typing":
            return Typing()
        case "leave":
            return Leave()
        case "ping":
            return Ping(_number(fields, "t"))
        case _:
            raise ChatError("unknown_type", "“type” must be join, message, typing, leave or ping.")


def clean_name(raw: str) -> str:
    """Return `raw` as the name that is shown: in one Unicode form, without spaces that nobody sees.

    Raises:
      ChatError: it is empty, too long, or holds what does not belong into a name.
    """
    name = " ".join(unicodedata.normalize("NFC", raw).split())
    if not 1 <= len(name) <= MAX_NAME:
        raise ChatError("bad_name", f"A name has 1 to {MAX_NAME} characters.")
    # Letters, their marks, and digits of any script: control characters, and those that turn the direction of
    # the text around, are in none of these categories.
    if not all(unicodedata.category(char)[0] in "LMN" or char in _NAME_PUNCTUATION for char in name):
        raise ChatError("bad_name", "A name is made of letters, digits, spaces and . _ - '")
    if unicodedata.category(name[0])[0] not in "LN" or _INVISIBLE.match(name):
        raise ChatError("bad_name", "A name begins with a letter or a digit.")
    return name


def skeleton(name: str) -> str:
    """What is seen of `name`, in one form: two names with the same skeleton look alike to a reader.

    Upper case and lower case are one, and so are the wide, narrow, raised and ligature forms of a letter. What is drawn
    as nothing is left out, before the composition of letters and marks, which it would stop, and after it, as some
    forms of a filler become another filler. Letters of two scripts that look alike remain two letters.
    """
    folded = unicodedata.normalize("NFKC", _INVISIBLE.sub("", name)).casefold()
    return " ".join(_INVISIBLE.sub("", unicodedata.normalize("NFKC", folded)).split())


def clean_room(raw: str) -> str | None:
    """Return the name of the room that `raw` stands for, or `None` when there can be no such room."""
    room = raw.lower()
    return room if _ROOM.fullmatch(room) else None


def _read_object(data: str | bytes) -> dict[str, Any]:
    if isinstance(data, bytes):
        raise ChatError("not_text", "Messages are JSON in text frames, not binary ones.")
    try:
        value: Any = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):  # RecursionError: thousands of nested brackets
        raise ChatError("bad_json", "The message is not JSON.") from None
    if not isinstance(value, dict):
        raise ChatError("bad_json", "The message is not a JSON object.")
    return cast("dict[str, Any]", value)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")  # Python reads NaN and Infinity, browsers do not


def _text(fields: dict[str, Any]) -> str:
    text = fields.get("text")
    if not isinstance(text, str):
        raise ChatError("bad_field", "“text” must be a string.")
    text = text.replace("\r\n", "\n").strip()
    if not 1 <= len(text) <= MAX_TEXT:
        raise ChatError("bad_field", f"“text” must have 1 to {MAX_TEXT} characters.")
    # Cs: half a surrogate pair, which JSON can spell and UTF-8 cannot.
    if any(unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t" for char in text):
        raise ChatError("bad_field", "“text” must not hold control characters.")
    return text


def _key(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not _KEY.fullmatch(value):
        raise ChatError("bad_field", f"“{name}” must be 1 to {MAX_KEY} letters, digits, _ or -.")
    return value


def _optional_key(fields: dict[str, Any], name: str) -> str | None:
    return None if fields.get(name) is None else _key(fields, name)


def _number(fields: dict[str, Any], name: str) -> float:
    value = fields.get(name)
    # The bounds are those of whole numbers in JavaScript; 1e999, which Python reads as infinity, is beyond them.
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not -(2**53) < value < 2**53:
        raise ChatError("bad_field", f"“{name}” must be a number.")
    return value
