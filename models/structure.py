"""A decoder taken apart: the static structure that programs close over, and the flat tuple of arrays that they take in.

Splitting and merging an nnx module costs milliseconds; a flat tuple costs jit nothing to check. So an engine holds the
tuple, and `DecoderStructure.merge` is called only while a program is traced.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from triptych.models.config import ModelConfig
from triptych.models.decoder import Decoder
from triptych.models.kv import KVGroup
from triptych.models.pool_layout import apart, over_mesh
from triptych.models.quantised import check_group
from triptych.models.weight_formats import WeightFormat
from triptych.sharding.heads import HeadLayout, head_layout, padded_size
from triptych.sharding.rules import ShardingRules

Pools = tuple[tuple[jax.Array, ...], ...]


@dataclass(frozen=True)
class DecoderStructure:
    """What a decoder on a mesh consists of, without its numbers.

    `paths` are dotted names ("layers.0.attention.qkv.weight") and `abstract` the shape, dtype and sharding of each
    parameter; both are in the order of the flat tuple. A quantised matrix is several ("layers.0.ffn.down.weight.codes").
    """

    config: ModelConfig
    rules: ShardingRules
    head_layout: HeadLayout
    dtype: jnp.dtype
    paths: tuple[str, ...]
    abstract: tuple[jax.ShapeDtypeStruct, ...]
    graphdef: Any
    treedef: Any
    stored: WeightFormat | None = None

    def merge(self, params: Sequence[jax.Array]) -> Decoder:
        """The module over these arrays. Call it inside a traced function."""
        return nnx.merge(self.graphdef, jax.tree.unflatten(self.treedef, params))

    def pool_structs(self, group: KVGroup, num_pages: int, page_size: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shape, dtype and sharding of one layer's pages: keys, values, and scales of both if the group has some."""
        heads = self.head_layout.kv_heads_per_device
        own = apart(group.dtype).structs(num_pages, page_size, heads, group.head_dim, group.dtype)
        return over_mesh(own, self.rules.tp, self.rules.pool())

    def allocate_pools(self, group: KVGroup, num_pages: int, page_size: int) -> Pools:
        """Zeroed pages for every layer of the group. Page 0 is the null page (`models/ragged.py`)."""
        structs = self.pool_structs(group, num_pages, page_size)

        def zeros() -> tuple[jax.Array, ...]:
            return tuple(jnp.zeros(struct.shape, struct.dtype) for struct in structs)

        layer = jax.jit(zeros, out_shardings=tuple(struct.sharding for struct in structs))
        return tuple(layer() for _ in group.layers)


def decoder_structure(
    config: ModelConfig, rules: ShardingRules, dtype: str, stored: WeightFormat | None = None
) -> DecoderStructure:
    """The structure of a model on a mesh, with matrices as `stored` says (None: in `dtype`). Nothing is allocated.

    Raises IncompatibleTpError if the heads do not fit the mesh, QuantisationError if the format's groups do not fit the sizes.
    """
    layout = head_layout(config.num_heads, config.num_kv_heads, rules.tp)
    if stored is not None and stored.group is not None:
        check_group(config.hidden_size, stored.group, 1)
        for spread in (layout.heads_total * config.head_dim, padded_size(config.intermediate_size, rules.tp)):
            check_group(spread, stored.group, rules.tp)
    flat = flatten_module(lambda: Decoder(config, rules, jnp.dtype(dtype), stored), rules)
    return DecoderStructure(
        config, rules, layout, jnp.dtype(dtype), flat.paths, flat.abstract, flat.graphdef, flat.treedef, stored
    )


class FlatModule(NamedTuple):
    """A module's parameters in the order of its flat tuple, and what puts them together again (see `DecoderStructure`)."""

    paths: tuple[str, ...]
    abstract: tuple[jax.ShapeDtypeStruct, ...]
    graphdef: Any
    treedef: Any


def flatten_module(make: Callable[[], nnx.Module], rules: ShardingRules) -> FlatModule:
    """Trace a module's construction and take it apart. Nothing is allocated."""
    graphdef, state = nnx.split(nnx.eval_shape(make))
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(state)
    paths = tuple(_dotted_path(path) for path, _ in with_paths)
    structs = tuple(
        jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rules.parameter(path))
        for path, (_, leaf) in zip(paths, with_paths, strict=True)
    )
    return FlatModule(paths, structs, graphdef, treedef)


def _dotted_path(path: Sequence[Any]) -> str:
    """The name of a parameter from its path in an nnx state: "layers.0.attention.qkv.weight"."""
    # nnx ends a path with the variable's own "value" attribute; only the dictionary keys name things.
    return ".".join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
