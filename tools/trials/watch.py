"""Whether processes grow: resident memory, open files and threads, sampled from /proc and compared after a warm-up.

A process is level if the median of its last samples is within `TOLERANCE` of the median of the first ones after the warm-up. Medians, because a
collection or a burst moves single samples; both windows are a third of what follows the warm-up.
"""

from __future__ import annotations

import asyncio
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TOLERANCE = 0.02
DECODER = "decoder-"  # what names of processes that decode media begin with
SLACK = {
    "rss": 0,
    "fds": 8,
    "threads": 4,
}  # connections and pool threads come and go; a leak of one a hundred calls passes that in a minute
DECODER_SLACK = (
    16 * 2**20
)  # bytes that a decoder process may grow: the kernel bounds it, and after a thousand items it is replaced
WARM_UP = 0.25  # share of the samples: first requests fill caches, pools and allocators
LEAST = 12  # samples of a process below which nothing is claimed
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Sample:
    """One look at one process: bytes, open files, threads."""

    rss: int
    fds: int
    threads: int


@dataclass(frozen=True)
class Level:
    """One measure of one process: medians after the warm-up and at the end."""

    process: str
    measure: str
    before: float
    after: float

    @property
    def growth(self) -> float:
        return self.after / self.before - 1.0 if self.before else float(self.after > 0)

    @property
    def grown(self) -> bool:
        decodes = self.measure == "rss" and self.process.startswith(DECODER)
        return self.after > self.before * (1.0 + TOLERANCE) + (DECODER_SLACK if decodes else SLACK[self.measure])


def look(pid: int) -> Sample | None:
    """None if the process has ended."""
    proc = Path("/proc") / str(pid)
    try:
        fields = (proc / "stat").read_text().rpartition(")")[2].split()  # field 3 of proc(5) comes first here
        rss = int((proc / "statm").read_text().split()[1]) * PAGE
        return Sample(rss, len(os.listdir(proc / "fd")), int(fields[17]))
    except (OSError, IndexError):
        return None


class Watch:
    """Samples `processes()` (name to pid) every `interval` seconds while `run` runs. A new pid begins a new series."""

    def __init__(self, processes: Callable[[], Mapping[str, int]], interval: float = 1.0):
        self._processes = processes
        self._interval = interval
        self.samples: dict[tuple[str, int], list[Sample]] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            for name, pid in self._processes().items():
                if (sample := look(pid)) is not None:
                    self.samples.setdefault((name, pid), []).append(sample)
            await asyncio.sleep(self._interval)

    def levels(self) -> list[Level]:
        """Every measure of every process that was seen often enough."""
        return [
            level
            for (name, _), samples in self.samples.items()
            if len(samples) >= LEAST
            for level in levels(name, samples)
        ]


def levels(process: str, samples: Sequence[Sample]) -> list[Level]:
    warm = samples[int(len(samples) * WARM_UP) :]
    third = max(1, len(warm) // 3)
    return [
        Level(
            process,
            measure,
            statistics.median(getattr(s, measure) for s in warm[:third]),
            statistics.median(getattr(s, measure) for s in warm[-third:]),
        )
        for measure in SLACK
    ]


def table(found: Sequence[Level]) -> str:
    """One line a process and measure; memory in MB."""
    lines = [f"{'process':<14}{'measure':<10}{'after warm-up':>14}{'at the end':>12}{'growth':>9}"]
    for level in found:
        scale = 1e6 if level.measure == "rss" else 1.0
        lines.append(
            f"{level.process:<14}{level.measure:<10}{level.before / scale:>14.1f}{level.after / scale:>12.1f}{level.growth:>8.1%}"
            f"{'  GROWN' if level.grown else ''}"
        )
    return "\n".join(lines)
