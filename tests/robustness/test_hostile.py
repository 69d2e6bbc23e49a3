"""Peers that mean harm, over real sockets: each is answered or dropped, costs little, and nobody else notices.

What single bytes mean is tested in `tests/protocol`. Here whole servers are attacked (`victim.py`), and an honest peer
asks all the while how long it has to wait.
"""

from __future__ import annotations

import random
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
import trio

from robustness.canary import canary, show
from robustness.formula import handshake_bytes, worst_bytes
from robustness.victim import KIB, MIB, OPTIONS, Victim, victim
from support.heads import UPGRADE, write_head
from support.rawclient import RawClient, open_raw, upgrade
from trio_crowws._options import Options
from trio_crowws.testing import make_frame

LIMITS = Options(**OPTIONS)
PAYLOAD = LIMITS.max_payload or 0
NOISE = 2 * MIB
"""How much the memory of a server may vary for reasons of its own."""

SOURCE = random.Random(0xC0FFEE)  # the same bytes in every run


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Victim]:
    with victim(tmp_path_factory.mktemp("hostile") / "log") as running:
        yield running


@pytest.fixture(scope="module")
def trusting(tmp_path_factory: pytest.TempPathFactory) -> Generator[Victim]:
    """A server that counts neither fragments nor control frames."""
    folder = tmp_path_factory.mktemp("trusting")
    with victim(folder / "log", control_rate=None, max_fragments=None, ping_interval=None) as running:
        yield running


async def tell(server: Victim, data: bytes) -> bytes:
    """Send `data` and return everything that the server says until it ends the stream."""
    said = bytearray()

    async def send(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):  # it has heard enough
            await stream.send_all(data)

    with trio.fail_after(10):
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(send, stream)
            try:
                while piece := await stream.receive_some(65536):
                    said += piece
            except trio.BrokenResourceError:
                pass
            nursery.cancel_scope.cancel()
    return bytes(said)


async def tell_each(server: Victim, several: Sequence[bytes]) -> list[bytes]:
    """`tell` for each of several peers at the same time."""
    answers: list[bytes] = [b""] * len(several)

    async def one(index: int) -> None:
        answers[index] = await tell(server, several[index])

    with canary(server.port):
        for start in range(0, len(several), 50):
            async with trio.open_nursery() as nursery:
                for index in range(start, min(start + 50, len(several))):
                    nursery.start_soon(one, index)
    server.check()
    return answers


def only_answer(said: bytes) -> tuple[int, bytes]:
    """The status and the body of the one HTTP response that was said, and that must be complete."""
    head, separator, body = said.partition(b"\r\n\r\n")
    assert separator, said[:200]
    lines = head.decode("latin-1").split("\r\n")
    version, status = lines[0].split(" ")[:2]
    assert version == "HTTP/1.1"
    if status == "101":
        return 101, body
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    assert "close" in headers["connection"]
    assert int(headers["content-length"]) == len(body), said[:200]
    return int(status), body


def close_code(said: bytes) -> int | None:
    """The code of the Close frame that ends what was said behind a 101; `None` where there is none."""
    status, frames = only_answer(said)
    assert status == 101
    code = None
    while frames:
        assert code is None, "something follows the Close frame"
        size, start = frames[1], 2
        if size == 126:
            size, start = int.from_bytes(frames[2:4]), 4
        elif size == 127:
            size, start = int.from_bytes(frames[2:10]), 10
        payload, rest = frames[start : start + size], frames[start + size :]
        assert len(payload) == size, "the last frame is cut"
        if frames[0] == 0x88:
            code = int.from_bytes(payload[:2])
        frames = rest
    return code


# The opening handshake

LINES = [*UPGRADE.items(), ("Origin", "http://example.org"), ("Sec-WebSocket-Protocol", "chat, superchat")]
BAD_BYTES = [
    b"\x00",
    b"\n",
    b"\r",
    b"\r\n ",
    b"\x7f",
    b"\xff",
    b"\xc3\x28",
    b" ",
    b"\t",
    b":",
    b",",
    b';="',
    b"%",
    b"(",
]


