"""Taking decode steps cheaply, and runs of them at once, changes nothing: every request and every step as if each had been planned by the core."""

from __future__ import annotations

from itertools import islice

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.runtime.core.topology import parse
from triptych.runtime.instance.composer import COMPOSERS, DEFAULT_COMPOSER
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.scheduler import Scheduler
from triptych.runtime.simulation.metrics import COLUMNS
from triptych.runtime.simulation.steptime import Affine, StepTimes
from triptych.runtime.simulation.study_cluster import StudyCluster
from triptych.runtime.simulation.study_fleet import Delays
from triptych.runtime.simulation.study_layout import Device, Limits, layout
from triptych.runtime.simulation.workload import Lengths
from triptych.runtime.simulation.workload_named import Workload
from triptych.runtime.simulation.workload_tokens import TokenSource

TIMES = Affine(4e-3, 2e-4, 1e-6, 5e-5)


def run(
    topology: str,
    limits: Limits,
    workload: Workload,
    rate: float,
    count: int,
    leaps: bool,
    times: StepTimes = TIMES,
    composer: str = DEFAULT_COMPOSER,
):
    device = Device(times, limits, limits.num_pages or 1000, 1e9, 1000)
    cluster = StudyCluster(
        layout(parse(topology), device, device, composer=composer),
        Scheduler(SchedulerConfig(max_queued=10_000)),
        Delays(),
        TokenSource(),
        leaps=leaps,
    )
    cluster.run(islice(workload.arrivals(rate), count), sample=0.05)
    for instances in cluster.kinds.values():
        for instance in instances:
            instance.core.audit()
            assert instance.core.load().running == instance.core.load().waiting == 0
    return cluster


def outcome(cluster: StudyCluster) -> dict[str, list[float]]:
    columns = {name: cluster.requests.column(name) for name in COLUMNS}
    order = np.lexsort((columns["e2e"], columns["at"]))
    return {name: np.nan_to_num(column[order], nan=-1.0).tolist() for name, column in columns.items()}


def compare(
    topology: str, limits: Limits, workload: Workload, rate: float, count: int, composer: str = DEFAULT_COMPOSER
) -> StudyCluster:
    single, leaping = (
        run(topology, limits, workload, rate, count, leaps, composer=composer) for leaps in (False, True)
    )
    assert outcome(leaping) == outcome(single)
    assert leaping.requests.failures == single.requests.failures
    assert leaping.timeline.times == single.timeline.times
    for kind, instances in single.kinds.items():
        assert [i.steps for i in leaping.kinds[kind]] == [i.steps for i in instances]
        mine, theirs = leaping.timeline.kinds[kind], single.timeline.kinds[kind]
        assert [(s.running, s.waiting, s.pages) for s in mine] == [(s.running, s.waiting, s.pages) for s in theirs]
        assert np.allclose([s.busy for s in mine], [s.busy for s in theirs])
    return leaping


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    topology=st.sampled_from(["PD", "1P1D", "2P1D", "1P2D", "(P-D)", "2PD"]),
    pages=st.integers(24, 120),
    slots=st.integers(2, 12),
    chunk=st.integers(8, 64),
    output=st.integers(2, 60),
    rate=st.sampled_from([2.0, 10.0, 40.0]),
    source=st.sampled_from(["random", "sessions"]),
    composer=st.sampled_from(sorted(COMPOSERS)),
    seed=st.integers(0, 1000),
)
def test_leaps_change_nothing(topology, pages, slots, chunk, output, rate, source, composer, seed):
    limits = Limits(4, slots, 90, chunk, 2, pages)
    workload = Workload(
        source, prompt=Lengths(20, 1.0, 60), output=Lengths(output, 1.0, 60), turns=3, think=0.5, most=90, seed=seed
    )
    compare(topology, limits, workload, rate, 25, composer)


def test_leaps_change_nothing_when_memory_is_short_and_sequences_are_preempted():
    limits = Limits(4, 12, 90, 32, 2, 40)
    cluster = compare(
        "PD", limits, Workload("random", prompt=Lengths(12, 0.5, 30), output=Lengths(50, 0.3, 60), most=90), 30.0, 60
    )
    assert cluster.requests.column("preemptions").sum() > 20


def test_most_steps_are_leapt_over():
    limits = Limits(16, 8, 2000, 512, 4, 2000)
    workload = Workload("random", prompt=Lengths(100), output=Lengths(500), most=1000)
    single, leaping = (run("1P1D", limits, workload, 1.0, 10, leaps) for leaps in (False, True))
    assert leaping.loop.handled < single.loop.handled / 3
