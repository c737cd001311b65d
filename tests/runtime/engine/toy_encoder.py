"""An encoder whose result numpy can compute: each patch through a matrix, plus the mean of its own item, so that mixed-up items show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from triptych.models.kv import KVGroup
from triptych.runtime.engine.encoder import patch_sizes
from triptych.runtime.engine.media_pool import media_group
from triptych.runtime.engine.shelf import Pixels

PATCH_DIM = 6
HIDDEN = 64
MATRIX = np.random.default_rng(7).standard_normal((PATCH_DIM, HIDDEN)).astype(np.float32)


def pixels(seed: int, rows: int, columns: int, steps: int = 1) -> Pixels:
    patches = np.random.default_rng(seed).integers(0, 256, (steps * rows * columns, PATCH_DIM), np.uint8)
    return Pixels(patches, (steps, rows, columns))


def embeddings(item: Pixels) -> np.ndarray:
    """[patches, HIDDEN]: what must come out."""
    scaled = item.patches.astype(np.float32) / 255
    return (scaled + scaled.mean(axis=0)) @ MATRIX


class ToyEncoder:
    """A `MediaEncoder`: a slot a patch, a row a slot."""

    def __init__(self, mesh: Mesh, hidden: int = HIDDEN):
        self.hidden = hidden
        self._whole = NamedSharding(mesh, PartitionSpec())
        self.params = (jax.device_put(MATRIX[:, :hidden], self._whole),)

    @property
    def abstract(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        return (jax.ShapeDtypeStruct((PATCH_DIM, self.hidden), np.float32, sharding=self._whole),)

    @property
    def pixel_dtype(self) -> np.dtype:
        return np.dtype(np.uint8)

    def patch_shape(self, grid: tuple[int, int, int]) -> tuple[int, ...]:
        if min(grid) < 1:
            raise ValueError(f"a grid of {grid} is empty")
        return (grid[0] * grid[1] * grid[2], PATCH_DIM)

    def slots(self, grid: tuple[int, int, int]) -> int:
        return grid[0] * grid[1] * grid[2]

    def group(self, dtype: str) -> KVGroup:
        return media_group(self.hidden, dtype)

    def sizes(self, limit: int) -> tuple[int, ...]:
        return patch_sizes(limit)

    def rows(self, slots: int) -> int:
        return slots

    def empty(self, slots: int) -> Any:
        return np.zeros((slots, PATCH_DIM), np.uint8), np.zeros(slots, np.int32)

    def pack(self, items: Sequence[Pixels], slots: int) -> tuple[Any, tuple[int, ...]]:
        patches, segments = self.empty(slots)
        at = 0
        for number, item in enumerate(items, start=1):
            patches[at : at + len(item.patches)] = item.patches
            segments[at : at + len(item.patches)] = number
            at += len(item.patches)
        return (patches, segments), tuple(len(item.patches) for item in items)

    def apply(self, params: Sequence[jax.Array], packed: Any) -> jax.Array:
        patches, segments = packed
        scaled = patches.astype(jnp.float32) / 255
        same = (segments[:, None] == segments[None, :]).astype(jnp.float32)
        mean = same @ scaled / same.sum(axis=1, keepdims=True)
        return (scaled + mean) @ params[0]
