"""Attention of a prompt that is alone in its step and begins its sequence: to its own queries, keys and values, without pages.

On a GPU by cuDNN, which takes 0.66 of what the paged kernels take for 2,048 tokens of 32 heads and half for 8,192 (docs/performance.md).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from triptych.models.ragged import Ragged

MOST_HEAD_DIM = 128


def attends_fresh(batch: Ragged, dtype: jnp.dtype, head_dim: int, window: int | None, interpret: bool) -> bool:
    """Whether `fresh_attention` is for this step: cuDNN takes 16-bit numbers and heads of at most MOST_HEAD_DIM in eights."""
    taken = dtype in (jnp.bfloat16, jnp.float16) and head_dim <= MOST_HEAD_DIM and head_dim % 8 == 0
    return batch.fresh and window is None and (taken or interpret)


def fresh_attention(
    q: Float[Array, "tokens heads head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    scale: float,
    interpret: bool = False,
) -> Float[Array, "tokens heads head_dim"]:
    """Each query attends to the keys up to its own. What stands behind the prompt is padding, which no query of it sees. `interpret`: by XLA, on any device."""
    (out,) = jax.nn.dot_product_attention(
        q[None], k[None], v[None], scale=scale, is_causal=True, implementation="xla" if interpret else "cudnn"
    )
    return out
