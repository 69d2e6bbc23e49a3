"""Compression as an application sees it: turned on by an option, agreed on with each peer, asked for by message."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
import trio.testing

from support.servers import EVERYTHING, Kind, Recorder, Site, decode, messages_of, noise, serving
from trio_crowws import Accept, App, Connection, Deflate, PublishResult
from trio_crowws._protocol.compressing import Compressor, Packer
from trio_crowws._transport.base import Transport
from trio_crowws.testing import Peer, Refused, connect, shake_hands

KIB = 1024
LONG = "the quick brown fox jumps over the lazy dog " * 50
COMPRESSED = 4  # the reserved bit


def waiting(hooks: dict[str, Callable[..., Any]] | None = None) -> dict[str, Callable[..., Any]]:
    """Hooks with an `on_open` that does not return, so that the test itself can be the handler."""
    return {"open": lambda conn: conn.wait_closed(), **(hooks or {})}


def frames_of(writes: list[bytes]) -> list[tuple[int, int, int]]:
    """Of all that a server has sent after its 101: opcode, reserved bits and length of each frame."""
    data = b"".join(writes).partition(b"\r\n\r\n")[2]
    frames, position = [], 0
    while position < len(data):
        first, size = data[position], data[position + 1]
        start = position + {126: 4, 127: 10}.get(size, 2)
        size = size if size < 126 else int.from_bytes(data[position + 2 : start])
        frames.append((first & 15, first >> 4 & 7, size))
        position = start + size
    return frames


def bits_of(site: Site) -> list[bool]:
    """Which of the messages that were sent are compressed."""
    return [rsv == COMPRESSED for opcode, rsv, _ in frames_of(site.listener.tap.writes) if opcode in (1, 2)]


# What is agreed on


async def test_compression_is_off_unless_asked_for() -> None:
    """Without the option, what a peer offers is not answered, and nothing is compressed."""
    app = App()
    recorder = Recorder(app, hooks=waiting())
    async with connect(app, compression=Deflate()) as peer:
        assert peer.compression is None
        assert "sec-websocket-extensions" not in peer.headers
        await recorder.wait("open")
        assert recorder.conn.compression is None
        await recorder.conn.send(LONG, compress=True)
        assert recorder.conn.send_nowait(LONG, compress=True)
        assert app.broadcast(LONG, compress=True).sent == 1
        assert [await peer.receive() for _ in range(3)] == [LONG] * 3
        assert recorder.conn.bytes_sent > 3 * len(LONG)


async def test_a_peer_that_does_not_offer_it_is_served_all_the_same() -> None:
    """With the option, a peer that offers nothing gets its messages as they are."""
    app = App(compression=Deflate())
    recorder = Recorder(app, hooks=waiting())
    async with connect(app) as peer:
        assert peer.compression is None
        await recorder.wait("open")
        assert recorder.conn.compression is None
        await recorder.conn.send(LONG)
        assert await peer.receive() == LONG


async def test_what_was_agreed_on_can_be_read() -> None:
    """`conn.compression` is what the 101 says, also when the connection has ended."""
    app = App(compression=Deflate())
    recorder = Recorder(app)
    async with connect(app, compression=Deflate(server_max_window_bits=11)) as peer:
        answer = "permessage-deflate; server_no_context_takeover; server_max_window_bits=11; client_max_window_bits=12"
        assert peer.headers.get_all("sec-websocket-extensions") == (answer,)
        assert peer.compression == answer
        await recorder.wait("open")
        assert recorder.conn.compression == answer
        await peer.close()
        await recorder.wait("close")
        assert recorder.conn.compression == answer


async def test_a_route_overrides_the_application() -> None:
    """The option is the application's, and each route's own where it says so."""
    app = App(compression=Deflate())
    Recorder(app, "/default")
    Recorder(app, "/plain", compression=None)
    Recorder(app, "/wide", compression=Deflate(client_max_window_bits=15))
    for path, expected in {
        "/default": "permessage-deflate; client_max_window_bits=12",
        "/plain": None,
        "/wide": "permessage-deflate",
    }.items():
        async with connect(app, path, compression=EVERYTHING) as peer:
            assert peer.compression == expected
            await peer.send(LONG)
            assert await peer.receive() == LONG


async def test_the_first_acceptable_offer_of_all_lines_is_accepted() -> None:
    """Offers are judged one by one, over all header lines, in their order."""
    app = App(compression=Deflate(server_no_context_takeover=False))
    Recorder(app)
    offers = [
        ("Sec-WebSocket-Extensions", "x-unknown, permessage-deflate; server_max_window_bits=7"),
        ("X-Between", "permessage-deflate"),
        ("sec-websocket-extensions", 'permessage-deflate; what=1, permessage-deflate; server_max_window_bits="11"'),
        ("Sec-WebSocket-Extensions", "permessage-deflate"),
    ]
    async with connect(app, headers=offers) as peer:
        assert peer.headers.get_all("sec-websocket-extensions") == ("permessage-deflate; server_max_window_bits=11",)


@pytest.mark.parametrize("offer", ["", ";", "permessage-deflate; server_max_window_bits=8", 'x="', "a" * 9000])
async def test_an_offer_that_cannot_be_accepted_is_declined(offer: str) -> None:
    """Whatever is offered, the connection opens; without compression where the offer is none."""
    app = App(compression=Deflate())
    Recorder(app)
    async with connect(app, headers={"Sec-WebSocket-Extensions": offer}) as peer:
        assert "sec-websocket-extensions" not in peer.headers
        await peer.send("plain")
        assert await peer.receive() == "plain"


async def test_the_application_cannot_answer_for_itself() -> None:
    """The header is the library's own, since what it says has to be done."""
    with pytest.raises(ValueError, match="the header Sec-WebSocket-Extensions is set by the library"):
        Accept(headers={"Sec-WebSocket-Extensions": "permessage-deflate"})


