"""A connection that comes back: `keep_connected` runs a handler for one connection after the other.

It is a coroutine, not a generator of connections. A generator that opens a nursery and then yields hands its caller a
cancel scope that nobody can see, and closes it at a moment that nobody chose (PEP 789); here each connection lives in
an `async with` inside of one call, so there is nothing that could outlive it.

What happens after a handler has left is decided by three questions, in this order:

1. Is that the handler's own exception? Then it is raised. Only this connection's `ConnectionClosed` is no exception of
   its own: it says that the connection has ended, which is what all of this is for.
2. Was the handler done? It was if it returned something other than `None`, if the connection was still open, or if this
   side has closed it. Then its result is returned.
3. Is the end final? Then the `ConnectionClosed` that describes it is raised. Otherwise: wait, and connect again.

A failure to connect goes to the third question at once. The waits are computed in `backoff.py`.
"""

from __future__ import annotations

import inspect
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar, cast

import trio

from .._closeinfo import CloseCode, CloseInfo
from .._foreign import consists_of, divisible, is_a, name_of, quoted, quoted_text
from .._log import log
from .._protocol.url import parse_url
from .._response import ServerResponse
from .._session.calling import call_plain, run_unprotected, tell
from .._session.connection import Connection
from .._session.handlers import make_callback
from .._session.tasks import sort_out
from ..errors import (
    CloseTimeout,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    ConnectionLost,
    CrowWSError,
    InvalidHandshake,
    InvalidURL,
    ProxyError,
    Rejected,
)
from .backoff import Backoff, parse_retry_after
from .connect import connect

__all__ = ["LinkPhase", "LinkState", "is_final", "keep_connected"]

T = TypeVar("T")

# A request that is wrong stays wrong, but for those that were only too slow, too early or too many (RFC 9110, 8470,
# 6585); and so does a program that its peer does not understand, or that the peer's policy does not allow.
TEMPORARY_STATUSES = frozenset((408, 425, 429))
FINAL_CODES = frozenset(
    (
        CloseCode.PROTOCOL_ERROR,
        CloseCode.UNSUPPORTED_DATA,
        CloseCode.INVALID_DATA,
        CloseCode.POLICY_VIOLATION,
        CloseCode.MANDATORY_EXTENSION,
    )
)
RESTART_CODES = frozenset((CloseCode.SERVICE_RESTART, CloseCode.TRY_AGAIN_LATER))


