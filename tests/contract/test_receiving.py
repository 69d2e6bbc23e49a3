"""The way in: nothing is lost, nothing changes places, and a busy handler does not make a dead connection."""

from __future__ import annotations

import contextvars
from typing import Any

import pytest
import trio
import trio.testing

from support.servers import Kind, Recorder, Style, end_stream, serving, until
from trio_crowws import App, CloseFrame, Connection, ConnectionClosedOK, ConnectionLost, Handler, ProtocolError
from trio_crowws.testing import Peer, make_frame

TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9


async def collect(peer: Peer, *, answer: bool = False) -> list[str | bytes | CloseFrame]:
    """Messages, then the Close frame, as they come until the stream ends; a Close is answered if it has to be."""
    peer.auto_close = answer
    events: list[str | bytes | CloseFrame] = []
    while (event := await peer.receive_event()) is not None:
        assert isinstance(event, str | bytes | CloseFrame)
        events.append(event)
    return events


# `receive`


async def test_a_cancelled_receive_loses_nothing(kind: Kind) -> None:
    """However often `receive` is cancelled, every message is returned once and in order."""
    app = App()
    got: list[str | bytes] = []
    attempts = 0

    async def session(conn: Connection) -> None:
        nonlocal attempts
        while len(got) < 200:
            attempts += 1
            with trio.move_on_after(0.0002 * (attempts % 3)):
                got.append(await conn.receive())
            await trio.lowlevel.checkpoint()
        await conn.close()

    recorder = Recorder(app, style="session", hooks={"open": session})
    async with serving(app, kind) as site, site.connect() as peer:
        for number in range(200):
            await peer.send(str(number))
            if number % 7 == 0:
                await trio.sleep(0.0005)
        await peer.receive_close()
    recorder.check()
    assert got == [str(number) for number in range(200)]
    assert attempts > 200


async def test_a_message_that_comes_with_the_cancellation_is_kept() -> None:
    """A message and a cancellation in the same scheduler pass: `receive` returns it, now or the next time."""
    app = App()
    got: list[str | bytes] = []
    scopes: list[trio.CancelScope] = []

    async def session(conn: Connection) -> None:
        while len(got) < 50:
            with trio.CancelScope() as scope:
                scopes.append(scope)
                got.append(await conn.receive())
        await conn.close()

    Recorder(app, style="session", hooks={"open": session})
    async with serving(app) as site, site.connect() as peer:
        for number in range(50):
            await trio.testing.wait_all_tasks_blocked()
            await peer.send(str(number))
            if number % 2:
                await trio.lowlevel.checkpoint()
            scopes[-1].cancel()
        await peer.receive_close()
    assert got == [str(number) for number in range(50)]


async def test_two_receivers_are_refused() -> None:
    """A second task in `receive` gets `trio.BusyResourceError`; the first one is not disturbed."""
    app = App()
    got: list[Any] = []

    async def session(conn: Connection) -> None:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def first() -> None:
                got.append(await conn.receive())

            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await conn.receive()
            await conn.send("refused")

    recorder = Recorder(app, style="session", hooks={"open": session})
    async with serving(app) as site, site.connect() as peer:
        assert await peer.receive() == "refused"
        await peer.send("for the first")
        await recorder.wait("open")
        await trio.testing.wait_all_tasks_blocked()
        assert got == ["for the first"]


async def test_a_receiver_is_never_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    """Of two tasks that race for messages each gets one or `trio.BusyResourceError`; none waits for ever."""
    app = App()
    ends: list[object] = []

    async def receive(conn: Connection) -> None:
        try:
            ends.append(await conn.receive())
        except trio.BusyResourceError:
            ends.append("busy")

    async def race(conn: Connection, go: trio.Event) -> None:
        await go.wait()
        await receive(conn)
        await receive(conn)

    async def session(conn: Connection) -> None:
        go.append(trio.Event())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, conn)
            nursery.start_soon(race, conn, go[-1])
            with trio.CancelScope(shield=True):
                await conn.wait_closed()

    go: list[trio.Event] = []
    Recorder(app, style="session", hooks={"open": session})
    async with serving(app) as site:
        for _ in range(10):
            ends.clear()
            async with site.connect() as peer:
                await trio.testing.wait_all_tasks_blocked()
                await peer.stream.send_all(make_frame(TEXT, b"one"))
                await trio.lowlevel.checkpoint()
                go[-1].set()
                await trio.testing.wait_all_tasks_blocked()
                await peer.send("two")
                await trio.testing.wait_all_tasks_blocked()
                await peer.send("three")
                await trio.testing.wait_all_tasks_blocked()
                assert len(ends) == 3
                assert {"one", "two"} <= set(ends)
                await peer.close()


