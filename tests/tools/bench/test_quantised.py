"""The products that are timed are products with the same matrix."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from triptych.tools.bench import bandwidth, quantised


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_way_multiplies_with_the_matrix(dtype):
    weight = jax.random.normal(jax.random.key(0), (32, 128), dtype)
    x = jax.random.normal(jax.random.key(1), (3, 128), dtype)
    expected = np.asarray(x, np.float32) @ np.asarray(weight, np.float32).T
    ways = quantised.ways(weight)
    names = [name for name, _, _ in ways]
    assert names[:3] == [f"{dtype} product", "int8 product", "int8 sum"]
    assert ("int8 kernel" in names) == (dtype == "bfloat16")
    for name, way, arrays in ways:
        error = np.abs(np.asarray(way(x, *arrays), np.float32) - expected).mean() / np.abs(expected).mean()
        assert error < {"float32": 1e-5, "bfloat16": 0.01, "int8": 0.02, "fp8": 0.1, "int4": 0.2}[name.split()[0]]


@pytest.mark.slow
def test_every_way_is_timed(capsys, monkeypatch):
    monkeypatch.setattr(bandwidth, "CPU_BYTES", 1 << 20)
    monkeypatch.setattr(quantised, "COPIES", 2)
    assert quantised.main(["--model", "toy", "--tokens", "1", "2", "--dtype", "float32"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("int4 sum") == 4 and "2 tok" in shown
