"""Every device program of an encode instance, lowered for a mesh from shapes alone: no weights, no pools.

Encode programs write the media pool; page programs take pages of it out and put pages in; `inject` is what the prompt's instance does
with it. Whisper's program goes from samples to the pages of cross-attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from triptych.models.speech.decoder import cross_kv, write_cross
from triptych.models.speech.kv import whisper_kv_groups
from triptych.models.speech.mel import log_mel
from triptych.models.speech.structure import decoder_structure as speech_decoder
from triptych.models.speech.structure import encoder_structure as speech_encoder
from triptych.models.vision.structure import LoadedEncoder, encoder_structure
from triptych.runtime.engine.compiling import Program
from triptych.runtime.engine.media_pool import EmbeddingPool
from triptych.runtime.engine.media_stage import MediaStage
from triptych.runtime.engine.page_programs import PageMover
from triptych.runtime.engine.vision_encoder import VisionMediaEncoder
from triptych.sharding.rules import ShardingRules
from triptych.tools.tpu.models import Published, PublishedSpeech

DTYPE = "bfloat16"
PAGE_SIZE = 16
EXPORT_PAGES = 8  # pages an offer
PROMPT_TOKENS = 2048  # of a chunk of a prompt

Lowered = tuple[str, Any]


def lowered_programs(model: Published, mesh: Mesh, *, largest: bool = False) -> Iterator[Lowered]:
    """(name, lowered program) for everything that an encode instance of the model runs, and what a prompt does with its pool.

    `largest`: of the encode programs, which differ in their buckets alone, only that of the largest.
    """
    rules = ShardingRules(mesh)
    if isinstance(model, PublishedSpeech):
        yield "encode + cross KV", _speech(model, rules).lower()
        return
    encoder = VisionMediaEncoder(LoadedEncoder(encoder_structure(model.config, rules, DTYPE), ()))
    # Two buckets' worth of embeddings: one being written, one on its way out.
    pages = 2 * -(-encoder.rows(model.slots) // PAGE_SIZE) + 1
    pool = EmbeddingPool.of(rules, encoder.hidden, DTYPE, PAGE_SIZE, pages)
    for program in MediaStage(pool, encoder, None, model.slots).programs():
        if not largest or program.key[0] != "encode" or program.key[1] == model.slots:
            yield program.name, program.lower()
    yield "inject", _inject(pool).lower()
    mover = PageMover(
        mesh, pool.layout, 1, pages, PAGE_SIZE, pool.group.head_dim, DTYPE, EXPORT_PAGES,
        pool_sharding=pool.structs[0][0].sharding, what="media",  # type: ignore[arg-type]
    )  # fmt: skip
    yield from ((program.name, program.lower()) for program in mover.programs())


def _inject(pool: EmbeddingPool) -> Program:
    """Embeddings in place of a prompt's placeholder tokens."""
    small = pool.rules.replicated()
    tokens = jax.ShapeDtypeStruct(
        (PROMPT_TOKENS, 2 * pool.group.num_kv_heads * pool.group.head_dim), jnp.dtype(DTYPE), sharding=small
    )
    index = jax.ShapeDtypeStruct((PROMPT_TOKENS,), np.int32, sharding=small)

    def run(x: jax.Array, pools: Any, index: jax.Array) -> jax.Array:
        return pool.read(pools, index).into(0, x)

    return Program(("inject", PROMPT_TOKENS), run, (tokens, pool.structs, index), small)


def _speech(model: PublishedSpeech, rules: ShardingRules) -> Program:
    """Windows of samples to log-mel, encoder states, and keys and values of every decoder layer in the pages of the cross group."""
    config, windows = model.config, model.windows
    encoder, decoder = speech_encoder(config, rules, DTYPE), speech_decoder(config, rules, DTYPE)
    _, group = whisper_kv_groups(config, DTYPE)
    small = rules.replicated()
    entries = windows * config.audio_positions
    page = decoder.pool_struct(group, 2 * -(-entries // PAGE_SIZE) + 1, PAGE_SIZE)
    pools = tuple((page, page) for _ in group.layers)

    def run(
        encoder_params: Sequence[jax.Array], decoder_params: Sequence[jax.Array], pools: Any, samples: jax.Array, index: jax.Array
    ) -> Any:  # fmt: skip
        mels = jnp.stack([log_mel(samples[at], config.num_mels, config.frames) for at in range(windows)])
        states = encoder.merge(encoder_params)(mels).reshape(entries, config.hidden_size)
        return write_cross(pools, cross_kv(decoder.merge(decoder_params), states), index)

    arguments = (
        encoder.abstract,
        decoder.abstract,
        pools,
        jax.ShapeDtypeStruct((windows, config.samples), np.float32, sharding=small),
        jax.ShapeDtypeStruct((entries,), np.int32, sharding=small),
    )
    return Program(
        ("encode", windows), run, arguments, jax.tree.map(lambda struct: struct.sharding, pools), donated=(2,)
    )
