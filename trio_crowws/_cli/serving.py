"""`trio-crowws run`: find the application and serve it."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import re
import signal
import ssl
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from .._app import App
from .._running import print_urls, run_until_signal
from .exits import FAILED, OK
from .reloading import SIGNALS, is_available, serve_and_watch

__all__ = ["DESCRIPTION", "LoadError", "add_arguments", "load_app", "run"]

DESCRIPTION = "Serve an application until SIGINT or SIGTERM. A second signal does not wait for its connections."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `run`."""
    parser.add_argument("app", metavar="MODULE:APP", help="where the App object is, as in server:app")
    parser.add_argument("--host", default="127.0.0.1", help="name or address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8000, help="0 for a free one (default: %(default)s)")
    parser.add_argument("--unix", metavar="PATH", help="listen on a Unix socket instead")
    parser.add_argument("--certfile", metavar="FILE", help="serve TLS with this certificate chain (PEM)")
    parser.add_argument("--keyfile", metavar="FILE", help="its private key, if that is in a file of its own (PEM)")
    parser.add_argument(
        "--log-level", default="info", choices=("debug", "info", "warning", "error"), help="(default: %(default)s)"
    )
    parser.add_argument(
        "--reload",
        action="store_true",
        help="for development: start again whenever a Python file has changed (needs trio-crowws[reload])",
    )
    parser.add_argument(
        "--reload-dir",
        action="append",
        metavar="PATH",
        help="watch this folder instead of the current one; may be repeated",
    )
    # How --reload starts its children: a descriptor that ends when their parent does, or -1.
    parser.add_argument("--reloaded", type=int, metavar="FD", help=argparse.SUPPRESS)


def _port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; it must be a number from 0 to 65535")
    return int(text)


def run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Serve until a signal comes; the exit status."""
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if options.keyfile and not options.certfile:
        parser.error("--keyfile needs --certfile")
    if options.reload_dir and not options.reload:
        parser.error("--reload-dir needs --reload")
    signals = _obey_parent(options.reloaded) if options.reloaded is not None else (signal.SIGINT, signal.SIGTERM)
    try:
        work = _watcher(parser, options) if options.reload else partial(_serve, load_app(options.app), options, signals)
    except LoadError as error:
        parser.error(str(error))
    try:
        work()
    except (OSError, ValueError) as error:
        print(f"trio-crowws: {error}", file=sys.stderr)
        return FAILED
    return OK


def _serve(app: App, options: argparse.Namespace, signals: Sequence[signal.Signals]) -> None:
    context = _tls(options.certfile, options.keyfile) if options.certfile else None
    serve = partial(app.serve, options.host, options.port, unix=options.unix, ssl_context=context)
    run_until_signal(serve, print_urls, signals)


def _obey_parent(descriptor: int) -> tuple[signal.Signals]:
    """Be a child of --reload: the signals that are left to obey."""
    # What a terminal sends reaches the whole foreground group. The parent gets it too, and makes a SIGTERM of it.
    for number in set(SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if descriptor >= 0:
        threading.Thread(target=_end_with_parent, args=(descriptor,), daemon=True).start()
    return (signal.SIGTERM,)


def _end_with_parent(descriptor: int) -> None:
    """Wait in a thread until the other end of a pipe is gone, and with it the process that had it."""
    os.read(descriptor, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _watcher(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Callable[[], None]:
    _split(options.app)  # no edit of a file makes an argument right; the module itself may come later
    if not is_available():
        parser.error("--reload needs the package watchfiles: pip install 'trio-crowws[reload]'")
    folders = [Path(folder) for folder in options.reload_dir or ["."]]
    for folder in folders:
        if not folder.is_dir():
            parser.error(f"--reload-dir {folder}: there is no such folder")
    arguments = [f"--host={options.host}", f"--port={options.port}", f"--log-level={options.log_level}"]
    given = {name: getattr(options, name) for name in ("unix", "certfile", "keyfile")}
    arguments += [f"--{name}={value}" for name, value in given.items() if value is not None]
    return partial(serve_and_watch, [sys.executable, "-m", "trio_crowws", "run", *arguments], options.app, folders)


class LoadError(Exception):
    """There is no application at the place that was named."""


def load_app(place: str) -> App:
    """The `App` at `module:attribute`; the current directory is importable.

    Raises:
      LoadError: the place is malformed, the module or the attribute does not exist, or it is no `App`.
    """
    module_name, attribute = _split(place)
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


def _split(place: str) -> tuple[str, str]:
    module_name, _, attribute = place.partition(":")
    if "" in (*module_name.split("."), *attribute.split(".")):
        raise LoadError(f"{place!r} is not of the form MODULE:APP, as in server:app")
    return module_name, attribute


def _tls(certfile: str, keyfile: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certfile, keyfile)
    except OSError as error:  # of ssl as well; neither kind says which file it is about
        files = f"{certfile} and the key {keyfile}" if keyfile else certfile
        raise OSError(f"cannot use the certificate {files}: {error.strerror or error}") from error
    return context
