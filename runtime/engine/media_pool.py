"""The media pool: pages of what encoders give, laid out as layers of KV so that whatever moves KV moves them.

Two kinds of model use it. Where embeddings take the place of prompt tokens (`EmbeddingPool`), an embedding of `hidden` numbers is one pseudo layer: it is
cut into two halves, the first stored as "keys", the second as "values", each as `heads` heads of `head_dim` numbers: heads * head_dim * 2 = hidden. Where a
decoder attends to what was encoded (`CrossPool`), the pool holds the keys and values of cross-attention themselves, of every decoder layer, because they
depend on the media alone.

Heads lie over the mesh as KV heads do (`sharding/heads.py`), so page programs, headers, checksums and resharding between tensor-parallel sizes hold for
both as they are. `slot` below is page * page_size + offset in the pool.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from triptych.models.kv import DTYPE_BYTES, KVGroup
from triptych.models.speech.decoder import States, write_cross
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
class MediaPool(ABC):
    """The geometry of one engine's media pool.

    Attributes:
        group: what is in it, whatever the mesh.
        layout: where the group's heads lie on the mesh of `rules`. Pads, if any, come after all heads.
        num_pages: the null page 0 included.
    """

    rules: ShardingRules
    group: KVGroup
    layout: HeadLayout
    page_size: int
    num_pages: int

    @abstractmethod
    def write(self, pools: Pools, encoded: Any, index: Int32[Array, "rows"]) -> Pools:
        """The pool with row i of what an encoder gave in slot index[i]; rows whose index is `slots` are dropped. Inside a traced program."""

    @property
    def dtype(self) -> str:
        return self.group.dtype

    @property
    def slots(self) -> int:
        """Entries that the pool has room for; as an index, one beyond the last."""
        return self.num_pages * self.page_size

    @property
    def structs(self) -> tuple[tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct], ...]:
        """Shape, dtype and sharding of the pool's arrays, in the form of `Pools`: a pair a layer of the group."""
        shape = (self.num_pages, self.page_size, self.layout.kv_heads_total, self.group.head_dim)
        half = jax.ShapeDtypeStruct(shape, jnp.dtype(self.dtype), sharding=self.rules.sharding(*POOL_AXES))
        return tuple((half, half) for _ in self.group.layers)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page on one device: keys and values of all layers, pads included."""
        numbers = len(self.group.layers) * self.page_size * self.layout.kv_heads_per_device * self.group.head_dim
        return 2 * numbers * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class EmbeddingPool(MediaPool):
    """Embeddings that take the place of prompt tokens; its group is a `media_group`.

    `injections` are pairs of (layer, part), see `MultimodalConfig`: an embedding is as many parts of equal size as they name.
    """

    injections: tuple[tuple[int, int], ...] = ((0, 0),)

    @staticmethod
    def of(
        rules: ShardingRules,
        hidden: int,
        dtype: str,
        page_size: int,
        num_pages: int,
        injections: tuple[tuple[int, int], ...] = ((0, 0),),
    ) -> EmbeddingPool:
        """For embeddings of `hidden` numbers. Raises ConfigError as `media_group` does."""
        group = media_group(hidden, dtype)
        layout = head_layout(group.num_kv_heads, group.num_kv_heads, rules.tp)
        return EmbeddingPool(rules, group, layout, page_size, num_pages, injections)

    def read(self, pools: Pools, index: Int32[Array, "tokens"]) -> Embeddings:
        """The embeddings in slots `index`; a token whose index is negative has none. Inside a traced program."""
        page, offset = jnp.divmod(jnp.maximum(index, 0), self.page_size)
        heads = self.group.num_kv_heads
        halves = [half.at[page, offset].get(mode="clip")[:, :heads].reshape(index.shape[0], -1) for half in pools[0]]
        parts = jnp.split(jnp.concatenate(halves, axis=1), 1 + max(part for _, part in self.injections), axis=1)
        return Embeddings(self.rules, index >= 0, {layer: parts[part] for layer, part in self.injections})

    def write(self, pools: Pools, encoded: Float[Array, "rows hidden"], index: Int32[Array, "rows"]) -> Pools:
        page, offset = jnp.divmod(index, self.page_size)
        group, pads = self.group, self.layout.kv_heads_total - self.group.num_kv_heads
        halves = encoded.astype(jnp.dtype(self.dtype)).reshape(-1, 2, group.num_kv_heads, group.head_dim)
        halves = jnp.pad(halves, ((0, 0), (0, 0), (0, pads), (0, 0)))
        (keys, values) = (half.at[page, offset].set(halves[:, at], mode="drop") for at, half in enumerate(pools[0]))
        return ((keys, values),)


class CrossPool(MediaPool):
    """Keys and values of cross-attention; its group has a layer for each of the decoder's."""

    def write(self, pools: Pools, encoded: tuple[tuple[States, States], ...], index: Int32[Array, "rows"]) -> Pools:
        return write_cross(pools, encoded, index)
