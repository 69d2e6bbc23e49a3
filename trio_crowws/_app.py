"""The application, and the ways to serve it."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, final

import trio

from ._listeners import open_tcp, open_unix
from ._options import check_context
from ._running import print_urls, run_until_signal
from ._server import Server
from ._site import Site
from ._types import Address

__all__ = ["App"]


@final
class App(Site):
    """A WebSocket application: routes, what they have in common, and the connections of all of them.

    Args:
      options: see `Options`; they hold for every route that does not set its own.

    Attributes:
      options: the same, as an `Options`.

    Raises:
      TypeError: an option is unknown or has a value of the wrong type.
      ValueError: an option has a value that is not allowed; the message names it.
    """

    @trio.lowlevel.enable_ki_protection
    async def serve(
        self,
        host: str | None = "127.0.0.1",
        port: int = 8000,
        *,
        unix: str | os.PathLike[str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        backlog: int | None = None,
        task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen and serve until the server is closed; `await nursery.start(app.serve, ...)` returns the `Server`.

        Args:
          host: a name or address. `"0.0.0.0"`: all IPv4 addresses of the machine. `"::"`: all of IPv6, and none of
            IPv4. `None`: all of both, with a listening socket for each. A name may stand for several addresses.
          port: 0 for a free one, see `Server.port`; where there are several sockets, each gets its own.
          unix: path of a Unix socket to listen on instead, of at most 107 bytes on Linux. A socket there that no
            process has any more is replaced. On Linux, a name that begins with NUL is abstract: no file, and shown
            with `@` in its place.
          ssl_context: serve TLS with it, as `ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)` makes it.
          backlog: length of the kernel's accept queue; `None` for as much as the system allows.
          task_status: Trio's; gets the `Server` when it accepts connections.

        Raises:
          OSError: the address is in use or not ours; the message holds it.
          TypeError: `ssl_context` is no `ssl.SSLContext`.
          ValueError: a route has no handler, `unix` names no socket, or `ssl_context` is one for clients.

        Cancellation: peers get Close 1001, every `on_close` runs, then the cancellation goes on; see the topic guide on
        shutdown.
        """
        self._check_routes()
        if ssl_context is not None:
            check_context(ssl_context, server_side=True)
        sockets = [open_unix(unix, backlog)] if unix is not None else await open_tcp(host, port, backlog)
        await Server(self)._serve_sockets(sockets, ssl_context, task_status)

    @trio.lowlevel.enable_ki_protection
    async def serve_listeners(
        self,
        listeners: Sequence[trio.abc.Listener[Any]],
        *,
        task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve on listeners that are ready, and close them in the end: Trio's own, or any other.

        Raises:
          ValueError: there is no listener, or a route has no handler.

        Cancellation: as for `serve`.
        """
        self._check_routes()
        if not listeners:
            raise ValueError("serve_listeners needs at least one listener")
        await Server(self)._serve_listeners(listeners, task_status)

    @trio.lowlevel.enable_ki_protection
    async def serve_stream(
        self, stream: trio.abc.Stream, *, remote_address: Address = None, local_address: Address = None
    ) -> None:
        """Serve one connection over a stream that is connected already, until it has ended.

        Args:
          stream: any Trio stream; it is closed in the end.
          remote_address: what `conn.remote_address` is to say.
          local_address: what `conn.local_address` is to say.

        Cancellation: as for `serve`.
        """
        self._check_routes()
        await Server(self)._serve_stream(stream, local_address, remote_address)

    def run(
        self,
        host: str | None = "127.0.0.1",
        port: int = 8000,
        *,
        unix: str | os.PathLike[str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        backlog: int | None = None,
        on_listening: Callable[[Server], object] | None = None,
        announce: bool = True,
    ) -> None:
        """Run the application in a Trio loop of its own, until SIGINT or SIGTERM.

        When it accepts connections it prints one line, `listening on` and the URL.

        The first signal shuts down in an orderly way: no new connections, Close 1001 to all, `shutdown_grace` seconds
        for the handlers. The second one aborts.

        Args:
          host: as for `serve`.
          port: as for `serve`.
          unix: as for `serve`.
          ssl_context: as for `serve`.
          backlog: as for `serve`.
          on_listening: called with the `Server` when it accepts connections.
          announce: `False` prints nothing.

        Raises:
          OSError: the address is in use or not ours; the message holds it.
          TypeError: `ssl_context` is no `ssl.SSLContext`.
          ValueError: a route has no handler, `unix` names no socket, or `ssl_context` is one for clients.
        """
        if ssl_context is not None:
            check_context(ssl_context, server_side=True)

        def tell(server: Server) -> None:
            if announce:
                print_urls(server)
            if on_listening is not None:
                on_listening(server)

        serve = partial(self.serve, host, port, unix=unix, ssl_context=ssl_context, backlog=backlog)
        run_until_signal(serve, tell)
