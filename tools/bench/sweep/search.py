"""Which rate is measured next: doubling (or halving) until goodput lies between two rates, then bisection until they are 9 % apart.

Rates are steps of an eighth of an octave above one base rate, the same for all topologies, so that different searches
meet at exactly the same rates and their requests can be compared one by one. Goodput and its share are those of the
simulator (simulation/slo.py): the largest rate up to which each one that was tried met both objectives for at least 90 %
of the requests. Pure: nothing here knows a clock or a deployment.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from triptych.runtime.simulation.slo import SHARE, goodput

STEPS = 8  # an octave: neighbours are 2 ** (1/8) = 1.09 apart, inside the 10 % that goodput is wanted to
LEAST, MOST = -4 * STEPS, 12 * STEPS  # a 16th of the base, where few requests take minutes, to 4096 times it
TRIES = 2  # of a rate at which the load generator was late: once may be a hiccup of the machine


@dataclass(frozen=True)
class Tried:
    """One point: `share` of its requests met both objectives; None if the load generator was late, so that it says nothing."""

    step: int
    share: float | None


@dataclass(frozen=True)
class Bracket:
    """Goodput is at least the rate of step `low` (None: no rate passed) and less than that of `high` (None: none failed).
    `limit`: the lowest rate that the load generator could not send in time."""

    low: int | None
    high: int | None
    limit: int | None = None

    @property
    def closed(self) -> bool:
        return self.low is not None and self.high is not None and self.high - self.low <= 1


def rate_of(base: float, step: int) -> float:
    """Requests a second."""
    return base * 2.0 ** (step / STEPS)


def step_of(base: float, rate: float) -> int:
    """The step of a rate that `rate_of` gave."""
    return round(STEPS * math.log2(rate / base))


def bracket(tried: Sequence[Tried]) -> Bracket:
    """What the points say."""
    judged = [(one.step, one.share) for one in tried if one.share is not None]
    low = goodput([step for step, _ in judged], [share for _, share in judged])
    failed = [step for step, share in judged if share < SHARE]
    known = {step for step, _ in judged}
    late = Counter(one.step for one in tried if one.step not in known)
    limits = [step for step, count in late.items() if count >= TRIES]
    return Bracket(None if low is None else int(low), min(failed, default=None), min(limits, default=None))


def next_step(tried: Sequence[Tried], start: int = 0) -> int | None:
    """The step to measure next; None when goodput is bracketed, or no rate that is left can tell more."""
    if not tried:
        return start
    last = tried[-1]
    if last.share is None and sum(one.step == last.step for one in tried) < TRIES:
        return last.step
    found = bracket(tried)
    above = min((step for step in (found.high, found.limit) if step is not None), default=None)
    if above is None:
        assert found.low is not None
        following = found.low + STEPS
    elif found.low is None:
        following = above - STEPS
    elif above - found.low > 1:
        following = (found.low + above) // 2
    else:
        return None
    return following if LEAST <= following <= MOST else None


def ended(tried: Sequence[Tried]) -> str:
    """Why a search that has no next step is over, in words."""
    found = bracket(tried)
    if found.closed:
        return "bracketed"
    if found.limit is not None:
        return "the load generator is too slow for more"
    return "no rate passed" if found.low is None else "no rate failed"
