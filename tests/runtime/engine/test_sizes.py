"""Buckets, limits, memory and packed inputs: numbers that decide what is compiled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.runtime.engine.driver import toy_config
from tests.runtime.engine.oracle import toy
from triptych.models.config import PRESETS
from triptych.models.structure import decoder_structure
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.engine import memory
from triptych.runtime.engine.batch import BatchPacker, extend_packing
from triptych.runtime.engine.buckets import (
    Buckets,
    Demand,
    ExtendShape,
    PlanError,
    ProgramChoice,
    Sizes,
    default_buckets,
    geometric,
    halves,
    powers_of_two,
    smallest,
)
from triptych.runtime.engine.config import engine_config, kernel_sizes
from triptych.runtime.engine.copies import copy_tables
from triptych.runtime.engine.packing import Field, Packing
from triptych.runtime.instance.plan import Row, StepPlan


def test_sizes_reach_their_limit() -> None:
    assert powers_of_two(1) == (1,)
    assert powers_of_two(12) == (1, 2, 4, 8, 12)
    assert powers_of_two(16) == (1, 2, 4, 8, 16)
    assert geometric(32, 512) == (32, 128, 512)
    assert geometric(32, 100) == (32, 100)
    assert geometric(16, 16) == (16,)
    assert geometric(1, 10) == (1, 3, 10)


def test_the_smallest_size_that_fits_is_chosen() -> None:
    assert [smallest((1, 4, 16), needed, "rows") for needed in (0, 1, 2, 4, 5, 16)] == [1, 1, 4, 4, 16, 16]
    with pytest.raises(PlanError, match="needs 17 rows; the largest compiled size is 16"):
        smallest((1, 4, 16), 17, "rows")


def test_guesses_take_more_decode_rows_and_draws_and_nothing_else() -> None:
    limits: dict[str, Any] = {"page_size": 16, "max_num_seqs": 8, "max_model_len": 512, "chunk_tokens": 32}
    roles = frozenset({Role.PREFILL, Role.DECODE})
    plain, guessing = (
        default_buckets(**limits, roles=roles),
        default_buckets(**limits, roles=roles, speculative_tokens=4),
    )
    more = {shape for shape in guessing.extend if shape not in plain.extend}
    assert set(plain.extend) < set(guessing.extend)
    assert more == {ExtendShape(rows, 0, 32) for rows in (5, 16, 32, 40)}
    assert guessing.draws == (1, 3, 5, 10, 40)
    assert default_buckets(**limits, roles=frozenset({Role.PREFILL}), speculative_tokens=0) == default_buckets(
        **limits, roles=frozenset({Role.PREFILL})
    )


def test_roles_decide_which_programs_exist() -> None:
    limits: dict[str, Any] = {"page_size": 16, "max_num_seqs": 8, "max_model_len": 2048, "chunk_tokens": 512}
    both = default_buckets(**limits, roles=frozenset({Role.PREFILL, Role.DECODE}))
    prefill = default_buckets(**limits, roles=frozenset({Role.PREFILL}))
    decode = default_buckets(**limits, roles=frozenset({Role.DECODE}))
    # widths 32 and 128; prefill 32, 128 and 512; decode rows 1, 2, 4 and 8; one for prompts that are scored
    assert len(both.extend) == 4 * 2 + 2 * 3 * 2 + 1
    assert len(prefill.extend) == 3 * 2 + 1
    assert len(decode.extend) == 4 * 2 + 1
    assert both.score_tokens == prefill.score_tokens == decode.score_tokens == (512,)


def test_prompts_that_are_not_scored_have_no_last_layer_of_their_own() -> None:
    limits: dict[str, Any] = {"page_size": 16, "max_num_seqs": 64, "max_model_len": 512, "chunk_tokens": 128}
    limits["roles"] = frozenset({Role.PREFILL, Role.DECODE})
    buckets = default_buckets(**limits)
    full = ExtendShape(64, 128, 32)
    assert {shape for shape in buckets.extend if shape.prefill_tokens and not shape.last_only} == {
        full,
        ExtendShape(64, 32, 32),  # most of its tokens are decoded
    }
    choice = ProgramChoice(buckets, max_prefill_rows=4)
    assert choice.cheapest(Demand(3, 1, 100, 32)) == (replace(full, last_only=True), True)
    assert choice.cheapest(Demand(3, 1, 100, 32, scored=True)) == (full, True)
    assert choice.cheapest(Demand(0, 1, 10, 32)) == (ExtendShape(0, 32, 32, last_only=True), True)
    nobody = default_buckets(**limits, prompt_logprobs=False)
    assert set(nobody.extend) == set(buckets.extend) - {full}
    whole = default_buckets(**limits, sizes=Sizes(last_only=False))
    assert not any(shape.last_only for shape in whole.extend) and full in whole.extend
    with pytest.raises(PlanError, match="scored=True"):
        ProgramChoice(nobody, 4).cheapest(Demand(3, 1, 100, 32, scored=True))


@pytest.mark.parametrize("attention", ["reference", "gpu"])
@pytest.mark.parametrize("roles", [{Role.PREFILL}, {Role.DECODE}, {Role.PREFILL, Role.DECODE}])
def test_every_step_within_the_limits_has_a_program(roles: set[Role], attention: str) -> None:
    config = engine_config(
        num_pages=99, max_num_seqs=5, max_model_len=300, chunk_tokens=70, page_size=4, roles=frozenset(roles), attention=attention
    )  # fmt: skip
    choice = ProgramChoice(config.buckets, config.max_prefill_rows)
    for decode_rows in range(6):
        for prefill_rows in range(5):
            for prefill_tokens in {prefill_rows, 70} if prefill_rows else {0}:
                for width in (1, 75):
                    demand = Demand(decode_rows, prefill_rows, prefill_tokens, width)
                    shape, apart = choice.cheapest(demand)
                    assert shape.width >= width
                    assert shape.prefill_tokens >= prefill_tokens + (0 if apart else decode_rows)
                    assert not apart or shape.decode_rows >= decode_rows


def test_kernels_take_prompts_of_more_sizes_and_one_width() -> None:
    limits: dict[str, Any] = {"page_size": 16, "max_num_seqs": 32, "max_model_len": 4096, "chunk_tokens": 2048}
    roles = frozenset({Role.PREFILL, Role.DECODE})
    assert kernel_sizes("reference", "bfloat16") == Sizes()
    buckets = default_buckets(**limits, roles=roles, sizes=kernel_sizes("gpu", "bfloat16"))
    prompts = [shape for shape in buckets.extend if not shape.decode_rows]
    assert {shape.prefill_tokens for shape in prompts} == {32, 128, 512, 768, 1024, 1536, 2048}
    assert {shape.prefill_tokens for shape in prompts if shape.fresh} == {512, 768, 1024, 1536, 2048}
    assert {shape.width for shape in prompts} == {256}
    mixed = [shape for shape in buckets.extend if shape.decode_rows and shape.prefill_tokens]
    assert {(shape.decode_rows, shape.prefill_tokens) for shape in mixed} == {(32, n) for n in (128, 512, 1024, 2048)}
    decodes = [shape for shape in buckets.extend if not shape.prefill_tokens]
    assert {shape.decode_rows for shape in decodes} == {8, 16, 32} and {shape.width for shape in decodes} == {
        32,
        64,
        256,
    }
    assert buckets.draws == (8, 32)
    limits["max_num_seqs"] = 256
    many = default_buckets(**limits, roles=roles, sizes=kernel_sizes("gpu", "bfloat16"))
    assert {s.decode_rows for s in many.extend if s.decode_rows and s.prefill_tokens} == {32, 128, 256}
    # Over codes a prompt attends to what its pages stand for.
    for attention, kv_dtype in (("gpu", "int8"), ("tpu", "bfloat16")):
        assert not any(
            shape.fresh
            for shape in default_buckets(**limits, roles=roles, sizes=kernel_sizes(attention, kv_dtype)).extend
        )


def test_no_prompt_is_longer_than_a_sequence() -> None:
    limits: dict[str, Any] = {"page_size": 16, "max_num_seqs": 8, "max_model_len": 1280, "chunk_tokens": 8192}
    buckets = default_buckets(**limits, roles=frozenset({Role.PREFILL}), sizes=kernel_sizes("gpu", "bfloat16"))
    assert {shape.prefill_tokens for shape in buckets.extend if shape.fresh} == {512, 768, 1024, 1536}


def test_few_slots_have_no_more_rows_than_there_are() -> None:
    limits: dict[str, Any] = {"page_size": 16, "max_num_seqs": 3, "max_model_len": 64, "chunk_tokens": 100}
    buckets = default_buckets(**limits, roles=frozenset({Role.DECODE}), sizes=Sizes(least_rows=8, live_tables=True))
    assert {shape.decode_rows for shape in buckets.extend} == {3} and buckets.draws == (3,)


def test_sizes_between_powers_of_two() -> None:
    assert halves(32, 100, 512) == geometric(32, 100)
    assert halves(32, 1000, 512) == (32, 128, 512, 768, 1000)
    assert halves(32, 1024, 512) == (32, 128, 512, 768, 1024)


def test_a_prompt_that_is_alone_and_begins_has_a_program_of_its_own() -> None:
    alone, any_prompt = ExtendShape(0, 64, 8, fresh=True), ExtendShape(0, 64, 8)
    choice = ProgramChoice(Buckets((alone, any_prompt, ExtendShape(0, 16, 8)), (4,)), max_prefill_rows=2)
    assert choice.cheapest(Demand(0, 1, 60, 8, fresh=True)) == (alone, True)
    assert choice.cheapest(Demand(0, 1, 60, 8)) == (any_prompt, True)
    assert choice.cheapest(Demand(0, 1, 10, 8, fresh=True)) == (ExtendShape(0, 16, 8), True)
    assert not Buckets((alone,), (4,)).holds(Demand(0, 1, 60, 8, fresh=True))
    with pytest.raises(ValueError, match="alone in its program"):
        ExtendShape(1, 64, 8, fresh=True)


def test_the_cheapest_program_is_chosen() -> None:
    shapes = {name: ExtendShape(*sizes) for name, sizes in {"d1": (1, 0, 8), "d4": (4, 0, 8), "p": (0, 16, 8)}.items()}
    mixed, wide = ExtendShape(4, 16, 8), ExtendShape(4, 64, 32)
    choice = ProgramChoice(Buckets((wide, mixed, *shapes.values()), (4,)), max_prefill_rows=2)
    assert choice.cheapest(Demand(1, 0, 0, 8)) == (shapes["d1"], True)
    assert choice.cheapest(Demand(3, 0, 0, 8)) == (shapes["d4"], True)
    assert choice.cheapest(Demand(0, 2, 9, 1)) == (shapes["p"], True)
    assert choice.cheapest(Demand(1, 1, 9, 1)) == (mixed, True)
    assert choice.cheapest(Demand(1, 0, 0, 9)) == (wide, True)
    without_mixed = ProgramChoice(Buckets((wide, *shapes.values()), (4,)), max_prefill_rows=2)
    assert without_mixed.cheapest(Demand(1, 1, 9, 1)) == (shapes["p"], False)
    with pytest.raises(PlanError, match="no program holds .*prefill_rows=3.* at most 2 prefill rows"):
        choice.cheapest(Demand(0, 3, 3, 1))


def test_malformed_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="each once"):
        Buckets((ExtendShape(1, 0, 1),) * 2, (1,))
    with pytest.raises(ValueError, match="strictly ascending"):
        Buckets((ExtendShape(1, 0, 1),), (4, 2))
    with pytest.raises(ValueError, match="needs tokens"):
        ExtendShape(0, 0, 1)


def test_a_pool_too_small_for_one_sequence_is_refused() -> None:
    assert toy_config(num_pages=17).pages_per_sequence == 16
    with pytest.raises(
        ConfigError,
        match=r"15 KV pages of 4 tokens \(num_pages 16, one of them reserved\) cannot hold one sequence of max_model_len 64",
    ):
        toy_config(num_pages=16)


def test_limits_beyond_the_buckets_are_refused() -> None:
    with pytest.raises(ConfigError, match="no extend program .* prefill_tokens=17"):
        toy_config(chunk_tokens=17)
    assert engine_config(num_pages=99, max_num_seqs=3, max_model_len=100, chunk_tokens=20).buckets.draws == (1, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"roles": frozenset()}, "needs a role"),
        ({"roles": frozenset({Role.ENCODE}), "media_pages": 8}, "encode_patches is 0"),
        ({"encode_patches": 16, "media_pages": 8}, "another one none"),
        ({"roles": frozenset({Role.ENCODE}), "encode_patches": 16}, "needs a media pool"),
        ({"media_pages": 1}, "the null page and one to use"),
        ({"media_pages": -1}, "media_pages is -1"),
    ],
)
def test_media_and_roles_must_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        toy_config(**changes)


def test_an_encoder_alone_needs_no_kv_pages() -> None:
    config = toy_config(roles=frozenset({Role.ENCODE}), encode_patches=16, media_pages=8, num_pages=1)
    assert not config.decodes and not config.takes_media


class FakeDevice:
    def __init__(self, stats: dict[str, int] | None) -> None:
        self._stats = stats

    def memory_stats(self) -> dict[str, int] | None:
        return self._stats


def test_free_bytes_are_those_of_the_fullest_device() -> None:
    roomy, full = (
        FakeDevice({"bytes_limit": 1000, "bytes_in_use": 100}),
        FakeDevice({"bytes_limit": 1000, "bytes_in_use": 500}),
    )
    assert memory.free_bytes([roomy, full], 0.9) == 400
    assert (
        memory.free_bytes([FakeDevice(None)], 0.9)
        == memory.DEFAULT_HOST_BYTES
        == memory.free_bytes(jax.devices()[:1], 0.5)
    )
    with pytest.raises(ConfigError, match="share of device memory is 1.5"):
        memory.free_bytes([roomy], 1.5)


def test_pages_that_fit_count_what_the_pools_really_take() -> None:
    structure = toy(1).structure
    size = memory.page_bytes(structure, 4, "float32")
    assert size == 2 * 2 * 4 * 4 * 16 * 4  # k and v, layers, page, heads, head_dim, bytes
    assert memory.page_bytes(toy(2).structure, 4, "bfloat16") * 4 == size
    fit: dict[str, Any] = {"page_size": 4, "kv_dtype": "float32", "max_model_len": 64}
    assert memory.pages_that_fit(structure, **fit, bytes_per_device=20 * size + 1) == 20
    with pytest.raises(ConfigError, match="needs 17 KV pages"):
        memory.pages_that_fit(structure, **fit, bytes_per_device=16 * size)
    with pytest.raises(ConfigError, match="0 MiB are free for 0"):
        memory.pages_that_fit(structure, **fit, bytes_per_device=-5)


def test_a_draft_models_pages_are_as_many_and_take_their_part_of_the_memory() -> None:
    structure = toy(1).structure
    draft = decoder_structure(PRESETS["toy-draft"], structure.rules, "float32")
    both = memory.page_bytes(structure, 4, "float32") + memory.page_bytes(draft, 4, "float32")
    fit: dict[str, Any] = {"page_size": 4, "kv_dtype": "float32", "max_model_len": 64, "draft": draft}
    assert memory.pages_that_fit(structure, **fit, bytes_per_device=20 * both + 1) == 20
    with pytest.raises(ConfigError, match=f"needs 17 KV pages of {both} bytes"):
        memory.pages_that_fit(structure, **fit, bytes_per_device=16 * both)


def test_packed_values_come_out_as_they_went_in() -> None:
    packing = Packing((Field("a", (3,)), Field("f", (2, 2), "float32"), Field("u", (2,), "uint32")))
    buffer, views = packing.host()
    views["a"][:] = (1, -2, 3)
    views["f"][:] = ((0.5, -np.inf), (1e-30, 7.0))
    views["u"][:] = (2**32 - 1, 5)
    assert buffer.shape == (9,) and buffer.dtype == np.int32
    out = jax.jit(packing.unpack)(buffer)
    for name, view in views.items():
        np.testing.assert_array_equal(np.asarray(out[name]), view)


def test_rows_are_packed_where_the_program_expects_them() -> None:
    config = toy_config()
    packer = BatchPacker(config)
    decode = Row(5, (), 6, 106, (9, 8), token_slot=2)
    chunk = Row(6, (50, 51, 52), 3, 3, (7, 6))
    batch = packer.pack(StepPlan(0, rows=(chunk, decode)))
    assert batch is not None and batch.first_token == (4, 0)
    assert (batch.shape.decode_rows, batch.shape.prefill_tokens, batch.shape.width) == (4, 6, 4)
    views = {
        name: np.asarray(part)
        for name, part in extend_packing(batch.shape, config).unpack(jnp.asarray(batch.packed)).items()
    }
    assert views["cu_q_lens"].tolist() == [0, 1, 2, 3, 4, 7, 7, 7]
    assert views["kv_lens"].tolist() == [7, 0, 0, 0, 6, 0, 0]
    assert views["tokens"].tolist() == [0, 0, 0, 0, 50, 51, 52, 0, 0, 0]
    assert views["carried"].tolist() == [2, 4, 4, 4, 4, 4, 4, 4, 4, 4]
    assert views["positions"][[0, 4, 5, 6]].tolist() == [106, 3, 4, 5]
    assert views["write_index"][[0, 4, 5, 6]].tolist() == [8 * 4 + 2, 7 * 4 + 3, 6 * 4, 6 * 4 + 1]
    assert views["page_indices"][0].tolist() == [9, 8, 0, 0] and views["page_indices"][4].tolist() == [7, 6, 0, 0]


def test_a_table_too_short_for_its_tokens_is_refused() -> None:
    with pytest.raises(PlanError, match="sequence 3: 1 pages cannot hold 5 tokens"):
        BatchPacker(toy_config()).pack(StepPlan(0, rows=(Row(3, (1,), 4, 4, (7,)),)))


def test_pages_that_are_not_there_are_refused() -> None:
    with pytest.raises(PlanError, match="the pool has 80"):
        BatchPacker(toy_config()).pack(StepPlan(0, rows=(Row(3, (1,), 0, 0, (80,)),)))


def test_copies_that_depend_on_each_other_are_not_in_one_table() -> None:
    tables = copy_tables(((1, 2), (3, 4), (2, 5), (6, 4)))
    pairs = [[tuple(pair) for pair in table.T.tolist() if any(pair)] for table in tables]
    assert pairs == [[(1, 2), (3, 4)], [(2, 5), (6, 4)]]
    assert len(copy_tables(tuple((i, 100 + i) for i in range(1, 10)))) == 2
