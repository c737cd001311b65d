"""A sweep as tables, and as JSON that is written again whenever something was added to it."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from triptych.runtime.core.errors import ConfigError
from triptych.tools.bench import pareto

Report = dict[str, Any]

COMPARED = ("kind", "model", "devices", "device", "loads", "plan")
"""What must be the same in sweeps whose points are compared."""

HEAD = (
    f"{'':<22}{'req/s':>8}{'sent':>8}{'in both':>8}{'TTFT p50':>10}{'p90':>8}{'p99':>8}{'TPOT p50':>10}{'p90':>8}{'p99':>8}"
    f"{'tok/s/dev':>11}{'tok/s/user':>11}{'failed':>7}{'unended':>8}{'KV MB':>9}{'exposed':>9}{'lag':>7}"
)


def write_json(path: Path, report: Report) -> None:
    """Whole or not at all: who reads meanwhile, or after a kill, finds the last complete one."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def kept(path: Path, report: Report, names: Collection[str]) -> list[Report]:
    """Topologies that an earlier sweep wrote to `path`, without those of `names`, to which `report` is about to add its own.

    Raises ConfigError if it is no sweep, or one of another model, of other loads or other points: those cannot be compared.
    """
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        new = json.loads(json.dumps(report))
        if other := [name for name in COMPARED if old[name] != new[name]]:
            shown = "; ".join(f"{name} {old[name]}, now {new[name]}" for name in other)
            raise ConfigError(f"{path} is of another sweep: {shown}")
        return [row for row in old["topologies"] if row["name"] not in names]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no report of `triptych bench-sweep --json`: {type(error).__name__}: {error}"
        ) from error


def tables(report: Report) -> str:
    """For each load goodput by topology, every point, the front, and what is lost against the monolith."""
    rows = report.get("topologies", [])
    parts = [f"{row['name']}: FAILED: {row['failed']}" for row in rows if row["failed"]]
    for load in report["loads"]:
        if any(load["name"] in row["loads"] for row in rows):
            parts.append("\n".join(_load(report, rows, load)))
    if missing := report.get("not_started", []):
        parts.append(f"not started: {', '.join(missing)}")
    return "\n\n".join(parts)


def _load(report: Report, rows: Sequence[Report], load: Report) -> list[str]:
    name = load["name"]
    own = [(row, row["loads"][name]) for row in rows if name in row["loads"]]
    slo = " and ".join(f"{n.upper()} <= {load[n]:g} s" for n in ("ttft", "tpot") if load[n] is not None)
    lines = [f"{name}: {report['devices']} devices each; objectives {slo}; times in ms at the client"]
    for note in dict.fromkeys(found["note"] for _, found in own if found["note"]):
        lines.append(f"  {note}")
    for row, found in own:
        lines.append(f"{row['name']:<22}goodput {goodput(found)}")
    lines += ["", HEAD]
    for row, found in own:
        lines += [_point(row["name"], point) for point in sorted(found["points"], key=lambda p: p["rate"])]
        if found["not_measured"]:
            rates = ", ".join(f"{rate:.4g}" for rate in found["not_measured"])
            lines.append(f"{row['name']:<22}not measured: {rates} req/s")
    points = pareto.sweep_points(report, name)
    if points:
        lines += ["", pareto.table(points, pareto.front(points))]
    lost = [_lost(one) for one in report.get("against_monolith", []) if one["load"] == name]
    return [*lines, *([""] if lost else []), *lost]


def goodput(found: Report) -> str:
    """What is known of it, and why no more is."""
    if found["goodput"] is None:
        below = found.get("below")
        text = "not known" if below is None else f"less than {below:.4g} req/s"
    else:
        text = f"{found['goodput']:.4g} req/s ({found['goodput_per_device']:.4g} a device)"
        text += f", less than {found['below']:.4g}" if found.get("below") is not None else " or more"
    return f"{text}; {found['ended']}"


def _point(name: str, point: Report) -> str:
    def cells(latency: str, widths: tuple[int, int, int]) -> str:
        values = point["latencies"].get(latency)
        texts = ["-"] * 3 if values is None else [f"{values[q] * 1e3:.1f}" for q in ("p50", "p90", "p99")]
        return "".join(f"{text:>{width}}" for text, width in zip(texts, widths, strict=True))

    user, moved = point["tokens_per_user"], point["moved"]
    megabytes = "?" if moved is None else f"{moved['kv_bytes'] / 1e6:.1f}"
    exposed = (
        "-" if not moved or not moved["kv_seconds"] else f"{moved['kv_exposed_seconds'] / moved['kv_seconds']:.0%}"
    )
    line = f"{name:<22}{point['rate']:>8.4g}{point['offered']:>8.4g}{point['attainment']:>8.1%}"
    line += cells("ttft", (10, 8, 8)) + cells("tpot", (10, 8, 8))
    line += f"{point['tokens_per_device']:>11.1f}{'-' if user is None else f'{user:.1f}':>11}"
    line += f"{sum(point['failures'].values()):>7}{point['unfinished']:>8}{megabytes:>9}{exposed:>9}"
    line += f"{max(point['send_lag'], point['loop_lag']) * 1e3:>7.1f}"
    remarks = [] if point["valid"] else [f"NOT VALID: {point['why']}"]
    if point["failures"]:
        remarks.append(", ".join(f"{status} {count}" for status, count in sorted(point["failures"].items())))
    if point["censored"]:
        remarks.append(f"{point['censored']} had no first token at the end: TTFT is at least so much")
    if point["compiled"]:
        remarks.append(f"{point['compiled']} programs were compiled meanwhile")
    return line + ("  " + "; ".join(remarks) if remarks else "")


def _lost(one: Report) -> str:
    text = (
        f"{one['name']} against {one['monolith']} at {one['rate']:.4g} req/s, {one['requests']} requests: "
        f"{one['lost']} inside only there, {one['won']} only here"
    )
    for loss in one["losses"]:
        text += (
            f"; {loss['name'].upper()} slower for {loss['slower']:.0%} "
            f"(times {loss['median']:.2f} in the median, {loss['p90']:.2f} p90, {loss['worst']:.2f} at worst)"
        )
    return text
