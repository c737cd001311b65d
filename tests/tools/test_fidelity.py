"""`triptych fidelity`: what is fitted to an idle deployment is found again, and predictions are compared as they should be."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from triptych.runtime.core.errors import EngineError
from triptych.runtime.simulation.steptime import StepShape
from triptych.runtime.simulation.steptime_table import HostTime, Limits, Measured, ProgramTime, PullTime, StepTable
from triptych.tools import fidelity
from triptych.tools.bench.metrics import Arrival, Record
from triptych.tools.cli import main
from triptych.tools.fidelity_fit import NOTHING, Model, contended, fit, predict
from triptych.tools.fidelity_live import Cores, Probe, assign_cores

TABLE = StepTable(
    Limits(16, 4, 256, 64, 4, 200, 1000),
    tuple(
        ProgramTime(rows, tokens, 16, Measured(1, base, 0.0), Measured(1001, base + 2e-3, 0.0))
        for rows, tokens, base in ((1, 0, 4e-3), (2, 0, 5e-3), (4, 0, 6e-3), (0, 64, 9e-3), (4, 64, 11e-3))
    ),
)


def probes(truth: Model, lengths: list[int], together: int) -> list[list[Probe]]:
    """As the live deployment would answer if `truth` were it."""
    sent = [(n * 2.0, length, 32) for n, length in enumerate(lengths) for _ in range(together)]
    seen = predict(truth, sent)
    table = truth.decode
    out = []
    for number, length in enumerate(lengths):
        group = []
        for place in range(number * together, (number + 1) * together):
            steps = []
            for token in range(31):
                context = length + token + 1
                steps.append(table.seconds(StepShape(together, together * context, longest=context, draws=together)))
            steps[0] += seen.after[place] - sum(steps)  # the pull, before the second token
            group.append(Probe(length, 32, float(seen.ttft[place]), tuple(steps)))
        out.append(group)
    return out


def test_what_an_idle_deployment_shows_is_found_again():
    truth = Model(
        "1P1D",
        replace(TABLE, host=HostTime(1.5e-3, 0.0, 0.0)),
        replace(TABLE, host=HostTime(0.7e-3, 0.1e-3, 0.0)),
        replace(NOTHING, admit=3e-3),
        PullTime(4e-3, 50e6),
    )
    model = fit("1P1D", TABLE, TABLE, probes(truth, [20, 100, 200] * 3, 1), probes(truth, [20, 100] * 3, 4))
    assert (model.decode.host.step, model.decode.host.row) == pytest.approx((0.7e-3, 0.1e-3), rel=0.05)
    assert model.prefill.host.step == pytest.approx(1.5e-3, rel=0.05)
    assert model.delays.admit == pytest.approx(3e-3, rel=0.05)
    assert (model.pull.latency, model.pull.bandwidth) == pytest.approx((4e-3, 50e6), rel=0.3)
    sent = [(0.04 * n, 30 + 7 * (n % 20), 10 + n % 30) for n in range(60)]
    mine, theirs = predict(model, sent), predict(truth, sent)
    for name in ("ttft", "tpot"):
        for q in (50, 90):
            assert np.percentile(getattr(mine, name), q) == pytest.approx(
                np.percentile(getattr(theirs, name), q), rel=0.05
            )


def test_an_instance_that_does_both_needs_no_pull():
    truth = Model("PD", TABLE, replace(TABLE, host=HostTime(1e-3, 0.0, 0.0)), replace(NOTHING, admit=2e-3))
    truth = replace(truth, prefill=truth.decode)
    model = fit("PD", TABLE, TABLE, probes(truth, [20, 100] * 2, 1), probes(truth, [20] * 2, 4))
    assert model.delays.admit == pytest.approx(2e-3, rel=0.1)
    assert model.prefill == model.decode and model.pull.latency == 0


def test_steps_are_slower_in_the_proportion_in_which_the_neighbour_is_busy():
    """Prefill is busy half of the time, decode next to never; each is twice as slow beside the other one at work."""
    programs = tuple(
        replace(p, low=replace(p.low, median=2 * p.low.median), high=replace(p.high, median=2 * p.high.median))
        for p in TABLE.programs
    )
    beside = replace(TABLE, programs=programs)
    model = Model("1P1D", TABLE, TABLE)
    sent = [(n * 0.02, 64, 1) for n in range(200)]
    busy = predict(model, sent).busy
    assert 0.4 < busy["prefill"] < 0.6 and busy["decode"] == 0
    slower = contended(model, (beside, beside), sent)
    shape = StepShape(1, 20, longest=20, draws=1)
    assert slower.prefill.seconds(shape) == pytest.approx(TABLE.seconds(shape))
    assert slower.decode.seconds(shape) == pytest.approx((1 + busy["prefill"]) * TABLE.seconds(shape), rel=0.01)


def record(at: float, ttft: float, gap: float, tokens: int, status: str = "OK") -> Record:
    arrivals = tuple(Arrival(at + ttft + gap * n, 1) for n in range(tokens))
    return Record(at, at, arrivals[-1].at, arrivals, 10, status)


def test_rounds_are_compared_quantile_by_quantile():
    model = Model("PD", TABLE, TABLE)
    sent = [(n * 10.0, 30, 11) for n in range(10)]
    predicted = predict(model, sent)
    ttft, tpot = float(predicted.ttft[0]), float(predicted.tpot[0])
    records = [record(at, 2 * ttft, 1.1 * tpot, output) for at, _, output in sent]
    lines = {line.name: line for line in fidelity.medians([fidelity.compare(records, model, sent)] * 3)}
    assert lines["ttft p50"].error == pytest.approx(-0.5, abs=0.01)
    assert lines["tpot p90"].error == pytest.approx(1 / 1.1 - 1, abs=0.01)
    assert "beyond the bound" in fidelity.table("PD", 1.0, list(lines.values()))
    with pytest.raises(EngineError, match="1 of 10"):
        fidelity.compare([*records[1:], record(0, 1, 1, 2, "UNAVAILABLE")], model, sent)


def test_a_trial_says_what_it_was_predicted_from_and_whether_the_machine_stayed_as_it_was():
    slower = replace(TABLE, programs=tuple(replace(p, low=replace(p.low, median=1.0)) for p in TABLE.programs))
    bare = Model("1P1D", TABLE, TABLE)
    rounds = ({"ttft p50": (0.2, 0.1)}, {"ttft p50": (0.4, 0.2)})
    trial = fidelity.Trial(1.5, bare, (TABLE, slower), replace(bare, decode=slower), rounds, 0.06)
    told = json.loads(json.dumps(trial.as_json()))
    assert (told["rate"], told["quiet"], fidelity.Trial(1.5, bare, None, bare, rounds, -0.04).quiet) == (
        1.5,
        False,
        True,
    )
    assert told["rounds"] == [{"ttft p50": [0.2, 0.1]}, {"ttft p50": [0.4, 0.2]}]
    assert [told["steps"][how]["decode"][0]["low"] for how in ("alone", "predicted", "beside")] == [4e-3, 1.0, 1.0]
    assert told["steps"]["beside"]["prefill"][0]["low"] == 4e-3
    before, after = ([[Probe(9, 3, 0.1, (gap, gap))]] * 3 for gap in (0.01, 0.02))
    assert fidelity.token_gap(after) / fidelity.token_gap(before) == pytest.approx(2.0)


def test_workers_have_cores_of_their_own():
    assert Cores(((2,), (3,)), (0, 1)).shared is False and Cores(((0,), (1,)), (0, 1)).shared
    assert len(assign_cores(1).workers) == 1


def test_wrong_calls_say_what_is_wrong(capsys):
    assert main(("fidelity", "--load", "0.95")) == 2
    assert "at most 0.8" in capsys.readouterr().err
    assert main(("fidelity", "--topology", "9999PD")) == 2
    assert "a core each" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="each of two workers needs a core")
@pytest.mark.limit(900)
def test_a_live_round(tmp_path: Path, capsys):
    """That it runs from end to end; how good the prediction is only a quiet machine can say."""
    out = tmp_path / "fidelity.json"
    small = (
        "--requests",
        "12",
        "--rounds",
        "1",
        "--probes",
        "2",
        "--seconds",
        "0",
        "--max-num-seqs",
        "2",
        "--load",
        "0.3",
    )
    assert main(("fidelity", "--topology", "1P1D", *small, "--max-model-len", "128", "--max-num-batched-tokens", "64",
                 "--input-len", "40", "--output-len", "10", "--cache-dir", str(tmp_path), "--json", str(out))) in (0, 1)  # fmt: skip
    report = json.loads(out.read_text())["topologies"]["1P1D"]
    assert [line["name"] for line in report["lines"]] == ["ttft p50", "ttft p90", "tpot p50", "tpot p90"]
    assert all(line["measured"] > 0 and line["predicted"] > 0 for line in report["lines"])
    assert "1P1D at" in capsys.readouterr().out
