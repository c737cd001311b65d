"""What a run found, as tables, as JSON and as a picture. Every figure has its floor, and what the machine's probes reached is above them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from triptych.models.config import ModelConfig
from triptych.runtime.core.errors import ConfigError
from triptych.tools.bench.engine.ceilings import Ceilings
from triptych.tools.bench.engine.figures import Figure, Throughput
from triptych.tools.bench.engine.startup import Start
from triptych.tools.bench.engine.targets import CONTEXT, LOADS, Bound, Bounds, bounds_of


@dataclass
class Run:
    """One run of the command. `failed`: parts that did not get to their end, and why."""

    settings: dict[str, Any]
    config: ModelConfig
    ceilings: Ceilings
    figures: list[Figure] = field(default_factory=list)
    batches: list[Throughput] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def bounds(self) -> Bounds:
        """Those that hold for what was measured: they are for weights and KV in the model's dtype."""
        if {self.settings.get(kind, "auto") for kind in ("weights", "kv_cache_dtype")} != {"auto"}:
            return {}
        bounds = dict(bounds_of(self.config, self.ceilings))
        if self.settings.get("context") != CONTEXT:
            bounds = {key: bound for key, bound in bounds.items() if key[0] != "decode"}
        return bounds


def rows(run: Run) -> list[dict[str, Any]]:
    """Every figure of steps and prompts as one row of plain numbers, times in milliseconds."""
    out = []
    for figure in run.figures:
        floor, host = figure.floor(run.ceilings), figure.host
        bound = run.bounds.get((figure.name, figure.at))
        out.append(
            {
                "figure": figure.name,
                "at": figure.at,
                "note": figure.note,
                "median_ms": figure.median * 1e3,
                "p10_ms": figure.percentile(10) * 1e3,
                "p90_ms": figure.percentile(90) * 1e3,
                "times": len(figure.times),
                "floor_ms": floor * 1e3,
                "over_floor": figure.median / floor,
                "queued_ms": None if figure.queued is None else figure.queued * 1e3,
                "host_ms": None
                if host is None
                else {name: s * 1e3 for name, s in asdict(host).items()} | {"work": host.work * 1e3},
                "host_share": figure.host_share,
                "exposed_share": figure.exposed_share,
                "steps": len(figure.works),
                "weight_mb": sum(work.weight_bytes for work in figure.works) / 1e6,
                "kv_mb": sum(work.kv_bytes for work in figure.works) / 1e6,
                "gflop": sum(work.operations for work in figure.works) / 1e9,
            }
            | _judged(bound, figure.median * 1e3)
        )
    return out


def batch_rows(run: Run) -> list[dict[str, Any]]:
    """Every throughput as one row. The bound of "offline" is of output tokens, that of "burst" of all."""
    out = []
    for batch in run.batches:
        floor = batch.floor(run.ceilings)
        known = LOADS.get(batch.name) == (batch.requests, batch.input_tokens, batch.output_tokens)
        bound = run.bounds.get((batch.name, 0)) if known else None
        judged = batch.total_rate if batch.name == "burst" else batch.output_rate
        out.append(
            {
                "figure": batch.name,
                "through": batch.through,
                "requests": batch.requests,
                "input_tokens": batch.input_tokens,
                "output_tokens": batch.output_tokens,
                "seconds": batch.seconds,
                "steps": batch.steps,
                "output_tokens_per_s": batch.output_rate,
                "total_tokens_per_s": batch.total_rate,
                "floor_s": floor,
                "over_floor": None if floor is None else batch.seconds / floor,
                "host_share": None if batch.host is None else batch.host.work / batch.seconds,
            }
            | _judged(bound, judged)
        )
    return out


def start_rows(run: Run) -> list[dict[str, Any]]:
    """Every start as one row, seconds."""
    return [
        asdict(start)
        | {"seconds": start.seconds}
        | _judged(run.bounds.get(("start", int(start.kind == "warm"))), start.seconds)
        for start in run.starts
    ]


def _judged(bound: Bound | None, value: float) -> dict[str, Any]:
    if bound is None:
        return {"must": None, "stretch": None, "met": None}
    return {"must": bound.must, "stretch": bound.stretch, "met": bound.met(value)}


def as_json(run: Run) -> dict[str, Any]:
    """Everything as plain data."""
    return {
        "settings": run.settings,
        "model": run.config.name,
        "ceilings": asdict(run.ceilings),
        "steps": rows(run),
        "batches": batch_rows(run),
        "starts": start_rows(run),
        "failed": run.failed,
    }


