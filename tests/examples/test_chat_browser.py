"""The chat example as people see it: its server as a process of its own, its page in Chromium."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from support.browser import Browser, Endpoint, Page, chromium, open_browser
from support.require import program

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
SERVER = ROOT / "examples" / "chat" / "server.py"


class ChatServer:
    """`server.py` as a process; `restart` uses the same port again."""

    def __init__(self) -> None:
        self.url = ""
        self._port = 0
        self._process: trio.Process | None = None

    async def start(self) -> None:
        self._process = await trio.lowlevel.open_process(
            [sys.executable, "-u", str(SERVER), "--port", str(self._port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert self._process.stdout is not None
        line = b""
        with trio.fail_after(20):
            while not line.endswith(b"\n"):
                some = await self._process.stdout.receive_some()
                assert some, "the server ended before it was ready"
                line += some
        self.url = line.decode().removeprefix("listening on ").strip().rstrip("/")
        self._port = int(self.url.rpartition(":")[2])

    async def request(self, target: str, *headers: str) -> str:
        """The beginning of the answer to a GET request."""
        lines = [f"GET {target} HTTP/1.1", f"Host: 127.0.0.1:{self._port}", *headers, "", ""]
        async with await trio.open_tcp_stream("127.0.0.1", self._port) as stream:
            await stream.send_all("\r\n".join(lines).encode())
            answer = b""
            with trio.fail_after(20):
                while b"\r\n\r\n" not in answer:
                    some = await stream.receive_some()
                    assert some, answer
                    answer += some
            return answer.decode()

    async def token(self, name: str) -> str:
        """The token that `/token` puts into the cookie."""
        answer = await self.request(f"/token?name={name}", "Connection: close")
        return answer.partition("Set-Cookie: token=")[2].partition(";")[0]

    async def upgrade(self, target: str, *headers: str) -> int:
        """The HTTP status with which a WebSocket handshake is answered."""
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        handshake = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", key)
        answer = await self.request(target, *handshake, *headers)
        return int(answer.split()[1])

    def freeze(self) -> None:
        """Let it hang: its connections stay open, and nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def stop(self) -> int:
        """End it as an administrator would, and return its exit status."""
        assert self._process is not None
        assert self._process.stdout is not None
        async with self._process.stdout:
            self._process.send_signal(signal.SIGTERM)
            with trio.move_on_after(15):
                return await self._process.wait()
            self._process.kill()
            return await self._process.wait()


def tampered(token: str) -> str:
    return token[:-1] + ("0" if token[-1] != "0" else "1")


@contextlib.asynccontextmanager
async def running_server() -> AsyncGenerator[ChatServer]:
    server = ChatServer()
    await server.start()
    try:
        yield server
    finally:
        with trio.CancelScope(shield=True):
            await server.stop()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with chromium(program("chromium", "chromium-browser", "google-chrome", package="chromium")) as running:
        yield running


@contextlib.asynccontextmanager
async def chat(endpoint: Endpoint) -> AsyncGenerator[tuple[ChatServer, Browser]]:
    """A running chat, and a browser to use it with."""
    async with running_server() as server, open_browser(endpoint) as browser:
        yield server, browser


STATE = "document.querySelector('#state').dataset.state"
PEOPLE = "[...document.querySelectorAll('#people .name')].map(item => item.textContent)"
SAID = """[...document.querySelectorAll('.post:not(.pending):not(.failed)')].map(post =>
    [post.dataset.user, post.querySelector('.bubble').textContent, post.classList.contains('own')])"""
AWAY = "You were away; something may be missing here."
SIDE_SHOWS = "document.querySelector('#side').checkVisibility({visibilityProperty: true})"
NOTICES = "[...document.querySelectorAll('.notice')].map(item => item.textContent)"


async def enter(browser: Browser, server: ChatServer, name: str, room: str = "garden", before: str = "") -> Page:
    """A page on which `name` has entered `room`."""
    page = await browser.open(f"{server.url}/?room={room}", before=before)
    await page.type("#name", name)
    await page.press_enter()
    await page.until(f"{STATE} === 'online'")
    return page


