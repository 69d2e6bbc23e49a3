"""What is not ours becomes text and is taken apart without its own code getting in the way."""

from __future__ import annotations

import ast
import asyncio
import functools
import types
from collections.abc import Callable, Generator, Sequence
from typing import Any

import pytest

from trio_crowws._foreign import (
    class_name,
    consists_of,
    describe,
    divisible,
    explain,
    is_a,
    is_awaitable,
    leaves_of,
    name_of,
    place,
    plain,
    quoted,
    quoted_text,
    select,
    text_of,
    unwrap,
)

# Text


@pytest.mark.parametrize("text", ["", "/chat", "it's", "a\\b", "ä", "a\r\nERROR b\x1b[31m", "\u2028\u202e", "\ud800"])
def test_what_a_peer_sent_is_one_line_of_ascii(text: str) -> None:
    """Short texts are quoted as `ascii` does it."""
    assert quoted(text) == ascii(text)


@pytest.mark.parametrize("char", ["a", "'", "\\", "\n", "ä", "\ufffd", "\U0001f600"])
def test_what_a_peer_sent_is_cut(char: str) -> None:
    """Whatever it takes to escape a character, the result has a limit, and no escape is cut in two."""
    shown = quoted(char * 100_000)
    assert shown.isascii()
    assert len(shown) <= 220
    assert shown.endswith(("...'", '..."'))
    assert ast.literal_eval(shown).removesuffix("...").strip(char) == ""


def test_a_cut_of_another_length() -> None:
    """The limit can be given, and a text that fits exactly is whole."""
    assert quoted("x" * 10, 10) == repr("x" * 10)
    assert quoted("x" * 11, 10) == repr("x" * 10 + "...")
    assert quoted("é" * 2, 8) == r"'\xe9\xe9'"
    assert quoted("é" * 3, 8) == r"'\xe9\xe9...'"


class Endless:
    """Its repr and str never come to an end."""

    def __repr__(self) -> str:
        return repr([self, object.__new__(Endless)]) and repr(Endless())

    __str__ = __repr__


class Raising:
    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __repr__(self) -> str:
        raise self._error


class NoText:
    def __repr__(self) -> Any:
        return 5


class Forging:
    def __repr__(self) -> str:
        return "a\nERROR b\x1b[31m\u202e"


class Long:
    def __repr__(self) -> str:
        return "x" * 10_000_000


class OddText(str):
    """A text with methods of its own."""

    __slots__ = ()

    def isascii(self) -> bool:
        raise ValueError

    def __len__(self) -> int:
        raise ValueError

    __getitem__ = isprintable = __len__  # type: ignore[assignment]


class Odd:
    def __repr__(self) -> str:
        return OddText("odd\n")


REPRS = {
    "endless": (Endless(), "<Endless whose repr raises RecursionError>"),
    "raising": (Raising(ValueError()), "<Raising whose repr raises ValueError>"),
    "out of memory": (Raising(MemoryError()), "<Raising whose repr raises MemoryError>"),
    "no text": (NoText(), "<NoText whose repr raises TypeError>"),
    "forging": (Forging(), r"a\nERROR b\x1b[31m\u202e"),
    "long": (Long(), "x" * 1000 + "... (10000000 characters)"),
    "a class of its own": (Odd(), r"odd\n"),
    "common": ({"a": [1, "b"]}, "{'a': [1, 'b']}"),
}


@pytest.mark.parametrize("name", REPRS)
def test_a_description(name: str) -> None:
    """Any object can be described, in one line of ASCII."""
    value, expected = REPRS[name]
    assert describe(value) == expected


@pytest.mark.parametrize("name", REPRS)
def test_the_text_of_an_exception(name: str) -> None:
    """Any exception has a text; where it has none, that is the text."""
    value, expected = REPRS[name]
    error = ValueError(value)
    if "whose repr raises" in expected:
        expected = f"<no text: its str raises {expected.split()[-1].rstrip('>')}>"
        assert explain(error) == f"ValueError: {expected}"
    assert text_of(error) == expected
    assert len(explain(error)) < 250
    assert quoted_text(error).isascii()


def test_what_is_no_exception_passes() -> None:
    """A repr that wants to end the program does."""
    with pytest.raises(SystemExit):
        describe(Raising(SystemExit()))


def test_places() -> None:
    """Addresses are shown as they are, paths quoted."""
    assert place(("::1", 80)) == ("::1", 80)
    assert place(None) is None
    assert place("/run/a\nb") == r"'/run/a\nb'"


