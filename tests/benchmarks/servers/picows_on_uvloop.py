"""picows with uvloop: echo; /subscribe and /publish."""

from __future__ import annotations

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from .common import BACKLOG, DEFAULT_INTERVAL, announce, listen, read_settings

subscribers: set[WSTransport] = set()


class Echo(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close()
            transport.disconnect()
        else:
            transport.send(frame.msg_type, frame.get_payload_as_bytes())


class Subscriber(WSListener):
    def on_ws_connected(self, transport: WSTransport) -> None:
        subscribers.add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        subscribers.discard(transport)


class Publisher(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        message = frame.get_payload_as_bytes()
        for subscriber in subscribers:
            subscriber.send(frame.msg_type, message)


def make_listener(request: WSUpgradeRequest) -> WSListener:
    return {b"/publish": Publisher, b"/subscribe": Subscriber}.get(request.path, Echo)()


async def main() -> None:
    settings = read_settings()
    sock = listen()
    server = await ws_create_server(
        make_listener,
        sock=sock,
        backlog=BACKLOG,
        ssl=settings.tls,
        enable_auto_ping=settings.ping_interval is not None,
        auto_ping_idle_timeout=settings.ping_interval or DEFAULT_INTERVAL,
    )
    announce(sock.getsockname()[1])
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
