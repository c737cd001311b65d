"""How one layer's KV pages lie in arrays. The attention kernel of an engine decides; a page's content does not depend on it.

`APART` is the reference's: keys and values are two arrays [pages, page_size, heads, head_dim]. `COMBINED` is that of TPU kernels: one array
[pages, page_size, 2 * slots, width] with keys and values in turn, so that one copy brings a page. A TPU's tiles want `width` to be a multiple
of 128 and `slots` one of 1, 2, 4, 8, 16, 24, ...; what lies beyond the heads and their numbers is zero and never leaves the pool.
`SCALED` is `APART` for codes (`models/quantised_kv.py`), with two more arrays [pages, page_size, heads]: the scales of keys and of values.

Everything here is about one device, whose heads are its own ones; `over_mesh` says what that is on a mesh.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from triptych.models.kv import CODE_BYTES, SCALE_DTYPE
from triptych.models.quantised_kv import PER_WORD, packed, unpacked

Block = Shaped[Array, "two pages page_size heads numbers"]
"""Pages as they travel: keys and values of each head, or the words of codes and scale."""

# The last axis of a TPU's tile, and the longest run of the axis before it.
LANES, SUBLANES = 128, 8


class PoolLayout(Protocol):
    """The arrays of one layer on one device, and pages taken out of them and put into them inside a traced program."""

    @property
    def arrays(self) -> int:
        """How many arrays a layer has."""
        ...

    def structs(
        self, num_pages: int, page_size: int, heads: int, head_dim: int, dtype: str
    ) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shape and dtype of each array of a layer. The third axis is that of heads."""
        ...

    def entry(self, head_dim: int, dtype: str) -> tuple[int, str]:
        """How many numbers an entry (one head, one token) has in a `Block`, and their dtype."""
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

    def structs(
        self, num_pages: int, page_size: int, heads: int, head_dim: int, dtype: str
    ) -> tuple[jax.ShapeDtypeStruct, ...]:
        return (jax.ShapeDtypeStruct((num_pages, page_size, heads, head_dim), jnp.dtype(dtype)),) * 2

    def entry(self, head_dim: int, dtype: str) -> tuple[int, str]:
        return head_dim, dtype

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

    def structs(
        self, num_pages: int, page_size: int, heads: int, head_dim: int, dtype: str
    ) -> tuple[jax.ShapeDtypeStruct, ...]:
        shape = (num_pages, page_size, 2 * self.slots(heads), self.width(head_dim))
        return (jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)),)

    def entry(self, head_dim: int, dtype: str) -> tuple[int, str]:
        return head_dim, dtype

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


@dataclass(frozen=True)
class Scaled:
    """Codes of keys and of values are two arrays, their scales another two."""

    @property
    def arrays(self) -> int:
        return 4

    def structs(
        self, num_pages: int, page_size: int, heads: int, head_dim: int, dtype: str
    ) -> tuple[jax.ShapeDtypeStruct, ...]:
        codes = jax.ShapeDtypeStruct((num_pages, page_size, heads, head_dim), jnp.dtype(dtype))
        scales = jax.ShapeDtypeStruct((num_pages, page_size, heads), jnp.dtype(SCALE_DTYPE))
        return codes, codes, scales, scales

    def entry(self, head_dim: int, dtype: str) -> tuple[int, str]:
        if head_dim % PER_WORD:
            raise ValueError(f"codes travel {PER_WORD} a word, and heads of {head_dim} numbers do not fill theirs")
        return head_dim // PER_WORD + 1, "uint32"

    def take(self, arrays: Sequence[jax.Array], pages: Int[Array, "pages"], heads: int, head_dim: int) -> Block:
        k, v, k_scales, v_scales = (array.at[pages].get(mode="promise_in_bounds") for array in arrays)
        return jnp.stack([packed(k, k_scales), packed(v, v_scales)])

    def put(self, arrays: Sequence[jax.Array], pages: Int[Array, "pages"], block: Block) -> tuple[jax.Array, ...]:
        codes, scales = unpacked(block, arrays[0].dtype)
        return tuple(
            array.at[pages].set(new, mode="drop", unique_indices=True)
            for array, new in zip(arrays, (*codes, *scales), strict=True)
        )


APART = Apart()
COMBINED = Combined()
SCALED = Scaled()


def over_mesh(
    structs: Sequence[jax.ShapeDtypeStruct], devices: int, pool: NamedSharding
) -> tuple[jax.ShapeDtypeStruct, ...]:
    """A layer's arrays over `devices`, each with heads of its own. `pool` is the sharding of [pages, page_size, heads, head_dim]."""
    placed = []
    for struct in structs:
        pages, page_size, heads, *rest = struct.shape
        axes = len(struct.shape)
        sharding = pool if len(pool.spec) <= axes else NamedSharding(pool.mesh, PartitionSpec(*pool.spec[:axes]))
        shape = (pages, page_size, devices * heads, *rest)
        placed.append(jax.ShapeDtypeStruct(shape, struct.dtype, sharding=sharding))
    return tuple(placed)


def apart(dtype: str) -> Apart | Scaled:
    """How pages lie, keys and values apart, whose entries are kept in `dtype`."""
    return SCALED if dtype in CODE_BYTES else APART
