"""The public face of one WebSocket connection."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, final

import trio

from .._closeinfo import CloseInfo, check_close_frame
from .._foreign import drop_tracebacks, place, quoted
from .._protocol.closing import Event, Phase
from .._response import ServerResponse
from .._types import BytesLike, Message, MessageLike
from ..errors import ConnectionClosedOK
from .ending import Parts, State
from .handlers import Callback, Callbacks, Handler, HandlerPlan
from .receiving import Receiving
from .tasks import Children, Spawner, log_failure

__all__ = ["Connection", "PublishResult", "RoomsLike"]


class PublishResult(Protocol):
    """How many subscribers a message went to, and how many it did not."""

    @property
    def sent(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    @property
    def closed(self) -> int: ...


class RoomsLike(Protocol):
    """What a connection needs of the application's rooms."""

    def join(self, conn: Connection, room: str) -> bool: ...
    def leave(self, conn: Connection, room: str) -> bool: ...
    def of(self, conn: Connection) -> frozenset[str]: ...
    def publish(
        self,
        room: str,
        data: MessageLike,
        exclude: Iterable[Connection],
        compress: bool | None,
    ) -> PublishResult: ...


# The callbacks of a connection that has ended. A session stays one: what it has not received may still be received.
_NOTHING, _NO_SESSION = Callbacks(), Callbacks()
_NO_SESSION.session = Callback(trio.sleep_forever, True)  # stands for one that is over, so it is never called


