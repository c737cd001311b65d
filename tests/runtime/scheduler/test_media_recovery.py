"""Encode instances, their workers, gateways and the scheduler itself are lost at every point of a request's media: nothing is lost with them."""

from __future__ import annotations

import pytest

from tests.runtime.scheduler.media_world import (
    CAT,
    DOG,
    DONE,
    E2,
    E3,
    EPD,
    D,
    E,
    P,
    aborts,
    ended,
    leave,
    live_on,
    local,
    prefilling,
    staged,
    start,
    started,
    want,
)
from tests.runtime.scheduler.world import Driver, driver, handle, info, roles_of
from triptych.runtime.core.control import (
    Completed,
    DrainRequested,
    Failed,
    GatewayJoined,
    GatewayLost,
    InstanceReset,
    Interrupted,
    MediaNeeded,
    Retire,
    SetRoles,
    WorkerJoined,
    WorkerLost,
)
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceInfo, Role
from triptych.runtime.core.tasks import (
    AbortTask,
    DecodeStarted,
    EncodeDone,
    EncodeStaged,
    FeedMedia,
    HeldTask,
    Refused,
    StartEncode,
)
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.scheduler import Scheduler


def finish(world: Driver) -> None:
    """The prompt is computed, decoded, and everything ends well."""
    world.report(P, DONE)
    world.report(D, DecodeStarted("r"))
    world.report(P, ended(Role.PREFILL))
    world.report(D, ended(Role.DECODE))


def held(one: InstanceInfo, role: Role | None = Role.ENCODE, attempt: int = 1, running: bool = False) -> HeldTask:
    return HeldTask(one.ref, "r", attempt, role, "g", running)


# ---- an encode instance is lost


def test_an_encode_instance_lost_before_it_answered_is_replaced_at_once() -> None:
    world = prefilling(E, E2, media=(CAT, DOG))
    assert want(world, 0, 1) == [("e1", (0,)), ("e2", (1,))]
    leave(world, E)
    assert started(world) == [], "the other one has a task of this request"
    staged(world, E2)
    assert world.sent(FeedMedia)[-1].items == (1,)
    world.report(E2, ended(Role.ENCODE))
    assert started(world) == [("e2", (0,))]
    assert not world.told(Interrupted)


def test_an_encode_instance_that_lives_but_does_not_answer_is_replaced_after_a_while() -> None:
    world = prefilling(E, E2, media=(CAT, DOG), config=SchedulerConfig(encode_answer=4.0))
    assert want(world, 0) == [("e1", (0,))]
    live_on(world, 2.0)
    assert want(world, 1) == [("e2", (1,))]
    live_on(world, 1.9)
    assert len(world.sent(StartEncode)) == 2 and not world.sent(AbortTask)
    staged(world, E2)
    world.report(E2, ended(Role.ENCODE))
    live_on(world, 0.2)
    assert [c.role for c in world.sent(AbortTask, "e1")] == [Role.ENCODE]
    assert [c.items for c in world.sent(StartEncode, "e2")] == [(1,), (0,)]
    staged(world, E2)
    world.report(E, EncodeStaged("r", handle(E.ref, 9), (0,)))  # it does so after all
    world.report(E, ended(Role.ENCODE, Status.UNAVAILABLE, "aborted"))
    live_on(world, 60.0)
    assert world.terminal("r") is None and len(world.sent(StartEncode)) == 3
    finish(world)
    world.report(E2, ended(Role.ENCODE))
    assert isinstance(world.terminal("r"), Completed) and not world.told(Interrupted)
    world.assert_nothing_is_held()


def test_with_no_other_encode_instance_one_that_does_not_answer_costs_the_patience() -> None:
    world = prefilling(E)
    want(world, 0)
    live_on(world, 29.9)
    assert world.terminal("r") is None
    live_on(world, 0.2)
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.status is Status.UNAVAILABLE
    assert failure.reason.endswith("instance e1 did not answer within 10 s")


