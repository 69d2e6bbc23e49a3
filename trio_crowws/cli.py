"""The command line: `trio-crowws run module:app`."""

from __future__ import annotations

import argparse
import importlib
import logging
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from ._app import App
from ._listeners import format_address
from ._server import Server

__all__ = ["main"]

FAILURE = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
      The exit status: 0 after a signal, 1 if it cannot serve, 2 for wrong arguments.
    """
    parser = _make_parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if bool(options.keyfile) and not options.certfile:
        parser.error("--keyfile needs --certfile")
    try:
        app = load_app(options.app)
    except LoadError as error:
        parser.error(str(error))
    try:
        app.run(
            options.host,
            options.port,
            unix=options.unix,
            ssl_context=_tls(options.certfile, options.keyfile) if options.certfile else None,
            on_listening=_announce,
        )
    except (OSError, ValueError) as error:
        print(f"trio-crowws: {error}", file=sys.stderr)
        return FAILURE
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trio-crowws", description="WebSocket applications on Trio.")
    parser.add_argument("--version", action="version", version=f"trio-crowws {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="serve an application until SIGINT or SIGTERM")
    run.add_argument("app", metavar="MODULE:APP", help="where the App object is, as in chat.server:app")
    run.add_argument("--host", default="127.0.0.1", help="name or address to listen on (default: %(default)s)")
    run.add_argument("--port", type=int, default=8000, help="0 for a free one (default: %(default)s)")
    run.add_argument("--unix", metavar="PATH", help="listen on a Unix socket instead")
    run.add_argument("--certfile", metavar="FILE", help="serve TLS with this certificate chain (PEM)")
    run.add_argument("--keyfile", metavar="FILE", help="its private key, if that is in a file of its own (PEM)")
    run.add_argument(
        "--log-level", default="info", choices=("debug", "info", "warning", "error"), help="(default: %(default)s)"
    )
    return parser


class LoadError(Exception):
    """There is no application at the place that was named."""


def load_app(place: str) -> App:
    """The `App` at `module:attribute`; the current directory is importable.

    Raises:
      LoadError: the place is malformed, the module or the attribute does not exist, or it is no `App`.
    """
    module_name, separator, attribute = place.partition(":")
    if not module_name or module_name.startswith(".") or not separator or not attribute:
        raise LoadError(f"{place!r} is not of the form MODULE:APP, as in chat.server:app")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise  # the module is there; what it imports is not, and the traceback says where
        raise LoadError(f"there is no module {module_name!r} (looked in {here} and the Python path)") from error
    app = module
    for name in attribute.split("."):
        try:
            app = getattr(app, name)
        except AttributeError as error:
            raise LoadError(f"{module_name} has no {attribute!r}") from error
    if not isinstance(app, App):
        raise LoadError(f"{place} is of the type {type(app).__name__}, not an App")
    return app


def _tls(certfile: str, keyfile: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certfile, keyfile)
    except OSError as error:  # of ssl as well; neither kind says which file it is about
        files = f"{certfile} and the key {keyfile}" if keyfile else certfile
        raise OSError(f"cannot use the certificate {files}: {error.strerror or error}") from error
    return context


def _announce(server: Server) -> None:
    for address in server.addresses:
        print("listening on", address if isinstance(address, str) else format_address(address), flush=True)
