"""The products that are timed are products with the same matrix."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from triptych.tools.bench import bandwidth, quantised


@pytest.mark.slow
def test_each_way_multiplies_with_the_matrix(capsys, monkeypatch):
    weight = jax.random.normal(jax.random.key(0), (32, 128), jnp.float32)
    x = jax.random.normal(jax.random.key(1), (3, 128), jnp.float32)
    expected = np.asarray(x @ weight.T)
    ways = quantised.ways(weight)
    assert [name for name, _, _ in ways[:3]] == ["float32 product", "int8 product", "int8 sum"]
    for name, way, arrays in ways:
        error = np.abs(np.asarray(way(x, *arrays)) - expected).mean() / np.abs(expected).mean()
        assert error < {"flo": 1e-5, "int8": 0.02, "fp8 ": 0.1, "int4": 0.2}[name[:4] if name[:3] != "flo" else "flo"]
    monkeypatch.setattr(bandwidth, "CPU_BYTES", 1 << 20)
    monkeypatch.setattr(quantised, "COPIES", 2)
    assert quantised.main(["--model", "toy", "--tokens", "1", "2", "--dtype", "float32"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("int4 sum") == 4 and "2 tok" in shown