# A busy handler


async def test_a_full_receive_buffer_stops_the_reading(kind: Kind) -> None:
    """Beyond `receive_buffer` a busy handler's peer has to wait; nothing is lost when the handler goes on."""
    app = App(receive_buffer=100_000)
    count, size = 400, 50_000
    release = trio.Event()
    sizes: list[int] = []

    async def on_message(conn: Connection, message: bytes) -> None:
        await release.wait()
        sizes.append(int.from_bytes(message[:4]))

    recorder = Recorder(app, hooks={"message": on_message})
    async with serving(app, kind, lockstep=True) as site, site.connect() as peer:
        sent = 0
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def flood() -> None:
                nonlocal sent
                for number in range(count):
                    await peer.send(number.to_bytes(4) + bytes(size))
                    sent += 1

            await recorder.wait("message")
            with trio.move_on_after(0.3 if kind != "memory" else 0.05):
                await trio.sleep_forever()
            # The handler has one; the buffer may be over its limit by what one turn reads.
            assert recorder.conn.messages_received * size <= 100_000 + 5 * 65536 + size
            assert sent < count
            release.set()
        await peer.close()
        await recorder.wait("close")
    assert sizes == list(range(count))


async def test_pings_are_answered_while_the_handler_is_busy(kind: Kind, style: Style) -> None:
    """A ping is answered at once, whatever the handler does."""
    app = App(callback_timeout=0.01)
    hooks = {} if style in ("sync", "object") else {"message": lambda conn, message: trio.Event().wait()}
    recorder = Recorder(app, style=style, hooks=hooks)
    async with serving(app, kind) as site, site.connect() as peer:
        if hooks:
            await peer.send("be busy")
            await recorder.wait("message")
        await peer.ping(b"are you there?")
        event = await peer.receive_event()
        assert getattr(event, "payload", None) == b"are you there?"
        recorder.conn.abort()


async def test_the_peers_close_is_noticed_while_the_handler_is_busy(kind: Kind) -> None:
    """A busy handler sees the peer's Close in `is_open`, and the peer gets its answer soon."""
    app = App()
    noticed = trio.Event()

    async def work(conn: Connection, message: str) -> None:
        await until(lambda: not conn.is_open)
        noticed.set()
        await trio.sleep_forever()

    recorder = Recorder(app, hooks={"message": work}, callback_timeout=0.1)
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.send("be busy")
        await recorder.wait("message")
        start = trio.current_time()
        assert await peer.close(4001) == CloseFrame(4001)
        assert trio.current_time() - start < 2
        await recorder.check_end(4001, clean=True, initiator="remote", sent=4001, received=4001, error=None)
        assert noticed.is_set()


async def test_an_answer_has_its_time_whenever_the_heartbeat_is_due(autojump_clock: trio.testing.MockClock) -> None:
    """The time that a handler has for an answer after the peer's Close is not cut short by another timer."""
    app = App(ping_interval=1)

    async def answer(conn: Connection, message: str) -> None:
        await trio.sleep(0.2)
        await conn.send("the answer")

    Recorder(app, hooks={"message": answer})
    async with serving(app) as site, site.connect() as peer:
        await trio.sleep(0.95)
        await peer.send("question")
        await peer.send_frame(CLOSE, (1000).to_bytes(2))
        assert await collect(peer) == ["the answer", CloseFrame(1000)]


# Order


@pytest.mark.parametrize("end", ["close", "fault", "eof"])
async def test_messages_before_the_end_are_answered_first(kind: Kind, style: Style, end: str) -> None:
    """What comes before a Close frame, a fault or the end of the stream is delivered and answered first."""
    app = App()
    recorder = Recorder(app, style=style)
    frames = [make_frame(TEXT, str(number).encode()) for number in range(300)]
    frames += {"close": [make_frame(CLOSE, (4001).to_bytes(2))], "fault": [make_frame(3)], "eof": []}[end]
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.send_raw(b"".join(frames))
        if end == "eof":
            await end_stream(peer)
        events = await collect(peer)
        await recorder.wait("close")
    recorder.check()
    assert events[:300] == [str(number) for number in range(300)]
    last = events[300:]
    if end == "eof":
        assert last == []
        assert type(recorder.info.error) is ConnectionLost
    else:
        [frame] = last
        assert isinstance(frame, CloseFrame)
        assert frame.code == (4001 if end == "close" else 1002)


