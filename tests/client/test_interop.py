"""Client and server talk to those of other libraries, both ways: websockets on Trio and aiohttp on asyncio."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from support.require import missing
from support.servers import Recorder, serving, shared_tls
from trio_crowws import App, ConnectionClosedOK, Rejected, connect

MESSAGES: list[str | bytes] = ["", "hello", "ü€😀" * 40, b"", b"\x00\xff", b"x" * 126, "y" * 65536, b"z" * 300_000]


def need(name: str) -> Any:
    """The module `name`; the test ends where it is not installed."""
    if importlib.util.find_spec(name.split(".")[0]) is None:
        missing(f"needs the package {name.split('.')[0]} (extra test)")
    return importlib.import_module(name)


@asynccontextmanager
async def asyncio_thread(
    main: Callable[[asyncio.Event, Callable[[int], None]], Awaitable[None]],
) -> AsyncGenerator[int]:
    """Run `main(stop, started)` in an asyncio loop of its own; the value is the port that it has started with."""
    ready = trio.Event()
    ports: list[int] = []
    stop: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
    token = trio.lowlevel.current_trio_token()

    def run() -> None:
        async def body() -> None:
            event = asyncio.Event()
            stop.append((asyncio.get_running_loop(), event))

            def started(port: int) -> None:
                ports.append(port)
                token.run_sync_soon(ready.set)

            await asyncio.wait_for(main(event, started), 20)

        asyncio.run(body())

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, run)
            await ready.wait()
            try:
                yield ports[0]
            finally:
                loop, event = stop[0]
                loop.call_soon_threadsafe(event.set)


# Our client


async def talk(url: str, **options: Any) -> None:
    """Everything that an echo server of another library has to give back."""
    async with connect(url, subprotocols=["other", "chat"], **options) as conn:
        assert conn.subprotocol == "chat"
        for message in MESSAGES:
            await conn.send(message)
            assert await conn.receive() == message
        assert await conn.ping() >= 0
    assert conn.close_info is not None
    assert (conn.close_info.code, conn.close_info.clean) == (1000, True)
    async with connect(url, subprotocols=["chat"], **options) as conn:
        await conn.send("close please")
        with pytest.raises(ConnectionClosedOK) as caught:
            await conn.receive()
        assert (caught.value.info.code, caught.value.info.reason) == (4001, "as you wish")


@pytest.mark.parametrize("tls", [False, True])
async def test_our_client_and_the_server_of_websockets(tls: bool) -> None:
    """Messages, ping, subprotocol, both ways of closing, a refusal."""
    server = need("websockets.trio.server")

    async def echo(peer: Any) -> None:
        async for message in peer:
            if message == "close please":
                await peer.aclose(4001, "as you wish")
            else:
                await peer.send(message)

    def refuse(peer: Any, request: Any) -> Any:
        return peer.respond(403, "no\n") if request.path == "/no" else None

    context = shared_tls().server if tls else None
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            listening = await nursery.start(
                partial(
                    server.serve,
                    echo,
                    0,
                    host="127.0.0.1",
                    ssl=context,
                    subprotocols=["chat"],
                    process_request=refuse,
                )
            )
            port = listening.listeners[0].socket.getsockname()[1]
            url = f"{'wss://localhost' if tls else 'ws://127.0.0.1'}:{port}/"
            options: dict[str, Any] = {"ssl_context": shared_tls().client} if tls else {}
            await talk(url, **options)
            with pytest.raises(Rejected) as caught:
                async with connect(f"{url}no", **options):
                    pass
            assert (caught.value.status, caught.value.body) == (403, b"no\n")
            nursery.cancel_scope.cancel()


async def test_our_client_and_the_server_of_aiohttp() -> None:
    """The same."""
    web = need("aiohttp.web")

    async def echo(request: Any) -> Any:
        peer = web.WebSocketResponse(protocols=["chat"], compress=True)
        await peer.prepare(request)
        async for message in peer:
            if message.data == "close please":
                await peer.close(code=4001, message=b"as you wish")
            elif isinstance(message.data, str):
                await peer.send_str(message.data)
            else:
                await peer.send_bytes(message.data)
        return peer

    async def main(stop: asyncio.Event, started: Callable[[int], None]) -> None:
        app = web.Application()
        app.router.add_get("/", echo)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        started(runner.addresses[0][1])
        await stop.wait()
        await runner.cleanup()

    async with asyncio_thread(main) as port:
        await talk(f"ws://127.0.0.1:{port}/")
        with pytest.raises(Rejected) as caught:
            async with connect(f"ws://127.0.0.1:{port}/nowhere"):
                pass
        assert caught.value.status == 404


# Our server


@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_our_server_and_the_client_of_websockets(kind: Any) -> None:
    """Messages, ping, subprotocol, and a closing handshake."""
    client = need("websockets.trio.client")
    app = App(subprotocols=["chat"])
    recorder = Recorder(app)
    async with serving(app, kind) as site:
        tls = kind == "tls"
        url = f"{'wss://localhost' if tls else 'ws://127.0.0.1'}:{site.server.port}/"
        context = shared_tls().client if tls else None
        async with client.connect(url, ssl=context, subprotocols=["chat"], max_size=None) as peer:
            assert peer.subprotocol == "chat"
            for message in MESSAGES:
                await peer.send(message)
                assert await peer.recv() == message
            await (await peer.ping()).wait()
        await recorder.wait("close")
        assert recorder.info.clean
        assert recorder.info.code == 1000


async def test_our_server_and_the_client_of_aiohttp() -> None:
    """The same."""
    aiohttp = need("aiohttp")
    app = App(subprotocols=["chat"])
    recorder = Recorder(app)
    seen: list[str | bytes] = []

    async with serving(app, "tcp") as site:
        url = f"ws://127.0.0.1:{site.server.port}/"

        async def main(stop: asyncio.Event, started: Callable[[int], None]) -> None:
            started(0)
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(url, protocols=["chat"], compress=15, max_msg_size=0) as peer,
            ):
                assert peer.protocol == "chat"
                for message in MESSAGES:
                    await (peer.send_str(message) if isinstance(message, str) else peer.send_bytes(message))
                    seen.append((await peer.receive()).data)
            await stop.wait()

        async with asyncio_thread(main):
            await recorder.wait("close")
        assert seen == MESSAGES
        assert recorder.info.clean
        assert recorder.info.code == 1000
