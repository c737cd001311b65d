"""A picture of a sweep: a row of panels for each load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.simulation.slo import SHARE


def check() -> None:
    """Raises ConfigError, with what to do, if nothing can be drawn here."""
    try:
        import matplotlib.figure  # pyright: ignore[reportMissingImports]  # noqa: F401
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install 'triptych[plot]'") from error


def draw(path: Path, report: dict[str, Any]) -> None:
    """Attainment, TTFT p90 and TPOT p90 against the rate, and tokens a device against tokens a user; valid points only."""
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    loads = report["loads"]
    figure = Figure(figsize=(18, 4 * len(loads)), layout="constrained")
    panels = figure.subplots(len(loads), 4, squeeze=False)
    for row, load in zip(panels, loads, strict=True):
        for topology in report["topologies"]:
            found = topology["loads"].get(load["name"], {"points": []})
            points = sorted((p for p in found["points"] if p["valid"] and p["latencies"]), key=lambda p: p["rate"])
            if points:
                _lines(row, topology["name"], points)
        row[0].axhline(SHARE, color="grey", linestyle=":")
        row[0].set(
            xlabel="requests a second", ylabel="share inside both objectives", ylim=(0, 1.02), title=load["name"]
        )
        for axes, latency in ((row[1], "ttft"), (row[2], "tpot")):
            if load[latency] is not None:
                axes.axhline(load[latency], color="grey", linestyle=":")
            axes.set(xlabel="requests a second", ylabel=f"{latency.upper()} p90, s", yscale="log")
        row[3].set(xlabel="tokens/s a user (1 / median TPOT)", ylabel="output tokens/s a device")
        for axes in row:
            axes.grid(alpha=0.3)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=8)
    figure.suptitle(f"{report['model']}, {report['devices']} devices ({report['device']})")
    figure.savefig(path, dpi=120)


def _lines(row: Any, name: str, points: list[dict[str, Any]]) -> None:
    rates = [p["rate"] for p in points]
    row[0].plot(rates, [p["attainment"] for p in points], marker="o", label=name)
    for axes, latency in ((row[1], "ttft"), (row[2], "tpot")):
        values = [p["latencies"].get(latency, {}).get("p90", float("nan")) for p in points]
        axes.plot(rates, values, marker="o", label=name)
    shown = [p for p in points if p["tokens_per_user"] is not None]
    row[3].plot([p["tokens_per_user"] for p in shown], [p["tokens_per_device"] for p in shown], marker="o", label=name)
