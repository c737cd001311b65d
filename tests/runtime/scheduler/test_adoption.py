"""After its own restart the scheduler finds again what workers hold and gateways have open."""

from __future__ import annotations

from itertools import permutations

import pytest

from tests.runtime.scheduler.world import Driver, driver, info, request
from triptych.runtime.core.control import (
    Cancel,
    Completed,
    Declare,
    GatewayJoined,
    Interrupted,
    WorkerJoined,
)
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceInfo, Role
from triptych.runtime.core.request import PromptReport
from triptych.runtime.core.tasks import (
    AbortTask,
    Accepted,
    DecodeStarted,
    Granted,
    HeldTask,
    PrefillDone,
    ReserveDecode,
    StartLocal,
    TaskEnded,
)
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.scheduler import Scheduler

P, D, D2, PD = info("p", "p"), info("d", "d"), info("d2", "d"), info("pd", "pd")


def held(
    instance: InstanceInfo, role: Role | None, *, running: bool = True, attempt: int = 1, name: str = "r"
) -> HeldTask:
    return HeldTask(instance.ref, name, attempt, role, "g", running)


def back(world: Driver, instance: InstanceInfo, *tasks: HeldTask) -> None:
    world.send(WorkerJoined(instance.worker, (instance,), tasks))


def ended(role: Role, status: Status = Status.OK, attempt: int = 1) -> TaskEnded:
    return TaskEnded("r", role, status, attempt=attempt)


def test_an_instance_that_reports_tasks_without_end_does_not_grow_the_scheduler() -> None:
    world = driver(P, D, config=SchedulerConfig(max_active=5))
    for n in range(20):
        world.report(D, Granted(f"ghost{n}", 0))
    assert world.scheduler.resources().unclaimed == 5 and len(world.sent(AbortTask, "d")) == 20
    for n in range(15, 20):
        world.report(D, TaskEnded(f"ghost{n}", Role.DECODE, Status.UNAVAILABLE))
    world.assert_nothing_is_held()


def test_a_request_of_which_nobody_has_heard_is_asked_for_at_once_and_waits_for_no_instance() -> None:
    world = driver(P, D)
    world.send(Declare(request("r"), unheard=True))
    assert [(asked.request, asked.attempt) for asked in world.told(Interrupted)] == [("r", 2)]
    world.resume("r", 2)
    assert [command.request.attempt for command in world.sent(ReserveDecode)] == [2]
    back(world, PD, held(PD, None))  # its Submit had arrived after all
    assert [(command.role, command.attempt) for command in world.sent(AbortTask, "pd")] == [(None, 1)]
    world.report(PD, ended(Role.DECODE, Status.UNAVAILABLE))
    assert not world.told(Completed) and world.scheduler.resources().records == 1


@pytest.mark.parametrize("running", [True, False])
def test_a_request_of_which_nobody_has_heard_is_adopted_if_it_is_found(running: bool) -> None:
    world = driver(P)
    back(world, D, held(D, Role.DECODE, running=running))
    world.send(Declare(request("r"), unheard=True))
    assert not world.told(Interrupted) and not world.sent(AbortTask)
    world.report(D, DecodeStarted("r"))
    world.report(D, ended(Role.DECODE))
    assert isinstance(world.terminal("r"), Completed)
    world.assert_nothing_is_held()


def test_a_request_that_is_known_goes_on_whatever_its_gateway_has_heard() -> None:
    world = driver(P, D)
    world.submit("r")
    world.send(Declare(request("r"), unheard=True))
    assert not world.told(Interrupted) and world.scheduler.resources().records == 1


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_declared_request_is_adopted_from_its_decode_instance_in_any_order(order: tuple[int, ...]) -> None:
    world = Driver(Scheduler())
    world.send(GatewayJoined("g"))
    events = [
        Declare(request("r", attempt=2, deadline=500.0)),
        WorkerJoined(D.worker, (D,), (held(D, Role.DECODE, attempt=2),)),
        WorkerJoined(P.worker, (P,), (held(P, Role.PREFILL, attempt=2, running=False),)),
    ]
    for index in order:
        world.send(events[index])
    world.tick(2.9)
    world.tick(0.2)
    assert not world.told(Interrupted) and not world.sent(AbortTask)
    assert world.scheduler.resources().tasks == 2 and world.scheduler.counters["adopted"] == 1
    world.report(P, PrefillDone("r", PromptReport(4, 0), finished=False, attempt=2))
    world.report(P, ended(Role.PREFILL, attempt=2))
    world.report(D, ended(Role.DECODE, attempt=2))
    assert isinstance(world.terminal("r"), Completed)
    world.assert_nothing_is_held()


