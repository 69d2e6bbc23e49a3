"""The task of one connection: from the opened connection to `on_close`, whatever happens in between.

Theory of operation
    The order is fixed: `on_open`, messages, then the end in four steps, none of which can be skipped.

    1. *Close.* If the handler has returned, 1000; if it raised, 1011; if it was cancelled, 1001. Then wait until the
       closing machine has finished, which it does by itself within `close_timeout`. A cancelled task waits a shorter
       time, under a shield: a peer that cooperates is to see a Close frame and not a broken connection.
    2. *Tasks* that were started with `start_soon` are cancelled and waited for.
    3. `on_error`, if something went wrong; the connection is still in its rooms and registries.
    4. `on_close`, last; the connection is out of them.

    Steps 3 and 4 share one deadline, `callback_timeout`, and are shielded from cancellation until then. What was not an
    `Exception` (Cancelled, KeyboardInterrupt, SystemExit) is kept aside meanwhile and raised again at the end.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Protocol

import trio

from .._foreign import consists_of, explain, is_a, place, quoted
from .._log import log
from .._transport.timers import Timer
from .calling import Call
from .ending import State
from .tasks import log_failure, sift, sort_out

if TYPE_CHECKING:
    from .connection import Connection
    from .handlers import Callback

__all__ = ["leave", "live", "log_start"]

CANCELLED_GRACE = 1.0
"""Seconds that a cancelled connection waits for its peer to answer the Close frame."""


class Listed(Protocol):
    """Where a connection is listed while it is open."""

    def enter(self) -> None:
        """Enter the lists."""

    def leave(self) -> None:
        """Leave the lists and all rooms."""


@trio.lowlevel.enable_ki_protection
async def live(conn: Connection, deadline: float, early_data: bytes, listed: Listed) -> None:
    """Run a connection whose 101 is on its way, to its end.

    This coroutine and what it awaits is what an idle connection costs, so it is kept flat.

    Args:
      conn: the connection.
      deadline: absolute time by which the 101 must have left.
      early_data: frames that came together with the request.
      listed: where the connection is listed from before `on_open` until just before `on_close`.
    """
    pending = None
    opened = entered = finished = False
    try:
        with conn.cancel_scope:
            if conn.buffered:  # nearly always the kernel has taken the 101 already
                await _flush_answer(conn, deadline)
            if conn.is_open:
                opened = True
                listed.enter()
                log_start(conn)
                conn._begin(early_data)
                del early_data
                session = conn._callbacks.session
                first = session or conn._callbacks.open
                try:
                    if first is not None:
                        beginning = Call(first, conn)
                        try:
                            await beginning.run()
                        finally:
                            entered = beginning.entered
                            del beginning
                    entered = True
                    if session is None:
                        await conn._run_callbacks()
                    finished = True
                except BaseException as error:  # before the scope sees it; see `sift`
                    sift(conn.id, error, conn._handler_failed)
            else:
                finished = True
    except BaseException as error:
        own, pending = sort_out(conn.id, error)
        if own is not None:  # a defect of this package costs its connection, as the application's do
            conn._handler_failed(own)
            del own
    if opened and conn.cancel_scope.cancelled_caught and conn.close_info is not None:
        log.warning("[%s] the handler ran on after its connection had closed, and was cancelled", conn.id)
    conn._finish(1000 if finished else 1001)
    end = _end(conn, listed if opened else None, pending, entered=entered)
    del pending  # what it raises refers to this frame, and would to itself
    await end


async def _flush_answer(conn: Connection, deadline: float) -> None:
    """Wait until the 101 has left; cancel the connection if it has not by `deadline`."""
    # Not in `live`: what a closure refers to would be a cell there, for every idle connection.
    late = Timer(conn._timers, lambda now: conn.cancel_scope.cancel(), conn._transport)
    late.arm(deadline)
    try:
        await conn._wait_flushed()
    finally:
        late.cancel()


async def leave(conn: Connection, error: BaseException | None) -> BaseException | None:
    """Take a client's connection, whose block has been left, to its end: steps 1 and 2 of those above.

    The block is the handler, and its task the caller's own: what it raised goes on by itself, and so is only looked at.

    Args:
      conn: the connection.
      error: what the block raised.

    Returns:
      What has to be raised in place of `error`, if anything: the failure of a task that ended the connection, or what
      came while the end was waited for.

    Cancellation: has been asked for already, or shortens the waiting; the end is bounded in either case.
    """
    own, pending = (None, None) if error is None else sort_out(conn.id, error)
    if own is not None:
        conn._fail(own)
    conn._finish(1000 if error is None else 1001)
    interrupted = await _close(conn, pending)
    await conn._end_children()
    _log_end(conn)
    failure = conn._task_failure
    conn._let_go(failure if own is None else own)
    if interrupted is not pending and not (own is not None and is_a(interrupted, trio.Cancelled)):
        return interrupted
    if failure is not None and own is None and pending is None:
        return failure
    if failure is not None:
        log_failure(conn, "a task", failure)
    return None


async def _end(conn: Connection, listed: Listed | None, pending: BaseException | None, *, entered: bool) -> None:
    """The four steps after the handler; the last two only for a connection that was opened, and so is listed.

    `entered` is whether its `on_open`, or its session, has begun: one that was interrupted before is not told the end.
    """
    if conn.close_info is None:
        pending = await _close(conn, pending)
    if pending is None and not conn.cancel_scope.cancel_called:
        pending = await _finish_control(conn)
    await conn._end_children()
    try:
        if listed is not None:
            await _say_goodbye(conn, listed, entered=entered)
            _log_end(conn)
    except BaseException as error:
        pending = _weightier(pending, error)
    conn._let_go()
    if pending is not None:
        try:
            raise pending
        finally:
            del pending  # it refers to this frame, and so to itself


def _weightier(one: BaseException | None, other: BaseException) -> BaseException:
    """Which of two has to go on: a cancellation comes again where it matters, KeyboardInterrupt and its like do not."""
    return other if one is None or consists_of(one, trio.Cancelled) else one


async def _close(conn: Connection, pending: BaseException | None) -> BaseException | None:
    """Wait until the connection is closed; the closing machine's own deadline bounds that."""
    if conn.state is State.CLOSED and conn.close_info is None:
        conn._give_up_closing()  # whoever closed it has failed half-way, so nobody would wake who waits
    if pending is None:
        try:
            await conn.wait_closed()
        except BaseException as error:  # kept aside, and raised again by `live`
            pending = error
    if conn.close_info is None:
        # Shielded, so that a cooperative peer of a cancelled connection sees 1001; the deadline is short.
        try:
            with trio.CancelScope(deadline=trio.current_time() + CANCELLED_GRACE, shield=True):
                await conn.wait_closed()
            if conn.close_info is None:  # perhaps the peer's Close has been waiting in the kernel
                await conn._timers.catch_up()
        except KeyboardInterrupt as error:  # in the block of a client, the second one: it does not want to wait
            pending = _weightier(pending, error)
    conn._give_up_closing()
    try:
        return pending
    finally:
        del pending  # it refers to this frame, and so to itself


