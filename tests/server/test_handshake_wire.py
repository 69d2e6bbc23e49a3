"""The opening handshake on the wire: raw bytes over a real TCP connection, and exactly one right answer for each.

Whatever a peer sends, the answer is complete, says that the connection is closed after it, and is followed by the end
of the stream; and the next peer is served.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
import trio.testing

from support.certificates import TLS
from support.heads import ACCEPT, KEY, UPGRADE
from support.rawclient import (
    Frame,
    RawClient,
    assert_serves,
    echo_app,
    head,
    open_raw,
    plain,
    reset,
    serving,
    upgrade,
)
from trio_crowws import App, Connection, Reject, Request
from trio_crowws.testing import make_frame

LINES = list(UPGRADE.items())


def changed(name: str, *values: str, version: str = "HTTP/1.1", method: str = "GET") -> bytes:
    """A request for an upgrade with other values for one header."""
    return upgrade(without=name, headers=[(name, value) for value in values], version=version, method=method)


def added(name: str, *values: str) -> bytes:
    return upgrade(headers=[(name, value) for value in values])


REFUSED = {
    # Bytes beyond ASCII where only ASCII has a meaning.
    "host-of-raw-bytes": (changed("Host", "\xff"), 400),
    "host-of-broken-punycode": (changed("Host", "xn--\x80"), 400),
    "raw-bytes-in-connection": (changed("Connection", "\xe9"), 400),
    "raw-bytes-in-upgrade": (changed("Upgrade", "\xe9"), 426),
    "raw-bytes-in-subprotocols": (added("Sec-WebSocket-Protocol", "\xe9"), 400),
    "raw-bytes-in-the-key": (changed("Sec-WebSocket-Key", "\xff" * 24), 400),
    "raw-bytes-in-the-version": (changed("Sec-WebSocket-Version", "\xb9\xb3"), 426),
    "raw-bytes-in-the-target": (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    # What RFC 6455 section 4.2.1 asks for.
    "key-of-one-character": (changed("Sec-WebSocket-Key", "x"), 400),
    "empty-key": (changed("Sec-WebSocket-Key", ""), 400),
    "no-key": (changed("Sec-WebSocket-Key"), 400),
    "two-keys": (changed("Sec-WebSocket-Key", KEY, KEY), 400),
    "key-of-17-bytes": (changed("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAAA="), 400),
    "no-host": (changed("Host"), 400),
    "two-hosts": (changed("Host", "a", "b"), 400),
    "host-with-a-path": (changed("Host", "a/b"), 400),
    "no-upgrade": (changed("Upgrade"), 426),
    "upgrade-to-h2c": (changed("Upgrade", "h2c"), 426),
    "no-connection": (changed("Connection"), 400),
    "connection-without-upgrade": (changed("Connection", "keep-alive"), 400),
    "connection-with-a-longer-word": (changed("Connection", "Upgrades"), 400),
    "no-version": (changed("Sec-WebSocket-Version"), 400),
    "version-8": (changed("Sec-WebSocket-Version", "8"), 426),
    "version-013": (changed("Sec-WebSocket-Version", "013"), 426),
    "versions-in-two-lines": (changed("Sec-WebSocket-Version", "13", "8"), 426),
    "version-13-twice": (changed("Sec-WebSocket-Version", "13", "13"), 400),
    "versions-in-a-list": (changed("Sec-WebSocket-Version", "13, 8"), 426),
    "http-1.0": (upgrade(version="HTTP/1.0"), 426),
    "http-1.0-to-nowhere": (b"OPTIONS / HTTP/1.0\r\n\r\n", 404),
    "http-1.2": (upgrade(version="HTTP/1.2").replace(b"Host", b"X-Host"), 400),
    "empty-host-in-the-target": (b"GET http:///echo HTTP/1.1\r\nHost: example.org\r\n\r\n", 400),
    "http-2.0": (upgrade(version="HTTP/2.0"), 505),
    "http-2-preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "post": (upgrade(method="POST"), 405),
    "head": (upgrade(method="HEAD"), 405),
    "lower-case-get": (upgrade(method="get"), 405),
    "plain-get": (plain("/echo"), 426),
    "plain-post": (plain("/echo", method="POST"), 405),
    "unknown-path": (upgrade("/nothing"), 404),
    "unknown-page": (plain("/nothing"), 404),
    "path-with-a-slash-more": (upgrade("/echo/"), 404),
    "authority-as-target": (b"CONNECT example.org:80 HTTP/1.1\r\nHost: example.org\r\n\r\n", 400),
    "asterisk-as-target": (b"OPTIONS * HTTP/1.1\r\nHost: example.org\r\n\r\n", 400),
    "fragment-in-the-target": (upgrade("/echo#top"), 400),
    # An upgrade request has no body.
    "body-that-is-there": (added("Content-Length", "5") + b"hello", 400),
    "body-that-is-not-there": (added("Content-Length", "5"), 400),
    "chunked-body": (added("Transfer-Encoding", "chunked") + b"5\r\nhello\r\n0\r\n\r\n", 400),
    "chunked-body-that-is-not-there": (added("Transfer-Encoding", "chunked"), 400),
    "length-that-is-no-number": (added("Content-Length", "x"), 400),
    "two-lengths": (added("Content-Length", "0", "5"), 400),
    # Syntax.
    "bare-line-feeds": (upgrade().replace(b"\r\n", b"\n"), 400),
    "folded-header": (upgrade().replace(b"\r\n\r\n", b"\r\nX-A: b\r\n c\r\n\r\n"), 400),
    "space-before-the-colon": (upgrade().replace(b"\r\n\r\n", b"\r\nX-A : b\r\n\r\n"), 400),
    "nul-in-a-header": (added("X-A", "a\0b"), 400),
    "empty-header-name": (upgrade().replace(b"\r\n\r\n", b"\r\n: b\r\n\r\n"), 400),
    "line-without-a-colon": (upgrade().replace(b"\r\n\r\n", b"\r\nnonsense\r\n\r\n"), 400),
    # Sizes.
    "head-over-16-kib": (added("X-Long", "a" * 17_000), 431),
    "endless-header": (b"GET / HTTP/1.1\r\nX-Long: " + b"a" * 17_000, 431),
    "target-over-8-kib": (upgrade("/" + "a" * 9_000), 414),
    "endless-target": (b"GET /" + b"a" * 9_000, 414),
    "too-many-headers": (added("X-A", *["b"] * 120), 431),
    # Something else than HTTP.
    "binary": (b"\x00\x01\x02\x03", 400),
    "a-frame": (make_frame(1, b"hello"), 400),
    "another-protocol": (b"EHLO example.org\r\n", 400),
    "tls-hello": (bytes.fromhex("16030100c4010000c00303") + bytes(range(200)), 400),
    "an-empty-line-first": (b"\r\n" + upgrade(), 400),
}


@pytest.mark.parametrize(("request_bytes", "status"), REFUSED.values(), ids=REFUSED)
async def test_a_wrong_request_gets_its_status(request_bytes: bytes, status: int) -> None:
    """A wrong request gets its status in one complete answer and the end of the stream; the next one is served."""
    async with serving(echo_app()) as server:
        async with open_raw(server) as client:
            await client.send(request_bytes)
            answer = await client.refused(to_head=request_bytes.startswith(b"HEAD"))
        assert answer.status == status
        assert answer.reason
        assert answer["Content-Type"] == "text/plain; charset=utf-8"
        await assert_serves(server)


ACCEPTED = {
    "exactly-as-in-the-rfc": upgrade(),
    "names-in-other-cases": head("/echo", lines=[(name.swapcase(), value) for name, value in LINES]),
    "values-in-other-cases": changed("Connection", "keep-alive, UPGRADE").replace(b"websocket\r\n", b"WebSocket\r\n"),
    "connection-in-two-lines": changed("Connection", "Upgrade", "keep-alive"),
    "connection-in-two-lines-the-other-way": changed("Connection", "keep-alive", "Upgrade"),
    "upgrade-as-a-list": changed("Upgrade", "h2c, websocket"),
    "upgrade-in-two-lines": changed("Upgrade", "h2c", "websocket"),
    "no-space-after-colons": upgrade().replace(b": ", b":"),
    "raw-bytes-in-a-header-without-meaning": added("X-Name", "\xe9\xff"),
    "raw-bytes-in-extensions": added("Sec-WebSocket-Extensions", "\xe9; a=\xff"),
    "an-extension-nobody-knows": added("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits=abc"),
    "length-of-zero": added("Content-Length", "0"),
    "query": upgrade("/echo?a=b&c=%zz"),
    "absolute-target": upgrade("http://example.org/echo"),
    "ipv6-host": changed("Host", "[::1]:8000"),
    "host-in-punycode": changed("Host", "xn--bcher-kva.example"),
    "99-more-headers": added("X-A", *["b"] * 95),
}


@pytest.mark.parametrize("request_bytes", ACCEPTED.values(), ids=ACCEPTED)
async def test_a_right_request_gets_a_101(request_bytes: bytes) -> None:
    """Every way to write a right request is answered with the 101 that belongs to its key."""
    async with serving(echo_app()) as server, open_raw(server) as client:
        await client.send(request_bytes)
        answer = await client.accepted()
        assert (answer["Upgrade"], answer["Connection"]) == ("websocket", "Upgrade")
        assert answer["Sec-WebSocket-Accept"] == ACCEPT
        assert answer["Sec-WebSocket-Extensions"] is None
        await client.assert_echoes()
        await client.close()


async def test_subprotocols_are_a_clean_list() -> None:
    """Empty and repeated items of the list of subprotocols are gone when the application sees it."""
    seen: list[tuple[str, ...]] = []
    app = App()

    @app.websocket("/echo").onaccept(lambda request: seen.append(request.subprotocols)).on_message
    def ignore(conn: object, message: object) -> None:
        pass

    async with serving(app) as server, open_raw(server) as client:
        await client.send(added("Sec-WebSocket-Protocol", "chat,,chat, b,", "", "chat"))
        await client.accepted()
    assert seen == [("chat", "b")]


@pytest.mark.parametrize("request_bytes", [plain("/echo"), changed("Sec-WebSocket-Version", "7")])
async def test_a_426_says_what_is_needed(request_bytes: bytes) -> None:
    """A 426 names the protocol and its version, and Upgrade in Connection as well."""
    async with serving(echo_app()) as server, open_raw(server) as client:
        await client.send(request_bytes)
        answer = await client.refused()
        assert answer.status == 426
        assert answer["Upgrade"] == "websocket"
        assert answer["Sec-WebSocket-Version"] == "13"
        assert answer["Connection"] == "close, Upgrade"


async def test_a_405_says_what_is_allowed() -> None:
    """A 405 has an Allow header."""
    async with serving(echo_app()) as server, open_raw(server) as client:
        await client.send(upgrade(method="DELETE"))
        answer = await client.refused()
        assert (answer.status, answer["Allow"]) == (405, "GET")


async def test_a_head_gets_no_body() -> None:
    """The answer to a HEAD is that to a GET without its body, for a refusal too."""
    async with serving(echo_app()) as server:
        for path in ("/nothing", "/echo"):
            async with open_raw(server) as client:
                await client.send(plain(path, method="HEAD"))
                await client.refused(to_head=True)


@pytest.mark.parametrize(
    ("options", "request_bytes", "status"),
    [
        ({"max_header_bytes": 400}, upgrade(), 101),
        ({"max_header_bytes": 100}, upgrade(), 431),
        ({"max_header_bytes": 400}, added("X-Long", "a" * 300), 431),
        ({"max_headers": 5}, upgrade(), 101),
        ({"max_headers": 4}, upgrade(), 431),
    ],
)
async def test_the_limits_of_a_head(options: dict[str, Any], request_bytes: bytes, status: int) -> None:
    """The options max_header_bytes and max_headers are the limits of a request head."""
    async with serving(echo_app(**options)) as server, open_raw(server) as client:
        await client.send(request_bytes)
        assert (await client.read_answer()).status == status
        reset(client)


# However the bytes come


async def test_the_split_makes_no_difference() -> None:
    """A request is understood wherever it is cut into two pieces."""
    async with serving(echo_app()) as server:
        data = upgrade()
        for cut in range(1, len(data)):
            async with open_raw(server) as client:
                await client.send(data[:cut])
                await client.send(data[cut:])
                await client.accepted()
                reset(client)


async def test_byte_by_byte() -> None:
    """A request and a frame that come byte by byte are understood."""
    async with serving(echo_app()) as server, open_raw(server) as client:
        await client.send(*[bytes([byte]) for byte in upgrade()])
        await client.accepted()
        await client.send(*[bytes([byte]) for byte in make_frame(1, b"slowly")])
        assert await client.read_frame() == Frame(1, b"slowly")
        await client.close()


async def test_a_frame_in_the_segment_of_the_request() -> None:
    """A frame that comes in one segment with the request is answered, and so is what follows."""
    async with serving(echo_app()) as server, open_raw(server) as client:
        await client.send(upgrade() + make_frame(1, b"early"))
        await client.accepted()
        assert await client.read_frame() == Frame(1, b"early")
        await client.assert_echoes()
        await client.close()


async def test_many_frames_in_the_segment_of_the_request() -> None:
    """Hundreds of early frames, pings among them, are answered in their order."""
    async with serving(echo_app()) as server, open_raw(server) as client:
        frames = [make_frame(1, b"%d" % number) for number in range(400)]
        await client.send(upgrade() + b"".join(frames) + make_frame(9, b"?") + make_frame(2, b"last"))
        await client.accepted()
        echoes = [await client.read_frame() for _ in range(402)]
        assert [frame.payload for frame in echoes if frame.opcode == 1] == [b"%d" % number for number in range(400)]
        assert [frame for frame in echoes if frame.opcode != 1] == [Frame(10, b"?"), Frame(2, b"last")]
        await client.close()


async def test_a_close_in_the_segment_of_the_request() -> None:
    """A connection that is closed before it was accepted is accepted, answered and closed in an orderly way."""
    async with serving(echo_app()) as server, open_raw(server) as client:
        await client.send(upgrade() + make_frame(1, b"hi") + make_frame(8, b"\x0f\xa1bye"))
        await client.accepted()
        assert await client.read_frame() == Frame(1, b"hi")
        assert await client.read_frame() == Frame(8, b"\x0f\xa1bye")
        assert await client.read_to_end() == b""


async def test_part_of_a_frame_in_the_segment_of_the_request() -> None:
    """A frame that is cut by the end of the first segment is put together again."""
    frame = make_frame(1, b"in two parts")
    for cut in (1, 5, 10):
        async with serving(echo_app()) as server, open_raw(server) as client:
            await client.send(upgrade() + frame[:cut])
            await client.accepted()
            await client.send(frame[cut:])
            assert await client.read_frame() == Frame(1, b"in two parts")
            await client.close()


async def test_nonsense_behind_the_request_is_a_protocol_error() -> None:
    """Bytes behind an accepted request are frames, and get a 1002 if they are none."""
    async with serving(echo_app()) as server:
        async with open_raw(server) as client:
            await client.send(upgrade() + upgrade())
            await client.accepted()
            frame = await client.read_frame()
            assert (frame.opcode, frame.payload[:2]) == (8, b"\x03\xea")
            assert await client.read_to_end() == b""
        await assert_serves(server)


async def test_frames_between_request_and_acceptance() -> None:
    """Frames that come while the application decides wait for its decision and are answered then."""
    asked, decide = trio.Event(), trio.Event()
    app = echo_app()

    @app.routes[0].on_accept
    async def wait(request: Request) -> None:
        asked.set()
        await decide.wait()

    async with serving(app) as server, open_raw(server) as client:
        await client.send(upgrade())
        await asked.wait()
        await client.send(make_frame(1, b"one"), make_frame(1, b"two"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        decide.set()
        await client.accepted()
        assert [(await client.read_frame()).payload for _ in range(2)] == [b"one", b"two"]
        await client.close()


async def test_a_large_flood_before_acceptance_is_not_read() -> None:
    """While the application decides the server does not read, so an impatient peer fills the kernel's buffers only."""
    asked = trio.Event()
    app = App(handshake_timeout=0.5)
    route = app.websocket("/echo").onmessage(lambda conn, message: None)

    @route.on_accept
    async def wait(request: Request) -> None:
        asked.set()
        await trio.sleep_forever()

    async with serving(app) as server, open_raw(server) as client:
        await client.send(upgrade())
        await asked.wait()
        sent = 0
        with trio.move_on_after(0.2) as patience:
            while sent < 64 << 20:
                await client.stream.send_all(bytes(1 << 20))
                sent += 1 << 20
        assert patience.cancelled_caught


