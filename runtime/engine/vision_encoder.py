"""The vision encoders of `models/vision` as an engine takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from triptych.models.errors import MediaShapeError, UnsupportedModelError
from triptych.models.kv import KVGroup
from triptych.models.vision.packing import Grid, Piece, empty, pack
from triptych.models.vision.structure import LoadedEncoder
from triptych.runtime.engine.encoder import patch_sizes
from triptych.runtime.engine.media_pool import media_group
from triptych.runtime.engine.shelf import Pixels


class VisionMediaEncoder:
    """A vision encoder and its connector. Each step in time of a video attends within itself, as a picture of its own."""

    def __init__(self, loaded: LoadedEncoder):
        self._loaded = loaded

    @property
    def params(self) -> tuple[jax.Array, ...]:
        return self._loaded.params

    @property
    def abstract(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        return self._loaded.structure.abstract

    @property
    def hidden(self) -> int:
        """Numbers of an embedding."""
        return self._loaded.config.output_size

    @property
    def pixel_dtype(self) -> np.dtype:
        return np.dtype(np.uint8)

    def patch_shape(self, grid: tuple[int, int, int]) -> tuple[int, ...]:
        steps, rows, columns = grid
        if min(grid) < 1:
            raise MediaShapeError(f"a grid of {steps} x {rows} x {columns} patches is empty")
        try:
            self._loaded.config.output_rows(rows, columns)
        except UnsupportedModelError as error:
            raise MediaShapeError(str(error)) from error
        return (steps * rows * columns, self._loaded.config.patch_dim)

    def slots(self, grid: tuple[int, int, int]) -> int:
        return grid[0] * self._loaded.config.slots(*grid[1:])

    def group(self, dtype: str) -> KVGroup:
        return media_group(self.hidden, dtype)

    def sizes(self, limit: int) -> tuple[int, ...]:
        return patch_sizes(limit)

    def rows(self, slots: int) -> int:
        return self._loaded.config.output_bound(slots)

    def empty(self, slots: int) -> Any:
        return empty(self._loaded.config, slots)

    def pack(self, items: Sequence[Pixels], slots: int) -> tuple[Any, tuple[int, ...]]:
        pieces = [
            Piece(patches, Grid(*item.grid[1:])) for item in items for patches in np.split(item.patches, item.grid[0])
        ]
        packed, ranges = pack(pieces, self._loaded.config, slots)
        counts = iter(part.stop - part.start for part in ranges)
        return packed, tuple(sum(next(counts) for _ in range(item.grid[0])) for item in items)

    def apply(self, params: Sequence[jax.Array], packed: Any) -> Float[Array, "rows hidden"]:
        return self._loaded.merge(params)(packed)
