"""Step times: shapes of plans, the roofline against measurements, tables against the engine's own choice of programs."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from triptych.models.config import PRESETS
from triptych.runtime.core.instance import Role
from triptych.runtime.engine.buckets import RAGGED_DECODE_COST, Demand, PlanError, ProgramChoice, default_buckets
from triptych.runtime.instance.plan import Draw, Export, Row, StepPlan
from triptych.runtime.simulation.hardware import HARDWARE, Hardware, HardwareError, as_json, find_hardware
from triptych.runtime.simulation.roofline import ModelShape, Roofline
from triptych.runtime.simulation.steptime import Affine, StepShape, grown, shape_of
from triptych.runtime.simulation.steptime_table import (
    HostTime,
    Limits,
    Measured,
    ProgramTime,
    StepTable,
    StepTableError,
    load_table,
)

LLAMA = ModelShape.of(PRESETS["llama-8b"])
H100 = Roofline(HARDWARE["h100"], LLAMA)

# Llama-3.1-8B shape, bfloat16, one H100 80GB HBM3: vLLM 0.23.0, decode steps at context 1024 and whole prefills, milliseconds.
MEASURED_DECODE = {1: 6.53, 8: 6.95, 32: 8.19, 64: 9.83, 128: 13.17, 256: 20.43}
MEASURED_PREFILL = {512: 16.3, 2048: 53.2, 8192: 215.8}


def decode(rows: int, context: int) -> StepShape:
    return StepShape(rows, rows * context, longest=context, draws=rows)


def prefill(tokens: int, before: int = 0) -> StepShape:
    pairs = tokens * before + tokens * (tokens + 1) // 2
    return StepShape(0, 0, 1, tokens, before, pairs, tokens + before, 1)


def test_a_plan_in_numbers():
    plan = StepPlan(
        1,
        rows=(
            Row(1, (), 9, 9, (1,), 0, (Draw(0, 10),)),
            Row(2, (1, 2, 3), 4, 4, (2,), 0, ()),
            Row(3, (5,), 0, 0, (3,), 0, (Draw(1, 1),)),
        ),
        copies=((1, 2),),
        exports=(Export(1, 0, (4, 5), True),),
    )
    assert shape_of(plan) == StepShape(2, 11, 1, 3, 4, 5 + 6 + 7, 10, 2, 2, 1)


@pytest.mark.parametrize(("rows", "ms"), MEASURED_DECODE.items())
def test_decode_steps_on_an_h100_are_within_six_percent(rows: int, ms: float):
    assert H100.seconds(decode(rows, 1024)) * 1e3 == pytest.approx(ms, rel=0.06)


@pytest.mark.parametrize(("tokens", "error"), [(512, 0.36), (2048, 0.2), (8192, 0.12)])
def test_prefill_on_an_h100_is_a_lower_bound_that_tightens_with_length(tokens: int, error: float):
    ms = MEASURED_PREFILL[tokens]
    assert ms * (1 - error) < H100.seconds(prefill(tokens)) * 1e3 < ms


def test_decode_feels_bandwidth_and_prefill_feels_flops():
    fast, wide = replace(HARDWARE["h100"], flops=2e15), replace(HARDWARE["h100"], bandwidth=6.7e12)
    for shape, same, better in ((decode(16, 1024), fast, wide), (prefill(4096), wide, fast)):
        base = H100.seconds(shape)
        assert Roofline(same, LLAMA).seconds(shape) == pytest.approx(base, rel=0.02)
        assert Roofline(better, LLAMA).seconds(shape) < 0.65 * base


def test_more_chips_are_faster_and_pay_for_their_all_reduces():
    one, four = H100.seconds(decode(16, 1024)), Roofline(HARDWARE["h100"], LLAMA, 4).seconds(decode(16, 1024))
    assert one / 4 < four < one / 2


def test_what_fits_beside_the_weights():
    assert 400_000 < H100.kv_tokens < 450_000
    with pytest.raises(HardwareError, match="no room"):
        _ = Roofline(HARDWARE["tpu-v5e"], LLAMA).kv_tokens


@pytest.mark.parametrize("times", [Affine(0.01, 1e-4, 1e-7), H100], ids=["affine", "roofline"])
def test_runs_of_decode_steps_take_what_single_ones_take(times):
    first = decode(7, 333)
    single = [times.seconds(grown(first, step)) for step in range(500)]
    for steps in (1, 12, 500):
        assert times.decode_run(first, steps) == single[:steps]


def test_hardware_by_name_and_by_file(tmp_path):
    file = tmp_path / "chip.json"
    file.write_text(as_json(HARDWARE["tpu-v6e"]))
    assert find_hardware(str(file)) == HARDWARE["tpu-v6e"]
    with pytest.raises(HardwareError, match="known are"):
        find_hardware("abacus")
    file.write_text(json.dumps({"name": "x", "speed": 1}))
    with pytest.raises(HardwareError, match="speed"):
        find_hardware(str(file))
    with pytest.raises(HardwareError, match="flops is 0"):
        Hardware("x", 0, 1, 1, 1, 1)


# ---- tables

BOTH = frozenset({Role.PREFILL, Role.DECODE})


def table(roles: frozenset[Role] = BOTH) -> StepTable:
    """As if a program took a millisecond for each of its tokens and two for each page of width, full ones half as long again."""
    buckets = default_buckets(page_size=16, max_num_seqs=6, max_model_len=4096, chunk_tokens=96, roles=roles)
    programs = tuple(
        ProgramTime(s.decode_rows, s.prefill_tokens, s.width, Measured(10, ms, 0.1), Measured(1010, ms * 1.5, 0.1))
        for s in buckets.extend
        for ms in [1e-3 * (s.tokens + 2 * s.width)]
    )
    return StepTable(Limits(16, 6, 4096, 96, 3, 1000, 64), programs, RAGGED_DECODE_COST, sample=1e-4)


@pytest.mark.parametrize("roles", [BOTH, frozenset({Role.PREFILL}), frozenset({Role.DECODE})])
def test_a_table_chooses_the_program_that_the_engine_runs(roles: frozenset[Role]):
    rng = random.Random(5)
    buckets = default_buckets(page_size=16, max_num_seqs=6, max_model_len=4096, chunk_tokens=96, roles=roles)
    engine, times = ProgramChoice(buckets, 3), table(roles)
    for _ in range(2000):
        rows, chunks = rng.randint(0, 6), rng.randint(0, 3)
        tokens = 0 if not chunks else rng.randint(2 * chunks, 96)
        if not rows + chunks:
            continue
        longest = rng.choice((1, 16, 17, 500, 2048, 4096))
        shape = StepShape(rows, rows, chunks, tokens, longest=longest, draws=rows)
        try:
            expected, _ = engine.cheapest(Demand(rows, chunks, tokens, -(-longest // 16)))
        except PlanError:
            with pytest.raises(StepTableError):
                times.choose(shape)
            continue
        chosen = times.choose(shape)
        assert (chosen.decode_rows, chosen.prefill_tokens, chosen.width) == (
            expected.decode_rows,
            expected.prefill_tokens,
            expected.width,
        )


def test_a_table_interpolates_between_little_and_much_kv():
    times = table()
    low, middle, high = (times.seconds(StepShape(4, pairs, longest=100, draws=4)) for pairs in (4, 510, 5000))
    assert low < middle < high == pytest.approx(1.5 * low)
    assert middle == pytest.approx((low + high) / 2)
    assert times.seconds(StepShape(4, 4, longest=100)) == pytest.approx(low - 1e-4)
    visible = replace(times, host=HostTime(1e-3, 1e-4, 0.25))
    assert visible.seconds(StepShape(4, 4, longest=100, draws=4)) == pytest.approx(low + 0.75 * 1.4e-3)
    first = StepShape(2, 20, longest=500, draws=2)
    assert times.decode_run(first, 40) == [times.seconds(grown(first, step)) for step in range(40)]


def test_a_table_survives_its_file(tmp_path):
    file = tmp_path / "t.json"
    file.write_text(table().as_json())
    assert load_table(file) == table()
    file.write_text("{}")
    with pytest.raises(StepTableError, match="calibrate"):
        load_table(file)
    file.write_text('{"format": 1, "limits": {}}')
    with pytest.raises(StepTableError, match="cannot be read"):
        load_table(file)
