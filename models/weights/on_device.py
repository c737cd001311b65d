"""Random weights made where they lie: no host copy, and the same numbers however they are cut over devices.

Each weight is a hash of its parameter and of its logical row and column, so a device computes its own part and nothing
moves. The two hashed vectors come from the host: their entries say where in the checkpoint's tensors a physical index
lies, as `padding.py` has it, and pads are zero. Variances are those of `dummy.py`; the numbers are not, and their
distribution is uniform.

Every process of a deployment must make them the same way: accelerators do, CPUs read `DummySource`. A worker's revision says which, so the
scheduler refuses the second kind.
"""

import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, UInt32

from triptych.models.structure import DecoderStructure
from triptych.models.weights.padding import AxisMap
from triptych.models.weights.parts import Part, parameter_parts

BIAS_DEVIATION = 0.02
PAD = np.uint32(0)  # the code of an index that no tensor has; codes of the others are odd
# Multipliers and shifts of MurmurHash3's finaliser (Appleby, public domain), and 2^32 over the golden ratio.
FIRST, SECOND, GOLDEN = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35), np.uint32(0x9E3779B1)


def makes_weights(platform: str) -> bool:
    """Whether devices of this platform (what jax calls it) make random weights themselves."""
    return platform != "cpu"


def random_parameters(structure: DecoderStructure, seed: int = 0) -> Iterator[jax.Array]:
    """Every parameter of the structure in order, where its struct says, and ready. Each is made when it is asked for and not kept, so that
    of a model that is quantised one matrix is there as it is."""
    for path, struct in zip(structure.paths, structure.abstract, strict=True):
        yield jax.block_until_ready(_parameter(structure, path, struct, seed))


def _parameter(structure: DecoderStructure, path: str, struct: jax.ShapeDtypeStruct, seed: int) -> jax.Array:
    parts = parameter_parts(path, structure.config, structure.head_layout)
    if len(struct.shape) == 1:
        return jax.device_put(_vector(path, struct, parts, seed), struct.sharding)
    rows, columns = (axis_codes(parts, axis, seed) for axis in range(2))
    deviation = parts[0].shape[1] ** -0.5
    return _matrix_program(struct.sharding, jnp.dtype(struct.dtype), deviation)(rows, columns)


def axis_codes(parts: tuple[Part, ...], axis: int, seed: int) -> np.ndarray:
    """uint32 [size of the axis]: a hash of the tensor and of the logical index that each physical index holds, PAD where none does."""
    maps = [part.maps[axis] for part in parts]
    codes = np.full(maps[0].physical_size, PAD, np.uint32)
    for part, axis_map in zip(parts, maps, strict=True):
        logical = _logical_indices(axis_map)
        salt = np.uint32(zlib.crc32(f"{seed} {part.name} {axis}".encode()))
        hashed = _mixed(logical.astype(np.uint32) * GOLDEN + salt) | np.uint32(1)
        # On an axis that is not fused every part has the same indices: the first one names them.
        codes = np.where((logical >= 0) & (codes == PAD), hashed, codes)
    return codes


def _logical_indices(axis: AxisMap) -> np.ndarray:
    """int64 [size]: what each physical index holds, -1 for nothing."""
    starts = np.asarray([-1 if source is None else source * axis.block for source in axis.sources], np.int64)
    inside = np.arange(axis.block)
    return np.where(starts[:, None] < 0, -1, starts[:, None] + inside).reshape(-1)


def _vector(path: str, struct: jax.ShapeDtypeStruct, parts: tuple[Part, ...], seed: int) -> np.ndarray:
    """A norm's ones, or a bias."""
    codes = axis_codes(parts, 0, seed)
    values = np.ones(struct.shape) if path.endswith("norm.weight") else _uniform(codes, BIAS_DEVIATION)
    return np.where(codes == PAD, 0.0, values).astype(struct.dtype)


@cache
def _matrix_program(sharding: NamedSharding, dtype: jnp.dtype, deviation: float) -> Callable[..., jax.Array]:
    """(row codes, column codes) -> the matrix, each device its own part. Kept: layers are alike."""

    def make(rows: UInt32[Array, "rows"], columns: UInt32[Array, "columns"]) -> Float[Array, "rows columns"]:
        bits = _mixed(rows[:, None] * GOLDEN + columns[None, :])
        known = (rows[:, None] != PAD) & (columns[None, :] != PAD)
        return jnp.where(known, _uniform(bits, deviation), 0.0).astype(dtype)

    return jax.jit(make, out_shardings=sharding)


def _mixed(bits: Any) -> Any:
    """Each 32-bit word stirred, so that neighbours have nothing in common. For numpy and jax arrays of uint32."""
    bits = (bits ^ (bits >> np.uint32(16))) * FIRST
    bits = (bits ^ (bits >> np.uint32(13))) * SECOND
    return bits ^ (bits >> np.uint32(16))


def _uniform(bits: Any, deviation: float) -> Any:
    """Float32 of mean 0 and this standard deviation from uint32 words, of which the upper 24 bits count."""
    unit = (bits >> np.uint32(8)).astype(np.float32) * np.float32(2**-24) - np.float32(0.5)
    return unit * np.float32(12**0.5 * deviation)
