"""Ragged paged attention for Hopper GPUs, through Pallas' Mosaic backend: pages by the copy engine, products by wgmma.

What limits decoding is how many bytes are under way: about 3 TB/s (H200: 4.2) at about 1 us are 25 to 40 KiB for each of
132 multiprocessors, all the time. So a program stays on its multiprocessor and takes one *unit* of work after another
(a tile of queries, a few KV heads, a part of the row). One warpgroup does nothing but ask for pages, some blocks ahead
and on into the next unit; each of the others attends to one KV head. With two heads and blocks of 64 tokens a
stage is 64 KiB and three stages are 192 KiB, of which two thirds are under way. A page is one copy a head: 16 tokens of
256 contiguous bytes, two heads side by side in the pool.

Query heads of a KV head are lines of one tile, 64 lines being the least that wgmma takes. At 4 live lines that is 16
times the needed arithmetic, a quarter of what the tensor cores do at that bandwidth: cheaper than any reduction in
registers. Only lines that exist are read and written. Of tiles with more lines (prompts) each warpgroup takes a half,
and both read the same head's blocks: then arithmetic is the limit, and pages come from the cache half as often.

Values at positions behind the row's end are cleared in shared memory before they are multiplied: they may be NaN.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as mosaic
from jaxtyping import Array, Float, Int

from triptych.models.kernels.splits import NOTHING, merge_splits
from triptych.models.kernels.tiles import Tiles

LOG2_E = 1.4426950408889634

# Lines of a wgmma product.
TILE_LINES = 64

# The unit of shared memory's tiling: lines are read and written by as many.
LINE_ALIGNMENT = 8

# Registers of a thread, with two attending warpgroups and one that copies: 2 * 232 + 40 fill the file of 504 * 128.
ATTENDING_REGISTERS, COPYING_REGISTERS = 232, 40


@dataclass(frozen=True)
class Tiling:
    """How the kernel is cut: KV tokens a block (64, 128), bytes of blocks in shared memory, programs (one a multiprocessor).

    Beside 192 KiB of blocks the queries just fit.
    """

    block: int = 64
    buffer: int = 192 << 10
    programs: int = 132


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
    interpret: Any = False,
) -> Float[Array, "tokens heads head_dim"]:
    """Attend the queries of every tile; tokens of no tile are left undefined, rows with kv_len 0 get zeros.

    The last query of a row stands at its last KV position. 16-bit numbers, head_dim 64 or 128 and page sizes of 8, 16,
    32 or 64 are supported; ValueError otherwise, or if the queries of a tile are more than 128 lines.
    """
    tokens, heads, head_dim = q.shape
    page_size, kv_heads = k_pages.shape[1:3]
    group = heads // kv_heads
    lines = -(-tiles.queries * group // LINE_ALIGNMENT) * LINE_ALIGNMENT
    halved = lines > TILE_LINES
    lines = 2 * TILE_LINES if TILE_LINES < lines <= 2 * TILE_LINES else lines
    _check(q, k_pages, lines, tiling)
    attending = 2 if halved or kv_heads % 2 == 0 else 1
    count = tiles.rows.shape[0]
    kernel = mosaic.kernel(
        partial(
            _kernel,
            group=group,
            queries=tiles.queries,
            page_size=page_size,
            tiling=tiling,
            splits=splits,
            attending=attending,
            halved=halved,
            scale=scale * LOG2_E,
            window=window,
            interpreted=bool(interpret),
        ),
        out_type=[
            jax.ShapeDtypeStruct((splits * count, kv_heads, lines, head_dim), q.dtype),
            jax.ShapeDtypeStruct((splits * count, kv_heads, lines), jnp.float32),
        ],
        grid=(tiling.programs,),
        grid_names=("program",),
        num_threads=attending + 1,
        thread_name="warpgroup",
        # Rows are reduced within a warp, so little scratch does; three stages leave no more.
        compiler_params=mosaic.CompilerParams(approx_math=True, reduction_scratch_bytes=512),
        interpret=interpret,
    )
    # The tiles' queries as lines [tiles, kv_heads, queries * group]: a copy of the queries, little beside the cache.
    query = tiles.numbers[:, None] * tiles.queries + jnp.arange(tiles.queries)
    token = tiles.starts[tiles.rows][:, None] + query
    by_tile = q.at[token].get(mode="clip").reshape(count, tiles.queries, kv_heads, group, head_dim)
    by_head = jnp.moveaxis(by_tile, 2, 1).reshape(count, kv_heads, tiles.queries * group, head_dim)
    padded = jnp.pad(by_head, ((0, 0), (0, 0), (0, lines - by_head.shape[2]), (0, 0)))
    q_lens = tiles.lengths[tiles.rows]
    first = kv_lens[tiles.rows] - q_lens + query[:, 0]
    # A tile sees the positions up to its last query's; an empty one sees none.
    ends = jnp.where(query[:, 0] < q_lens, jnp.minimum(first + tiles.queries, kv_lens[tiles.rows]), 0)
    # Numbers computed here begin where an allocation does, as the kernel needs; a slice of the step's inputs would be handed over where it lies in them.
    table, rows = jnp.maximum(page_indices, 0), jnp.maximum(tiles.rows, 0)
    out, log_weights = kernel(padded, k_pages, v_pages, table, rows, first, ends)

    by_line = out.reshape(splits, count, kv_heads, lines, head_dim)[:, :, :, : tiles.queries * group]
    weights = log_weights.reshape(splits, count, kv_heads, lines)[:, :, :, : tiles.queries * group]
    if splits > 1:
        merged = merge_splits(by_line.astype(jnp.float32), weights).astype(q.dtype)
    else:
        merged = by_line[0]
    split_heads = merged.reshape(count, kv_heads, tiles.queries, group, head_dim)
    by_query = jnp.moveaxis(split_heads, 2, 1).reshape(count, tiles.queries, heads, head_dim)
    if tiles.queries == 1:
        # Decode tiles are the tokens, in order.
        return by_query[:, 0]
    # Where each token's result lies: turning the index around is little, scattering the results would not be.
    place = jnp.arange(query.size).reshape(query.shape)
    inside = jnp.where(query < q_lens[:, None], token, tokens)
    places = jnp.zeros(tokens, place.dtype).at[inside].set(place, mode="drop")
    return by_query.reshape(-1, heads, head_dim)[places]


def takes(q: Array, k_pages: Array, tiling: Tiling = Tiling()) -> bool:
    """Whether the kernel knows these numbers and sizes."""
    try:
        _check(q, k_pages, LINE_ALIGNMENT, tiling)
    except ValueError:
        return False
    return True


def _check(q: Array, k_pages: Array, lines: int, tiling: Tiling) -> None:
    head_dim, page_size = q.shape[2], k_pages.shape[1]
    if q.dtype != k_pages.dtype or q.dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(f"queries and cache must both be bfloat16 or float16, got {q.dtype} and {k_pages.dtype}")
    if head_dim not in (64, 128):
        raise ValueError(f"head_dim must be 64 or 128, got {head_dim}")
    if page_size % LINE_ALIGNMENT or tiling.block % page_size or tiling.block % TILE_LINES:
        raise ValueError(
            f"page_size must be a multiple of {LINE_ALIGNMENT} and divide the block, a multiple of {TILE_LINES}; "
            f"got {page_size} and {tiling.block}"
        )
    if lines > 2 * TILE_LINES:
        raise ValueError(f"a tile has at most {2 * TILE_LINES} lines (queries times heads of a KV head), got {lines}")


@dataclass(frozen=True)
class _Unit:
    """One unit of work: scalars, the same in every warpgroup. Blocks begin .. end of the row are walked."""

    tile: Array
    split: Array
    heads: Array
    row: Array
    first: Array
    kv_end: Array
    begin: Array
    end: Array


def _kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    table_ref: Any,
    rows_ref: Any,
    first_ref: Any,
    ends_ref: Any,
    out_ref: Any,
    log_weights_ref: Any,
    *,
    group: int,
    queries: int,
    page_size: int,
    tiling: Tiling,
    splits: int,
    attending: int,
    halved: bool,
    scale: float,
    window: int | None,
    interpreted: bool,
) -> None:
    count, kv_heads, lines, head_dim = q_ref.shape
    block = tiling.block
    # Attending warpgroups either share one KV head's blocks, each with half of the lines, or have a head each.
    members, sharers = (1, attending) if halved else (attending, 1)
    own_lines = lines // sharers
    stages = max(tiling.buffer // (2 * members * block * head_dim * q_ref.dtype.itemsize), 2)
    head_groups = kv_heads // members
    units = count * head_groups * splits
    program = jax.lax.axis_index("program")
    mine = jnp.maximum(pl.cdiv(units - program, tiling.programs), 0)
    dtype = q_ref.dtype

    def cast(array: Array, layout: Any) -> Array:
        return array if interpreted else mosaic.layout_cast(array, layout)

    def product(left: Any, right: Any, shape: tuple[int, int]) -> Array:
        if interpreted:
            # Interpret mode knows neither layouts nor products with transposed references.
            return jnp.dot(left[...], right[...], preferred_element_type=jnp.float32)

        def multiply(result: Any) -> Array:
            mosaic.wgmma(result, left, right)
            return result[...]

        return pl.run_scoped(multiply, mosaic.WGMMAAccumulatorRef(shape, jnp.float32))

    def numbers(shape: tuple[int, int], axis: int) -> Array:
        return cast(jax.lax.broadcasted_iota(jnp.int32, shape, axis), mosaic.Layout.WGMMA)

    def unit(number: Array) -> _Unit:
        # Heads first: programs that run together read the same pages.
        flat = program + number * tiling.programs
        heads, rest = jax.lax.rem(flat, head_groups), jax.lax.div(flat, head_groups)
        split, tile = jax.lax.rem(rest, splits), jax.lax.div(rest, splits)
        first, kv_end = first_ref[tile], ends_ref[tile]
        start = jnp.int32(0)
        if window is not None:
            start = jax.lax.div(jnp.maximum(first - window + 1, 0), block)
        blocks = jnp.maximum(pl.cdiv(kv_end, block) - start, 0)
        share = pl.cdiv(blocks, splits)
        begin = start + split * share
        end = jnp.maximum(jnp.minimum(begin + share, start + blocks), begin)
        return _Unit(tile, split, heads, rows_ref[tile], first, kv_end, begin, end)

    def run(q_smem: Any, k_smem: Any, v_smem: Any, log_smem: Any, q_in: Any, k_in: Any, v_in: Any, free: Any) -> None:
        warpgroup = jax.lax.axis_index("warpgroup")

        @pl.when(warpgroup == attending)
        def _copy() -> None:
            if attending == 2:
                mosaic.set_max_registers(COPYING_REGISTERS, action="decrease")
            width, pages = table_ref.shape[1], block // page_size

            def each_unit(number: Array, asked: Array) -> Array:
                work = unit(number)

                def ask(at: Array, asked: Array) -> Array:
                    slot = jax.lax.rem(asked, stages)
                    # Behind the table's end any page will do: its positions are masked.
                    places = [jnp.minimum(at * pages + page, width - 1) for page in range(pages)]
                    ids = [table_ref[work.row, place] for place in places]
                    for member in range(members):
                        here, head = slot * members + member, work.heads * members + member

                        @pl.when(asked >= stages)
                        def _wait(here: Array = here) -> None:
                            mosaic.barrier_wait(free.at[here])

                        for source, target, arrived in ((k_ref, k_smem, k_in), (v_ref, v_smem, v_in)):
                            for page, page_id in enumerate(ids):
                                mosaic.copy_gmem_to_smem(
                                    source.at[page_id, :, head],
                                    target.at[slot, member, pl.ds(page * page_size, page_size)],
                                    arrived.at[here],
                                )
                    return asked + 1

                return jax.lax.fori_loop(work.begin, work.end, ask, asked)

            asked = jax.lax.fori_loop(0, mine, each_unit, jnp.int32(0))
            # A program ends when everything that it asked for has been used.
            for here in range(stages * members):

                @pl.when(here // members < asked)
                def _wait(here: int = here) -> None:
                    mosaic.barrier_wait(free.at[here])

        @pl.when(warpgroup < attending)
        def _attend() -> None:
            if attending == 2:
                mosaic.set_max_registers(ATTENDING_REGISTERS, action="increase")
            own_q = q_smem.at[warpgroup]
            member = 0 if halved else warpgroup
            own_first = warpgroup * TILE_LINES if halved else 0

            def each_unit(number: Array, done: Array) -> Array:
                work = unit(number)
                head = work.heads * members + member
                own = pl.ds(own_first, own_lines)
                mosaic.copy_gmem_to_smem(
                    q_ref.at[work.tile, head, own], own_q.at[pl.ds(0, own_lines)], q_in.at[warpgroup]
                )
                mosaic.barrier_wait(q_in.at[warpgroup])

                def step(at: Array, state: tuple[Array, ...], masked: bool) -> tuple[Array, ...]:
                    peak, total, summed, done = state
                    slot = jax.lax.rem(done, stages)
                    here = slot * members + member
                    mosaic.barrier_wait(k_in.at[here])

                    shape, wide = (TILE_LINES, block), (TILE_LINES, head_dim)
                    scores = product(own_q, k_smem.at[slot, member].transpose((1, 0)), shape) * scale
                    if masked:
                        kv = at * block + numbers(shape, 1)
                        line = numbers(shape, 0) + own_first
                        position = work.first + (jax.lax.div(line, group) if queries > 1 else jnp.zeros_like(line))
                        seen = kv <= position
                        if window is not None:
                            seen &= kv > position - window
                        scores = jnp.where(seen, scores, NOTHING)
                    new_peak = jnp.maximum(peak, scores.max(axis=1))
                    weights = jnp.exp2(scores - jax.lax.broadcast_in_dim(new_peak, shape, [0]))
                    if masked:
                        weights = jnp.where(seen, weights, 0.0)
                    fade = jnp.exp2(peak - new_peak)
                    total = total * fade + weights.sum(axis=1)
                    narrow = weights.astype(dtype)
                    mosaic.barrier_wait(v_in.at[here])
                    if masked:

                        @pl.when((at + 1) * block > work.kv_end)
                        def _clear() -> None:
                            for part in range(block // TILE_LINES):
                                rows = pl.ds(part * TILE_LINES, TILE_LINES)
                                size = (TILE_LINES, head_dim)
                                token = numbers(size, 0)
                                kept = at * block + part * TILE_LINES + token < work.kv_end
                                values = v_smem[slot, member, rows]
                                v_smem[slot, member, rows] = jnp.where(kept, values, jnp.zeros_like(values))
                            mosaic.commit_smem()

                    here_summed = product(narrow, v_smem.at[slot, member], wide)
                    mosaic.barrier_arrive(free.at[here])
                    summed = summed * jax.lax.broadcast_in_dim(fade, wide, [0]) + here_summed
                    return new_peak, total, summed, done + 1

                # Up to here every query sees every position of a block, so nothing is compared.
                middle = work.begin
                if window is None:
                    middle = jnp.clip(jax.lax.div(work.first + 1, block), work.begin, work.end)
                by_line = mosaic.Layout.WGMMA.reduce(1)
                state = (
                    cast(jnp.full((TILE_LINES,), NOTHING, jnp.float32), by_line),
                    cast(jnp.zeros((TILE_LINES,), jnp.float32), by_line),
                    cast(jnp.zeros((TILE_LINES, head_dim), jnp.float32), mosaic.Layout.WGMMA),
                    done,
                )
                state = jax.lax.fori_loop(work.begin, middle, partial(step, masked=False), state)
                peak, total, summed, done = jax.lax.fori_loop(middle, work.end, partial(step, masked=True), state)

                divisor = jnp.where(total > 0, total, 1.0)
                # The queries are no longer needed: their place takes the result.
                own_q[...] = (summed / jax.lax.broadcast_in_dim(divisor, summed.shape, [0])).astype(dtype)
                log_smem[warpgroup] = jnp.where(total > 0, peak + jnp.log2(divisor), NOTHING)
                mosaic.commit_smem()
                at = work.split * count + work.tile
                mosaic.copy_smem_to_gmem(own_q.at[pl.ds(0, own_lines)], out_ref.at[at, head, own])
                mosaic.copy_smem_to_gmem(log_smem.at[warpgroup, pl.ds(0, own_lines)], log_weights_ref.at[at, head, own])
                mosaic.wait_smem_to_gmem(0)
                return done

            jax.lax.fori_loop(0, mine, each_unit, jnp.int32(0))

    transforms = (mosaic.TilingTransform((8, 64)), mosaic.SwizzleTransform(128))
    blocks = (stages, members, block, head_dim)
    pl.run_scoped(
        run,
        mosaic.SMEM((attending, TILE_LINES, head_dim), dtype, transforms=transforms),
        mosaic.SMEM(blocks, dtype, transforms=transforms),
        mosaic.SMEM(blocks, dtype, transforms=transforms),
        mosaic.SMEM((attending, TILE_LINES), jnp.float32),
        mosaic.Barrier(num_barriers=attending),
        mosaic.Barrier(num_arrivals=block // page_size, num_barriers=stages * members),
        mosaic.Barrier(num_arrivals=block // page_size, num_barriers=stages * members),
        mosaic.Barrier(num_arrivals=sharers, num_barriers=stages * members),
        collective_axes="warpgroup",
    )
