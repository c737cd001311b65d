"""A worker's stream breaks while both sides live: what cannot have missed anything goes on, the rest is interrupted."""

from __future__ import annotations

from tests.runtime.scheduler.world import Driver, driver, handle, info
from triptych.runtime.core.control import (
    Cancel,
    Completed,
    Directory,
    Interrupted,
    Placed,
    WorkerJoined,
    WorkerLost,
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
    Refused,
    ReserveDecode,
    Staged,
    StartDecode,
    StartLocal,
    StartPrefill,
    TaskEnded,
)
from triptych.runtime.scheduler.config import SchedulerConfig

P, D, D2, PD = info("p", "p"), info("d", "d"), info("d2", "d"), info("pd", "pd")


def held(
    instance: InstanceInfo, role: Role | None, *, running: bool = True, attempt: int = 1, name: str = "r"
) -> HeldTask:
    return HeldTask(instance.ref, name, attempt, role, "g", running)


def back(world: Driver, instance: InstanceInfo, *tasks: HeldTask) -> None:
    world.send(WorkerJoined(instance.worker, (instance,), tasks))


def ended(role: Role, status: Status = Status.OK, attempt: int = 1) -> TaskEnded:
    return TaskEnded("r", role, status, attempt=attempt)


def test_a_worker_that_is_back_in_time_goes_on_and_nobody_notices() -> None:
    world = driver(PD)
    world.submit("r")
    world.report(PD, Accepted("r"))
    world.send(WorkerLost(PD.worker, "reset"))
    world.tick(0.4)
    back(world, PD, held(PD, None))
    world.tick(10.0)
    assert not world.told(Interrupted) and len(world.told(Directory)) == 2
    world.report(PD, ended(Role.DECODE))
    assert isinstance(world.terminal("r"), Completed)
    assert world.scheduler.counters["workers_back"] == 1 and world.scheduler.counters["workers_lost"] == 0
    world.assert_nothing_is_held()


def test_a_worker_that_stays_away_is_lost() -> None:
    world = driver(PD)
    world.submit("r")
    world.report(PD, Accepted("r"))
    world.send(WorkerLost(PD.worker, "connection reset"))
    world.send(WorkerLost(PD.worker, "again"))
    world.tick(0.4)
    assert not world.told(Interrupted)
    world.tick(0.2)
    assert world.told(Interrupted) == [Interrupted("r", 2, "instance pd was lost: connection reset")]
    assert not world.scheduler.snapshot(world.clock.now()).instances


def test_an_instance_whose_worker_is_away_takes_no_work_and_hears_nothing() -> None:
    world = driver(P, D, D2)
    world.send(WorkerLost(D.worker, "reset"))
    world.submit("r")
    world.submit("s")
    assert [c.ref.id for c in world.commands] == ["d2", "d2"]
    world.send(WorkerLost(D2.worker, "reset"))
    world.send(Cancel("r", ""))
    world.submit("t")
    assert len(world.commands) == 2
    back(world, D)
    assert [c.ref.id for c in world.commands[2:]] == ["d"]


def test_without_a_grace_a_broken_stream_is_a_loss_at_once() -> None:
    world = driver(PD, config=SchedulerConfig(rejoin_grace=0))
    world.submit("r")
    world.send(WorkerLost(PD.worker, "killed"))
    assert len(world.told(Interrupted)) == 1


def test_a_task_that_its_worker_does_not_hold_any_more_is_interrupted() -> None:
    world = driver(PD)
    world.submit("r")
    world.report(PD, Accepted("r"))
    world.send(WorkerLost(PD.worker, "reset"))
    back(world, PD)
    assert "came back without its local task" in world.told(Interrupted)[-1].reason
    world.resume("r", 2, 1)
    assert world.sent(StartLocal)[-1].request.attempt == 2


def test_an_abort_that_was_lost_is_repeated() -> None:
    world = driver(PD)
    world.submit("r")
    world.report(PD, Accepted("r"))
    world.send(WorkerLost(PD.worker, "reset"))
    world.send(Cancel("r", "client went away"))
    assert not world.now_sent()
    back(world, PD, held(PD, None))
    ((_, command),) = world.now_sent()
    assert isinstance(command, AbortTask) and command.attempt == 1
    world.report(PD, ended(Role.DECODE, Status.CANCELLED))
    world.assert_nothing_is_held()


def test_an_aborted_task_that_is_gone_when_its_worker_is_back_is_over() -> None:
    world = driver(PD)
    world.submit("r")
    world.report(PD, Accepted("r"))
    world.send(WorkerLost(PD.worker, "reset"))
    world.send(Cancel("r", "client went away"))
    back(world, PD)
    world.assert_nothing_is_held()


def test_a_lost_answer_of_a_local_task_is_inferred() -> None:
    world = driver(PD)
    world.submit("r")
    back(world, PD, held(PD, None))
    assert len(world.told(Placed)) == 1 and not world.told(Interrupted)


def test_a_reservation_whose_grant_was_lost_is_given_back_and_made_anew() -> None:
    world = driver(P, D)
    world.submit("r")
    back(world, D, held(D, Role.DECODE, running=False))
    assert [type(c) for _, c in world.now_sent()] == [AbortTask]
    world.report(D, ended(Role.DECODE, Status.UNAVAILABLE))
    assert [type(c) for _, c in world.now_sent()] == [ReserveDecode] and not world.told(Interrupted)


