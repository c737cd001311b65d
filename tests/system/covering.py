"""Pairwise covering arrays: a small list of configurations in which every allowed pair of factor values occurs.

Most faults of combined features need two of them (Kuhn, Wallace and Gallo, 2004); all pairs of a dozen factors fit in a few dozen rows where
the full product has thousands. Greedy construction (AETG, Cohen et al. 1997) from a fixed seed: the same rows in every run.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]


def covering_rows(
    factors: Mapping[str, Sequence[Any]],
    allowed: Callable[[Row], bool] = lambda row: True,
    *,
    seed: int = 0,
    tries: int = 40,
) -> list[Row]:
    """Rows that cover every pair of values that occurs in at least one allowed row."""
    names = list(factors)
    rows = [dict(zip(names, values, strict=True)) for values in itertools.product(*factors.values())]
    candidates = [row for row in rows if allowed(row)]
    missing = {pair for row in candidates for pair in _pairs(row, names)}
    rng = random.Random(seed)
    chosen: list[Row] = []
    while missing:
        sample = candidates if len(candidates) <= tries else rng.sample(candidates, tries)
        best = max(sample, key=lambda row: len(missing.intersection(_pairs(row, names))))
        gained = missing.intersection(_pairs(best, names))
        if not gained:
            best = next(row for row in candidates if missing.intersection(_pairs(row, names)))
            gained = missing.intersection(_pairs(best, names))
        chosen.append(best)
        missing -= gained
    return chosen


def _pairs(row: Row, names: Sequence[str]) -> set[tuple[str, str, str, str]]:
    return {(a, repr(row[a]), b, repr(row[b])) for a, b in itertools.combinations(names, 2)}
