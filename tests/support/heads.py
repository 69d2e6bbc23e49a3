"""Request heads to try, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from trio_crowws._protocol.handshake import RequestReader, check_upgrade
from trio_crowws._request import Request
from trio_crowws.errors import HandshakeError

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # the example of RFC 6455 section 1.3
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

UPGRADE = {
    "Host": "example.org",
    "Connection": "keep-alive, Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": KEY,
}

HeaderLines = Iterable[tuple[str, str]]


def write_head(lines: HeaderLines, start: str = "GET / HTTP/1.1") -> bytes:
    return "\r\n".join([start, *[f"{name}: {value}" for name, value in lines], "", ""]).encode("latin-1")


def replaced(name: str, *values: str) -> list[tuple[str, str]]:
    """The lines of a valid upgrade request, those of `name` with other values."""
    return [*[item for item in UPGRADE.items() if item[0] != name], *[(name, value) for value in values]]


def make_reader(max_header_bytes: int = 16 * 1024, max_headers: int = 100) -> RequestReader:
    return RequestReader(max_header_bytes=max_header_bytes, max_headers=max_headers)


def read(data: bytes) -> Request:
    request = make_reader().feed(data)
    assert request is not None
    return request


def read_error(data: bytes, reader: RequestReader | None = None) -> int:
    """The status with which some bytes are refused."""
    with pytest.raises(HandshakeError) as caught:
        (reader or make_reader()).feed(data)
    return caught.value.status


def upgrade_error(lines: HeaderLines, start: str = "GET / HTTP/1.1") -> HandshakeError:
    """The error with which a request is refused that can be read, but asks for no upgrade that can be done."""
    request = read(write_head(lines, start))
    with pytest.raises(HandshakeError) as caught:
        check_upgrade(request)
    return caught.value
