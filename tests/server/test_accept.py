"""Who gets in: `on_accept`, origins, subprotocols, middleware and the limit of connections, seen from the wire."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from support.rawclient import Answer, assert_serves, echo_app, open_raw, plain, reset, serving, upgrade
from trio_crowws import Accept, App, Connection, Handler, Reject, Request, Response

INTERNAL = b"internal server error\n"

Decision = Callable[[Request], object]


def deciding(decision: Decision | Callable[[Request], Awaitable[object]], **options: Any) -> App:
    """An application that echoes at `/echo` to whom `decision` lets in."""
    app = echo_app(**options)
    app.routes[0].on_accept(decision)
    return app


async def ask(app: App, data: bytes | None = None) -> Answer:
    """The answer to one request, be it a refusal or a 101; the server must be able to serve on."""
    async with serving(app) as server, open_raw(server) as client:
        await client.send(upgrade() if data is None else data)
        answer = await client.read_answer()
        if answer.status == 101:
            await client.assert_echoes()
            await client.close()
        else:
            assert await client.read_to_end() == b""
        return answer


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


def returning(value: object) -> list[Decision | Callable[[Request], Awaitable[object]]]:
    """A plain and an async function that return `value`."""

    def decide(request: Request) -> object:
        return value

    async def decide_async(request: Request) -> object:
        await trio.lowlevel.checkpoint()
        return value

    return [decide, decide_async]


def raising(error: Exception) -> list[Decision | Callable[[Request], Awaitable[object]]]:
    def decide(request: Request) -> object:
        raise error

    async def decide_async(request: Request) -> object:
        await trio.lowlevel.checkpoint()
        raise error

    return [decide, decide_async]


# on_accept

UNAUTHORIZED = Reject(401, "who?", {"WWW-Authenticate": "Basic"})


@pytest.mark.parametrize("decision", [*returning(None), *returning(True), *returning(Accept())])
async def test_none_true_and_accept_let_in(decision: Decision) -> None:
    """None, True and an Accept are a 101, from a plain and from an async function."""
    assert (await ask(deciding(decision))).status == 101


@pytest.mark.parametrize("decision", returning(False))
async def test_false_is_forbidden(decision: Decision) -> None:
    """False is a 403 with a small body."""
    answer = await ask(deciding(decision))
    assert (answer.status, answer.reason, answer.body) == (403, "Forbidden", b"forbidden\n")


@pytest.mark.parametrize(
    "decision",
    [*returning(UNAUTHORIZED), *raising(UNAUTHORIZED)],
)
async def test_a_reject_is_the_answer(decision: Decision, caplog: pytest.LogCaptureFixture) -> None:
    """A Reject, returned or raised, is sent as it is, with its status, headers and body; it is no error."""
    answer = await ask(deciding(decision))
    assert (answer.status, answer.reason, answer.body) == (401, "Unauthorized", b"who?")
    assert answer["WWW-Authenticate"] == "Basic"
    assert answer["Content-Type"] == "text/plain; charset=utf-8"
    assert errors(caplog) == []


async def test_a_reject_from_a_nursery_is_the_answer() -> None:
    """A Reject that leaves on_accept wrapped in the group of a nursery is the answer all the same."""

    async def decide(request: Request) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise Reject(404)

    assert (await ask(deciding(decide))).status == 404


async def test_a_reject_without_a_body() -> None:
    """A Reject without a body has a length of 0."""
    answer = await ask(deciding(lambda request: Reject(403)))
    assert (answer["Content-Length"], answer["Content-Type"], answer.body) == ("0", None, b"")


async def test_a_redirect() -> None:
    """A Reject can send the client elsewhere."""
    answer = await ask(deciding(lambda request: Reject(307, headers={"Location": "wss://example.org/"})))
    assert (answer.status, answer["Location"]) == (307, "wss://example.org/")


@pytest.mark.parametrize("status", [101, 199, 200, 299, 600, True, "403", None])
def test_a_reject_refuses(status: Any) -> None:
    """A Reject cannot have a status that does not refuse."""
    with pytest.raises(ValueError, match="300 to 599"):
        Reject(status)


@pytest.mark.parametrize("status", [101, 199, 600, False, "200"])
def test_a_response_is_final(status: Any) -> None:
    """A Response cannot have a status that is not final."""
    with pytest.raises(ValueError, match="200 to 599"):
        Response(status)


@pytest.mark.parametrize("kind", [Reject, Response])
def test_a_body_is_text_or_bytes(kind: Any) -> None:
    """The body of an answer is str or bytes."""
    with pytest.raises(TypeError, match="str or bytes, not dict"):
        kind(400, {})


@pytest.mark.parametrize("value", [0, 1, 200, "", "no", b"", [], (), object, Response(200), (True, None), float("nan")])
async def test_another_value_is_an_internal_error(value: object, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever else on_accept returns does not let in: it is a 500, and an error in the log."""
    for decision in returning(value):
        caplog.clear()
        answer = await ask(deciding(decision))
        assert (answer.status, answer.body) == (500, INTERNAL)
        [error] = errors(caplog)
        assert "on_accept returned" in error.getMessage()
        assert "None, True, False, Accept or Reject" in error.getMessage()


