"""`connect`: from a URL to a connection, and from the end of a block to the end of the connection.

Theory of operation
    The object that `connect` returns is a context manager and not a generator, so nothing of it is ever suspended
    within a nursery or a cancel scope, and it may be used where these must not be: in an asynchronous generator, or in
    an `AsyncExitStack`.

    A server has a task for each connection, which runs the handler. Here the block is the handler, in the caller's own
    task. Everything else is the same: the engine reads and writes, `_session` has the connection, and what happens at
    the end is `lifecycle.leave`, as it is `lifecycle.live` there.
"""

from __future__ import annotations

import math
import re
import ssl
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, final

import trio

from .._foreign import is_a, quoted, text_of
from .._log import log
from .._protocol.answer import AnswerReader, UpgradeRequest, check_accepted
from .._protocol.compressing import Compressor, Packer
from .._protocol.deflate import Inflater
from .._protocol.framing import FrameReader
from .._protocol.tunnel import Tunnel
from .._protocol.url import Proxy, Target, redirected
from .._request import Request
from .._response import ServerResponse
from .._session.connection import Connection, PublishResult
from .._session.ending import Parts
from .._session.handlers import Callback, Callbacks
from .._session.lifecycle import leave, log_start
from .._transport.addresses import plain_address
from .._transport.stream import addresses_of, close_stream
from .._transport.timers import FairScope
from .._types import MessageLike
from ..errors import ConnectFailed, HandshakeTimeout, Rejected
from .dialing import dial
from .opening import Opening
from .running import Nursery, SharedEngine
from .tls import default_context, without_certificate

if TYPE_CHECKING:
    import socket
    from types import TracebackType

    from .._options import Options
    from .._transport.base import Transport

__all__ = ["Connecting", "Plan"]

_PARTING = 1.0
"""Seconds that the server has to end the stream, which is for it to do, after both Close frames."""

