"""Whatever a transport raises, and whatever is raised where it calls its receiver, costs that connection alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing

from support.rawclient import RawClient, upgrade
from support.rawserver import echo, raw_server
from support.servers import (
    Kind,
    MemoryListener,
    Recorder,
    TapStream,
    break_off,
    end_stream,
    noise,
    serving,
    shared_tls,
    until,
)
from trio_crowws import App, ConnectFailed, Connection, ConnectionClosed, connect, connect_stream
from trio_crowws._protocol.compressing import Packer
from trio_crowws._session.opening import Opening
from trio_crowws._transport.base import Transport, TurnQueue
from trio_crowws._transport.engine import Engine
from trio_crowws._transport.poller import Poller, SocketTransport
from trio_crowws._transport.stream import StreamTransport
from trio_crowws._transport.timers import Timers
from trio_crowws._transport.tls import TLSTransport
from trio_crowws.testing import make_frame

LARGE = noise(8_000_000)
"""More than the buffers of any kernel take."""


class Defect(Exception):
    """What is raised."""


class Saboteur:
    """Has a method fail for one connection.

    Attributes:
      failed: how often it has.
    """

    def __init__(self, owner: type, name: str, monkeypatch: pytest.MonkeyPatch, *, times: float = float("inf")) -> None:
        self.failed = 0
        self._victims: list[object] = []
        works: Callable[..., Any] = getattr(owner, name)

        def fail(this: Any, *arguments: Any, **options: Any) -> Any:
            if any(this is victim for victim in self._victims) and self.failed < times:
                self.failed += 1
                raise MemoryError if name == "read" else Defect(name)
            return works(this, *arguments, **options)

        monkeypatch.setattr(owner, name, fail)

    def choose(self, conn: Connection) -> None:
        """From now on it fails."""
        transport = conn._transport
        self.watch(conn, transport, getattr(transport, "_lower", transport))

    def watch(self, *victims: object) -> None:
        """From now on it fails for these."""
        self._victims = [*victims]


class Quiet:
    """A receiver that counts its ends."""

    def __init__(self) -> None:
        self.lost = 0

    def _on_data(self, data: bytes) -> None: ...
    def _on_eof(self) -> None: ...
    def _on_broken(self, error: Exception) -> None: ...
    def _on_stalled(self) -> None: ...
    def _on_drained(self) -> None: ...
    def _on_lost(self, error: Exception | None) -> None:
        self.lost += 1


ALWAYS = [
    (SocketTransport, "read"),
    (SocketTransport, "read_on"),
    (SocketTransport, "on_writable"),
    (SocketTransport, "turn"),
    (SocketTransport, "flush"),
    (TLSTransport, "turn"),
    (TLSTransport, "flush"),
    (TLSTransport, "resume"),
    (TLSTransport, "_on_data"),
    (StreamTransport, "flush"),
    (StreamTransport, "turn"),
    (Connection, "_on_data"),
    (Connection, "_on_eof"),
    (Connection, "_on_stalled"),
    (Connection, "_on_drained"),
    (Connection, "_on_broken"),
    (Connection, "_on_timer"),
]
ONCE = [(Connection, "_on_lost"), (Connection, "_describe"), (SocketTransport, "abort"), (TLSTransport, "abort")]


def kinds_of(owner: type) -> tuple[Kind, ...]:
    if owner is SocketTransport:
        return ("tcp", "tls")
    if owner is TLSTransport:
        return ("tls",)
    return ("memory",) if owner is StreamTransport else ("tcp", "tls", "memory")


def possible(name: str, kind: Kind) -> bool:
    """A memory stream tells its reader first that it is broken, and its writer finds no time to."""
    return name != "_on_broken" or kind != "memory"


CASES = [
    pytest.param(owner, name, kind, times, id=f"{owner.__name__}.{name}-{kind}")
    for methods, times in ((ALWAYS, float("inf")), (ONCE, 1))
    for owner, name in methods
    for kind in kinds_of(owner)
    if possible(name, kind)
]


@pytest.mark.parametrize(("owner", "name", "kind", "times"), CASES)
async def test_a_defect(owner: type, name: str, kind: Kind, times: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever one connection's transport or receiver raises, that connection ends, with its `on_close`, and no other.

    The connection is made to do all there is: it is published to, stalls, answers, is read slowly, and its peer goes.
    """
    app = App()
    saboteur = Saboteur(owner, name, monkeypatch, times=times)

    async def opened(conn: Connection) -> None:
        conn.join("room")

    victims = Recorder(app, "/victim", hooks={"open": opened}, send_limit=3 * len(LARGE), ping_interval=0.05)
    others = Recorder(app, "/other", hooks={"open": opened})
    async with serving(app, kind) as site, site.connect("/other") as other, site.connect("/victim") as victim:
        await victims.wait("open")
        await others.wait("open")
        await trio.testing.wait_all_tasks_blocked(0.01)
        conn = victims.conn
        saboteur.choose(conn)
        with suppress(ConnectionClosed, trio.BrokenResourceError):
            app.publish("room", "to all")
            await victim.send("hello")
            await trio.testing.wait_all_tasks_blocked(0.01)
            if name in ("_on_stalled", "_on_drained", "on_writable"):
                conn.send_nowait(LARGE)
                conn._transport.push()
                with trio.move_on_after(1):
                    while not saboteur.failed:
                        await victim.stream.receive_some(65536)
            if name == "_on_timer":
                await until(lambda: saboteur.failed > 0)
            if name == "resume":
                conn._transport.pause()
                conn._resume()
        if name == "_on_eof":
            await end_stream(victim)
        else:
            await break_off(victim)
        with suppress(ConnectionClosed):
            conn.send_nowait("who is there?")
            conn._transport.push()
        await victims.wait("close")
        assert await other.receive() == "to all"
        await other.send("and I?")
        assert await other.receive() == "and I?"
        await other.close()
        await others.wait("close")
    assert saboteur.failed
    victims.check()
    assert others.info.clean
    assert not site.server._engine.transports


