"""What the parts measure: times, and the work that they were for. Floors and ratios follow from a machine's ceilings."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np

from triptych.tools.bench.engine.ceilings import Ceilings
from triptych.tools.bench.engine.loop import HostSeconds
from triptych.tools.bench.engine.work import Work


@dataclass(frozen=True)
class Figure:
    """Something that was timed several times.

    Attributes:
        name: "decode", "prefill", "mixed"; with `at` it is the row of a table: a batch, or a prompt's tokens.
        times: seconds, each of the same work.
        works: the steps that one time is for; their floors add up.
        host: seconds of the host, for one time. None: not measured.
        queued: seconds when steps are dispatched far ahead and the host only packs and dispatches; None: not measured.
        note: what else the table says.
    """

    name: str
    at: int
    times: tuple[float, ...]
    works: tuple[Work, ...]
    host: HostSeconds | None = None
    queued: float | None = None
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.times, percent))

    def floor(self, ceilings: Ceilings) -> float:
        """Seconds."""
        return sum(work.floor(ceilings.bandwidth, ceilings.rate) for work in self.works)

    @property
    def host_share(self) -> float | None:
        """The host's work over the step's time, hidden behind the device or not."""
        return None if self.host is None else self.host.work / self.median

    @property
    def exposed_share(self) -> float | None:
        """What of a step's time goes when steps are dispatched far ahead: the host's work that the device does not hide, and the way back of the tokens."""
        return None if self.queued is None else max(0.0, 1.0 - self.queued / self.median)


@dataclass(frozen=True)
class Throughput:
    """Many requests, from the first submission to the last token. `through`: what ran them. `host`: seconds, of all steps."""

    name: str
    requests: int
    input_tokens: int
    output_tokens: int
    seconds: float
    steps: int
    works: tuple[Work, ...] = ()
    host: HostSeconds | None = None
    through: str = "engine"

    @property
    def output_rate(self) -> float:
        return self.requests * self.output_tokens / self.seconds

    @property
    def total_rate(self) -> float:
        return self.requests * (self.input_tokens + self.output_tokens) / self.seconds

    def floor(self, ceilings: Ceilings) -> float | None:
        """Seconds that the steps which ran need at least; None if they are not known."""
        return sum(work.floor(ceilings.bandwidth, ceilings.rate) for work in self.works) if self.works else None
