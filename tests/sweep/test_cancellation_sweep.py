"""Every scripted session, cancelled at each of its scheduling points in turn, keeps the contract each time.

What is asserted after every single run stands in `performing.py`. `pytest -s` shows how many points were swept;
`SWEEP=all` plays every script in every style with every scope, and takes some minutes.
"""

from __future__ import annotations

import os
from functools import partial
from itertools import count

import pytest
import trio
import trio.testing
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from sweep.peers import MemoryListener
from sweep.performing import (
    InterruptedPerformance,
    Performance,
    SocketPerformance,
    StreamPerformance,
    TLSPerformance,
    open_files,
    sweep,
)
from sweep.playing import Cut, Cutter, Script, Style
from sweep.scripts import INTERRUPTED, ON_SOCKETS, ON_TLS, SCRIPTS, Flood
from trio_crowws import App, Connection, Server

SHARE = 1 if os.environ.get("SWEEP") == "all" else 9
"""One in so many pairs of style and scope is swept; the scripts take turns, so that each pair meets some of them."""

Case = tuple[type[Script], Style, Cut]

swept: dict[str, int] = {}


def cases(scripts: tuple[type[Script], ...], share: int) -> list[Case]:
    """One in `share` of all pairs of style and scope for each script, another selection for each."""
    chosen: list[Case] = []
    for offset, script in enumerate(scripts):
        # Plain callbacks make no calls that could be cancelled.
        pairs: list[tuple[Style, Cut]] = [
            (style, cut)
            for style in script.styles
            for cut in script.cuts
            if cut != "call" or style not in ("sync", "mixed")
        ]
        for number, (style, cut) in enumerate(pairs):
            if (number + offset) % share == 0:
                chosen.append((script, style, cut))
    return chosen


def name_case(value: object) -> str:
    return value.__name__ if isinstance(value, type) else str(value)


def sweep_reproducibly(script: type[Script], style: Style, cut: Cut, kind: type[Performance]) -> None:
    """Sweep with the order of tasks that Hypothesis gives Trio, which is the same in every run of the suite."""

    @settings(max_examples=1, derandomize=True, deadline=None, database=None, phases=[Phase.generate])
    @given(st.none())
    def run(_: None) -> None:
        points = sweep(script, style, cut, kind)
        assert points > 0
        swept[f"{kind.__name__} {script.__name__} {style} {cut}"] = points

    run()


@pytest.mark.parametrize(("script", "style", "cut"), cases(SCRIPTS, SHARE), ids=name_case)
def test_a_session_survives_every_cancellation(script: type[Script], style: Style, cut: Cut) -> None:
    """Whatever scope is cancelled at whatever moment: the contract holds, and nothing is left behind."""
    sweep_reproducibly(script, style, cut, Performance)


@pytest.mark.parametrize(("script", "style", "cut"), cases((*ON_SOCKETS, Flood), SHARE), ids=name_case)
def test_a_session_over_tcp_survives_every_cancellation(script: type[Script], style: Style, cut: Cut) -> None:
    """The same on sockets of the poller, and no descriptor stays open."""
    sweep_reproducibly(script, style, cut, SocketPerformance)


@pytest.mark.parametrize(("script", "style", "cut"), cases(ON_TLS, SHARE), ids=name_case)
def test_a_session_over_tls_survives_every_cancellation(script: type[Script], style: Style, cut: Cut) -> None:
    """The same over TLS."""
    sweep_reproducibly(script, style, cut, TLSPerformance)


@pytest.mark.parametrize(
    ("script", "style"),
    [(script, script.styles[index % len(script.styles)]) for index, script in enumerate(INTERRUPTED)],
    ids=name_case,
)
def test_a_session_survives_every_interruption(script: type[Script], style: Style) -> None:
    """Whenever Ctrl-C is pressed: KeyboardInterrupt leaves the server, and the contract holds as for a cancellation."""
    sweep_reproducibly(script, style, "server", InterruptedPerformance)


@pytest.mark.parametrize(
    ("script", "style"),
    [(script, script.styles[index % len(script.styles)]) for index, script in enumerate(SCRIPTS) if not script.served],
    ids=name_case,
)
def test_serve_stream_survives_every_cancellation(script: type[Script], style: Style) -> None:
    """`serve_stream` keeps the contract when it is cancelled, from its very first step on."""
    sweep_reproducibly(script, style, "server", StreamPerformance)


@pytest.mark.parametrize("over_tcp", [False, True], ids=["listener", "tcp"])
def test_a_starting_server_survives_every_cancellation(over_tcp: bool) -> None:
    """A server that is cancelled while it starts ends, has closed its listeners, and may be started again."""
    for number in count(1):
        cutter = Cutter(number)
        trio.run(
            partial(start_and_cut, cutter, over_tcp),
            clock=trio.testing.MockClock(autojump_threshold=0.002 if over_tcp else 0),
            instruments=[cutter],
        )
        if not cutter.done:
            swept[f"start {'tcp' if over_tcp else 'listener'}"] = number - 1
            assert number > 10
            return


async def start_and_cut(cutter: Cutter, over_tcp: bool) -> None:
    app = App()

    @app.websocket("/subject")
    async def echo(conn: Connection) -> None:
        async for message in conn:
            await conn.send(message)

    app.websocket("/other")(echo)
    listeners = [MemoryListener(), MemoryListener()]
    scope = trio.CancelScope()
    servers: list[Server] = []

    class Status(trio.TaskStatus[Server]):
        def started(self, value: Server) -> None:
            servers.append(value)

    async def serve() -> None:
        cutter.count_below(trio.lowlevel.current_task())
        cutter.open(scope)
        with scope:
            if over_tcp:
                await app.serve("127.0.0.1", 0, task_status=Status())
            else:
                await app.serve_listeners(listeners, task_status=Status())

    files = open_files()
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await trio.sleep(1)
            if servers and not servers[0].closing:
                await servers[0].aclose()
    assert scope.cancelled_caught is cutter.done or servers
    assert open_files() == files
    if not over_tcp:
        for listener in listeners:
            with pytest.raises(trio.ClosedResourceError):
                await listener.accept()
    assert not app.connections


def test_the_sweep_was_wide(capsys: pytest.CaptureFixture[str]) -> None:
    """Thousands of moments were tried, in every style and with every scope. Runs behind the sweeps."""
    with capsys.disabled():
        print(f"\n{sum(swept.values())} cancellation points in {len(swept)} sweeps")
    chosen = {f"{Performance.__name__} {s.__name__} {style} {cut}" for s, style, cut in cases(SCRIPTS, SHARE)}
    if chosen <= swept.keys():  # not where single tests were asked for
        assert sum(swept.values()) > 5000
