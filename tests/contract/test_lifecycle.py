"""Every way in which a connection can end: who is told what, in which order, and how often."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from support.servers import Kind, Recorder, Site, Style, break_off, end_stream, serving, until
from trio_crowws import (
    Accept,
    App,
    CloseFrame,
    CloseInfo,
    CloseTimeout,
    Connection,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    ConnectionLost,
    HandlerError,
    InvalidUTF8,
    PayloadTooBig,
    ProtocolError,
    Reject,
    Server,
)
from trio_crowws.testing import Refused, make_frame

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class Trouble(Exception):
    """What the application's own callbacks raise here."""


async def sleep_forever(*_: object) -> None:
    """A callback that never returns."""
    await trio.sleep_forever()


async def assert_serves(site: Site, path: str = "/alive") -> None:
    """A new peer is served."""
    async with site.connect(path) as peer:
        await peer.send("are you there?")
        assert await peer.receive() == "are you there?"
        assert await peer.close() == CloseFrame(1000)


def make_app(**options: Any) -> App:
    """An application with one more route, which echoes and by which life is noticed."""
    app = App(**options)

    @app.websocket("/alive")
    async def echo(conn: Connection) -> None:
        async for message in conn:
            await conn.send(message)

    return app


# The order of things, in a life that goes well


async def test_callbacks_run_in_order(kind: Kind) -> None:
    """`on_accept`, `on_open`, one `on_message` for each message, `on_close`: in this order and on every transport."""
    app = App()
    recorder = Recorder(app, hooks={"accept": lambda request: None})
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.send("one")
        await peer.send(b"two")
        assert [await peer.receive(), await peer.receive()] == ["one", b"two"]
        assert await peer.close(1000, "bye") == CloseFrame(1000, "bye")
        await recorder.check_end(
            1000,
            "bye",
            clean=True,
            initiator="remote",
            sent=CloseFrame(1000, "bye"),
            received=CloseFrame(1000, "bye"),
            error=None,
        )
    assert len(recorder.requests) == 1
    assert recorder.names == ["open", "message", "message", "close"]
    assert recorder.values("message") == ["one", b"two"]


async def test_callbacks_run_in_order_in_every_style(style: Style) -> None:
    """The order is the same in every style of handler, with async and with plain callbacks."""
    app = App()
    recorder = Recorder(app, style=style, hooks={"accept": lambda request: None})
    async with serving(app) as site, site.connect() as peer:
        for number in range(20):
            await peer.send(str(number))
        assert [await peer.receive() for _ in range(20)] == [str(number) for number in range(20)]
        assert await peer.close() == CloseFrame(1000)
        await recorder.check_end(1000, clean=True, initiator="remote", sent=1000, received=1000, error=None)
    assert len(recorder.requests) == 1
    assert recorder.names == ["open", *["message"] * 20, "close"]


async def test_on_open_finishes_before_the_first_message(kind: Kind) -> None:
    """A message that comes while `on_open` runs is delivered when `on_open` has returned."""
    app = App()
    go_on = trio.Event()
    steps: list[str] = []

    async def opening(conn: Connection) -> None:
        await go_on.wait()
        steps.append("opened")

    recorder = Recorder(app, hooks={"open": opening, "message": lambda conn, message: steps.append(message)})
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.send("first")
        await peer.ping(b"is it read?")
        await peer.receive_event()
        assert steps == []
        go_on.set()
        await recorder.wait("message")
        assert steps == ["opened", "first"]


