"""Rooms and publishing: who gets what, and who has to wait for whom (nobody)."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from support.servers import Kind, Recorder, Style, break_off, noise, serving, until
from trio_crowws import App, CloseFrame, Connection, ConnectionClosed, PublishResult, SlowConsumer
from trio_crowws._protocol.encoding import encode_message
from trio_crowws.testing import Peer


class Crowd:
    """Connections of an application in the order in which they came, by the query of their path."""

    def __init__(self, app: App, **options: Any) -> None:
        self.recorder = Recorder(app, **options)

    async def __getitem__(self, name: str) -> Connection:
        await until(lambda: name in self._names())
        return self._names()[name]

    def _names(self) -> dict[str, Connection]:
        return {note.conn.request.query["name"]: note.conn for note in self.recorder.notes if note.name == "open"}


async def test_a_message_goes_to_the_members_of_its_room(kind: Kind) -> None:
    """`publish` reaches the members of the room and nobody else."""
    app = App()
    crowd = Crowd(app)
    async with (
        serving(app, kind) as site,
        site.connect("/?name=ann") as ann,
        site.connect("/?name=bob") as bob,
        site.connect("/?name=eve") as eve,
    ):
        (await crowd["ann"]).join("tea")
        (await crowd["bob"]).join("tea")
        (await crowd["eve"]).join("coffee")
        assert app.publish("tea", "hot") == PublishResult(sent=2, dropped=0, closed=0)
        assert app.publish("tea", b"hot") == PublishResult(2, 0, 0)
        assert app.room("coffee").publish("black") == PublishResult(1, 0, 0)
        assert app.publish("milk", "white") == PublishResult(0, 0, 0)
        for peer in (ann, bob):
            assert [await peer.receive(), await peer.receive()] == ["hot", b"hot"]
        assert await eve.receive() == "black"


async def test_publishers_are_left_out_where_they_ask_for_it() -> None:
    """`conn.publish` leaves its own connection out, `exclude` whom it names."""
    app = App()
    crowd = Crowd(app)
    async with serving(app) as site, site.connect("/?name=ann") as ann, site.connect("/?name=bob") as bob:
        for name in ("ann", "bob"):
            (await crowd[name]).join("tea")
        assert (await crowd["ann"]).publish("tea", "from ann").sent == 1
        assert app.publish("tea", "not for ann", exclude=[await crowd["ann"]]).sent == 1
        assert app.room("tea").publish("not for bob", exclude={await crowd["bob"]}).sent == 1
        assert app.publish("tea", "for all").sent == 2
        assert [await bob.receive() for _ in range(3)] == ["from ann", "not for ann", "for all"]
        assert [await ann.receive() for _ in range(2)] == ["not for bob", "for all"]


async def test_membership() -> None:
    """`join` and `leave` say whether they changed anything; a room knows its members, and exists while it has any."""
    app = App()
    crowd = Crowd(app)
    async with serving(app) as site, site.connect("/?name=ann"), site.connect("/?name=bob"):
        ann, bob = await crowd["ann"], await crowd["bob"]
        room = app.room("tea")
        assert (len(room), room.members, app.rooms) == (0, frozenset(), frozenset())
        assert ann.join("tea")
        assert not ann.join("tea")
        assert bob.join("tea")
        assert bob.join("coffee")
        assert len(room) == 2
        assert room.members == {ann, bob}
        assert ann in room
        assert ann.rooms == {"tea"}
        assert bob.rooms == {"tea", "coffee"}
        assert app.rooms == {"tea", "coffee"}
        assert ann.leave("tea")
        assert not ann.leave("tea")
        assert not ann.leave("nowhere")
        assert room.members == {bob}
        assert bob.leave("tea")
        assert app.rooms == {"coffee"}
        for call in (lambda: ann.join(7), lambda: app.room(b"tea"), lambda: app.publish(None, "x")):  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                call()


async def test_broadcast() -> None:
    """`app.broadcast` reaches every connection, `route.broadcast` those of its route."""
    app = App()
    one = Recorder(app, "/one")
    two = Recorder(app, "/two")
    async with serving(app) as site, site.connect("/one") as first, site.connect("/two") as second:
        await one.wait("open")
        await two.wait("open")
        assert app.broadcast("all") == PublishResult(2, 0, 0)
        assert one.route.broadcast("one") == PublishResult(1, 0, 0)
        assert two.route.broadcast("two") == PublishResult(1, 0, 0)
        assert [await first.receive(), await first.receive()] == ["all", "one"]
        assert [await second.receive(), await second.receive()] == ["all", "two"]


@pytest.mark.parametrize("ending", ["close", "break"])
async def test_membership_ends_before_on_close(kind: Kind, style: Style, ending: str) -> None:
    """A connection is a member of its rooms in `on_error` still, and in `on_close` no more, however it ended."""
    app = App()
    seen: list[tuple[str, int, int]] = []

    def join(conn: Connection) -> None:
        conn.join("tea")
        conn.join("coffee")

    recorder = Recorder(
        app,
        style=style,
        hooks={
            "open": join,
            "error": lambda conn, error: seen.append(("error", len(conn.rooms), len(app.room("tea")))),
            "close": lambda conn, info: seen.append(("close", len(conn.rooms), len(app.room("tea")))),
        },
    )
    async with serving(app, kind) as site, site.connect() as peer:
        await recorder.wait("open")
        await until(lambda: app.rooms == frozenset(("tea", "coffee")))
        if ending == "close":
            await peer.close()
        else:
            await break_off(peer)
        await recorder.wait("close")
        assert app.rooms == frozenset()
    recorder.check()
    assert seen == [*([("error", 2, 1)] if ending == "break" else []), ("close", 0, 0)]


async def test_joining_after_the_end_is_refused() -> None:
    """Nothing can bring an ended connection back into a room."""
    app = App()
    crowd = Crowd(app)
    async with serving(app) as site, site.connect("/?name=ann") as peer:
        ann = await crowd["ann"]
        await peer.close()
        await crowd.recorder.wait("close")
        with pytest.raises(ConnectionClosed):
            ann.join("tea")
        assert not ann.leave("tea")
        assert app.rooms == frozenset()


async def test_closing_members_are_counted() -> None:
    """A member that is closing gets nothing, and is counted as closed."""
    app = App()
    crowd = Crowd(app)
    async with serving(app) as site, site.connect("/?name=ann") as peer, site.connect("/?name=bob"):
        for name in ("ann", "bob"):
            (await crowd[name]).join("tea")
        (await crowd["ann"]).close_nowait(4000)
        assert app.publish("tea", "hot") == PublishResult(sent=1, dropped=0, closed=1)
        assert await peer.receive_close() == CloseFrame(4000)


async def test_a_message_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many members a room has, they share one frame."""
    calls = 0

    def count(data: str) -> bytes:
        nonlocal calls
        calls += 1
        return encode_message(data)

    monkeypatch.setattr("trio_crowws._rooms.encode_message", count)
    app = App()
    crowd = Crowd(app)
    async with serving(app) as site, site.connect("/?name=ann") as ann, site.connect("/?name=bob") as bob:
        for name in ("ann", "bob"):
            (await crowd[name]).join("tea")
        app.publish("tea", "hot")
        assert [await ann.receive(), await bob.receive()] == ["hot"] * 2
    assert calls == 1


