"""From a layer's projection to queries that can attend and pages that hold the step's keys and values, as one kernel through Pallas' Triton backend.

It norms (where a model does) and rotates queries and keys, and writes keys and values into the pages. XLA makes five or six kernels of that, each of which
starts and ends for a microsecond of work, and its scatter takes ten times as long for a prompt as its bytes need. The pools are written in place: they are the
kernel's inputs and its outputs. Rounding is that of `RmsNorm` and `rotate`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from triptych.models.attend import Summands
from triptych.models.rope import Rotation

Pool = Float[Array, "pages page_size kv_heads head_dim"]

TOKENS = 16  # of one program, which has one head of them


class HeadNorms(NamedTuple):
    """The weights of norms over queries' and keys' heads."""

    q: Float[Array, "head_dim"]
    k: Float[Array, "head_dim"]
    eps: float


def rotate_and_write(
    parts: Summands,
    by: Rotation,
    k_pages: Pool,
    v_pages: Pool,
    write_index: Int[Array, "tokens"],
    heads: int,
    norms: HeadNorms | None = None,
    *,
    dtype: jnp.dtype | None = None,
    keep: bool = False,
    interpret: bool = False,
) -> tuple[Array, ...]:
    """(queries [tokens, heads, head_dim], key pages, value pages), and with `keep` keys and values [tokens, kv_heads, head_dim] behind them.

    `parts` are one device's queries, keys and values, or summands of them; results are in `dtype`, or in that of `parts`. Each token's slot is page * page_size + offset; slots beyond the pool are dropped. head_dim is a power of two.
    """
    (pages, page_size, kv_heads, head_dim), (*summands, tokens, _) = k_pages.shape, parts.shape
    dtype = dtype or parts.dtype
    if head_dim & (head_dim - 1):
        raise ValueError(f"head_dim is {head_dim}; the kernel takes powers of two")
    slots = pages * page_size
    pool = jax.ShapeDtypeStruct((slots, kv_heads * head_dim), k_pages.dtype)
    new = jax.ShapeDtypeStruct((tokens, kv_heads * head_dim), dtype)
    queries = jax.ShapeDtypeStruct((tokens, heads * head_dim), dtype)
    sizes = {
        "summands": summands[0] if summands else 1,
        "tokens": tokens,
        "slots": slots,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
    }
    k_written, v_written, q, *kept = pl.pallas_call(
        partial(_kernel, **sizes, keep=keep, eps=None if norms is None else norms.eps),
        grid=(pl.cdiv(tokens, TOKENS), heads + kv_heads),
        out_shape=[pool, pool, queries, *[new] * (2 * keep)],
        input_output_aliases={0: 0, 1: 1},
        compiler_params=triton.CompilerParams(num_warps=4),
        interpret=interpret,
        name="rotate_and_write",
    )(
        *(array.reshape(pool.shape) for array in (k_pages, v_pages)),
        parts.reshape(-1, parts.shape[-1]),
        *by,
        write_index,
        *(() if norms is None else (norms.q, norms.k)),
    )
    back = (k_written.reshape(k_pages.shape), v_written.reshape(v_pages.shape))
    return q.reshape(tokens, heads, head_dim), *back, *(array.reshape(tokens, kv_heads, head_dim) for array in kept)


def _kernel(
    _k_pages: Any, _v_pages: Any, parts_ref: Any, cos_ref: Any, sin_ref: Any, index_ref: Any, *refs: Any,
    summands: int, tokens: int, slots: int, heads: int, kv_heads: int, head_dim: int, keep: bool, eps: float | None,
) -> None:  # fmt: skip
    norms, (k_out, v_out, q_out, *kept) = refs[: 2 * (eps is not None)], refs[2 * (eps is not None) :]
    part, half, dtype = pl.program_id(1), head_dim // 2, q_out.dtype
    token, low = pl.program_id(0) * TOKENS + jnp.arange(TOKENS), jnp.arange(half)
    rows, pairs = token[:, None], (TOKENS, half)
    real = jnp.broadcast_to((token < tokens)[:, None], pairs)
    queries, keys = real & (part < heads), real & (part >= heads)
    slot = triton.load(index_ref.at[token], mask=token < tokens, other=slots)
    written = keys & ((slot >= 0) & (slot < slots))[:, None]

    def load(ref: Any, column: Any, mask: Any, rows: Any = rows) -> Any:
        return triton.load(ref.at[rows, column[None, :]], mask=mask, other=0.0)

    def projected(column: Any, mask: Any) -> Any:
        value = load(parts_ref, column, mask)
        for number in range(1, summands):
            value = value + load(parts_ref, column, mask, number * tokens + rows)
        return value.astype(dtype)

    def store(ref: Any, lines: Any, column: Any, value: Any, mask: Any) -> None:
        triton.store(ref.at[lines[:, None], column[None, :]], value.astype(ref.dtype), mask=mask)

    at = part * head_dim + low
    first, second = (projected(at + offset, real) for offset in (0, half))
    first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    if eps is not None:
        mean = (jnp.sum(first * first, axis=1) + jnp.sum(second * second, axis=1)) / head_dim
        scale = jax.lax.rsqrt(mean + eps)[:, None]
        of_queries = jnp.broadcast_to(part < heads, (half,))
        weights = (jnp.where(of_queries, norms[0][low + offset], norms[1][low + offset]) for offset in (0, half))
        first, second = (
            (weight[None, :] * (x * scale).astype(dtype)).astype(jnp.float32)
            for weight, x in zip(weights, (first, second), strict=True)
        )
    cos, sin = load(cos_ref, low, real), load(sin_ref, low, real)
    rotated = ((first * cos - second * sin).astype(dtype), (second * cos + first * sin).astype(dtype))
    key_at = jnp.maximum(part - heads, 0) * head_dim + low
    for offset, value in zip((0, half), rotated, strict=True):
        plain = projected(at + kv_heads * head_dim + offset, keys)
        store(q_out, token, at + offset, value, queries)
        store(k_out, slot, key_at + offset, value, written)
        store(v_out, slot, key_at + offset, plain, written)
        if keep:
            store(kept[0], token, key_at + offset, value, keys)
            store(kept[1], token, key_at + offset, plain, keys)
