"""Ragged paged attention for NVIDIA GPUs, through Pallas' Triton backend: one kernel for decode, chunks and verification.

A program takes one *tile*: some queries of a row with the query heads of one KV head folded in, [queries * group, head_dim],
and walks a part of the row's pages with a running softmax. Decode tiles have one query and split their row
(`models/kernels/splits.py`); ragged tiles have many and see all of it. Tiles come as lists (row, number in the row), so
that rows of different lengths cost what they are.

Bytes in flight decide the speed of decoding: an H100 reads about 3 TB/s at about 1 us, so each of its 132
multiprocessors must have 25 to 50 KiB outstanding. A block of 64 tokens of one KV head is 16 KiB of keys and as much of
values; with three stages in the pipeline and two programs a multiprocessor about 130 KiB are. In the pool a token's head
is 256 contiguous bytes; programs of neighbouring heads are neighbours in the grid, so the rest of the page is read at
about the same time.

Pages of codes come with scales (`models/quantised_kv.py`): a block's scores are multiplied by the keys', its weights by
the values', so that products take codes, which fit a 16-bit number.

The backend is deprecated after jax 0.11: this is a bridge to `paged_mosaic.py`, and what runs on GPUs older than Hopper.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from triptych.models.attention import Scales
from triptych.models.kernels.merge_triton import merge_splits
from triptych.models.kernels.splits import NOTHING
from triptych.models.kernels.tiles import Tiles

LOG2_E = 1.4426950408889634

# Rows that a matrix instruction takes; fewer queries are padded to it.
MIN_TILE_ROWS = 16


@dataclass(frozen=True)
class Tiling:
    """How the kernel is cut: KV tokens a step of its loop, warps a program, steps whose loads are under way."""

    block: int = 64
    warps: int = 4
    stages: int = 3


def paged_attention(
    q: Float[Array, "tokens heads head_dim"],
    k_pages: Float[Array, "pages page_size kv_heads head_dim"],
    v_pages: Float[Array, "pages page_size kv_heads head_dim"],
    kv_lens: Int[Array, "rows"],
    page_indices: Int[Array, "rows width"],
    tiles: Tiles,
    *,
    scale: float,
    splits: int = 1,
    window: int | None = None,
    tiling: Tiling = Tiling(),
    interpret: bool = False,
    scales: Scales | None = None,
) -> Float[Array, "tokens heads head_dim"]:
    """Attend the queries of every tile; tokens of no tile are left undefined, rows with kv_len 0 get zeros.

    The last query of a row stands at its last KV position. Sizes must be powers of two where Triton needs it: head_dim,
    page_size. Raises ValueError otherwise.
    """
    tokens, heads, head_dim = q.shape
    pages, page_size, kv_heads = k_pages.shape[:3]
    if head_dim & (head_dim - 1) or page_size & (page_size - 1):
        raise ValueError(f"head_dim and page_size must be powers of two, got {head_dim} and {page_size}")
    group = pl.next_power_of_2(heads // kv_heads)
    queries = max(tiles.queries, MIN_TILE_ROWS // group)
    kernel = partial(
        _kernel if scales is None else _kernel_over_codes,
        tokens=tokens,
        heads=heads,
        kv_heads=kv_heads,
        group=group,
        queries=queries,
        stride=tiles.queries,
        page_size=page_size,
        block=tiling.block,
        splits=splits,
        scale=scale * LOG2_E,
        window=window,
    )
    out, log_weights = pl.pallas_call(
        kernel,
        grid=(kv_heads, splits, tiles.rows.shape[0]),
        out_shape=[
            jax.ShapeDtypeStruct((splits * tokens * heads, head_dim), q.dtype if splits == 1 else jnp.float32),
            jax.ShapeDtypeStruct((splits * tokens * heads,), jnp.float32),
        ],
        compiler_params=triton.CompilerParams(num_warps=tiling.warps, num_stages=tiling.stages),
        interpret=interpret,
        name="paged_attention",
    )(
        q.reshape(tokens * heads, head_dim),
        # A token's heads as one line: a slot of the pool is then one index. Only a view.
        k_pages.reshape(pages * page_size, kv_heads * head_dim),
        v_pages.reshape(pages * page_size, kv_heads * head_dim),
        *(() if scales is None else (scale.reshape(pages * page_size, kv_heads) for scale in scales)),
        page_indices,
        kv_lens,
        tiles.starts,
        tiles.lengths,
        tiles.rows,
        tiles.numbers,
    )
    if splits == 1:
        return out.reshape(q.shape)
    parts, weights = out.reshape(splits, -1, head_dim), log_weights.reshape(splits, -1)
    return merge_splits(parts, weights, q.dtype, interpret).reshape(q.shape)


def _kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    table_ref: Any,
    kv_lens_ref: Any,
    starts_ref: Any,
    lengths_ref: Any,
    rows_ref: Any,
    numbers_ref: Any,
    out_ref: Any,
    log_weights_ref: Any,
    *,
    tokens: int,
    heads: int,
    kv_heads: int,
    group: int,
    queries: int,
    stride: int,
    page_size: int,
    block: int,
    splits: int,
    scale: float,
    window: int | None,
    scales: tuple[Any, Any] | None = None,
) -> None:
    head, split, tile = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    row, first_query = rows_ref[tile], numbers_ref[tile] * stride
    kv_len, q_len = kv_lens_ref[row], lengths_ref[row]
    head_dim = q_ref.shape[1]

    # Line i of the tile is query i // group, head i % group of this KV head.
    line = jnp.arange(queries * group)
    in_tile, in_group = line // group, line % group
    query = first_query + in_tile
    live = (in_group < heads // kv_heads) & (in_tile < stride) & (query < q_len)
    index = (starts_ref[row] + query) * heads + head * (heads // kv_heads) + in_group
    position = jnp.where(live, kv_len - q_len + query, -1)
    column = jnp.arange(head_dim)[None, :]
    wide = jnp.broadcast_to(live[:, None], (line.shape[0], head_dim))
    q = triton.load(q_ref.at[index[:, None], column], mask=wide, other=0.0)

    # KV positions that any query of the tile sees, in blocks, and this split's share of them.
    last = jnp.minimum(kv_len - q_len + first_query + stride, kv_len)
    first = 0 if window is None else jnp.maximum(kv_len - q_len + first_query - window + 1, 0) // block
    blocks = jnp.where(first_query < q_len, pl.cdiv(last, block) - first, 0)
    share = pl.cdiv(blocks, splits)
    begin = first + split * share
    end = jnp.minimum(begin + share, first + blocks)
    # Up to here every query sees every position of a block, so nothing is compared.
    open_end = (kv_len - q_len + first_query + 1) // block if window is None else begin

    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    in_line = head * head_dim + column
    nothing = 0 if jnp.issubdtype(k_ref.dtype, jnp.integer) else 0.0

    def step(number: Array, state: tuple[Array, Array, Array], masked: bool) -> tuple[Array, Array, Array]:
        peak, total, summed = state
        kv = number * block + jnp.arange(block)
        if masked:
            inside = kv < kv_len
            page = triton.load(table_ref.at[row, kv // page_size], mask=inside, other=0)
            slot = page * page_size + kv % page_size
            read = jnp.broadcast_to(inside[:, None], (block, head_dim))
            # What lies behind a row's end may be NaN, and 0 * NaN is NaN.
            k = triton.load(k_ref.at[slot[:, None], in_line], mask=read, other=nothing)
            v = triton.load(v_ref.at[slot[:, None], in_line], mask=read, other=nothing)
        else:
            slot = table_ref[row, kv // page_size] * page_size + kv % page_size
            k, v = k_ref[slot[:, None], in_line], v_ref[slot[:, None], in_line]
        k, v = k.astype(q.dtype), v.astype(q.dtype)
        scores = scale * jax.lax.dot_general(
            q, k, (((1,), (1,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
        )
        if scales is not None:
            of_keys, of_values = (ref.at[slot, head] for ref in scales)
            if masked:
                k_scale, v_scale = (triton.load(at, mask=inside, other=0.0) for at in (of_keys, of_values))
            else:
                k_scale, v_scale = triton.load(of_keys), triton.load(of_values)
            scores = scores * k_scale[None, :]
        if masked:
            seen = kv[None, :] <= position[:, None]
            if window is not None:
                seen &= kv[None, :] > position[:, None] - window
            scores = jnp.where(seen, scores, NOTHING)
        new_peak = jnp.maximum(peak, scores.max(axis=1))
        weights = jnp.exp2(scores - new_peak[:, None])
        if masked:
            weights = jnp.where(seen, weights, 0.0)
        fade = jnp.exp2(peak - new_peak)
        here = jax.lax.dot_general(
            (weights if scales is None else weights * v_scale[None, :]).astype(v.dtype),
            v,
            (((1,), (0,)), ((), ())),
            precision=precision,
            preferred_element_type=jnp.float32,
        )
        return new_peak, total * fade + weights.sum(axis=1), summed * fade[:, None] + here

    lines = line.shape[0]
    state = (jnp.full((lines,), NOTHING), jnp.zeros((lines,)), jnp.zeros((lines, head_dim)))
    middle = jnp.clip(open_end, begin, jnp.maximum(end, begin))
    state = jax.lax.fori_loop(begin, middle, partial(step, masked=False), state)
    peak, total, summed = jax.lax.fori_loop(middle, end, partial(step, masked=True), state)

    out = summed / jnp.where(total > 0, total, 1.0)[:, None]
    index += split * (tokens * heads)
    triton.store(out_ref.at[index[:, None], column], out.astype(out_ref.dtype), mask=wide)
    triton.store(log_weights_ref.at[index], jnp.where(total > 0, peak + jnp.log2(total), NOTHING), mask=live)


def _kernel_over_codes(
    q_ref: Any, k_ref: Any, v_ref: Any, k_scales_ref: Any, v_scales_ref: Any, *refs: Any, **sizes: Any
) -> None:
    _kernel(q_ref, k_ref, v_ref, *refs, **sizes, scales=(k_scales_ref, v_scales_ref))
