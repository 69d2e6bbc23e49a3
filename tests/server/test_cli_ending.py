"""How a server of the command line ends: `test_cli.py` has everything else."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import trio

from support.certificates import TLS
from support.processes import port_of, started, wait
from trio_crowws.testing import PeerClosed, shake_hands

SERVICE = """
from trio_crowws import App

app = App()

@app.websocket("/echo")
async def echo(conn):
    async for message in conn:
        await conn.send(message)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_server_over_tls_is_stopped(number: int, tls: TLS, tmp_path: Path) -> None:
    """Over TLS, too, peers see 1001 when the server gets a signal, and its exit status is 0."""
    (tmp_path / "service.py").write_text(SERVICE)
    log = tmp_path / "log"
    files = ["--certfile", tls.certfile, "--keyfile", tls.keyfile]
    command = [sys.executable, "-m", "trio_crowws", "run", "service:app", "--port", "0", *files]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}
    with started(command, log, environment=environment, folder=tmp_path) as process:
        port = port_of(process, log, 10)
        async with await trio.open_ssl_over_tcp_stream(
            "localhost", port, ssl_context=tls.client, https_compatible=True
        ) as stream:
            peer = await shake_hands(stream, "/echo")
            await peer.send("hello")
            assert await peer.receive() == "hello"
            process.send_signal(number)
            with pytest.raises(PeerClosed) as closed, trio.fail_after(10):
                await peer.receive()
        assert closed.value.close is not None
        assert closed.value.close.code == 1001
        assert await trio.to_thread.run_sync(wait, process, 10) == 0