def mutated_requests() -> Generator[bytes]:
    """Every header removed, doubled, emptied, oversized, and with a bad byte in its name and in its value."""
    start = "GET /echo HTTP/1.1"
    for index, (name, value) in enumerate(LINES):
        others = LINES[:index], LINES[index + 1 :]

        def put(*lines: tuple[str, str], others: tuple[list[tuple[str, str]], list[tuple[str, str]]] = others) -> bytes:
            return write_head([*others[0], *lines, *others[1]], start)

        yield put()
        yield put((name, value), (name, value))
        yield put((name, ""))
        yield put((name, value + ", " + value))
        yield put((name, value.swapcase()))
        yield put((name, "x" * 20_000))
        yield put((name * 1000, value))
        for bad in (bad.decode("latin-1") for bad in BAD_BYTES):
            yield put((name, bad + value))
            yield put((name, value[:3] + bad + value[3:]))
            yield put((name[:3] + bad + name[3:], value))
    for line in (b"GET /\xff HTTP/1.1", b"GET /echo HTTP/1.1 ", b" GET /echo HTTP/1.1", b"GET  /echo HTTP/1.1"):
        yield write_head(LINES, line.decode("latin-1"))


async def test_mutated_handshakes(server: Victim) -> None:
    """Whatever is done to any header, there is one complete answer: a 101, or a refusal of the right family."""
    requests = [request + make_frame(8, struct.pack("!H", 1000)) for request in mutated_requests()]
    statuses = [only_answer(said)[0] for said in await tell_each(server, requests)]
    show(
        f"{len(statuses)} requests: "
        + ", ".join(f"{status}: {statuses.count(status)}" for status in sorted({*statuses}))
    )
    assert {*statuses} == {101, 400, 403, 426, 431}


async def test_a_missing_header_is_never_a_101(server: Victim) -> None:
    """Without any one of the five headers that an upgrade needs there is no upgrade."""
    requests = [
        write_head([line for line in UPGRADE.items() if line[0] != name], "GET /echo HTTP/1.1") for name in UPGRADE
    ]
    for said in await tell_each(server, requests):
        assert only_answer(said)[0] in (400, 426)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        pytest.param(write_head([*LINES, *[(f"X-{n}", "") for n in range(10_000)]]), 431, id="ten thousand headers"),
        pytest.param(write_head([*LINES, *[("A", "")] * 101]), 431, id="one line too many"),
        pytest.param(write_head([*LINES, ("Cookie", "a=b; " * 1_000_000)]), 431, id="five megabytes of cookies"),
        pytest.param(b"GET /" + b"a" * 1_000_000, 414, id="a megabyte of target"),
        pytest.param(b"G" * 1_000_000, 431, id="a megabyte of method"),
        pytest.param(b"\r\n" * 100_000, 400, id="empty lines"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b" folded\r\n" * 10_000, 431, id="folded lines"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), 400, id="a TLS hello"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, id="HTTP/2"),
        pytest.param(b"\x80" * 100_000, 400, id="binary noise"),
        pytest.param(b"SSH-2.0-x\r\n", 400, id="another protocol"),
        pytest.param(make_frame(1, b"hello"), 400, id="a frame"),
    ],
)
async def test_oversized_and_foreign_requests(server: Victim, request_bytes: bytes, status: int) -> None:
    """What is too large or no HTTP is refused at once with the status that says why."""
    for said in await tell_each(server, [request_bytes] * 3):
        assert only_answer(said)[0] == status


async def test_noise(server: Victim) -> None:
    """Random bytes are refused with a complete answer, before and behind a good request line."""
    requests = [
        prefix + SOURCE.randbytes(20_000) for prefix in (b"", b"GET /echo HTTP/1.1\r\n", b"GET ") for _ in range(30)
    ]
    for said in await tell_each(server, requests):
        assert 400 <= only_answer(said)[0] < 500


async def test_slowloris(server: Victim) -> None:
    """Peers that drip their requests are refused when their time is over, and hold no more than a head until then."""
    count, step = 100, LIMITS.max_header_bytes // 60
    request = write_head([*UPGRADE.items(), ("X-Slow", "x" * (LIMITS.max_header_bytes - 400))], "GET /echo HTTP/1.1")
    before = server.memory
    highest = 0
    async with together(server, count) as clients:
        with canary(server.port), trio.fail_after(20):

            async def drip(client: RawClient) -> None:
                for start in range(0, step * 50, step):
                    with trio.move_on_after(0.05):
                        try:
                            await client.stream.send_all(request[start : start + step])
                        except trio.BrokenResourceError:
                            return
                        await trio.sleep(0.05)

            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(drip, client)
                while len(nursery.child_tasks):
                    highest = max(highest, server.memory - before)
                    await trio.sleep(0.1)
            for client in clients:
                assert (await client.refused()).status == 408
    show(f"{highest / count / KIB:.1f} KiB for each half-open handshake")
    assert highest < count * handshake_bytes(LIMITS) + NOISE


