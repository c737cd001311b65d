"""TPU kernels on the CPU."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas
from jax.experimental.pallas import tpu as pltpu


def interpret_tpu_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Pallas's interpreter of any backend, because that of TPUs does not know reshaped references (jax 0.10.2). Masked stores, of which it
    does not know those with a fixed index, become reads and writes."""

    def store(ref: Any, value: jax.Array, *, mask: jax.Array) -> None:
        ref[...] = jnp.where(mask, value, ref[...])

    monkeypatch.setattr(pallas, "pallas_call", partial(pallas.pallas_call, interpret=True))
    monkeypatch.setattr(pltpu, "store", store)
