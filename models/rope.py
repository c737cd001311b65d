"""Rotary position embedding, applied: half-split order (pairs are (i, i + head_dim/2)), angles in float32.

The paper is arXiv 2104.09864. Positions are explicit, one a token (or three, for M-RoPE); `Rotation` is computed once a step and shared by all
layers.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from triptych.models.rope_config import RopeConfig


class Rotation(NamedTuple):
    """cos and sin of every token's angles, float32."""

    cos: Float[Array, "tokens half_dim"]
    sin: Float[Array, "tokens half_dim"]


def rotation(rope: RopeConfig, head_dim: int, positions: Int[Array, "*three tokens"]) -> Rotation:
    """The rotation of each token, from its position, or with `rope.sections` from its three positions [3, tokens].

    One position a token is the same as three equal ones: text needs no more. Raises ValueError for three positions
    without sections.
    """
    frequencies = jnp.asarray(rope.inverse_frequencies(head_dim), jnp.float32)
    if positions.ndim == 1:
        angles = positions.astype(jnp.float32)[:, None] * frequencies[None, :]
    elif rope.sections is None:
        raise ValueError(f"positions {positions.shape} need rope sections, which this model does not have")
    else:
        angles = positions.astype(jnp.float32)[rope.axes(head_dim)].T * frequencies[None, :]
    return Rotation(jnp.cos(angles) * rope.amplitude, jnp.sin(angles) * rope.amplitude)


def rotate(x: Float[Array, "tokens heads head_dim"], by: Rotation) -> Float[Array, "tokens heads head_dim"]:
    """Rotate queries or keys; computed in float32, returned in the dtype of x."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = by.cos[:, None, :], by.sin[:, None, :]
    return jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1).astype(x.dtype)
