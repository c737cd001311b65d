"""Patches of several pictures packed into one bucket, as data: numpy only, nothing is resized to fit.

A *piece* is what attends within itself: a picture, a tile of one, or one step in time of a video. Pieces lie one after
another in the slots of a bucket; unused slots are at the end. Everything that depends on sizes is an array, so one
compiled program serves every mixture of pieces that fits: its shapes follow from the number of slots alone.

Attention is given as a span of slots for each slot. Pieces are contiguous, and the slots of a piece are ordered window by
window where the encoder has windows, so that a window is contiguous too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from triptych.models.errors import MediaShapeError
from triptych.models.vision.config import VisionConfig
from triptych.models.vision.positions import table_positions

# numpy arrays here, and traced arrays of the same shapes inside a program.
Values = Any


@dataclass(frozen=True)
class Grid:
    """Patches of a piece: rows from top to bottom, columns from left to right."""

    rows: int
    columns: int


@dataclass(frozen=True)
class Piece:
    """Patches [rows * columns, patch_dim] uint8 in raster order; a patch is channel, frame, row, column."""

    patches: np.ndarray
    grid: Grid


class PackedPatches(NamedTuple):
    """One bucket's input, for N slots with M = `VisionConfig.output_bound(N)` output rows.

    patches           uint8 [N, patch_dim], zeros in class-token slots and padding
    is_class          bool [N], the slots of class tokens
    spans             int32 [N, 2], the first slot that a slot attends to and the end; padding attends to nothing
    window_spans      int32 [N, 2], the same within windows ([0, 2] if the encoder has none)
    position_indices  int32 [N, taps], into the position table (taps is 0 if there is none)
    position_weights  float32 [N, taps]
    grid_positions    int32 [N, 2], row and column of each patch, for rotary positions ([0, 2] if there are none)
    output_slots      int32 [M, merge * merge], the slots whose features make an output row; rows beyond the last are 0
    """

    patches: Values
    is_class: Values
    spans: Values
    window_spans: Values
    position_indices: Values
    position_weights: Values
    grid_positions: Values
    output_slots: Values


@dataclass(frozen=True)
class OutputRange:
    """The output rows of one piece."""

    start: int
    stop: int


def pack(pieces: Sequence[Piece], config: VisionConfig, slots: int) -> tuple[PackedPatches, tuple[OutputRange, ...]]:
    """Put pieces into a bucket of `slots`; returns its arrays and where each piece's output rows will be.

    Raises MediaShapeError if they do not fit, or a piece is not what the encoder takes.
    """
    needed = sum(config.slots(piece.grid.rows, piece.grid.columns) for piece in pieces)
    if needed > slots:
        raise MediaShapeError(f"{len(pieces)} pieces need {needed} slots, the bucket has {slots}")
    packed = empty(config, slots)
    ranges: list[OutputRange] = []
    at = row = 0
    for piece in pieces:
        if piece.patches.shape != (piece.grid.rows * piece.grid.columns, config.patch_dim):
            raise MediaShapeError(
                f"a grid of {piece.grid.rows} x {piece.grid.columns} needs patches "
                f"[{piece.grid.rows * piece.grid.columns}, {config.patch_dim}], got {list(piece.patches.shape)}"
            )
        layout = _layout(config, piece.grid)
        size, rows = len(layout.order), len(layout.output_slots)
        here = slice(at, at + size)
        first = at + config.class_token
        packed.patches[first : at + size] = piece.patches[layout.order[config.class_token :]]
        if config.class_token:
            packed.is_class[at] = True
        packed.spans[here] = at, at + size
        if config.window is not None:
            packed.window_spans[here] = layout.window_spans + at
        if config.rope_theta is not None:
            packed.grid_positions[here] = layout.grid_positions
        packed.position_indices[here] = layout.position_indices
        packed.position_weights[here] = layout.position_weights
        packed.output_slots[row : row + rows] = layout.output_slots + at
        ranges.append(OutputRange(row, row + rows))
        at, row = at + size, row + rows
    return packed, tuple(ranges)


def unpack(outputs: np.ndarray, ranges: Sequence[OutputRange]) -> list[np.ndarray]:
    """The output rows of each piece, in raster order (a kept class token comes first)."""
    return [outputs[part.start : part.stop] for part in ranges]


def empty(config: VisionConfig, slots: int) -> PackedPatches:
    """A bucket of nothing but padding: what a program is compiled and warmed up with."""
    taps = config.position_taps
    return PackedPatches(
        patches=np.zeros((slots, config.patch_dim), np.uint8),
        is_class=np.zeros(slots, bool),
        spans=np.zeros((slots, 2), np.int32),
        window_spans=np.zeros((0 if config.window is None else slots, 2), np.int32),
        position_indices=np.zeros((slots, taps), np.int32),
        position_weights=np.zeros((slots, taps), np.float32),
        grid_positions=np.zeros((0 if config.rope_theta is None else slots, 2), np.int32),
        output_slots=np.zeros((config.output_bound(slots), config.merge**2), np.int32),
    )


@dataclass(frozen=True)
class _Layout:
    """How a piece of one size lies in its slots, counted from its first. `order` names each slot's patch."""

    order: np.ndarray
    window_spans: np.ndarray
    grid_positions: np.ndarray
    position_indices: np.ndarray
    position_weights: np.ndarray
    output_slots: np.ndarray


