"""A cluster for studies in one process: the real scheduler, many StudyInstances, a gateway that only takes times, and
delays instead of a network.

One event heap drives everything. What is real: every decision of the scheduler and of each instance. What is modelled:
step times, link bandwidth, and the delays (study_fleet.Delays), each the same for every message. study_split.py has the
same cluster in two processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from triptych.runtime.core.errors import TriptychError
from triptych.runtime.scheduler.scheduler import Scheduler
from triptych.runtime.simulation.events import EventLoop
from triptych.runtime.simulation.metrics import Requests, Timeline, timeline
from triptych.runtime.simulation.study_book import Book
from triptych.runtime.simulation.study_control import Control
from triptych.runtime.simulation.study_fleet import Conditions, Delays, Fleet, Kind, seats
from triptych.runtime.simulation.study_instance import StudyInstance
from triptych.runtime.simulation.study_post import Post
from triptych.runtime.simulation.workload import Arrival
from triptych.runtime.simulation.workload_tokens import TokenSource

PATIENCE = 3600.0  # virtual seconds in which nothing ends or arrives

Progress = Callable[[float, int, int], None]
"""(virtual time, submitted, ended)"""


class StudyError(TriptychError):
    """The simulated cluster came to a stop that a real one would not: a bug of the simulation or of what it runs, or the
    end of a process that simulates."""


@dataclass(frozen=True)
class Outcome:
    """What a run leaves.

    Attributes:
        steps: of every instance, by kind.
        seconds: of virtual time.
        elsewhere: processor seconds that other processes took.
    """

    requests: Requests
    timeline: Timeline
    steps: dict[str, list[int]]
    seconds: float
    elsewhere: float = 0.0


class Watchdog:
    """Looks at a run every so often: tells of progress, and gives up when nothing happens while requests are open."""

    def __init__(self, control: Control, every: float, progress: Progress):
        self._control, self._every, self._progress = control, every, progress
        self._silent, self._before = 0.0, -1

    def look(self, now: float) -> None:
        """Raises StudyError after an hour without an arrival or an end."""
        ended, submitted = len(self._control.requests), self._control.submitted
        self._progress(now, submitted, ended)
        self._silent = 0.0 if ended + submitted > self._before else self._silent + self._every
        self._before = ended + submitted
        if self._silent > PATIENCE:
            still = self._control.open
            raise StudyError(f"{len(still)} requests are open and none has ended for an hour: {still[:5]}")


class StudyCluster:
    """Built idle; `run` feeds it arrivals until all have ended."""

    def __init__(
        self,
        kinds: Sequence[Kind],
        scheduler: Scheduler,
        delays: Delays,
        tokens: TokenSource,
        *,
        heartbeat: float = 1.0,
        max_waiting: int = 256,
        leaps: bool = True,
    ):
        """See Conditions for the last three."""
        workers, book = seats(kinds), Book(tokens)
        conditions = Conditions(delays, heartbeat, max_waiting, leaps)
        self.loop = EventLoop()
        post = Post(self.loop, 1 + sum(map(len, workers)))
        self._control = Control(self.loop, post, scheduler, workers, delays, book)
        self._fleet = Fleet(self.loop, post, workers, range(len(workers)), conditions, book, self._control.hear)

    @property
    def requests(self) -> Requests:
        return self._control.requests

    @property
    def timeline(self) -> Timeline:
        return timeline(self._control.counts, self._fleet.sightings)

    @property
    def kinds(self) -> dict[str, list[StudyInstance]]:
        return self._fleet.instances

    def run(
        self,
        arrivals: Iterator[Arrival],
        *,
        sample: float | None = None,
        progress: Progress = lambda now, submitted, ended: None,
        every: float = 1.0,
    ) -> Outcome:
        """Feed every arrival and wait for every end. `sample`: seconds of virtual time between samples of the timeline;
        `progress` is called every `every` virtual seconds. Raises StudyError if nothing happens any more while requests
        are open."""
        watchdog = Watchdog(self._control, every, progress)
        self._control.begin(arrivals, sample)
        if sample is not None:
            self._fleet.watch(sample)
        while self._control.going:
            self.loop.run_until(self.loop.now() + every)
            watchdog.look(self.loop.now())
        steps = {kind: [instance.steps for instance in instances] for kind, instances in self.kinds.items()}
        return Outcome(self.requests, self.timeline, steps, self.loop.now())
