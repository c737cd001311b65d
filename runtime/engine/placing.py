"""Positions of a row's media, for models of three positions a token (M-RoPE, arXiv 2409.12191): time, row and column."""

from __future__ import annotations

import numpy as np

from triptych.runtime.engine.buckets import PlanError
from triptych.runtime.instance.plan import Embedded, Place, Row


def place_media(positions: np.ndarray, row: Row, token: int) -> None:
    """Give the embeddings of a row that begins at token slot `token` their places, and the text behind each what follows it.

    Args:
        positions: [3, tokens] int32, or [tokens] where nothing has a place; the row's count up from its first.

    Raises PlanError for a place that does not fit its run or the program.
    """
    placed = [run for run in row.embedded if run.place is not None]
    if placed and positions.ndim == 1:
        raise PlanError(f"sequence {row.sequence}: media have places, and the program's tokens one position each")
    for index, run in enumerate(placed):
        at, behind = token + run.at, token + run.at + run.count
        end = token + (placed[index + 1].at if index + 1 < len(placed) else row.length)
        assert run.place is not None
        positions[:, at:behind] = _grid(row, run, run.place)
        positions[:, behind:end] = run.place.following + np.arange(end - behind)


def _grid(row: Row, run: Embedded, place: Place) -> np.ndarray:
    """[3, count]: the positions of the run's embeddings."""
    steps, rows, columns = place.grid
    number = np.arange(run.first, run.first + run.count)
    if number[-1] >= steps * rows * columns:
        raise PlanError(f"sequence {row.sequence}: a grid of {place.grid} has no embedding {number[-1]}")
    step, inside = np.divmod(number, rows * columns)
    return np.stack((place.time + step, place.origin + inside // columns, place.origin + inside % columns))
