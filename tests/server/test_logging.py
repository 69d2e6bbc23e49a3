"""What is written to the log `trio_crowws`, at which level, and what never is."""

from __future__ import annotations

import io
import logging
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from support.rawclient import RawClient, echo_app, open_raw, plain, reset, serving, until, upgrade
from trio_crowws import Accept, App, Connection, Reject, connect_stream
from trio_crowws import connect as connect_client
from trio_crowws.testing import PeerClosed, connect


@pytest.fixture(autouse=True)
def _everything(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a test logs at whatever level is looked at in its text as well: one line for each record."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("trio_crowws")
    logger.addHandler(handler)
    with caplog.at_level(logging.INFO, "trio_crowws"):
        yield
    logger.removeHandler(handler)
    records = [record for record in caplog.get_records("call") if record.name == "trio_crowws"]
    if not any(record.exc_info for record in records):
        assert len(stream.getvalue().splitlines()) == len(records)
    assert {char for char in stream.getvalue() if not char.isprintable()} <= {"\n"}


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    records = [record for record in caplog.records if record.name == "trio_crowws"]
    return [record.getMessage() for record in records if record.levelno == level]


def about_connections(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in lines(caplog, logging.INFO) if line.startswith("[c")]


def fields(line: str) -> dict[str, str]:
    """The `name=value` pairs of a line."""
    return dict(re.findall(r"(\w+)=('[^']*'|\S+)", line))


async def talk(client: RawClient) -> None:
    await client.send_frame(1, b"hello")
    await client.send_frame(2, b"worlds")
    assert [(await client.read_frame()).payload for _ in range(2)] == [b"hello", b"worlds"]


async def test_two_lines_for_a_connection(caplog: pytest.LogCaptureFixture) -> None:
    """A connection has one INFO line at its opening and one at its end, with the same id, address and path."""
    async with serving(echo_app(subprotocols=["v1"])) as server, open_raw(server) as client:
        await client.upgrade("/echo?token=secret", headers=[("Sec-WebSocket-Protocol", "v1")])
        assert isinstance(client.stream, trio.SocketStream)
        address = client.stream.socket.getsockname()
        await talk(client)
        await client.close(4001)
    opened, closed = about_connections(caplog)
    start = re.escape(f"{address} '/echo' subprotocol=v1")
    match = re.fullmatch(rf"\[(c\d+)\] open: {start}", opened)
    assert match is not None
    assert closed.startswith(f"[{match[1]}] closed: {address} '/echo' subprotocol=v1 ")
    found = fields(closed)
    assert {name: found[name] for name in ("code", "reason", "by", "clean", "cause", "dropped")} == {
        "code": "4001",
        "reason": "''",
        "by": "remote",
        "clean": "True",
        "cause": "-",
        "dropped": "0",
    }
    received, sent = re.findall(r"(\d+) messages/(\d+) bytes", closed)
    assert received == ("2", str(6 + 5 + 6 + 6 + 6 + 2))  # two messages and the Close frame
    assert sent[0] == "2"
    assert int(sent[1]) > 2 + 5 + 2 + 6 + 4
    assert "secret" not in caplog.text
    assert lines(caplog, logging.WARNING) == lines(caplog, logging.ERROR) == []


async def test_the_server_says_where_it_listens(caplog: pytest.LogCaptureFixture) -> None:
    """There is a line about the server's address."""
    async with serving(echo_app()) as server:
        assert any(f"127.0.0.1:{server.port}" in line and "listening" in line for line in lines(caplog, logging.INFO))


async def test_ids_are_unique(caplog: pytest.LogCaptureFixture) -> None:
    """Each connection has an id of its own, which is conn.id."""
    ids: list[str] = []
    app = App()
    app.websocket("/").onopen(lambda conn: ids.append(conn.id))
    for _ in range(3):
        async with connect(app):
            pass
    assert len(set(ids)) == 3
    logged = [line.split("]")[0][1:] for line in about_connections(caplog)]
    assert logged == [each for name in ids for each in (name, name)]


async def end(app: App, how: Any) -> None:
    async with serving(app) as server, open_raw(server) as client:
        await client.upgrade()
        await how(client)
        await until(lambda: not app.connections)


async def _reset(client: RawClient) -> None:
    reset(client)


async def _vanish(client: RawClient) -> None:
    await client.stream.aclose()


async def _break_the_rules(client: RawClient) -> None:
    await client.send_frame(3, b"")
    await client.read_to_end()


async def _say_too_much(client: RawClient) -> None:
    await client.send_frame(1, b"x" * 2000)
    await client.read_to_end()


async def _say_nothing(client: RawClient) -> None:
    with pytest.raises(trio.BrokenResourceError):
        await client.read_to_end()


async def _half_a_frame(client: RawClient) -> None:
    await client.send(b"\x81\x85abcd")
    await client.stream.aclose()


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (_reset, {"code": "1006", "clean": "False", "by": "remote", "cause": "ConnectionLost:"}),
        (_vanish, {"code": "1006", "clean": "False", "by": "remote", "cause": "ConnectionLost:"}),
        (_half_a_frame, {"code": "1006", "clean": "False", "by": "remote", "cause": "ConnectionLost:"}),
        (_break_the_rules, {"code": "1002", "clean": "False", "by": "local", "cause": "ProtocolError:"}),
        (_say_too_much, {"code": "1009", "clean": "False", "by": "local", "cause": "PayloadTooBig:"}),
        (_say_nothing, {"code": "1006", "clean": "False", "by": "local", "cause": "HeartbeatTimeout:"}),
    ],
)
async def test_a_bad_peer_is_no_error(caplog: pytest.LogCaptureFixture, how: Any, expected: dict[str, str]) -> None:
    """However a peer ends its connection, that is in the INFO line of the end, and nowhere else."""
    await end(echo_app(max_payload=1000, ping_interval=0.05, ping_timeout=0.05), how)
    [closed] = [line for line in about_connections(caplog) if "closed:" in line]
    found = fields(closed)
    assert {name: found[name] for name in expected} == expected
    assert lines(caplog, logging.WARNING) == lines(caplog, logging.ERROR) == []


