"""Studies: what they report can be computed by hand where it is simple, and moves the right way where it is not."""

from __future__ import annotations

import gc
import json
import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.request import Request
from triptych.runtime.core.topology import parse
from triptych.runtime.instance.tasks import Stream, Task
from triptych.runtime.scheduler.state import Record
from triptych.runtime.simulation.metrics import Requests, spread
from triptych.runtime.simulation.slo import Slo, attainment, goodput
from triptych.runtime.simulation.steptime import Affine
from triptych.runtime.simulation.study import Study, make_cluster, run_rate, run_study
from triptych.runtime.simulation.study_fleet import Delays
from triptych.runtime.simulation.study_layout import Device, Limits, layout
from triptych.runtime.simulation.workload import Lengths
from triptych.runtime.simulation.workload_named import Workload

STEP, TOKEN = 0.01, 1e-4  # seconds a step, and a prefill token more
DELAYS = Delays(admit=0.001, command=0.002, report=0.003, token=0.004, pull=0.005)


def study(topology: str = "1P1D", **changes) -> Study:
    limits = Limits(16, 8, 1024, 256, 4, changes.pop("pages", 500))
    device = Device(Affine(STEP, 0, 0, TOKEN), limits, limits.num_pages or 0, changes.pop("bandwidth", 1e6), 1000)
    fields = {
        "kinds": layout(parse(topology), device, device),
        "workload": Workload("random", prompt=Lengths(100), output=Lengths(11), most=1024),
        "rates": (0.5,),
        "requests": 20,
        "delays": DELAYS,
        "warmup": 0.0,
    }
    return Study(**(fields | changes))


def test_an_unloaded_request_takes_the_sum_of_its_parts():
    """1P1D. TTFT: admit, ReserveDecode, Granted, StartPrefill, one step of 100 tokens, token. The KV of 7 pages, 1 kB a token, at 1 MB/s: 112 ms."""
    result = run_rate(study(), 0.5)
    prefill = STEP + 100 * TOKEN
    ttft = DELAYS.admit + DELAYS.command + DELAYS.report + DELAYS.command + prefill + DELAYS.token
    assert result.latencies["ttft"].p50 == pytest.approx(ttft)
    assert result.latencies["prefill"].p50 == pytest.approx(prefill)
    moving = (
        7 * 16 * 1000 / 1e6 + DELAYS.pull
    )  # the last byte, and word of it; 9 more steps and one that ends the pipeline follow
    e2e = ttft + moving + 10 * STEP
    assert result.latencies["e2e"].p50 == pytest.approx(e2e)
    assert result.latencies["tpot"].p50 == pytest.approx((e2e - ttft) / 10)
    assert (result.requests, result.failures, result.output_tokens) == (20, {}, 220)


def test_an_instance_that_does_both_moves_nothing():
    result = run_rate(study("PD"), 0.5)
    ttft = DELAYS.admit + DELAYS.command + STEP + 100 * TOKEN + DELAYS.token
    assert result.latencies["ttft"].p50 == pytest.approx(ttft)
    assert result.latencies["tpot"].p50 == pytest.approx(STEP)
    assert result.latencies["transfer"].max == 0


def test_attainment_falls_with_the_rate_and_goodput_is_where_it_crosses():
    result = run_study(study("PD", rates=(200.0, 2.0, 20.0, 60.0), requests=100, slo=Slo(0.1, 0.03)))
    shares = [r.attainment.both for r in result.results]
    assert [r.rate for r in result.results] == [2, 20, 60, 200]
    assert shares == sorted(shares, reverse=True) and shares[0] == 1 and shares[-1] < 0.5
    assert result.goodput == max(r.rate for r in result.results if r.attainment.both >= 0.9)
    busy = [r.occupancy["pd"]["busy"] for r in result.results]
    assert 0 < busy[0] < busy[1] < busy[2] and busy[0] < 0.5 and 0.9 < busy[-1] < 1.01