async def test_a_refusal_agrees_on_nothing() -> None:
    """An answer that is not a 101 has no extensions."""
    app = App(compression=Deflate())
    Recorder(app, hooks={"accept": lambda request: False})
    with pytest.raises(Refused) as caught:
        async with connect(app, compression=Deflate()):
            pass
    assert "sec-websocket-extensions" not in caught.value.headers


# Which messages are compressed


async def test_messages_are_compressed_from_the_threshold_on() -> None:
    """By default it is the size that decides; `compress=` decides for one message, in every way to send."""
    app = App(compression=Deflate(threshold=1000))
    recorder = Recorder(app, hooks=waiting())
    short, long = "a" * 999, "a" * 1000
    async with serving(app) as site, AsyncExitStack() as stack:
        peer = await offering(stack, site, Deflate())
        await recorder.wait("open")
        conn = recorder.conn
        conn.join("room")

        async def send_nowait(data: Any, **how: Any) -> None:
            assert conn.send_nowait(data, **how)

        def publishing(publish: Callable[..., PublishResult]) -> Callable[..., Any]:
            async def send(data: Any, **how: Any) -> None:
                assert publish(data, **how) == PublishResult(1, 0, 0)

            return send

        ways: list[Callable[..., Any]] = [
            conn.send,
            conn.send_text,
            send_nowait,
            publishing(lambda data, **how: app.publish("room", data, **how)),
            publishing(app.room("room").publish),
            publishing(app.broadcast),
            publishing(recorder.route.broadcast),
        ]
        sent: list[str] = []
        for way in ways:
            for text, how in [(short, {}), (short, {"compress": True}), (long, {}), (long, {"compress": False})]:
                await way(text, **how)
                sent.append(text)
        await conn.send_binary(b"a" * 999, compress=True)
        await conn.send_json(["a" * 99], compress=True)
        await conn.send_json(["a" * 999], compress=False)
        assert [await peer.receive() for _ in sent] == sent
        assert await peer.receive() == b"a" * 999
        assert [await peer.receive() for _ in range(2)] == ['["%s"]' % ("a" * count) for count in (99, 999)]
        assert bits_of(site) == [False, True, True, False] * len(ways) + [True, True, False]


