"""An echo server with every knob: what the Autobahn test suite and the benchmarks drive.

python examples/echo/server.py --port 9001 --style async
"""

from __future__ import annotations

import argparse
import logging
import ssl
from typing import Any

from trio_crowws import App, Connection, Deflate, Handler

PATHS = ("/", "/echo")


async def session(conn: Connection) -> None:
    """The session style: one function for the whole life of a connection."""
    async for message in conn:
        await conn.send(message)


async def echo_async(conn: Connection, message: str | bytes) -> None:
    """An async callback runs in the connection's task and may wait."""
    await conn.send(message)


def echo_sync(conn: Connection, message: str | bytes) -> None:
    """A plain callback runs where the bytes are read: the fastest, as long as it does not block."""
    conn.send_nowait(message)


class Echo(Handler):
    """The class style: one object for each connection."""

    async def on_message(self, conn: Connection, message: str | bytes) -> None:
        """Send it back."""
        await conn.send(message)


def make_app(style: str, **options: Any) -> App:
    """An application that echoes on every one of `PATHS`."""
    app = App(origins="*", **options)
    for path in PATHS:
        route = app.websocket(path)
        if style == "session":
            route(session)
        elif style == "async":
            route.onmessage(echo_async)
        elif style == "sync":
            route.onmessage(echo_sync)
        else:
            route(Echo)
    return app


def parse_arguments() -> argparse.Namespace:
    """The command line. 0 turns a limit or the heartbeat off."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9001)
    parser.add_argument("--unix", metavar="PATH", help="listen on a Unix socket instead")
    parser.add_argument("--style", choices=("session", "async", "sync", "class"), default="async")
    parser.add_argument("--max-payload", type=int, default=1 << 20, metavar="BYTES")
    parser.add_argument("--max-fragments", type=int, default=1024, metavar="N")
    parser.add_argument("--ping-interval", type=float, default=20, metavar="SECONDS")
    parser.add_argument("--ping-timeout", type=float, default=20, metavar="SECONDS")
    parser.add_argument("--compression", action="store_true", help="compress all messages where the client can")
    parser.add_argument("--context-takeover", action="store_true", help="and refer to earlier ones, where it can")
    parser.add_argument("--certfile", metavar="FILE", help="serve TLS with this certificate")
    parser.add_argument("--keyfile", metavar="FILE")
    parser.add_argument("--log-level", default="WARNING", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    return parser.parse_args()


def compression(arguments: argparse.Namespace) -> Deflate | None:
    """Everything is compressed, however short, so that test suites see something of it."""
    if not arguments.compression:
        return None
    return Deflate(threshold=0, server_no_context_takeover=not arguments.context_takeover)


def main() -> None:
    """Run until a signal comes."""
    arguments = parse_arguments()
    logging.basicConfig(level=arguments.log_level, format="%(asctime)s %(levelname)s %(message)s")
    app = make_app(
        arguments.style,
        max_payload=arguments.max_payload or None,
        max_fragments=arguments.max_fragments or None,
        ping_interval=arguments.ping_interval or None,
        ping_timeout=arguments.ping_timeout or None,
        compression=compression(arguments),
        send_limit=max(1 << 20, 4 * arguments.max_payload) if arguments.max_payload else 1 << 28,
    )
    ssl_context = None
    if arguments.certfile:
        ssl_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        ssl_context.load_cert_chain(arguments.certfile, arguments.keyfile)

    app.run(arguments.host, arguments.port, unix=arguments.unix, ssl_context=ssl_context)


if __name__ == "__main__":
    main()
