"""`trio-crowws connect`: in this process with pipes and pseudo terminals, and as a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import select
import signal
import ssl
import subprocess
import sys
import termios
import time
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trustme
from wsproto.utilities import generate_accept_token

from support.rawclient import until
from support.rawserver import RawPeer, raw_server
from trio_crowws import App, CloseInfo, Connection, ConnectionClosed, Reject, Server
from trio_crowws._cli import connecting
from trio_crowws._cli.connecting import Standard, converse
from trio_crowws._cli.showing import PlainShow
from trio_crowws.cli import main

ROOT = Path(__file__).parents[2]
PATIENCE = 15


class Site:
    """A server to talk to.

    Attributes:
      url: of its `/echo`; other paths do other things.
      requests: what came.
      infos: how its connections have ended.
      conns: its connections.
    """

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[Any] = []
        self.infos: list[CloseInfo] = []
        self.conns: list[Connection] = []
        self.app = app = App(shutdown_grace=0.5, close_timeout=0.5)
        for name in ("echo", "talk", "full", "pings", "binary", "mute", "wrong", "lost", "slow"):
            route = app.websocket(f"/{name}", subprotocols=("v2", "v1"), max_payload=None)
            route(getattr(self, f"_{name}"))
            route.on_close(lambda conn, info: self.infos.append(info))
        no = app.websocket("/no")
        no(self._mute)
        no.on_accept(lambda request: Reject(403, "not \x1b[31myou\n", headers={"X-Why": "because"}))

        @app.middleware
        def see(request: Any) -> None:
            self.requests.append(request)

    async def _echo(self, conn: Connection) -> None:
        self.conns.append(conn)
        async for message in conn:
            await conn.send(message)

    async def _talk(self, conn: Connection) -> None:
        await conn.send("evil \x1b[31m\nsecond")
        await conn.close(1000, "that was \x1b all")

    async def _full(self, conn: Connection) -> None:
        self.conns.append(conn)
        while True:
            await conn.send("x" * 1000)

    async def _pings(self, conn: Connection) -> None:
        await conn.ping()
        await conn.close(1001)

    async def _binary(self, conn: Connection) -> None:
        async for message in conn:
            await conn.send(f"{type(message).__name__} {len(message)}")

    async def _mute(self, conn: Connection) -> None:
        self.conns.append(conn)
        await conn.wait_closed()

    async def _wrong(self, conn: Connection) -> None:
        await conn.close(4001, "wrong")

    async def _lost(self, conn: Connection) -> None:
        conn.abort()

    async def _slow(self, conn: Connection) -> None:
        for number in range(3):
            await trio.sleep(0.2)
            await conn.send(str(number))
        await conn.wait_closed()


@asynccontextmanager
async def a_site(context: ssl.SSLContext | None = None) -> AsyncGenerator[Site]:
    site = Site()
    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(_serve, site.app, context)
        site.url = f"ws://127.0.0.1:{server.port}" if context is None else f"wss://localhost:{server.port}"
        with trio.fail_after(PATIENCE):
            yield site
        nursery.cancel_scope.cancel()


async def _serve(app: App, context: Any, *, task_status: trio.TaskStatus[Server]) -> None:
    await app.serve("127.0.0.1", 0, ssl_context=context, task_status=task_status)


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    connecting.add_arguments(parser)
    return parser.parse_args(arguments)


class Talk:
    """A conversation that runs beside a test, over pipes.

    Attributes:
      status: the exit status, when it has ended.
      ended: set then.
    """

    def __init__(self, nursery: trio.Nursery, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self._input, self.keyboard = os.pipe()
        self.reader, self._output = os.pipe()
        self.error_reader, self._error = os.pipe()
        self.status: int | None = None
        self.ended = trio.Event()
        nursery.start_soon(self._run, parse(*arguments), environment or {})

    async def _run(self, options: argparse.Namespace, environment: Mapping[str, str]) -> None:
        self.status = await converse(options, Standard(self._input, self._output, self._error), environment)
        for descriptor in (self._input, self._output, self._error):
            os.close(descriptor)
        self.ended.set()

    def type(self, text: str) -> None:
        os.write(self.keyboard, text.encode())

    def end_input(self) -> None:
        os.close(self.keyboard)

    async def read_line(self) -> str:
        data = b""
        while not data.endswith(b"\n"):
            await trio.lowlevel.wait_readable(self.reader)
            data += os.read(self.reader, 1)
        return data.decode()

    async def finish(self) -> tuple[int | None, str, str]:
        """The status, and all that was not read of both outputs."""
        await self.ended.wait()
        return self.status, drained(self.reader), drained(self.error_reader)


def drained(descriptor: int) -> str:
    with os.fdopen(descriptor, "rb") as file:
        return file.read().decode()


async def talk_to(url: str, text: str | bytes = "", *more: str) -> tuple[int, str, str]:
    """A whole conversation whose input is a pipe with `text`; the status and both outputs."""
    data = text.encode() if isinstance(text, str) else text
    async with trio.open_nursery() as nursery:
        talk = Talk(nursery, url, *more)
        os.write(talk.keyboard, data)
        talk.end_input()
        await talk.ended.wait()
    status, out, error = await talk.finish()
    assert status is not None
    return status, out, error


# Pipes


async def test_lines_become_messages() -> None:
    """Each line is a text message; each answer is a line. After some silence the connection is closed with 1000."""
    async with a_site() as site:
        status, out, error = await talk_to(f"{site.url}/echo", "one\ntwo\n\nthree", "--wait", "0.2")
        assert (status, out) == (0, "one\ntwo\n\nthree\n")
        assert [info.code for info in site.infos] == [1000]
    lines = error.splitlines()
    assert re.fullmatch(r"connected to ws://\S+/echo in \d+\.\d ms", lines[0])
    assert re.fullmatch(r"pong after \d+\.\d ms", lines[1])
    assert re.fullmatch(r"closed with 1000 by the client \(latency \d+\.\d ms\)", lines[-1])


async def test_answers_are_waited_for() -> None:
    """As long as messages come, the end of the input does not end the connection."""
    async with a_site() as site:
        status, out, _ = await talk_to(f"{site.url}/slow", "", "--wait", "0.5")
        assert (status, out) == (0, "0\n1\n2\n")


async def test_not_waiting() -> None:
    """With --wait 0 it closes at the end of the input, and everything was sent."""
    async with a_site() as site:
        status, _, _ = await talk_to(f"{site.url}/mute", "one\ntwo\n", "--wait", "0")
        assert status == 0
        assert site.conns[0].messages_received == 2


class FakeConnection:
    """A connection that has something to send for some time, and then is closed by the peer."""

    def __init__(self, *buffered: int) -> None:
        self._left = list(buffered)
        self.closed_at: float | None = None

    @property
    def buffered(self) -> int:
        return self._left.pop(0) if self._left else 0

    async def send(self, data: str | bytes) -> None:
        raise ConnectionClosed(CloseInfo(1000, "", True, "remote", None, None, None))

    def close_nowait(self, code: int) -> None:
        self.closed_at = trio.current_time()


def unstarted(*arguments: str, standard: Standard | None = None) -> connecting._Talk:
    standard = standard or Standard(None, None, None)
    return connecting._Talk(parse("ws://h/", *arguments), standard, standard.show(as_json=True, environment={}))


async def test_what_was_not_sent_yet_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    """While lines are still on their way out, nothing counts as silence."""
    conn = FakeConnection(10, 5)
    await unstarted("--wait", "2")._send_lines(conn)  # type: ignore[arg-type]
    assert conn.closed_at == 6


async def test_a_line_for_a_connection_that_has_ended() -> None:
    """A line that comes too late is no error; how the connection ended is said elsewhere."""
    reader, writer = os.pipe()
    os.write(writer, b"too late\n")
    conn = FakeConnection()
    await unstarted(standard=Standard(reader, None, None))._send_lines(conn)  # type: ignore[arg-type]
    assert conn.closed_at is None
    os.close(reader)
    os.close(writer)


async def test_a_pipe_gets_messages_as_they_are() -> None:
    """Messages are not escaped for a program; what else the peer says is, for whoever reads the standard error."""
    async with a_site() as site:
        status, out, error = await talk_to(f"{site.url}/talk")
        assert (status, out) == (0, "evil \x1b[31m\nsecond\n")
        assert "closed with 1000 'that was \\x1b all' by the server" in error
        assert "\x1b" not in error


async def test_binary_messages() -> None:
    """--binary sends lines as they are, whatever bytes they have."""
    async with a_site() as site:
        status, out, _ = await talk_to(f"{site.url}/binary", b"\xff\xfe\n", "--binary", "--wait", "0.2")
        assert (status, out) == (0, "bytes 2\n")


async def test_binary_lines_keep_their_returns() -> None:
    """With --binary a carriage return is a byte like any other; without, it belongs to the line end."""
    async with a_site() as site:
        lines = b"a\r\nb\r"
        assert (await talk_to(f"{site.url}/binary", lines, "--binary", "--wait", "0.2"))[1] == "bytes 2\nbytes 2\n"
        assert (await talk_to(f"{site.url}/binary", lines, "--wait", "0.2"))[1] == "str 1\nstr 2\n"


async def test_an_input_that_is_not_text() -> None:
    """Without --binary a line that is not UTF-8 is an error, which says what to do."""
    async with a_site() as site:
        status, _, error = await talk_to(f"{site.url}/echo", b"ok\n\xff\xfe\n")
        assert status == 1
        assert "trio-crowws: a line of the input is not UTF-8; --binary sends it as it is\n" in error


async def test_an_interactive_pipe() -> None:
    """Answers are written when they come, not when a buffer is full, so that a program can talk with the server."""
    async with a_site() as site, trio.open_nursery() as nursery:
        talk = Talk(nursery, f"{site.url}/echo")
        for word in ("one", "two"):
            talk.type(f"{word}\n")
            assert await talk.read_line() == f"{word}\n"
        site.conns[0].close_nowait(1000)
        await talk.ended.wait()
        assert talk.status == 0


# JSON


async def test_json() -> None:
    """--json writes one object per event, and nothing else anywhere."""
    async with a_site() as site:
        status, out, error = await talk_to(f"{site.url}/echo", "one\n", "--json", "--wait", "0.2")
    assert (status, error) == (0, "")
    events = [json.loads(line) for line in out.splitlines()]
    assert events[0]["event"] == "open"
    assert events[-1]["event"] == "close"
    assert {event["event"] for event in events} == {"open", "pong", "message", "close"}
    assert [event["data"] for event in events if event["event"] == "message"] == ["one"]
    assert events[-1]["latency"] > 0


async def test_pings_are_shown() -> None:
    """A ping of the server is an event."""
    async with a_site() as site:
        status, out, _ = await talk_to(f"{site.url}/pings", "", "--json", "--wait", "inf")
    assert status == 0
    assert "ping" in [json.loads(line)["event"] for line in out.splitlines()]


async def test_an_unsolicited_pong_says_nothing() -> None:
    """A pong that nobody asked for has no latency, and is not shown."""
    talk = unstarted()

    class Unmeasured:
        latency = None

    await talk._on_pong(Unmeasured(), b"")  # type: ignore[arg-type]
    with pytest.raises(trio.WouldBlock):
        talk._to_write.receive_nowait()


# Options


async def test_the_request() -> None:
    """Headers, subprotocols and origin go into the request."""
    async with a_site() as site:
        options = ["--header", "X-One: 1", "--header", "x-two:a:b", "--subprotocol", "v1", "--subprotocol", "v0"]
        status, _, error = await talk_to(
            f"{site.url}/echo", "", "--wait", "0", *options, "--origin", f"http{site.url[2:]}"
        )
        [request] = site.requests
    assert status == 0
    assert request.headers["x-one"] == "1"
    assert request.headers["x-two"] == "a:b"
    assert request.subprotocols == ("v1", "v0")
    assert request.origin == f"http{site.url[2:]}"
    assert "subprotocol v1" in error


async def test_tls(tmp_path: Path) -> None:
    """A server is verified, by the certificates that are given, unless it is not wanted."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    async with a_site(context) as site:
        for trust in (["--insecure"], ["--cafile", str(tmp_path / "ca.pem")]):
            status, out, _ = await talk_to(f"{site.url}/echo", "one\n", "--wait", "0.2", *trust)
            assert (status, out) == (0, "one\n")
        status, _, error = await talk_to(f"{site.url}/echo")
        assert status == 1
        assert "--cafile FILE trusts its authority or --insecure accepts any certificate" in error
        assert "ssl_context" not in error


