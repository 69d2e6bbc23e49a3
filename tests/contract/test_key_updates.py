"""Peers of TLS 1.3 that have the keys changed, now and then or without end."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from support.heads import UPGRADE, write_head
from support.keyupdates import KeyUpdating
from support.servers import Recorder, serving, until
from trio_crowws import App, ConnectionLost
from trio_crowws._transport import tls as transport_tls
from trio_crowws._transport.engine import Engine
from trio_crowws._transport.poller import SocketTransport
from trio_crowws._transport.tls import TLSTransport
from trio_crowws.testing import make_frame

KIB = 1024


@asynccontextmanager
async def updating(recorder: Recorder, app: App) -> AsyncGenerator[tuple[KeyUpdating, TLSTransport]]:
    async with serving(app, "tls") as site:
        peer = await KeyUpdating.connect(site.server.port)
        async with peer.stream:
            await peer.stream.send_all(peer.seal(write_head(UPGRADE.items(), "GET / HTTP/1.1")))
            await recorder.wait("open")
            transport = recorder.conn._transport
            assert isinstance(transport, TLSTransport)
            yield peer, transport


@pytest.mark.parametrize("epoll", [True, False])
async def test_some_key_updates(epoll: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages go on around key updates, whether these ask for one in return or not."""
    if not epoll:
        monkeypatch.setattr("trio_crowws._server.Engine", partial(Engine, use_epoll=False))
    app = App()
    recorder = Recorder(app)
    texts = [f"{number}" for number in range(20)]
    async with updating(recorder, app) as (peer, _):
        records = [peer.seal(make_frame(1, text.encode())) + peer.update(asking=text < "5") for text in texts]
        for record in records[:10]:
            await peer.stream.send_all(record)
        await peer.stream.send_all(b"".join(records[10:]))
        await recorder.wait("message", len(texts))
    assert recorder.values("message") == texts


async def test_a_read_full_of_key_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """One turn works on a part of them, and the message behind them comes in the end."""
    parts: list[list[int]] = []
    take, open_ = TLSTransport._take, TLSTransport._open

    def count_turns(self: TLSTransport, data: bytes) -> None:
        parts.append([])
        take(self, data)

    def count_parts(self: TLSTransport, part: bytes | memoryview, pieces: list[bytes]) -> bool:
        parts[-1].append(len(part))
        return open_(self, part, pieces)

    monkeypatch.setattr(transport_tls, "_BARREN", 1024 * KIB)
    app = App()
    recorder = Recorder(app)
    async with updating(recorder, app) as (peer, _):
        flood = b"".join(peer.update(asking=False) for _ in range(2000)) + peer.seal(make_frame(1, b"hello"))
        monkeypatch.setattr(TLSTransport, "_take", count_turns)
        monkeypatch.setattr(TLSTransport, "_open", count_parts)
        await peer.stream.send_all(flood)
        await recorder.wait("message")
        assert sum(map(sum, parts)) == len(flood)
        assert all(len(turn) == 1 and turn[0] <= transport_tls._PART for turn in parts)


async def test_answers_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """While answers wait for a peer that does not read nothing is read from it either; when it reads, it goes on."""
    monkeypatch.setattr(transport_tls, "_BARREN", 1024 * KIB)
    app = App()
    recorder = Recorder(app, send_limit=1000, send_high_water=1000)
    async with updating(recorder, app) as (peer, transport):
        lower = transport._lower
        assert isinstance(lower, SocketTransport)
        lower._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        flood = b"".join(peer.update() for _ in range(8000)) + peer.seal(make_frame(1, b"hello"))
        most = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.stream.send_all, flood)
            await until(lambda: lower.paused and transport._answers > transport_tls._MOST_ANSWERS)
            most = recorder.conn.buffered
            assert not transport.paused
            while not recorder.values("message"):
                assert await peer.stream.receive_some(65536)
                most = max(most, recorder.conn.buffered)
        assert most < 64 * KIB
    assert recorder.values("message") == ["hello"]


async def test_many_key_updates_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that sends many in a row is read slowly, and is heard all the same; then it is read as before."""
    monkeypatch.setattr(transport_tls, "_BARREN", 32 * KIB)
    monkeypatch.setattr(transport_tls, "_REST", 0.01)
    app = App()
    recorder = Recorder(app)
    rests: list[float] = []
    works = TLSTransport._rested

    def count(self: TLSTransport, now: float) -> None:
        rests.append(now)
        works(self, now)

    monkeypatch.setattr(TLSTransport, "_rested", count)
    async with updating(recorder, app) as (peer, transport):
        await peer.stream.send_all(b"".join(peer.update(asking=False) for _ in range(4000)))
        await peer.stream.send_all(peer.seal(make_frame(1, b"x" * 16_000)))
        await recorder.wait("message")
        assert len(rests) > 2
        assert transport._barren < 32 * KIB


async def test_key_updates_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that sends nothing else is given up, and the reason is in the log and in `on_error`."""
    monkeypatch.setattr(transport_tls, "_BARREN", 16 * KIB)
    monkeypatch.setattr(transport_tls, "_MOST_BARREN", 64 * KIB)
    monkeypatch.setattr(transport_tls, "_REST", 0.01)
    app = App()
    recorder = Recorder(app)
    async with updating(recorder, app) as (peer, _):
        await peer.stream.send_all(make_records(peer))
        await recorder.wait("close")
    assert type(recorder.info.error) is ConnectionLost
    assert isinstance(recorder.info.error.__cause__, ssl.SSLError)
    assert "held nearly no data" in str(recorder.info.error)


async def test_a_rest_that_outlasts_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that is dropped while it is read slowly is dropped at once."""
    monkeypatch.setattr(transport_tls, "_BARREN", 16 * KIB)
    monkeypatch.setattr(transport_tls, "_REST", 0.02)
    app = App()
    recorder = Recorder(app)
    async with updating(recorder, app) as (peer, transport):
        await peer.stream.send_all(make_records(peer, 1000))
        await until(lambda: transport._resting is not None)
        recorder.conn.abort()
        await recorder.wait("close")
        await until(lambda: transport._resting is None)


def make_records(peer: KeyUpdating, count: int = 4000) -> bytes:
    return b"".join(peer.update(asking=False) for _ in range(count))


async def test_records_that_come_while_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that are read while earlier ones wait for their turn are worked on behind them, also during a rest."""
    monkeypatch.setattr(transport_tls, "_BARREN", 16 * KIB)
    monkeypatch.setattr(transport_tls, "_REST", 0.01)
    app = App()
    recorder = Recorder(app)
    async with updating(recorder, app) as (peer, transport):
        transport._on_data(make_records(peer, 1500))
        assert transport._records
        assert transport._resting is not None
        transport._on_data(make_records(peer, 10) + peer.seal(make_frame(1, b"hello")))
        await recorder.wait("message")
    assert recorder.values("message") == ["hello"]
