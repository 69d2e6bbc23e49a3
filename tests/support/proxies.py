"""A small HTTP proxy for tests: it makes tunnels, or does what a test wants it to do instead."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import trio
import trio.testing

from support.rawclient import unwrapped

__all__ = ["SmallProxy", "small_proxy"]


class SmallProxy(NamedTuple):
    """A proxy that a test runs: where it listens, and the requests that it got."""

    port: int
    heads: list[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


async def tunnel(stream: trio.SocketStream, head: bytes) -> None:
    """Do what a proxy does."""
    host, _, port = head.split(b" ")[1].decode().rpartition(":")
    async with await trio.open_tcp_stream(host.strip("[]"), int(port)) as onward:
        await stream.send_all(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(copy, stream, onward)
            await copy(onward, stream)


async def copy(source: trio.SocketStream, target: trio.SocketStream) -> None:
    try:
        async for data in source:
            await target.send_all(data)
        await target.send_eof()
    except trio.BrokenResourceError:
        await trio.aclose_forcefully(source)
        await trio.aclose_forcefully(target)
    except trio.ClosedResourceError:
        pass


@asynccontextmanager
async def small_proxy(
    behaviour: Callable[[trio.SocketStream, bytes], Awaitable[None]] = tunnel,
    patience: float = 10,
) -> AsyncGenerator[SmallProxy]:
    heads: list[bytes] = []

    async def handle(stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = await stream.receive_some()
            if not data:
                return
            head += data
        heads.append(head)
        await behaviour(stream, head)

    with unwrapped(), trio.fail_after(patience):
        async with trio.open_nursery() as nursery:
            listeners: list[Any] = await nursery.start(trio.serve_tcp, handle, 0)
            await trio.testing.wait_all_tasks_blocked()
            yield SmallProxy(listeners[0].socket.getsockname()[1], heads)
            nursery.cancel_scope.cancel()
