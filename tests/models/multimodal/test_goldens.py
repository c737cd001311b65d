"""Every vision-language family against outputs of the reference library: pixels, embedding rows, positions and logits.

The goldens come from tools/make_vision_goldens.py.
"""

from functools import lru_cache
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.models.multimodal.forward import encode, logits
from triptych.models.hub.media import read_multimodal
from triptych.models.multimodal.config import MultimodalConfig
from triptych.models.multimodal.mrope import media_grid, mrope_positions
from triptych.models.multimodal.processing import process_frames, process_image
from triptych.models.multimodal.prompt import MarkerIds, expand
from triptych.models.vision.config import VisionConfig
from triptych.models.vision.packing import Piece
from triptych.models.weights.hf import open_hf_folder
from triptych.models.weights.load import load_decoder
from triptych.models.weights.multimodal import text_source
from triptych.models.weights.vision import load_encoder
from triptych.sharding.mesh import make_mesh

GOLDENS = Path(__file__).parent / "goldens"
FAMILIES = ("llava", "llava_full", "llava_siglip", "internvl", "qwen2_5_vl")

# Tokens that stand around an image in the goldens of the families that have such.
BEFORE, AFTER = 101, 102

# More slots than any two pictures need: what lies behind them is padding.
SLOTS = 200


@lru_cache
def config_of(family: str) -> MultimodalConfig:
    config = read_multimodal(GOLDENS / family)
    assert config is not None
    return config


@lru_cache
def golden_of(family: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDENS / family / "golden.npz"))


def pieces_of(family: str, index: int) -> tuple[Piece, ...]:
    image = golden_of(family)[f"image_{index}"]
    config = config_of(family)
    return process_image(image, config.plan(image.shape[1], image.shape[0]), config.vision)


def reference_patches(pixels: np.ndarray, pieces: tuple[Piece, ...], vision: VisionConfig) -> np.ndarray:
    """The processor's normalised pixels as patches [patches, patch_dim] in raster order."""
    size = vision.patch_size
    if pixels.ndim == 2:
        ((grid, merge),) = [(piece.grid, vision.merge) for piece in pieces]
        blocks = pixels.reshape(grid.rows // merge, grid.columns // merge, merge, merge, -1)
        return blocks.transpose(0, 2, 1, 3, 4).reshape(pixels.shape)
    tiles, channels, height, width = pixels.shape
    rows, columns = height // size, width // size
    whole = pixels[:, :, : rows * size, : columns * size]
    blocks = whole.reshape(tiles, channels, rows, size, columns, size).transpose(0, 2, 4, 1, 3, 5)
    return blocks.reshape(tiles * rows * columns, -1)


def normalised(patches: np.ndarray, vision: VisionConfig) -> np.ndarray:
    mean, std = (np.repeat(values, vision.patch_dim // vision.channels) for values in (vision.mean, vision.std))
    return (patches / 255 - mean) / std


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("index", [0, 1])
def test_pixels_are_those_of_the_reference_processor(family: str, index: int) -> None:
    vision, pieces = config_of(family).vision, pieces_of(family, index)
    ours = normalised(np.concatenate([piece.patches for piece in pieces]), vision)
    reference = reference_patches(golden_of(family)[f"pixels_{index}"], pieces, vision)
    # Far below one step of a byte, which is 1 / 255 / std: the resized bytes are equal.
    np.testing.assert_allclose(ours, reference, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tp", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_pictures_in_one_bucket_give_the_reference_rows(family: str, tp: int) -> None:
    config, golden = config_of(family), golden_of(family)
    encoder = load_encoder(
        config.vision, open_hf_folder(GOLDENS / family), make_mesh(jax.devices()[:tp], tp), "float32"
    )
    # The second picture first, so that neither lies where it would lie alone.
    pieces = [pieces_of(family, 1), pieces_of(family, 0)]
    rows = encode(encoder, [piece for image in pieces for piece in image], SLOTS)
    split = len(pieces[0])
    for index, image in ((1, rows[:split]), (0, rows[split:])):
        np.testing.assert_allclose(np.concatenate(image), golden[f"features_{index}"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [1, 2])
def test_prompts_with_pictures_give_the_reference_logits(family: str, count: int) -> None:
    config, golden, folder = config_of(family), golden_of(family), GOLDENS / family
    mesh = make_mesh(jax.devices()[:1], 1)
    encoder = load_encoder(config.vision, open_hf_folder(folder), mesh, "float32")
    decoder = load_decoder(config.text, text_source(open_hf_folder(folder)), mesh, "float32")
    images = [golden[f"image_{index}"] for index in range(count)]
    plans = [config.plan(image.shape[1], image.shape[0]) for image in images]
    around = (None, None) if config.markers.before is None else (BEFORE, AFTER)
    prompt = expand(
        golden[f"prompt_{count}"].tolist(),
        [plan.tokens for plan in plans],
        MarkerIds((config.markers.image_id,), *around),
    )
    np.testing.assert_array_equal(prompt.tokens, golden[f"tokens_{count}"])
    positions = None
    if config.text.rope.sections is not None:
        grids = [media_grid(config, plan) for plan in plans]
        positions = mrope_positions(len(prompt.tokens), prompt.spans, grids).positions
        np.testing.assert_array_equal(positions, golden[f"positions_{count}"])
    rows = encode(encoder, [piece for index in range(count) for piece in pieces_of(family, index)], SLOTS)
    ours = logits(decoder, prompt.tokens, prompt.spans, rows, positions)
    np.testing.assert_allclose(ours, golden[f"logits_{count}"], atol=1e-4, rtol=0)


def test_the_goldens_are_of_several_tiles_and_windows() -> None:
    assert [len(pieces_of("internvl", index)) for index in (0, 1)] == [5, 3]
    qwen = config_of("qwen2_5_vl").vision
    grid = pieces_of("qwen2_5_vl", 0)[0].grid
    assert qwen.window is not None
    assert min(grid.rows, grid.columns) > qwen.window
    assert 0 < len(qwen.full_layers) < qwen.num_layers


def test_a_video_is_encoded_in_steps_and_placed_in_time() -> None:
    family = "qwen2_5_vl"
    config, golden, folder = config_of(family), golden_of(family), GOLDENS / family
    frames = list(golden["frames"])
    height, width, _ = frames[0].shape
    plan = config.plan(width, height)
    pieces = process_frames(frames, plan, config.vision)
    assert len(pieces) == 2
    mesh = make_mesh(jax.devices()[:1], 1)
    encoder = load_encoder(config.vision, open_hf_folder(folder), mesh, "float32")
    rows = encode(encoder, pieces, SLOTS)
    np.testing.assert_allclose(np.concatenate(rows), golden["video_features"], atol=2e-5, rtol=0)

    assert config.markers.video_id is not None
    assert config.tokens_per_second is not None
    count = len(pieces) * plan.tokens
    prompt = expand(
        [5, 6, config.markers.video_id, 7, 8], [count], MarkerIds((config.markers.video_id,), BEFORE, AFTER)
    )
    np.testing.assert_array_equal(prompt.tokens, golden["video_tokens"])
    grid = media_grid(config, plan, steps=len(pieces), seconds_per_step=1.5)
    positions = mrope_positions(len(prompt.tokens), prompt.spans, [grid]).positions
    np.testing.assert_array_equal(positions, golden["video_positions"])
    decoder = load_decoder(config.text, text_source(open_hf_folder(folder)), mesh, "float32")
    ours = logits(decoder, prompt.tokens, prompt.spans, rows, positions)
    np.testing.assert_allclose(ours, golden["video_logits"], atol=1e-4, rtol=0)
