"""Which tokens may be drawn: min-p, top-k and top-p as thresholds on a row's logits, exact and without sorting the vocabulary.

A float's bits, read as an integer after flipping (all of them for negative numbers, the sign alone otherwise), have the order of the
floats. The largest threshold for which a monotone condition still holds ("at least k logits reach it", "the logits that reach it have
mass p") is then found bit by bit: 32 reductions over the row instead of a sort. Tokens with equal logits are kept or dropped together.

Nothing here branches on what rows ask for: on a GPU a conditional makes the host wait for its predicate, and with it for the whole step.
Which steps need filters is decided before, by the sampler's variant.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, UInt32

_SIGN = 0x80000000


def ordered_bits(x: Float[Array, "..."]) -> UInt32[Array, "..."]:
    """Unsigned integers in the order of the float32 values; both zeros map to the same one."""
    # A sum with zero would say it too, but the compiler may drop it.
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, jnp.float32(0), x), jnp.uint32)
    return jnp.where(bits >= jnp.uint32(_SIGN), ~bits, bits | jnp.uint32(_SIGN))


def largest_threshold(
    holds: Callable[[UInt32[Array, "rows"]], Bool[Array, "rows"]], rows: int
) -> UInt32[Array, "rows"]:
    """For each row the largest threshold at which `holds` is true; it must be true at 0 and, once false, stay false above."""

    def decide(step: Int32[Array, ""], low: UInt32[Array, "rows"]) -> UInt32[Array, "rows"]:
        candidate = low | (jnp.uint32(_SIGN) >> step.astype(jnp.uint32))
        return jnp.where(holds(candidate), candidate, low)

    return jax.lax.fori_loop(0, 32, decide, jnp.zeros((rows,), jnp.uint32))


def keep_top_k(logits: Float[Array, "rows vocab"], k: Int32[Array, "rows"]) -> Float[Array, "rows vocab"]:
    """-inf for every logit below the row's k-th largest. k = 0 keeps the row as it is."""
    order = ordered_bits(logits)
    active = (k > 0) & (k < logits.shape[1])

    def enough(threshold: UInt32[Array, "rows"]) -> Bool[Array, "rows"]:
        return (order >= threshold[:, None]).sum(axis=1, dtype=jnp.int32) >= k

    threshold = largest_threshold(enough, logits.shape[0])
    return jnp.where(active[:, None] & (order < threshold[:, None]), -jnp.inf, logits)


def keep_top_p(logits: Float[Array, "rows vocab"], p: Float[Array, "rows"]) -> Float[Array, "rows vocab"]:
    """-inf outside the smallest set of largest logits whose probability is at least p. p = 1 keeps the row as it is.

    Probabilities are those of the given logits, renormalised over what earlier filters left. The largest logit of a row must be 0.
    """
    order = ordered_bits(logits)
    weight = jnp.exp(logits)
    needed = p * weight.sum(axis=1)

    def enough(threshold: UInt32[Array, "rows"]) -> Bool[Array, "rows"]:
        return jnp.where(order >= threshold[:, None], weight, 0).sum(axis=1) >= needed

    threshold = largest_threshold(enough, logits.shape[0])
    return jnp.where((p < 1)[:, None] & (order < threshold[:, None]), -jnp.inf, logits)


def keep_min_p(logits: Float[Array, "rows vocab"], min_p: Float[Array, "rows"]) -> Float[Array, "rows vocab"]:
    """-inf for tokens less than min_p times as likely as the likeliest. The largest logit of a row must be 0."""
    return jnp.where(logits < jnp.log(min_p)[:, None], -jnp.inf, logits)
