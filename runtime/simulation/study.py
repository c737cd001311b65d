"""Studies: one layout under one workload at several rates; what share of requests met their objectives, where their
time went, how full everything was."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.policies.queue_order import QUEUE_ORDERS
from triptych.runtime.scheduler.policies.router import ROUTERS
from triptych.runtime.scheduler.scheduler import Scheduler
from triptych.runtime.simulation.metrics import Spread, Timeline, spread
from triptych.runtime.simulation.slo import Attainment, Slo, attainment, goodput
from triptych.runtime.simulation.study_cluster import StudyCluster
from triptych.runtime.simulation.study_fleet import SAMPLES, Delays, Kind
from triptych.runtime.simulation.study_memory import rare_collections
from triptych.runtime.simulation.study_split import SplitCluster, window
from triptych.runtime.simulation.workload_named import Workload
from triptych.runtime.simulation.workload_tokens import TokenSource

STAGES = (
    "ttft", "tpot", "e2e", "queue", "wait", "prefill", "transfer", "gather", "encode_wait", "encode", "feed", "share",
)  # fmt: skip

Progress = Callable[[float, float, int, int], None]
"""(rate, virtual seconds, submitted, ended)"""


@dataclass(frozen=True)
class Study:
    """What is simulated.

    Attributes:
        rates: requests a second.
        requests: per rate.
        warmup: share of the requests, the first ones, that are not judged: they meet an empty cluster.
        leaps: see study_leap.py; False simulates every step, with the same result.
        heartbeat: seconds between signs of life of a worker.
        max_queued: requests that may wait in the scheduler; by default nobody is refused.
        jobs: processes that simulate, 1 or 2 (study_split.py); the result is the same.
    """

    kinds: tuple[Kind, ...]
    workload: Workload
    rates: tuple[float, ...]
    requests: int
    slo: Slo = field(default_factory=Slo)
    router: str = "least-loaded"
    queue_order: str = "fcfs"
    delays: Delays = field(default_factory=Delays)
    warmup: float = 0.1
    seed: int = 0
    leaps: bool = True
    heartbeat: float = 1.0
    max_queued: int = 1 << 20
    jobs: int = 1

    def __post_init__(self) -> None:
        """Raises ConfigError for what cannot be simulated."""
        wrong = []
        if not self.rates or not all(0 < rate < math.inf for rate in self.rates):
            wrong.append(f"rates are {self.rates}; expected positive numbers of requests a second")
        if self.requests < 1:
            wrong.append(f"requests is {self.requests}; expected at least 1")
        if self.seed < 0:
            wrong.append(f"seed is {self.seed}; expected 0 or more")
        if not 0 <= self.warmup < 1:
            wrong.append(f"warmup is {self.warmup}; expected a share of 0 to less than 1")
        if self.router not in ROUTERS:
            wrong.append(f"no router {self.router!r}; there are {', '.join(ROUTERS)}")
        if self.queue_order not in QUEUE_ORDERS:
            wrong.append(f"no queue order {self.queue_order!r}; there are {', '.join(QUEUE_ORDERS)}")
        if self.jobs not in (1, 2):
            wrong.append(f"jobs is {self.jobs}; expected 1 or 2 processes")
        elif self.jobs == 2 and not window(self.delays) > 0:
            wrong.append(f"jobs is 2, but {self.delays} leave no window between processes; use 1, or delays above 0")
        if self.workload.images is not None and not any(kind.encode_patches for kind in self.kinds):
            wrong.append("requests have images, but no instance encodes any")
        if wrong:
            raise ConfigError("; ".join(wrong))


@dataclass(frozen=True)
class RateResult:
    """One rate.

    Attributes:
        judged: requests that count: those after the warm-up.
        latencies: by name (metrics.COLUMNS), of judged requests that completed.
        seconds: of virtual time, from the first arrival to the last end.
        output_tokens: generated in all.
        cpu_seconds: that the simulation took.
    """

    rate: float
    requests: int
    judged: int
    failures: dict[str, int]
    attainment: Attainment
    latencies: dict[str, Spread]
    seconds: float
    output_tokens: int
    steps: int
    cpu_seconds: float
    timeline: Timeline
    occupancy: dict[str, dict[str, float]] = field(default_factory=dict)
    """Means over the time of arrivals, by kind: running, waiting, pages, busy, media, encoding."""


@dataclass(frozen=True)
class StudyResult:
    """All rates of a study, and the goodput: the largest rate with at least 90 % of requests inside both objectives
    (slo.py)."""

    results: tuple[RateResult, ...]
    goodput: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def run_study(study: Study, progress: Progress = lambda *_: None) -> StudyResult:
    """Every rate, one after the other, smallest first."""
    results = tuple(run_rate(study, rate, progress) for rate in sorted(study.rates))
    shares = [result.attainment.both for result in results]
    return StudyResult(results, goodput([result.rate for result in results], shares))


def run_rate(study: Study, rate: float, progress: Progress = lambda *_: None) -> RateResult:
    """One rate on a fresh cluster. Raises StudyError if it comes to a stop, or a process of it does."""
    began = time.process_time()
    span = study.requests / rate
    with rare_collections():
        cluster = make_cluster(study)
        gc.freeze()  # ten thousand instances are millions of objects that live as long as the study
        outcome = cluster.run(
            islice(study.workload.arrivals(rate), study.requests),
            sample=span / SAMPLES,
            progress=lambda now, submitted, ended: progress(rate, now, submitted, ended),
            every=max(span / 50, 0.05),
        )
    requests = outcome.requests
    arrived = sorted(requests.column("at"))
    first = float(arrived[int(len(arrived) * study.warmup)])
    judged = requests.column("at") >= first
    spreads = {name: spread(requests.column(name)[judged]) for name in STAGES}
    output = requests.column("output")
    return RateResult(
        rate=rate,
        requests=len(requests),
        judged=int(judged.sum()),
        failures=dict(requests.failures),
        attainment=attainment(requests, study.slo, first),
        latencies={name: value for name, value in spreads.items() if value is not None},
        seconds=outcome.seconds,
        output_tokens=int(np.nansum(output)),
        steps=sum(sum(steps) for steps in outcome.steps.values()),
        cpu_seconds=time.process_time() - began + outcome.elsewhere,
        timeline=outcome.timeline,
        occupancy=_means(outcome.timeline, float(arrived[-1])),
    )


def make_cluster(study: Study) -> StudyCluster | SplitCluster:
    """A fresh cluster with a fresh scheduler, in as many processes as the study asks for."""
    config = SchedulerConfig(max_queued=study.max_queued, max_active=1 << 30, heartbeat_interval=study.heartbeat)
    scheduler = Scheduler(config, ROUTERS[study.router](), QUEUE_ORDERS[study.queue_order]())
    keywords = {"heartbeat": study.heartbeat, "leaps": study.leaps}
    if study.jobs == 2:
        return SplitCluster(study.kinds, scheduler, study.delays, study.seed, **keywords)
    return StudyCluster(study.kinds, scheduler, study.delays, TokenSource(study.seed), **keywords)


def _means(timeline: Timeline, until: float) -> dict[str, dict[str, float]]:
    """Of the samples after the first and before arrivals ended: later the cluster only empties."""
    count = sum(1 for at in timeline.times if at <= until)
    out: dict[str, dict[str, float]] = {}
    for kind, samples in timeline.kinds.items():
        rows: Sequence[Any] = samples[1:count] or samples
        out[kind] = {
            name: sum(getattr(row, name) for row in rows) / len(rows)
            for name in ("running", "waiting", "pages", "busy", "media", "encoding")
        }
    return out
