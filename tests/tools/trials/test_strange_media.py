"""Strange files are pictures or are refused with a reason, at once and without what they claim to need; seeds repeat them."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from triptych.proto.v1 import common_pb2, inference_pb2
from triptych.runtime.core.errors import TriptychError
from triptych.runtime.media.image import decode_image
from triptych.runtime.media.limits import MediaLimits
from triptych.runtime.media.source import from_bytes
from triptych.tools.trials import media_corpus
from triptych.tools.trials.strange_media import STOCK, bombs, file, good, odd_modes, others

LIMITS = MediaLimits(image_pixels=1_000_000)
BOMBS = bombs()


def outcome(data: bytes) -> str | tuple[int, ...]:
    """The picture's shape, or the error's type."""
    try:
        return decode_image(data, from_bytes(data, LIMITS).type, LIMITS).shape
    except TriptychError as error:
        return type(error).__name__


def test_good_pictures_are_good_and_others_are_none() -> None:
    for number in range(STOCK):
        assert isinstance(outcome(good(number)), tuple)
    assert all(isinstance(outcome(data), tuple) for data in odd_modes())
    assert {outcome(data) for data in others()} == {"MediaKindError", "CorruptMediaError"}


@pytest.mark.parametrize("number", range(len(BOMBS)))
def test_a_bomb_is_refused_or_is_the_small_picture_that_it_shows(number: int) -> None:
    data = BOMBS[number]
    assert len(data) < 100_000
    tracemalloc.start()
    found = outcome(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found in ("MediaLimitError", "CorruptMediaError", (4, 4, 3))
    assert peak < 10_000_000, "in Python's own memory; decoders have a bound of the kernel, too"


def test_drawn_files_are_some_of_each_and_a_seed_repeats_them() -> None:
    drawn = [file(random.Random(seed)) for seed in range(300)]
    assert drawn == [file(random.Random(seed)) for seed in range(300)]
    found = [outcome(data) for data in drawn]
    pictures = sum(isinstance(one, tuple) for one in found)
    assert 100 < pictures < 250
    assert {"CorruptMediaError", "MediaKindError", "MediaLimitError"} <= {one for one in found if isinstance(one, str)}


def test_pixels_and_uploads_begin_with_a_header_and_go_on() -> None:
    ref = common_pb2.InstanceRef(id="encode-0", epoch=5)
    infos = [
        common_pb2.InstanceInfo(ref=common_pb2.InstanceRef(id="decode-0", epoch=6), roles=["decode"]),
        common_pb2.InstanceInfo(ref=ref, roles=["encode"]),
    ]
    rng = random.Random(3)
    for make, field in ((lambda: media_corpus.Pixels(infos, rng), "owner"), (lambda: media_corpus.Upload(rng), "size")):
        talks = [make() for _ in range(40)]
        first = [talk(rng) for talk in talks]
        assert all(message.WhichOneof("kind") == "header" for message in first)
        assert all(talk(rng).WhichOneof("kind") == "data" for talk in talks)
        assert hasattr(first[0].header, field)
    owners = [media_corpus.Pixels(infos, rng)(rng).header.owner for _ in range(40)]
    assert {owner.id for owner in owners} == {"encode-0"} and any(owner == ref for owner in owners)


def test_requests_have_media_where_their_form_has_a_place_for_them() -> None:
    rng = random.Random(5)
    for _ in range(50):
        chat, prompt = inference_pb2.GenerateRequest(), inference_pb2.GenerateRequest(prompt="hello")
        chat.chat.messages.add(role="user", content="hello")
        media_corpus.add_media(chat, "<image>", rng)
        media_corpus.add_media(prompt, "<image>", rng)
        in_parts = sum(part.HasField("media") for part in chat.chat.messages[0].parts)
        assert (in_parts > 0) != (len(chat.media) > 0)
        assert len(prompt.media) >= 1 and prompt.prompt.endswith("hello")
