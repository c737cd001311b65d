"""Attention over paged KV with ragged rows: the reference, in plain JAX. It is the oracle for every kernel.

The semantics are those of ragged paged attention kernels (cu_q_lens, kv_lens, page_indices), with the batch of
`models/ragged.py`. A row of L cached tokens of which the last n are this step's queries: query j (from 0) stands at KV
position L - n + j and sees KV positions up to its own, and with a window only those above its own minus the window. In
cross-attention every query sees all of its row.

One inner function serves both segments: rows of equally many queries walk their pages in blocks, with a running softmax
in float32 (arXiv 2112.05682), from the first block that any query sees to the last. Time follows the live lengths and
not the width of the block table, and what is gathered at once stays in cache: on two CPU cores, 8 rows of 200 tokens in
tables of 512 take a fifth of the time of gathering whole rows. Decode rows (one query each) walk together. Ragged rows
are cut into blocks of queries that walk one after another, and blocks beyond a row's length are skipped.

The query of a lone decode row is multiplied with all KV heads of a device at once if they are few, each head's query
being zero at the other heads' numbers. That multiplies more, but takes the gathered tokens as they lie in the pages:
bringing the heads forward is a strided pass over cold memory, on CPU half of what attention costs such a step.

Values at masked positions are cleared before they are summed: a page's unused tail holds whatever its last owner left,
and 0 x NaN is NaN.

Pages of codes (`models/quantised_kv.py`) come with scales: scores are multiplied by the keys', weights by the values', so
that products take codes.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Queries per block of the ragged segment: enough rows to fill matrix units.
QUERY_BLOCK = 128

# KV tokens per block. 128 tokens of a few hundred floats, for 8 rows, fit an L2 cache; at 200 cached tokens half or
# twice as many measured 1.5 times as slow.
KV_BLOCK = 128

# KV tokens per block of a single row: half as many small operations for the same reading.
LONE_ROW_KV_BLOCK = 256

# Most multiplications with zero, for each cached number, that cost less than bringing the heads forward.
MAX_WASTE = 8

# Instead of -inf, which turns a row without any visible position into NaN.
MASKED_SCORE = -1e30

Scales = tuple[Float[Array, "pages page_size kv_heads"], Float[Array, "pages page_size kv_heads"]]
"""Those of one layer's keys and values, where the pages hold codes."""


def ragged_paged_attention(
    q: Float[Array, "tokens heads head_dim"],
    k_pages: Float[Array, "pages page_size kv_heads head_dim"],
    v_pages: Float[Array, "pages page_size kv_heads head_dim"],
    kv_lens: Int[Array, "rows"],
    page_indices: Int[Array, "rows width"],
    cu_q_lens: Int[Array, "rows_plus_1"],
    *,
    decode_rows: int,
    max_q_len: int,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    tp: int = 1,
    scales: Scales | None = None,
) -> Float[Array, "tokens heads head_dim"]:
    """Attend every query to its row's cached tokens; padding tokens get zeros.

    kv_lens include this step's tokens, which are already in the pages. `decode_rows` and `max_q_len` are static: rows
    below `decode_rows` have one token (or kv_len 0, for padding), token i being row i's; later rows have at most
    `max_q_len`. `soft_cap` bounds scores as cap * tanh(score / cap), before masking. `tp` is
    how many devices the heads are spread over. `scales` are those of pages of codes. Page indices must lie in the pool.
    Raises ValueError if the static sizes contradict each other.
    """
    _check_segments(q, kv_lens, decode_rows)
    cache = _Cache(k_pages, v_pages, scale, window, soft_cap, tp, scales)
    rows_of = _Rows(kv_lens, page_indices, cu_q_lens, decode_rows, max_q_len)
    return _attend_rows(cache, q, rows_of, kv_lens - (cu_q_lens[1:] - cu_q_lens[:-1]), stride=1)


def ragged_paged_cross_attention(
    q: Float[Array, "tokens heads head_dim"],
    k_pages: Float[Array, "pages page_size kv_heads head_dim"],
    v_pages: Float[Array, "pages page_size kv_heads head_dim"],
    kv_lens: Int[Array, "rows"],
    page_indices: Int[Array, "rows width"],
    cu_q_lens: Int[Array, "rows_plus_1"],
    *,
    decode_rows: int,
    max_q_len: int,
    scale: float,
    tp: int = 1,
) -> Float[Array, "tokens heads head_dim"]:
    """Attend every query to all `kv_lens` entries of its row, whatever its position; padding tokens get zeros.

    The arguments are those of `ragged_paged_attention`, but kv_lens and pages are of another sequence than the queries
    (what an encoder saw), and nothing of this step is in them. A row with kv_len 0 gets zeros.
    """
    _check_segments(q, kv_lens, decode_rows)
    cache = _Cache(k_pages, v_pages, scale, None, None, tp)
    rows_of = _Rows(kv_lens, page_indices, cu_q_lens, decode_rows, max_q_len)
    return _attend_rows(cache, q, rows_of, kv_lens - 1, stride=0)


