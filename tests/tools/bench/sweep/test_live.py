"""A point of a real server behind real sockets: what is sent, until when, and what is made of the answers."""

from __future__ import annotations

import argparse

import pytest

from tests.tools import fake_server
from tests.tools.bench.sweep.fakes import SLO, Clock, plan
from triptych.runtime.core.errors import ConfigError
from triptych.tools.bench.sweep import live
from triptych.tools.bench.sweep.budget import of_seconds
from triptych.tools.bench.sweep.candidates import parse_candidates
from triptych.tools.bench.sweep.loads import parse_loads
from triptych.tools.supervisor import Supervisor

NOBODY = "127.0.0.1:9"  # the scheduler, whose workers' counters are then unknown


def test_a_point_sends_its_load_and_judges_the_answers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live, "SETTLE", 0.0)
    server, toy, address = fake_server.start()
    try:
        made = plan(warmup=0.1, judged=0.4, least=4, most_lag=30.0)
        running = live.Running(Supervisor(), address, NOBODY, 1.0, made, of_seconds(100.0, Clock()))
        (load,) = parse_loads("poisson:input=7:output=5", SLO)
        source = running.open(load)
        warm = len(toy.requests)
        assert {len(r.token_ids.ids) for r in toy.requests} == {7} and {
            r.sampling.max_tokens for r in toy.requests
        } == {5}
        point = running.measure(source, 20.0)
        sent = toy.requests[warm:]
        assert len(sent) == 2 + 8 and point.requests == point.completed == 8 and point.offered == pytest.approx(20.0)
        assert point.valid and point.attainment == 1.0 and not point.failures
        assert {row["input"] for row in point.rows} == {7} and {row["output"] for row in point.rows} == {5}
        assert all(r.sampling.temperature == 0 and r.sampling.ignore_eos for r in sent)
        assert len({r.cache_salt for r in sent}) == len(sent) and len({tuple(r.token_ids.ids) for r in sent}) == len(
            sent
        )
        assert not {token for r in sent for token in r.token_ids.ids} & {2, *range(90, 100)}, (
            "no token that means something"
        )
        assert SLO.ttft is not None and SLO.tpot is not None
        longest = 0.5 + 30.0 + SLO.ttft + 4 * SLO.tpot  # the last request, met at the last moment
        assert all(0 < r.timeout <= longest for r in sent) and running.seconds(source, 20.0) >= longest - 0.1
        assert point.moved is None and point.compiled is None, "workers that do not answer are unknown, not idle"
        again = running.measure(source, 20.0)
        assert [(r["input"], r["output"]) for r in again.rows] == [(r["input"], r["output"]) for r in point.rows]
        assert {tuple(r.token_ids.ids) for r in toy.requests[warm + 10 :]} == {tuple(r.token_ids.ids) for r in sent}
    finally:
        server.stop(None)


def test_too_few_gpus_are_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    (candidate,) = parse_candidates("1P1D", argparse.Namespace(model="dummy:toy", device="cuda"))
    starting = live.running(candidate, of_seconds(9.0, Clock()), plan(), print)
    with pytest.raises(ConfigError, match="needs 2 GPUs .*CUDA_VISIBLE_DEVICES has 1"), starting:
        raise AssertionError("it must not start")
