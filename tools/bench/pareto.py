"""`triptych bench-pareto`: what deployments of equally many devices give a user against what they give a device.

Each load of each deployment is a point: output tokens a second and device, and tokens a second that one user sees (one over the median TPOT). A point that
another one beats in both is not worth running. The points are those of `triptych bench --json`, a file for each rate, or of
`triptych bench-sweep --json`, which has all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from triptych.runtime.core.errors import ConfigError
from triptych.tools.reports import check_outputs


@dataclass(frozen=True)
class Point:
    """One load of one deployment. `per_device` and `per_user` are tokens a second; `attainment` the share of requests that met the objectives, if some were set."""

    deployment: str
    rate: float
    per_device: float
    per_user: float
    ttft: float
    failed: int
    attainment: float | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="NAME[:DEVICES]=FILE[,FILE...]", help="reports of `triptych bench --json`, one for each rate, of a deployment; it has --devices devices unless it says otherwise; or a report of `triptych bench-sweep --json`, as SWEEP.json or LOAD@SWEEP.json"
    )  # fmt: skip
    parser.add_argument("--devices", type=int, default=1, help="devices of each deployment (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the points as JSON")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw them (needs matplotlib)")


def run(args: argparse.Namespace) -> int:
    check_outputs(args.json, args.plot)
    points = [point for text in args.runs for point in read_runs(text, args.devices)]
    best = front(points)
    print(table(points, best))
    if args.json is not None:
        rows = [asdict(point) | {"on_front": point in best} for point in points]
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if args.plot is not None:
        draw(points, best, args.plot)
    if failed := sum(point.failed for point in points):
        print(f"{failed} requests failed; a point with failures says less than it seems to", file=sys.stderr)
    return 0


def read_runs(text: str, devices: int) -> list[Point]:
    """The points of one deployment, by rate. Raises ConfigError for a file that is no report."""
    load, at, sweep = text.rpartition("@")
    if (at or "=" not in text) and Path(sweep).is_file():
        return _read_sweep(sweep, load or None)
    name, equals, files = text.partition("=")
    name, colon, own = name.partition(":")
    if not equals or not name or not files or (colon and not (own.isdecimal() and int(own))) or devices < 1:
        raise ConfigError(f"{text!r}: expected NAME=FILE,FILE or NAME:DEVICES=FILE,FILE, and at least one device")
    points = []
    for file in files.split(","):
        try:
            report = json.loads(Path(file).read_text(encoding="utf-8"))
            points += [_point(name, run["summary"], int(own) if own else devices) for run in report["runs"].values()]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{file} is no report of `triptych bench --json`: {type(error).__name__}: {error}"
            ) from error
    return sorted(points, key=lambda point: point.rate)


def _read_sweep(file: str, load: str | None) -> list[Point]:
    try:
        report = json.loads(Path(file).read_text(encoding="utf-8"))
        known = [one["name"] for one in report["loads"]]
        if load is None and len(known) > 1:
            raise ValueError(f"it has several loads, {', '.join(known)}: name one as LOAD@{file}")
        if load is not None and load not in known:
            raise ValueError(f"it has no load {load!r}, but {', '.join(known)}")
        return sweep_points(report, load or known[0])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ConfigError(
            f"{file} is no report of `triptych bench-sweep --json`: {type(error).__name__}: {error}"
        ) from error


def sweep_points(report: dict[str, Any], load: str) -> list[Point]:
    """The valid points of one load of a sweep, by topology and rate."""
    points: list[Point] = []
    for row in report["topologies"]:
        own = [one for one in row["loads"].get(load, {"points": []})["points"] if one["valid"]]
        points += [
            _point(row["name"], one, row["devices"])
            for one in sorted(own, key=lambda one: one["rate"])
            if {"ttft", "tpot"} <= one["latencies"].keys()
        ]
    return points


def _point(name: str, summary: dict[str, Any], devices: int) -> Point:
    if "tpot" not in summary["latencies"]:
        raise ValueError("no request gave two tokens, so none has a TPOT")
    return Point(
        name,
        summary["request_rate"],
        summary["output_token_rate"] / devices,
        1.0 / summary["latencies"]["tpot"]["p50"],
        summary["latencies"]["ttft"]["p50"],
        summary["requests"] - summary["completed"],
        summary["attainment"],
    )


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other point beats in both, from the fastest for users on. Of equal ones the first counts."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.per_user, -p.per_device)):
        if not kept or point.per_device > kept[-1].per_device:
            kept.append(point)
    return kept


def table(points: Sequence[Point], best: Sequence[Point]) -> str:
    """A line a point; those of the front have a star."""
    lines = [f"{'':<24}{'req/s':>9}{'tok/s/device':>14}{'tok/s/user':>12}{'TTFT ms':>9}{'met':>8}{'failed':>8}"]
    for p in points:
        met = "-" if p.attainment is None else f"{p.attainment:.1%}"
        lines.append(
            f"{('* ' if p in best else '  ') + p.deployment:<24}{p.rate:>9.2f}{p.per_device:>14.1f}{p.per_user:>12.1f}{p.ttft * 1e3:>9.0f}{met:>8}{p.failed:>8}"
        )
    return "\n".join([*lines, "* no other point has more of both"])


def draw(points: Sequence[Point], best: Sequence[Point], path: Path) -> None:
    """Each deployment's loads as a line, and the front behind them."""
    try:
        from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install 'triptych[plot]'") from error
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([p.per_user for p in best], [p.per_device for p in best], color="lightgrey", linewidth=6, label="front")
    for name in dict.fromkeys(p.deployment for p in points):
        own = [p for p in points if p.deployment == name]
        axes.plot([p.per_user for p in own], [p.per_device for p in own], marker="o", label=name)
    axes.set(xlabel="tokens/s a user (1 / median TPOT)", ylabel="output tokens/s a device")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
