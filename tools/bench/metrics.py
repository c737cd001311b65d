"""From the events of each request to latencies, percentiles, throughput and goodput. Pure functions; times are seconds.

Definitions (those of vLLM's and NVIDIA's benchmarks): TTFT runs from sending to the first token at the client. E2E runs from sending to the last
token. TPOT = (E2E - TTFT) / (output tokens - 1), one value a request. ITL is each gap between successive messages with tokens. Goodput
is the rate of requests that met every objective (DistServe, OSDI 2024); a failed request meets none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

OK = "OK"
PERCENTILES = (50, 90, 99)
OBJECTIVES = ("ttft", "tpot", "itl", "e2e")


@dataclass(frozen=True)
class Arrival:
    """One message with tokens: when it came (seconds, any origin that all records share) and how many tokens it held."""

    at: float
    tokens: int


@dataclass(frozen=True)
class Record:
    """What happened to one request. `status` is OK or the name of the error status; `scheduled` is when it should have been sent."""

    scheduled: float
    sent: float
    ended: float
    arrivals: tuple[Arrival, ...]
    input_tokens: int
    status: str = OK
    reason: str = ""

    @property
    def ok(self) -> bool:
        return self.status == OK

    @property
    def output_tokens(self) -> int:
        return sum(a.tokens for a in self.arrivals)

    @property
    def ttft(self) -> float | None:
        return self.arrivals[0].at - self.sent if self.arrivals else None

    @property
    def e2e(self) -> float | None:
        return self.arrivals[-1].at - self.sent if self.arrivals else None

    @property
    def tpot(self) -> float | None:
        """None below two output tokens: there is no gap to measure."""
        if self.output_tokens < 2 or self.e2e is None or self.ttft is None:
            return None
        return (self.e2e - self.ttft) / (self.output_tokens - 1)

    @property
    def itl(self) -> tuple[float, ...]:
        return tuple(b.at - a.at for a, b in zip(self.arrivals, self.arrivals[1:], strict=False))


@dataclass(frozen=True)
class Spread:
    """Distribution of one latency, seconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True)
class Goodput:
    """How one set of objectives was met: by so many requests a second, and by which share of all requests."""

    objectives: dict[str, float]
    goodput: float
    attainment: float


@dataclass(frozen=True)
class Summary:
    """One run. Rates are per second of `duration`: first request sent to last request ended.

    `goodputs` has one entry for each set of objectives; `objectives`, `goodput` and `attainment` are those of the first set.
    """

    requests: int
    completed: int
    duration: float
    input_tokens: int
    output_tokens: int
    request_rate: float
    input_token_rate: float
    output_token_rate: float
    latencies: dict[str, Spread]
    failures: dict[str, int]
    objectives: dict[str, float] = field(default_factory=dict)
    goodput: float | None = None
    attainment: float | None = None
    goodputs: tuple[Goodput, ...] = ()
    max_send_lag: float = 0.0
    """Longest delay between when a request was due and when it was sent; large means the load generator itself was too slow."""


def spread(values: Sequence[float]) -> Spread | None:
    """The distribution of `values`; None when there are none. Percentiles interpolate linearly."""
    if not values:
        return None
    array = np.asarray(values, dtype=np.float64)
    p50, p90, p99 = np.percentile(array, PERCENTILES)
    return Spread(len(values), float(array.mean()), float(p50), float(p90), float(p99), float(array.max()))


def meets(record: Record, objectives: dict[str, float]) -> bool:
    """Whether a request met all objectives. A latency that it does not have (TPOT of a single token) cannot be missed; ITL means its worst gap."""
    if not record.ok:
        return False
    measured = {"ttft": record.ttft, "tpot": record.tpot, "e2e": record.e2e, "itl": max(record.itl, default=None)}
    return all((value := measured[name]) is None or value <= limit for name, limit in objectives.items())


def summarise(records: Sequence[Record], *objectives: dict[str, float]) -> Summary:
    """Everything about one run, judged by each set of objectives. Latencies are those of completed requests; failures are counted by status."""
    if not records:
        raise ValueError("nothing to summarise: no request was sent")
    done = [r for r in records if r.ok]
    duration = max(max(r.ended for r in records) - min(r.sent for r in records), 1e-9)
    samples = {
        "ttft": [r.ttft for r in done if r.ttft is not None],
        "tpot": [r.tpot for r in done if r.tpot is not None],
        "itl": [gap for r in done for gap in r.itl],
        "e2e": [r.e2e for r in done if r.e2e is not None],
    }
    goodputs: list[Goodput] = []
    for wanted in filter(None, objectives):
        good = sum(meets(r, wanted) for r in records)
        goodputs.append(Goodput(dict(wanted), good / duration, good / len(records)))
    first = goodputs[0] if goodputs else None
    inputs, outputs = sum(r.input_tokens for r in done), sum(r.output_tokens for r in done)
    return Summary(
        requests=len(records),
        completed=len(done),
        duration=duration,
        input_tokens=inputs,
        output_tokens=outputs,
        request_rate=len(done) / duration,
        input_token_rate=inputs / duration,
        output_token_rate=outputs / duration,
        latencies={name: s for name, values in samples.items() if (s := spread(values)) is not None},
        failures=dict(Counter(r.status for r in records if not r.ok)),
        objectives=first.objectives if first else {},
        goodput=first.goodput if first else None,
        attainment=first.attainment if first else None,
        goodputs=tuple(goodputs),
        max_send_lag=max(r.sent - r.scheduled for r in records),
    )


def parse_objectives(texts: Sequence[str]) -> dict[str, float]:
    """One set of objectives such as ttft:0.2 tpot:0.02 (seconds).

    Raises ValueError for another name, one that comes twice, or a limit that is not positive.
    """
    objectives: dict[str, float] = {}
    for text in texts:
        name, _, limit = text.partition(":")
        name = "e2e" if name == "e2el" else name  # vLLM's spelling
        if name not in OBJECTIVES:
            raise ValueError(
                f"objective {text!r}: {name!r} is not one of {', '.join(OBJECTIVES)}; write for example ttft:0.2 tpot:0.02"
            )
        if name in objectives:
            raise ValueError(f"objective {text!r}: {name} has a limit already; a second set is a second --goodput")
        try:
            objectives[name] = float(limit)
        except ValueError:
            raise ValueError(f"objective {text!r}: {limit!r} is not a number of seconds") from None
        if not objectives[name] > 0:
            raise ValueError(f"objective {text!r}: the limit must be positive seconds")
    return objectives