@pytest.mark.parametrize("end", ["close", "fault", "eof"])
async def test_slow_answers_come_before_the_end(kind: Kind, end: str) -> None:
    """The same when the handler takes its time for each message."""
    app = App()

    async def answer(conn: Connection, message: str) -> None:
        await trio.sleep(0.005)
        await conn.send(message)

    recorder = Recorder(app, hooks={"message": answer})
    frames = [make_frame(TEXT, str(number).encode()) for number in range(10)]
    frames += {"close": [make_frame(CLOSE)], "fault": [make_frame(3)], "eof": []}[end]
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.send_raw(b"".join(frames))
        if end == "eof":
            await end_stream(peer)
        events = await collect(peer)
        await recorder.wait("close")
    recorder.check()
    assert events[:10] == [str(number) for number in range(10)]


async def test_a_large_answer_after_the_end_of_the_stream(kind: Kind) -> None:
    """A peer that has ended its direction gets the answers to what it asked before, however large they are."""
    app = App()

    async def answer(conn: Connection, message: str) -> None:
        await until(lambda: not conn.is_open)
        for _ in range(40):
            await conn.send(bytes(200_000))

    recorder = Recorder(app, hooks={"message": answer})
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.send("question")
        await end_stream(peer)
        assert await collect(peer) == [bytes(200_000)] * 40
        await recorder.check_end(1006, clean=False, initiator="remote", sent=None, received=None, error=ConnectionLost)


async def test_the_stream_ends_right_behind_a_close_frame(kind: Kind) -> None:
    """A peer that sends Close and ends its direction has closed cleanly, also while the handler is busy."""
    app = App()

    async def answer(conn: Connection, message: str) -> None:
        await until(lambda: not conn.is_open)
        await trio.sleep(0.02)
        await conn.send("the answer")

    recorder = Recorder(app, hooks={"message": answer})
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.send("question")
        await recorder.wait("message")
        await peer.send_frame(CLOSE, (4001).to_bytes(2))
        await end_stream(peer)
        assert await collect(peer) == ["the answer", CloseFrame(4001)]
        await recorder.check_end(4001, clean=True, initiator="remote", sent=4001, received=4001, error=None)


async def test_the_stream_ends_behind_a_close_frame_while_much_is_queued(kind: Kind) -> None:
    """The same when the peer has yet to read what was sent before the answer to its Close."""
    app = App(send_limit=1 << 24)

    def answer(conn: Connection, message: str) -> None:
        for _ in range(50):
            conn.send_nowait(bytes(200_000))

    recorder = Recorder(app, style="sync", hooks={"message": answer})
    async with serving(app, kind) as site, site.connect() as peer:
        if peer.faults is not None:
            peer.faults.stall()
        await peer.send("question")
        await recorder.wait("message")
        await peer.send_frame(CLOSE, (4001).to_bytes(2))
        await end_stream(peer)
        await trio.sleep(0.05)
        if peer.faults is not None:
            peer.faults.flow()
        assert await collect(peer) == [*[bytes(200_000)] * 50, CloseFrame(4001)]
        await recorder.check_end(4001, clean=True, initiator="remote", sent=4001, received=4001, error=None)


@pytest.mark.parametrize("count", [5, 300])
@pytest.mark.parametrize("end", ["", "close"])
async def test_nothing_is_delivered_after_a_local_close(kind: Kind, style: Style, end: str, count: int) -> None:
    """What came behind the message that made the handler close is not delivered, even if it was read already."""
    app = App()
    recorder = Recorder(app, style=style, hooks={"message": lambda conn, message: conn.close_nowait(4000)})
    data = b"".join(make_frame(TEXT, str(number).encode()) for number in range(count))
    if end == "close":
        data += make_frame(CLOSE, (4001).to_bytes(2))
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.send_raw(data)
        assert await peer.receive_close() == CloseFrame(4000)
        await recorder.wait("close")
    recorder.check()
    assert recorder.names == ["open", "message", "close"]