async def test_early_frames_count_for_the_receive_buffer() -> None:
    """When early frames fill the buffer of a busy handler, nothing more is read until it takes them."""
    conns: list[Connection] = []
    work = trio.Event()
    app = App(receive_buffer=1000)

    @app.websocket("/busy")
    async def busy(conn: Connection) -> None:
        conns.append(conn)
        await work.wait()
        async for message in conn:
            await conn.send(str(len(message)))

    early = make_frame(2, bytes(500)) * 10
    async with serving(app) as server, open_raw(server) as client:
        await client.send(upgrade("/busy") + early)
        await client.accepted()
        await client.send(make_frame(2, bytes(500)) * 10)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert conns[0].bytes_received == len(early)
        work.set()
        assert [await client.read_frame() for _ in range(20)] == [Frame(1, b"500")] * 20
        await client.close()


# After a refusal


async def test_what_follows_a_refusal_is_never_interpreted() -> None:
    """A second request behind a refused one gets no answer, in the same segment or later."""
    calls: list[str] = []
    app = echo_app()

    @app.http("/page")
    def page(request: Request) -> str:
        calls.append(request.path)
        return "page"

    for pieces in ([upgrade("/nothing") + plain("/page")], [upgrade("/nothing"), plain("/page")]):
        async with serving(app) as server, open_raw(server) as client:
            await client.send(*pieces)
            assert (await client.refused()).status == 404
    assert calls == []


