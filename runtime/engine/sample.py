"""From hidden states to tokens: the `sample` program in four variants, of which a step takes the least that serves all its draws.

    greedy   argmax
    random   + temperature, seeded noise
    filtered + min-p, top-k, top-p
    full     + repetition, frequency and presence penalties, logit bias, forbidden ids; log-probabilities

All variants give a row the same token: what a row does not use is exactly neutral for it. The order is vLLM's: penalties, bias,
forbidden ids, temperature, min-p, top-k, top-p. Log-probabilities are those of the raw logits, before all of it. A greedy row takes the
largest logit after penalties and bias, the lowest id among equals.

A random row takes argmax(logit + Gumbel noise), which has the distribution of a softmax draw and, unlike an inverse CDF, does not depend
on the order in which a sum is rounded: the same seed, sample and position give the same token in any batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from triptych.runtime.core.sampling import MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_STOP_TOKENS
from triptych.runtime.engine.filters import keep_min_p, keep_top_k, keep_top_p
from triptych.runtime.engine.noise import draw_key, gumbel
from triptych.runtime.engine.packing import Field, Packing
from triptych.runtime.engine.state import SamplerState
from triptych.runtime.engine.variants import Variant

# Logit biases and forbidden ids share one sparse list; models have a handful of end-of-sequence ids beside the user's stop ids.
MAX_EOS_IDS = 20
MAX_SPARSE = MAX_LOGIT_BIAS + MAX_STOP_TOKENS + MAX_EOS_IDS

# Below this a temperature overflows float32 on ordinary logit gaps; the draw is the argmax for any gap above 1e-4.
MIN_TEMPERATURE = 1e-6


def sample_packing(variant: Variant, draws: int) -> Packing:
    """The per-draw inputs of a variant. A padding draw has a slot beyond the last one."""
    fields = [Field("slot", (draws,))]
    if variant is not Variant.GREEDY:
        fields += [Field("temperature", (draws,), "float32")]
        fields += [Field(name, (draws,), "uint32") for name in ("seed_high", "seed_low")]
        fields += [Field(name, (draws,)) for name in ("sample", "position")]
    if variant in (Variant.FILTERED, Variant.FULL):
        fields += [Field("min_p", (draws,), "float32"), Field("top_p", (draws,), "float32"), Field("top_k", (draws,))]
    if variant is Variant.FULL:
        fields += [Field(name, (draws,), "float32") for name in ("repetition", "frequency", "presence")]
        fields += [Field("sparse_ids", (draws, MAX_SPARSE)), Field("sparse_values", (draws, MAX_SPARSE), "float32")]
    return Packing(tuple(fields))


def penalised(
    logits: Float[Array, "rows vocab"], inputs: dict[str, jax.Array], state: SamplerState
) -> Float[Array, "rows vocab"]:
    """Repetition over prompt and output, then frequency and presence over output, then bias and forbidden ids (-inf)."""
    counts = state.counts.at[inputs["slot"]].get(mode="clip")
    in_prompt = state.in_prompt.at[inputs["slot"]].get(mode="clip")
    repetition = inputs["repetition"][:, None]
    repeated = jnp.where(logits > 0, logits / repetition, logits * repetition)
    logits = jnp.where(in_prompt | (counts > 0), repeated, logits)
    logits = logits - inputs["frequency"][:, None] * counts.astype(jnp.float32)
    logits = logits - inputs["presence"][:, None] * (counts > 0)
    rows = jnp.arange(logits.shape[0])[:, None]
    return logits.at[rows, inputs["sparse_ids"]].add(inputs["sparse_values"], mode="drop")


def drawn(variant: Variant, logits: Float[Array, "rows vocab"], inputs: dict[str, jax.Array]) -> Int32[Array, "rows"]:
    """One token a row from logits that penalties and bias were already applied to."""
    best = jnp.argmax(logits, axis=1).astype(jnp.int32)
    if variant is Variant.GREEDY:
        return best
    temperature = inputs["temperature"]
    # With the largest at 0 no temperature overflows upwards, and the filters need no other normalisation.
    scaled = (logits - logits.max(axis=1, keepdims=True)) / jnp.maximum(temperature, MIN_TEMPERATURE)[:, None]
    if variant is not Variant.RANDOM:
        scaled = keep_min_p(scaled, inputs["min_p"])
        scaled = keep_top_k(scaled, inputs["top_k"])
        scaled = keep_top_p(scaled, inputs["top_p"])
    key = draw_key(inputs["seed_high"], inputs["seed_low"], inputs["sample"], inputs["position"])
    random = jnp.argmax(scaled + gumbel(key, logits.shape[1]), axis=1).astype(jnp.int32)
    return jnp.where(temperature == 0, best, random)


def log_probabilities(logits: Float[Array, "rows vocab"], tokens: Int32[Array, "rows"]) -> Int32[Array, "rows words"]:
    """Per row: the token's log-probability, then the most likely ids, then theirs. Floats as bits: one fetch brings all."""
    total = jax.nn.logsumexp(logits, axis=1)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=1) - total[:, None]
    values, ids = jax.lax.top_k(logits, min(MAX_LOGPROBS, logits.shape[1]))
    floats = jax.lax.bitcast_convert_type(jnp.concatenate((chosen, values - total[:, None]), axis=1), jnp.int32)
    return jnp.concatenate((floats[:, :1], ids.astype(jnp.int32), floats[:, 1:]), axis=1)


def sample_plain(
    variant: Variant,
    logits: Float[Array, "rows vocab"],
    inputs: dict[str, jax.Array],
    last_tokens: Int32[Array, "carried"],
) -> tuple[Int32[Array, "rows 1"], Int32[Array, "carried"]]:
    """Every variant but full: (the tokens, the slots' last tokens)."""
    tokens = drawn(variant, logits, inputs)
    return tokens[:, None], last_tokens.at[inputs["slot"]].set(tokens, mode="drop")


def sample_full(
    logits: Float[Array, "rows vocab"], inputs: dict[str, jax.Array], state: SamplerState
) -> tuple[Int32[Array, "rows words"], SamplerState]:
    """Everything: (token and log-probabilities of each draw, the state with each drawn token counted)."""
    tokens = drawn(Variant.FULL, penalised(logits, inputs, state), inputs)
    words = jnp.concatenate((tokens[:, None], log_probabilities(logits, tokens)), axis=1)
    slot = inputs["slot"]
    return words, SamplerState(
        last_tokens=state.last_tokens.at[slot].set(tokens, mode="drop"),
        counts=state.counts.at[slot, tokens].add(1, mode="drop"),
        in_prompt=state.in_prompt,
    )
