"""The generator of the matrix covers what it promises."""

from __future__ import annotations

import itertools

from tests.system.covering import covering_rows

FACTORS = {"a": [1, 2, 3], "b": ["x", "y"], "c": [True, False], "d": [0, 1, 2, 3]}


def test_every_pair_of_values_occurs():
    rows = covering_rows(FACTORS)
    for (a, values_a), (b, values_b) in itertools.combinations(FACTORS.items(), 2):
        for pair in itertools.product(values_a, values_b):
            assert any((row[a], row[b]) == pair for row in rows), (a, b, pair)


def test_the_array_is_much_smaller_than_the_product():
    assert len(covering_rows(FACTORS)) <= 16 < 3 * 2 * 2 * 4


def test_forbidden_combinations_never_occur_and_the_rest_is_covered():
    rows = covering_rows(FACTORS, lambda row: not (row["a"] == 1 and row["b"] == "x"))
    assert not any(row["a"] == 1 and row["b"] == "x" for row in rows)
    assert any(row["a"] == 1 and row["b"] == "y" for row in rows)


def test_the_rows_are_the_same_in_every_run():
    assert covering_rows(FACTORS) == covering_rows(FACTORS)
