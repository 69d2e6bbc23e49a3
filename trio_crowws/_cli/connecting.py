"""`trio-crowws connect`: lines of the input become messages, and what comes back is shown.

Four tasks share one connection: one sends what the input has, one takes messages, one writes what is to be seen, and
one waits for signals. All that is to be seen goes through one channel, so that it is written in the order in which it
happened and a reader who is slow slows the connection down, rather than filling the memory.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TextIO

import trio

from .._client.connect import connect
from .._client.connecting import Connecting
from .._client.tls import AT_A_COMMAND_LINE, describe
from .._foreign import cause_of, unwrap
from .._protocol.url import parse_url
from .._session.connection import Connection
from ..errors import ConnectFailed, ConnectionClosed, CrowWSError, InvalidURL, Rejected
from .editing import Editor, Row
from .exits import FAILED, OK, REFUSED, UNCLEAN, UNREAD, USAGE
from .keyboard import CAN_EDIT, Keyboard
from .showing import JsonShow, Piece, PlainShow, Refusal, Show, TerminalShow
from .standard import InputError, Lines, Output

__all__ = ["DESCRIPTION", "Standard", "add_arguments", "converse", "run"]

DESCRIPTION = """\
Connect to a WebSocket server. Each line of the input becomes a text message; messages are written to the output, each
on a line of its own, and everything else to the standard error. On a terminal all of it is shown together.

