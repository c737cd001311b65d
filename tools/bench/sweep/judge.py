"""From what the client saw at one rate to a point of a curve. Pure functions; times are seconds.

TTFT, TPOT and what meets them are those of tools/bench/metrics.py (and of the simulator's slo.py): a request that failed
or had not ended meets none, one with a single token has no TPOT to miss. Judged are requests that were due after the
warm-up. Throughput is tokens that came in the judged window, whoever's they were, over the window: what drains later
does not dilute it. A request that got no first token before it was ended has waited at least so long: that counts as
its TTFT (`censored` says how many), or the slowest would be missing from the percentiles. Refused requests have none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from triptych.runtime.core.errors import Status
from triptych.runtime.simulation.slo import Slo
from triptych.tools.bench.metrics import Record, Spread, meets, spread

UNFINISHED = Status.DEADLINE_EXCEEDED.name
LATE_SHARE = (
    0.05  # of the TTFT objective that the load generator may be late: a tenth of what bisection resolves, and less
)
LATE_FLOOR = 0.005  # seconds; timers of a busy machine are no better


@dataclass(frozen=True)
class Moved:
    """What moved between instances while the point was measured, by the workers' counters: bytes of KV and embeddings, seconds in
    which KV was under way, and those of them after the prompt's last step; `transfer` is the median request's pull."""

    kv_bytes: int = 0
    kv_seconds: float = 0.0
    kv_exposed_seconds: float = 0.0
    media_bytes: int = 0
    transfer: float | None = None


@dataclass(frozen=True)
class Window:
    """What is judged: all requests but the first `warm`, which are due in the `seconds` from `begin` on, after the start."""

    warm: int
    begin: float
    seconds: float


@dataclass(frozen=True)
class Point:
    """One rate of one topology. Names that `bench-pareto` reads are those of `triptych bench --json`.

    Attributes:
        rate: as asked for; `offered`: requests that were due in the window, a second.
        valid: whether the load generator kept time; `why` not.
        send_lag, loop_lag: 99th percentiles of how late requests were sent, and of how late its event loop ran anything.
        attainment: share of the judged requests inside both objectives; ttft_met and tpot_met of each alone.
        request_rate: judged requests that were completed, a second of the window.
        output_token_rate: tokens that came in the window, a second.
        failures: by status, those that only had not ended apart (`unfinished`).
        moved, compiled, preemptions: of all workers meanwhile; None if one did not say. A program that was compiled disturbs.
        rows: of the judged requests, in the order of the load.
    """

    rate: float
    offered: float
    seconds: float
    requests: int
    completed: int
    valid: bool
    why: str
    send_lag: float
    loop_lag: float
    attainment: float
    ttft_met: float
    tpot_met: float
    request_rate: float
    output_token_rate: float
    latencies: dict[str, Spread]
    censored: int
    unfinished: int
    failures: dict[str, int]
    moved: Moved | None = None
    compiled: int | None = None
    preemptions: int | None = None
    rows: tuple[Mapping[str, Any], ...] = ()


def most_lag(slo: Slo) -> float:
    """How late the load generator may be for its points to count."""
    return max(LATE_FLOOR, LATE_SHARE * (slo.ttft or 0.0))


def objectives(slo: Slo) -> dict[str, float]:
    """As metrics.meets takes them."""
    return {name: value for name, value in (("ttft", slo.ttft), ("tpot", slo.tpot)) if value is not None}


def judge(
    rate: float,
    records: Sequence[Record],
    start: float,
    window: Window,
    slo: Slo,
    lag: float,
    loop_lags: Sequence[float],
) -> Point:
    """The point of `records`, all requests in their order of a run that began at `start` (on the records' clock). `lag`: the most that the
    generator may be late; `loop_lags`: how late its event loop was, sampled. Raises ValueError if nothing is to be judged."""
    judged = records[window.warm :]
    if not judged:
        raise ValueError(f"{len(records)} requests were sent, of which {window.warm} warmed up: nothing to judge")
    wanted = objectives(slo)
    send_lag = float(np.percentile([record.sent - record.scheduled for record in records], 99))
    loop_lag = float(np.percentile(loop_lags, 99)) if loop_lags else 0.0
    late = max(send_lag, loop_lag)
    begin, end = start + window.begin, start + window.begin + window.seconds
    tokens = sum(a.tokens for record in records for a in record.arrivals if begin <= a.at < end)
    done = [record for record in judged if record.ok]
    ttft = [t for record in judged if (t := waited(record)) is not None]
    tpot = [record.tpot for record in judged if record.tpot is not None]
    failures = Counter(record.status for record in judged if not record.ok)
    unfinished = failures.pop(UNFINISHED, 0)
    return Point(
        rate=rate,
        offered=len(judged) / window.seconds,
        seconds=window.seconds,
        requests=len(judged),
        completed=len(done),
        valid=late <= lag,
        why="" if late <= lag else f"the load generator was {late * 1e3:.0f} ms late, more than {lag * 1e3:.0f} ms",
        send_lag=send_lag,
        loop_lag=loop_lag,
        attainment=_share(judged, wanted),
        ttft_met=_share(judged, {k: v for k, v in wanted.items() if k == "ttft"}),
        tpot_met=_share(judged, {k: v for k, v in wanted.items() if k == "tpot"}),
        request_rate=len(done) / window.seconds,
        output_token_rate=tokens / window.seconds,
        latencies={name: s for name, values in (("ttft", ttft), ("tpot", tpot)) if (s := spread(values)) is not None},
        censored=sum(not record.arrivals and record.status == UNFINISHED for record in judged),
        unfinished=unfinished,
        failures=dict(failures),
        rows=tuple(
            {"met": meets(record, wanted), "ttft": waited(record), "tpot": record.tpot, "input": record.input_tokens,
             "output": record.output_tokens, "status": record.status, "reason": record.reason}
            for record in judged
        ),
    )  # fmt: skip


def waited(record: Record) -> float | None:
    """TTFT; of a request that was ended before its first token, how long it had waited; None if it was refused."""
    if record.ttft is None and record.status == UNFINISHED:
        return record.ended - record.sent
    return record.ttft


def _share(records: Sequence[Record], wanted: dict[str, float]) -> float:
    return sum(meets(record, wanted) for record in records) / len(records)
