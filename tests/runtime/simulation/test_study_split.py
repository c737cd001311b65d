"""A study in two processes is the study in one: every request, step and sample, to the last bit; and no process outlives the other."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.core.topology import parse
from triptych.runtime.simulation.events import EventLoop
from triptych.runtime.simulation.metrics import COLUMNS
from triptych.runtime.simulation.steptime import Affine
from triptych.runtime.simulation.study import Study, make_cluster, run_rate
from triptych.runtime.simulation.study_cluster import Outcome, StudyError
from triptych.runtime.simulation.study_fleet import Delays, seats
from triptych.runtime.simulation.study_layout import Device, Limits, layout
from triptych.runtime.simulation.study_split import in_windows, shared_out
from triptych.runtime.simulation.workload import Arrival, Lengths, Shape
from triptych.runtime.simulation.workload_named import Workload

TIMES = Affine(4e-3, 2e-4, 1e-6, 5e-5)
LIMITS = Limits(16, 16, 1024, 256, 4, 400)
RANDOM = Workload("random", prompt=Lengths(100, 1.0), output=Lengths(30, 1.0), most=1000)
SESSIONS = Workload("sessions", prompt=Lengths(100, 1.0), output=Lengths(30, 1.0), turns=4, think=2.0, most=1000)


def study(topology: str, workload: Workload = RANDOM, limits: Limits = LIMITS, **changes) -> Study:
    device = Device(changes.pop("times", TIMES), limits, limits.num_pages or 0, changes.pop("bandwidth", 1e8), 1000)
    return Study(
        **(
            {"kinds": layout(parse(topology), device, device), "workload": workload, "rates": (1.0,), "requests": 1}
            | changes
        )
    )


def outcome(one: Study, jobs: int, rate: float, count: int, arrivals: list[Arrival] | None = None) -> Outcome:
    load = islice(one.workload.arrivals(rate), count) if arrivals is None else iter(arrivals)
    return make_cluster(replace(one, jobs=jobs)).run(load, sample=count / rate / 50, every=0.7)


def compare(one: Study, rate: float, count: int, arrivals: list[Arrival] | None = None) -> Outcome:
    single, split = (outcome(one, jobs, rate, count, arrivals) for jobs in (1, 2))
    for name in COLUMNS:
        assert split.requests.column(name).tobytes() == single.requests.column(name).tobytes(), name
    assert len(split.requests) == count
    assert split.requests.failures == single.requests.failures
    assert split.steps == single.steps
    assert split.timeline == single.timeline
    assert split.seconds == single.seconds
    assert single.elsewhere == 0 < split.elsewhere
    return split


@pytest.mark.parametrize(
    ("topology", "workload", "rate", "count"),
    [
        ("PD", RANDOM, 10.0, 60),
        ("2P2D", RANDOM, 40.0, 200),
        ("3(P-D)", SESSIONS, 30.0, 200),
        ("2P3D", SESSIONS, 40.0, 200),
        ("2P1D2PD", RANDOM, 60.0, 200),
        ("100P300D", RANDOM, 4000.0, 1000),
    ],
)
def test_two_processes_give_what_one_gives(topology, workload, rate, count):
    result = compare(study(topology, workload), rate, count)
    assert sum(sum(steps) for steps in result.steps.values()) > count
    if workload is SESSIONS:
        assert result.requests.column("cached").sum() > 0


def test_prefix_blocks_of_a_trace_are_the_same_on_both_sides():
    limits = Limits(64, 16, 4096, 1024, 4, 1000)
    result = compare(study("2P2D", Workload("mooncake", most=4000), limits), 10.0, 150)
    assert result.requests.column("cached").sum() > 0


def test_every_step_singly_and_preempted():
    limits = Limits(4, 12, 90, 32, 2, 40)
    load = Workload("random", prompt=Lengths(12, 0.5, 30), output=Lengths(50, 0.3, 60), most=90)
    result = compare(study("2PD", load, limits, leaps=False), 40.0, 60)
    assert result.requests.column("preemptions").sum() > 5


def test_what_cannot_be_served_fails_in_both():
    load = replace(RANDOM, prompt=Lengths(300), output=Lengths(5))
    assert compare(study("1P1D", load, replace(LIMITS, num_pages=12)), 5.0, 10).requests.failures == {
        "INVALID_ARGUMENT": 10
    }


def test_refused_reservations_are_repeated():
    result = compare(study("2P2D", RANDOM, replace(LIMITS, num_pages=70, max_num_seqs=3)), 100.0, 100)
    assert result.requests.column("queue").max() > 0.1


def test_ties_everywhere():
    """Bursts of equal requests in the same instant, steps and delays that are powers of two: most events have company."""
    tick = 2.0**-11
    times = Affine(8 * tick, 0.0, 0.0, tick / 64)
    delays = Delays(admit=2 * tick, command=tick, report=tick, token=tick, pull=2 * tick)
    arrivals = [Arrival(n, (n // 24) * 64 * tick, Shape(64, 16)) for n in range(240)]
    for topology in ("3P3D", "4PD"):
        one = study(topology, times=times, delays=delays, bandwidth=2.0**20, heartbeat=0.25)
        ends = compare(one, 240 / (10 * 64 * tick), 240, arrivals).requests.column("e2e")
        assert len(set(ends)) < len(ends) / 2


def test_uneven_delays_and_a_link_that_is_short():
    delays = Delays(admit=0.001, command=0.0031, report=0.0007, token=0.002, pull=0.0013)
    result = compare(study("4P1D", RANDOM, delays=delays, bandwidth=2e6), 12.0, 80)
    assert result.requests.column("transfer").max() > 3 * result.requests.column("transfer").min()


def test_a_rate_in_two_processes_is_the_same_result():
    one = study("1P1D", rates=(20.0,), requests=50)
    single, split = (run_rate(replace(one, jobs=jobs), 20.0) for jobs in (1, 2))
    assert replace(split, cpu_seconds=0.0) == replace(single, cpu_seconds=0.0)


# ---- windows


def test_windows_hold_no_event_back_and_let_none_go_early():
    """Two loops that send each other a message whenever one comes, delays at the limit: each arrives when it is due."""
    loops, width, seen = (EventLoop(), EventLoop()), 0.5, list[tuple[float, float]]()

    def hop(what: tuple[int, float, int]) -> None:
        side, due, left = what
        now = loops[side].now()
        seen.append((due, now))
        if left:
            box.append((1 - side, now + width, left - 1))

    box: list[tuple[int, float, int]] = []
    for loop, start in zip(loops, (0.1, 0.35), strict=True):
        loop.at(start, None, hop, (loops.index(loop), start, 30))
    rounds = []

    def exchange() -> tuple[float, bool]:
        rounds.append(loops[0].now())
        loops[1].run_until(loops[0].now())  # the other side, in step
        for side, due, left in box:
            assert due > loops[side].now()
            loops[side].at(due, None, hop, (side, due, left))
        box.clear()
        return min(loop.next for loop in loops), min(loop.next for loop in loops) < math.inf

    looks: list[float] = []
    in_windows(loops[0], width, 4.0, exchange, looks.append)
    assert len(seen) == 62 and all(due == now for due, now in seen)
    assert looks == [4.0, 8.0, 12.0, 16.0]
    assert len(rounds) < 60


@pytest.mark.parametrize("topology", ["PD", "1P1D", "24P8D", "200P600D", "3000PD", "64P64D64PD"])
def test_every_worker_is_in_one_process_and_the_child_has_some(topology):
    workers = seats(study(topology).kinds)
    mine = shared_out(workers)
    assert mine < set(range(len(workers)))
    decoding = {n for n, worker in enumerate(workers) if Role.DECODE in worker[0].info.roles}
    assert not mine & decoding or set(range(len(workers))) - decoding <= mine, "what only prefills comes first"
    if len(workers) > 50:
        assert 0.05 < len(mine) / len(workers) < 0.6


# ---- ends


@pytest.mark.parametrize("delay", ["command", "report", "pull"])
def test_without_a_delay_there_is_no_window(delay):
    with pytest.raises(ConfigError, match="no window"):
        study("1P1D", jobs=2, delays=replace(Delays(), **{delay: 0.0}))


@pytest.mark.parametrize("jobs", [0, 3])
def test_a_wrong_number_of_processes_is_refused(jobs):
    with pytest.raises(ConfigError, match="expected 1 or 2"):
        study("1P1D", jobs=jobs)


def test_a_child_that_dies_is_an_error_and_no_hang():
    def kill(now: float, submitted: int, ended: int) -> None:
        if submitted > 20:
            (child,) = multiprocessing.active_children()
            os.kill(child.pid or 0, signal.SIGKILL)

    began = time.monotonic()
    with pytest.raises(StudyError, match=r"is gone \(exit code -9"):
        make_cluster(study("1P1D", jobs=2)).run(islice(RANDOM.arrivals(20.0), 200), progress=kill, every=0.5)
    assert time.monotonic() - began < 60
    assert not multiprocessing.active_children()


def test_a_child_that_fails_says_why():
    broken = tuple(replace(kind, composer=object) for kind in study("PD").kinds)  # its instances live in the child
    with pytest.raises(StudyError, match="'object' object has no attribute"):
        make_cluster(study("PD", kinds=broken, jobs=2)).run(islice(RANDOM.arrivals(20.0), 20))
    assert not multiprocessing.active_children()


def test_an_error_of_the_parent_ends_the_child():
    def arrivals() -> Iterator[Arrival]:
        yield from islice(RANDOM.arrivals(20.0), 10)
        raise OSError("the trace ended badly")

    with pytest.raises(OSError, match="ended badly"):
        make_cluster(study("1P1D", jobs=2)).run(arrivals())
    assert not multiprocessing.active_children()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for the child in /proc")
@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="children of a background job ignore Ctrl-C"
)
def test_ctrl_c_ends_both():
    call = "simulate --topology 40P60D --hardware h100 --model qwen-1.5b --rate 1000 --requests 30000 --jobs 2 --input-len 200 --output-len 20"
    process = subprocess.Popen(
        [sys.executable, "-m", "triptych.tools.cli", *call.split()], stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stderr is not None and b"virtual time" in process.stderr.readline()
        children = _children(process.pid)
        assert children
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        process.wait(60)
        assert process.returncode != 0
        deadline = time.monotonic() + 60
        while any(map(_alive, children)):
            assert time.monotonic() < deadline, f"{children} go on"
            time.sleep(0.05)
    finally:
        process.kill()
        process.communicate()


def _children(pid: int) -> list[int]:
    """Of a process's main thread."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
