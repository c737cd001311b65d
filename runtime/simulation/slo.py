"""Service-level objectives: which requests met them, and the goodput of a layout.

Goodput as in DistServe (arXiv 2401.09670): the largest request rate at which at least 90 % of all requests meet both
objectives. A request that failed meets none; one with a single token has no TPOT to miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from triptych.runtime.simulation.metrics import Requests

SHARE = 0.9


@dataclass(frozen=True)
class Slo:
    """Objectives in seconds; None: whatever."""

    ttft: float | None = None
    tpot: float | None = None

    def __post_init__(self) -> None:
        for name in ("ttft", "tpot"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"objective {name} is {value}; expected positive seconds")


@dataclass(frozen=True)
class Attainment:
    """Shares of requests that met an objective, and all of them."""

    ttft: float
    tpot: float
    both: float


def attainment(requests: Requests, slo: Slo, after: float = 0.0) -> Attainment:
    """Of the requests that arrived at `after` seconds or later. Raises ValueError if there are none."""
    counted = requests.column("at") >= after
    total = int(counted.sum())
    if not total:
        raise ValueError(f"no request arrived after {after} s: nothing to judge")
    ttft, tpot = requests.column("ttft")[counted], requests.column("tpot")[counted]
    done = ~np.isnan(ttft)
    met_ttft = done if slo.ttft is None else done & (ttft <= slo.ttft)
    met_tpot = done if slo.tpot is None else done & (np.isnan(tpot) | (tpot <= slo.tpot))
    return Attainment(
        float(met_ttft.sum() / total), float(met_tpot.sum() / total), float((met_ttft & met_tpot).sum() / total)
    )


def goodput(rates: Sequence[float], shares: Sequence[float], share: float = SHARE) -> float | None:
    """The largest of the rates up to which every one that was tried met its objectives for at least `share` of the
    requests; None if the smallest did not. A rate that passes beyond one that fails does not count: there is noise in
    both."""
    best = None
    for rate, met in sorted(zip(rates, shares, strict=True)):
        if met < share:
            break
        best = rate
    return best
