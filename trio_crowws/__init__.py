"""A WebSocket framework for Trio.

Everything that an application needs is here; `trio_crowws.testing` has what its tests need.
"""

from __future__ import annotations

from ._app import App
from ._client.backoff import Backoff
from ._client.connect import connect, connect_stream
from ._client.supervisor import LinkPhase, LinkState, is_final, keep_connected
from ._closeinfo import CloseCode, CloseFrame, CloseInfo
from ._deflate import Deflate
from ._options import Options
from ._request import Headers, Query, Request
from ._response import ServerResponse
from ._rooms import PublishResult, Room
from ._route import Route
from ._server import Server
from ._session.accepting import Accept, Reject, Response
from ._session.connection import Connection
from ._session.ending import State
from ._session.handlers import Handler
from ._stats import Stats
from .errors import (
    CloseTimeout,
    ConnectFailed,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    ConnectionLost,
    CrowWSError,
    HandlerError,
    HandshakeError,
    HandshakeTimeout,
    HeartbeatTimeout,
    InvalidHandshake,
    InvalidURL,
    InvalidUTF8,
    PayloadTooBig,
    ProtocolError,
    ProxyError,
    Rejected,
    SlowConsumer,
)

__version__ = "0.1.0"

__all__ = [
    "Accept",
    "App",
    "Backoff",
    "CloseCode",
    "CloseFrame",
    "CloseInfo",
    "CloseTimeout",
    "ConnectFailed",
    "Connection",
    "ConnectionClosed",
    "ConnectionClosedError",
    "ConnectionClosedOK",
    "ConnectionLost",
    "CrowWSError",
    "Deflate",
    "Handler",
    "HandlerError",
    "HandshakeError",
    "HandshakeTimeout",
    "Headers",
    "HeartbeatTimeout",
    "InvalidHandshake",
    "InvalidURL",
    "InvalidUTF8",
    "LinkPhase",
    "LinkState",
    "Options",
    "PayloadTooBig",
    "ProtocolError",
    "ProxyError",
    "PublishResult",
    "Query",
    "Reject",
    "Rejected",
    "Request",
    "Response",
    "Room",
    "Route",
    "Server",
    "ServerResponse",
    "SlowConsumer",
    "State",
    "Stats",
    "connect",
    "connect_stream",
    "is_final",
    "keep_connected",
]
