"""The shape of an engine's KV pool: what the model's heads are on the mesh, as its attention kernel wants them to lie."""

from __future__ import annotations

import jax

from triptych.models.kernels.choice import pool_layout
from triptych.models.kv import KVGroup
from triptych.models.pool_layout import APART, PoolLayout, over_mesh
from triptych.models.structure import DecoderStructure
from triptych.runtime.engine.config import EngineConfig
from triptych.runtime.engine.decoders import ServedStructure


def layout_of(structure: ServedStructure, attention: str, kv_dtype: str) -> PoolLayout:
    """How the pages in `kv_dtype` lie that the kernel `attention` reads. Only text decoders have a choice of kernels and dtypes of codes."""
    return pool_layout(attention, kv_dtype) if isinstance(structure, DecoderStructure) else APART


def pool_structs(
    structure: ServedStructure, group: KVGroup, config: EngineConfig
) -> tuple[tuple[jax.ShapeDtypeStruct, ...], ...]:
    """Shape, dtype and sharding of the pool's arrays, in the form of `Pools`."""
    layout, rules = layout_of(structure, config.attention, group.dtype), structure.rules
    heads = structure.head_layout.kv_heads_per_device
    own = layout.structs(config.num_pages, config.page_size, heads, group.head_dim, group.dtype)
    return (over_mesh(own, rules.tp, rules.pool()),) * len(group.layers)
