"""Run every case that a fuzzing server of Autobahn|Testsuite has with the client of this package.

    wstest --mode fuzzingserver &
    python tests/autobahn/client.py ws://127.0.0.1:9001 trio_crowws

The server counts its cases from 1 and decides itself which those are; it writes the report at the end. The exit status
is 0 when every case was run, whatever the server thinks of it, and 1 when the server could not be talked to.
"""

from __future__ import annotations

import argparse
import logging
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a script is told of its own folder only

from trio_crowws import Connection, ConnectionClosed, CrowWSError, Deflate, connect

__all__ = ["OPTIONS", "count_cases", "run_case", "run_cases", "update_reports"]

OPTIONS: dict[str, Any] = {
    "max_payload": 64 * 1024 * 1024,  # sections 9, 12 and 13 have messages of many megabytes
    "max_fragments": None,  # and of 65,536 fragments
    "control_rate": None,
    # The offer of a browser, which leaves most of the decisions to the server, as sections 12 and 13 want it.
    "compression": Deflate(
        threshold=0, server_max_window_bits=15, client_max_window_bits=15, server_no_context_takeover=False
    ),
    "heartbeat": None,
    "open_timeout": 30,
    "close_timeout": 10,
    "send_timeout": 60,
}


async def count_cases(url: str) -> int:
    """Ask the server how many cases it has."""
    async with connect(f"{url}/getCaseCount", **OPTIONS) as conn:
        return int(await conn.receive())


async def run_case(url: str, agent: str, number: int) -> None:
    """Echo whatever the server sends, until it has seen enough."""
    async with connect(f"{url}/runCase?case={number}&agent={quote(agent, safe='')}", **OPTIONS) as conn:
        with suppress(ConnectionClosed):  # many cases are about connections that have to fail
            await _echo(conn)


async def _echo(conn: Connection) -> None:
    async for message in conn:
        await conn.send(message)


async def update_reports(url: str, agent: str) -> None:
    """Have the server write its reports."""
    async with connect(f"{url}/updateReports?agent={quote(agent, safe='')}", **OPTIONS) as conn:
        await conn.wait_closed()


async def run_cases(url: str, agent: str) -> int:
    """Run all cases, one after the other; return how many there were."""
    count = await count_cases(url)
    for number in range(1, count + 1):
        await run_case(url, agent, number)
    await update_reports(url, agent)
    return count


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", metavar="URL", help="of the fuzzing server, as ws://127.0.0.1:9001")
    parser.add_argument("agent", metavar="AGENT", help="the name that the report gives to this client")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    try:
        count = trio.run(run_cases, given.url.rstrip("/"), given.agent)
    except CrowWSError as error:
        print(f"client.py: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(f"{count} cases were run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
