"""A checkpoint with low-rank adapters (Hu et al. 2021, arXiv 2106.09685) added: W + left @ right, tensor by tensor as it is read.

Adapters are stored for the decoder's own parameters ("layers.0.attention.qkv.weight.a" and ".b"), of which a fused one is several tensors
of a checkpoint ([out, in], while fused parameters are [in, out]; models/decoder.py). Whoever loads sees plain weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from triptych.models.errors import WeightsError
from triptych.models.weights.source import TensorSource, hf_names


@dataclass(frozen=True)
class LowRank:
    """What is added to one checkpoint tensor: left [rows, rank] @ right [rank, columns]."""

    left: np.ndarray
    right: np.ndarray


class AdaptedSource:
    """`source` with `adapters` (by checkpoint tensor) added; adapted tensors are read as float32."""

    def __init__(self, source: TensorSource, adapters: Mapping[str, LowRank]) -> None:
        self._source = source
        self._adapters = dict(adapters)
        stored = set(source.names())
        for name, adapter in self._adapters.items():
            shape = (len(adapter.left), adapter.right.shape[1])
            if name not in stored or tuple(source.shape(name)) != shape:
                raise WeightsError(
                    f"an adapter of shape {shape} is for {name!r}, which the checkpoint does not have so"
                )

    def names(self) -> Collection[str]:
        return self._source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(name)

    def read(self, name: str, slices: tuple[slice, ...]) -> np.ndarray:
        stored = self._source.read(name, slices)
        adapter = self._adapters.get(name)
        if adapter is None:
            return stored
        rows, columns = slices
        return np.asarray(stored, np.float32) + adapter.left[rows] @ adapter.right[:, columns]


def low_rank_of(trained: TensorSource, shapes: TensorSource) -> dict[str, LowRank]:
    """The adapters in `trained`, for the tensors of a checkpoint whose shapes `shapes` tells."""
    found: dict[str, LowRank] = {}
    for stored in trained.names():
        if not stored.endswith(".a"):
            continue
        path = stored.removesuffix(".a")
        first, second = (_whole(trained, f"{path}.{side}") for side in "ab")
        names = hf_names(path)
        if len(names) == 1:
            found[names[0]] = LowRank(first, second)
            continue
        at = 0
        for name in names:
            outputs = shapes.shape(name)[0]
            found[name] = LowRank(np.ascontiguousarray(second[:, at : at + outputs].T), np.ascontiguousarray(first.T))
            at += outputs
    return found


def _whole(source: TensorSource, name: str) -> np.ndarray:
    return np.asarray(source.read(name, (slice(None), slice(None))), np.float32)
