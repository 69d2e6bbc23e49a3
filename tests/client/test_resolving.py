"""How a client finds the address of a server: names that hang, resolvers of the program, and races of addresses."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import trio
import trio.testing

from support.clients import nothing_left
from support.rawclient import until
from support.rawserver import echo, raw_server
from trio_crowws import ConnectFailed, HandshakeTimeout, connect
from trio_crowws._client import resolving
from trio_crowws._client.resolving import LOOKUPS, connect_to, resolve

Place = tuple[int, int, int, str, Any]


def at(*address: Any, family: int = socket.AF_INET) -> Place:
    return family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address


V4, V4_TOO, V6, V6_TOO = (
    at("10.0.0.1", 80),
    at("10.0.0.2", 80),
    at("::1", 80, 0, 0, family=10),
    at("::2", 80, 0, 0, family=10),
)


class Names:
    """Stands for the resolver of the system.

    Attributes:
      release: what the names in `hanging` wait for.
      asked: what was looked up, in which thread.
    """

    def __init__(self, found: Sequence[Place] = ()) -> None:
        self.release = threading.Event()
        self.asked: list[tuple[Any, threading.Thread]] = []
        self.hanging = 0
        self._found = found
        self._real = socket.getaddrinfo

    def getaddrinfo(self, host: Any, port: Any, *arguments: Any, **more: Any) -> Any:
        self.asked.append((host, threading.current_thread()))
        if host == b"hangs.example":
            self.hanging += 1
            self.release.wait(20)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        if self._found:
            return self._found
        return self._real("127.0.0.1" if host == b"works.example" else host, port, *arguments, **more)


@contextmanager
def names(patch: pytest.MonkeyPatch, found: Sequence[Place] = ()) -> Generator[Names]:
    made = Names(found)
    patch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    try:
        yield made
    finally:
        made.release.set()


async def until_hanging(system: Names, count: int) -> None:
    await until(lambda: system.hanging >= count)


async def fail_to_connect(url: str, **options: Any) -> None:
    with pytest.raises(HandshakeTimeout):
        async with connect(url, **options):
            pass


# Names


async def test_names_that_hang_take_no_threads_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, `trio.to_thread.run_sync` has all its threads, and addresses are connected to."""
    with names(monkeypatch) as system:
        async with raw_server(echo) as server, trio.open_nursery() as nursery:
            for _ in range(2 * LOOKUPS):
                nursery.start_soon(fail_to_connect, "ws://hangs.example/")
            await until_hanging(system, LOOKUPS)
            default = trio.to_thread.current_default_thread_limiter()
            assert default.borrowed_tokens == 0
            with trio.fail_after(10):
                assert await trio.to_thread.run_sync(int, "7") == 7
                async with connect(server.url) as conn:
                    await conn.ping()
            nursery.cancel_scope.cancel()
        assert system.hanging == LOOKUPS


async def test_a_lookup_that_was_given_up_counts_until_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that nobody waits for are bounded as well; when they have ended, names are looked up again."""
    monkeypatch.setattr(resolving, "LOOKUPS", 2)
    with names(monkeypatch) as system:
        async with raw_server(echo) as server:
            url = f"ws://works.example:{server.port}/"
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(fail_to_connect, "ws://hangs.example/")
                await until_hanging(system, 2)
                nursery.cancel_scope.cancel()
            await fail_to_connect(url, open_timeout=0.1)
            system.release.set()
            async with connect(url) as conn:
                await conn.ping()


async def test_a_lookup_is_given_up_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not hold up `connect`, nor the end of the program."""
    with names(monkeypatch) as system:
        async with nothing_left():
            await fail_to_connect("ws://hangs.example/", open_timeout=0.05)
        assert system.hanging == 1


