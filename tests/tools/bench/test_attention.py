"""What the attention benchmark counts, compares and prints, with the reference in the place of a GPU kernel."""

import jax
import jax.numpy as jnp
import pytest

from triptych.models.attention import ragged_paged_attention
from triptych.tools.bench import attention, attention_codes
from triptych.tools.bench.attention_variants import DECODE, RAGGED, Shape, decode_variants, ragged_variants

TINY = Shape("tiny", 3, 48, heads=4, kv_heads=2, head_dim=8)


def decode(q, k, v, lengths, table):
    ends = jnp.arange(4, dtype=jnp.int32)
    return ragged_paged_attention(q, k, v, lengths, table, ends, decode_rows=3, max_q_len=1, scale=8**-0.5)


@pytest.fixture
def inputs(monkeypatch: pytest.MonkeyPatch) -> attention.Inputs:
    monkeypatch.setattr(attention, "CALL_BYTES", 4 * TINY.kv_bytes)
    pool = jax.random.normal(jax.random.key(0), (2, 16 * 16 * 2 * 8), jnp.bfloat16)
    return attention.make_inputs(TINY, pool, seed=1)


def test_calls_take_turns_through_the_pool(inputs: attention.Inputs) -> None:
    assert inputs.tables.shape == (4, 3, 3)
    assert set(inputs.tables[0].ravel().tolist()) == set(range(9))  # 16 pages hold the rows of one call only
    assert inputs.full.tolist() == [48, 48, 48]
    assert inputs.ragged[0] > 0 and inputs.ragged[1] == 0  # empty rows, though never all


def test_a_right_variant_is_timed_and_a_wrong_one_is_not(inputs: attention.Inputs) -> None:
    expected = attention.reference(TINY, inputs)
    right = attention.measure(TINY, "right", attention.build(decode, inputs), inputs, expected)
    assert right.error is not None and right.error < attention.TOLERANCE and right.seconds is not None
    wrong = attention.build(lambda q, *rest: decode(q, *rest) * 1.1, inputs)
    result = attention.measure(TINY, "wrong", wrong, inputs, expected)
    assert result.seconds is None and "differs" in attention.line(result, 1e12)
    assert "of read" in attention.line(right, 1e12)


def test_bytes_and_operations_are_counted_once() -> None:
    assert DECODE[0].kv_bytes == 128 * 1024 * 8 * 128 * 2 * 2
    assert Shape("", 0, 0, 4, 1, 10).flops == 4 * 32 * 128 * (7 + 8 + 9 + 10)


def test_every_variant_has_a_name_of_its_own() -> None:
    assert len(decode_variants(DECODE[0], thorough=True)) > len(decode_variants(DECODE[0], thorough=False)) > 3
    assert {name.split()[0] for name in ragged_variants(RAGGED[0])} == {"mosaic", "triton"}


def test_shapes_are_measured_until_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "POOL_BYTES", 1 << 15)
    monkeypatch.setattr(attention, "MAX_CALLS", 2)

    def broken(*arrays: jax.Array) -> jax.Array:
        raise NotImplementedError("not here")

    monkeypatch.setattr(
        attention, "decode_variants", lambda *_: {"right": decode, "broken": broken, "left out": decode}
    )
    found = list(attention.results([TINY], False, float("inf"), without="out"))
    assert [(result.variant, result.failure) for result in found] == [
        ("right", None),
        ("broken", "NotImplementedError: not here"),
    ]
    assert [result.failure for result in attention.results([TINY], False, 0.0)] == ["no time left"]


@pytest.mark.slow
def test_codes_are_compared_with_what_they_stand_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "POOL_BYTES", 1 << 15)
    monkeypatch.setattr(attention, "MAX_CALLS", 2)
    tiny = Shape("tiny", 2, 48, heads=4, kv_heads=2, head_dim=16)
    plain, int8, fp8 = attention_codes.results([tiny], ["bfloat16", "int8", "fp8"], interpret=True)
    assert [result.failure for result in (plain, int8, fp8)] == [None] * 3
    for result, share in ((plain, 1), (int8, 20 / 32), (fp8, 20 / 32)):
        assert result.seconds and result.terabytes_per_second is not None
        assert result.terabytes_per_second * result.seconds * 1e12 == pytest.approx(tiny.kv_bytes * share)