async def test_peers_that_never_get_in_are_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """Nonsense, silence and refusals are INFO at most; each refusal has a line with address, path and reason."""
    async with serving(echo_app()) as server:
        for data in (b"\xff\xfe", b"GET /", b"", upgrade("/nothing"), plain("/echo")):
            async with open_raw(server) as client:
                await client.send(data)
                if data == b"":
                    reset(client)
        await trio.testing.wait_all_tasks_blocked(0.02)
    refused = [line for line in lines(caplog, logging.INFO) if line.startswith("refused ")]
    assert [re.sub(r"\('127.0.0.1', \d+\)", "ADDRESS", line) for line in refused] == [
        "refused ADDRESS for - with 400: 'this is not HTTP'",
        "refused ADDRESS for '/nothing' with 404: 'not found'",
        "refused ADDRESS for '/echo' with 426: 'this is a WebSocket endpoint'",
    ]
    assert about_connections(caplog) == []
    assert lines(caplog, logging.WARNING) == lines(caplog, logging.ERROR) == []


async def test_a_reject_of_the_application_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """What on_accept rejects has a line with address, path and status."""
    app = echo_app()
    app.routes[0].on_accept(lambda request: Reject(401))
    async with serving(app) as server, open_raw(server) as client:
        await client.send(upgrade("/echo?token=secret"))
        await client.refused()
    [refused] = [line for line in lines(caplog, logging.INFO) if line.startswith("refused ")]
    assert refused.endswith("for '/echo' with 401")
    assert "secret" not in caplog.text
    assert lines(caplog, logging.ERROR) == []


@pytest.mark.parametrize("style", ["session", "async", "plain", "on_open", "task", "on_error", "on_close"])
async def test_an_exception_of_the_application_is_an_error(caplog: pytest.LogCaptureFixture, style: str) -> None:
    """An exception in the application's code is one ERROR with its traceback, the connection's id and the path."""
    await _fail(style, RuntimeError("the reason"))
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.levelno == logging.ERROR
    assert re.match(r"\[c\d+\] ", record.getMessage())
    assert "'/failing'" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], RuntimeError)
    assert record.exc_info[2] is not None


async def _fail(style: str, error: Exception) -> None:
    """A connection whose handler of this style raises."""

    def fail(conn: Connection, argument: object = None) -> None:
        raise error

    async def fail_async(conn: Connection, argument: object = None) -> None:
        fail(conn)

    app = App()
    route = app.websocket("/failing")
    if style == "session":
        route(fail_async)
    elif style == "async":
        route.onmessage(fail_async)
    elif style == "plain":
        route.onmessage(fail)
    elif style == "on_open":
        route.onopen(fail)
    elif style == "task":
        route.onopen(lambda conn: conn.start_soon(fail_async, conn))
    else:
        route.onmessage(lambda conn, message: None)
        getattr(route, style)(fail)
    async with connect(app, "/failing") as peer:
        await peer.send("x")
        if style == "on_error":
            await peer.send_frame(3)
        elif style != "on_close":
            with pytest.raises(PeerClosed):
                await peer.receive()


