"""Measuring an encoder for the simulator: one steady stream of steps per encode program, each full of equal images.

A program costs what its size costs, whatever is in it. One that is too small for a single image is not measured: the
engine never runs it for such images.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from triptych.models.hub.encoder import load_model_encoder
from triptych.models.hub.resolve import ResolvedModel
from triptych.models.multimodal.config import MultimodalConfig
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.engine.config import engine_config
from triptych.runtime.engine.encode_engine import EncodeEngine
from triptych.runtime.engine.media_pool import EmbeddingPool
from triptych.runtime.engine.media_stage import MediaStage
from triptych.runtime.engine.shelf import MediaShelf, Pixels
from triptych.runtime.engine.vision_encoder import VisionMediaEncoder
from triptych.runtime.instance.plan import Encode, StepPlan
from triptych.runtime.simulation.steptime_table import EncodeTable
from triptych.sharding.rules import ShardingRules
from triptych.tools.calibration import Progress, step_windows

_VALUE_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Picture:
    """One image, or the first piece of one that is cut: its grid of patches, encoder slots and embeddings."""

    grid: tuple[int, int, int]
    slots: int
    tokens: int


def picture_of(model: MultimodalConfig, width: int, height: int) -> Picture:
    """What an image of so many pixels becomes."""
    plan = model.plan(width, height)
    grid = plan.grids[0]
    return Picture((1, grid.rows, grid.columns), model.vision.slots(grid.rows, grid.columns), plan.piece_rows[0])


def make_engine(
    resolved: ResolvedModel,
    model: MultimodalConfig,
    mesh: Mesh,
    dtype: str,
    page_size: int,
    patches: int,
    picture: Picture,
) -> EncodeEngine:
    """An encode instance's engine with `patches` slots in its largest program, not compiled; the picture is on its shelf."""
    if patches < picture.slots:
        raise ConfigError(f"an image has {picture.slots} patches, more than --encode-patches {patches}")
    pages = 1 + (patches // picture.slots) * -(-picture.tokens // page_size)
    config = engine_config(
        num_pages=1, max_num_seqs=1, max_model_len=2, chunk_tokens=1, page_size=page_size, kv_dtype=dtype,
        roles=frozenset({Role.ENCODE}), media_pages=pages, encode_patches=patches,
    )  # fmt: skip
    encoder = VisionMediaEncoder(load_model_encoder(resolved, model, mesh, dtype))
    pixels = Pixels(np.zeros(encoder.patch_shape(picture.grid), encoder.pixel_dtype), picture.grid)
    shelf = MediaShelf(2 * pixels.nbytes)
    shelf.reserve(pixels.nbytes)
    shelf.put("image", pixels)
    pool = EmbeddingPool.of(ShardingRules(mesh), model.vision.output_size, dtype, page_size, pages)
    return EncodeEngine(config, mesh, MediaStage(pool, encoder, shelf, patches))


def plan_of(engine: EncodeEngine, picture: Picture, images: int, number: int) -> StepPlan:
    """Plan `number`: the picture so many times, each into pages of its own."""
    pages = -(-picture.tokens // engine.config.page_size)
    encodes = (
        Encode("image", picture.slots, picture.tokens, tuple(range(1 + at * pages, 1 + (at + 1) * pages)))
        for at in range(images)
    )
    return StepPlan(number, encodes=tuple(encodes))


def measure_encoder(
    engine: EncodeEngine, picture: Picture, sizes: tuple[int, ...], dtype: str, seconds: float, progress: Progress
) -> EncodeTable:
    """Every program of a compiled engine, its `sizes` ascending, about `seconds` seconds each."""
    held = [size for size in sizes if size >= picture.slots]
    measured = []
    for number, size in enumerate(held):
        progress(f"encode={size}", number, len(held))
        images = size // picture.slots
        times = step_windows(engine, lambda number, n=images: plan_of(engine, picture, n, number), seconds)
        measured.append((size, statistics.median(times)))
    group = engine.media.pool.group
    hidden = 2 * group.num_kv_heads * group.head_dim
    return EncodeTable(tuple(measured), hidden * _VALUE_BYTES[dtype], (picture.slots, picture.tokens))