@pytest.mark.parametrize("kind", ["tcp", "tls", "memory"])
async def test_a_transport_that_cannot_be_aborted(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever aborts a connection whose transport raises then sees nothing of that, and the connection ends."""
    app = App()
    recorder = Recorder(app)
    async with serving(app, kind) as site, site.connect():
        await recorder.wait("open")
        saboteur = Saboteur(type(recorder.conn._transport), "abort", monkeypatch, times=1)
        saboteur.choose(recorder.conn)
        recorder.conn.abort()
        await recorder.wait("close")
    recorder.check()
    assert saboteur.failed == 1
    assert recorder.info.code == 1006


@pytest.mark.parametrize("name", ["_on_lost", "_describe"])
async def test_an_end_that_fails_twice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transport tells its receiver twice that it is lost; where both fail, the end of the handler finds it out."""
    app = App(close_timeout=0.05)
    recorder = Recorder(app)
    async with serving(app, "memory") as site, site.connect():
        await recorder.wait("open")
        conn = recorder.conn
        saboteur = Saboteur(Connection, name, monkeypatch, times=2)
        saboteur.choose(conn)
        conn._transport._write_failed(OSError("broken"))
        conn._transport.break_down(None)
        assert saboteur.failed == 2
        conn.cancel_scope.cancel()
        await recorder.wait("close")
    recorder.check()
    assert recorder.info.code == 1006
    assert "broken" in str(recorder.info.error)


async def test_a_defect_where_answers_are_written_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the answers of a round are written one after the other, one that cannot be written costs its own peer."""
    app = App()
    victims, others = Recorder(app, "/victim", style="sync"), Recorder(app, "/other", style="sync")
    saboteur = Saboteur(SocketTransport, "flush", monkeypatch)
    async with serving(app, "tcp") as site, site.connect("/victim") as victim, site.connect("/other") as other:
        await victims.wait("open")
        await others.wait("open")
        await trio.testing.wait_all_tasks_blocked(0.01)
        saboteur.choose(victims.conn)
        for peer in (victim, other):
            assert isinstance(peer.stream, trio.SocketStream)
            os.write(peer.stream.socket.fileno(), make_frame(1, b"hello"))
        assert await other.receive() == "hello"
        await victims.wait("close")
    assert saboteur.failed


async def test_a_defect_behind_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was decrypted while nobody took it, and cannot be fed when somebody does, ends its connection."""
    app = App()
    recorder = Recorder(app)
    saboteur = Saboteur(Connection, "_on_data", monkeypatch)
    async with serving(app, "tls") as site, site.connect():
        await recorder.wait("open")
        saboteur.choose(recorder.conn)
        transport = recorder.conn._transport
        assert isinstance(transport, TLSTransport)
        transport.pause()
        transport._plain = make_frame(1, b"hello")
        recorder.conn._resume()
        await recorder.wait("close")
    assert saboteur.failed == 1


async def test_a_transport_that_nobody_listens_to() -> None:
    """A write that fails before anybody listens does no harm."""
    timers, turns = Timers(), TurnQueue()
    near, far = socket.socketpair()
    with near:
        near.setblocking(False)
        transport = SocketTransport(near, Poller(turns, timers), turns, timers, None, None)
        transport.start()
        far.close()
        transport.write(b"hello")
        transport.push()
        assert transport.broken is not None
        transport.turn()
        assert transport.released


async def test_a_receiver_that_does_not_want_to_know(caplog: pytest.LogCaptureFixture) -> None:
    """A receiver that raises when it is told of its end is told once more, and then it is let be."""

    class Deaf(Quiet):
        def _on_lost(self, error: Exception | None) -> None:
            super()._on_lost(error)
            raise Defect

    timers, turns = Timers(), TurnQueue()
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        transport = SocketTransport(near, Poller(turns, timers), turns, timers, None, None)
        transport.receiver = deaf = Deaf()
        transport.start()
        transport.break_down(None)
    assert transport.released
    assert deaf.lost == 2
    assert [record.getMessage() for record in caplog.records] == ["cannot end the connection with None"] * 2


METHODS: list[tuple[type, str, tuple[Kind, ...]]] = [
    (SocketTransport, "_flushed_for_close", ("tcp", "tls")),
    (TLSTransport, "_flushed_for_close", ("tls",)),
    (StreamTransport, "_flushed_for_close", ("memory",)),
    (Transport, "_append_small", ("tcp", "tls", "memory")),
]


@pytest.mark.parametrize(
    ("owner", "name", "kind"), [(owner, name, kind) for owner, name, kinds in METHODS for kind in kinds]
)
async def test_a_defect_on_the_way_down(owner: type, name: str, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a transport raises when it is written to, or closed, is not seen by the task that does so."""
    app = App()
    recorder = Recorder(app, hooks={"message": lambda conn, _: None}, style="sync")
    monkeypatch.setattr("trio_crowws._transport.base._PIECES", 1 if name == "_append_small" else 512)
    async with serving(app, kind) as site, site.connect() as peer:
        await recorder.wait("open")
        saboteur = Saboteur(owner, name, monkeypatch)
        saboteur.choose(recorder.conn)
        if name == "_append_small":
            recorder.conn.send_nowait("small")
            recorder.conn.send_nowait("small, too")
        else:
            await peer.close()
        await recorder.wait("close")
        await until(lambda: not site.server._engine.transports)
    recorder.check()
    assert saboteur.failed


class Forgetful:
    """A socket for whose work there is no memory."""

    def __init__(self, sock: Any, name: str) -> None:
        self._sock = sock
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name == self._name:
            raise MemoryError
        return getattr(self._sock, name)


@pytest.mark.parametrize("call", ["send", "recv", "setsockopt"])
async def test_short_of_memory(call: str) -> None:
    """Where there is no memory for a call of the system, that ends the connection, and not who publishes to it."""
    app = App()
    victims, others = Recorder(app, "/victim"), Recorder(app, "/other")
    async with serving(app, "tcp") as site, site.connect("/victim") as victim, site.connect("/other") as other:
        await victims.wait("open")
        await others.wait("open")
        transport = victims.conn._transport
        assert isinstance(transport, SocketTransport)
        transport._sock = Forgetful(transport._sock, call)  # type: ignore[assignment]
        if call == "recv":
            await victim.send("hello")
        elif call == "send":
            victims.conn.join("room")
            others.conn.join("room")
            app.publish("room", "to all")
            assert await other.receive() == "to all"
        else:
            victims.conn.abort()
        await victims.wait("close")
        transport._sock.close()
        await other.send("and I?")
        assert await other.receive() == "and I?"
    assert victims.info.code == 1006


@pytest.mark.parametrize("looks", [True, False])
async def test_short_of_memory_for_the_poller(looks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no memory for the list of sockets that are ready, all of them are tried: the kernel tells once."""

    class Epoll:
        def __init__(self, epoll: Any) -> None:
            self.tries = 0
            self._epoll = epoll

        def poll(self, *arguments: Any) -> Any:
            self.tries += 1
            events = self._epoll.poll(*arguments)
            if self.tries == 1:
                raise MemoryError
            return events

        def __getattr__(self, name: str) -> Any:
            return getattr(self._epoll, name)

    app = App()
    Recorder(app)
    async with serving(app, "tcp") as site, site.connect() as peer:
        poller = site.server._engine._poller
        assert poller is not None
        if not looks:
            monkeypatch.setattr(Poller, "_may_look", lambda self: False)
        poller._epoll = Epoll(poller._epoll)  # type: ignore[assignment]
        await peer.send("hello")
        with trio.fail_after(5):
            assert await peer.receive() == "hello"


async def test_a_defect_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong with the first read of a new connection costs that one, for the server and for a client."""
    works = SocketTransport.read_on

    def fail(self: SocketTransport, ending: bool) -> None:
        monkeypatch.setattr(SocketTransport, "read_on", works)
        raise Defect

    app = App()
    Recorder(app)
    async with serving(app, "tcp") as site:
        monkeypatch.setattr(SocketTransport, "read_on", fail)
        with suppress(OSError, trio.BrokenResourceError):
            async with await site.open_stream() as stream:
                assert await stream.receive_some() == b""
        async with site.connect() as peer:
            await peer.send("hello")
            assert await peer.receive() == "hello"


@pytest.mark.parametrize("error", [Defect, ValueError])
async def test_a_defect_at_the_start_of_tls(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong with the first word of TLS costs the one attempt."""

    def fail(self: TLSTransport) -> bool:
        monkeypatch.setattr(TLSTransport, "_shake_hands", works)
        raise error

    works = TLSTransport._shake_hands
    context = shared_tls().client
    async with (
        raw_server(echo, tls=shared_tls().server) as server,
        connect(server.url, ssl_context=context) as conn,
    ):
        monkeypatch.setattr(TLSTransport, "_shake_hands", fail)
        with pytest.raises(ConnectFailed):
            await connect(server.url, ssl_context=context).__aenter__()
        assert await conn.ping() > 0


async def test_a_defect_of_a_timer_of_a_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong when a handshake has taken too long costs that peer, and the other deadlines hold."""
    monkeypatch.setattr(Opening, "_on_timer", lambda self, now: 1 / 0)
    app = App(handshake_timeout=0.05)
    recorder = Recorder(app, ping_interval=0.02)
    async with serving(app, "tcp") as site, site.connect() as peer:
        stream = await site.open_stream()
        async with stream:
            with suppress(trio.BrokenResourceError):
                assert await stream.receive_some() == b""
        await peer.send("hello")
        assert await peer.receive() == "hello"
        await until(lambda: recorder.conn.latency is not None)


async def test_a_message_that_cannot_be_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a compressor with a context fails, that ends its connection, and not the task that publishes."""
    app = App()
    recorder = Recorder(app)
    async with serving(app, "compressed") as site, site.connect():
        await recorder.wait("open")
        recorder.conn.join("room")

        def fail(self: Packer, frame: bytes) -> bytes:
            raise MemoryError

        monkeypatch.setattr(Packer, "pack", fail)
        app.publish("room", "x" * 2000)
        await recorder.wait("close")
    assert recorder.info.code == 1006


# A client's side


@pytest.mark.parametrize(
    ("owner", "name"),
    [(SocketTransport, "read"), (SocketTransport, "flush"), (Connection, "_on_data"), (Connection, "_on_timer")],
)
async def test_a_defect_on_the_client_s_side(owner: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connections of clients share an engine, and a defect of one costs none of the others."""
    async with raw_server(echo) as server, connect(server.url) as other:
        saboteur = Saboteur(owner, name, monkeypatch)
        victim: Connection | None = None
        with pytest.raises(ConnectionClosed):  # noqa: PT012 -- it leaves the block of the connection
            async with connect(server.url, ping_interval=0.02) as victim:
                saboteur.choose(victim)
                await victim.send("hello")
                await victim.receive()
                await victim.receive()
        assert victim is not None
        assert victim.close_info is not None
        await other.send("and I?")
        assert await other.receive() == "and I?"
        assert saboteur.failed


# Streams of the application's own


class Odd(TapStream):
    """A stream that breaks the rules."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, where: str) -> None:
        super().__init__(stream)
        self.where = where

    async def receive_some(self, max_bytes: int | None = None) -> Any:
        data = await super().receive_some(max_bytes)
        if self.where == "receive" and b"hello" in data.translate(None):
            raise Defect
        return "text" if self.where == "type" and len(self.writes) > 0 else data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.where == "send" and len(self.writes) > 0:
            raise Defect
        if self.where == "group" and len(self.writes) > 0:
            raise ExceptionGroup("several", [Defect(), Defect()])
        await super().send_all(data)

    async def send_eof(self) -> None:
        if self.where == "eof":
            raise Defect
        await super().send_eof()

    async def aclose(self) -> None:
        await super().aclose()
        if self.where == "close":
            raise Defect
        if self.where == "close in a group":
            raise ExceptionGroup("several", [Defect(), Defect()])


PLACES = ["send", "group", "receive", "type", "eof", "close", "close in a group"]


class OddListener(trio.abc.Listener[Odd]):
    def __init__(self, inner: MemoryListener, places: list[str]) -> None:
        self._inner = inner
        self._places = places

    async def accept(self) -> Odd:
        return Odd(await self._inner.accept(), self._places.pop(0))

    async def aclose(self) -> None:
        await self._inner.aclose()
        raise Defect


@pytest.mark.parametrize("where", PLACES)
async def test_a_stream_that_breaks_the_rules(where: str) -> None:
    """A stream that raises anything, anywhere, and a listener that cannot be closed, end alone."""
    app = App()
    recorder = Recorder(app)
    inner = MemoryListener()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(app.serve_listeners, [OddListener(inner, ["nowhere", where])])
            honest = RawClient(inner.connect())
            await honest.upgrade("/")
            odd = RawClient(inner.connect())
            await odd.upgrade("/")
            with suppress(trio.BrokenResourceError, AssertionError):
                await odd.send_frame(1, b"hello")
                await odd.read_frame()
                await odd.send_frame(3)  # which fails the connection
                await odd.read_to_end()
            await trio.aclose_forcefully(odd.stream)
            await recorder.wait("close")
            await honest.assert_echoes()
            await trio.aclose_forcefully(honest.stream)
            await recorder.wait("close", 2)
            await server.aclose()
    recorder.check()


@pytest.mark.parametrize("where", PLACES)
async def test_one_stream_that_breaks_the_rules(where: str) -> None:
    """`serve_stream` returns, whatever its stream has raised."""
    app = App()
    recorder = Recorder(app)
    near, far = trio.testing.memory_stream_pair()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(app.serve_stream, Odd(far, where))
            client = RawClient(near)
            await client.upgrade("/")
            with suppress(trio.BrokenResourceError, AssertionError):
                await client.send_frame(1, b"hello")
                await client.read_frame()
            await trio.aclose_forcefully(near)
    recorder.check()


@pytest.mark.parametrize("where", PLACES)
async def test_a_client_s_stream_that_breaks_the_rules(where: str) -> None:
    """A client's stream that breaks the rules costs no other connection of the same run."""
    app = App()
    Recorder(app)
    async with serving(app, "tcp") as site, connect(f"ws://127.0.0.1:{site.server.port}/") as other:
        stream = await site.open_stream()
        assert isinstance(stream, trio.SocketStream)
        with suppress(ConnectionClosed, ConnectFailed):
            async with connect_stream(Odd(stream, where), "ws://example.org/") as conn:
                await conn.send("hello")
                await conn.receive()
        await other.send("and I?")
        assert await other.receive() == "and I?"


async def test_a_stream_that_is_cancelled_and_raises() -> None:
    """A stream that raises in place of its cancellation, at the end of the server, does not end it with that."""

    class Late(TapStream):
        async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
            try:
                return await super().receive_some(max_bytes)
            finally:
                if len(self.writes) > 0:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(trio.sleep_forever)
                        raise Defect

    app = App()
    recorder = Recorder(app)
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.serve_stream, Late(far))
        await near.send_all(upgrade("/"))
        await recorder.wait("open")
        nursery.cancel_scope.cancel()
    recorder.check()


@pytest.mark.parametrize("listen", [False, True])
async def test_a_stream_that_cannot_be_let_in(listen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong when a stream is accepted costs that stream, which is closed, and not the server."""
    works = Engine.add_stream

    def fail(self: Engine, *arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(Engine, "add_stream", works)
        raise MemoryError

    app = App()
    Recorder(app)
    if listen:
        async with serving(app, "memory") as site:
            monkeypatch.setattr(Engine, "add_stream", fail)
            assert await site.listener.connect().receive_some() == b""
            async with site.connect() as peer:
                await peer.send("hello")
                assert await peer.receive() == "hello"
    else:
        monkeypatch.setattr(Engine, "add_stream", fail)
        near, far = trio.testing.memory_stream_pair()
        with pytest.raises(MemoryError):
            await app.serve_stream(far)
        assert await near.receive_some() == b""


@pytest.mark.parametrize("how", ["aclose", "wait_released", "fail"])
async def test_the_end_of_an_engine(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every transport of an engine is ended, and its receiver told, also behind one that raises."""
    monkeypatch.setattr("trio_crowws._transport.engine._END_OF_LINGER", 0.01)
    engine = Engine(shielded=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        await engine.wait_running()
        pairs = [socket.socketpair() for _ in range(2)]
        quiet = [Quiet() for _ in pairs]
        transports = [
            engine.add_socket(near, told, None, None, None) for (near, _), told in zip(pairs, quiet, strict=True)
        ]
        for transport in transports:
            transport.start()
        saboteur = Saboteur(SocketTransport, "break_down" if how == "fail" else "abort", monkeypatch, times=1)
        saboteur.watch(transports[0])
        if how == "wait_released":
            await engine.wait_released(transports[0], trio.current_time())
            assert transports[0].released
        elif how == "fail":
            engine.fail(None)
            assert [told.lost for told in quiet] == [1, 1]
        await engine.aclose()
        assert all(transport.released for transport in transports)
    assert saboteur.failed == 1
    for _, far in pairs:
        far.close()


class Noting(Quiet):
    """A receiver that notes what it hears, and perhaps gives up when nothing more can be written."""

    def __init__(self, gives_up: bool = False) -> None:
        super().__init__()
        self.heard: list[object] = []
        self.transport: Transport | None = None
        self._gives_up = gives_up

    def _on_data(self, data: bytes) -> None:
        self.heard.append(data)

    def _on_broken(self, error: Exception) -> None:
        self.heard.append("broken")
        if self._gives_up and self.transport is not None:
            self.transport.break_down(error)

    def _on_lost(self, error: Exception | None) -> None:
        self.heard.append(error)


@pytest.mark.parametrize("gives_up", [False, True])
async def test_what_tls_holds_when_the_stream_is_lost(gives_up: bool) -> None:
    """What was decrypted and not fed when the stream below breaks is fed before the receiver is told."""
    turns, timers = TurnQueue(), Timers()
    near, far = socket.socketpair()
    with near, far:
        lower = SocketTransport(near, Poller(turns, timers), turns, timers, None, None)
        tls = TLSTransport(lower, shared_tls().server, turns, timers)
        lower.receiver = tls
        tls.receiver = noting = Noting(gives_up)
        noting.transport = tls
        tls._plain = b"last words"
        error = ConnectionResetError()
        lower.break_down(error)
        assert noting.heard == (["broken", error] if gives_up else ["broken", b"last words", error])
        assert tls.closed


async def test_what_cannot_be_put_off() -> None:
    """Where there is no memory to put off what was read of one peer, that one is lost, and none behind it."""

    class Short(SocketTransport):
        def put_off(self, data: bytes) -> None:
            raise MemoryError

    turns, timers = TurnQueue(), Timers()
    poller = Poller(turns, timers)
    pairs = [socket.socketpair() for _ in range(3)]
    batch: list[tuple[SocketTransport, bytes]] = []
    for kind, (near, _) in zip((SocketTransport, Short, SocketTransport), pairs, strict=True):
        transport = kind(near, poller, turns, timers, None, None)
        transport.receiver = Noting()
        batch.append((transport, b"hello"))
    first, short, last = (transport for transport, _ in batch)
    poller._work(batch)  # whose time is over before it begins
    assert (first.closed, short.closed, last.closed) == (False, True, False)
    assert last.behind
    assert last._unfed == b"hello"
    last.close(trio.current_time() + 1, linger=True)
    assert last._unfed == b""
    for near, far in pairs:
        near.close()
        far.close()
