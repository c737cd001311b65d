"""The GPU's attention kernels, interpreted, against the reference; and that they compile as far as a machine without a GPU can."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from triptych.models.attend import PlainOps, Projected, paged_attend, write_pages
from triptych.models.attention import ragged_paged_attention
from triptych.models.decoder import RmsNorm
from triptych.models.errors import UnsupportedModelError
from triptych.models.kernels import gpu, merge_triton, norm_triton, paged_mosaic, paged_triton
from triptych.models.kernels.choice import ops_with
from triptych.models.kernels.heads_triton import HeadNorms, rotate_and_write
from triptych.models.kernels.splits import NOTHING, merge_splits, split_count
from triptych.models.kernels.tiles import decode_tiles, ragged_tiles
from triptych.models.quantised_kv import quantised
from triptych.models.ragged import Ragged
from triptych.models.rope import Rotation
from triptych.sharding.mesh import make_mesh
from triptych.sharding.rules import POOL_AXES, ShardingRules

SCALE = 0.3


def filled(lengths: list[int], q_lens: list[int], page_size: int, width: int, heads: tuple[int, int, int], dtype: str):
    """Queries, pages and metadata of rows with these lengths, on shuffled pages; what no row owns is NaN."""
    rng, (q_heads, kv_heads, head_dim) = np.random.default_rng(len(lengths)), heads
    pages = 1 + len(lengths) * width
    table = rng.permutation(np.arange(1, pages)).reshape(-1, width)
    k, v = (rng.standard_normal((pages, page_size, kv_heads, head_dim)).astype(np.float32) for _ in range(2))
    owned = np.zeros((pages, page_size), bool)
    for row, length in enumerate(lengths):
        slot = np.arange(length)
        owned[table[row, slot // page_size], slot % page_size] = True
        table[row, -(-length // page_size) :] = 0
    k[~owned] = v[~owned] = np.nan
    q = rng.standard_normal((sum(q_lens), q_heads, head_dim))
    ends = np.cumsum([0, *q_lens])
    metadata = (jnp.array(lengths, jnp.int32), jnp.array(table, jnp.int32), jnp.array(ends, jnp.int32))
    return (*(jnp.array(a, dtype) for a in (q, k, v)), *metadata)


@pytest.mark.parametrize(
    ("lengths", "q_lens", "decode_rows", "heads", "dtype", "window"),
    [
        ([150, 0, 1, 67], [1, 1, 1, 1], 4, (4, 1, 128), "bfloat16", None),
        ([0, 90, 40, 0, 24], [1, 1, 9, 0, 24], 2, (3, 1, 64), "float32", None),
        ([150, 70, 100], [1, 3, 30], 1, (4, 2, 64), "float32", 20),
    ],
    ids=["decode, split", "mixed, three heads a group", "windows"],
)
def test_kernels_equal_the_reference(
    monkeypatch: pytest.MonkeyPatch,
    lengths: list[int],
    q_lens: list[int],
    decode_rows: int,
    heads: tuple[int, int, int],
    dtype: str,
    window: int | None,
) -> None:
    # Small enough that rows of 30 queries have two tiles.
    monkeypatch.setattr(gpu, "RAGGED_PROGRAMS", 4)
    monkeypatch.setattr(gpu, "DECODE_PROGRAMS", 8)
    tilings = gpu.Tilings(paged_triton.Tiling(), paged_triton.Tiling(), ragged_lines=64)
    arrays = filled(lengths, q_lens, 8, 20, heads, dtype)
    padded = (jnp.pad(arrays[0], ((0, 3 if len(q_lens) > decode_rows else 0), (0, 0), (0, 0))), *arrays[1:])
    sizes = {"decode_rows": decode_rows, "max_q_len": max(q_lens), "scale": SCALE, "window": window}
    got = jax.jit(partial(gpu.ragged_paged_attention, **sizes, backend="triton", tilings=tilings, interpret=True))(
        *padded
    )
    exact = (arrays[0].astype(jnp.float32), *(pages.astype(jnp.float32) for pages in padded[1:3]))
    expected = jax.jit(partial(ragged_paged_attention, **sizes))(padded[0].astype(jnp.float32), *exact[1:], *padded[3:])
    tolerance = 2e-5 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(np.asarray(got, np.float32), np.asarray(expected), atol=tolerance, rtol=0)


@pytest.mark.parametrize("splits", [2, 64])
def test_parts_are_merged_by_one_kernel_as_by_arithmetic(splits: int) -> None:
    rng = np.random.default_rng(splits)
    parts = jnp.array(rng.standard_normal((splits, 5, 16)), jnp.float32)
    weights = jnp.array(rng.standard_normal((splits, 5)), jnp.float32).at[:, 1].set(NOTHING).at[1:, 2].set(NOTHING)
    got = merge_triton.merge_splits(parts, weights, jnp.float32, interpret=True)
    np.testing.assert_allclose(got, merge_splits(parts, weights), atol=1e-6)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_heads_are_normed_rotated_and_written_by_one_kernel_as_by_the_compiler(dtype: str, normed: bool) -> None:
    """Three KV heads, more tokens than a program has, and slots beyond the pool."""
    rng, rules = np.random.default_rng(0), ShardingRules(make_mesh(jax.devices()[:1], 1))
    pools = [jnp.array(rng.standard_normal((9, 8, 3, 16)), dtype) for _ in range(2)]
    index = jnp.array([*rng.permutation(72)[:17], 72, 1000, 2**31 - 1], jnp.int32)
    angles = jnp.array(rng.uniform(0, 6, (20, 8)), jnp.float32)
    norms = (norm(16, dtype, 1), norm(16, dtype, 2)) if normed else None
    parts = jnp.array(rng.standard_normal((20, 9 * 16)), dtype)
    by = Rotation(jnp.cos(angles), jnp.sin(angles))
    q, k, v = Projected(parts, parts.dtype, (3, 3), 16, by, norms, rules).rotated()
    of_heads = None if norms is None else HeadNorms(norms[0].weight[...], norms[1].weight[...], norms[0].eps)
    given = (parts, by, pools[0], pools[1], index, 3, of_heads)
    got = rotate_and_write(*given, keep=True, interpret=True)
    expected = (q, write_pages(pools[0], k, index), write_pages(pools[1], v, index), k, v)
    for ours, theirs in zip(got, expected, strict=True):
        tolerance = 1e-5 if dtype == "float32" else 2**-7
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs.astype(jnp.float32), rtol=tolerance, atol=tolerance)
    assert len(rotate_and_write(*given, interpret=True)) == 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sum_is_normed_by_one_kernel_as_by_the_compiler(dtype: str) -> None:
    rng, rules = np.random.default_rng(0), ShardingRules(make_mesh(jax.devices()[:1], 1))
    x, more = (jnp.array(rng.standard_normal((5, 48)), dtype) for _ in range(2))
    weights = norm(48, dtype, 1)
    got = norm_triton.add_norm(x, more, weights.weight[...], weights.eps, interpret=True)
    plain = PlainOps(paged_attend, rules)  # pyright: ignore[reportArgumentType] - it attends to nothing here
    for ours, theirs in zip(got, plain.add_norm(x, more, weights), strict=True):
        tolerance = 1e-6 if dtype == "float32" else 2**-6  # a sum may be rounded or not
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs.astype(jnp.float32), rtol=tolerance)


def norm(size: int, dtype: str, seed: int) -> RmsNorm:
    made = RmsNorm(size, 1e-5, jnp.dtype(dtype))
    made.weight[...] = jnp.array(np.random.default_rng(seed).uniform(0.5, 2, size), dtype)
    return made


def as_projected(q: jax.Array, k: jax.Array, v: jax.Array, rules: ShardingRules) -> Projected:
    """What comes out of a projection whose heads need not be rotated."""
    tokens, heads, head_dim = q.shape
    by_device = [part.reshape(tokens, rules.tp, -1) for part in (q, k, v)]
    parts = jax.device_put(jnp.concatenate(by_device, axis=2).reshape(tokens, -1), rules.sharding("tokens", "qkv"))
    still = Rotation(jnp.ones((tokens, head_dim // 2)), jnp.zeros((tokens, head_dim // 2)))
    return Projected(parts, parts.dtype, (heads // rules.tp, k.shape[1] // rules.tp), head_dim, still, None, rules)


def test_a_prompt_that_is_alone_attends_to_itself() -> None:
    q, k_pages, v_pages, kv_lens, table, ends = filled([13], [13], 8, 2, (4, 2, 64), "float32")
    owned = (table[0][:, None] * 8 + jnp.arange(8)).reshape(-1)[:13]
    k, v = (pages.reshape(-1, 2, 64)[owned] for pages in (k_pages, v_pages))
    slots = jnp.arange(16)
    q, k, v = (jnp.pad(array, ((0, 3), (0, 0), (0, 0)), constant_values=7.0) for array in (q, k, v))
    write_index = jnp.pad(owned, (0, 3), constant_values=10_000)
    batch = Ragged(slots, slots, write_index, kv_lens, table, ends, decode_rows=0, max_q_len=16, fresh=True)
    rules = ShardingRules(make_mesh(jax.devices()[:1], 1))
    # The pages that are read hold nothing: only what is written counts.
    empty = (jnp.zeros_like(k_pages), jnp.zeros_like(v_pages))
    got, written = ops_with("gpu", batch, SCALE, rules).attend(as_projected(q, k, v, rules), empty, None)
    expected, as_written = paged_attend(replace(batch, fresh=False), SCALE, 1)(q, k, v, empty, None)
    np.testing.assert_allclose(got[:13], expected[:13], atol=2e-5, rtol=0)
    for new, old in zip(written, as_written, strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize(
    ("hopper", "dtype", "arrays", "chosen"),
    [(True, "bfloat16", 2, "mosaic"), (False, "bfloat16", 2, "triton"), (True, "float32", 2, "triton"), (True, "bfloat16", 4, "triton")],
)  # fmt: skip
def test_prompts_are_attended_by_mosaic_where_it_can(hopper: bool, dtype: str, arrays: int, chosen: str) -> None:
    q, pool = jnp.zeros((4, 4, 64), dtype), jnp.zeros((3, 16, 2, 64), dtype)
    assert gpu.ragged_backend("triton", hopper, q, (pool,) * arrays) == chosen


@pytest.mark.parametrize("kv_dtype", ["float32", pytest.param("int8", marks=pytest.mark.slow)])
def test_each_device_attends_with_its_own_heads(kv_dtype: str) -> None:
    q, k_pages, v_pages, kv_lens, table, ends = filled([40, 17], [1, 5], 8, 6, (4, 2, 64), "float32")
    k_pages, v_pages = jnp.nan_to_num(k_pages), jnp.nan_to_num(v_pages)
    last = kv_lens - 1
    slots = jnp.concatenate([last[:1], jnp.arange(12, 17)])
    row = jnp.array([0, 1, 1, 1, 1, 1])
    write_index = table[row, slots // 8] * 8 + slots % 8
    batch = Ragged(jnp.zeros(6, jnp.int32), slots, write_index, kv_lens, table, ends, decode_rows=1, max_q_len=5)
    k, v = np.random.default_rng(1).standard_normal((2, 6, 2, 64)).astype(np.float32)
    rules = ShardingRules(make_mesh(jax.devices()[:2], 2))
    pools: tuple[jax.Array, ...] = (k_pages, v_pages)
    if kv_dtype == "int8":
        (k_pages, k_scales), (v_pages, v_scales) = (quantised(pages, jnp.dtype(kv_dtype)) for pages in pools)
        pools = (k_pages, v_pages, k_scales, v_scales)
    spread = tuple(jax.device_put(pool, rules.sharding(*POOL_AXES[: pool.ndim])) for pool in pools)
    projected = as_projected(q, k, v, rules)
    attend = jax.jit(
        lambda parts, kv: ops_with("gpu", batch, SCALE, rules).attend(replace(projected, parts=parts), kv, None)
    )
    got, written = attend(projected.parts, spread)
    expected, _ = jax.jit(lambda q, k, v, kv: paged_attend(batch, SCALE, 1)(q, k, v, kv, None))(q, k, v, pools)
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected), atol=2e-5, rtol=0)
    assert len(written) == len(spread) and all(
        new.sharding.is_equivalent_to(old.sharding, old.ndim) for new, old in zip(written, spread, strict=True)
    )


@pytest.mark.parametrize(
    ("lengths", "q_lens", "decode_rows", "heads", "activations", "codes", "window"),
    [
        ([0, 90, 40, 0, 24], [1, 1, 9, 0, 24], 2, (3, 1, 64), "float32", "int8", 37),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ([150, 0, 1, 67], [1, 1, 1, 1], 4, (4, 2, 128), "bfloat16", "int8", None),
                ([150, 70, 100], [1, 3, 30], 1, (4, 2, 64), "float32", "float8_e4m3fn", 20),
            )
        ),
    ],
    ids=["mixed", "decode, split", "fp8"],
)  # fmt: skip
def test_codes_are_read_as_by_the_reference(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int], q_lens: list[int], decode_rows: int, heads: tuple[int, int, int], activations: str,
    codes: str, window: int | None,
) -> None:  # fmt: skip
    """What no row owns has scales that are NaN."""
    monkeypatch.setattr(gpu, "RAGGED_PROGRAMS", 4)
    monkeypatch.setattr(gpu, "DECODE_PROGRAMS", 8)
    q, *numbers, kv_lens, table, ends = filled(lengths, q_lens, 8, 20, heads, activations)
    (k, k_scales), (v, v_scales) = (quantised(array, jnp.dtype(codes)) for array in numbers)
    sizes = {
        "decode_rows": decode_rows,
        "max_q_len": max(q_lens),
        "scale": SCALE,
        "window": window,
        "scales": (k_scales, v_scales),
    }
    run = partial(gpu.ragged_paged_attention, **sizes, backend="triton", interpret=True)
    got = jax.jit(run)(q, k, v, kv_lens, table, ends)
    expected = jax.jit(partial(ragged_paged_attention, **sizes))(q.astype(jnp.float32), k, v, kv_lens, table, ends)
    tolerance = 2e-5 if activations == "float32" else 2e-2
    np.testing.assert_allclose(np.asarray(got, np.float32), np.asarray(expected), atol=tolerance, rtol=0)


def test_tiles_cover_every_query_once_and_long_rows_begin_first() -> None:
    lengths = [9, 0, 4, 1]
    starts = jnp.cumsum(jnp.array([0, *lengths]))
    tiles = ragged_tiles(starts, 20, 4)
    seen = []
    for row, number in zip(tiles.rows.tolist(), tiles.numbers.tolist(), strict=True):
        seen += [(row, query) for query in range(number * 4, min(number * 4 + 4, lengths[row]))]
    assert sorted(seen) == [(row, query) for row, length in enumerate(lengths) for query in range(length)]
    assert tiles.rows.shape == (20 // 4 + 4,)
    first = [number for row, number in zip(tiles.rows.tolist(), tiles.numbers.tolist(), strict=True) if row == 0]
    assert first == sorted(first, reverse=True)


def test_parts_put_together_are_the_whole() -> None:
    scores, values = (np.random.default_rng(seed).standard_normal(shape) for seed, shape in ((0, 12), (1, (12, 5))))
    whole = np.exp2(scores) @ values / np.exp2(scores).sum()
    cut = (slice(0, 4), slice(4, 5), slice(5, 12))
    parts = jnp.array([np.exp2(scores[c]) @ values[c] / np.exp2(scores[c]).sum() for c in cut] + [np.zeros(5)])
    weights = jnp.array([np.log2(np.exp2(scores[c]).sum()) for c in cut] + [NOTHING])
    np.testing.assert_allclose(merge_splits(parts, weights), whole, atol=1e-6)
    assert not merge_splits(jnp.zeros((2, 5)), jnp.full((2,), NOTHING)).any()


@pytest.mark.parametrize(("programs", "tokens", "splits"), [(8, 1024, 16), (256, 8192, 4), (1024, 8192, 1), (1, 64, 1)])
def test_rows_are_split_until_there_is_enough_to_do(programs: int, tokens: int, splits: int) -> None:
    assert split_count(programs, tokens, 1024) == splits


@pytest.mark.parametrize("backend", ["triton", "mosaic"])
@pytest.mark.parametrize(
    ("heads", "window", "kv_dtype"),
    [((32, 8, 128), None, "bfloat16"), ((9, 3, 64), 100, "bfloat16"), ((32, 8, 128), None, "int8"), ((9, 3, 64), 100, "float8_e4m3fn")],
)  # fmt: skip
def test_mixed_steps_lower_for_a_gpu(
    backend: gpu.Backend, heads: tuple[int, int, int], window: int | None, kv_dtype: str
) -> None:
    """All that a machine without a GPU can say of layouts, copies, products and shared memory."""
    if backend == "mosaic" and kv_dtype != "bfloat16":
        pytest.skip("it does not read codes")
    if backend == "triton" and jax.__version_info__ >= (0, 11):
        pytest.skip("jax 0.11 lowers through Triton only where there is a GPU")
    shapes = ((50, heads[0], heads[2]), (9, 16, *heads[1:]))
    q, pool = (jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, ("bfloat16", kv_dtype), strict=True))
    scale = jax.ShapeDtypeStruct(shapes[1][:3], jnp.float32)
    scales = None if kv_dtype == "bfloat16" else (scale, scale)
    ints = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((3,), (3, 40), (4,))]
    sizes = {"decode_rows": 2, "max_q_len": 48, "scale": SCALE, "window": window}
    run = jax.jit(partial(gpu.ragged_paged_attention, **sizes, backend=backend))
    text = run.trace(q, pool, pool, *ints, scales=scales).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call") >= 2 and ("mosaic_gpu" if backend == "mosaic" else "triton") in text


@pytest.mark.slow
@pytest.mark.limit(600)
@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="its interpreter waits for ever in jax 0.10")
@pytest.mark.parametrize(
    ("lengths", "q_lens", "decode_rows", "heads", "window"),
    [
        ([137, 0, 64], [1, 1, 1], 3, (4, 2, 64), None),
        ([137, 66], [1, 1], 2, (3, 1, 64), None),
        ([0, 140, 70], [1, 45, 3], 1, (3, 1, 64), None),
        ([150, 64], [1, 40], 1, (8, 2, 128), 70),
    ],
    ids=["decode", "a lone head, three to one", "mixed, halved tiles", "windows"],
)
def test_the_mosaic_kernel_interpreted_equals_the_reference(
    monkeypatch: pytest.MonkeyPatch,
    lengths: list[int],
    q_lens: list[int],
    decode_rows: int,
    heads: tuple[int, int, int],
    window: int | None,
) -> None:
    monkeypatch.setattr(gpu, "RAGGED_PROGRAMS", 4)
    monkeypatch.setattr(gpu, "DECODE_PROGRAMS", 4)
    params = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.params").InterpretGPUParams()
    q, k, v, *metadata = filled(lengths, q_lens, 16, 10, heads, "bfloat16")
    tiling = paged_mosaic.Tiling(buffer=0, programs=2)
    tilings = gpu.Tilings(tiling, tiling)
    sizes = {"decode_rows": decode_rows, "max_q_len": max(q_lens), "scale": SCALE, "window": window}
    attention = partial(gpu.ragged_paged_attention, backend="mosaic", tilings=tilings, interpret=params, **sizes)
    got = jax.jit(attention)(q, k, v, *metadata)
    wide = (array.astype(jnp.float32) for array in (q, k, v))
    expected = jax.jit(partial(ragged_paged_attention, **sizes))(*wide, *metadata)
    np.testing.assert_allclose(np.asarray(got, np.float32), np.asarray(expected), atol=2e-2, rtol=0)


@pytest.mark.parametrize(
    ("head_dim", "page_size", "dtype", "queries", "message"),
    [(96, 16, "bfloat16", 1, "head_dim"), (64, 4, "bfloat16", 1, "page_size"), (64, 16, "float32", 1, "bfloat16")]
    + [(64, 16, "bfloat16", 65, "lines")],
)
def test_what_the_mosaic_kernel_cannot_do_is_refused(
    head_dim: int, page_size: int, dtype: str, queries: int, message: str
) -> None:
    q, pool = jnp.zeros((2, 4, head_dim), dtype), jnp.zeros((3, page_size, 2, head_dim), dtype)
    tiles = ragged_tiles(jnp.array([0, 1, 2]), 2, queries)
    with pytest.raises(ValueError, match=message):
        paged_mosaic.paged_attention(q, pool, pool, jnp.ones(2, int), jnp.zeros((2, 1), int), tiles, scale=1.0)


def test_sizes_that_triton_cannot_take_are_refused() -> None:
    q, pool = jnp.zeros((2, 4, 96)), jnp.zeros((3, 16, 2, 96))
    with pytest.raises(ValueError, match="powers of two"):
        paged_triton.paged_attention(
            q, pool, pool, jnp.ones(2, int), jnp.zeros((2, 1), int), decode_tiles(jnp.arange(2)), scale=1.0
        )


def test_the_mosaic_kernel_is_refused_on_cpu() -> None:
    none = jnp.zeros(1, jnp.int32)
    batch = Ragged(none, none, none, none, none[None], jnp.arange(2), decode_rows=1, max_q_len=1)
    with pytest.raises(UnsupportedModelError, match="cpu"):
        ops_with("gpu-mosaic", batch, 1.0, ShardingRules(make_mesh(jax.devices()[:1], 1)))