@pytest.mark.parametrize("declared_first", [True, False])
def test_a_local_task_is_adopted(declared_first: bool) -> None:
    world = driver()
    if declared_first:
        world.declare("r")
    back(world, PD, held(PD, None))
    if not declared_first:
        world.declare("r")
    world.tick(3.1)
    assert not world.told(Interrupted)
    world.report(PD, PrefillDone("r", PromptReport(4, 0), finished=False))
    world.report(PD, DecodeStarted("r"))
    world.report(PD, ended(Role.DECODE))
    assert isinstance(world.terminal("r"), Completed)
    world.assert_nothing_is_held()


def test_what_nobody_runs_is_interrupted_after_the_grace_and_goes_on() -> None:
    world = driver(PD)
    world.declare("r", attempt=2)
    world.tick(2.9)
    assert not world.told(Interrupted)
    world.tick(0.2)
    (notice,) = world.told(Interrupted)
    assert notice.attempt == 3 and "no instance that runs it registered" in notice.reason
    world.resume("r", 3, 1)
    assert world.sent(StartLocal)[-1].request.attempt == 3


def test_a_pull_that_arrives_within_the_grace_is_adopted() -> None:
    world = driver()
    world.declare("r")
    back(world, D, held(D, Role.DECODE, running=False))
    back(world, P, held(P, Role.PREFILL, running=False))
    world.tick(2.0)
    world.report(P, PrefillDone("r", PromptReport(4, 0), finished=False))
    world.report(D, DecodeStarted("r"))
    world.tick(2.0)
    assert not world.told(Interrupted) and world.scheduler.counters["adopted"] == 1
    world.report(P, ended(Role.PREFILL))
    world.report(D, ended(Role.DECODE))
    assert isinstance(world.terminal("r"), Completed)
    world.assert_nothing_is_held()


def test_a_pull_that_arrives_while_its_worker_is_away_again_is_adopted() -> None:
    world = driver()
    world.declare("r")
    back(world, D, held(D, Role.DECODE, running=False))
    back(world, D, held(D, Role.DECODE, running=True))
    world.tick(3.1)
    assert not world.told(Interrupted) and world.scheduler.counters["adopted"] == 1
    world.report(D, ended(Role.DECODE))
    assert isinstance(world.terminal("r"), Completed)
    world.assert_nothing_is_held()


def test_a_pull_that_arrives_before_its_request_is_declared_counts_as_running() -> None:
    world = driver()
    back(world, D, held(D, Role.DECODE, running=False))
    world.report(D, DecodeStarted("r"))
    world.declare("r")
    world.tick(3.1)
    assert not world.told(Interrupted)
    world.report(D, ended(Role.DECODE))
    assert isinstance(world.terminal("r"), Completed)


def test_what_is_only_held_when_the_grace_ends_is_aborted_and_the_request_goes_on() -> None:
    world = driver()
    world.declare("r")
    back(world, D, held(D, Role.DECODE, running=False))
    back(world, P, held(P, Role.PREFILL, running=False))
    world.tick(3.1)
    assert len(world.told(Interrupted)) == 1
    assert {c.role for c in world.sent(AbortTask)} == {Role.DECODE, Role.PREFILL}
    world.resume("r", 2, 1)
    world.report(P, ended(Role.PREFILL, Status.UNAVAILABLE))
    assert not world.sent(ReserveDecode)
    world.report(D, ended(Role.DECODE, Status.UNAVAILABLE))
    assert world.sent(ReserveDecode)[-1].request.attempt == 2


def test_a_prompt_that_ended_everything_completes_an_adopting_request() -> None:
    world = driver()
    world.declare("r")
    back(world, D, held(D, Role.DECODE, running=False))
    back(world, P, held(P, Role.PREFILL, running=False))
    world.report(P, PrefillDone("r", PromptReport(4, 0), finished=True))
    world.report(P, ended(Role.PREFILL))
    assert [c.role for c in world.sent(AbortTask)] == [Role.DECODE]
    world.report(D, ended(Role.DECODE))
    assert isinstance(world.terminal("r"), Completed)
    world.assert_nothing_is_held()


