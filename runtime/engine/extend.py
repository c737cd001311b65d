"""The `extend` program: run the decoder over a ragged batch, write its KV into the pages, and pick the hidden states to draw from.

Picking belongs here so that the sampler's programs have one input shape, [max_draws, hidden], whatever the batch looked like. The
hidden states of all tokens leave the program only where prompt tokens can be scored; where they cannot, the last layer is computed
for the last token of each row alone, behind the keys and values of all.

Layers are unrolled, but traced once for each kind (a kind is a layer's structure, its window included) and lowered to one function that
the module calls for every layer. The compiler inlines it, so the program is the same; tracing thirty layers is five times as fast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int32

from triptych.models.attend import KV
from triptych.models.decoder import Decoder, Stream
from triptych.models.kernels.choice import ops_with
from triptych.models.ragged import Ragged
from triptych.models.rope import Rotation
from triptych.models.speech.decoder import CrossRows, WhisperDecoder
from triptych.models.structure import Pools
from triptych.runtime.engine.batch import extend_packing
from triptych.runtime.engine.buckets import ExtendShape
from triptych.runtime.engine.config import EngineConfig
from triptych.runtime.engine.cross_extend import cross_extend
from triptych.runtime.engine.decoders import ServedStructure
from triptych.runtime.engine.media_pool import EmbeddingPool, Embeddings, MediaPool

ExtendOutputs = tuple[Float[Array, "slots hidden"], Float[Array, "prefill_tokens hidden"] | None, Pools]


def scores_prompts(shape: ExtendShape, config: EngineConfig) -> bool:
    """Whether the program also returns the hidden states of its prefill tokens."""
    return config.prompt_logprobs and shape.prefill_tokens > 0 and not shape.last_only


def build_extend(
    structure: ServedStructure, shape: ExtendShape, config: EngineConfig, media: MediaPool | None = None
) -> Callable[..., ExtendOutputs]:
    """(params, pools, packed, last_tokens) -> (picked hidden states, hidden states of the prefill tokens if they can be scored, pools).

    With a media pool its arrays are a last argument: tokens that have a media index are the embedding there, or rows attend to what is there.
    """
    packing = extend_packing(shape, config)
    scored = scores_prompts(shape, config)

    def run(
        params: tuple[jax.Array, ...],
        pools: Pools,
        packed: Int32[Array, "words"],
        last_tokens: Int32[Array, "carried"],
        embeddings: Pools = (),
    ) -> ExtendOutputs:
        inputs = packing.unpack(packed)
        tokens = known_tokens(inputs, last_tokens, config)
        batch = ragged(inputs, tokens, shape)
        decoder, one_each = structure.merge(params), not shape.prefill_tokens
        if isinstance(decoder, WhisperDecoder):
            cross = CrossRows(inputs["attended_lens"], inputs["attended_pages"])
            hidden, pools = cross_extend(decoder, pools, embeddings, batch, cross)
        else:
            seen = media.read(embeddings, inputs["media_index"]) if isinstance(media, EmbeddingPool) else None
            hidden, pools = extend(
                decoder, decoder.embed(tokens), pools, batch, config.attention, seen, last_only=shape.last_only
            )
            one_each = one_each or shape.last_only
        return of_rows(hidden, batch, inputs["picks"], one_each), hidden[shape.decode_rows :] if scored else None, pools

    return run


def of_rows(
    hidden: Float[Array, "tokens_or_rows hidden"], batch: Ragged, rows: Int32[Array, "slots"], one_each: bool
) -> Float[Array, "slots hidden"]:
    """Of each of these rows the hidden state of its last token. `one_each`: `hidden` has no others."""
    return hidden.at[rows if one_each else batch.last_tokens().at[rows].get(mode="clip")].get(mode="clip")


def known_tokens(
    inputs: dict[str, jax.Array], last_tokens: Int32[Array, "carried"], config: EngineConfig
) -> Int32[Array, "tokens"]:
    """The ids of a step's tokens: given, or among those carried on the device."""
    carried = inputs["carried"]
    known = carried >= config.carried
    return jnp.where(known, inputs["tokens"], last_tokens.at[carried].get(mode="clip"))


def ragged(inputs: dict[str, jax.Array], tokens: Int32[Array, "tokens"], shape: ExtendShape) -> Ragged:
    """The batch of an extend program from its unpacked inputs."""
    return Ragged(
        tokens=tokens,
        positions=inputs["positions"],
        write_index=inputs["write_index"],
        kv_lens=inputs["kv_lens"],
        page_indices=inputs["page_indices"],
        cu_q_lens=inputs["cu_q_lens"],
        decode_rows=shape.decode_rows,
        max_q_len=max(1, shape.prefill_tokens),
        fresh=shape.fresh,
    )


def extend(
    decoder: Decoder,
    x: Float[Array, "tokens hidden"],
    pools: Pools,
    batch: Ragged,
    attention: str,
    seen: Embeddings | None = None,
    last_only: bool = False,
) -> tuple[Float[Array, "tokens_or_rows hidden"], Pools]:
    """`models.decoder.extend` from embedded tokens on, with each kind of layer traced once; `attention` names the kernel, `seen` are the media among the tokens.

    `last_only`: hidden states are of each row's last token, and the last layer computes no others.
    """
    x, written = extend_range(decoder, x, pools, batch, range(decoder.config.num_layers), attention, seen, last_only)
    return decoder.norm(x), written


def extend_range(
    decoder: Decoder,
    x: Float[Array, "tokens hidden"],
    pools: Pools,
    batch: Ragged,
    layers: range,
    attention: str,
    seen: Embeddings | None = None,
    last_only: bool = False,
) -> tuple[Float[Array, "tokens_or_rows hidden"], Pools]:
    """`models.decoder.extend_layers`, with each kind of layer traced once. `pools` are those of `layers`, and `last_only` is of the last of them."""
    scale, rules = decoder.config.head_dim**-0.5, decoder.rules

    @partial(jax.jit, static_argnums=0)
    def layer(definition: Any, arrays: Any, stream: Stream, by: Rotation, kv: KV, batch: Ragged) -> tuple[Stream, KV]:
        return nnx.merge(definition, arrays)(stream, by, kv, ops_with(attention, batch, scale, rules))

    by, ops = decoder.rotation(batch.positions), ops_with(attention, batch, scale, rules)
    stream, written = decoder.layers[layers.start].begin(x, ops), list[KV]()
    for number, kv in zip(layers, pools, strict=True):
        if seen is not None and number in seen.inputs:
            stream = decoder.layers[number].begin(seen.into(number, decoder.whole(stream)), ops)
        definition, arrays = nnx.split(decoder.layers[number])
        of_layer = replace(batch, last_only=True) if last_only and number == layers[-1] else batch
        stream, kv = layer(definition, arrays, stream, by, kv, of_layer)
        written.append(kv)
    return decoder.whole(stream), tuple(written)


def copy_pages(pools: Pools, table: Int32[Array, "two pages"]) -> Pools:
    """Copy pages table[0] to table[1] in every layer. Unused entries copy the null page onto itself."""
    source, destination = table[0], table[1]
    return jax.tree.map(lambda pool: pool.at[destination].set(pool[source]), pools)