# Names


class Meta(type):
    """A metaclass whose classes cannot be asked anything."""

    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError(name)


class Mute(metaclass=Meta):
    """An object that answers nothing; nor does its class."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __repr__(self) -> str:
        raise RuntimeError

    def __call__(self) -> None:
        """Nothing."""


class Plain:
    def method(self) -> None:
        """Nothing."""

    def __repr__(self) -> str:
        raise RuntimeError


class Lying:
    """Claims to be an exception, a coroutine, whatever."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError

    @__class__.setter
    def __class__(self, value: Any) -> None:
        """Nothing."""


def a_function() -> None:
    """Nothing."""


def forged() -> None:
    """Nothing."""


forged.__qualname__ = "a\nERROR b"

endless_partial: Any = functools.partial(a_function)
endless_partial.__setstate__((endless_partial, (), {}, {}))

NAMES: dict[str, tuple[object, str]] = {
    "function": (a_function, "a_function"),
    "method": (Plain().method, "Plain.method"),
    "partial": (functools.partial(functools.partial(Plain().method)), "Plain.method"),
    "builtin": (len, "len"),
    "method of a builtin": ([].append, "append"),
    "class": (Plain, "Plain"),
    "class of a metaclass": (Mute, "Mute"),
    "object": (Plain(), "Plain"),
    "object that raises": (Mute(), "Mute"),
    "wrapped": (functools.lru_cache(a_function), "a_function"),
    "a name of several lines": (forged, r"a\nERROR b"),
    "method of an object that raises": (types.MethodType(a_function, Mute()), "a_function"),
    "partial of itself": (endless_partial, "partial"),
    "nothing": (None, "NoneType"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name(name: str) -> None:
    """Whatever can be called has a name, and none of its code runs for that."""
    function, expected = NAMES[name]
    assert name_of(function) == expected


def test_the_name_of_a_class() -> None:
    """The class of an object that lies or does not answer."""
    assert class_name(Lying()) == "Lying"
    assert class_name(Mute()) == "Mute"
    assert class_name(type("a\nb", (), {})()) == r"a\nb"


def test_kinds() -> None:
    """An object is what it is, whatever it claims."""
    assert is_a(ValueError(), Exception)
    assert not is_a(Lying(), Exception)
    assert not is_a(Mute(), Exception)


async def coroutine() -> None:
    """Nothing."""


@types.coroutine
def old_coroutine() -> Generator[None]:
    yield


def generator() -> Generator[None]:
    yield


class Awaitable:
    def __await__(self) -> Generator[None]:
        yield


class Sub(Awaitable):
    pass


def test_what_can_be_awaited() -> None:
    """Coroutines of both kinds and objects with `__await__` can; others cannot, and are not asked."""
    fresh = coroutine()
    assert all(map(is_awaitable, (fresh, old_coroutine(), Awaitable(), Sub())))
    fresh.close()
    loop = asyncio.new_event_loop()
    assert is_awaitable(loop.create_future())
    loop.close()
    assert not any(map(is_awaitable, (None, 1, True, generator(), Lying(), Mute(), coroutine, Awaitable)))


# Groups


class Stop(BaseException):
    """What is no Exception."""


def derive_raises(self: Any, excs: Any) -> Any:
    raise RuntimeError


def attribute_raises(self: Any) -> Any:
    raise RuntimeError


def derive_returns_itself(self: Any, excs: Any) -> Any:
    return self


def derive_returns_something(self: Any, excs: Any) -> Any:
    return "something"


def derive_loses_one(self: Any, excs: Any) -> Any:
    return type(self)("", excs[:-1] or [ValueError()])


BROKEN: dict[str, dict[str, Any]] = {
    "derive raises": {"derive": derive_raises},
    "derive returns itself": {"derive": derive_returns_itself},
    "derive returns something": {"derive": derive_returns_something},
    "derive loses one": {"derive": derive_loses_one},
    "split raises": {"split": derive_raises, "subgroup": derive_raises},
    "is false": {"__bool__": derive_raises, "__len__": derive_raises, "__eq__": derive_raises, "__hash__": None},
    "attributes raise": {"exceptions": property(attribute_raises), "message": property(attribute_raises)},
    "attributes cannot be set": {"__setattr__": derive_raises},
}


def broken(name: str, base: type[Any], members: list[BaseException]) -> Any:
    return type("Broken", (base,), dict(BROKEN[name]))("several", members)


def is_exception(leaf: BaseException) -> bool:
    return is_a(leaf, Exception)


def same(found: BaseException | None, expected: Sequence[BaseException]) -> bool:
    assert found is not None
    return list(map(id, leaves_of(found))) == list(map(id, expected))


@pytest.mark.parametrize("base", [BaseExceptionGroup, ExceptionGroup])
@pytest.mark.parametrize("name", BROKEN)
def test_a_group_that_is_broken_is_taken_apart(name: str, base: Any) -> None:
    """Whatever the class of a group has made of its methods, every leaf is found where it belongs."""
    one, two, three, stop = ValueError(), TypeError(), KeyError(), Stop()
    inner = broken(name, base, [one, two])
    for error in (inner, broken(name, base, [inner, three])):
        all_of_them = [one, two] if error is inner else [one, two, three]
        assert same(select(error, is_exception), all_of_them)
        assert select(error, lambda leaf: is_a(leaf, Stop)) is None
        some = select(error, lambda leaf: leaf is not two)
        assert same(some, [leaf for leaf in all_of_them if leaf is not two])
        assert is_a(some, Exception)
    if base is BaseExceptionGroup:
        error = broken(name, base, [inner, stop])
        assert same(select(error, is_exception), [one, two])
        assert is_a(select(error, is_exception), Exception)
        rest = select(error, lambda leaf: is_a(leaf, Stop))
        assert type(rest) is BaseExceptionGroup
        assert same(rest, [stop])
        assert type(divisible(error)) is BaseExceptionGroup
        assert same(divisible(error), [one, two, stop])


def test_a_group_that_is_wanted_as_a_whole_stays_itself() -> None:
    """Its class, notes and traceback are what the application wants to see."""
    group = ExceptionGroup("", [ValueError(), ExceptionGroup("", [TypeError(), KeyError()])])
    assert select(group, is_exception) is group
    assert divisible(group) is group
    error = ValueError()
    assert select(error, is_exception) is error
    assert divisible(error) is error


def test_a_part_of_a_group_is_of_its_class() -> None:
    """`derive` is asked where it works, and the part has the history of the whole."""

    class Own(ExceptionGroup[Exception]):
        def derive(self, excs: Any) -> Any:
            return Own("derived", excs)

    try:
        try:
            raise KeyError
        except KeyError as error:
            raise Own("several", [ValueError(), TypeError()]) from error
    except Own as error:
        group = error
    part = select(group, lambda leaf: is_a(leaf, ValueError))
    assert type(part) is Own
    assert part.message == "derived"
    assert part.__traceback__ is group.__traceback__
    assert part.__cause__ is part.__context__ is group.__cause__


def test_groups_that_are_nested_without_end() -> None:
    """Depth is no obstacle, and what is there twice is looked at once."""
    error: Any = ValueError()
    other = TypeError()
    for _ in range(5000):
        error = ExceptionGroup("", [error, other])
    assert len(leaves_of(error)) == 2
    assert same(select(error, lambda leaf: leaf is other), [other])
    assert len(leaves_of(select(error, is_exception) or other)) == 2
    wide: ExceptionGroup[Any] = ExceptionGroup("", [ValueError()])
    for _ in range(60):
        wide = ExceptionGroup("", [wide, wide])
    assert len(leaves_of(wide)) == 1
    assert id(select(wide, is_exception)) == id(wide)
    assert len(leaves_of(divisible(BaseExceptionGroup("", [wide, Stop()])))) == 2


def test_groups_of_one() -> None:
    """They are unwrapped, however deep they are, and others are not."""
    error = ValueError()
    wrapped: Any = error
    for _ in range(5000):
        wrapped = ExceptionGroup("", [wrapped])
    assert unwrap(wrapped) is error
    assert unwrap(error) is error
    group = ExceptionGroup("", [error, error])
    assert unwrap(group) is group


def test_groups_of_one_kind() -> None:
    """All the leaves count."""
    assert consists_of(BaseExceptionGroup("", [Stop(), ExceptionGroup("", [ValueError()])]), BaseException)
    assert not consists_of(BaseExceptionGroup("", [Stop(), ValueError()]), Exception)
    assert consists_of(Stop(), Stop)


@pytest.mark.parametrize("function", [plain, quoted])
def test_text_of_a_hundred_megabytes_is_not_looked_at_in_full(function: Callable[[str], str]) -> None:
    """The work for a text has a limit, as the result has one."""
    assert len(function("\n" * 100_000_000)) < 1100
