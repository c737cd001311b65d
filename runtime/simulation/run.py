"""Running fault schedules: one, or many over several processes."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

from triptych.runtime.core.control import SchedulerCommand, SchedulerEvent
from triptych.runtime.simulation.audit import Verdict, check_free, check_invariants, check_open, held, quiet, verdict
from triptych.runtime.simulation.faults import Fault, Kind, Weather, role_of
from triptych.runtime.simulation.schedule import STORM, Schedule, generate
from triptych.runtime.simulation.world import World

SETTLE = 20.0  # virtual seconds after the storm in which a world must come to rest: many times the longest timer of a schedule
AFTERWARDS = 1.5  # virtual seconds that a quiet world is watched: every lease, grace and backoff ends within
MOST_EVENTS = 60_000  # many times what a schedule needs; more is a livelock
STEP = 0.1  # virtual seconds between looks


@dataclass(frozen=True)
class Outcome:
    """What a schedule led to.

    Attributes:
        struck: (kind of fault, role of what it struck) of every fault that began.
        wrong: everything that is wrong, requests included; empty if the schedule passed.
        leaked: how many things were held in the end that nobody needs.
    """

    seed: int
    topology: str
    struck: tuple[tuple[str, str], ...]
    verdicts: tuple[Verdict, ...]
    wrong: tuple[str, ...]
    leaked: int
    events: int
    seconds: float

    @property
    def passed(self) -> bool:
        return not self.wrong


def run_schedule(seed: int, kinds: Sequence[Kind] = tuple(Kind)) -> Outcome:
    """Generate the schedule of `seed` and run it."""
    return run(generate(seed, kinds))


class Watcher:
    """Sees a run from outside; this one looks away."""

    def started(self, world: World) -> None:
        """The world is about to start."""

    def struck(self, fault: Fault) -> None:
        """A fault begins."""

    def said(self, event: SchedulerEvent, commands: list[SchedulerCommand]) -> None:
        """The scheduler heard `event` and said `commands`."""


def run(schedule: Schedule, watcher: Watcher | None = None) -> Outcome:
    """Run `schedule` and judge it."""
    watcher = watcher or Watcher()

    def witness(event: SchedulerEvent, commands: list[SchedulerCommand]) -> None:
        weather.witness(event, commands)
        watcher.said(event, commands)

    world = World(schedule.world_config(), witness)
    weather = Weather(world, watcher.struck)
    watcher.started(world)
    for arrival in schedule.arrivals:
        world.submit_at(arrival.at, arrival.request)
    for fault in schedule.faults:
        weather.forecast(fault)
    wrong: list[str] = []
    leaked: list[str] = []
    crashed = False
    try:
        world.start()
        if not _endure(world, weather):
            wrong.append(f"livelock: more than {MOST_EVENTS} events")
        elif not quiet(world):
            leaked = list(held(world))
            wrong += [f"held after {SETTLE:g} s of quiet weather: {line}" for line in leaked]
        else:
            leaked = list(check_free(world))
            wrong += [*leaked, *check_open(world)]
    except Exception as error:  # noqa: BLE001 - whatever a core raises is a finding like any other
        crashed = True
        wrong.append(
            "".join(traceback.format_exception_only(error)) + "".join(traceback.format_tb(error.__traceback__))
        )
    verdicts = tuple(verdict(client, schedule, world) for client in world.clients)
    if not crashed:  # else calls are open because time stood still
        wrong += [f"{one.request}: {one.fault}" for one in verdicts if one.fault]
    return Outcome(
        schedule.seed,
        schedule.topology,
        tuple((str(fault.kind), _struck(world, fault)) for fault in weather.struck),
        verdicts,
        tuple(wrong),
        len(leaked),
        world.loop.handled,
        world.loop.now(),
    )


def _endure(world: World, weather: Weather) -> bool:
    """Storm, calm, and a while of watching; False if that takes too many events."""
    loop = world.loop
    over, end = STORM[1] + STEP, STORM[1] + STEP + SETTLE
    lifted, since = False, None
    while loop.now() < end:
        if not loop.run_until(loop.now() + STEP, MOST_EVENTS - loop.handled):
            return False
        check_invariants(world)
        if not lifted and loop.now() >= over:
            weather.lift()
            lifted = True
        elif lifted:
            weather.restore()
        if lifted and quiet(world):
            since = loop.now() if since is None else since
            if loop.now() >= since + AFTERWARDS:
                return True
        else:
            since = None
    return True


def _struck(world: World, fault: Fault) -> str:
    names = [fault.target] if fault.kind in (Kind.DRAIN, Kind.FORCE) else [fault.target, fault.other]
    roles = [role_of(world, name) for name in names if name]
    return " - ".join(sorted(roles))


def run_many(count: int, seed: int, processes: int = 1, kinds: Sequence[Kind] = tuple(Kind)) -> Iterator[Outcome]:
    """Outcomes of the seeds from `seed` on, in order."""
    seeds, one = range(seed, seed + count), partial(run_schedule, kinds=kinds)
    if processes == 1:
        yield from map(one, seeds)
        return
    with get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(one, seeds, chunksize=16)
