"""Workloads by name, as command lines ask for them: a trace or a distribution for what arrives, a process for when."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from triptych.runtime.simulation import traces
from triptych.runtime.simulation.workload import (
    OUTPUTS,
    PROMPTS,
    Arrival,
    Lengths,
    Shape,
    WorkloadError,
    combine,
    diurnal,
    drawn,
    fitted,
    gamma,
    mmpp,
    poisson,
)
from triptych.runtime.simulation.workload_images import Images, with_images
from triptych.runtime.simulation.workload_sessions import Conversations, conversations

SYNTHETIC = ("random", "sessions")
PROCESSES = ("native", "poisson", "gamma", "mmpp", "diurnal")


@dataclass(frozen=True)
class Workload:
    """What to send to a cluster; `arrivals` makes it for one rate.

    Attributes:
        source: a bundled trace, a trace file, "random" (independent requests) or "sessions" (conversations).
        process: when requests come: "native" (as the trace has them, stretched; Poisson for what has no times of its
            own), or another one of PROCESSES.
        prompt, output: lengths for "random"; of first prompts and answers for "sessions".
        turns, think: mean number of turns of a session, and seconds between them.
        cv: of the gaps, for "gamma".
        burst: times the calm rate, for "mmpp"; `calm` and `busy` are the mean seconds of the two states.
        period, swing: for "diurnal".
        images: None: text only.
        most: longest request, prompt and output; longer ones are cut (workload.fitted).
    """

    source: str
    process: str = "native"
    prompt: Lengths = PROMPTS
    output: Lengths = OUTPUTS
    turns: float = 4.0
    think: float = 30.0
    cv: float = 3.0
    burst: float = 5.0
    calm: float = 20.0
    busy: float = 5.0
    period: float = 600.0
    swing: float = 0.8
    images: Images | None = None
    most: int = 1 << 17
    seed: int = 0
    _trace: list[traces.Trace] = field(default_factory=list, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.process not in PROCESSES:
            raise WorkloadError(f"no arrival process {self.process!r}; there are {', '.join(PROCESSES)}")
        if self.source not in SYNTHETIC and not self._trace:
            self._trace.append(traces.load(self.source))  # read once, for every rate
        if self.images is not None and self.most < self.images.room + 2:
            raise WorkloadError(
                f"the images of a request take {self.images.room} tokens; requests are at most {self.most} long"
            )
        if self.source == "sessions" and self.process not in ("native", "poisson"):
            raise WorkloadError(
                "sessions begin as a Poisson process and bring their own times; leave the process native"
            )

    def arrivals(self, rate: float) -> Iterator[Arrival]:
        """Endless; the same for the same rate."""
        if self.images is None:
            yield from self._texts(rate, self.most)
        else:
            yield from with_images(self._texts(rate, self.most - self.images.room), self.images, self.seed)

    def _texts(self, rate: float, most: int) -> Iterator[Arrival]:
        rng = random.Random(f"{self.seed}/{rate}")
        if self.source == "sessions":
            question = Lengths(max(1.0, self.prompt.mean / 4), self.prompt.cv)
            kind = Conversations(self.turns, self.prompt, question, self.output, self.think, most)
            yield from conversations(rate, kind, rng)
            return
        yield from combine(self._times(rate, rng), fitted(self._shapes(rng), most))

    def _shapes(self, rng: random.Random) -> Iterator[Shape]:
        return (
            self._trace[0].shapes_forever()
            if self._trace
            else drawn(self.prompt, self.output, random.Random(rng.random()))
        )

    def _times(self, rate: float, rng: random.Random) -> Iterator[float]:
        rng = random.Random(rng.random())
        match self.process:
            case "gamma":
                return gamma(rate, self.cv, rng)
            case "mmpp":
                return mmpp(rate, self.burst, self.calm, self.busy, rng)
            case "diurnal":
                return diurnal(rate, self.period, self.swing, rng)
            case "native" if self._trace:
                return self._trace[0].times_forever(rate)
            case _:
                return poisson(rate, rng)

    def seeded(self, seed: int) -> Workload:
        """The same with another seed."""
        return replace(self, seed=seed)
