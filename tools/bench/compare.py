"""Two servers, the same load, in turns: A B, B A, A B, ... so that drift of the machine hits both alike."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from triptych.tools.bench.metrics import Record, Summary

_LATENCIES = (("TTFT", "ttft"), ("TPOT", "tpot"), ("ITL", "itl"), ("E2E", "e2e"))
_QUANTILES = ("p50", "p90", "p99")


@dataclass(frozen=True)
class Ratio:
    """One figure on both sides: medians over the rounds, and the ratio B/A of each round as median, lowest and highest."""

    name: str
    a: float
    b: float
    ratio: float
    low: float
    high: float
    latency: bool


async def interleave(
    run_a: Callable[[], Awaitable[list[Record]]], run_b: Callable[[], Awaitable[list[Record]]], rounds: int
) -> tuple[list[list[Record]], list[list[Record]]]:
    """Run both `rounds` times, swapping who goes first each round; never both at once."""
    a: list[list[Record]] = []
    b: list[list[Record]] = []
    for number in range(rounds):
        order = ((run_a, a), (run_b, b)) if number % 2 == 0 else ((run_b, b), (run_a, a))
        for run, results in order:
            results.append(await run())
    return a, b


def ratios(a: Sequence[Summary], b: Sequence[Summary]) -> list[Ratio]:
    """B over A for every figure that both sides have in every round. `a[i]` and `b[i]` are one round."""
    if len(a) != len(b) or not a:
        raise ValueError(f"expected as many rounds of A as of B, at least one; got {len(a)} and {len(b)}")
    out = []
    for label, name in _LATENCIES:
        if all(name in s.latencies for s in (*a, *b)):
            for q in _QUANTILES:
                pairs = [
                    (getattr(x.latencies[name], q), getattr(y.latencies[name], q)) for x, y in zip(a, b, strict=True)
                ]
                out += _ratio(f"{label} {q}", pairs, latency=True)
    out += _ratio("req/s", [(x.request_rate, y.request_rate) for x, y in zip(a, b, strict=True)], latency=False)
    out += _ratio(
        "output tok/s", [(x.output_token_rate, y.output_token_rate) for x, y in zip(a, b, strict=True)], latency=False
    )
    return out


def _ratio(name: str, pairs: Sequence[tuple[float, float]], *, latency: bool) -> list[Ratio]:
    if any(x <= 0 for x, _ in pairs):
        return []
    each = sorted(y / x for x, y in pairs)
    median_a, median_b = statistics.median(x for x, _ in pairs), statistics.median(y for _, y in pairs)
    return [Ratio(name, median_a, median_b, statistics.median(each), each[0], each[-1], latency)]
