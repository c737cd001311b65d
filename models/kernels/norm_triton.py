"""Root mean square norm of a sum as one kernel through Pallas' Triton backend.

XLA makes two or three of it: the sum, the norm, and for long steps the product with the weight; and one more where a product left parts to be added.
Rounding is that of `RmsNorm`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from triptych.models.attend import Hidden, Summands

NUMBERS = 16  # of a row in the registers of one thread
# Where there are few rows nothing else hides what a load takes, and more threads load more at once: on an H200 four summands of eight rows take 2.2 us instead of 3.3.
FEW_ROWS, FEWER_NUMBERS = 32, 4


@partial(jax.jit, static_argnames=("eps", "interpret"))  # traced and lowered once for both norms of a layer
def add_norm(
    x: Hidden, more: Summands, weight: Float[Array, "hidden"], eps: float, interpret: bool = False
) -> tuple[Hidden, Hidden]:
    """(x + more, the same normed)."""
    (tokens, size), parts = x.shape, 1 if more.ndim == 2 else more.shape[0]
    block, like = pl.next_power_of_2(size), jax.ShapeDtypeStruct(x.shape, x.dtype)
    warps = block // (32 * (FEWER_NUMBERS if tokens <= FEW_ROWS else NUMBERS))
    return pl.pallas_call(
        partial(_kernel, tokens=tokens, size=size, parts=parts, block=block, eps=eps),
        grid=(tokens,),
        out_shape=(like, like),
        compiler_params=triton.CompilerParams(num_warps=min(max(warps, 1), 32)),
        interpret=interpret,
        name="add_norm",
    )(x, more.reshape(parts * tokens, size), weight)


def _kernel(
    x_ref: Any, more_ref: Any, weight_ref: Any, sum_ref: Any, normed_ref: Any,
    *, tokens: int, size: int, parts: int, block: int, eps: float,
) -> None:  # fmt: skip
    row, column = pl.program_id(0), jnp.arange(block)
    inside = column < size

    def load(ref: Any, row: Any) -> Any:
        return triton.load(ref.at[row, column], mask=inside, other=0.0)

    x, more = load(x_ref, row), load(more_ref, row)
    for part in range(1, parts):
        more = more + load(more_ref, part * tokens + row)
    x = x + more.astype(x.dtype)
    triton.store(sum_ref.at[row, column], x, mask=inside)
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.sum(wide * wide) / size + eps)
    weight = triton.load(weight_ref.at[column], mask=inside, other=0.0)
    triton.store(normed_ref.at[row, column], weight * wide.astype(x.dtype), mask=inside)