@final
class Connection(Receiving):
    """One WebSocket connection, from the 101 to `on_close` and, for its readable names, beyond.

    The contract: every method may be called from any task of its Trio loop. Sends are whole frames or nothing, in the
    order of the calls, and everything sent before `close` is on the wire before the Close frame. One task at a time may
    wait in `receive`, and none where callbacks take the messages. Once the connection is closing, `send` and `receive`
    raise `ConnectionClosed`, which says why; a session handler may let that pass, it is a normal end, and out of a
    client's block it goes on to your code.
    Cancelling any of the calls leaves the connection as it was. Connections are made by the application's server or by
    `connect`, never by hand.

    Attributes:
      id: unique in this process and never used again.
      request: the request that opened the connection.
      response: the server's answer to it, if this is the client's side; `None` on the server's.
      userdata: whatever `Accept(userdata=...)` carried; yours.
      subprotocol: the negotiated subprotocol, or `None`.
      compression: what was agreed on about compression, as the 101 says it, or `None` if messages are not compressed.
      messages_received: messages that came in so far.
      messages_sent: messages that were queued so far.
      bytes_received: bytes that came in since the 101, headers and control frames included.
      dropped: messages that `on_slow` has dropped so far.
    """

    __slots__ = ("_children", "_nursery", "_rooms", "response", "subprotocol", "userdata")

    def __init__(self, parts: Parts, callbacks: Callbacks, rooms: RoomsLike, nursery: Spawner) -> None:
        super().__init__(parts, callbacks)
        self._rooms = rooms
        self._nursery = nursery
        self._children: Children | None = None
        self.response: ServerResponse | None = None
        self.subprotocol: str | None = None
        self.userdata: Any = None

    def __repr__(self) -> str:
        way = "to" if self._client else "from"
        path, address = quoted(self.request.path), place(self.remote_address)
        return f"<Connection {self.id} {path} {way} {address} {self.state.value}>"

    # What is known about it

    @property
    def state(self) -> State:
        """`State.OPEN`, `State.CLOSING` from the first sign of an end, `State.CLOSED` when `close_info` is set."""
        if self._phase is Phase.OPEN:
            return State.OPEN
        return State.CLOSED if self._phase is Phase.CLOSED else State.CLOSING

    @property
    def is_open(self) -> bool:
        """Whether neither side has begun to end the connection.

        No guard for `send`: the peer may close at any moment, so catch `ConnectionClosed` instead.
        """
        return self._phase is Phase.OPEN

    @property
    def close_info(self) -> CloseInfo | None:
        """How the connection ended; `None` until it has."""
        return self._close_info

    @property
    def latency(self) -> float | None:
        """Seconds that the last answered ping took, heartbeat included; `None` before the first."""
        return self._latency

    @property
    def bytes_sent(self) -> int:
        """Bytes that the operating system has taken, the opening handshake included."""
        return self._transport.bytes_sent

    @property
    def cancel_scope(self) -> trio.CancelScope:
        """The scope around the handler. Cancelling it ends the connection with 1001, from any task.

        Raises:
          RuntimeError: this is the client's side, whose block runs in a task, and so in the scopes, of your own.
        """
        if self._client:
            raise RuntimeError("a client's block has no scope of the connection's; open one of your own around it")
        return self._scope

    # Sending

    async def send_text(self, text: str, *, compress: bool | None = None) -> None:
        """Send a text message; see `send`.

        Raises:
          TypeError: `text` is not a str.
        """
        if not isinstance(text, str):
            raise TypeError(f"a text message must be str, not {type(text).__name__}")
        await self.send(text, compress=compress)

    async def send_binary(self, data: BytesLike, *, compress: bool | None = None) -> None:
        """Send a binary message; see `send`.

        Raises:
          TypeError: `data` is not bytes-like.
        """
        if isinstance(data, str):
            raise TypeError("a binary message must be bytes, bytearray or memoryview, not str")
        await self.send(data, compress=compress)

    async def send_json(self, value: Any, *, compress: bool | None = None) -> None:
        """Send `value` as a JSON text message; see `send`.

        Raises:
          TypeError: `value` cannot be represented; nothing was sent.
          ValueError: it holds NaN or an infinity, which JSON does not have; nothing was sent.
        """
        await self.send(json.dumps(value, allow_nan=False), compress=compress)

    # Receiving

    def __aiter__(self) -> Connection:
        return self

    @trio.lowlevel.enable_ki_protection
    async def __anext__(self) -> Message:
        """The next message; the loop ends with the closing handshake and raises if there was none.

        Raises:
          ConnectionClosedError: the connection ended without a complete closing handshake.
        """
        try:
            return await self.receive()
        except ConnectionClosedOK:
            raise StopAsyncIteration from None

    @trio.lowlevel.enable_ki_protection
    async def ping(self) -> float:
        """Send a ping and wait for its pong (RFC 6455 section 5.5.2).

        Returns:
          The round trip in seconds; also kept as `latency`.

        Raises:
          ConnectionClosed: the connection is closing, or ended before the pong came.

        Cancellation: stops the waiting only. The heartbeat ends a dead connection and so bounds the wait, unless it is
        off.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._phase is not Phase.OPEN:
            raise self._closed_error()
        ping = self._send_ping(self._timers.tick())
        ping.answered = trio.Event()
        self._transport.push()
        try:
            await ping.answered.wait()
        finally:
            ping.answered = None  # nobody waits any more, so it may be forgotten
        if ping.latency is None:
            raise self._closed_error()
        return ping.latency

    # Closing

    @trio.lowlevel.enable_ki_protection
    async def close(self, code: int | None = 1000, reason: str = "") -> CloseInfo:
        """Close the connection and wait until it is closed (RFC 6455 section 7.1.2).

        What was sent before goes out first; what comes in afterwards is dropped. A connection that is closing already
        is only waited for.

        Args:
          code: 1000 to 1003, 1007 to 1014, or 3000 to 4999; `None` for a Close frame without a code, which the peer
            sees as 1005.
          reason: cut to 123 bytes of UTF-8; empty where there is no code.

        Raises:
          ValueError, TypeError: the code must not be sent, there is a reason without one, or the types are wrong;
            nothing has happened.

        Cancellation: stops the waiting only. The closing handshake goes on and ends by `close_timeout`.
        """
        self.close_nowait(code, reason)
        return await self._wait_closed()

    @trio.lowlevel.enable_ki_protection
    def close_nowait(self, code: int | None = 1000, reason: str = "") -> None:
        """Begin to close without waiting; see `close`."""
        frame = check_close_frame(code, reason)
        self._begin_local_close(frame.code, frame.reason)

    @trio.lowlevel.enable_ki_protection
    def abort(self) -> None:
        """Drop the connection at once, without a Close frame; both sides see 1006. What is queued is lost."""
        self._initiate("local")
        self._apply(Event.LOST)

    @trio.lowlevel.enable_ki_protection
    async def wait_closed(self) -> CloseInfo:
        """Wait until the connection is closed. `on_close` may still be running then.

        Cancellation: stops the waiting only.
        """
        return await self._wait_closed()

    # Rooms

    @trio.lowlevel.enable_ki_protection
    def join(self, room: str) -> bool:
        """Become a member of `room`; `False` if it is one already. Membership ends by itself before `on_close`.

        Raises:
          TypeError: the name is not a str.
          ConnectionClosed: the connection has ended.
          RuntimeError: this is the client's side, which has no rooms.
        """
        if self._phase is Phase.CLOSED:
            raise self._closed_error()
        return self._rooms.join(self, room)

    @trio.lowlevel.enable_ki_protection
    def leave(self, room: str) -> bool:
        """Stop being a member of `room`; `False` if it was none.

        Raises:
          RuntimeError: this is the client's side, which has no rooms.
        """
        return self._rooms.leave(self, room)

    @property
    def rooms(self) -> frozenset[str]:
        """The rooms that it is a member of; empty on the client's side."""
        return self._rooms.of(self)

    def publish(self, room: str, data: MessageLike, *, compress: bool | None = None) -> PublishResult:
        """Send `data` to every member of `room` but this connection; never waits. See `App.publish`.

        Raises:
          RuntimeError: this is the client's side, which has no rooms.
        """
        return self._rooms.publish(room, data, (self,), compress)

    # Tasks and handlers

    @trio.lowlevel.enable_ki_protection
    def start_soon(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        """Start a task that belongs to this connection: it is cancelled, and has ended, before `on_close`.

        An exception in it ends the connection like one in a handler. On a client's side the block goes on, and the
        exception is raised when it is left. A task that calls `receive` beside callbacks is refused; if it does not
        catch that, it ends with a line in the log, and the connection goes on.

        Raises:
          ConnectionClosed: the connection has ended.
        """
        if self._phase is Phase.CLOSED:
            raise self._closed_error()
        self._start_child(function, *args)

    def _start_child(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        if self._children is None:
            self._children = Children()
        self._children.start(self, self._nursery, self._child_failed, function, args)

    def _child_failed(self, error: Exception) -> None:
        """A task of `start_soon` has raised: the handler is cancelled, and the connection ends with 1011."""
        self._fail(error)
        self._scope.cancel()
        if not self._client:  # there it leaves the block in the end
            log_failure(self, "a task", error)

    @property
    def _task_failure(self) -> Exception | None:
        """The first exception that left a task of `start_soon`."""
        return None if self._children is None else self._children.failure

    def _let_go(self, raised: Exception | None = None) -> None:
        """Let go of what refers to this connection, which has ended, so that it is freed without the collector.

        What the callbacks of a `Handler` belong to may keep it, and so do the frames in the traceback of an exception.
        That of `raised` is left alone.
        """
        self._callbacks = _NOTHING if self._callbacks.session is None else _NO_SESSION
        self._children = None
        error = None if self._close_info is None else self._close_info.error
        if error is not None and error is not raised:
            drop_tracebacks(error)

    async def _end_children(self) -> None:
        """Cancel the tasks of `start_soon` and wait until they have ended."""
        if self._children is not None:
            await self._children.end(self, self._options.callback_timeout)

    def set_handler(self, handler: Handler | type[Handler]) -> None:
        """Hand the connection to another handler, from its next event on. `on_accept` and `on_open` are not called.

        Args:
          handler: a `Handler` object, or a `Handler` class that is called without arguments.

        Raises:
          TypeError: it is neither, or one of its callbacks is unknown or has the wrong parameters.
          RuntimeError: the connection is run by a session handler or a client's block, which can simply call another
            one.
        """
        if self._callbacks.session is not None:
            other = "a client's block can call another function" if self._client else "a session can await another one"
            raise RuntimeError(f"set_handler is for callbacks; {other} itself")
        if isinstance(handler, type) and issubclass(handler, Handler):
            handler = handler()
        if not isinstance(handler, Handler):
            raise TypeError(f"set_handler takes a Handler object or class, not {type(handler).__name__}")
        self._callbacks = HandlerPlan(type(handler)).bind(handler)
