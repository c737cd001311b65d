"""Quantised models on meshes: what the loader places is the quantised checkpoint, and it computes what the dequantised one does."""

from __future__ import annotations

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.dequantised import dequantised
from tests.models.paged_model import NOBODY, Bucket, PagedModel
from triptych.models.config import PRESETS
from triptych.models.errors import QuantisationError
from triptych.models.weights.dummy import DummySource
from triptych.models.weights.load import LoadedDecoder, load_decoder
from triptych.models.weights.loaded import DecoderSource
from triptych.sharding.mesh import make_mesh

# Two devices pad the vocabulary.
TOY = dataclasses.replace(PRESETS["toy"], vocab_size=131, num_layers=1, layer_windows=(None,))
PROMPT = [17, 3, 99, 42, 42, 5, 128, 77, 1]
BUCKET = Bucket(12, 2, 1, 12)


@cache
def loaded(weights: str, tp: int = 1, dtype: str = "float32") -> LoadedDecoder:
    return load_decoder(TOY, DummySource(TOY, seed=3), make_mesh(jax.devices()[:tp], tp), dtype, weights)


@cache
def programs(weights: str, tp: int) -> dict[Bucket, jax.stages.Compiled]:
    """Shared by models of one structure."""
    return {}


def logits(model: LoadedDecoder, tp: int = 1) -> np.ndarray:
    """[tokens, vocab] of the prompt in one chunk, and of a decode step after it."""
    stored = model.structure.stored
    paged = PagedModel(model, np.random.default_rng(0), 3, programs("auto" if stored is None else stored.name, tp))
    sequence = paged.new_sequence()
    _, prompt = paged.step(BUCKET, [NOBODY, (sequence, PROMPT)])
    (step,) = paged.step(BUCKET, [(sequence, [7])])
    return np.concatenate((prompt, step))


@pytest.mark.parametrize("weights", ["int8", "fp8-layers", "int4-32"])
def test_a_quantised_model_computes_what_its_dequantised_matrices_do(weights: str):
    model = loaded(weights)
    expected = logits(dequantised(model))
    np.testing.assert_allclose(logits(model), expected, rtol=2e-4, atol=2e-4)
    # It is another model than the one that was quantised, but not far from it.
    error = np.abs(expected - logits(loaded("auto"))).mean() / np.abs(expected).mean()
    assert 1e-4 < error < 0.35


@pytest.mark.parametrize("weights", ["int8", "int4-32"])
def test_two_devices_hold_the_codes_of_one(weights: str):
    one, two = loaded(weights), loaded(weights, tp=2)
    assert two.structure.paths == one.structure.paths
    for path, single, spread in zip(one.structure.paths, one.params, two.params, strict=True):
        if "qkv" in path or "gate_up" in path:
            continue  # their rows are ordered by device
        inside = tuple(slice(0, size) for size in single.shape)
        np.testing.assert_array_equal(np.asarray(single, np.float32), np.asarray(spread, np.float32)[inside], path)


def test_two_devices_give_the_tokens_of_one():
    found, expected = logits(loaded("int4-32", tp=2), tp=2), logits(loaded("int4-32"))
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()


def test_what_stays_in_the_models_dtype_and_what_does_not():
    named = dict(zip(loaded("int4-32").structure.paths, loaded("int4-32").params, strict=True))
    kinds = {
        path.split(".", 2)[-1] if path.startswith("layers.") else path: array.dtype for path, array in named.items()
    }
    assert kinds["attention_norm.weight"] == kinds["norm.weight"] == jnp.float32
    assert kinds["attention.qkv.weight.packed"] == kinds["embedding.weight.codes"] == jnp.int8
    assert "lm_head.weight" not in named and "layers.0.ffn.down.weight" not in named
    layers = dict(zip(loaded("int8-layers").structure.paths, loaded("int8-layers").params, strict=True))
    assert layers["embedding.weight"].dtype == jnp.float32 and "embedding.weight.scale" not in layers
    assert loaded("int8").nbytes() < 0.3 * loaded("auto").nbytes()


def test_what_does_not_fit_is_a_typed_error():
    with pytest.raises(QuantisationError, match="unknown; known: auto, int8"):
        loaded("int7")
    with pytest.raises(QuantisationError, match="64 inputs are no whole groups of 128"):
        loaded("int4-128")
    with pytest.raises(QuantisationError, match="128 inputs on 8 devices are no whole groups of 32"):
        loaded("int4-32", tp=8)
    with pytest.raises(QuantisationError, match="int8 codes, of which no checkpoint is made"):
        DecoderSource(loaded("int8"))
