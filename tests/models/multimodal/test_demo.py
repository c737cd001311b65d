"""The shipped weights of the demo model fit its configuration, and their log says that it sees."""

import json

import pytest

from triptych.models.config import ModelConfig
from triptych.models.multimodal.demo import DEMO_VLM
from triptych.models.weights.hf import SafetensorsSource

BOUNDS = {"colour": 0.9, "shape": 0.9, "digit": 0.9, "count": 0.7, "relation": 0.7}


def test_the_connector_is_the_one_that_the_configuration_describes() -> None:
    connector = DEMO_VLM.connector
    trained = SafetensorsSource([DEMO_VLM.trained_file()])
    merged = DEMO_VLM.vision(connector).feature_size * connector.merge**2
    assert trained.shape("connector.merged_norm.weight") == (merged,)
    assert trained.shape("connector.first.weight") == (connector.hidden_size, merged)
    assert trained.shape("connector.second.weight") == (connector.outputs, connector.hidden_size)
    adapters = [name for name in trained.names() if name.endswith(".a")]
    assert len(adapters) == 4 * 30 and all(trained.shape(name)[1] == DEMO_VLM.rank for name in adapters)


def test_an_image_is_sixty_four_embeddings() -> None:
    text = ModelConfig("t", "LlamaForCausalLM", 64, 576, 1, 9, 3, 64, 8, 512, (None,))
    config = DEMO_VLM.build(text, 4)
    assert config.plan(640, 480).piece_rows == (64,)
    assert config.markers.image_id == 4


@pytest.mark.parametrize("skill", BOUNDS)
def test_held_out_accuracy(skill: str) -> None:
    log = json.loads(DEMO_VLM.trained_file().with_name("training.json").read_text())
    assert log["asked"][skill] > 500 and log["accuracy"][skill] >= BOUNDS[skill]