async def test_another_connection_publishes_with_compression() -> None:
    """`conn.publish` takes `compress=`, too."""
    app = App(compression=Deflate())
    recorder = Recorder(app, hooks=waiting())
    async with serving(app) as site, AsyncExitStack() as stack:
        await offering(stack, site, Deflate())
        await recorder.wait("open")
        publisher = recorder.conn
        peer = await offering(stack, site, Deflate())
        await recorder.wait("open", 2)
        [conn] = app.connections - {publisher}
        conn.join("room")
        assert publisher.publish("room", "a" * 100, compress=True).sent == 1
        assert publisher.publish("room", "a" * 100).sent == 1
        assert [await peer.receive() for _ in range(2)] == ["a" * 100] * 2
        assert bits_of(site) == [True, False]


async def test_what_does_not_get_smaller_goes_as_it_is() -> None:
    """Where no context is kept, a message that compression would make larger is not compressed."""
    app = App(compression=Deflate(threshold=0))
    Recorder(app)
    async with serving(app) as site, AsyncExitStack() as stack:
        peer = await offering(stack, site, Deflate())
        for message in ("", "?", noise(2000), LONG):
            await peer.send(message)
            assert await peer.receive() == message
        assert bits_of(site) == [False, False, False, True]


async def test_the_log_says_what_is_compressed(caplog: pytest.LogCaptureFixture) -> None:
    """At level DEBUG each frame is described, with its size on the wire."""
    caplog.set_level(logging.DEBUG, "trio_crowws")
    app = App(compression=Deflate())
    recorder = Recorder(app)
    async with connect(app, compression=Deflate()) as peer:
        for message in (LONG, LONG.encode()):
            await peer.send(message)
            await peer.receive()
    said = [record.getMessage() for record in caplog.records]
    assert f"[{recorder.conn.id}] received text of {len(LONG)} characters" in said
    assert [line.split("sent ")[1].split(",")[0] for line in said if "as a frame" in line][:2] == [
        "compressed text",
        "compressed binary",
    ]


# Rooms


async def offering(stack: AsyncExitStack, site: Site, compression: Deflate | None) -> Peer:
    """A peer that offers something of its own."""
    stream = await site.open_stream()
    stack.push_async_callback(trio.aclose_forcefully, stream)
    return await shake_hands(stream, compression=compression, faults=site.listener.faults)


