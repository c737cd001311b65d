"""Random weights made on the device: the same model on any mesh, with the spread of `dummy.py`, and zeros in pads."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import replace

import jax
import numpy as np
import pytest

from triptych.models.config import PRESETS
from triptych.models.structure import DecoderStructure, decoder_structure
from triptych.models.weights.on_device import random_parameters
from triptych.models.weights.parts import parameter_parts
from triptych.sharding.mesh import make_mesh
from triptych.sharding.rules import ShardingRules

# Biases and per-head norms, KV heads that have to be repeated on four devices, an FFN and a vocabulary that have to be padded.
ODD = replace(PRESETS["toy"], architecture="Qwen3ForCausalLM", num_heads=6, num_kv_heads=2, intermediate_size=126, vocab_size=259, qk_norm=True, qkv_bias=True)  # fmt: skip


def structure_on(tp: int) -> DecoderStructure:
    return decoder_structure(ODD, ShardingRules(make_mesh(jax.devices()[:tp], tp)), "float32")


def tensors(structure: DecoderStructure, parameters: Iterable[jax.Array]) -> dict[str, np.ndarray]:
    """By name and in logical order, read back from wherever they lie; asserts that nothing else is there."""
    found: dict[str, np.ndarray] = {}
    for path, array in zip(structure.paths, parameters, strict=True):
        whole, seen = np.asarray(array), np.zeros(array.shape, bool)
        for part in parameter_parts(path, structure.config, structure.head_layout):
            logical = np.full([axis.logical_size for axis in part.maps], np.nan, np.float32)
            for place in np.ndindex(*(len(axis.sources) for axis in part.maps)):
                sources = [axis.sources[at] for axis, at in zip(part.maps, place, strict=True)]
                if None in sources:
                    continue
                here = tuple(
                    slice(at * axis.block, (at + 1) * axis.block) for axis, at in zip(part.maps, place, strict=True)
                )
                there = tuple(
                    slice(source * axis.block, (source + 1) * axis.block)
                    for axis, source in zip(part.maps, sources, strict=True)
                )  # type: ignore[operator]
                known = logical[there]
                assert np.isnan(known).all() or np.array_equal(known, whole[here]), f"copies of {part.name} differ"
                logical[there] = whole[here]
                seen[here] = True
            found[part.name] = logical.transpose(part.order)
        assert not whole[~seen].any(), f"pads of {path} are not zero"
    return found


def test_every_mesh_holds_the_same_model_and_zeros_in_its_pads():
    one, four = (tensors(s, random_parameters(s)) for s in (structure_on(1), structure_on(4)))
    assert one.keys() == four.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, four[name], err_msg=name)
        assert np.isfinite(values).all(), name


def test_weights_have_the_spread_of_their_inputs_and_nothing_in_common():
    structure = structure_on(1)
    found = tensors(structure, random_parameters(structure))
    for name, values in found.items():
        if name.endswith("norm.weight"):
            assert (values == 1).all(), name
            continue
        wanted = values.shape[1] ** -0.5 if values.ndim == 2 else 0.02
        assert values.std() == pytest.approx(wanted, rel=0.03 if values.size > 5000 else 0.3), name
        assert abs(values.mean()) < 4 * wanted / values.size**0.5, name
    matrices = [v for v in found.values() if v.shape == (126, 64)]
    assert len(matrices) == 4, "gate and up of two layers"
    for at, matrix in enumerate(matrices):
        rows = np.corrcoef(matrix)
        assert abs(rows[np.triu_indices(126, 1)]).max() < 0.7, "rows are independent"
        for other in matrices[:at]:
            assert abs(np.corrcoef(matrix.reshape(-1), other.reshape(-1))[0, 1]) < 0.05


def test_another_seed_is_another_model():
    structure = structure_on(1)
    first, second, again = (np.asarray(next(random_parameters(structure, seed))) for seed in (0, 1, 0))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, again)


def test_no_parameter_is_held_behind_its_takers_back():
    """A quantised model is loaded matrix by matrix; all of them at once may be more than a device holds."""
    parameters = random_parameters(structure_on(1))
    first = weakref.ref(next(parameters))
    assert first() is None
