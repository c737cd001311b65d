"""The media pool: pages of embeddings, laid out as one pseudo layer of KV so that whatever moves KV moves embeddings.

An embedding of `hidden` numbers is cut into two halves. The first is stored as "keys", the second as "values", each as `heads` heads of
`head_dim` numbers: heads * head_dim * 2 = hidden. Heads lie over the mesh as KV heads do (`sharding/heads.py`), so page programs, headers,
checksums and resharding between tensor-parallel sizes hold for embeddings as they are.

`slot` below is page * page_size + offset in the pool.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

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
class MediaPool:
    """The geometry of one engine's media pool: `num_pages` pages, the null page 0 included."""

    rules: ShardingRules
    hidden: int
    dtype: str
    page_size: int
    num_pages: int

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

    def replace(
        self, x: Float[Array, "tokens hidden"], pools: Pools, index: Int32[Array, "tokens"]
    ) -> Float[Array, "tokens hidden"]:
        """`x` with the embedding in slot `index` where that is not negative. Inside a traced program."""
        page, offset = jnp.divmod(jnp.maximum(index, 0), self.page_size)
        heads = self.group.num_kv_heads
        halves = [half.at[page, offset].get(mode="clip")[:, :heads].reshape(x.shape[0], -1) for half in pools[0]]
        embedded = jnp.concatenate(halves, axis=1).astype(x.dtype)
        return self.rules.constrain(jnp.where((index >= 0)[:, None], embedded, x), "tokens", "hidden")

    def write(self, pools: Pools, rows: Float[Array, "rows hidden"], index: Int32[Array, "rows"]) -> Pools:
        """The pool with each row in slot `index`; rows whose index is `slots` are dropped. Inside a traced program."""
        page, offset = jnp.divmod(index, self.page_size)
        group, pads = self.group, self.layout.kv_heads_total - self.group.num_kv_heads
        halves = rows.astype(jnp.dtype(self.dtype)).reshape(-1, 2, group.num_kv_heads, group.head_dim)
        halves = jnp.pad(halves, ((0, 0), (0, 0), (0, pads), (0, 0)))
        (keys, values) = (half.at[page, offset].set(halves[:, at], mode="drop") for at, half in enumerate(pools[0]))
        return ((keys, values),)