async def test_plain_and_async_callbacks_keep_the_order(kind: Kind) -> None:
    """A plain `on_text` does not overtake an async `on_binary`, nor the other way round."""
    app = App()
    route = app.websocket("/")
    order: list[int] = []

    @route.on_text
    def on_text(conn: Connection, text: str) -> None:
        order.append(int(text))
        conn.send_nowait(text)

    @route.on_binary
    async def on_binary(conn: Connection, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        order.append(int(data))
        await conn.send(data)

    async with serving(app, kind) as site, site.connect() as peer:
        await peer.send_raw(
            b"".join(make_frame(BINARY if number % 3 == 0 else TEXT, b"%d" % number) for number in range(200))
        )
        await peer.send_frame(CLOSE)
        events = await collect(peer)
    assert order == list(range(200))
    assert [int(event) for event in events if not isinstance(event, CloseFrame)] == order


async def test_a_plain_on_message_waits_for_what_came_before() -> None:
    """A plain `on_message` is not called while `on_open` or `on_ping` still runs."""
    app = App()
    steps: list[str] = []

    async def on_open(conn: Connection) -> None:
        await trio.sleep(0.01)
        steps.append("opened")

    async def on_ping(conn: Connection, payload: bytes) -> None:
        await trio.sleep(0.01)
        steps.append("pinged")

    route = app.websocket("/").onopen(on_open).onmessage(lambda conn, message: steps.append(message))
    route.on_ping(on_ping)
    async with serving(app) as site, site.connect() as peer:
        await peer.send("one")
        await peer.ping()
        await peer.send("two")
        await peer.receive_event()
        await peer.ping()
        await peer.send("three")
        await peer.close()
    assert steps == ["opened", "one", "pinged", "two", "pinged", "three"]


async def test_an_exception_in_a_plain_callback_ends_one_connection(kind: Kind) -> None:
    """An exception in a plain `on_message` ends its connection; others, fed by the same task, are served on."""
    app = App()
    counts: list[str] = []

    def on_message(conn: Connection, message: str) -> None:
        counts.append(message)
        if message == "fail":
            raise ValueError("secret")
        conn.send_nowait(message)

    app.websocket("/").onmessage(on_message)
    async with serving(app, kind) as site, site.connect() as one, site.connect() as two:
        await one.send_raw(make_frame(TEXT, b"fail") + make_frame(TEXT, b"not delivered"))
        await two.send("hello")
        assert await one.receive_close() == CloseFrame(1011)
        assert await two.receive() == "hello"
        await two.close()
    assert sorted(counts) == ["fail", "hello"]


VAR = contextvars.ContextVar("VAR", default="nobody")


async def test_plain_callbacks_run_in_the_context_of_their_connection(kind: Kind) -> None:
    """What a callback sets in its context is there in the next one of that connection, plain or async."""
    app = App()
    seen: list[tuple[str | bytes, str]] = []

    def on_message(conn: Connection, message: str | bytes) -> None:
        seen.append((message, VAR.get()))
        VAR.set(f"{VAR.get()}!")
        conn.send_nowait(message)

    async def on_open(conn: Connection) -> None:
        VAR.set(conn.request.query["name"])

    def on_close(conn: Connection, info: object) -> None:
        seen.append(("closed", VAR.get()))

    app.websocket("/").onopen(on_open).onmessage(on_message).onclose(on_close)
    async with serving(app, kind) as site:
        async with site.connect("/?name=ann") as ann, site.connect("/?name=bob") as bob:
            for peer, text in ((ann, "a1"), (bob, "b1"), (ann, "a2")):
                await peer.send(text)
                await peer.receive()
            await ann.close()
        assert VAR.get() == "nobody"
    assert seen[:4] == [("a1", "ann"), ("b1", "bob"), ("a2", "ann!"), ("closed", "ann!!")]


# Handlers


class Second(Handler):
    def __init__(self) -> None:
        self.ended: list[object] = []

    async def on_message(self, conn: Connection, message: str) -> None:
        await conn.send(f"second {message}")

    def on_open(self, conn: Connection) -> None:
        raise AssertionError("on_open is not called again")

    def on_close(self, conn: Connection, info: object) -> None:
        self.ended.append(info)


@pytest.mark.parametrize("style", ["async", "sync", "class", "object"])
async def test_set_handler_counts_from_the_next_event_on(kind: Kind, style: Style) -> None:
    """`set_handler` hands the connection over: the next message goes to the new handler, as do the last callbacks."""
    app = App()
    second = Second()
    recorder = Recorder(app, style=style, hooks={"message": lambda conn, message: conn.set_handler(second)})
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.send_raw(b"".join(make_frame(TEXT, text) for text in (b"one", b"two", b"three")))
        assert [await peer.receive(), await peer.receive()] == ["second two", "second three"]
        await peer.close()
    assert recorder.names == ["open", "message"]
    assert len(second.ended) == 1


async def test_set_handler_with_a_class_makes_an_object() -> None:
    """`set_handler` takes a `Handler` class as well; what is neither is a `TypeError`, and a session is refused."""
    app = App()

    async def on_message(conn: Connection, message: str) -> None:
        with pytest.raises(TypeError):
            conn.set_handler(object())  # type: ignore[arg-type]
        conn.set_handler(Second)

    async def session(conn: Connection) -> None:
        with pytest.raises(RuntimeError, match="a session can await another one"):
            conn.set_handler(Second)
        await conn.send("refused")

    app.websocket("/").onmessage(on_message)
    app.websocket("/session")(session)
    async with serving(app) as site, site.connect() as peer, site.connect("/session") as other:
        await peer.send("one")
        await peer.send("two")
        assert await peer.receive() == "second two"
        assert await other.receive() == "refused"


async def test_text_and_binary_go_to_their_callbacks(kind: Kind) -> None:
    """`on_text` gets `str`, `on_binary` gets `bytes`, empty messages included."""
    app = App()
    route = app.websocket("/")
    got: list[tuple[str, object]] = []
    route.on_text(lambda conn, text: got.append(("text", text)))

    @route.on_binary
    async def on_binary(conn: Connection, data: bytes) -> None:
        got.append(("binary", data))

    async with serving(app, kind) as site, site.connect() as peer:
        for message in ("", b"", "grün", b"\xff"):
            await peer.send(message)
        await peer.close()
    assert got == [("text", ""), ("binary", b""), ("text", "grün"), ("binary", b"\xff")]


@pytest.mark.parametrize("wrong", ["text", b"binary"])
@pytest.mark.parametrize("plain", [False, True])
async def test_a_message_without_a_callback_is_refused_with_1003(wrong: str | bytes, plain: bool) -> None:
    """With only one of `on_text` and `on_binary`, the other kind is refused with 1003, behind what was answered."""
    app = App()
    route = app.websocket("/")
    errors: list[Exception] = []

    def echo(conn: Connection, message: str | bytes) -> None:
        conn.send_nowait(message)

    async def echo_async(conn: Connection, message: str | bytes) -> None:
        await conn.send(message)

    (route.on_binary if isinstance(wrong, str) else route.on_text)(echo if plain else echo_async)
    route.on_error(lambda conn, error: errors.append(error))
    right: str | bytes = b"fine" if isinstance(wrong, str) else "fine"
    async with serving(app) as site, site.connect() as peer:
        await peer.send(right)
        await peer.send(wrong)
        await peer.send(right)
        events = await collect(peer, answer=True)
    assert events[0] == right
    [closed] = events[1:]
    assert isinstance(closed, CloseFrame)
    assert closed.code == 1003
    [error] = errors
    assert isinstance(error, ProtocolError)


async def test_a_route_that_takes_no_messages_drops_them() -> None:
    """Messages for a route with only `on_open` and `on_close` are dropped; nothing is wrong with them."""
    app = App()
    ended: list[Any] = []
    app.websocket("/").onopen(lambda conn: None).onclose(lambda conn, info: ended.append(info))
    async with serving(app) as site, site.connect() as peer:
        await peer.send("nobody cares")
        await peer.send(b"nobody cares")
        assert await peer.close() == CloseFrame(1000)
    assert [info.error for info in ended] == [None]


async def test_receive_after_a_clean_end_says_so() -> None:
    """After the end, `receive` first gives what is left, then raises `ConnectionClosedOK`, as often as it is called."""
    app = App()
    ends: list[object] = []

    async def session(conn: Connection) -> None:
        ends.append(await conn.receive())
        for _ in range(2):
            with pytest.raises(ConnectionClosedOK) as caught:
                await conn.receive()
            ends.append(caught.value.info.code)

    Recorder(app, style="session", hooks={"open": session})
    async with serving(app) as site, site.connect() as peer:
        await peer.send("last")
        await peer.close(4001)
    assert ends == ["last", 4001, 4001]
