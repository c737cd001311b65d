"""Whisper taken apart: the encoder and the decoder are two structures, each with a flat tuple of arrays of its own.

They are named weight sets of one checkpoint: an encode instance holds the listener (the encoder with the projections of
cross-attention), prefill and decode the decoder.
See `models/structure.py` for why programs take flat tuples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from triptych.models.kv import KVGroup
from triptych.models.speech.config import WhisperConfig
from triptych.models.speech.decoder import WhisperDecoder
from triptych.models.speech.encoder import WhisperEncoder
from triptych.models.speech.layers import whisper_heads
from triptych.models.speech.listener import WhisperListener
from triptych.models.structure import Pools, flatten_module
from triptych.sharding.heads import HeadLayout
from triptych.sharding.rules import POOL_AXES, ShardingRules

ModuleT = TypeVar("ModuleT", WhisperEncoder, WhisperDecoder, WhisperListener)


@dataclass(frozen=True)
class WhisperStructure(Generic[ModuleT]):
    """What one half of a model on a mesh consists of, without its numbers.

    `half` is "encoder", "decoder" or "listener"; `paths` are dotted names ("layers.0.attention.qkv.weight") and `abstract` the shape,
    dtype and sharding of each parameter; both are in the order of the flat tuple.
    """

    half: str
    config: WhisperConfig
    rules: ShardingRules
    head_layout: HeadLayout
    dtype: jnp.dtype
    paths: tuple[str, ...]
    abstract: tuple[jax.ShapeDtypeStruct, ...]
    graphdef: Any
    treedef: Any

    def merge(self, params: Sequence[jax.Array]) -> ModuleT:
        """The module over these arrays. Call it inside a traced function."""
        return nnx.merge(self.graphdef, jax.tree.unflatten(self.treedef, params))

    def pool_struct(self, group: KVGroup, num_pages: int, page_size: int) -> jax.ShapeDtypeStruct:
        """Shape, dtype and sharding of one layer's key (or value) pages of either KV group."""
        shape = (num_pages, page_size, self.head_layout.kv_heads_total, group.head_dim)
        return jax.ShapeDtypeStruct(shape, jnp.dtype(group.dtype), sharding=self.rules.sharding(*POOL_AXES))

    def allocate_pools(self, group: KVGroup, num_pages: int, page_size: int) -> Pools:
        """Zeroed pages for every layer of the group. Page 0 is the null page (`models/ragged.py`)."""
        struct = self.pool_struct(group, num_pages, page_size)
        zeros = jax.jit(lambda: jnp.zeros(struct.shape, struct.dtype), out_shardings=struct.sharding)
        return tuple((zeros(), zeros()) for _ in group.layers)


def encoder_structure(config: WhisperConfig, rules: ShardingRules, dtype: str) -> WhisperStructure[WhisperEncoder]:
    """The encoder on a mesh. Nothing is allocated. Raises IncompatibleTpError if the heads do not fit."""
    return _structure("encoder", lambda: WhisperEncoder(config, rules, jnp.dtype(dtype)), config, rules, dtype)


def listener_structure(config: WhisperConfig, rules: ShardingRules, dtype: str) -> WhisperStructure[WhisperListener]:
    """The listener on a mesh. Nothing is allocated. Raises IncompatibleTpError if the heads do not fit."""
    return _structure("listener", lambda: WhisperListener(config, rules, jnp.dtype(dtype)), config, rules, dtype)


def decoder_structure(config: WhisperConfig, rules: ShardingRules, dtype: str) -> WhisperStructure[WhisperDecoder]:
    """The decoder on a mesh. Nothing is allocated. Raises IncompatibleTpError if the heads do not fit."""
    return _structure("decoder", lambda: WhisperDecoder(config, rules, jnp.dtype(dtype)), config, rules, dtype)


def _structure(
    half: str, build: Callable[[], ModuleT], config: WhisperConfig, rules: ShardingRules, dtype: str
) -> WhisperStructure[ModuleT]:
    layout = whisper_heads(config, rules)
    flat = flatten_module(build, rules)
    return WhisperStructure(
        half, config, rules, layout, jnp.dtype(dtype), flat.paths, flat.abstract, flat.graphdef, flat.treedef
    )
