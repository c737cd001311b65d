"""Videos through decoder processes to pieces: those of the model's own processing of the frames of a plain decode."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests.runtime.gateway.calls import run
from tests.runtime.gateway.toy_cluster import TOKENIZER, toy_model
from tests.runtime.media import files
from triptych.models.multimodal.presets import TOY_IMAGE_ID, VLM_PRESETS
from triptych.models.multimodal.processing import process_frames, process_image
from triptych.models.text.chat import ChatTemplate
from triptych.models.vision.packing import Piece as VisionPiece
from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.errors import InvalidRequestError, TriptychError
from triptych.runtime.core.media import MediaKind
from triptych.runtime.gateway.media.expansion import expanded
from triptych.runtime.gateway.media.pieces import Medium, Piece, checksum
from triptych.runtime.gateway.media.processor import PooledProcessor
from triptych.runtime.gateway.media.video import VideoProcessor
from triptych.runtime.gateway.model import MediaModel
from triptych.runtime.gateway.prompt import prompt_ids
from triptych.runtime.media.errors import CorruptMediaError, DecoderLostError, MediaKindError, MediaLimitError
from triptych.runtime.media.limits import MediaLimits
from triptych.runtime.media.pool import DecoderPool, PoolConfig
from triptych.runtime.media.process import Reply

QWEN, LLAVA = VLM_PRESETS["toy-qwen-vl"], VLM_PRESETS["toy-vlm"]
# 3.7 seconds of 10 frames each, key frames every 8: seven frames at two a second, so six.
VIDEO = files.video_file(files.video_frames(37, 48, 32))


def ask(make: Callable[[DecoderPool], Sequence[Awaitable[object]]], processes: int = 2) -> list[object]:
    """The results of calls that share a pool, one after another; an exception is a result."""

    async def body() -> list[object]:
        config = PoolConfig(processes=processes, operations="triptych.runtime.gateway.media.operations:OPERATIONS")
        found: list[object] = []
        async with DecoderPool(config) as pool:
            for call in make(pool):
                try:
                    found.append(await call)
                except TriptychError as error:
                    found.append(error)
        return found

    return run(body())


def check(pieces: object, expected: Sequence[VisionPiece]) -> tuple[Piece, ...]:
    if isinstance(pieces, Exception):
        raise pieces
    assert isinstance(pieces, tuple) and len(pieces) == len(expected)
    for piece, wanted in zip(pieces, expected, strict=True):
        assert piece.data == wanted.patches.tobytes() and piece.shape == wanted.patches.shape
        assert piece.pixel_grid == (1, wanted.grid.rows, wanted.grid.columns)
        assert piece.checksum == checksum(piece.data) and piece.kind is MediaKind.VIDEO
    return pieces


def test_pieces_are_those_of_the_frames_of_a_plain_decode_and_what_is_wrong_is_said() -> None:
    assert QWEN.video is not None
    limits, few = MediaLimits(), MediaLimits(sampled_frames=5)
    twice = replace(QWEN, video=replace(QWEN.video, rate=5.0))
    narrow = files.video_file(files.video_frames(3, 16, 4 * 1024)[:3])

    def calls(pool: DecoderPool) -> list[Awaitable[object]]:
        return [
            VideoProcessor(QWEN, limits, pool, None).pieces(VIDEO, "a" * 32),
            VideoProcessor(twice, limits, pool, None, part_frames=1).pieces(VIDEO, "a" * 32),
            VideoProcessor(LLAVA, limits, pool, None).pieces(VIDEO, "b" * 32),
            VideoProcessor(QWEN, limits, pool, 17).pieces(VIDEO, "a" * 32),
            VideoProcessor(QWEN, few, pool, None).pieces(VIDEO, "a" * 32),
            VideoProcessor(QWEN, MediaLimits(video_frames=36), pool, None).pieces(VIDEO, "a" * 32),
            VideoProcessor(QWEN, limits, pool, None).pieces(VIDEO[: len(VIDEO) // 2], "a" * 32),
            VideoProcessor(QWEN, limits, pool, None).pieces(narrow, "a" * 32),
            VideoProcessor(QWEN, MediaLimits(sampled_pixels=100), pool, None).pieces(VIDEO, "a" * 32),
        ]

    two_a_second, five, frames, budget, *wrong = ask(calls)
    _, decoded = files.sequential(VIDEO)
    plan = replace(QWEN, processing=QWEN.video.frame).plan(48, 32)
    pieces = check(two_a_second, process_frames([decoded[at] for at in (0, 6, 12, 18, 24, 30)], plan, QWEN.vision))
    assert [piece.later for piece in pieces] == [None, 2, 4], "1.23 seconds a step, two positions a second"
    assert {(piece.tokens, piece.patches, piece.grid) for piece in pieces} == {(6, 24, (1, 2, 3))}
    assert len({piece.hash for piece in pieces}) == 3
    # Five a second: 18 frames of five groups of eight, in two parts; pairs of frames of which one is in each.
    check(five, process_frames([decoded[number * 37 // 18] for number in range(18)], plan, QWEN.vision))
    # A model without videos: three pictures a second apart.
    pictures = [process_image(decoded[at], LLAVA.plan(48, 32), LLAVA.vision)[0] for at in (0, 12, 24)]
    assert [piece.later for piece in check(frames, pictures)] == [None] * 3
    # 17 tokens hold two steps of six.
    check(budget, process_frames([decoded[at] for at in (0, 9, 18, 27)], plan, QWEN.vision))

    expected = [MediaLimitError, MediaLimitError, CorruptMediaError, MediaKindError, MediaLimitError]
    assert [type(error) for error in wrong] == expected, wrong
    assert "6 frames of the video are asked for; expected at most 5" in str(wrong[0])
    assert "more than 36" in str(wrong[1]) or "37 frames" in str(wrong[1])
    assert "too narrow" in str(wrong[3])


def test_the_identity_is_of_the_bytes_and_of_how_frames_are_taken() -> None:
    def identity(data: bytes, config=QWEN, tokens: int | None = None) -> str:  # type: ignore[no-untyped-def]
        model = MediaModel.of(config, TOKENIZER)
        return PooledProcessor(model, MediaLimits(), PoolConfig(), tokens).identity(data)

    assert QWEN.video is not None
    slower = replace(QWEN, video=replace(QWEN.video, rate=1.0))
    found = {identity(VIDEO), identity(VIDEO, slower), identity(VIDEO, tokens=10), identity(VIDEO, LLAVA)}
    assert len(found) == 4 and identity(VIDEO) in found
    image = files.image_file(files.picture())
    assert identity(image) == identity(image, slower, 10), "a picture is what it was"


@pytest.mark.parametrize(
    "replies",
    [
        [Reply(np.zeros((2, 24, 48), np.uint8), {"width": 48, "height": 32}), Reply(np.zeros((1, 24, 48), np.uint8), {"width": 32, "height": 48})],
        [Reply(np.zeros((2, 24, 48), np.uint8), {"width": 48, "height": 32})] * 2,
        [Reply(np.zeros((2, 24, 48), np.uint8), {"width": 48}), Reply(np.zeros((1, 24, 48), np.uint8), {"width": 48})],
        [Reply(np.zeros((2, 24, 48), np.int8), {"width": 48, "height": 32}), Reply(np.zeros((1, 24, 48), np.int8), {"width": 48, "height": 32})],
        [Reply(np.zeros((2, 24, 48), np.uint8), {"width": 48, "height": 1}), Reply(np.zeros((1, 24, 48), np.uint8), {"width": 48, "height": 1})],
    ],
)  # fmt: skip
def test_what_decoder_processes_say_must_agree_with_the_plan(replies: list[Reply]) -> None:
    reader = VideoProcessor(QWEN, MediaLimits(), DecoderPool(PoolConfig()), None)
    with pytest.raises(DecoderLostError):
        reader._cut(replies, [2, 1], 0.5, "a" * 32)


def medium(field: str, kind: MediaKind, *tokens: int, later: bool = False) -> Medium:
    return Medium(
        field,
        kind,
        tuple(
            Piece(f"{field}{number}", kind, count, count, (1, 1, count), (1, 1, count), (1,), b"", 0, number if later and number else None)
            for number, count in enumerate(tokens)
        ),
    )  # fmt: skip


def test_a_video_has_one_place_or_one_for_each_frame() -> None:
    """Without a token of its own it is pictures in a row, each between the tokens that stand around one."""
    model = MediaModel.of(LLAVA, TOKENIZER)
    around = replace(model, markers=replace(model.markers, before=1, after=2))
    media = [medium("v", MediaKind.VIDEO, 2, 2), medium("i", MediaKind.IMAGE, 1, 1)]
    ids, items = expanded([7, TOY_IMAGE_ID, 8, TOY_IMAGE_ID], media, around, "prompt")
    pad = TOY_IMAGE_ID
    assert ids == (7, 1, pad, pad, 2, 1, pad, pad, 2, 8, 1, pad, pad, 2)
    assert [(item.hash, item.offset) for item in items] == [("v0", 2), ("v1", 6), ("i0", 11), ("i1", 12)]

    qwen = MediaModel.of(QWEN, TOKENIZER)
    ids, items = expanded([7, pad, 8], [medium("v", MediaKind.VIDEO, 2, 2, 2, later=True)], qwen, "prompt")
    assert ids == (7, *[pad] * 6, 8)
    assert [(item.offset, item.later) for item in items] == [(1, None), (3, 1), (5, 2)]
    assert (model.part(MediaKind.VIDEO), qwen.part(MediaKind.VIDEO)) == ("image", "video")


def test_in_a_chat_frames_are_pictures_where_the_model_knows_no_videos() -> None:
    """Whatever a template knows of videos: it would leave them out, or write a token that stands for nothing."""
    template = ChatTemplate(
        "{% for m in messages %}{% for p in m['content'] %}"
        "{% if p['type'] == 'image' %}<|pad|>{% elif p['type'] == 'text' %}{{ p['text'] }}{% endif %}"
        "{% endfor %}{% endfor %}",
        bos_token=None,
        eos_token=None,
    )
    model = toy_model(media=MediaModel.of(LLAVA, TOKENIZER), chat_template=template)
    parts = [pb.ContentPart(media=pb.Media(data=VIDEO)), pb.ContentPart(text="?")]
    request = pb.GenerateRequest(chat=pb.Chat(messages=[pb.ChatMessage(role="user", parts=parts)]))
    ids, items = prompt_ids(request, model, 100, [medium("v", MediaKind.VIDEO, 2, 2)])
    assert ids == (*[TOY_IMAGE_ID] * 4, ord("?"))
    assert [item.offset for item in items] == [0, 2]


def test_a_place_is_for_its_kind() -> None:
    model = MediaModel.of(QWEN, TOKENIZER)
    model = replace(
        model,
        config=replace(QWEN, markers=replace(QWEN.markers, video_id=5)),
        markers=replace(model.markers, placeholders=(TOY_IMAGE_ID, 5)),
    )
    video, picture = medium("videos[0]", MediaKind.VIDEO, 2), medium("images[0]", MediaKind.IMAGE, 2)
    assert len(expanded([5, TOY_IMAGE_ID], [video, picture], model, "prompt")[0]) == 4
    with pytest.raises(
        InvalidRequestError, match=r"prompt: place 1 of its media is not one for image, which images\[0\] is"
    ):
        expanded([5, TOY_IMAGE_ID], [picture, video], model, "prompt")
