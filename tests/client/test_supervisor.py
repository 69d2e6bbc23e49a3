"""`keep_connected`: which ends are followed by another connection, when, and what is left behind.

The connections are scripted, on a clock that jumps; test_restarts.py has real ones.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from trio_crowws import (
    Backoff,
    CloseFrame,
    CloseInfo,
    CloseTimeout,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    ConnectionLost,
    HandshakeTimeout,
    Headers,
    HeartbeatTimeout,
    InvalidHandshake,
    InvalidURL,
    LinkPhase,
    LinkState,
    ProtocolError,
    ProxyError,
    Rejected,
    ServerResponse,
    is_final,
    keep_connected,
)

CONNECTING, CONNECTED, WAITING, STOPPED = LinkPhase


def closed_by_peer(code: int = 1000, reason: str = "") -> CloseInfo:
    frame = CloseFrame(code, reason)
    return CloseInfo(code, reason, True, "remote", frame, frame, None)


def lost(error: Exception) -> CloseInfo:
    initiator = "local" if isinstance(error, HeartbeatTimeout | ProtocolError) else "remote"
    return CloseInfo(getattr(error, "code", 1006), "", False, initiator, None, None, error)  # type: ignore[arg-type]


def closed_here(code: int = 1000, error: Exception | None = None) -> CloseInfo:
    return CloseInfo(code if error is None else 1006, "", error is None, "local", CloseFrame(code), None, error)


def refusal(status: int, **headers: str) -> Rejected:
    lines = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return Rejected(ServerResponse(status, Headers(lines)))


class FakeConnection:
    """As much of a connection as a supervisor looks at."""

    def __init__(self, number: int) -> None:
        self.id = f"f{number}"
        self.close_info: CloseInfo | None = None
        self._closed = trio.Event()

    @property
    def is_open(self) -> bool:
        return self.close_info is None

    def end(self, info: CloseInfo) -> None:
        self.close_info = info
        self._closed.set()

    async def wait_closed(self) -> CloseInfo:
        await self._closed.wait()
        assert self.close_info is not None
        return self.close_info

    async def receive(self) -> str:
        """No message ever comes."""
        raise closed_error(self, await self.wait_closed())


def closed_error(conn: FakeConnection, info: CloseInfo) -> ConnectionClosed:
    return (ConnectionClosedOK if info.clean else ConnectionClosedError)(info, conn.id)


class Net:
    """A `connect` whose attempts go as the script says: an exception, or `(seconds, how it ends)`.

    Attributes:
      attempts: when there was one.
      calls: with what.
      open: connections whose block was not left.
    """

    def __init__(self, *script: Exception | tuple[float, CloseInfo] | None) -> None:
        self._script = list(script)
        self.attempts: list[float] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.open = 0

    @asynccontextmanager
    async def connect(self, url: str, **options: Any) -> AsyncGenerator[Any]:
        self.attempts.append(trio.current_time())
        self.calls.append((url, options))
        await trio.lowlevel.checkpoint()
        plan = self._script.pop(0) if self._script else None
        if isinstance(plan, Exception):
            raise plan
        conn = FakeConnection(len(self.attempts))
        self.open += 1
        failure = None
        try:
            if plan is None:
                yield conn
                return
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._end_later, conn, *plan)
                    try:
                        yield conn
                    except Exception as error:
                        failure = error
                    scope.cancel()
            if failure is not None:
                raise failure
        finally:
            self.open -= 1
            if conn.close_info is None:
                conn.end(closed_here())

    async def _end_later(self, conn: FakeConnection, seconds: float, info: CloseInfo) -> None:
        await trio.sleep(seconds)
        conn.end(info)


async def listen(conn: Any) -> None:
    """A handler that ends with the connection."""
    await conn.receive()


async def done(conn: Any) -> str:
    """A handler that wants nothing."""
    return "done"


def listen_until(net: Net, attempts: int) -> Callable[[Any], Awaitable[Any]]:
    """A handler that wants nothing more after so many attempts."""

    async def handler(conn: Any) -> str | None:
        if len(net.attempts) > attempts:
            return await done(conn)
        await listen(conn)
        return None

    return handler


class Until(Exception):
    """Ends a supervisor that would go on for ever."""


class LongestWait(random.Random):
    """Chance that always picks the upper bound."""

    def uniform(self, a: float, b: float) -> float:
        return b


def keep(net: Net, handler: Callable[[Any], Awaitable[Any]] = listen, **options: Any) -> Awaitable[Any]:
    return keep_connected(handler, "ws://test/", connect=net.connect, rng=LongestWait(), **options)


# Waiting


async def test_the_waits_grow_with_each_failure(autojump_clock: trio.testing.MockClock) -> None:
    """Failures in a row wait for longer and longer, up to the maximum."""
    net = Net(*[OSError("nobody there")] * 6)
    assert await keep(net, done, backoff=Backoff(maximum=10)) == "done"
    assert net.attempts == [0, 1, 3, 7, 15, 25, 35]


async def test_short_connections_are_failures_too(autojump_clock: trio.testing.MockClock) -> None:
    """A connection that ends before it was healthy counts like one that could not be made."""
    net = Net(OSError("x"), (5, closed_by_peer()), (5, closed_by_peer()))
    await keep(net, listen_until(net, 3))
    assert net.attempts == [0, 1, 1 + 5 + 2, 8 + 5 + 4]


async def test_a_healthy_connection_begins_anew(autojump_clock: trio.testing.MockClock) -> None:
    """After a connection that lasted for `healthy` seconds, the waits begin with the first again."""
    net = Net(OSError("x"), OSError("x"), OSError("x"), (30, closed_by_peer()), OSError("x"))
    states: list[LinkState] = []
    await keep(net, listen_until(net, 5), on_state=states.append)
    assert net.attempts == [0, 1, 3, 7, 7 + 30 + 1, 38 + 2]
    assert [state.attempt for state in states if state.phase is CONNECTING] == [1, 2, 3, 4, 2, 3]


@pytest.mark.parametrize("code", [1012, 1013])
async def test_a_restart_is_spread(autojump_clock: trio.testing.MockClock, code: int) -> None:
    """After 1012 and 1013 even a healthy connection waits for up to `spread` seconds."""
    net = Net((100, closed_by_peer(code)))
    await keep(net, listen_until(net, 1))
    assert net.attempts == [0, 110]


async def test_clients_come_back_at_different_times(autojump_clock: trio.testing.MockClock) -> None:
    """Of many clients that a restart has thrown out, no moment gets more than a few back."""
    nets = [Net((100, closed_by_peer(1012))) for _ in range(200)]

    async def client(net: Net, seed: int) -> None:
        async def handler(conn: Any) -> str | None:
            return await (done(conn) if len(net.attempts) > 1 else listen(conn))

        await keep_connected(handler, "ws://test/", connect=net.connect, rng=random.Random(seed))

    async with trio.open_nursery() as nursery:
        for seed, net in enumerate(nets):
            nursery.start_soon(client, net, seed)
    back = [net.attempts[1] - 100 for net in nets]
    assert 0 <= min(back) < 1
    assert 9 < max(back) <= 10
    assert max(sum(second <= moment < second + 1 for moment in back) for second in range(10)) < 40


@pytest.mark.parametrize(("value", "wait"), [("20", 20), ("100000", 300), ("soon", 0)])
@pytest.mark.parametrize("status", [408, 425, 429, 503])
async def test_retry_after(autojump_clock: trio.testing.MockClock, status: int, value: str, wait: float) -> None:
    """What a refusal asks for is waited for, within the bound, and the jitter comes on top."""
    net = Net(refusal(status, Retry_After=value))
    await keep(net, done)
    assert net.attempts == [0, wait + 1]


async def test_retry_after_of_a_proxy(autojump_clock: trio.testing.MockClock) -> None:
    """A proxy may ask for a wait as well."""
    net = Net(ProxyError("busy", refusal(503, Retry_After="20").response))
    await keep(net, done)
    assert net.attempts == [0, 21]


async def test_retry_after_as_a_date(autojump_clock: trio.testing.MockClock) -> None:
    """The distance of a date from the date of the response is waited for."""
    dates = {"Date": "Sun, 06 Nov 1994 08:49:37 GMT", "Retry_After": "Sun, 06 Nov 1994 08:49:57 GMT"}
    net = Net(refusal(503, **dates))
    await keep(net, done)
    assert net.attempts == [0, 21]


# What is final


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        *[(refusal(status), True) for status in (400, 401, 403, 404, 410, 426, 451, 499)],
        *[(refusal(status), False) for status in (200, 301, 408, 425, 429, 500, 502, 503, 504)],
        *[(ConnectionClosedOK(closed_by_peer(code)), True) for code in (1002, 1003, 1007, 1008, 1010)],
        *[(ConnectionClosedOK(closed_by_peer(code)), False) for code in (1000, 1001, 1005, 1009, 1011, 1012, 4000)],
        (ConnectionClosedError(lost(ConnectionLost("gone"))), False),
        (ConnectionClosedError(lost(ProtocolError(1002, "nonsense"))), True),
        (ProxyError("refused", refusal(407).response), True),
        (ProxyError("refused", refusal(503).response), False),
        (ProxyError("nonsense"), False),
        (InvalidURL("ftp"), True),
        (HandshakeTimeout("slow"), False),
        (InvalidHandshake("wrong"), False),
        (OSError("nobody there"), False),
    ],
    ids=repr,
)
def test_is_final(error: Exception, expected: bool) -> None:
    """Final is what another attempt would not change."""
    assert is_final(error) is expected


async def test_a_final_refusal_is_raised(autojump_clock: trio.testing.MockClock) -> None:
    """A status that says that the request is wrong ends it all, with that very exception."""
    error = refusal(403)
    with pytest.raises(Rejected) as caught:
        await keep(Net(OSError("x"), error))
    assert caught.value is error


async def test_a_final_close_code_is_raised(autojump_clock: trio.testing.MockClock) -> None:
    """A final close code ends it all, with a ConnectionClosed that holds it."""
    info = closed_by_peer(1008, "go away")
    with pytest.raises(ConnectionClosedOK) as caught:
        await keep(Net((5, info)))
    assert caught.value.info is info


async def test_another_predicate(autojump_clock: trio.testing.MockClock) -> None:
    """What is final can be decided by the application."""
    net = Net(refusal(404), OSError("x"), refusal(502))
    with pytest.raises(Rejected) as caught:
        await keep(net, is_final=lambda error: isinstance(error, Rejected) and error.status == 502)
    assert caught.value.status == 502
    assert len(net.attempts) == 3


# How handlers leave


async def test_the_arguments_are_those_of_connect(autojump_clock: trio.testing.MockClock) -> None:
    """URL and options go to `connect`, each time."""
    net = Net(OSError("x"))
    await keep(net, done, subprotocols=["v1"], max_payload=5)
    assert net.calls == [("ws://test/", {"subprotocols": ["v1"], "max_payload": 5})] * 2


async def test_a_handler_that_returns_is_done(autojump_clock: trio.testing.MockClock) -> None:
    """A handler that returns while the connection is open ends it all, even with None."""

    async def handler(conn: Any) -> None:
        await trio.sleep(1)

    net = Net()
    assert await keep(net, handler) is None
    assert len(net.attempts) == 1


@pytest.mark.parametrize("error", [None, CloseTimeout("slow"), ConnectionLost("gone")], ids=repr)
async def test_a_handler_that_closes_is_done(autojump_clock: trio.testing.MockClock, error: Exception | None) -> None:
    """A handler that has closed the connection and returns ends it all, however the peer took that."""

    async def handler(conn: Any) -> None:
        conn.end(closed_here(error=error))

    net = Net()
    await keep(net, handler)
    assert len(net.attempts) == 1


async def test_a_result_counts_even_if_the_peer_has_closed(autojump_clock: trio.testing.MockClock) -> None:
    """A peer that answers and closes in one go does not bring a handler back that has what it wanted."""

    async def handler(conn: Any) -> str:
        await conn.wait_closed()
        return "answer"

    net = Net((1, closed_by_peer()))
    assert await keep(net, handler) == "answer"
    assert len(net.attempts) == 1


ENDS = [
    closed_by_peer(),
    closed_by_peer(1001),
    lost(ConnectionLost("gone")),
    lost(HeartbeatTimeout("silent")),
]


@pytest.mark.parametrize("info", ENDS, ids=repr)
@pytest.mark.parametrize("leaves", ["returns", "raises", "raises a group"])
async def test_a_handler_that_leaves_with_its_connection_comes_back(
    autojump_clock: trio.testing.MockClock, info: CloseInfo, leaves: str
) -> None:
    """A handler is run again when its connection has ended, whether it returns or lets ConnectionClosed pass."""

    async def handler(conn: Any) -> str | None:
        if len(net.attempts) == 3:
            return "done"
        if leaves == "returns":
            await conn.wait_closed()
            return None
        if leaves == "raises":
            await conn.receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.receive)
            nursery.start_soon(conn.receive)
        return None

    net = Net((1, info), (1, info))
    assert await keep(net, handler) == "done"
    assert len(net.attempts) == 3


class Mistake(Exception):
    """A handler's own."""


