"""Every topology, every load, every rate, within one budget of seconds. What fails is a row of the report and not its end.

Pure control: deployments come from a `Starter`, time from a clock, so that tests plan with deployments whose goodput is
known. The report is plain data, handed to `changed` whenever something was added to it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from triptych.runtime.core.errors import InstanceLostError, TriptychError
from triptych.tools.bench.sweep import losses, search
from triptych.tools.bench.sweep.budget import Budget
from triptych.tools.bench.sweep.candidates import Candidate
from triptych.tools.bench.sweep.judge import Point
from triptych.tools.bench.sweep.loads import Load, Source
from triptych.tools.bench.sweep.search import Tried, rate_of, step_of
from triptych.tools.settings import dump

STOPPING = 15.0  # seconds kept back for a deployment's end

Report = dict[str, Any]


class ProcessLostError(InstanceLostError):
    """A process of the deployment ended while it was measured."""


@dataclass(frozen=True)
class Plan:
    """How points are measured.

    Attributes:
        rates: requests a second to try; empty: search for goodput from `base` on.
        warmup: seconds at the beginning of a point whose requests are not judged.
        judged: seconds of a point whose requests are, or longer until `least` requests are due.
        most_lag: seconds that the load generator may be late; None: by the objective (judge.most_lag).
        patience: seconds that a deployment which said it was ready has for its first answers.
    """

    rates: tuple[float, ...] = ()
    base: float = 1.0
    warmup: float = 5.0
    judged: float = 20.0
    least: int = 20
    most_lag: float | None = None
    patience: float = 120.0
    seed: int = 0

    def counts(self, rate: float) -> tuple[int, int]:
        """Requests of a point at `rate`: before those that are judged, and those."""
        return math.ceil(rate * self.warmup), max(self.least, math.ceil(rate * self.judged))


class Measured(Protocol):
    """A deployment that is ready."""

    ready_seconds: float

    def open(self, load: Load) -> Source: ...

    def seconds(self, source: Source, rate: float) -> float: ...

    def measure(self, source: Source, rate: float) -> Point: ...


Starter = Callable[[Candidate, Budget], AbstractContextManager[Measured]]
Changed = Callable[[], None]


def run_sweep(
    candidates: Sequence[Candidate], loads: Sequence[Load], plan: Plan, start: Starter, budget: Budget, report: Report, changed: Changed
) -> None:  # fmt: skip
    """Add to `report["topologies"]`, and fill `report["against_monolith"]`. An interruption leaves what was measured."""
    rows = report.setdefault("topologies", [])
    starts = first_steps(rows, plan)
    for number, candidate in enumerate(candidates):
        row: Report = {
            "name": candidate.name, "topology": str(candidate.config.plan), "processes": candidate.config.processes,
            "devices": candidate.devices, "monolithic": candidate.monolithic, "failed": None, "ready_seconds": None, "loads": {}, "config": json.loads(dump(candidate.config)),
        }  # fmt: skip
        rows.append(row)
        _one(candidate, loads, plan, start, budget, len(candidates) - number, row, starts, changed)
        report["against_monolith"] = against_monolith(rows)
        changed()


def first_steps(rows: Sequence[Report], plan: Plan) -> dict[str, int]:
    """Where searches begin, by load: at the goodput of the first topology that has one."""
    found: dict[str, int] = {}
    for row in rows:
        for name, load in row["loads"].items():
            if load["goodput"] is not None and not plan.rates:
                found.setdefault(name, step_of(plan.base, load["goodput"]))
    return found


def _one(
    candidate: Candidate, loads: Sequence[Load], plan: Plan, start: Starter, budget: Budget, parts: int, row: Report, starts: dict[str, int], changed: Changed
) -> None:  # fmt: skip
    """One of `parts` topologies that are left. It has its part of the budget to start, and its part of what is left then to be
    measured: a slow start, which compiles what later ones may find compiled, is at the expense of all."""
    starting = budget.share(parts).less(STOPPING)
    if not starting.left:
        row["failed"] = "not started: no time was left"
        return
    try:
        with start(candidate, starting) as running:
            measuring = budget.share(parts).less(STOPPING)
            row["ready_seconds"] = running.ready_seconds
            changed()
            for number, load in enumerate(loads):
                found: Report = {"goodput": None, "ended": "", "note": "", "points": [], "not_measured": []}
                row["loads"][load.name] = found
                _load(
                    running, load, plan, measuring.share(len(loads) - number), found, starts, candidate.devices, changed
                )
                changed()
    except (TriptychError, OSError) as error:
        row["failed"] = str(error) or type(error).__name__


def _load(
    running: Measured, load: Load, plan: Plan, budget: Budget, found: Report, starts: dict[str, int], devices: int, changed: Changed
) -> None:  # fmt: skip
    """One load of one deployment. What loses the deployment is raised, after `found` says what was measured before."""
    try:
        source = running.open(load)
    except TriptychError as error:
        found["ended"] = f"not sent: {error.message}"
        return
    found["note"] = source.note
    tried: list[Tried] = []
    first = starts.get(load.name, 0)
    found["ended"] = "interrupted"
    while (step := _next(plan, tried, first)) is not None:
        rate = plan.rates[step] if plan.rates else rate_of(plan.base, step)
        if (needed := running.seconds(source, rate)) > budget.left:
            left = plan.rates[step:] if plan.rates else (rate,)
            found["not_measured"] = list(left)
            found["ended"] = (
                f"no time: a point at {rate:.4g} req/s may take {needed:.0f} s, {budget.left:.0f} s were left"
            )
            break
        try:
            point = running.measure(source, rate)
        except TriptychError as error:
            found["ended"] = f"lost at {rate:.4g} req/s: {error.message}"
            raise
        tried.append(Tried(step, point.attainment if point.valid else None))
        found["points"].append(as_row(point, devices))
        _conclude(found, plan, tried, devices)
        changed()
    else:
        found["ended"] = "all rates of the list" if plan.rates else search.ended(tried)
    if (low := search.bracket(tried).low) is not None and not plan.rates:
        starts.setdefault(load.name, low)


def _next(plan: Plan, tried: Sequence[Tried], first: int) -> int | None:
    if not plan.rates:
        return search.next_step(tried, first)
    return len(tried) if len(tried) < len(plan.rates) else None


def _conclude(found: Report, plan: Plan, tried: Sequence[Tried], devices: int) -> None:
    """Goodput as far as it is known: at least `goodput`, less than `below`."""
    between = search.bracket(tried)

    def rate(step: int | None) -> float | None:
        if step is None:
            return None
        return plan.rates[step] if plan.rates else rate_of(plan.base, step)

    found["goodput"], found["below"] = rate(between.low), rate(between.high)
    found["goodput_per_device"] = None if found["goodput"] is None else found["goodput"] / devices
    found["generator_limit"] = rate(between.limit)


def as_row(point: Point, devices: int) -> Report:
    """Plain data, with tokens a second by device and by user (one over the median TPOT)."""
    tpot = point.latencies.get("tpot")
    return asdict(point) | {
        "tokens_per_device": point.output_token_rate / devices,
        "tokens_per_user": None if tpot is None or not tpot.p50 else 1.0 / tpot.p50,
    }


def against_monolith(rows: Sequence[Report]) -> list[Report]:
    """Each topology against the first monolithic one, load by load, at the rates that both have in valid points."""
    base = next((row for row in rows if row["monolithic"]), None)
    if base is None:
        return []
    out = []
    for row in rows:
        for name, found in row["loads"].items() if row is not base else ():
            theirs = {p["rate"]: p for p in base["loads"].get(name, {}).get("points", []) if p["valid"]}
            for point in found["points"]:
                other = theirs.get(point["rate"])
                if other is None or not point["valid"] or len(point["rows"]) != len(other["rows"]):
                    continue
                compared = losses.compare(point["rate"], point["rows"], other["rows"])
                out.append({"name": row["name"], "monolith": base["name"], "load": name, **asdict(compared)})
    return out
