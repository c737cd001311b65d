"""Summaries as a table, as JSON and, where matplotlib is installed, as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from triptych.runtime.core.errors import ConfigError
from triptych.tools.bench.compare import Ratio
from triptych.tools.bench.metrics import Record, Summary

_NAMES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E"}


def table(summary: Summary) -> str:
    """A run in a dozen lines; latencies in milliseconds."""
    lines = [
        f"requests {summary.requests}, completed {summary.completed}, failed {summary.requests - summary.completed}, {summary.duration:.2f} s",
        f"throughput {summary.request_rate:.2f} req/s, {summary.input_token_rate:.1f} tok/s in, {summary.output_token_rate:.1f} tok/s out",
    ]
    for met in summary.goodputs:
        wanted = ", ".join(f"{_NAMES[n]} <= {limit:g} s" for n, limit in met.objectives.items())
        lines.append(f"goodput {met.goodput:.2f} req/s ({met.attainment:.1%} of requests met {wanted})")
    for status, count in sorted(summary.failures.items()):
        lines.append(f"failed with {status}: {count}")
    if summary.max_send_lag > 0.05:
        lines.append(
            f"warning: requests were sent up to {summary.max_send_lag * 1e3:.0f} ms late; this machine cannot generate the load in time"
        )
    lines += ["", f"{'ms':<6}{'p50':>10}{'p90':>10}{'p99':>10}{'mean':>10}{'max':>10}{'count':>9}"]
    for name, s in summary.latencies.items():
        cells = "".join(f"{v * 1e3:>10.2f}" for v in (s.p50, s.p90, s.p99, s.mean, s.max))
        lines.append(f"{_NAMES[name]:<6}{cells}{s.count:>9}")
    return "\n".join(lines)


def ratio_table(ratios: Sequence[Ratio], a: str, b: str) -> str:
    """What B costs over A; below 1 is less."""
    lines = [f"A = {a}", f"B = {b}", "", f"{'':<22}{'A':>12}{'B':>12}{'B/A':>9}   over rounds"]
    for r in ratios:
        scale, unit = (1e3, " ms") if r.latency else (1.0, "")
        lines.append(
            f"{r.name + unit:<22}{r.a * scale:>12.2f}{r.b * scale:>12.2f}{r.ratio:>9.3f}   {r.low:.3f} .. {r.high:.3f}"
        )
    return "\n".join(lines)


def as_json(
    settings: Mapping[str, Any], runs: Mapping[str, tuple[Summary, Sequence[Record]]], ratios: Sequence[Ratio] = ()
) -> str:
    """Settings, summaries, ratios, and one row per request (times relative to the run's first send)."""
    out: dict[str, Any] = {"settings": dict(settings), "runs": {}, "ratios": [asdict(r) for r in ratios]}
    for name, (summary, records) in runs.items():
        origin = min(r.sent for r in records)
        rows = [
            {
                "sent": r.sent - origin,
                "ttft": r.ttft,
                "tpot": r.tpot,
                "e2e": r.e2e,
                "input_tokens": r.input_tokens,
                "output_tokens": r.output_tokens,
                "status": r.status,
                "reason": r.reason,
            }
            for r in records
        ]
        out["runs"][name] = {"summary": asdict(summary), "requests": rows}
    return json.dumps(out, indent=1) + "\n"


def plot(path: Path, runs: Mapping[str, Sequence[Record]]) -> None:
    """Cumulative distributions of TTFT, TPOT and ITL as a picture. Raises ConfigError without matplotlib."""
    try:
        from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install 'triptych[plot]'") from error
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, name in zip(panels, ("ttft", "tpot", "itl"), strict=True):
        for label, records in runs.items():
            values = [getattr(r, name) for r in records if r.ok]
            flat = sorted(
                v for value in values if value is not None for v in (value if isinstance(value, tuple) else (value,))
            )
            axes.step(
                [v * 1e3 for v in flat], [(i + 1) / len(flat) for i in range(len(flat))], where="post", label=label
            )
        axes.set(xlabel=f"{_NAMES[name]} (ms)", ylabel="share of values", ylim=(0, 1))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
