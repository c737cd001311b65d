"""Deployments whose goodput is known, on a clock that only measuring moves."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from triptych.runtime.core.errors import InstanceLostError
from triptych.runtime.simulation.slo import Slo
from triptych.tools.bench.metrics import Arrival, Record
from triptych.tools.bench.sweep.budget import Budget
from triptych.tools.bench.sweep.candidates import Candidate, parse_candidates
from triptych.tools.bench.sweep.judge import Point, Window, judge
from triptych.tools.bench.sweep.loads import Load, Room, Source
from triptych.tools.bench.sweep.sweep import Plan, ProcessLostError

SLO = Slo(1.0, 0.1)


def record(
    at: float, ttft: float | None, gap: float = 0.01, tokens: int = 5, status: str = "OK", late: float = 0.0
) -> Record:
    """A request due at `at`; without a TTFT it got nothing until it ended three seconds later."""
    sent = at + late
    arrivals = () if ttft is None else tuple(Arrival(sent + ttft + gap * k, 1) for k in range(tokens))
    return Record(at, sent, arrivals[-1].at if arrivals else sent + 3.0, arrivals, 10, status)


def candidates(text: str, **settings: Any) -> tuple[Candidate, ...]:
    return parse_candidates(text, argparse.Namespace(model="dummy:toy", device="cpu", **settings))


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Fake:
    """Deployments by name. Beyond its goodput one meets the objectives for four requests of five.

    Attributes:
        late: rates from which on the load generator is late, by name.
        dead: rates from which on a process is lost, by name.
        start: seconds to become ready; point: seconds of a point.
    """

    goodput: Mapping[str, float]
    clock: Clock = field(default_factory=Clock)
    late: Mapping[str, float] = field(default_factory=dict)
    dead: Mapping[str, float] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    start: float = 30.0
    point: float = 25.0
    alive: list[str] = field(default_factory=list)
    measured: list[tuple[str, str, float]] = field(default_factory=list)
    interrupt_after: int | None = None

    @contextmanager
    def __call__(self, candidate: Candidate, budget: Budget) -> Iterator[FakeRunning]:
        assert not self.alive, "one deployment at a time"
        self.clock.now += min(self.start, budget.left)
        if candidate.name in self.broken:
            raise InstanceLostError(f"{candidate.name} ended before it was ready: exit code 3")
        self.alive.append(candidate.name)
        try:
            yield FakeRunning(self, candidate.name)
        finally:
            self.alive.remove(candidate.name)
            self.clock.now += 5.0


class FakeRunning:
    def __init__(self, fake: Fake, name: str):
        self.ready_seconds = fake.start
        self._fake, self._name = fake, name

    def open(self, load: Load) -> Source:
        return Source(load, Room(256))

    def seconds(self, source: Source, rate: float) -> float:
        return self._fake.point

    def measure(self, source: Source, rate: float) -> Point:
        fake = self._fake
        if fake.interrupt_after is not None and len(fake.measured) >= fake.interrupt_after:
            raise KeyboardInterrupt
        fake.measured.append((self._name, source.load.name, rate))
        fake.clock.now += fake.point
        if rate >= fake.dead.get(self._name, float("inf")):
            raise ProcessLostError("decode-0 ended: killed by SIGKILL")
        good = rate <= fake.goodput[self._name]
        lag = 0.5 if rate >= fake.late.get(self._name, float("inf")) else 0.0
        records = [record(k / rate, 0.2 if good or k % 5 else 2.0, late=lag) for k in range(20)]
        return judge(rate, records, 0.0, Window(0, 0.0, 20 / rate), source.load.slo, 0.05, [])


def plan(**changes: Any) -> Plan:
    return Plan(**{"warmup": 0.0, "judged": 20.0, **changes})