def tables(run: Run) -> str:
    """For people."""
    lines = [
        f"{run.settings.get('model')} ({run.settings.get('dtype')}, attention {run.settings.get('attention')}) on {run.ceilings.device}"
    ]
    lines += [f"  {probe.rate / 1e9:9.1f} GB/s     {probe.name}" for probe in run.ceilings.memory]
    lines += [f"  {probe.rate / 1e12:9.2f} TFLOP/s  {probe.name}" for probe in run.ceilings.products]
    if steps := rows(run):
        head = f"{'':<28}{'median':>9}{'p10':>9}{'p90':>9}{'floor':>9}{'ratio':>7}{'queued':>9}{'host':>8}{'share':>7}{'exposed':>9}{'must':>8}{'stretch':>8}"
        lines += ["", "ms", head]
        lines += [_step_line(row) for row in steps]
        lines.append(
            "queued: dispatched far ahead, so the device's time or the host's to dispatch; host: its work for a step; exposed: what reading each step adds to queued"
        )
    if batches := batch_rows(run):
        lines += [
            "",
            f"{'':<34}{'s':>8}{'out tok/s':>11}{'all tok/s':>11}{'floor s':>9}{'ratio':>7}{'host':>7}{'must':>9}{'stretch':>9}",
        ]
        lines += [_batch_line(row) for row in batches]
    for row in start_rows(run):
        phases = ", ".join(f"{name.replace('_', ' ')} {seconds:.1f}" for name, seconds in row["phases"].items())
        cached = f"{row['from_cache']} of {row['programs']} programs from the cache"
        lines += ["", f"{row['kind']} start {row['seconds']:.1f} s{_bound_text(row)}: {phases}; {cached}"]
    lines += ["", *(f"FAILED {part}: {why}" for part, why in run.failed.items())] if run.failed else []
    return "\n".join(lines)


def _step_line(row: dict[str, Any]) -> str:
    name = f"{row['figure']} {row['at']} {row['note']}".strip()
    host = row["host_ms"]
    cells = [
        f"{name:<28}",
        *(f"{row[key]:>9.2f}" for key in ("median_ms", "p10_ms", "p90_ms", "floor_ms")),
        f"{row['over_floor']:>7.2f}",
        _cell(row["queued_ms"], ">9.2f"),
        _cell(None if host is None else host["work"], ">8.2f"),
        _cell(row["host_share"], ">7.1%"),
        _cell(row["exposed_share"], ">9.1%"),
        _cell(row["must"], ">8.1f"),
        _cell(row["stretch"], ">8.1f"),
    ]
    return "".join(cells) + _verdict(row)


def _batch_line(row: dict[str, Any]) -> str:
    name = f"{row['figure']} {row['requests']}x{row['input_tokens']}x{row['output_tokens']} {row['through']}"
    cells = [
        f"{name:<34}{row['seconds']:>8.2f}{row['output_tokens_per_s']:>11.0f}{row['total_tokens_per_s']:>11.0f}",
        _cell(row["floor_s"], ">9.2f"),
        _cell(row["over_floor"], ">7.2f"),
        _cell(row["host_share"], ">7.1%"),
        _cell(row["must"], ">9.0f"),
        _cell(row["stretch"], ">9.0f"),
    ]
    return "".join(cells) + _verdict(row)


def _bound_text(row: dict[str, Any]) -> str:
    return "" if row["must"] is None else f" (must {row['must']:.0f}, stretch {row['stretch']:.0f}{_verdict(row)})"


def _verdict(row: dict[str, Any]) -> str:
    return "" if row["met"] is None else "  met" if row["met"] else "  NOT MET"


def _cell(value: float | None, form: str) -> str:
    """A number, or a dash as wide as it."""
    return f"{'-':>{int(form[1:].split('.')[0])}}" if value is None else f"{value:{form}}"


def draw(run: Run, path: Path) -> None:
    """Medians over their floors: decode by batch and prompts by length. Raises ConfigError without matplotlib."""
    try:
        from matplotlib.figure import Figure as Picture  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install 'triptych[plot]'") from error
    picture = Picture(figsize=(9, 3.8), layout="constrained")
    panels = picture.subplots(1, 2)
    for axes, name, label in zip(panels, ("decode", "prefill"), ("sequences", "prompt tokens"), strict=True):
        found = [row for row in rows(run) if row["figure"] == name]
        _bars(axes, found)
        axes.set(xlabel=label, ylabel="ms", title=name)
    picture.suptitle(f"{run.settings.get('model')} on {run.ceilings.device}")
    picture.savefig(path, dpi=150)


def _bars(axes: Any, found: Sequence[dict[str, Any]]) -> None:
    names = [f"{row['at']}{' chunks' if 'chunks' in row['note'] else ''}" for row in found]
    axes.bar(names, [row["median_ms"] for row in found], label="measured", color="#c0504d")
    axes.bar(names, [row["floor_ms"] for row in found], label="floor", color="#9dc3a5")
    musts = [(at, row["must"]) for at, row in enumerate(found) if row["must"] is not None]
    if musts:
        axes.scatter(*zip(*musts, strict=True), marker="_", s=300, color="black", label="must", zorder=3)
    if found:
        axes.legend()
    axes.grid(axis="y", alpha=0.3)
