"""The way out: whole frames, in order, at the speed of the peer."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from wsproto.events import CloseConnection, Pong

from support.servers import Kind, Recorder, Site, Style, decode, messages_of, noise, serving, until
from trio_crowws import App, CloseFrame, Connection, ConnectionClosed, ConnectionClosedError, SlowConsumer
from trio_crowws.testing import make_frame

KIB = 1024
TEXT, PING = 1, 9


def waiting(hooks: dict[str, Callable[..., Any]] | None = None) -> dict[str, Callable[..., Any]]:
    """Hooks with an `on_open` that does not return, so that the test itself can be the handler."""
    return {"open": lambda conn: conn.wait_closed(), **(hooks or {})}


async def blocked(site: Site, conn: Connection) -> None:
    """Make the peer stop reading, and fill what is between: afterwards nothing that is sent leaves."""
    if site.kind == "memory":
        site.listener.faults.stall()
        conn.send_nowait(b"stuck")
        await trio.testing.wait_all_tasks_blocked()
        return
    before = -1
    while before != conn.buffered or not conn.buffered:
        before = conn.buffered
        if not conn.buffered:
            conn.send_nowait(bytes(256 * KIB))
        await trio.sleep(0.005)


# Messages


@pytest.mark.parametrize(
    "data", ["", "text", "grün ☃ 🎈", b"", b"\xff\0", bytearray(b"array"), memoryview(b"0123456789")[::2]]
)
async def test_what_can_be_sent(kind: Kind, data: str | bytes | bytearray | memoryview) -> None:
    """`str` goes out as text, everything bytes-like as binary."""
    app = App()
    Recorder(app, hooks={"open": lambda conn: conn.send(data)})
    async with serving(app, kind) as site, site.connect() as peer:
        assert await peer.receive() == (data if isinstance(data, str) else bytes(data))


@pytest.mark.parametrize("size", [125, 126, 65535, 65536, 1 << 20])
async def test_messages_of_every_length_form(kind: Kind, size: int) -> None:
    """Messages on both sides of the borders between the length forms arrive whole."""
    app = App()
    Recorder(app, hooks={"open": lambda conn: conn.send(bytes(size))})
    async with serving(app, kind) as site, site.connect() as peer:
        assert await peer.receive() == bytes(size)


async def test_the_special_senders() -> None:
    """`send_text`, `send_binary` and `send_json` send what their names say."""
    app = App()

    async def send(conn: Connection) -> None:
        await conn.send_text("text")
        await conn.send_binary(b"binary")
        await conn.send_json({"a": [1, None, "ü"]})

    Recorder(app, hooks={"open": send})
    async with serving(app) as site, site.connect() as peer:
        assert [await peer.receive(), await peer.receive()] == ["text", b"binary"]
        assert json.loads(await peer.receive()) == {"a": [1, None, "ü"]}


async def test_what_cannot_be_sent_sends_nothing(kind: Kind) -> None:
    """A wrong type is a TypeError, a lone surrogate or NaN a ValueError; not a byte was sent, and sending goes on."""
    app = App()
    wrong: list[tuple[type[Exception], Callable[[Any], Any]]] = [
        (TypeError, lambda conn: conn.send(object())),
        (TypeError, lambda conn: conn.send(None)),
        (TypeError, lambda conn: conn.send(7)),
        (ValueError, lambda conn: conn.send("\ud800")),
        (TypeError, lambda conn: conn.send_nowait(object())),
        (ValueError, lambda conn: conn.send_nowait("\ud800")),
        (TypeError, lambda conn: conn.send_text(b"binary")),
        (TypeError, lambda conn: conn.send_binary("text")),
        (TypeError, lambda conn: conn.send_json(object())),
        (ValueError, lambda conn: conn.send_json(math.nan)),
        (TypeError, lambda conn: conn.publish("room", object())),
        (ValueError, lambda conn: conn.publish("room", "\ud800")),
        (ValueError, lambda conn: conn.close(1005)),
        (ValueError, lambda conn: conn.close(999)),
        (ValueError, lambda conn: conn.close_nowait(5000)),
        (TypeError, lambda conn: conn.close("1000")),
        (TypeError, lambda conn: conn.close(1000, b"reason")),
        (ValueError, lambda conn: conn.close(1000, "\ud800")),
    ]

    async def attempt(call: Callable[[Any], Any], conn: Connection) -> None:
        result = call(conn)
        if result is not None:
            await result

    async def send(conn: Connection) -> None:
        for error, call in wrong:
            buffered = conn.buffered
            with pytest.raises(error):
                await attempt(call, conn)
            assert conn.buffered == buffered
        assert conn.is_open
        await conn.send("the end")

    Recorder(app, hooks={"open": send})
    async with serving(app, kind) as site, site.connect() as peer:
        assert await peer.receive() == "the end"
        assert await peer.close() == CloseFrame(1000)


# Order


async def test_what_was_sent_before_close_is_before_the_close_frame(kind: Kind) -> None:
    """Everything that was sent before `close` comes before the Close frame, and nothing comes behind it."""
    app = App(send_limit=1 << 24)

    async def send(conn: Connection) -> None:
        for number in range(100):
            await conn.send(str(number))
        conn.send_nowait(bytes(300 * KIB))
        conn.close_nowait(4000, "done")
        with pytest.raises(ConnectionClosed):
            await conn.send("too late")
        with pytest.raises(ConnectionClosed):
            conn.send_nowait("too late")
        assert app.broadcast("too late").closed == 1
        await conn.close()

    Recorder(app, hooks={"open": send})
    async with serving(app, kind) as site, site.connect() as peer:
        messages = [await peer.receive() for _ in range(101)]
        assert messages == [*map(str, range(100)), bytes(300 * KIB)]
        assert await peer.receive_event() == CloseFrame(4000, "done")
        assert await peer.receive_event() is None


async def test_nothing_is_on_the_wire_behind_a_close_frame(style: Style) -> None:
    """The same in every style, as plain wsproto reads the wire, with pings that would have to be answered."""
    app = App()
    hooks = {"message": lambda conn, message: (conn.send_nowait("answer"), conn.close_nowait(4000), None)[2]}
    Recorder(app, style=style, hooks=hooks)
    async with serving(app) as site, site.connect() as peer:
        await peer.send_raw(b"".join((make_frame(TEXT, b"?"), make_frame(PING, b"!"), make_frame(TEXT, b"?"))))
        await peer.receive_close()
        events = decode(b"".join(site.listener.tap.writes))
    assert messages_of(events) == ["answer"]
    assert isinstance(events[-1], CloseConnection)
    assert [type(event) for event in events].count(CloseConnection) == 1


async def test_concurrent_senders_are_served_in_order(kind: Kind) -> None:
    """Tasks that wait in `send` are served in the order in which they came, and nobody overtakes them."""
    app = App(send_high_water=KIB)
    recorder = Recorder(app, hooks=waiting())
    total = 60

    async with serving(app, kind) as site, site.connect() as peer, trio.open_nursery() as nursery:
        await recorder.wait("open")
        conn = recorder.conn
        await blocked(site, conn)

        async def send(number: int) -> None:
            await conn.send(number.to_bytes(4) + bytes(2 * KIB))

        for number in range(total // 2):
            nursery.start_soon(send, number)
            await trio.testing.wait_all_tasks_blocked()
        numbers: list[int] = []
        late = total // 2
        if peer.faults is not None:
            peer.faults.flow()
        while len(numbers) < total:
            message = await peer.receive()
            assert isinstance(message, bytes)
            if len(message) == 4 + 2 * KIB:
                numbers.append(int.from_bytes(message[:4]))
            if late < total:  # somebody who comes while others still wait
                nursery.start_soon(send, late)
                late += 1
                await trio.lowlevel.checkpoint()
    assert numbers == list(range(total))


async def test_a_sender_does_not_overtake_one_that_was_just_woken() -> None:
    """A `send` that finds room waits all the same while earlier ones have not had their turn."""
    app = App(send_high_water=KIB)
    recorder = Recorder(app, hooks=waiting())

    async with serving(app) as site:
        for count in range(1, 21):
            async with site.connect() as peer, trio.open_nursery() as nursery:
                await recorder.wait("open", count)
                conn = next(iter(app.connections))
                site.listener.faults.stall()
                conn.send_nowait(bytes(2 * KIB))
                await trio.testing.wait_all_tasks_blocked()
                for text in ("first", "second", "third"):
                    nursery.start_soon(conn.send, text)
                    await trio.testing.wait_all_tasks_blocked()
                site.listener.faults.flow()
                while conn.buffered:
                    await trio.lowlevel.checkpoint()
                await conn.send("late")
                assert await peer.receive() == bytes(2 * KIB)
                got = [await peer.receive() for _ in range(4)]
                assert got == ["first", "second", "third", "late"]
                conn.abort()
                await recorder.wait("close", count)


async def test_concurrent_senders_of_large_messages_all_get_through(kind: Kind) -> None:
    """Senders that wait for each other, and not for the peer, which is fast, go on."""
    app = App()
    recorder = Recorder(app, hooks=waiting())
    async with serving(app, kind) as site, site.connect() as peer, trio.open_nursery() as nursery:
        await recorder.wait("open")

        async def send() -> None:
            for _ in range(3):
                await recorder.conn.send(bytes(100 * KIB))

        for _ in range(5):
            nursery.start_soon(send)
        for _ in range(15):
            assert await peer.receive() == bytes(100 * KIB)


# Backpressure


async def test_send_waits_above_the_high_water_mark(kind: Kind) -> None:
    """`send` lets at most `send_high_water` bytes and one message queue up, and goes on when the peer reads."""
    app = App(send_high_water=32 * KIB)
    recorder = Recorder(app, hooks=waiting())
    sent = 0
    async with serving(app, kind) as site, site.connect() as peer, trio.open_nursery() as nursery:
        await recorder.wait("open")
        conn = recorder.conn
        await blocked(site, conn)
        stuck = conn.buffered

        @nursery.start_soon
        async def produce() -> None:
            nonlocal sent
            for number in range(200):
                await conn.send(number.to_bytes(4) + noise(4 * KIB))
                sent += 1

        await trio.testing.wait_all_tasks_blocked(0.01)
        assert conn.buffered <= max(stuck, 32 * KIB) + 4 * KIB + 64
        assert sent < 20
        if peer.faults is not None:
            peer.faults.flow()
        numbers: list[int] = []
        while len(numbers) < 200:
            message = await peer.receive()
            assert isinstance(message, bytes)
            if len(message) == 4 + 4 * KIB:
                numbers.append(int.from_bytes(message[:4]))
    assert numbers == list(range(200))


async def test_a_loop_of_sends_lets_others_run(kind: Kind) -> None:
    """A handler that sends without end to a peer that reads does not keep the other tasks from running."""
    app = App()
    turns = 0

    async def flood(conn: Connection) -> None:
        for _ in range(2000):
            await conn.send(noise(2 * KIB))
        await conn.send("done")

    recorder = Recorder(app, hooks={"open": flood})
    async with serving(app, kind) as site, site.connect() as peer, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        while await peer.receive() != "done":
            pass
        nursery.cancel_scope.cancel()
    assert turns > 20
    assert recorder.names[0] == "open"


async def test_a_cancelled_send_sends_nothing(kind: Kind) -> None:
    """A `send` that was cancelled has sent nothing; all others have arrived, whole and in order."""
    app = App(send_high_water=8 * KIB)
    recorder = Recorder(app, hooks=waiting())
    async with serving(app, kind) as site, site.connect() as peer:
        await recorder.wait("open")
        conn = recorder.conn
        sent: list[bytes] = []
        got: list[bytes] = []

        async def read() -> None:
            if peer.faults is not None:
                peer.faults.flow()
            while len(got) < len(sent) + 1:
                message = await peer.receive()
                assert isinstance(message, bytes)
                if message[:1] == b"#":
                    got.append(message)

        cancelled = 0
        await blocked(site, conn)
        for number in range(60):
            message = b"#%d" % number + noise(3 * KIB)
            with trio.move_on_after(0 if number % 5 == 0 else 0.001) as scope:
                await conn.send(message)
                sent.append(message)
            cancelled += scope.cancelled_caught
        assert cancelled > 40
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await conn.send(b"#last")
        sent.append(b"#last")
        assert got == sent
        assert await peer.close() == CloseFrame(1000)
    if site.kind == "memory":
        decode(b"".join(site.listener.tap.writes))


async def test_send_is_always_a_cancellation_point() -> None:
    """A cancelled `send` raises `Cancelled` even when it would not have had to wait."""
    app = App()
    recorder = Recorder(app, hooks=waiting())
    async with serving(app) as site, site.connect():
        await recorder.wait("open")
        with trio.CancelScope() as scope:
            scope.cancel()
            await recorder.conn.send("never")
        assert scope.cancelled_caught
        assert recorder.conn.buffered == 0
        assert recorder.conn.messages_sent == 0


async def test_a_waiting_send_ends_with_the_connection(kind: Kind) -> None:
    """A `send` that waits when the connection ends raises `ConnectionClosed`, and so do those behind it."""
    app = App(send_high_water=KIB, close_timeout=0.1)
    recorder = Recorder(app, hooks=waiting())
    async with serving(app, kind) as site, site.connect():
        await recorder.wait("open")
        conn = recorder.conn
        await blocked(site, conn)
        ends: list[type[Exception]] = []

        async def send() -> None:
            try:
                await conn.send(noise(KIB))
                await conn.send(noise(KIB))
            except ConnectionClosed as error:
                ends.append(type(error))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert ends == []
            conn.close_nowait()
        assert ends == [ConnectionClosedError] * 5


# Corking


async def test_the_sends_of_one_step_are_one_write(style: Style) -> None:
    """What a handler sends without waiting leaves in one piece."""
    app = App()

    async def answer(conn: Connection, message: str) -> None:
        for number in range(10):
            await conn.send(str(number))

    def answer_plainly(conn: Connection, message: str) -> None:
        for number in range(10):
            conn.send_nowait(str(number))

    Recorder(app, style=style, hooks={"message": answer_plainly if style in ("sync", "object") else answer})
    async with serving(app) as site, site.connect() as peer:
        await trio.testing.wait_all_tasks_blocked()
        writes = site.listener.tap.writes
        before = len(writes)
        await peer.send("ten, please")
        assert [await peer.receive() for _ in range(10)] == [str(number) for number in range(10)]
        assert len(writes) == before + 1


async def test_batched_questions_get_batched_answers(style: Style) -> None:
    """Thirty-two messages in one segment are answered in few writes."""
    app = App()
    Recorder(app, style=style)
    async with serving(app) as site, site.connect() as peer:
        await trio.testing.wait_all_tasks_blocked()
        writes = site.listener.tap.writes
        before = len(writes)
        await peer.send_raw(b"".join(make_frame(TEXT, b"%d" % number) for number in range(32)))
        assert [await peer.receive() for _ in range(32)] == [str(number) for number in range(32)]
        assert len(writes) <= before + 2


async def test_what_was_sent_leaves_while_the_handler_sleeps(kind: Kind, style: Style) -> None:
    """A message leaves when its sender gives up control, whatever the sender then waits for."""
    app = App(callback_timeout=0.01)

    async def answer(conn: Connection, message: str) -> None:
        await conn.send("now")
        await trio.sleep_forever()

    def answer_plainly(conn: Connection, message: str) -> None:
        conn.send_nowait("now")

    recorder = Recorder(app, style=style, hooks={"message": answer_plainly if style in ("sync", "object") else answer})
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.send("when?")
        assert await peer.receive() == "now"
        recorder.conn.abort()


async def test_what_is_sent_from_elsewhere_leaves_at_once(kind: Kind) -> None:
    """A message from a task that has nothing to do with the connection leaves as soon."""
    app = App()
    recorder = Recorder(app)
    async with serving(app, kind) as site, site.connect() as peer:
        await recorder.wait("open")
        await recorder.conn.send("from the test")
        assert recorder.conn.send_nowait("and one more")
        assert [await peer.receive(), await peer.receive()] == ["from the test", "and one more"]


# A peer that does not read


async def test_on_slow_close(kind: Kind) -> None:
    """With `on_slow="close"` the message over `send_limit` closes the connection with 1013."""
    app = App(send_limit=64 * KIB, close_timeout=0.1)
    recorder = Recorder(app, hooks=waiting())
    async with serving(app, kind) as site, site.connect():
        await recorder.wait("open")
        conn = recorder.conn
        await blocked(site, conn)
        results = []
        while conn.is_open:
            results.append(conn.send_nowait(bytes(10 * KIB)))
        assert results[-1] is False
        assert all(results[:-1])
        await recorder.check_end(
            1013,
            "slow consumer",
            clean=False,
            initiator="local",
            sent=CloseFrame(1013, "slow consumer"),
            received=None,
            error=SlowConsumer,
        )


async def test_a_slow_peer_that_reads_in_the_end_sees_1013() -> None:
    """A peer that is closed for being slow gets what was queued, and is told why."""
    app = App(send_limit=64 * KIB)
    recorder = Recorder(app, hooks=waiting())
    async with serving(app) as site, site.connect() as peer:
        await recorder.wait("open")
        conn = recorder.conn
        await blocked(site, conn)
        count = 0
        while conn.send_nowait(bytes(10 * KIB)):
            count += 1
        site.listener.faults.flow()
        assert await peer.receive() == b"stuck"
        assert [await peer.receive() for _ in range(count)] == [bytes(10 * KIB)] * count
        assert await peer.receive_close() == CloseFrame(1013, "slow consumer")
        frame = CloseFrame(1013, "slow consumer")
        await recorder.check_end(
            1013, "slow consumer", clean=True, initiator="local", sent=frame, received=frame, error=SlowConsumer
        )


async def test_on_slow_drop(kind: Kind) -> None:
    """With `on_slow="drop"` the message over `send_limit` is dropped and counted, and the connection lives on."""
    app = App(send_limit=64 * KIB, on_slow="drop")
    recorder = Recorder(app, hooks=waiting())
    async with serving(app, kind) as site, site.connect() as peer:
        await recorder.wait("open")
        conn = recorder.conn
        await blocked(site, conn)
        results = [conn.send_nowait(b"#%d" % number + noise(20 * KIB)) for number in range(10)]
        assert results.count(False) == conn.dropped
        assert conn.dropped >= 6
        assert conn.is_open
        if peer.faults is not None:
            peer.faults.flow()
        got: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.send, "#end")
            while (message := await peer.receive()) != "#end":
                assert isinstance(message, bytes)
                if message[:1] == b"#":
                    got.append(int(message[1:2]))
        assert got == [number for number, result in enumerate(results) if result]


async def test_on_slow_latest() -> None:
    """With `on_slow="latest"` the newest message of each room waits in place of the older ones."""
    app = App(send_limit=64 * KIB, on_slow="latest")
    recorder = Recorder(app, hooks=waiting())
    async with serving(app) as site, site.connect() as peer:
        await recorder.wait("open")
        conn = recorder.conn
        conn.join("a")
        conn.join("b")
        await blocked(site, conn)
        assert conn.send_nowait(bytes(60 * KIB))
        for number in range(5):
            for room in ("a", "b"):
                result = app.publish(room, f"{room}{number}" + " " * 10 * KIB)
                assert (result.sent, result.dropped, result.closed) == (1, 0, 0)
        assert conn.dropped == 8
        site.listener.faults.flow()
        assert [await peer.receive(), await peer.receive()] == [b"stuck", bytes(60 * KIB)]
        assert [str(await peer.receive()).strip() for _ in range(2)] == ["a4", "b4"]
        assert app.publish("a", "a5").sent == 1
        assert await peer.receive() == "a5"
        assert conn.messages_sent == 5


async def test_the_latest_message_is_sent_before_a_close() -> None:
    """What `on_slow="latest"` has kept was sent before the Close, so it comes before the Close frame."""
    app = App(send_limit=64 * KIB, on_slow="latest")
    recorder = Recorder(app, hooks=waiting())
    async with serving(app) as site, site.connect() as peer:
        await recorder.wait("open")
        conn = recorder.conn
        conn.join("a")
        await blocked(site, conn)
        assert conn.send_nowait(bytes(60 * KIB))
        for number in range(5):
            app.publish("a", f"a{number}" + " " * 10 * KIB)
        conn.close_nowait(4000)
        site.listener.faults.flow()
        assert [await peer.receive(), await peer.receive()] == [b"stuck", bytes(60 * KIB)]
        assert str(await peer.receive()).strip() == "a4"
        assert await peer.receive_close() == CloseFrame(4000)


async def test_send_does_not_overtake_the_latest_message() -> None:
    """What `on_slow="latest"` has kept was sent before, though there would be room for the message of a `send`."""
    app = App(on_slow="latest", send_limit=16 * KIB)
    recorder = Recorder(app, hooks=waiting())
    async with serving(app) as site, site.connect() as peer:
        await recorder.wait("open")
        conn = recorder.conn
        conn.join("a")
        await blocked(site, conn)
        assert conn.send_nowait(bytes(1 * KIB))
        app.publish("a", "kept" + " " * 20 * KIB)
        queued = conn.buffered
        assert queued < 16 * KIB
        with trio.CancelScope() as scope:
            scope.cancel()
            await conn.send("cancelled")
        assert conn.buffered == queued
        await conn.send("last")
        site.listener.faults.flow()
        assert [await peer.receive(), await peer.receive()] == [b"stuck", bytes(1 * KIB)]
        assert str(await peer.receive()).strip() == "kept"
        assert await peer.receive() == "last"


async def test_the_limit_is_strict() -> None:
    """What is queued and what is new together never exceed `send_limit`; exactly the limit is allowed."""
    app = App(send_limit=10_000, on_slow="drop")
    recorder = Recorder(app, hooks=waiting())
    async with serving(app) as site, site.connect():
        await recorder.wait("open")
        conn = recorder.conn
        await blocked(site, conn)
        queued = conn.buffered
        fits = 10_000 - queued - 4  # four bytes of header
        assert not conn.send_nowait(bytes(fits + 1))
        assert conn.buffered == queued
        assert conn.send_nowait(bytes(fits))
        assert conn.buffered == 10_000
        assert not conn.send_nowait(b"")


async def test_a_message_over_the_limit_goes_when_nothing_is_queued(kind: Kind) -> None:
    """A single message may be larger than `send_limit`."""
    app = App(send_limit=10_000)
    recorder = Recorder(app)
    async with serving(app, kind) as site, site.connect() as peer:
        await recorder.wait("open")
        await trio.testing.wait_all_tasks_blocked()
        assert recorder.conn.send_nowait(bytes(50_000))
        assert await peer.receive() == bytes(50_000)


async def test_a_peer_that_takes_nothing_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    """A peer that takes nothing for `send_timeout` seconds is aborted: 1006 and `SlowConsumer`."""
    app = App(send_timeout=10, ping_interval=None)
    ends: list[Any] = []

    async def flood(conn: Connection) -> None:
        try:
            while True:
                await conn.send(bytes(KIB))
        except ConnectionClosedError as error:
            ends.append(error.info)

    recorder = Recorder(app, hooks={"open": flood})
    async with serving(app) as site, site.connect():
        site.listener.faults.stall()
        start = trio.current_time()
        await recorder.wait("close")
        assert trio.current_time() - start == pytest.approx(10, abs=0.01)
        info = await recorder.check_end(
            1006, clean=False, initiator="local", sent=None, received=None, error=SlowConsumer
        )
        assert ends == [info]


async def test_a_slow_peer_that_goes_on_reading_is_left_alone(autojump_clock: trio.testing.MockClock) -> None:
    """The clock of `send_timeout` starts anew whenever the peer takes something."""
    app = App(send_timeout=10, ping_interval=None)

    async def send(conn: Connection) -> None:
        for _ in range(20):
            await conn.send(bytes(64 * KIB))

    recorder = Recorder(app, hooks={"open": send})
    async with serving(app) as site, site.connect() as peer:
        messages = 0
        while messages < 20:
            site.listener.faults.stall()
            await trio.sleep(8)
            site.listener.faults.flow()
            await peer.receive()
            messages += 1
        assert trio.current_time() > 100
        assert await peer.close() == CloseFrame(1000)
    recorder.check()
    assert recorder.info.clean


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what its kernel keeps for a peer")
async def test_a_stall_that_is_over_leaves_nothing() -> None:
    """What the progress of a peer is measured with goes when it reads again."""
    app = App(send_timeout=0.5, ping_interval=None)
    recorder = Recorder(app, hooks=waiting())
    async with serving(app, "tcp") as site, site.connect() as peer:
        await recorder.wait("open")
        conn = recorder.conn
        await blocked(site, conn)
        assert conn._watched
        conn.send_nowait("end")
        while await peer.receive() != "end":
            pass
        await until(lambda: not conn._watched)
        assert conn.is_open


async def test_only_the_newest_pong_waits(kind: Kind) -> None:
    """Of the pongs that a peer asks for without reading, one is kept."""
    app = App(control_rate=None)
    recorder = Recorder(app, hooks=waiting())
    async with serving(app, kind) as site, site.connect() as peer:
        await recorder.wait("open")
        conn = recorder.conn
        await blocked(site, conn)
        queued = conn.buffered
        received = conn.bytes_received
        for number in range(500):
            await peer.send_frame(PING, b"%d" % number)
        await until(lambda: conn.bytes_received > received + 500 * 6)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert conn.buffered == queued
        if peer.faults is not None:
            peer.faults.flow()
        while not isinstance(event := await peer.receive_event(), Pong):
            pass
        assert event.payload == b"499"
