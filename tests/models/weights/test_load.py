"""Loading onto meshes: shards hold exactly their part, pads are zeros, replicas are copies."""

import dataclasses

import jax
import numpy as np
import pytest

from triptych.models.config import PRESETS
from triptych.models.weights.dummy import DummySource
from triptych.models.weights.load import check_tensors, load_decoder
from triptych.models.weights.padding import AxisMap, axis_map, read_physical
from triptych.models.weights.source import hf_names
from triptych.sharding.heads import head_layout
from triptych.sharding.mesh import make_mesh

TOY = PRESETS["toy"]
# tp=2 pads its KV heads, its FFN and its vocabulary.
AWKWARD = dataclasses.replace(
    TOY, num_heads=6, num_kv_heads=3, intermediate_size=101, vocab_size=131, qkv_bias=True, o_bias=True, mlp_bias=True
)


def whole(source: DummySource, name: str) -> np.ndarray:
    return np.array(source.read(name, tuple(slice(0, size) for size in source.shape(name))))


def test_physical_axes_read_as_a_gather_of_logical_indices_with_zeros() -> None:
    rng = np.random.default_rng(0)
    for sources in [(0, 1, 2, None), (0, 0, 1, 1), (None, 1, 0), (0, 1, 2)]:
        axis = AxisMap(3, sources)
        logical = rng.standard_normal((axis.logical_size, 2))
        blocks = [np.zeros((3, 2)) if at is None else logical[at * 3 : at * 3 + 3] for at in sources]
        expected = np.concatenate(blocks)
        for start in range(axis.physical_size):
            for stop in range(start + 1, axis.physical_size + 1):
                index = (slice(start, stop), slice(0, 2))
                shard = read_physical([axis, AxisMap(2, (0,))], index, np.dtype(float), logical.__getitem__)
                np.testing.assert_array_equal(shard, expected[start:stop])


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_shards_put_together_are_the_checkpoint_without_pads_and_with_replicas(tp: int) -> None:
    config = dataclasses.replace(TOY, num_kv_heads=2) if tp == 4 else AWKWARD
    source = DummySource(config)
    loaded = load_decoder(config, source, make_mesh(jax.devices()[:tp], tp), "float32")
    layout = loaded.head_layout
    named = dict(zip(loaded.structure.paths, loaded.params, strict=True))
    qkv = np.asarray(named["layers.1.attention.qkv.weight"]).T.reshape(tp, -1, config.head_dim, config.hidden_size)
    q_heads, kv_heads = layout.heads_per_device, layout.kv_heads_per_device
    q, k, v = np.split(qkv, (q_heads, q_heads + kv_heads), axis=1)
    by_tensor = zip((q, k, v), (layout.query_sources(), layout.kv_sources(), layout.kv_sources()), "qkv", strict=True)
    for physical, sources, letter in by_tensor:
        stored = whole(source, f"model.layers.1.self_attn.{letter}_proj.weight")
        stored = stored.reshape(-1, config.head_dim, config.hidden_size)
        for slot, head in zip(physical.reshape(-1, *stored.shape[1:]), sources, strict=True):
            np.testing.assert_array_equal(slot, 0 if head is None else stored[head])
    gate_up = np.asarray(named["layers.0.ffn.gate_up.weight"]).T.reshape(tp, 2, -1, config.hidden_size)
    for at, name in enumerate(("gate_proj", "up_proj")):
        physical, stored = (
            gate_up[:, at].reshape(-1, config.hidden_size),
            whole(source, f"model.layers.0.mlp.{name}.weight"),
        )
        np.testing.assert_array_equal(physical[: len(stored)], stored)
        assert not physical[len(stored) :].any()
    for path in ("embedding.weight", "layers.0.ffn.down.weight", "norm.weight"):
        (name,) = hf_names(path)
        array, logical = np.asarray(named[path]), whole(source, name)
        inside = tuple(slice(0, size) for size in logical.shape)
        np.testing.assert_array_equal(array[inside], logical)
        assert np.abs(array).sum() == pytest.approx(np.abs(logical).sum(), rel=1e-5)
    assert all(
        array.sharding == struct.sharding
        for array, struct in zip(loaded.params, loaded.structure.abstract, strict=True)
    )


def test_dummy_weights_are_the_same_however_they_are_sliced_and_differ_by_seed_and_name() -> None:
    source = DummySource(TOY)
    name, other = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"
    full = whole(source, name)
    np.testing.assert_array_equal(source.read(name, (slice(5, 9), slice(3, 60))), full[5:9, 3:60])
    assert np.abs(full - whole(source, other)).max() > 0.1
    assert np.abs(full - whole(DummySource(TOY, seed=1), name)).max() > 0.1
    assert full.std() == pytest.approx(TOY.hidden_size**-0.5, rel=0.1)


def test_dummy_sources_name_exactly_the_parameters_of_every_preset() -> None:
    mesh = make_mesh(jax.devices()[:1], 1)
    for config in (AWKWARD, dataclasses.replace(TOY, qk_norm=True, tie_embeddings=False)):
        loaded = load_decoder(config, DummySource(config), mesh, "float32")
        check_tensors(loaded.structure, DummySource(config))
        assert sum(array.size for array in loaded.params) == config.parameter_count()
        assert loaded.nbytes() == 4 * config.parameter_count()


def test_axes_that_no_parameter_has_are_refused() -> None:
    with pytest.raises(ValueError, match="pages"):
        axis_map("pages", TOY, head_layout(8, 4, 1))
