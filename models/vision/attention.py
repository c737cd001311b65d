"""Attention within spans: every slot attends to a contiguous run of slots, in both directions. Plain JAX.

Slots are cut into blocks of queries. All blocks walk at once over the blocks of keys that any of their queries sees, with
a running softmax in float32 (arXiv 2112.05682), so memory grows with slots times KEY_BLOCK and never with their square,
and time follows the longest piece and not the bucket. A window layer's blocks see few keys and are done soon.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Queries and keys a block: a window of Qwen2.5-VL has 64 patches, a picture of CLIP 577.
QUERY_BLOCK = 128
KEY_BLOCK = 128

# Instead of -inf, which turns a slot that sees nothing into NaN.
MASKED_SCORE = -1e30


def span_attention(
    q: Float[Array, "slots heads head_dim"],
    k: Float[Array, "slots heads head_dim"],
    v: Float[Array, "slots heads head_dim"],
    spans: Int[Array, "slots 2"],
    scale: float,
) -> Float[Array, "slots heads head_dim"]:
    """Attend slot i to the slots [spans[i, 0], spans[i, 1]); a slot with an empty span gets zeros."""
    slots, heads, head_dim = q.shape
    keys = min(KEY_BLOCK, slots)
    queries = min(QUERY_BLOCK, slots)
    q, spans = _in_blocks(q, queries), _in_blocks(spans, queries)
    k, v = _in_blocks(k, keys), _in_blocks(v, keys)
    starts, ends = spans[:, :, 0], spans[:, :, 1]
    seen = ends > starts
    first = jnp.where(seen, starts, slots).min(axis=1) // keys
    count = jnp.where(seen.any(axis=1), -(-ends.max(axis=1) // keys) - first, 0)

    def step(index: Int[Array, ""], state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        peak, total, summed = state
        block = first + index
        here_k, here_v = k.at[block].get(mode="clip"), v.at[block].get(mode="clip")
        slot = block[:, None] * keys + jnp.arange(keys)
        mask = (slot[:, None, :] >= starts[:, :, None]) & (slot[:, None, :] < ends[:, :, None])
        mask = (mask & (index < count)[:, None, None])[:, None]
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, here_k, preferred_element_type=jnp.float32) * scale
        scores = jnp.where(mask, scores, MASKED_SCORE)
        new_peak = jnp.maximum(peak, scores.max(axis=-1))
        weights = jnp.where(mask, jnp.exp(scores - new_peak[..., None]), 0.0)
        fade = jnp.exp(peak - new_peak)
        here = jnp.einsum("bhqk,bkhd->bhqd", weights.astype(v.dtype), here_v, preferred_element_type=jnp.float32)
        return new_peak, total * fade + weights.sum(axis=-1), summed * fade[..., None] + here

    shape = (q.shape[0], heads, queries)
    state = (jnp.full(shape, MASKED_SCORE), jnp.zeros(shape), jnp.zeros((*shape, head_dim)))
    _, total, summed = jax.lax.fori_loop(0, count.max(), step, state)
    out = summed / jnp.where(total > 0, total, 1.0)[..., None]
    return jnp.moveaxis(out, 1, 2).reshape(-1, heads, head_dim)[:slots].astype(q.dtype)


def _in_blocks(array: Array, size: int) -> Array:
    """[slots, ...] as [blocks, size, ...], the last block filled with zeros."""
    pad = -array.shape[0] % size
    padded = jnp.pad(array, ((0, pad), *((0, 0),) * (array.ndim - 1)))
    return padded.reshape(-1, size, *array.shape[1:])
