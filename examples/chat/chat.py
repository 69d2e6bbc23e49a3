"""Who is in which room, and what was said there. Knows nothing of connections, so it is tested without any.

Memory is bounded: a room holds one entry for each member and the last `HISTORY` messages; rooms with nobody in them
are forgotten after `KEEP_SECONDS`, or as soon as there are more than `KEEP_ROOMS` of them.
"""

from __future__ import annotations

import hmac
import itertools
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from messages import ChatError, skeleton

HISTORY = 50
KEEP_ROOMS = 100
KEEP_SECONDS = 3600

Event = dict[str, Any]
Clock = Callable[[], float]


class Allowance:
    """A bucket of `burst` turns that refills with `per_second` turns each second."""

    def __init__(self, per_second: float, burst: float, clock: Clock = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = self._left = burst
        self._clock = clock
        self._at = clock()

    def take(self) -> bool:
        """Use up one turn; whether there was one."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


@dataclass(eq=False, slots=True)
class Member:
    """One connection's person: the `userdata` of the connection. Two of them are the same only if they are one."""

    name: str
    room: str
    session: str = ""
    messages: Allowance = field(default_factory=lambda: Allowance(per_second=2, burst=10))
    typing: Allowance = field(default_factory=lambda: Allowance(per_second=1, burst=3))

    @property
    def key(self) -> str:
        """What makes the name unique: `ADA` and `Ada` are one name, and so is what only looks like it."""
        return skeleton(self.name)


@dataclass(frozen=True, slots=True)
class Post:
    """A message as the room keeps it; `at` is in milliseconds since 1970, as JavaScript counts."""

    id: str
    user: str
    text: str
    at: int
    ref: str | None

    def event(self) -> Event:
        return {"type": "message", **asdict(self)}


@dataclass(eq=False, slots=True)
class Room:
    members: dict[str, Member] = field(default_factory=dict[str, Member])
    history: deque[Post] = field(default_factory=lambda: deque(maxlen=HISTORY))

    def since(self, after: str | None) -> tuple[list[Post], bool]:
        """The messages that followed the one with the id `after`, and whether nothing is missing between."""
        posts = list(self.history)
        for index, post in enumerate(posts):
            if post.id == after:
                return posts[index + 1 :], True
        return posts, after is None


class Lobby:
    """All rooms by name. A room begins with its first member."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._rooms: dict[str, Room] = {}
        self._empty_since: dict[str, float] = {}  # in the order in which the rooms became empty
        # An id is never used twice, not even after a restart: pages recognise what they already show by it.
        self._epoch = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._rooms)

    def enter(self, member: Member, session: str) -> Member | None:
        """Let `member` into its room.

        Returns:
          the member whose place this one takes: the same page's, over a connection that it has lost and the server
          has not missed yet; usually `None`.

        Raises:
          ChatError: somebody else in the room has that name, or the member is in already.
        """
        self._forget_rooms()
        present = self._rooms[member.room].members.get(member.key) if member.room in self._rooms else None
        if present is member:
            raise ChatError("already_joined", "You are in the room already.")
        if present is not None and not hmac.compare_digest(present.session, session):
            raise ChatError("name_taken", f"Somebody in this room is called {present.name}.")
        member.session = session
        self._rooms.setdefault(member.room, Room()).members[member.key] = member
        self._empty_since.pop(member.room, None)
        return present

    def exit(self, member: Member) -> bool:
        """Take `member` out of its room; whether it was in there."""
        room = self._rooms.get(member.room)
        if room is None or room.members.get(member.key) is not member:
            return False
        del room.members[member.key]
        if not room.members:
            self._empty_since[member.room] = self._clock()
            self._forget_rooms()
        return True

    def room_of(self, member: Member) -> Room:
        """The room that `member` is in.

        Raises:
          ChatError: it is in none: not yet, or no longer.
        """
        room = self._rooms.get(member.room)
        if room is None or room.members.get(member.key) is not member:
            raise ChatError("not_joined", "Join the room first.")
        return room

    def post(self, member: Member, text: str, ref: str | None) -> Post:
        """Keep what `member` says, and return it with its id and time.

        Raises:
          ChatError: the member is not in the room, or says too much at once.
        """
        room = self.room_of(member)
        if not member.messages.take():
            raise ChatError("slow_down", "Slow down a little.", ref)
        post = Post(f"{self._epoch}-{next(self._numbers)}", member.name, text, int(time.time() * 1000), ref)
        room.history.append(post)
        return post

    def _forget_rooms(self) -> None:
        oldest_kept = self._clock() - KEEP_SECONDS
        for name, since in list(self._empty_since.items()):
            if since > oldest_kept and len(self._empty_since) <= KEEP_ROOMS:
                break
            del self._empty_since[name], self._rooms[name]
