"""The code of an end is one that was on the wire, or 1006; and what a Close frame may hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from support.servers import Kind, Recorder, Style, break_off, end_stream, serving, until
from trio_crowws import (
    App,
    CloseFrame,
    CloseTimeout,
    Connection,
    ConnectionClosed,
    ConnectionLost,
    HandlerError,
    HeartbeatTimeout,
    PayloadTooBig,
    ProtocolError,
    SlowConsumer,
    connect_stream,
)

ERRORS: list[Callable[[], Exception]] = [
    lambda: ProtocolError(1002, "the upstream broke the protocol"),
    lambda: PayloadTooBig("an upload"),
    lambda: CloseTimeout("the upstream"),
    lambda: ConnectionLost("the upstream"),
    lambda: HeartbeatTimeout("the upstream"),
    lambda: HandlerError("a plugin"),
    lambda: SlowConsumer("the database"),
    lambda: ValueError("oops"),
]


def raising(make: Callable[[], Exception]) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise make()

    return fail


@pytest.mark.parametrize("make", ERRORS, ids=lambda make: type(make()).__name__)
@pytest.mark.parametrize("answers", [True, False])
async def test_what_the_application_raises_is_1011(
    style: Style, make: Callable[[], Exception], answers: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """Whatever is raised, one of this package's own errors included, the peer is told 1011, and so says the end."""
    app = App()
    error = make()
    recorder = Recorder(app, style=style, hooks={"message": raising(lambda: error)})
    async with serving(app) as site, site.connect() as peer:
        peer.auto_close = answers
        await peer.send("fail")
        assert await peer.receive_close() == CloseFrame(1011)
        received = 1011 if answers else None
        info = await recorder.check_end(
            1011, clean=answers, initiator="local", sent=1011, received=received, error=type(error)
        )
    assert info.error is error


async def test_what_the_peer_answers_goes_before_what_it_was_told() -> None:
    """A peer that answers a Close with another code has said that one, and so the end has it."""
    app = App()
    recorder = Recorder(app, hooks={"message": raising(lambda: ValueError("oops"))})
    async with serving(app) as site, site.connect() as peer:
        peer.auto_close = False
        await peer.send("fail")
        assert await peer.receive_event() == CloseFrame(1011)
        await peer.send_frame(8, (4001).to_bytes(2) + b"why?")
        await recorder.check_end(
            4001,
            "why?",
            clean=True,
            initiator="local",
            sent=1011,
            received=CloseFrame(4001, "why?"),
            error=ValueError,
        )


async def test_an_error_after_our_close_has_not_sent_it(style: Style, autojump_clock: trio.testing.MockClock) -> None:
    """A handler that closes with 4000 and then raises has told nobody of an error: without an answer, it is a 1006."""
    app = App()

    def close_and_fail(conn: Connection, message: str) -> None:
        conn.close_nowait(4000, "bye")
        raise ValueError("oops")

    recorder = Recorder(app, style=style, hooks={"message": close_and_fail})
    async with serving(app) as site, site.connect() as peer:
        peer.auto_close = False
        await peer.send("close")
        assert await peer.receive_event() == CloseFrame(4000, "bye")
        await recorder.check_end(
            1006, clean=False, initiator="local", sent=CloseFrame(4000, "bye"), received=None, error=ValueError
        )


async def test_a_peer_that_has_gone_was_told_nothing(kind: Kind) -> None:
    """Where the stream has ended without a Close frame, that is the end, even if a handler raises over it."""
    app = App()

    async def fail_after_the_end(conn: Connection, message: str) -> None:
        await until(lambda: not conn.is_open)
        raise ValueError("oops")

    recorder = Recorder(app, hooks={"message": fail_after_the_end})
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.send("wait")
        await recorder.wait("message")
        await end_stream(peer)
        await recorder.wait("close")
    recorder.check()
    assert recorder.info.code == 1006
    assert recorder.info.received is None
    assert isinstance(recorder.info.error, ConnectionLost)


async def test_a_fault_that_nobody_could_be_told_of() -> None:
    """A bad frame, and then the transport breaks before our Close has left: the end is that of the fault."""
    app = App()
    go_on = trio.Event()

    async def busy(conn: Connection, message: str) -> None:
        await go_on.wait()

    recorder = Recorder(app, hooks={"message": busy})
    async with serving(app) as site, site.connect() as peer:
        await peer.send("wait")
        await peer.send_frame(3)
        await recorder.wait("message")
        await until(lambda: not recorder.conn.is_open)
        await break_off(peer)
        await until(lambda: recorder.conn.close_info is not None)
        go_on.set()
        await recorder.check_end(1002, clean=False, initiator="local", sent=None, received=None, error=ProtocolError)


