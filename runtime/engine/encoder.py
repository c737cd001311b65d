"""What an engine needs of an encoder: something that takes a bucket of packed items and gives rows for the media pool.

Several items go through one program call: they are packed into a bucket of slots, whose contents are data. What comes out are rows (an
embedding, or an entry of cross-attention), item after item, and rows of padding behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from triptych.models.kv import KVGroup
from triptych.runtime.engine.buckets import geometric
from triptych.runtime.engine.shelf import Pixels

# A smaller bucket of patches than this saves nothing that can be measured: it reads the same weights.
SMALLEST_PATCHES = 256


def patch_sizes(limit: int) -> tuple[int, ...]:
    """Buckets for an encoder that takes any number of patches."""
    return geometric(min(SMALLEST_PATCHES, limit), limit)


class MediaEncoder(Protocol):
    """An encoder with its weights on a mesh."""

    @property
    def params(self) -> tuple[jax.Array, ...]: ...

    @property
    def abstract(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shape, dtype and sharding of each of `params`."""
        ...

    def group(self, dtype: str) -> KVGroup:
        """What a pool in `dtype` of what it gives must hold."""
        ...

    @property
    def pixel_dtype(self) -> np.dtype:
        """Of `Pixels.patches`."""
        ...

    def patch_shape(self, grid: tuple[int, int, int]) -> tuple[int, ...]:
        """Shape of `Pixels.patches` for this grid. Raises ValueError if the encoder does not take such a grid."""
        ...

    def slots(self, grid: tuple[int, int, int]) -> int:
        """Slots of a bucket that an item takes: what `MediaItem.patches` counts."""
        ...

    def sizes(self, limit: int) -> tuple[int, ...]:
        """The buckets to compile, in slots, ascending; the last one is at most `limit`."""
        ...

    def rows(self, slots: int) -> int:
        """Output rows of a bucket."""
        ...

    def empty(self, slots: int) -> Any:
        """A bucket of padding: a tree of numpy arrays."""
        ...

    def pack(self, items: Sequence[Pixels], slots: int) -> tuple[Any, tuple[int, ...]]:
        """A bucket of items, and how many output rows each has. Raises ValueError if they do not fit."""
        ...

    def apply(self, params: Sequence[jax.Array], packed: Any) -> Any:
        """The rows of a bucket, as `MediaPool.write` takes them; traced."""
        ...
