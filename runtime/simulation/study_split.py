"""The cluster of study_cluster.py in two processes: this one has the control plane and some of the instances, a child has
the others. Every request, every step and every time is the same as in one process, to the last bit.

A conservative parallel simulation: every message between two parties takes at least the smallest of the delays, the
*window*. Both processes know the time of the earliest event of all, so both may let everything happen that comes before
that time plus the window, for nothing that the other one does meanwhile can arrive sooner. Then they exchange what they
had to say to each other, and go on (Nicol, "The cost of conservative synchronization in parallel discrete event
simulations", J. ACM 40(2), 1993).

What makes it the same: a party hears of others by messages only; messages of one time are taken in the order of their
senders (EventLoop.deliver); and the events that a process asks for itself happen in the order in which they were asked
for, which does not depend on what another process does.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.scheduler.scheduler import Scheduler
from triptych.runtime.simulation.events import EventLoop
from triptych.runtime.simulation.metrics import Sighting, timeline
from triptych.runtime.simulation.study_book import Book
from triptych.runtime.simulation.study_cluster import Outcome, Progress, Watchdog
from triptych.runtime.simulation.study_codec import Codec
from triptych.runtime.simulation.study_control import Control
from triptych.runtime.simulation.study_fleet import Conditions, Delays, Fleet, Kind, Seat, seats
from triptych.runtime.simulation.study_memory import rare_collections
from triptych.runtime.simulation.study_pipe import Batch, Child, Line
from triptych.runtime.simulation.study_post import Post
from triptych.runtime.simulation.workload import Arrival
from triptych.runtime.simulation.workload_tokens import TokenSource

# Processor time that a request costs, in ms on 10,000 instances; only the proportions matter.
CONTROL_COST, PREFILL_COST, DECODE_COST = 0.4, 0.35, 0.7


def window(delays: Delays) -> float:
    """Virtual seconds by which the two processes may be apart; with 0 a study cannot be split."""
    return min(delays.command, delays.report, delays.pull, delays.pixels)


def shared_out(workers: Sequence[Sequence[Seat]]) -> frozenset[int]:
    """The workers for the process that has the control plane; those that only prefill come first. Both processes get
    about the same to do, and the child at least one worker."""
    roles = [worker[0].info.roles for worker in workers]
    costs = {Role.PREFILL: PREFILL_COST, Role.DECODE: DECODE_COST}
    seated = {role: sum(len(w) for w, has in zip(workers, roles, strict=True) if role in has) for role in costs}
    spare = (sum(costs.values()) - CONTROL_COST) / 2
    mine: set[int] = set()
    for number in sorted(range(len(workers)), key=lambda number: Role.DECODE in roles[number])[:-1]:
        cost = len(workers[number]) * sum(costs[role] / seated[role] for role in roles[number] if role in costs)
        if spare < cost / 2:
            break
        mine.add(number)
        spare -= cost
    return frozenset(mine)


def in_windows(
    loop: EventLoop,
    width: float,
    every: float,
    exchange: Callable[[], tuple[float, bool]],
    look: Callable[[float], None] = lambda now: None,
) -> None:
    """What both processes do: let things happen, exchange messages, and `look` every `every` virtual seconds.
    `exchange` says when the earliest event in either process is, and whether anything is still to end."""
    boundary = every
    while True:
        first, going = exchange()
        while first > boundary:  # all has happened that is due by then
            loop.run_until(boundary)
            look(boundary)
            if not going:
                return
            boundary += every
        loop.run_until(min(boundary, math.nextafter(first + width, 0.0)))


@dataclass(frozen=True)
class Part:
    """What the child is started with: its workers are numbers `mine` of the cluster's."""

    kinds: tuple[Kind, ...]
    conditions: Conditions
    seed: int
    mine: frozenset[int]
    sample: float | None
    every: float


@dataclass(frozen=True)
class Rest:
    """What the child leaves: steps of its instances by number, what was seen of them, processor seconds."""

    steps: dict[int, int]
    sightings: list[list[Sighting]]
    seconds: float


