"""A chat: JSON messages over WebSockets, rooms from the path, and the page that goes with it.

    python server.py [--host 127.0.0.1] [--port 8000]

`messages.py` says what may come in, `chat.py` who is in which room, `tokens.py` who may connect. This file ties them to
connections. No callback here waits for anything, so all of them are plain functions, and each runs from its first line
to its last before the next one starts: a page sees every message once, whoever comes and goes meanwhile.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import trio

from chat import Event, Lobby, Member
from messages import ChatError, Join, Leave, Message, Ping, Typing, clean_name, clean_room, parse
from tokens import LIFETIME, Tokens
from trio_crowws import Accept, App, CloseInfo, Connection, Reject, Request, Response, Server

JOIN_WITHIN = 10  # seconds
REPLACED = 4000  # close codes from 4000 on belong to the application

app = App(max_payload=16 * 1024, max_connections=1000)
chat = app.websocket("/chat/{room}")
lobby = Lobby()
tokens = Tokens()


@chat.on_accept
def authenticate(request: Request) -> Accept | Reject:
    """Before the upgrade: whoever has no valid token, in the query or in the cookie, gets 401 and no connection."""
    token = request.query.get("token") or request.cookies.get("token", "")
    name = tokens.name(token)
    if name is None:
        return Reject(401, "This needs a token; /token?name=... gives one.", {"WWW-Authenticate": "Bearer"})
    room = clean_room(request.path_params["room"])
    if room is None:
        return Reject(404, "A room is named by up to 32 of a-z, 0-9, - and _.")
    return Accept(userdata=Member(name, room))


@chat.on_open
def opened(conn: Connection) -> None:
    conn.start_soon(close_unless_joined, conn)


async def close_unless_joined(conn: Connection) -> None:
    await trio.sleep(JOIN_WITHIN)
    if not conn.rooms:
        conn.close_nowait(1008, "nobody joined")


@chat.on_message
def receive(conn: Connection, data: str | bytes) -> None:
    """Whatever comes in is carried out, or answered with an error; it never ends the connection."""
    member: Member = conn.userdata
    try:
        match parse(data):
            case Join(session, after):
                join(conn, member, session, after)
            case Message(text, ref):
                app.publish(member.room, encode(lobby.post(member, text, ref).event()))
            case Typing():
                lobby.room_of(member)
                if member.typing.take():
                    conn.publish(member.room, encode({"type": "typing", "user": member.name}))
            case Leave():
                leave(conn, member)
                conn.close_nowait(1000, "goodbye")
            case Ping(t):
                reply(conn, {"type": "pong", "t": t})
    except ChatError as error:
        reply(conn, {"type": "error", "code": error.code, "text": error.text, "ref": error.ref})


def join(conn: Connection, member: Member, session: str, after: str | None) -> None:
    """Take `member` in, send what it has to know, and tell the others, unless it is back before it was missed."""
    replaced = lobby.enter(member, session)
    if replaced is not None:
        for other in app.room(member.room).members:
            if other.userdata is replaced:
                other.close_nowait(REPLACED, "continued on another connection")
    conn.join(member.room)
    room = lobby.room_of(member)
    posts, resumed = room.since(after)
    reply(
        conn,
        {
            "type": "welcome",
            "room": member.room,
            "you": member.name,
            "users": [present.name for present in room.members.values()],
            "history": [post.event() for post in posts],
            "resumed": resumed,
        },
    )
    if replaced is None:
        conn.publish(member.room, encode({"type": "join", "user": member.name}))


@chat.on_close
def closed(conn: Connection, info: CloseInfo) -> None:
    """Runs once for every connection that was opened, however it ended: nobody stays in the list who is gone."""
    leave(conn, conn.userdata)


def leave(conn: Connection, member: Member) -> None:
    if lobby.exit(member):
        conn.leave(member.room)
        app.publish(member.room, encode({"type": "leave", "user": member.name}))


def reply(conn: Connection, event: Event) -> None:
    conn.send_nowait(encode(event))


def encode(event: Event) -> str:
    return json.dumps(event, ensure_ascii=False, separators=(",", ":"))


# The page. Nothing in it comes from elsewhere, and the browser is told so.

SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
CONTENT_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


def serve_file(name: str, *paths: str) -> None:
    """Answer GET requests for `paths` with a file from this folder, which is read now, once."""
    file = Path(__file__).with_name(name)
    body = file.read_bytes()
    headers = {**SECURITY, "Content-Type": f"{CONTENT_TYPES[file.suffix]}; charset=utf-8"}

    def answer(request: Request) -> Response:
        return Response(200, body, headers)

    for path in paths:
        app.http(path)(answer)


serve_file("page.html", "/", "/room/{room}")
for asset in ("chat.css", "chat.js", "connection.js"):
    serve_file(asset, f"/{asset}")


@app.http("/token")
def login(request: Request) -> Response:
    """A token for the name in the query. A real application would ask for a password here."""
    no_store = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    try:
        name = clean_name(request.query.get("name", ""))
    except ChatError as error:
        return Response(400, encode({"error": error.text}), no_store)
    issued = tokens.issue(name)
    cookie = f"token={issued}; Path=/chat/; Max-Age={LIFETIME}; HttpOnly; SameSite=Strict"
    return Response(200, encode({"name": name, "token": issued}), {**no_store, "Set-Cookie": cookie})


@app.http("/healthz")
def health(request: Request) -> Event:
    return {"status": "ok", "connections": len(app.connections), "rooms": len(lobby)}


def main() -> None:
    parser = argparse.ArgumentParser(description="A chat with rooms.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    def announce(server: Server) -> None:
        print(f"listening on http://{options.host}:{server.port}/", flush=True)

    app.run(options.host, options.port, on_listening=announce, announce=False)  # a page is what people open here


if __name__ == "__main__":
    main()
