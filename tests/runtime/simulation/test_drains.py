"""Instances are drained or change roles while things go wrong: every drain is answered once, every request completes, everybody takes work again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.runtime.simulation.plans import apart, calm
from triptych.runtime.core.control import DrainEnded, SchedulerCommand, SchedulerEvent
from triptych.runtime.core.errors import Status
from triptych.runtime.simulation.faults import Fault, Kind
from triptych.runtime.simulation.moments import SUBJECT, Moment
from triptych.runtime.simulation.run import Watcher, run
from triptych.runtime.simulation.schedule import Pace
from triptych.runtime.simulation.world import SCHEDULER

WIDE = Pace(latency=0.015, step=0.02, page=0.001)  # windows of a message's way, wide open
SEEDS = range(4)
TARGETS = [("2P2D", "p0", "decode"), ("2P2D", "d3", "decode+prefill"), ("2P2D", "d2", ""), ("2PD", "pd1", "prefill")]
TARGETS += [("2PD", "pd0", ""), ("mixed", "pd2", "decode")]


class Answers(Watcher):
    """How drains were answered."""

    def __init__(self) -> None:
        self.statuses: list[Status] = []

    def said(self, event: SchedulerEvent, commands: list[SchedulerCommand]) -> None:
        self.statuses += [command.status for command in commands if isinstance(command, DrainEnded)]


def answers(topology: str, *faults: Fault, switch_seconds: float = 60.0) -> list[Status]:
    """How the drains among `faults` are answered; whatever the requests are, every one of them completes."""
    watcher, struck = Answers(), set[str]()
    for seed in SEEDS:
        schedule = calm(seed, topology)
        if apart(schedule):
            outcome = run(replace(schedule, faults=faults, pace=WIDE, switch_seconds=switch_seconds), watcher)
            assert outcome.passed, f"seed {seed}: {outcome.wrong}"
            assert {verdict.outcome for verdict in outcome.verdicts} == {"completed"}
            struck.update(kind for kind, _ in outcome.struck)
    assert struck == {fault.kind for fault in faults}, "a moment that never comes proves nothing"
    return watcher.statuses


def change(roles: str) -> str:
    """The command that the instance gets in the end."""
    return "SetRoles" if roles else "Retire"


@pytest.mark.parametrize(("topology", "instance", "roles"), TARGETS)
@pytest.mark.parametrize("at", [0.0, 0.1, 0.2, 0.4])
def test_in_fair_weather_it_is_done(topology: str, instance: str, roles: str, at: float):
    found = answers(topology, Fault(Kind.DRAIN, at, instance, roles, when=Moment("Submit", 1)))
    assert found and set(found) == {Status.OK}


@pytest.mark.parametrize(("topology", "instance", "roles"), TARGETS)
@pytest.mark.parametrize("crossing", ["reset", "cut", "kill scheduler", "kill worker", "vanish", "engine", "pause"])
@pytest.mark.parametrize("delay", [0.0, 0.02])
def test_the_command_that_ends_it_meets_a_fault(topology: str, instance: str, roles: str, crossing: str, delay: float):
    when, worker = Moment(change(roles), 1), f"worker-{instance}"
    fault = {
        "reset": Fault(Kind.RESET, delay, SCHEDULER, worker, when=when),
        "cut": Fault(Kind.CUT, delay, SCHEDULER, worker, 0.4, when),
        "kill scheduler": Fault(Kind.KILL, delay, SCHEDULER, seconds=0.05, when=when),
        "kill worker": Fault(Kind.KILL, delay, worker, seconds=0.05, when=when),
        "vanish": Fault(Kind.VANISH, delay, worker, seconds=0.3, when=when),
        "engine": Fault(Kind.ENGINE, delay, instance, when=when),
        "pause": Fault(Kind.PAUSE, delay, worker, seconds=0.8, when=when),
    }[crossing]
    answers(topology, Fault(Kind.DRAIN, 0.05, instance, roles, 0.1, Moment("Submit", 1)), fault)


@pytest.mark.parametrize(("topology", "instance", "roles"), TARGETS)
def test_an_instance_that_does_not_answer_takes_work_again_and_obeys_late(topology: str, instance: str, roles: str):
    found = answers(
        topology,
        Fault(Kind.DRAIN, 0.05, instance, roles, 0.1, Moment("Submit", 1)),
        Fault(Kind.SLOW, 0.0, SCHEDULER, f"worker-{instance}", 0.6, Moment(change(roles), 1)),
        switch_seconds=0.1,
    )
    assert Status.DEADLINE_EXCEEDED in found


@pytest.mark.parametrize("nth", [1, 2, 4])
@pytest.mark.parametrize("report", ["Granted", "Staged", "PrefillDone", "DecodeStarted", "Accepted"])
@pytest.mark.parametrize("roles", ["", "decode+prefill"])
def test_whoever_is_at_work_is_drained_and_the_scheduler_dies(roles: str, report: str, nth: int):
    answers(
        "2PD" if report == "Accepted" else "2P2D",
        Fault(Kind.DRAIN, 0.0, SUBJECT, roles, 0.1, Moment(report, nth)),
        Fault(Kind.KILL, 0.03, SCHEDULER, seconds=0.05, when=Moment("DrainRequested", 1)),
        Fault(Kind.DRAIN, 0.2, SUBJECT, roles, 0.1, Moment("DrainRequested", 1)),
    )


@pytest.mark.parametrize(("topology", "instance"), [("1P1D", "p0"), ("1P1D", "d1"), ("PD", "pd0")])
@pytest.mark.parametrize("roles", ["", "prefill", "decode"])
def test_the_last_of_a_role_leaves_when_it_is_forced_to_and_requests_wait(topology: str, instance: str, roles: str):
    assert Status.FAILED_PRECONDITION in {
        *answers(topology, Fault(Kind.DRAIN, 0.1, instance, "", when=Moment("Submit", 1)))
    }
    found = answers(topology, Fault(Kind.FORCE, 0.1, instance, roles, 0.3, Moment("Submit", 1)))
    assert set(found) == {Status.OK}
