"""Taking instances out of service: to change roles, or to leave."""

from __future__ import annotations

import pytest

from tests.runtime.scheduler.world import Driver, driver, info, roles_of
from triptych.runtime.core.control import (
    Completed,
    Directory,
    DrainEnded,
    DrainRequested,
    InstanceLeft,
    InstanceReset,
    Interrupted,
    Retire,
    RolesRefused,
    SetRoles,
    ToWorker,
    WorkerJoined,
    WorkerLeft,
    WorkerLost,
)
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import Role
from triptych.runtime.core.tasks import AbortTask, Accepted, HeldTask, StartLocal, TaskEnded
from triptych.runtime.scheduler.config import SchedulerConfig

A, B = info("a", "pd", switchable="pd"), info("b", "pd", switchable="pd")
CONFIG = SchedulerConfig(heartbeat_timeout=1000)


def two() -> Driver:
    """Two instances; request "r" runs on A and "s" on B."""
    world = driver(A, B, config=CONFIG)
    for name, instance in (("r", A), ("s", B)):
        world.submit(name)
        world.report(instance, Accepted(name))
    return world


def drain(world: Driver, roles: str | None = None, instance: str = "a", force: bool = False) -> None:
    world.send(DrainRequested("t", instance, None if roles is None else roles_of(roles), force))


def end(world: Driver, name: str = "r", status: Status = Status.OK) -> None:
    world.report(A, TaskEnded(name, Role.DECODE, status))


def state(world: Driver, name: str = "a") -> str:
    return {i.info.ref.id: i.state for i in world.scheduler.snapshot(world.clock.now()).instances}[name]


def test_a_draining_instance_takes_no_work_and_is_told_to_change_when_it_is_empty() -> None:
    world = two()
    drain(world, "p")
    world.submit("t")
    assert world.commands[-1].ref == B.ref and state(world) == "draining"
    assert not world.orders and not world.drained
    world.clock.advance(3.0)
    end(world)
    assert isinstance(world.terminal("r"), Completed)
    assert world.orders == [ToWorker(A.worker, SetRoles(A.ref, roles_of("p")))]
    world.clock.advance(1.0)
    fresh = info("a", "p", epoch=2, switchable="pd")
    world.send(InstanceReset(A.worker, A.ref, fresh, "roles changed"))
    assert world.drained == [DrainEnded("t", Status.OK, seconds=4.0)]
    assert world.told(Directory)[-1].instances[-1] == fresh and state(world) == "open"


def test_an_empty_instance_is_told_at_once() -> None:
    world = driver(A, B)
    drain(world, "d")
    assert world.orders == [ToWorker(A.worker, SetRoles(A.ref, roles_of("d")))]


@pytest.mark.parametrize("answer", [InstanceLeft(A.worker, A.ref, "drained"), WorkerLeft(A.worker, "drained")])
def test_an_instance_leaves_for_good(answer) -> None:
    world = two()
    drain(world)
    end(world)
    assert [type(o.command) for o in world.orders] == [Retire]
    world.clock.advance(2.0)
    world.send(answer)
    assert world.drained == [DrainEnded("t", Status.OK, seconds=2.0)]
    assert [i.ref.id for i in world.told(Directory)[-1].instances] == ["b"]


def test_what_takes_too_long_goes_on_elsewhere() -> None:
    world = two()
    drain(world)
    world.tick(29.9)
    assert not world.told(Interrupted)
    world.tick(0.2)
    assert [(n.request, n.reason) for n in world.told(Interrupted)] == [("r", "instance a is being drained")]
    world.resume("r", 2, 5)
    world.tick(0.1)
    assert len(world.sent(AbortTask, "a")) == 1
    end(world, status=Status.UNAVAILABLE)
    assert world.sent(StartLocal, "b")[-1].request.attempt == 2
    assert [type(o.command) for o in world.orders] == [Retire]


def test_a_request_at_its_last_attempt_is_left_to_end() -> None:
    world = driver(A, B, config=SchedulerConfig(heartbeat_timeout=1000, max_attempts=1))
    world.submit("r")
    world.report(A, Accepted("r"))
    drain(world)
    world.tick(40.0)
    assert not world.told(Interrupted) and world.terminal("r") is None
    end(world)
    assert len(world.orders) == 1


