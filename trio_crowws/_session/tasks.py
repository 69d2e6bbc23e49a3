"""Exceptions that leave the application's tasks, and the tasks of `Connection.start_soon`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import trio

from .._foreign import describe, is_a, leaves_of, name_of, place, quoted, select, unwrap
from .._log import log
from ..errors import ConnectionClosed, HandlerError
from .calling import run_unprotected

if TYPE_CHECKING:
    from .ending import Ending

__all__ = ["CallbacksReceive", "Children", "Spawner", "log_failure", "sift", "sort_out"]


class CallbacksReceive(trio.BusyResourceError):
    """`receive` was called beside callbacks, which take all the messages of the connection.

    Attributes:
      connection_id: the `id` of the connection.
    """

    def __init__(self, connection_id: str) -> None:
        super().__init__("the messages of this connection go to its callbacks; receive() is for sessions and clients")
        self.connection_id = connection_id


def sort_out(connection_id: str | None, error: BaseException) -> tuple[Exception | None, BaseException | None]:
    """Split what left a task into the application's own error and what must pass (Cancelled and its like).

    That this very connection has closed is no error, even where a nursery has wrapped it. A group of one is unwrapped.
    Never raises, and runs no code of the exceptions but what a group has as its `derive`.
    """
    own = select(error, lambda leaf: is_a(leaf, Exception) and not _is_normal_end(leaf, connection_id))
    rest = select(error, lambda leaf: not is_a(leaf, Exception))
    return None if own is None else cast("Exception", unwrap(own)), rest


def sift(connection_id: str | None, error: BaseException, failed: Callable[[Exception], None]) -> None:
    """Tell `failed` about the application's own error, and raise what must pass.

    To be called within the cancel scope that is around the application's code: a scope splits the groups that come to
    it, which runs code of theirs, and what must pass has none.
    """
    own, rest = sort_out(connection_id, error)
    try:
        if own is not None:
            failed(own)
        if rest is not None:
            raise rest
    finally:
        del own, rest, error  # the last one refers to this frame, and so to itself


def _is_normal_end(leaf: BaseException, connection_id: str | None) -> bool:
    if not is_a(leaf, ConnectionClosed):
        return False
    try:  # a subclass of the application's may have made anything of it
        return bool(leaf.connection_id == connection_id)
    except Exception:
        return False


def log_failure(conn: Ending, where: str, error: Exception) -> None:
    """The application's own errors are logged with their traceback, and nothing else is."""
    log.error(
        "[%s] %s of %s failed (peer %s): %s",
        conn.id,
        where,
        quoted(conn.request.path),
        place(conn.remote_address),
        describe(error),
        exc_info=None if is_a(error, HandlerError) else error,
    )


class Spawner(Protocol):
    """Where tasks can be started: a nursery, or what stands before one."""

    def start_soon(self, async_fn: Callable[..., Awaitable[object]], /, *args: Any, name: object = None) -> None:
        """Start a task."""


class Children:
    """The tasks that belong to one connection. They live in the route's nursery, each in a scope of its own.

    Only the tasks refer to the connection, so that nothing refers to it in a circle when they have ended.

    Attributes:
      failure: the first exception that left one of them.
    """

    __slots__ = ("_gone", "_scopes", "failure")

    def __init__(self) -> None:
        self._scopes: set[trio.CancelScope] = set()
        self._gone: trio.Event | None = None
        self.failure: Exception | None = None

    def start(
        self,
        conn: Ending,
        nursery: Spawner,
        failed: Callable[[Exception], None],
        function: Callable[..., Awaitable[object]],
        args: tuple[object, ...],
    ) -> None:
        """Start `function(*args)` in `nursery`; `failed` is told of its exception."""
        scope = trio.CancelScope()
        name = f"{conn.id} {name_of(function)}"
        self._scopes.add(scope)
        try:
            nursery.start_soon(self._run, conn, scope, failed, function, args, name=name)
        except BaseException:  # there is no task, so nobody may wait for it
            self._scopes.discard(scope)
            raise

    @trio.lowlevel.enable_ki_protection
    async def _run(
        self,
        conn: Ending,
        scope: trio.CancelScope,
        failed: Callable[[Exception], None],
        function: Callable[..., Awaitable[object]],
        args: tuple[object, ...],
    ) -> None:
        try:
            with scope:
                try:
                    if conn._client:  # an interrupt is for the main task, which has scopes that it can leave
                        await function(*args)
                    else:
                        await run_unprotected(function, *args)
                except BaseException as error:  # before the scope sees it; see `sift`
                    sift(conn.id, error, partial(self._task_raised, conn, failed))
        finally:
            self._scopes.discard(scope)
            if self._gone is not None and not self._scopes:
                self._gone.set()

    def _task_raised(self, conn: Ending, failed: Callable[[Exception], None], error: Exception) -> None:
        if _is_refused(conn, error):
            log_failure(conn, "a task", error)
            return
        if self.failure is None:
            self.failure = error
        failed(error)

    async def end(self, conn: Ending, patience: float) -> None:
        """Cancel the tasks and wait until they have ended.

        Shielded, because a task must not outlive its connection even if that is cancelled. The deadline is for tasks
        that shield themselves; being in the route's nursery, those still cannot outlive the server.

        Args:
          conn: the connection.
          patience: seconds to wait.
        """
        if not self._scopes:
            return
        for scope in self._scopes:
            scope.cancel()
        self._gone = trio.Event()
        interrupt: KeyboardInterrupt | None = None
        with trio.CancelScope(deadline=trio.current_time() + patience, shield=True) as waiting:
            while self._scopes:
                try:
                    await self._gone.wait()
                except KeyboardInterrupt as error:  # it comes through a shield, to the block of a client
                    interrupt = error
        if waiting.cancelled_caught:
            log.warning("[%s] a task of the connection does not react to its cancellation", conn.id)
        if interrupt is not None:
            try:
                raise interrupt
            finally:
                del interrupt  # it refers to this frame, and so to itself


def _is_refused(conn: Ending, error: Exception) -> bool:
    """Whether a task has only tried to take what the callbacks of this very connection get.

    That has changed nothing for the connection, whose callbacks go on as if the task had never been there.
    """

    def is_refusal(leaf: BaseException) -> bool:
        return type(leaf) is CallbacksReceive and leaf.connection_id == conn.id

    return all(map(is_refusal, leaves_of(error)))