async def say(page: Page, text: str) -> None:
    await page.type("#text", text)
    await page.press_enter()


async def sees(page: Page, expression: str, expected: Any) -> None:
    """Wait until a list on the page is as expected."""
    await page.until(f"JSON.stringify({expression}) === {json.dumps(json.dumps(expected, separators=(',', ':')))}")


async def test_messages_go_both_ways(endpoint: Endpoint) -> None:
    """Two people in one room see each other come, read each other's messages, and see each other go."""
    async with chat(endpoint) as (server, browser):
        ada = await enter(browser, server, "Ada")
        grace = await enter(browser, server, "Grace")
        await sees(ada, PEOPLE, ["Ada", "Grace"])
        await sees(grace, PEOPLE, ["Grace", "Ada"])
        await sees(ada, NOTICES, ["Grace joined"])
        await say(ada, "Hello?")
        await sees(grace, SAID, [["Ada", "Hello?", False]])
        await say(grace, "Hello!")
        await sees(ada, SAID, [["Ada", "Hello?", True], ["Grace", "Hello!", False]])
        await grace.click("#leave")
        await sees(ada, PEOPLE, ["Ada"])
        assert [ada.complaints, grace.complaints] == [[], []]


async def test_markup_is_shown_as_text(endpoint: Endpoint) -> None:
    """A message that looks like a script, and a name that is said in one, are shown letter by letter and never run."""
    attack = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
    async with chat(endpoint) as (server, browser):
        ada = await enter(browser, server, "Ada")
        grace = await enter(browser, server, "Grace")
        await say(ada, attack)
        for page, own in ((ada, True), (grace, False)):
            await sees(page, SAID, [["Ada", attack, own]])
            assert await page.evaluate("document.querySelector('#posts').querySelectorAll('script, img').length") == 0
            assert await page.evaluate("'hacked' in window") is False
            assert page.complaints == []


async def test_the_page_forbids_markup_from_code(endpoint: Endpoint) -> None:
    """The page's own policy stops inline scripts and the writing of markup, should a bug ever try."""
    async with chat(endpoint) as (server, browser):
        page = await browser.open(server.url)
        policy = await page.evaluate("fetch('/').then(answer => answer.headers.get('Content-Security-Policy'))")
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        outcomes = await page.evaluate("""[
            () => { document.body.innerHTML = '<b>bold</b>'; },
            () => document.body.setAttribute('onclick', 'window.hacked = 1'),
        ].map(attempt => { try { attempt(); return 'done'; } catch (error) { return error.name; } })""")
        assert "done" not in outcomes
        assert await page.evaluate("'hacked' in window") is False


async def test_typing_is_shown_and_passes(endpoint: Endpoint) -> None:
    """While somebody types, the others are told who, until the message comes."""
    async with chat(endpoint) as (server, browser):
        ada = await enter(browser, server, "Ada")
        grace = await enter(browser, server, "Grace")
        await ada.type("#text", "Well")
        await grace.until("document.querySelector('#typing').textContent === 'Ada is typing'")
        assert await ada.evaluate("document.querySelector('#typing').textContent") == ""
        await ada.press_enter()
        await sees(grace, SAID, [["Ada", "Well", False]])
        assert await grace.evaluate("document.querySelector('#typing').textContent") == ""


async def test_history_is_there_for_who_comes_later(endpoint: Endpoint) -> None:
    """Who enters a room finds what was said in it, and nothing from another room."""
    async with chat(endpoint) as (server, browser):
        ada = await enter(browser, server, "Ada")
        await say(ada, "First")
        await sees(ada, SAID, [["Ada", "First", True]])
        grace = await enter(browser, server, "Grace")
        await sees(grace, SAID, [["Ada", "First", False]])
        alan = await enter(browser, server, "Alan", room="kitchen")
        assert await alan.evaluate(SAID) == []
        assert await alan.evaluate(PEOPLE) == ["Alan"]