SMUGGLED = write_head(UPGRADE.items(), "GET /echo HTTP/1.1")


@pytest.mark.parametrize(
    "lines",
    [
        [("Content-Length", str(len(SMUGGLED)))],
        [("Content-Length", "0"), ("Content-Length", str(len(SMUGGLED)))],
        [("Content-Length", f"0, {len(SMUGGLED)}")],
        [("Content-Length", f"+{len(SMUGGLED)}")],
        [("Content-Length", "-1")],
        [("Content-Length", "0x10")],
        [("Content-Length", "9" * 30)],
        [("Transfer-Encoding", "chunked")],
        [("Transfer-Encoding", "chunked"), ("Content-Length", "4")],
        [("Transfer-Encoding", "\x0bchunked")],
        [("Transfer-Encoding", "identity")],
        [("Transfer-Encoding", "")],
        [("Content-Length ", str(len(SMUGGLED)))],
        [("X", "y\nTransfer-Encoding: chunked")],
        [("X", "y\rContent-Length: 10")],
    ],
)
async def test_smuggling(server: Victim, lines: list[tuple[str, str]]) -> None:
    """A request that announces a body in whatever way gets one 400, and what follows is nobody's request."""
    accepted = (await server.settle())["accepted"]
    requests = [
        write_head([*UPGRADE.items(), *lines], f"{method} {path} HTTP/1.1") + SMUGGLED
        for method, path in [("GET", "/echo"), ("POST", "/echo"), ("GET", "/settle"), ("GET", "/nowhere")]
    ]
    with trio.fail_after(10):
        for request in requests:
            assert only_answer(await tell(server, request))[0] == 400
    assert (await server.settle())["accepted"] == accepted


@pytest.mark.parametrize("first", ["GET /nowhere HTTP/1.1", "GET /settle HTTP/1.1", "GET /echo HTTP/1.0"])
async def test_pipelined_requests(server: Victim, first: str) -> None:
    """Behind a request that is answered with anything but a 101, nothing is read as a request."""
    accepted = (await server.settle())["accepted"]
    said = await tell(server, write_head([("Host", "example.org")], first) + SMUGGLED * 50)
    assert only_answer(said)[0] != 101
    assert (await server.settle())["accepted"] == accepted


async def test_a_request_behind_an_accepted_one_is_a_bad_frame(server: Victim) -> None:
    """Behind a 101 there are frames only, so a second request ends the connection."""
    assert close_code(await tell(server, SMUGGLED * 3)) == 1002


# Frames