class LinkPhase(Enum):
    """What `keep_connected` is doing."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    WAITING = "waiting"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class LinkState:
    """What `on_state` is told.

    Attributes:
      phase: what it is doing from now on.
      attempt: the number of the attempt, from 1; a healthy connection lets it begin anew.
      delay: in `WAITING`, the seconds until the next attempt; otherwise `None`.
      error: why the last connection ended or could not be made; `None` while there is nothing to report. In `STOPPED`
        it is what `keep_connected` raises, or `None` if it raises nothing or was cancelled.
    """

    phase: LinkPhase
    attempt: int
    delay: float | None = None
    error: Exception | None = None


def is_final(error: Exception) -> bool:
    """Whether another attempt would end in the same way; the default of `keep_connected`.

    Final are `InvalidURL`, the HTTP statuses from 400 to 499 but 408, 425 and 429, of the server or of a proxy, and the
    close codes 1002, 1003, 1007, 1008 and 1010, whichever side found the fault. All else may be over the next time: a
    network, a server or a name that is not there, a timeout, a server error, and a certificate too, which is renewed
    one day.

    Args:
      error: what `connect` has raised, or the `ConnectionClosed` of a connection that has ended.
    """
    if isinstance(error, ConnectionClosed):
        return error.info.code in FINAL_CODES
    response = _response_of(error)
    if response is not None:
        return 400 <= response.status < 500 and response.status not in TEMPORARY_STATUSES
    return isinstance(error, InvalidURL)


def _response_of(error: Exception) -> ServerResponse | None:
    """The HTTP response of a server or a proxy that has refused."""
    return error.response if isinstance(error, Rejected | ProxyError) else None


@trio.lowlevel.enable_ki_protection
async def keep_connected(
    handler: Callable[[Connection], Awaitable[T]],
    url: str,
    *,
    backoff: Backoff = Backoff(),  # noqa: B008 -- it is frozen
    is_final: Callable[[Exception], bool] = is_final,
    on_state: Callable[[LinkState], object] | None = None,
    grace: float = 5,
    rng: random.Random | None = None,
    connect: Callable[..., AbstractAsyncContextManager[Connection]] = connect,
    **options: Any,
) -> T:
    """Connect to `url` and run `handler(conn)`; when the connection has ended, wait, and do the same again.

    It returns what the handler returns, once that is done: when it returns something other than `None`, or returns
    while the connection is open, or after it has closed the connection itself. A handler that leaves because the peer
    has closed, or the connection was lost, is run again with the next connection; its `async for` loop may simply end,
    and its `ConnectionClosed` may pass.

    Args:
      handler: an async function of one parameter. When it has not left `grace` seconds after its connection has ended,
        it is cancelled, and run again with the next one. One that has closed the connection itself is never cancelled:
        it is done when it returns, however long that takes.
      url: as for `connect`.
      backoff: how long to wait.
      is_final: called with the reason of each end; `True` ends it all.
      on_state: a plain function that is told what goes on; it must not block, and what it raises is raised here.
      grace: seconds, 0 or more; `math.inf` for a handler that must never be cancelled.
      rng: the source of chance; `None` for that of the module `random`.
      connect: what makes the connections, `connect` or something that is called like it.
      options: as for `connect`.

    Raises:
      Exception: whatever the handler raises, but the `ConnectionClosed` of its own connection.
      CrowWSError: the reason that was final: `Rejected`, `ProxyError`, `InvalidURL`, or a `ConnectionClosed`, which
        is a `ConnectionClosedOK` if both sides have sent a Close frame. With an `is_final` of your own it may be any
        that `connect` raises.
      TypeError, ValueError: before the first connection; an argument is unknown, of the wrong type, or not allowed.

    Cancellation: at any point; an open connection is closed as `connect` closes it, with 1001.
    """
    _check_handler(handler)
    _check_plain("is_final", is_final, "error")
    if on_state is not None:
        _check_plain("on_state", on_state, "state")
    _check_values(backoff, grace, rng, connect)
    link = _Link(handler, url, backoff, is_final, on_state, grace, rng, connect, options)
    try:
        result = await link.run()
    except BaseException as error:
        link.tell(LinkPhase.STOPPED, error=error if is_a(error, Exception) else None)
        raise
    link.tell(LinkPhase.STOPPED)
    return result


def _check_handler(handler: object) -> None:
    if inspect.iscoroutine(handler):
        handler.close()  # nobody will ever await it, and Python would complain about that too
        raise TypeError("handler must be an async function, not a coroutine; give the function, not its call")
    if not make_callback("handler", cast("Callable[..., Any]", handler), ("conn",)).is_async:
        raise TypeError(f"handler must be an async function, but {name_of(handler)} is a plain one")


def _check_plain(name: str, function: Callable[..., object], argument: str) -> None:
    if make_callback(name, function, (argument,)).is_async:
        raise TypeError(f"{name} must be a plain function, not an async one")


def _check_values(backoff: object, grace: object, rng: object, connect: object) -> None:
    if not isinstance(backoff, Backoff):
        raise TypeError(f"backoff must be a Backoff, not {type(backoff).__name__}")
    if isinstance(grace, bool) or not isinstance(grace, int | float):
        raise TypeError(f"grace must be a number of seconds, not {type(grace).__name__}")
    if not grace >= 0:  # NaN compares false with everything
        raise ValueError(f"grace must be 0 or more, or math.inf, not {grace!r}")
    if rng is not None and not isinstance(rng, random.Random):
        raise TypeError(f"rng must be a random.Random or None, not {type(rng).__name__}")
    if not callable(connect):
        raise TypeError(f"connect must be a function, not {type(connect).__name__}")


class _Done(Generic[T]):
    """A handler has returned: its result, and whether the connection was open then."""

    def __init__(self, result: T, was_open: bool) -> None:
        self.result = result
        self.was_open = was_open


class _Link(Generic[T]):
    """One call of `keep_connected`."""

    def __init__(
        self,
        handler: Callable[[Connection], Awaitable[T]],
        url: str,
        backoff: Backoff,
        is_final: Callable[[Exception], bool],
        on_state: Callable[[LinkState], object] | None,
        grace: float,
        rng: random.Random | None,
        connect: Callable[..., AbstractAsyncContextManager[Connection]],
        options: dict[str, Any],
    ) -> None:
        self._handler = handler
        self._url = url
        self._backoff = backoff
        self._is_final = is_final
        self._on_state = on_state
        self._grace = grace
        self._uniform = random.uniform if rng is None else rng.uniform
        self._connect = connect
        self._options = options
        self._failures = 0  # in a row, before the present attempt

    def tell(self, phase: LinkPhase, *, delay: float | None = None, error: Exception | None = None) -> None:
        """Call `on_state`; once it has raised, never again."""
        on_state, self._on_state = self._on_state, None
        if on_state is not None:
            interrupt = tell(on_state, LinkState(phase, self._failures + 1, delay, error))
            self._on_state = on_state
            if interrupt is not None:
                raise interrupt

    async def run(self) -> T:
        """Connect again and again, until the handler is done or the end is final."""
        error: Exception | None = None
        while True:
            self.tell(LinkPhase.CONNECTING, error=error)
            outcome = await self._attempt()
            if isinstance(outcome, _Done):
                return outcome.result
            error = outcome
            if call_plain(self._is_final, error):
                try:
                    raise error
                finally:
                    del error, outcome  # they refer to this frame, and so to themselves
            delay = self._delay_after(error)
            self.tell(LinkPhase.WAITING, delay=delay, error=error)
            log.info("connecting to %s again in %.1f s: %s", _place(self._url), delay, _reason(error))
            self._failures += 1
            await trio.sleep(delay)

    async def _attempt(self) -> _Done[T] | Exception:
        """One connection: what the handler returned if it was done, otherwise why the connection ended."""
        began = None
        try:
            async with self._connect(self._url, **self._options) as conn:
                began = trio.current_time()
                self.tell(LinkPhase.CONNECTED)
                done = await self._handle(conn)
        except (OSError, CrowWSError) as error:
            if began is not None:  # the handler's own
                raise
            return error
        if trio.current_time() - began >= self._backoff.healthy:
            self._failures = 0
        info = conn.close_info
        assert info is not None  # it has ended
        if done is not None and (done.result is not None or done.was_open or _is_closed_by_us(info)):
            return done
        return (ConnectionClosedOK if info.clean else ConnectionClosedError)(info, conn.id)

    async def _handle(self, conn: Connection) -> _Done[T] | None:
        """Run the handler: what it returned, or `None` if it left because the connection has ended."""
        done: _Done[T] | None = None
        failure: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:
                scope = trio.CancelScope()
                nursery.start_soon(_cancel_late, conn, scope, self._grace)
                # Whatever it raises is caught in here, so that the nursery does not put a group around it.
                try:
                    with scope:
                        try:
                            done = _Done(await run_unprotected(self._handler, conn), conn.is_open)
                        except BaseExceptionGroup as group:
                            # The scope would split it, which runs code of its own, so one of errors goes round it.
                            if not consists_of(group, Exception):
                                raise divisible(group) from None
                            failure = None if sort_out(conn.id, group)[0] is None else group
                except BaseException as error:
                    own, rest = sort_out(conn.id, error)
                    failure = rest if own is None else error
                nursery.cancel_scope.cancel()
        except BaseException as error:
            # A scope around all of this was cancelled. What the handler raised meanwhile counts more.
            if failure is None or not consists_of(error, trio.Cancelled):
                raise
        if failure is None:
            return done
        try:
            raise failure
        finally:
            del failure  # it refers to this frame, and so to itself

    def _delay_after(self, error: Exception) -> float:
        retry_after = None
        response = _response_of(error)
        if response is not None:
            headers = response.headers
            retry_after = parse_retry_after(headers.get("Retry-After"), headers.get("Date"), time.time())
        restart = isinstance(error, ConnectionClosed) and error.info.code in RESTART_CODES
        return self._backoff.delay(self._failures, retry_after=retry_after, restart=restart, uniform=self._uniform)


def _is_closed_by_us(info: CloseInfo) -> bool:
    """Whether the handler has closed the connection; how the peer took that does not matter."""
    error = info.error
    return info.initiator == "local" and (error is None or is_a(error, CloseTimeout) or is_a(error, ConnectionLost))


@trio.lowlevel.enable_ki_protection
async def _cancel_late(conn: Connection, scope: trio.CancelScope, grace: float) -> None:
    """Cancel a handler that does not notice that its connection has ended, unless it has ended that itself."""
    if _is_closed_by_us(await conn.wait_closed()):
        return
    await trio.sleep(grace)
    log.warning("[%s] the handler ran on after its connection had closed, and was cancelled", conn.id)
    scope.cancel()


def _reason(error: Exception) -> str:
    """Why there is no connection, for the log: what headers the server has sent has no business there."""
    return quoted(str(error).partition(":")[0]) if is_a(error, InvalidHandshake) else quoted_text(error)


def _place(url: str) -> str:
    """Whom a URL is about, for the log: a password, or a token in the query, has no business there."""
    try:
        target = parse_url(url)
    except InvalidURL:
        return "a URL that cannot be used"
    return quoted(target.authority if target.unix is None else target.unix)