async def test_the_page_survives_a_restart_of_the_server(endpoint: Endpoint) -> None:
    """The server goes and comes back: the pages say so, connect again, lose nothing and show nothing twice."""
    async with chat(endpoint) as (server, browser):
        ada = await enter(browser, server, "Ada")
        grace = await enter(browser, server, "Grace")
        await say(ada, "Before")
        await sees(grace, SAID, [["Ada", "Before", False]])
        assert await server.stop() == 0
        await ada.until(f"{STATE} === 'waiting'")
        assert "Reconnecting in" in await ada.evaluate("document.querySelector('#state').textContent")
        await say(ada, "Meanwhile")
        await ada.until("document.querySelectorAll('.pending').length === 1")
        await server.start()
        for page in (ada, grace):
            await page.click("#retry")
            await page.until(f"{STATE} === 'online'")
        await sees(ada, PEOPLE, ["Ada", "Grace"])
        await sees(ada, SAID, [["Ada", "Before", True], ["Ada", "Meanwhile", True]])
        await say(grace, "After")
        for page, own in ((ada, True), (grace, False)):
            said = [["Ada", "Before", own], ["Ada", "Meanwhile", own], ["Grace", "After", not own]]
            await sees(page, SAID, said)
        assert await ada.evaluate(NOTICES) == ["Grace joined", AWAY]


async def test_a_lost_connection_is_noticed_and_nothing_is_doubled(endpoint: Endpoint) -> None:
    """A tab that loses its network takes its own name back, gets what it missed, and shows nothing twice."""
    async with chat(endpoint) as (server, browser):
        ada = await enter(browser, server, "Ada")
        grace = await enter(browser, server, "Grace")
        await say(grace, "One")
        await sees(ada, SAID, [["Grace", "One", False]])
        token = (await grace.evaluate("fetch('/token?name=Ada').then(answer => answer.json())"))["token"]
        session = await ada.evaluate("sessionStorage.getItem('session')")
        # The same session on another connection: to the server, that is the page after its network came back.
        await grace.evaluate(
            f"""new Promise(done => {{
                window.again = new WebSocket('/chat/garden?token={token}');
                again.onopen = () => again.send(JSON.stringify({{type: 'join', session: '{session}'}}));
                again.onmessage = done;
            }})"""
        )
        await ada.until(f"{STATE} === 'offline'")
        assert await grace.evaluate(PEOPLE) == ["Grace", "Ada"]
        await say(grace, "Two")
        await sees(grace, SAID, [["Grace", "One", True], ["Grace", "Two", True]])
        await ada.click("#retry")
        await ada.until(f"{STATE} === 'online'")
        await sees(ada, SAID, [["Grace", "One", False], ["Grace", "Two", False]])
        assert AWAY not in await ada.evaluate(NOTICES)
        assert await grace.evaluate(PEOPLE) == ["Grace", "Ada"]


FAST_TIMERS = """{
    const original = window.setTimeout;
    window.setTimeout = (action, delay, ...args) => original(action, delay / 20, ...args);
}"""


async def test_a_dead_connection_is_noticed(endpoint: Endpoint) -> None:
    """A server that answers nothing any more is noticed without any sign from it, and found again when it is back."""
    async with chat(endpoint) as (server, browser):
        ada = await enter(browser, server, "Ada", before=FAST_TIMERS)
        grace = await enter(browser, server, "Grace")
        await say(grace, "One")
        await sees(ada, SAID, [["Grace", "One", False]])
        server.freeze()
        try:
            await ada.until(f"{STATE} !== 'online'")
            await say(ada, "Two")
        finally:
            server.thaw()
        await ada.until(f"{STATE} === 'online'")
        await sees(ada, SAID, [["Grace", "One", False], ["Ada", "Two", True]])
        await sees(grace, SAID, [["Grace", "One", True], ["Ada", "Two", False]])
        assert await grace.evaluate(PEOPLE) == ["Grace", "Ada"]
        assert await grace.evaluate(NOTICES) == []


