"""The kernel for a few tokens and int8 codes, interpreted, against the products that it stands for; and what takes its summands."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from triptych.models.attend import PlainOps, Projected, added, paged_attend
from triptych.models.config import PRESETS
from triptych.models.decoder import FusedLinear, Linear
from triptych.models.kernels import gpu_ops as gpu
from triptych.models.kernels.codes_triton import MOST_TOKENS, Tile, codes_gated, codes_product, tile_of
from triptych.models.kernels.heads_triton import HeadNorms, rotate_and_write
from triptych.models.kernels.norm_triton import add_norm
from triptych.models.quantised import channel_product, quantise
from triptych.models.ragged import Ragged
from triptych.models.rope import Rotation
from triptych.models.weight_formats import WEIGHT_FORMATS, weight_format
from triptych.models.weights.dummy import DummySource
from triptych.models.weights.load import load_decoder
from triptych.sharding.mesh import make_mesh
from triptych.sharding.rules import ShardingRules

TOY = PRESETS["toy"]
ROUNDING = 2**-7  # of bfloat16, relative


def rules(tp: int = 1) -> ShardingRules:
    return ShardingRules(make_mesh(jax.devices()[:tp], tp))


def normal(seed: int, *shape: int, dtype: str = "bfloat16") -> jax.Array:
    return jnp.array(np.random.default_rng(seed).standard_normal(shape), dtype)


def codes(outputs: int, inputs: int) -> tuple[jax.Array, jax.Array]:
    made = quantise(WEIGHT_FORMATS["int8"], normal(1, outputs, inputs, dtype="float32") * inputs**-0.5)
    return made["codes"], made["scale"]


def close(got: jax.Array, expected: jax.Array) -> None:
    ours, theirs = (np.asarray(array, np.float32) for array in (got, expected))
    np.testing.assert_allclose(ours, theirs, rtol=2 * ROUNDING, atol=2 * ROUNDING * np.abs(theirs).max())


@pytest.mark.parametrize("tokens", [1, 8, 20])
@pytest.mark.parametrize("tile", [Tile(16, 64, 1, 2), Tile(32, 64, 4, 2), Tile(64, 128, 2, 4)], ids=str)
def test_a_product_is_the_compilers(tokens: int, tile: Tile) -> None:
    x, (matrix, scale) = normal(0, tokens, 256), codes(192, 256)
    got = codes_product(x, matrix, scale, tile, interpret=True)
    assert got.shape == (tile.parts, tokens, 192) and got.dtype == (jnp.bfloat16 if tile.parts == 1 else jnp.float32)
    close(added(got, jnp.dtype("bfloat16")), channel_product(x, matrix, scale))


@pytest.mark.parametrize("tokens", [3, 8])
def test_a_gated_product_is_swiglus_first_half(tokens: int) -> None:
    x, (matrix, scale) = normal(0, tokens, 128), codes(2 * 96, 128)
    gate, up = jnp.split(channel_product(x, matrix, scale).astype(x.dtype), 2, axis=1)
    close(codes_gated(x, matrix, scale, Tile(32, 64, 1, 2), interpret=True), jax.nn.silu(gate) * up)


def test_a_tile_that_does_not_fit_is_an_error() -> None:
    x, (matrix, scale) = normal(0, 2, 128), codes(96, 128)
    for tile in (Tile(64, 64, 1, 2), Tile(32, 128, 2, 2), Tile(32, 96, 1, 2)):
        with pytest.raises(ValueError, match="does not fit"):
            codes_product(x, matrix, scale, tile, interpret=True)
    with pytest.raises(ValueError, match="does not fit"):
        codes_gated(x, matrix, scale, Tile(16, 64, 2, 2), interpret=True)


@pytest.mark.parametrize(
    ("outputs", "inputs", "gated", "programs"),
    [(6144, 4096, False, 384), (4096, 4096, False, 256), (14336, 4096, True, 448), (4096, 14336, False, 256), (576, 1536, False, 9)],
)  # fmt: skip
def test_a_matrix_is_cut_into_enough_programs(outputs: int, inputs: int, gated: bool, programs: int) -> None:
    tile = tile_of(outputs, inputs, gated)
    assert tile is not None and outputs // tile.outputs * tile.parts == programs
    assert inputs % (tile.inputs * tile.parts) == 0 and inputs // tile.inputs >= 4 * tile.parts > 0


def test_some_sizes_have_no_tile() -> None:
    assert tile_of(100, 4096) is None and tile_of(4096, 100) is None and tile_of(16, 64, gated=True) is None


def test_summands_are_added_before_the_norm() -> None:
    x, more, weight = normal(0, 5, 48), normal(1, 3, 5, 48, dtype="float32"), normal(2, 48)
    got = add_norm(x, more, weight, 1e-5, interpret=True)
    for ours, theirs in zip(got, add_norm(x, added(more, x.dtype), weight, 1e-5, interpret=True), strict=True):
        close(ours, theirs)


def test_summands_are_added_before_heads_are_normed_rotated_and_written() -> None:
    angles, pools = normal(1, 20, 8, dtype="float32"), [jnp.zeros((9, 8, 3, 16), jnp.bfloat16)] * 2
    by, index = Rotation(jnp.cos(angles), jnp.sin(angles)), jnp.arange(20)
    summands, norms = normal(0, 4, 20, 9 * 16, dtype="float32"), HeadNorms(normal(2, 16), normal(3, 16), 1e-5)
    whole, bf16 = added(summands, jnp.dtype("bfloat16")), jnp.dtype("bfloat16")
    got, expected = (
        rotate_and_write(parts, by, pools[0], pools[1], index, 3, norms, dtype=bf16, keep=True, interpret=True)
        for parts in (summands, whole)
    )
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.dtype == bf16
        close(ours, theirs)


def test_projected_summands_are_added_for_other_kernels() -> None:
    angles, summands = normal(1, 4, 8, dtype="float32"), normal(0, 2, 4, 3 * 16, dtype="float32")
    by, bf16 = Rotation(jnp.cos(angles), jnp.sin(angles)), jnp.dtype("bfloat16")
    q, k, v = Projected(summands, bf16, (1, 1), 16, by, None, rules()).rotated()
    assert q.shape == k.shape == v.shape == (4, 1, 16) and v.dtype == bf16


# ---- in a layer ------------------------------------------------------------------------------------------------------------------------


def _batch(rows: int) -> Ragged:
    """Rows of one token each, behind 7, 8, 9 ... others."""
    at, one = 7 + jnp.arange(rows), jnp.ones(rows, jnp.int32)
    table = 1 + jnp.arange(2 * rows).reshape(rows, 2)
    slots = table[jnp.arange(rows), at // 8] * 8 + at % 8
    return Ragged(one, at, slots, at + 1, table, jnp.arange(rows + 1), decode_rows=rows, max_q_len=1)


@pytest.mark.parametrize("parts", [1, 2])
def test_layers_compute_what_the_compiler_does(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers, so that the summands of one are added by the next."""
    used: list[bool] = []

    def tile(outputs: int, inputs: int, gated: bool = False) -> Tile:
        used.append(gated)
        return Tile(16, inputs // 2, 1 if gated else parts, 2)

    monkeypatch.setattr(gpu, "tile_of", tile)
    loaded = load_decoder(TOY, DummySource(TOY, seed=3), make_mesh(jax.devices()[:1], 1), "bfloat16", "int8")
    batch, scale = _batch(3), TOY.head_dim**-0.5
    kv = [tuple(normal(10 + number, 7, 8, TOY.num_kv_heads, TOY.head_dim) for number in range(2)) for _ in range(2)]

    def run(params: Any, ops: Any) -> tuple[jax.Array, list[Any]]:
        decoder, written = loaded.merge(params), []
        stream = decoder.layers[0].begin(decoder.embed(jnp.array([5, 77, 200])), ops)
        shape = stream[1].shape
        for layer, pages in zip(decoder.layers, kv, strict=True):
            stream, pages = layer(stream, decoder.rotation(batch.positions), pages, ops)
            written.append(pages)
            assert stream[1].shape == shape, "every layer is given the same shapes, and so is traced once"
        return decoder.whole(stream), written

    kernels = gpu.gpu_ops(batch, scale, loaded.rules, "triton", ragged="triton")
    plain = PlainOps(paged_attend(batch, scale, 1), loaded.rules)
    (got, pages), (expected, theirs) = (
        jax.jit(lambda p, ops=ops: run(p, ops))(loaded.params) for ops in (kernels, plain)
    )
    close(got, expected)
    jax.tree.map(close, pages, theirs)
    assert used.count(True) == 2 and used.count(False) == 2 * 3 + 1, (
        "each product of each layer, and what begins the stream"
    )


def _ops(tp: int = 1) -> gpu.GpuOps:
    made = gpu.gpu_ops(_batch(3), 1.0, rules(tp), "triton")
    assert isinstance(made, gpu.GpuOps)
    return made


def _linear(stored: str = "int8", bias: bool = False, dtype: str = "bfloat16") -> Linear:
    return nnx.eval_shape(lambda: Linear(64, 64, bias, jnp.dtype(dtype), weight_format(stored)))


@pytest.mark.parametrize(
    ("tokens", "linear", "tp"),
    [
        (MOST_TOKENS + 1, _linear(), 1),
        (3, _linear("fp8"), 1),
        (3, _linear("int4"), 1),
        (3, _linear("auto"), 1),
        (3, _linear(bias=True), 1),
        (3, _linear(), 2),
    ],
    ids=["many tokens", "fp8", "int4", "as they are", "a bias", "two devices"],
)
def test_other_products_are_the_compilers(tokens: int, linear: Linear, tp: int) -> None:
    x = jnp.zeros((tokens, 64), jnp.bfloat16)
    assert _ops(tp)._codes_tile(x, linear) is None and _ops()._codes_tile(x[:3], _linear()) is not None
    assert _ops()._codes_tile(jnp.zeros((3, 64), jnp.float32), _linear()) is None
    assert _ops(tp).nothing(x, linear).shape == x.shape


def test_fused_products_have_tiles_of_their_halves() -> None:
    gate_up = nnx.eval_shape(
        lambda: FusedLinear(64, (96, 96), "gate_up", False, rules(), jnp.dtype("bfloat16"), weight_format("int8"))
    )
    assert _ops()._codes_tile(jnp.zeros((3, 64), jnp.bfloat16), gate_up, gated=True) == tile_of(96, 64, gated=True)


# ---- on a GPU --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, MOST_TOKENS])
@pytest.mark.parametrize(("outputs", "inputs", "gated"), [(4096, 14336, False), (48, 64, False), (28672, 4096, True)])
def test_the_kernel_lowers_for_a_gpu(tokens: int, outputs: int, inputs: int, gated: bool) -> None:
    tile = tile_of(outputs // 2 if gated else outputs, inputs, gated)
    assert tile is not None
    run, struct = codes_gated if gated else codes_product, jax.ShapeDtypeStruct
    given = (
        struct((tokens, inputs), jnp.bfloat16),
        struct((outputs, inputs), jnp.int8),
        struct((outputs,), jnp.float32),
    )
    lowered = (
        jax.jit(lambda x, codes, scale: run(x, codes, scale, tile)).trace(*given).lower(lowering_platforms=("cuda",))
    )
    assert ("codes_gated" if gated else "codes_product") in lowered.as_text()


def test_kernels_that_take_summands_lower_for_a_gpu() -> None:
    def both(x: Any, more: Any, weight: Any, parts: Any, by: Any, pool: Any, index: Any) -> Any:
        rotated = rotate_and_write(parts, Rotation(*by), pool, pool, index, 4, dtype=jnp.dtype("bfloat16"))
        return add_norm(x, more, weight, 1e-5), rotated

    struct, bf16 = jax.ShapeDtypeStruct, jnp.bfloat16
    angles = (struct((8, 64), jnp.float32),) * 2
    parts, pool = struct((4, 8, 8 * 128), jnp.float32), struct((9, 16, 2, 128), bf16)
    given = (
        struct((8, 512), bf16),
        struct((4, 8, 512), jnp.float32),
        struct((512,), bf16),
        parts,
        angles,
        pool,
        struct((8,), jnp.int32),
    )
    text = jax.jit(both).trace(*given).lower(lowering_platforms=("cuda",)).as_text()
    assert "add_norm" in text and "rotate_and_write" in text
