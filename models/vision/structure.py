"""A vision encoder taken apart, as `models/structure.py` does it for decoders, and one with its weights on a mesh."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from triptych.models.structure import flatten_module
from triptych.models.vision.config import VisionConfig
from triptych.models.vision.encoder import VisionEncoder
from triptych.sharding.heads import HeadLayout, head_layout
from triptych.sharding.rules import ShardingRules


@dataclass(frozen=True)
class EncoderStructure:
    """What an encoder on a mesh consists of, without its numbers. Fields are those of `DecoderStructure`."""

    config: VisionConfig
    rules: ShardingRules
    head_layout: HeadLayout
    dtype: jnp.dtype
    paths: tuple[str, ...]
    abstract: tuple[jax.ShapeDtypeStruct, ...]
    graphdef: Any
    treedef: Any

    def merge(self, params: Sequence[jax.Array]) -> VisionEncoder:
        """The module over these arrays. Call it inside a traced function."""
        return nnx.merge(self.graphdef, jax.tree.unflatten(self.treedef, params))


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder with its weights on a mesh: a structure and the flat tuple of arrays that programs take."""

    structure: EncoderStructure
    params: tuple[jax.Array, ...]

    @property
    def config(self) -> VisionConfig:
        return self.structure.config

    @property
    def rules(self) -> ShardingRules:
        return self.structure.rules

    def merge(self, params: Sequence[jax.Array]) -> VisionEncoder:
        """The module over these arrays. Call it inside a traced function, with that function's own arguments."""
        return self.structure.merge(params)

    def nbytes(self) -> int:
        """Bytes of all parameters over all devices, pads and replicas counted."""
        return sum(shard.data.nbytes for array in self.params for shard in array.addressable_shards)


def encoder_structure(config: VisionConfig, rules: ShardingRules, dtype: str) -> EncoderStructure:
    """The structure of an encoder on a mesh. Nothing is allocated. Raises IncompatibleTpError if heads do not fit."""
    layout = head_layout(config.num_heads, config.num_heads, rules.tp)
    flat = flatten_module(lambda: VisionEncoder(config, rules, jnp.dtype(dtype)), rules)
    return EncoderStructure(
        config, rules, layout, jnp.dtype(dtype), flat.paths, flat.abstract, flat.graphdef, flat.treedef
    )
