"""One request through its tasks: who is told what, in which order, and that nothing is left."""

from __future__ import annotations

import pytest

from tests.runtime.scheduler.world import Driver, driver, handle, info
from triptych.runtime.core.control import (
    Cancel,
    Completed,
    Failed,
    GatewayLeft,
    Interrupted,
    Placed,
    Progress,
    WorkerLeft,
    WorkerLost,
)
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import Role
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
    StageTimes,
    StartDecode,
    StartLocal,
    StartPrefill,
    TaskEnded,
)

P, P2, D, D2, PD = info("p", "p"), info("p2", "p"), info("d", "d"), info("d2", "d"), info("pd", "pd")
DONE = PrefillDone("r", PromptReport(4, 0), finished=False, times=StageTimes(compute=0.5))
STARTED = DecodeStarted("r", StageTimes(transfer=0.25))


def ended(role: Role, status: Status = Status.OK, reason: str = "") -> TaskEnded:
    return TaskEnded("r", role, status, reason)


def granted(*infos_: object) -> Driver:
    """A pair with the request's decode granted and its prefill asked."""
    made = driver(*(infos_ or (P, D)))  # type: ignore[arg-type]
    made.submit("r", deadline=200.0)
    made.report(D, Granted("r", 0))
    return made


def transferring(*infos_: object) -> Driver:
    made = granted(*infos_)
    made.report(P, Staged("r", handle(P.ref)))
    return made


def decoding() -> Driver:
    made = transferring()
    made.report(P, DONE)
    made.report(D, STARTED)
    return made


def test_a_pair_is_driven_in_the_order_of_the_protocol() -> None:
    world = driver(P, D)
    world.submit("r")
    assert [(to, type(c)) for to, c in world.now_sent()] == [("d", ReserveDecode)]
    world.clock.advance(2.0)
    world.report(D, Granted("r", cached_tokens=4))
    (command,) = world.sent(StartPrefill, "p")
    assert command.skip_tokens == 4
    assert world.told(Placed) == [Placed("r", P.ref, D.ref, queue=2.0)]
    world.report(P, Staged("r", handle(P.ref)))
    assert world.now_sent() == [("d", StartDecode("r", handle(P.ref)))]
    world.report(P, DONE)
    world.report(D, STARTED)
    assert world.told(Progress) == [Progress("r", Role.PREFILL, DONE.times), Progress("r", Role.DECODE, STARTED.times)]
    world.report(P, ended(Role.PREFILL))
    assert world.terminal("r") is None, "decode is still running"
    world.report(D, TaskEnded("r", Role.DECODE, Status.OK, preemptions=2))
    assert world.terminal("r") == Completed("r", preemptions=2)
    assert not world.sent(AbortTask)
    world.assert_nothing_is_held()


def test_reports_of_the_two_instances_may_arrive_in_either_order() -> None:
    world = transferring()
    world.report(D, STARTED)
    world.report(D, ended(Role.DECODE))
    world.report(P, DONE)
    assert world.terminal("r") is None
    world.report(P, ended(Role.PREFILL))
    assert isinstance(world.terminal("r"), Completed)
    world.assert_nothing_is_held()


def test_an_instance_with_both_roles_gets_one_local_task() -> None:
    world = driver(PD)
    world.submit("r")
    assert [(to, type(c)) for to, c in world.now_sent()] == [("pd", StartLocal)]
    world.report(PD, Accepted("r"))
    assert world.told(Placed) == [Placed("r", PD.ref, PD.ref, queue=0.0)]
    world.report(PD, DONE)
    world.report(PD, STARTED)
    assert [p.role for p in world.told(Progress)] == [Role.PREFILL, Role.DECODE]
    world.report(PD, ended(Role.DECODE))
    assert isinstance(world.terminal("r"), Completed)
    world.assert_nothing_is_held()


def test_a_local_request_may_finish_at_its_first_token() -> None:
    world = driver(PD)
    world.submit("r")
    world.report(PD, Accepted("r"))
    world.report(PD, PrefillDone("r", PromptReport(4, 0), finished=True))
    assert not world.sent(AbortTask)
    world.report(PD, ended(Role.DECODE))
    assert isinstance(world.terminal("r"), Completed)
    world.assert_nothing_is_held()


@pytest.mark.parametrize("decode_end", [Status.OK, Status.UNAVAILABLE])
def test_finishing_at_the_first_token_gives_the_reservation_back_and_completes(decode_end: Status) -> None:
    """The decode instance may find its pull cut off before it hears of the abort: the request is complete all the same."""
    world = transferring()
    world.report(P, PrefillDone("r", PromptReport(4, 0), finished=True))
    assert world.now_sent() == [("d", AbortTask("r", Status.OK, "finished at first token", Role.DECODE, attempt=1))]
    world.report(P, ended(Role.PREFILL))
    assert world.terminal("r") is None, "the reservation is still held"
    world.report(D, ended(Role.DECODE, decode_end))
    assert isinstance(world.terminal("r"), Completed)
    world.assert_nothing_is_held()