async def test_what_follows_a_page_is_never_interpreted() -> None:
    """A page is answered once: pipelined requests are not served."""
    calls: list[str] = []
    app = App()

    @app.http("/page")
    def page(request: Request) -> str:
        calls.append(request.path)
        return "page"

    async with serving(app) as server, open_raw(server) as client:
        await client.send(plain("/page") * 3)
        assert (await client.refused()).body == b"page"
    assert calls == ["/page"]


@pytest.mark.parametrize("where", ["/nothing", "/slow"])
async def test_an_unread_body_does_not_destroy_the_answer(where: str) -> None:
    """A peer that sends megabytes behind its request before it reads still gets the whole answer, and no reset."""
    app = App()

    async def refuse(request: Request) -> Reject:
        await trio.sleep(0.01)
        return Reject(403, "no" * 1000)

    app.websocket("/slow").onaccept(refuse).onmessage(lambda conn, message: None)
    async with serving(app) as server:
        async with open_raw(server) as client:
            with trio.fail_after(5):
                await client.send(upgrade(where))
                await client.stream.send_all(bytes(8 << 20))
            answer = await client.refused()
        assert answer.status == (403 if where == "/slow" else 404)


@pytest.mark.parametrize("passes", range(12))
@pytest.mark.parametrize("data", [upgrade("/x"), plain("/x")], ids=["websocket", "http"])
async def test_a_request_in_the_moment_of_the_shutdown(data: bytes, passes: int) -> None:
    """A request that meets the end of its server gets one answer: a connection with its end, or a 503, or the end."""
    events: list[str] = []
    app = App(origins=lambda request: True)
    app.websocket("/x").onopen(lambda conn: events.append("open")).onclose(lambda conn, info: events.append("close"))

    @app.http("/x")
    def page(request: Request) -> str:
        events.append("page")
        return "page"

    near, far = trio.testing.memory_stream_pair()
    answer = b""

    async def listen() -> None:
        nonlocal answer
        while not answer.endswith(b"\x88\x02\x03\xe9") and (data := await near.receive_some()):
            answer += data
        await near.aclose()

    async with trio.open_nursery() as nursery:
        await near.send_all(data)
        nursery.start_soon(listen)
        with trio.fail_after(5), trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(app.serve_stream, far)
                for _ in range(passes):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
    assert answer.count(b"HTTP/1.1") <= 1
    if answer.startswith(b"HTTP/1.1 101 "):
        assert answer.endswith(b"\r\n\r\n\x88\x02\x03\xe9")
        assert events in ([], ["open", "close"])
    elif answer.startswith(b"HTTP/1.1 200 "):
        assert answer.endswith(b"\r\n\r\npage")
        assert events == ["page"]
    else:
        assert answer == b"" or answer.startswith(b"HTTP/1.1 503 ")
        assert events in ([], ["page"])


