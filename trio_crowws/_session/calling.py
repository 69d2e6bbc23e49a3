"""Calls of the application's functions, which Ctrl-C may interrupt, from this package's own, which it may not.

Theory of operation
    Trio raises KeyboardInterrupt on the spot, between any two bytecodes, wherever the program is not protected from
    that. So there is one rule: *what is ours is protected, and what is the application's is not.* Every function of
    this package that changes what others rely on (it parks, queues bytes, enters a list, begins a last callback) runs
    under `trio.lowlevel.enable_ki_protection`. It is said at the two places where our code begins: at the public
    methods that act, and at the first function of each task. Whatever these call is protected with them. The decorator
    marks the code of a function, so it costs nothing at a call.

    A protected task learns of Ctrl-C at its next checkpoint, and only the main task does, so nothing of ours is ever
    cut in its middle. An endless loop in a callback, however, must be left at once. So the functions of the application
    are called with the protection off, by the two shortest functions that there can be, `_call` and `_wait`. When the
    interrupt hits one of these, the question is whether the application's function has begun: `Call.entered` knows.
    A plain function gets its arguments as an iterator, which the very instruction that calls it uses up. A coroutine
    knows itself whether it was begun. And a function that was hit at its first instruction has not done anything yet.
"""

from __future__ import annotations

import dis
from collections.abc import Awaitable, Callable, Iterator
from operator import length_hint
from types import CoroutineType
from typing import TYPE_CHECKING, Any

import trio

from .._foreign import is_awaitable, name_of
from ..errors import HandlerError

if TYPE_CHECKING:
    from .handlers import Callback

__all__ = ["Call", "call", "call_plain", "refuse_awaitable", "run_unprotected", "tell"]


class Call:
    """One call of a callback.

    Attributes:
      entered: whether the callback has begun; once `run` has returned or raised.
    """

    __slots__ = ("_arguments", "_callback", "entered")

    def __init__(self, callback: Callback, *arguments: object) -> None:
        self._callback = callback
        self._arguments = arguments
        self.entered = False

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> Any:
        """Call it, and wait for it if it is async. After a KeyboardInterrupt that came before it was entered, again.

        Raises:
          HandlerError: a plain function has returned an awaitable.
          BaseException: whatever it raises.
        """
        function = self._callback.function
        self.entered = True
        if self._callback.is_async:
            coroutine = function(*self._arguments)
            try:
                return await _wait(coroutine)
            except KeyboardInterrupt as error:
                if _is_new(coroutine):
                    coroutine.close()
                    self.entered = False
                else:
                    self.entered = not _hit_at_entry(error)
                raise
        handed = iter(self._arguments)
        try:
            result = _call(function, handed)
        except KeyboardInterrupt as error:
            self.entered = not length_hint(handed) and not _hit_at_entry(error)
            raise
        refuse_awaitable(self._callback, result)
        return result


async def call(callback: Callback, *arguments: object) -> Any:
    """Call `callback` with Ctrl-C allowed, and wait for it if it is async."""
    return await Call(callback, *arguments).run()


def call_plain(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a plain function with Ctrl-C allowed."""
    return _call(function, iter(arguments))


@trio.lowlevel.enable_ki_protection
def tell(function: Callable[..., Any], *arguments: object) -> KeyboardInterrupt | None:
    """Call a plain function that must not be passed over, with Ctrl-C allowed.

    Returns:
      An interrupt that came before the function was entered, for the caller to raise.
    """
    interrupt: KeyboardInterrupt | None = None
    while True:
        handed = iter(arguments)
        try:
            _call(function, handed)
        except KeyboardInterrupt as error:
            if not length_hint(handed) and not _hit_at_entry(error):
                raise
            interrupt = error
        else:
            return interrupt


@trio.lowlevel.disable_ki_protection
async def run_unprotected(function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    """Call an async function, with Ctrl-C allowed, for those who do not need to know whether it was entered."""
    return await function(*arguments)


@trio.lowlevel.disable_ki_protection
def _call(function: Callable[..., Any], arguments: Iterator[object]) -> Any:
    return function(*arguments)


@trio.lowlevel.disable_ki_protection
async def _wait(coroutine: Awaitable[Any]) -> Any:
    return await coroutine


_TRAMPOLINES = (_call.__code__, _wait.__code__)
_RESUME = dis.opmap.get("RESUME", -1)  # CPython's


def _is_new(coroutine: object) -> bool:
    """Whether a coroutine was not begun, as `inspect.getcoroutinestate` finds out; another awaitable does not tell."""
    if type(coroutine) is not CoroutineType:
        return False
    return coroutine.cr_frame is not None and not (coroutine.cr_running or coroutine.cr_suspended)


def _hit_at_entry(error: BaseException) -> bool:
    """Whether `error` came at the first instruction of the function that a trampoline has called.

    That instruction, RESUME, looks for signals before anything of the function has run.
    """
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code not in _TRAMPOLINES:
        traceback = traceback.tb_next
    hit = None if traceback is None else traceback.tb_next
    if hit is None or hit.tb_next is not None:
        return False
    opcode, argument = hit.tb_frame.f_code.co_code[hit.tb_lasti : hit.tb_lasti + 2]
    return opcode == _RESUME and argument & 3 == 0


def refuse_awaitable(callback: Callback, result: object) -> None:
    """A plain function must not return what somebody would have to await.

    Raises:
      HandlerError: it does.
    """
    if result is not None and is_awaitable(result):
        if type(result) is CoroutineType:
            result.close()
        name = name_of(callback.function)
        raise HandlerError(f"{name} is a plain function but returned an awaitable; declare it with async def")
