"""Attention of one query over parts of its row, computed apart and put together: the arithmetic of split-KV decoding.

Few rows give a GPU too few programs, so a row's pages are shared out over several, each of which leaves its own softmax
average and the log of its weight. Arithmetic is in base 2, which the hardware has an instruction for.
Source: Flash-Decoding (Dao et al., 2023).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

# The log-weight of what saw nothing: far below any score, and finite, so that differences are numbers.
NOTHING = -1e30

# A part shorter than one block of the kernels' loops saves nothing.
MIN_SPLIT_TOKENS = 64


def split_count(programs: int, kv_tokens: int, wanted: int) -> int:
    """How many parts to cut rows of at most `kv_tokens` into, for `wanted` programs where there are `programs`; a power of two."""
    splits = 1
    while programs * splits < wanted and kv_tokens // (2 * splits) >= MIN_SPLIT_TOKENS:
        splits *= 2
    return splits


def merge_splits(
    parts: Float[Array, "splits *shape head_dim"], log_weights: Float[Array, "splits *shape"]
) -> Float[Array, "*shape head_dim"]:
    """The average over all parts from those over each and log2 of the sums of their weights; NOTHING everywhere gives the parts' mean."""
    weights = jnp.exp2(log_weights - log_weights.max(axis=0))
    return (parts * (weights / weights.sum(axis=0))[..., None]).sum(axis=0)
