"""Writing a step's keys and values into their pages with one kernel, through Pallas' Triton backend.

XLA's scatter takes a kernel for the keys and one for the values, and for a prompt ten times as long as its bytes need. The pools are written in
place: they are the kernel's inputs and its outputs.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

Pool = Float[Array, "pages page_size kv_heads head_dim"]
New = Float[Array, "tokens kv_heads head_dim"]

TOKENS = 16  # of one program


def write_kv(
    k_pages: Pool, v_pages: Pool, k: New, v: New, write_index: Int[Array, "tokens"], interpret: bool = False
) -> tuple[Pool, Pool]:
    """The pages with each token's keys and values at its slot, page * page_size + offset; slots beyond the pool are dropped. head_dim is a power of two."""
    tokens, kv_heads, head_dim = k.shape
    slots = k_pages.shape[0] * k_pages.shape[1]
    flat = jax.ShapeDtypeStruct((slots, kv_heads * head_dim), k_pages.dtype)
    written = pl.pallas_call(
        partial(_kernel, tokens=tokens, slots=slots, head_dim=head_dim),
        grid=(pl.cdiv(tokens, TOKENS), kv_heads),
        out_shape=[flat, flat],
        input_output_aliases={0: 0, 1: 1},
        compiler_params=triton.CompilerParams(num_warps=4),
        interpret=interpret,
        name="write_kv",
    )(
        *(pages.reshape(flat.shape) for pages in (k_pages, v_pages)),
        *(new.reshape(tokens, -1).astype(k_pages.dtype) for new in (k, v)),
        write_index,
    )
    return written[0].reshape(k_pages.shape), written[1].reshape(v_pages.shape)


def _kernel(
    _k_pages: Any, _v_pages: Any, k_ref: Any, v_ref: Any, index_ref: Any, k_out: Any, v_out: Any, *, tokens: int, slots: int, head_dim: int
) -> None:  # fmt: skip
    token = pl.program_id(0) * TOKENS + jnp.arange(TOKENS)
    column = (pl.program_id(1) * head_dim + jnp.arange(head_dim))[None, :]
    slot = triton.load(index_ref.at[token], mask=token < tokens, other=slots)
    inside = jnp.broadcast_to(((slot >= 0) & (slot < slots))[:, None], (TOKENS, head_dim))
    for new, out in ((k_ref, k_out), (v_ref, v_out)):
        line = triton.load(new.at[token[:, None], column], mask=inside, other=0.0)
        triton.store(out.at[slot[:, None], column], line, mask=inside)
