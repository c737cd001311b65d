"""Fault schedules as Hypothesis strategies: small clusters, few requests, faults that shrink to fewer, earlier and shorter ones."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from triptych.runtime.simulation.faults import FOR_GOOD, Fault, Kind
from triptych.runtime.simulation.schedule import MANY, TOPOLOGIES, Schedule, generate, make_instances
from triptych.runtime.simulation.world import SCHEDULER

SPANS = (0.02, 0.1, 0.4, 1.0)  # seconds; below and above every timer of a schedule


def calm(seed: int, topology: str) -> Schedule:
    """The requests of `seed` on another topology, without faults and deadlines."""
    schedule = generate(seed)
    arrivals = tuple(replace(arrival, request=replace(arrival.request, deadline=None)) for arrival in schedule.arrivals)
    instances = make_instances(topology, random.Random(seed))
    return replace(schedule, topology=topology, instances=instances, arrivals=arrivals, faults=(), max_attempts=MANY)


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
    """One fault that ends by itself."""
    workers = list(dict.fromkeys(shape.worker for shape in schedule.instances))
    processes = [*workers, SCHEDULER, *schedule.gateways]
    links = [(one, other) for index, one in enumerate(processes) for other in processes[index + 1 :]]
    at = st.integers(4, 70).map(lambda slot: slot * 0.02)
    span = st.sampled_from(SPANS)
    return st.one_of(
        st.builds(Fault, st.just(Kind.KILL), at, st.sampled_from(processes), seconds=span),
        st.builds(Fault, st.just(Kind.VANISH), at, st.sampled_from(processes), seconds=span),
        st.builds(Fault, st.just(Kind.PAUSE), at, st.sampled_from(processes), seconds=span),
        st.tuples(st.sampled_from([Kind.CUT, Kind.SLOW, Kind.RESET]), at, st.sampled_from(links), span).map(
            lambda drawn: Fault(drawn[0], drawn[1], *drawn[2], seconds=drawn[3])
        ),
        st.builds(
            Fault,
            st.sampled_from([Kind.ENGINE, Kind.CORRUPT]),
            at,
            st.sampled_from([shape.id for shape in schedule.instances]),
        ),
        st.builds(Fault, st.just(Kind.REPEAT), at, st.sampled_from(workers), st.sampled_from(schedule.gateways)),
        st.builds(Fault, st.just(Kind.LEAVE), at, st.sampled_from([a.request.id for a in schedule.arrivals])),
    )


def die_for_good(schedule: Schedule, name: str, at: float) -> Schedule:
    """`schedule` with one process killed and not started again."""
    return replace(schedule, faults=(*schedule.faults, Fault(Kind.KILL, at, name, seconds=FOR_GOOD)))