def test_a_reservation_that_never_arrived_is_made_anew() -> None:
    world = driver(P, D)
    world.submit("r")
    back(world, D)
    assert [type(c) for _, c in world.now_sent()] == [ReserveDecode] and not world.told(Interrupted)


def test_a_prefill_task_whose_handle_was_lost_is_interrupted() -> None:
    world = driver(P, D)
    world.submit("r")
    world.report(D, Granted("r", 0))
    back(world, P, held(P, Role.PREFILL, running=False))
    assert "the answer of instance p was lost" in world.told(Interrupted)[-1].reason


def test_a_reservation_that_lives_on_behind_a_partition_is_not_taken_for_the_new_one() -> None:
    world = driver(P, D, D2)
    world.submit("r")
    lost, other = (D, D2) if world.commands[-1].ref == D.ref else (D2, D)
    world.send(WorkerLost(lost.worker, "partition"))
    world.tick(0.6)
    world.report(other, Refused("r", Role.DECODE, "full"))
    back(world, lost, held(lost, Role.DECODE, running=False))
    assert [type(c) for _, c in world.now_sent()] == [AbortTask, ReserveDecode], "of the same attempt"
    world.report(lost, ended(Role.DECODE, Status.UNAVAILABLE))
    world.report(lost, Granted("r", 0))
    assert [type(c) for _, c in world.now_sent()] == [StartPrefill]


def transferring() -> Driver:
    world = driver(P, D)
    world.submit("r")
    world.report(D, Granted("r", 0))
    world.send(WorkerLost(D.worker, "reset"))
    world.report(P, Staged("r", handle(P.ref)))
    return world


def test_the_source_of_a_pull_is_told_again() -> None:
    world = transferring()
    assert not world.sent(StartDecode)
    back(world, D, held(D, Role.DECODE, running=False))
    assert world.sent(StartDecode) == [StartDecode("r", handle(P.ref))]
    assert not world.told(Interrupted)


def test_a_start_of_decoding_that_was_not_heard_is_seen_in_what_is_held() -> None:
    world = transferring()
    world.report(P, PrefillDone("r", PromptReport(4, 0), finished=False))
    back(world, D, held(D, Role.DECODE, running=True))
    assert not world.sent(StartDecode)
    world.send(WorkerLost(P.worker, "reset"))
    world.tick(0.6)
    assert not world.told(Interrupted), "prefill is not needed any more"
    world.report(D, ended(Role.DECODE))
    assert isinstance(world.terminal("r"), Completed)


def test_a_prefill_instance_may_be_away_while_it_computes() -> None:
    world = driver(P, D)
    world.submit("r")
    world.report(D, Granted("r", 0))
    world.report(P, Staged("r", handle(P.ref)))
    world.send(WorkerLost(P.worker, "reset"))
    back(world, P, held(P, Role.PREFILL, running=False))
    assert not world.told(Interrupted)
    world.report(P, PrefillDone("r", PromptReport(4, 0), finished=False))
    world.report(D, DecodeStarted("r"))
    world.report(P, ended(Role.PREFILL))
    world.report(D, ended(Role.DECODE))
    assert isinstance(world.terminal("r"), Completed)
    world.assert_nothing_is_held()


def test_a_worker_that_was_given_up_and_is_back_has_its_old_tasks_aborted() -> None:
    world = driver(PD)
    world.submit("r")
    world.report(PD, Accepted("r"))
    world.send(WorkerLost(PD.worker, "partition"))
    world.tick(1.0)
    world.resume("r", 2, 3)
    back(world, PD, held(PD, None))
    assert [(type(c), c.attempt if isinstance(c, AbortTask) else None) for _, c in world.now_sent()] == [
        (AbortTask, 1),
        (StartLocal, None),
    ]
    world.report(PD, ended(Role.DECODE, Status.CANCELLED))
    world.report(PD, Accepted("r", attempt=2))
    world.report(PD, ended(Role.DECODE, attempt=2))
    assert isinstance(world.terminal("r"), Completed)
    world.assert_nothing_is_held()


def test_of_a_worker_that_is_back_with_one_instance_reset_only_that_ones_tasks_are_lost() -> None:
    a, b = info("a", "pd", worker="w"), info("b", "pd", worker="w")
    world = driver(a, b)
    world.submit("r")
    world.submit("s")
    world.report(a, Accepted("r"))
    world.report(b, Accepted("s"))
    world.send(WorkerLost("w", "reset"))
    world.send(WorkerJoined("w", (a, info("b", "pd", worker="w", epoch=2)), (held(a, None),)))
    assert [n.request for n in world.told(Interrupted)] == ["s"]


def test_prefill_may_start_elsewhere_while_its_instance_is_away() -> None:
    p2 = info("p2", "p")
    world = driver(P, p2, D)
    world.submit("r")
    world.send(WorkerLost(P.worker, "reset"))
    world.report(D, Granted("r", 0))
    assert [(to, type(c)) for to, c in world.now_sent()] == [("p2", StartPrefill)]


def test_news_that_the_registration_has_told_before_changes_nothing() -> None:
    world = transferring()
    back(world, D, held(D, Role.DECODE, running=True))
    world.report(D, Granted("r", 0))
    world.report(D, DecodeStarted("r"))
    world.report(P, PrefillDone("r", PromptReport(4, 0), finished=False))
    world.report(P, ended(Role.PREFILL))
    world.report(D, ended(Role.DECODE))
    assert isinstance(world.terminal("r"), Completed)
    assert world.scheduler.counters["protocol_violations"] == 0
    world.assert_nothing_is_held()
