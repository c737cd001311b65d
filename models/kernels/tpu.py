"""Attention on TPUs: JAX's ragged paged attention kernel, over pages with keys and values combined.

The kernel is `jax.experimental.pallas.ops.tpu.ragged_paged_attention`. It knows no segments: every row has queries, and a row that reads nothing would
leave a copy unwaited for. So padding rows read one entry of the null page, rows after the last real one are left out, and what was
computed for padding is cleared. Each device computes its own heads (`shard_map`), heads and their numbers padded as the pool's are.

Block sizes are given, because the kernel's own table asks the local device what it is, and a compile check has none. They keep both page
buffers and a block of queries well inside the memory that a v5e's compiler gives a kernel (16 MiB); on no TPU were they tuned yet.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from triptych.models.attend import KV, Attend, picked
from triptych.models.errors import UnsupportedModelError
from triptych.models.pool_layout import COMBINED
from triptych.models.ragged import Ragged
from triptych.sharding.mesh import TP
from triptych.sharding.rules import ShardingRules

# Of the two page buffers together.
KV_BUFFER_BYTES = 4 << 20
# More KV tokens than this at a time hide no more of a copy's latency.
KV_BLOCK = 1024
# Rows of the matrix products: query tokens times the heads of a device.
QUERY_ROWS = 512
QUERY_BLOCK = 64

HEADS, PAGES, WHOLE = PartitionSpec(None, TP), PartitionSpec(None, None, TP), PartitionSpec()


def tpu_attend(batch: Ragged, scale: float, rules: ShardingRules) -> Attend:
    """Scatter the new keys and values into combined pages, then JAX's kernel. Off TPUs it runs in Pallas's interpret mode only.

    Raises UnsupportedModelError while tracing for numbers that are neither bfloat16 nor float32.
    """

    def attend(q: Array, k: Array, v: Array, kv: KV, window: int | None) -> tuple[Array, KV]:
        (pages,) = kv
        for array in (q, pages):
            if array.dtype not in (jnp.bfloat16, jnp.float32):
                raise UnsupportedModelError(
                    f"the TPU attention kernel takes bfloat16 or float32, got {array.dtype}: choose another dtype or KV dtype"
                )

        def local(q: Array, k: Array, v: Array, pages: Array, batch: Ragged) -> tuple[Array, Array]:
            page, offset = jnp.divmod(batch.write_index, pages.shape[1])
            new = COMBINED.merge(k, v).astype(pages.dtype)
            pages = pages.at[page, offset].set(new, mode="drop")
            return _attended(picked(q, batch.wanted()), pages, batch.queries(), k.shape[1], scale, window), pages

        sharded = jax.shard_map(
            local,
            mesh=rules.mesh,
            in_specs=(HEADS, HEADS, HEADS, PAGES, WHOLE),
            out_specs=(HEADS, PAGES),
            check_vma=False,  # the kernel's outputs do not say over which axes they vary
        )
        out, pages = sharded(q, k, v, pages, batch)
        return out, (pages,)

    return attend


def _attended(
    q: Float[Array, "tokens heads head_dim"],
    pages: Float[Array, "pages page_size slots width"],
    batch: Ragged,
    kv_heads: int,
    scale: float,
    window: int | None,
) -> Float[Array, "tokens heads head_dim"]:
    """One device's queries over its pages; padding tokens get zeros."""
    tokens, heads, head_dim = q.shape
    group, slots, width = heads // kv_heads, pages.shape[2] // 2, pages.shape[3]
    padded = jnp.pad(q, ((0, 0), (0, (slots - kv_heads) * group), (0, width - head_dim)))
    rows = jnp.arange(batch.kv_lens.shape[0])
    real = jnp.max(jnp.where(batch.kv_lens > 0, rows + 1, 1), keepdims=True)
    # One query at least, in a step of nothing but padding: the first page is on its way before anything is looked at.
    starts = batch.cu_q_lens.at[1:].max(1)
    out = ragged_paged_attention(
        padded,
        pages,
        jnp.maximum(batch.kv_lens, 1),
        batch.page_indices,
        starts,
        real.astype(jnp.int32),
        sm_scale=scale,
        sliding_window=window,
        num_kv_pages_per_block=_kv_pages_a_block(pages, batch.page_indices.shape[1]),
        num_queries_per_block=min(tokens, QUERY_BLOCK, max(8, QUERY_ROWS // padded.shape[1])),
    )
    return jnp.where(_queries(batch, tokens)[:, None, None], out[:, :heads, :head_dim], 0)


def _kv_pages_a_block(pages: Float[Array, "pages page_size slots width"], table_width: int) -> int:
    page_bytes = pages.dtype.itemsize * pages.shape[1] * pages.shape[2] * pages.shape[3]
    return max(1, min(table_width, KV_BLOCK // pages.shape[1], KV_BUFFER_BYTES // (2 * page_bytes)))


def _queries(batch: Ragged, tokens: int) -> Int[Array, "tokens"]:
    """Which token slots are not padding."""
    token = jnp.arange(tokens)
    used = token < batch.cu_q_lens[-1]
    if not batch.decode_rows:
        return used
    row = jnp.minimum(token, batch.decode_rows - 1)
    return used & ((token >= batch.decode_rows) | (batch.kv_lens.at[row].get(mode="clip") > 0))
