"""The checksum of a chunk: a uint32 that depends on every bit and on where it stands.

Each element's bits are mixed with its index in canonical order (one round of the murmur3 finaliser) and the results are summed modulo 2**32.
A plain weighted sum would miss two flipped sign bits (each adds 2**31); mixing does not. Integer sums are exact in any order, so every
backend and every placement gives the same number. It finds accidents, not attacks.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

STRIDE = 0x9E3779B1
"""2**32 over the golden ratio, odd: consecutive indices land far apart, and no two of a chunk share a value."""
MIX_A = 0x85EBCA6B
MIX_B = 0xC2B2AE35
"""The murmur3 finaliser's multipliers (public domain)."""

_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def checksum(chunk: Shaped[Array, "..."]) -> jax.Array:
    """Checksum (uint32 scalar) of an array, computed where it is; for use inside jit. Elements of 1, 2 or 4 bytes."""
    words = jax.lax.bitcast_convert_type(chunk, _word(chunk.dtype)).reshape(-1).astype(jnp.uint32)
    index = jax.lax.iota(jnp.uint32, words.shape[0])
    mixed = words + index * jnp.uint32(STRIDE)
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(MIX_A)
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(MIX_B)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)


def checksum_host(chunk: np.ndarray) -> int:
    """The same number for an array on the host."""
    words = np.ascontiguousarray(chunk).reshape(-1).view(_word(chunk.dtype)).astype(np.uint32)
    mixed = words + np.arange(words.size, dtype=np.uint32) * np.uint32(STRIDE)
    mixed = (mixed ^ (mixed >> np.uint32(16))) * np.uint32(MIX_A)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(MIX_B)
    return int(np.sum(mixed ^ (mixed >> np.uint32(16)), dtype=np.uint32))


def _word(dtype: np.dtype) -> type[np.unsignedinteger]:
    size = np.dtype(dtype).itemsize
    if size not in _WORDS:
        raise ValueError(f"no checksum for elements of {size} bytes ({dtype}); use a dtype of 1, 2 or 4 bytes")
    return _WORDS[size]