@pytest.fixture
def compressions(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each window was compressed with."""
    counted: Counter[int] = Counter()
    compress = Compressor.compress

    def count(self: Compressor, payload: Any) -> bytes:
        counted[self.setting.window_bits] += 1
        return compress(self, payload)

    monkeypatch.setattr(Compressor, "compress", count)
    return counted


async def test_a_room_compresses_once_for_each_setting(
    compressions: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand members that have agreed on three settings take three compressions, and all get the same three frames.

    Members that do without get the one plain frame. Routes that differ in the threshold alone share as well.
    """
    app = App(compression=Deflate(server_max_window_bits=15))
    recorder = Recorder(app, hooks=waiting())
    other = Recorder(app, "/other", hooks=waiting(), compression=Deflate(server_max_window_bits=15, threshold=10))
    offers = [Deflate(server_max_window_bits=bits) for bits in (9, 11, 15)]
    count = 1000
    written: list[bytes] = []
    write = Transport.write

    def keep(transport: Transport, frame: bytes) -> None:
        written.append(frame)
        write(transport, frame)

    async with serving(app, patience=60) as site, AsyncExitStack() as stack:
        peers = [await offering(stack, site, [*offers, None][number % 4]) for number in range(count)]
        stream = await site.open_stream()
        stack.push_async_callback(trio.aclose_forcefully, stream)
        peers.append(await shake_hands(stream, "/other", compression=offers[0]))
        await recorder.wait("open", count)
        await other.wait("open")
        assert not compressions
        for conn in app.connections:
            conn.join("all")
        monkeypatch.setattr(Transport, "write", keep)
        assert app.publish("all", LONG) == PublishResult(count + 1, 0, 0)
        assert compressions == {9: 1, 11: 1, 15: 1}
        assert len(written) == count + 1
        assert len({id(frame) for frame in written}) == len(set(written)) == 4
        for peer in peers:
            assert await peer.receive() == LONG
        app.publish("all", "short", compress=False)
        assert compressions.total() == 3


async def test_a_member_with_a_context_gets_a_frame_of_its_own(compressions: Counter[int]) -> None:
    """Where the server keeps a context, each connection is compressed for by itself."""
    app = App(compression=EVERYTHING)
    recorder = Recorder(app, hooks=waiting())
    async with serving(app) as site, AsyncExitStack() as stack:
        peers = [await offering(stack, site, EVERYTHING) for _ in range(3)]
        peers += [await offering(stack, site, Deflate(server_max_window_bits=11)) for _ in range(3)]  # and no context
        await recorder.wait("open", 6)
        for number in range(3):
            app.broadcast(f"{number} {LONG}")
        app.broadcast("not this one", compress=False)
        for peer in peers:
            for number in range(3):
                assert await peer.receive() == f"{number} {LONG}"
            assert await peer.receive() == "not this one"
        # The peers have compressed nothing.
        assert compressions.total() == 3 * 3 + 3


# Where a context is kept


class Context:
    """A connection on which everything is compressed with a context.

    Attributes:
      site: where it is served.
      conn: the server's end.
      peer: the other one.
    """

    def __init__(self, site: Site, conn: Connection, peer: Peer) -> None:
        self.site = site
        self.conn = conn
        self.peer = peer
        self.sent: list[str | bytes] = []

    async def stall(self) -> None:
        """The peer stops reading: afterwards nothing that is sent leaves."""
        self.site.listener.faults.stall()
        self.send_nowait("stuck")
        await trio.testing.wait_all_tasks_blocked()

    def flow(self) -> None:
        self.site.listener.faults.flow()

    def send_nowait(self, message: str | bytes, **how: Any) -> None:
        assert self.conn.send_nowait(message, **how)
        self.sent.append(message)

    async def check(self) -> None:
        """All that was sent arrives, in this order, also at an implementation that is not ours."""
        assert [await self.peer.receive() for _ in self.sent] == self.sent
        assert messages_of(decode(b"".join(self.site.listener.tap.writes))) == self.sent


async def context(stack: AsyncExitStack, **options: Any) -> Context:
    app = App(compression=EVERYTHING, **options)
    recorder = Recorder(app, hooks=waiting())
    site = await stack.enter_async_context(serving(app))
    peer = await offering(stack, site, EVERYTHING)
    await recorder.wait("open")
    return Context(site, recorder.conn, peer)


async def test_a_context_makes_messages_smaller() -> None:
    """A message that is like the one before takes a few bytes, and peer and server agree about what was before."""
    async with AsyncExitStack() as stack:
        it = await context(stack)
        for _ in range(3):
            it.send_nowait(LONG)
            await it.conn.send("between", compress=False)
            it.sent.append("between")
        await it.check()
        sizes = [size for _, rsv, size in frames_of(it.site.listener.tap.writes) if rsv]
        assert max(sizes[1:]) < 0.6 * sizes[0]


async def test_a_cancelled_send_is_not_in_the_context() -> None:
    """A `send` that was cancelled while it waited has not been compressed."""
    async with AsyncExitStack() as stack:
        it = await context(stack, send_high_water=KIB)
        await it.stall()
        it.send_nowait(noise(2 * KIB))
        for number in range(6):
            text = f"{number} {LONG}"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(it.conn.send, text)
                await trio.testing.wait_all_tasks_blocked()
                if number % 2:
                    nursery.cancel_scope.cancel()
                else:
                    it.sent.append(text)
                    it.flow()
            await it.stall()
            it.send_nowait(noise(2 * KIB))
        it.flow()
        await it.check()


async def test_data_that_changes_while_send_waits() -> None:
    """What is sent is what the data was when `send` was called, though it is compressed later."""
    async with AsyncExitStack() as stack:
        it = await context(stack, send_high_water=KIB)
        await it.stall()
        it.send_nowait(noise(2 * KIB))
        data = bytearray(LONG.encode())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.conn.send, data)
            await trio.testing.wait_all_tasks_blocked()
            it.sent.append(bytes(data))
            data[:] = bytes(len(data))
            it.flow()
        await it.check()