async def test_an_address_needs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken as it is, with a zone too."""
    with names(monkeypatch) as system:
        assert await resolve("127.0.0.1", 80) == [at("127.0.0.1", 80)]
        assert [place[4][:2] for place in await resolve("::1", 80)] == [("::1", 80)]
        assert (await resolve("fe80::1%lo", 80))[0][4][3] == socket.if_nametoindex("lo")
    assert {thread for _, thread in system.asked} == {threading.current_thread()}


async def test_a_zone_that_this_machine_does_not_have() -> None:
    """It is the system that says so."""
    with pytest.raises(ConnectFailed, match=r"cannot connect to \[fe80::1\]:80: "):
        async with connect("ws://[fe80::1%25nowhere0]/"):
            pass


async def test_a_name_is_asked_for_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop goes on meanwhile."""
    with names(monkeypatch, [V4, V6]) as system:
        assert await resolve("works.example", 80) == [V4, V6]
    [(host, thread)] = system.asked
    assert host == b"works.example"
    assert thread is not threading.current_thread()


async def test_a_name_that_the_system_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is the cause."""

    def fail(*arguments: Any, **more: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(
        ConnectFailed, match=r"cannot connect to nobody\.example:80: Name or service not known"
    ) as caught:
        async with connect("ws://nobody.example/"):
            pass
    assert isinstance(caught.value.__cause__, socket.gaierror)
    assert caught.value.errno is None


class Resolver(trio.abc.HostnameResolver):
    async def getaddrinfo(self, host: object, port: object, *arguments: object, **more: object) -> Any:
        return [at("127.0.0.1", port)]

    async def getnameinfo(self, *arguments: object, **more: object) -> Any:
        raise AssertionError


async def test_a_resolver_of_the_program_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of the system; and it is still there afterwards."""
    resolver = Resolver()
    with names(monkeypatch) as system:
        async with raw_server(echo) as server:
            trio.socket.set_custom_hostname_resolver(resolver)
            try:
                async with connect(f"ws://any.example:{server.port}/"):
                    pass
            finally:
                assert trio.socket.set_custom_hostname_resolver(None) is resolver
    assert b"any.example" not in [host for host, _ in system.asked]


# Addresses


@pytest.mark.parametrize(
    ("found", "tried"),
    [
        ([V6, V6_TOO, V4, V4_TOO], [V6, V4, V6_TOO, V4_TOO]),
        ([V4, V6], [V4, V6]),
        ([V4, V4_TOO], [V4, V4_TOO]),
        ([V4], [V4]),
    ],
)
async def test_the_second_address_is_of_the_other_family(
    monkeypatch: pytest.MonkeyPatch, found: list[Place], tried: list[Place]
) -> None:
    """Where there is one, so that a network without one of them costs a quarter of a second and not all the time."""
    with names(monkeypatch, found):
        assert await resolve("works.example", 80) == tried


class Network(trio.abc.SocketFactory):
    """Sockets that connect when, and if, a test says so.

    Args:
      answers: by the address, after how many seconds it answers, and with which error of the system; 0 for none.

    Attributes:
      tried: when each address was tried.
      made: all sockets.
    """

    def __init__(self, **answers: tuple[float, int]) -> None:
        self._answers = answers
        self.tried: dict[str, float] = {}
        self.made: list[FakeSocket] = []
        self._began = trio.current_time()

    def socket(self, family: Any = 0, type: Any = 0, proto: Any = 0) -> Any:  # noqa: A002 -- Trio's name
        self.made.append(FakeSocket(self))
        return self.made[-1]

    async def connect(self, name: str) -> None:
        self.tried[name] = round(trio.current_time() - self._began, 6)
        delay, number = self._answers[name]
        await trio.sleep(delay)
        if number:
            raise OSError(number, f"of {name}")


class FakeSocket(trio.socket.SocketType):
    def __init__(self, network: Network) -> None:
        self._network = network
        self.closed = False

    @property
    def type(self) -> socket.SocketKind:
        return socket.SOCK_STREAM

    @property
    def did_shutdown_SHUT_WR(self) -> bool:  # noqa: N802 -- Trio's name
        return False

    async def connect(self, address: Any) -> None:
        await self._network.connect(address[0])

    def close(self) -> None:
        self.closed = True

    def setsockopt(self, level: int, optname: int, value: Any = None, optlen: int | None = None) -> None:
        pass


def network(**answers: tuple[float, int]) -> AbstractContextManager[Network]:
    return using(Network(**answers))


