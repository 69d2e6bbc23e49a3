"""The peer of the testing kit reads by itself: it stays alive while a test does something else, unless it must not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from wsproto.events import Ping

from support.rawclient import echo_app
from trio_crowws import (
    App,
    CloseFrame,
    CloseInfo,
    Connection,
    HeartbeatTimeout,
    InvalidURL,
    SlowConsumer,
    connect_stream,
)
from trio_crowws import testing as kit
from trio_crowws.testing import PeerClosed, connect, shake_hands

lockstep = trio.testing.lockstep_stream_pair
MockClock = trio.testing.MockClock


# An idle peer


async def test_an_idle_peer_stays_alive(autojump_clock: MockClock) -> None:
    """A test may do something else for hours: pings are answered, and what came meanwhile is there, in order."""
    app = App()

    @app.websocket("/")
    async def session(conn: Connection) -> None:
        await conn.send("one")
        await trio.sleep(3 * 3600)
        await conn.send(b"two")
        async for message in conn:
            await conn.send(message)

    async with connect(app) as peer:
        await trio.sleep(4 * 3600)
        await peer.send("three")
        assert [await peer.receive() for _ in range(3)] == ["one", b"two", "three"]
        await peer.close()


async def test_an_idle_peer_answers_a_close(autojump_clock: MockClock) -> None:
    """The server's Close is answered at once, and is told when the test asks; sending says so too."""
    ends: list[CloseInfo] = []
    app = App()
    app.websocket("/").onopen(lambda conn: conn.close_nowait(4000, "go")).onclose(lambda conn, info: ends.append(info))
    async with connect(app) as peer:
        await trio.testing.wait_all_tasks_blocked()
        assert [info.clean for info in ends] == [True]
        attempts: list[Callable[[], Awaitable[object]]] = [lambda: peer.send("x"), peer.ping, peer.receive]
        for attempt in attempts:
            with pytest.raises(PeerClosed, match="the server sent CloseFrame") as caught:
                await attempt()
            assert caught.value.close == CloseFrame(4000, "go")
            assert caught.value.info is ends[0]
    assert trio.current_time() == 0


@pytest.mark.parametrize("way", ["keyword", "attribute"])
async def test_a_peer_that_answers_no_close(autojump_clock: MockClock, way: str) -> None:
    """With auto_close off, from the call on or before the test first waits, a Close is never answered."""
    app = App()
    app.websocket("/").onopen(lambda conn: conn.close_nowait())
    async with connect(app, auto_close=way == "attribute") as peer:
        if way == "attribute":
            peer.auto_close = False
        assert await peer.receive_close() == CloseFrame(1000)
        assert trio.current_time() == 5


async def test_an_idle_peer_of_a_busy_application_stays_alive(autojump_clock: MockClock) -> None:
    """Streams in memory take everything, so the peer does too: a feed that nobody listens to does not end it."""
    app = App()

    @app.websocket("/")
    async def feed(conn: Connection) -> None:
        for number in range(200):
            await conn.send(f"{number} ".ljust(10_000, "x"))
            await trio.sleep(1)
        await conn.receive()

    async with connect(app) as peer:
        await trio.sleep(300)
        await peer.send("still here")
        assert [int(str(await peer.receive()).split()[0]) for _ in range(200)] == list(range(200))


# A dead peer, and why


@pytest.mark.parametrize("way", ["keyword", "attribute", "paused"])
async def test_a_lost_heartbeat_is_named(autojump_clock: MockClock, way: str) -> None:
    """A peer that answers no ping is given up; whatever the test does next says that it was the heartbeat."""
    app = echo_app()
    async with connect(app, "/echo", auto_pong=way != "keyword") as peer:
        if way == "attribute":
            peer.auto_pong = False
        if way == "paused":
            peer.pause_reading()
        await trio.sleep(41)
        attempts: list[Callable[[], Awaitable[object]]] = [lambda: peer.send("x"), peer.ping, peer.receive]
        attempts.append(lambda: peer.send_frame(9))
        for attempt in attempts:
            with pytest.raises(PeerClosed, match="HeartbeatTimeout: no sign of life for 20 s after a ping") as caught:
                await attempt()
            assert caught.value.close is None
            assert caught.value.info is not None
            assert isinstance(caught.value.info.error, HeartbeatTimeout)