@pytest.mark.parametrize(
    "instance, roles, status, reason",
    [
        ("x", None, Status.NOT_FOUND, "no instance 'x'; the cluster has a, b"),
        ("x", "p", Status.NOT_FOUND, "no instance 'x'"),
        ("a", "", Status.INVALID_ARGUMENT, "no role given"),
        ("a", "e", Status.FAILED_PRECONDITION, "cannot take on encode; it was started for decode, prefill"),
    ],
)
def test_what_makes_no_sense_is_answered_at_once(instance: str, roles: str | None, status: Status, reason: str) -> None:
    world = driver(A, B)
    drain(world, roles, instance)
    (answer,) = world.drained
    assert answer.status is status and reason in answer.reason and not world.orders and state(world) == "open"


def test_the_roles_that_it_has_are_no_change() -> None:
    world = two()
    drain(world, "pd")
    assert world.drained == [DrainEnded("t", Status.OK)] and state(world) == "open"


def test_a_second_drain_of_an_instance_is_refused() -> None:
    world = two()
    drain(world)
    world.send(DrainRequested("u", "a", None))
    assert [(d.ticket, d.status) for d in world.drained] == [("u", Status.FAILED_PRECONDITION)]


@pytest.mark.parametrize("roles", [None, "p"])
def test_the_last_instance_of_a_role_is_only_drained_by_force(roles: str | None) -> None:
    world = driver(A, info("p", "p"))
    drain(world, roles)
    (refused,) = world.drained
    assert refused.status is Status.FAILED_PRECONDITION and "the last one for decode" in refused.reason
    world.submit("r")
    world.report(A, Accepted("r"))
    drain(world, roles, force=True)
    assert len(world.drained) == 1
    world.submit("s")
    assert world.scheduler.resources().queued == 1, "nothing can serve it now"
    end(world)
    assert len(world.orders) == 1


def test_two_drains_do_not_take_the_last_two_instances_of_a_role() -> None:
    world = two()
    drain(world)
    drain(world, instance="b")
    (refused,) = world.drained
    assert refused.status is Status.FAILED_PRECONDITION


def test_an_instance_that_refuses_goes_on_as_it_was() -> None:
    world = driver(A, B)
    drain(world, "p")
    world.send(RolesRefused(A.worker, A.ref, "no programs"))
    (answer,) = world.drained
    assert answer.status is Status.FAILED_PRECONDITION and "no programs" in answer.reason
    assert state(world) == "open"
    world.send(RolesRefused(A.worker, A.ref, "again"))
    assert len(world.drained) == 1


def test_an_instance_that_does_not_answer_goes_on_as_it_was() -> None:
    world = driver(A, B, config=CONFIG)
    drain(world, "p")
    world.tick(60.1)
    assert [d.status for d in world.drained] == [Status.DEADLINE_EXCEEDED] and state(world) == "open"


@pytest.mark.parametrize("roles, status", [(None, Status.OK), ("p", Status.UNAVAILABLE)])
def test_an_instance_that_is_lost_while_it_drains(roles: str | None, status: Status) -> None:
    world = two()
    drain(world, roles)
    world.send(WorkerLeft(A.worker, "killed"))
    assert [d.status for d in world.drained] == [status]


def test_an_instance_that_loses_its_pool_while_it_drains_changes_at_once() -> None:
    world = two()
    drain(world, "p")
    again = info("a", "pd", epoch=2, switchable="pd")
    world.send(InstanceReset(A.worker, A.ref, again, "pool lost"))
    assert world.orders == [ToWorker(A.worker, SetRoles(again.ref, roles_of("p")))] and state(world) == "draining"


def test_a_worker_that_was_away_is_told_again() -> None:
    world = two()
    drain(world, "p")
    world.send(WorkerLost(A.worker, "reset"))
    world.send(WorkerJoined(A.worker, (A,), (HeldTask(A.ref, "r", 1, None, "g", True),)))
    assert not world.orders
    end(world)
    world.send(WorkerLost(A.worker, "reset"))
    world.send(WorkerJoined(A.worker, (A,)))
    assert len(world.orders) == 2
    world.send(WorkerLost(A.worker, "reset"))
    world.send(WorkerJoined(A.worker, (info("a", "p", epoch=2),)))
    assert [d.status for d in world.drained] == [Status.OK], "it had changed before its stream broke"