async def test_dropped_messages_are_not_in_the_context() -> None:
    """With `on_slow="drop"` a message that is dropped has not been compressed."""
    async with AsyncExitStack() as stack:
        it = await context(stack, on_slow="drop", send_limit=4 * KIB)
        await it.stall()
        it.send_nowait(noise(3 * KIB))
        for _ in range(3):
            # Counted as it is, since how small it becomes is known only when it is too late.
            assert not it.conn.send_nowait(LONG)
        it.send_nowait("small")
        assert it.conn.dropped == 3
        it.flow()
        await trio.testing.wait_all_tasks_blocked()
        it.send_nowait(LONG)
        await it.check()


@pytest.mark.parametrize("closing", [False, True], ids=["drained", "closed"])
async def test_replaced_messages_are_not_in_the_context(closing: bool) -> None:
    """With `on_slow="latest"` what is kept is compressed when it is written, be that only before the Close frame."""
    async with AsyncExitStack() as stack:
        it = await context(stack, on_slow="latest", send_limit=4 * KIB)
        for number in range(1, 4):
            it.conn.join(f"room {number}")
        rooms = it.site.server._site
        await it.stall()
        it.send_nowait(noise(3 * KIB))
        kept: dict[int, str] = {}
        for text in (LONG, LONG.upper(), LONG.title(), LONG):
            for room in (1, 2, 3):
                kept[room] = f"{room} {text}"
                # The second room's go as they are.
                assert rooms.publish(f"room {room}", kept[room], compress=room != 2).sent == 1
        assert it.conn.dropped == 9
        it.sent += kept.values()
        if closing:
            it.conn.close_nowait()
        it.flow()
        await it.check()
        assert [rsv for opcode, rsv, _ in frames_of(it.site.listener.tap.writes) if opcode == 1] == [4, 4, 0, 4]


async def test_an_interrupt_does_not_come_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """KeyboardInterrupt waits while a message is compressed and queued, or it would be in the context and not sent."""
    protected: list[bool] = []
    pack = Packer.pack

    def note(packer: Packer, frame: bytes) -> bytes:
        protected.append(trio.lowlevel.currently_ki_protected())
        return pack(packer, frame)

    monkeypatch.setattr(Packer, "pack", note)
    app = App(compression=EVERYTHING)

    async def send(conn: Connection) -> None:
        assert not trio.lowlevel.currently_ki_protected()
        await conn.send(LONG)
        conn.send_nowait(LONG)

    Recorder(app, hooks={"open": send})
    async with connect(app, compression=EVERYTHING) as peer:
        assert [await peer.receive() for _ in range(2)] == [LONG] * 2
    assert protected == [True, True]


async def test_what_compression_needs_is_given_back_at_the_end() -> None:
    """A connection that has ended keeps no compressor, and nothing to inflate with."""
    async with AsyncExitStack() as stack:
        it = await context(stack)
        await it.peer.send(LONG)
        it.send_nowait(LONG)
        assert it.conn._packer is not None
        assert it.conn._reader._inflater is not None
        await it.peer.close()
        await it.conn.wait_closed()
        assert it.conn._packer is None
        assert it.conn._reader._inflater is None
        assert it.conn.compression is not None


@pytest.mark.parametrize("compress", ["no", 0, 1, []])
async def test_compress_is_a_bool_or_none(kind: Kind, compress: Any) -> None:
    """Everything else is a mistake, and nothing is sent: a message with a secret would be compressed by it."""
    app = App()
    recorder = Recorder(app, hooks=waiting())
    async with serving(app, kind) as site, site.connect() as peer:
        await recorder.wait("open")
        conn = recorder.conn
        conn.join("room")
        with pytest.raises(TypeError, match="it must be True, False or None"):
            await conn.send("a", compress=compress)
        with pytest.raises(TypeError, match="it must be True, False or None"):
            conn.send_nowait("a", compress=compress)
        with pytest.raises(TypeError, match="it must be True, False or None"):
            app.publish("room", "a", compress=compress)
        with pytest.raises(TypeError, match="it must be True, False or None"):
            app.broadcast("a", compress=compress)
        await conn.send("b")
        assert await peer.receive() == "b"
