"""The `score` program: log-probabilities of given next tokens at prompt positions (prompt_logprobs), with the most likely alternatives.

Logits are made a block of tokens at a time: those of a whole chunk over a vocabulary of 150 thousand would be larger than the KV cache of
many sequences.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from triptych.runtime.engine.head import Head
from triptych.runtime.engine.sample import log_probabilities

# Tokens a block: 64 x 150k float32 logits are 38 MB.
SCORE_BLOCK = 64


def score(
    head: Head, hidden: Float[Array, "tokens hidden"], targets: Int32[Array, "tokens"]
) -> Int32[Array, "tokens words"]:
    """Rows as `log_probabilities` packs them: the target's log-probability, the most likely ids, theirs."""
    tokens = hidden.shape[0]
    block = min(SCORE_BLOCK, tokens)
    blocks = -(-tokens // block)
    padding = blocks * block - tokens
    hidden = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(blocks, block, -1)
    targets = jnp.pad(targets, (0, padding)).reshape(blocks, block)
    words = jax.lax.map(lambda part: log_probabilities(head(part[0]), part[1]), (hidden, targets))
    return words.reshape(blocks * block, -1)[:tokens]
