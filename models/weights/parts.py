"""Which checkpoint tensors a parameter is made of, and where in it each of them lies.

Most parameters are one tensor. A fused one (`sharding/rules.py`) is several: each has a map over the whole fused axis
that names its own runs and leaves the others out. Readers and writers of checkpoints see tensors only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from triptych.models.config import ModelConfig
from triptych.models.weights.padding import AxisMap, axis_map, fused_maps
from triptych.models.weights.source import TensorSource, hf_names
from triptych.sharding.heads import HeadLayout
from triptych.sharding.rules import FUSED_AXES, LogicalAxis, parameter_axes


@dataclass(frozen=True)
class Part:
    """A checkpoint tensor in a parameter. `maps` are of the parameter's axes; `order` is the tensor's order of them."""

    name: str
    maps: tuple[AxisMap, ...]
    order: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape in a checkpoint: without pads and replicas."""
        return tuple(self.maps[axis].logical_size for axis in self.order)

    def read(self, source: TensorSource, slices: tuple[slice, ...]) -> np.ndarray:
        """The tensor at logical `slices`, both in the parameter's order of axes."""
        # Reversing twice is no change, so `order` also turns the tensor's axes into the parameter's.
        return source.read(self.name, tuple(slices[axis] for axis in self.order)).transpose(self.order)


def parameter_parts(path: str, config: ModelConfig, layout: HeadLayout) -> tuple[Part, ...]:
    """The tensors of a decoder's parameter at a dotted path."""
    return named_parts(hf_names(path), parameter_axes(path), lambda _, axis: axis_map(axis, config, layout), layout.tp)


def named_parts(
    names: Sequence[str],
    axes: Sequence[LogicalAxis],
    map_of: Callable[[int, LogicalAxis], AxisMap],
    tp: int,
) -> tuple[Part, ...]:
    """The tensors of a parameter with these axes. `map_of` is given an axis, and which of the parameter's it is."""
    fused = [FUSED_AXES.get(axis) for axis in axes]
    if not any(fused):
        maps = tuple(map_of(at, axis) for at, axis in enumerate(axes))
        return (Part(names[0], maps, tuple(range(len(axes)))),)
    # A fused weight is [in, out], its tensors are [out, in].
    order = tuple(reversed(range(len(axes))))
    columns = [
        (map_of(at, axis),) * len(names) if within is None else fused_maps([map_of(at, one) for one in within], tp)
        for at, (axis, within) in enumerate(zip(axes, fused, strict=True))
    ]
    return tuple(Part(name, maps, order) for name, maps in zip(names, zip(*columns, strict=True), strict=True))
