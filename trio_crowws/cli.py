"""The command line: `trio-crowws run module:app` and `trio-crowws connect URL`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from . import __version__
from ._cli import connecting, serving
from ._cli.exits import EPILOG

__all__ = ["main"]

COMMANDS = (
    ("run", serving, "serve an application until SIGINT or SIGTERM"),
    ("connect", connecting, "connect to a server: lines of the input become messages"),
)
LAYOUT: dict[str, Any] = {"epilog": EPILOG, "formatter_class": argparse.RawDescriptionHelpFormatter}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
      arguments: without the name of the program; `None` for those of the process.

    Returns:
      The exit status; `--help` has a table.
    """
    parser = argparse.ArgumentParser(prog="trio-crowws", description="WebSockets on Trio.", **LAYOUT)
    parser.add_argument("--version", action="version", version=f"trio-crowws {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command, summary in COMMANDS:
        subparser = commands.add_parser(name, help=summary, description=command.DESCRIPTION, **LAYOUT)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run, parser=subparser)
    options = parser.parse_args(arguments)
    status: int = options.run(options.parser, options)
    return status
