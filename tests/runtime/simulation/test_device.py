"""Devices without models: right work gives the expected tokens, wrong work others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.media import MediaItem, MediaKind
from triptych.runtime.core.request import FinishReason, Request
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.plan import Draw, Embedded, Encode, Row, Seat, StepPlan
from triptych.runtime.simulation.device import EOS, DeviceFault, KvDevice, PositionDevice, expected_outputs, follows

CONFIG = InstanceConfig(
    InstanceRef("i", 1), "a", "d", frozenset({Role.PREFILL}), num_pages=8, page_size=2, max_num_seqs=2, max_model_len=12
)
PARAMS = SamplingParams(seed=7, max_tokens=3, ignore_eos=True)
REQUEST = Request("r", "g", "m", (5, 6, 7), PARAMS)


def prompt_plan(pages: tuple[int, ...] = (1, 2)) -> StepPlan:
    return StepPlan(1, (Row(1, REQUEST.prompt, 0, 0, pages, draws=(Draw(0, 3),)),), (Seat(0, 0, PARAMS),))


def drawn(device: KvDevice | PositionDevice, plan: StepPlan) -> int:
    return device.execute(plan).rows[0].drawn[0].token


def test_embeddings_take_the_place_of_token_ids_and_a_wrong_page_of_them_shows():
    config = replace(CONFIG, media_pages=4, encode_patches=9)
    item = MediaItem("image", MediaKind.IMAGE, 1, 4, 4, (1, 1, 4))
    request = Request("r", "g", "m", (7, 1, 1, 1, 1, 9), PARAMS, media=(item,))
    expected, _ = expected_outputs(request, 12, 0)

    def drawn_with(pages: tuple[int, ...]) -> int:
        device = KvDevice(config)
        encode = Encode("image", 4, 4, (1, 2))
        run = Embedded(1, 4, 0, pages)
        row = Row(1, request.prompt, 0, 0, (1, 2, 3), 0, (Draw(0, 6),), embedded=(run,))
        return device.execute(StepPlan(1, (row,), (Seat(0, 0, PARAMS),), encodes=(encode,))).rows[0].drawn[0].token

    assert drawn_with((1, 2)) == expected[0] != drawn_with((2, 1))
    with pytest.raises(DeviceFault, match="null page"):
        drawn_with((1, 0))
    with_text = replace(request, media=())
    assert expected_outputs(with_text, 12, 0)[0][0] != expected[0] and follows(request, 0, expected, (0,))


def test_a_prompt_and_its_decode_steps_draw_the_expected_outputs():
    device = KvDevice(CONFIG)
    expected, finish = expected_outputs(REQUEST, 12, 0)
    outputs = [drawn(device, prompt_plan())]
    for index in range(2):
        row = Row(1, (), 3 + index, 3 + index, (1, 2, 3), token_slot=0, draws=(Draw(0, 4 + index),))
        outputs.append(drawn(device, StepPlan(2 + index, (row,))))
    assert tuple(outputs) == expected
    assert finish.reason is FinishReason.LENGTH


def test_another_token_page_or_position_draws_another_token():
    right = drawn(KvDevice(CONFIG), prompt_plan())
    swapped = KvDevice(CONFIG)
    swapped.execute(prompt_plan())
    row = Row(1, (7,), 2, 2, (2, 1), draws=(Draw(0, 3),))
    assert drawn(swapped, StepPlan(2, (row,))) != right
    later = Row(1, REQUEST.prompt, 0, 0, (1, 2), draws=(Draw(0, 4),))
    assert drawn(KvDevice(CONFIG), StepPlan(1, (later,), (Seat(0, 0, PARAMS),))) != right


def test_pages_can_be_sent_elsewhere():
    near, far = KvDevice(CONFIG), KvDevice(CONFIG)
    first = drawn(near, prompt_plan())
    for page, target in ((1, 5), (2, 3)):
        far.write(target, near.read(page))
    row = Row(9, (first,), 3, 3, (5, 3), draws=(Draw(1, 4),))
    assert drawn(far, StepPlan(1, (row,), (Seat(1, 0, PARAMS),))) == expected_outputs(REQUEST, 12, 0)[0][1]


def test_samples_and_seeds_draw_differently_and_min_tokens_forbids_ends():
    two = Request("r", "g", "m", (5, 6, 7), SamplingParams(seed=7, max_tokens=8, n=2))
    assert expected_outputs(two, 64, 0) != expected_outputs(two, 64, 1)
    ends = tuple(range(1, 200))
    forced = Request("r", "g", "m", (5,), SamplingParams(max_tokens=8, min_tokens=2, stop_token_ids=ends))
    outputs, _ = expected_outputs(forced, 64, 0)
    assert not {EOS, *ends} & set(outputs[:2])


def test_a_position_device_needs_no_kv():
    assert drawn(PositionDevice(CONFIG), prompt_plan((1, 2))) == drawn(PositionDevice(CONFIG), prompt_plan((4, 3)))
