"""`splits.merge_splits` as one kernel through Pallas' Triton backend: XLA makes three of it, each of which starts and ends for a few microseconds of work."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

# Parts that a program has in registers at once.
BLOCK = 16


def merge_splits(
    parts: Float[Array, "splits lines head_dim"],
    log_weights: Float[Array, "splits lines"],
    dtype: Any,
    interpret: bool = False,
) -> Float[Array, "lines head_dim"]:
    """The average over all parts, in `dtype`; what saw nothing anywhere is the parts' mean. Splits and head_dim are powers of two."""
    splits, lines, head_dim = parts.shape
    return pl.pallas_call(
        partial(_kernel, splits=splits, lines=lines, block=min(splits, BLOCK)),
        grid=(lines,),
        out_shape=jax.ShapeDtypeStruct((lines, head_dim), dtype),
        compiler_params=triton.CompilerParams(num_warps=4),
        interpret=interpret,
        name="merge_splits",
    )(parts.reshape(splits * lines, head_dim), log_weights.reshape(splits * lines))


def _kernel(parts_ref: Any, log_weights_ref: Any, out_ref: Any, *, splits: int, lines: int, block: int) -> None:
    line, column = pl.program_id(0), jnp.arange(parts_ref.shape[1])
    peak = log_weights_ref[jnp.arange(splits) * lines + line].max()
    total, summed = jnp.zeros(()), jnp.zeros(column.shape)
    for first in range(0, splits, block):
        at = (first + jnp.arange(block)) * lines + line
        weights = jnp.exp2(log_weights_ref[at] - peak)
        total += weights.sum()
        summed += (parts_ref[at[:, None], column[None, :]] * weights[:, None]).sum(axis=0)
    out_ref[line, column] = (summed / total).astype(out_ref.dtype)
