"""GGUF files read as Hugging Face checkpoints: names, row order, slices, configuration, tokenizer."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from tests.models.weights.tiny_gguf import gguf_name, hf_tensors, tiny_config, write_gguf
from triptych.models.errors import UnsupportedModelError, WeightsError
from triptych.models.rope_config import LinearScaling, Llama3Scaling, RopeConfig
from triptych.models.weights.gguf import GGUFSource, open_gguf_model
from triptych.models.weights.gguf_config import gguf_model_config
from triptych.models.weights.gguf_file import open_gguf
from triptych.models.weights.load import load_decoder
from triptych.sharding.mesh import make_mesh

EVERYTHING = slice(None)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"])
@pytest.mark.parametrize("tied", [True, False])
def test_an_unquantised_file_is_the_checkpoint_it_was_made_from(tmp_path: Path, architecture: str, tied: bool):
    config = tiny_config(architecture, tie_embeddings=tied)
    tensors = hf_tensors(config)
    opened, source = open_gguf_model(write_gguf(tmp_path / "m.gguf", config, tensors))
    assert opened.fingerprint() == replace(config, rms_norm_eps=float(np.float32(1e-5))).fingerprint()
    assert (opened.eos_token_ids, opened.bos_token_id, opened.max_position) == ((261,), 260, 128)
    assert set(source.names()) == set(tensors)
    for name, expected in tensors.items():
        assert source.shape(name) == expected.shape
        np.testing.assert_array_equal(source.read(name, (EVERYTHING,) * expected.ndim), expected)


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.F16, Kind.BF16])
def test_any_slice_is_the_slice_of_the_whole(tmp_path: Path, kind: Kind):
    config = tiny_config(tie_embeddings=True)
    tensors = hf_tensors(config)
    _, source = open_gguf_model(write_gguf(tmp_path / "m.gguf", config, tensors, kinds={"proj": kind, "embed": kind}))
    for name in (
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.embed_tokens.weight",
    ):
        whole = source.read(name, (EVERYTHING, EVERYTHING))
        scale = np.abs(tensors[name]).max()
        assert np.abs(whole.astype(np.float32) - tensors[name]).max() < scale / 6
        rows, columns = whole.shape
        for part in (
            (slice(3, 29), slice(0, columns)),
            (slice(0, rows), slice(33, 64)),
            (slice(7, 8), slice(31, 33)),
            (slice(5, 5), slice(0, columns)),
            (slice(0, rows), slice(4, 4)),
        ):
            np.testing.assert_array_equal(source.read(name, part), whole[part])


def test_a_quantised_file_loads_onto_a_mesh(tmp_path: Path):
    config = tiny_config()
    path = write_gguf(tmp_path / "m.gguf", config, hf_tensors(config), kinds={"proj": Kind.Q8_0, "lm_head": Kind.Q8_0})
    opened, source = open_gguf_model(path)
    loaded = load_decoder(opened, source, make_mesh(jax.devices()[:2], 2), "float32")
    at = loaded.structure.paths.index("layers.1.ffn.down.weight")
    name = "model.layers.1.mlp.down_proj.weight"
    np.testing.assert_array_equal(np.asarray(loaded.params[at]), source.read(name, (EVERYTHING, EVERYTHING)))


def test_the_header_reads_as_the_gguf_package_reads_it(tmp_path: Path):
    config = tiny_config()
    path = write_gguf(
        tmp_path / "m.gguf", config, hf_tensors(config), metadata={"x.floats": [0.5, 1.5], "x.flag": True}
    )
    ours, theirs = open_gguf(path), gguf.GGUFReader(path)
    assert {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")} == ours.metadata
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert (mine.shape, mine.kind, mine.start) == (
            tuple(tensor.shape.tolist()[::-1]),
            tensor.tensor_type,
            tensor.data_offset,
        )


def test_rope_scaling_is_read_from_keys_and_from_stored_frequencies(tmp_path: Path):
    config = tiny_config()
    tensors = hf_tensors(config)
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    opened, _ = open_gguf_model(write_gguf(tmp_path / "linear.gguf", config, tensors, metadata=linear))
    assert opened.rope.scaling == LinearScaling(4.0)

    scaling = Llama3Scaling(8.0, 1.0, 4.0, 8192)
    plain = RopeConfig(500000.0)
    divisors = plain.inverse_frequencies(16) / RopeConfig(500000.0, scaling).inverse_frequencies(16)
    base = {"llama.rope.freq_base": 500000.0}
    stored = {"rope_freqs.weight": divisors.astype(np.float32)}
    path = write_gguf(tmp_path / "llama3.gguf", config, tensors, metadata=base, extra=stored)
    opened, source = open_gguf_model(path)
    assert opened.rope == RopeConfig(500000.0, scaling)
    assert set(source.names()) == set(tensors)

    other = {"rope_freqs.weight": np.linspace(1, 8, 8, dtype=np.float32)}
    path = write_gguf(tmp_path / "other.gguf", config, tensors, metadata=base, extra=other)
    with pytest.raises(UnsupportedModelError, match="no supported rope scaling"):
        open_gguf_model(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.architecture": "gemma3"}, "'gemma3' is not supported; supported: llama, qwen2, qwen3"),
        ({"llama.expert_count": 8}, "mixtures of experts"),
        ({"llama.rope.dimension_count": 8}, "partial rotary"),
        ({"llama.attention.head_count": [4, 2]}, "may vary per layer"),
    ],
)
def test_what_cannot_be_computed_is_refused(tmp_path: Path, metadata: dict, message: str):
    config = tiny_config()
    path = tmp_path / "m.gguf"
    file = open_gguf(write_gguf(path, config, hf_tensors(config)))
    with pytest.raises(UnsupportedModelError, match=message):
        gguf_model_config(replace(file, metadata={**file.metadata, **metadata}))


def test_a_sliding_window_makes_it_mistral(tmp_path: Path):
    config = tiny_config()
    window = {"llama.attention.sliding_window": 32}
    opened, _ = open_gguf_model(write_gguf(tmp_path / "m.gguf", config, hf_tensors(config), metadata=window))
    assert (opened.architecture, opened.layer_windows) == ("MistralForCausalLM", (32, 32))


def test_broken_files_are_errors_and_nothing_is_allocated_for_them(tmp_path: Path):
    config = tiny_config()
    good = write_gguf(tmp_path / "good.gguf", config, hf_tensors(config)).read_bytes()
    broken = {
        "no GGUF": b"ELF!" + good[4:],
        "version 9": b"GGUF" + struct.pack("<I", 9) + good[8:],
        "header": good[:200],
        "empty": b"",
        "GGUF header": b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60),
        "incomplete": b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 8, 1 << 60),
    }
    for message, content in broken.items():
        path = tmp_path / "broken.gguf"
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=message):
            open_gguf(path)
    with pytest.raises(WeightsError, match="missing"):
        open_gguf(tmp_path / "absent.gguf")


def test_a_file_without_its_last_bytes_is_an_error_when_they_are_read(tmp_path: Path):
    config = tiny_config()
    path = write_gguf(tmp_path / "m.gguf", config, hf_tensors(config))
    last = max(open_gguf(path).tensors.values(), key=lambda tensor: tensor.start)
    path.write_bytes(path.read_bytes()[: last.start + 8])
    _, source = open_gguf_model(path)
    name = next(name for name in source.names() if gguf_name(name) == last.name)
    with pytest.raises(WeightsError, match="cut off"):
        source.read(name, (EVERYTHING,) * len(source.shape(name)))


def test_an_unknown_quantisation_names_the_known_ones(tmp_path: Path):
    config = tiny_config()
    file = open_gguf(write_gguf(tmp_path / "m.gguf", config, hf_tensors(config)))
    name = "blk.0.ffn_up.weight"
    tensors = {**file.tensors, name: replace(file.tensors[name], kind=999)}
    with pytest.raises(WeightsError, match="ggml type 999.*Q4_0"):
        GGUFSource(replace(file, tensors=tensors), config).read(
            "model.layers.0.mlp.up_proj.weight", (EVERYTHING, EVERYTHING)
        )
