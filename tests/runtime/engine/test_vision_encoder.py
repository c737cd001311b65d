"""A vision encoder behind the engine's interface gives what it gives by itself, whatever shares its bucket and however many devices there are."""

from __future__ import annotations

from functools import cache

import jax
import numpy as np
import pytest

from tests.runtime.engine import media_rig as rig
from tests.runtime.engine.driver import PAGE
from triptych.models.multimodal.presets import VLM_PRESETS
from triptych.models.vision.packing import Grid, Piece, pack
from triptych.models.weights.vision import dummy_encoder
from triptych.runtime.engine.compiling import compile_programs
from triptych.runtime.engine.media_pool import EmbeddingPool
from triptych.runtime.engine.media_stage import MediaStage
from triptych.runtime.engine.shelf import MediaShelf, Pixels
from triptych.runtime.engine.vision_encoder import VisionMediaEncoder
from triptych.runtime.instance.plan import Encode
from triptych.sharding.mesh import make_mesh
from triptych.sharding.rules import ShardingRules

VISION = VLM_PRESETS["toy-vlm"].vision
SLOTS = 64


@cache
def loaded(tp: int):  # type: ignore[no-untyped-def]
    return dummy_encoder(VISION, make_mesh(jax.devices()[:tp], tp), "float32")


def picture(seed: int, steps: int = 1) -> Pixels:
    patches = np.random.default_rng(seed).integers(0, 256, (steps * 16, VISION.patch_dim), np.uint8)
    return Pixels(patches, (steps, 4, 4))


def alone(patches: np.ndarray) -> np.ndarray:
    """One picture's embeddings, by the encoder on one device with nothing else in its bucket."""
    packed, _ = pack([Piece(patches, Grid(4, 4))], VISION, VISION.slots(4, 4))
    return np.asarray(jax.jit(lambda params, packed: loaded(1).merge(params)(packed))(loaded(1).params, packed))[:16]


@pytest.mark.parametrize("tp", [1, 2])
def test_pictures_and_steps_of_a_video_in_one_bucket(tp: int) -> None:
    encoder = VisionMediaEncoder(loaded(tp))
    pool = EmbeddingPool.of(ShardingRules(loaded(tp).rules.mesh), encoder.hidden, "float32", PAGE, 20)
    stage = MediaStage(pool, encoder, MediaShelf(1 << 20), 4 * SLOTS)
    compiled, report = compile_programs(stage.programs(), 1, lambda name, done, total: None)
    assert report.programs == 2, "one bucket and the pool"
    stage.add(compiled)
    stage.rebuild()
    stage.run_each_once()
    video, image = picture(1, steps=2), picture(2)
    assert (encoder.slots(video.grid), encoder.slots(image.grid)) == (34, 17), "class tokens count"
    rig.bring(stage, "video", video)
    rig.bring(stage, "image", image)
    pages = tuple(range(1, 9)), (19, 12, 17, 15)
    stage.encode((Encode("video", 34, 32, pages[0]), Encode("image", 17, 16, pages[1])))
    rows = rig.stored(stage)
    expected = np.concatenate([alone(video.patches[:16]), alone(video.patches[16:])])
    np.testing.assert_allclose(rows[list(pages[0])].reshape(32, -1), expected, atol=1e-5)
    np.testing.assert_allclose(rows[list(pages[1])].reshape(16, -1), alone(image.patches), atol=1e-5)


@pytest.mark.parametrize("grid", [(0, 4, 4), (1, 0, 4)])
def test_empty_grids_are_refused(grid: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="is empty"):
        VisionMediaEncoder(loaded(1)).patch_shape(grid)
