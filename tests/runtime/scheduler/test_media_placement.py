"""Which instances a request with media may run on, and what is said when there are none."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.runtime.scheduler.media_world import CAT, DOG, EPD, PD, D, E, P, leave, live_on, start
from tests.runtime.scheduler.world import driver, image, info, request
from triptych.runtime.core.control import DrainRequested, Failed, Submit
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceInfo, Role, TransportKind
from triptych.runtime.core.tasks import Granted, Refused, ReserveDecode, StartLocal, StartPrefill
from triptych.runtime.scheduler.media_reach import MediaReach, without_prompts
from triptych.runtime.scheduler.placement import servable_length
from triptych.runtime.scheduler.policies.router import RoundRobin

TEXT_P, TEXT_PD = info("a-p", "p"), info("a-pd", "pd")  # first in every order, but without room for media
SMALL_P = info("a-small", "p", media_pages=1)  # of four embeddings


@pytest.mark.parametrize("router", [None, RoundRobin()])
def test_prompts_with_media_go_to_instances_that_take_media_and_text_goes_anywhere(router) -> None:
    world = driver(TEXT_P, P, D, E, router=router)
    for i in range(4):
        start(world, f"m{i}", (CAT,))
    assert len(world.sent(StartPrefill, "p")) == 4
    world.submit("text")
    world.report(D, Granted("text", 0))
    assert len(world.sent(StartPrefill)) == 5


@pytest.mark.parametrize("router", [None, RoundRobin()])
def test_a_local_prompt_with_media_needs_an_instance_that_takes_media(router) -> None:
    world = driver(TEXT_PD, PD, E, router=router)
    for i in range(4):
        world.submit(f"m{i}", media=(CAT,))
    assert world.sent(StartLocal, "pd")
    assert not world.sent(StartLocal, "a-pd") and not world.sent(StartPrefill, "a-pd")


def test_an_instance_that_takes_no_media_may_decode_what_another_prefills() -> None:
    world = driver(TEXT_PD, P, E)
    world.submit("r", media=(CAT,))
    assert [(to, type(c)) for to, c in world.now_sent()] == [("a-pd", ReserveDecode)]
    world.report(TEXT_PD, Granted("r", 0))
    assert [to for to, _ in world.now_sent()] == ["p"]


def test_an_instance_must_hold_all_of_a_prompts_media_at_once_each_image_once() -> None:
    world = driver(SMALL_P, P, D, E)
    start(world, "same", 3 * (CAT,))
    start(world, "two", (CAT, DOG))
    assert [c.request.id for c in world.sent(StartPrefill, "a-small")] == ["same"]
    assert [c.request.id for c in world.sent(StartPrefill, "p")] == ["two"]


def test_a_prefill_instance_that_refuses_is_replaced_by_one_that_takes_media() -> None:
    other = info("p2", "p", media_pages=9)
    world = driver(TEXT_P, P, other, D, E)
    world.submit("r", media=(CAT,))
    world.report(D, Granted("r", 0))
    asked = world.commands[-1].ref
    world.report(P if asked == P.ref else other, Refused("r", Role.PREFILL, "queue is full"))
    ((to, _),) = world.now_sent()
    assert {asked.id, to} == {"p", "p2"}


def test_media_refused_for_good_by_every_instance_that_takes_them_fail() -> None:
    world = driver(TEXT_PD, PD, E)
    world.submit("r", media=(CAT,))
    world.report(PD, Refused("r", Role.PREFILL, "never fits", permanent=True))
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.status is Status.INVALID_ARGUMENT


# ---- admission


def test_media_that_no_instance_takes_are_refused_at_once() -> None:
    world = driver(TEXT_P, D)
    world.submit("r", media=(CAT,))
    failure = world.terminal("r")
    assert failure == Failed(
        "r", Status.INVALID_ARGUMENT, "the instances that compute prompts here take no media", None
    )


@pytest.mark.parametrize("media", [(image("large", tokens=5),), (CAT, DOG)])
def test_media_that_no_instance_has_room_for_are_refused_at_once(media) -> None:
    world = driver(SMALL_P, D, E)
    world.submit("r", media=media)
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.status is Status.INVALID_ARGUMENT
    assert failure.reason == (
        "the media need 2 pages of embeddings; an instance that computes prompts here holds at most 1"
    )
    world.submit("s", media=(image("fits", tokens=4),))
    assert world.terminal("s") is None


@pytest.mark.parametrize(
    ("offsets", "index"),
    [((0, 3), 1), ((4, 0), 1), ((0, 5), 1), ((9, 13), 0)],
    ids=["overlap", "order", "end", "beyond"],
)
def test_media_that_do_not_lie_in_the_prompt_in_order_are_refused(offsets: tuple[int, int], index: int) -> None:
    world = driver(P, D, E)
    made = request("r", media=(CAT, DOG))
    moved = tuple(replace(item, offset=offset) for item, offset in zip(made.media, offsets, strict=True))
    world.send(Submit(replace(made, media=moved)))
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.status is Status.INVALID_ARGUMENT
    assert failure.reason.startswith(f"media[{index}] is at tokens {offsets[index]} to {offsets[index] + 4}")


def test_while_nothing_can_be_served_media_wait_as_text_does() -> None:
    world = driver(D)
    world.submit("r", media=(CAT,))
    assert world.terminal("r") is None
    world.join(P, E)
    assert world.sent(ReserveDecode)


# ---- waiting beside the queue


def test_media_wait_beside_the_queue_for_an_encode_instance() -> None:
    world = driver(P, D)
    world.submit("r", media=(CAT,))
    assert not world.now_sent() and world.scheduler.resources().queued == 1
    world.submit("text")
    assert world.sent(ReserveDecode)[-1].request.id == "text", "text never waits behind it"
    world.join(E)
    assert world.sent(ReserveDecode)[-1].request.id == "r"


@pytest.mark.parametrize(
    ("encoders", "reason"),
    [
        ((), "no encode instance"),
        ((info("e0", "e"),), "no encode instance"),
    ],
)
def test_without_an_encode_instance_a_request_is_unavailable_in_the_end(encoders, reason) -> None:
    world = driver(P, D, *encoders)
    world.submit("r", media=(CAT, image("large", patches=101)))
    live_on(world, 29.9)
    assert world.terminal("r") is None
    live_on(world, 0.2)
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.status is Status.UNAVAILABLE
    assert failure.reason.endswith(reason) and failure.retry_after is not None


@pytest.mark.parametrize(
    ("encoders", "reason"),
    [
        ((E,), "media item 1 has 101 patches and 4 embeddings; an instance that encodes here takes at most 100 patches and 128 embeddings"),
        (
            (info("e0", "e", max_patches=500),),
            "media item 0 has 16 patches and 4 embeddings; an instance that encodes here takes at most 500 patches and 0 embeddings",
        ),
    ],
)  # fmt: skip
def test_an_item_that_is_too_large_for_every_encode_instance_is_refused_at_once_with_the_limit(
    encoders, reason
) -> None:
    world = driver(P, D, *encoders)
    world.submit("r", media=(CAT, image("large", patches=101)))
    failure = world.terminal("r")
    assert failure == Failed("r", Status.INVALID_ARGUMENT, reason, None)


def test_queued_media_step_aside_when_the_last_encode_instance_goes_and_come_back_with_the_next() -> None:
    world = driver(P, D, E)
    world.submit("first")
    world.report(D, Refused("first", Role.DECODE, "full"))
    world.submit("r", media=(DOG,))
    leave(world, E)
    assert world.scheduler.resources().queued == 2
    world.tick(0.6)
    assert [c.request.id for c in world.sent(ReserveDecode)] == ["first", "first"]
    world.join(E)
    assert world.sent(ReserveDecode)[-1].request.id == "r"


def test_a_draining_encode_instance_counts_no_more() -> None:
    world = driver(P, D, E)
    world.send(DrainRequested("t", "e1", None, force=True))
    world.submit("r", media=(CAT,))
    assert not world.sent(ReserveDecode)


# ---- what can be reached


def test_reach_follows_from_the_instances_that_are_there() -> None:
    dice = random.Random(7)
    reach, present = MediaReach(), list[InstanceInfo]()
    for step in range(400):
        if present and dice.random() < 0.5:
            gone = present.pop(dice.randrange(len(present)))
            reach.change(gone, -1)
        else:
            roles = dice.choice(["p", "d", "pd", "e", "ep", "epd", "ed"])
            one = info(
                f"i{step}",
                roles,
                max_model_len=dice.choice([16, 32, 64]),
                media_pages=dice.choice([0, 0, 1, 2, 9]),
                max_patches=dice.choice([0, 50, 100]),
                transports=dice.choice([(TransportKind.GRPC,), (TransportKind.DEVICE,)]),
            )
            present.append(one)
            reach.change(one, 1)
        takers = [one if one.capacity.media_pages else without_prompts(one) for one in present]
        assert reach.longest == servable_length(takers)
        media = tuple(
            image(f"h{i}", tokens=dice.choice([4, 9]), patches=dice.choice([1, 60, 100]))
            for i in range(dice.choice([1, 3]))
        )
        prompts = [one.capacity for one in present if Role.PREFILL in one.roles]
        encoders = [one.capacity for one in present if Role.ENCODE in one.roles]
        held = any(sum(-(-item.tokens // 4) for item in media) <= capacity.media_pages for capacity in prompts)
        encoded = all(
            any(i.patches <= c.max_patches and -(-i.tokens // 4) <= c.media_pages for c in encoders) for i in media
        )
        assert (reach.too_large(media) is None) == held
        assert reach.can_serve(16, media) == (held and encoded and reach.longest >= 16)


def test_why_media_cannot_be_served_is_said() -> None:
    reach, item = MediaReach(), image("x", tokens=32, patches=100)
    reach.change(EPD, 1)
    assert reach.can_serve(64, (item,)) and not reach.can_serve(65, (item,))
    assert reach.shortage(65, (item,)) == (
        "with media, no placement for 65 tokens (the longest sequence served is 64 tokens)"
    )
    assert not reach.can_serve(64, (item, image("y", tokens=8))) and not reach.can_serve(
        64, (replace(item, patches=101),)
    )
    reach.change(EPD, -1)
    assert reach.kinds == frozenset() and reach.shortage(1, (item,)).endswith("take no media")
