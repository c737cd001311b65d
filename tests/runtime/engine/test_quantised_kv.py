"""Engines with KV in codes give the greedy tokens of a dense forward pass over what the codes stand for, undisturbed or computed again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.runtime.engine.driver import PAGE, Driver, sequence, toy_config
from tests.runtime.engine.oracle import LONGEST, forward, toy
from triptych.models.config import PRESETS
from triptych.models.kv import CODE_BYTES, kv_groups
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.engine import memory
from triptych.runtime.engine.buckets import Buckets, ExtendShape
from triptych.runtime.engine.engine import Engine
from triptych.runtime.engine.pools import pool_structs
from triptych.sharding.heads import head_layout

pytestmark = pytest.mark.limit(300)

PROMPT = [11, 200, 3, 77, 5, 8, 13]


def kept(dtype: str) -> Callable[[jax.Array], jax.Array]:
    """Keys or values as they are read again."""

    def entries(numbers: jax.Array) -> jax.Array:
        scales = jnp.abs(numbers).max(axis=-1, keepdims=True) / (127 if dtype == "int8" else 448)
        codes = numbers / scales
        return (jnp.round(codes) if dtype == "int8" else codes.astype(dtype).astype(jnp.float32)) * scales

    return entries


@cache
def greedy(dtype: str, count: int) -> list[int]:
    """The next tokens after PROMPT, by dense attention over quantised keys and values."""
    model = toy()

    @jax.jit
    def run(params: Any, tokens: jax.Array) -> jax.Array:
        decoder = model.merge(params)
        return forward(decoder, decoder.embed(tokens), jnp.arange(LONGEST), kept=kept(dtype))

    tokens = list(PROMPT)
    for _ in range(count):
        padded = np.zeros(LONGEST, np.int32)
        padded[: len(tokens)] = tokens
        tokens.append(int(np.asarray(run(model.params, padded))[len(tokens) - 1].argmax()))
    return tokens[len(PROMPT) :]


@cache
def small_engine(kv_dtype: str, tp: int = 1, **fields: Any) -> Engine:
    """One with a single extend program for one sequence."""
    config = toy_config(
        buckets=Buckets((ExtendShape(1, 16, 16),), draws=(1,)),
        max_num_seqs=1,
        max_prefill_rows=1,
        prompt_logprobs=False,
        kv_dtype=kv_dtype,
        **fields,
    )
    engine = Engine(config, toy(tp), toy(tp).rules.mesh)
    engine.compile()
    return engine


@pytest.mark.parametrize(
    ("dtype", "tp"),
    [("int8", 2), *(pytest.param(*more, marks=pytest.mark.slow) for more in (("int8", 1), ("float8_e4m3fn", 1)))],
)
def test_greedy_tokens_are_those_over_what_the_codes_stand_for(dtype: str, tp: int) -> None:
    seq = sequence(0, list(PROMPT))
    assert Driver(small_engine(dtype, tp)).generate([seq], 8) == [greedy(dtype, 8)]


def test_a_sequence_computed_again_in_other_chunks_goes_on_as_if_undisturbed() -> None:
    """As after a preemption: its pages are gone, and what it had said is part of its prompt."""
    driver = Driver(small_engine("int8", 2))
    undisturbed = sequence(0, list(PROMPT))
    driver.generate([undisturbed], 12)
    begun = sequence(0, list(PROMPT), pages=sequence(1, []).pages)
    driver.generate([begun], 6)

    again = sequence(0, [*PROMPT, *begun.outputs], pages=sequence(2, []).pages)
    driver.run(again.row(4, draws=False), seats=(again.seat(),))
    driver.run(again.row(5, draws=False))
    assert PROMPT + driver_outputs(driver, again, 6) == undisturbed.tokens[: len(PROMPT)] + undisturbed.outputs

    known = len(PROMPT) + len(begun.outputs)  # of which the undisturbed sequence computed each in one chunk, or alone
    for layer in driver.engine.pools:
        first, second = ([entries(array, seq.pages, known) for array in layer] for seq in (undisturbed, again))
        for codes in (0, 1):
            assert np.abs(first[codes].astype(int) - second[codes].astype(int)).max() <= 1, (
                "but for rounding at a border"
            )
            assert (first[codes] == second[codes]).mean() > 0.99
        for scales in (2, 3):
            np.testing.assert_allclose(first[scales], second[scales], rtol=1e-5)


def driver_outputs(driver: Driver, seq: Any, count: int) -> list[int]:
    """All that was drawn for a sequence, what is in its prompt included."""
    return [*seq.prompt[len(PROMPT) :], *driver.generate([seq], count)[0]]


def entries(array: jax.Array, pages: tuple[int, ...], tokens: int) -> np.ndarray:
    """A sequence's entries [tokens, heads, ...] in one array of the pool."""
    taken = np.asarray(array)[list(pages)]
    return taken.reshape(-1, *taken.shape[2:])[:tokens]