def test_an_encode_instance_lost_later_matters_only_if_the_prompt_says_so() -> None:
    world = prefilling(E, E2)
    want(world, 0)
    staged(world, E)
    leave(world, E)
    assert not world.now_sent() and world.terminal("r") is None
    assert want(world, 0) == [("e2", (0,))], "its pull failed"
    staged(world, E2)
    finish(world)
    world.report(E2, ended(Role.ENCODE))
    assert isinstance(world.terminal("r"), Completed) and not world.told(Interrupted)
    world.assert_nothing_is_held()


def test_an_encode_instance_lost_after_its_embeddings_were_pulled_is_missed_by_nobody() -> None:
    world = prefilling(E, E2)
    want(world, 0)
    staged(world, E)
    world.report(E, EncodeDone("r", 1))
    leave(world, E)
    finish(world)
    assert isinstance(world.terminal("r"), Completed) and len(world.sent(StartEncode)) == 1
    world.assert_nothing_is_held()


def test_the_loss_of_the_last_encode_instance_lets_media_wait_for_the_next() -> None:
    world = prefilling(E)
    want(world, 0)
    leave(world, E)
    live_on(world, 20.0)
    assert world.terminal("r") is None and world.scheduler.resources().wanting == 1
    world.join(E2)
    assert started(world) == [("e2", (0,))]
    live_on(world, 5.0)
    staged(world, E2)
    live_on(world, 20.0)
    assert world.terminal("r") is None, "its patience ended with the answer"


def test_an_encode_task_that_fails_before_it_answered_is_started_elsewhere() -> None:
    world = prefilling(E, E2)
    want(world, 0)
    world.report(E, ended(Role.ENCODE, Status.UNAVAILABLE, "lost its pool"))
    assert started(world) == [("e2", (0,))]
    world.report(E2, ended(Role.ENCODE, Status.UNAVAILABLE, "lost its pool"))
    assert started(world) == [("e1", (0,))], "better one that failed than none"


def test_an_encode_task_that_fails_later_is_not_started_again_unasked() -> None:
    world = prefilling(E, E2)
    want(world, 0)
    staged(world, E)
    world.report(E, ended(Role.ENCODE, Status.UNAVAILABLE, "the pixels did not come"))
    assert not world.now_sent() and world.terminal("r") is None
    start(world, "s", (CAT,))
    assert want(world, 0, name="s") == [("e1", (0,))], "by load: that it has it is not believed any more"
    assert world.scheduler.counters["items_known"] == 0


def test_a_lost_worker_takes_prompt_and_encode_tasks_with_it() -> None:
    world = local()
    want(world, 0, on=EPD)
    staged(world, EPD)
    leave(world, EPD)
    assert world.told(Interrupted) and not world.now_sent()
    assert world.scheduler.resources().tasks == 0 and world.scheduler.resources().wanting == 0


def test_an_interrupted_request_wants_its_media_afresh() -> None:
    world = prefilling(E, E2, media=(CAT, DOG))
    want(world, 0, 1)
    world.report(E, Refused("r", Role.ENCODE, "never fits", permanent=True))
    world.report(P, ended(Role.PREFILL, Status.UNAVAILABLE))
    world.report(D, ended(Role.DECODE))
    world.resume("r", 2, media=(CAT, DOG))
    assert world.scheduler.resources().tasks == 1, "one encode task of the first attempt"
    world.report(E2, ended(Role.ENCODE, Status.UNAVAILABLE))
    (again,) = [c for _, c in world.now_sent()]
    assert again.request.attempt == 2 and again.request.media[1].hash == "dog"  # type: ignore[union-attr]


# ---- streams break


@pytest.mark.parametrize("stage", ["asked", "staged", "done", "aborting"])
def test_an_encode_worker_that_comes_back_goes_on_with_what_was_heard(stage: str) -> None:
    world = prefilling(E, E2)
    want(world, 0)
    if stage != "asked":
        staged(world, E)
    if stage == "done":
        world.report(E, EncodeDone("r", 1))
    if stage == "aborting":
        world.report(P, DONE)
    world.send(WorkerLost(E.worker, "cut"))
    world.send(WorkerJoined(E.worker, (E,), (held(E),)))
    assert not world.told(Interrupted)
    match stage:
        case "asked":
            assert aborts(world) == [("e1", Role.ENCODE, Status.UNAVAILABLE)], "where it staged what was not heard"
            assert started(world) == [("e2", (0,))]
        case "aborting":
            assert aborts(world) == [("e1", Role.ENCODE, Status.CANCELLED)], "once more"
        case _:
            assert not world.now_sent()
    world.report(E, ended(Role.ENCODE))
    assert world.scheduler.counters["orphan_reports"] == 0


