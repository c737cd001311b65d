"""Meshes: which devices an instance's programs run on. Today a mesh has the one axis "tp"."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

TP = "tp"


class DeviceSubsetError(ValueError):
    """A device subset is malformed, or names devices that are not there."""


def make_mesh(devices: Sequence[jax.Device], tp: int) -> Mesh:  # pyright: ignore[reportInvalidTypeForm]
    """A mesh of exactly `tp` devices, in the order given. Axis types are Auto: the compiler propagates shardings."""
    if len(devices) != tp:
        raise DeviceSubsetError(f"tp={tp} needs {tp} devices, got {len(devices)}: {list(devices)}")
    return Mesh(np.asarray(devices, dtype=object), (TP,), axis_types=(AxisType.Auto,))


def parse_devices(text: str, available: int) -> tuple[int, ...]:
    """Device indices from text such as "0-3", "0,2" or "4-5,7": distinct, below `available`, in the order written."""
    chosen: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise DeviceSubsetError(
                f"device subset {text!r}: {part.strip()!r} is neither an index nor a range like 0-3"
            )
        low, high = int(first), int(last) if dash else int(first)
        if high < low:
            raise DeviceSubsetError(f"device subset {text!r}: the range {part.strip()} runs backwards")
        chosen.extend(range(low, high + 1))
    if len(set(chosen)) != len(chosen):
        raise DeviceSubsetError(f"device subset {text!r} names a device twice")
    if max(chosen) >= available:
        raise DeviceSubsetError(f"device subset {text!r} names device {max(chosen)}, but there are {available} devices")
    return tuple(chosen)
