"""The client on every kind of transport, and what it must not leave behind."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from urllib.parse import quote

import trio

from support.servers import Site, shared_tls
from trio_crowws import CloseInfo, Connection, connect, connect_stream

__all__ = ["client_of", "end_of", "nothing_left", "open_files", "tasks"]


def client_of(site: Site, path: str = "/", **options: Any) -> AbstractAsyncContextManager[Connection]:
    """Connect to `site` over its kind of transport."""
    if site.kind == "memory":
        return connect_stream(site.listener.connect(), f"ws://testserver{path}", **options)
    if site.kind == "unix":
        [socket_path] = site.server.addresses
        assert isinstance(socket_path, str)
        return connect(f"ws+unix://{quote(socket_path)}:{path}", **options)
    if site.kind == "tls":
        return connect(f"wss://localhost:{site.server.port}{path}", ssl_context=shared_tls().client, **options)
    return connect(f"ws://127.0.0.1:{site.server.port}{path}", **options)


def end_of(conns: list[Connection]) -> CloseInfo:
    """How the only connection among `conns` has ended."""
    [conn] = conns
    assert conn.close_info is not None
    return conn.close_info


def open_files() -> set[str]:
    """What the process has open, by number and what it is."""
    if sys.platform != "linux":
        return set()
    found = set()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 -- pathlib opens the folder in another way
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")  # noqa: PTH115
        except OSError:  # the folder itself
            continue
    return found


def tasks() -> set[trio.lowlevel.Task]:
    """All tasks of this Trio run."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    found: set[trio.lowlevel.Task] = set()
    waiting = [root]
    while waiting:
        task = waiting.pop()
        found.add(task)
        for nursery in task.child_nurseries:
            waiting += nursery.child_tasks
    return found


@asynccontextmanager
async def nothing_left() -> AsyncGenerator[None]:
    """When the block has ended, it has left no task and no descriptor behind."""
    before, files = tasks(), open_files()
    yield
    left = tasks() - before
    assert not left, left
    assert not open_files() - files
