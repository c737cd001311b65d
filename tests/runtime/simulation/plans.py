"""Fault schedules as Hypothesis strategies: small clusters, few requests, faults that shrink to fewer, earlier and shorter ones."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from triptych.runtime.simulation.faults import FOR_GOOD, Fault, Kind
from triptych.runtime.simulation.moments import NAMES, SUBJECT, Moment
from triptych.runtime.simulation.schedule import (
    MANY,
    ORPHANED,
    TOPOLOGIES,
    Schedule,
    encodes,
    generate,
    make_instances,
    with_media,
)
from triptych.runtime.simulation.world import SCHEDULER

SPANS = (0.02, 0.1, 0.4, 1.0)  # seconds; below and above every timer of a schedule


def calm(seed: int, topology: str) -> Schedule:
    """The requests of `seed` on another topology, without faults and deadlines; with images if it encodes any."""
    schedule = generate(seed)
    arrivals = tuple(
        replace(arrival, request=replace(arrival.request, deadline=None, media=())) for arrival in schedule.arrivals
    )
    if encodes(topology):
        arrivals, schedule = with_media(arrivals, random.Random(seed)), replace(schedule, orphan_seconds=ORPHANED)
    instances = make_instances(topology, random.Random(seed))
    schedule = replace(schedule, topology=topology, instances=instances, arrivals=arrivals, faults=())
    return replace(schedule, max_attempts=MANY, max_queued=MANY)


def apart(schedule: Schedule) -> bool:
    """Whether each instance has a worker of its own, called after it."""
    return all(shape.worker == f"worker-{shape.id}" for shape in schedule.instances)


@dataclass(frozen=True)
class Plan:
    """A schedule in few words, so that a failing example can be read."""

    seed: int
    topology: str
    faults: tuple[Fault, ...]

    def schedule(self) -> Schedule:
        return replace(calm(self.seed, self.topology), faults=self.faults)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any topology, the requests of some seed, up to six faults."""
    seed, topology = draw(st.integers(0, 50)), draw(st.sampled_from(list(TOPOLOGIES)))
    faults = draw(st.lists(fault_in(calm(seed, topology)), max_size=6))
    return Plan(seed, topology, tuple(sorted(faults, key=lambda fault: fault.at)))


def fault_in(schedule: Schedule) -> st.SearchStrategy[Fault]:
    """One fault that ends by itself, at some time or at some moment; then it may strike what the moment is about."""
    workers = list(dict.fromkeys(shape.worker for shape in schedule.instances))
    instances = [shape.id for shape in schedule.instances]
    processes = [*workers, SCHEDULER, *schedule.gateways]
    links = [(one, other) for index, one in enumerate(processes) for other in processes[index + 1 :]]
    at = st.integers(4, 60).map(lambda slot: slot * 0.02)
    span = st.sampled_from(SPANS)

    def of(kinds: list[Kind], targets: list[str]) -> st.SearchStrategy[Fault]:
        return st.builds(Fault, st.sampled_from(kinds), at, st.sampled_from(targets), seconds=span)

    def between(kind: Kind, when: float, link: tuple[str, str], seconds: float) -> Fault:
        return Fault(kind, when, *link, seconds=seconds)

    fault = st.one_of(
        of([Kind.KILL, Kind.VANISH, Kind.PAUSE, Kind.TERM, Kind.ISOLATE], processes),
        st.builds(between, st.sampled_from([Kind.CUT, Kind.SLOW, Kind.RESET]), at, st.sampled_from(links), span),
        of([Kind.ENGINE, Kind.CORRUPT], instances),
        st.builds(Fault, st.just(Kind.DRAIN), at, st.sampled_from(instances), st.sampled_from(["", "decode+prefill"])),
        st.builds(Fault, st.just(Kind.REPEAT), at, st.sampled_from(workers), st.sampled_from(schedule.gateways)),
        of([Kind.LEAVE], [arrival.request.id for arrival in schedule.arrivals]),
    )
    moment = st.builds(Moment, st.sampled_from(NAMES), st.integers(1, 6))
    return st.one_of(fault, st.builds(_at_moment, fault, moment, st.sampled_from([0.0, 0.005, 0.02]), st.booleans()))


def _at_moment(fault: Fault, moment: Moment, delay: float, aimed: bool) -> Fault:
    target = SUBJECT if aimed and fault.kind is not Kind.REPEAT else fault.target
    return replace(fault, at=delay, when=moment, target=target)


def die_for_good(schedule: Schedule, name: str, at: float) -> Schedule:
    """`schedule` with one process killed and not started again."""
    return replace(schedule, faults=(*schedule.faults, Fault(Kind.KILL, at, name, seconds=FOR_GOOD)))
