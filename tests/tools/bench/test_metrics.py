"""Latency arithmetic on synthetic events whose answers are known."""

from __future__ import annotations

import pytest

from triptych.tools.bench.compare import ratios
from triptych.tools.bench.metrics import Arrival, Record, meets, parse_objectives, spread, summarise


def record(sent: float, *arrivals: tuple[float, int], status: str = "OK", inputs: int = 10) -> Record:
    ended = arrivals[-1][0] if arrivals else sent + 1.0
    return Record(sent, sent, ended, tuple(Arrival(at, n) for at, n in arrivals), inputs, status)


def test_latencies_of_one_request():
    r = record(1.0, (1.5, 1), (1.6, 1), (1.9, 2))
    assert r.ttft == pytest.approx(0.5)
    assert r.e2e == pytest.approx(0.9)
    assert r.tpot == pytest.approx(0.4 / 3)
    assert r.itl == pytest.approx((0.1, 0.3))
    assert r.output_tokens == 4


def test_a_single_token_has_no_tpot_and_no_gap():
    r = record(0.0, (0.2, 1))
    assert (r.tpot, r.itl) == (None, ())
    assert r.e2e == r.ttft


def test_percentiles_interpolate():
    s = spread([float(i) for i in range(101)])
    assert s is not None
    assert (s.p50, s.p90, s.p99, s.max, s.mean, s.count) == (50.0, 90.0, 99.0, 100.0, 50.0, 101)
    assert spread([]) is None


def test_rates_run_from_first_send_to_last_end_and_count_completed_requests_only():
    records = [record(10.0, (11.0, 1), (12.0, 1)), record(11.0, (14.0, 3)), record(12.0, status="RESOURCE_EXHAUSTED")]
    s = summarise(records)
    assert s.duration == pytest.approx(4.0)
    assert (s.requests, s.completed, s.input_tokens, s.output_tokens) == (3, 2, 20, 5)
    assert s.request_rate == pytest.approx(0.5)
    assert s.output_token_rate == pytest.approx(1.25)
    assert s.failures == {"RESOURCE_EXHAUSTED": 1}
    assert s.goodput is None and s.latencies["ttft"].count == 2


def test_goodput_needs_every_objective_and_a_failed_request_meets_none():
    objectives = {"ttft": 0.5, "tpot": 0.1}
    fast = record(0.0, (0.4, 1), (0.5, 1))
    late = record(0.0, (0.6, 1), (0.7, 1))
    slow = record(0.0, (0.4, 1), (0.6, 1))
    single = record(0.0, (0.5, 1))
    failed = record(0.0, (0.1, 1), status="UNAVAILABLE")
    assert [meets(r, objectives) for r in (fast, late, slow, single, failed)] == [True, False, False, True, False]
    s = summarise([fast, late, slow, single, failed], objectives)
    assert s.attainment == pytest.approx(2 / 5)
    assert s.goodput == pytest.approx(2 / 0.7)


def test_each_set_of_objectives_is_judged_by_itself_and_the_first_has_the_names_of_a_single_one():
    strict, loose = {"ttft": 0.1}, {"ttft": 0.5, "tpot": 0.5}
    records = [record(0.0, (0.1, 1), (1.0, 2)), record(0.0, (0.4, 1), (0.5, 1))]
    s = summarise(records, strict, loose)
    assert [(g.objectives, g.attainment, g.goodput) for g in s.goodputs] == [(strict, 0.5, 1.0), (loose, 1.0, 2.0)]
    assert (s.objectives, s.attainment, s.goodput) == (strict, 0.5, 1.0)
    assert summarise(records, loose, strict).objectives == loose
    assert summarise(records).goodputs == summarise(records, {}).goodputs == ()


def test_the_itl_objective_is_about_the_worst_gap():
    assert meets(record(0.0, (0.1, 1), (0.2, 1), (0.5, 1)), {"itl": 0.31})
    assert not meets(record(0.0, (0.1, 1), (0.2, 1), (0.5, 1)), {"itl": 0.29})


def test_a_generator_that_sends_late_says_so():
    s = summarise([Record(1.0, 1.25, 2.0, (Arrival(2.0, 1),), 1)])
    assert s.max_send_lag == pytest.approx(0.25)


def test_a_run_of_failures_only_has_no_latencies():
    s = summarise([record(0.0, status="UNAVAILABLE")])
    assert (s.completed, s.latencies, s.output_token_rate) == (0, {}, 0.0)


def test_objectives_are_read_in_seconds():
    assert parse_objectives(["ttft:0.2", "tpot:0.02", "e2el:5"]) == {"ttft": 0.2, "tpot": 0.02, "e2e": 5.0}


@pytest.mark.parametrize("text", ["ttft", "ttft:", "ttft:fast", "speed:1", "tpot:0", "tpot:nan"])
def test_objectives_that_cannot_be_read_are_refused(text: str):
    with pytest.raises(ValueError, match="objective"):
        parse_objectives([text])


def test_ratios_are_taken_round_by_round():
    def at_speed(factor: float):
        return summarise([record(0.0, (0.1 * factor, 1), (0.2 * factor, 1))])

    table = {
        r.name: r for r in ratios([at_speed(1), at_speed(4), at_speed(2)], [at_speed(2), at_speed(4), at_speed(3)])
    }
    ttft = table["TTFT p50"]
    assert (ttft.a, ttft.b) == (pytest.approx(0.2), pytest.approx(0.3))
    assert (ttft.low, ttft.ratio, ttft.high) == (pytest.approx(1.0), pytest.approx(1.5), pytest.approx(2.0))
    assert table["output tok/s"].ratio == pytest.approx(1 / 1.5)
