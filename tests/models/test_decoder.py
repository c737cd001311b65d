"""What programs rely on beyond the logits: layer ranges compose, dtypes hold, pools are updated in place."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from triptych.models.config import PRESETS
from triptych.models.decoder import extend, extend_layers
from triptych.models.kv import kv_groups
from triptych.models.ragged import Ragged
from triptych.models.structure import decoder_structure
from triptych.models.weights.dummy import DummySource
from triptych.models.weights.load import LoadedDecoder, load_decoder
from triptych.sharding.mesh import make_mesh
from triptych.sharding.rules import ShardingRules

CONFIG = PRESETS["toy"]
NUM_PAGES, PAGE_SIZE = 9, 4


def load(dtype: str) -> LoadedDecoder:
    return load_decoder(CONFIG, DummySource(CONFIG), make_mesh(jax.devices()[:1], 1), dtype)


def pools_of(loaded: LoadedDecoder):
    return loaded.structure.allocate_pools(kv_groups(CONFIG, str(loaded.structure.dtype))[0], NUM_PAGES, PAGE_SIZE)


def prompt_batch() -> Ragged:
    tokens = jnp.arange(6)
    table = jnp.array([[3, 5]])
    write = jnp.array([12, 13, 14, 15, 20, 21])
    return Ragged(tokens + 70, tokens, write, jnp.array([6]), table, jnp.array([0, 6]), decode_rows=0, max_q_len=6)


def test_layer_ranges_with_hidden_states_in_and_out_are_the_whole_model() -> None:
    loaded, batch = load("float32"), prompt_batch()
    decoder = loaded.merge(loaded.params)
    pools = pools_of(loaded)
    whole, whole_pools = extend(decoder, pools, batch)
    x = decoder.embed(batch.tokens)
    x, first = extend_layers(decoder, x, pools[:1], batch, range(1))
    x, second = extend_layers(decoder, x, pools[1:], batch, range(1, 2))
    np.testing.assert_allclose(decoder.norm(x), whole, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, (*first, *second), whole_pools)


def test_a_layer_range_needs_one_pool_a_layer() -> None:
    loaded = load("float32")
    decoder = loaded.merge(loaded.params)
    with pytest.raises(ValueError, match="1 layers need as many pools, got 2"):
        extend_layers(decoder, jnp.zeros((6, CONFIG.hidden_size)), pools_of(loaded), prompt_batch(), range(1))


def test_only_the_written_slots_of_the_pools_change() -> None:
    loaded, batch = load("float32"), prompt_batch()
    _, pools = extend(loaded.merge(loaded.params), pools_of(loaded), batch)
    for pool in jax.tree.leaves(pools):
        written = np.flatnonzero(np.abs(np.asarray(pool)).reshape(NUM_PAGES * PAGE_SIZE, -1).sum(axis=1))
        assert written.tolist() == np.asarray(batch.write_index).tolist()


def test_bfloat16_keeps_activations_narrow_and_logits_wide() -> None:
    narrow, wide, batch = load("bfloat16"), load("float32"), prompt_batch()
    decoder = narrow.merge(narrow.params)
    hidden, pools = extend(decoder, pools_of(narrow), batch)
    logits = decoder.head(hidden)
    assert hidden.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    assert {pool.dtype for pool in jax.tree.leaves(pools)} == {jnp.dtype("bfloat16")}
    reference, _ = extend(wide.merge(wide.params), pools_of(wide), batch)
    exact = wide.merge(wide.params).head(reference)
    # bfloat16 has 8 bits: a few roundings a layer, on logits of order one.
    np.testing.assert_allclose(logits, exact, atol=0.15)


@pytest.mark.parametrize(
    ("tokens", "rows", "width", "kv_dtype"),
    [
        *((tokens, rows, width, "float32") for tokens, rows in ((1, 1), (8, 8), (8, 1)) for width in (8, 64)),
        (1, 1, 64, "int8"),
        *(pytest.param(*sizes, "int8", marks=pytest.mark.slow) for sizes in ((1, 1, 8), (8, 8, 8), (8, 1, 64))),
    ],
)
def test_a_step_does_not_copy_its_pools(tokens: int, rows: int, width: int, kv_dtype: str) -> None:
    """A donated pool is written in place, be it for one row, many or a prompt: scratch memory does not grow with the pool."""
    loaded = load("float32")
    (group,) = kv_groups(CONFIG, kv_dtype)

    def scratch_bytes(num_pages: int) -> int:
        layer = loaded.structure.pool_structs(group, num_pages, PAGE_SIZE)

        def program(params, pools, batch):
            decoder = loaded.merge(params)
            hidden, pools = extend(decoder, pools, batch)
            return decoder.head(hidden), pools

        def ints(*shape: int) -> Any:
            return jax.ShapeDtypeStruct(shape, jnp.int32)

        decode_rows, max_q_len = (rows, 1) if rows == tokens else (0, tokens)
        slots = ints(tokens)
        batch = Ragged(slots, slots, slots, ints(rows), ints(rows, width), ints(rows + 1), decode_rows, max_q_len)
        pools = (layer,) * len(group.layers)
        compiled = jax.jit(program, donate_argnums=1).lower(loaded.structure.abstract, pools, batch).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    smallest = min(array.size * array.dtype.itemsize for array in loaded.structure.pool_structs(group, 496, PAGE_SIZE))
    assert scratch_bytes(512) - scratch_bytes(16) < smallest // 8


def test_the_output_head_gathers_logits_and_not_its_weight() -> None:
    """Over four devices: the weight is the largest array of a small model, and every step would move it."""
    rows = 8
    rules = ShardingRules(make_mesh(jax.devices()[:4], 4))
    structure = decoder_structure(CONFIG, rules, "float32")
    hidden = jax.ShapeDtypeStruct((rows, CONFIG.hidden_size), jnp.float32, sharding=rules.replicated())
    head = jax.jit(lambda params, x: structure.merge(params).head(x), out_shardings=rules.replicated())
    text = head.lower(structure.abstract, hidden).compile().as_text()
    assert text is not None
    gathered = re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", text)
    assert gathered == [f"{rows},{CONFIG.vocab_size}"]
