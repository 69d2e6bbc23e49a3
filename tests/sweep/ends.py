"""Scripted sessions about an end: closes, faults, losses, shutdowns, refusals, and what the last callbacks do."""

from __future__ import annotations

from typing import Any, ClassVar

import trio

from sweep.peers import RawPeer
from sweep.playing import Play, Script
from sweep.talks import ASYNC, CALLED
from trio_crowws import Connection, Reject, Request
from trio_crowws.testing import make_frame

__all__ = [
    "AbortByHandler",
    "Aborting",
    "AcceptSleeps",
    "BothClose",
    "CloseSleeps",
    "ClosingBusy",
    "ClosingHalfOpen",
    "Draining",
    "EndlessCallbacks",
    "FailingCallbacks",
    "FailingChild",
    "Fault",
    "HalfClosed",
    "Heartbeat",
    "LocalClose",
    "Lost",
    "Refusal",
    "SilentPeer",
    "Unstoppable",
]


class LocalClose(Script):
    """The handler closes, and the peer answers."""

    cuts = CALLED

    async def on_message(self, play: Play, conn: Connection, message: str | bytes) -> None:
        await play.send(conn, message)
        with play.call():
            await conn.close(4001, "bye")
        with play.call():
            await conn.wait_closed()

    def plain_message(self, play: Play, conn: Connection, message: str | bytes) -> None:
        play.send_nowait(conn, message)
        conn.close_nowait(4001, "bye")

    async def peer(self, play: Play, peer: RawPeer) -> None:
        await peer.send("one", "dropped")


class BothClose(Script):
    """Both sides close at the same time."""

    async def on_message(self, play: Play, conn: Connection, message: str | bytes) -> None:
        conn.close_nowait(4001)
        await trio.sleep(0.1)

    def plain_message(self, play: Play, conn: Connection, message: str | bytes) -> None:
        conn.close_nowait(4001)

    async def peer(self, play: Play, peer: RawPeer) -> None:
        await peer.send("one")
        await peer.send_close(4002)


class SilentPeer(Script):
    """The peer never answers the Close of the handler."""

    styles = ASYNC
    cuts = CALLED

    async def on_open(self, play: Play, conn: Connection) -> None:
        with play.call():
            await conn.close(1000)

    async def peer(self, play: Play, peer: RawPeer) -> None:
        peer.closes = False


class Unstoppable(Script):
    """The handler shields itself and runs on when its connection has closed."""

    styles = ASYNC
    shields = True

    async def on_message(self, play: Play, conn: Connection, message: str | bytes) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(3)

    async def peer(self, play: Play, peer: RawPeer) -> None:
        await peer.send("one")
        await peer.send_close()


class Draining(Script):
    """`server.drain` while messages are under way."""

    served = True

    async def on_message(self, play: Play, conn: Connection, message: str | bytes) -> None:
        await trio.sleep(0.2)
        if conn.is_open:
            await play.send(conn, message)

    async def peer(self, play: Play, peer: RawPeer) -> None:
        await peer.send("one")
        await trio.sleep(0.1)
        await peer.send("two")

    async def beside(self, play: Play) -> None:
        await trio.sleep(0.15)
        await play.server.drain(grace=1, spread=0.5)


class ClosingBusy(Script):
    """`server.aclose` while a handler does not come to an end."""

    served = True
    styles = ("session", "async", "class", "mixed")

    async def on_open(self, play: Play, conn: Connection) -> None:
        await trio.sleep_forever()

    async def peer(self, play: Play, peer: RawPeer) -> None:
        await peer.send("one")

    async def beside(self, play: Play) -> None:
        await trio.sleep(0.1)
        await play.server.aclose()


class ClosingHalfOpen(Script):
    """`server.aclose` while `on_accept` decides."""

    served = True
    styles = ("async", "class")
    cuts = ("server", "route")

    async def on_accept(self, play: Play, request: Request) -> Any:
        await trio.sleep(1)

    async def beside(self, play: Play) -> None:
        await trio.sleep(0.1)
        await play.server.aclose()


class Aborting(Script):
    """`server.abort`, in the end of which everything is gone."""

    served = True
    aborts = True
    styles = ("session", "mixed")

    async def peer(self, play: Play, peer: RawPeer) -> None:
        await peer.send("one")
        await peer.receive_message()
        await trio.sleep(0.1)
        play.server.abort()


