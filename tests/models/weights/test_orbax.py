"""Orbax checkpoints hold the logical weights: written from any mesh, read onto any other."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.models.weights.tiny_gguf import hf_tensors, tiny_config
from triptych.models.config import PRESETS, ModelConfig
from triptych.models.errors import WeightsError
from triptych.models.rope_config import DynamicScaling, LinearScaling, Llama3Scaling, RopeConfig, YarnScaling
from triptych.models.text.hf_tokenizer import chat_template_from_folder, tokenizer_from_folder
from triptych.models.text.toy import TOY_CHAT_TEMPLATE, toy_tokenizer
from triptych.models.weights.config_json import config_from_json, config_to_json
from triptych.models.weights.dummy import DummySource
from triptych.models.weights.load import LoadedDecoder, load_decoder
from triptych.models.weights.loaded import DecoderSource
from triptych.models.weights.orbax import INDEX_FILE, open_orbax, save_orbax
from triptych.models.weights.source import TensorSource
from triptych.sharding.mesh import make_mesh

EVERYTHING = slice(None)
TOY = PRESETS["toy"]

# Three KV heads: padded on two and on four devices, so pads must not reach the checkpoint.
PADDED = tiny_config(num_heads=6, num_kv_heads=3, intermediate_size=90, vocab_size=263)


def whole(source: TensorSource, name: str) -> np.ndarray:
    return source.read(name, (EVERYTHING,) * len(source.shape(name)))


def on_devices(config: ModelConfig, source: TensorSource, tp: int) -> LoadedDecoder:
    return load_decoder(config, source, make_mesh(jax.devices()[:tp], tp), "float32")


def test_a_checkpoint_is_the_source_it_was_written_from(tmp_path: Path):
    source = DummySource(TOY)
    save_orbax(tmp_path / "toy", TOY, source, tokenizer=toy_tokenizer(), chat_template=TOY_CHAT_TEMPLATE)
    config, read = open_orbax(tmp_path / "toy")
    assert config == TOY and set(read.names()) == set(source.names())
    for name in source.names():
        assert read.shape(name) == source.shape(name)
        np.testing.assert_array_equal(whole(read, name), whole(source, name))
    part = (slice(3, 9), slice(17, 40))
    name = "model.layers.1.mlp.up_proj.weight"
    np.testing.assert_array_equal(read.read(name, part), whole(source, name)[part])
    assert tokenizer_from_folder(tmp_path / "toy").encode("a<|im_end|>") == [97, 258]
    assert chat_template_from_folder(tmp_path / "toy") == TOY_CHAT_TEMPLATE


@pytest.mark.parametrize(("saved_from", "restored_to"), [(2, 4), (4, 1), (1, 2)])
def test_a_model_restores_onto_another_number_of_devices(tmp_path: Path, saved_from: int, restored_to: int):
    tensors = hf_tensors(PADDED)
    loaded = on_devices(PADDED, DummySource(PADDED), saved_from)
    save_orbax(tmp_path / "m", PADDED, DecoderSource(loaded))
    config, source = open_orbax(tmp_path / "m")
    for name, expected in tensors.items():
        np.testing.assert_array_equal(whole(source, name), expected)
    restored, expected = on_devices(config, source, restored_to), on_devices(PADDED, DummySource(PADDED), restored_to)
    for mine, theirs in zip(restored.params, expected.params, strict=True):
        assert mine.sharding == theirs.sharding
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))


def test_each_group_is_an_ordinary_orbax_checkpoint(tmp_path: Path):
    save_orbax(tmp_path / "toy", TOY, DummySource(TOY), dtype="bfloat16")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        struct = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        norm = {"model.norm.weight": ocp.ArrayRestoreArgs(sharding=struct)}
        tree = checkpointer.restore(
            tmp_path / "toy" / "params" / "norm", args=ocp.args.PyTreeRestore(restore_args=norm)
        )
    assert tree["model.norm.weight"].shape == (64,)
    _, source = open_orbax(tmp_path / "toy")
    assert whole(source, "model.norm.weight").dtype.name == "bfloat16"


def test_an_interrupted_save_leaves_nothing(tmp_path: Path):
    class Failing(DummySource):
        def read(self, name: str, slices: tuple[slice, ...]) -> np.ndarray:
            if "layers.1" in name:
                raise OSError("disk full")
            return super().read(name, slices)

    with pytest.raises(OSError, match="disk full"):
        save_orbax(tmp_path / "m", TOY, Failing(TOY))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "m").mkdir()
    with pytest.raises(FileExistsError, match="another folder"):
        save_orbax(tmp_path / "m", TOY, DummySource(TOY))


def test_foreign_and_damaged_folders_are_errors(tmp_path: Path):
    with pytest.raises(WeightsError, match=INDEX_FILE):
        open_orbax(tmp_path)
    save_orbax(tmp_path / "m", TOY, DummySource(TOY))
    index = tmp_path / "m" / INDEX_FILE
    content = json.loads(index.read_text())
    content["tensors"]["model.norm.weight"]["shape"] = [63]
    content["tensors"]["lost"] = {"group": "norm", "shape": [1], "dtype": "float32"}
    index.write_text(json.dumps(content))
    _, source = open_orbax(tmp_path / "m")
    with pytest.raises(WeightsError, match="the index says"):
        source.read("model.norm.weight", (EVERYTHING,))
    with pytest.raises(WeightsError, match="cannot be read"):
        source.read("lost", (EVERYTHING,))
    index.write_text(json.dumps(content | {"version": 99}))
    with pytest.raises(WeightsError, match="version 99"):
        open_orbax(tmp_path / "m")
    index.write_text("{")
    with pytest.raises(WeightsError, match="not JSON"):
        open_orbax(tmp_path / "m")


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        LinearScaling(2.0),
        DynamicScaling(2.0, 64),
        Llama3Scaling(8.0, 1.0, 4.0, 8192),
        YarnScaling(4.0, 32, 32.0, 1.0, 1.1, True),
    ],
)
def test_a_configuration_survives_json(scaling):
    config = tiny_config(rope=RopeConfig(500.0, scaling), layer_windows=(None, 7), pad_token_id=None)
    assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config


def test_an_unknown_field_in_a_stored_configuration_is_an_error():
    with pytest.raises(WeightsError, match="unknown field"):
        config_from_json(config_to_json(TOY) | {"experts": 8})
