"""Paths and what is found at them: parameters, priorities, percent-encoding, and the small HTTP routes."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import trio

from support.rawclient import Answer, open_raw, plain, serving, upgrade
from trio_crowws import Accept, App, Connection, Reject, Request, Response


def app_of(*templates: str) -> App:
    """An application that says on each of its routes which one it is, and with which parameters it was asked for."""
    app = App()
    for template in templates:

        @app.websocket(template).on_open
        def tell(conn: Connection, template: str = template) -> None:
            conn.send_nowait(json.dumps([template, conn.request.path_params]))

    return app


async def find(app: App, path: str) -> list[Any] | None:
    """Template and parameters of the route that a path leads to."""
    async with serving(app) as server, open_raw(server) as client:
        await client.send(upgrade(path))
        answer = await client.read_answer()
        if answer.status == 404:
            return None
        assert answer.status == 101
        found: list[Any] = json.loads((await client.read_frame()).payload)
        return found


async def get(app: App, path: str, method: str = "GET") -> Answer:
    async with serving(app) as server, open_raw(server) as client:
        await client.send(plain(path, method=method))
        return await client.refused(to_head=method == "HEAD")


# Parameters


@pytest.mark.parametrize(
    ("template", "path", "parameters"),
    [
        ("/", "/", {}),
        ("/", "http://example.org", {}),
        ("/a/b", "/a/b", {}),
        ("/a/", "/a/", {}),
        ("/room/{name}", "/room/lobby", {"name": "lobby"}),
        ("/room/{name:str}", "/room/lobby", {"name": "lobby"}),
        ("/room/{name}", "/room/42", {"name": "42"}),
        ("/room/{name}/{who}", "/room/a/b", {"name": "a", "who": "b"}),
        ("/{name}/end", "/a/end", {"name": "a"}),
        ("/user/{id:int}", "/user/42", {"id": 42}),
        ("/user/{id:int}", "/user/-7", {"id": -7}),
        ("/user/{id:int}", "/user/007", {"id": 7}),
        ("/user/{id:int}", "/user/999999999999999999", {"id": 999999999999999999}),
        ("/files/{rest:path}", "/files/a/b/c", {"rest": "a/b/c"}),
        ("/files/{rest:path}", "/files/", {"rest": ""}),
        ("/files/{rest:path}", "/files//a//", {"rest": "/a//"}),
        ("/{rest:path}", "/", {"rest": ""}),
        ("/{user}/{rest:path}", "/ann/x/y", {"user": "ann", "rest": "x/y"}),
    ],
)
async def test_a_path_matches(template: str, path: str, parameters: dict[str, Any]) -> None:
    """A path that fits a template is found, and the values of the parameters have their types."""
    assert await find(app_of(template), path) == [template, parameters]


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ("/", "/a"),
        ("/a", "/"),
        ("/a", "/A"),
        ("/a", "/a/"),
        ("/a", "//a"),
        ("/a/", "/a"),
        ("/room/{name}", "/room/"),
        ("/room/{name}", "/room"),
        ("/room/{name}", "/room/a/b"),
        ("/user/{id:int}", "/user/x"),
        ("/user/{id:int}", "/user/4.2"),
        ("/user/{id:int}", "/user/+4"),
        ("/user/{id:int}", "/user/4_2"),
        ("/user/{id:int}", "/user/--4"),
        ("/user/{id:int}", "/user/-"),
        ("/user/{id:int}", "/user/%D9%A4"),
        ("/user/{id:int}", "/user/" + "9" * 5000),
        ("/files/{rest:path}", "/files"),
    ],
)
async def test_a_path_does_not_match(template: str, path: str) -> None:
    """A path that does not fit exactly is a 404."""
    assert await find(app_of(template), path) is None


@pytest.mark.parametrize(
    ("templates", "path", "template"),
    [
        (["/{rest:path}", "/{name}", "/{id:int}", "/1"], "/1", "/1"),
        (["/{rest:path}", "/{name}", "/{id:int}"], "/1", "/{id:int}"),
        (["/{rest:path}", "/{name}", "/{id:int}"], "/a", "/{name}"),
        (["/{rest:path}", "/{name}", "/{id:int}"], "/a/b", "/{rest:path}"),
        # Each segment decides before the next one, and a way that leads nowhere is taken back.
        (["/{a}/x", "/s/{b}"], "/s/x", "/s/{b}"),
        (["/s/y", "/{a}/x"], "/s/x", "/{a}/x"),
        (["/{a:int}/x", "/{b}/y"], "/1/y", "/{b}/y"),
        (["/a/b/c", "/a/{rest:path}"], "/a/b/d", "/a/{rest:path}"),
        (["/a/{b}/c", "/{rest:path}"], "/a/b/d", "/{rest:path}"),
    ],
)
async def test_priorities(templates: list[str], path: str, template: str) -> None:
    """Static segments go before int, int before str, str before path, whatever the order of registration."""
    for order in (templates, templates[::-1]):
        found = await find(app_of(*order), path)
        assert found is not None
        assert found[0] == template


async def test_parameters_of_a_way_taken_back_are_gone() -> None:
    """Only the parameters of the route that was found have values."""
    app = app_of("/{a:int}/{b}/x", "/{c}/{rest:path}")
    assert await find(app, "/1/2/y") == ["/{c}/{rest:path}", {"c": "1", "rest": "2/y"}]


async def test_the_same_parameter_may_have_other_names() -> None:
    """Two routes may call the same segment by different names."""
    app = app_of("/{a}/x", "/{b}/y")
    assert await find(app, "/1/x") == ["/{a}/x", {"a": "1"}]
    assert await find(app, "/1/y") == ["/{b}/y", {"b": "1"}]


@pytest.mark.parametrize(
    ("template", "path", "parameters"),
    [
        ("/room/{name}", "/room/a%20b", {"name": "a b"}),
        ("/room/{name}", "/room/a+b", {"name": "a+b"}),
        ("/room/{name}", "/room/a%2Fb", {"name": "a/b"}),
        ("/room/{name}", "/room/a%2fb%2F", {"name": "a/b/"}),
        ("/room/{name}", "/room/%C3%BC", {"name": "\xfc"}),
        ("/room/{name}", "/room/%ff", {"name": "\ufffd"}),
        ("/room/{name}", "/room/%", {"name": "%"}),
        ("/room/{name}", "/room/%zz", {"name": "%zz"}),
        ("/room/{name}", "/room/%252F", {"name": "%2F"}),
        ("/room/{name}", "/room/a%00b", {"name": "a\0b"}),
        ("/room/{name}", "/room/..", {"name": ".."}),
        ("/room/{name}", "/room/%3F?x=/y", {"name": "?"}),
        ("/user/{id:int}", "/user/%34%32", {"id": 42}),
        ("/files/{rest:path}", "/files/a%2Fb/c%20d", {"rest": "a/b/c d"}),
        ("/caf\xe9", "/caf%C3%A9", {}),
        ("/caf%C3%A9", "/caf%C3%A9", {}),
        ("/a%20b", "/a%20b", {}),
        ("/a%2Fb", "/a%2fb", {}),
        ("/abc", "/%61bc", {}),
    ],
)
async def test_percent_encoding(template: str, path: str, parameters: dict[str, Any]) -> None:
    """Segments are decoded one by one, so an encoded slash is no separator; a template may be encoded or not."""
    assert await find(app_of(template), path) == [template, parameters]


async def test_an_encoded_slash_separates_nothing() -> None:
    """A %2F does not lead to the route that a slash leads to."""
    assert await find(app_of("/a/b"), "/a%2Fb") is None


async def test_the_path_is_decoded_for_the_application() -> None:
    """request.path is decoded, request.raw_path is not, and the query is not part of them."""
    seen: list[Request] = []
    app = App()
    app.websocket("/{rest:path}").onaccept(seen.append).onmessage(lambda conn, message: None)
    async with serving(app) as server, open_raw(server) as client:
        await client.upgrade("/a%20b/%C3%BC?q=1%202&q=3&r")
    [request] = seen
    assert (request.path, request.raw_path) == ("/a b/\xfc", "/a%20b/%C3%BC")
    assert (request.query["q"], request.query.get_all("q"), request.query["r"]) == ("1 2", ("1 2", "3"), "")


# Templates that are refused


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "must begin with '/'"),
        ("chat", "must begin with '/'"),
        ("http://example.org/", "must begin with '/'"),
        ("/a?b", "hold no query"),
        ("/a#b", "or '#'"),
        ("/a b", "space"),
        ("/a\n", "space"),
        ("/{", "a parameter is a whole segment"),
        ("/}", "a parameter is a whole segment"),
        ("/{}", "a parameter is a whole segment"),
        ("/{a", "a parameter is a whole segment"),
        ("/a}", "a parameter is a whole segment"),
        ("/x{a}", "a parameter is a whole segment"),
        ("/{a}x", "a parameter is a whole segment"),
        ("/{a}{b}", "a parameter is a whole segment"),
        ("/{{a}}", "a parameter is a whole segment"),
        ("/{1a}", "a parameter is a whole segment"),
        ("/{a-b}", "a parameter is a whole segment"),
        ("/{:int}", "a parameter is a whole segment"),
        ("/{a:float}", "unknown kind 'float'; allowed are int, str and path"),
        ("/{a:}x", "a parameter is a whole segment"),
        ("/{a:int:int}", "unknown kind"),
        ("/{a}/{a}", "two parameters called 'a'"),
        ("/{a}/{a:path}", "two parameters called 'a'"),
        ("/{a:path}/b", "it must come last"),
        ("/{a:path}/", "it must come last"),
    ],
)
def test_a_malformed_template_is_refused(path: str, message: str) -> None:
    """A malformed path is a ValueError where it is registered, and the message says what is wrong with it."""
    app = App()
    with pytest.raises(ValueError, match=message.replace("(", r"\(")) as caught:
        app.websocket(path)
    assert repr(path) in str(caught.value)
    with pytest.raises(ValueError, match=message):
        app.http(path)(lambda request: "")
    assert app.routes == ()


@pytest.mark.parametrize(
    ("path", "spelling"),
    [
        ("/chat/<room>", "{room}"),
        ("/chat/<string:room>/x", "{room}"),
        ("/chat/<int:id>", "{id:int}"),
        ("/chat/<int>", "{name:int}"),
        ("/chat/<uint>", "{name:int}"),
        ("/chat/<str>", "{name}"),
        ("/chat/<path>", "{rest:path}"),
        ("/chat/<path:file>", "{file:path}"),
        ("/chat/x<a>y", "{name}"),
        ("/chat/:room", "{room}"),
        ("/chat/:", "{name}"),
        ("/files/*", "{rest:path}"),
        ("/files/**", "{rest:path}"),
        ("/files/*file", "{file:path}"),
        ("/files/*.txt", "{rest:path}"),
    ],
)
def test_a_parameter_of_another_framework_is_refused(path: str, spelling: str) -> None:
    """`<name>`, `:name` and `*` would match nothing or only themselves: a ValueError says how to write it here."""
    with pytest.raises(ValueError, match="is no parameter here") as caught:
        App().websocket(path)
    assert f"write {spelling!r}" in str(caught.value)
    assert repr(path) in str(caught.value)
    with pytest.raises(ValueError, match="is no parameter here"):
        App().http(path)(lambda request: "")


async def test_a_literal_sign_is_percent_encoded() -> None:
    """What other frameworks have for parameters can be part of a path in percent-encoding; a later ':' needs none."""
    for path in ("/%3Ca%3E", "/%3Aa", "/%2A"):
        assert await find(app_of(path), path) == [path, {}]
    assert await find(app_of("/%2A"), "/*") == ["/%2A", {}]
    assert await find(app_of("/a:b"), "/a:b") == ["/a:b", {}]


@pytest.mark.parametrize("path", [None, b"/a", 5, ["/a"]])
def test_a_path_is_text(path: Any) -> None:
    """A path that is no str is a TypeError."""
    with pytest.raises(TypeError, match="a path must be a str"):
        App().websocket(path)
    with pytest.raises(TypeError, match="a path must be a str"):
        App().http(path)(lambda request: "")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/{a}", "/{b}"),
        ("/{a}", "/{a:str}"),
        ("/{a:int}", "/{b:int}"),
        ("/{a:path}", "/{b:path}"),
        ("/caf\xe9", "/caf%C3%A9"),
    ],
)
def test_a_path_is_taken_once(first: str, second: str) -> None:
    """Two routes that fit the same paths are a ValueError, whatever their parameters are called."""
    app = App()
    app.websocket(first)
    with pytest.raises(ValueError, match="is taken by another WebSocket route") as caught:
        app.websocket(second)
    assert repr(second) in str(caught.value)
    app.http(first)(lambda request: "")
    with pytest.raises(ValueError, match="is taken by another HTTP route"):
        app.http(second)(lambda request: "")


# HTTP routes


def page(result: Any, content_type: str | None = None) -> App:
    app = App()
    app.http("/page", content_type=content_type)(lambda request: result)
    return app


@pytest.mark.parametrize(
    ("result", "content_type", "body", "sent_type"),
    [
        ("caf\xe9", None, b"caf\xc3\xa9", "text/plain; charset=utf-8"),
        ("<p>", "text/html", b"<p>", "text/html"),
        ("", None, b"", None),
        (b"\xff\0", None, b"\xff\0", "application/octet-stream"),
        (b"png", "image/png", b"png", "image/png"),
        ({"a": [1, None]}, None, b'{"a": [1, null]}', "application/json"),
        ([], None, b"[]", "application/json"),
        ({}, "application/health+json", b"{}", "application/health+json"),
        (Response(body="x"), "text/html", b"x", "text/plain; charset=utf-8"),
        (Response(body="x", headers={"content-type": "a/b"}), None, b"x", "a/b"),
    ],
)
async def test_what_a_page_can_be(result: Any, content_type: str | None, body: bytes, sent_type: str | None) -> None:
    """A page returns text, bytes, something for JSON, or a Response; its type follows from that or was given."""
    answer = await get(page(result, content_type), "/page")
    assert (answer.status, answer.reason, answer.body) == (200, "OK", body)
    assert answer["Content-Type"] == sent_type
    assert answer["Content-Length"] == str(len(body))


async def test_status_and_headers_of_a_response() -> None:
    """A Response has its status and its headers, repeated ones too."""
    response = Response(503, "busy", [("Retry-After", "5"), ("X-A", "1"), ("X-A", "2")])
    answer = await get(page(response), "/page")
    assert (answer.status, answer["Retry-After"], answer.all("X-A")) == (503, "5", ["1", "2"])


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_without_a_body(status: int) -> None:
    """A 204 and a 304 have neither a body nor a length."""
    answer = await get(page(Response(status)), "/page")
    assert (answer.status, answer["Content-Length"]) == (status, None)


async def test_head() -> None:
    """A HEAD gets the head of the GET, the length included, and no body."""
    for path in ("/page", "/failing", "/refusing"):
        app = page("hello")
        app.http("/failing")(lambda request: 1 / 0)
        app.http("/refusing")(lambda request: Reject(404, "nothing"))
        answer, body = await get(app, path, "HEAD"), await get(app, path)
        assert (answer.status, answer.headers) == (body.status, body.headers)
        assert answer.body == b""
        assert body.body != b""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get"])
async def test_pages_are_read_only(method: str) -> None:
    """Every method but GET and HEAD is a 405 that says so."""
    answer = await get(page("x"), "/page", method)
    assert (answer.status, answer["Allow"]) == (405, "GET, HEAD")


async def test_an_async_page_and_its_parameters() -> None:
    """A page may be async, and has parameters as a route does."""
    app = App()

    @app.http("/user/{id:int}/{rest:path}")
    async def user(request: Request) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return request.path_params

    assert (await get(app, "/user/4/a/b%2F")).body == b'{"id": 4, "rest": "a/b/"}'


@pytest.mark.parametrize("raised", [False, True])
async def test_a_page_can_refuse(raised: bool) -> None:
    """A page may return or raise a Reject."""
    app = App()

    @app.http("/page")
    def refuse(request: Request) -> Reject:
        reject = Reject(401, "who?", {"WWW-Authenticate": "Bearer"})
        if raised:
            raise reject
        return reject

    answer = await get(app, "/page")
    assert (answer.status, answer.body, answer["WWW-Authenticate"]) == (401, b"who?", "Bearer")


def _deep() -> list[Any]:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    return deep


class _BadStatus(Response):
    def __init__(self) -> None:
        super().__init__()
        self.status = 101


@pytest.mark.parametrize(
    "result",
    [None, 5, True, object(), ("a",), {"a": object()}, {"a": {1, 2}}, "\ud800", Accept(), _deep(), _BadStatus()],
    ids=lambda value: type(value).__name__,
)
async def test_a_page_that_cannot_be_sent(result: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What a page cannot return is a 500 without detail, and an error in the log; the server goes on."""
    app = page(result)
    app.http("/fine")(lambda request: "fine")
    async with serving(app) as server:
        for path, status in (("/page", 500), ("/fine", 200)):
            async with open_raw(server) as client:
                await client.send(plain(path))
                answer = await client.refused()
                assert answer.status == status
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