@pytest.mark.parametrize("answered", [False, True])
def test_an_encode_worker_that_comes_back_without_its_task_has_lost_it(answered: bool) -> None:
    world = prefilling(E, E2)
    want(world, 0)
    if answered:
        staged(world, E)
    world.send(WorkerLost(E.worker, "cut"))
    world.send(WorkerJoined(E.worker, (E,)))
    assert started(world) == ([] if answered else [("e2", (0,))])


def test_a_broken_encode_worker_is_given_nothing() -> None:
    world = prefilling(E, E2)
    world.send(WorkerLost(E.worker, "cut"))
    assert want(world, 0) == [("e2", (0,))]


def test_a_prompt_that_may_have_missed_something_about_its_media_begins_again() -> None:
    world = prefilling(E)
    world.send(WorkerLost(P.worker, "cut"))
    world.send(WorkerJoined(P.worker, (P,), (held(P, Role.PREFILL),)))
    assert world.told(Interrupted), "what it wanted may be lost"
    computed = prefilling(E)
    computed.report(P, DONE)
    computed.send(WorkerLost(P.worker, "cut"))
    computed.send(WorkerJoined(P.worker, (P,), (held(P, Role.PREFILL),)))
    assert not computed.told(Interrupted)


@pytest.mark.parametrize("running", [False, True])
def test_a_local_task_with_media_goes_on_after_a_broken_stream_only_if_it_waits_for_none(running: bool) -> None:
    world = local(E)
    world.send(WorkerLost(EPD.worker, "cut"))
    world.send(WorkerJoined(EPD.worker, (EPD,), (held(EPD, None, running=running),)))
    assert bool(world.told(Interrupted)) is not running


def test_a_gateway_that_comes_back_hears_again_what_pixels_are_needed() -> None:
    world = prefilling(E)
    want(world, 0)
    staged(world, E, lacking=(0,))
    world.send(GatewayLost("g"))
    world.send(GatewayJoined("g"))
    world.declare("r", media=(CAT,))
    assert world.told(MediaNeeded) == 2 * [MediaNeeded("r", E.ref, "e1:1", (0,))]
    world.report(E, EncodeDone("r", 1))
    world.send(GatewayLost("g"))
    world.send(GatewayJoined("g"))
    world.declare("r", media=(CAT,))
    assert len(world.told(MediaNeeded)) == 2


# ---- the scheduler was restarted


def restarted(*infos: InstanceInfo) -> Driver:
    made = Driver(Scheduler())
    made.send(GatewayJoined("g"))
    return made


@pytest.mark.parametrize("declared_first", [False, True])
def test_encode_tasks_of_an_adopted_request_are_aborted(declared_first: bool) -> None:
    world = restarted()
    if declared_first:
        world.declare("r", media=(CAT,))
    world.send(WorkerJoined(E.worker, (E,), (held(E),)))
    world.send(WorkerJoined(D.worker, (D,), (held(D, Role.DECODE, running=True),)))
    if not declared_first:
        world.declare("r", media=(CAT,))
    assert [c.role for c in world.sent(AbortTask, "e1")] == [Role.ENCODE] and not world.sent(AbortTask, "d")
    world.report(E, EncodeDone("r", 1))
    world.report(E, ended(Role.ENCODE, Status.UNAVAILABLE))
    world.report(D, ended(Role.DECODE))
    assert isinstance(world.terminal("r"), Completed)
    world.assert_nothing_is_held()


