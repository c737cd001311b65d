"""Attention within spans, against a dense softmax in numpy."""

import jax
import numpy as np
import pytest

from triptych.models.vision.attention import span_attention

HEADS, HEAD_DIM = 3, 8


def dense(q: np.ndarray, k: np.ndarray, v: np.ndarray, spans: np.ndarray, scale: float) -> np.ndarray:
    out = np.zeros_like(q)
    for slot, (start, stop) in enumerate(spans):
        if stop > start:
            scores = np.einsum("hd,khd->hk", q[slot], k[start:stop]) * scale
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[slot] = np.einsum("hk,khd->hd", weights / weights.sum(axis=1, keepdims=True), v[start:stop])
    return out


def spans_of(lengths: list[int], slots: int) -> np.ndarray:
    spans = np.zeros((slots, 2), np.int32)
    at = 0
    for length in lengths:
        spans[at : at + length] = at, at + length
        at += length
    return spans


@pytest.mark.parametrize(
    ("lengths", "slots"),
    [
        ([5], 5),
        ([1, 1, 1], 9),
        ([128, 128], 256),  # pieces that end where blocks end
        ([300, 7, 129], 450),  # a piece over three blocks, one inside a block, one across the end of one
        ([64] * 6, 400),
        ([], 40),  # nothing but padding
    ],
)
def test_every_slot_attends_to_its_own_piece_and_padding_gets_zeros(lengths: list[int], slots: int) -> None:
    rng = np.random.default_rng(len(lengths))
    q, k, v = (rng.standard_normal((slots, HEADS, HEAD_DIM), dtype=np.float32) * 2 for _ in range(3))
    spans = spans_of(lengths, slots)
    out = np.asarray(jax.jit(span_attention, static_argnums=4)(q, k, v, spans, 0.3))
    np.testing.assert_allclose(out, dense(q, k, v, spans, 0.3), atol=1e-5, rtol=0)
    assert not out[sum(lengths) :].any()


def test_what_lies_outside_a_span_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((200, HEADS, HEAD_DIM), dtype=np.float32) for _ in range(3))
    spans = spans_of([90, 60], 200)
    attend = jax.jit(span_attention, static_argnums=4)
    before = attend(q, k, v, spans, 1.0)
    k[90:], v[90:] = 7.0, -5.0
    after = attend(q, k, v, spans, 1.0)
    np.testing.assert_array_equal(before[:90], after[:90])