def test_copied_pages_have_their_scales() -> None:
    engine = small_engine("int8", 2)
    driver, first = Driver(engine), sequence(0, list(PROMPT))
    driver.generate([first], 2)
    driver.run(copies=((first.pages[0], 77), (first.pages[1], 78)))
    for array in (array for layer in engine.pools for array in layer):
        held = np.asarray(array)
        assert (
            held[77].tobytes() == held[first.pages[0]].tobytes()
            and held[78].tobytes() == held[first.pages[1]].tobytes()
        )
        assert held[77].any()


def test_scales_stay_on_the_devices_of_their_heads() -> None:
    text = small_engine("int8", 2)._programs["extend", ExtendShape(1, 16, 16)].as_text()
    assert "all-reduce" in text
    assert not any(word in text for word in ("all-gather", "all-to-all", "collective-permute"))


@pytest.mark.slow
def test_layer_groups_write_codes_and_scales() -> None:
    engine = small_engine("int8", roles=frozenset({Role.PREFILL}), layer_groups=((0, 1), (1, 2)))
    seq = sequence(0, list(PROMPT))
    assert Driver(engine).tokens(seq.row(len(PROMPT)), seats=(seq.seat(),)) == [greedy("int8", 1)]


@pytest.mark.parametrize("dtype", CODE_BYTES)
def test_the_same_memory_holds_more_pages_of_codes(dtype: str) -> None:
    """Heads of 16 here: 20 bytes an entry for 32 in bfloat16. In large models they have 64 or 128: 68 for 128, 132 for 256."""
    structure = toy(2).structure
    (group,) = kv_groups(structure.config, dtype)
    size = memory.page_bytes(structure, PAGE, dtype)
    layers = pool_structs(structure, group, toy_config(kv_dtype=dtype))
    held = sum(np.prod(s.sharding.shard_shape(s.shape)) * s.dtype.itemsize for layer in layers for s in layer)  # pyright: ignore
    assert size == 2 * 2 * PAGE * 2 * (16 + 4) == held // layers[0][0].shape[0]
    assert group.bytes_per_token * PAGE == 2 * size

    def pages(kv_dtype: str) -> int:
        return memory.pages_that_fit(
            structure, page_size=PAGE, kv_dtype=kv_dtype, max_model_len=64, bytes_per_device=1 << 20
        )

    assert (pages("float32"), pages("bfloat16"), pages(dtype)) == (512, 1024, (1 << 20) // size)
    assert pages(dtype) == 1024 * 32 // 20


@pytest.mark.parametrize(("preset", "gain"), [("llama-8b", 1.93), ("smollm2-135m", 1.88)])
def test_large_models_get_nearly_twice_the_context_of_bfloat16(preset: str, gain: float) -> None:
    """Heads of 128: 256 / 132; of 64: 128 / 68."""
    model = PRESETS[preset]
    structure = replace(toy().structure, config=model, head_layout=head_layout(model.num_heads, model.num_kv_heads, 1))
    int8, wide = (
        memory.pages_that_fit(
            structure, page_size=16, kv_dtype=dtype, max_model_len=2048, bytes_per_device=4 << 30, attention="gpu"
        )
        for dtype in ("int8", "bfloat16")
    )
    assert int8 / wide == pytest.approx(gain, abs=0.01)


@pytest.mark.parametrize("attention", ["tpu", "gpu-mosaic"])
def test_kernels_that_do_not_read_codes_are_refused(attention: str) -> None:
    with pytest.raises(ConfigError, match=f"attention '{attention}' does not read KV in int8; .*reference"):
        toy_config(attention=attention, kv_dtype="int8")


@pytest.mark.parametrize(("dtype", "attention", "capped"), [("int8", "gpu", True), ("int8", "reference", False), ("bfloat16", "gpu", False)])  # fmt: skip
def test_no_more_pages_of_codes_than_triton_can_index(dtype: str, attention: str, capped: bool) -> None:
    """Of a model with so few layers that a GPU's memory holds more than 2 GiB of codes for each."""
    model = replace(PRESETS["llama-8b"], num_layers=2, layer_windows=(None,) * 2)
    structure = replace(toy().structure, config=model, head_layout=head_layout(model.num_heads, model.num_kv_heads, 1))
    pages = memory.pages_that_fit(
        structure, page_size=16, kv_dtype=dtype, max_model_len=2048, bytes_per_device=100 << 30, attention=attention
    )
    assert (pages * 16 * 8 * 128 < 2**31) is capped