_PARTING_CANCELLED = 0.25
"""The same, where the block was cancelled."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})

_TOO_MANY = "that is one redirect too many"

_WANTS_TLS = re.compile(rb"\b(?:HTTPS|SSL|TLS)\b")
"""What servers write into the 400 for a plain request at their port for TLS."""

_numbers = count(1)


class Plan(NamedTuple):
    """What `connect` was asked for."""

    target: Target
    options: Options
    headers: tuple[tuple[str, str], ...]
    origin: str | None
    open_timeout: float
    ssl_context: ssl.SSLContext | None = None
    proxy: Proxy | None = None
    max_redirects: int = 0
    stream: trio.abc.Stream | None = None


@final
class Connecting:
    """What `connect` returns: `async with` makes the connection, and ends it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._callbacks = Callbacks()  # the command line, which shows pings, enters functions of its own
        self._callbacks.session = _BLOCK
        self._used = False
        self._shared: SharedEngine | None = None
        self._target = plan.target  # or where a redirect has led
        self._tunnel: Tunnel | None = None
        """What is being asked of the proxy, until it has agreed."""
        self._opening: Opening | None = None
        self._asked_at = -math.inf
        self._nursery: Nursery | None = None
        self._conn: Connection | None = None

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Connection:
        if self._used:
            raise RuntimeError("the result of connect can be used for one connection only; call connect again")
        self._used = True
        plan = self._plan
        try:
            self._shared = SharedEngine.enter()
        except OSError as error:
            if plan.stream is not None:
                await close_stream(plan.stream)
            raise ConnectFailed(f"the system has no descriptor left: {error}") from error
        try:
            with FairScope(self._shared.engine.timers, trio.current_time() + plan.open_timeout, self._has_moved):
                await self._shared.engine.wait_running()
                self._conn = await self._connect()
            if self._conn is None:
                raise self._late()
        except BaseException:
            await self._give_up()
            raise
        return self._conn

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        conn, shared = self._conn, self._shared
        assert conn is not None
        assert shared is not None
        if not trio.lowlevel.in_trio_task():  # Trio itself has crashed; nothing can be awaited any more
            conn.abort()
            return
        try:
            instead = await leave(conn, error)
            left_by = instead if error is None else error
            patience = _PARTING_CANCELLED if is_a(left_by, trio.Cancelled) else _PARTING
            await shared.engine.wait_released(conn._transport, trio.current_time() + patience)
        finally:
            await shared.leave()
            nursery, self._conn, self._shared = self._nursery, None, None
            assert nursery is not None
            nursery.interrupted = bool  # nothing refers to the connection any more
        if nursery.interrupt is not None:
            instead, nursery.interrupt = nursery.interrupt, None
        if instead is not None:
            try:
                raise instead
            finally:
                del instead  # it refers to this frame, and so to itself

    # Opening

    async def _connect(self) -> Connection:
        target, left = self._plan.target, self._plan.max_redirects
        while True:
            plan, options = self._plan, self._plan.options
            request = UpgradeRequest(
                target.resource, target.authority, options.subprotocols, options.compression, _all_headers(plan)
            )
            response = await self._ask(target, request)
            if response.status == 101:
                return self._accept(target, request, response)
            following = _next(target, response) if plan.max_redirects else None
            if following is None or left == 0:
                raise Rejected(response, _detail(target, response) if following is None else _TOO_MANY)
            await self._drop()
            left -= 1
            if not _same_origin(target, following):
                self._plan = _for_a_stranger(plan)
            log.debug("redirected to %s", quoted(following.authority))
            self._target = target = following

    async def _ask(self, target: Target, request: UpgradeRequest) -> ServerResponse:
        """Send the request, and wait for the answer."""
        assert self._shared is not None
        engine, options = self._shared.engine, self._plan.options
        reader = AnswerReader(
            request.as_event(), max_header_bytes=options.max_header_bytes, max_headers=options.max_headers
        )
        opening = Opening(reader, target)
        if self._plan.stream is not None:
            local, remote = addresses_of(self._plan.stream)
            opening.transport = transport = engine.add_stream(self._plan.stream, opening, local, remote)
        else:
            context = _context(self._plan, target)
            if self._plan.proxy is not None:
                self._tunnel = Tunnel(
                    self._plan.proxy,
                    target,
                    max_header_bytes=options.max_header_bytes,
                    max_headers=options.max_headers,
                )
            sock = await dial(target, self._tunnel)
            self._tunnel = None
            transport = self._add_socket(sock, opening, context, target)
        self._opening = opening
        self._asked_at = engine.timers.tick()
        transport.write(reader.request)
        transport.push()
        return await opening.answer()

    def _add_socket(
        self, sock: socket.socket, opening: Opening, context: ssl.SSLContext | None, target: Target
    ) -> Transport:
        assert self._shared is not None
        try:
            local, remote = plain_address(sock.getsockname()) or None, plain_address(sock.getpeername())
            hostname = None if context is None else target.server_hostname
            transport = self._shared.engine.add_socket(sock, opening, local, remote, context, hostname)
            opening.transport = transport
            transport.start()
            return transport
        except Exception as error:  # it was reset at once, the system cannot watch one more, or TLS refuses the name
            sock.close()
            raise ConnectFailed(f"cannot use the connection to {target.authority}: {text_of(error)}") from error

    def _accept(self, target: Target, request: UpgradeRequest, response: ServerResponse) -> Connection:
        """The server has agreed: make the connection."""
        opening, shared, options = self._opening, self._shared, self._plan.options
        assert opening is not None
        assert shared is not None
        subprotocol, agreement = check_accepted(request, response)
        transport, timers = opening.transport, shared.engine.timers
        assert transport is not None
        if transport.closed:
            raise ConnectFailed("the connection broke when the server had answered")
        reader = FrameReader(
            max_payload=options.max_payload,
            max_fragments=options.max_fragments,
            control_rate=options.control_rate,
            clock=timers.clock,
            client=True,
            inflater=None if agreement is None else Inflater(agreement, options.max_payload, client=True),
        )
        described = Request(
            "GET",
            request.target,
            request.headers,
            remote_address=transport.remote_address,
            local_address=transport.local_address,
            secure=transport.secure,
        )
        described._compact()
        conn, self._nursery = _make_connection(described, options, transport, shared, reader, self._callbacks)
        conn.response = response
        conn.subprotocol = subprotocol
        if agreement is not None and options.compression is not None:
            packer = None
            if agreement.setting is not None:
                packer = Packer(Compressor(agreement.setting), options.compression.threshold)
            conn._compress_with(packer, agreement.header)
        transport.limit_unsent(options._unsent)
        transport.receiver = conn
        log_start(conn)
        conn._begin(opening.early_data)
        self._opening = None
        return conn

    def _has_moved(self, now: float) -> bool:
        transport = None if self._opening is None else self._opening.transport
        return self._asked_at >= now or (transport is not None and transport.shook_hands_at >= now)

    # Giving up

    def _late(self) -> Exception:
        partial = None if self._opening is None else self._opening.partial
        if partial is not None:
            return Rejected(partial)
        refusal = None if self._tunnel is None else self._tunnel.refusal()
        if refusal is not None:
            return refusal
        detail = "" if self._tunnel is None else f"; the proxy {self._tunnel.proxy} has not answered"
        return HandshakeTimeout(
            f"no connection to {self._target.authority} within open_timeout={self._plan.open_timeout:g} s{detail}"
        )

    async def _drop(self) -> None:
        """Let go of a server that has answered, but not with a connection."""
        assert self._shared is not None
        opening, self._opening = self._opening, None
        assert opening is not None
        assert opening.transport is not None
        deadline = trio.current_time() + _PARTING_CANCELLED
        if opening.answered:
            opening.transport.close(deadline, linger=False)
        else:
            opening.transport.abort()
        await self._shared.engine.wait_released(opening.transport, deadline)

    async def _give_up(self) -> None:
        """There will be no connection: leave nothing behind. Each of the steps is bounded, and shielded for that."""
        shared, stream = self._shared, self._plan.stream
        assert shared is not None
        try:
            if self._opening is not None:
                await self._drop()
            elif stream is not None:  # the engine has not got it yet
                with trio.CancelScope(deadline=trio.current_time() + _PARTING, shield=True):
                    await close_stream(stream)
        finally:
            await shared.leave()


