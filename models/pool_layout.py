"""How one layer's KV pages lie in arrays. The attention kernel of an engine decides; a page's content does not depend on it.

`APART` is the reference's: keys and values are two arrays [pages, page_size, heads, head_dim]. `COMBINED` is that of TPU kernels: one array
[pages, page_size, 2 * slots, width] with keys and values in turn, so that one copy brings a page. A TPU's tiles want `width` to be a multiple
of 128 and `slots` one of 1, 2, 4, 8, 16, 24, ...; what lies beyond the heads and their numbers is zero and never leaves the pool.

Everything here is about one device: heads are its own ones, and a mesh has as many times the third axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Block = Float[Array, "two pages page_size heads head_dim"]

# The last axis of a TPU's tile, and the longest run of the axis before it.
LANES, SUBLANES = 128, 8


class PoolLayout(Protocol):
    """The arrays of one layer on one device, and pages taken out of them and put into them inside a traced program."""

    @property
    def arrays(self) -> int:
        """How many arrays a layer has."""
        ...

    def shape(self, num_pages: int, page_size: int, heads: int, head_dim: int) -> tuple[int, int, int, int]:
        """Of each array of a layer."""
        ...

    def take(self, arrays: Sequence[jax.Array], pages: Int[Array, "pages"], heads: int, head_dim: int) -> Block:
        """Keys, then values, of `heads` heads of these pages, which must lie in the pool."""
        ...

    def put(self, arrays: Sequence[jax.Array], pages: Int[Array, "pages"], block: Block) -> tuple[jax.Array, ...]:
        """The arrays with these pages, which are all different, replaced; those beyond the pool are dropped."""
        ...


@dataclass(frozen=True)
class Apart:
    """Keys and values are two arrays."""

    @property
    def arrays(self) -> int:
        return 2

    def shape(self, num_pages: int, page_size: int, heads: int, head_dim: int) -> tuple[int, int, int, int]:
        return num_pages, page_size, heads, head_dim

    def take(self, arrays: Sequence[jax.Array], pages: Int[Array, "pages"], heads: int, head_dim: int) -> Block:
        return jnp.stack([array.at[pages].get(mode="promise_in_bounds") for array in arrays])

    def put(self, arrays: Sequence[jax.Array], pages: Int[Array, "pages"], block: Block) -> tuple[jax.Array, ...]:
        return tuple(
            array.at[pages].set(new, mode="drop", unique_indices=True) for array, new in zip(arrays, block, strict=True)
        )


@dataclass(frozen=True)
class Combined:
    """Keys and values of a head lie beside each other in one array, padded to a TPU's tiles."""

    @property
    def arrays(self) -> int:
        return 1

    def slots(self, heads: int) -> int:
        """Heads that there is room for."""
        if heads >= SUBLANES:
            return -(-heads // SUBLANES) * SUBLANES
        return 1 << (heads - 1).bit_length()

    def width(self, head_dim: int) -> int:
        """Numbers that a head has room for."""
        return -(-head_dim // LANES) * LANES

    def shape(self, num_pages: int, page_size: int, heads: int, head_dim: int) -> tuple[int, int, int, int]:
        return num_pages, page_size, 2 * self.slots(heads), self.width(head_dim)

    def merge(
        self, k: Float[Array, "*entries heads head_dim"], v: Float[Array, "*entries heads head_dim"]
    ) -> Float[Array, "*entries slots width"]:
        """Keys and values as they lie in a page."""
        *entries, heads, head_dim = k.shape
        pads = [(0, 0)] * len(entries) + [(0, self.slots(heads) - heads), (0, 0), (0, self.width(head_dim) - head_dim)]
        both = jnp.pad(jnp.stack([k, v], axis=-2), pads)
        return both.reshape(*entries, 2 * self.slots(heads), self.width(head_dim))

    def take(self, arrays: Sequence[jax.Array], pages: Int[Array, "pages"], heads: int, head_dim: int) -> Block:
        (array,) = arrays
        taken = array.at[pages].get(mode="promise_in_bounds")
        both = taken.reshape(*taken.shape[:2], -1, 2, taken.shape[3])[:, :, :heads, :, :head_dim]
        return jnp.moveaxis(both, 3, 0)

    def put(self, arrays: Sequence[jax.Array], pages: Int[Array, "pages"], block: Block) -> tuple[jax.Array, ...]:
        (array,) = arrays
        return (array.at[pages].set(self.merge(block[0], block[1]), mode="drop", unique_indices=True),)


APART = Apart()
COMBINED = Combined()