class AcceptSleeps(Script):
    """`on_accept` sleeps before it accepts."""

    styles = ("session", "async", "class")
    cuts = ("server", "route")

    async def on_accept(self, play: Play, request: Request) -> Any:
        await trio.sleep(1)
        return True


class Refusal(Script):
    """`on_accept` sleeps before it refuses."""

    styles = ("session", "class")
    cuts = ("server", "route")
    refused = True

    async def on_accept(self, play: Play, request: Request) -> Any:
        await trio.sleep(1)
        raise Reject(403, "not today")


class Fault(Script):
    """The peer breaks the protocol after a message; `on_error` and `on_close` sleep."""

    async def on_error(self, play: Play, conn: Connection, error: Exception) -> None:
        await trio.sleep(1)

    async def on_close(self, play: Play, conn: Connection) -> None:
        await trio.sleep(1)

    async def peer(self, play: Play, peer: RawPeer) -> None:
        await peer.send("one")
        await peer.send_raw(make_frame(3))


class CloseSleeps(Script):
    """`on_close` sleeps."""

    styles = ASYNC

    async def on_close(self, play: Play, conn: Connection) -> None:
        await trio.sleep(1)
        await trio.sleep(1)

    async def peer(self, play: Play, peer: RawPeer) -> None:
        await peer.send("one")
        await peer.receive_message()
        await peer.send_close()


class EndlessCallbacks(Script):
    """`on_error` and `on_close` together take longer than `callback_timeout`."""

    styles = ASYNC
    completes = False
    raises = True

    async def on_error(self, play: Play, conn: Connection, error: Exception) -> None:
        await trio.sleep(3)

    async def on_close(self, play: Play, conn: Connection) -> None:
        await trio.sleep_forever()

    async def peer(self, play: Play, peer: RawPeer) -> None:
        await peer.send_raw(make_frame(3))


class FailingCallbacks(Script):
    """Every callback raises."""

    completes = False
    raises = True

    async def on_message(self, play: Play, conn: Connection, message: str | bytes) -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("on_message")

    def plain_message(self, play: Play, conn: Connection, message: str | bytes) -> None:
        raise ValueError("on_message")

    async def on_error(self, play: Play, conn: Connection, error: Exception) -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("on_error")

    async def on_close(self, play: Play, conn: Connection) -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("on_close")

    async def peer(self, play: Play, peer: RawPeer) -> None:
        await peer.send("one", "two")


class FailingChild(Script):
    """A task of the connection raises."""

    styles = ("session", "async", "mixed")
    raises = True

    async def on_open(self, play: Play, conn: Connection) -> None:
        async def failing() -> None:
            await trio.sleep(0.1)
            raise ValueError("child")

        play.child(conn, failing)
        play.child(conn, trio.sleep_forever)

    async def peer(self, play: Play, peer: RawPeer) -> None:
        await peer.send("one")


class Heartbeat(Script):
    """The peer answers one ping and then no more."""

    options: ClassVar[dict[str, Any]] = {"ping_interval": 2, "ping_timeout": 1}

    async def peer(self, play: Play, peer: RawPeer) -> None:
        await peer.send("one")
        await peer.receive_message()
        while (frame := await peer.receive()) is not None:
            if frame[0] == 9:
                peer.pongs = False
        peer.pongs = False


class Lost(Script):
    """The stream breaks while the handler is busy and messages wait."""

    breaks = True
    styles = ("session", "async", "class", "mixed")

    async def on_message(self, play: Play, conn: Connection, message: str | bytes) -> None:
        await trio.sleep(0.3)

    async def peer(self, play: Play, peer: RawPeer) -> None:
        await peer.send("one", "two")
        await trio.sleep(0.1)
        assert peer.faults is not None
        await peer.faults.break_off()


class HalfClosed(Script):
    """The peer ends its direction without a Close frame and goes on reading."""

    async def peer(self, play: Play, peer: RawPeer) -> None:
        await peer.send("one", "two")
        assert isinstance(peer.stream, trio.abc.HalfCloseableStream)
        await peer.stream.send_eof()


class AbortByHandler(Script):
    """The handler aborts its connection."""

    aborts = True

    async def on_message(self, play: Play, conn: Connection, message: str | bytes) -> None:
        conn.abort()
        await trio.lowlevel.checkpoint()

    def plain_message(self, play: Play, conn: Connection, message: str | bytes) -> None:
        conn.abort()

    async def peer(self, play: Play, peer: RawPeer) -> None:
        await peer.send("one", "two")