def _all_headers(plan: Plan) -> tuple[tuple[str, str], ...]:
    return plan.headers if plan.origin is None else (("Origin", plan.origin), *plan.headers)


def _for_a_stranger(plan: Plan) -> Plan:
    """The same plan for a server that the caller has not named: with nothing that says who the client is.

    Headers, subprotocols (a place where browsers have to put their tokens), the origin and a client certificate were
    meant for the server of the URL. They do not come back, even if the stranger sends the client back there.
    """
    options = replace(plan.options, subprotocols=())
    context = None if plan.ssl_context is None else without_certificate(plan.ssl_context)
    return plan._replace(options=options, headers=(), origin=None, ssl_context=context)


def _context(plan: Plan, target: Target) -> ssl.SSLContext | None:
    if not target.secure:
        return None
    return default_context() if plan.ssl_context is None else plan.ssl_context


def _next(target: Target, response: ServerResponse) -> Target | None:
    """Where the answer sends the client, if it may follow."""
    locations = response.headers.get_all("location")
    if response.status not in _REDIRECTS or len(locations) != 1:
        return None
    return redirected(target, locations[0])


def _detail(target: Target, response: ServerResponse) -> str:
    """What else there is to say about a refusal."""
    plain = target.scheme == "ws" and response.status == 400
    return "it seems to want TLS at this port; use wss://" if plain and _WANTS_TLS.search(response.body) else ""


def _same_origin(one: Target, other: Target) -> bool:
    if (one.host, one.zone, one.unix) != (other.host, other.zone, other.unix):
        return False
    upgraded = (one.scheme, one.port, other.scheme, other.port) == ("ws", 80, "wss", 443)
    return upgraded or (one.scheme, one.port) == (other.scheme, other.port)


def _make_connection(
    request: Request,
    options: Options,
    transport: Transport,
    shared: SharedEngine,
    reader: FrameReader,
    callbacks: Callbacks,
) -> tuple[Connection, Nursery]:
    nursery = Nursery(shared.engine)
    parts = Parts(f"client{next(_numbers)}", request, options, transport, shared.engine.timers, reader)
    conn = Connection(parts, callbacks, _NoRooms(), nursery)
    conn._act_as_client()
    nursery.interrupted = partial(conn._finish, 1001)
    return conn, nursery


async def _block(conn: Connection) -> None:
    """Stands for the block of `async with`, whose task is the caller's own, so this is never called."""


_BLOCK: Callback = Callback(_block, True)


class _NoRooms:
    """Rooms are an application's, and a client has none."""

    __slots__ = ()

    def join(self, conn: Connection, room: str) -> bool:
        raise RuntimeError("rooms belong to the application of a server; a client's connection cannot join one")

    def leave(self, conn: Connection, room: str) -> bool:
        raise RuntimeError("rooms belong to the application of a server; a client's connection is in none")

    def of(self, conn: Connection) -> frozenset[str]:
        return frozenset()

    def publish(
        self,
        room: str,
        data: MessageLike,
        exclude: Iterable[Connection],
        compress: bool | None,
    ) -> PublishResult:
        raise RuntimeError("rooms belong to the application of a server; a client's connection cannot publish")