# Up to 30 bytes a patch, and the largest pictures have 65,000: a hundred megabytes at most.
@lru_cache(maxsize=64)
def _layout(config: VisionConfig, grid: Grid) -> _Layout:
    config.output_rows(grid.rows, grid.columns)
    rows, columns = (axis.ravel() for axis in np.indices((grid.rows, grid.columns)))
    windows = np.zeros_like(rows)
    if config.window is not None:
        windows = rows // config.window * (grid.columns // config.window + 1) + columns // config.window
    order = np.argsort(windows, kind="stable")
    slot_of = np.argsort(order) + config.class_token
    _, first, size = np.unique(windows[order], return_index=True, return_counts=True)
    window_spans = np.repeat(np.stack((first, first + size), axis=1), size, axis=0)
    indices, weights = _positions(config, grid)
    if config.class_token:
        taps = config.position_taps
        indices = np.concatenate((np.zeros((1, taps), np.int32), indices[order] + 1))
        weights = np.concatenate((np.eye(1, taps, dtype=np.float32), weights[order]))
        order = np.concatenate(([0], order))
    else:
        indices, weights = indices[order], weights[order]
    places = np.stack((rows, columns), axis=1)[order]
    order, window_spans, places, outputs = (
        array.astype(np.int32) for array in (order, window_spans, places, _output_slots(config, grid, slot_of))
    )
    return _Layout(order, window_spans, places, indices, weights, outputs)


def _positions(config: VisionConfig, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Table indices and weights of the patches in raster order, not counting a class token's entry."""
    count, side = grid.rows * grid.columns, config.position_grid
    if side is None:
        return np.zeros((count, 0), np.int32), np.zeros((count, 0), np.float32)
    if config.resize_positions:
        return table_positions(grid.rows, grid.columns, side)
    if (grid.rows, grid.columns) != (side, side):
        raise MediaShapeError(f"this encoder takes {side} x {side} patches, got {grid.rows} x {grid.columns}")
    return np.arange(count, dtype=np.int32)[:, None], np.ones((count, 1), np.float32)


def _output_slots(config: VisionConfig, grid: Grid, slot_of: np.ndarray) -> np.ndarray:
    """The slots of each output row, [rows, merge * merge]."""
    if config.output == "class":
        return np.zeros((1, 1), np.int32)
    merge = config.merge
    blocks = slot_of.reshape(grid.rows // merge, merge, grid.columns // merge, merge)
    patches = blocks.transpose(0, 2, 1, 3).reshape(-1, merge * merge)
    return np.concatenate(([[0]], patches)) if config.output == "all" else patches
