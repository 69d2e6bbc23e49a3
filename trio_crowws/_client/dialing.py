"""From a URL to a connected socket: directly, through a proxy, or to a Unix socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import trio

from ..errors import ConnectFailed, ProxyError

if TYPE_CHECKING:
    from .._protocol.tunnel import Tunnel
    from .._protocol.url import Target

__all__ = ["dial"]

_READ_SIZE = 16 * 1024


async def dial(target: Target, tunnel: Tunnel | None) -> socket.socket:
    """Connect.

    Args:
      target: where to.
      tunnel: what to go through; it leads to the target.

    Raises:
      ConnectFailed: nobody is there; of several addresses, at none of them.
      ProxyError: the proxy refused, or did not answer.

    Cancellation: leaves nothing behind. `tunnel` knows what the proxy has said until then.
    """
    if tunnel is not None:
        proxy = tunnel.proxy
        stream = await _dial_tcp(proxy.dialled, proxy.port, f"the proxy {proxy}")
        try:
            await _dig(stream, tunnel)
        except BaseException:
            stream.socket.close()  # nothing that waits: a cancellation would come in place of an interrupt
            raise
    elif target.unix is not None:
        try:
            stream = await trio.open_unix_socket(target.unix)
        except OSError as error:
            raise _failure(f"the Unix socket {target.unix!r}", error) from error
    else:
        stream = await _dial_tcp(target.dialled, target.port, target.tunnel)
    return socket.socket(fileno=stream.socket.detach())


async def _dial_tcp(host: str, port: int, name: str) -> trio.SocketStream:
    try:
        return await trio.open_tcp_stream(host, port)  # which races the addresses, and sets TCP_NODELAY
    except OSError as error:
        raise _failure(name, error) from error


def _failure(name: str, error: OSError) -> ConnectFailed:
    """The error for whoever wanted to connect to `name`: with the reasons of all attempts, each of them once."""
    reasons: dict[str, int | None] = {}
    for each in _origins(error):
        if isinstance(each, socket.gaierror) or each.errno is None:
            reasons[each.strerror or str(each)] = None  # a resolver has numbers of its own
        else:
            reasons[os.strerror(each.errno)] = each.errno
    failure = ConnectFailed(f"cannot connect to {name}: {', '.join(reasons)}")
    if len(reasons) == 1:
        [failure.errno] = reasons.values()
    return failure


def _origins(error: OSError) -> Iterator[OSError]:
    """What the system has said: a failure of Trio's stands for one attempt with each address."""
    cause = error.__cause__
    if isinstance(cause, ExceptionGroup):
        for each in cast("ExceptionGroup[OSError]", cause).exceptions:
            yield from _origins(cast("OSError", each))
    else:
        yield error


async def _dig(stream: trio.SocketStream, tunnel: Tunnel) -> None:
    try:
        await stream.send_all(tunnel.request)
        while not tunnel.feed(bytes(await stream.receive_some(_READ_SIZE))):
            pass
    except trio.BrokenResourceError as error:
        broken = ProxyError(f"the connection to the proxy {tunnel.proxy} broke before it had answered: {error}")
        raise (tunnel.refusal() or broken) from error