async def test_an_exception_of_the_application_is_named() -> None:
    """A Close with 1011 says nothing of the exception, and PeerClosed does."""
    app = App()

    @app.websocket("/")
    async def session(conn: Connection) -> None:
        raise KeyError("the key that is missing")

    async with connect(app) as peer:
        with pytest.raises(PeerClosed, match=r"1011.*KeyError: 'the key that is missing'"):
            await peer.receive()


async def test_before_the_end_the_reason_is_what_is_known_so_far() -> None:
    """While the server waits for the answer to its Close, `info` is not final, but says why there is one."""
    app = echo_app(max_payload=10)
    async with connect(app, "/echo", auto_close=False) as peer:
        await peer.send("more than ten bytes")
        with pytest.raises(PeerClosed, match="PayloadTooBig") as caught:
            await peer.receive()
        assert caught.value.info is not None
        assert caught.value.info.code == 1009


async def test_what_is_not_known() -> None:
    """Over a stream of the test's own nothing is known of the server's side."""
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo_app().serve_stream, far)
        peer = await shake_hands(near, "/echo")
        peer.pause_reading()
        peer.resume_reading()
        await far.aclose()
        with pytest.raises(PeerClosed, match=r"the stream ended without a Close frame$") as caught:
            await peer.receive()
        assert caught.value.info is None
        with pytest.raises(trio.BrokenResourceError):
            await peer.send("x")


# A slow peer


async def test_what_is_not_taken_is_not_read_without_end(autojump_clock: MockClock) -> None:
    """An application that a test does not listen to meets back-pressure; what was sent arrives when it does."""
    sent = 0
    app = App(send_timeout=None, send_high_water=1)

    @app.websocket("/")
    async def session(conn: Connection) -> None:
        nonlocal sent
        for number in range(100):
            await conn.send(f"{number} ".ljust(10_000, "x"))
            sent += 1

    async with connect(app, streams=lockstep) as peer:
        await trio.testing.wait_all_tasks_blocked()
        assert 5 < sent < 40
        assert [int(str(await peer.receive()).split()[0]) for _ in range(100)] == list(range(100))


@pytest.mark.parametrize("paused", [False, True])
async def test_a_peer_that_takes_nothing_is_slow(autojump_clock: MockClock, paused: bool) -> None:
    """A peer that does not take a large message is given up by `send_timeout`, also in the middle of the message."""
    app = App(send_timeout=10)
    ends: list[CloseInfo] = []

    @app.websocket("/")
    async def session(conn: Connection) -> None:
        await conn.send(bytes(1 << 20))
        ends.append(await conn.wait_closed())

    async with connect(app, streams=lockstep) as peer:
        if paused:
            peer.pause_reading()
        await trio.sleep(21)
    assert isinstance(ends[0].error, SlowConsumer)


async def test_a_large_message_is_read_for_whoever_waits(autojump_clock: MockClock) -> None:
    """A message that is larger than what is kept comes whole."""
    async with connect(echo_app(max_payload=None), "/echo", streams=lockstep) as peer, trio.open_nursery() as nursery:
        nursery.start_soon(peer.send, "x" * (1 << 20))
        assert await peer.receive() == "x" * (1 << 20)


async def test_a_paused_peer_reads_what_it_is_asked_for(autojump_clock: MockClock) -> None:
    """Paused, `receive` reads by itself; reading goes on after `resume_reading`."""
    async with connect(echo_app(), "/echo", streams=lockstep) as peer, trio.open_nursery() as nursery:
        peer.pause_reading()
        for number in range(10):
            nursery.start_soon(peer.send, str(number))
            assert await peer.receive() == str(number)
        peer.resume_reading()
        await trio.sleep(100)
        nursery.start_soon(peer.send, "alive")
        assert await peer.receive() == "alive"