@contextmanager
def using(made: Network) -> Generator[Network]:
    before = trio.socket.set_custom_socket_factory(made)
    try:
        yield made
    finally:
        trio.socket.set_custom_socket_factory(before)


PLACES = [at(name, 80) for name in "abc"]
NEVER = 1000


async def test_the_next_address_is_tried_after_a_while(autojump_clock: trio.testing.MockClock) -> None:
    """The first that answers is taken, and the others are closed."""
    with network(a=(NEVER, 0), b=(0.1, 0), c=(0, 0)) as net:
        stream = await connect_to(PLACES)
    assert isinstance(stream, trio.SocketStream)
    assert stream.socket is net.made[1]
    assert net.tried == {"a": 0, "b": 0.25}
    assert [sock.closed for sock in net.made] == [True, False]


async def test_a_failure_is_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    """The next address is tried at once."""
    with network(a=(0.1, errno.ECONNREFUSED), b=(NEVER, 0), c=(0, 0)) as net:
        assert isinstance(await connect_to(PLACES), trio.SocketStream)
    assert net.tried == {"a": 0, "b": 0.1, "c": 0.35}


async def test_a_slow_address_may_win(autojump_clock: trio.testing.MockClock) -> None:
    """An attempt goes on while the next one is made."""
    with network(a=(0.6, 0), b=(NEVER, 0), c=(NEVER, 0)) as net:
        stream = await connect_to(PLACES)
        assert isinstance(stream, trio.SocketStream)
    assert stream.socket is net.made[0]
    assert [sock.closed for sock in net.made] == [False, True, True]


async def test_two_that_answer_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """One is taken, and the other one is closed."""
    answers = trio.Event()

    class Together(Network):
        async def connect(self, name: str) -> None:
            await answers.wait()

    async def answer() -> None:
        await trio.sleep(1)
        answers.set()

    with using(Together()) as net:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            stream = await connect_to(PLACES)
        assert isinstance(stream, trio.SocketStream)
    assert [sock for sock in net.made if not sock.closed] == [stream.socket]


async def test_giving_up(autojump_clock: trio.testing.MockClock) -> None:
    """A cancellation closes all sockets."""
    with network(a=(NEVER, 0), b=(NEVER, 0), c=(NEVER, 0)) as net, trio.move_on_after(1) as scope:
        await connect_to(PLACES)
    assert scope.cancelled_caught
    assert [sock.closed for sock in net.made] == [True, True, True]


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((errno.ECONNREFUSED, errno.ECONNREFUSED), errno.ECONNREFUSED),
        ((errno.ECONNREFUSED, errno.ENETUNREACH), None),
    ],
)
async def test_no_address_answers(
    monkeypatch: pytest.MonkeyPatch, numbers: tuple[int, int], expected: int | None
) -> None:
    """Each reason is named once, and there is an errno if there is one reason; all of them are behind the error."""
    with (
        names(monkeypatch, PLACES[:2]),
        network(a=(0, numbers[0]), b=(0, numbers[1])) as net,
        pytest.raises(ConnectFailed) as caught,
    ):
        async with connect("ws://two.example/"):
            pass
    reasons = ", ".join(dict.fromkeys(map(os.strerror, numbers)))
    assert str(caught.value) == f"cannot connect to two.example:80: {reasons}"
    assert caught.value.errno == expected
    assert all(sock.closed for sock in net.made)
    assert isinstance(caught.value.__cause__, OSError)
    behind = caught.value.__cause__.__cause__
    assert isinstance(behind, ExceptionGroup)
    assert [each.errno for each in behind.exceptions if isinstance(each, OSError)] == [*numbers]


async def test_an_interrupt_comes_out_as_it_is(autojump_clock: trio.testing.MockClock) -> None:
    """Not in a group of the nursery in which addresses are tried."""

    class Interrupting(Network):
        async def connect(self, name: str) -> None:
            raise KeyboardInterrupt

    with using(Interrupting()) as net, pytest.raises(KeyboardInterrupt):
        await connect_to(PLACES)
    assert all(sock.closed for sock in net.made)
