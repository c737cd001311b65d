"""`triptych simulate --encoders 1,2,4`: the same load on a cluster with so many encode instances, to see how one request's
images fan out over them: what encoding adds to TTFT, against the n-th part of what one instance needs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.core.topology import parse
from triptych.runtime.simulation.study import RateResult, Study, run_rate

PARTS = ("encode_wait", "encode", "feed")


@dataclass(frozen=True)
class FanOut:
    """Results by number of encode instances, ascending."""

    rate: float
    results: dict[int, RateResult]

    def median(self, count: int, name: str) -> float:
        """Of requests with images; NaN where none has such a number."""
        spread = self.results[count].latencies.get(name)
        return math.nan if spread is None else spread.p50

    def relative(self, count: int) -> float:
        """Waiting for embeddings, times that with the fewest instances."""
        return self.median(count, "gather") / self.median(min(self.results), "gather")


def run_fan_out(
    args: argparse.Namespace, make_study: Callable[[argparse.Namespace], tuple[Study, float | None]]
) -> FanOut:
    """One study for each number in `args.encoders`, at the first rate. Raises ConfigError for a topology that has an E."""
    if any(Role.ENCODE in group.roles for group in parse(args.topology).groups):
        raise ConfigError(
            f"--encoders adds encode instances to --topology, which is {args.topology}: leave E out there"
        )
    if not args.image_share:
        raise ConfigError("--encoders needs requests with images: --image-share")
    results: dict[int, RateResult] = {}
    for count in sorted(args.encoders):
        values = {**vars(args), "topology": f"{count}E{args.topology}"}
        study, _ = make_study(argparse.Namespace(**values))
        results[count] = run_rate(study, min(study.rates))
    return FanOut(min(args.rate), results)


def table(fan_out: FanOut) -> str:
    """A line a number of instances."""
    names = ("encoders", "TTFT", "gather", "enc wait", "encode", "E to P", "of TTFT", "gather/first", "1/n")
    head = "".join(f"{name:>{width}}" for name, width in zip(names, (8, 9, 9, 10, 9, 9, 9, 14, 8), strict=True))
    lines = [f"{head}   medians, milliseconds"]
    fewest = min(fan_out.results)
    for count in fan_out.results:
        times = [fan_out.median(count, name) * 1e3 for name in ("ttft", "gather", *PARTS)]
        cells = "".join(f"{value:>{width}.1f}" for value, width in zip(times, (9, 9, 10, 9, 9), strict=True))
        share = f"{fan_out.median(count, 'share'):>9.1%}{fan_out.relative(count):>14.3f}{fewest / count:>8.3f}"
        lines.append(f"{count:>8}{cells}{share}")
    return "\n".join(lines)


def draw(path: Path, fan_out: FanOut) -> None:
    """What encoding adds to TTFT against the number of instances."""
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    figure = Figure(figsize=(10, 4), layout="constrained")
    times, shares = figure.subplots(1, 2)
    counts = list(fan_out.results)
    places, bottom = range(len(counts)), [0.0] * len(counts)
    for name, label in zip(PARTS, ("wait for pixels and room", "encode", "E to P, after that"), strict=True):
        heights = [fan_out.median(count, name) * 1e3 for count in counts]
        times.bar(places, heights, bottom=bottom, label=label, width=0.6)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    first = fan_out.median(counts[0], "gather") * 1e3
    times.plot(places, [first * counts[0] / n for n in counts], color="black", marker="_", linestyle=":", label="1/n")
    times.set(xlabel="encode instances", ylabel="milliseconds of TTFT", xticks=list(places))
    shares.plot(places, [fan_out.median(n, "share") for n in counts], marker="o", label="of TTFT")
    shares.plot(places, [fan_out.relative(n) for n in counts], marker="o", label=f"of what {counts[0]} need")
    shares.plot(places, [counts[0] / n for n in counts], color="black", linestyle=":", label="1/n")
    shares.set(xlabel="encode instances", ylabel="share", ylim=(0, 1.02), xticks=list(places))
    for axes in (times, shares):
        axes.set_xticklabels(map(str, counts))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
