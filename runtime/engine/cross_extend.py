"""`extend` of a decoder whose layers attend to media: Whisper's. Layers are traced once, as those of text decoders are (`extend.py`)."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from triptych.models.attend import KV, paged_attend
from triptych.models.ragged import Ragged
from triptych.models.speech.decoder import CrossRows, WhisperDecoder, paged_cross_attend
from triptych.models.structure import Pools


def cross_extend(
    decoder: WhisperDecoder, pools: Pools, cross_pools: Pools, batch: Ragged, cross: CrossRows
) -> tuple[Float[Array, "tokens hidden"], Pools]:
    """`models.speech.decoder.extend`; the cross pools, those of media, are only read."""
    scale, tp = decoder.config.head_dim**-0.5, decoder.rules.tp

    @partial(jax.jit, static_argnums=0)
    def layer(
        definition: Any,
        arrays: Any,
        x: Float[Array, "tokens hidden"],
        kv: KV,
        heard: KV,
        batch: Ragged,
        cross: CrossRows,
    ) -> tuple[Float[Array, "tokens hidden"], KV]:
        attend, cross_attend = paged_attend(batch, scale, tp), paged_cross_attend(batch, cross, scale, tp)
        return nnx.merge(definition, arrays)(x, kv, attend, heard, cross_attend)

    x = decoder.embed(batch.tokens, batch.positions)
    written: list[KV] = []
    for module, kv, heard in zip(decoder.layers, pools, cross_pools, strict=True):
        definition, arrays = nnx.split(module)
        x, kv = layer(definition, arrays, x, kv, heard, batch, cross)
        written.append(kv)
    return decoder.norm(x), tuple(written)
