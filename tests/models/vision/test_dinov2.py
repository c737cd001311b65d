"""DINOv2 alone: the reference library's hidden states on a resized position table."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.models.multimodal.forward import encode
from triptych.models.multimodal.hf_processing import normalisation, processing_from_hf
from triptych.models.multimodal.plans import plan_image
from triptych.models.multimodal.processing import process_image
from triptych.models.vision.config import VisionConfig
from triptych.models.vision.hf_config import vision_from_hf
from triptych.models.vision.packing import Piece
from triptych.models.weights.hf import open_hf_folder
from triptych.models.weights.vision import load_encoder
from triptych.sharding.mesh import make_mesh

GOLDENS = Path(__file__).parent.parent / "multimodal" / "goldens"


def opened(name: str) -> tuple[VisionConfig, list[Piece], Mapping[str, np.ndarray]]:
    """A golden's configuration, the pieces of its two pictures, and its arrays."""
    folder, golden = GOLDENS / name, np.load(GOLDENS / name / "golden.npz")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    config = vision_from_hf(json.loads((folder / "config.json").read_text()))
    mean, std = normalisation(settings, config)
    config = replace(config, mean=mean, std=std, output="all")
    processing = processing_from_hf(settings, "dinov2", config)
    pieces: list[Piece] = []
    for index in (0, 1):
        image = golden[f"image_{index}"]
        pieces += process_image(image, plan_image(processing, config, image.shape[1], image.shape[0]), config)
    return config, pieces, golden


def rows_of(config: VisionConfig, name: str, pieces: list[Piece]) -> list[np.ndarray]:
    mesh = make_mesh(jax.devices()[:1], 1)
    return encode(load_encoder(config, open_hf_folder(GOLDENS / name), mesh, "float32"), pieces, 50)


@pytest.mark.parametrize("name", ["dinov2", "dinov2_swiglu"])
def test_hidden_states_are_the_references(name: str) -> None:
    config, pieces, golden = opened(name)
    rows = rows_of(config, name, pieces)
    for index in (0, 1):
        np.testing.assert_allclose(rows[index], golden[f"features_{index}"], atol=2e-5, rtol=0)


def test_the_goldens_resize_the_table_and_gate_the_ffn() -> None:
    config, pieces, _ = opened("dinov2")
    assert (config.position_grid, pieces[0].grid.rows) == (7, 4)
    assert opened("dinov2_swiglu")[0].gated


def test_class_tokens_of_several_layers_come_side_by_side() -> None:
    config, pieces, golden = opened("dinov2")
    rows = rows_of(replace(config, feature_layers=(2, 3), output="class"), "dinov2", pieces)
    assert rows[0].shape == (1, 48)
    np.testing.assert_allclose(rows[1][0, 24:], golden["features_1"][0], atol=2e-5, rtol=0)
    assert np.abs(rows[1][0, :24] - rows[1][0, 24:]).max() > 0.1