async def test_pausing_changes_hands_without_a_loss(autojump_clock: MockClock) -> None:
    """A task that waits in `receive` gets the next message, whoever has to read it: paused, resumed, paused again."""
    got: list[str | bytes] = []

    async def listen(peer: kit.Peer) -> None:
        while len(got) < 60:
            got.append(await peer.receive())

    async with connect(echo_app(), "/echo", streams=lockstep) as peer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, peer)
            for number in range(60):
                await trio.testing.wait_all_tasks_blocked()
                (peer.pause_reading, peer.resume_reading)[number // 2 % 2]()
                if number % 3:
                    await trio.testing.wait_all_tasks_blocked()
                await peer.send(str(number))
                if number % 5 == 0:
                    (peer.resume_reading, peer.pause_reading)[number // 2 % 2]()
        assert got == [str(number) for number in range(60)]


async def test_a_pause_waits_for_an_answer_that_is_being_sent() -> None:
    """What was read together with a ping is not overtaken: whoever reads next waits until the ping is answered."""
    app = App()

    @app.websocket("/")
    async def session(conn: Connection) -> None:
        conn.start_soon(conn.ping)
        await trio.testing.wait_all_tasks_blocked()
        await conn.send("behind the ping")
        await conn.wait_closed()

    async with connect(app, streams=lockstep) as peer, trio.open_nursery() as nursery:
        got: list[object] = []

        async def listen() -> None:
            got.extend([await peer.receive_event(), await peer.receive_event()])

        assert peer._sending is not None
        async with peer._sending:
            await trio.testing.wait_all_tasks_blocked()
            peer.pause_reading()
            nursery.start_soon(listen)
            await trio.testing.wait_all_tasks_blocked()
            assert got == []
        await trio.testing.wait_all_tasks_blocked()
        assert [type(event) for event in got] == [Ping, str]


async def test_several_tasks_may_receive() -> None:
    """Each message goes to one of the tasks that wait, and nobody is forgotten."""
    got: list[str | bytes] = []

    async def listen(peer: kit.Peer) -> None:
        got.append(await peer.receive())

    async with connect(echo_app(), "/echo") as peer, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(listen, peer)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(5):
            await peer.send(str(number))
    assert sorted(map(str, got)) == list("01234")


async def test_answers_do_not_get_into_what_the_test_sends(autojump_clock: MockClock) -> None:
    """A pong has to wait while the test is sending, and the other way round: frames are never mixed up."""
    app = App()

    @app.websocket("/")
    async def session(conn: Connection) -> None:
        for _ in range(50):
            await conn.ping()
            await conn.send(await conn.receive())

    async with connect(app, streams=lockstep) as peer, trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(peer.send, f"{number:0100}")
        assert sorted([int(await peer.receive()) for _ in range(50)]) == list(range(50))


async def test_pings_are_kept_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pings that nobody takes so many are kept; all are answered, and what is taken makes room."""
    monkeypatch.setattr("trio_crowws._testing.peer.CONTROLS_KEPT", 10)
    app = App()

    @app.websocket("/")
    async def session(conn: Connection) -> None:
        async for _ in conn:
            for _ in range(15):
                await conn.ping()
            await conn.send("done")

    async with connect(app) as peer:
        for _ in range(2):
            await peer.send("ping me")
            await trio.testing.wait_all_tasks_blocked()
            events = [await peer.receive_event() for _ in range(11)]
            assert [type(event) for event in events] == [Ping] * 10 + [str]


async def test_what_goes_wrong_while_reading_is_raised_where_the_test_receives() -> None:
    """A test that closes the stream itself hears of it in `receive`, as often as it asks."""
    async with connect(echo_app(), "/echo") as peer:
        await trio.testing.wait_all_tasks_blocked()
        await peer.stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):
            with pytest.raises(trio.ClosedResourceError):
                await peer.receive()


# Options for one test


async def test_options_for_one_test(autojump_clock: MockClock) -> None:
    """Options of the route can be others for one connection; those of the application stay."""
    app = echo_app()
    async with connect(app, "/echo", auto_pong=False, ping_interval=None, max_payload=10) as peer:
        await trio.sleep(3600)
        await peer.send("ten bytes!")
        assert await peer.receive() == "ten bytes!"
        assert [conn.options.max_payload for conn in app.connections] == [10]
    async with connect(app, "/echo") as peer:
        await peer.send("more than ten bytes")
        assert await peer.receive() == "more than ten bytes"
    with pytest.raises(kit.Refused, match="403"):
        async with connect(app, "/echo", headers={"Origin": "https://a.example"}, origins=lambda request: False):
            pytest.fail("it was accepted")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"ping_intervall": 1}, TypeError, "ping_intervall"),
        ({"shutdown_grace": 1}, TypeError, r"shutdown_grace is for App\(...\)"),
        ({"ping_interval": -1}, ValueError, "ping_interval"),
    ],
)
def test_wrong_options_are_refused_at_the_call(options: dict[str, Any], error: type[Exception], match: str) -> None:
    """They are checked as those of a route."""
    with pytest.raises(error, match=match):
        connect(echo_app(), "/echo", **options)


# Headers and paths


async def test_headers_are_sent_as_by_the_real_client() -> None:
    """A character up to U+00FF is one byte, as with the client's `connect`; what that one refuses is refused."""
    app = App()
    seen: list[str] = []

    async def look(conn: Connection) -> None:
        seen.append(conn.request.headers["x-name"])

    app.websocket("/")(look)
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.serve_stream, far)
        async with connect_stream(near, "ws://testserver", headers={"X-Name": "Zoë"}):
            pass
    async with connect(app, headers={"X-Name": "Zoë"}) as peer:
        await peer.receive_close()
    assert seen == ["Zoë", "Zoë"]
    for value in ("日本", "two\nlines"):
        with pytest.raises(ValueError, match="the value of the header X-Name holds"):
            connect(app, headers={"X-Name": value})


@pytest.mark.parametrize(
    "path", ["/chat/café?n=Zoë", "/chat/caf%C3%A9?n=Zo%C3%AB", "/chat/日本?q=%&x=[1]|{}\"'", "?only=query", ""]
)
async def test_a_path_is_encoded_as_by_the_real_client(path: str) -> None:
    """Whatever `connect` of the client takes as path and query, the kit takes, and the request is the same."""
    app = App()
    targets: list[str] = []

    @app.middleware
    def note(request: Any) -> bool:
        targets.append(request.target)
        return False

    app.websocket("/{rest:path}").on_open(lambda conn: None)
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.serve_stream, far)
        with pytest.raises(Exception, match="403"):
            async with connect_stream(near, f"ws://testserver{path}"):
                pytest.fail("it was accepted")
    with pytest.raises(kit.Refused):
        async with connect(app, path):
            pytest.fail("it was accepted")
    assert len(targets) == 2
    assert targets[0] == targets[1]


@pytest.mark.parametrize(
    ("path", "match"),
    [("/a b", "a space"), ("/a\nb", "a control character"), ("/a#b", "a fragment"), ("/\ud800", "lone")],
)
def test_a_path_that_the_real_client_refuses(path: str, match: str) -> None:
    """It is refused at the call, with the same words."""
    with pytest.raises(InvalidURL, match=f"the path .* {match}"):
        connect(echo_app(), path)


def test_a_path_that_is_none() -> None:
    """What is not a str is a TypeError at the call."""
    with pytest.raises(TypeError, match="the path must be a str, not bytes"):
        connect(echo_app(), b"/")  # type: ignore[arg-type]


async def test_a_target_that_is_no_path() -> None:
    """`shake_hands` sends other forms of a target as they are, for those who test how these are treated."""
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo_app().serve_stream, far)
        peer = await shake_hands(near, "http://testserver/echo")
        await peer.send("x")
        assert await peer.receive() == "x"
        await peer.close()
