"""From measured numbers to verdicts; nothing is measured here."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks.report import Table, as_json, best, format_table, judge, limited_by_load_generator
from benchmarks.workloads import WORKLOADS, Target, Workload, find

Runs = dict[str, list[dict[str, float]]]


def run(rate: float, server_us: float = 10, p99_us: float = 100, client_cpu: float = 0.5) -> dict[str, float]:
    return {
        "rate": rate,
        "server_us": server_us,
        "p50_us": p99_us / 2,
        "p99_us": p99_us,
        "client_cpu": client_cpu,
        "server_cpu": 0.9,
    }


def table_of(runs: Runs, *targets: Target) -> Table:
    return Table(replace(find("echo"), targets=targets), runs)


FASTER = Target("ours", "rate", "theirs", at_least=2)


def test_best_rate() -> None:
    """Of several runs the one with the highest rate counts."""
    assert best([run(10), run(30), run(20)], "rate") == 30


def test_best_latency() -> None:
    """Of several runs the one with the lowest latency counts."""
    assert best([run(1, p99_us=7), run(1, p99_us=5)], "p99_us") == 5


@pytest.mark.parametrize(("rate", "missed"), [(199, True), (200, False)])
def test_lower_bound(rate: float, missed: bool) -> None:
    """A target of at least twice the other's rate is missed below it and reached from there on."""
    (verdict,) = judge(table_of({"ours": [run(rate)], "theirs": [run(100)]}, FASTER))
    assert verdict.value == rate / 100
    assert verdict.missed is missed


def test_upper_bound() -> None:
    """A latency above the bound is missed."""
    target = Target("ours", "p99_us", "theirs", at_most=1.3)
    (verdict,) = judge(table_of({"ours": [run(1, p99_us=140)], "theirs": [run(1, p99_us=100)]}, target))
    assert verdict.value == pytest.approx(1.4)
    assert verdict.missed


def test_absolute_bound() -> None:
    """A target without another row bounds the value itself."""
    (verdict,) = judge(table_of({"ours": [{"kib": 5.7}]}, Target("ours", "kib", at_most=8)))
    assert verdict.value == 5.7
    assert not verdict.missed


def test_cpu_time() -> None:
    """The ratio of rates comes with the inverse ratio of the CPU times."""
    (verdict,) = judge(table_of({"ours": [run(100, server_us=5)], "theirs": [run(100, server_us=20)]}, FASTER))
    assert verdict.by_cpu_time == 4
    assert verdict.missed


def test_missing_row() -> None:
    """A target whose other row was not measured is neither reached nor missed."""
    (verdict,) = judge(table_of({"ours": [run(100)]}, FASTER))
    assert verdict.value is None
    assert not verdict.missed
    assert verdict.word == "not measured"


@pytest.mark.parametrize(
    ("target", "value"),
    [(FASTER, 1.0), (Target("ours", "p99_us", "theirs", at_most=1.5), 3.0)],
)
def test_loosened(target: Target, value: float) -> None:
    """Loosening by two halves a lower bound and doubles an upper one."""
    assert not target.reached(value)
    assert target.loosened(2).reached(value)


def test_loosened_verdict() -> None:
    """The smoke test judges with loosened targets."""
    table = table_of({"ours": [run(110)], "theirs": [run(100)]}, FASTER)
    assert judge(table)[0].missed
    assert not judge(table, loosen=2)[0].missed


@pytest.mark.parametrize(("rate", "server_us", "missed"), [(40, 5, False), (400, 30, True)])
def test_smoke_judges_cpu_time(rate: float, server_us: float, missed: bool) -> None:
    """The smoke test judges a rate by CPU time alone, because rates say little on a busy machine."""
    table = table_of({"ours": [run(rate, server_us=server_us)], "theirs": [run(100, server_us=20)]}, FASTER)
    assert judge(table, loosen=2)[0].missed is missed


def test_smoke_shows_a_latency() -> None:
    """The smoke test shows a latency, however bad, and does not judge it."""
    target = Target("ours", "p99_us", "theirs", at_most=1.3)
    table = table_of({"ours": [run(1, p99_us=5900)], "theirs": [run(1, p99_us=100)]}, target)
    (verdict,) = judge(table, loosen=2)
    assert not verdict.missed
    assert "not judged ours: p99 <= 2.6 x theirs: 59.00" in format_table(table, [verdict])


@pytest.mark.parametrize(("kib", "missed"), [(15, False), (17, True)])
def test_smoke_judges_memory(kib: float, missed: bool) -> None:
    """The smoke test judges memory, which no other program disturbs."""
    (verdict,) = judge(table_of({"ours": [{"kib": kib}]}, Target("ours", "kib", at_most=8)), loosen=2)
    assert verdict.missed is missed


def test_load_generator_as_the_limit() -> None:
    """A row where the load generator was busy and the server was not is named."""
    busy = run(100, client_cpu=0.99) | {"server_cpu": 0.7}
    assert limited_by_load_generator(table_of({"ours": [busy], "theirs": [run(50)]})) == ["ours"]


def test_ceiling_is_no_limit() -> None:
    """The trivial server is there to be limited by the load generator."""
    busy = run(100, client_cpu=0.99) | {"server_cpu": 0.7}
    assert limited_by_load_generator(table_of({"trivial C server": [busy]})) == []


def test_text() -> None:
    """The text holds the rows, what was left out, and the verdicts."""
    table = table_of({"ours": [run(150)], "theirs": [run(100)]}, FASTER)
    table.left_out["aiohttp"] = "aiohttp is not installed"
    text = format_table(table, judge(table))
    assert "aiohttp: left out, aiohttp is not installed" in text
    assert "MISSED   ours: >= 2 x theirs: 1.50 (by CPU time 1.00)" in text


@pytest.mark.parametrize(("key", "head"), [("echo", ["server", "client busy"]), ("client", ["client", "server busy"])])
def test_who_is_measured(key: str, head: list[str]) -> None:
    """The head of a table says whether servers or clients are measured."""
    text = format_table(Table(find(key), {"ours": [run(150)]}), [])
    line = text.splitlines()[2]
    assert line.split()[0] == head[0]
    assert line.endswith(head[1])


def test_json() -> None:
    """What is written can be read again and holds every run and verdict."""
    table = table_of({"ours": [run(150), run(160)], "theirs": [run(100)]}, FASTER)
    written = json.loads(json.dumps(as_json([table], [judge(table)], {"rounds": 2})))
    (workload,) = written["workloads"]
    assert [each["rate"] for each in workload["runs"]["ours"]] == [150, 160]
    assert workload["targets"][0]["value"] == 1.6
    assert workload["targets"][0]["verdict"] == "MISSED"
    assert written["settings"] == {"rounds": 2}


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.key)
def test_targets_can_be_judged(workload: Workload) -> None:
    """Every target is about rows that its workload measures."""
    assert workload.targets
    assert workload.needed <= {subject.name for subject in workload.subjects}
