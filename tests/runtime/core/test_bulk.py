"""Named tuples made by columns are those that calling them gives."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from triptych.runtime.core.bulk import named


class Pair(NamedTuple):
    left: int
    right: str = "x"


def test_one_for_each_place_of_the_columns() -> None:
    made = list(named(Pair, range(2), ["a", "b"]))
    assert made == [Pair(0, "a"), Pair(1, "b")] and all(type(each) is Pair for each in made)
    assert made[1].right == "b" and list(named(Pair, (), ())) == []


def test_columns_are_those_of_all_fields_and_of_one_length() -> None:
    with pytest.raises(TypeError, match="Pair has the fields left, right; 1 columns"):
        named(Pair, [1])
    with pytest.raises(ValueError, match="shorter"):
        list(named(Pair, [1, 2], ["a"]))