def test_a_decode_instance_that_found_nothing_to_decode_may_end_before_prefill_says_so() -> None:
    world = transferring()
    world.report(D, ended(Role.DECODE))
    world.report(P, PrefillDone("r", PromptReport(4, 0), finished=True))
    world.report(P, ended(Role.PREFILL))
    assert isinstance(world.terminal("r"), Completed)
    assert not world.sent(AbortTask)
    world.assert_nothing_is_held()


def test_a_refused_reservation_goes_to_another_decode_instance_once() -> None:
    world = driver(P, D, D2)
    world.submit("r")
    first = world.commands[-1].ref
    second = D2 if first == D.ref else D
    world.report(D if first == D.ref else D2, Refused("r", Role.DECODE, "full"))
    assert [(to, type(c)) for to, c in world.now_sent()] == [(second.ref.id, ReserveDecode)]
    world.report(second, Refused("r", Role.DECODE, "full"))
    assert not world.now_sent(), "nobody has room: the request waits"
    assert world.scheduler.resources().queued == 1


def test_a_waiting_request_is_tried_again_when_a_task_of_a_full_instance_ends() -> None:
    world = decoding()
    world.submit("s")
    world.report(D, Refused("s", Role.DECODE, "full"))
    world.report(P, ended(Role.PREFILL))
    assert not world.now_sent(), "room on the prefill instance is not what it waits for"
    world.report(D, ended(Role.DECODE))
    assert [(to, type(c)) for to, c in world.now_sent()] == [("d", ReserveDecode)]


def test_a_waiting_request_is_tried_again_after_a_while_even_if_nothing_changed() -> None:
    world = driver(P, D)
    world.submit("r")
    world.report(D, Refused("r", Role.DECODE, "full"))
    world.tick(0.1)
    assert not world.now_sent()
    world.tick(0.5)
    assert len(world.sent(ReserveDecode)) == 2


def test_a_request_refused_for_good_everywhere_fails_with_every_reason() -> None:
    world = driver(P, D, D2)
    world.submit("r")
    world.report(D, Refused("r", Role.DECODE, "needs 9 pages of 8", permanent=True))
    world.report(D2, Refused("r", Role.DECODE, "needs 9 pages of 7", permanent=True))
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.status is Status.INVALID_ARGUMENT
    assert "d: needs 9 pages of 8" in failure.reason and "d2: needs 9 pages of 7" in failure.reason
    world.assert_nothing_is_held()


def test_a_local_task_refused_for_good_fails_and_for_now_waits() -> None:
    world = driver(PD)
    world.submit("r")
    world.report(PD, Refused("r", Role.PREFILL, "queue is full"))
    assert world.scheduler.resources().queued == 1
    world.tick(0.6)
    world.report(PD, Refused("r", Role.PREFILL, "too long", permanent=True))
    assert isinstance(world.terminal("r"), Failed)
    world.assert_nothing_is_held()


def test_a_refused_prefill_goes_to_another_instance_and_keeps_the_reservation() -> None:
    world = granted(P, P2, D)
    asked, other = (P, P2) if world.commands[-1].ref == P.ref else (P2, P)
    world.report(asked, Refused("r", Role.PREFILL, "queue is full"))
    assert [(to, type(c)) for to, c in world.now_sent()] == [(other.ref.id, StartPrefill)]
    assert world.told(Placed)[-1].prefill == other.ref
    world.report(other, Staged("r", handle(other.ref)))
    assert [(to, type(c)) for to, c in world.now_sent()] == [("d", StartDecode)]


def test_without_another_prefill_instance_the_reservation_is_given_back_before_the_request_waits_again() -> None:
    world = granted()
    world.report(P, Refused("r", Role.PREFILL, "queue is full"))
    assert world.now_sent() == [
        ("d", AbortTask("r", Status.RESOURCE_EXHAUSTED, "no prefill instance has room", Role.DECODE, attempt=1))
    ]
    assert world.scheduler.resources().queued == 0, "its old task lives on the decode instance"
    world.report(D, ended(Role.DECODE, Status.RESOURCE_EXHAUSTED))
    assert world.scheduler.resources().queued == 1
    assert not world.now_sent(), "prefill has still no room: no reservation is made in vain"
    world.tick(0.6)
    assert [(to, type(c)) for to, c in world.now_sent()] == [("d", ReserveDecode)]
    assert world.terminal("r") is None


def test_a_prefill_instance_lost_before_the_grant_is_replaced() -> None:
    world = driver(P, P2, D)
    world.submit("r")
    world.send(WorkerLost(P.worker, "killed"))  # away counts as gone
    world.report(D, Granted("r", 0))
    assert [(to, type(c)) for to, c in world.now_sent()] == [("p2", StartPrefill)]


