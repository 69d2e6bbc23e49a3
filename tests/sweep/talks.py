"""Scripted sessions in which the two sides talk: messages, pings, rooms, tasks, and peers that do not read."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import trio

from sweep.peers import RawPeer
from sweep.playing import Cut, Play, Script, Style
from trio_crowws import Connection, ConnectionClosed, Deflate, Handler

__all__ = [
    "ASYNC",
    "CALLED",
    "Children",
    "CloseWhileSending",
    "CompressedSenders",
    "CompressedStalled",
    "CompressedTalk",
    "Flood",
    "HandlerSleeps",
    "NewHandler",
    "OpenSleeps",
    "Overflow",
    "PingUnanswered",
    "Pinging",
    "Rooms",
    "Senders",
    "Stalled",
    "StalledForEver",
    "Talk",
    "TalkEarly",
]

ASYNC: tuple[Style, ...] = ("session", "async", "class")
CALLED: tuple[Cut, ...] = ("server", "route", "handler", "call")
BIG = b"b" * 60
"""A message of which two are more than `SMALL` allows to be queued."""
SMALL = {"send_high_water": 64}


class Talk(Script):
    """Messages are echoed, then the peer closes."""

    cuts = CALLED

    async def peer(self, play: Play, peer: RawPeer) -> None:
        await peer.send("one", "two")
        await peer.receive_message()
        await peer.send("three")
        await peer.receive_message()
        await peer.send_close(4000)


class TalkEarly(Script):
    """The peer sends its messages and its Close with the request, before it has the 101."""

    async def peer(self, play: Play, peer: RawPeer) -> None:
        await peer.send("one", "two")
        await peer.send_close()


class HandlerSleeps(Script):
    """The handler sleeps over a message while others, and the peer's Close, arrive."""

    styles = ASYNC

    async def on_message(self, play: Play, conn: Connection, message: str | bytes) -> None:
        await trio.sleep(0.2)
        await play.send(conn, message)

    async def peer(self, play: Play, peer: RawPeer) -> None:
        await peer.send("one", "two")
        await peer.receive_message()
        await peer.send_close()


class OpenSleeps(Script):
    """`on_open` sleeps while messages arrive."""

    styles = ("session", "async", "class", "mixed")

    async def on_open(self, play: Play, conn: Connection) -> None:
        await trio.sleep(0.5)
        await play.send(conn, "welcome")

    async def peer(self, play: Play, peer: RawPeer) -> None:
        await peer.send("one")
        await peer.receive_message()
        await peer.receive_message()
        await peer.send_close()


class Stalled(Script):
    """The handler sends to a peer that does not read, and then reads on."""

    options: ClassVar[dict[str, Any]] = SMALL
    styles = ASYNC
    cuts = CALLED

    async def on_message(self, play: Play, conn: Connection, message: str | bytes) -> None:
        for number in range(4):
            await play.send(conn, b"%d" % number + BIG)

    async def peer(self, play: Play, peer: RawPeer) -> None:
        assert peer.faults is not None
        peer.faults.stall()
        await peer.send("one")
        await trio.sleep(1)
        peer.faults.flow()
        await trio.sleep(1)
        await peer.send_close()


class StalledForEver(Script):
    """The handler sends to a peer that never reads again; `send_timeout` ends that."""

    options: ClassVar[dict[str, Any]] = SMALL
    styles = ASYNC
    cuts = CALLED

    async def on_message(self, play: Play, conn: Connection, message: str | bytes) -> None:
        for number in range(4):
            await play.send(conn, b"%d" % number + BIG)

    async def peer(self, play: Play, peer: RawPeer) -> None:
        assert peer.faults is not None
        peer.faults.stall()
        await peer.send("one")


class CloseWhileSending(Script):
    """The peer closes while the handler waits to send."""

    options: ClassVar[dict[str, Any]] = SMALL
    styles = ASYNC
    cuts = CALLED

    async def on_message(self, play: Play, conn: Connection, message: str | bytes) -> None:
        for number in range(3):
            await play.send(conn, b"%d" % number + BIG)

    async def peer(self, play: Play, peer: RawPeer) -> None:
        assert peer.faults is not None
        peer.faults.stall()
        await peer.send("one")
        await trio.sleep(0.1)
        await peer.send_close()
        await trio.sleep(0.1)
        peer.faults.flow()


class Overflow(Script):
    """`send_nowait` overflows the queue of a peer that does not read: 1013."""

    options: ClassVar[dict[str, Any]] = {"send_limit": 150}
    styles = ("async", "sync", "mixed")

    async def on_message(self, play: Play, conn: Connection, message: str | bytes) -> None:
        self.plain_message(play, conn, message)

    def plain_message(self, play: Play, conn: Connection, message: str | bytes) -> None:
        for number in range(4):
            if conn.is_open:
                play.send_nowait(conn, b"%d" % number + BIG)

    async def peer(self, play: Play, peer: RawPeer) -> None:
        assert peer.faults is not None
        peer.faults.stall()
        await peer.send("one")
        await trio.sleep(0.5)
        peer.faults.flow()


