"""The shape of an engine's KV pool: what the model's heads are on the mesh, as its attention kernel wants them to lie."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from triptych.models.kernels.choice import pool_layout
from triptych.models.kv import KVGroup
from triptych.models.pool_layout import APART, PoolLayout
from triptych.models.structure import DecoderStructure
from triptych.runtime.engine.config import EngineConfig
from triptych.runtime.engine.decoders import ServedStructure


def layout_of(structure: ServedStructure, attention: str) -> PoolLayout:
    """How the pages lie that the kernel `attention` reads. Only text decoders have a choice of kernels."""
    return pool_layout(attention) if isinstance(structure, DecoderStructure) else APART


def pool_structs(
    structure: ServedStructure, group: KVGroup, config: EngineConfig
) -> tuple[tuple[jax.ShapeDtypeStruct, ...], ...]:
    """Shape, dtype and sharding of the pool's arrays, in the form of `Pools`."""
    layout, rules = layout_of(structure, config.attention), structure.rules
    heads = structure.head_layout.kv_heads_per_device
    pages, page_size, local, width = layout.shape(config.num_pages, config.page_size, heads, group.head_dim)
    shape = (pages, page_size, local * rules.tp, width)
    pool = jax.ShapeDtypeStruct(shape, jnp.dtype(group.dtype), sharding=rules.pool())
    return ((pool,) * layout.arrays,) * len(group.layers)
