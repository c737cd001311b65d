"""The media pool: pages of embeddings, laid out as one pseudo layer of KV so that whatever moves KV moves embeddings.

An embedding of `hidden` numbers is cut into two halves. The first is stored as "keys", the second as "values", each as `heads` heads of
`head_dim` numbers: heads * head_dim * 2 = hidden. Heads lie over the mesh as KV heads do (`sharding/heads.py`), so page programs, headers,
checksums and resharding between tensor-parallel sizes hold for embeddings as they are.

`slot` below is page * page_size + offset in the pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from triptych.models.kv import DTYPE_BYTES, KVGroup
from triptych.models.structure import Pools
from triptych.runtime.core.errors import ConfigError
from triptych.sharding.heads import HeadLayout, head_layout
from triptych.sharding.rules import POOL_AXES, ShardingRules

GROUP = "media"
# What a chunk is cut by: every tensor-parallel size up to 16 that is a power of two holds whole heads.
MAX_HEADS = 16


def media_group(hidden: int, dtype: str) -> KVGroup:
    """Embeddings of `hidden` numbers as a KV group of one layer. Follows from its arguments alone, whatever the mesh.

    Raises ConfigError for an odd `hidden`.
    """
    if hidden % 2:
        raise ConfigError(f"embeddings of {hidden} numbers cannot be cut into keys and values; expected an even number")
    half = hidden // 2
    heads = min(MAX_HEADS, half & -half)  # the largest power of two that divides it
    return KVGroup(GROUP, "full", (0,), heads, half // heads, dtype)


@dataclass(frozen=True)
class Embeddings:
    """What a step's media tokens are: `given` says which tokens are some, `inputs` what goes into which layers for them."""

    rules: ShardingRules
    given: Bool[Array, "tokens"]
    inputs: Mapping[int, Float[Array, "tokens hidden"]]

    def into(self, layer: int, x: Float[Array, "tokens hidden"]) -> Float[Array, "tokens hidden"]:
        """`x`, the input of `layer`, with what media tokens have for that layer in their places."""
        if layer not in self.inputs:
            return x
        merged = jnp.where(self.given[:, None], self.inputs[layer].astype(x.dtype), x)
        return self.rules.constrain(merged, "tokens", "hidden")


@dataclass(frozen=True)
class MediaPool:
    """The geometry of one engine's media pool: `num_pages` pages, the null page 0 included; and what embeddings are for.

    `injections` are pairs of (layer, part), see `MultimodalConfig`: an embedding is as many parts of equal size as they name.
    """

    rules: ShardingRules
    hidden: int
    dtype: str
    page_size: int
    num_pages: int
    injections: tuple[tuple[int, int], ...] = ((0, 0),)

    @property
    def group(self) -> KVGroup:
        return media_group(self.hidden, self.dtype)

    @property
    def layout(self) -> HeadLayout:
        """Where the group's heads lie on this mesh. Pads, if any, come after all heads."""
        heads = self.group.num_kv_heads
        return head_layout(heads, heads, self.rules.tp)

    @property
    def slots(self) -> int:
        """Embeddings that the pool has room for; as an index, one beyond the last."""
        return self.num_pages * self.page_size

    @property
    def structs(self) -> tuple[tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct], ...]:
        """Shape, dtype and sharding of the pool's arrays, in the form of `Pools`."""
        shape = (self.num_pages, self.page_size, self.layout.kv_heads_total, self.group.head_dim)
        half = jax.ShapeDtypeStruct(shape, jnp.dtype(self.dtype), sharding=self.rules.sharding(*POOL_AXES))
        return ((half, half),)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page on one device, pads included."""
        group = self.group
        return 2 * self.page_size * self.layout.kv_heads_per_device * group.head_dim * DTYPE_BYTES[self.dtype]

    def read(self, pools: Pools, index: Int32[Array, "tokens"]) -> Embeddings:
        """The embeddings in slots `index`; a token whose index is negative has none. Inside a traced program."""
        page, offset = jnp.divmod(jnp.maximum(index, 0), self.page_size)
        heads = self.group.num_kv_heads
        halves = [half.at[page, offset].get(mode="clip")[:, :heads].reshape(index.shape[0], -1) for half in pools[0]]
        parts = jnp.split(jnp.concatenate(halves, axis=1), 1 + max(part for _, part in self.injections), axis=1)
        return Embeddings(self.rules, index >= 0, {layer: parts[part] for layer, part in self.injections})

    def write(self, pools: Pools, rows: Float[Array, "rows hidden"], index: Int32[Array, "rows"]) -> Pools:
        """The pool with each row in slot `index`; rows whose index is `slots` are dropped. Inside a traced program."""
        page, offset = jnp.divmod(index, self.page_size)
        group, pads = self.group, self.layout.kv_heads_total - self.group.num_kv_heads
        halves = rows.astype(jnp.dtype(self.dtype)).reshape(-1, 2, group.num_kv_heads, group.head_dim)
        halves = jnp.pad(halves, ((0, 0), (0, 0), (0, pads), (0, 0)))
        (keys, values) = (half.at[page, offset].set(halves[:, at], mode="drop") for at, half in enumerate(pools[0]))
        return ((keys, values),)
