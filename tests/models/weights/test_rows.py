"""Trained rows stand in a checkpoint's tensor, whichever part of it is read."""

from typing import ClassVar

import numpy as np
import pytest

from triptych.models.errors import WeightsError
from triptych.models.weights.rows import RowsSource


class Stored:
    """A checkpoint in memory."""

    tensors: ClassVar = {"embed": np.arange(24, dtype=np.float16).reshape(6, 4), "other": np.ones((2, 2), np.float16)}

    def names(self):  # type: ignore[no-untyped-def]
        return self.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def read(self, name: str, slices: tuple[slice, ...]) -> np.ndarray:
        return self.tensors[name][slices]


ROWS = np.full((2, 4), -1.0, np.float32) * np.asarray([[1.0], [2.0]])


@pytest.mark.parametrize("slices", [(slice(None), slice(None)), (slice(2, 5), slice(1, 3)), (slice(0, 1), slice(None))])
def test_rows_are_replaced_in_any_slice(slices: tuple[slice, slice]) -> None:
    expected = Stored.tensors["embed"].astype(np.float32)
    expected[[4, 2]] = ROWS
    source = RowsSource(Stored(), "embed", [4, 2], ROWS)
    np.testing.assert_array_equal(source.read("embed", slices), expected[slices])
    np.testing.assert_array_equal(source.read("other", (slice(None),) * 2), Stored.tensors["other"])
    assert Stored.tensors["embed"][4, 0] == 16, "the checkpoint itself stays as it is"


@pytest.mark.parametrize(
    ("name", "indices", "words"),
    [("gone", [0, 1], "no tensor 'gone'"), ("embed", [0], "shape"), ("embed", [0, 6], "shape")],
)
def test_rows_that_do_not_fit_are_refused(name: str, indices: list[int], words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        RowsSource(Stored(), name, indices, ROWS)
