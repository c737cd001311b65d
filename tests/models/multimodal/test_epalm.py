"""eP-ALM: every level's class token through one linear layer, and where each of them goes."""

import json

import jax
import numpy as np
import pytest

from triptych.models.config import ModelConfig
from triptych.models.errors import UnsupportedModelError
from triptych.models.hub.demo_weights import PROMPT_ROWS
from triptych.models.multimodal.config import MultimodalConfig
from triptych.models.multimodal.epalm import DEMO_EPALM, injections
from triptych.models.multimodal.presets import VLM_PRESETS
from triptych.models.vision.packing import Grid, Piece, pack
from triptych.models.weights.hf import SafetensorsSource
from triptych.models.weights.vision import dummy_encoder
from triptych.sharding.mesh import make_mesh

TOY = VLM_PRESETS["toy-epalm"]


def test_steps_are_equal_and_the_highest_level_has_the_rest() -> None:
    assert injections(2, 9, 3) == ((2, 0), (3, 0), (4, 1), (5, 1), (6, 2), (7, 2), (8, 2))


def test_an_embedding_is_every_level_projected_by_the_same_layer() -> None:
    loaded = dummy_encoder(TOY.vision, make_mesh(jax.devices()[:1], 1), "float32")
    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, TOY.vision.patch_dim), np.uint8)
    packed, ranges = pack([Piece(p, Grid(4, 4)) for p in pictures], TOY.vision, 40)

    def run(params, packed):  # type: ignore[no-untyped-def]
        encoder = loaded.merge(params)
        return encoder(packed), encoder.features(packed)

    rows, features = (np.asarray(out) for out in jax.jit(run)(loaded.params, packed))
    weights = dict(zip(loaded.structure.paths, map(np.asarray, loaded.params), strict=True))
    assert [part.stop - part.start for part in ranges] == [1, 1]
    class_tokens = features[np.flatnonzero(np.asarray(packed.is_class))[:2]]
    projected = [
        level @ weights["connector.first.weight"].T + weights["connector.first.bias"]
        for level in np.split(class_tokens, 2, axis=1)
    ]
    np.testing.assert_allclose(rows[:2], np.concatenate(projected, axis=1), atol=1e-5)
    assert rows.shape[1] == TOY.vision.output_size == 2 * TOY.text.hidden_size


def test_an_image_is_one_token_behind_its_soft_prompt() -> None:
    text = ModelConfig("t", "LlamaForCausalLM", 64, 576, 30, 9, 3, 64, 8, 512, (None,) * 30)
    config = DEMO_EPALM.build(text, 5)
    assert config.plan(640, 480).piece_rows == (1,)
    assert config.vision.output_size == 6 * 576
    assert config.markers.image == "".join(DEMO_EPALM.prompt) and len(DEMO_EPALM.prompt) == 11


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (((1, 0), (0, 1)), "layers"),
        (((0, 0), (2, 1)), "layers"),
        (((0, 0), (0, 1)), "layers"),
        (((0, 0),), "rows of 128"),
    ],
)
def test_injections_that_do_not_fit_are_refused(where: tuple[tuple[int, int], ...], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        MultimodalConfig(TOY.text, TOY.vision, TOY.processing, TOY.markers, injections=where)


def test_the_shipped_weights_are_a_linear_layer_and_a_soft_prompt() -> None:
    trained = SafetensorsSource([DEMO_EPALM.trained_file()])
    assert {name: tuple(trained.shape(name)) for name in trained.names()} == {
        "connector.first.weight": (576, 384),
        "connector.first.bias": (576,),
        PROMPT_ROWS: (len(DEMO_EPALM.prompt), 576),
    }


def test_the_log_says_that_it_sees_more_than_nothing() -> None:
    """Not what the demo model reaches: class tokens say little about which thing is where (docs/decisions/020-ep-alm.md)."""
    log = json.loads(DEMO_EPALM.trained_file().with_name("training.json").read_text())
    assert log["accuracy"]["digit"] > 0.8 and log["accuracy"]["count"] > 0.8
    assert log["swapped"]["follows the image"] > 0.6
