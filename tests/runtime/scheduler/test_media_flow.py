"""A request's media through their encode tasks: who is asked, who is fed, and that nothing is left."""

from __future__ import annotations

import pytest

from tests.runtime.scheduler.media_world import (
    CAT,
    DOG,
    DONE,
    E2,
    E3,
    EPD,
    PD,
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
from tests.runtime.scheduler.world import driver, handle, image, info
from triptych.runtime.core.control import Cancel, Completed, Failed, Interrupted, MediaNeeded, Progress
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import Role, TransportKind
from triptych.runtime.core.request import PromptReport
from triptych.runtime.core.tasks import (
    AbortTask,
    Accepted,
    DecodeStarted,
    EncodeDone,
    EncodeStaged,
    FeedMedia,
    MediaWanted,
    PrefillDone,
    Refused,
    StageTimes,
    StartEncode,
)
from triptych.runtime.scheduler.config import SchedulerConfig


def test_media_are_driven_in_the_order_of_the_protocol() -> None:
    world = prefilling(E)
    assert want(world, 0) == [("e1", (0,))]
    (command,) = world.sent(StartEncode)
    config = world.scheduler.config
    assert (command.request.media, command.ttl, command.lease) == (
        (CAT,),
        config.pixel_ttl,
        config.lease_seconds,
    )
    staged(world, E, lacking=(0,))
    assert world.now_sent() == [("p", FeedMedia("r", handle(E.ref), (0,)))]
    assert world.told(MediaNeeded) == [MediaNeeded("r", E.ref, "e1:1", (0,))]
    world.report(E, EncodeDone("r", 1, StageTimes(compute=0.5)))
    assert world.told(Progress) == [Progress("r", Role.ENCODE, StageTimes(compute=0.5), encoded=1)]
    world.report(E, ended(Role.ENCODE))
    assert not world.now_sent() and world.terminal("r") is None
    world.report(P, DONE)
    world.report(D, DecodeStarted("r"))
    world.report(P, ended(Role.PREFILL))
    world.report(D, ended(Role.DECODE))
    assert isinstance(world.terminal("r"), Completed) and not world.sent(AbortTask)
    world.assert_nothing_is_held()


def test_a_prompt_that_wants_nothing_has_nothing_encoded() -> None:
    world = prefilling(E)
    world.report(P, DONE)
    assert not world.sent(StartEncode)


def test_pixels_that_the_instance_has_are_not_asked_for() -> None:
    world = prefilling(E)
    want(world, 0)
    staged(world, E)
    assert not world.told(MediaNeeded) and world.sent(FeedMedia)


def test_an_instance_that_encodes_encodes_for_its_own_prompts() -> None:
    world = local(E)
    assert want(world, 0, on=EPD) == [("epd", (0,))]
    staged(world, EPD)
    assert world.now_sent() == [("epd", FeedMedia("r", handle(EPD.ref), (0,)))]
    world.report(EPD, EncodeDone("r", 1))
    world.report(EPD, DONE)
    assert aborts(world) == [("epd", Role.ENCODE, Status.OK)]
    world.report(EPD, ended(Role.ENCODE))
    assert world.terminal("r") is None, "the local task is another one"
    world.report(EPD, ended(Role.DECODE))
    assert isinstance(world.terminal("r"), Completed)
    world.assert_nothing_is_held()


def test_a_local_task_may_want_its_media_again_after_its_prompt() -> None:
    """A sample was preempted, and its prompt is computed again."""
    world = local(E, on=PD)
    want(world, 0, on=PD)
    staged(world, E)
    world.report(PD, DONE)
    assert want(world, 0, on=PD) == [], "one task an instance, and this one has not ended"
    world.report(E, ended(Role.ENCODE))
    assert started(world) == [("e1", (0,))]
    staged(world, E)
    world.report(PD, ended(Role.DECODE))
    assert world.terminal("r") is None and aborts(world) == [("e1", Role.ENCODE, Status.OK)]
    world.report(E, ended(Role.ENCODE))
    assert isinstance(world.terminal("r"), Completed)
    world.assert_nothing_is_held()


# ---- who is asked


def test_items_of_one_request_fan_out_by_patches() -> None:
    sizes = (90, 30, 30, 30, 10, 80)
    world = prefilling(E, E2, E3, media=tuple(image(f"h{i}", patches=size) for i, size in enumerate(sizes)))
    assert want(world, 0, 1, 2, 3, 4, 5) == [("e1", (0,)), ("e2", (1, 3)), ("e3", (2, 4, 5))]


def test_many_requests_spread_evenly() -> None:
    world = driver(P, D, E, E2, E3)
    patches = {one.ref.id: 0 for one in (E, E2, E3)}
    for i in range(60):
        size = 1 + 5 * i % 7
        start(world, f"r{i}", (image(f"h{i}", patches=size),))
        ((to, _),) = want(world, 0, name=f"r{i}")
        patches[to] += size
    assert max(patches.values()) - min(patches.values()) <= 7


def test_encoded_patches_weigh_no_more() -> None:
    world = prefilling(E, E2, media=(image("a", patches=50), image("b", patches=20), image("c", patches=10)))
    assert want(world, 0, 1) == [("e1", (0,)), ("e2", (1,))]
    staged(world, E)
    world.report(E, EncodeDone("r", 1))
    start(world, "s", (image("d", patches=1),))
    assert want(world, 0, name="s") == [("e1", (0,))]


def test_larger_encoders_get_more() -> None:
    large = info("e0", "e", media_pages=32, max_patches=300)
    world = prefilling(E, large, media=tuple(image(f"h{i}", patches=10) for i in range(8)))
    assert dict(want(world, *range(8))) == {"e0": (0, 2, 3, 4, 6, 7), "e1": (1, 5)}


def test_a_known_hash_goes_where_it_was_encoded() -> None:
    world = prefilling(E, E2, media=(CAT, DOG))
    assert want(world, 0, 1) == [("e1", (0,)), ("e2", (1,))]
    start(world, "s", (image("x", patches=90), DOG))
    assert dict(want(world, 0, 1, name="s")) == {"e1": (0,), "e2": (1,)}
    start(world, "t", (CAT,))
    assert want(world, 0, name="t") == [("e1", (0,))], "though it is the busier one, it need not encode it again"
    assert world.scheduler.counters["items_known"] == 2


def test_a_hash_known_elsewhere_is_not_encoded_again_by_the_prompts_own_instance() -> None:
    world = local(E)
    want(world, 0, on=EPD)
    world.report(EPD, Refused("r", Role.ENCODE, "queue is full"))
    assert started(world) == [("e1", (0,))]
    world.tick(0.6)  # from now on its own encoder may be asked again
    for name, media in (("s", CAT), ("t", DOG)):
        world.submit(name, media=(media,))
        world.report(EPD, Accepted(name))
    assert want(world, 0, name="s", on=EPD) == [("e1", (0,))]
    assert want(world, 0, name="t", on=EPD) == [("epd", (0,))]


def test_the_same_image_twice_in_a_request_goes_to_one_instance() -> None:
    world = prefilling(E, E2, media=(CAT, CAT, DOG))
    assert want(world, 0, 1, 2) == [("e1", (0, 1)), ("e2", (2,))]


def test_an_instance_that_came_back_empty_is_no_longer_remembered() -> None:
    world = prefilling(E, E2, media=(CAT, DOG))
    assert want(world, 0) == [("e1", (0,))]
    staged(world, E)
    world.join(info("e1", "e", media_pages=32, max_patches=100, epoch=2))
    start(world, "s", (image("x", patches=50), CAT))
    assert want(world, 0, 1, name="s") == [("e1", (0,)), ("e2", (1,))], "by load alone"


def test_items_above_an_instances_limit_go_to_one_that_takes_them() -> None:
    large = info("e9", "e", media_pages=32, max_patches=500)
    world = prefilling(E, large, media=(image("a", patches=101), CAT))
    assert want(world, 0, 1) == [("e9", (0,)), ("e1", (1,))]


def test_an_instance_that_the_prompts_cannot_pull_from_is_not_asked() -> None:
    apart = info("e0", "e", media_pages=32, max_patches=100, transports=(TransportKind.DEVICE,))
    world = prefilling(apart, E)
    assert want(world, 0) == [("e1", (0,))]
    itself = info("epd", "epd", media_pages=9, max_patches=100, transports=())
    alone = local(on=itself)
    assert want(alone, 0, on=itself) == [("epd", (0,))], "nothing is pulled"


def test_a_task_is_never_more_than_its_instance_can_hold() -> None:
    small = info("e1", "e", media_pages=3, max_patches=100)
    world = prefilling(small, media=tuple(image(f"h{i}", patches=1, tokens=5) for i in range(3)))  # two pages each
    assert want(world, 0, 1, 2) == [("e1", (0,))]
    for done in (0, 1):
        live_on(world, 9.0)
        staged(world, small)
        assert started(world) == [], "one task an instance"
        live_on(world, 15.0)
        assert world.terminal("r") is None, "patience begins anew with what is taken"
        world.report(small, ended(Role.ENCODE))
        assert started(world) == [("e1", (done + 1,))]


# ---- wanted again


def test_what_is_wanted_again_ends_the_task_whose_pull_failed_and_goes_elsewhere() -> None:
    world = prefilling(E, E2)
    want(world, 0)
    staged(world, E)
    assert want(world, 0) == [("e2", (0,))]
    assert aborts(world) == [("e1", Role.ENCODE, Status.CANCELLED)]
    staged(world, E2, key=8)
    assert world.now_sent() == [("p", FeedMedia("r", handle(E2.ref, 8), (0,)))]


def test_with_one_encode_instance_it_is_asked_again_once_its_task_has_ended() -> None:
    world = prefilling(E)
    want(world, 0)
    staged(world, E)
    assert want(world, 0) == []
    world.report(E, ended(Role.ENCODE, Status.CANCELLED))
    assert started(world) == [("e1", (0,))]


def test_what_is_under_way_is_not_asked_for_twice() -> None:
    world = prefilling(E, E2, media=(CAT, DOG))
    assert want(world, 0) == [("e1", (0,))]
    assert want(world, 0, 1) == [("e2", (1,))]
    assert not aborts(world)


def test_a_want_that_comes_after_the_prompt_is_computed_is_old() -> None:
    world = prefilling(E)
    world.report(P, DONE)
    assert want(world, 0) == []
    early = prefilling(E)
    early.report(D, DecodeStarted("r"))  # heard before P's own reports
    assert want(early, 0) == [] and early.terminal("r") is None


def test_an_item_that_is_lost_every_time_fails_the_request_with_the_last_reason() -> None:
    world = prefilling(E, config=SchedulerConfig(max_encodes=3))
    for _ in range(3):
        world.report(P, MediaWanted("r", (0,)))
        staged(world, E)
        world.report(E, ended(Role.ENCODE, Status.UNAVAILABLE, "the pixels did not come"))
    assert world.terminal("r") is None and len(world.sent(StartEncode)) == 3
    world.report(P, MediaWanted("r", (0,)))
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.status is Status.UNAVAILABLE and failure.retry_after is not None
    assert "3 times in vain; last: instance e1: the pixels did not come" in failure.reason


# ---- refusals


def test_a_refusal_for_now_goes_to_another_instance_and_then_back_after_a_while() -> None:
    world = prefilling(E, E2)
    want(world, 0)
    world.report(E, Refused("r", Role.ENCODE, "queue is full"))
    assert started(world) == [("e2", (0,))]
    world.report(E2, Refused("r", Role.ENCODE, "queue is full"))
    assert not world.now_sent() and world.scheduler.resources().wanting == 1
    world.tick(0.1)
    assert not world.now_sent()
    world.tick(0.5)
    assert started(world) == [("e1", (0,))] and world.scheduler.resources().wanting == 0


def test_refusals_for_now_last_as_long_as_patience_and_no_longer() -> None:
    world = prefilling(E, config=SchedulerConfig(patience=3.0, max_encodes=2))
    want(world, 0)
    for _ in range(5):
        world.report(E, Refused("r", Role.ENCODE, "queue is full"))
        world.tick(0.55)
        assert world.terminal("r") is None, "the tries are not used up"
    world.report(E, Refused("r", Role.ENCODE, "queue is full"))
    world.tick(0.3)
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.status is Status.UNAVAILABLE and failure.retry_after is not None
    assert "waited 3 s in vain for its media to be encoded: instance e1: queue is full" in failure.reason


def test_room_for_encoding_is_not_room_for_prompts() -> None:
    world = local()
    want(world, 0, on=EPD)
    world.report(EPD, Refused("r", Role.ENCODE, "queue is full"))
    world.submit("s")
    assert [to for to, _ in world.now_sent()] == ["epd"], "prompts are placed there all the same"


def test_an_encode_task_that_ends_makes_room_for_what_waits() -> None:
    world = prefilling(E)
    start(world, "s", (DOG,))
    want(world, 0)
    staged(world, E)
    want(world, 0, name="s")
    world.report(E, Refused("s", Role.ENCODE, "queue is full"))
    assert not world.now_sent()
    world.report(E, ended(Role.ENCODE))
    assert started(world) == [("e1", (0,))]


def test_media_refused_for_good_everywhere_fail_the_request_with_every_reason() -> None:
    world = prefilling(E, E2)
    want(world, 0)
    world.report(E, Refused("r", Role.ENCODE, "needs 9 pages of 8", permanent=True))
    assert started(world) == [("e2", (0,))]
    world.report(E2, Refused("r", Role.ENCODE, "needs 9 pages of 7", permanent=True))
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.status is Status.INVALID_ARGUMENT
    assert "e1: needs 9 pages of 8" in failure.reason and "e2: needs 9 pages of 7" in failure.reason


# ---- no encode instance


def test_media_wait_for_an_encode_instance_as_long_as_patience_lasts() -> None:
    for comes in (True, False):
        world = prefilling(E)
        leave(world, E)
        assert want(world, 0) == [] and world.scheduler.resources().wanting == 1
        live_on(world, 29.0)
        if comes:
            world.join(E2)
            assert started(world) == [("e2", (0,))]
        else:
            live_on(world, 1.1)
            failure = world.terminal("r")
            assert isinstance(failure, Failed) and failure.status is Status.UNAVAILABLE
            assert failure.reason.endswith("no encode instance") and failure.retry_after is not None


def test_a_deadline_while_media_wait_is_unavailable_with_the_reason() -> None:
    world = driver(P, D, E)
    start(world, "r", (CAT,), deadline=101.0)
    leave(world, E)
    want(world, 0)
    world.tick(1.1)
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.status is Status.UNAVAILABLE and failure.retry_after is not None
    assert "its media waited: no encode instance" in failure.reason


# ---- ends


@pytest.mark.parametrize("stage", ["asked", "staged", "done"])
@pytest.mark.parametrize("end", ["cancelled", "computed", "first token", "interrupted", "failed"])
def test_every_end_aborts_encode_tasks_and_waits_for_them(stage: str, end: str) -> None:
    world = prefilling(E)
    want(world, 0)
    if stage != "asked":
        staged(world, E)
    if stage == "done":
        world.report(E, EncodeDone("r", 1))
    match end:
        case "cancelled":
            world.send(Cancel("r", "gone"))
        case "computed":
            world.report(P, DONE)
        case "first token":
            world.report(P, PrefillDone("r", PromptReport(4, 0), finished=True))
        case "interrupted":
            world.report(P, ended(Role.PREFILL, Status.UNAVAILABLE))
        case "failed":
            world.report(P, ended(Role.PREFILL, Status.INTERNAL))
    assert "e1" in [to for to, role, _ in aborts(world) if role is Role.ENCODE]
    world.report(D, DecodeStarted("r")) if end == "computed" else None
    world.report(D, ended(Role.DECODE))
    if end not in ("interrupted", "failed"):
        world.report(P, ended(Role.PREFILL))
    assert world.scheduler.resources().tasks == 1 and not world.told(Completed)
    world.report(E, ended(Role.ENCODE))
    assert world.scheduler.resources().tasks == 0
    if end in ("computed", "first token"):
        assert isinstance(world.terminal("r"), Completed)
    if end == "interrupted":
        assert world.told(Interrupted)
        world.send(Cancel("r", "tidy"))
    world.assert_nothing_is_held()


def test_an_answer_that_crosses_the_abort_feeds_nobody() -> None:
    world = prefilling(E)
    want(world, 0)
    world.send(Cancel("r", "gone"))
    staged(world, E, lacking=(0,))
    assert not world.sent(FeedMedia) and not world.told(MediaNeeded)


def test_a_lost_prefill_instance_ends_what_is_encoded_for_it_once_decode_has_everything() -> None:
    world = prefilling(E)
    want(world, 0)
    staged(world, E)
    world.report(D, DecodeStarted("r"))
    leave(world, P)
    assert aborts(world) == [("e1", Role.ENCODE, Status.OK)]
    world.report(D, ended(Role.DECODE))
    assert world.terminal("r") is None
    world.report(E, ended(Role.ENCODE))
    assert isinstance(world.terminal("r"), Completed)
    world.assert_nothing_is_held()


# ---- violations


@pytest.mark.parametrize(
    "report",
    [
        pytest.param((P, MediaWanted("r", (1,))), id="wants an item that there is not"),
        pytest.param((E, EncodeStaged("r", handle(E.ref), (1,))), id="lacks what it was not asked for"),
        pytest.param((E, EncodeDone("r", 1)), id="done before it was staged"),
        pytest.param((E, ended(Role.ENCODE)), id="ended well before it was staged"),
    ],
)
def test_reports_that_cannot_follow_fail_the_request(report) -> None:
    world = prefilling(E)
    want(world, 0)
    world.report(*report)
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.status is Status.INTERNAL
    assert world.scheduler.counters["protocol_violations"] == 1


def test_a_text_request_wants_no_media() -> None:
    world = driver(P, D, E)
    start(world, "r", ())
    assert want(world, 0) == []
    assert isinstance(world.terminal("r"), Failed)