@pytest.mark.parametrize(("file", "message"), [("nothing.pem", "No such file"), ("bad.pem", "")])
async def test_a_wrong_cafile(tmp_path: Path, file: str, message: str) -> None:
    """A file without certificates is named."""
    (tmp_path / "bad.pem").write_text("nothing")
    status, _, error = await talk_to("wss://127.0.0.1:1/", "", "--cafile", str(tmp_path / file))
    assert status == 1
    assert f"cannot use the certificates in {tmp_path / file}: {message}" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--header", "nothing"], "'nothing' is not of the form NAME:VALUE"),
        (["--header", ": value"], "': value' is not of the form NAME:VALUE"),
        (["--wait", "long"], "'long' is not a number of seconds"),
        (["--wait", "-1"], "'-1' is not a number of seconds"),
        (["--wait", "nan"], "'nan' is not a number of seconds"),
        (["--insecure", "--cafile", "x"], "not allowed with argument"),
        (["--max-payload", "x"], "'x' is not a number of bytes"),
        (["--max-payload", "0"], "'0' is not a number of bytes; it must be 1 or more"),
        (["--max-payload", "-1"], "'-1' is not a number of bytes"),
        ([], "required: URL"),
    ],
)
def test_wrong_arguments(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    """Arguments that cannot be understood are a message and the status 2."""
    with pytest.raises(SystemExit) as caught:
        main(["connect", *(["ws://127.0.0.1:1/"] if arguments else []), *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "arguments", "message"),
    [
        ("http://localhost/", [], "must begin with ws://"),
        ("ws://127.0.0.1:1/", ["--header", "a b: c"], "a b"),
        ("ws://127.0.0.1:1/", ["--subprotocol", "a b"], "['a b'] is not allowed; it must be a sequence of distinct"),
        ("ws://127.0.0.1:1/", ["--insecure"], "--insecure is for wss://, not for ws://"),
        ("ws+unix:///sock", ["--cafile", "/nowhere"], "--cafile is for wss://, not for ws+unix://"),
        ("http://localhost/", ["--insecure"], "must begin with ws://"),
        ("ws://127.0.0.1:1/", ["--proxy", "proxy"], "it looks like http://host:port"),
    ],
)
async def test_arguments_that_cannot_be_used(url: str, arguments: list[str], message: str) -> None:
    """What no request can be made of is the status 2 as well."""
    status, _, error = await talk_to(url, "", *arguments)
    assert status == 2
    assert error.startswith("trio-crowws: ")
    assert message in error


# Exit statuses


@pytest.mark.parametrize(("path", "expected"), [("talk", 0), ("pings", 0), ("wrong", 4), ("lost", 4)])
async def test_how_the_server_closes(path: str, expected: int) -> None:
    """A normal close is 0, any other code and a lost connection are 4."""
    async with a_site() as site:
        assert (await talk_to(f"{site.url}/{path}", "", "--wait", "inf"))[0] == expected


async def test_a_message_that_is_too_large() -> None:
    """More than --max-payload ends the connection with 1009, so the status is 4; as much is taken."""
    async with a_site() as site:
        status, out, error = await talk_to(f"{site.url}/echo", "x" * 10 + "\n", "--max-payload", "10", "--wait", "0.2")
        assert (status, out) == (0, "x" * 10 + "\n")
        status, out, error = await talk_to(f"{site.url}/echo", "x" * 11 + "\n", "--max-payload", "10", "--wait", "5")
        assert (status, out) == (4, "")
        assert "1009" in error


async def test_a_refusal() -> None:
    """A server that answers with an HTTP status is 3; status and body are shown."""
    async with a_site() as site:
        status, out, error = await talk_to(f"{site.url}/no")
        assert (status, out) == (3, "")
        assert error.endswith("/no was refused with HTTP 403: not \\x1b[31myou\n")
        status, out, _ = await talk_to(f"{site.url}/no", "", "--json")
        event = json.loads(out)
    assert (event["event"], event["status"]) == ("refused", 403)
    assert ["x-why", "because"] in event["headers"]


async def test_a_refusal_that_tells_what_is_wrong() -> None:
    """What the answer seems to mean is shown as well."""

    async def script(peer: RawPeer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 400 X\r\nContent-Length: 31\r\n\r\nplain HTTP sent to an HTTPS port")

    async with raw_server(script) as server:
        status, _, error = await talk_to(server.url)
    assert status == 3
    assert "was refused with HTTP 400 (it seems to want TLS at this port; use wss://): plain HTTP" in error


async def test_nobody_is_there() -> None:
    """A server that cannot be reached is 1, and the message says why."""
    status, _, error = await talk_to("ws://127.0.0.1:1/")
    assert status == 1
    assert error == "trio-crowws: cannot connect to 127.0.0.1:1: Connection refused\n"


async def test_nobody_reads() -> None:
    """Without a reader of the output the connection is closed, and the status is that of a broken pipe."""
    async with a_site() as site:
        async with trio.open_nursery() as nursery:
            talk = Talk(nursery, f"{site.url}/full")
            await talk.read_line()
            os.close(talk.reader)
        assert talk.status == 141
        await until(lambda: bool(site.infos))
        assert site.infos[0].code == 1001


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
async def test_a_full_disk() -> None:
    """An output that cannot be written is 1, and the message says why."""
    async with a_site() as site:
        full = os.open("/dev/full", os.O_WRONLY)
        reader, writer = os.pipe()
        status = await converse(parse(f"{site.url}/full"), Standard(None, full, writer), {})
        os.close(full)
        os.close(writer)
        assert status == 1
        assert "trio-crowws: cannot write: No space left on device\n" in drained(reader)


async def test_both_outputs_are_full() -> None:
    """Where not even the message can be written, there is the status."""
    async with a_site() as site:
        full = os.open("/dev/full", os.O_WRONLY)
        assert await converse(parse(f"{site.url}/full"), Standard(None, full, full), {}) == 1
        os.close(full)


# Signals


async def stubborn(stream: trio.SocketStream) -> None:
    """A server that accepts a connection and then does nothing at all."""
    head = b""
    async for data in stream:
        head += data
        if b"\r\n\r\n" in head:
            break
    [key] = re.findall(rb"(?i)sec-websocket-key: (\S+)", head)
    await stream.send_all(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + generate_accept_token(key) + b"\r\n\r\n"
    )
    await trio.sleep_forever()


async def deaf(stream: trio.SocketStream) -> None:
    """A server that does not even answer the request."""
    await trio.sleep_forever()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal(number: signal.Signals) -> None:
    """A signal closes the connection with 1001; the status is the one that a shell gives to it."""
    async with a_site() as site:
        async with trio.open_nursery() as nursery:
            talk = Talk(nursery, f"{site.url}/mute")
            await until(lambda: bool(site.conns))
            os.kill(os.getpid(), number)
        status, _, error = await talk.finish()
        assert status == 128 + number
        assert "closed with 1001" in error
        assert [info.code for info in site.infos] == [1001]


async def test_a_second_signal_does_not_wait() -> None:
    """The second signal drops a connection whose server does not answer the first."""
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, stubborn, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as talking:
                talk = Talk(talking, f"ws://127.0.0.1:{port}/")
                data = b""
                while b"connected" not in data:
                    await trio.lowlevel.wait_readable(talk.error_reader)
                    data += os.read(talk.error_reader, 100)
                began = trio.current_time()
                os.kill(os.getpid(), signal.SIGINT)
                await trio.sleep(0.05)
                os.kill(os.getpid(), signal.SIGINT)
        assert talk.status == 130
        assert trio.current_time() - began < 0.8
        nursery.cancel_scope.cancel()


async def test_a_second_signal_before_there_is_a_connection() -> None:
    """Two signals end an attempt to connect, too."""
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, deaf, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as talking:
                talk = Talk(talking, f"ws://127.0.0.1:{port}/")
                await trio.testing.wait_all_tasks_blocked(0.05)
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGTERM)
        assert talk.status in (130, 143)
        nursery.cancel_scope.cancel()


# Terminals


async def test_a_terminal_in_this_process() -> None:
    """Lines are typed at a prompt, and their end closes the connection at once."""
    async with a_site() as site:
        began = trio.current_time()
        async with at_a_desk(site, "--wait", "60", environment={"TERM": "xterm"}) as desk:
            await desk.see("> ")
            desk.type("hello\n")
            await desk.see("< hello")
            desk.type("\x04")
            await desk.see("closed with 1000 by the client")
        assert desk.statuses == [0]
        assert trio.current_time() - began < PATIENCE


class Desk:
    """A conversation on a pseudo terminal in this process.

    Attributes:
      master: the other end of the terminal.
      slave: the terminal.
      statuses: the exit status, when it has ended.
    """

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.statuses: list[int] = []

    async def talk(self, standard: Standard, options: argparse.Namespace, environment: Mapping[str, str]) -> None:
        self.statuses.append(await converse(options, standard, environment))

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    async def see(self, text: str) -> str:
        data = ""
        while text not in data:
            await trio.lowlevel.wait_readable(self.master)
            data += os.read(self.master, 1000).decode()
        return data

    @property
    def edits(self) -> bool:
        """Whether keys come one by one."""
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON


@asynccontextmanager
async def at_a_desk(
    site: Site,
    *arguments: str,
    output: int | None = None,
    environment: Mapping[str, str] | None = None,
    typed: str = "",
) -> AsyncGenerator[Desk]:
    desk = Desk()
    before = termios.tcgetattr(desk.slave)
    desk.type(typed)
    standard = Standard(desk.slave, desk.slave if output is None else output, desk.slave)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.talk, standard, parse(f"{site.url}/echo", *arguments), environment or {})
            yield desk
        assert termios.tcgetattr(desk.slave) == before
    finally:
        os.close(desk.master)
        os.close(desk.slave)


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [((), {}), ((), {"NO_COLOR": "1"}), ((), {"TERM": "dumb"}), (("--json",), {}), (("--binary",), {})],
)
async def test_lines_are_edited(arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    """On every kind of terminal; keys do not become messages, and the last line comes back with the arrow key."""
    async with a_site() as site:
        async with at_a_desk(site, *arguments, environment=environment) as desk:
            await desk.see("pong")
            assert desk.edits
            desk.type("helo\x1b[Dl\r")
            await until(lambda: site.conns[0].messages_received == 1)
            desk.type("\x1b[A!\n")
            await until(lambda: site.conns[0].messages_received == 2)
            seen = await desk.see("hello!" if "--binary" not in arguments else "68 65 6c 6c 6f 21")
            desk.type("\x04")
        assert desk.statuses == [0]
        assert ("\x1b" in seen) is (not environment and "--json" not in arguments)


@pytest.mark.parametrize("keys", ["one\ntw", "one\n", "\x1b[Cone\ntw\x7fwo\x1b[D"])
async def test_what_is_typed_ahead(keys: str) -> None:
    """Before there is a connection the terminal takes the keys, and nothing of them is lost."""
    async with a_site() as site:
        async with at_a_desk(site, typed=keys) as desk:
            await desk.see("< one")
            desk.type("\n")
            await until(lambda: site.conns[0].messages_received == 2)
            desk.type("\x04")
        assert desk.statuses == [0]


@pytest.mark.parametrize("keys", ["\x04", "one\n\x04"])
async def test_an_end_that_is_typed_ahead(keys: str) -> None:
    """Ctrl-D counts, too."""
    async with a_site() as site:
        async with at_a_desk(site, typed=keys) as desk:
            pass
        assert desk.statuses == [0]
        assert site.conns[0].messages_received == (1 if "one" in keys else 0)


async def test_a_terminal_beside_a_pipe() -> None:
    """The messages go where the output goes, and what is typed is edited where the errors are shown."""
    async with a_site() as site:
        reader, writer = os.pipe()
        async with at_a_desk(site, output=writer) as desk:
            await desk.see("pong")
            desk.type("helo\x1b[Dl")
            await desk.see("hello\rhell")
            desk.type("\n")
            await trio.lowlevel.wait_readable(reader)
            assert os.read(reader, 100) == b"hello\n"
            desk.type("\x04")
            await desk.see("closed with 1000")
        os.close(reader)
        os.close(writer)


async def test_no_terminal_to_draw_on() -> None:
    """Where only the input is one, it edits lines by itself, as far as it can."""
    async with a_site() as site, trio.open_nursery() as nursery:
        talk = Talk(nursery, f"{site.url}/mute")
        await until(lambda: bool(site.conns))
        master, slave = pty.openpty()
        assert connecting._Talk(parse("ws://h/"), Standard(slave, None, None), PlainShow(escaped=False))._row is None
        os.close(master)
        os.close(slave)
        talk.end_input()
        site.conns[0].close_nowait(1000)
        await talk.ended.wait()


async def test_a_message_while_a_line_is_typed() -> None:
    """It is shown above the line, which is drawn anew below it, and can be edited on."""
    async with a_site() as site, at_a_desk(site) as desk:
        await desk.see("pong")
        desk.type("helo\x1b[D")
        await desk.see("> helo\r> hel")
        await site.conns[0].send("hi")
        await desk.see("\r\x1b[K\x1b[32m< hi\x1b[0m\r\n> helo\r> hel")
        desk.type("l\n")
        await desk.see("< hello")
        desk.type("\x04")


async def test_the_size_of_the_terminal_changes() -> None:
    """The line is drawn anew; before there is a line, nothing is."""
    async with a_site() as site:
        talk = unstarted()
        await talk._draw()
        with pytest.raises(trio.WouldBlock):
            talk._to_write.receive_nowait()
        async with at_a_desk(site) as desk:
            await desk.see("pong")
            desk.type("half a line")
            await desk.see("half a line")
            os.kill(os.getpid(), signal.SIGWINCH)
            await desk.see("\r\x1b[K> half a line")
            desk.type("\n\x04")


async def test_ctrl_z(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal is as it was while the process is stopped, and the line is there again when it goes on."""
    stopped: list[bool] = []
    kill = os.kill

    def stop(process: int, number: int) -> None:
        if number == signal.SIGSTOP:
            stopped.append(desk.edits)
        else:
            kill(process, number)

    monkeypatch.setattr(os, "kill", stop)
    async with a_site() as site, at_a_desk(site) as desk:
        await desk.see("pong")
        desk.type("half a line")
        await desk.see("half a line")
        os.kill(os.getpid(), signal.SIGTSTP)
        await desk.see("\r\x1b[K> half a line")
        assert stopped == [False]
        assert desk.edits
        desk.type("\n\x04")


async def test_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal is left to the others until the process comes to the foreground."""
    monkeypatch.setattr(os, "tcgetpgrp", lambda descriptor: os.getpgrp() + 1)
    async with a_site() as site, at_a_desk(site) as desk:
        await desk.see("pong")
        assert not desk.edits
        monkeypatch.setattr(os, "tcgetpgrp", lambda descriptor: os.getpgrp())
        os.kill(os.getpid(), signal.SIGCONT)
        await until(lambda: desk.edits)
        desk.type("\x04")


async def test_a_signal_before_there_is_a_connection() -> None:
    """What is about the terminal does not change it before anything can be typed."""
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, deaf, 0, host="127.0.0.1"))
        site = Site()
        site.url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"
        with trio.fail_after(PATIENCE):
            async with at_a_desk(site) as desk:
                await trio.testing.wait_all_tasks_blocked(0.05)
                os.kill(os.getpid(), signal.SIGCONT)
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert not desk.edits
                os.kill(os.getpid(), signal.SIGINT)
        assert desk.statuses == [130]
        nursery.cancel_scope.cancel()


