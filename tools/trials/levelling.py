"""Whether what waits before a slow stage levels off: readings of memory over time, what is asked of them, and their tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from triptych.tools.trials.watch import TOLERANCE

FULL = 0.9  # share of a pool's pages from which it counts as full
SWAY = 1.25  # what requests hold comes and goes: bytes may differ by this factor between two windows
LEAST = 9  # readings of the slow phase below which nothing is claimed


@dataclass(frozen=True)
class Reading:
    """One moment. `pages_held` of `pages` of the media pools, and what follows up to `encode_rss`, are those of all encode instances together."""

    seconds: float
    phase: str  # free, slow, after
    pages_held: int
    pages: int
    shelf_bytes: int
    encoded: int
    encode_rss: int
    gateway_held: int
    gateway_pushes: int
    gateway_rss: int
    open: int
    completed: int
    refused: int


@dataclass(frozen=True)
class Holding:
    """What one instance has on its devices, in bytes, and the resident memory of its process."""

    instance: str
    roles: str
    decoder: int
    encoder: int
    kv_pool: int
    media_pool: int
    rss: int = 0


@dataclass(frozen=True)
class Finding:
    """A whole trial. `failures` by reason; `ended`: whether everything did; `held`: what an idle deployment held at its end."""

    readings: Sequence[Reading]
    failures: dict[str, int] = field(default_factory=dict)
    ended: bool = True
    held: dict[str, dict[str, int]] = field(default_factory=dict)


def judged(found: Finding) -> list[str]:
    """Everything that may not be: what grew while prefill was slow, what failed, what was left."""
    problems = [f"{count} requests: {reason}" for reason, count in found.failures.items()]
    problems += [] if found.ended else ["not everything completed after prefill ran freely again"]
    problems += [f"{owner} holds {what or 'nothing that it tells'}" for owner, what in found.held.items()]
    slow = [reading for reading in found.readings if reading.phase == "slow"]
    if len(slow) < LEAST:
        return [*problems, f"only {len(slow)} readings while prefill was slow; nothing is shown"]
    if max(reading.pages_held / reading.pages for reading in slow) < FULL:
        problems.append(
            "the media pools of the encode instances never filled: there was no pressure, and nothing is shown"
        )
    for name in ("encode_rss", "gateway_rss"):
        before, after = _windows(slow, lambda reading, name=name: getattr(reading, name), statistics.median)
        if after > before * (1 + TOLERANCE):
            problems.append(f"{name} grew from {before / 1e6:.1f} to {after / 1e6:.1f} MB while prefill was slow")
    for name in ("shelf_bytes", "gateway_held"):
        before, after = _windows(slow, lambda reading, name=name: getattr(reading, name), max)
        if after > before * SWAY + 1024:
            problems.append(f"{name} grew from {before:.0f} to {after:.0f} while prefill was slow")
    return problems


def _windows(
    slow: Sequence[Reading], value: Callable[[Reading], float], level: Callable[[Iterable[float]], float]
) -> tuple[float, float]:
    """The middle and the last third, each as its median or its maximum: the shelf is often empty and then holds five items,
    so that its medians differ by as much without any growth, and its maxima do not."""
    third = len(slow) // 3
    return level(map(value, slow[third : 2 * third])), level(map(value, slow[2 * third :]))


def series(readings: Sequence[Reading], rows: int = 24) -> str:
    """About so many of the readings, one a line; memory in MB, the shelf and what the gateway holds of pixels in kB."""
    step = max(1, len(readings) // rows)
    head = (
        f"{'s':>6}  {'prefill':<8}{'E pages':>10}{'shelf kB':>10}{'encoded':>9}{'E MB':>8}{'gw kB':>8}{'pushes':>8}{'gw MB':>8}"
        f"{'open':>6}{'done':>7}{'refused':>9}"
    )
    lines = [
        f"{r.seconds:>6.1f}  {r.phase:<8}{f'{r.pages_held}/{r.pages}':>10}{r.shelf_bytes / 1e3:>10.1f}{r.encoded:>9}{r.encode_rss / 1e6:>8.1f}"
        f"{r.gateway_held / 1e3:>8.1f}{r.gateway_pushes:>8}{r.gateway_rss / 1e6:>8.1f}{r.open:>6}{r.completed:>7}{r.refused:>9}"
        for r in readings[::step]
    ]
    return "\n".join([head, *lines])


def device_table(holdings: Sequence[Holding]) -> str:
    """One line an instance, in MB; the instance with all roles comes from the deployment that the answers were learned from."""
    head = f"{'instance':<14}{'roles':<24}{'decoder':>10}{'encoder':>10}{'KV pool':>10}{'media':>10}{'device MB':>11}{'process MB':>12}"
    lines = [head]
    for one in holdings:
        parts = (one.decoder, one.encoder, one.kv_pool, one.media_pool)
        cells = "".join(f"{part / 1e6:>10.3f}" for part in parts)
        lines.append(f"{one.instance:<14}{one.roles:<24}{cells}{sum(parts) / 1e6:>11.3f}{one.rss / 1e6:>12.1f}")
    return "\n".join(lines)