async def test_every_bad_message_is_answered(endpoint: Endpoint) -> None:
    """Whatever a client sends, it is told what is wrong, and the connection goes on."""
    bad = {
        "": "bad_json",
        "{": "bad_json",
        "[]": "bad_json",
        '{"type": "dance"}': "unknown_type",
        '{"type": "message"}': "bad_field",
        '{"type": "message", "text": "x"}': "not_joined",
    }
    async with chat(endpoint) as (server, browser):
        page = await browser.open(server.url)
        answers = await page.evaluate(
            """async data => {
                const {token} = await (await fetch('/token?name=Ada')).json();
                const socket = new WebSocket(`/chat/garden?token=${token}`);
                const answers = [];
                socket.onopen = () => {
                    for (const one of data) socket.send(one);
                    socket.send(new Uint8Array([0, 255]));
                    socket.send('{"type": "ping", "t": 7}');
                };
                return new Promise((done, fail) => {
                    socket.onclose = fail;
                    socket.onmessage = event => {
                        const {type, code} = JSON.parse(event.data);
                        answers.push(code ?? type);
                        if (type === 'pong') done(answers);
                    };
                });
            }""",
            list(bad),
        )
        assert answers == [*bad.values(), "not_text", "pong"]


async def test_the_page_fits_a_phone(endpoint: Endpoint) -> None:
    """On a narrow screen nothing is wider than it, and the people are behind a button."""
    async with chat(endpoint) as (server, browser):
        ada = await enter(browser, server, "Ada")
        await say(ada, "W" * 300)
        await ada.look_like(320, 640, phone=True)
        await ada.until("document.querySelector('.post:not(.pending)')")
        assert await ada.evaluate("document.documentElement.scrollWidth") == 320
        assert await ada.evaluate("document.querySelector('#log').scrollWidth") <= 320
        await ada.until(f"!{SIDE_SHOWS}")
        await ada.click("#toggle")
        await ada.until(SIDE_SHOWS)
        assert await ada.evaluate("document.querySelector('#toggle').ariaExpanded") == "true"


async def test_the_page_follows_the_colour_scheme(endpoint: Endpoint) -> None:
    """Who likes it dark gets light text on a dark ground, and the other way round."""
    async with chat(endpoint) as (server, browser):
        page = await browser.open(server.url)
        lightness = "getComputedStyle(document.body).{}.match(/[0-9]+/g).reduce((a, b) => a + Number(b), 0) / 765"
        for dark in (True, False):
            await page.look_like(800, 600, dark=dark)
            ground = await page.evaluate(lightness.format("backgroundColor"))
            text = await page.evaluate(lightness.format("color"))
            assert (ground < 0.2 and text > 0.8) if dark else (ground > 0.8 and text < 0.2)


async def test_every_control_has_a_name(endpoint: Endpoint) -> None:
    """Assistive technology has a name for each field and each button, at the door and in the room."""
    async with chat(endpoint) as (server, browser):
        door = await browser.open(server.url)
        assert await door.controls() == {("textbox", "Your name"), ("textbox", "Room"), ("button", "Enter")}
        room = await enter(browser, server, "Ada")
        buttons = {("button", "Copy link to room"), ("button", "Leave"), ("button", "Send")}
        assert await room.controls() == {("textbox", "Message"), *buttons}
        await room.look_like(320, 640)
        await room.until(f"!{SIDE_SHOWS}")
        expected = {("textbox", "Message"), ("button", "Send"), ("button", "People in this room")}
        assert await room.controls() == expected


async def test_a_reload_stays_in_the_room(endpoint: Endpoint) -> None:
    """A page that is loaded again is in its room again, under its name, without a word about it to the others."""
    async with chat(endpoint) as (server, browser):
        ada = await enter(browser, server, "Ada")
        grace = await enter(browser, server, "Grace")
        await say(ada, "Here")
        await sees(grace, SAID, [["Ada", "Here", False]])
        await ada.goto(f"{server.url}/room/garden")
        await ada.until(f"{STATE} === 'online'")
        await sees(ada, SAID, [["Ada", "Here", True]])
        await say(ada, "Still here")
        await sees(grace, SAID, [["Ada", "Here", False], ["Ada", "Still here", False]])
        assert await grace.evaluate(PEOPLE) == ["Grace", "Ada"]
        assert await grace.evaluate(NOTICES) == []


