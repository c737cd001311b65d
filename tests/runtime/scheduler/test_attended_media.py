"""Media that all tokens attend to: the decode instance wants them as well, and has encode tasks of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.runtime.scheduler.media_world import (
    CAT,
    DONE,
    E2,
    EPD,
    PD,
    E,
    P,
    aborts,
    ended,
    leave,
    live_on,
    started,
)
from tests.runtime.scheduler.world import Driver, audio, driver, handle, info, request
from triptych.runtime.core.control import (
    Completed,
    DrainRequested,
    Failed,
    GatewayJoined,
    Interrupted,
    MediaNeeded,
    Progress,
    Submit,
    WorkerJoined,
    WorkerLost,
)
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceInfo, Role
from triptych.runtime.core.media import MediaItem
from triptych.runtime.core.tasks import (
    AbortTask,
    DecodeStarted,
    EncodeDone,
    EncodeStaged,
    FeedMedia,
    Granted,
    HeldTask,
    MediaWanted,
    Refused,
    ReserveDecode,
    Staged,
    StartEncode,
    StartLocal,
    StartPrefill,
    TaskEnded,
)
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.media_reach import MediaReach
from triptych.runtime.scheduler.scheduler import Scheduler

D = info("d", "d", media_pages=9)
TEXT_D = info("a-d", "d")  # first in every order, but without room for media
SPEECH = audio("speech")


def for_decode(world: Driver) -> list[tuple[str, bool]]:
    """What the last event started: (instance, whether the decode task pulls)."""
    return [(to, command.for_decode) for to, command in world.now_sent() if isinstance(command, StartEncode)]


def granted(*encoders: InstanceInfo, media: tuple[MediaItem, ...] = (SPEECH,), **options) -> Driver:
    """The decode instance has a reservation and wants its media; the prompt is not accepted yet."""
    world = driver(P, D, *encoders, **options)
    world.submit("r", media=media)
    world.report(D, Granted("r", 0))
    world.report(D, MediaWanted("r", (0,)))
    return world


def both(*encoders: InstanceInfo, **options) -> Driver:
    """Both want the same recording."""
    world = granted(*encoders, **options)
    world.report(P, Staged("r", handle(P.ref)))
    world.report(P, MediaWanted("r", (0,)))
    return world


def stage(world: Driver, one: InstanceInfo, decode: bool, key: int = 7, lacking: tuple[int, ...] = ()) -> None:
    world.report(one, EncodeStaged("r", handle(one.ref, key), lacking, for_decode=decode))


def over(decode: bool, status: Status = Status.OK, reason: str = "") -> TaskEnded:
    return TaskEnded("r", Role.ENCODE, status, reason, for_decode=decode)


def test_each_puller_is_fed_by_a_task_of_its_own_on_the_instance_that_has_it() -> None:
    world = granted(E, E2)
    assert for_decode(world) == [("e1", True)]
    world.report(P, Staged("r", handle(P.ref)))
    world.report(P, MediaWanted("r", (0,)))
    assert for_decode(world) == [("e1", False)], "though it is the busier one: it is encoded once"
    stage(world, E, decode=True, key=3, lacking=(0,))
    assert world.now_sent() == [("d", FeedMedia("r", handle(E.ref, 3), (0,)))]
    assert world.told(MediaNeeded) == [MediaNeeded("r", E.ref, "e1:1", (0,))]
    stage(world, E, decode=False, key=4)
    assert world.now_sent() == [("p", FeedMedia("r", handle(E.ref, 4), (0,)))]
    world.report(E, EncodeDone("r", 1, for_decode=True))
    world.report(E, EncodeDone("r", 0))
    assert [(one.role, one.encoded) for one in world.told(Progress)] == [(Role.ENCODE, 1), (Role.ENCODE, 0)]
    world.report(E, over(True))
    world.report(E, over(False))
    world.report(P, DONE)
    world.report(D, DecodeStarted("r"))
    world.report(P, ended(Role.PREFILL))
    world.report(D, ended(Role.DECODE))
    assert isinstance(world.terminal("r"), Completed) and not world.sent(AbortTask)
    world.assert_nothing_is_held()


def test_each_task_ends_when_its_own_puller_needs_nothing_more() -> None:
    world = both(E)
    stage(world, E, decode=True)
    stage(world, E, decode=False, key=8)
    world.report(P, DONE)
    assert [(c.role, c.for_decode) for c in world.sent(AbortTask)] == [(Role.ENCODE, False)]
    world.report(D, DecodeStarted("r"))
    assert [(c.role, c.for_decode) for c in world.sent(AbortTask)] == [(Role.ENCODE, False), (Role.ENCODE, True)]
    world.report(E, over(False))
    world.report(D, ended(Role.DECODE))
    world.report(P, ended(Role.PREFILL))
    assert world.terminal("r") is None
    world.report(E, over(True))
    assert isinstance(world.terminal("r"), Completed)
    world.assert_nothing_is_held()


def test_one_puller_may_want_again_while_the_other_does_not() -> None:
    world = both(E, E2)
    stage(world, E, decode=True)
    stage(world, E, decode=False, key=8)
    world.report(D, MediaWanted("r", (0,)))
    assert [(to, c.for_decode) for to, c in world.now_sent() if isinstance(c, AbortTask)] == [("e1", True)]
    assert for_decode(world) == [("e2", True)], "its pull from there failed"
    world.report(E, over(True))
    stage(world, E2, decode=True, key=9)
    assert world.now_sent() == [("d", FeedMedia("r", handle(E2.ref, 9), (0,)))]


def test_what_is_lost_before_it_was_staged_is_given_elsewhere_for_both() -> None:
    world = both(E, E2)
    leave(world, E)
    assert for_decode(world) == [("e2", True), ("e2", False)] or for_decode(world) == [("e2", False), ("e2", True)]
    assert not world.told(Interrupted)


def test_a_refused_task_concerns_its_puller_only() -> None:
    world = both(E)
    world.report(E, Refused("r", Role.ENCODE, "queue is full", for_decode=True))
    assert world.scheduler.resources().wanting == 1
    stage(world, E, decode=False)
    world.tick(0.6)
    assert for_decode(world) == [("e1", True)]


def test_the_loss_of_the_decode_instance_ends_what_was_encoded_for_both() -> None:
    world = both(E)
    leave(world, D)
    assert world.told(Interrupted)
    assert sorted((c.role, c.for_decode) for c in world.sent(AbortTask, "e1")) == [
        (Role.ENCODE, False),
        (Role.ENCODE, True),
    ]
    world.report(P, ended(Role.PREFILL, Status.UNAVAILABLE))
    world.report(E, over(True))
    world.report(E, over(False))
    assert world.scheduler.resources().tasks == 0


def test_a_reservation_that_is_given_back_takes_its_encode_task_with_it_and_its_tries() -> None:
    world = granted(E, config=SchedulerConfig(max_encodes=2))
    for _ in range(4):  # more often than one item may be tried in vain
        world.report(P, Refused("r", Role.PREFILL, "queue is full"))
        assert set(aborts(world)) == {("d", Role.DECODE, Status.RESOURCE_EXHAUSTED), ("e1", Role.ENCODE, Status.OK)}
        world.report(D, MediaWanted("r", (0,)))
        assert not started(world)
        world.report(D, ended(Role.DECODE, Status.RESOURCE_EXHAUSTED))
        world.report(E, over(True))
        live_on(world, 0.6)
        world.report(D, Granted("r", 0))
        world.report(D, MediaWanted("r", (0,)))
        assert started(world) == [("e1", (0,))]
    assert world.terminal("r") is None


def test_a_request_that_ends_with_its_first_token_needs_no_media_for_decoding() -> None:
    world = both(E)
    stage(world, E, decode=False)
    world.report(P, replace(DONE, finished=True))
    ends = {(c.role, c.for_decode) for c in world.sent(AbortTask)}
    assert ends == {(Role.DECODE, None), (Role.ENCODE, True), (Role.ENCODE, False)}
    for one, report in ((E, over(True)), (E, over(False)), (D, ended(Role.DECODE)), (P, ended(Role.PREFILL))):
        world.report(one, report)
    assert isinstance(world.terminal("r"), Completed)
    world.assert_nothing_is_held()


def test_a_decode_instance_that_wants_what_has_a_place_breaks_the_protocol() -> None:
    world = driver(P, D, E)
    world.submit("r", media=(SPEECH, CAT))
    world.report(D, Granted("r", 0))
    world.report(D, MediaWanted("r", (1,)))
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.status is Status.INTERNAL


def test_no_encode_instance_in_time_fails_the_request_whoever_wanted() -> None:
    world = granted(E)
    leave(world, E)
    live_on(world, 30.2)
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.status is Status.UNAVAILABLE


# ---- streams break


@pytest.mark.parametrize("running", [False, True])
def test_a_decode_task_that_may_have_missed_something_about_its_media_begins_again(running: bool) -> None:
    world = both(E)
    stage(world, E, decode=True)
    world.send(WorkerLost(D.worker, "cut"))
    held = HeldTask(D.ref, "r", 1, Role.DECODE, "g", running)
    world.send(WorkerJoined(D.worker, (D,), (held,)))
    assert bool(world.told(Interrupted)) is not running
    if running:
        assert aborts(world) == [("e1", Role.ENCODE, Status.OK)], "it has all that it needs"


def test_an_encode_worker_that_comes_back_with_one_of_two_tasks_has_lost_the_other() -> None:
    world = both(E)
    stage(world, E, decode=True)
    world.send(WorkerLost(E.worker, "cut"))
    world.send(WorkerJoined(E.worker, (E,), (HeldTask(E.ref, "r", 1, Role.ENCODE, "g", False, for_decode=True),)))
    assert for_decode(world) == [("e1", False)] and not world.sent(AbortTask)


def test_after_a_restart_both_encode_tasks_are_aborted_one_by_one() -> None:
    world = Driver(Scheduler())
    world.send(GatewayJoined("g"))
    world.declare("r", media=(SPEECH,))
    tasks = tuple(HeldTask(E.ref, "r", 1, Role.ENCODE, "g", False, decode) for decode in (False, True))
    world.send(WorkerJoined(E.worker, (E,), tasks))
    assert sorted(c.for_decode or False for c in world.sent(AbortTask, "e1")) == [False, True]
    world.report(E, over(True, Status.UNAVAILABLE))
    assert world.scheduler.resources().unclaimed == 1
    world.report(E, over(False, Status.UNAVAILABLE))
    assert world.scheduler.resources().unclaimed == 0
    world.send(WorkerJoined(D.worker, (D,), (HeldTask(D.ref, "r", 1, Role.DECODE, "g", True),)))
    world.report(D, ended(Role.DECODE))
    assert isinstance(world.terminal("r"), Completed)


def test_a_drained_encode_instance_gives_up_what_it_has_for_both() -> None:
    world = both(E, E2, config=SchedulerConfig(drain_grace=5.0))
    world.send(DrainRequested("t", "e1", None))
    live_on(world, 5.1)
    assert {c.for_decode for c in world.sent(AbortTask, "e1")} == {False, True}
    assert {c.for_decode for c in world.sent(StartEncode, "e2")} == {False, True}


# ---- placement


def test_decoding_goes_to_instances_with_room_for_what_is_attended_to_and_images_go_anywhere() -> None:
    world = driver(P, TEXT_D, D, E)
    world.submit("r", media=(SPEECH,))
    world.submit("s", media=(CAT,))
    assert [(c.ref.id, c.command.request.id) for c in world.commands if isinstance(c.command, ReserveDecode)] == [
        ("d", "r"),
        ("a-d", "s"),
    ]


def test_room_for_images_is_not_asked_of_decode_instances() -> None:
    small = info("small", "d", media_pages=1)
    world = driver(P, small, E)
    world.submit("r", media=(SPEECH, CAT))
    assert [to for to, _ in world.now_sent()] == ["small"]
    world.submit("s", media=(SPEECH, audio("more")))
    failure = world.terminal("s")
    assert isinstance(failure, Failed) and failure.status is Status.INVALID_ARGUMENT
    assert failure.reason == "the media need 2 pages of embeddings; an instance that decodes here holds at most 1"


def test_without_a_decode_instance_that_takes_media_they_are_refused() -> None:
    world = driver(P, TEXT_D, E)
    world.submit("r", media=(SPEECH,))
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.reason == "the instances that decode here take no media"
    world.submit("s", media=(CAT,))
    assert world.terminal("s") is None


def test_two_instances_that_do_both_never_share_a_request_that_attends_to_media() -> None:
    """Each could wait for room that a reservation holds whose prompt waits for room on the other."""
    other = info("pd2", "pd", media_pages=9)
    world = driver(PD, other, E)
    for index in range(8):
        world.submit(f"r{index}", media=(SPEECH,))
    assert world.sent(StartLocal) and not world.sent(ReserveDecode)
    decoding = driver(PD, D, E)
    for index in range(8):
        decoding.submit(f"r{index}", media=(SPEECH,))
        if any(isinstance(command, ReserveDecode) for _, command in decoding.now_sent()):
            decoding.report(D, Granted(f"r{index}", 0))
    assert decoding.sent(StartPrefill, "pd"), "it may compute the prompts of one that only decodes"


def test_an_instance_of_all_roles_holds_everything_itself() -> None:
    world = driver(EPD)
    world.submit("r", media=(SPEECH, CAT))
    assert [type(command) for _, command in world.now_sent()] == [StartLocal]


@pytest.mark.parametrize("offset", [1, 4])
def test_what_is_attended_to_has_no_place_in_the_prompt(offset: int) -> None:
    world = driver(P, D, E)
    made = request("r", prompt=9, media=(SPEECH,))
    world.send(Submit(replace(made, media=(replace(SPEECH, offset=offset),))))
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.status is Status.INVALID_ARGUMENT
    world.send(Submit(replace(made, id="s", media=(CAT, SPEECH))))
    failure = world.terminal("s")
    assert isinstance(failure, Failed) and failure.reason.startswith("media[1]")


def test_reach_counts_decode_instances_that_take_media() -> None:
    reach = MediaReach()
    for one in (P, info("long", "d", max_model_len=128), E):
        reach.change(one, 1)
    assert reach.can_serve(64, (CAT,)) and not reach.can_serve(8, (SPEECH,))
    reach.change(info("short", "d", max_model_len=32, media_pages=9), 1)
    assert reach.can_serve(32, (SPEECH,)) and not reach.can_serve(33, (SPEECH,)) and reach.can_serve(64, (CAT,))
    assert reach.shortage(33, (SPEECH,)).endswith("(the longest sequence served is 32 tokens)")
