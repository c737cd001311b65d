"""The model as it is trained: frozen encoder, trained connector, frozen language model with trained adapters; its loss and its answers.

The pieces are the ones that are served (models/vision, models/decoder.py); only attention is another function, dense and causal over a
batch of equally long rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from triptych.models.attend import KV, Attend, PlainOps
from triptych.models.decoder import Decoder

IGNORED = -1  # a target that is none


def dense_attend(rows: int, scale: float) -> Attend:
    """Causal attention over `rows` rows of equal length, laid one after another. There is no cache."""

    def attend(q: Array, k: Array, v: Array, kv: KV, window: int | None) -> tuple[Array, KV]:
        by_row = [part.reshape(rows, -1, *part.shape[1:]) for part in (q, k, v)]
        out = jax.nn.dot_product_attention(*by_row, is_causal=True, scale=scale)
        return out.reshape(q.shape), kv

    return attend


def answer_logits(
    decoder: Decoder,
    images: Float[Array, "rows embeddings parts*hidden"],
    tokens: Int[Array, "rows length"],
    image_at: Int[Array, "rows"],
    places: Int[Array, "rows answer"],
    injections: Sequence[tuple[int, int]] = ((0, 0),),
) -> Float[Array, "rows answer vocab"]:
    """Logits of each answer token, given everything before it. `injections` as in `MultimodalConfig`."""
    rows, length = tokens.shape
    put = jax.vmap(lambda row, image, at: jax.lax.dynamic_update_slice(row, image.astype(row.dtype), (at, 0)))
    parts = jnp.split(images, 1 + max(part for _, part in injections), axis=-1)
    seen = {layer: parts[part] for layer, part in injections}
    x = decoder.embed(tokens.reshape(-1))
    by = decoder.rotation(jnp.tile(jnp.arange(length), rows))
    ops, nothing = PlainOps(dense_attend(rows, decoder.config.head_dim**-0.5), decoder.rules), cast(Any, None)
    stream = decoder.layers[0].begin(x, ops)
    for number, layer in enumerate(decoder.layers):
        if number in seen:
            x = put(decoder.whole(stream).reshape(rows, length, -1), seen[number], image_at)
            stream = layer.begin(x.reshape(rows * length, -1), ops)
        stream, _ = layer(stream, by, nothing, ops)
    x = decoder.whole(stream).reshape(rows, length, -1)
    picked = jnp.take_along_axis(x, places[:, :, None], axis=1)
    return decoder.head(decoder.norm(picked.reshape(-1, x.shape[-1]))).reshape(*places.shape, -1)


def loss_of(logits: Float[Array, "rows answer vocab"], targets: Int[Array, "rows answer"]) -> Float[Array, ""]:
    """Mean cross entropy of the answer tokens."""
    real = targets != IGNORED
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), jnp.where(real, targets, 0))
    return jnp.sum(losses * real) / jnp.maximum(jnp.sum(real), 1)


def right(logits: Float[Array, "rows answer vocab"], targets: Int[Array, "rows answer"]) -> Array:
    """Per row, whether greedy decoding gives exactly the answer and then ends."""
    return jnp.all((jnp.argmax(logits, axis=-1) == targets) | (targets == IGNORED), axis=-1)


Forward = Callable[[Any, Any], Float[Array, "rows answer vocab"]]
"""(trained parameters, batch arrays) -> logits."""


def make_step(forward: Forward, optimiser: optax.GradientTransformation) -> Callable[..., tuple[Any, Any, jax.Array]]:
    """One training step, compiled: (trained, optimiser state, batch arrays, targets) -> (trained, state, loss)."""

    def step(trained: Any, state: Any, batch: Any, targets: Array) -> tuple[Any, Any, jax.Array]:
        loss, gradients = jax.value_and_grad(lambda t: loss_of(forward(t, batch), targets))(trained)
        updates, state = optimiser.update(gradients, state, trained)
        return optax.apply_updates(trained, updates), state, loss

    return jax.jit(step, donate_argnums=(0, 1))


def schedule(steps: int, peak: float) -> optax.Schedule:
    """Linear warm-up over a twentieth, cosine to a hundredth of the peak."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, max(1, steps // 20), steps, peak / 100)
