"""A `TensorSource` seen under other names: parts of it, renamed, with rows cut out of fused tensors or axes flattened."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from triptych.models.weights.source import TensorSource


@dataclass(frozen=True)
class View:
    """A tensor of another source. `rows` are a range of its first axis; `shape` is what it is reshaped to after that."""

    name: str
    rows: tuple[int, int] | None = None
    shape: tuple[int, ...] | None = None


class ViewSource:
    """The tensors of `source` that `views` name. A slice of a reshaped tensor costs the whole tensor."""

    def __init__(self, source: TensorSource, views: Mapping[str, View]) -> None:
        self._source = source
        self._views = dict(views)

    def names(self) -> Collection[str]:
        return self._views.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        view = self._views[name]
        return view.shape or self._cut_shape(view)

    def read(self, name: str, slices: tuple[slice, ...]) -> np.ndarray:
        view = self._views[name]
        if view.shape is None:
            return self._source.read(view.name, (self._rows(view, slices[0]), *slices[1:]))
        rest = (slice(None),) * (len(self._source.shape(view.name)) - 1)
        return self._source.read(view.name, (self._rows(view, slice(None)), *rest)).reshape(view.shape)[slices]

    def _cut_shape(self, view: View) -> tuple[int, ...]:
        shape = tuple(self._source.shape(view.name))
        return shape if view.rows is None else (view.rows[1] - view.rows[0], *shape[1:])

    def _rows(self, view: View, rows: slice) -> slice:
        first, end = view.rows or (0, self._source.shape(view.name)[0])
        start, stop, _ = rows.indices(end - first)
        return slice(first + start, first + stop)


def flattened(shape: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """`shape` with `axes` axes: leading ones dropped where they are 1, else trailing ones made one.

    (1, 1, d) is (d,) with one axis; (1, n, d) is (n, d) with two, and so is a kernel (d, c, h, w): (d, c * h * w).
    """
    while len(shape) > axes and shape[0] == 1:
        shape = shape[1:]
    return (*shape[: axes - 1], math.prod(shape[axes - 1 :]))
