"""Points: what is judged, what meets the objectives, how fast tokens came, and whether the generator kept time."""

from __future__ import annotations

import pytest

from tests.tools.bench.sweep.fakes import SLO, record
from triptych.runtime.simulation.slo import Slo
from triptych.tools.bench.sweep.judge import Window, judge, most_lag
from triptych.tools.bench.sweep.losses import compare

LATE = "DEADLINE_EXCEEDED"


WHOLE = Window(0, 0.0, 10.0)


def point(records, window=WHOLE, lag=0.05, loop=()):
    return judge(1.0, records, 0.0, window, SLO, lag, list(loop))


def test_requests_of_the_warm_up_are_not_judged_but_their_tokens_in_the_window_count():
    records = [record(0.0, 5.0, tokens=10, gap=0.1), *(record(float(k), 0.2) for k in range(5, 10))]
    found = point(records, Window(1, 5.0, 5.0))
    assert (found.requests, found.completed, found.attainment) == (5, 5, 1.0)
    assert found.offered == 1.0 and found.request_rate == 1.0
    assert found.output_token_rate == pytest.approx((10 + 25) / 5)


def test_a_token_after_the_window_is_not_throughput():
    assert point([record(9.0, 0.5, gap=0.2, tokens=10)]).output_token_rate == pytest.approx(3 / 10)


def test_objectives_are_judged_one_by_one_and_together():
    records = [
        record(0, 0.5),
        record(1, 2.0),
        record(2, 0.5, gap=0.2),
        record(3, 0.5, tokens=1),
        record(4, None, status="UNAVAILABLE"),
    ]
    found = point(records)
    assert (found.ttft_met, found.tpot_met, found.attainment) == (0.6, 0.6, 0.4)
    assert found.failures == {"UNAVAILABLE": 1} and found.completed == 4
    assert found.latencies["ttft"].count == 4, "what was refused has no TTFT"


def test_what_had_not_ended_missed_and_waited_at_least_so_long():
    found = point([record(0, 0.5), record(1, None, status=LATE), record(2, 0.5, tokens=3, status=LATE)])
    assert found.unfinished == 2 and found.censored == 1 and found.failures == {}
    assert found.latencies["ttft"].max == pytest.approx(3.0) and found.attainment == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("late", "loop", "valid"), [(0.01, (), True), (0.2, (), False), (0.0, (0.3,) * 5, False), (0.0, (0.0,) * 500, True)]
)
def test_a_late_generator_makes_no_valid_point(late: float, loop: tuple[float, ...], valid: bool):
    found = point([record(0, 0.5, late=late), record(1, 0.5, late=late)], loop=loop)
    assert found.valid is valid and bool(found.why) is not valid
    assert found.send_lag == pytest.approx(late)


def test_lateness_is_measured_by_the_objective():
    assert (
        most_lag(Slo(2.0, 0.1)) == pytest.approx(0.1) and most_lag(Slo(0.01, 0.1)) == most_lag(Slo(None, 0.1)) == 0.005
    )


def test_nothing_to_judge_is_an_error():
    with pytest.raises(ValueError, match="nothing to judge"):
        point([record(0, 0.5)], Window(1, 5.0, 1.0))


def test_the_same_requests_are_compared_one_by_one():
    here = point([record(0, 0.4), record(1, 0.1), record(2, 2.0), record(3, None, status="UNAVAILABLE")]).rows
    there = point([record(0, 0.2), record(1, 0.2), record(2, 0.2), record(3, 2.0)]).rows
    found = compare(1.0, here, there)
    assert (found.requests, found.lost, found.won) == (4, 1, 0)
    ttft, tpot = found.losses
    assert (ttft.requests, ttft.slower) == (3, pytest.approx(2 / 3))
    assert (ttft.median, ttft.worst) == (pytest.approx(2.0), pytest.approx(10.0))
    assert tpot.median == pytest.approx(1.0)
    assert compare(1.0, there, here).won == 1
    with pytest.raises(ValueError, match="3 requests against 4"):
        compare(1.0, here[:3], there)
