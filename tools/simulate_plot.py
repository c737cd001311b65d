"""Pictures of a study: attainment against rate, where a request's time goes, and how full the cluster was at the
largest rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.simulation.slo import SHARE
from triptych.runtime.simulation.study import Study, StudyResult

STAGES = ("queue", "wait", "prefill", "transfer")


def check() -> None:
    """Raises ConfigError, with what to do, if nothing can be drawn here."""
    try:
        import matplotlib.figure  # pyright: ignore[reportMissingImports]  # noqa: F401
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install 'triptych[plot]'") from error


def draw(path: Path, study: Study, result: StudyResult) -> None:
    """One file with four panels."""
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    figure = Figure(figsize=(13, 9), layout="constrained")
    (attained, stages), (queue, full) = figure.subplots(2, 2)
    rates = [r.rate for r in result.results]
    _attainment(attained, rates, result)
    _stages(stages, rates, result)
    _timeline(queue, full, result)
    instances = ", ".join(f"{kind.count} {kind.name}" for kind in study.kinds)
    figure.suptitle(f"{instances}; {study.workload.source}; {study.requests} requests a rate; router {study.router}")
    figure.savefig(path, dpi=120)


def _attainment(axes: Any, rates: list[float], result: StudyResult) -> None:
    for name in ("ttft", "tpot", "both"):
        axes.plot(
            rates,
            [getattr(r.attainment, name) for r in result.results],
            marker="o",
            label=name.upper() if name != "both" else name,
        )
    axes.axhline(SHARE, color="grey", linestyle=":", label=f"{SHARE:.0%}")
    if result.goodput is not None:
        axes.axvline(result.goodput, color="grey", linestyle="--", label=f"goodput {result.goodput:g}")
    axes.set(xlabel="requests a second", ylabel="share inside the objective", ylim=(0, 1.02))
    _finish(axes)


def _stages(axes: Any, rates: list[float], result: StudyResult) -> None:
    for name in (*STAGES, "ttft"):
        means = [r.latencies[name].mean * 1e3 if name in r.latencies else float("nan") for r in result.results]
        axes.plot(
            rates,
            means,
            marker="o",
            label=name.upper() if name == "ttft" else name,
            linewidth=2.5 if name == "ttft" else 1.2,
        )
    axes.set(xlabel="requests a second", ylabel="mean milliseconds (transfer overlaps prefill)")
    _finish(axes)


def _timeline(queue: Any, full: Any, result: StudyResult) -> None:
    last = result.results[-1]
    line = last.timeline
    queue.plot(line.times, line.queued, label="waiting in the scheduler")
    queue.plot(line.times, line.active, label="placed")
    queue.set(xlabel=f"virtual seconds, at {last.rate:g} requests a second", ylabel="requests")
    _finish(queue)
    for kind, samples in line.kinds.items():
        full.plot(line.times, [s.busy for s in samples], label=f"{kind}: device busy")
        full.plot(line.times, [s.pages for s in samples], linestyle="--", label=f"{kind}: KV pages held")
    full.set(xlabel=f"virtual seconds, at {last.rate:g} requests a second", ylabel="share", ylim=(0, 1.02))
    _finish(full)


def _finish(axes: Any) -> None:
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
