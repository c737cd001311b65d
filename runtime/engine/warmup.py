"""Run every step program once on nothing but padding, so that no request pays for the first call.

An executable's first call takes a slow path through Python, and on accelerators loads code. Padding writes the null page and no slot, so the
pools and the state come back as they were.
"""

from __future__ import annotations

import jax
import numpy as np

from triptych.models.structure import Pools
from triptych.runtime.engine.batch import NO_MEDIA, extend_packing, takes_media
from triptych.runtime.engine.config import EngineConfig
from triptych.runtime.engine.programs import COPY_PAGES, Programs
from triptych.runtime.engine.sample import sample_packing
from triptych.runtime.engine.state import SamplerState
from triptych.runtime.engine.variants import Variant


def run_each_once(
    programs: Programs,
    config: EngineConfig,
    params: tuple[jax.Array, ...],
    pools: Pools,
    state: SamplerState,
    embeddings: Pools = (),
) -> tuple[Pools, SamplerState]:
    """(pools, state) to go on with; the ones given are donated. `embeddings` is the media pool of an engine that has one."""
    head = programs.head.select(params)
    last_tokens, counts, in_prompt = state.last_tokens, state.counts, state.in_prompt
    vocab = counts.shape[1]
    nobody = (np.zeros(vocab, np.int32), np.zeros(vocab, np.bool_))
    counts, in_prompt = programs[("seat",)](counts, in_prompt, np.asarray(0, np.int32), *nobody)
    pools = programs[("copy",)](pools, np.zeros((2, COPY_PAGES), np.int32))
    picked: jax.Array | None = None
    for shape in config.buckets.extend:
        packed, views = extend_packing(shape, config).host()
        views["carried"].fill(config.carried)
        if "media_index" in views:
            views["media_index"].fill(NO_MEDIA)
        media = (embeddings,) if takes_media(shape, config) else ()
        if config.by_layer_groups(shape):
            run = programs.by_layer_groups(shape, params, packed, last_tokens, *media)
            while run.left:
                pools = run.advance(pools, embeddings)
            picked, hidden = run.end()
        else:
            picked, hidden, pools = programs[("extend", shape)](params, pools, packed, last_tokens, *media)
        if hidden is not None:
            targets = np.zeros(shape.prefill_tokens, np.int32)
            np.asarray(programs[("score", shape.prefill_tokens)](head, hidden, targets))
    state = SamplerState(last_tokens, counts, in_prompt)
    for variant in Variant:
        for draws in config.buckets.draws:
            packed, views = sample_packing(variant, draws).host()
            views["slot"].fill(config.carried)
            program = programs[("sample", variant, draws)]
            if variant is Variant.FULL:
                words, state = program(head, picked, packed, state)
            else:
                words, last_tokens = program(head, picked, packed, state.last_tokens)
                state = SamplerState(last_tokens, state.counts, state.in_prompt)
            np.asarray(words)
    return jax.block_until_ready((pools, state))