The end of the input closes the connection with 1000: at once where the input is a terminal, otherwise when no message
has come for --wait seconds.
"""

PROMPT = "> "
NORMAL_CODES = frozenset((1000, 1001, 1005))
PIECES = 64
DRAIN_PATIENCE = 1.0
"""Seconds that a slow reader of the output has after a signal."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `connect`."""
    parser.add_argument("url", metavar="URL", help="ws://, wss:// or ws+unix://")
    parser.add_argument("--json", action="store_true", help="write one JSON object per event")
    parser.add_argument("--binary", action="store_true", help="send binary messages")
    parser.add_argument(
        "--subprotocol", action="append", default=[], metavar="NAME", help="offer it; may be repeated, best first"
    )
    parser.add_argument(
        "--header", action="append", default=[], type=_header, metavar="NAME:VALUE", help="send it; may be repeated"
    )
    parser.add_argument("--origin", help="send this Origin header, as a web page would")
    parser.add_argument("--proxy", metavar="URL", help="go through this HTTP proxy")
    tls = parser.add_mutually_exclusive_group()
    tls.add_argument(
        "--cafile", metavar="FILE", help="trust the certificates in this file (PEM) instead of the system's"
    )
    tls.add_argument("--insecure", action="store_true", help="accept any certificate")
    parser.add_argument(
        "--wait",
        type=_seconds,
        default=1.0,
        metavar="SECONDS",
        help="how long to wait for another message after the end of the input; inf waits for the server to close "
        "(default: %(default)g)",
    )
    parser.add_argument(
        "--max-payload",
        type=_size,
        default=64 << 20,
        metavar="BYTES",
        help="the largest message that is taken (default: %(default)d)",
    )


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME:VALUE")
    return name.strip(), value.strip()


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _size(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes; it must be 1 or more")
    return int(text)


@dataclass(frozen=True, slots=True)
class Standard:
    """The descriptors of the standard streams; `None` where a stream is closed."""

    input: int | None
    output: int | None
    error: int | None

    @classmethod
    def of_process(cls) -> Standard:
        """Those of this process."""
        return cls(*(_descriptor_of(stream) for stream in (sys.stdin, sys.stdout, sys.stderr)))

    def show(self, *, as_json: bool, environment: Mapping[str, str]) -> Show:
        """How to show things there."""
        if as_json:
            return JsonShow(time.time)
        is_terminal = _is_terminal(self.output)
        if is_terminal and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb":
            return TerminalShow()
        return PlainShow(escaped=is_terminal)

    @property
    def is_interactive(self) -> bool:
        """Whether lines are typed."""
        return _is_terminal(self.input)

    @property
    def terminals(self) -> frozenset[bool]:
        """Which of the outputs are a terminal: `False` for the output, `True` for the error."""
        outputs = {False: self.output, True: self.error}
        return frozenset(to_error for to_error, descriptor in outputs.items() if _is_terminal(descriptor))


def _descriptor_of(stream: TextIO | None) -> int | None:
    try:
        return None if stream is None else stream.fileno()
    except OSError:  # not a real one; somebody has put an object in its place
        return None


def _is_terminal(descriptor: int | None) -> bool:
    return descriptor is not None and os.isatty(descriptor)


def run(_: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Connect and talk; the exit status."""
    return trio.run(partial(converse, options, Standard.of_process(), os.environ))


async def converse(options: argparse.Namespace, standard: Standard, environment: Mapping[str, str]) -> int:
    """Talk over the given streams; the exit status.

    Args:
      options: what the parser has made of the arguments.
      standard: where the lines come from, and where the messages go.
      environment: asked for `NO_COLOR` and `TERM`.
    """
    talk = _Talk(options, standard, standard.show(as_json=options.json, environment=environment))
    return await talk.run()


class _Talk:
    """One conversation."""

    def __init__(self, options: argparse.Namespace, standard: Standard, show: Show) -> None:
        self._options = options
        self._row: Row | None = None
        self._keyboard: Keyboard | None = None
        self._lines: Lines | Keyboard = Lines(standard.input, text=not options.binary)
        if CAN_EDIT and standard.input is not None and standard.is_interactive and standard.terminals:
            editor = Editor()
            self._row = _row(editor, standard.terminals, show)
            self._lines = self._keyboard = Keyboard(standard.input, editor, self._draw)
        self._outputs = (Output(standard.output), Output(standard.error))
        self._is_interactive = standard.is_interactive
        self._show = show
        self._pieces, self._to_write = trio.open_memory_channel[Piece](PIECES)
        self._talking = trio.CancelScope()
        self._conn: Connection | None = None
        self._latest = 0.0
        """When the last message came, or the input ended."""
        self._signal = 0
        self._status = OK

    async def run(self) -> int:
        """Talk until it is over; the exit status."""
        about_terminal = () if self._keyboard is None else self._keyboard.signals
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, *about_terminal) as signals:
            try:
                await self._run(signals)
            finally:
                if self._keyboard is not None:
                    self._keyboard.close()
        return 128 + self._signal if self._signal else self._status

    async def _run(self, signals: AsyncIterator[int]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._obey, signals, nursery.cancel_scope)
            async with trio.open_nursery() as writing:
                writing.start_soon(self._write)
                with self._talking:
                    await self._talk()
                if self._signal:
                    writing.cancel_scope.deadline = trio.current_time() + DRAIN_PATIENCE
                await self._show_end()
            nursery.cancel_scope.cancel()

    async def _talk(self) -> None:
        """Connect, and exchange messages until the connection has ended."""
        options = self._options
        began = trio.current_time()
        try:
            connecting = connect(options.url, **_connect_options(options))
            assert isinstance(connecting, Connecting)
            connecting._callbacks.set("on_ping", self._on_ping)
            connecting._callbacks.set("on_pong", self._on_pong)
            async with connecting as conn:
                self._conn = conn
                await self._put(self._show.opened(options.url, conn.subprotocol, trio.current_time() - began))
                await self._exchange(conn)
        except InvalidURL as error:
            await self._fail(USAGE, self._show.error(str(error)))
        except Rejected as error:
            headers = [(name, value) for name in error.headers for value in error.headers.get_all(name)]
            refusal = Refusal(error.status, headers, error.body, error._detail)
            await self._fail(REFUSED, self._show.refused(options.url, refusal))
        except (InputError, OSError, CrowWSError) as error:
            await self._fail(FAILED, self._show.error(_reason(error, options.url)))
        except ValueError as error:  # a header or a subprotocol that cannot be sent
            await self._fail(USAGE, self._show.error(str(error)))

    async def _exchange(self, conn: Connection) -> None:
        self._latest = trio.current_time()
        if self._keyboard is not None and self._row is not None:
            self._keyboard.open()
            await self._send(self._row.open())
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_lines, conn)
                nursery.start_soon(self._measure, conn)
                try:
                    while True:
                        message = await conn.receive()
                        self._latest = trio.current_time()
                        await self._put(self._show.message(message))
                except ConnectionClosed:
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            error = unwrap(group)
            raise error from cause_of(error)

    async def _send_lines(self, conn: Connection) -> None:
        """Send what the input has, and close the connection some time after its end."""
        try:
            while (line := await self._lines.next()) is not None:
                await conn.send(line if self._options.binary else _decode(line))
        except ConnectionClosed:
            return
        if not self._is_interactive:
            await self._wait_for_silence(conn)
        conn.close_nowait(1000)

    async def _wait_for_silence(self, conn: Connection) -> None:
        """Wait until there was nothing to send and nothing has come for so long."""
        self._latest = trio.current_time()
        while (rest := self._latest + self._options.wait - trio.current_time()) > 0:
            await trio.sleep(rest)
            if conn.buffered:
                self._latest = trio.current_time()

    async def _measure(self, conn: Connection) -> None:
        """One ping, so that there is a latency to show; from then on the heartbeat sends them."""
        with suppress(ConnectionClosed):
            await conn.ping()

    async def _on_ping(self, _: Connection, payload: bytes) -> None:
        await self._put(self._show.ping(payload))

    async def _on_pong(self, conn: Connection, _: bytes) -> None:
        if conn.latency is not None:  # a pong that nobody asked for says nothing
            await self._put(self._show.pong(conn.latency))

    async def _show_end(self) -> None:
        """How the connection ended, if there was one; nothing is shown after that."""
        if self._is_interactive:
            self._lines.discard_typed()
        if self._row is not None and self._row.is_open:
            await self._send(self._row.close())
        info = None if self._conn is None else self._conn.close_info
        if self._conn is not None and info is not None:
            await self._put(self._show.closed(info, self._conn.latency))
            if self._status == OK and info.code not in NORMAL_CODES:
                self._status = UNCLEAN
        self._pieces.close()

    # What is written

    async def _draw(self, lines: Sequence[bytes] = ()) -> None:
        """Show what is being typed, below the `lines` that were completed."""
        if self._row is not None and self._row.is_open:
            for line in lines:
                await self._send(self._row.submitted(line))
            await self._send(self._row.draw())

    async def _fail(self, status: int, piece: Piece) -> None:
        self._status = status
        await self._put(piece)

    async def _put(self, piece: Piece) -> None:
        await self._send(piece if self._row is None else self._row.around(piece))

    async def _send(self, piece: Piece) -> None:
        with suppress(trio.BrokenResourceError):  # nobody reads the output, and all of this is about to end
            await self._pieces.send(piece)

    async def _write(self) -> None:
        """Write what is to be seen; when nobody looks any more, the talk is over."""
        with self._to_write:
            async for piece in self._to_write:
                try:
                    await self._outputs[piece.to_error].write(piece.data)
                except OSError as error:
                    self._talking.cancel()
                    self._status = UNREAD if isinstance(error, BrokenPipeError) else FAILED
                    if self._status == FAILED:
                        with suppress(OSError):  # it may be the one that cannot be written
                            await self._outputs[True].write(f"trio-crowws: cannot write: {error.strerror}\n".encode())
                    return

    async def _obey(self, signals: AsyncIterator[int], everything: trio.CancelScope) -> None:
        """The first signal closes the connection, the second one does not wait for that; others are the terminal's."""
        async for number in signals:
            if number not in (signal.SIGINT, signal.SIGTERM):
                assert self._keyboard is not None
                self._keyboard.obey(number)
                await self._draw()
                continue
            if self._signal:
                if self._conn is not None:
                    self._conn.abort()
                everything.cancel()
            self._signal = number
            self._talking.cancel()


def _row(editor: Editor, terminals: frozenset[bool], show: Show) -> Row:
    coloured = isinstance(show, TerminalShow)
    prompt = PROMPT if coloured else ""
    return Row(editor, prompt, coloured=coloured, places=terminals, columns=lambda: shutil.get_terminal_size().columns)


def _connect_options(options: argparse.Namespace) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "subprotocols": options.subprotocol,
        "headers": options.header,
        "origin": options.origin,
        "proxy": options.proxy,
        "max_payload": options.max_payload,
    }
    if options.insecure or options.cafile is not None:
        target = parse_url(options.url)
        if not target.secure:
            typed = "--insecure" if options.insecure else "--cafile"
            raise ValueError(f"{typed} is for wss://, not for {target.scheme}://")
        context = _trust(options.cafile)
        if options.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        arguments["ssl_context"] = context
    return arguments


def _reason(error: Exception, url: str) -> str:
    """What an error says, with the options of this command where a program would have arguments."""
    cause = error.__cause__
    if isinstance(error, ConnectFailed) and isinstance(cause, ssl.SSLError):
        return describe(cause, parse_url(url), AT_A_COMMAND_LINE)
    return str(error)


def _trust(cafile: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=cafile)
    except OSError as error:  # of ssl as well; neither kind says which file it is about
        raise OSError(f"cannot use the certificates in {cafile}: {error.strerror or error}") from error


def _decode(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise InputError("a line of the input is not UTF-8; --binary sends it as it is") from None
