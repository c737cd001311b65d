"""A lost attempt: who is told, what is aborted, when the next one begins, and what becomes of leftovers."""

from __future__ import annotations

import pytest

from tests.runtime.scheduler.world import Driver, driver, handle, info, request, seen
from triptych.runtime.core.control import (
    Cancel,
    Completed,
    Failed,
    GatewayLost,
    InstanceReset,
    Interrupted,
    Resume,
    WorkerLeft,
)
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceInfo, Role
from triptych.runtime.core.request import PromptReport
from triptych.runtime.core.tasks import (
    AbortTask,
    Accepted,
    DecodeStarted,
    Granted,
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

P, P2, D, D2, PD = info("p", "p"), info("p2", "p"), info("d", "d"), info("d2", "d"), info("pd", "pd")


def ended(role: Role, status: Status = Status.OK, reason: str = "", attempt: int = 1) -> TaskEnded:
    return TaskEnded("r", role, status, reason, attempt=attempt)


def run(world: Driver, prefill: InstanceInfo, decode: InstanceInfo, attempt: int = 1) -> None:
    """Bring the attempt, whose reservation was just asked of `decode`, to the transfer."""
    world.report(decode, Granted("r", 0, attempt))
    world.report(prefill, Staged("r", handle(prefill.ref), attempt))


def transferring(*infos: InstanceInfo, config: SchedulerConfig | None = None) -> Driver:
    made = driver(*infos, config=config)
    made.submit("r", deadline=1000.0)
    run(made, infos[0], infos[1])
    return made


def decoding(*infos: InstanceInfo, config: SchedulerConfig | None = None) -> Driver:
    made = transferring(*infos, config=config)
    made.report(infos[0], PrefillDone("r", PromptReport(4, 0), finished=False))
    made.report(infos[1], DecodeStarted("r"))
    return made


@pytest.mark.parametrize("lost, survivor, role", [(P, D, Role.DECODE), (D, P, Role.PREFILL)])
def test_a_lost_instance_interrupts_and_the_rest_of_the_attempt_is_aborted(lost, survivor, role) -> None:
    world = transferring(P, D)
    world.send(WorkerLeft(lost.worker, "gone"))
    reason = f"instance {lost.ref.id} was lost: gone"
    assert world.told(Interrupted) == [Interrupted("r", 2, reason)]
    assert world.now_sent() == [
        (survivor.ref.id, AbortTask("r", Status.UNAVAILABLE, f"interrupted: {reason}", role, attempt=1))
    ]
    assert world.terminal("r") is None and world.scheduler.counters["interrupted"] == 1


@pytest.mark.parametrize("resume_first", [True, False])
def test_the_next_attempt_waits_for_the_resume_and_for_the_last_task_in_either_order(resume_first: bool) -> None:
    world = decoding(P, D, D2)
    world.send(WorkerLeft(D.worker, "gone"))
    steps = [
        lambda: world.resume("r", 2, 3),
        lambda: world.report(P, ended(Role.PREFILL, Status.UNAVAILABLE)),
    ]
    first, second = steps if resume_first else reversed(steps)
    first()
    assert not world.sent(ReserveDecode, "d2") and world.scheduler.resources().queued == 0
    second()
    (command,) = world.sent(ReserveDecode, "d2")
    assert command.request == request("r", deadline=1000.0, attempt=2) and command.resumed == seen(3)
    world.report(D2, Granted("r", 4, attempt=2))
    started = world.sent(StartPrefill, "p")[-1]
    assert (started.request.attempt, started.skip_tokens, started.resumed) == (2, 4, seen(3))
    world.report(P, Staged("r", handle(P.ref), attempt=2))
    assert world.now_sent() == [("d2", StartDecode("r", handle(P.ref), attempt=2))]
    world.report(P, PrefillDone("r", PromptReport(4, 4), finished=False, attempt=2))
    world.report(D2, DecodeStarted("r", attempt=2))
    world.report(P, ended(Role.PREFILL, attempt=2))
    world.report(D2, ended(Role.DECODE, attempt=2))
    assert isinstance(world.terminal("r"), Completed)
    assert world.scheduler.counters["resumed"] == 1
    world.assert_nothing_is_held()


def test_a_request_of_which_nothing_was_seen_begins_afresh() -> None:
    world = decoding(P, D, D2)
    world.report(P, ended(Role.PREFILL))
    world.send(WorkerLeft(D.worker, "gone"))
    world.resume("r", 2, 0)
    assert world.sent(ReserveDecode, "d2")[-1].resumed == ()


def test_a_request_of_which_everything_was_seen_is_complete() -> None:
    world = decoding(P, D)
    world.send(WorkerLeft(D.worker, "gone"))
    world.resume("r", 2, -7)
    assert world.terminal("r") is None, "prefill still holds its staging"
    world.report(P, ended(Role.PREFILL, Status.UNAVAILABLE))
    assert isinstance(world.terminal("r"), Completed)
    world.assert_nothing_is_held()


def test_a_local_task_goes_on_elsewhere_with_what_was_seen_and_its_weight() -> None:
    other = info("pd2", "pd")
    world = driver(PD, config=SchedulerConfig())
    world.submit("r", n=3)
    world.report(PD, Accepted("r"))
    world.join(other)
    world.send(WorkerLeft(PD.worker, "gone"))
    world.resume("r", 2, 5, -2, 0, n=3)
    (command,) = world.sent(StartLocal, "pd2")
    assert command.resumed == seen(5, -2, 0) and command.request.attempt == 2
    (member,) = world.scheduler._cluster.members
    assert (member.prefill_tokens, member.sequences, member.kv_tokens) == (9, 2, 9)


@pytest.mark.parametrize("status", [Status.UNAVAILABLE, Status.DATA_LOSS, Status.DEADLINE_EXCEEDED, Status.NOT_FOUND])
def test_a_task_that_lost_what_it_needed_interrupts(status: Status) -> None:
    world = transferring(P, D)
    world.report(D, ended(Role.DECODE, status, "the source is gone"))
    assert world.told(Interrupted) == [Interrupted("r", 2, "instance d: the source is gone")]
    assert [(to, c.status) for to, c in world.now_sent() if isinstance(c, AbortTask)] == [("p", status)]


def test_the_requests_own_deadline_and_real_failures_are_no_interruptions() -> None:
    world = decoding(P, D)
    world.clock.advance(900.0)
    world.report(D, ended(Role.DECODE, Status.DEADLINE_EXCEEDED, "deadline"))
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.status is Status.DEADLINE_EXCEEDED
    world = decoding(P, D)
    world.report(D, ended(Role.DECODE, Status.CANCELLED, "somebody said so"))
    assert isinstance(world.terminal("r"), Failed), "a source says so only during the transfer"


def test_after_as_many_attempts_as_allowed_the_last_loss_is_the_failure() -> None:
    world = driver(P, D, D2, config=SchedulerConfig(max_attempts=3, reopen_after=0.1))
    world.submit("r")
    for attempt in (1, 2, 3):
        decode = next(i for i in (D, D2) if i.ref == world.commands[-1].ref)
        world.report(decode, Granted("r", 0, attempt))
        world.report(decode, ended(Role.DECODE, Status.DATA_LOSS, "checksum", attempt))
        world.report(P, ended(Role.PREFILL, Status.UNAVAILABLE, attempt=attempt))
        if attempt < 3:
            assert world.terminal("r") is None
            world.resume("r", attempt + 1, 0)
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.status is Status.DATA_LOSS
    assert failure.reason.endswith("checksum; attempt 3 of at most 3")
    assert world.scheduler.counters["attempts_exhausted"] == 1
    world.assert_nothing_is_held()


def test_a_reservation_lost_before_it_was_granted_is_made_elsewhere() -> None:
    world = driver(P, D, D2)
    world.submit("r")
    first = world.commands[-1]
    world.send(WorkerLeft(first.worker, "gone"))
    ((to, command),) = world.now_sent()
    assert to != first.ref.id and isinstance(command, ReserveDecode) and command.request.attempt == 1
    assert not world.told(Interrupted)


def test_a_local_task_lost_before_it_was_accepted_is_an_attempt() -> None:
    """Its answer may have been lost with the connection, and tokens may have come before."""
    world = driver(PD)
    world.submit("r")
    world.send(WorkerLeft(PD.worker, "gone"))
    assert [n.attempt for n in world.told(Interrupted)] == [2]


def test_losing_a_worker_with_both_instances_aborts_nothing_on_it() -> None:
    p, d = info("p", "p", worker="w"), info("d", "d", worker="w")
    world = transferring(p, d)
    world.send(WorkerLeft("w", "gone"))
    assert not world.now_sent()
    assert len(world.told(Interrupted)) == 1
    world.send(Cancel("r", ""))
    world.assert_nothing_is_held()


def test_a_reset_instance_loses_its_tasks_and_takes_the_next_attempt() -> None:
    world = transferring(P, D)
    fresh = info("d", "d", epoch=2)
    world.send(InstanceReset(D.worker, D.ref, fresh, "pool lost"))
    assert world.told(Interrupted)[-1].reason == "instance d was lost: pool lost"
    world.report(D, ended(Role.DECODE))
    assert world.scheduler.counters["stale_reports"] == 1
    world.report(P, ended(Role.PREFILL, Status.UNAVAILABLE))
    world.resume("r", 2, 1)
    assert world.commands[-1].ref == fresh.ref


def test_nothing_is_interrupted_by_what_is_not_needed_any_more() -> None:
    world = decoding(P, D)
    world.send(WorkerLeft(P.worker, "gone"))
    world.report(D, ended(Role.DECODE))
    assert isinstance(world.terminal("r"), Completed) and not world.told(Interrupted)
    world = transferring(P, D)
    world.report(P, PrefillDone("r", PromptReport(4, 0), finished=True))
    world.send(WorkerLeft(D.worker, "gone"))
    world.send(WorkerLeft(P.worker, "gone"))
    assert isinstance(world.terminal("r"), Completed) and not world.told(Interrupted)
    world.assert_nothing_is_held()


# ---- attempts


def test_reports_of_an_earlier_attempt_are_counted_and_what_they_are_about_is_ended() -> None:
    world = driver(PD)
    world.submit("r")
    world.resume("r", 2, 0)
    world.report(PD, Accepted("r"))
    world.report(PD, ended(Role.DECODE, Status.CANCELLED))
    assert world.sent(StartLocal)[-1].request.attempt == 2
    world.report(PD, Accepted("r"))
    ((to, command),) = world.now_sent()
    assert to == "pd" and isinstance(command, AbortTask) and (command.attempt, command.role) == (1, None)
    world.report(PD, DecodeStarted("r"))
    world.report(PD, ended(Role.DECODE, Status.UNAVAILABLE))
    assert not world.now_sent() and world.terminal("r") is None
    assert world.scheduler.counters["stale_reports"] == 1
    world.report(PD, Accepted("r", attempt=2))
    world.report(PD, ended(Role.DECODE, attempt=2))
    assert isinstance(world.terminal("r"), Completed)
    world.assert_nothing_is_held()


def test_a_resume_that_nobody_asked_for_interrupts_without_a_notice() -> None:
    world = decoding(P, D)
    world.resume("r", 2, 5)
    assert not world.told(Interrupted)
    assert {c.role for c in world.sent(AbortTask)} == {Role.DECODE, Role.PREFILL}
    world.report(P, ended(Role.PREFILL, Status.CANCELLED))
    world.report(D, ended(Role.DECODE, Status.CANCELLED))
    assert world.sent(ReserveDecode)[-1].resumed == seen(5)


def test_a_resume_of_a_waiting_request_keeps_its_place() -> None:
    world = driver(PD)
    for name in ("a", "r", "b"):
        world.submit(name)
        world.report(PD, Refused(name, Role.PREFILL, "full"))
    world.resume("r", 2, 4)
    world.tick(1.0)
    assert [c.request.id for c in world.sent(StartLocal)[-3:]] == ["a", "r", "b"]


@pytest.mark.parametrize("attempt", [1, 2])
def test_a_resume_under_an_attempt_that_is_over_is_counted_and_ignored(attempt: int) -> None:
    world = driver(PD)
    world.submit("r")
    world.resume("r", 2, 0)
    world.report(PD, ended(Role.DECODE, Status.CANCELLED))
    before = len(world.commands)
    world.resume("r", attempt, 0)
    assert len(world.commands) == before and world.scheduler.counters["stale_resumes"] == 1


def test_a_resume_crosses_the_interruption_that_asks_for_it() -> None:
    """The gateway ignores Interrupted(2): it has begun attempt 2 already."""
    world = decoding(P, D, D2)
    world.report(P, ended(Role.PREFILL))
    world.send(WorkerLeft(D.worker, "gone"))
    assert world.told(Interrupted)[-1].attempt == 2
    world.resume("r", 2, 4)
    world.report(D2, Granted("r", 0, attempt=2))
    world.send(WorkerLeft(D2.worker, "gone"))
    assert world.told(Interrupted)[-1].attempt == 3


def test_a_resume_of_an_unknown_request_is_admitted_even_if_the_queue_is_full() -> None:
    world = driver(PD, config=SchedulerConfig(max_queued=1, max_active=1))
    world.submit("a")
    world.submit("b")
    world.resume("r", 3, 2)
    assert world.scheduler.resources().queued == 2 and world.terminal("r") is None
    world.send(Cancel("a", ""))
    world.send(Cancel("b", ""))
    world.report(PD, TaskEnded("a", Role.DECODE, Status.CANCELLED))
    command = world.sent(StartLocal)[-1]
    assert command.request.id == "r" and command.request.attempt == 3 and command.resumed == seen(2)


def test_a_resume_beyond_the_last_attempt_fails() -> None:
    world = decoding(P, D)
    world.resume("r", 6, 1)
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and "attempt 5 of at most 5" in failure.reason


def test_a_resume_of_a_request_that_has_failed_hears_so_again() -> None:
    world = decoding(P, D)
    world.send(Cancel("r", "client went away"))
    first = world.terminal("r")
    world.resume("r", 2, 1)
    assert world.told(Failed) == [first, first]
    world.report(P, ended(Role.PREFILL, Status.CANCELLED))
    world.report(D, ended(Role.DECODE, Status.CANCELLED))
    world.assert_nothing_is_held()


def test_a_resume_that_does_not_name_every_sample_fails_the_request() -> None:
    world = driver(PD)
    world.submit("r", n=2)
    world.send(Resume(request("r", n=2, attempt=2), seen(1)))
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.status is Status.INVALID_ARGUMENT and "[0]" in failure.reason
    world.report(PD, ended(Role.DECODE, Status.CANCELLED))
    world.assert_nothing_is_held()


# ---- waits


def test_a_gateway_that_never_resumes_is_waited_for_as_long_as_patience_lasts() -> None:
    world = driver(PD, config=SchedulerConfig(patience=10.0))
    world.submit("r")
    world.send(WorkerLeft(PD.worker, "gone"))
    world.tick(9.9)
    assert world.terminal("r") is None
    world.tick(0.2)
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.status is Status.UNAVAILABLE and "did not say" in failure.reason
    world.assert_nothing_is_held()


def test_with_no_instance_left_a_resumed_request_waits_and_goes_on_with_the_next_one() -> None:
    world = driver(PD)
    world.submit("r")
    world.send(WorkerLeft(PD.worker, "gone"))
    world.resume("r", 2, 3)
    world.tick(20.0)
    assert world.terminal("r") is None
    world.join(info("pd", "pd", epoch=2))
    assert world.sent(StartLocal)[-1].resumed == seen(3)


def test_patience_with_a_resumed_request_ends_unavailable() -> None:
    world = driver(PD)
    world.submit("r")
    world.send(WorkerLeft(PD.worker, "gone"))
    world.resume("r", 2, 3)
    world.tick(30.1)
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.status is Status.UNAVAILABLE
    assert failure.reason == "waited 30 s in vain: no prefill and no decode instance"
    assert world.scheduler.counters["patience_exhausted"] == 1
    world.assert_nothing_is_held()


@pytest.mark.parametrize("answered", [True, False])
def test_a_cancel_reaches_an_interrupted_request(answered: bool) -> None:
    world = decoding(P, D, D2)
    world.send(WorkerLeft(D.worker, "gone"))
    if answered:
        world.resume("r", 2, 3)
    world.send(Cancel("r", "client went away"))
    assert world.terminal("r") == Failed("r", Status.CANCELLED, "client went away")
    assert len(world.sent(AbortTask)) == 1, "prefill has been told already"
    world.report(P, ended(Role.PREFILL, Status.CANCELLED))
    world.assert_nothing_is_held()
    assert not world.sent(ReserveDecode, "d2")


def test_a_deadline_ends_an_interrupted_request() -> None:
    world = decoding(P, D)
    world.send(WorkerLeft(D.worker, "gone"))
    world.send(WorkerLeft(P.worker, "gone"))
    world.send(GatewayLost("g"))
    world.tick(900.0)
    world.assert_nothing_is_held()
