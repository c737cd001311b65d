"""What single requests lose and gain against the monolith: the same request, at the same moment of the same load, on both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = Mapping[str, Any]
"""Of one judged request: met (both objectives), ttft and tpot in seconds or None."""


@dataclass(frozen=True)
class Loss:
    """One latency of all requests that have it on both sides: how many are slower than on the monolith, and ratios to it."""

    name: str
    requests: int
    slower: float
    median: float
    p90: float
    worst: float


@dataclass(frozen=True)
class Comparison:
    """A topology against the monolith at one rate. `lost`: requests inside the objectives there and not here; `won`: the other way."""

    rate: float
    requests: int
    lost: int
    won: int
    losses: tuple[Loss, ...]


def compare(rate: float, own: Sequence[Row], monolith: Sequence[Row]) -> Comparison:
    """The n-th row of both is the same request. Raises ValueError if there are not as many."""
    if len(own) != len(monolith):
        raise ValueError(f"{len(own)} requests against {len(monolith)}: not the same load")
    pairs = list(zip(own, monolith, strict=True))
    losses = [
        _loss(name, [(a[name], b[name]) for a, b in pairs if a[name] is not None and b[name]])
        for name in ("ttft", "tpot")
    ]
    return Comparison(
        rate,
        len(pairs),
        sum(b["met"] and not a["met"] for a, b in pairs),
        sum(a["met"] and not b["met"] for a, b in pairs),
        tuple(loss for loss in losses if loss is not None),
    )


def _loss(name: str, pairs: Sequence[tuple[float, float]]) -> Loss | None:
    if not pairs:
        return None
    ratios = np.array([a / b for a, b in pairs])
    median, p90 = np.percentile(ratios, (50, 90))
    return Loss(name, len(ratios), float((ratios > 1).mean()), float(median), float(p90), float(ratios.max()))
