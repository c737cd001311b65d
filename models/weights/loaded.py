"""A decoder on a mesh, read back as the checkpoint it came from: pads dropped, replicas read once."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from triptych.models.errors import QuantisationError
from triptych.models.weights.load import LoadedDecoder
from triptych.models.weights.padding import AxisMap
from triptych.models.weights.parts import parameter_parts

__all__ = ["DecoderSource"]


class DecoderSource:
    """A `TensorSource` over the arrays of a `LoadedDecoder`; every shard must be addressable from this process.

    Reading fetches the whole parameter from its devices, so ask for a tensor in one piece. Raises QuantisationError for a quantised model:
    what it was made from is gone.
    """

    def __init__(self, loaded: LoadedDecoder) -> None:
        if (stored := loaded.structure.stored) is not None:
            raise QuantisationError(
                f"the model's weights are {stored.name} codes, of which no checkpoint is made; load it without --weights for that"
            )
        parts = (parameter_parts(path, loaded.config, loaded.head_layout) for path in loaded.structure.paths)
        self._tensors = {
            part.name: (part, array) for made_of, array in zip(parts, loaded.params, strict=True) for part in made_of
        }

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name][0].shape

    def read(self, name: str, slices: tuple[slice, ...]) -> np.ndarray:
        part, array = self._tensors[name]
        physical = np.asarray(array).transpose(part.order)
        indices = [_physical_indices(part.maps[axis])[along] for axis, along in zip(part.order, slices, strict=True)]
        return physical[np.ix_(*indices)]


def _physical_indices(axis: AxisMap) -> np.ndarray:
    """For each logical index, the first physical one that holds it."""
    logical_blocks = axis.logical_size // axis.block
    first = np.array([axis.sources.index(block) for block in range(logical_blocks)])
    return (first[:, None] * axis.block + np.arange(axis.block)).ravel()
