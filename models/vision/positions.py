"""Which entries of a learned position table a patch's position is made of: one, or sixteen when the grid is resized.

Resizing is bicubic with half-pixel centres, clamped at the border, by Keys' kernel with a = -0.75 (as torch's
`interpolate` does it, without anti-aliasing). It is linear in the table, so it is given as indices and weights: the table
stays a parameter, and one compiled program serves every grid. numpy only.
"""

from functools import lru_cache

import numpy as np

# The kernel's free parameter, the one that torch has chosen.
KEYS_A = -0.75


@lru_cache(maxsize=64)
def table_positions(rows: int, columns: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """For each patch of a grid, in raster order: 16 indices into a `side` x `side` table, int32, and their weights.

    A grid of the table's own size gets each its own entry with weight 1. The arrays are shared: do not write to them.
    """
    row_taps, row_weights = _taps(rows, side)
    column_taps, column_weights = _taps(columns, side)
    indices = row_taps[:, None, :, None] * side + column_taps[None, :, None, :]
    weights = row_weights[:, None, :, None] * column_weights[None, :, None, :]
    shape = (rows * columns, 16)
    result = indices.reshape(shape).astype(np.int32), weights.reshape(shape).astype(np.float32)
    for array in result:
        array.setflags(write=False)
    return result


def _taps(size: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Four source entries for each of `size` targets along one axis, and their weights."""
    source = (np.arange(size) + 0.5) * side / size - 0.5
    below = np.floor(source)
    offsets = np.arange(-1, 3)
    distance = np.abs(source[:, None] - below[:, None] - offsets)
    near = ((KEYS_A + 2) * distance - (KEYS_A + 3)) * distance**2 + 1
    far = ((KEYS_A * distance - 5 * KEYS_A) * distance + 8 * KEYS_A) * distance - 4 * KEYS_A
    taps = np.clip(below[:, None].astype(np.int64) + offsets, 0, side - 1)
    return taps, np.where(distance <= 1, near, far)
