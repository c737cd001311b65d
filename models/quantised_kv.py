"""KV entries as codes: a KV head's numbers of one token in eight bits, with a scale of their own.

An entry's scale is its largest magnitude over the largest code, so nothing is clipped, and codes and scale follow from that entry alone: not
from other tokens, from the chunk that it was computed in, or from the mesh. Keys and values have scales apart.

An entry travels as words of 32 bits: its codes, four a word, then its scale (`packed`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, UInt32

# Codes a word.
PER_WORD = 4


def largest_code(dtype: jnp.dtype) -> float:
    """127 for int8, which leaves -128 unused; 448 for float8_e4m3fn."""
    return float(jnp.iinfo(dtype).max if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo(dtype).max)


def quantised(
    entries: Float[Array, "*entries head_dim"], dtype: jnp.dtype
) -> tuple[Num[Array, "*entries head_dim"], Float[Array, "*entries"]]:
    """Codes in `dtype` and float32 scales; an entry is about codes * scale. Zeros have scale 0, and what is not finite has a scale that is not."""
    wide, most = entries.astype(jnp.float32), largest_code(dtype)
    # Not a division by a constant, which compilers replace by this multiplication or do not.
    scales = jnp.abs(wide).max(axis=-1) * jnp.float32(1 / most)
    codes = jnp.clip(wide / jnp.where(scales == 0, 1, scales)[..., None], -most, most)
    return (jnp.round(codes) if jnp.issubdtype(dtype, jnp.integer) else codes).astype(dtype), scales


def packed(codes: Num[Array, "*entries head_dim"], scales: Float[Array, "*entries"]) -> UInt32[Array, "*entries words"]:
    """Entries as they travel, bit for bit. `head_dim` must be a multiple of PER_WORD."""
    words = codes.reshape(*codes.shape[:-1], codes.shape[-1] // PER_WORD, PER_WORD)
    bits = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(words, jnp.uint8), jnp.uint32)
    return jnp.concatenate([bits, jax.lax.bitcast_convert_type(scales, jnp.uint32)[..., None]], axis=-1)


def unpacked(
    words: UInt32[Array, "*entries words"], dtype: jnp.dtype
) -> tuple[Num[Array, "*entries head_dim"], Float[Array, "*entries"]]:
    """What `packed` made words of."""
    codes = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(words[..., :-1], jnp.uint8), dtype)
    return codes.reshape(*words.shape[:-1], -1), jax.lax.bitcast_convert_type(words[..., -1], jnp.float32)
