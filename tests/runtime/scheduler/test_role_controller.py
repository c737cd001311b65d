"""Role controllers: shares that follow the backlog, decisions that become commands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import pytest

from triptych.runtime.core.control import (
    Heartbeat,
    InstanceLoad,
    SchedulerEvent,
    SchedulerTick,
    SetRoles,
    SetShare,
    ToWorker,
    WorkerJoined,
)
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import (
    Capacity,
    Compatibility,
    InstanceInfo,
    InstanceRef,
    Load,
    Role,
    TransportKind,
)
from triptych.runtime.scheduler.policies.role_controller import (
    Controlled,
    Decision,
    ShareByBacklog,
    TakeRoles,
    TakeShare,
)
from triptych.runtime.scheduler.scheduler import Scheduler

BOTH = frozenset({Role.PREFILL, Role.DECODE})


def info(name: str, roles: frozenset[Role], switchable: frozenset[Role] = frozenset()) -> InstanceInfo:
    return InstanceInfo(
        ref=InstanceRef(name, 7),
        worker=f"worker-{name}",
        address="h:1",
        roles=roles,
        capacity=Capacity(max_num_seqs=8, num_pages=64, page_size=16, max_model_len=512),
        compatibility=Compatibility(1, "m", "r", "float32", 16, "order"),
        transports=(TransportKind.GRPC,),
        switchable=switchable,
    )


@dataclass
class Seen:
    """An instance as a controller sees it."""

    info: InstanceInfo
    load: Load
    pressure: float = 0.0


def test_a_share_clears_the_backlog_in_so_many_steps_within_its_bounds():
    policy = ShareByBacklog(least=32, most=512, steps=10, interval=1.0)
    one = Seen(info("pd", BOTH), Load(share=256, waiting_tokens=1000))
    assert list(policy.tick(0.0, [one])) == [TakeShare("pd", 100)]
    assert list(policy.tick(0.5, [one])) == []  # not before its time
    one.load = replace(one.load, share=100, waiting_tokens=1100)
    assert list(policy.tick(1.0, [one])) == []  # a tenth more is not worth a message
    one.load = replace(one.load, waiting_tokens=0)
    assert list(policy.tick(2.0, [one])) == [TakeShare("pd", 32)]
    one.load = replace(one.load, share=32, waiting_tokens=10**6)
    assert list(policy.tick(3.0, [one])) == [TakeShare("pd", 512)]
    one.load = replace(one.load, share=64)  # all that its programs hold
    assert list(policy.tick(4.0, [one])) == []


def test_instances_of_one_stage_have_nothing_to_share():
    policy = ShareByBacklog()
    seen = [
        Seen(info(r.value, frozenset({r})), Load(share=64, waiting_tokens=10**6)) for r in (Role.PREFILL, Role.DECODE)
    ]
    assert list(policy.tick(0.0, seen)) == []


@pytest.mark.parametrize("wrong", [{"least": 0}, {"least": 9, "most": 8}, {"steps": 0}, {"interval": 0.0}])
def test_bounds_that_make_no_sense_are_refused(wrong: dict[str, int]):
    with pytest.raises(ConfigError, match="shares must satisfy"):
        ShareByBacklog(**wrong)


class Says:
    """Decides one thing once, and counts what it observed."""

    def __init__(self, decision: Decision):
        self.decisions = [decision]
        self.observed = 0

    def observe(self, event: SchedulerEvent, now: float) -> None:
        self.observed += 1

    def tick(self, now: float, instances: Iterable[Controlled]) -> Iterable[Decision]:
        decisions, self.decisions = self.decisions, []
        return decisions


def test_a_share_goes_to_the_worker_of_the_instance():
    controller = Says(TakeShare("pd", 48))
    scheduler = Scheduler(role_controller=controller)
    member = info("pd", BOTH)
    scheduler.handle(WorkerJoined(member.worker, (member,)), 0.0)
    scheduler.handle(Heartbeat(member.worker, (InstanceLoad(member.ref, Load(share=64)),)), 0.1)
    assert scheduler.handle(SchedulerTick(), 0.2) == [ToWorker(member.worker, SetShare(member.ref, 48))]
    assert controller.observed == 3


def test_a_change_of_roles_is_a_drain():
    scheduler = Scheduler(role_controller=Says(TakeRoles("p1", frozenset({Role.DECODE}))))
    for member in (
        info("p0", frozenset({Role.PREFILL})),
        info("p1", frozenset({Role.PREFILL}), frozenset({Role.DECODE})),
    ):
        scheduler.handle(WorkerJoined(member.worker, (member,)), 0.0)
    said = scheduler.handle(SchedulerTick(), 0.1)
    assert ToWorker("worker-p1", SetRoles(InstanceRef("p1", 7), frozenset({Role.DECODE}))) in said


def test_a_decision_about_nobody_does_nothing():
    scheduler = Scheduler(role_controller=Says(TakeShare("gone", 48)))
    assert scheduler.handle(SchedulerTick(), 0.1) == []
