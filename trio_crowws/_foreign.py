"""What is not ours, as text and in parts: exceptions, results and functions of the application, and what a peer sent.

Every `str()`, `repr()` and name of such an object is taken here, and groups of exceptions are split here. Two things
could go wrong, and each is dealt with once:

* The object's own code runs (`__repr__`, `__str__`, a property, `derive`) and raises, never comes to an end, or returns
  megabytes. What is needed is read without it where Python can: `type(x)` instead of `x.__class__`, the getters of
  `BaseException` instead of attributes. Where it must run, what it raises becomes part of the text. Only what is not
  an `Exception` passes.
* The text quotes a peer. It is escaped to printable ASCII, so that it is one line and holds no command for a terminal,
  and it is cut.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType, GeneratorType, MethodType, TracebackType
from typing import Any, Final, TypeGuard, TypeVar, cast

__all__ = [
    "cause_of",
    "class_name",
    "consists_of",
    "context_of",
    "describe",
    "divisible",
    "drop_tracebacks",
    "explain",
    "is_a",
    "is_awaitable",
    "leaves_of",
    "members_of",
    "name_of",
    "place",
    "plain",
    "quoted",
    "quoted_text",
    "select",
    "text_of",
    "traceback_of",
    "unwrap",
]

T = TypeVar("T")

_SHORT: Final = 200
"""Characters, escapes included, of what a peer sent."""

_LONG: Final = 1000
"""Characters, escapes included, of the text of an exception, and of a repr."""

# Read past whatever a subclass or a metaclass puts in their place.
_qualname: Callable[[type], str] = type.__dict__["__qualname__"].__get__
_namespace: Callable[[type], Mapping[str, object]] = type.__dict__["__dict__"].__get__
_mro: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
_cause: Callable[[BaseException], BaseException | None] = BaseException.__dict__["__cause__"].__get__
_context: Callable[[BaseException], BaseException | None] = BaseException.__dict__["__context__"].__get__
_suppress: Callable[[BaseException], bool] = BaseException.__dict__["__suppress_context__"].__get__
_traceback: Callable[[BaseException], TracebackType | None] = BaseException.__dict__["__traceback__"].__get__
_message: Callable[[BaseException], str] = BaseExceptionGroup.__dict__["message"].__get__
_members: Callable[[BaseException], tuple[BaseException, ...]] = BaseExceptionGroup.__dict__["exceptions"].__get__


# Text


def quoted(text: str, limit: int = _SHORT) -> str:
    """What a peer sent, for a log line or a message: in quotes, as ASCII, cut to `limit` characters of that."""
    if len(text) <= limit and text.isascii() and text.isprintable():
        return ascii(text)
    for number, char in enumerate(text):
        limit -= len(ascii(char)) - 2
        if limit < 0:
            return ascii(text[:number] + "...")
    return ascii(text)


def place(address: object) -> object:
    """The address of a peer or of a listener; a path was chosen by whoever has made the socket, so it is quoted."""
    return quoted(address) if isinstance(address, str) else address


def describe(value: object) -> str:
    """The repr of any object, as ASCII in one line, cut; where it has none, what it is."""
    try:
        return plain(repr(value))
    except Exception as error:
        return f"<{class_name(value)} whose repr raises {class_name(error)}>"


def text_of(error: BaseException) -> str:
    """The text of an exception, as ASCII in one line, cut."""
    try:
        return plain(str(error))
    except Exception as other:
        return f"<no text: its str raises {class_name(other)}>"


def explain(error: BaseException) -> str:
    """Class and text of an exception, for a log line: `ValueError: 'no such room'`."""
    return f"{class_name(error)}: {quoted_text(error)}"


def quoted_text(error: BaseException) -> str:
    """The text of an exception, for a log line, as `quoted` gives it."""
    try:
        return quoted(str.__str__(str(error)))
    except Exception as other:
        return f"<no text: its str raises {class_name(other)}>"


def class_name(value: object) -> str:
    """The name of the class of an object."""
    return plain(_qualname(type(value)))


def name_of(function: object) -> str:
    """What a callable is called, for messages and for the names of tasks; no code of its own runs."""
    callee: Any = function
    for _ in range(10):  # a partial of a partial of a method
        if type(callee) is MethodType:
            callee = callee.__func__
        elif type(callee) is partial:
            callee = callee.func
        else:
            break
    kind = cast("type[object]", type(callee))
    if kind is FunctionType:
        return plain(callee.__qualname__)
    if kind is BuiltinFunctionType:
        return plain(callee.__name__)
    if issubclass(kind, type):
        return plain(_qualname(callee))
    try:
        name = inspect.getattr_static(callee, "__qualname__", None)  # what functools.update_wrapper has put there
    except Exception:  # a metaclass does not let its classes be looked at
        name = None
    return plain(name if type(name) is str else _qualname(kind))


def plain(text: str, limit: int = _LONG) -> str:
    """`text` in printable ASCII, and so in one line; cut to `limit` characters, escapes included."""
    text = str.__str__(text)  # of a subclass, the characters alone
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text
    pieces: list[str] = []
    for char in text[:limit]:
        piece = char if " " <= char <= "~" else ascii(char)[1:-1]
        limit -= len(piece)
        if limit < 0:
            break
        pieces.append(piece)
    return "".join(pieces) + ("" if len(pieces) == len(text) else f"... ({len(text)} characters)")


# Kinds


def is_a(value: object, kind: type[T]) -> TypeGuard[T]:
    """`isinstance`, for what `value` really is: an object may claim another class, or raise when it is asked."""
    return issubclass(type(value), kind)


def is_awaitable(value: object) -> bool:
    """`inspect.isawaitable`, without asking the object."""
    kind = type(value)
    if kind is bool:  # what `send_nowait` returns, and so many a callback of one line
        return False
    if kind is GeneratorType:
        return bool(value.gi_code.co_flags & inspect.CO_ITERABLE_COROUTINE)  # type: ignore[attr-defined]
    return any("__await__" in _namespace(base) for base in _mro(kind))


# Exceptions


def cause_of(error: BaseException) -> BaseException | None:
    """What an exception was raised from."""
    return _cause(error)


def context_of(error: BaseException) -> BaseException | None:
    """What was being handled when an exception was raised, unless that is to be left out."""
    return None if _suppress(error) else _context(error)


def traceback_of(error: BaseException) -> TracebackType | None:
    """Where an exception came through."""
    return _traceback(error)


def members_of(error: BaseException) -> tuple[BaseException, ...]:
    """What a group of exceptions holds; nothing for any other exception."""
    return _members(error) if is_a(error, BaseExceptionGroup) else ()


def unwrap(error: BaseException) -> BaseException:
    """What a group of one holds: that there was a nursery is no business of whoever sees the exception."""
    while len(members := members_of(error)) == 1:
        [error] = members
    return error


def leaves_of(error: BaseException) -> list[BaseException]:
    """The exceptions in a group and its groups, each of them once; an exception that is no group is its own."""
    found: dict[int, BaseException] = {}
    ahead = [error]
    while ahead:
        each = ahead.pop()
        if id(each) not in found:
            found[id(each)] = each
            ahead += reversed(members_of(each))
    return [each for each in found.values() if not is_a(each, BaseExceptionGroup)]


def consists_of(error: BaseException, kind: type[BaseException]) -> bool:
    """Whether an exception is of that kind, or a group of nothing else."""
    return all(is_a(leaf, kind) for leaf in leaves_of(error))


def drop_tracebacks(error: BaseException) -> None:
    """Take the traceback from an exception, and from all that are behind it or in it, but from those that end programs.

    The frames in a traceback keep whatever their variables refer to.
    """
    seen: set[int] = set()
    ahead: list[BaseException | None] = [error]
    while ahead:
        each = ahead.pop()
        if each is not None and id(each) not in seen and not issubclass(type(each), KeyboardInterrupt | SystemExit):
            seen.add(id(each))
            BaseException.with_traceback(each, None)
            ahead += (_cause(each), _context(each), *members_of(each))


def select(error: BaseException, wanted: Callable[[BaseException], bool]) -> BaseException | None:
    """What of `error` is `wanted`: the leaves of groups are asked about one by one.

    As `BaseExceptionGroup.split`, but it always comes to an end, and what it returns is an `Exception` where all the
    leaves are. A group stays the object that it is if it is wanted as a whole. Of another one, a part is made by its
    `derive` if that does what it should, and by a plain group otherwise.
    """
    chosen = [leaf for leaf in leaves_of(error) if wanted(leaf)]
    if not chosen:
        return None
    try:
        parts: dict[int, BaseException | None] = {id(leaf): leaf for leaf in chosen}
        return _part(error, parts, all(is_a(leaf, Exception) for leaf in chosen))
    except Exception:  # nested too deeply, or memory is short
        return chosen[0] if len(chosen) == 1 else BaseExceptionGroup("several exceptions", chosen)


def divisible(error: BaseException) -> BaseException:
    """`error`, but as plain groups if it is one of several kinds: a cancel scope splits those."""
    whole = select(error, lambda leaf: True)
    assert whole is not None
    return whole


def _part(error: BaseException, parts: dict[int, BaseException | None], plain: bool) -> BaseException | None:
    """The part of `error` whose leaves are in `parts`, where all that is made is entered.

    `plain` says that all of these leaves are of the class `Exception`.
    """
    if id(error) not in parts:
        members = members_of(error)
        kept = [part for member in members if (part := _part(member, parts, plain)) is not None]
        parts[id(error)] = _group(error, members, kept, plain) if kept else None
    return parts[id(error)]


def _group(
    error: BaseException, members: tuple[BaseException, ...], kept: list[BaseException], plain: bool
) -> BaseException:
    if not plain:  # Trio splits it again, so no code of the application's may be in the way
        return _dressed(BaseExceptionGroup(_message(error), kept), error)
    if is_a(error, Exception) and len(kept) == len(members) and all(map(operator.is_, kept, members)):
        return error
    return _derive(error, kept)


def _derive(error: BaseException, kept: list[BaseException]) -> BaseException:
    group: Any = error
    try:
        made: Any = group.derive(kept)
        members = members_of(made) if is_a(made, BaseExceptionGroup) and is_a(made, Exception) else ()
    except Exception:
        made, members = None, ()
    if len(members) != len(kept) or not all(map(operator.is_, members, kept)):
        made = BaseExceptionGroup(_message(error), kept)
    return _dressed(made, error)


def _dressed(made: BaseException, error: BaseException) -> BaseException:
    """`made`, a part of `error`, with the same history."""
    for name in ("__traceback__", "__cause__", "__context__", "__suppress_context__"):
        field = BaseException.__dict__[name]  # a class of the application's may refuse to have its attributes set
        field.__set__(made, field.__get__(error))
    return made
