"""Products of activations with weights, and how one token's is cut so that every core of a CPU takes part.

A single token's product reads each weight once, so memory is its limit. XLA's CPU backend runs such a product on one core
when it has fewer than about half a million weights, and cuts a larger one unevenly. A batch of products is spread well,
so one token's is written as a batch of PARTS over the same array: no weight moves. On two cores the 576 x 576 product
takes 0.6 to 0.9 of the time, 576 x 960 0.8, and 576 x 3072 0.9. Accelerators, and steps of several tokens, multiply
as they are.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# 4 measured better than 2 for weights of [in, out], and as good as 2 to 9 for [out, in].
PARTS = 4


def times(x: Float[Array, "tokens inputs"], weight: Float[Array, "inputs outputs"]) -> Float[Array, "tokens outputs"]:
    """x @ weight. Parts are sums over a part of the inputs, added up in float32."""
    inputs = weight.shape[0]
    if x.shape[0] != 1 or inputs % PARTS:
        return x @ weight

    def in_parts(x: Array, weight: Array) -> Array:
        rows, columns = x.reshape(PARTS, 1, -1), weight.reshape(PARTS, inputs // PARTS, -1)
        return jnp.einsum("pti,pio->pto", rows, columns, preferred_element_type=jnp.float32).sum(axis=0).astype(x.dtype)

    return jax.lax.platform_dependent(x, weight, cpu=in_parts, default=jnp.matmul)


def times_transposed(
    x: Float[Array, "tokens inputs"], weight: Float[Array, "outputs inputs"]
) -> Float[Array, "tokens outputs"]:
    """x @ weight.T. Parts are groups of outputs."""

    def whole(x: Array, weight: Array) -> Array:
        return jnp.einsum("ti,oi->to", x, weight)

    outputs, inputs = weight.shape
    if x.shape[0] != 1 or outputs % PARTS:
        return whole(x, weight)

    def in_parts(x: Array, weight: Array) -> Array:
        rows, groups = jnp.broadcast_to(x, (PARTS, 1, inputs)), weight.reshape(PARTS, outputs // PARTS, inputs)
        return jnp.einsum("pti,poi->tpo", rows, groups).reshape(1, outputs)

    return jax.lax.platform_dependent(x, weight, cpu=in_parts, default=whole)
