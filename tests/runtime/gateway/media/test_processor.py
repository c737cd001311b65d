"""The real processor: files through decoder processes to pieces that are what the model's own processing gives."""

from __future__ import annotations

import io
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

from tests.runtime.gateway.calls import ask, finish, run, until
from tests.runtime.gateway.toy_cluster import TOKENIZER, Order, cluster, serve_well
from triptych.models.hub.resolve import resolve_model
from triptych.models.hub.text import open_text
from triptych.models.multimodal.config import MediaMarkers, MultimodalConfig
from triptych.models.multimodal.plans import TileProcessing, plan_image
from triptych.models.multimodal.presets import VLM_PRESETS
from triptych.models.multimodal.processing import process_image
from triptych.models.vision.config import ConnectorConfig, VisionConfig
from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.cluster.front import served_model
from triptych.runtime.core.errors import TriptychError
from triptych.runtime.core.media import MediaKind
from triptych.runtime.gateway.media.description import described, understood
from triptych.runtime.gateway.media.pieces import checksum
from triptych.runtime.gateway.media.processor import PooledProcessor, pieces_of
from triptych.runtime.gateway.model import MediaModel
from triptych.runtime.media.errors import DecoderLostError, MediaKindError, MediaLimitError
from triptych.runtime.media.limits import MediaLimits
from triptych.runtime.media.pool import PoolConfig
from triptych.runtime.media.process import Reply

TOY = VLM_PRESETS["toy-vlm"]
TILED = MultimodalConfig(  # four tokens a tile of 16 x 16, and a thumbnail
    text=TOY.text,
    vision=VisionConfig(
        family="internvit",
        hidden_size=32,
        stored_layers=1,
        feature_layers=(1,),
        num_heads=2,
        intermediate_size=64,
        patch_size=4,
        activation="gelu",
        position_grid=4,
        class_token=True,
        connector=ConnectorConfig(outputs=TOY.text.hidden_size, hidden_size=64, merge=2),
    ),
    processing=TileProcessing((16, 16), max_tiles=4),
    markers=MediaMarkers(259, "<|pad|>"),
)


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def processor(config: MultimodalConfig = TOY, **limits: int) -> PooledProcessor:
    model = MediaModel.of(config, TOKENIZER)
    return PooledProcessor(model, MediaLimits(**limits), PoolConfig(processes=1, start_seconds=60.0))


@pytest.mark.parametrize("config", [TOY, TILED])
def test_the_description_of_a_model_says_all_that_processing_needs(config: MultimodalConfig):
    assert understood(described(config)) == (config.processing, config.vision)


def test_pieces_are_what_the_models_own_processing_gives():
    async def body():
        p, pixels = processor(TILED), picture(50, 24)
        data = png(pixels)
        assert p.kind(data, "image/png") is MediaKind.IMAGE
        p.start()
        try:
            pieces = await p.process(data, MediaKind.IMAGE, "0" * 32)
            with pytest.raises(TriptychError, match=r"PNG|png|decode"):
                await p.process(data[:200], MediaKind.IMAGE, "1" * 32)
        finally:
            await p.close()
        expected = process_image(pixels, plan_image(TILED.processing, TILED.vision, 50, 24), TILED.vision)
        assert len(pieces) == len(expected) == 3, "two tiles and a thumbnail"
        for piece, wanted in zip(pieces, expected, strict=True):
            assert piece.data == wanted.patches.tobytes() and piece.shape == wanted.patches.shape == (16, 48)
            assert piece.checksum == checksum(piece.data)
            assert (piece.tokens, piece.patches, piece.grid, piece.pixel_grid) == (4, 17, (1, 2, 2), (1, 4, 4))
        assert len({piece.hash for piece in pieces}) == 3

    run(body())


def test_the_identity_is_of_the_bytes_and_of_the_processing():
    data, other = png(picture(9, 9)), png(picture(9, 8))
    assert processor().identity(data) == processor().identity(data)
    assert len({processor().identity(data), processor().identity(other), processor(TILED).identity(data)}) == 3


def test_what_the_model_does_not_take_is_refused_before_anything_is_decoded():
    p = processor(item_bytes=1000, request_bytes=2000, request_items=2)
    with pytest.raises(MediaKindError, match="this model takes image"):
        p.kind(b"RIFF\x24\0\0\0WAVEfmt " + bytes(20), "")
    with pytest.raises(MediaKindError, match=r"expected audio|declared"):
        p.kind(png(picture(4, 4)), "audio")
    with pytest.raises(MediaKindError):
        p.kind(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "")
    with pytest.raises(MediaLimitError):
        p.kind(png(picture(40, 40)), "")
    with pytest.raises(MediaLimitError):
        p.check_total([1, 1, 1])
    with pytest.raises(MediaLimitError):
        p.check_total([1500, 900])


@pytest.mark.parametrize(
    ("array", "facts"),
    [
        (np.zeros((16, 48), np.uint8), {"width": "4", "height": 4}),
        (np.zeros((16, 48), np.uint8), {"width": 4}),
        (np.zeros((15, 48), np.uint8), {"width": 4, "height": 4}),
        (np.zeros((16, 48), np.float32), {"width": 4, "height": 4}),
        (np.zeros((16, 48), np.uint8), {"width": 0, "height": 4}),
    ],
)
def test_what_a_decoder_process_says_must_agree_with_the_plan(array: np.ndarray, facts: dict):
    with pytest.raises(DecoderLostError):
        pieces_of(Reply(array, facts), TOY, MediaKind.IMAGE, "0" * 32)


def test_a_gateway_takes_real_pictures_and_its_model_comes_with_all_that_this_needs(tmp_path: Path):
    resolved = resolve_model("dummy:toy-vlm", tmp_path)
    model = served_model(resolved, open_text(resolved), name="toy", max_model_len=128)
    pixels = picture(20, 30)

    async def body():
        async with cluster(model, media_pool=PoolConfig(processes=1)) as c:

            async def script(order: Order) -> None:
                order.need(0)
                await until(lambda: len(order.prefill.media.stored) == 1)
                await serve_well(order)

            c.scheduler.script = script
            content = [pb.ContentPart(media=pb.Media(data=png(pixels))), pb.ContentPart(text="What is this?")]
            question = pb.Chat(messages=[pb.ChatMessage(role="user", parts=content)])
            outcome = await finish(c.stub.Generate(ask(chat=question, sampling={"max_tokens": 2})))
            assert outcome.code is grpc.StatusCode.OK, outcome.details
            assert outcome.usage.media_tokens == 16
            (piece,) = process_image(pixels, TOY.plan(20, 30), TOY.vision)
            assert list(c.prefill.media.stored.values()) == [piece.patches.tobytes()]
            question.messages[0].parts[0].media.data = png(pixels)[:300]
            outcome = await finish(c.stub.Generate(ask(chat=question)))
            assert outcome.code is grpc.StatusCode.INVALID_ARGUMENT
            assert outcome.details.startswith("chat.messages[0].parts[0]: this image/png cannot be decoded")

    run(body())
