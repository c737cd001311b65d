"""Vision-language models by name: the preset, and text sides that work without the encoder."""

from pathlib import Path

import jax
import pytest

from triptych.models.config import PRESETS
from triptych.models.hub.bundle import open_model
from triptych.models.hub.encoder import load_model_encoder
from triptych.models.hub.errors import ModelNotFoundError
from triptych.models.hub.media import open_multimodal
from triptych.models.hub.resolve import resolve_model
from triptych.models.hub.text import open_text
from triptych.models.multimodal.presets import TOY_IMAGE_ID
from triptych.models.multimodal.prompt import expand, marker_ids
from triptych.models.weights.load import load_decoder
from triptych.sharding.mesh import make_mesh

GOLDENS = Path(__file__).parent.parent / "multimodal" / "goldens"


def test_the_toy_has_the_text_of_the_toy_and_an_encoder(tmp_path: Path) -> None:
    resolved = resolve_model("dummy:toy-vlm", tmp_path)
    assert resolved.revision != resolve_model("dummy:toy", tmp_path).revision
    text = open_text(resolved)
    assert text.config.fingerprint() == PRESETS["toy"].fingerprint()
    assert text.tokenizer is not None
    assert text.chat_template is not None
    config = open_multimodal(resolved)
    assert config is not None
    assert config.plan(640, 480).tokens == 16
    prompt = text.tokenizer.encode("a<|pad|>b", add_special_tokens=False)
    expanded = expand(prompt, [16], marker_ids(config.markers, text.tokenizer.id_of))
    assert expanded.tokens.tolist() == [97, *[TOY_IMAGE_ID] * 16, 98]
    encoder = load_model_encoder(resolved, config, make_mesh(jax.devices()[:2], 2), "float32")
    assert encoder.config.output_size == text.config.hidden_size


def test_text_models_have_no_multimodal_side(tmp_path: Path) -> None:
    assert open_multimodal(resolve_model("dummy:toy", tmp_path)) is None
    text_folder = GOLDENS.parent.parent / "goldens" / "llama2"
    assert open_multimodal(resolve_model(str(text_folder), tmp_path)) is None


def test_a_folder_opens_as_a_text_model_of_its_decoder(tmp_path: Path) -> None:
    resolved = resolve_model(str(GOLDENS / "llava"), tmp_path)
    bundle = open_model(resolved)
    assert bundle.config.architecture == "LlamaForCausalLM"
    assert not any("vision" in name for name in bundle.tensor_source.names())
    loaded = load_decoder(bundle.config, bundle.tensor_source, make_mesh(jax.devices()[:1], 1), "float32")
    assert sum(array.size for array in loaded.params) == bundle.config.parameter_count()


def test_unknown_presets_name_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="toy-vlm"):
        resolve_model("dummy:nothing", tmp_path)
