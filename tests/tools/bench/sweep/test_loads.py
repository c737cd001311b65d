"""Loads: their mean rate, their lengths, and what is said of them."""

from __future__ import annotations

import io

import pytest

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.simulation.slo import Slo
from triptych.tools.bench.sweep.loads import Room, Source, parse_loads
from triptych.tools.bench.sweep.prompts import Tokens, items, ordinary_tokens, picture

SLO = Slo(1.0, 0.05)


def source(text: str, context: int = 256, image_tokens: int = 0) -> Source:
    return Source(parse_loads(text, SLO)[0], Room(context, image_tokens))


@pytest.mark.parametrize("text", ["conversation", "code", "poisson", "long"])
def test_a_load_has_its_rate_and_fits_the_context(text: str):
    made = source(text)
    requests = made.requests(4.0, 40, 160)
    assert len(requests) == 200 and requests[0].at == 0 and requests == sorted(requests, key=lambda r: r.at)
    assert requests[40].at == 10.0 and 9.0 < requests[39].at < 10.0 and 49.0 < requests[-1].at < 50.0, (
        "both parts have the rate"
    )
    assert all(r.text >= 1 and r.output >= 1 and r.text + r.output <= 256 and not r.images for r in requests)
    assert requests == source(text).requests(4.0, 40, 160), "the same for every topology"


def test_a_trace_keeps_its_arrivals_and_says_its_scale():
    made = source("conversation")
    slow, fast = made.requests(1.0, 0, 50), made.requests(10.0, 0, 50)
    assert [r.at for r in slow] == pytest.approx([r.at * 10 for r in fast])
    assert [(r.text, r.output) for r in slow] == [(r.text, r.output) for r in fast]
    assert "lengths times 0.0601" in made.note and "1.0% of the trace is cut" in made.note
    assert "lengths times 1;" in source("conversation", 1 << 15).note
    assert "lengths times 0.5;" in source("conversation:scale=0.5", 1 << 15).note


def test_lengths_are_those_asked_for():
    (r, *_) = source("poisson:input=30:output=7").requests(1.0, 0, 3)
    assert (r.text, r.output) == (30, 7)
    assert {r.text for r in source("long").requests(1.0, 0, 5)} == {128}
    assert len({r.text for r in source("poisson:input=30:cv=1").requests(1.0, 0, 20)}) > 5


def test_pictures_come_one_to_eight_a_request_and_the_control_is_the_same_without_them():
    pictured = source("images:input=9:output=5", 256, 16).requests(2.0, 0, 100)
    control = source("text:input=9:output=5", 256, 16).requests(2.0, 0, 100)
    assert {r.images for r in pictured} == set(range(1, 9)) and {r.images for r in control} == {0}
    assert [(r.at, r.text, r.output) for r in pictured] == [(r.at, r.text, r.output) for r in control]


def test_what_the_context_does_not_hold_is_said():
    few = source("images:input=8:output=8", 80, 16)
    assert {r.images for r in few.requests(1.0, 0, 50)} == {
        1,
        2,
        3,
        4,
    } and "8 were asked for, more than 4 do not fit" in few.note
    for text, room, message in (
        ("images:images=5-8:input=8:output=8", Room(80, 16), "5 images of 16 tokens"),
        ("images", Room(80, 0), "takes no images"),
        ("poisson:input=60:output=40", Room(80), "do not fit 80"),
    ):
        with pytest.raises(ConfigError, match=message):
            Source(parse_loads(text, SLO)[0], room)


def test_objectives_of_a_load_are_its_own():
    first, second = parse_loads("conversation,long:ttft=4", SLO)
    assert first.slo == SLO and second.slo == Slo(4.0, 0.05)


@pytest.mark.parametrize(
    "text", ["rain", "long,long", "poisson:input", "poisson:input=x", "poisson:input=0", "conversation:input=3", "long:images=2",
             "images:images=3-2", "images:images=0", "long:ttft=0", "poisson:cv=-1"]
)  # fmt: skip
def test_wrong_loads_are_refused(text: str):
    with pytest.raises((ConfigError, ValueError)):
        parse_loads(text, SLO)


def test_prompts_have_their_lengths_and_no_two_share_tokens_or_pictures():
    Image = pytest.importorskip("PIL.Image")
    requests = source("images:input=9:output=5:images=2", 256, 16).requests(2.0, 0, 10)
    tokens = Tokens(ordinary_tokens(200, (3,)), 199)
    made = items(requests, tokens, (40, 30), "a")
    assert made == items(requests, tokens, (40, 30), "a") and made != items(requests, tokens, (40, 30), "b")
    assert all(one.prompt[:2] == (199, 199) and len(one.prompt) == 11 for one in made)
    assert not {3, 199} & {token for one in made for token in one.prompt[2:]}
    assert len({image for one in made for image in one.images}) == 20
    assert Image.open(io.BytesIO(picture(1, (40, 30)))).size == (40, 30) and len({one.prompt for one in made}) == 10