@pytest.mark.parametrize(
    "error",
    [Mistake("x"), OSError("x"), refusal(503), ConnectionClosedOK(closed_by_peer(), "another connection")],
    ids=repr,
)
async def test_a_handlers_own_exception_is_raised(autojump_clock: trio.testing.MockClock, error: Exception) -> None:
    """What a handler raises is raised, even if it looks like a failure to connect; nothing is wrapped around it."""

    async def handler(conn: Any) -> None:
        raise error

    net = Net((50, closed_by_peer()))
    with pytest.raises(type(error)) as caught:
        await keep(net, handler)
    assert caught.value is error
    assert len(net.attempts) == 1
    assert net.open == 0


async def test_a_handlers_own_group_is_raised_as_it_is(autojump_clock: trio.testing.MockClock) -> None:
    """A group that holds more than the end of the connection is the handler's own."""

    async def fail() -> None:
        raise Mistake("x")

    async def handler(conn: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.receive)
            await conn.wait_closed()
            await fail()

    with pytest.raises(ExceptionGroup) as caught:
        await keep(Net((1, closed_by_peer())), handler)
    assert {type(each) for each in caught.value.exceptions} == {Mistake, ConnectionClosedOK}


async def test_an_interrupt_is_raised_as_it_is(autojump_clock: trio.testing.MockClock) -> None:
    """KeyboardInterrupt and its like leave without a group around them."""

    async def handler(conn: Any) -> None:
        raise SystemExit(5)

    net = Net()
    with pytest.raises(SystemExit) as caught:
        await keep(net, handler)
    assert caught.value.code == 5
    assert net.open == 0


