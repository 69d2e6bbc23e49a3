"""From a name to addresses, and from addresses to one connected socket.

A name is looked up by the system, in a thread that nobody can stop: when its answer does not come, the client gives up
and the thread stays, for half a minute and more. Trio lends at most 40 threads at a time, to everybody, so a client
whose names hang would take them from the files and the databases of its program. That is why lookups have a limiter of
their own here, and why `trio.open_tcp_stream`, which has none, is not used.

Where the program has set a resolver for its Trio run (`trio.socket.set_custom_hostname_resolver`), that one is asked.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import Any, Final

import trio

from .._foreign import cause_of, unwrap

__all__ = ["connect_to", "resolve"]

LOOKUPS: Final = 100
"""Threads that look up names at the same time, those included whose answer nobody waits for any more."""

_HEAD_START: Final = 0.25
"""Seconds that an address has before the next one is tried as well (RFC 8305 section 8)."""

# A limiter belongs to its Trio run: a thread that outlives the run never gives its place back.
_limiter: trio.lowlevel.RunVar[trio.CapacityLimiter | None] = trio.lowlevel.RunVar("trio_crowws lookups", None)

# Family, type, protocol, canonical name and address, as from `getaddrinfo`.
Place = tuple[int, int, int, str, Any]


async def resolve(host: str, port: int) -> Sequence[Place]:
    """The addresses of a host, in the order in which to try them.

    Raises:
      OSError: there are none, or the system cannot tell.

    Cancellation: gives up; the thread may go on, and counts against the limit until it has ended.
    """
    if _is_numeric(host):  # of which nobody needs to be asked
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    if _has_resolver():
        found: Sequence[Place] = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return _interleaved(found)
    limiter = _limiter.get()
    if limiter is None:
        limiter = trio.CapacityLimiter(LOOKUPS)
        _limiter.set(limiter)
    return _interleaved(
        await trio.to_thread.run_sync(_look_up, host.encode("ascii"), port, abandon_on_cancel=True, limiter=limiter)
    )


def _look_up(host: bytes, port: int) -> Sequence[Place]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _has_resolver() -> bool:
    """Whether the program has set a resolver; the only public way to see that is to take it away for a moment."""
    resolver = trio.socket.set_custom_hostname_resolver(None)
    trio.socket.set_custom_hostname_resolver(resolver)
    return resolver is not None


def _interleaved(places: Sequence[Place]) -> Sequence[Place]:
    """The same with an address of the other family in the second place, so that no broken IPv6 costs much time."""
    for index, place in enumerate(places):
        if place[0] != places[0][0]:
            return [places[0], place, *places[1:index], *places[index + 1 :]]
    return places


async def connect_to(places: Sequence[Place]) -> trio.SocketStream | list[OSError]:
    """Connect to the first of some addresses that answers (Happy Eyeballs, RFC 8305 section 5).

    The next one is tried when an attempt has failed, or has had its head start.

    Returns:
      A stream, or why each of the attempts has failed.

    Cancellation: leaves nothing behind.
    """
    connected: list[trio.socket.SocketType] = []
    failures: list[OSError] = []

    @trio.lowlevel.enable_ki_protection  # an interrupt is for the task that waits below
    async def attempt(place: Place, failed: trio.Event) -> None:
        try:
            connected.append(await _connect(place))
            nursery.cancel_scope.cancel()
        except OSError as error:
            failures.append(error)
            failed.set()

    try:
        async with trio.open_nursery() as nursery:
            for place in places:
                failed = trio.Event()
                nursery.start_soon(attempt, place, failed)
                with trio.move_on_after(_HEAD_START):
                    await failed.wait()
        # The stream sets TCP_NODELAY.
        return trio.SocketStream(connected.pop(0)) if connected else failures
    except BaseExceptionGroup as group:
        error = unwrap(group)
        try:
            raise error from cause_of(error)
        finally:
            del error  # it refers to this frame, and so to itself
    finally:
        for sock in connected:  # a second one that was quick enough, or all of them if this is given up
            sock.close()


async def _connect(place: Place) -> trio.socket.SocketType:
    family, kind, protocol, _, address = place
    sock = trio.socket.socket(family, kind, protocol)
    try:
        await sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock
