"""What the parts run, on an engine without a device: the right rows at the right context, one step ahead, on programs that are compiled."""

from __future__ import annotations

import pytest

from tests.tools.bench.engine.fakes import FakeEngine, fake_rig
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.engine.buckets import Demand
from triptych.tools.bench.engine.batches import Load, measure_batch
from triptych.tools.bench.engine.prompts import measure_prompts
from triptych.tools.bench.engine.rig import decoding, loop_over, request
from triptych.tools.bench.engine.steps import measure_decode, measure_mixed, queued_step


def test_the_next_step_is_dispatched_before_one_is_read_and_no_further_ahead():
    rig = fake_rig()
    engine, _ = rig.engine(rig.config(sequences=2, longest=64, chunk=32, tokens=128))
    loop = loop_over(engine, waiting=2)
    for number in range(2):
        loop.submit(request(number, (1, 2, 3), 5))
    while loop.step() is not None:
        pass
    assert (loop.submitted, loop.finished, loop.emitted) == (2, 2, 10)
    ahead = most = 0
    for what, _ in engine.log:
        ahead += 1 if what == "dispatch" else -1
        most = max(most, ahead)
    assert (ahead, most) == (0, 2)
    assert next(at for at, (what, _) in enumerate(engine.log) if what == "collect") == 2
    assert [number for what, number in engine.log if what == "collect"] == sorted(p.id for p in engine.plans)
    assert loop.host.work > 0 and loop.host.wait >= 0


def test_sequences_decode_whose_prompts_were_never_computed():
    rig = fake_rig()
    engine, _ = rig.engine(rig.config(sequences=3, longest=120, chunk=16, tokens=3 * 128))
    loop = decoding(engine, 3, 100, 10)
    assert not engine.plans, "no row of the prompts reached the engine"
    done = loop.step()
    assert done is not None
    assert [(row.start, row.decode, len(row.pages)) for row in done.plan.rows] == [(100, True, 7)] * 3
    loop.drain()
    assert {row.start for plan in engine.plans for row in plan.rows} == {100, 101}


def test_decode_steps_have_the_whole_batch_at_about_the_context():
    rig = fake_rig(seconds=0.05)
    one, four = measure_decode(rig, [1, 4], 200)
    (engine,) = rig.engines
    assert (one.at, four.at) == (1, 4) and min(one.times) > 0 and len(four.times) >= 3
    sizes = {len(plan.rows) for plan in engine.plans}
    assert sizes == {1, 4}
    starts = [row.start for plan in engine.plans for row in plan.rows]
    assert 160 <= min(starts) and max(starts) <= 240
    assert one.host is not None and 0 < one.host.work and one.host_share is not None
    assert one.queued is not None and one.queued > 0
    (work,) = four.works
    assert work.weight_bytes == 1_000_000 and 4 * 160 * 2 * 512 < work.kv_bytes < 4 * 240 * 2 * 512
    assert {shape.prefill_tokens for shape in engine.config.buckets.extend} == {0, 16}, (
        "of prompts only the program that holds all"
    )


def test_steps_far_ahead_are_read_once():
    rig = fake_rig()
    engine, _ = rig.engine(rig.config(sequences=2, longest=64, chunk=16, tokens=128))
    fake = engine
    assert isinstance(fake, FakeEngine)
    assert queued_step(engine, 2, 33) > 0
    assert sum(what == "collect" for what, _ in fake.log) < sum(what == "dispatch" for what, _ in fake.log) / 8


def test_a_mixed_step_has_all_decodes_and_one_fresh_prompt():
    rig = fake_rig()
    (figure,) = measure_mixed(rig, 6, 40, 100)
    (engine,) = rig.engines
    for plan in engine.plans:
        chunk = [(row.start, row.length, len(row.draws)) for row in plan.rows if not row.decode]
        assert sum(row.decode for row in plan.rows) == 6 and chunk == [(0, 40, 1)]
    decodes, chunk = figure.works
    assert decodes.weight_bytes == chunk.weight_bytes == 1_000_000, "two floors, each with the weights"
    assert decodes.kv_bytes > chunk.kv_bytes and chunk.operations > decodes.operations


def test_prompts_are_computed_whole_and_in_chunks():
    rig = fake_rig()
    short, whole, cut = measure_prompts(rig, [32, 96], 40)
    assert [(f.at, f.note, len(f.works)) for f in (short, whole, cut)] == [
        (32, "whole", 1), (96, "whole", 1), (96, "in chunks of 40", 3),
    ]  # fmt: skip
    assert cut.works[0].weight_bytes * 3 == sum(work.weight_bytes for work in cut.works)
    assert sum(work.operations for work in cut.works) == pytest.approx(whole.works[0].operations)
    last = rig.engines[0].plans[-3:]
    assert [(row.start, row.length) for plan in last for row in plan.rows] == [(0, 40), (40, 40), (80, 16)]
    assert len(set(last[0].rows[0].tokens)) > 10, "random ids"


def test_a_batch_gives_every_request_its_tokens():
    rig = fake_rig()
    found = measure_batch(rig, "offline", Load(9, 20, 5), sequences=4, chunk=64)
    assert (found.requests, found.output_rate * found.seconds, found.total_rate * found.seconds) == (
        9, pytest.approx(45), pytest.approx(225),
    )  # fmt: skip
    assert found.steps >= 10 and len(found.works) == found.steps and found.host is not None
    assert max(len(plan.rows) for plan in rig.engines[0].plans) == 4


def test_an_engine_has_the_programs_that_its_steps_choose_and_the_largest():
    rig = fake_rig()
    everything = rig.config(sequences=64, longest=4000, chunk=512, tokens=64 * 4096)
    chosen = rig.config(sequences=64, longest=4000, chunk=512, tokens=64 * 4096, demands=[Demand(20, 0, 0, 40)])
    assert chosen.max_model_len == 4096 and chosen.num_pages == everything.num_pages
    assert set(chosen.buckets.extend) < set(everything.buckets.extend)
    assert [(s.decode_rows, s.prefill_tokens, s.width) for s in chosen.buckets.extend] == [(32, 0, 64), (64, 512, 256)]


def test_loads_are_three_numbers():
    assert Load.parse("256x512x128", "--offline") == Load(256, 512, 128)
    for wrong in ("", "1x2", "1x2x0", "1x2x3x4", "ax2x3"):
        with pytest.raises(ConfigError, match="--offline"):
            Load.parse(wrong, "--offline")
