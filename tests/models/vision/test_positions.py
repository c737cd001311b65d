"""Resizing a position table by taps and weights."""

import numpy as np
import pytest

from triptych.models.vision.positions import table_positions


def test_the_tables_own_grid_keeps_every_entry() -> None:
    indices, weights = table_positions(5, 5, 5)
    dense = np.zeros((25, 25))
    np.add.at(dense, (np.arange(25)[:, None], indices), weights)
    np.testing.assert_allclose(dense, np.eye(25), atol=1e-7)


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (3, 11), (40, 2), (1, 1)])
def test_weights_add_up_to_one_and_mirror_with_the_grid(rows: int, columns: int) -> None:
    side = 37
    indices, weights = table_positions(rows, columns, side)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    assert indices.min() >= 0
    assert indices.max() < side * side
    table = np.random.default_rng(0).standard_normal((side, side))

    def resized(table: np.ndarray) -> np.ndarray:
        return (table.ravel()[indices] * weights).sum(axis=1).reshape(rows, columns)

    np.testing.assert_allclose(resized(table)[::-1, ::-1], resized(table[::-1, ::-1]), atol=1e-5)