# Handlers that do not notice


async def test_a_handler_that_does_not_notice_is_cancelled(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that waits for something else is cancelled after the grace, and run again."""

    async def handler(conn: Any) -> str:
        if len(net.attempts) == 1:
            await trio.sleep_forever()
        return "done"

    net = Net((2, closed_by_peer()))
    assert await keep(net, handler, grace=5) == "done"
    assert net.attempts == [0, 2 + 5 + 1]
    assert "[f1] the handler ran on after its connection had closed, and was cancelled" in caplog.text


async def test_the_grace_may_be_infinite(autojump_clock: trio.testing.MockClock) -> None:
    """With an infinite grace a handler is never cancelled."""

    async def handler(conn: Any) -> str:
        await trio.sleep(10_000)
        return "done"

    assert await keep(Net((2, closed_by_peer())), handler, grace=math.inf) == "done"


@pytest.mark.parametrize("error", [None, CloseTimeout("slow"), ConnectionLost("gone")], ids=repr)
@pytest.mark.parametrize("result", [None, "done"])
async def test_a_handler_that_has_closed_may_go_on(
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    error: Exception | None,
    result: str | None,
) -> None:
    """A handler that has closed the connection itself is not cancelled, and its result is returned."""

    async def handler(conn: Any) -> str | None:
        conn.end(closed_here(error=error))
        await trio.sleep(60)
        return result

    net = Net()
    assert await keep(net, handler, grace=5) == result
    assert net.attempts == [0]
    assert trio.current_time() == 60
    assert not caplog.records


async def test_a_cancelled_handler_may_use_its_connection(autojump_clock: trio.testing.MockClock) -> None:
    """A handler that is cancelled too late, and then finds its connection closed, is run again like any other."""

    async def handler(conn: Any) -> str:
        if len(net.attempts) > 1:
            return "done"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise closed_error(conn, conn.close_info)

    net = Net((2, closed_by_peer()))
    assert await keep(net, handler) == "done"
    assert len(net.attempts) == 2


# States


async def test_what_on_state_is_told(autojump_clock: trio.testing.MockClock) -> None:
    """Each step is told with the number of the attempt, the wait, and the reason."""
    error = OSError("nobody there")
    info = closed_by_peer(1001)
    states: list[LinkState] = []
    net = Net(error, (5, info))
    await keep(net, listen_until(net, 2), on_state=states.append)
    [reason] = {state.error for state in states} - {None, error}
    assert isinstance(reason, ConnectionClosedOK)
    assert reason.info is info
    assert states == [
        LinkState(CONNECTING, 1),
        LinkState(WAITING, 1, delay=1, error=error),
        LinkState(CONNECTING, 2, error=error),
        LinkState(CONNECTED, 2),
        LinkState(WAITING, 2, delay=2, error=reason),
        LinkState(CONNECTING, 3, error=reason),
        LinkState(CONNECTED, 3),
        LinkState(STOPPED, 3),
    ]


async def test_on_state_is_told_what_is_raised(autojump_clock: trio.testing.MockClock) -> None:
    """The last state holds what ended it all."""
    states: list[LinkState] = []
    error = refusal(403)
    with pytest.raises(Rejected):
        await keep(Net(error), on_state=states.append)
    assert states == [LinkState(CONNECTING, 1), LinkState(STOPPED, 1, error=error)]


@pytest.mark.parametrize("phase", [phase for phase in LinkPhase if phase is not STOPPED])
async def test_what_on_state_raises_is_raised(autojump_clock: trio.testing.MockClock, phase: LinkPhase) -> None:
    """An exception of `on_state` ends it all, and it is not called again."""
    told: list[LinkPhase] = []

    def on_state(state: LinkState) -> None:
        told.append(state.phase)
        if state.phase is phase:
            raise OSError("the user's own")

    net = Net(ConnectionResetError("x"), (5, closed_by_peer()))
    with pytest.raises(OSError, match="the user's own"):
        await keep(net, on_state=on_state)
    assert told[-1] is phase
    assert net.open == 0


async def generate(conn: Any) -> AsyncGenerator[None]:
    yield


async def without_parameters() -> None: ...


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"handler": None}, TypeError, "handler must be a function, not NoneType"),
        ({"handler": print}, TypeError, "handler must be an async function, but print is a plain one"),
        ({"handler": lambda conn: None}, TypeError, "handler must be an async function, but .*lambda.* is a plain one"),
        ({"handler": without_parameters}, TypeError, "handler is called with .conn., but without_parameters takes"),
        ({"handler": generate}, TypeError, "generate is an async generator"),
        ({"backoff": 5}, TypeError, "backoff must be a Backoff, not int"),
        ({"backoff": None}, TypeError, "backoff must be a Backoff, not NoneType"),
        ({"is_final": True}, TypeError, "is_final must be a function, not bool"),
        ({"is_final": None}, TypeError, "is_final must be a function, not NoneType"),
        ({"is_final": done}, TypeError, "is_final must be a plain function, not an async one"),
        ({"is_final": lambda: True}, TypeError, "is_final is called with .error., but"),
        ({"on_state": done}, TypeError, "on_state must be a plain function, not an async one"),
        ({"on_state": lambda: None}, TypeError, "on_state is called with .state., but"),
        ({"grace": "5"}, TypeError, "grace must be a number of seconds, not str"),
        ({"grace": None}, TypeError, "grace must be a number of seconds, not NoneType"),
        ({"grace": True}, TypeError, "grace must be a number of seconds, not bool"),
        ({"grace": -1}, ValueError, "grace must be 0 or more, or math.inf, not -1"),
        ({"grace": math.nan}, ValueError, "grace must be 0 or more, or math.inf, not nan"),
        ({"rng": 5}, TypeError, "rng must be a random.Random or None, not int"),
        ({"rng": random.Random}, TypeError, "rng must be a random.Random or None, not type"),
        ({"connect": "ws://test/"}, TypeError, "connect must be a function, not str"),
    ],
)
async def test_wrong_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    """An argument that cannot be used is refused by its name, before anything happens."""
    net = Net()
    arguments: dict[str, Any] = {"handler": done, "url": "ws://test/", "connect": net.connect, **options}
    with pytest.raises(error, match=message) as caught:
        await keep_connected(**arguments)
    assert type(caught.value) is error
    assert net.attempts == []


async def test_the_call_of_a_handler_is_not_a_handler() -> None:
    """Whoever gives a coroutine is told to give the function, and of nothing else."""
    net = Net()
    with pytest.raises(TypeError, match="not a coroutine; give the function, not its call"):
        await keep_connected(done(None), "ws://test/", connect=net.connect)  # type: ignore[arg-type]
    assert net.attempts == []


@pytest.mark.parametrize("grace", [0, 0.5, math.inf])
async def test_what_a_grace_may_be(autojump_clock: trio.testing.MockClock, grace: float) -> None:
    """No grace at all is one, and so is an infinite one."""
    assert await keep(Net(), done, grace=grace) == "done"


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("ws://test:81/path?token=secret", "'test:81'"),
        ("ws+unix:///run/chat.sock:/path?token=secret", "'/run/chat.sock'"),
        ("ws://user:secret@test:81/", "a URL that cannot be used"),
        ("ws://[::1", "a URL that cannot be used"),
    ],
)
async def test_the_log_says_why_but_no_secrets(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, url: str, place: str
) -> None:
    """Each wait is logged with its reason; of the URL only whom it is about, and all of it escaped."""
    caplog.set_level(logging.INFO, logger="trio_crowws")
    net = Net(OSError("nobody\nthere"))
    await keep_connected(done, url, connect=net.connect, rng=LongestWait())
    assert f"connecting to {place} again in 1.0 s: 'nobody\\nthere'" in caplog.text
    assert "secret" not in caplog.text


async def test_the_log_has_no_headers(autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """What a server has sent in a wrong header is in the exception, and not in the log."""
    caplog.set_level(logging.INFO, logger="trio_crowws")
    net = Net(InvalidHandshake("the 101 has the wrong header Sec-WebSocket-Protocol: 'SECRET'"))
    await keep_connected(done, "ws://test/", connect=net.connect, rng=LongestWait(), is_final=lambda error: False)
    assert "in 1.0 s: 'the 101 has the wrong header Sec-WebSocket-Protocol'" in caplog.text
    assert "SECRET" not in caplog.text


# Cancellation


async def test_it_can_be_cancelled_anywhere(autojump_clock: trio.testing.MockClock) -> None:
    """Cancelled at any point it ends at once, leaves nothing behind, and says that it has stopped."""
    for point in range(1, 200):
        if await _cancelled_at(point):
            assert point > 10
            return
    pytest.fail("it never ran to its end")


async def _cancelled_at(point: int) -> bool:
    """Cancel a supervisor at its scheduling point of that number; whether it was done before."""
    net = Net(OSError("x"), (5, closed_by_peer()), refusal(503))
    states: list[LinkState] = []
    finished = False
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_later, scope, point)
            await keep(net, listen_until(net, 3), on_state=states.append)
            finished = True
            nursery.cancel_scope.cancel()
    assert net.open == 0
    assert states[-1].phase is STOPPED
    assert states[-1].error is None
    return finished


async def _cancel_later(scope: trio.CancelScope, points: int) -> None:
    for _ in range(points):
        await trio.sleep(0.5)
        await trio.lowlevel.checkpoint()
    scope.cancel()


@pytest.mark.parametrize("error", [ValueError("while cleaning up"), SystemExit(7)])
async def test_what_a_cancelled_handler_raises_is_raised(
    autojump_clock: trio.testing.MockClock, error: BaseException
) -> None:
    """As from a block of `connect`: an exception of its own is not lost behind the cancellation."""

    async def handler(conn: Any) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise error

    with pytest.raises(type(error)) as caught, trio.move_on_after(1):
        await keep(Net(), handler)
    assert caught.value is error


async def test_cancellation_wins_over_a_closed_connection(autojump_clock: trio.testing.MockClock) -> None:
    """A handler that finds its connection closed while it is cancelled does not turn that into an exception."""

    async def handler(conn: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                conn.end(closed_by_peer())
                raise closed_error(conn, conn.close_info)

    with trio.move_on_after(3) as scope:
        await keep(Net(), handler)
    assert scope.cancelled_caught
