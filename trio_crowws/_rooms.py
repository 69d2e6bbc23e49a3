"""Rooms: names that connections join, and publishing to all members of one.

Everything here is synchronous, so nothing can happen between looking at the members and sending to them: no copy, no
lock. A frame is encoded once, compressed once for each setting that members have agreed on (where no context is kept;
see `_protocol/compressing.py`), and shared by reference. Publishing writes or queues; it never waits and never calls
the application.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import trio

from ._protocol.compressing import Compressor, check_compress
from ._protocol.encoding import encode_message
from ._session.connection import Connection
from ._session.sending import Offered
from ._types import MessageLike

__all__ = ["PublishResult", "Room", "Rooms"]


@dataclass(frozen=True, slots=True)
class PublishResult:
    """What became of a published message.

    Attributes:
      sent: subscribers that it was queued for.
      dropped: subscribers that lost it because they are too slow (`on_slow="drop"`).
      closed: subscribers that were closing already, or that are now closed for being too slow (`on_slow="close"`).
    """

    sent: int
    dropped: int
    closed: int


@trio.lowlevel.enable_ki_protection
def deliver(
    members: Iterable[Connection],
    data: MessageLike,
    room: str | None = None,
    exclude: frozenset[Connection] = frozenset(),
    compress: bool | None = None,
) -> PublishResult:
    """Encode `data` once and offer it to every one of `members` that is not in `exclude`."""
    frame = encode_message(data)
    check_compress(compress)
    packed: dict[Compressor, bytes] = {}
    reached = dropped = closed = 0
    for conn in members:
        if exclude and conn in exclude:
            continue
        reached += 1
        if conn._write_published(frame):  # nearly always
            continue
        if conn._packer is None:
            offered = conn._offer(frame, room)
        else:
            offered = conn._offer_packed(frame, room, compress, packed)
        if offered is Offered.DROPPED:
            dropped += 1
        elif offered is Offered.CLOSED:
            closed += 1
    return PublishResult(reached - dropped - closed, dropped, closed)


class Rooms:
    """Who is a member of what. A room exists while it has members."""

    def __init__(self) -> None:
        self._members: dict[str, set[Connection]] = {}
        self._joined: dict[Connection, set[str]] = {}

    def join(self, conn: Connection, room: str) -> bool:
        """Make `conn` a member of `room`; `False` if it is one already."""
        if not isinstance(room, str):
            raise TypeError(f"the name of a room must be a str, not {type(room).__name__}")
        members = self._members.setdefault(room, set())
        if conn in members:
            return False
        members.add(conn)
        self._joined.setdefault(conn, set()).add(room)
        return True

    def leave(self, conn: Connection, room: str) -> bool:
        """End the membership of `conn` in `room`; `False` if there was none."""
        members = self._members.get(room)
        if members is None or conn not in members:
            return False
        members.discard(conn)
        if not members:
            del self._members[room]
        joined = self._joined[conn]
        joined.discard(room)
        if not joined:
            del self._joined[conn]
        return True

    @trio.lowlevel.enable_ki_protection
    def leave_all(self, conn: Connection) -> None:
        """End every membership of `conn`."""
        for room in self.of(conn):
            self.leave(conn, room)

    def of(self, conn: Connection) -> frozenset[str]:
        """The rooms of `conn`."""
        return frozenset(self._joined.get(conn, ()))

    def members(self, room: str) -> frozenset[Connection]:
        """The members of `room`."""
        return frozenset(self._members.get(room, ()))

    def count(self, room: str) -> int:
        """How many members `room` has."""
        return len(self._members.get(room, ()))

    def names(self) -> frozenset[str]:
        """The rooms that have members."""
        return frozenset(self._members)

    def publish(
        self,
        room: str,
        data: MessageLike,
        exclude: Iterable[Connection] = (),
        compress: bool | None = None,
    ) -> PublishResult:
        """Send `data` to the members of `room`."""
        if not isinstance(room, str):
            raise TypeError(f"the name of a room must be a str, not {type(room).__name__}")
        return deliver(self._members.get(room, ()), data, room, frozenset(exclude), compress)


@final
class Room:
    """A room by its name, as `app.room(name)` gives it. Making one creates nothing."""

    __slots__ = ("_rooms", "name")

    def __init__(self, rooms: Rooms, name: str) -> None:
        self._rooms = rooms
        self.name = name

    def __repr__(self) -> str:
        return f"<Room {self.name!r} with {len(self)} members>"

    def __len__(self) -> int:
        return self._rooms.count(self.name)

    def __contains__(self, conn: object) -> bool:
        return conn in self.members

    def __bool__(self) -> bool:
        return True  # an empty room is a room all the same

    @property
    def members(self) -> frozenset[Connection]:
        """The members as of now."""
        return self._rooms.members(self.name)

    def publish(
        self,
        data: MessageLike,
        *,
        exclude: Iterable[Connection] = (),
        compress: bool | None = None,
    ) -> PublishResult:
        """Send `data` to all members that are not in `exclude`; never waits. See `App.publish`."""
        return self._rooms.publish(self.name, data, exclude, compress)
