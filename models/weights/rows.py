"""A checkpoint in which some rows of one tensor are others: embeddings of special tokens that were trained (a soft prompt)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from triptych.models.errors import WeightsError
from triptych.models.weights.source import TensorSource


class RowsSource:
    """`source` with rows `indices` of tensor `name` replaced by `rows` [len(indices), columns]; that tensor is read as float32."""

    def __init__(self, source: TensorSource, name: str, indices: Sequence[int], rows: np.ndarray) -> None:
        if name not in set(source.names()):
            raise WeightsError(f"the checkpoint has no tensor {name!r}, of which rows were trained")
        shape = tuple(source.shape(name))
        if rows.shape != (len(indices), *shape[1:]) or not all(0 <= index < shape[0] for index in indices):
            raise WeightsError(f"trained rows of shape {rows.shape} are for rows {list(indices)} of {name!r}, {shape}")
        self._source, self._name = source, name
        self._indices, self._rows = np.asarray(indices), np.asarray(rows, np.float32)

    def names(self) -> Collection[str]:
        return self._source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(name)

    def read(self, name: str, slices: tuple[slice, ...]) -> np.ndarray:
        stored = self._source.read(name, slices)
        if name != self._name:
            return stored
        out = np.array(stored, np.float32)
        wanted = np.arange(self.shape(name)[0])[slices[0]]
        for index, row in zip(self._indices, self._rows, strict=True):
            out[wanted == index] = row[slices[1]]
        return out
