"""`triptych bench-engine` on the toy model, with the machine's ceilings made up: probes take seconds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.bench.engine.test_report import ceilings as made_up
from tests.tools.bench.engine.test_report import run
from triptych.runtime.core.errors import EngineError
from triptych.runtime.worker.start_times import StartTimes
from triptych.tools.bench.engine import ceilings
from triptych.tools.bench.engine.command import attempt
from triptych.tools.bench.engine.figures import Figure
from triptych.tools.bench.engine.startup import StartSettings, measure_starts
from triptych.tools.cli import main


def test_wrong_flags_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    wrong = [
        ("--parts", "decode,nothing"), ("--batches", "1,x"), ("--batches", "0"), ("--mixed", "64"), ("--offline", "1x2"),
        ("--seconds", "-1"), ("--context", "0"), ("--json", str(tmp_path / "no" / "x.json")), ("--lengths", ""),
    ]  # fmt: skip
    for flag, value in wrong:
        assert main(("bench-engine", "dummy:toy", flag, value)) == 2, flag
        assert flag.lstrip("-") in capsys.readouterr().err or flag == "--json"


@pytest.mark.parametrize("flag", ["--kv-cache-dtype", "--weights"])
def test_codes_are_measured_through_the_engine(flag: str, capsys: pytest.CaptureFixture[str]):
    assert main(("bench-engine", "dummy:toy", flag, "int8", "--through", "llm")) == 2
    assert f"{flag} is for parts that run through the engine" in capsys.readouterr().err


@pytest.mark.slow
def test_decoding_with_codes_has_its_own_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ceilings, "measure", lambda device, dtype, note=None: made_up())
    flags = (
        "--parts",
        "decode",
        "--batches",
        "1",
        "--context",
        "96",
        "--max-num-seqs",
        "2",
        "--seconds",
        "0",
        "--cache-dir",
        str(tmp_path),
    )
    floors = []
    for codes in ((), ("--kv-cache-dtype", "int8"), ("--weights", "int8")):
        out = tmp_path / f"{len(floors)}.json"
        assert main(("bench-engine", "dummy:toy", *flags, *codes, "--json", str(out))) == 0
        (row,) = json.loads(out.read_text())["steps"]
        floors.append(row["floor_ms"])
    assert max(floors[1:]) < floors[0]


@pytest.mark.slow
@pytest.mark.limit(300)
def test_every_part_runs_on_the_toy_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ceilings, "measure", lambda device, dtype, note=None: made_up())
    flags = (
        "--batches", "1,4", "--context", "96", "--lengths", "64,256", "--max-num-batched-tokens", "128", "--mixed", "4x64", "--offline", "12x64x16",
        "--burst", "4x128x1", "--max-num-seqs", "8", "--seconds", "0.1", "--page-size", "16", "--cache-dir", str(tmp_path),
    )  # fmt: skip
    out = tmp_path / "run.json"
    assert main(("bench-engine", "dummy:toy", *flags, "--through", "both", "--json", str(out))) == 0
    found = json.loads(out.read_text())
    assert [(row["figure"], row["at"], row["note"]) for row in found["steps"]] == [
        ("decode", 1, ""), ("decode", 4, ""), ("prefill", 64, "whole"), ("prefill", 256, "whole"), ("prefill", 256, "in chunks of 128"),
        ("mixed", 4, "and a chunk of 64"),
    ]  # fmt: skip
    assert all(row["floor_ms"] > 0 and row["over_floor"] > 1 and row["host_ms"]["work"] > 0 for row in found["steps"])
    assert [(row["figure"], row["through"]) for row in found["batches"]] == [
        ("offline", "LLM"), ("burst", "LLM"), ("offline", "engine"), ("burst", "engine"),
    ]  # fmt: skip
    assert not found["failed"]


@pytest.mark.slow
@pytest.mark.limit(300)
def test_a_second_start_compiles_nothing(tmp_path: Path):
    settings = StartSettings("dummy:toy", str(tmp_path), "auto", 1, 2, 64, 32, compile_threads=2, num_pages=20)
    cold, warm = measure_starts(settings, lambda text: None)
    assert (cold.kind, warm.kind) == ("cold", "warm")
    assert cold.from_cache < cold.programs == warm.programs == warm.from_cache
    assert warm.phases["lowering"] < cold.phases["lowering"] / 20, "what is kept is not lowered"
    for start in (cold, warm):
        assert {
            "process",
            "devices",
            "model",
            "weights",
            "lowering",
            "compiling",
            "warm_up",
        } <= start.phases.keys()
        assert all(seconds >= 0 for seconds in start.phases.values()) and start.seconds > 0.5


def test_a_starts_phases_are_told_by_name():
    times = StartTimes(1.0, 2.0, 3.5, 0.25, programs=30, from_cache=12)
    assert times.seconds == 6.75 and list(times.phases) == ["weights", "lowering", "compiling", "warm_up"]
    assert times.counters["start_compiling_us"] == 3_500_000 and times.counters["start_programs_cached"] == 12
    assert "warm up 0.2 s" in str(times) and "12 of 30 programs from the cache" in str(times)


def test_figures_before_a_failure_stay_and_other_parts_go_on():
    found = run()
    before = list(found.figures)

    def failing() -> Iterator[Figure]:
        yield before[0]
        raise EngineError("no memory")

    attempt(found, "decode", lambda: found.figures.extend(failing()))
    assert found.figures == [*before, before[0]] and found.failed["decode"] == "EngineError: no memory"
    with pytest.raises(AssertionError):  # a fault of the measurement itself is not a figure's
        attempt(found, "mixed", lambda: (_ for _ in ()).throw(AssertionError("rows")))
