"""From a URL to a connected socket: directly, through a proxy, or to a Unix socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from .._transport.addresses import check_unix_path
from ..errors import ConnectFailed, ProxyError
from .resolving import connect_to, resolve

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
            check_unix_path(target.unix)
        except OSError as error:
            raise ConnectFailed(f"cannot connect to the Unix socket {target.unix!r}: {error.strerror}") from error
        try:
            stream = await trio.open_unix_socket(target.unix)
        except OSError as error:
            raise _failure(f"the Unix socket {target.unix!r}", [error]) from error
    else:
        stream = await _dial_tcp(target.dialled, target.port, target.tunnel)
    return socket.socket(fileno=stream.socket.detach())


async def _dial_tcp(host: str, port: int, name: str) -> trio.SocketStream:
    try:
        places = await resolve(host, port)
    except OSError as error:
        raise _failure(name, [error]) from error
    made = await connect_to(places)
    if isinstance(made, trio.SocketStream):
        return made
    raise _failure(name, made) from _joined(made)


def _joined(errors: Sequence[OSError]) -> OSError:
    """One error for all of them, which are behind it."""
    if len(errors) == 1:
        return errors[0]
    joined = OSError("no address has answered")
    joined.__cause__ = ExceptionGroup("no address has answered", errors)
    return joined


def _failure(name: str, errors: Sequence[OSError]) -> ConnectFailed:
    """The error for whoever wanted to connect to `name`: with the reasons of all attempts, each of them once."""
    reasons: dict[str, int | None] = {}
    for each in errors:
        if isinstance(each, socket.gaierror) or each.errno is None:
            reasons[each.strerror or str(each)] = None  # a resolver has numbers of its own
        else:
            reasons[os.strerror(each.errno)] = each.errno
    failure = ConnectFailed(f"cannot connect to {name}: {', '.join(reasons)}")
    if len(reasons) == 1:
        [failure.errno] = reasons.values()
    return failure


async def _dig(stream: trio.SocketStream, tunnel: Tunnel) -> None:
    try:
        await stream.send_all(tunnel.request)
        while not tunnel.feed(bytes(await stream.receive_some(_READ_SIZE))):
            pass
    except trio.BrokenResourceError as error:
        broken = ProxyError(f"the connection to the proxy {tunnel.proxy} broke before it had answered: {error}")
        raise (tunnel.refusal() or broken) from error