async def test_a_wrong_message_reaches_nobody() -> None:
    """What cannot be sent raises before any member got it."""
    app = App()
    crowd = Crowd(app)
    async with serving(app) as site, site.connect("/?name=ann") as peer:
        ann = await crowd["ann"]
        ann.join("tea")
        with pytest.raises(TypeError):
            app.publish("tea", object())  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="surrogates"):
            app.broadcast("\ud800")
        assert ann.messages_sent == 0
        app.publish("tea", "hot")
        assert await peer.receive() == "hot"


async def drain(peer: Peer, count: int) -> None:
    for _ in range(count):
        await peer.receive()


async def test_a_stalled_member_delays_nobody(kind: Kind) -> None:
    """Publishing to a room in which one member does not read takes no time; the others get everything, in order."""
    app = App(send_limit=1 << 17, close_timeout=0.1)
    crowd = Crowd(app)
    async with serving(app, kind) as site, site.connect("/?name=slow") as stalled:
        if stalled.faults is not None:
            stalled.faults.stall()
        slow = await crowd["slow"]
        slow.join("tea")
        async with site.connect("/?name=ann") as ann, site.connect("/?name=bob") as bob:
            for name in ("ann", "bob"):
                (await crowd[name]).join("tea")
            closed = 0
            for number in range(3000):
                result = app.publish("tea", number.to_bytes(4) + noise(4096))
                assert result.sent >= 2
                closed += result.closed
                if number % 10 == 9:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(drain, ann, 9)
                        nursery.start_soon(drain, bob, 9)
                    for peer in (ann, bob):
                        message = await peer.receive()
                        assert isinstance(message, bytes)
                        assert int.from_bytes(message[:4]) == number
            assert closed > 0
            assert not slow.is_open
            await ann.close()
            await bob.close()
        await crowd.recorder.wait("close", 3)
    crowd.recorder.check()
    assert slow.close_info is not None
    assert slow.close_info.code == 1013
    assert isinstance(slow.close_info.error, SlowConsumer)