@dataclass(frozen=True)
class _Rows:
    """Which tokens and which pages belong to which row."""

    kv_lens: Int[Array, "rows"]
    page_indices: Int[Array, "rows width"]
    cu_q_lens: Int[Array, "rows_plus_1"]
    decode_rows: int
    max_q_len: int


def _check_segments(q: Float[Array, "tokens heads head_dim"], kv_lens: Int[Array, "rows"], decode_rows: int) -> None:
    tokens, rows = q.shape[0], kv_lens.shape[0]
    if not 0 <= decode_rows <= min(rows, tokens):
        raise ValueError(f"decode_rows must lie between 0 and the {rows} rows and {tokens} tokens, got {decode_rows}")
    if tokens > decode_rows and rows == decode_rows:
        raise ValueError(f"{tokens - decode_rows} tokens after the {decode_rows} decode rows belong to no row")


def _attend_rows(
    cache: "_Cache", q: Float[Array, "tokens heads head_dim"], rows: _Rows, first: Int[Array, "rows"], stride: int
) -> Float[Array, "tokens heads head_dim"]:
    """Both segments. Query j of a ragged row stands at KV position first + stride * j, that of a decode row at its last."""
    decode_rows, outputs = rows.decode_rows, []
    if decode_rows:
        last = rows.kv_lens[:decode_rows, None] - 1
        outputs.append(cache.attend(q[:decode_rows, None], last, rows.page_indices[:decode_rows])[:, 0])
    if q.shape[0] > decode_rows:
        starts = rows.cu_q_lens[decode_rows:] - decode_rows
        table = rows.page_indices[decode_rows:]
        outputs.append(
            _attend_ragged(cache, q[decode_rows:], first[decode_rows:], stride, table, starts, rows.max_q_len)
        )
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs)