# Time


async def test_a_dripped_request_times_out() -> None:
    """Each new byte changes nothing about the deadline: a request that drips in gets a 408 when its time is over."""
    async with serving(echo_app(handshake_timeout=0.3)) as server:
        async with open_raw(server) as client, trio.open_nursery() as nursery:
            start = trio.current_time()

            async def drip() -> None:
                for byte in upgrade():
                    await client.send(bytes([byte]))
                    await trio.sleep(0.02)

            nursery.start_soon(drip)
            answer = await client.refused()
            nursery.cancel_scope.cancel()
            assert answer.status == 408
            assert 0.25 <= trio.current_time() - start < 1.5
        await assert_serves(server)


async def test_silence_times_out() -> None:
    """A peer that says nothing at all gets a 408 as well."""
    async with serving(echo_app(handshake_timeout=0.2)) as server, open_raw(server) as client:
        assert (await client.refused()).status == 408


async def test_a_tls_handshake_that_never_comes_times_out(tls: TLS) -> None:
    """On a TLS port the handshake of TLS counts too: a peer that never begins it is dropped at the deadline."""
    app = echo_app(handshake_timeout=0.2)
    async with serving(app, ssl_context=tls.server) as server, open_raw(server) as client:
        with trio.fail_after(2):
            assert await _end_of(client) == b""