@pytest.mark.parametrize("style", ["session", "async", "plain"])
async def test_a_closed_connection_is_no_error_of_the_application(caplog: pytest.LogCaptureFixture, style: str) -> None:
    """A ConnectionClosed of its own connection that leaves a handler is a normal end."""

    def late(conn: Connection, message: object = None) -> None:
        conn.abort()
        conn.send_nowait("too late")

    async def late_async(conn: Connection, message: object = None) -> None:
        conn.abort()
        await conn.send("too late")

    app = App()
    route = app.websocket("/")
    if style == "session":
        route(late_async)
    else:
        route.onmessage(late_async if style == "async" else late)
    async with connect(app) as peer:
        await peer.send("x")
        with pytest.raises(PeerClosed):
            await peer.receive()
    assert lines(caplog, logging.WARNING) == lines(caplog, logging.ERROR) == []
    assert "code=1006" in about_connections(caplog)[-1]


async def test_debug_has_no_payloads(caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG there are lines about frames and the end, but what peers say to each other is never logged."""
    with caplog.at_level(logging.DEBUG, "trio_crowws"):
        async with serving(echo_app()) as server, open_raw(server) as client:
            await client.upgrade("/echo?token=credential")
            await client.send_frame(1, b"confidential text")
            await client.send_frame(9, b"confidential ping")
            await client.send_frame(10, b"confidential pong")
            assert (await client.read_frame()).opcode in (1, 10)
            await client.read_frame()
            await client.close()
    debug = " ".join(lines(caplog, logging.DEBUG))
    received = ("received text of 17 characters", "received Ping", "received Pong")
    frames = (*received, "sent text", "sent Pong", "sent Close")
    for what in frames:
        assert what in debug
    assert "confidential" not in caplog.text
    assert "credential" not in caplog.text


FORGED = "\r\nERROR all is lost \x1b[31m\u202e\0"


async def test_a_reason_cannot_forge_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """Line ends and other control characters in a close reason are escaped."""
    async with connect(echo_app(), "/echo") as peer:
        await peer.close(4000, FORGED)
    assert f"reason={FORGED!a} " in about_connections(caplog)[-1]


async def test_a_path_cannot_forge_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """The same in a path, wherever it is logged: open and closed, refused, and failed."""
    app = App()
    app.websocket("/fine/{name}").onopen(lambda conn: conn.close_nowait())
    app.websocket("/rejected/{name}").onaccept(lambda request: False).onopen(lambda conn: None)
    app.websocket("/broken/{name}").onaccept(lambda request: 1 / 0).onopen(lambda conn: None)
    app.websocket("/failing/{name}").onopen(lambda conn: 1 / 0)
    app.http("/page/{name}")(lambda request: 1 / 0)
    encoded = "%0D%0AERROR%20all%20is%20lost%20%1B[31m%E2%80%AE%00"
    async with serving(app) as server:
        for path in ("/fine/", "/rejected/", "/broken/", "/failing/", "/page/", "/nothing/"):
            async with open_raw(server) as client:
                await client.send((plain if path == "/page/" else upgrade)(path + encoded))
                answer = await client.read_answer()
                if answer.status == 101:
                    assert (await client.read_frame()).opcode == 8
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert FORGED not in text
    assert all(char not in text for char in "\r\x1b\u202e\0")
    assert text.count(r"\r\nERROR all is lost") >= 6


async def test_headers_cannot_forge_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """What of a request's headers is logged is escaped too."""
    async with serving(echo_app()) as server, open_raw(server) as client:
        await client.send(upgrade(headers=[("Origin", "http://\x85\x9b31m")]))
        assert (await client.refused()).status == 403
    assert "9b31m" in caplog.text
    assert "\x9b" not in caplog.text


async def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """The framework writes to its log only."""
    async with serving(echo_app()) as server, open_raw(server) as client:
        await client.upgrade()
        await client.close()
    assert capfd.readouterr() == ("", "")


async def test_unmasked_frames_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    """The option that is for debugging only is warned about, with the route, when the application is served."""
    app = echo_app()
    app.websocket("/debug", allow_unmasked=True).onmessage(lambda conn, message: None)
    async with serving(app):
        pass
    [warning] = lines(caplog, logging.WARNING)
    assert "/debug" in warning
    assert "debugging only" in warning


async def test_a_slow_farewell_is_warned_about(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    """An on_close that is cancelled because its time is over is a WARNING."""
    app = App()

    async def linger(conn: Connection, info: object) -> None:
        await trio.sleep_forever()

    app.websocket("/").onclose(linger)
    async with connect(app):
        pass
    [warning] = lines(caplog, logging.WARNING)
    assert "on_close was cancelled: callback_timeout=5 is over" in warning


@pytest.mark.parametrize("how", ["first", "accept", "listed"])
async def test_a_subprotocol_may_be_a_secret(caplog: pytest.LogCaptureFixture, how: str) -> None:
    """The value of a header is not logged: a subprotocol has its name in the log only if the options list it."""
    app = App(subprotocols="first" if how == "first" else ["bearer.SECRET", "chat"] if how == "listed" else ["chat"])
    route = app.websocket("/").onopen(lambda conn: conn.close_nowait())
    if how == "accept":
        route.on_accept(lambda request: Accept(subprotocol="bearer.SECRET"))
    async with connect(app, subprotocols=["bearer.SECRET"]) as peer:
        assert peer.subprotocol == "bearer.SECRET"
        with pytest.raises(PeerClosed):
            await peer.receive()
    shown = [fields(line)["subprotocol"] for line in about_connections(caplog)]
    assert shown == (["bearer.SECRET"] * 2 if how == "listed" else ["set"] * 2)
    assert ("SECRET" in caplog.text) is (how == "listed")


async def test_a_client_does_not_log_what_it_offers(caplog: pytest.LogCaptureFixture) -> None:
    """What a client's program offers may be its token, so its own log says only that there is a subprotocol."""
    app = App(subprotocols="first")
    app.websocket("/").onopen(lambda conn: conn.close_nowait())
    with caplog.at_level(logging.DEBUG, "trio_crowws"):
        async with serving(app) as server:
            url = f"ws://127.0.0.1:{server.port}/?token=SECRET"
            async with connect_client(url, subprotocols=["SECRET"], headers={"Authorization": "SECRET"}) as conn:
                await conn.wait_closed()
    assert "SECRET" not in caplog.text
    opened = [line for line in lines(caplog, logging.INFO) if line.startswith("[client")]
    assert [fields(line)["subprotocol"] for line in opened] == ["set", "set"]


@pytest.mark.parametrize("end", ["fine", "rejected", "broken", "failing", "page", "nothing"])
async def test_what_a_peer_sent_is_cut(caplog: pytest.LogCaptureFixture, end: str) -> None:
    """However long a path is, and whatever its characters are escaped to, no line is longer than a few hundred."""
    app = App()
    app.websocket("/fine/{name}").onopen(lambda conn: conn.close_nowait(4000, "\u202e" * 41))
    app.websocket("/rejected/{name}").onaccept(lambda request: False).onopen(lambda conn: None)
    app.websocket("/broken/{name}").onaccept(lambda request: 1 / 0).onopen(lambda conn: None)
    app.websocket("/failing/{name}").onopen(lambda conn: 1 / 0)
    app.http("/page/{name}")(lambda request: 1 / 0)
    with caplog.at_level(logging.DEBUG, "trio_crowws"):
        async with serving(app) as server, open_raw(server) as client:
            path = f"/{end}/" + "%F0%9F%98%80%ff" * 500
            await client.send(plain(path) if end == "page" else upgrade(path))
            await client.read_answer()
    about = [record.getMessage() for record in caplog.records if end in record.getMessage()]
    assert about
    assert max(map(len, about)) < 700


async def test_an_origin_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    """The same for the only header that is logged, the `Origin` of a page that may not connect."""
    async with serving(echo_app()) as server, open_raw(server) as client:
        await client.send(upgrade(headers=[("Origin", "http://\xff" * 500)]))
        assert (await client.refused()).status == 403
    assert max(len(line) for line in lines(caplog, logging.INFO)) < 700


async def test_the_repr_of_a_connection_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    """The repr of a connection and of a request, which programs log, are cut and escaped as well."""
    shown: list[str] = []
    app = App()
    app.websocket("/{name}").onopen(lambda conn: shown.extend((repr(conn), repr(conn.request))))
    async with connect(app, "/" + "%0A%e2%80%ae" * 500):
        pass
    assert len(shown) == 2
    assert all(len(text) < 300 and text.isascii() and text.isprintable() for text in shown)


async def test_the_address_of_a_unix_peer_is_its_own_choice(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """A path that a peer has bound its socket to is escaped, as everything that it chooses."""
    app = App()
    app.websocket("/").onopen(lambda conn: conn.close_nowait())
    near, far = socket.socketpair(socket.AF_UNIX)
    with suppress(OSError):
        near.bind(str(tmp_path / "a\nERROR forged"))
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(far))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.serve_stream, stream)
        async with connect_stream(trio.SocketStream(trio.socket.from_stdlib_socket(near)), "ws://test/") as conn:
            await conn.wait_closed()
        nursery.cancel_scope.cancel()
    assert "forged" in caplog.text
    assert "\nERROR forged" not in caplog.text
