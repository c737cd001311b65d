"""Sweeps of deployments that are not there: the plan of points, the budget, and what fails without being the end."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tools.bench.sweep.fakes import SLO, Fake, candidates, plan
from triptych.tools.bench.sweep.budget import of_seconds
from triptych.tools.bench.sweep.loads import parse_loads
from triptych.tools.bench.sweep.sweep import run_sweep


def sweep(
    fake: Fake, topologies: str = "2PD,1P1D", loads: str = "poisson", seconds: float = 10_000, **plans: Any
) -> dict[str, Any]:
    """The report; every state of it that was written on the way holds no less than the one before."""
    report: dict[str, Any] = {}
    sizes = [0]

    def changed() -> None:
        sizes.append(sum(len(load["points"]) for row in report["topologies"] for load in row["loads"].values()))
        assert sizes[-1] >= sizes[-2]

    run_sweep(
        candidates(topologies), parse_loads(loads, SLO), plan(**plans), fake, of_seconds(seconds, fake.clock), report, changed
    )  # fmt: skip
    assert not fake.alive
    assert sizes[-1] == len(fake.measured) - sum(name in fake.dead for name in fake.goodput)
    return report


def found(report: dict[str, Any], name: str, load: str = "poisson") -> dict[str, Any]:
    (row,) = [row for row in report["topologies"] if row["name"] == name]
    return row["loads"][load]


def test_every_topology_and_load_gets_its_goodput():
    fake = Fake({"2PD": 5.0, "1P1D": 9.0})
    report = sweep(fake, loads="poisson,long")
    for load in ("poisson", "long"):
        for name, goodput in fake.goodput.items():
            one = found(report, name, load)
            assert one["goodput"] <= goodput < one["below"] < 1.1 * one["goodput"] and one["ended"] == "bracketed"
            assert one["goodput_per_device"] == one["goodput"] / 2 and not one["not_measured"]
    assert [row["failed"] for row in report["topologies"]] == [None, None]


def test_the_second_search_begins_where_the_first_one_ended():
    fake = Fake({"2PD": 5.0, "1P1D": 5.0})
    sweep(fake)
    first, second = ([rate for name, _, rate in fake.measured if name == of] for of in fake.goodput)
    assert second[0] == max(rate for rate in first if rate <= 5.0) and len(second) < len(first)


def test_single_requests_are_compared_where_rates_are_the_same():
    report = sweep(Fake({"1P1D": 3.0, "2PD": 5.0}), "1P1D,2PD")
    rows = {one["rate"]: one for one in report["against_monolith"]}
    assert {(one["name"], one["monolith"]) for one in rows.values()} == {("1P1D", "2PD")}
    ttft = rows[4.0]["losses"][0]
    assert (rows[4.0]["lost"], rows[4.0]["won"]) == (4, 0) and (ttft["slower"], ttft["worst"]) == (
        0.2,
        pytest.approx(10.0),
    )


def test_no_monolith_is_compared_with_nothing():
    assert sweep(Fake({"1P1D": 3.0}), "1P1D")["against_monolith"] == []


@pytest.mark.parametrize("seconds", [10, 60, 100, 260, 700])
def test_the_budget_holds_and_what_was_not_measured_is_said(seconds: float):
    fake = Fake({"2PD": 50.0, "1P1D": 60.0})
    report = sweep(fake, loads="poisson,long", seconds=seconds)
    assert fake.clock.now <= seconds
    for row in report["topologies"]:
        if not row["loads"]:
            assert "no time" in row["failed"]
        for load in row["loads"].values():
            assert load["ended"] == "bracketed" or (load["ended"].startswith("no time") and load["not_measured"])


def test_time_that_one_topology_leaves_is_the_next_ones():
    fake = Fake({"2PD": 1.0, "1P1D": 600.0}, broken=("2PD",), start=0.0)
    assert found(sweep(fake, seconds=400), "1P1D")["ended"] == "bracketed"


def test_a_slow_start_is_at_the_expense_of_all():
    fake = Fake({"2PD": 50.0, "1P1D": 50.0}, start=130.0)
    report = sweep(fake, seconds=500)
    counts = [sum(name == of for name, _, _ in fake.measured) for of in fake.goodput]
    assert counts[0] >= 6 and counts[0] > counts[1] >= 1 and fake.clock.now <= 500, (counts, report)


def test_a_deployment_that_does_not_start_is_one_row():
    report = sweep(Fake({"2PD": 5.0, "1P1D": 9.0}, broken=("2PD",)))
    assert "exit code 3" in report["topologies"][0]["failed"] and report["topologies"][0]["loads"] == {}
    assert found(report, "1P1D")["goodput"] is not None


def test_a_process_that_dies_ends_its_deployment_and_keeps_its_points():
    fake = Fake({"2PD": 50.0, "1P1D": 9.0}, dead={"2PD": 8.0})
    report = sweep(fake, loads="poisson,long")
    one = found(report, "2PD")
    assert [p["rate"] for p in one["points"]] == [1.0, 2.0, 4.0] and one["goodput"] == 4.0
    assert "lost at 8 req/s" in one["ended"] and "SIGKILL" in report["topologies"][0]["failed"]
    assert "long" not in report["topologies"][0]["loads"] and found(report, "1P1D", "long")["goodput"]


def test_points_of_a_late_generator_say_nothing_of_goodput():
    report = sweep(Fake({"2PD": 50.0, "1P1D": 50.0}, late={"2PD": 6.0}))
    one = found(report, "2PD")
    assert one["goodput"] < 6.0 <= one["generator_limit"] and one["below"] is None and "too slow" in one["ended"]
    assert [p["valid"] for p in one["points"]] == [p["rate"] < 6.0 for p in one["points"]]


def test_a_list_of_rates_is_measured_whole():
    fake = Fake({"2PD": 3.0, "1P1D": 9.0})
    report = sweep(fake, rates=(1.0, 4.0, 6.0))
    assert [rate for _, _, rate in fake.measured] == [1.0, 4.0, 6.0] * 2
    assert (found(report, "2PD")["goodput"], found(report, "2PD")["below"]) == (1.0, 4.0)
    assert (found(report, "1P1D")["goodput"], found(report, "1P1D")["below"]) == (6.0, None)
    short = sweep(Fake({"2PD": 9.0}), "2PD", rates=(1.0, 4.0, 6.0), seconds=100)
    assert found(short, "2PD")["not_measured"] == [6.0], "30 s of start, two points of 25 s, 15 s kept back"


def test_a_load_that_cannot_be_sent_is_said_and_the_next_one_goes_on():
    report = sweep(Fake({"2PD": 5.0}), "2PD", loads="images,poisson")
    assert "takes no images" in found(report, "2PD", "images")["ended"] and found(report, "2PD")["goodput"]


def test_an_interruption_keeps_what_was_measured_and_ends_the_deployment():
    fake = Fake({"2PD": 5.0}, interrupt_after=2)
    report: dict[str, Any] = {}
    with pytest.raises(KeyboardInterrupt):
        run_sweep(
            candidates("2PD"),
            parse_loads("poisson", SLO),
            plan(),
            fake,
            of_seconds(1e4, fake.clock),
            report,
            lambda: None,
        )
    assert not fake.alive and found(report, "2PD")["ended"] == "interrupted"
    assert len(found(report, "2PD")["points"]) == 2


def test_few_requests_lengthen_the_window():
    assert plan(warmup=5.0, judged=20.0, least=30).counts(10.0) == (50, 200)
    assert plan(warmup=5.0, judged=20.0, least=30).counts(0.5) == (3, 30)
