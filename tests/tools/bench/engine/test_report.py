"""Tables, JSON, bounds: every figure with its floor, and what must be reached only where it was set for the same thing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from triptych.models.config import PRESETS
from triptych.tools.bench.bandwidth import Probe
from triptych.tools.bench.engine.ceilings import Ceilings
from triptych.tools.bench.engine.figures import Figure, Throughput
from triptych.tools.bench.engine.loop import HostSeconds
from triptych.tools.bench.engine.report import Run, as_json, draw, rows, tables
from triptych.tools.bench.engine.startup import Start
from triptych.tools.bench.engine.targets import bounds_of
from triptych.tools.bench.engine.work import Work

LLAMA = PRESETS["llama-8b"]
WORK = Work(15e9, 1e9, 1e12)


def ceilings(read: float = 3.2e12) -> Ceilings:
    memory = (Probe("copy f32", 4e12), Probe("sum f32", read), Probe("max f32", read / 2))
    return Ceilings(memory, (Probe("8192 cube", 8e14),), "some GPU")


def run(context: int = 1024, read: float = 3.2e12) -> Run:
    host = HostSeconds(plan=1e-4, pack_and_dispatch=3e-4, wait=5e-3, read=1e-4, apply=1e-4)
    figures = [
        Figure("decode", 1, (6e-3, 6.1e-3, 6.2e-3), (WORK,), host, queued=5.8e-3),
        Figure("decode", 3, (7e-3,), (WORK,)),
        Figure("mixed", 64, (30e-3,), (WORK, WORK), note="and a chunk of 512"),
    ]
    batches = [
        Throughput("offline", 256, 512, 128, 4.0, 300, (WORK,) * 300, host),
        Throughput("offline", 8, 512, 128, 4.0, 300),
        Throughput("burst", 32, 2048, 1, 2.0, 32, through="LLM"),
    ]
    starts = [Start("cold", {"process": 2.0, "weights": 3.0, "warm_up": 65.0}, 40, 0)]
    settings = {"model": "dummy:llama-8b", "dtype": "bfloat16", "attention": "reference", "context": context}
    return Run(settings, LLAMA, ceilings(read), figures, batches, starts, {"prefill": "EngineError: no memory"})


def test_ratios_are_over_the_floor_of_the_best_probe():
    first, second, mixed = rows(run())
    assert first["floor_ms"] == pytest.approx(4.0) and first["over_floor"] == pytest.approx(6.1 / 4)
    assert first["host_share"] == pytest.approx(0.6 / 6.1) and first["host_ms"]["work"] == pytest.approx(0.6)
    assert first["exposed_share"] == pytest.approx(0.3 / 6.1), (
        "of 6.1 ms, 5.8 are left when steps are dispatched far ahead"
    )
    assert (first["must"], first["stretch"], first["met"]) == (6.3, 5.9, True)
    assert (second["must"], second["met"], second["host_share"]) == (None, None, None)
    assert mixed["floor_ms"] == pytest.approx(8.0), "the floors of its two halves, one after the other"


def test_bounds_are_scaled_where_the_machine_reads_slower_and_only_for_steps():
    slow = bounds_of(LLAMA, ceilings(2e12))
    assert slow[("decode", 1)].must == pytest.approx(6.3 * 1.25) and slow[("prefill", 512)].must == 14.5
    assert bounds_of(LLAMA, ceilings(3e12))[("decode", 1)].must == 6.3
    assert bounds_of(PRESETS["toy"], ceilings()) == {}
    assert bounds_of(PRESETS["smollm2-135m"], ceilings())[("offline", 0)].must == 30_000


def test_what_was_measured_otherwise_is_not_judged():
    assert rows(run(context=512))[0]["must"] is None
    for codes in ("weights", "kv_cache_dtype"):
        in_codes = run()
        in_codes.settings[codes] = "int8"
        assert rows(in_codes)[0]["must"] is None, "bounds are those of bfloat16"
    judged = as_json(run())["batches"]
    assert [row["must"] for row in judged] == [6800.0, None, 43500.0]
    assert [row["met"] for row in judged] == [True, None, False], "8192 output tokens/s, 32784 tokens/s of prompts"


def test_the_table_says_what_failed_and_what_was_not_met():
    text = tables(run())
    for words in (
        "some GPU",
        "decode 1",
        "6.10",
        "1.5",
        "NOT MET",
        "cold start 70.0 s (must 60",
        "FAILED prefill: EngineError",
    ):
        assert words in text, words
    json.dumps(as_json(run()))


def test_the_best_of_two_probings_counts():
    one, two = ceilings(2e12), ceilings(3e12)
    assert one.best_of(two).read_rate == 3e12 and one.best_of(two).bandwidth == 4e12


def test_a_picture(tmp_path: Path):
    pytest.importorskip("matplotlib")
    draw(run(), tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 1000
