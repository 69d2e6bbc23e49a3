"""The echo example as a process: every style and every option."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from wsproto.events import Ping

from support.certificates import TLS
from support.processes import port_of, started, wait
from support.rawclient import until
from trio_crowws import Deflate
from trio_crowws.testing import Peer, Refused, shake_hands

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "examples" / "echo" / "server.py"
STYLES = ["session", "async", "sync", "class"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "error"}


@contextmanager
def example(folder: Path, *arguments: str) -> Generator[tuple[subprocess.Popen[bytes], Path]]:
    """The example with these arguments, and the file with its output."""
    log = folder / "log"
    with started([sys.executable, str(PROGRAM), *arguments], log, environment=environment(), folder=folder) as process:
        yield process, log


@contextmanager
def on_a_port(folder: Path, *arguments: str) -> Generator[int]:
    """The example on a free port; it must end by itself, and without a word, when it is asked to."""
    with example(folder, "--port", "0", *arguments) as (process, log):
        port = port_of(process, log, 10)
        yield port
        process.send_signal(signal.SIGTERM)
        assert wait(process, 8) == 0
        assert len(log.read_text().splitlines()) == 1


async def connect(port: int, path: str = "/") -> Peer:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    try:
        return await shake_hands(stream, path)
    except Refused:
        await stream.aclose()
        raise


async def assert_echoes(peer: Peer) -> None:
    with trio.fail_after(10):
        for message in ("text", b"bytes", "", b"\0" * 70_000, "\U0001f980" * 20_000):
            await peer.send(message)
            assert await peer.receive() == message
        await peer.send_frame(1, b"in ", fin=False)
        await peer.send_frame(0, b"two", fin=True)
        assert await peer.receive() == "in two"


async def end(peer: Peer) -> None:
    close = await peer.close(1000)
    assert close is not None
    assert close.code == 1000
    await peer.stream.aclose()


@pytest.mark.parametrize("style", STYLES)
async def test_every_style_echoes(tmp_path: Path, style: str) -> None:
    """In every style text, bytes and fragmented messages come back, on / and on /echo."""
    with on_a_port(tmp_path, "--style", style) as port:
        for path in ("/", "/echo"):
            peer = await connect(port, path)
            await assert_echoes(peer)
            await end(peer)
        with pytest.raises(Refused) as caught:
            await connect(port, "/nothing")
        assert caught.value.status == 404


@pytest.mark.parametrize("style", STYLES)
async def test_many_at_once(tmp_path: Path, style: str) -> None:
    """In every style many messages in flight come back in their order."""
    with on_a_port(tmp_path, "--style", style) as port:
        peer = await connect(port)
        await peer.send_raw(b"".join([b"\x81\x84\0\0\0\0%04d" % number for number in range(2000)]))
        with trio.fail_after(10):
            assert [await peer.receive() for _ in range(2000)] == [f"{number:04}" for number in range(2000)]
        await end(peer)


async def close_code(peer: Peer) -> int | None:
    with trio.fail_after(10):
        close = await peer.receive_close()
    await peer.stream.aclose()
    return None if close is None else close.code


async def test_limits(tmp_path: Path) -> None:
    """--max-payload and --max-fragments are the limits of a message."""
    with on_a_port(tmp_path, "--max-payload", "1000", "--max-fragments", "3") as port:
        peer = await connect(port)
        await peer.send("x" * 1000)
        assert await peer.receive() == "x" * 1000
        await peer.send("x" * 1001)
        assert await close_code(peer) == 1009
        peer = await connect(port)
        for opcode in (1, 0, 0, 0):
            await peer.send_frame(opcode, b"x", fin=False)
        assert await close_code(peer) == 1008


async def test_no_limits(tmp_path: Path) -> None:
    """0 turns the limits off."""
    with on_a_port(tmp_path, "--max-payload", "0", "--max-fragments", "0") as port:
        peer = await connect(port)
        data = os.urandom(3 << 20)
        with trio.fail_after(20):
            await peer.send(data)
            assert await peer.receive() == data
            for opcode in (1, *([0] * 1500)):
                await peer.send_frame(opcode, b"x", fin=False)
            await peer.send_frame(0, b"", fin=True)
            assert await peer.receive() == "x" * 1501
        await end(peer)


@pytest.mark.parametrize("more", [[], ["--context-takeover"]])
async def test_compression(tmp_path: Path, more: list[str]) -> None:
    """With --compression messages are compressed, however short; --context-takeover keeps a context for them."""
    with on_a_port(tmp_path, "--compression", *more) as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        peer = await shake_hands(stream, compression=Deflate())
        assert peer.compression is not None
        await assert_echoes(peer)
        sizes = []
        for _ in range(2):
            await peer.send_frame(2, bytes(range(100)))
            sizes.append(len(await stream.receive_some()))
        assert (sizes[1] < sizes[0] / 2) is bool(more)  # it refers to the first one
        await end(peer)
        peer = await connect(port)
        assert peer.compression is None
        await assert_echoes(peer)
        await end(peer)


async def test_the_heartbeat(tmp_path: Path) -> None:
    """--ping-interval and --ping-timeout are those of the heartbeat; 0 turns it off."""
    with on_a_port(tmp_path, "--ping-interval", "0.1", "--ping-timeout", "0.1") as port:
        peer = await connect(port)
        peer.auto_pong = False
        with trio.fail_after(5):
            assert isinstance(await peer.receive_event(), Ping)
            while await peer.receive_event() is not None:
                pass
        await peer.stream.aclose()
    with on_a_port(tmp_path, "--ping-interval", "0") as port:
        peer = await connect(port)
        with trio.move_on_after(0.3) as waiting:
            await peer.receive_event()
        assert waiting.cancelled_caught
        await peer.stream.aclose()


async def test_a_unix_socket(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """With --unix it listens on a Unix socket and says so."""
    path = tmp_path_factory.mktemp("u") / "s"
    with example(tmp_path, "--unix", str(path)) as (process, log):
        await until(lambda: f"listening on ws+unix://{path}\n" in log.read_text())
        peer = await shake_hands(await trio.open_unix_socket(str(path)))
        await assert_echoes(peer)
        await end(peer)
        process.send_signal(signal.SIGINT)
        assert wait(process, 8) == 0
    assert not path.exists()


@pytest.mark.parametrize("style", STYLES)
async def test_tls(tmp_path: Path, tls: TLS, style: str) -> None:
    """With --certfile and --keyfile it serves TLS."""
    with on_a_port(tmp_path, "--certfile", tls.certfile, "--keyfile", tls.keyfile, "--style", style) as port:
        stream = await trio.open_ssl_over_tcp_stream("localhost", port, ssl_context=tls.client)
        peer = await shake_hands(stream)
        await assert_echoes(peer)
        await trio.aclose_forcefully(stream)


async def test_every_page_may_connect(tmp_path: Path) -> None:
    """Pages of other origins may connect to the example: it is made for test suites."""
    with on_a_port(tmp_path) as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        peer = await shake_hands(stream, headers={"Origin": "https://elsewhere.example"})
        await end(peer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--style", "none"], "invalid choice: 'none'"),
        (["--port", "x"], "invalid int value"),
        (["--max-payload", "-1"], "max_payload"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: list[str], message: str) -> None:
    """Wrong arguments are said to be wrong."""
    command = [sys.executable, str(PROGRAM), *arguments]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=20, check=False)
    assert result.returncode != 0
    assert message in result.stderr