def test_a_failed_task_aborts_its_sibling_and_fails_the_request_with_its_status() -> None:
    world = transferring()
    world.report(D, ended(Role.DECODE, Status.RESOURCE_EXHAUSTED, "no memory"))
    assert world.terminal("r") == Failed("r", Status.RESOURCE_EXHAUSTED, "instance d: no memory")
    assert world.now_sent() == [
        ("p", AbortTask("r", Status.RESOURCE_EXHAUSTED, "instance d: no memory", Role.PREFILL, attempt=1))
    ]
    assert not world.scheduler.idle
    world.report(P, DONE)  # crossed the abort
    world.report(P, ended(Role.PREFILL, Status.RESOURCE_EXHAUSTED))
    world.assert_nothing_is_held()


def test_prefill_may_fail_or_die_once_decode_has_everything() -> None:
    for end in ("expired", "killed"):
        world = decoding()
        if end == "expired":
            world.report(P, ended(Role.PREFILL, Status.UNAVAILABLE, "lease expired"))
        else:
            world.send(WorkerLeft(P.worker, end))
        assert world.terminal("r") is None and not world.told(Interrupted)
        world.report(D, ended(Role.DECODE))
        assert isinstance(world.terminal("r"), Completed)
        world.assert_nothing_is_held()


@pytest.mark.parametrize("stage", [granted, transferring, decoding])
def test_cancelling_aborts_every_task_and_tells_the_gateway_at_once(stage) -> None:
    world = stage()
    live = world.scheduler.resources().tasks
    world.send(Cancel("r", "client went away"))
    assert world.terminal("r") == Failed("r", Status.CANCELLED, "client went away")
    aborts = [(to, c.role) for to, c in world.now_sent() if isinstance(c, AbortTask)]
    assert sorted(aborts) == [("d", Role.DECODE), ("p", Role.PREFILL)] and live == 2
    world.report(D, ended(Role.DECODE, Status.CANCELLED))
    assert not world.scheduler.idle
    world.report(P, ended(Role.PREFILL, Status.CANCELLED))
    world.assert_nothing_is_held()
    world.send(Cancel("r", "again"))
    assert world.terminal("r") is not None


def test_an_abort_that_crosses_a_refusal_is_over_with_the_refusal() -> None:
    world = driver(P, D)
    world.submit("r")
    world.send(Cancel("r", ""))
    world.report(D, Refused("r", Role.DECODE, "full"))
    world.assert_nothing_is_held()


def test_cancelling_a_waiting_request_leaves_nothing() -> None:
    world = driver(P, D)
    world.submit("r", deadline=150.0)
    world.report(D, Refused("r", Role.DECODE, "full"))
    world.send(Cancel("r", ""))
    assert isinstance(world.terminal("r"), Failed)
    world.assert_nothing_is_held()


def test_a_deadline_ends_a_request_wherever_it_is() -> None:
    world = transferring()
    world.clock.advance(99.9)
    for instance in (P, D):
        world.report(instance, Granted("unknown", 0))  # a sign of life
    world.tick()
    assert world.terminal("r") is None
    world.tick(0.2)
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.status is Status.DEADLINE_EXCEEDED
    assert len([c for _, c in world.now_sent() if isinstance(c, AbortTask)]) == 2


def test_a_gateway_that_leaves_ends_its_requests_without_a_word() -> None:
    world = decoding()
    world.send(GatewayLeft("g"))
    assert world.terminal("r") is None
    assert len([c for _, c in world.now_sent() if isinstance(c, AbortTask)]) == 2
    world.report(D, ended(Role.DECODE, Status.CANCELLED))
    world.report(P, ended(Role.PREFILL, Status.CANCELLED))
    world.assert_nothing_is_held()


def test_a_report_that_cannot_follow_fails_the_request_and_is_counted() -> None:
    world = granted()
    world.report(D, STARTED)
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.status is Status.INTERNAL and "DecodeStarted" in failure.reason
    assert world.scheduler.counters["protocol_violations"] == 1
    world.report(P, ended(Role.PREFILL, Status.INTERNAL))
    world.report(D, ended(Role.DECODE, Status.INTERNAL))
    world.assert_nothing_is_held()


def test_tasks_that_all_end_ok_too_early_are_a_failure_never_a_completion() -> None:
    world = transferring()
    world.report(P, ended(Role.PREFILL))
    world.report(D, ended(Role.DECODE))
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.status is Status.INTERNAL
    world.assert_nothing_is_held()


def test_a_reservation_that_ends_ok_by_itself_is_a_violation() -> None:
    world = granted()
    world.report(D, ended(Role.DECODE))
    assert isinstance(world.terminal("r"), Failed)
    world.report(P, ended(Role.PREFILL, Status.INTERNAL))
    world.assert_nothing_is_held()


def test_a_task_that_nobody_started_is_aborted_on_its_instance() -> None:
    world = driver(P, D)
    world.report(D, Granted("ghost", 0))
    ((to, command),) = world.now_sent()
    assert to == "d" and isinstance(command, AbortTask) and command.role is None
    assert world.scheduler.resources().unclaimed == 1
    world.report(D, DecodeStarted("ghost"))
    world.report(D, TaskEnded("ghost", Role.DECODE, Status.UNAVAILABLE))
    assert not world.now_sent(), "once is enough"
    assert world.scheduler.counters["orphan_reports"] == 1
    world.assert_nothing_is_held()