async def test_a_page_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """An exception in a page is a 500 that says nothing, and a traceback in the log."""
    app = App()

    @app.http("/page")
    async def fail(request: Request) -> str:
        raise KeyError("the secret")

    answer = await get(app, "/page")
    assert (answer.status, answer.body) == (500, b"internal server error\n")
    [error] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert error.exc_info is not None
    assert error.exc_info[0] is KeyError


async def test_a_page_that_takes_too_long() -> None:
    """A page has the time of a handshake; then it is a 503."""
    app = App(handshake_timeout=0.1)

    @app.http("/page")
    async def sleep(request: Request) -> str:
        await trio.sleep_forever()
        return ""

    assert (await get(app, "/page")).status == 503


async def test_a_large_page() -> None:
    """A page of megabytes arrives whole."""
    body = bytes(range(256)) * 16384
    assert (await get(page(body), "/page")).body == body


@pytest.mark.parametrize("content_type", ["a/b\r\nX-A: c", "\u0142"])
def test_a_wrong_content_type_is_refused(content_type: str) -> None:
    """A content type that no header can hold is refused where it is registered."""
    with pytest.raises(ValueError, match="Content-Type"):
        App().http("/page", content_type=content_type)


@pytest.mark.parametrize("function", [lambda: "", lambda request, more: "", lambda *, request: "", "text", None])
def test_a_page_takes_a_request(function: Any) -> None:
    """A page that does not take a request is refused where it is registered."""
    with pytest.raises(TypeError, match=r"the HTTP route '/page'"):
        App().http("/page")(function)


