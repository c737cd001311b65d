"""Where randomness comes from: a counter-based hash of (seed, sample, absolute position, purpose, token id), and nothing else.

Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), written out here because a draw is a
promise between instances, versions and batch shapes: it may not depend on a library's default generator or on how an array is cut.
Keys are chained as `jax.random.fold_in` chains threefry keys. It is elementwise, so XLA makes one loop of it.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, UInt32

Key = tuple[UInt32[Array, "*rows"], UInt32[Array, "*rows"]]

# What a draw is for is part of its key, so that two uses at one position are independent.
PURPOSE_SAMPLE = 1

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry(key: Key, high: UInt32[Array, "..."], low: UInt32[Array, "..."]) -> Key:
    """Two hashed words for the two counter words; all four operands broadcast."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    x, y = high + schedule[0], low + schedule[1]
    for group in range(5):
        for distance in _ROTATIONS[group % 2]:
            x = x + y
            y = (y << jnp.uint32(distance)) | (y >> jnp.uint32(32 - distance))
            y = x ^ y
        x = x + schedule[(group + 1) % 3]
        y = y + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return x, y


def fold_in(key: Key, word: UInt32[Array, "*rows"]) -> Key:
    """The key of a stream within the stream of `key`."""
    return threefry(key, jnp.zeros_like(word), word)


def draw_key(
    seed_high: UInt32[Array, "rows"],
    seed_low: UInt32[Array, "rows"],
    sample: Int32[Array, "rows"],
    position: Int32[Array, "rows"],
) -> Key:
    """The key of each row's draw of one token at an absolute position."""
    key = fold_in((seed_high, seed_low), sample.astype(jnp.uint32))
    key = fold_in(key, position.astype(jnp.uint32))
    return fold_in(key, jnp.full_like(key[0], PURPOSE_SAMPLE))


def gumbel(key: Key, size: int) -> Float[Array, "rows size"]:
    """Standard Gumbel noise for token ids 0 to size-1 of each row. A pair of ids shares one hash."""
    pairs = jnp.arange((size + 1) // 2, dtype=jnp.uint32)[None, :]
    even, odd = threefry((key[0][:, None], key[1][:, None]), jnp.zeros_like(pairs), pairs)
    return gumbel_of_bits(jnp.stack((even, odd), axis=-1).reshape(even.shape[0], -1)[:, :size])


def gumbel_of_bits(bits: UInt32[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Gumbel variables of uniform words.

    The uniform variable has 32 bits and its fine end is where noise is large, so that unlikely tokens are drawn as often as they should
    be: with the usual 23 bits nothing rarer than 1e-7 comes out right.
    """
    uniform = (bits.astype(jnp.float32) + 0.5) * jnp.float32(2.0**-32)
    # Rounding to float32 reaches 1 for the largest words, where the exponential variable would be infinite.
    exponential = -jnp.log1p(-jnp.minimum(uniform, jnp.float32(1 - 2.0**-24)))
    return -jnp.log(exponential)


def split_seed(seed: int) -> tuple[int, int]:
    """The high and low word of a 64-bit seed."""
    return (seed >> 32) & 0xFFFFFFFF, seed & 0xFFFFFFFF