async def _finish_control(conn: Connection) -> BaseException | None:
    """Give an `on_ping` or `on_pong` that a session has left behind the time that a handler has after the end."""
    if conn._control is not None:
        try:
            with trio.CancelScope(deadline=trio.current_time() + conn._handler_grace):
                await conn._control.ended.wait()
        except BaseException as error:  # kept aside, and raised again by `live`
            return error
    return None


async def _say_goodbye(conn: Connection, listed: Listed, *, entered: bool) -> None:
    info = conn.close_info
    assert info is not None
    if not entered:
        listed.leave()
        return
    callbacks = conn._callbacks
    deadline = conn._timers.tick() + conn.options.callback_timeout
    try:
        if info.error is not None and callbacks.error is not None:
            await _call_last(conn, "on_error", callbacks.error, info.error, deadline)
    finally:
        listed.leave()
        if callbacks.close is not None:
            await _call_last(conn, "on_close", callbacks.close, info, deadline)


async def _call_last(conn: Connection, name: str, callback: Callback, argument: object, deadline: float) -> None:
    interrupt: KeyboardInterrupt | None = None
    entered = False
    # Shielded: these two are delivered whatever is cancelled. They share one deadline, so they cannot hold it up.
    with trio.CancelScope(deadline=deadline, shield=True) as scope:
        while not entered:
            last = Call(callback, conn, argument)
            try:
                await last.run()
            except KeyboardInterrupt as error:  # it is kept aside if the callback has not heard of it
                interrupt = error
            except BaseException as error:  # before the scope sees it; see `sift`
                sift(None, error, partial(log_failure, conn, name))
            finally:
                entered = last.entered
    if interrupt is not None:
        try:
            raise interrupt
        finally:
            del interrupt  # it refers to this frame, and so to itself
    if scope.cancelled_caught:
        log.warning("[%s] %s was cancelled: callback_timeout=%g is over", conn.id, name, conn.options.callback_timeout)


def log_start(conn: Connection) -> None:
    """Say that a connection is open."""
    if log.shows(logging.INFO):
        address, path = place(conn.remote_address), quoted(conn.request.path)
        log.info("[%s] open: %s %s subprotocol=%s", conn.id, address, path, _subprotocol(conn))


def _subprotocol(conn: Connection) -> str | None:
    """The subprotocol, where a server's options have its name. A name of the client's own may be a secret."""
    names = conn.options.subprotocols
    named = not conn._client and not isinstance(names, str) and conn.subprotocol in names
    return conn.subprotocol if named or conn.subprotocol is None else "set"


def _log_end(conn: Connection) -> None:
    info = conn.close_info
    if info is None or not log.shows(logging.INFO):
        return
    log.info(
        "[%s] closed: %s %s subprotocol=%s code=%d reason=%s by=%s clean=%s cause=%s "
        "received=%d messages/%d bytes sent=%d messages/%d bytes dropped=%d",
        conn.id,
        place(conn.remote_address),
        quoted(conn.request.path),
        _subprotocol(conn),
        info.code,
        quoted(info.reason),
        info.initiator,
        info.clean,
        "-" if info.error is None else explain(info.error),
        conn.messages_received,
        conn.bytes_received,
        conn.messages_sent,
        conn.bytes_sent,
        conn.dropped,
    )
