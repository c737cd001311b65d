"""A vision encoder's weights, straight into their shards: a weight set of its own, read without the language model's."""

from collections.abc import Mapping

import jax
from jax.sharding import Mesh

from triptych.models.vision.config import VisionConfig
from triptych.models.vision.structure import EncoderStructure, LoadedEncoder, encoder_structure
from triptych.models.weights.dummy import RandomSource
from triptych.models.weights.load import check_parts, place_all
from triptych.models.weights.padding import AxisMap, padded_at_end
from triptych.models.weights.parts import Part, named_parts
from triptych.models.weights.source import TensorSource
from triptych.models.weights.vision_names import encoder_source
from triptych.sharding.rules import LogicalAxis, ShardingRules, parameter_axes

# A fused parameter's last module -> those that checkpoints have.
_FUSED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}


def load_encoder(config: VisionConfig, source: TensorSource, mesh: Mesh, dtype: str) -> LoadedEncoder:
    """Place an encoder and its connector on `mesh` in `dtype`, from a Hugging Face checkpoint's tensors.

    Only the encoder's tensors are read. Raises WeightsError if the source does not fit the config, IncompatibleTpError if
    the mesh does not fit the heads.
    """
    structure = encoder_structure(config, ShardingRules(mesh), dtype)
    names = [part.name for made_of in vision_parts(structure) for part in made_of]
    return _load(structure, encoder_source(source, config, names))


def dummy_encoder(config: VisionConfig, mesh: Mesh, dtype: str, seed: int = 0) -> LoadedEncoder:
    """An encoder with random weights, the same numbers on every mesh."""
    structure = encoder_structure(config, ShardingRules(mesh), dtype)
    return _load(structure, RandomSource(tensor_shapes(structure), seed))


def tensor_shapes(structure: EncoderStructure) -> Mapping[str, tuple[int, ...]]:
    """The shape of every tensor that an encoder is made of, without pads."""
    return {part.name: part.shape for made_of in vision_parts(structure) for part in made_of}


def vision_parts(structure: EncoderStructure) -> list[tuple[Part, ...]]:
    """The tensors of each parameter, under the loader's own names: "layers.0.attention.q.weight"."""
    return [_parts(path, struct, structure) for path, struct in zip(structure.paths, structure.abstract, strict=True)]


def _load(structure: EncoderStructure, source: TensorSource) -> LoadedEncoder:
    parts = vision_parts(structure)
    check_parts(parts, source, f"the {structure.config.family} vision encoder")
    return LoadedEncoder(structure, place_all(structure.abstract, parts, source))


def _parts(path: str, struct: jax.ShapeDtypeStruct, structure: EncoderStructure) -> tuple[Part, ...]:
    config, layout = structure.config, structure.head_layout

    def map_of(at: int, axis: LogicalAxis) -> AxisMap:
        if axis in ("heads", "kv_heads"):
            return AxisMap(config.head_dim, layout.query_sources())
        if axis == "ffn":
            return padded_at_end(config.intermediate_size, layout.tp)
        return AxisMap(struct.shape[at], (0,))

    words = path.split(".")
    names = (path,)
    if len(words) > 1 and words[-2] in _FUSED:
        names = tuple(".".join((*words[:-2], one, words[-1])) for one in _FUSED[words[-2]])
    return named_parts(names, parameter_axes(path), map_of, layout.tp)
