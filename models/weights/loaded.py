"""A decoder on a mesh, read back as the checkpoint it came from: pads dropped, replicas read once."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from triptych.models.weights.load import LoadedDecoder, logical_shape
from triptych.models.weights.padding import AxisMap, axis_map
from triptych.models.weights.source import hf_name
from triptych.sharding.rules import parameter_axes

__all__ = ["DecoderSource"]


class DecoderSource:
    """A `TensorSource` over the arrays of a `LoadedDecoder`; every shard must be addressable from this process.

    Reading fetches the whole tensor from its devices, so ask for a tensor in one piece.
    """

    def __init__(self, loaded: LoadedDecoder) -> None:
        self._loaded = loaded
        self._at = {hf_name(path): at for at, path in enumerate(loaded.structure.paths)}

    def names(self) -> Collection[str]:
        return self._at.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return logical_shape(self._loaded.structure, self._loaded.structure.paths[self._at[name]])

    def read(self, name: str, slices: tuple[slice, ...]) -> np.ndarray:
        path = self._loaded.structure.paths[self._at[name]]
        config, layout = self._loaded.config, self._loaded.head_layout
        axes = [_physical_indices(axis_map(axis, config, layout)) for axis in parameter_axes(path)]
        physical = np.asarray(self._loaded.params[self._at[name]])
        return physical[np.ix_(*(axis[part] for axis, part in zip(axes, slices, strict=True)))]


def _physical_indices(axis: AxisMap) -> np.ndarray:
    """For each logical index, the first physical one that holds it."""
    logical_blocks = axis.logical_size // axis.block
    first = np.array([axis.sources.index(block) for block in range(logical_blocks)])
    return (first[:, None] * axis.block + np.arange(axis.block)).ravel()
