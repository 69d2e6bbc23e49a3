"""The engine that all client connections of one Trio run share.

No connection can own it, because each of them may be the first to end. So it runs in a system task, which is started by
the first connection that needs it and ended by the last one, which waits for that: no task outlives the connections.

What goes wrong in a system task ends the whole Trio run. Nothing gets that far: a defect of the engine is logged and
costs the connections that it served, and the next connection gets a new one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from .._log import log
from .._transport.engine import Engine

__all__ = ["Nursery", "SharedEngine"]

_PATIENCE = 1.0
"""Seconds that the last connection waits for the end of the engine's tasks."""

_current: trio.lowlevel.RunVar[SharedEngine | None] = trio.lowlevel.RunVar("trio_crowws client engine", None)


class SharedEngine:
    """An engine with the number of those who use it.

    Attributes:
      engine: the engine.
    """

    def __init__(self) -> None:
        self.engine = Engine(shielded=False)  # it is in no scope but Trio's own, at whose end it has to go
        self._users = 0
        self._ended = trio.Event()

    @classmethod
    def enter(cls) -> SharedEngine:
        """Use the engine of this Trio run. Everybody who enters has to `leave`."""
        shared = _current.get()
        if shared is None:
            shared = cls()
            trio.lowlevel.spawn_system_task(shared._run, name="trio_crowws client engine")
            _current.set(shared)
        shared._users += 1
        return shared

    async def leave(self) -> None:
        """Stop using the engine. The last one ends it.

        Shielded, because no task must be left over; the wait for each step has a deadline.
        """
        if not self._leave():
            return
        try:
            await self.engine.aclose()
        finally:  # Ctrl-C, too, waits for the tasks that it has ended
            with trio.CancelScope(deadline=trio.current_time() + _PATIENCE, shield=True):
                await self._ended.wait()

    def _leave(self) -> bool:
        self._users -= 1
        if self._users:
            return False
        self._retire()
        return True

    def _retire(self) -> None:
        if _current.get() is self:
            _current.set(None)

    @trio.lowlevel.enable_ki_protection
    async def _run(self) -> None:
        error = None
        try:
            await self.engine.run()
        except Exception as defect:
            error = defect
            log.error("internal error; the connections of this client end", exc_info=defect)
        finally:
            self._retire()
            self.engine.fail(error)
            self._ended.set()


class Nursery:
    """Starts the tasks of one connection in the engine's nursery, and keeps from it what must not get there.

    Attributes:
      interrupt: SystemExit or its like, which has left one of the tasks and belongs to the connection's block.
      interrupted: called then.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.interrupted: Callable[[], object] = bool
        self.interrupt: BaseException | None = None

    def start_soon(self, async_fn: Callable[..., Awaitable[object]], /, *args: Any, name: object = None) -> None:
        """Start a task."""
        self._engine.nursery.start_soon(self._guard, async_fn, args, name=name)

    @trio.lowlevel.enable_ki_protection  # an interrupt is for the main task, which has scopes that it can leave
    async def _guard(self, async_fn: Callable[..., Awaitable[object]], args: tuple[Any, ...]) -> None:
        try:
            await async_fn(*args)
        except trio.Cancelled:  # the Trio run is at its end
            raise
        except BaseException as error:  # handed on by the block of the connection
            self.interrupt = error
            self.interrupted()
