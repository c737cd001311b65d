"""Root mean square norm of a sum as one kernel through Pallas' Triton backend.

XLA makes two or three of it: the sum, the norm, and for long steps the product with the weight. Rounding is that of `RmsNorm`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

Hidden = Float[Array, "tokens hidden"]

NUMBERS = 16  # of a row in the registers of one thread


def add_norm(
    x: Hidden, more: Hidden | None, weight: Float[Array, "hidden"], eps: float, interpret: bool = False
) -> tuple[Hidden, Hidden]:
    """(x + more, the same normed); None adds nothing."""
    tokens, size = x.shape
    block, like = pl.next_power_of_2(size), jax.ShapeDtypeStruct(x.shape, x.dtype)
    inputs = (x, weight) if more is None else (x, weight, more)
    found = pl.pallas_call(
        partial(_kernel, size=size, block=block, eps=eps, adds=more is not None),
        grid=(tokens,),
        out_shape=[like] * (len(inputs) - 1),
        compiler_params=triton.CompilerParams(num_warps=min(max(block // (32 * NUMBERS), 1), 16)),
        interpret=interpret,
        name="add_norm",
    )(*inputs)
    return (x, found[0]) if more is None else (found[1], found[0])


def _kernel(x_ref: Any, weight_ref: Any, *refs: Any, size: int, block: int, eps: float, adds: bool) -> None:
    row, column = pl.program_id(0), jnp.arange(block)
    inside = column < size
    x = triton.load(x_ref.at[row, column], mask=inside, other=0.0)
    if adds:
        more_ref, normed_ref, sum_ref = refs
        x = x + triton.load(more_ref.at[row, column], mask=inside, other=0.0)
        triton.store(sum_ref.at[row, column], x, mask=inside)
    else:
        (normed_ref,) = refs
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.sum(wide * wide) / size + eps)
    weight = triton.load(weight_ref.at[column], mask=inside, other=0.0)
    triton.store(normed_ref.at[row, column], weight * wide.astype(x.dtype), mask=inside)