def test_the_decorator_returns_the_function() -> None:
    """A page stays the function that it was."""
    app = App()

    def health(request: Request) -> str:
        return "ok"

    assert app.http("/healthz")(health) is health
    assert app.middleware(lambda request: None) is not None


# Pages and sockets together


async def test_one_path_for_page_and_socket() -> None:
    """One path may be a page and a WebSocket: who asks for an upgrade gets the socket, who does not gets the page."""
    app = page("hello")
    app.websocket("/page").onopen(lambda conn: conn.send_nowait("open"))
    async with serving(app) as server:
        async with open_raw(server) as client:
            await client.send(plain("/page"))
            assert (await client.refused()).body == b"hello"
        async with open_raw(server) as client:
            await client.upgrade("/page")
            assert (await client.read_frame()).payload == b"open"
        async with open_raw(server) as client:
            await client.send(plain("/page", method="POST"))
            assert (await client.refused())["Allow"] == "GET, HEAD"


async def test_a_page_ignores_an_offer_to_upgrade() -> None:
    """A server need not upgrade (RFC 9110 section 7.8): where there is only a page, it is the answer."""
    async with serving(page("hello")) as server, open_raw(server) as client:
        await client.send(upgrade("/page"))
        assert (await client.refused()).body == b"hello"


@pytest.mark.parametrize(
    ("request_head", "status", "body"),
    [
        (b"GET /page HTTP/1.0\r\n\r\n", 200, b"hello"),
        (b"GET http://h/page HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 200, b"hello"),
        (b"HEAD /page HTTP/1.0\r\n\r\n", 200, b""),
        (b"OPTIONS /page HTTP/1.0\r\n\r\n", 405, None),
        (b"GET /nowhere HTTP/1.0\r\n\r\n", 404, None),
        (upgrade("/page", version="HTTP/1.0"), 200, b"hello"),
        (upgrade("/chat", version="HTTP/1.0"), 426, None),
        (b"GET /page HTTP/2.0\r\n\r\n", 505, None),
    ],
)
async def test_http_1_0(request_head: bytes, status: int, body: bytes | None) -> None:
    """HTTP/1.0 is answered as HTTP/1.1 is, and the connection closes; only a WebSocket it cannot open."""
    app = page("hello")
    app.websocket("/chat").onopen(lambda conn: None)
    async with serving(app) as server, open_raw(server) as client:
        await client.send(request_head)
        answer = await client.refused(to_head=request_head.startswith(b"HEAD"))
    assert answer.status == status
    if body is not None:
        assert (answer.body, answer["Content-Length"], answer["Connection"]) == (body, "5", "close")


async def test_a_plain_get_on_a_socket() -> None:
    """Where there is only a WebSocket, a plain GET is a 426."""
    assert (await get(app_of("/chat/{room}"), "/chat/lobby")).status == 426


async def test_an_empty_application() -> None:
    """An application without routes answers everything with a 404."""
    assert (await get(App(), "/")).status == 404


async def test_a_large_text_is_encoded_once() -> None:
    """A large text that a page returns again is the same bytes for all who read it; another one is encoded anew."""
    texts = ["ä" * 100_000, "ö" * 100_000]
    app = App()
    app.http("/page")(lambda request: texts[0])
    route = app._find_page(["page"])[0]  # type: ignore[index]
    for _ in range(2):
        answer = await get(app, "/page")
        assert (answer.body.decode(), answer["Content-Type"]) == (texts[0], "text/plain; charset=utf-8")
        assert route.encode(texts[0]) is route.encode(texts[0])
        texts.reverse()


async def test_a_large_text_that_cannot_be_sent(caplog: pytest.LogCaptureFixture) -> None:
    """A large text that is no Unicode is an internal error, as a small one is."""
    assert (await get(page("\ud800" * 100_000), "/page")).status == 500