@pytest.mark.parametrize(
    "decision", [*raising(ValueError("the secret")), *raising(ExceptionGroup("", [KeyError("the secret")]))]
)
async def test_an_exception_is_an_internal_error_without_detail(
    decision: Decision, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception is a 500 that says nothing, and an error with its traceback in the log; the server goes on."""
    app = deciding(decision)
    app.websocket("/fine").onmessage(lambda conn, message: conn.send_nowait(message))
    async with serving(app) as server:
        async with open_raw(server) as client:
            await client.send(upgrade())
            answer = await client.refused()
        await assert_serves(server, "/fine")
    assert (answer.status, answer.body) == (500, INTERNAL)
    assert b"secret" not in repr(answer).encode()
    [error] = errors(caplog)
    assert error.exc_info is not None
    assert "the secret" in str(error.exc_info[1])


async def test_a_plain_function_that_returns_a_coroutine(caplog: pytest.LogCaptureFixture) -> None:
    """A plain on_accept that returns a coroutine, which is true, does not let in."""

    async def decide(request: Request) -> bool:
        return False

    answer = await ask(deciding(lambda request: decide(request)))
    assert answer.status == 500
    assert "declare it with async def" in errors(caplog)[0].getMessage()


class Misbehaved(Reject):
    """A Reject that lacks everything."""

    def __init__(self) -> None:
        pass


class Unprintable:
    def __repr__(self) -> str:
        raise ValueError("no repr")


def _with_bad_headers(request: Request) -> Accept:
    accept = Accept()
    accept.headers = (("X-A", "b\r\nSet-Cookie: c"),)
    return accept


@pytest.mark.parametrize("decision", [*returning(Misbehaved()), *returning(Unprintable()), _with_bad_headers])
async def test_objects_that_misbehave_cost_one_request(decision: Decision, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the objects do that on_accept returns, the peer gets a 500 and the server goes on."""
    app = deciding(decision)
    app.websocket("/fine").onmessage(lambda conn, message: conn.send_nowait(message))
    async with serving(app) as server:
        async with open_raw(server) as client:
            await client.send(upgrade())
            assert (await client.refused()).status == 500
        await assert_serves(server, "/fine")
    assert len(errors(caplog)) == 1


async def test_a_decision_that_takes_too_long() -> None:
    """A decision that is not there when the time of the handshake is over is cancelled: 503 with Retry-After."""
    ended = trio.Event()

    async def decide(request: Request) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with serving(deciding(decide, handshake_timeout=0.1)) as server, open_raw(server) as client:
        await client.send(upgrade())
        answer = await client.refused()
        assert (answer.status, answer["Retry-After"]) == (503, "1")
        assert ended.is_set()


async def test_a_route_has_its_own_deadline() -> None:
    """A route can give its decision more time, or less, than the application gives to others."""

    async def decide(request: Request) -> None:
        await trio.sleep(0.3)

    app = App(handshake_timeout=0.15)
    for path, patience in (("/patient", 10.0), ("/hasty", 0.1)):
        app.websocket(path, handshake_timeout=patience).onaccept(decide).onmessage(lambda conn, message: None)
    async with serving(app) as server:
        async with open_raw(server) as client:
            await client.send(upgrade("/patient"))
            await client.accepted()
            reset(client)
        async with open_raw(server) as client:
            await client.send(upgrade("/hasty"))
            assert (await client.refused()).status == 503


async def test_a_peer_that_leaves_during_the_decision() -> None:
    """A peer that is gone when the decision falls was never open: on_open and on_close do not run."""
    events: list[str] = []
    asked, decide = trio.Event(), trio.Event()

    class Watch(Handler):
        async def on_accept(self, request: Request) -> None:
            asked.set()
            await decide.wait()
            events.append("decided")

        def on_open(self, conn: Connection) -> None:
            events.append("open")

        def on_close(self, conn: Connection, info: object) -> None:
            events.append("close")

    app = echo_app()
    app.websocket("/watch")(Watch)
    async with serving(app) as server:
        async with open_raw(server) as client:
            await client.send(upgrade("/watch"))
            await asked.wait()
            reset(client)
        decide.set()
        await assert_serves(server)
    assert events in (["decided"], ["decided", "open", "close"])  # a reset may be seen before or behind the 101


async def test_userdata() -> None:
    """The userdata of an Accept is the userdata of its connection, and of no other one."""
    seen: list[object] = []
    app = App()
    route = app.websocket("/echo").onaccept(lambda request: Accept(userdata=request.query["name"]))

    @route.on_open
    def opened(conn: Connection) -> None:
        seen.append(conn.userdata)

    async with serving(app) as server:
        for name in ("ann", "bob"):
            async with open_raw(server) as client:
                await client.upgrade(f"/echo?name={name}")
                await client.close()
    assert seen == ["ann", "bob"]


async def test_headers_of_the_101() -> None:
    """Headers of an Accept are on the 101, a name that comes twice in two lines."""
    cookies = (("Set-Cookie", "a=1; HttpOnly"), ("Set-Cookie", "b=2"), ("X-Served-By", " me "))
    answer = await ask(deciding(lambda request: Accept(headers=cookies)))
    assert answer.all("Set-Cookie") == ["a=1; HttpOnly", "b=2"]
    assert answer["X-Served-By"] == "me"


@pytest.mark.parametrize("kind", [Accept, Reject, Response])
@pytest.mark.parametrize("value", ["a\r\nX-B: c", "a\nb", "a\rb", "a\0b", "\x7f", "a\u0142"])
def test_a_header_cannot_break_out_of_its_line(kind: Any, value: str) -> None:
    """A value with CR, LF, NUL or another character that no header can hold is a ValueError."""
    with pytest.raises(ValueError, match="X-A"):
        kind(headers={"X-A": value})


@pytest.mark.parametrize("kind", [Accept, Reject, Response])
@pytest.mark.parametrize("name", ["", "X A", "X:A", "X\r\nA", "X\u00e9", "X-A\n"])
def test_the_name_of_a_header_is_a_token(kind: Any, name: str) -> None:
    """A name that is no token is a ValueError."""
    with pytest.raises(ValueError, match="not the name of a header"):
        kind(headers=[(name, "a")])


@pytest.mark.parametrize("kind", [Accept, Reject, Response])
@pytest.mark.parametrize(
    "name",
    ["Connection", "upgrade", "Content-Length", "TRANSFER-ENCODING", "Sec-WebSocket-Accept", "sec-websocket-protocol"],
)
def test_headers_of_the_library_are_refused(kind: Any, name: str) -> None:
    """A header that the library sets by itself is a ValueError."""
    with pytest.raises(ValueError, match="set by the library"):
        kind(headers={name: "a"})


@pytest.mark.parametrize(
    "headers", ["X-A: b", b"X-A: b", 5, [("X-A",)], [("X-A", 1)], [("X-A", b"b")], {"X-A": None}, ["ab"]]
)
def test_headers_are_pairs_of_text(headers: Any) -> None:
    """Headers that are no mapping and no pairs of str are a TypeError."""
    with pytest.raises(TypeError, match="headers must be"):
        Accept(headers=headers)


async def test_a_wrong_header_in_on_accept_is_an_internal_error() -> None:
    """An Accept that cannot be made raises in on_accept, and so it is a 500 and not a 101."""
    assert (await ask(deciding(lambda request: Accept(headers={"X-A": request.query.get("a", "b\n")})))).status == 500


# Subprotocols


def offering(*names: str) -> bytes:
    return upgrade(headers=[("Sec-WebSocket-Protocol", ", ".join(names))] if names else ())


@pytest.mark.parametrize(
    ("policy", "offered", "chosen"),
    [
        ((), ("v1",), None),
        (("v2", "v1"), ("v1", "v2"), "v2"),
        (("v2", "v1"), ("v0", "v1"), "v1"),
        (("v2", "v1"), ("v0",), None),
        (("v2",), (), None),
        (("v2",), ("V2",), None),
        ("first", ("b", "a"), "b"),
        ("first", (), None),
    ],
)
async def test_the_server_chooses_the_subprotocol(policy: Any, offered: Any, chosen: str | None) -> None:
    """The first of the server's subprotocols that is offered is chosen; with "first" the client's first one."""
    answer = await ask(echo_app(subprotocols=policy), offering(*offered))
    assert answer.status == 101
    assert answer["Sec-WebSocket-Protocol"] == chosen


async def test_on_accept_chooses_the_subprotocol() -> None:
    """An Accept with a subprotocol overrules the option, and the connection knows it."""
    seen: list[str | None] = []
    app = App(subprotocols=["v1"])
    route = app.websocket("/echo").onaccept(lambda request: Accept(subprotocol="v2"))

    @route.on_open
    def opened(conn: Connection) -> None:
        seen.append(conn.subprotocol)

    async with serving(app) as server, open_raw(server) as client:
        await client.send(offering("v1", "v2"))
        assert (await client.accepted())["Sec-WebSocket-Protocol"] == "v2"
        await client.close()
    assert seen == ["v2"]


@pytest.mark.parametrize("chosen", ["v3", "", "v1, v2", "v1\r\nX-A: b", 5])
async def test_a_subprotocol_that_was_not_offered(chosen: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A choice that the client did not offer is a 500, and an error that names it in the log."""
    answer = await ask(deciding(lambda request: Accept(subprotocol=chosen)), offering("v1", "v2"))
    assert (answer.status, answer.body) == (500, INTERNAL)
    [error] = errors(caplog)
    assert repr(chosen) in error.getMessage()


# Origins


@pytest.mark.parametrize(
    ("policy", "origin", "status"),
    [
        ("same", None, 101),
        ("same", "http://example.org", 101),
        ("same", "https://example.org", 101),
        ("same", "HTTP://EXAMPLE.ORG", 101),
        ("same", "http://example.org:80", 101),
        ("same", "http://example.org:8080", 403),
        ("same", "http://evil.example", 403),
        ("same", "http://example.org.evil.example", 403),
        ("same", "null", 403),
        ("same", "", 403),
        ("same", "example.org", 403),
        ("same", "http://\xff", 403),
        ("same", "http://[", 403),
        ("*", "null", 101),
        ("*", "http://evil.example", 101),
        (["https://app.example"], "https://app.example", 101),
        (["https://app.example"], None, 101),
        (["https://app.example"], "http://app.example", 403),
        (["https://app.example"], "http://example.org", 403),
        (["https://*.app.example"], "https://a.app.example", 101),
        (["https://*.app.example"], "https://a.b.app.example", 101),
        (["https://*.app.example"], "https://app.example", 403),
        (["https://*.app.example"], "https://evilapp.example", 403),
        (["https://*.app.example"], "https://*.app.example", 403),
        (lambda request: request.origin is None, None, 101),
        (lambda request: request.origin is None, "http://example.org", 403),
    ],
)
async def test_origins(policy: Any, origin: str | None, status: int) -> None:
    """The policy decides which pages may connect, before the application is asked."""
    asked: list[Request] = []
    app = deciding(asked.append, origins=policy)
    answer = await ask(app, upgrade(headers=[("Origin", origin)] if origin is not None else ()))
    assert answer.status == status
    assert len(asked) == (status == 101)


@pytest.mark.parametrize(
    "policy", [lambda request: 1, lambda request: None, lambda request: 1 / 0, lambda request: request.headers["no"]]
)
async def test_an_origin_policy_that_fails(policy: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A callable that raises, or does not return a bool, lets nobody in: it is a 500, and an error in the log."""
    assert (await ask(echo_app(origins=policy))).status == 500
    [error] = errors(caplog)
    assert error.exc_info is not None


# Middleware


def log_of(*names: str, app: App, log: list[str]) -> None:
    """Middlewares that only log, the second of two an async one."""
    for number, name in enumerate(names):
        if number % 2:

            async def step_async(request: Request, name: str = name) -> None:
                log.append(name)
                request.state[name] = len(log)

            app.middleware(step_async)
        else:

            def step(request: Request, name: str = name) -> bool:
                log.append(name)
                request.state[name] = len(log)
                return True

            app.middleware(step)


async def test_middlewares_run_in_order() -> None:
    """Middlewares run in the order of their registration, before on_accept, and hand values on in request.state."""
    log: list[str] = []
    app = deciding(lambda request: log.append(f"accept {request.state}"))
    log_of("one", "two", "three", app=app, log=log)
    assert (await ask(app)).status == 101
    assert log == ["one", "two", "three", "accept {'one': 1, 'two': 2, 'three': 3}"]


async def test_middlewares_run_before_pages() -> None:
    """Middlewares run before an HTTP route too, and it sees their state."""
    log: list[str] = []
    app = App()
    log_of("one", "two", app=app, log=log)
    app.http("/")(lambda request: request.state)
    answer = await ask(app, plain("/"))
    assert answer.body == b'{"one": 1, "two": 2}'


REFUSALS = [
    (lambda request: False, 403),
    (lambda request: Reject(402), 402),
    (raising(Reject(451))[0], 451),
    (raising(Reject(451))[1], 451),
    (raising(OSError("no"))[1], 500),
    (lambda request: 0, 500),
    (lambda request: "", 500),
    (lambda request: Accept(), 500),
    (lambda request: request, 500),
]


@pytest.mark.parametrize(("middleware", "status"), REFUSALS)
@pytest.mark.parametrize("data", [upgrade("/both"), plain("/both")], ids=["websocket", "http"])
async def test_a_refusal_is_binding(middleware: Decision, status: int, data: bytes) -> None:
    """What a middleware refuses is refused: nothing behind it runs, no later middleware, no on_accept and no page."""
    ran: list[str] = []
    app = App()
    app.middleware(middleware)
    app.middleware(lambda request: ran.append("second"))
    app.websocket("/both").onaccept(lambda request: ran.append("on_accept")).onopen(lambda conn: ran.append("on_open"))
    app.http("/both")(lambda request: ran.append("page"))
    assert (await ask(app, data)).status == status
    assert ran == []


async def test_a_middleware_that_takes_too_long() -> None:
    """Middlewares share the deadline of the handshake."""
    app = echo_app(handshake_timeout=0.1)

    @app.middleware
    async def sleep(request: Request) -> None:
        await trio.sleep_forever()

    assert (await ask(app)).status == 503


def test_a_middleware_takes_a_request() -> None:
    """A middleware that does not take a request is refused where it is registered."""
    with pytest.raises(TypeError, match=r"middleware is called with \(request\), but .*lambda> takes \(\)"):
        App().middleware(lambda: None)


# How many


async def test_max_connections() -> None:
    """Beyond max_connections an upgrade is a 503 with Retry-After; a place that becomes free is given away again."""
    app = echo_app(max_connections=2)
    app.http("/page")(lambda request: "here")
    async with serving(app) as server, open_raw(server) as first, open_raw(server) as second:
        await first.upgrade()
        await second.upgrade()
        for _ in range(2):
            async with open_raw(server) as third:
                await third.send(upgrade())
                answer = await third.refused()
                assert (answer.status, answer["Retry-After"]) == (503, "1")
        async with open_raw(server) as reader:
            await reader.send(plain("/page"))
            assert (await reader.refused()).body == b"here"
        await first.close()
        await trio.testing.wait_all_tasks_blocked()
        await assert_serves(server)
        await second.assert_echoes()


async def test_places_are_taken_while_deciding() -> None:
    """A place is taken from the moment of the request, so a rush cannot get past the limit; a refusal gives it back."""
    asked, decide = trio.Event(), trio.Event()

    async def wait(request: Request) -> bool:
        asked.set()
        await decide.wait()
        return False

    async with serving(deciding(wait, max_connections=1)) as server:
        async with open_raw(server) as first:
            await first.send(upgrade())
            await asked.wait()
            async with open_raw(server) as second:
                await second.send(upgrade())
                assert (await second.refused()).status == 503
            decide.set()
            assert (await first.refused()).status == 403
        async with open_raw(server) as third:
            await third.send(upgrade())
            assert (await third.refused()).status == 403


async def test_pages_take_no_places() -> None:
    """A page that takes its time is no connection."""
    asked, answer = trio.Event(), trio.Event()
    app = echo_app(max_connections=1)

    @app.http("/slow")
    async def slow(request: Request) -> str:
        asked.set()
        await answer.wait()
        return "done"

    async with serving(app) as server, open_raw(server) as reader:
        await reader.send(plain("/slow"))
        await asked.wait()
        await assert_serves(server)
        answer.set()
        assert (await reader.refused()).body == b"done"


async def test_a_peer_that_is_lost_while_it_is_decided_on() -> None:
    """Nothing is opened for a peer whose transport has broken before `on_accept` has let it in."""
    asked, decided = trio.Event(), trio.Event()
    ends: list[object] = []

    async def decide(request: Request) -> None:
        if not asked.is_set():
            asked.set()
            await decided.wait()

    app = deciding(decide)
    app.routes[0].on_close(lambda conn, info: ends.append(info))
    async with serving(app) as server:
        async with open_raw(server) as client:
            await client.send(upgrade())
            await asked.wait()
            [transport] = server._engine.transports
            transport._fail(ConnectionResetError())
            decided.set()
            await trio.testing.wait_all_tasks_blocked()
            assert server._admission.tasks == 0
        await assert_serves(server)
    assert len(ends) == 1


async def test_a_defect_costs_one_request(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What goes wrong in this package while a request is looked at is a 500 and an error in the log, and no more."""
    async with serving(echo_app()) as server:
        with monkeypatch.context() as patch:
            patch.setattr("trio_crowws._admission.check_upgrade", lambda request: 1 / 0)
            async with open_raw(server) as client:
                await client.send(upgrade())
                assert (await client.refused()).status == 500
        await assert_serves(server)
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("source", ["constructor", "origins"])
async def test_what_is_asked_first_may_end_the_program(source: str) -> None:
    """SystemExit in a constructor or in `origins` ends `serve` with it; the request is answered with a 503."""
    app = App()

    def leave(*_: object) -> bool:
        raise SystemExit(3)

    class Leaving(Handler):
        def __init__(self) -> None:
            leave()

        def on_message(self, conn: Connection, message: str) -> None:
            raise AssertionError("there is no connection")

    if source == "constructor":
        app.websocket("/echo")(Leaving)
    else:
        app.websocket("/echo", origins=leave).on_message(lambda conn, message: None)
    statuses: list[int] = []

    async def meet_the_interrupt() -> None:
        async with serving(app) as server, open_raw(server) as client:
            await client.send(upgrade())
            with trio.CancelScope(shield=True):
                statuses.append((await client.refused()).status)

    with pytest.raises(SystemExit):
        await meet_the_interrupt()
    assert statuses == [503]