async def test_publish_never_calls_the_application() -> None:
    """What publishing brings about, as the end of a slow member, is told later and from the member's own task."""
    app = App(send_limit=1000)
    inside = False
    told: list[bool] = []
    recorder = Recorder(
        app,
        style="sync",
        hooks={
            "open": lambda conn: conn.join("tea"),
            "error": lambda conn, error: told.append(inside),
            "close": lambda conn, info: told.append(inside),
        },
    )
    async with serving(app) as site, site.connect() as peer:
        await recorder.wait("open")
        await trio.testing.wait_all_tasks_blocked()
        site.listener.faults.stall()
        app.publish("tea", bytes(100))
        await trio.testing.wait_all_tasks_blocked()
        inside = True
        for _ in range(100):
            app.publish("tea", bytes(100))
        inside = False
        assert told == []
        peer.auto_close = True
        site.listener.faults.flow()
        await peer.receive_close()
        await recorder.wait("close")
    assert told == [False, False]


async def test_publishing_from_a_callback_of_a_member_keeps_the_order(style: Style) -> None:
    """All members of a room see the messages of all publishers in the same order."""
    app = App()
    received: dict[str, list[Any]] = {"ann": [], "bob": [], "eve": []}

    def relay(conn: Connection, message: str) -> None:
        app.publish("tea", message)

    crowd = Crowd(app, style=style, hooks={"message": relay})

    async def talk(name: str, peer: Peer) -> None:
        for number in range(30):
            await peer.send(f"{name} {number}")
            await trio.lowlevel.checkpoint()

    async def listen(name: str, peer: Peer) -> None:
        while len(received[name]) < 90:
            received[name].append(await peer.receive())

    async with (
        serving(app) as site,
        site.connect("/?name=ann") as ann,
        site.connect("/?name=bob") as bob,
        site.connect("/?name=eve") as eve,
    ):
        for name in received:
            (await crowd[name]).join("tea")
        async with trio.open_nursery() as nursery:
            for name, peer in zip(received, (ann, bob, eve), strict=True):
                nursery.start_soon(talk, name, peer)
                nursery.start_soon(listen, name, peer)
    assert received["ann"] == received["bob"] == received["eve"]
    for name in received:
        own = [message for message in received["ann"] if message.startswith(name)]
        assert own == [f"{name} {number}" for number in range(30)]
