"""Faults at chosen moments: what crosses what, case by case. Each was found by random schedules, or nearly was."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.runtime.simulation.plans import apart, calm
from triptych.runtime.simulation.faults import Fault, Kind
from triptych.runtime.simulation.moments import SUBJECT, Moment
from triptych.runtime.simulation.run import run
from triptych.runtime.simulation.schedule import Pace
from triptych.runtime.simulation.world import SCHEDULER

SLOW_MESSAGES = Pace(latency=0.015, step=0.04, page=0.001)
TIMES = (1, 2, 3, 5, 8)
SEEDS = range(6)


def survives(topology: str, *faults: Fault) -> None:
    """Every request completes, whatever the requests are."""
    for seed in SEEDS:
        schedule = replace(calm(seed, topology), faults=faults, pace=SLOW_MESSAGES)
        if apart(schedule):
            outcome = run(schedule)
            assert outcome.passed, f"seed {seed}: {outcome.wrong}"
            assert {verdict.outcome for verdict in outcome.verdicts} == {"completed"}


@pytest.mark.parametrize("nth", TIMES)
def test_a_handle_outlives_its_pool_and_the_scheduler_hears_of_it_last(nth: int):
    staged = Moment("Staged", nth)
    survives(
        "1P1D",
        Fault(Kind.CUT, 0.0, SCHEDULER, "worker-p0", 0.12, staged),
        Fault(Kind.ENGINE, 0.004, "p0", when=staged),
    )


@pytest.mark.parametrize("nth", TIMES)
@pytest.mark.parametrize("command", ["ReserveDecode", "StartPrefill", "StartDecode", "AbortTask"])
def test_the_scheduler_dies_while_its_command_is_on_its_way(command: str, nth: int):
    survives("1P2D", Fault(Kind.KILL, 0.001, SCHEDULER, seconds=0.02, when=Moment(command, nth)))


@pytest.mark.parametrize("nth", TIMES)
@pytest.mark.parametrize("report", ["Granted", "Staged", "PrefillDone", "DecodeStarted"])
def test_a_worker_is_dropped_for_silence_and_goes_on_with_old_commands_unread(report: str, nth: int):
    survives("1P2D", Fault(Kind.PAUSE, 0.0, SUBJECT, seconds=1.0, when=Moment(report, nth)))


@pytest.mark.parametrize("nth", TIMES)
@pytest.mark.parametrize("report", ["Granted", "Staged", "Accepted", "DecodeStarted", "TaskEnded"])
def test_a_blip_loses_what_was_on_its_way(report: str, nth: int):
    for topology, other in (("1P1D", "worker-d1"), ("PD", "worker-pd0")):
        survives(topology, Fault(Kind.RESET, 0.0, SCHEDULER, other, when=Moment(report, nth)))


@pytest.mark.parametrize("nth", TIMES)
def test_tokens_are_lost_on_their_way_and_the_request_is_over_for_everybody_else(nth: int):
    survives("1P1D", Fault(Kind.RESET, 0.0, "gateway-0", "worker-d1", when=Moment("Completed", nth)))


@pytest.mark.parametrize("nth", TIMES)
def test_gateway_and_scheduler_lose_each_other_while_an_attempt_begins(nth: int):
    survives(
        "2PD",
        Fault(Kind.KILL, 0.2, "worker-pd0", seconds=0.1, when=Moment("Accepted", nth)),
        Fault(Kind.RESET, 0.001, SCHEDULER, "gateway-0", when=Moment("Interrupted", 1)),
        Fault(Kind.KILL, 0.001, SCHEDULER, seconds=0.05, when=Moment("Resume", 1)),
    )


@pytest.mark.parametrize("nth", TIMES)
def test_a_slow_spell_is_over_for_pulls_that_began_in_it(nth: int):
    """Pulls that would take nine seconds each, one behind the other, at the speed of the spell."""
    spell = Fault(Kind.SLOW, 0.0, "worker-p0", "worker-d1", seconds=0.8, when=Moment("StartDecode", nth))
    for seed in SEEDS:
        schedule = replace(calm(seed, "1P1D"), faults=(spell,), pace=Pace(page=0.03))
        if apart(schedule):
            outcome = run(schedule)
            assert outcome.passed, f"seed {seed}: {outcome.wrong}"
            assert outcome.seconds < 8.0


def test_a_stopped_gateway_ends_when_it_goes_on():
    """SIGTERM waits for SIGCONT, and its clients hear of it then."""
    stop, term = Fault(Kind.PAUSE, 0.15, "gateway-0", seconds=0.4), Fault(Kind.TERM, 0.2, "gateway-0", seconds=0.5)
    for seed in SEEDS:
        outcome = run(replace(calm(seed, "2PD"), gateways=("gateway-0",), faults=(stop, term)))
        assert outcome.passed, f"seed {seed}: {outcome.wrong}"
        assert {"term", "pause"} == {kind for kind, _ in outcome.struck}
        assert "failed: UNAVAILABLE" in {verdict.outcome for verdict in outcome.verdicts}
