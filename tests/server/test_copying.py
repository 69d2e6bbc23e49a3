"""What applications get from this package can leave a worker process: exceptions and records are copied and pickled."""

from __future__ import annotations

import copy
import errno
import inspect
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio

import trio_crowws
import trio_crowws.testing
from trio_crowws import (
    Accept,
    App,
    Backoff,
    CloseFrame,
    CloseInfo,
    ConnectFailed,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    CrowWSError,
    Deflate,
    HandlerError,
    HandshakeError,
    Headers,
    LinkPhase,
    LinkState,
    ProtocolError,
    ProxyError,
    PublishResult,
    Reject,
    Rejected,
    Response,
    ServerResponse,
)
from trio_crowws.testing import PeerClosed, Refused

WAYS: list[Callable[[Any], Any]] = [
    copy.copy,
    copy.deepcopy,
    *(lambda value, way=way: pickle.loads(pickle.dumps(value, way)) for way in range(2, pickle.HIGHEST_PROTOCOL + 1)),
]

RESPONSE = ServerResponse(503, Headers([("Retry-After", "5"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]), b"busy")
INFO = CloseInfo(1011, "", True, "local", CloseFrame(1011), CloseFrame(1011), ProtocolError(1002, "upstream"))

ERRORS: dict[type[Exception], Exception] = {
    type(error): error
    for error in (
        HandshakeError(503, "busy", [("Retry-After", "1")]),
        ProxyError("no tunnel", RESPONSE),
        Rejected(RESPONSE, "too many redirects"),
        ConnectionClosed(INFO, "c1"),
        ConnectionClosedOK(INFO, "c2"),
        ConnectionClosedError(INFO, "client3"),
        ProtocolError(1008, "too many"),
        Reject(401, "who are you?", {"WWW-Authenticate": "Basic"}),
        Refused(403, RESPONSE.headers, b"no"),
        PeerClosed(CloseFrame(4000, "bye")),
    )
}
KINDS = sorted(
    {
        value
        for module in (trio_crowws, trio_crowws.testing)
        for name in module.__all__
        if inspect.isclass(value := getattr(module, name)) and issubclass(value, Exception)
    },
    key=lambda kind: kind.__name__,
)


def attributes(error: Exception) -> dict[str, Any]:
    """All that can be seen of an exception, its own exceptions in the same way."""
    names = [*vars(error), "args", *(("errno", "strerror") if isinstance(error, OSError) else ())]
    shown = {name: getattr(error, name) for name in names}
    return {name: _plain(value) for name, value in shown.items()} | {"str": str(error), "repr": repr(error)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if isinstance(value, CloseInfo) and value.error is not None:
        return attributes(value.error), [getattr(value, name) for name in CloseInfo.__slots__ if name != "error"]
    return value


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_is_copied_with_all_that_it_says(kind: type[Exception], way: Callable[[Any], Any]) -> None:
    """Every public exception survives copying and pickling: its class, its text and all of its attributes."""
    error = ERRORS.get(kind) or kind("what went wrong")
    error.__notes__ = ["a note"]
    again = way(error)
    assert type(again) is kind
    assert again is not error
    assert attributes(again) == attributes(error)


@pytest.mark.parametrize("way", WAYS)
def test_the_number_of_the_system_is_kept(way: Callable[[Any], Any]) -> None:
    """`ConnectFailed.errno` is set after the exception was made, and does not get lost."""
    error = ConnectFailed("cannot connect")
    error.errno = errno.ECONNREFUSED
    assert way(error).errno == errno.ECONNREFUSED


class Special(CrowWSError):
    def __init__(self, first: int, *, second: str) -> None:
        super().__init__(f"{first} and {second}")
        self.first = first


class NotHere(Reject):
    def __init__(self) -> None:
        super().__init__(404, "not here")


@pytest.mark.parametrize("way", WAYS)
def test_subclasses_need_nothing_of_their_own(way: Callable[[Any], Any]) -> None:
    """An exception of the application's own with a constructor of its own is copied like the others."""
    again = way(Special(1, second="two"))
    assert (str(again), again.first) == ("1 and two", 1)
    refusal = way(NotHere())
    assert (type(refusal), refusal.status, refusal.body) == (NotHere, 404, b"not here")


@pytest.mark.parametrize("way", WAYS)
def test_records_are_copied(way: Callable[[Any], Any]) -> None:
    """So do the records that callbacks and functions return, and what is compared stays equal."""
    records = [
        CloseFrame(None),
        CloseInfo(1000, "bye", True, "remote", CloseFrame(1000, "bye"), CloseFrame(1000, "bye"), None),
        PublishResult(1, 2, 3),
        Deflate(level=9),
        Backoff(initial=2),
        LinkState(LinkPhase.WAITING, 3, 1.5),
        RESPONSE,
        RESPONSE.headers,
        App().stats(),
        App(max_payload=None).options,
    ]
    assert [way(record) for record in records] == records


@pytest.mark.parametrize("way", WAYS)
def test_answers_are_copied(way: Callable[[Any], Any]) -> None:
    """An `Accept` and a `Response` keep what they were made with."""
    accept = way(Accept({"user": "ann"}, "v1", {"X-A": "1"}))
    assert (accept.userdata, accept.subprotocol, accept.headers) == ({"user": "ann"}, "v1", (("X-A", "1"),))
    response = way(Response(200, "fine"))
    assert (response.status, response.body) == (200, b"fine")


async def test_an_error_comes_back_from_a_worker_process() -> None:
    """An exception of a connection, as `receive` raises it, is the same on the other side of a pickle."""
    app = App()
    app.websocket("/").on_open(lambda conn: conn.close_nowait(4000, "enough"))
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.serve_stream, far)
        with pytest.raises(ConnectionClosedOK) as caught:
            async with trio_crowws.connect_stream(near, "ws://x/") as conn:
                await conn.receive()
    again = pickle.loads(pickle.dumps(caught.value))
    error = caught.value
    assert (str(again), again.info, again.connection_id) == (str(error), error.info, error.connection_id)


class Weird(Exception):
    """Python calls the class with `args` when it unpickles, and this one takes something else."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def locked() -> Exception:
    error = ValueError("busy")
    error.add_note("a note")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize("way", WAYS[1:])
@pytest.mark.parametrize("own", [Weird(1, 2), locked()], ids=["constructor", "lock"])
def test_what_cannot_be_pickled_does_not_hold_up_the_rest(own: Exception, way: Callable[[Any], Any]) -> None:
    """Where the exception of an application cannot be pickled, a `HandlerError` with its text takes its place."""
    info = CloseInfo(1011, "", False, "local", CloseFrame(1011), None, own)
    for again in (way(info), way(ConnectionClosedError(info, "c1")).info, way(PeerClosed(None, info)).info):
        assert (again.code, again.sent) == (info.code, info.sent)
        assert type(again.error) is HandlerError
        assert str(again.error) == repr(own)
        assert way(again.error).args == again.error.args


def test_a_shallow_copy_refers_to_the_same_error() -> None:
    """Nothing is pickled when an exception is copied, so its record keeps the exception of the application."""
    info = CloseInfo(1011, "", False, "local", CloseFrame(1011), None, Weird(1, 2))
    assert copy.copy(info) == info
    assert copy.copy(ConnectionClosedError(info, "c1")).info.error is info.error
