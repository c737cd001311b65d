"""Quantised matrices: how they are made, read back and multiplied. Activations and sums stay in floating point.

Both kinds are [outputs, inputs], whatever the order of the matrix that they stand for (`models/decoder.py`), so that a product runs along
contiguous bytes and a scale belongs to a run of a row:

- `ChannelWeight`: one byte a weight (int8 or fp8), a scale an output. The scale is applied to the product, so the product itself reads
  bytes and converts them.
- `GroupWeight`: int4, two in a byte, a scale for each group of inputs of an output. In a byte of a group, the low half is a weight of the
  group's first half and the high half one of its second: unpacking moves nothing between lanes. Packed by hand, because int4 arrays take a
  byte an element on some backends.

Which product: a matrix product with the conversion before it. TPU's compiler gives it the codes as they are (v6e: no copy of a matrix of
bytes for 1, 8 or 256 tokens), and GPU's may, in a Triton product; for many tokens a dequantised copy costs little beside the product. On GPU a few tokens are multiplied and summed
instead of by a matrix product: an elementwise producer of a row reduction always fuses, so that the codes are all that is read. Layers on one GPU multiply up to 32 tokens
with int8 by a kernel instead (`models/kernels/codes_triton.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Int8

from triptych.models.errors import QuantisationError
from triptych.models.weight_formats import WeightFormat

Matrix: TypeAlias = Float[Array, "outputs inputs"]

# Most tokens that a GPU multiplies and sums. Each token beyond the first reads the codes again from cache. By reasoning, not measured:
# `tools/bench/quantised.py` prints what each way takes.
CHANNEL_REDUCE_ROWS = 1
GROUP_REDUCE_ROWS = 4

_CODE_DTYPES = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn}
_LIMITS = {"int8": 127.0, "fp8": 448.0}

# What shares of the scale that reaches a group's largest weight are tried: a smaller one is finer for all others.
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8)


class ChannelWeight(nnx.Module):
    """One byte a weight and a scale an output."""

    def __init__(self, outputs: int, inputs: int, codes: jnp.dtype) -> None:
        self.codes = nnx.Param(jnp.zeros((outputs, inputs), codes))
        self.scale = nnx.Param(jnp.zeros((outputs,), jnp.float32))

    def times(self, x: Float[Array, "tokens inputs"]) -> Float[Array, "tokens outputs"]:
        """x @ weight.T, in the dtype of x."""
        return channel_times(x, self.codes[...], self.scale[...]).astype(x.dtype)

    def logits(self, x: Float[Array, "tokens inputs"]) -> Float[Array, "tokens outputs"]:
        """x @ weight.T in float32."""
        return channel_times(x, self.codes[...], self.scale[...])

    def rows(self, at: Int[Array, "tokens"], dtype: jnp.dtype) -> Float[Array, "tokens inputs"]:
        """Rows of the matrix, for an embedding; places outside are clipped."""
        codes, scale = (array[...].at[at].get(mode="clip") for array in (self.codes, self.scale))
        return (codes.astype(jnp.float32) * scale[:, None]).astype(dtype)


class GroupWeight(nnx.Module):
    """Two weights a byte and a scale for each group of inputs of an output."""

    def __init__(self, outputs: int, inputs: int, group: int, dtype: jnp.dtype) -> None:
        check_group(inputs, group, 1)
        self.packed = nnx.Param(jnp.zeros((outputs, inputs // 2), jnp.int8))
        self.scales = nnx.Param(jnp.zeros((outputs, inputs // group), dtype))

    def times(self, x: Float[Array, "tokens inputs"]) -> Float[Array, "tokens outputs"]:
        """x @ weight.T, in the dtype of x."""
        return group_times(x, self.packed[...], self.scales[...]).astype(x.dtype)


QuantisedWeight: TypeAlias = ChannelWeight | GroupWeight


def quantised_weight(stored: WeightFormat, outputs: int, inputs: int, dtype: jnp.dtype) -> QuantisedWeight:
    """An empty matrix of that format in a model of `dtype`."""
    if stored.group is not None:
        return GroupWeight(outputs, inputs, stored.group, dtype)
    return ChannelWeight(outputs, inputs, jnp.dtype(_CODE_DTYPES[stored.codes]))


def check_group(inputs: int, group: int, devices: int) -> None:
    """Raises QuantisationError unless every device's share of `inputs` is whole groups."""
    if inputs % (group * devices):
        spread = "" if devices == 1 else f" on {devices} devices"
        raise QuantisationError(
            f"{inputs} inputs{spread} are no whole groups of {group}; use smaller groups (int4-32), int8 or fp8"
        )


def quantise(stored: WeightFormat, weight: Matrix) -> dict[str, jax.Array]:
    """The arrays of `quantised_weight(stored, ...)` nearest to a matrix, by name. Scales of groups are in the matrix's dtype."""
    if stored.group is not None:
        return _quantise_groups(weight, stored.group)
    wide, limit = weight.astype(jnp.float32), _LIMITS[stored.codes]
    largest = jnp.max(jnp.abs(wide), axis=1)
    scale = jnp.where(largest > 0, largest / limit, 1.0)
    codes = jnp.clip(wide / scale[:, None], -limit, limit)
    codes = jnp.round(codes) if stored.codes == "int8" else codes
    return {"codes": codes.astype(_CODE_DTYPES[stored.codes]), "scale": scale}


