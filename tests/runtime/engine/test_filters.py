"""top-k, top-p and min-p keep exactly what sorting would keep, ties together."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.runtime.engine.oracle import kept
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.engine import filters

VOCAB = 97
ROWS = 8


@pytest.fixture(scope="module")
def apply():
    def run(logits, min_p, top_k, top_p):
        logits = filters.keep_min_p(logits, min_p)
        return filters.keep_top_p(filters.keep_top_k(logits, top_k), top_p)

    return jax.jit(run)


def check(apply, logits: np.ndarray, params: list[SamplingParams]) -> None:
    logits = logits - logits.max(axis=1, keepdims=True)
    out = apply(
        logits,
        np.asarray([p.min_p for p in params], np.float32),
        np.asarray([p.top_k for p in params], np.int32),
        np.asarray([p.top_p for p in params], np.float32),
    )
    for row, (got, before, param) in enumerate(zip(np.asarray(out), logits, params, strict=True)):
        # The oracle sees the numbers that the program saw: p and min_p in float32.
        seen = replace(param, top_p=float(np.float32(param.top_p)), min_p=float(np.float32(param.min_p)))
        expected = kept(before.astype(np.float64), seen)
        assert (np.isfinite(got) == expected).all(), (row, param, np.isfinite(got).sum(), expected.sum())
        np.testing.assert_array_equal(got[expected], before[expected])


CASES = [
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": VOCAB - 1},
    {"top_k": VOCAB},
    {"top_k": 10 * VOCAB},
    {"top_p": 1e-6},
    {"top_p": 0.3},
    {"top_p": 0.9},
    {"top_p": 0.999},
    {"top_p": 1.0},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.5},
    {"top_k": 3, "top_p": 0.95, "min_p": 0.01},
    {"top_k": 1, "top_p": 0.01, "min_p": 0.5},
    {},
]


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_filters_keep_what_sorting_keeps(apply, scale: float) -> None:
    random = np.random.default_rng(int(scale * 100))
    for first in range(0, len(CASES), ROWS):
        params = [SamplingParams(**case) for case in CASES[first : first + ROWS]]
        check(apply, (random.standard_normal((ROWS, VOCAB)) * scale).astype(np.float32), params)


def test_equal_logits_are_kept_or_dropped_together(apply) -> None:
    random = np.random.default_rng(5)
    # Few distinct values, so that every threshold falls on ties.
    logits = random.integers(-3, 3, (ROWS, VOCAB)).astype(np.float32)
    for first in range(0, len(CASES), ROWS):
        check(apply, logits, [SamplingParams(**case) for case in CASES[first : first + ROWS]])


def test_all_logits_equal_keeps_all(apply) -> None:
    params = [SamplingParams(top_k=1), SamplingParams(top_p=0.01)] * (ROWS // 2)
    check(apply, np.zeros((ROWS, VOCAB), np.float32), params)


def test_forbidden_tokens_stay_forbidden_and_take_no_mass(apply) -> None:
    random = np.random.default_rng(6)
    logits = random.standard_normal((ROWS, VOCAB)).astype(np.float32)
    logits[:, ::3] = -np.inf
    check(apply, logits, [SamplingParams(**case) for case in CASES[:ROWS]])


def test_order_of_bits_is_the_order_of_floats() -> None:
    values = np.asarray([-np.inf, -1e30, -1.5, -1e-30, -0.0, 0.0, 1e-30, 2.0, 1e30, np.inf], np.float32)
    order = np.asarray(filters.ordered_bits(jnp.asarray(values)))
    assert (np.diff(order.astype(np.int64)) >= 0).all()
    assert order[4] == order[5] and len(set(order.tolist())) == len(values) - 1