@pytest.mark.parametrize("status, interrupted", [(Status.OK, 0), (Status.UNAVAILABLE, 1), (Status.NOT_FOUND, 1)])
def test_a_decode_task_that_ends_while_its_request_is_being_adopted(status: Status, interrupted: int) -> None:
    world = driver()
    world.declare("r")
    back(world, D, held(D, Role.DECODE, running=False))
    world.report(D, ended(Role.DECODE, status))
    assert len(world.told(Interrupted)) == interrupted
    world.tick(3.1)
    assert len(world.told(Interrupted)) == 1


def test_a_held_task_of_another_attempt_is_aborted_at_once() -> None:
    world = driver()
    world.declare("r", attempt=2)
    back(world, PD, held(PD, None, attempt=1))
    ((to, command),) = world.now_sent()
    assert to == "pd" and isinstance(command, AbortTask) and command.attempt == 1
    world.report(PD, ended(Role.DECODE, Status.CANCELLED))
    assert world.scheduler.counters["held_aborted"] == 1


def test_a_held_task_that_nobody_declares_is_aborted_after_the_grace() -> None:
    world = driver()
    back(world, PD, held(PD, None))
    assert world.scheduler.resources().unclaimed == 1
    world.tick(2.9)
    assert not world.now_sent()
    world.tick(0.2)
    ((to, command),) = world.now_sent()
    assert to == "pd" and command == AbortTask("r", Status.UNAVAILABLE, command.reason, None, attempt=1)  # type: ignore[union-attr]
    world.report(PD, ended(Role.DECODE, Status.CANCELLED))
    world.assert_nothing_is_held()


def test_a_held_task_that_ends_before_it_is_declared_is_forgotten() -> None:
    world = driver()
    back(world, PD, held(PD, None))
    world.report(PD, PrefillDone("r", PromptReport(4, 0), finished=False))
    world.report(PD, ended(Role.DECODE))
    assert not world.now_sent()
    world.assert_nothing_is_held()


def test_held_tasks_go_with_their_instance() -> None:
    world = driver(D)
    back(world, PD, held(PD, None))
    back(world, info("pd", "pd", epoch=2))
    world.assert_nothing_is_held()


def test_a_cancel_reaches_what_is_held_for_nobody_and_what_is_being_adopted() -> None:
    world = driver()
    back(world, PD, held(PD, None))
    world.send(Cancel("r", ""))
    assert len(world.sent(AbortTask, "pd")) == 1 and world.scheduler.resources().unclaimed == 1
    world.report(PD, ended(Role.DECODE, Status.CANCELLED))
    world.assert_nothing_is_held()
    world.declare("s")
    back(world, D, held(D, Role.DECODE, running=False, name="s"))
    world.send(Cancel("s", ""))
    assert len(world.sent(AbortTask, "d")) == 1
    world.report(D, TaskEnded("s", Role.DECODE, Status.CANCELLED))
    world.assert_nothing_is_held()


def test_a_resume_disowns_what_is_held_of_earlier_attempts() -> None:
    world = driver()
    back(world, PD, held(PD, None))
    world.resume("r", 2, 3)
    assert [type(c) for _, c in world.now_sent()] == [AbortTask, StartLocal]
    world.report(PD, ended(Role.DECODE, Status.CANCELLED))
    world.report(PD, Accepted("r", attempt=2))
    world.report(PD, ended(Role.DECODE, attempt=2))
    assert isinstance(world.terminal("r"), Completed)


def test_the_end_of_a_refused_task_is_not_taken_for_that_of_a_later_one_of_its_name() -> None:
    world = driver()
    world.send(WorkerJoined(PD.worker, (PD,), (held(PD, None, attempt=2),)))
    world.resume("r", 2, 3)
    assert [type(c) for _, c in world.now_sent()] == [AbortTask, StartLocal]
    world.report(PD, DecodeStarted("r", attempt=2))
    world.report(PD, ended(Role.DECODE, Status.CANCELLED, attempt=2))
    assert world.terminal("r") is None
    world.report(PD, Accepted("r", attempt=2))
    world.report(PD, ended(Role.DECODE, attempt=2))
    assert isinstance(world.terminal("r"), Completed)
    world.assert_nothing_is_held()
