"""Attention over paged KV with ragged rows: the reference, in plain JAX. It runs on CPU and is the oracle for every kernel.

The semantics are those of ragged paged attention kernels (cu_q_lens, kv_lens, page_indices), with the batch of
`models/ragged.py`. A row of L cached tokens of which the last n are this step's queries: query j (from 0) stands at KV position
L - n + j and sees KV positions up to its own, and with a window only those above its own minus the window.

Two segments, because they want different programs. Decode rows (one query each) gather their pages and take two einsums at once.
Ragged rows are cut into blocks of queries; each block gathers its row's pages and attends, one block after another, and blocks
beyond a row's length are skipped, so that memory and time follow the real lengths and not the largest one.

Softmax is in float32. Values at masked positions are cleared before they are summed: a page's unused tail holds whatever its
last owner left, and 0 x NaN is NaN.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Queries per block of the ragged segment: large enough for matrix units, small enough that the scores of one block
# (heads x 128 x KV length, float32) stay in the tens of megabytes at 8k tokens.
QUERY_BLOCK = 128

# Instead of -inf, which turns a row without any visible position into NaN.
MASKED_SCORE = -1e30


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
) -> Float[Array, "tokens heads head_dim"]:
    """Attend every query to its row's cached tokens; padding tokens get zeros.

    kv_lens include this step's tokens, which are already in the pages. `decode_rows` and `max_q_len` are static: rows below
    `decode_rows` have one token (or none), token i being row i's; later rows have at most `max_q_len`. `soft_cap` bounds scores
    as cap * tanh(score / cap), before masking.
    """
    tokens, rows = q.shape[0], kv_lens.shape[0]
    if not 0 <= decode_rows <= rows:
        raise ValueError(f"decode_rows must lie between 0 and the {rows} rows, got {decode_rows}")
    if decode_rows > tokens:
        raise ValueError(f"{decode_rows} decode rows need as many tokens, got {tokens}")
    if tokens > decode_rows and rows == decode_rows:
        raise ValueError(f"{tokens - decode_rows} tokens after the {decode_rows} decode rows belong to no row")
    options = _Options(scale, window, soft_cap)
    outputs = []
    if decode_rows:
        decode = slice(0, decode_rows)
        # A decode row may be padding by its length or by an empty token range; either way it has no token here.
        lens = jnp.where(cu_q_lens[1 : decode_rows + 1] > cu_q_lens[:decode_rows], kv_lens[decode], 0)
        outputs.append(_decode_segment(q[decode], k_pages, v_pages, lens, page_indices[decode], options))
    if tokens > decode_rows:
        ragged = slice(decode_rows, rows)
        starts = cu_q_lens[decode_rows:] - decode_rows
        outputs.append(
            _ragged_segment(
                q[decode_rows:], k_pages, v_pages, kv_lens[ragged], page_indices[ragged], starts, max_q_len, options
            )
        )
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs)


class _Options:
    """What does not change from row to row."""

    def __init__(self, scale: float, window: int | None, soft_cap: float | None) -> None:
        self.scale, self.window, self.soft_cap = scale, window, soft_cap

    def visible(self, query_position: Int[Array, "..."], kv_position: Int[Array, "..."]) -> Bool[Array, "..."]:
        visible = kv_position <= query_position
        return visible if self.window is None else visible & (kv_position > query_position - self.window)

    def weights(self, scores: Float[Array, "... kv"], mask: Bool[Array, "... kv"]) -> Float[Array, "... kv"]:
        """Softmax over the visible positions, in float32; all zeros where none is visible."""
        scores = scores * self.scale
        if self.soft_cap is not None:
            scores = self.soft_cap * jnp.tanh(scores / self.soft_cap)
        scores = jnp.where(mask, scores, MASKED_SCORE)
        unnormalised = jnp.where(mask, jnp.exp(scores - scores.max(axis=-1, keepdims=True)), 0.0)
        total = unnormalised.sum(axis=-1, keepdims=True)
        return unnormalised / jnp.where(total > 0, total, 1.0)


def _gather(pages: Float[Array, "pages page_size kv_heads head_dim"], table: Int[Array, "*rows width"]) -> Array:
    """The tokens of each row in order: [*rows, width * page_size, kv_heads, head_dim]."""
    gathered = pages.at[table].get(mode="promise_in_bounds")
    return gathered.reshape(*table.shape[:-1], table.shape[-1] * pages.shape[1], *pages.shape[2:])


def _decode_segment(
    q: Float[Array, "rows heads head_dim"],
    k_pages: Array,
    v_pages: Array,
    kv_lens: Int[Array, "rows"],
    page_indices: Int[Array, "rows width"],
    options: _Options,
) -> Float[Array, "rows heads head_dim"]:
    rows, heads, head_dim = q.shape
    kv_heads = k_pages.shape[2]
    k, v = _gather(k_pages, page_indices), _gather(v_pages, page_indices)
    kv_position = jnp.arange(k.shape[1])
    mask = options.visible((kv_lens - 1)[:, None], kv_position[None, :])
    grouped = q.reshape(rows, kv_heads, heads // kv_heads, head_dim)
    scores = jnp.einsum("rkgd,rskd->rkgs", grouped, k, preferred_element_type=jnp.float32)
    weights = options.weights(scores, mask[:, None, None, :])
    v = jnp.where(mask[:, :, None, None], v, 0)
    out = jnp.einsum("rkgs,rskd->rkgd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return out.reshape(rows, heads, head_dim).astype(q.dtype)


def _ragged_segment(
    q: Float[Array, "tokens heads head_dim"],
    k_pages: Array,
    v_pages: Array,
    kv_lens: Int[Array, "rows"],
    page_indices: Int[Array, "rows width"],
    starts: Int[Array, "rows_plus_1"],
    max_q_len: int,
    options: _Options,
) -> Float[Array, "tokens heads head_dim"]:
    """Rows of several queries. `starts` count from this segment's first token."""
    tokens, heads, head_dim = q.shape
    rows, kv_heads = kv_lens.shape[0], k_pages.shape[2]
    block = min(QUERY_BLOCK, max_q_len)
    blocks_per_row = -(-max_q_len // block)
    q_lens = starts[1:] - starts[:-1]

    def attend(item: Int[Array, ""]) -> Float[Array, "block heads head_dim"]:
        row, first = item // blocks_per_row, (item % blocks_per_row) * block
        in_row = first + jnp.arange(block)
        here = q.at[starts[row] + in_row].get(mode="clip").reshape(block, kv_heads, heads // kv_heads, head_dim)
        k, v = _gather(k_pages, page_indices[row]), _gather(v_pages, page_indices[row])
        kv_position = jnp.arange(k.shape[0])
        query_position = kv_lens[row] - q_lens[row] + in_row
        mask = options.visible(query_position[:, None], kv_position[None, :]) & (in_row < q_lens[row])[:, None]
        scores = jnp.einsum("qkgd,skd->kgqs", here, k, preferred_element_type=jnp.float32)
        weights = options.weights(scores, mask[None, None])
        v = jnp.where((kv_position < kv_lens[row])[:, None, None], v, 0)
        out = jnp.einsum("kgqs,skd->qkgd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return out.reshape(block, heads, head_dim).astype(q.dtype)

    def attend_if_used(item: Int[Array, ""]) -> Float[Array, "block heads head_dim"]:
        used = (item % blocks_per_row) * block < q_lens[item // blocks_per_row]
        return jax.lax.cond(used, attend, lambda _: jnp.zeros((block, heads, head_dim), q.dtype), item)

    blocks = jax.lax.map(attend_if_used, jnp.arange(rows * blocks_per_row))
    padded = blocks.reshape(rows, blocks_per_row * block, heads, head_dim)
    token = jnp.arange(tokens)
    row = jnp.minimum((token[:, None] >= starts[None, 1:]).sum(axis=1), rows - 1)
    out = padded.at[row, token - starts[row]].get(mode="clip")
    return jnp.where((token < starts[-1])[:, None, None], out, 0)
