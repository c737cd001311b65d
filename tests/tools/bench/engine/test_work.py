"""Bytes and operations of steps, against counts made one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from triptych.models.config import PRESETS
from triptych.tools.bench.engine.work import ModelWork, Work

LLAMA = PRESETS["llama-3.1-8b"]


def test_the_slower_of_memory_and_arithmetic_is_the_floor():
    work = Work(weight_bytes=6e9, kv_bytes=2e9, operations=3e12)
    assert work.floor(4e12, 1e15) == pytest.approx(3e-3)
    assert work.floor(1e12, 1e15) == pytest.approx(8e-3)


def test_decode_reads_weights_and_kv():
    """gpu_limits: 15.01 GB of weights a step, 131072 bytes of KV a token."""
    embedding = LLAMA.vocab_size * LLAMA.hidden_size
    weights = 2 * (LLAMA.parameter_count() - embedding)
    work = ModelWork(LLAMA, weights, kv_token_bytes=4096).of_rows([(1023, 1)] * 64, 64)
    assert work.weight_bytes == pytest.approx(15.01e9, rel=1e-3)
    assert work.kv_bytes == 64 * 1024 * 131072
    assert work.operations == pytest.approx(64 * (2 * 7.505e9 + 4 * 32 * 32 * 128 * 1024), rel=1e-3)


@pytest.mark.parametrize("window", [None, 5, 100])
def test_queries_are_counted_with_the_keys_that_they_see(window: int | None):
    toy = replace(PRESETS["toy"], layer_windows=(None, window))
    rows, drawn = [(12, 1), (4, 9), (0, 7)], 2
    pairs = tokens = 0
    for layer, limit in enumerate(toy.layer_windows):
        for start, length in rows:
            seen = set()
            for at in range(start, start + length):
                keys = [key for key in range(at + 1) if limit is None or at - key < limit]
                # In the last layer nothing attends but what is drawn from: the ends of the first two rows.
                pairs += len(keys) if layer == 0 or (start and at == start + length - 1) else 0
                seen |= set(keys)
            tokens += len(seen)
    work = ModelWork(toy, 1000, kv_token_bytes=8)
    linear = 2 * 2 * (2 * 64 * 128 + 2 * 64 * 64 + 3 * 64 * 128)  # two layers: q and o, k and v, FFN
    norms = 2 * (4 * 64 + 64)
    assert work.token_operations == pytest.approx(linear + norms)
    found, left_out = work.of_rows(rows, drawn), 15 * 2 * (2 * 64 * 128 + 3 * 64 * 128)
    assert found.operations == pytest.approx(17 * (linear + norms) - left_out + pairs * 4 * 8 * 16 + 2 * 2 * 260 * 64)
    assert found.kv_bytes == pytest.approx(tokens * 8, rel=0.2 if window == 5 else 0)


def test_devices_share_the_work():
    one, four = (ModelWork(LLAMA, 1 << 34, 4096, tp).of_rows([(100, 20)], 1) for tp in (1, 4))
    assert (four.weight_bytes, four.kv_bytes, four.operations) == (
        one.weight_bytes / 4,
        one.kv_bytes / 4,
        one.operations / 4,
    )
