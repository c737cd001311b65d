"""Weights from any source straight into their shards: each device's part is read, padded and placed, by tensor.

Nothing is whole on the host twice; a host holds about one tensor at a time. What a checkpoint has and the model does
not, and the other way round, is an error: either would be computed wrongly.
"""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

from triptych.models.config import ModelConfig
from triptych.models.decoder import Decoder
from triptych.models.errors import WeightsError
from triptych.models.structure import DecoderStructure, decoder_structure
from triptych.models.weight_formats import AUTO, weight_format
from triptych.models.weights.dummy import DummySource
from triptych.models.weights.on_device import makes_weights, random_parameters
from triptych.models.weights.padding import fill_physical, read_physical
from triptych.models.weights.parts import Part, parameter_parts
from triptych.models.weights.quantising import quantise_all
from triptych.models.weights.source import TensorSource
from triptych.sharding.heads import HeadLayout
from triptych.sharding.rules import ShardingRules

# A derived tensor that older checkpoints store; it is computed here.
DERIVED_SUFFIX = "rotary_emb.inv_freq"


@dataclass(frozen=True)
class LoadedDecoder:
    """A decoder with its weights on a mesh: a structure and the flat tuple of arrays that programs take."""

    structure: DecoderStructure
    params: tuple[jax.Array, ...]

    @property
    def config(self) -> ModelConfig:
        return self.structure.config

    @property
    def head_layout(self) -> HeadLayout:
        return self.structure.head_layout

    @property
    def rules(self) -> ShardingRules:
        return self.structure.rules

    def merge(self, params: Sequence[jax.Array]) -> Decoder:
        """The module over these arrays. Call it inside a traced function, with that function's own arguments."""
        return self.structure.merge(params)

    def nbytes(self) -> int:
        """Bytes of all parameters over all devices, pads and replicas counted."""
        return sum(shard.data.nbytes for array in self.params for shard in array.addressable_shards)


def load_decoder(
    config: ModelConfig, source: TensorSource, mesh: Mesh, dtype: str, weights: str = AUTO
) -> LoadedDecoder:
    """Place the model on `mesh` in `dtype` ("float32" or "bfloat16"), its matrices as `weights` says (`models/weight_formats.py`).

    Random weights are made on accelerators themselves, and are others there than on CPUs.

    Raises WeightsError if the source does not fit the config, IncompatibleTpError if the mesh does not fit the heads, QuantisationError
    if `weights` is unknown or does not fit the sizes.
    """
    plain = decoder_structure(config, ShardingRules(mesh), dtype)
    stored = weight_format(weights)
    structure = plain if stored is None else decoder_structure(config, ShardingRules(mesh), dtype, stored)
    check_tensors(plain, source)
    if isinstance(source, DummySource) and makes_weights(mesh.devices.flat[0].platform):
        placed = random_parameters(plain, source.seed)
    else:
        placed = (
            _place(struct, made_of, source)
            for struct, made_of in zip(plain.abstract, _decoder_parts(plain), strict=True)
        )
    return LoadedDecoder(structure, tuple(placed) if stored is None else quantise_all(plain, placed, structure))


def quantised(loaded: LoadedDecoder, weights: str) -> LoadedDecoder:
    """A quantised copy of a model that is on its mesh as it is; what is not quantised is shared. Raises as `load_decoder` does."""
    plain, stored = loaded.structure, weight_format(weights)
    if stored is None:
        return loaded
    structure = decoder_structure(plain.config, plain.rules, str(plain.dtype), stored)
    return LoadedDecoder(structure, quantise_all(plain, loaded.params, structure))


def check_tensors(structure: DecoderStructure, source: TensorSource) -> None:
    """`check_parts` for a decoder."""
    ignored = {"lm_head.weight"} if structure.config.tie_embeddings else set()
    check_parts(_decoder_parts(structure), source, structure.config.architecture, ignored)


def _decoder_parts(structure: DecoderStructure) -> list[tuple[Part, ...]]:
    return [parameter_parts(path, structure.config, structure.head_layout) for path in structure.paths]


def check_parts(
    parts: Iterable[Sequence[Part]], source: TensorSource, model: str, ignored: AbstractSet[str] = frozenset()
) -> None:
    """Compare the source's names and shapes with the model's before anything is read.

    `parts` are those of each parameter; tensors in `ignored` may be there without belonging to one.
    """
    wanted = {part.name: part.shape for made_of in parts for part in made_of}
    stored = set(source.names())
    missing = sorted(set(wanted) - stored)
    if missing:
        raise WeightsError(
            f"{len(missing)} tensors are missing, the first is {missing[0]!r}; the file has {len(stored)}"
        )
    extra = sorted(name for name in stored - set(wanted) - ignored if not name.endswith(DERIVED_SUFFIX))
    if extra:
        raise WeightsError(
            f"{len(extra)} tensors belong to no parameter of {model}, "
            f"the first is {extra[0]!r}; "
            "the model has parts that its configuration does not describe"
        )
    for name, shape in wanted.items():
        if tuple(source.shape(name)) != shape:
            raise WeightsError(
                f"tensor {name!r} has shape {tuple(source.shape(name))}, the configuration implies {shape}"
            )


def place_all(
    abstract: Sequence[jax.ShapeDtypeStruct], parts: Sequence[Sequence[Part]], source: TensorSource
) -> tuple[jax.Array, ...]:
    """Every parameter, read from the source and placed as its struct says."""
    return tuple(_place(struct, made_of, source) for struct, made_of in zip(abstract, parts, strict=True))


def _place(struct: jax.ShapeDtypeStruct, parts: Sequence[Part], source: TensorSource) -> jax.Array:
    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        here = (slice(None),) * len(struct.shape) if index is None else index
        first, *others = parts
        array = read_physical(first.maps, here, np.dtype(struct.dtype), partial(first.read, source))
        for part in others:
            fill_physical(array, part.maps, here, partial(part.read, source))
        return array

    array = jax.make_array_from_callback(struct.shape, struct.sharding, shard, dtype=struct.dtype)
    # Waiting bounds host memory: a transfer in flight keeps its host copy.
    return jax.block_until_ready(array)