def _attend_ragged(
    cache: "_Cache",
    q: Float[Array, "tokens heads head_dim"],
    first: Int[Array, "rows"],
    stride: int,
    page_indices: Int[Array, "rows width"],
    starts: Int[Array, "rows_plus_1"],
    max_q_len: int,
) -> Float[Array, "tokens heads head_dim"]:
    """Rows of several queries, block by block. `starts` count from this segment's first token."""
    tokens, heads, head_dim = q.shape
    rows = first.shape[0]
    block = min(QUERY_BLOCK, max_q_len)
    blocks_per_row = -(-max_q_len // block)
    q_lens = starts[1:] - starts[:-1]

    def attend(item: Int[Array, ""]) -> Float[Array, "block heads head_dim"]:
        row, in_row = item // blocks_per_row, (item % blocks_per_row) * block + jnp.arange(block)
        here = q.at[starts[row] + in_row].get(mode="clip")
        positions = jnp.where(in_row < q_lens[row], first[row] + stride * in_row, -1)
        return cache.attend(here[None], positions[None], page_indices[row][None])[0]

    def attend_if_used(item: Int[Array, ""]) -> Float[Array, "block heads head_dim"]:
        used = (item % blocks_per_row) * block < q_lens[item // blocks_per_row]
        return jax.lax.cond(used, attend, lambda _: jnp.zeros((block, heads, head_dim), q.dtype), item)

    blocks = jax.lax.map(attend_if_used, jnp.arange(rows * blocks_per_row))
    by_row = blocks.reshape(rows, blocks_per_row * block, heads, head_dim)
    token = jnp.arange(tokens)
    row = jnp.minimum((token[:, None] >= starts[None, 1:]).sum(axis=1), rows - 1)
    out = by_row.at[row, token - starts[row]].get(mode="clip")
    return jnp.where((token < starts[-1])[:, None, None], out, 0)


@dataclass(frozen=True)
class _Cache:
    """One layer's pages and how they are attended."""

    k_pages: Float[Array, "pages page_size kv_heads head_dim"]
    v_pages: Float[Array, "pages page_size kv_heads head_dim"]
    scale: float
    window: int | None
    soft_cap: float | None
    tp: int
    scales: Scales | None = None

    def attend(
        self,
        q: Float[Array, "rows queries heads head_dim"],
        positions: Int[Array, "rows queries"],
        page_indices: Int[Array, "rows width"],
    ) -> Float[Array, "rows queries heads head_dim"]:
        """Attend queries standing at KV `positions`; a query at a negative position sees nothing and gets zeros."""
        rows, queries, heads, head_dim = q.shape
        page_size, kv_heads = self.k_pages.shape[1:3]
        lone = rows == queries == 1
        pages = min(max((LONE_ROW_KV_BLOCK if lone else KV_BLOCK) // page_size, 1), page_indices.shape[1])
        tokens = pages * page_size
        # Whole blocks, and one more: of a table of one block XLA hoists the gather out of the loop and fuses it with
        # the write of the new token before it, which then needs the old pool, hence a copy of all of it. The null page
        # is past every position.
        page_indices = jnp.pad(page_indices, ((0, 0), (0, -page_indices.shape[1] % pages + pages)))
        merged = self._mergeable_heads(heads) if lone else 1
        own = jnp.eye(merged, dtype=bool)
        by_head = q.reshape(rows, queries, kv_heads // merged, merged, heads // kv_heads, 1, head_dim)
        spread = jnp.where(own[:, None, :, None], by_head, 0)
        grouped = spread.reshape(rows, queries, kv_heads // merged, -1, merged * head_dim)

        def block(index: Int[Array, ""], state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            peak, total, summed = state
            table = jax.lax.dynamic_slice_in_dim(page_indices, index * pages, pages, axis=1)
            k, v = _gather(self.k_pages, table, merged), _gather(self.v_pages, table, merged)
            mask = self._visible(positions, index * tokens + jnp.arange(tokens))
            seen = mask.any(axis=1)
            if self.scales is not None:
                k, v = k.astype(q.dtype), v.astype(q.dtype)
                k_scale, v_scale = (_scale_of_lines(scales, table, merged, heads) for scales in self.scales)
                v_scale = jnp.where(seen[:, None, None, None], v_scale, 0)
            v = jnp.where(seen[:, :, None, None], v, 0)
            scores = jnp.einsum("rqkgd,rskd->rkgqs", grouped, k, preferred_element_type=jnp.float32) * self.scale
            scores = scores if self.scales is None else scores * k_scale
            if self.soft_cap is not None:
                scores = self.soft_cap * jnp.tanh(scores / self.soft_cap)
            mask = mask[:, None, None]
            scores = jnp.where(mask, scores, MASKED_SCORE)
            new_peak = jnp.maximum(peak, scores.max(axis=-1))
            weights = jnp.where(mask, jnp.exp(scores - new_peak[..., None]), 0.0)
            fade = jnp.exp(peak - new_peak)
            scaled = weights if self.scales is None else weights * v_scale
            here = jnp.einsum("rkgqs,rskd->rkgqd", scaled.astype(v.dtype), v, preferred_element_type=jnp.float32)
            return new_peak, total * fade + weights.sum(axis=-1), summed * fade[..., None] + here

        shape = (rows, kv_heads // merged, merged * (heads // kv_heads), queries)
        state = (jnp.full(shape, MASKED_SCORE), jnp.zeros(shape), jnp.zeros((*shape, merged * head_dim)))
        last = positions.max() // tokens + 1
        first = 0
        if self.window is not None:
            earliest = jnp.where(positions < 0, positions.max(), positions).min() - self.window + 1
            first = jnp.maximum(earliest, 0) // tokens
        _, total, summed = jax.lax.fori_loop(first, last, block, state)
        out = (summed / jnp.where(total > 0, total, 1.0)[..., None]).reshape(
            rows, kv_heads // merged, merged, -1, queries, merged, head_dim
        )
        out = jnp.where(own[:, None, None, :, None], out, 0).sum(axis=5).reshape(rows, heads, queries, head_dim)
        return jnp.moveaxis(out, 2, 1).astype(q.dtype)

    def _mergeable_heads(self, heads: int) -> int:
        """How many neighbouring KV heads can be multiplied at once: all of a device, or one by one."""
        local = self.k_pages.shape[2] // self.tp
        waste = heads // self.tp * (local - 1) / local
        return local if waste <= MAX_WASTE else 1

    def _visible(
        self, positions: Int[Array, "rows queries"], kv_positions: Int[Array, "tokens"]
    ) -> Bool[Array, "rows queries tokens"]:
        query, kv = positions[:, :, None], kv_positions[None, None, :]
        visible = kv <= query
        return visible if self.window is None else visible & (kv > query - self.window)


def _gather(
    pages: Float[Array, "pages page_size kv_heads head_dim"], table: Int[Array, "rows width"], merged: int
) -> Float[Array, "rows tokens head_groups merged_dim"]:
    """The tokens of each row's pages, in order; `merged` heads of a token, which lie together, are one vector."""
    gathered = pages.at[table].get(mode="promise_in_bounds")
    return gathered.reshape(table.shape[0], -1, pages.shape[2] // merged, merged * pages.shape[3])


def _scale_of_lines(
    scales: Float[Array, "pages page_size kv_heads"], table: Int[Array, "rows width"], merged: int, heads: int
) -> Float[Array, "rows head_groups lines 1 tokens"]:
    """For each query head of a group of `merged` KV heads the scale of every token's entry that it meets."""
    by_token = scales.at[table].get(mode="promise_in_bounds").reshape(table.shape[0], -1, scales.shape[2])
    by_head = jnp.moveaxis(by_token, 1, 2).reshape(table.shape[0], scales.shape[2] // merged, merged, 1, -1)
    return jnp.repeat(by_head, heads // scales.shape[2], axis=2)
