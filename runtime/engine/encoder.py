"""What an engine needs of an encoder: something that takes a bucket of packed items and gives rows of embeddings.

Several items go through one program call: they are packed into a bucket of slots, whose contents are data. What comes out are rows of
embeddings, item after item, and rows of padding behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import Array, Float

from triptych.runtime.engine.shelf import Pixels


class MediaEncoder(Protocol):
    """An encoder with its weights on a mesh."""

    @property
    def params(self) -> tuple[jax.Array, ...]: ...

    @property
    def abstract(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shape, dtype and sharding of each of `params`."""
        ...

    @property
    def hidden(self) -> int:
        """Numbers of an embedding."""
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

    def rows(self, slots: int) -> int:
        """Output rows of a bucket."""
        ...

    def empty(self, slots: int) -> Any:
        """A bucket of padding: a tree of numpy arrays."""
        ...

    def pack(self, items: Sequence[Pixels], slots: int) -> tuple[Any, tuple[int, ...]]:
        """A bucket of items, and how many output rows each has. Raises ValueError if they do not fit."""
        ...

    def apply(self, params: Sequence[jax.Array], packed: Any) -> Float[Array, "rows hidden"]:
        """The embeddings of a bucket; traced."""
        ...