async def test_a_name_is_taken_once(endpoint: Endpoint) -> None:
    """Who asks for a name that is in the room is back at the door, and told why."""
    async with chat(endpoint) as (server, browser):
        await enter(browser, server, "Ada")
        other = await browser.open(f"{server.url}/room/garden")
        await other.type("#name", "ADA")
        await other.press_enter()
        await other.until("document.querySelector('#problem').textContent.includes('called Ada')")
        assert await other.evaluate("document.querySelector('#door').hidden") is False


async def test_a_bad_name_is_explained(endpoint: Endpoint) -> None:
    """A name that cannot be one leads back to the door, with the reason beside the field."""
    async with chat(endpoint) as (server, browser):
        page = await browser.open(server.url)
        await page.type("#name", "<b>Ada</b>")
        await page.press_enter()
        await page.until("document.querySelector('#problem').textContent.includes('letters')")
        assert await page.evaluate("document.querySelector('#name').ariaInvalid") == "true"


async def test_a_wrong_token_is_refused(endpoint: Endpoint) -> None:
    """To a page a refused upgrade is a socket that never opens, whatever is wrong with the token."""
    async with chat(endpoint) as (server, browser):
        page = await browser.open(server.url)
        token = (await page.evaluate("fetch('/token?name=Ada', {credentials: 'omit'}).then(a => a.json())"))["token"]
        attempt = """path => new Promise(done => {
            const socket = new WebSocket(path);
            socket.onopen = () => done("opened");
            socket.onerror = () => done("refused");
        })"""
        for query, outcome in (
            ("", "refused"),
            ("?token=", "refused"),
            ("?token=QWRh.00", "refused"),
            (f"?token={tampered(token)}", "refused"),
            (f"?token={token}", "opened"),
        ):
            assert await page.evaluate(attempt, f"/chat/garden{query}") == outcome, query


async def test_authentication_comes_before_the_upgrade() -> None:
    """A valid token in the query or in the cookie gets 101, all else gets 401, and there is no room with a bad name."""
    async with running_server() as server:
        token = await server.token("Ada")
        assert await server.upgrade("/chat/garden") == 401
        assert await server.upgrade(f"/chat/garden?token={tampered(token)}") == 401
        assert await server.upgrade("/chat/garden?token=%ff%00") == 401
        assert await server.upgrade("/chat/garden", f"Cookie: a=b; token={tampered(token)}") == 401
        assert await server.upgrade(f"/chat/garden?token={tampered(token)}", f"Cookie: token={token}") == 401
        assert await server.upgrade(f"/chat/no%20room?token={token}") == 404
        assert await server.upgrade(f"/chat/garden?token={token}") == 101
        assert await server.upgrade("/chat/garden", f"Cookie: a=b; token={token}") == 101
        await server.stop()
        await server.start()
        assert await server.upgrade(f"/chat/garden?token={token}") == 401


async def test_latency_is_shown(endpoint: Endpoint) -> None:
    """An online page says how long the server takes to answer."""
    async with chat(endpoint) as (server, browser):
        ada = await enter(browser, server, "Ada")
        await ada.until(r"/^Online · \d+ ms$/.test(document.querySelector('#state').textContent)")


async def test_the_delays_grow_and_differ(endpoint: Endpoint) -> None:
    """Each failure doubles the wait up to a ceiling, and chance spreads the pages over the second half of it."""
    async with chat(endpoint) as (server, browser):
        page = await browser.open(server.url)
        low, high = await page.evaluate(
            """import('/connection.js').then(({delayBefore}) => [0, 1].map(
                chance => [0, 1, 2, 3, 20].map(attempt => delayBefore(attempt, () => chance))))"""
        )
        assert low == [300, 600, 1200, 2400, 10_000]
        assert high == [600, 1200, 2400, 4800, 20_000]


async def test_the_health_check_counts(endpoint: Endpoint) -> None:
    """`/healthz` answers in JSON, with the connections and rooms of the moment."""
    async with chat(endpoint) as (server, browser):
        ada = await enter(browser, server, "Ada")
        health = await ada.evaluate("fetch('/healthz').then(answer => answer.json())")
        assert health == {"status": "ok", "connections": 1, "rooms": 1}
