"""Chromium for tests, driven over the Chrome DevTools Protocol from the test's own Trio loop.

    with chromium("/usr/bin/chromium") as endpoint:  # one for many tests
        ...
        async with open_browser(endpoint) as browser:  # in each test
            page = await browser.open("http://127.0.0.1:8000/")
            await page.until("document.title !== ''")

No driver program and no other package is needed: commands and events are JSON messages over one WebSocket, for which
wsproto's client half does the framing. Every wait has an end, and the processes that were started are gone at the end.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator, Generator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import trio
import wsproto
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Ping, Request, TextMessage

PATIENCE = 20
"""How long a browser may take for anything, in seconds."""

_FLAGS = (
    "--headless",
    "--no-sandbox",  # tests run as root in CI, where the sandbox refuses to start
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-background-timer-throttling",  # several tabs are in use at once, and only one can be in front
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--remote-debugging-port=0",
    "about:blank",
)


class BrowserError(Exception):
    """The browser refused a command, JavaScript threw, or the link to the browser ended."""


class Endpoint(NamedTuple):
    """Where a running Chromium can be told what to do."""

    port: int
    path: str


class _Link:
    """Commands out, answers and events in, over one WebSocket."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._websocket = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self._sending = trio.Lock()
        self._answers: dict[int, dict[str, Any]] = {}
        self._arrived = trio.Event()
        self._number = 0
        self._ended = False
        self.pages: dict[str, Page] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, endpoint: Endpoint) -> AsyncGenerator[_Link]:
        """Connect, and read in the background until the block ends."""
        async with await trio.open_tcp_stream("127.0.0.1", endpoint.port) as stream, trio.open_nursery() as nursery:
            link = cls(stream)
            await link._shake_hands(endpoint)
            nursery.start_soon(link._run)
            yield link
            nursery.cancel_scope.cancel()

    async def _shake_hands(self, endpoint: Endpoint) -> None:
        request = Request(host=f"127.0.0.1:{endpoint.port}", target=endpoint.path)
        await self._send(self._websocket.send(request))
        with trio.fail_after(PATIENCE):
            if not any(isinstance(event, AcceptConnection) for event in await self._read()):
                raise BrowserError("the browser refused the connection")

    async def _read(self) -> list[Event]:
        data = await self._stream.receive_some()
        self._websocket.receive_data(data or None)
        return list(self._websocket.events())

    async def _run(self) -> None:
        """Read until the browser ends the connection."""
        text = ""
        try:
            while True:
                for event in await self._read():
                    if isinstance(event, TextMessage):
                        text += event.data
                        if event.message_finished:
                            self._handle(json.loads(text))
                            text = ""
                    elif isinstance(event, Ping):
                        await self._send(self._websocket.send(event.response()))
                    elif isinstance(event, (CloseConnection, BytesMessage)):
                        return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        finally:
            self._ended = True
            self._wake()

    def _handle(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers[message["id"]] = message
            self._wake()
        elif message.get("sessionId") in self.pages:
            self.pages[message["sessionId"]].notice(message["method"], message["params"])

    def _wake(self) -> None:
        self._arrived.set()
        self._arrived = trio.Event()

    async def _send(self, data: bytes) -> None:
        async with self._sending:
            await self._stream.send_all(data)

    async def command(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command and return its result.

        Raises:
          BrowserError: the browser answered with an error, or is gone.
          trio.TooSlowError: it did not answer in `PATIENCE` seconds.
        """
        self._number += 1
        number = self._number
        command = {"id": number, "method": method, "params": params}
        if session is not None:
            command["sessionId"] = session
        with trio.fail_after(PATIENCE):
            await self._send(self._websocket.send(TextMessage(data=json.dumps(command))))
            while number not in self._answers:
                if self._ended:
                    raise BrowserError(f"the browser went away before it answered {method}")
                await self._arrived.wait()
        answer = self._answers.pop(number)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result


class Page:
    """One tab, with cookies and storage of its own.

    Attributes:
      complaints: what the page wrote into the console as an error, and what it threw; a good page leaves this empty.
    """

    def __init__(self, link: _Link, session: str) -> None:
        self._command = partial(link.command, session=session)
        self.complaints: list[str] = []

    def notice(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(params["entry"]["text"])

    async def goto(self, url: str) -> None:
        """Load `url`, and return when the document is complete."""
        answer = await self._command("Page.navigate", url=url)
        if "errorText" in answer:
            raise BrowserError(f"{url}: {answer['errorText']}")
        await self.until(f"document.readyState === 'complete' && location.href !== 'about:blank' /* {url} */")

    async def evaluate(self, expression: str, *arguments: object) -> Any:
        """Return the value of a JavaScript expression; a promise is awaited. With arguments, call what it is."""
        if arguments:
            expression = f"({expression})({', '.join(json.dumps(argument) for argument in arguments)})"
        answer = await self._command(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise BrowserError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    async def until(self, expression: str, seconds: float = PATIENCE - 5) -> Any:
        """Wait until a JavaScript expression is true, and return its value; the page looks 60 times a second.

        Raises:
          BrowserError: it did not become true in `seconds`, or throws.
        """
        watch = f"""new Promise((resolve, reject) => {{
            const deadline = performance.now() + {seconds * 1000};
            const look = () => {{
                try {{
                    const value = ({expression});
                    if (value) resolve(value);
                    else if (performance.now() > deadline) reject(new Error("not true in {seconds} s"));
                    else setTimeout(look, 15);
                }} catch (error) {{ reject(error); }}
            }};
            look();
        }})"""
        try:
            return await self.evaluate(watch)
        except (BrowserError, trio.TooSlowError) as error:
            raise BrowserError(f"waiting for {expression}: {error}") from error

    async def type(self, selector: str, text: str) -> None:
        """Put `text` in place of what is in a field, as a keyboard would."""
        focus = "selector => { const field = document.querySelector(selector); field.focus(); field.select(); }"
        await self.evaluate(focus, selector)
        await self._command("Input.insertText", text=text)

    async def press_enter(self) -> None:
        key: dict[str, Any] = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        await self._command("Input.dispatchKeyEvent", type="keyDown", **key)
        await self._command("Input.dispatchKeyEvent", type="keyUp", **key)

    async def click(self, selector: str) -> None:
        await self.evaluate("selector => document.querySelector(selector).click()", selector)

    async def controls(self) -> set[tuple[str, str]]:
        """Role and name of everything that can be used, as assistive technology is told them."""
        nodes = (await self._command("Accessibility.getFullAXTree"))["nodes"]
        roles = ("button", "link", "textbox", "searchbox", "checkbox")
        return {
            (node["role"]["value"], node["name"]["value"])
            for node in nodes
            if not node["ignored"] and node["role"]["value"] in roles
        }

    async def look_like(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """Set the size of the window in CSS pixels, and the colour scheme."""
        await self._command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self._command("Emulation.setEmulatedMedia", features=[scheme])

    async def screenshot(self, path: Path) -> None:
        """Write what is seen to a PNG file."""
        answer = await self._command("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(answer["data"]))


class Browser:
    """A running Chromium."""

    def __init__(self, link: _Link) -> None:
        self._link = link

    async def open(self, url: str, *, before: str = "") -> Page:
        """Open `url` in a tab that shares nothing with the others; the script `before` runs before the page's own."""
        made = await self._link.command("Target.createBrowserContext", disposeOnDetach=True)
        context = made["browserContextId"]
        target = await self._link.command("Target.createTarget", url="about:blank", browserContextId=context)
        attached = await self._link.command("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        session: str = attached["sessionId"]
        page = self._link.pages[session] = Page(self._link, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self._link.command(f"{domain}.enable", session)
        if before:
            await self._link.command("Page.addScriptToEvaluateOnNewDocument", session, source=before)
        await page.goto(url)
        return page


@contextlib.asynccontextmanager
async def open_browser(endpoint: Endpoint) -> AsyncGenerator[Browser]:
    """Use a running Chromium; the tabs that are opened are closed when the block ends."""
    async with _Link.connect(endpoint) as link:
        yield Browser(link)


@contextlib.contextmanager
def chromium(program: str) -> Generator[Endpoint]:
    """Start Chromium, which is the file `program`, with an empty profile, and end it when the block ends.

    Raises:
      BrowserError: it did not start.
    """
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [program, f"--user-data-dir={profile}", *_FLAGS],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a process group of its own, so that all of its processes can be ended
        )
        try:
            yield _debugging_endpoint(process, Path(profile))
        finally:
            _end(process)


def _debugging_endpoint(process: subprocess.Popen[bytes], profile: Path) -> Endpoint:
    """Read the file that Chromium writes when it is ready."""
    file = profile / "DevToolsActivePort"
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        lines = file.read_text().split() if file.exists() else []
        if len(lines) == 2:  # else it is being written just now
            return Endpoint(int(lines[0]), lines[1])
        time.sleep(0.02)
    raise BrowserError(f"chromium did not start (exit status {process.returncode})")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Give the browser 5 seconds to end by itself, then end whatever is left of its process group."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(5)