def dequantise(arrays: Mapping[str, jax.Array]) -> Matrix:
    """The matrix that the arrays of `quantise` stand for, in float32."""
    if "packed" in arrays:
        packed, scales = arrays["packed"], arrays["scales"].astype(jnp.float32)
        codes = jnp.concatenate(_halves(packed.reshape(*scales.shape, -1)), axis=2).astype(jnp.float32)
        return (codes * scales[:, :, None]).reshape(scales.shape[0], -1)
    return arrays["codes"].astype(jnp.float32) * arrays["scale"][:, None]


def channel_times(
    x: Float[Array, "tokens inputs"], codes: Array, scale: Float[Array, "outputs"]
) -> Float[Array, "tokens outputs"]:
    """x @ (codes * scale).T in float32."""
    if x.shape[0] > CHANNEL_REDUCE_ROWS:
        return channel_product(x, codes, scale)
    return jax.lax.platform_dependent(x, codes, scale, cuda=channel_sum, default=channel_product)


def channel_product(x: Array, codes: Array, scale: Array) -> Array:
    """As a matrix product."""
    return jnp.einsum("ti,oi->to", x, codes.astype(x.dtype), preferred_element_type=jnp.float32) * scale


def channel_sum(x: Array, codes: Array, scale: Array) -> Array:
    """As a sum along rows. Outputs first, so that the tokens of an output follow each other and find its codes in cache."""
    terms = codes.astype(jnp.float32)[:, None, :] * x.astype(jnp.float32)[None]
    return terms.sum(axis=2).T * scale


def group_times(
    x: Float[Array, "tokens inputs"], packed: Int8[Array, "outputs bytes"], scales: Float[Array, "outputs groups"]
) -> Float[Array, "tokens outputs"]:
    """x @ weight.T in float32, the weight as `GroupWeight` has it."""
    if x.shape[0] > GROUP_REDUCE_ROWS:
        return group_product(x, packed, scales)
    return jax.lax.platform_dependent(x, packed, scales, cuda=group_sum, default=group_product)


def group_product(x: Array, packed: Array, scales: Array) -> Array:
    """As two matrix products, with the low halves of the bytes and with the high ones.

    Putting the halves side by side for one product costs a copy of the matrix in x's dtype (TPU's compiler: 117 MB at 14336 x 4096; this way
    none for up to 8 tokens, 15 MB for 256).
    """
    groups, bytes_of_group = scales.shape[1], packed.shape[1] // scales.shape[1]
    by_half = x.reshape(x.shape[0], groups, 2, bytes_of_group)
    wide = jnp.repeat(scales.astype(x.dtype), bytes_of_group, axis=1)
    first, second = (
        jnp.einsum(
            "ti,oi->to",
            by_half[:, :, half].reshape(x.shape[0], -1),
            codes.astype(x.dtype) * wide,
            preferred_element_type=jnp.float32,
        )
        for half, codes in enumerate(_halves(packed))
    )
    return first + second


def group_sum(x: Array, packed: Array, scales: Array) -> Array:
    """As a sum along rows, of both halves of each byte at once."""
    outputs, groups = scales.shape
    low, high = _halves(packed.reshape(outputs, 1, groups, -1))
    first, second = jnp.moveaxis(x.astype(jnp.float32).reshape(x.shape[0], groups, 2, -1), 2, 0)
    sums = low.astype(jnp.float32) * first + high.astype(jnp.float32) * second
    return (sums * scales.astype(jnp.float32)[:, None, :, None]).sum(axis=(2, 3)).T


def _halves(packed: Array) -> tuple[Array, Array]:
    """Both weights of each byte, as int8. The shift to the right carries the sign."""
    return jnp.right_shift(jnp.left_shift(packed, 4), 4), jnp.right_shift(packed, 4)


def _quantise_groups(weight: Matrix, group: int) -> dict[str, jax.Array]:
    """For each group the scale of least squared error among those tried: the codes' -8..7 is not symmetric, so the largest weight may be at either end."""
    outputs, inputs = weight.shape
    check_group(inputs, group, 1)
    wide = weight.astype(jnp.float32).reshape(outputs, inputs // group, group)
    most, least = wide.max(axis=2), wide.min(axis=2)
    largest = jnp.where(-least > most, least, most)

    def codes_at(scales: Array) -> Array:
        return jnp.clip(jnp.round(wide / scales.astype(jnp.float32)[:, :, None]), -8, 7)

    def error_of(scales: Array) -> Array:
        return jnp.square(codes_at(scales) * scales.astype(jnp.float32)[:, :, None] - wide).sum(axis=2)

    def better(best: tuple[Array, Array], share: Array) -> tuple[tuple[Array, Array], None]:
        scales, error = best
        tried = jnp.where(largest == 0, 1.0, largest * share).astype(weight.dtype)
        found = error_of(tried)
        return (jnp.where(found < error, tried, scales), jnp.minimum(found, error)), None

    nothing = (jnp.ones(largest.shape, weight.dtype), jnp.full(largest.shape, jnp.inf))
    shares = jnp.array([share / end for end in (7, -8) for share in _SHARES])
    (scales, _), _ = jax.lax.scan(better, nothing, shares)
    codes = codes_at(scales).astype(jnp.int8)
    low, high = codes[:, :, : group // 2], codes[:, :, group // 2 :]
    packed = jnp.bitwise_or(jnp.bitwise_and(low, 15), jnp.left_shift(high, 4))
    return {"packed": packed.reshape(outputs, -1), "scales": scales}