def test_encode_tasks_that_nobody_declares_are_aborted_in_the_end() -> None:
    world = restarted()
    world.send(WorkerJoined(E.worker, (E,), (held(E),)))
    assert world.scheduler.resources().unclaimed == 1
    world.tick(3.1)
    assert [c.role for c in world.sent(AbortTask, "e1")] == [Role.ENCODE]
    world.report(E, ended(Role.ENCODE, Status.UNAVAILABLE))
    world.assert_nothing_is_held()


def test_of_a_refused_local_task_and_a_refused_encode_task_each_end_is_heard() -> None:
    world = restarted()
    world.send(WorkerJoined(EPD.worker, (EPD,), (held(EPD, None), held(EPD))))
    world.tick(3.1)
    assert world.scheduler.resources().unclaimed == 2
    world.report(EPD, ended(Role.ENCODE, Status.UNAVAILABLE))
    assert world.scheduler.resources().unclaimed == 1, "the local task has not ended"
    world.report(EPD, ended(Role.DECODE, Status.UNAVAILABLE))
    world.assert_nothing_is_held()


def test_a_local_task_that_waits_for_media_is_not_adopted() -> None:
    world = restarted()
    world.declare("r", media=(CAT,))
    world.send(WorkerJoined(EPD.worker, (EPD,), (held(EPD, None, running=False),)))
    assert world.sent(AbortTask, "epd")
    world.report(EPD, ended(Role.DECODE, Status.UNAVAILABLE))
    live_on(world, 3.1)
    assert world.told(Interrupted)


def test_an_encode_task_that_nobody_started_is_aborted_alone() -> None:
    world = local()
    world.report(EPD, EncodeStaged("r", handle(EPD.ref)))
    assert aborts(world) == [("epd", Role.ENCODE, Status.UNAVAILABLE)], "not the local task beside it"
    world.report(EPD, ended(Role.ENCODE, Status.UNAVAILABLE))
    assert world.scheduler.resources().unclaimed == 0


# ---- drains and roles


def test_a_draining_encode_instance_gets_nothing_new_and_leaves_when_it_is_empty() -> None:
    world = prefilling(E, E2, media=(CAT, DOG))
    assert want(world, 0) == [("e1", (0,))]
    staged(world, E)
    world.send(DrainRequested("t", "e1", None))
    assert want(world, 1) == [("e2", (1,))] and not world.orders
    world.report(E, ended(Role.ENCODE))
    assert [type(order.command) for order in world.orders] == [Retire]


def test_what_a_draining_instance_does_not_finish_in_time_goes_elsewhere() -> None:
    world = prefilling(E, E2, config=SchedulerConfig(drain_grace=5.0))
    want(world, 0)
    world.send(DrainRequested("t", "e1", None))
    live_on(world, 5.1)
    assert [c.role for c in world.sent(AbortTask, "e1")] == [Role.ENCODE] and world.sent(StartEncode, "e2")
    assert world.terminal("r") is None and not world.told(Interrupted)
    world.report(E, ended(Role.ENCODE, Status.UNAVAILABLE))
    assert [type(order.command) for order in world.orders] == [Retire]


def test_the_last_encode_instance_leaves_only_by_force() -> None:
    world = driver(P, D, E)
    world.send(DrainRequested("t", "e1", None))
    assert "last one for encode" in world.drained[-1].reason


def test_an_instance_that_takes_on_the_role_encodes_from_then_on() -> None:
    able = info("p2", "p", media_pages=9, max_patches=100, switchable="epd")
    world = driver(P, D, able)
    world.send(DrainRequested("t", "p2", roles_of("ep")))
    assert world.orders[-1].command == SetRoles(able.ref, roles_of("ep"))
    start(world, "r", (CAT,), deadline=130.0)
    assert want(world, 0) == [], "nobody encodes yet"
    world.send(InstanceReset(able.worker, able.ref, info("p2", "ep", media_pages=9, max_patches=100, epoch=2), ""))
    assert not isinstance(world.terminal("r"), Failed)


def test_roles_of_encode_instances_are_shown() -> None:
    world = driver(P, D, E, E3)
    shown = {one.info.ref.id: one.info.roles for one in world.scheduler.snapshot(world.clock.now()).instances}
    assert shown["e1"] == roles_of("e")
