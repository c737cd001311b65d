"""What is kept of a simulated run: a few numbers a request in flat columns (a million requests take some 100 MB), and
occupancy over time.

Times are seconds of virtual time. Definitions are those of tools/bench/metrics.py: TTFT from arrival at the gateway to
the first token there, TPOT = (last token - first token) / (outputs - 1), one value a request. The stages of a request,
in order: queue (waiting in the scheduler), gather (waiting for embeddings beside the queue of the instance that
prefills), wait (in that queue), prefill (first chunk to last), transfer (the pull, which overlaps prefill).

What happens during `gather`: encode_wait and encode (of a request's encode tasks the longest: until all its items have room,
and from then until they are encoded) and feed (from the end of the last encode until the embeddings are where the prompt
is). `share` is the part of TTFT from the moment when embeddings are missed until they are there.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (50, 90, 99)
COLUMNS = (
    "at",
    "ttft",
    "tpot",
    "e2e",
    "queue",
    "wait",
    "prefill",
    "transfer",
    "gather",
    "encode_wait",
    "encode",
    "feed",
    "share",
    "prompt",
    "output",
    "cached",
    "preemptions",
)


class Requests:
    """Columns of finished requests, in order of their ends. NaN where a request has no such number (TPOT of one token,
    anything of a failed one)."""

    def __init__(self) -> None:
        self._columns = {name: array("d") for name in COLUMNS}
        self.failures: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._columns["at"])

    def add(self, **values: float) -> None:
        """One request that completed; names as in COLUMNS."""
        for name, column in self._columns.items():
            column.append(values.get(name, math.nan))

    def fail(self, at: float, status: str) -> None:
        """One request that was refused or failed."""
        self.add(at=at)
        self.failures[status] += 1

    def column(self, name: str) -> NDArray[np.float64]:
        return np.frombuffer(self._columns[name], dtype=np.float64) if len(self) else np.empty(0)


@dataclass(frozen=True)
class Spread:
    """Distribution of one number; percentiles interpolate linearly."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


def spread(values: NDArray[np.float64] | Sequence[float]) -> Spread | None:
    """The distribution of what is not NaN; None when nothing is left."""
    numbers = np.asarray(values, dtype=np.float64)
    numbers = numbers[~np.isnan(numbers)]
    if not len(numbers):
        return None
    p50, p90, p99 = (float(v) for v in np.percentile(numbers, PERCENTILES))
    return Spread(len(numbers), float(numbers.mean()), p50, p90, p99, float(numbers.max()))


@dataclass(frozen=True)
class Occupancy:
    """How full the instances of one kind were at one moment: means over them (over evenly chosen 256 if there are
    more).

    Attributes:
        running, waiting: sequences in steps, and queued for a prompt's computation.
        pages: share of KV pages that are neither free nor merely cached.
        busy: share of the time since the last sample in which the device computed.
        media: share of pages of embeddings that are neither free nor merely cached.
        encoding: patches that wait to be encoded.
    """

    running: float
    waiting: float
    pages: float
    busy: float
    media: float = 0.0
    encoding: float = 0.0


@dataclass(frozen=True, slots=True)
class Sighting:
    """One instance at one moment.

    Attributes:
        number: orders the instances of a cluster.
        pages: share of KV pages that are neither free nor merely cached.
        computed: seconds so far in which the device computed.
        media, encoding: see Occupancy.
    """

    number: int
    kind: str
    running: int
    waiting: int
    pages: float
    computed: float
    media: float = 0.0
    encoding: int = 0


@dataclass
class Timeline:
    """Samples of the whole cluster at equal intervals."""

    times: list[float] = field(default_factory=list)
    queued: list[int] = field(default_factory=list)
    active: list[int] = field(default_factory=list)
    kinds: dict[str, list[Occupancy]] = field(default_factory=dict)

    def add(self, now: float, queued: int, active: int, kinds: Mapping[str, Occupancy]) -> None:
        """`queued` requests wait in the scheduler, `active` are placed."""
        self.times.append(now)
        self.queued.append(queued)
        self.active.append(active)
        for kind, occupancy in kinds.items():
            self.kinds.setdefault(kind, []).append(occupancy)

    def mean(self, kind: str, name: str) -> float:
        """Mean over time of one number of one kind; NaN without samples."""
        values = [getattr(sample, name) for sample in self.kinds.get(kind, ())]
        return sum(values) / len(values) if values else math.nan


def timeline(counts: Sequence[tuple[float, int, int]], sightings: Iterable[Sequence[Sighting]]) -> Timeline:
    """From (time, queued, active) and what was seen of instances at the same times; more looks than counts do not
    matter."""
    out, before, since = Timeline(), dict[str, float](), 0.0
    for (now, queued, active), seen in zip(counts, sightings, strict=False):
        kinds: dict[str, list[Sighting]] = {}
        for one in sorted(seen, key=lambda one: one.number):
            kinds.setdefault(one.kind, []).append(one)
        snapshot = {}
        for kind, group in kinds.items():
            n, computed = len(group), sum(one.computed for one in group)
            busy = (computed - before.get(kind, 0.0)) / (n * (now - since)) if now else 0.0
            running, waiting = sum(one.running for one in group), sum(one.waiting for one in group)
            media, encoding = sum(one.media for one in group), sum(one.encoding for one in group)
            snapshot[kind] = Occupancy(
                running / n, waiting / n, sum(one.pages for one in group) / n, busy, media / n, encoding / n
            )
            before[kind] = computed
        since = now
        out.add(now, queued, active, snapshot)
    return out