async def test_the_terminal_goes_away() -> None:
    """The connection is closed with 1000, as at the end of any input."""
    async with a_site() as site:
        master, slave = pty.openpty()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(converse, parse(f"{site.url}/echo"), Standard(slave, slave, slave), {})
            await until(lambda: bool(site.conns))
            await until(lambda: not termios.tcgetattr(slave)[3] & termios.ICANON)
            os.close(master)
        os.close(slave)
        assert [info.code for info in site.infos] == [1000]


async def test_a_shell_without_job_control(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Ctrl-Z is ignored it stays so."""
    master, slave = pty.openpty()
    keyboard = connecting._Talk(parse("ws://h/"), Standard(slave, slave, None), PlainShow(escaped=True))._keyboard
    assert keyboard is not None
    assert signal.SIGTSTP in keyboard.signals
    before = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    assert signal.SIGTSTP not in keyboard.signals
    signal.signal(signal.SIGTSTP, before)
    os.close(master)
    os.close(slave)


# A process of its own


def environment(**more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    return {**clean, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "TERM": "xterm", **more}


COMMAND = [sys.executable, "-m", "trio_crowws", "connect"]


class Terminal:
    """A process on a pseudo terminal."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self._master = master
        self.process = process
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, pattern: str) -> str:
        """Read until `pattern` is there; what came up to its end."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self._master], [], [], deadline - time.monotonic())
            assert ready, f"{pattern!r} did not come, only {self.seen!r}"
            try:
                data = os.read(self._master, 1 << 16)
            except OSError:  # the process has ended
                data = b""
            assert data, f"{pattern!r} did not come, only {self.seen!r}"
            self.seen += data.decode()
        before = self.seen[: found.end()]
        self.seen = self.seen[found.end() :]
        return before


def start_on(slave: int, *arguments: str, **more: str) -> subprocess.Popen[bytes]:
    """The process, with a terminal for all three streams."""
    return subprocess.Popen(
        [*COMMAND, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment(**more), start_new_session=True
    )


@contextmanager
def on_a_terminal(*arguments: str, **more: str) -> Generator[Terminal]:
    master, slave = pty.openpty()
    process = start_on(slave, *arguments, **more)
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        process.kill()
        process.wait()
        os.close(master)


async def in_thread(function: Any, *arguments: Any) -> Any:
    return await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True)


async def test_a_terminal() -> None:
    """On a terminal there is a prompt; messages, pings and the end are shown above it, in colours."""
    async with a_site() as site:
        with on_a_terminal(f"{site.url}/echo") as terminal:
            await in_thread(terminal.wait_for, r"connected to ws://\S+ in \d+\.\d ms")
            await in_thread(terminal.wait_for, r"\r\x1b\[K> ")
            terminal.type("hello\n")
            await in_thread(terminal.wait_for, r"\r\x1b\[K> hello\r\n\r?\x1b?\[?K?> ")
            await in_thread(terminal.wait_for, r"\r\x1b\[K\x1b\[32m< hello\x1b\[0m\r\n> ")
            await site.conns[0].ping()
            await in_thread(terminal.wait_for, r"ping( [0-9a-f]{2})+")
            terminal.type("\x04")
            await in_thread(terminal.wait_for, r"\r\x1b\[K\x1b\[33mclosed with 1000 by the client")
            assert await in_thread(terminal.process.wait, PATIENCE) == 0


async def test_a_peer_cannot_command_the_terminal() -> None:
    """Control characters of the peer are shown, not obeyed."""
    async with a_site() as site:
        with on_a_terminal(f"{site.url}/talk") as terminal:
            before = await in_thread(terminal.wait_for, "closed with 1000")
            assert "evil \\x1b[31m\\nsecond" in before
            await in_thread(terminal.wait_for, r"that was \\x1b all")


@pytest.mark.parametrize("more", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
async def test_no_colours(more: dict[str, str]) -> None:
    """Where colours are not wanted there are none, and no prompt; control characters are escaped all the same."""
    async with a_site() as site:
        with on_a_terminal(f"{site.url}/talk", **more) as terminal:
            before = await in_thread(terminal.wait_for, "closed with 1000")
    assert "evil \\x1b[31m\\nsecond" in before
    assert "\x1b" not in before
    assert "> " not in before


async def test_half_a_line_is_forgotten() -> None:
    """What was typed when the connection ended is not left for the shell."""
    async with a_site() as site:
        master, slave = pty.openpty()
        process = start_on(slave, f"{site.url}/echo")
        terminal = Terminal(master, process)
        await in_thread(terminal.wait_for, "> ")
        terminal.type("half a l")
        await in_thread(terminal.wait_for, "half a l")
        site.conns[0].close_nowait(1000)
        assert await in_thread(process.wait, PATIENCE) == 0
        terminal.type("ine\n")
        assert await in_thread(os.read, slave, 100) == b"ine\n"
        os.close(master)
        os.close(slave)


async def test_a_process_is_stopped_and_goes_on() -> None:
    """By Ctrl-Z, while a line is typed."""
    async with a_site() as site:
        master, slave = pty.openpty()
        before = termios.tcgetattr(slave)
        process = start_on(slave, f"{site.url}/echo")
        terminal = Terminal(master, process)
        await in_thread(terminal.wait_for, "> ")
        terminal.type("helo")
        await in_thread(terminal.wait_for, "> helo")
        process.send_signal(signal.SIGTSTP)
        stopped = await in_thread(os.waitid, os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        assert stopped.si_status == signal.SIGSTOP
        assert termios.tcgetattr(slave) == before
        process.send_signal(signal.SIGCONT)
        await in_thread(terminal.wait_for, "> helo")
        terminal.type("\x1b[Dl\n")
        await in_thread(terminal.wait_for, "< hello")
        terminal.type("\x04")
        assert await in_thread(process.wait, PATIENCE) == 0
        assert termios.tcgetattr(slave) == before
        os.close(master)
        os.close(slave)


async def test_ctrl_c() -> None:
    """Ctrl-C closes the connection with 1001, and the status is 130."""
    async with a_site() as site:
        with on_a_terminal(f"{site.url}/echo") as terminal:
            await in_thread(terminal.wait_for, "> ")
            terminal.process.send_signal(signal.SIGINT)
            await in_thread(terminal.wait_for, "closed with")
            assert await in_thread(terminal.process.wait, PATIENCE) == 130
        await until(lambda: bool(site.infos))
        assert site.infos[0].code == 1001


async def test_the_descriptor_stays_blocking_and_the_terminal_as_it_was() -> None:
    """After its end the terminal is as it was before."""
    async with a_site() as site:
        master, slave = pty.openpty()
        before = termios.tcgetattr(slave)
        process = start_on(slave, f"{site.url}/talk")
        assert await in_thread(process.wait, PATIENCE) == 0
        assert os.get_blocking(slave)
        assert termios.tcgetattr(slave) == before
        os.close(master)
        os.close(slave)


async def test_the_process_with_pipes() -> None:
    """The whole of it as a process: lines in, lines out, the status, and no thread that keeps it."""
    async with a_site() as site:
        result = await trio.run_process(
            [*COMMAND, f"{site.url}/echo", "--wait", "0.2"],
            stdin=b"one\ntwo\n",
            capture_stdout=True,
            capture_stderr=True,
            env=environment(),
        )
    assert (result.returncode, result.stdout) == (0, b"one\ntwo\n")
    assert b"Traceback" not in result.stderr


async def test_the_process_ends_while_its_input_is_open() -> None:
    """A server that closes ends the process, even if nobody ends its input."""
    async with a_site() as site:
        process = await trio.lowlevel.open_process(
            [*COMMAND, f"{site.url}/talk"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )
        with trio.fail_after(PATIENCE):
            assert await process.wait() == 0


def test_the_streams_of_this_process(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Streams that somebody has replaced or closed are left alone."""
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["connect", "ws://127.0.0.1:1/"]) == 1
