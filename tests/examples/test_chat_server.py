"""The chat example's server over in-memory streams: what each side is told, and how connections end."""

from __future__ import annotations

import importlib.util
import json
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from trio_crowws.testing import Peer, PeerClosed, Refused, connect

CHAT = Path(__file__).resolve().parents[2] / "examples" / "chat"
sys.path.insert(0, str(CHAT))  # server.py finds its neighbours there, as when it is run as a program


class Server:
    """`server.py`, loaded anew: an application of its own for each test."""

    def __init__(self) -> None:
        # Not as "server", which would be too common a name to share with other tests.
        spec = importlib.util.spec_from_file_location("chat_server", CHAT / "server.py")
        assert spec is not None
        assert spec.loader is not None
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)

    def connect(self, name: str, room: str = "garden") -> AbstractAsyncContextManager[Peer]:
        return connect(self.module.app, f"/chat/{room}?token={self.module.tokens.issue(name)}")


async def tell(peer: Peer, **fields: Any) -> None:
    await peer.send(json.dumps(fields))


async def hear(peer: Peer) -> dict[str, Any]:
    with trio.fail_after(10):
        event: dict[str, Any] = json.loads(await peer.receive())
    return event


async def close_code(peer: Peer, seconds: float = 10) -> int | None:
    """The code of the Close frame that the server sends next, or soon."""
    with trio.fail_after(seconds):
        close = await peer.receive_close()
    return None if close is None else close.code


async def join(peer: Peer, session: str = "s") -> dict[str, Any]:
    await tell(peer, type="join", session=session)
    return await hear(peer)


async def test_a_visit() -> None:
    """Whoever joins is welcomed, others hear of it, of what is said, and of the end."""
    server = Server()
    async with server.connect("Ada") as ada:
        welcome = await join(ada)
        assert welcome == {
            "type": "welcome",
            "room": "garden",
            "you": "Ada",
            "users": ["Ada"],
            "history": [],
            "resumed": True,
        }
        async with server.connect("Grace") as grace:
            assert (await join(grace))["users"] == ["Ada", "Grace"]
            assert await hear(ada) == {"type": "join", "user": "Grace"}
            await tell(grace, type="message", text="Hello \N{EAGLE}", ref="r1")
            heard = await hear(ada)
            assert heard == await hear(grace)
            assert (heard["user"], heard["text"], heard["ref"]) == ("Grace", "Hello \N{EAGLE}", "r1")
        assert await hear(ada) == {"type": "leave", "user": "Grace"}


async def test_a_lost_connection_leaves_the_room() -> None:
    """Whoever is gone without a word has left all the same."""
    server = Server()
    async with server.connect("Ada") as ada, server.connect("Grace") as grace:
        await join(ada)
        await join(grace)
        assert (await hear(ada))["type"] == "join"
        assert grace.faults is not None
        await grace.faults.break_off()
        assert await hear(ada) == {"type": "leave", "user": "Grace"}


async def test_goodbye_is_said() -> None:
    """Who leaves gets a Close frame with 1000; the room hears of it at once and does not wait for the answer."""
    server = Server()
    async with server.connect("Ada") as ada, server.connect("Grace") as grace:
        await join(ada)
        await join(grace)
        await tell(grace, type="leave")
        with trio.fail_after(2):
            assert [(await hear(ada))["type"] for _ in range(2)] == ["join", "leave"]
        with pytest.raises(PeerClosed) as caught:
            await hear(grace)
        assert caught.value.close is not None
        assert caught.value.close.code == 1000


async def test_the_same_session_moves_to_its_new_connection() -> None:
    """The old connection of a page ends with code 4000, and nobody else notices anything."""
    server = Server()
    async with server.connect("Grace") as grace, server.connect("Ada") as old, server.connect("Ada") as new:
        await join(grace, "other")
        await join(old, "mine")
        assert (await join(new, "mine"))["users"] == ["Grace", "Ada"]
        assert await close_code(old) == 4000
        await tell(new, type="message", text="Still here")
        assert [(await hear(grace))["type"] for _ in range(2)] == ["join", "message"]


async def test_a_taken_name_is_an_error_and_not_the_end() -> None:
    """A stranger with a name that is taken is told so; the connection goes on, outside of the room."""
    server = Server()
    async with server.connect("Ada") as ada, server.connect("ada") as other:
        await join(ada, "mine")
        assert (await join(other, "not-mine"))["code"] == "name_taken"
        await tell(other, type="message", text="Hello")
        assert (await hear(other))["code"] == "not_joined"


@pytest.mark.parametrize("twin", ["Ada\ufe0f", "A\u034fda", "Ada\u3164", "\uff21da", "Ada\U000e0100"], ids=ascii)
async def test_a_twin_name_is_taken(twin: str) -> None:
    """A stranger whose name looks like that of a member gets a token for it, and is told that the name is taken."""
    server = Server()
    name = server.module.login(SimpleNamespace(query={"name": twin})).body
    async with server.connect("Ada") as ada, server.connect(json.loads(name)["name"]) as other:
        await join(ada, "mine")
        assert (await join(other, "not-mine"))["code"] == "name_taken"


async def test_typing_is_told_to_the_others_at_a_bounded_rate() -> None:
    """However often somebody says to be typing, the others hear of it a few times, and the typist never."""
    server = Server()
    async with server.connect("Ada") as ada, server.connect("Grace") as grace:
        await join(ada)
        await join(grace)
        assert (await hear(ada))["type"] == "join"
        for _ in range(50):
            await tell(grace, type="typing")
        await tell(grace, type="message", text="There")
        events = [await hear(ada)]
        while events[-1]["type"] != "message":
            events.append(await hear(ada))
        assert 1 <= len(events) - 1 <= 10
        assert events[0] == {"type": "typing", "user": "Grace"}
        assert (await hear(grace))["type"] == "message"


async def test_a_ping_is_answered_before_the_join() -> None:
    """Latency can be measured at any time; what came in comes back."""
    server = Server()
    async with server.connect("Ada") as ada:
        await tell(ada, type="ping", t=12.25)
        assert await hear(ada) == {"type": "pong", "t": 12.25}


async def test_who_does_not_join_is_sent_away(autojump_clock: trio.testing.MockClock) -> None:
    """A connection that never joins is closed with 1008 after a while; one that has joined stays."""
    server = Server()
    async with server.connect("Ada") as ada, server.connect("Grace") as idle:
        await join(ada)
        assert await close_code(idle, 60) == 1008
        await tell(ada, type="ping", t=1)
        assert (await hear(ada))["type"] == "pong"


async def test_an_oversize_message_ends_only_its_own_connection() -> None:
    """More than the limit closes with 1009; the others go on talking."""
    server = Server()
    async with server.connect("Ada") as ada, server.connect("Grace") as grace:
        await join(ada)
        await join(grace)
        await grace.send("x" * 17_000)
        assert await close_code(grace) == 1009
        assert [(await hear(ada))["type"] for _ in range(2)] == ["join", "leave"]


@pytest.mark.parametrize("query", ["", "?token=", "?token=abc.def", "?token={foreign}"])
async def test_no_token_no_connection(query: str) -> None:
    """Without a valid token the upgrade is refused with 401 and a challenge; that of another server is none."""
    foreign = Server().module.tokens.issue("Ada")
    with pytest.raises(Refused) as caught:
        async with connect(Server().module.app, "/chat/garden" + query.format(foreign=foreign)):
            pytest.fail("a connection without a token")
    assert caught.value.status == 401
    assert caught.value.headers["www-authenticate"] == "Bearer"