async def test_on_open_runs_when_the_101_has_left() -> None:
    """`on_open` is not entered before the 101 has been sent: a peer that never takes it was never connected."""
    app = App(handshake_timeout=0.2, close_timeout=0.1)
    recorder = Recorder(app)
    async with serving(app, lockstep=True) as site:
        near = await site.open_stream()
        await near.send_all(
            b"GET / HTTP/1.1\r\nHost: testserver\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        await until(lambda: bool(site.listener.tap.writes))
        await trio.testing.wait_all_tasks_blocked()
        assert recorder.names == []
        await trio.sleep(0.5)
        await trio.aclose_forcefully(near)
    assert recorder.names == []


async def test_frames_that_come_with_the_request_are_answered(kind: Kind) -> None:
    """A peer that does not wait for the 101 loses nothing."""
    app = App()
    recorder = Recorder(app)
    async with serving(app, kind) as site:
        stream = await site.open_stream()
        await stream.send_all(
            b"GET / HTTP/1.1\r\nHost: testserver\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            b"\x81\x82\0\0\0\0hi"
        )
        received = b""
        while not received.endswith(b"\x81\x02hi"):
            received += await stream.receive_some()
        await trio.aclose_forcefully(stream)
        await recorder.wait("close")
    recorder.check()
    assert recorder.values("message") == ["hi"]


# Refused: no connection, no callbacks


@pytest.mark.parametrize("answer", [False, Reject(401, "who are you?")], ids=["False", "Reject"])
async def test_a_refused_request_has_no_other_callbacks(kind: Kind, answer: object) -> None:
    """After a refusal by `on_accept` neither `on_open` nor `on_error` nor `on_close` runs."""
    app = make_app()
    recorder = Recorder(app, hooks={"accept": lambda request: answer})
    async with serving(app, kind) as site:
        with pytest.raises(Refused) as caught:
            async with site.connect():
                pass
        assert caught.value.status == (403 if answer is False else 401)
        await assert_serves(site)
    assert len(recorder.requests) == 1
    assert recorder.names == []


async def test_an_exception_in_on_accept_is_a_500(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """An exception in `on_accept` is logged and answered with a 500 that says nothing of it."""
    app = make_app()

    def accept(request: object) -> None:
        raise Trouble("secret")

    recorder = Recorder(app, hooks={"accept": accept})
    async with serving(app, kind) as site:
        with pytest.raises(Refused) as caught:
            async with site.connect():
                pass
        await assert_serves(site)
    assert caught.value.status == 500
    assert b"secret" not in caught.value.body
    assert recorder.names == []
    assert [record.levelno for record in caplog.records if "secret" in record.getMessage()] == [logging.ERROR]


# Ends by the peer


@pytest.mark.parametrize("code", [1000, 1001, 1013, 3000, 4001])
async def test_the_peer_closes_with_a_code(kind: Kind, code: int) -> None:
    """A peer's Close is echoed with its code and reason, and these are those of the end."""
    app = make_app()
    recorder = Recorder(app)
    async with serving(app, kind) as site:
        async with site.connect() as peer:
            await peer.send_frame(CLOSE, code.to_bytes(2) + "grüße".encode())
            assert await peer.receive_close() == CloseFrame(code, "grüße")
            await recorder.check_end(
                code,
                "grüße",
                clean=True,
                initiator="remote",
                sent=CloseFrame(code, "grüße"),
                received=CloseFrame(code, "grüße"),
                error=None,
            )
        await assert_serves(site)


async def test_the_peer_closes_without_a_code(kind: Kind) -> None:
    """An empty Close frame is echoed empty, and its code is 1005."""
    app = make_app()
    recorder = Recorder(app)
    async with serving(app, kind) as site:
        async with site.connect() as peer:
            await peer.send_frame(CLOSE)
            assert await peer.receive_close() == CloseFrame(None)
            await recorder.check_end(
                1005,
                clean=True,
                initiator="remote",
                sent=CloseFrame(None),
                received=CloseFrame(None),
                error=None,
            )
        await assert_serves(site)


async def test_the_peer_closes_in_every_style(style: Style) -> None:
    """A peer's Close ends the connection in the same way in every style of handler."""
    app = App()
    recorder = Recorder(app, style=style)
    async with serving(app) as site, site.connect() as peer:
        assert await peer.close(4001, "enough") == CloseFrame(4001, "enough")
        await recorder.check_end(
            4001,
            "enough",
            clean=True,
            initiator="remote",
            sent=CloseFrame(4001, "enough"),
            received=CloseFrame(4001, "enough"),
            error=None,
        )


async def test_the_stream_ends_without_a_close_frame(kind: Kind) -> None:
    """A stream that ends without a Close frame is 1006 and a `ConnectionLost`."""
    app = make_app()
    recorder = Recorder(app)
    async with serving(app, kind) as site:
        async with site.connect() as peer:
            await end_stream(peer)
            await recorder.check_end(
                1006, clean=False, initiator="remote", sent=None, received=None, error=ConnectionLost
            )
        await assert_serves(site)


async def test_the_stream_ends_in_every_style(style: Style) -> None:
    """The end of a stream is the same in every style of handler."""
    app = App()
    recorder = Recorder(app, style=style)
    async with serving(app) as site, site.connect() as peer:
        await end_stream(peer)
        await recorder.check_end(1006, clean=False, initiator="remote", sent=None, received=None, error=ConnectionLost)


async def test_the_connection_breaks(kind: Kind) -> None:
    """A connection that breaks is 1006 and a `ConnectionLost`; on a socket an OSError is the cause."""
    app = make_app()
    recorder = Recorder(app)
    async with serving(app, kind) as site:
        async with site.connect() as peer:
            await break_off(peer)
            info = await recorder.check_end(
                1006, clean=False, initiator="remote", sent=None, received=None, error=ConnectionLost
            )
        await assert_serves(site)
    assert info.error is not None
    if kind == "tcp":
        assert isinstance(info.error.__cause__, ConnectionResetError)


async def test_the_connection_breaks_while_data_is_queued(kind: Kind) -> None:
    """A connection that breaks under a waiting `send` ends the send with `ConnectionClosed`, and is 1006."""
    app = make_app()
    caught: list[ConnectionClosed] = []

    async def flood(conn: Connection) -> None:
        try:
            while True:
                await conn.send(bytes(65536))
        except ConnectionClosed as error:
            caught.append(error)
            raise

    recorder = Recorder(app, hooks={"open": flood})
    async with serving(app, kind) as site:
        async with site.connect() as peer:
            if peer.faults is not None:
                peer.faults.stall()
            await recorder.wait("open")
            await until(lambda: recorder.conn.buffered > 65536)
            await break_off(peer)
            await recorder.wait("close")
        await assert_serves(site)
    info = await recorder.check_end(
        1006, clean=False, initiator="remote", sent=None, received=None, error=ConnectionLost
    )
    [error] = caught
    assert error.info is info
    assert isinstance(error, ConnectionClosedError)


@pytest.mark.parametrize(
    ("frames", "code", "error"),
    [
        ([(3, b"", {})], 1002, ProtocolError),
        ([(TEXT, b"", {"rsv": 1})], 1002, ProtocolError),
        ([(TEXT, b"unmasked", {"mask": False})], 1002, ProtocolError),
        ([(CLOSE, b"\x00", {})], 1002, ProtocolError),
        ([(TEXT, b"\xff", {})], 1007, InvalidUTF8),
        ([(BINARY, bytes(2049), {})], 1009, PayloadTooBig),
        ([(BINARY, bytes(1025), {"fin": False}), (0, bytes(1024), {})], 1009, PayloadTooBig),
        ([(BINARY, b"", {"fin": False}), *[(0, b"", {"fin": False})] * 8], 1008, ProtocolError),
        ([(PING, b"", {})] * 200, 1008, ProtocolError),
    ],
    ids=[
        "opcode",
        "reserved-bit",
        "unmasked",
        "bad-close",
        "utf8",
        "payload",
        "payload-of-fragments",
        "fragments",
        "control-rate",
    ],
)
async def test_the_peer_breaks_a_rule(
    kind: Kind, frames: list[tuple[int, bytes, dict[str, Any]]], code: int, error: type[Exception]
) -> None:
    """A breach of the protocol or of a limit fails the connection with its code; the peer's answer is not awaited."""
    app = make_app(max_payload=2048, max_fragments=8)
    recorder = Recorder(app)
    async with serving(app, kind) as site:
        async with site.connect() as peer:
            # All at once, since a rate counts the time between them.
            await peer.send_raw(b"".join(make_frame(opcode, payload, **how) for opcode, payload, how in frames))
            closed = await peer.receive_close()
            assert closed is not None
            assert closed.code == code
            info = await recorder.check_end(
                code, closed.reason, clean=False, initiator="local", sent=closed, received=None, error=error
            )
            assert info.reason
        await assert_serves(site)
    assert recorder.names == ["open", "error", "close"]


async def test_the_peer_breaks_a_rule_in_every_style(style: Style) -> None:
    """A breach of the protocol is the same in every style of handler."""
    app = App()
    recorder = Recorder(app, style=style)
    async with serving(app) as site, site.connect() as peer:
        await peer.send_frame(3)
        closed = await peer.receive_close()
        assert closed is not None
        await recorder.check_end(
            1002, closed.reason, clean=False, initiator="local", sent=closed, received=None, error=ProtocolError
        )


async def test_a_payload_of_exactly_the_limit_is_delivered(kind: Kind) -> None:
    """`max_payload` is the largest size that is allowed, whether in one frame or in several."""
    app = App(max_payload=2048)
    recorder = Recorder(app)
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.send(bytes(2048))
        await peer.send_frame(BINARY, bytes(1024), fin=False)
        await peer.send_frame(0, bytes(1024))
        assert [await peer.receive(), await peer.receive()] == [bytes(2048)] * 2
        await peer.close()
        await recorder.wait("close")
    recorder.check()


async def test_a_kind_of_message_that_nobody_takes(kind: Kind) -> None:
    """Where only `on_text` is there, binary is answered with 1003."""
    app = make_app()
    route = app.websocket("/text")
    told: list[Any] = []
    ended = trio.Event()
    route.on_text(lambda conn, text: told.append(text))
    route.on_error(lambda conn, error: told.append(error))

    @route.on_close
    def on_close(conn: Connection, info: Any) -> None:
        told.append(info)
        ended.set()

    async with serving(app, kind) as site:
        async with site.connect("/text") as peer:
            await peer.send("fine")
            await peer.send(b"not fine")
            closed = await peer.receive_close()
            await ended.wait()
        await assert_serves(site)
    assert closed is not None
    assert closed.code == 1003
    text, error, info = told
    assert text == "fine"
    assert type(error) is ProtocolError
    assert error.code == 1003
    assert info.error is error
    assert (info.code, info.clean, info.initiator) == (1003, True, "local")
    assert info.sent == closed


# Ends by this side


async def test_close_with_a_code_and_a_reason(kind: Kind) -> None:
    """`conn.close(code, reason)` sends them, waits for the answer, and the answer's code is the end's."""
    app = make_app()
    returned: list[Any] = []

    async def close(conn: Connection, message: str) -> None:
        returned.append(await conn.close(4000, "bye"))

    recorder = Recorder(app, hooks={"message": close})
    async with serving(app, kind) as site:
        async with site.connect() as peer:
            await peer.send("close, please")
            assert await peer.receive_close() == CloseFrame(4000, "bye")
            info = await recorder.check_end(
                4000,
                "bye",
                clean=True,
                initiator="local",
                sent=CloseFrame(4000, "bye"),
                received=CloseFrame(4000, "bye"),
                error=None,
            )
            assert returned == [info]
        await assert_serves(site)


async def test_close_nowait_in_every_style(style: Style) -> None:
    """`close_nowait` ends the connection in the same way in every style of handler."""
    app = App()
    recorder = Recorder(app, style=style, hooks={"message": lambda conn, message: conn.close_nowait(4000, "bye")})
    async with serving(app) as site, site.connect() as peer:
        await peer.send("close, please")
        assert await peer.receive_close() == CloseFrame(4000, "bye")
        frame = CloseFrame(4000, "bye")
        await recorder.check_end(4000, "bye", clean=True, initiator="local", sent=frame, received=frame, error=None)


async def test_the_peer_answers_a_close_with_another_code(kind: Kind) -> None:
    """The end's code is what the peer said; what this side said is `info.sent`."""
    app = App()
    recorder = Recorder(app, hooks={"message": lambda conn, message: conn.close_nowait(4000)})
    async with serving(app, kind) as site, site.connect() as peer:
        peer.auto_close = False
        await peer.send("close, please")
        assert await peer.receive_event() == CloseFrame(4000)
        await peer.send_frame(CLOSE, (4999).to_bytes(2) + b"no, you")
        await recorder.check_end(
            4999,
            "no, you",
            clean=True,
            initiator="local",
            sent=4000,
            received=CloseFrame(4999, "no, you"),
            error=None,
        )


async def test_the_peer_does_not_answer_a_close(kind: Kind) -> None:
    """A Close that is not answered within `close_timeout` ends in 1006 and a `CloseTimeout`."""
    app = make_app(close_timeout=0.1)
    recorder = Recorder(app, hooks={"message": lambda conn, message: conn.close_nowait(4000, "bye")})
    async with serving(app, kind) as site:
        async with site.connect() as peer:
            peer.auto_close = False
            await peer.send("close, please")
            assert await peer.receive_event() == CloseFrame(4000, "bye")
            await recorder.check_end(
                1006,
                clean=False,
                initiator="local",
                sent=CloseFrame(4000, "bye"),
                received=None,
                error=CloseTimeout,
            )
        await assert_serves(site)


async def test_the_peer_ends_the_stream_after_our_close(kind: Kind) -> None:
    """A peer that answers a Close by ending the stream has not closed cleanly."""
    app = App()
    recorder = Recorder(app, hooks={"message": lambda conn, message: conn.close_nowait(4000)})
    async with serving(app, kind) as site, site.connect() as peer:
        peer.auto_close = False
        await peer.send("close, please")
        assert await peer.receive_event() == CloseFrame(4000)
        await end_stream(peer)
        await recorder.check_end(1006, clean=False, initiator="local", sent=4000, received=None, error=ConnectionLost)


async def test_a_cancelled_close_goes_on(kind: Kind) -> None:
    """Cancelling `conn.close()` only stops the waiting; the closing handshake goes on."""
    app = App()

    async def close(conn: Connection, message: str) -> None:
        with trio.move_on_after(0):
            await conn.close(4000)
        assert not conn.is_open

    recorder = Recorder(app, hooks={"message": close})
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.send("close, please")
        assert await peer.receive_close() == CloseFrame(4000)
        await recorder.check_end(4000, clean=True, initiator="local", sent=4000, received=4000, error=None)


async def test_the_first_close_counts(kind: Kind) -> None:
    """Closing again changes nothing: there is one Close frame, with the first code."""
    app = App()

    async def close(conn: Connection, message: str) -> None:
        conn.close_nowait(4000, "first")
        conn.close_nowait(4001, "second")
        info = await conn.close(4002, "third")
        assert info is conn.close_info

    recorder = Recorder(app, hooks={"message": close})
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.send("close, please")
        frame = CloseFrame(4000, "first")
        assert await peer.receive_close() == frame
        await recorder.check_end(4000, "first", clean=True, initiator="local", sent=frame, received=frame, error=None)


async def test_a_bad_frame_after_our_close_ends_the_wait(kind: Kind) -> None:
    """After our Close a frame that breaks the protocol ends the connection at once, with no second Close frame."""
    app = App()
    recorder = Recorder(app, hooks={"message": lambda conn, message: conn.close_nowait(4000)})
    async with serving(app, kind) as site, site.connect() as peer:
        peer.auto_close = False
        await peer.send("close, please")
        assert await peer.receive_event() == CloseFrame(4000)
        await peer.send_frame(3)
        assert await peer.receive_event() is None
        await recorder.check_end(1002, clean=False, initiator="local", sent=4000, received=None, error=ProtocolError)


async def test_abort(kind: Kind) -> None:
    """`conn.abort()` drops the connection without a Close frame: 1006, but nothing that went wrong."""
    app = make_app()
    recorder = Recorder(app, hooks={"message": lambda conn, message: conn.abort()})
    async with serving(app, kind) as site:
        async with site.connect() as peer:
            await peer.send("drop it")
            assert await peer.receive_event() is None
            await recorder.check_end(1006, clean=False, initiator="local", sent=None, received=None, error=None)
        await assert_serves(site)


async def test_abort_in_every_style(style: Style) -> None:
    """`conn.abort()` is the same in every style of handler."""
    app = App()
    recorder = Recorder(app, style=style, hooks={"message": lambda conn, message: conn.abort()})
    async with serving(app) as site, site.connect() as peer:
        await peer.send("drop it")
        assert await peer.receive_event() is None
        await recorder.check_end(1006, clean=False, initiator="local", sent=None, received=None, error=None)


async def test_a_session_that_returns(kind: Kind) -> None:
    """The end of a session is a Close with 1000."""
    app = make_app()
    route = app.websocket("/short")
    infos: list[CloseInfo] = []
    ended = trio.Event()

    @route
    async def short(conn: Connection) -> None:
        await conn.send("that is all")

    @route.on_close
    def on_close(conn: Connection, info: CloseInfo) -> None:
        infos.append(info)
        ended.set()

    async with serving(app, kind) as site:
        async with site.connect("/short") as peer:
            assert await peer.receive() == "that is all"
            assert await peer.receive_close() == CloseFrame(1000)
            await ended.wait()
        await assert_serves(site)
    assert infos == [CloseInfo(1000, "", True, "local", CloseFrame(1000), CloseFrame(1000), None)]


# Exceptions in callbacks


async def fail_async(*_: object) -> None:
    raise Trouble("secret")


def fail_plainly(*_: object) -> None:
    raise Trouble("secret")


def failing(style: Style) -> Callable[..., Any]:
    return fail_plainly if style in ("sync", "object") else fail_async


def complaints(caplog: pytest.LogCaptureFixture) -> list[type[BaseException] | None]:
    """What was logged as an error: the types of the exceptions."""
    return [
        None if record.exc_info is None else record.exc_info[0]
        for record in caplog.records
        if record.levelno >= logging.ERROR
    ]


@pytest.mark.parametrize("name", ["open", "message", "ping", "pong"])
async def test_an_exception_in_a_callback(kind: Kind, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """An exception in a callback closes with 1011 and no text, is logged, and goes to `on_error`; others live on."""
    app = make_app()
    recorder = Recorder(app, hooks={name: fail_async})
    async with serving(app, kind) as site:
        async with site.connect("/alive") as other, site.connect() as peer:
            if name == "message":
                await peer.send("fail")
            elif name != "open":
                await peer.send_frame(PING if name == "ping" else PONG)
            closed = await peer.receive_close()
            assert closed == CloseFrame(1011)
            info = await recorder.check_end(
                1011, clean=True, initiator="local", sent=1011, received=1011, error=Trouble
            )
            await other.send("I live")
            assert await other.receive() == "I live"
        await assert_serves(site)
    assert str(info.error) == "secret"
    assert complaints(caplog) == [Trouble]


@pytest.mark.parametrize("name", ["open", "message", "ping"])
async def test_an_exception_in_every_style(style: Style, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """An exception is the same in every style of handler, logged with its traceback once."""
    app = App()
    recorder = Recorder(app, style=style, hooks={name: failing(style)})
    async with serving(app) as site, site.connect() as peer:
        if name != "open":
            await peer.send_frame(TEXT if name == "message" else PING, b"fail")
        assert await peer.receive_close() == CloseFrame(1011)
        await recorder.check_end(1011, clean=True, initiator="local", sent=1011, received=1011, error=Trouble)
    assert complaints(caplog) == [Trouble]


async def test_an_exception_in_on_error(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """An exception in `on_error` is logged; `on_close` runs all the same and hears of the first error."""
    app = make_app()
    recorder = Recorder(app, hooks={"message": fail_async, "error": lambda conn, error: 1 / 0})
    async with serving(app, kind) as site:
        async with site.connect() as peer:
            await peer.send("fail")
            assert await peer.receive_close() == CloseFrame(1011)
            await recorder.check_end(1011, clean=True, initiator="local", sent=1011, received=1011, error=Trouble)
        await assert_serves(site)
    assert complaints(caplog) == [Trouble, ZeroDivisionError]


async def test_an_exception_in_on_close(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """An exception in `on_close` is logged, and that is all."""
    app = make_app()
    recorder = Recorder(app, hooks={"close": fail_async})
    async with serving(app, kind) as site:
        async with site.connect() as peer:
            await peer.close()
            await recorder.check_end(1000, clean=True, initiator="remote", sent=1000, received=1000, error=None)
        await assert_serves(site)
    assert complaints(caplog) == [Trouble]


async def test_an_exception_while_the_peer_waits_for_its_answer(kind: Kind) -> None:
    """An exception after the peer's Close is told to the peer with 1011, and is an error all the same."""
    app = App()

    async def fail_later(conn: Connection, message: str) -> None:
        await until(lambda: not conn.is_open)
        raise Trouble

    recorder = Recorder(app, hooks={"message": fail_later})
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.send("fail later")
        assert await peer.close(1000) == CloseFrame(1011)
        await recorder.check_end(1000, clean=True, initiator="remote", sent=1011, received=1000, error=Trouble)


async def test_a_plain_callback_that_returns_an_awaitable_is_an_error() -> None:
    """A plain callback that forgets to be async is told so by a `HandlerError`."""
    app = App()

    async def work() -> None:
        raise AssertionError("it must not run")

    recorder = Recorder(app, style="sync", hooks={"message": lambda conn, message: work()})
    async with serving(app) as site, site.connect() as peer:
        await peer.send("fail")
        assert await peer.receive_close() == CloseFrame(1011)
        await recorder.check_end(1011, clean=True, initiator="local", sent=1011, received=1011, error=HandlerError)


# Groups of exceptions


async def test_a_group_of_one_is_unwrapped() -> None:
    """An exception that a nursery of the handler has wrapped reaches `on_error` bare."""
    app = App()

    async def handle(conn: Connection, message: str) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(fail_async)

    recorder = Recorder(app, hooks={"message": handle})
    async with serving(app) as site, site.connect() as peer:
        await peer.send("fail")
        assert await peer.receive_close() == CloseFrame(1011)
        await recorder.check_end(1011, clean=True, initiator="local", sent=1011, received=1011, error=Trouble)


async def test_a_group_of_several_is_one_error() -> None:
    """Several exceptions of a handler's nursery reach `on_error` as their group."""
    app = App()

    async def handle(conn: Connection, message: str) -> None:
        raise ExceptionGroup("both", [Trouble("one"), ValueError("two")])

    recorder = Recorder(app, hooks={"message": handle})
    async with serving(app) as site, site.connect() as peer:
        await peer.send("fail")
        assert await peer.receive_close() == CloseFrame(1011)
        await recorder.check_end(1011, clean=True, initiator="local", sent=1011, received=1011, error=ExceptionGroup)


async def test_connection_closed_in_a_group_is_a_normal_end(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """`ConnectionClosed` that leaves a handler's nursery is the normal end, not an error."""
    app = App()

    async def handle(conn: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(conn.receive)

    recorder = Recorder(app, style="session", hooks={"open": handle})
    async with serving(app, kind) as site, site.connect() as peer:
        assert await peer.close(4001) == CloseFrame(4001)
        await recorder.check_end(4001, clean=True, initiator="remote", sent=4001, received=4001, error=None)
    assert complaints(caplog) == []


async def test_connection_closed_beside_an_error_leaves_the_error() -> None:
    """Of a group with `ConnectionClosed` and an error of the application's own, the error is what counts."""
    app = App()

    async def handle(conn: Connection, message: str) -> None:
        conn.close_nowait(4000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.send, "too late")
            nursery.start_soon(fail_async)

    recorder = Recorder(app, hooks={"message": handle})
    async with serving(app) as site, site.connect() as peer:
        await peer.send("fail")
        assert await peer.receive_close() == CloseFrame(4000)
        await recorder.check_end(4000, clean=True, initiator="local", sent=4000, received=4000, error=Trouble)


async def test_an_exception_after_the_end_is_logged(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """What a session raises when its connection has ended is logged; what the end was does not change any more."""
    app = App()

    async def fail_in_the_end(conn: Connection) -> None:
        async for _ in conn:
            pass
        raise Trouble

    recorder = Recorder(app, style="session", hooks={"open": fail_in_the_end})
    async with serving(app, kind) as site, site.connect() as peer:
        assert await peer.close(4001) == CloseFrame(4001)
        await recorder.check_end(4001, clean=True, initiator="remote", sent=4001, received=4001, error=None)
    assert complaints(caplog) == [Trouble]


async def test_the_closed_connection_of_somebody_else_is_an_error() -> None:
    """`ConnectionClosed` of another connection that leaves a handler is an error like any other."""
    app = App()
    first: list[Connection] = []

    async def handle(conn: Connection, message: str) -> None:
        first.append(conn)
        if conn is not first[0]:
            await first[0].close()
            await first[0].send("too late")

    recorder = Recorder(app, hooks={"message": handle})
    async with serving(app) as site, site.connect() as one, site.connect() as two:
        await one.send("hello")
        await recorder.wait("message")
        await two.send("hello")
        await one.receive_close()
        assert await two.receive_close() == CloseFrame(1011)
        await recorder.wait("close", 2)
    recorder.check()
    [error] = recorder.values("error")
    assert isinstance(error, ConnectionClosedOK)


# Cancellation


async def test_a_cancelled_serve(kind: Kind) -> None:
    """Cancelling `serve` closes every connection with 1001."""
    app = App()
    recorder = Recorder(app)
    async with serving(app, kind) as site, site.connect() as peer:
        site.scope.cancel()
        assert await peer.receive_close() == CloseFrame(1001)
        await recorder.check_end(1001, clean=True, initiator="local", sent=1001, received=1001, error=None)
        await site.ended.wait()


async def test_a_cancelled_serve_in_every_style(style: Style) -> None:
    """Cancelling `serve` is the same in every style of handler."""
    app = App()
    recorder = Recorder(app, style=style)
    async with serving(app) as site, site.connect() as peer:
        site.scope.cancel()
        assert await peer.receive_close() == CloseFrame(1001)
        await recorder.check_end(1001, clean=True, initiator="local", sent=1001, received=1001, error=None)


async def test_a_cancelled_serve_in_the_middle_of_a_callback(kind: Kind) -> None:
    """Cancelling `serve` while a callback waits interrupts it, and closes with 1001."""
    app = App()
    seen: list[type[BaseException]] = []

    async def wait(conn: Connection, message: str) -> None:
        try:
            await trio.sleep_forever()
        except BaseException as error:
            seen.append(type(error))
            raise

    recorder = Recorder(app, hooks={"message": wait})
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.send("wait")
        await recorder.wait("message")
        site.scope.cancel()
        assert await peer.receive_close() == CloseFrame(1001)
        await recorder.check_end(1001, clean=True, initiator="local", sent=1001, received=1001, error=None)
    assert seen == [trio.Cancelled]


async def test_a_cancelled_route(kind: Kind) -> None:
    """Cancelling a route's scope closes its connections with 1001, refuses new ones, and leaves other routes alone."""
    app = make_app()
    recorder = Recorder(app)
    async with serving(app, kind) as site, site.connect("/alive") as other, site.connect() as peer:
        site.server.route_scope(recorder.route).cancel()
        assert await peer.receive_close() == CloseFrame(1001)
        await recorder.check_end(1001, clean=True, initiator="local", sent=1001, received=1001, error=None)
        with pytest.raises(Refused) as caught:
            async with site.connect():
                pass
        assert caught.value.status == 503
        await other.send("I live")
        assert await other.receive() == "I live"
        await assert_serves(site)


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
async def test_a_cancelled_handler(kind: Kind, busy: bool) -> None:
    """Cancelling `conn.cancel_scope` closes that connection with 1001, whatever its handler does."""
    app = make_app()
    hooks = {"message": sleep_forever}
    recorder = Recorder(app, hooks=hooks)
    async with serving(app, kind) as site:
        async with site.connect("/alive") as other, site.connect() as peer:
            await recorder.wait("open")
            if busy:
                await peer.send("wait")
                await recorder.wait("message")
            recorder.conn.cancel_scope.cancel()
            assert await peer.receive_close() == CloseFrame(1001)
            await recorder.check_end(1001, clean=True, initiator="local", sent=1001, received=1001, error=None)
            await other.send("I live")
            assert await other.receive() == "I live"
        await assert_serves(site)


async def test_a_cancelled_handler_in_every_style(style: Style) -> None:
    """Cancelling a handler's scope is the same in every style of handler."""
    app = App()
    recorder = Recorder(app, style=style)
    async with serving(app) as site, site.connect() as peer:
        await recorder.wait("open")
        recorder.conn.cancel_scope.cancel()
        assert await peer.receive_close() == CloseFrame(1001)
        await recorder.check_end(1001, clean=True, initiator="local", sent=1001, received=1001, error=None)


async def test_no_plain_callback_runs_after_the_handler_was_cancelled() -> None:
    """A message that comes when the scope is cancelled already is not delivered to a plain callback."""
    app = App()
    recorder = Recorder(app, style="sync")
    async with serving(app) as site, site.connect() as peer:
        await recorder.wait("open")
        await trio.testing.wait_all_tasks_blocked()
        await peer.send("too late")  # read in the next scheduler pass
        recorder.conn.cancel_scope.cancel()
        assert await peer.receive_close() == CloseFrame(1001)
        await recorder.wait("close")
    assert recorder.names == ["open", "close"]


async def test_cancelled_and_an_error_at_once(kind: Kind) -> None:
    """An exception during a cancellation is the connection's error; the cancellation goes on all the same."""
    app = App()

    async def handle(conn: Connection, message: str) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise Trouble

    recorder = Recorder(app, hooks={"message": handle})
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.send("wait")
        await recorder.wait("message")
        site.scope.cancel()
        assert await peer.receive_close() == CloseFrame(1011)
        await recorder.check_end(1011, clean=True, initiator="local", sent=1011, received=1011, error=Trouble)
        await site.ended.wait()
    assert site.scope.cancelled_caught


async def test_the_last_callbacks_are_shielded(kind: Kind) -> None:
    """`on_error` and `on_close` run to their end although everything around them is cancelled."""
    app = App()
    done: list[str] = []

    async def last(conn: Connection, value: object) -> None:
        await trio.sleep(0.01)
        done.append(type(value).__name__)

    recorder = Recorder(app, hooks={"message": fail_async, "error": last, "close": last})
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.send("fail")
        assert await peer.receive_close() == CloseFrame(1011)
        await recorder.wait("error")
        site.scope.cancel()
        await site.ended.wait()
    assert done == ["Trouble", "CloseInfo"]
    assert site.scope.cancelled_caught


async def test_the_last_callbacks_share_a_deadline(autojump_clock: trio.testing.MockClock) -> None:
    """`on_error` and `on_close` together get `callback_timeout` seconds; what takes longer is cancelled."""
    app = App(callback_timeout=5)
    cancelled: list[float] = []

    async def take_three_seconds(conn: Connection, value: object) -> None:
        start = trio.current_time()
        try:
            await trio.sleep(3)
        finally:
            cancelled.append(trio.current_time() - start)

    recorder = Recorder(app, hooks={"message": fail_async, "error": take_three_seconds, "close": take_three_seconds})
    async with serving(app) as site:
        async with site.connect() as peer:
            await peer.send("fail")
            await peer.receive_close()
            await recorder.wait("close")
        await assert_ends(site)
    assert cancelled == [pytest.approx(3), pytest.approx(2)]
    recorder.check()


async def assert_ends(site: Site) -> None:
    await site.server.aclose()
    await site.ended.wait()


async def test_a_handler_that_outlives_its_connection_is_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    """A handler that does not notice the end is cancelled after `callback_timeout` seconds, and `on_close` runs."""
    app = App(callback_timeout=5)
    recorder = Recorder(app, hooks={"message": sleep_forever})
    async with serving(app) as site, site.connect() as peer:
        await peer.send("wait")
        await recorder.wait("message")
        start = trio.current_time()
        assert await peer.close() == CloseFrame(1000)
        assert trio.current_time() - start == pytest.approx(0.25)
        await recorder.check_end(1000, clean=True, initiator="remote", sent=1000, received=1000, error=None)
        assert trio.current_time() - start == pytest.approx(5.25)


# What is no Exception


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("name", ["open", "message", "error", "close"])
async def test_an_interrupt_in_a_handler(kind: Kind, name: str, error: type[BaseException]) -> None:
    """KeyboardInterrupt in a callback ends `serve` with it; every peer sees 1001, and every `on_close` runs."""
    app = App()

    async def interrupt(*_: object) -> None:
        raise error

    other = Recorder(app, "/other")
    hooks: dict[str, Callable[..., Any]] = {name: interrupt}
    if name == "error":
        hooks["message"] = fail_async
    recorder = Recorder(app, hooks=hooks)

    async def meet_the_interrupt() -> None:
        async with serving(app, kind) as site, site.connect("/other") as bystander, site.connect() as peer:
            await peer.send("interrupt")
            if name == "close":
                await peer.close()
            with trio.CancelScope(shield=True):
                await peer.receive_close()
                assert await bystander.receive_close() == CloseFrame(1001)
                await site.ended.wait()

    with pytest.raises(error):
        await meet_the_interrupt()
    recorder.check()
    await other.check_end(1001, clean=True, initiator="local", sent=1001, received=1001, error=None)


async def test_an_interrupt_in_on_accept(kind: Kind) -> None:
    """SystemExit in `on_accept` ends `serve` with it; the request is answered with a 503 all the same."""
    app = App()

    def leave(request: object) -> None:
        raise SystemExit(3)

    other = Recorder(app, "/other")
    recorder = Recorder(app, hooks={"accept": leave})
    statuses: list[int] = []

    async def meet_the_interrupt() -> None:
        async with serving(app, kind) as site, site.connect("/other") as bystander:
            with trio.CancelScope(shield=True):
                try:
                    async with site.connect():
                        raise AssertionError("it must not be accepted")
                except Refused as refused:
                    statuses.append(refused.status)
                assert await bystander.receive_close() == CloseFrame(1001)
                await site.ended.wait()

    with pytest.raises(SystemExit):
        await meet_the_interrupt()
    assert statuses == [503]
    assert recorder.names == []
    await other.check_end(1001, clean=True, initiator="local", sent=1001, received=1001, error=None)


@pytest.mark.parametrize("closing", [False, True], ids=["", "closing"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_an_interrupt_in_a_plain_callback(kind: Kind, error: type[BaseException], closing: bool) -> None:
    """The same in a plain `on_message`, although whoever reads for all connections calls it."""
    app = App()

    def interrupt(conn: Connection, message: str) -> None:
        if closing:
            conn.close_nowait(1001)
        raise error

    other = Recorder(app, "/other")
    recorder = Recorder(app, style="sync", hooks={"message": interrupt})

    async def meet_the_interrupt() -> None:
        async with serving(app, kind) as site, site.connect("/other") as bystander, site.connect() as peer:
            await peer.send("interrupt")
            with trio.CancelScope(shield=True):
                assert await peer.receive_close() == CloseFrame(1001)
                assert await bystander.receive_close() == CloseFrame(1001)
                await site.ended.wait()

    with pytest.raises(error):
        await meet_the_interrupt()
    await recorder.check_end(1001, clean=True, initiator="local", sent=1001, received=1001, error=None)
    await other.check_end(1001, clean=True, initiator="local", sent=1001, received=1001, error=None)


# Afterwards


async def test_the_names_stay_readable(kind: Kind) -> None:
    """`request`, addresses, `userdata` and `close_info` can be read in `on_close` and later."""
    app = App()
    seen: list[tuple[object, ...]] = []

    def look(conn: Connection, info: CloseInfo) -> None:
        seen.append(
            (conn.request.path, conn.remote_address, conn.local_address, conn.userdata, conn.close_info, conn.id)
        )

    recorder = Recorder(app, "/{name}", hooks={"accept": lambda request: Accept(userdata="yours"), "close": look})
    async with serving(app, kind) as site, site.connect("/somewhere") as peer:
        await recorder.wait("open")
        conn = recorder.conn
        remote, local = conn.remote_address, conn.local_address
        await break_off(peer)
        await recorder.wait("close")
    info = recorder.info
    now = (conn.request.path, conn.remote_address, conn.local_address, conn.userdata, conn.close_info, conn.id)
    assert seen == [("/somewhere", remote, local, "yours", info, conn.id)] == [now]
    assert conn.request.path_params == {"name": "somewhere"}
    if kind in ("tcp", "tls"):
        assert isinstance(remote, tuple)
        assert remote[0] == "127.0.0.1"
        assert local == ("127.0.0.1", site.server.port)
    assert repr(conn)


async def test_a_closed_connection_refuses(kind: Kind) -> None:
    """From `on_close` on, every call raises `ConnectionClosed` with the `CloseInfo`; closing again is fine."""
    app = App()

    async def try_all(conn: Connection, info: CloseInfo) -> None:
        for call in (lambda: conn.send("x"), conn.receive, conn.ping):
            with pytest.raises(ConnectionClosed) as caught:
                await call()
            assert caught.value.info is info
        for plain in (lambda: conn.send_nowait("x"), lambda: conn.join("x"), lambda: conn.start_soon(trio.sleep, 0)):
            with pytest.raises(ConnectionClosed) as caught:
                plain()
            assert caught.value.info is info
        assert await conn.close(4000) is info
        assert await conn.wait_closed() is info
        conn.abort()
        conn.close_nowait()
        assert not conn.is_open
        tried.append(conn)

    tried: list[Connection] = []
    recorder = Recorder(app, hooks={"close": try_all})
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.close(4001)
        await recorder.check_end(4001, clean=True, initiator="remote", sent=4001, received=4001, error=None)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await try_all(recorder.conn, recorder.info)
    assert tried == [recorder.conn] * 2


async def test_the_lists_hold_open_connections_only(kind: Kind) -> None:
    """A connection is listed from before `on_open` until just before `on_close`."""
    app = App()
    listed: list[tuple[str, bool, bool, bool]] = []

    def look(name: str) -> Callable[..., None]:
        def note(conn: Connection, *_: object) -> None:
            listed.append(
                (name, conn in app.connections, conn in recorder.route.connections, conn in servers[0].connections)
            )

        return note

    servers: list[Server] = []
    recorder = Recorder(app, hooks={name: look(name) for name in ("open", "message", "error", "close")})
    async with serving(app, kind) as site:
        servers.append(site.server)
        async with site.connect() as peer:
            await peer.send("hello")
            await recorder.wait("message")
            await end_stream(peer)
            await recorder.wait("close")
        assert not app.connections
        assert not site.server.connections
    assert listed == [
        ("open", True, True, True),
        ("message", True, True, True),
        ("error", True, True, True),
        ("close", False, False, False),
    ]


async def test_async_for_raises_after_an_unclean_end(kind: Kind) -> None:
    """The loop over messages ends with a clean end, and raises `ConnectionClosedError` after another one."""
    app = App()
    ways: list[object] = []
    infos: list[CloseInfo] = []

    @app.websocket("/")
    async def session(conn: Connection) -> None:
        try:
            async for _ in conn:
                pass
            ways.append("end")
        except ConnectionClosed as error:
            ways.append(type(error))
            infos.append(error.info)
            raise

    async with serving(app, kind) as site:
        async with site.connect() as peer:
            await peer.close(4001)
        async with site.connect() as peer:
            await end_stream(peer)
            await peer.receive_close()
    assert ways == ["end", ConnectionClosedError]
    assert [info.code for info in infos] == [1006]