class SplitCluster:
    """Idle until `run`, which starts the child and ends it."""

    def __init__(
        self,
        kinds: Sequence[Kind],
        scheduler: Scheduler,
        delays: Delays,
        seed: int,
        *,
        heartbeat: float = 1.0,
        max_waiting: int = 256,
        leaps: bool = True,
    ):
        """`seed`: of tokens; for the last three see Conditions. Raises ConfigError for a delay of zero."""
        if not window(delays) > 0:
            raise ConfigError(
                f"{delays} leave no window for two processes; they need command, report and pull above 0, one process does not"
            )
        self._kinds, self._scheduler, self._seed = tuple(kinds), scheduler, seed
        self._conditions = Conditions(delays, heartbeat, max_waiting, leaps)

    def run(
        self,
        arrivals: Iterator[Arrival],
        *,
        sample: float | None = None,
        progress: Progress = lambda now, submitted, ended: None,
        every: float = 1.0,
    ) -> Outcome:
        """As StudyCluster.run. Raises StudyError also if the child fails or dies."""
        workers = seats(self._kinds)
        mine = shared_out(workers)
        theirs = frozenset(range(len(workers))) - mine
        with Child(simulate_part, Part(self._kinds, self._conditions, self._seed, theirs, sample, every)) as child:
            loop, book, ended = EventLoop(), Book(TokenSource(self._seed)), list[str]()
            codec = Codec(book, workers)
            post = Post(loop, codec.parties, codec.encode)
            control = Control(loop, post, self._scheduler, workers, self._conditions.delays, book, ended)
            fleet = Fleet(loop, post, workers, mine, self._conditions, book, control.hear)
            gc.freeze()
            watchdog = Watchdog(control, every, progress)
            control.begin(arrivals, sample)
            if sample is not None:
                fleet.watch(sample)

            def exchange() -> tuple[float, bool]:
                own = _batch(loop, post, control.going, ended)
                child.send(own)
                theirs: Batch = child.receive()
                for flat in theirs.messages:
                    post.receive(codec.decode(flat))
                for request, what, value in theirs.notes:
                    control.hear(request, what, value)
                return min(own.first, theirs.first), own.going

            in_windows(loop, window(self._conditions.delays), every, exchange, watchdog.look)
            rest: Rest = child.receive()
        steps = rest.steps | fleet.steps
        by_kind: dict[str, list[int]] = {kind.name: [] for kind in self._kinds}
        for seat in (seat for worker in workers for seat in worker):
            by_kind[seat.kind.name].append(steps[seat.number])
        seen = ([*here, *there] for here, there in zip(fleet.sightings, rest.sightings, strict=True))
        return Outcome(control.requests, timeline(control.counts, seen), by_kind, loop.now(), rest.seconds)


def simulate_part(line: Line, part: Part) -> None:
    """What the child does."""
    with rare_collections():
        loop, book, heard = EventLoop(), Book(TokenSource(part.seed)), list[tuple[str, str, float]]()
        workers = seats(part.kinds)
        codec = Codec(book, workers)
        post = Post(loop, codec.parties, codec.encode)
        fleet = Fleet(loop, post, workers, part.mine, part.conditions, book, lambda *what: heard.append(what))
        gc.freeze()
        if part.sample is not None:
            fleet.watch(part.sample)

        def exchange() -> tuple[float, bool]:
            theirs: Batch = line.receive()
            own = _batch(loop, post, theirs.going, heard)
            line.send(own)
            for flat in theirs.messages:
                post.receive(codec.decode(flat))
            for request in theirs.notes:
                book.close(request)
            return min(own.first, theirs.first), theirs.going

        in_windows(loop, window(part.conditions.delays), part.every, exchange)
    line.send(Rest(fleet.steps, fleet.sightings, time.process_time()))


def _batch(loop: EventLoop, post: Post, going: bool, notes: list) -> Batch:
    """What a process has to say after a window; its lists are empty then."""
    first = min((flat[0] for flat in post.outbox), default=math.inf)
    batch = Batch(min(loop.next, first), going, tuple(post.outbox), tuple(notes))
    post.outbox.clear()
    notes.clear()
    return batch
