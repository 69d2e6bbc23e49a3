"""This framework: whoever is on /subscribe gets what comes in on /publish."""

from __future__ import annotations

from trio_crowws import App, Connection, Server

from .common import DEFAULT_INTERVAL, announce, read_settings

app = App(origins="*", ping_interval=read_settings().ping_interval or DEFAULT_INTERVAL)


@app.websocket("/subscribe").on_open
def subscribe(conn: Connection) -> None:
    conn.join("all")


@app.websocket("/publish").on_message
def publish(_: Connection, message: str | bytes) -> None:
    app.publish("all", message)


def listening(server: Server) -> None:
    announce(server.port)


if __name__ == "__main__":
    app.run("127.0.0.1", 0, on_listening=listening, announce=False)