@asynccontextmanager
async def together(server: Victim, count: int, path: str | None = None) -> AsyncGenerator[list[RawClient]]:
    """Peers that are connected, and if there is a path, upgraded."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(open_raw(server.port)) for _ in range(count)]
        if path is not None:
            for client in clients:
                await client.send(upgrade(path))
            for client in clients:
                await client.accepted()
        yield clients


def header(first: int, length: bytes, *, masked: bool = True) -> bytes:
    return bytes((first, length[0] | (0x80 if masked else 0))) + length[1:]


def length_16(size: int) -> bytes:
    return b"\x7e" + size.to_bytes(2)


def length_64(size: int) -> bytes:
    return b"\x7f" + size.to_bytes(8)


BAD_FRAMES: list[tuple[str, bytes, int]] = [
    *((f"length of 2^{n}", header(0x82, length_64(1 << n)), 1002 if n == 63 else 1009) for n in (31, 32, 62, 63)),
    ("the largest length", header(0x82, b"\x7f" + b"\xff" * 8), 1002),
    ("one byte too much", header(0x82, length_64(PAYLOAD + 1)), 1009),
    ("one byte too much in two fragments", make_frame(2, bytes(PAYLOAD), fin=False) + make_frame(0, b"x"), 1009),
    ("a long form of a short length", header(0x82, length_16(5)) + bytes(9), 1002),
    ("the longest form of a short length", header(0x82, length_64(5)) + bytes(9), 1002),
    ("the longest form of a middle length", header(0x82, length_64(65535)), 1002),
    *((f"opcode {opcode}", make_frame(opcode, b"x"), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
    *((f"reserved bits {rsv:03b}", make_frame(1, b"x", rsv=rsv), 1002) for rsv in range(1, 8)),
    *((f"reserved bits on opcode {opcode}", make_frame(opcode, b"", rsv=1), 1002) for opcode in (0, 2, 8, 9, 10)),
    *((f"a fragmented control frame {opcode}", make_frame(opcode, b"", fin=False), 1002) for opcode in (8, 9, 10)),
    *((f"a long control frame {opcode}", make_frame(opcode, bytes(126)), 1002) for opcode in (8, 9, 10)),
    *((f"a huge control frame {opcode}", header(0x80 | opcode, length_64(1 << 40)), 1002) for opcode in (8, 9, 10)),
    *((f"no mask on opcode {opcode}", make_frame(opcode, b"", mask=False), 1002) for opcode in (1, 2, 8, 9, 10)),
    ("a continuation of nothing", make_frame(0, b"x"), 1002),
    ("a message within a message", make_frame(1, b"x", fin=False) + make_frame(1, b"y"), 1002),
    ("nonsense between fragments", make_frame(1, b"x", fin=False) + make_frame(7, b"y"), 1002),
    ("a Close frame of one byte", make_frame(8, b"x"), 1002),
    *(
        (f"close code {code}", make_frame(8, struct.pack("!H", code)), 1002)
        for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    ),
    ("a reason that is not UTF-8", make_frame(8, struct.pack("!H", 1000) + b"\xce\xba\xe1"), 1007),
    ("a surrogate in text", make_frame(1, b"\xed\xa0\x80"), 1007),
    ("an overlong form in text", make_frame(1, b"\xc0\xaf"), 1007),
    ("beyond U+10FFFF in text", make_frame(1, b"\xf4\x90\x80\x80"), 1007),
    ("bad text at the end of a large message", make_frame(1, b"x" * 60_000 + b"\xff"), 1007),
]


async def test_bad_frames(server: Victim) -> None:
    """Every way to break the framing is answered with a Close frame that has the right code, and nothing after it."""
    for path in ("/echo", "/plain"):
        request = upgrade(path)
        answers = await tell_each(server, [request + frames for _, frames, _ in BAD_FRAMES])
        for (name, _, code), said in zip(BAD_FRAMES, answers, strict=True):
            assert close_code(said) == code, (path, name, said)


async def test_text_that_is_broken_at_each_split(server: Victim) -> None:
    """Text that is cut within a character is fine in two fragments and 1007 as a whole, wherever the cut is."""
    text = "aé€😀".encode()
    broken = [cut for cut in range(len(text) + 1) if not is_text(text[:cut])]
    assert len(broken) == 6
    end = make_frame(8, struct.pack("!H", 1000))
    for cut in range(len(text) + 1):
        halves = make_frame(1, text[:cut], fin=False) + make_frame(0, text[cut:])
        whole = make_frame(1, text[:cut])
        for half in range(len(whole) + 1):
            # In one piece, and with the frame itself cut where the character is not.
            data = upgrade("/echo") + halves + whole[:half]
            said = await tell(server, data + whole[half:] + end) if half in (0, len(whole)) else None
            if said is not None:
                assert close_code(said) == (1007 if cut in broken else 1000)
                assert text in said


def is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


async def test_random_frames(server: Victim) -> None:
    """Random bytes behind a 101 end in a Close frame with a code that a peer may get, or wait for more."""
    requests = [
        upgrade(path) + SOURCE.randbytes(SOURCE.randrange(20, 2000)) + make_frame(15) * 70_000
        for path in ("/echo", "/plain", "/deaf")
        for _ in range(25)
    ]
    codes = {close_code(said) for said in await tell_each(server, requests)}
    assert codes <= {1002, 1007, 1008, 1009}


@pytest.mark.parametrize(
    ("piece", "code"),
    [
        pytest.param(make_frame(0, b"", fin=False), 1008, id="empty fragments"),
        pytest.param(make_frame(0, b"x", fin=False), 1008, id="fragments of one byte"),
        pytest.param(make_frame(9, bytes(125)), 1008, id="pings"),
        pytest.param(make_frame(10, bytes(125)), 1008, id="pongs"),
        pytest.param(make_frame(9) + make_frame(0, b"", fin=False), 1008, id="pings between empty fragments"),
    ],
)
async def test_floods(server: Victim, piece: bytes, code: int) -> None:
    """A flood of what costs work and carries nothing is cut off with 1008."""
    flood = upgrade("/echo") + make_frame(1, b"", fin=False) + piece * 20_000
    for said in await tell_each(server, [flood] * 5):
        assert close_code(said) == code


async def hold(
    server: Victim,
    count: int,
    act: Callable[[RawClient], Awaitable[None]],
    *,
    path: str = "/echo",
    seconds: float = 1.0,
) -> float:
    """The most memory that each of `count` peers takes while they `act`, in bytes."""
    await server.settle()
    before = server.memory
    highest = 0
    async with together(server, count, path) as clients:
        with canary(server.port), trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(act, client)
                while True:
                    highest = max(highest, server.memory - before)
                    await trio.sleep(0.05)
        highest = max(highest, server.memory - before)
    server.check()
    show(f"{highest / count / KIB:.0f} KiB for each of {count} peers")
    return highest / count


def forever(data: bytes, opening: bytes = b"") -> Callable[[RawClient], Awaitable[None]]:
    """Send without end, and read nothing."""

    async def act(client: RawClient) -> None:
        try:
            await client.stream.send_all(opening)
            while True:
                await client.stream.send_all(data)
        except trio.BrokenResourceError:
            pass

    return act


COUNT = 8


@pytest.mark.parametrize(
    ("path", "act"),
    [
        pytest.param("/echo", forever(make_frame(9, bytes(125)) * 500), id="pings without reading"),
        pytest.param("/echo", forever(make_frame(10, bytes(125)) * 500), id="pongs"),
        pytest.param(
            "/echo", forever(make_frame(0, b"", fin=False) * 500, make_frame(1, fin=False)), id="empty fragments"
        ),
        pytest.param(
            "/echo", forever(make_frame(0, b"x", fin=False) * 500, make_frame(1, fin=False)), id="tiny fragments"
        ),
        pytest.param("/deaf", forever(make_frame(1, b"x") * 2000), id="tiny messages that nobody takes"),
        pytest.param("/deaf", forever(make_frame(1, "😀".encode() * 15_000) * 5), id="text that nobody takes"),
        pytest.param("/plain", forever(make_frame(1, b"x") * 2000), id="tiny echoes without reading"),
    ],
)
async def test_floods_of_a_trusting_server(
    trusting: Victim, path: str, act: Callable[[RawClient], Awaitable[None]]
) -> None:
    """Where the rates are not limited a flood takes no more memory than the formula says, and others are served."""
    each = await hold(trusting, COUNT, act, path=path)
    assert each < worst_bytes(LIMITS, text=True, largest=PAYLOAD) + NOISE / COUNT


async def test_huge_declared_lengths(server: Victim) -> None:
    """A length that is declared and never sent reserves nothing."""
    each = await hold(server, 50, forever(b"", header(0x82, length_64(PAYLOAD)) + b"\0\0\0\0" + b"x"), seconds=0.5)
    assert each < 40 * KIB


# Close frames


@pytest.mark.parametrize("path", ["/echo", "/plain", "/deaf"])
async def test_data_behind_a_close_frame(server: Victim, path: str) -> None:
    """What follows a peer's Close frame is not looked at: the Close is answered, and the stream ends."""
    close = make_frame(8, struct.pack("!H", 4001) + b"bye")
    behind = [make_frame(1, b"x") * 10, b"\xff" * 100_000, make_frame(9) * 1000, close * 10, SOURCE.randbytes(1000)]
    for said in await tell_each(server, [upgrade(path) + close + data for data in behind]):
        assert close_code(said) == 4001


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(forever(make_frame(10)), id="pongs"),
        pytest.param(forever(make_frame(1, b"x") * 1000), id="messages"),
        pytest.param(forever(make_frame(9, bytes(125)) * 100), id="pings"),
        pytest.param(forever(make_frame(2, bytes(PAYLOAD), fin=False)), id="fragments"),
        pytest.param(None, id="nothing"),
    ],
)
async def test_peers_that_do_not_answer_a_close(
    server: Victim, act: Callable[[RawClient], Awaitable[None]] | None
) -> None:
    """A peer that does not answer a Close frame is dropped after `close_timeout`, whatever else it sends."""
    with canary(server.port):
        async with together(server, 10, "/goodbye") as clients:
            start = trio.current_time()
            with trio.fail_after(LIMITS.close_timeout + 5):
                async with trio.open_nursery() as nursery:
                    for client in clients:
                        if act is not None:
                            nursery.start_soon(act, client)
                        nursery.start_soon(read_away, client)
            # Twice, because a fault of the peer behind our Close frame begins the wait for the end of its stream.
            assert trio.current_time() - start < 2 * LIMITS.close_timeout + 3
    server.check()


async def read_away(client: RawClient) -> None:
    try:
        while await client.stream.receive_some(65536):
            pass
    except trio.BrokenResourceError:
        pass
