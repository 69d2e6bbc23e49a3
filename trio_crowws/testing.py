"""Test applications without a network, and with virtual time.

`connect(app, path)` serves the application over an in-memory stream and hands out the other end as a `Peer`. A peer can
do what a client does, and also what no client should: send any bytes, stop reading, break the stream. Nothing here
sleeps, so a test that uses Trio's `MockClock` runs through a day of heartbeats in a moment.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, final

import trio
import trio.testing

from ._app import App
from ._closeinfo import CloseInfo
from ._deflate import Deflate
from ._options import check_option
from ._protocol.handshake import check_headers
from ._protocol.url import parse_resource
from ._server import Server
from ._session.connection import Connection
from ._testing.faults import FaultyStream
from ._testing.peer import Peer, PeerClosed
from ._testing.peer import make_frame as make_frame
from ._testing.shaking import Refused, shake_hands
from ._types import HeadersLike

__all__ = ["FaultyStream", "Peer", "PeerClosed", "Refused", "connect", "shake_hands"]

_CLOSING = 1.0
"""Seconds for a stream in memory to be closed by force."""

Streams = Callable[[], tuple[trio.abc.HalfCloseableStream, trio.abc.HalfCloseableStream]]


def connect(
    app: App,
    path: str = "/",
    *,
    headers: HeadersLike = (),
    subprotocols: Sequence[str] = (),
    compression: Deflate | None = None,
    streams: Streams = trio.testing.memory_stream_pair,
    auto_pong: bool = True,
    auto_close: bool = True,
    **options: Any,
) -> AbstractAsyncContextManager[Peer]:
    """Connect to an application in memory.

    Used as `async with connect(app, "/chat/lobby") as peer`. The peer reads all the time, so it stays alive while the
    test does something else; see `Peer.pause_reading`.

    Leaving the block closes the stream and waits until the connection has ended, `on_close` included.

    Args:
      app: the application.
      path: path and query; what is beyond ASCII is encoded as `trio_crowws.connect` does it.
      headers: more headers, as `Cookie` or `Origin`.
      subprotocols: those that the client offers.
      compression: what the client offers to compress with; if the application agrees, all that it sends is compressed.
      streams: makes the two ends; `trio.testing.lockstep_stream_pair` makes a sender wait for its reader.
      auto_pong: answer pings; without, the peer is dead to the heartbeat.
      auto_close: answer the server's Close; without, the server waits for `close_timeout`.
      options: those of a route, as for `App.websocket`, in place of what the route has, for this connection:
        `ping_interval=None`.

    Raises:
      TypeError: at the call; `app` is not an application, `compression` is not a `Deflate`, or an option is unknown or
        of the wrong type.
      ValueError: at the call; an option has a value that is not allowed, or a header one that cannot be sent.
      InvalidURL: at the call; the path holds a space, a control character or a fragment.
      Refused: the application refused the request.
    """
    if isinstance(app, str):
        raise TypeError("testing.connect takes an App and a path, not a URL; use trio_crowws.connect(url) for that")
    if not isinstance(app, App):
        raise TypeError(f"testing.connect takes an App and a path, not {type(app).__name__}")
    check_option("compression", compression)
    parse_resource(path)
    check_headers(headers, owned=False)
    app.options._for_route(path, options)

    async def shake(near: trio.abc.HalfCloseableStream, faults: FaultyStream) -> Peer:
        peer = await shake_hands(
            near, path, headers=headers, subprotocols=subprotocols, compression=compression, faults=faults
        )
        peer.auto_pong, peer.auto_close = auto_pong, auto_close
        return peer

    return _Served(app, options, streams, shake)


@final
class _Served(AbstractAsyncContextManager[Peer]):
    """What `connect` returns. Not a generator: that one cannot be left whole where Ctrl-C comes in its middle."""

    def __init__(
        self,
        app: App,
        options: dict[str, Any],
        streams: Streams,
        shake: Callable[[trio.abc.HalfCloseableStream, FaultyStream], Awaitable[Peer]],
    ) -> None:
        self._app = app
        self._options = options
        self._streams = streams
        self._shake = shake
        self._opened = _Opened()
        self._server = trio.open_nursery()
        self._reading = trio.CancelScope()

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Peer:
        self._near, far = self._streams()
        self._faults = FaultyStream(far)
        nursery = await self._server.__aenter__()
        try:
            nursery.start_soon(self._serve)
            peer = await self._shake(self._near, self._faults)
            peer._find_info = self._opened.find_info
            # What that pair holds has no bound, so there is no back-pressure that a bound would keep.
            bounded = self._streams is not trio.testing.memory_stream_pair
            peer._read_in(nursery, self._reading, bounded=bounded)
            return peer
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise  # pragma: no cover -- the line above raises it, which type checkers cannot know

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._reading.cancel()
        self._faults.flow()
        # Shielded, because what the block has raised must not be replaced by a cancellation; closing memory is quick.
        with trio.CancelScope(deadline=trio.current_time() + _CLOSING, shield=True):
            await trio.aclose_forcefully(self._near)
        try:
            return bool(await self._server.__aexit__(kind, error, traceback))
        except BaseExceptionGroup as group:
            if len(group.exceptions) == 1:  # that there is a nursery is no business of the test
                raise group.exceptions[0] from group.exceptions[0].__cause__
            raise

    @trio.lowlevel.enable_ki_protection
    async def _serve(self) -> None:
        self._app._check_routes()
        server = Server(self._app)
        server._admission.overrides = self._options
        server._admission.connections = self._opened
        await server._serve_stream(self._faults, ("testserver", 0), ("testclient", 0))


class _Opened(set[Connection]):
    """The connections of a server, which has one at most, and that one still when it has ended."""

    _conn: Connection | None = None

    def add(self, conn: Connection, /) -> None:
        self._conn = conn
        super().add(conn)

    def find_info(self) -> CloseInfo | None:
        """How the connection has ended, or what is known of its end so far."""
        conn = self._conn
        return None if conn is None or conn.is_open else conn.close_info or conn._closed_error().info
