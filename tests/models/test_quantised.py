"""Quantised matrices: how near they are to what they stand for, and that products are those of the dequantised matrix, however they are written."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from triptych.models.errors import QuantisationError
from triptych.models.quantised import (
    ChannelWeight,
    channel_product,
    channel_sum,
    channel_times,
    dequantise,
    group_product,
    group_sum,
    group_times,
    quantise,
)
from triptych.models.weight_formats import AUTO, WEIGHT_FORMATS, weight_format

OUTPUTS, INPUTS = 24, 128


def matrix(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((OUTPUTS, INPUTS)).astype(np.float32) * rng.uniform(0.01, 3, (OUTPUTS, 1))
    weight[3] = 0  # a pad
    weight[4, :32] = 0  # a group of pads
    weight[5] *= np.where(np.arange(INPUTS) == 17, 40, 1)  # one input far from all others
    return weight.astype(np.float32)


@cache
def quantised(name: str) -> dict[str, jax.Array]:
    return jax.jit(partial(quantise, WEIGHT_FORMATS[name]))(matrix())


def test_int8_is_within_half_a_step_of_each_weight():
    weight, arrays = matrix(), quantised("int8")
    assert arrays["codes"].dtype == jnp.int8 and arrays["scale"].shape == (OUTPUTS,)
    step = np.abs(weight).max(axis=1, keepdims=True) / 127
    error = np.abs(np.asarray(dequantise(arrays)) - weight)
    assert (error <= step * 0.5001).all()
    assert (np.abs(np.asarray(arrays["codes"])).max(axis=1) == np.where(step[:, 0] > 0, 127, 0)).all()


def test_fp8_is_within_a_sixteenth_of_each_weight():
    weight, arrays = matrix(), quantised("fp8")
    assert arrays["codes"].dtype == jnp.float8_e4m3fn
    back, scale = np.asarray(dequantise(arrays)), np.asarray(arrays["scale"])[:, None]
    assert np.isfinite(back).all()
    # Three bits of fraction, and below 2**-6 steps of 2**-9.
    assert (np.abs(back - weight) <= np.maximum(np.abs(weight) / 16, scale * 2.0**-10) * 1.0001).all()


@pytest.mark.parametrize("name", ["int4", "int4-32"])
def test_int4_is_no_worse_than_rounding_to_the_largest_of_each_group(name: str):
    stored = WEIGHT_FORMATS[name]
    assert stored.group is not None
    weight, arrays = matrix(), quantised(name)
    groups = INPUTS // stored.group
    assert arrays["packed"].dtype == jnp.int8 and arrays["packed"].shape == (OUTPUTS, INPUTS // 2)
    assert arrays["scales"].shape == (OUTPUTS, groups)
    grouped = weight.reshape(OUTPUTS, groups, stored.group)
    largest = np.abs(grouped).max(axis=2, keepdims=True)
    plain = np.round(grouped / np.where(largest > 0, largest / 7, 1)) * largest / 7
    error = np.square(np.asarray(dequantise(arrays)) - weight).reshape(grouped.shape).sum(axis=2)
    assert (error <= np.square(plain - grouped).sum(axis=2) * 1.0001 + 1e-12).all()
    assert error.sum() < 0.9 * np.square(plain - grouped).sum()


def test_every_int4_code_survives_packing():
    codes = np.resize(np.arange(-8, 8), (2, 64)).astype(np.float32)
    codes[1] = codes[1, ::-1]
    arrays = jax.jit(partial(quantise, WEIGHT_FORMATS["int4-32"]))(codes * 2)
    np.testing.assert_array_equal(dequantise(arrays), codes * 2)


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("name", ["int8", "fp8", "int4"])
def test_every_way_to_multiply_is_the_product_with_the_dequantised_matrix(name: str, tokens: int):
    arrays = quantised(name)
    weight = np.asarray(dequantise(arrays), np.float64)
    x = np.random.default_rng(1).standard_normal((tokens, INPUTS)).astype(np.float32)
    rounded = jnp.asarray(x, jnp.bfloat16)
    bound = 2.0**-8 * (np.abs(x) @ np.abs(weight).T) + 1e-6  # an operand's rounding; sums are in four bytes
    if name == "int4":
        ways, args = (group_times, group_product, group_sum), (arrays["packed"], arrays["scales"])
    else:
        ways, args = (channel_times, channel_product, channel_sum), (arrays["codes"], arrays["scale"])
    for way in ways:
        out = jax.jit(way)(x, *args)
        assert out.dtype == jnp.float32
        np.testing.assert_allclose(out, x @ weight.T, rtol=1e-5, atol=1e-4)
        wide = np.asarray(jax.jit(way)(rounded, *args), np.float64)
        assert (np.abs(wide - np.asarray(rounded, np.float64) @ weight.T) <= bound).all()


def test_rows_of_a_table_are_those_of_the_dequantised_matrix_and_places_outside_are_clipped():
    arrays = quantised("int8")
    table = ChannelWeight(OUTPUTS, INPUTS, jnp.dtype(jnp.int8))
    table.codes[...], table.scale[...] = arrays["codes"], arrays["scale"]
    rows = table.rows(jnp.array([0, 7, OUTPUTS + 5]), jnp.dtype(jnp.float32))
    np.testing.assert_array_equal(rows, np.asarray(dequantise(arrays))[[0, 7, OUTPUTS - 1]])


def test_unknown_names_and_groups_that_do_not_divide_are_typed_errors():
    assert weight_format(AUTO) is None
    with pytest.raises(QuantisationError, match="'int5' are unknown; known: auto, int8"):
        weight_format("int5")
    with pytest.raises(QuantisationError, match="96 inputs are no whole groups of 64"):
        quantise(WEIGHT_FORMATS["int4"], jnp.asarray(matrix()[:, :96]))
