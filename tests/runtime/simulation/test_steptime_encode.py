"""Times of encoders: what they add to a step, the roofline by hand, tables by lookup."""

from __future__ import annotations

import pytest

from triptych.runtime.instance.plan import Encode, StepPlan
from triptych.runtime.simulation.hardware import Hardware
from triptych.runtime.simulation.steptime import Affine, StepShape, shape_of
from triptych.runtime.simulation.steptime_encode import EncoderShape, PerPatch, RooflineEncoder, WithEncoder
from triptych.runtime.simulation.steptime_table import EncodeTable, StepTableError
from triptych.tools.simulate_media import VISIONS

CHIP = Hardware("c", 1e12, 1e9, 1e9, 1e9, 1e9, flops_reached=1.0, bandwidth_reached=1.0, step_overhead=1e-3)


def test_the_shape_of_encodes():
    plan = StepPlan(1, encodes=(Encode("a", 10, 4, (1,)), Encode("b", 20, 4, (2,))))
    shape = shape_of(plan)
    assert (shape.patches, shape.patch_pairs, shape.decode_rows, shape.prefill_rows) == (30, 100 + 400, 0, 0)


def test_encoding_adds_to_the_rows_of_a_step_and_an_offer_costs_nothing():
    times = WithEncoder(Affine(0.1, 0.01), PerPatch(1.0, 0.5))
    assert times.seconds(StepShape(decode_rows=2)) == pytest.approx(0.12)
    assert times.seconds(StepShape(patches=4)) == pytest.approx(3.0)
    assert times.seconds(StepShape(decode_rows=2, patches=4)) == pytest.approx(3.12)
    assert times.seconds(StepShape(exported_pages=3)) == 0
    assert times.decode_run(StepShape(decode_rows=1), 2) == Affine(0.1, 0.01).decode_run(StepShape(decode_rows=1), 2)


def test_the_roofline_reads_weights_or_computes_and_attends_within_items():
    times = RooflineEncoder(CHIP, EncoderShape(weights=1_000_000, attention=100, windowed=1000))
    few, many = times.seconds(1, 1), times.seconds(10_000, 10_000**2)
    assert few == pytest.approx(1e-3 + 2e6 / 1e9, rel=1e-3)
    assert many == pytest.approx(1e-3 + 2e10 / 1e12 + (1e10 + 1e7) / 1e12)
    assert RooflineEncoder(CHIP, times.encoder, tp=2).seconds(10_000, 10_000**2) == pytest.approx(
        1e-3 + (many - 1e-3) / 2
    )


def test_shapes_of_published_encoders():
    clip = EncoderShape.of(VISIONS["clip-l-336"](4096).config)
    qwen = EncoderShape.of(VISIONS["qwen2.5-vl"](3584).config)
    assert 290e6 < clip.weights < 320e6 and clip.attention == 23 * 4 * 1024 and clip.windowed == 0
    assert 640e6 < qwen.weights < 700e6 and qwen.attention == 4 * 4 * 1280 and qwen.windowed == 28 * 4 * 1280 * 64


def test_a_table_costs_the_smallest_program_that_holds_the_step():
    table = EncodeTable(((256, 0.1), (1024, 0.3)), 512, (17, 16))
    assert [table.seconds(n, 0) for n in (1, 256, 257, 1024)] == [0.1, 0.1, 0.3, 0.3]
    with pytest.raises(StepTableError, match="1025 patches"):
        table.seconds(1025, 0)
    with pytest.raises(StepTableError, match="smallest first"):
        EncodeTable(((1024, 0.3), (256, 0.1)), 512, (17, 16))
