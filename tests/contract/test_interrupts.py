"""Ctrl-C in the moment in which one of the application's functions is called.

The interrupt is made to come in the short functions that call it with the protection off (`_session/calling.py`). That
it may come anywhere else is what `tests/sweep/test_interrupt_sweep.py` tries.
"""

from __future__ import annotations

import _thread
import signal
from collections.abc import Awaitable, Callable, Generator, Iterator
from typing import Any

import pytest

from support.servers import Recorder, Style, serving
from trio_crowws import App, CloseFrame, CloseInfo, Connection, LinkPhase, LinkState, keep_connected
from trio_crowws._session import calling
from trio_crowws._session.calling import Call
from trio_crowws._session.handlers import Callback
from trio_crowws.testing import make_frame


class Interrupted:
    """In place of the functions that call: raises KeyboardInterrupt at one of the calls, before or after it.

    Args:
      at: the number of the call, from 1.
      after: the call has come to its end.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, *, after: bool = False) -> None:
        self.left = at
        self._after = after
        self._real_call, self._real_wait = calling._call, calling._wait
        monkeypatch.setattr(calling, "_call", self._call)
        monkeypatch.setattr(calling, "_wait", self._wait)

    def _strikes(self) -> bool:
        self.left -= 1
        return self.left == 0

    def _call(self, function: Callable[..., Any], arguments: Iterator[object]) -> Any:
        strikes = self._strikes()
        if strikes and not self._after:
            raise KeyboardInterrupt
        try:
            return self._real_call(function, arguments)
        finally:
            if strikes:
                raise KeyboardInterrupt

    async def _wait(self, coroutine: Awaitable[Any]) -> Any:
        strikes = self._strikes()
        if strikes and not self._after:
            raise KeyboardInterrupt
        try:
            return await self._real_wait(coroutine)
        finally:
            if strikes:
                raise KeyboardInterrupt


async def talk_and_be_interrupted(app: App) -> None:
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 -- the server is around what is said to it
        async with serving(app) as site, site.connect() as peer:
            await peer.send_frame(3)  # so that there is an on_error
            await peer.receive_close()
            await site.ended.wait()


STYLES: list[Style] = ["session", "async", "sync"]


def make_recorder(app: App, style: Style) -> tuple[Recorder, int]:
    """A recorder, and the number of calls before that of `on_open`."""
    return Recorder(app, style=style), 1 if style == "async" else 0


@pytest.mark.parametrize("style", STYLES)
async def test_before_on_open(style: Style, monkeypatch: pytest.MonkeyPatch) -> None:
    """`on_open`, or a session, that was not entered is not called again, nor is anything else of the connection."""
    app = App()
    recorder, before = make_recorder(app, style)
    Interrupted(monkeypatch, before + 1)
    await talk_and_be_interrupted(app)
    assert recorder.names == []
    assert app.stats().connections == 0


@pytest.mark.parametrize("style", STYLES)
async def test_behind_on_open(style: Style, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was entered has its `on_close`."""
    app = App()
    recorder, before = make_recorder(app, style)
    Interrupted(monkeypatch, before + 1, after=True)
    await talk_and_be_interrupted(app)
    assert (recorder.names[0], recorder.names[-1]) == ("open", "close")


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["error", "close"])
@pytest.mark.parametrize("style", STYLES)
async def test_at_the_last_callbacks(style: Style, name: str, after: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them is called once, whether the interrupt comes before it or behind it, and the interrupt goes on."""
    app = App()
    recorder, before = make_recorder(app, style)
    Interrupted(monkeypatch, before + (2 if name == "error" else 3), after=after)
    await talk_and_be_interrupted(app)
    assert recorder.names == ["open", "error", "close"]


@pytest.mark.parametrize("is_async", [False, True])
async def test_at_on_accept(is_async: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer gets an answer."""
    app = App()
    recorder = Recorder(app, style="async" if is_async else "sync", hooks={"accept": lambda request: True})
    Interrupted(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 -- the server is around what is said to it
        async with serving(app) as site:
            stream = await site.open_stream()
            await stream.send_all(
                b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            answer = bytes(await stream.receive_some())
            assert answer.startswith(b"HTTP/1.1 503 ")
            await site.ended.wait()
    assert recorder.names == []


async def test_a_cancellation_does_not_hide_it() -> None:
    """KeyboardInterrupt in `on_close` goes on, also where the connection ends because it was cancelled."""
    app = App()
    route = app.websocket("/").onopen(lambda conn: None)

    @route.on_close
    def interrupted(conn: Connection, info: CloseInfo) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 -- the server is around what is said to it
        async with serving(app) as site, site.connect() as peer:
            site.server.route_scope(route).cancel()
            assert await peer.receive_close() == CloseFrame(1001)
            await site.ended.wait()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(1, 3))
async def test_at_on_state(number: int, after: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`on_state` is told once of each phase, and then that it is over, unless it was interrupted itself."""
    states: list[LinkState] = []

    async def handle(conn: Connection) -> None:
        raise AssertionError("there is no connection")

    def refuse(url: str) -> Any:
        raise OSError("nobody is there")

    Interrupted(monkeypatch, number if number == 1 else 3, after=after)  # the second call asks whether it is final
    with pytest.raises(KeyboardInterrupt):
        await keep_connected(handle, "ws://h/", connect=refuse, on_state=states.append)
    phases = [LinkPhase.CONNECTING, LinkPhase.WAITING][:number]
    assert [state.phase for state in states] == [*phases, *([] if after else [LinkPhase.STOPPED])]


# The first instruction of a function looks for signals, and has done nothing yet


log: list[str] = []


def plain(argument: str) -> None:
    log.append(argument)


async def waiting(argument: str) -> None:
    log.append(argument)


def pending() -> Iterator[None]:
    """One value, and when it is taken, a signal that the next instruction of Python's finds."""
    return map(_thread.interrupt_main, (signal.SIGINT,))


def test_a_plain_function_that_is_hit_at_its_entry() -> None:
    """It was not entered."""
    log.clear()
    with pytest.raises(KeyboardInterrupt) as caught:
        calling._call(plain, pending())
    assert calling._hit_at_entry(caught.value)
    assert log == []


def test_a_coroutine_that_is_hit_at_its_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was not entered, although it has ended."""

    async def wait(coroutine: Any) -> None:
        list(map(coroutine.send, pending()))

    log.clear()
    monkeypatch.setattr(calling, "_wait", wait)
    monkeypatch.setattr(calling, "_TRAMPOLINES", (wait.__code__,))
    call = Call(Callback(waiting, True), "entered")
    with pytest.raises(KeyboardInterrupt):
        call.run().send(None)
    assert not call.entered
    assert log == []


def test_a_function_that_is_hit_within() -> None:
    """It was entered."""

    def interrupted(argument: str) -> None:
        raise KeyboardInterrupt

    def deeper(argument: str) -> None:
        interrupted(argument)

    for function in (interrupted, deeper):
        call = Call(Callback(function, False), "x")
        with pytest.raises(KeyboardInterrupt):
            call.run().send(None)
        assert call.entered


def test_an_awaitable_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an async function has made something other than a coroutine, it has begun."""

    class Promise(Awaitable[None]):
        def __await__(self) -> Generator[Any, None, None]:
            raise AssertionError("nobody awaits it")

    Interrupted(monkeypatch, 1)
    call = Call(Callback(lambda argument: Promise(), True), "x")
    with pytest.raises(KeyboardInterrupt):
        call.run().send(None)
    assert call.entered


async def test_a_message_callback_is_interrupted() -> None:
    """The connection is closed with 1001, its `on_close` runs, and KeyboardInterrupt leaves the server."""
    app = App()

    def interrupt(conn: Connection, message: str | bytes) -> None:
        raise KeyboardInterrupt

    recorder = Recorder(app, style="sync", hooks={"message": interrupt})
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 -- the server is around what is said to it
        async with serving(app) as site, site.connect() as peer:
            await peer.send_raw(make_frame(1, b"x"))
            assert await peer.receive_close() == CloseFrame(1001)
            await site.ended.wait()
    assert recorder.names == ["open", "message", "close"]
