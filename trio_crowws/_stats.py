"""Counters of an application."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ._session.connection import Connection

__all__ = ["Stats", "Tally"]

_SUMS = ("messages_received", "messages_sent", "bytes_received", "bytes_sent", "dropped")


@dataclass(frozen=True, slots=True)
class Stats:
    """What an application has done since it was made.

    Attributes:
      connections: open now.
      accepted: upgrades that became connections.
      refused: requests for an upgrade that were answered with an HTTP error, and peers that were dropped because of
        `max_handshakes`.
      closed: ended connections by the `code` of their `CloseInfo`.
      messages_received, messages_sent: whole messages; a published one counts once for each subscriber.
      bytes_received, bytes_sent: what went over the transports of connections, control frames included.
      dropped: messages that `on_slow` has dropped.
      handshakes: what `max_handshakes` counts, now.
    """

    connections: int
    accepted: int
    refused: int
    closed: Mapping[int, int]
    messages_received: int
    messages_sent: int
    bytes_received: int
    bytes_sent: int
    dropped: int
    handshakes: int


class Tally:
    """The sums over connections that have ended; those that live are asked when somebody wants to know."""

    def __init__(self) -> None:
        self.accepted = 0
        self.refused = 0
        self._closed: Counter[int] = Counter()
        self._sums: Counter[str] = Counter()

    def add(self, conn: Connection) -> None:
        """Count a connection that has ended."""
        info = conn.close_info
        assert info is not None
        self._closed[info.code] += 1
        for name in _SUMS:
            self._sums[name] += getattr(conn, name)

    def stats(self, connections: Iterable[Connection], handshakes: int, crowded_out: int) -> Stats:
        """All that has been counted, with what the open `connections` have done so far."""
        open_now = list(connections)
        sums = {name: self._sums[name] + sum(getattr(conn, name) for conn in open_now) for name in _SUMS}
        return Stats(
            connections=len(open_now),
            accepted=self.accepted,
            refused=self.refused + crowded_out,
            closed=dict(self._closed),
            handshakes=handshakes,
            **sums,
        )