async def test_the_clients_side_has_the_same_codes() -> None:
    """An error of the package's own that leaves a client's block is told the server as 1011, and so says the end."""
    app = App()
    recorder = Recorder(app)
    conns: list[Connection] = []
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.serve_stream, far)
        with pytest.raises(ProtocolError):  # noqa: PT012 -- the block has to be left by it
            async with connect_stream(near, "ws://x/") as conn:
                conns.append(conn)
                raise ProtocolError(1002, "the upstream broke the protocol")
    await recorder.check_end(1011, clean=True, initiator="remote", sent=1011, received=1011, error=None)
    info = conns[0].close_info
    assert info is not None
    assert (info.code, info.sent, info.received) == (1011, CloseFrame(1011), CloseFrame(1011))


# A Close frame without a code


async def test_a_close_without_a_code(kind: Kind, style: Style) -> None:
    """`close_nowait(None)` sends a Close frame without a payload, which a peer answers with the same: 1005."""
    app = App()
    recorder = Recorder(app, style=style, hooks={"message": lambda conn, message: conn.close_nowait(None)})
    async with serving(app, kind) as site, site.connect() as peer:
        await peer.send("close")
        assert await peer.receive_close() == CloseFrame(None)
        empty = CloseFrame(None)
        await recorder.check_end(1005, clean=True, initiator="local", sent=empty, received=empty, error=None)


async def test_a_close_without_a_code_that_gets_no_answer(autojump_clock: trio.testing.MockClock) -> None:
    """Without an answer it is a 1006, as with any code; until then `ConnectionClosed` says 1005."""
    app = App()
    codes: list[int] = []

    async def close(conn: Connection, message: str) -> None:
        conn.close_nowait(None)
        with pytest.raises(ConnectionClosed) as caught:
            await conn.send("too late")
        codes.append(caught.value.info.code)

    recorder = Recorder(app, hooks={"message": close})
    async with serving(app) as site, site.connect() as peer:
        peer.auto_close = False
        await peer.send("close")
        assert await peer.receive_event() == CloseFrame(None)
        await recorder.check_end(
            1006, clean=False, initiator="local", sent=CloseFrame(None), received=None, error=CloseTimeout
        )
    assert codes == [1005]


async def test_a_client_closes_without_a_code() -> None:
    """`close(None)` is the same at a client, and the server sees 1005."""
    app = App()
    recorder = Recorder(app)
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.serve_stream, far)
        async with connect_stream(near, "ws://x/") as conn:
            info = await conn.close(None)
    empty = CloseFrame(None)
    assert (info.code, info.sent, info.received, info.clean) == (1005, empty, empty, True)
    await recorder.check_end(1005, clean=True, initiator="remote", sent=empty, received=empty, error=None)


@pytest.mark.parametrize(
    ("code", "reason", "error", "match"),
    [
        (None, "why", ValueError, "without a code has no reason"),
        (1005, "", ValueError, "1005 must not be sent"),
        ("1000", "", TypeError, "must be an int"),
        (1000, None, TypeError, "must be a str"),
    ],
)
async def test_what_a_close_frame_cannot_hold(code: Any, reason: Any, error: type[Exception], match: str) -> None:
    """A reason without a code, or a code that must not travel, is refused; nothing has happened."""
    app = App()

    async def attempt(conn: Connection, message: str) -> None:
        with pytest.raises(error, match=match):
            await conn.close(code, reason)
        with pytest.raises(error, match=match):
            conn.close_nowait(code, reason)
        await conn.send("still open")

    recorder = Recorder(app, hooks={"message": attempt})
    async with serving(app) as site, site.connect() as peer:
        await peer.send("close")
        assert await peer.receive() == "still open"
        await peer.close()
    recorder.check()


async def test_a_reason_of_any_length_is_repeated() -> None:
    """The longest reason that a Close frame can hold comes back whole."""
    app = App()
    recorder = Recorder(app)
    reason = "ü" * 61 + "x"  # 123 bytes
    async with serving(app) as site, site.connect() as peer:
        assert await peer.close(3000, reason) == CloseFrame(3000, reason)
    await recorder.wait("close")
    assert recorder.info.reason == reason
