"""Random fault schedules: whatever goes wrong, requests end once, clients see what they should, and nothing is left."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, find, given, settings

from tests.runtime.simulation.plans import Plan, calm, die_for_good, plans
from triptych.runtime.core.errors import Status
from triptych.runtime.scheduler.flow import Flow
from triptych.runtime.simulation.run import Outcome, run, run_many, run_schedule

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def complain(outcome: Outcome) -> str:
    return f"triptych faults --replay {outcome.seed}\n" + "\n".join(outcome.wrong)


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_random_schedules_pass(first: int):
    for outcome in run_many(100, first):
        assert outcome.passed, complain(outcome)


@pytest.mark.slow
@pytest.mark.limit(1800)
def test_twenty_thousand_random_schedules_pass():
    failing = {
        outcome.seed: outcome.wrong for outcome in run_many(20_000, 1_000_000, processes=2) if not outcome.passed
    }
    assert not failing


@QUICK
@given(plans())
def test_any_few_faults_are_survived(plan: Plan):
    outcome = run(plan.schedule())
    assert outcome.passed, "\n".join([*map(str, plan.faults), *outcome.wrong])


def test_a_seed_always_gives_the_same_run():
    for seed in range(10):
        assert run_schedule(seed) == run_schedule(seed)


@pytest.mark.parametrize("topology", ["1P1D", "2P2D", "PD", "mixed", "1E1P1D", "EP-D", "2EPD"])
def test_in_fair_weather_every_request_completes(topology: str):
    for seed in range(10):
        outcome = run(calm(seed, topology))
        assert outcome.passed, complain(outcome)
        assert {verdict.outcome for verdict in outcome.verdicts} == {"completed"}


@pytest.mark.parametrize(
    ("topology", "victim"),
    [("1P2D", "worker-d1"), ("2P2D", "worker-p0"), ("2PD", "worker-pd1"), ("2E1PD", "worker-e0")],
)
def test_what_survivors_can_serve_completes(topology: str, victim: str):
    for seed in range(10):
        schedule = calm(seed, topology)
        if victim in {shape.worker for shape in schedule.instances}:
            outcome = run(die_for_good(schedule, victim, at=0.3))
            assert outcome.passed, complain(outcome)
            assert {verdict.outcome for verdict in outcome.verdicts} == {"completed"}


def test_a_bug_shrinks_to_the_fault_that_shows_it(monkeypatch: pytest.MonkeyPatch):
    """A scheduler that overlooks losses: of up to six faults one is left."""
    monkeypatch.setattr(Flow, "lost", lambda *_: None)
    smallest = find(plans(), lambda plan: not run(plan.schedule()).passed, settings=QUICK)
    assert len(smallest.faults) == 1


def test_clients_without_a_gateway_are_told():
    schedule = die_for_good(calm(1, "PD"), "gateway-0", at=0.06)
    outcome = run(schedule)
    assert outcome.passed, complain(outcome)
    assert f"failed: {Status.UNAVAILABLE.name}" in {verdict.outcome for verdict in outcome.verdicts}
