"""`triptych calibrate` measures the real engine: every program at both ends, on exactly the program that was meant."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from triptych.runtime.simulation.steptime import shape_of
from triptych.runtime.simulation.steptime_table import load_table
from triptych.tools.cli import main

FLAGS = ("--max-num-seqs", "2", "--max-model-len", "96", "--max-num-batched-tokens", "32", "--seconds", "0")


@pytest.fixture(scope="module")
def table_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("calibrate") / "table.json"
    assert main(("calibrate", "dummy:toy", "--out", str(out), *FLAGS)) == 0
    return out


def test_every_program_is_measured(table_file: Path):
    table = load_table(table_file)
    sizes = {(p.decode_rows, p.prefill_tokens) for p in table.programs}
    assert {(1, 0), (2, 0), (0, 32), (2, 32)} <= sizes
    assert all(0 < p.low.median < 10 and 0 < p.high.median < 10 and p.low.pairs <= p.high.pairs for p in table.programs)
    assert 0 <= table.host.hidden <= 1 and table.host.step + table.host.row > 0
    assert table.limits.kv_bytes_per_token == 2 * 2 * 4 * 16 * 4  # keys and values, layers, heads, head size, float32
    assert table.facts["model"] == "dummy:toy"


def test_the_simulator_reads_what_was_measured(table_file: Path, capsys):
    flags = (
        "--table",
        str(table_file),
        "--trace",
        "random",
        "--input-len",
        "40",
        "--output-len",
        "10",
        "--requests",
        "20",
    )
    assert main(("simulate", *flags, "--topology", "PD", "--kv-bandwidth", "1GB", "--rate", "5")) == 0
    assert "1 pd" in capsys.readouterr().out
    assert main(("simulate", *flags, "--topology", "1P1D", "--rate", "5")) == 2
    assert "pull bandwidth" in capsys.readouterr().err


def test_loads_choose_the_program_that_is_to_be_measured():
    from tests.runtime.engine.driver import compiled
    from triptych.runtime.engine.buckets import Demand, ProgramChoice
    from triptych.tools.calibration import loads, plan_of

    engine = compiled()
    choice = ProgramChoice(engine.config.buckets, engine.config.max_prefill_rows)
    for shape in engine.config.buckets.extend:
        for load in loads(engine, shape):
            step = shape_of(plan_of(engine, load, 1, min(len(load.decode) or 1, engine.config.max_num_seqs)))
            width = -(-step.longest // engine.config.page_size)
            assert choice.cheapest(Demand(step.decode_rows, step.prefill_rows, step.prefill_tokens, width))[0] == shape


def test_wrong_calls_say_what_is_wrong(tmp_path: Path, capsys):
    assert main(("calibrate", "dummy:toy", "--out", str(tmp_path / "no" / "x.json"))) == 2
    assert main(("calibrate", "dummy:toy", "--out", str(tmp_path / "x.json"), "--max-num-seqs", "0")) == 2
    assert main(("calibrate", "dummy:toy", "--out", str(tmp_path))) == 2
    assert main(("calibrate", "dummy:toy", "--out", str(tmp_path / "x.json"), "--seconds", "nan")) == 2
    assert main(("calibrate", "dummy:nothing", "--out", str(tmp_path / "x.json"))) == 2
    text = capsys.readouterr().err
    assert (
        "no folder" in text
        and "is a folder" in text
        and "--seconds is nan" in text
        and "--max-num-seqs" in text
        and "nothing" in text
    )


@pytest.mark.parametrize(
    ("rows", "most", "chunk", "pages"), [(8, 256, 64, 129), (8, 128, 16, 65), (1, 64, 64, 5), (32, 512, 32, 200)]
)
def test_host_time_is_measured_on_steps_in_which_all_rows_decode(rows: int, most: int, chunk: int, pages: int):
    from triptych.tools.calibration import core_seconds

    config = SimpleNamespace(
        num_pages=pages, page_size=16, max_num_seqs=rows, max_model_len=most, chunk_tokens=chunk, max_prefill_rows=4
    )
    engine = cast(Any, SimpleNamespace(config=config))
    assert 0 < core_seconds(engine, rows) < 1


@pytest.mark.slow
def test_encode_programs_of_a_multimodal_model_are_measured(tmp_path: Path, capsys):
    out = tmp_path / "table.json"
    assert main(("calibrate", "dummy:toy-vlm", "--out", str(out), *FLAGS, "--encode-patches", "300")) == 0
    table = load_table(out)
    assert table.encode is not None and table.encode.image == (17, 16)
    assert [size for size, _ in table.encode.sizes] == [256, 300] and table.encode.embedding_bytes == 4 * 64
    flags = ("--table", str(out), "--image-share", "1", "--requests", "5", "--input-len", "20", "--output-len", "4")
    assert main(("simulate", *flags, "--topology", "1E1PD", "--kv-bandwidth", "1GB", "--rate", "5")) == 0
    assert "E to P" in capsys.readouterr().out
