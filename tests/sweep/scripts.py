"""The scripted sessions of the cancellation sweep: one class for each thing that can be under way when a scope ends."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import trio

from sweep.playing import Cut, Play, RawPeer, Script, Style
from trio_crowws import Connection, ConnectionClosed, Handler, Reject, Request
from trio_crowws.testing import make_frame

__all__ = ["ON_SOCKETS", "SCRIPTS", "Flood"]

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


SCRIPTS: tuple[type[Script], ...] = (
    Talk,
    TalkEarly,
    LocalClose,
    BothClose,
    SilentPeer,
    HandlerSleeps,
    OpenSleeps,
    Unstoppable,
    Stalled,
    StalledForEver,
    CloseWhileSending,
    Overflow,
    Draining,
    ClosingBusy,
    ClosingHalfOpen,
    Aborting,
    AcceptSleeps,
    Refusal,
    Fault,
    CloseSleeps,
    EndlessCallbacks,
    FailingCallbacks,
    Children,
    FailingChild,
    Senders,
    Rooms,
    Heartbeat,
    Pinging,
    PingUnanswered,
    Lost,
    HalfClosed,
    AbortByHandler,
    NewHandler,
)

ON_SOCKETS: tuple[type[Script], ...] = (
    Talk,
    TalkEarly,
    LocalClose,
    Draining,
    AcceptSleeps,
    Refusal,
    Fault,
    Children,
    Rooms,
    HalfClosed,
    AbortByHandler,
)
"""Those that need no fault of a memory stream."""
