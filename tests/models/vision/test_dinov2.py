"""DINOv2 alone: the reference library's hidden states on a resized position table."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from tests.models.multimodal.forward import encode
from triptych.models.multimodal.hf_processing import normalisation, processing_from_hf
from triptych.models.multimodal.plans import plan_image
from triptych.models.multimodal.processing import process_image
from triptych.models.vision.hf_config import vision_from_hf
from triptych.models.vision.packing import Piece
from triptych.models.weights.hf import open_hf_folder
from triptych.models.weights.vision import load_encoder
from triptych.sharding.mesh import make_mesh

FOLDER = Path(__file__).parent.parent / "multimodal" / "goldens" / "dinov2"


def test_hidden_states_are_the_references_for_every_token_and_for_several_layers() -> None:
    golden = np.load(FOLDER / "golden.npz")
    settings = json.loads((FOLDER / "preprocessor_config.json").read_text())
    config = vision_from_hf(json.loads((FOLDER / "config.json").read_text()))
    mean, std = normalisation(settings, config)
    config = replace(config, mean=mean, std=std, output="all")
    processing = processing_from_hf(settings, "dinov2", config)
    pieces: list[Piece] = []
    for index in (0, 1):
        image = golden[f"image_{index}"]
        pieces += process_image(image, plan_image(processing, config, image.shape[1], image.shape[0]), config)
    # The table is of 7 x 7 patches, the pictures of 4 x 4.
    assert (config.position_grid, pieces[0].grid.rows) == (7, 4)
    mesh = make_mesh(jax.devices()[:1], 1)
    encoder = load_encoder(config, open_hf_folder(FOLDER), mesh, "float32")
    rows = encode(encoder, pieces, 50)
    for index in (0, 1):
        np.testing.assert_allclose(rows[index], golden[f"features_{index}"], atol=2e-5, rtol=0)

    several = replace(config, feature_layers=(2, 3), output="class")
    both = encode(load_encoder(several, open_hf_folder(FOLDER), mesh, "float32"), pieces, 50)
    assert both[0].shape == (1, 48)
    np.testing.assert_allclose(both[1][0, 24:], golden["features_1"][0], atol=2e-5, rtol=0)
