"""What an instance has on its devices for as long as it lives: weights and pools, in bytes on all of them together (over several hosts: on those of
this one).

Programs' temporaries and the sampler's state are not counted; on an accelerator its own statistics tell the rest.
"""

from __future__ import annotations

from typing import Any

import jax

from triptych.runtime.engine.encode_engine import EncodeEngine
from triptych.runtime.engine.engine import Engine


def device_bytes(engine: Engine | EncodeEngine) -> dict[str, int]:
    """Bytes by what they are for; 0 for what the instance does not have. After `compile`, on the thread that owns the engine."""
    stage = engine.media
    encoder, draft = None if stage is None else stage.encoder, engine.draft
    return {
        "device_decoder_bytes": nbytes(engine.params),
        "device_encoder_bytes": 0 if encoder is None else nbytes(encoder.params),
        "device_kv_pool_bytes": nbytes(engine.pools),
        "device_media_pool_bytes": 0 if stage is None else nbytes(stage.pools),
        "device_draft_bytes": 0 if draft is None else nbytes(draft.params),
        "device_draft_kv_pool_bytes": 0 if draft is None else nbytes(draft.pools),
    }


def nbytes(arrays: Any) -> int:
    """Of a tree of arrays, with every copy that replication makes."""
    return sum(
        shard.data.nbytes
        for array in jax.tree.leaves(arrays)
        if isinstance(array, jax.Array)
        for shard in array.addressable_shards
    )