def test_splitting_keeps_prefill_out_of_the_way_of_decode():
    """Long prompts, the same two devices: the time per token at the tail is better apart, as DistServe says."""
    workload = Workload("random", prompt=Lengths(800), output=Lengths(40), most=1024)
    together, apart = (
        run_rate(replace(study(topology, pages=2000, bandwidth=1e9), workload=workload, requests=80), 8.0)
        for topology in ("2PD", "1P1D")
    )
    assert apart.latencies["tpot"].p90 < 0.7 * together.latencies["tpot"].p90


def test_sessions_reuse_the_kv_of_their_earlier_turns():
    workload = Workload("sessions", prompt=Lengths(200), output=Lengths(20), turns=5, think=4, most=1024)
    warm, cold = (
        run_rate(replace(study("PD", pages=2000), workload=workload, kinds=kinds, requests=100), 2.0)
        for kinds in (
            study("PD", pages=2000).kinds,
            tuple(replace(k, prefix_cache=False) for k in study("PD", pages=2000).kinds),
        )
    )
    assert warm.latencies["prefill"].mean < 0.8 * cold.latencies["prefill"].mean


def test_what_cannot_be_served_fails_and_meets_nothing():
    result = run_rate(
        replace(study(pages=12), workload=Workload("random", prompt=Lengths(300), output=Lengths(5), most=1024)), 1.0
    )
    assert result.failures == {"INVALID_ARGUMENT": 20}
    assert result.attainment.both == 0 and result.latencies == {}


def test_the_same_study_gives_the_same_result():
    one, two = (run_rate(study("1P1D", rates=(30.0,), requests=60), 30.0) for _ in range(2))
    assert replace(one, cpu_seconds=0.0) == replace(two, cpu_seconds=0.0)
    json.dumps(run_study(study()).as_dict())


def test_requests_that_ended_leave_nothing_to_the_cycle_collector():
    """A study of a million requests lets it rest."""

    def alive() -> int:
        return sum(isinstance(thing, Stream | Task | Request | Record) for thing in gc.get_objects())

    gc.collect()
    before = alive()
    gc.disable()
    try:
        for topology, pages in (("1P1D", 500), ("PD", 26)):  # with room, and preempting
            cluster = make_cluster(study(topology, pages=pages))
            load = Workload("random", prompt=Lengths(100), output=Lengths(60)).arrivals(20.0)
            outcome = cluster.run(islice(load, 60))
            assert len(outcome.requests) == 60
            assert alive() == before
        assert outcome.requests.column("preemptions").sum() > 0
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "changes",
    [{"rates": ()}, {"rates": (0.0,)}, {"requests": 0}, {"warmup": 1.0}, {"router": "dice"}, {"queue_order": "luck"}],
)
def test_a_study_that_cannot_be_is_refused(changes):
    with pytest.raises(ConfigError):
        study(**changes)


# ---- metrics


def test_goodput_is_the_largest_rate_up_to_which_all_pass():
    assert goodput([4, 1, 2, 8], [0.95, 1.0, 0.9, 0.3]) == 4
    assert goodput([1, 2, 4], [1.0, 0.8, 0.95]) == 1
    assert goodput([1], [0.89]) is None


def test_failures_and_single_tokens_in_attainment():
    requests = Requests()
    requests.add(at=0.0, ttft=0.1, tpot=0.01)
    requests.add(at=1.0, ttft=0.1)  # one token: no TPOT to miss
    requests.add(at=2.0, ttft=0.5, tpot=0.01)
    requests.fail(3.0, "RESOURCE_EXHAUSTED")
    share = attainment(requests, Slo(0.2, 0.02))
    assert (share.ttft, share.tpot, share.both) == (0.5, 0.75, 0.5)
    assert attainment(requests, Slo(0.2, 0.02), after=1.5).both == 0
    with pytest.raises(ValueError, match="nothing to judge"):
        attainment(requests, Slo(), after=9.0)
    with pytest.raises(ValueError, match="ttft"):
        Slo(ttft=0.0)


def test_spread_leaves_out_what_is_not_a_number():
    assert spread([math.nan]) is None
    values = spread(np.array([1.0, math.nan, 3.0]))
    assert values is not None and (values.count, values.mean, values.p50, values.max) == (2, 2.0, 2.0, 3.0)