class Children(Script):
    """Tasks of the connection: one sleeps, one sends, one cleans up slowly when it is cancelled."""

    styles = ("session", "async", "class", "mixed")
    cuts = CALLED

    async def on_open(self, play: Play, conn: Connection) -> None:
        async def sender() -> None:
            for number in range(3):
                await play.send(conn, f"tick {number}")
                await trio.sleep(0.1)

        async def cleaner() -> None:
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.5)

        for function in (sender, cleaner, trio.sleep_forever):
            play.child(conn, function)

    async def peer(self, play: Play, peer: RawPeer) -> None:
        await trio.sleep(1)
        await peer.send_close()


class Senders(Script):
    """Tasks of the connection send at the same time to a slow peer."""

    options: ClassVar[dict[str, Any]] = SMALL
    styles = ("session", "async", "class")
    cuts = CALLED

    async def on_open(self, play: Play, conn: Connection) -> None:
        async def sender(name: int) -> None:
            for number in range(2):
                await play.send(conn, b"%d %d" % (name, number) + BIG)

        for name in range(3):
            play.child(conn, partial(sender, name))

    async def peer(self, play: Play, peer: RawPeer) -> None:
        assert peer.faults is not None
        peer.faults.stall()
        await trio.sleep(0.1)
        peer.faults.flow()
        await trio.sleep(1)
        await peer.send_close()


# Every message is compressed, with a context: one that was compressed and not sent would spoil all that come after it.
COMPRESSED = Deflate(threshold=0, server_no_context_takeover=False)


class CompressedTalk(Talk):
    """The same as `Talk`, compressed."""

    options: ClassVar[dict[str, Any]] = {"compression": COMPRESSED}


class CompressedStalled(Stalled):
    """The same as `Stalled`, compressed: what waits becomes so small that a byte has to be too much."""

    options: ClassVar[dict[str, Any]] = {"compression": COMPRESSED, "send_high_water": 1}


class CompressedSenders(Senders):
    """The same as `Senders`, compressed."""

    options: ClassVar[dict[str, Any]] = {"compression": COMPRESSED, "send_high_water": 1}


class Rooms(Script):
    """The subject joins rooms and publishes; the canary is in one of them."""

    async def on_open(self, play: Play, conn: Connection) -> None:
        self.plain_open(play, conn)
        await trio.sleep(0.1)

    def plain_open(self, play: Play, conn: Connection) -> None:
        conn.join("hall")
        conn.join("own")

    async def on_message(self, play: Play, conn: Connection, message: str | bytes) -> None:
        self.plain_message(play, conn, message)
        await trio.lowlevel.checkpoint()

    def plain_message(self, play: Play, conn: Connection, message: str | bytes) -> None:
        conn.publish("hall", "to all")
        play.app.publish("hall", "to all")
        conn.leave("own")
        conn.join("other")

    async def peer(self, play: Play, peer: RawPeer) -> None:
        await peer.send("one", "two")
        await peer.receive_message()
        await peer.send_close()


class Pinging(Script):
    """The handler waits for a pong."""

    styles = ASYNC
    cuts = CALLED

    async def on_open(self, play: Play, conn: Connection) -> None:
        for _ in range(2):
            with play.call():
                assert await conn.ping() >= 0

    async def peer(self, play: Play, peer: RawPeer) -> None:
        await peer.receive()
        await trio.sleep(0.1)
        await peer.send("one")
        await peer.receive()
        await trio.sleep(0.1)
        await peer.send_close()


class PingUnanswered(Script):
    """The peer closes instead of answering a ping."""

    styles = ASYNC
    cuts = CALLED

    async def on_open(self, play: Play, conn: Connection) -> None:
        with play.call():
            try:
                await conn.ping()
            except ConnectionClosed:
                play.note("event", "no pong")

    async def peer(self, play: Play, peer: RawPeer) -> None:
        peer.pongs = False
        await peer.receive()
        await peer.send_close()


class NewHandler(Script):
    """The connection is handed to another handler object."""

    styles = ("async", "class", "mixed")

    async def on_open(self, play: Play, conn: Connection) -> None:
        class Second(Handler):
            async def on_message(self, conn: Connection, message: str | bytes) -> None:
                with play.noted("message", message):
                    await trio.sleep(0.1)
                    await play.send(conn, message)

            async def on_error(self, conn: Connection, error: Exception) -> None:
                await play._on_error(conn, error)

            async def on_close(self, conn: Connection, info: Any) -> None:
                await play._on_close(conn, info)

        conn.set_handler(Second)

    async def peer(self, play: Play, peer: RawPeer) -> None:
        await peer.send("one")
        await peer.receive_message()
        await peer.send_close()


class Flood(Script):
    """The handler sends more than the kernel takes to a peer that reads only later."""

    options: ClassVar[dict[str, Any]] = {"send_high_water": 64 * 1024}
    styles = ASYNC
    cuts = CALLED

    async def on_message(self, play: Play, conn: Connection, message: str | bytes) -> None:
        for number in range(6):
            await play.send(conn, f"{message!s} {number} " * (1 << 17))

    async def peer(self, play: Play, peer: RawPeer) -> None:
        await peer.send("one")
        await trio.sleep(1)
        with trio.move_on_after(1):
            while await peer.receive_message() is not None:
                pass
        await peer.send_close()