async def test_a_tls_handshake_that_drips_times_out(tls: TLS) -> None:
    """A TLS handshake that begins and never ends is dropped at the deadline too."""
    app = echo_app(handshake_timeout=0.2)
    async with serving(app, ssl_context=tls.server) as server, open_raw(server) as client:
        await client.send(bytes.fromhex("16030100c4010000c0"))
        with trio.fail_after(2):
            assert await _end_of(client) == b""


async def test_silence_behind_the_tls_handshake_times_out(tls: TLS) -> None:
    """The deadline covers TLS and request together."""
    app = echo_app(handshake_timeout=0.3)
    async with serving(app, ssl_context=tls.server) as server, open_raw(server) as below:
        stream = trio.SSLStream(below.stream, tls.client, server_hostname="localhost", https_compatible=True)
        client = RawClient(stream)
        with trio.fail_after(2):
            await stream.do_handshake()
            assert (await client.refused()).status == 408


async def test_plain_http_on_a_tls_port_is_dropped(tls: TLS, caplog: pytest.LogCaptureFixture) -> None:
    """Who does not speak TLS to a TLS port is dropped; that is no error of the server, which serves the next one."""
    async with serving(echo_app(), ssl_context=tls.server) as server:
        async with open_raw(server) as client:
            await client.send(upgrade())
            with trio.fail_after(2):
                await _end_of(client)
        async with open_raw(server) as plain_client:
            stream = trio.SSLStream(plain_client.stream, tls.client, server_hostname="localhost", https_compatible=True)
            client = RawClient(stream)
            await client.upgrade()
            await client.assert_echoes()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def _end_of(client: RawClient) -> bytes:
    """What comes until the end of the stream, which may be a reset here."""
    data = b""
    try:
        async for part in client.stream:
            data += part
    except trio.BrokenResourceError:
        pass
    return data
