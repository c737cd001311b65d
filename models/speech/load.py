"""Whisper's weights from any source straight into their shards, the encoder's and the decoder's each on its own mesh.

Names are those of Hugging Face checkpoints; other formats convert inside their source (`models/weights/source.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic

import jax
import numpy as np
from jax.sharding import Mesh

from triptych.models.errors import WeightsError
from triptych.models.speech.config import WhisperConfig
from triptych.models.speech.decoder import WhisperDecoder
from triptych.models.speech.encoder import WhisperEncoder
from triptych.models.speech.listener import WhisperListener
from triptych.models.speech.structure import (
    ModuleT,
    WhisperStructure,
    decoder_structure,
    encoder_structure,
    listener_structure,
)
from triptych.models.weights.padding import AxisMap, axis_map, fill_physical, fused_maps, read_physical
from triptych.models.weights.parts import Part
from triptych.models.weights.source import TensorSource
from triptych.sharding.heads import HeadLayout
from triptych.sharding.rules import FUSED_AXES, RULES, LogicalAxis, ShardingRules, parameter_axes

_HF_MODULES = {
    "conv1": ("conv1",),
    "conv2": ("conv2",),
    "embedding": ("embed_tokens",),
    "positions": ("embed_positions",),
    "norm": ("layer_norm",),
    "attention_norm": ("self_attn_layer_norm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.o": ("self_attn.out_proj",),
    "cross_norm": ("encoder_attn_layer_norm",),
    "cross.q": ("encoder_attn.q_proj",),
    "cross.kv": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "cross.o": ("encoder_attn.out_proj",),
    "ffn_norm": ("final_layer_norm",),
    "ffn.up": ("fc1",),
    "ffn.down": ("fc2",),
}

# The paper's keys have no bias. Formats that fuse projections store zeros for it, others nothing.
OPTIONAL_SUFFIX = ".k_proj.bias"

# The output head is the embedding; some checkpoints store it a second time.
TIED = "proj_out.weight"


@dataclass(frozen=True)
class LoadedWhisper(Generic[ModuleT]):
    """One half of a model with its weights on a mesh: a structure and the flat tuple of arrays that programs take."""

    structure: WhisperStructure[ModuleT]
    params: tuple[jax.Array, ...]

    @property
    def config(self) -> WhisperConfig:
        return self.structure.config

    @property
    def head_layout(self) -> HeadLayout:
        return self.structure.head_layout

    @property
    def rules(self) -> ShardingRules:
        return self.structure.rules

    def merge(self, params: Sequence[jax.Array]) -> ModuleT:
        """The module over these arrays. Call it inside a traced function, with that function's own arguments."""
        return self.structure.merge(params)

    def nbytes(self) -> int:
        """Bytes of all parameters over all devices, pads and replicas counted."""
        return sum(shard.data.nbytes for array in self.params for shard in array.addressable_shards)


def load_encoder(config: WhisperConfig, source: TensorSource, mesh: Mesh, dtype: str) -> LoadedWhisper[WhisperEncoder]:
    """Place the encoder on `mesh` in `dtype` ("float32" or "bfloat16"); no tensor of the decoder is read.

    Raises WeightsError if the source does not fit the config, IncompatibleTpError if the mesh does not fit the heads.
    """
    return _load(encoder_structure(config, ShardingRules(mesh), dtype), source)


def load_listener(
    config: WhisperConfig, source: TensorSource, mesh: Mesh, dtype: str
) -> LoadedWhisper[WhisperListener]:
    """Place the encoder and the decoder's cross projections on `mesh`, as `load_encoder` does the encoder."""
    return _load(listener_structure(config, ShardingRules(mesh), dtype), source)


def load_decoder(config: WhisperConfig, source: TensorSource, mesh: Mesh, dtype: str) -> LoadedWhisper[WhisperDecoder]:
    """Place the decoder on `mesh`, as `load_encoder` does the encoder."""
    return _load(decoder_structure(config, ShardingRules(mesh), dtype), source)


def _load(structure: WhisperStructure[ModuleT], source: TensorSource) -> LoadedWhisper[ModuleT]:
    parts = tuple(
        _parts(structure, path, struct.shape) for path, struct in zip(structure.paths, structure.abstract, strict=True)
    )
    _check_tensors(structure.half, [part for made_of in parts for part in made_of], source)
    params = tuple(_place(struct, made_of, source) for struct, made_of in zip(structure.abstract, parts, strict=True))
    return LoadedWhisper(structure, params)


def hf_names(half: str, path: str) -> tuple[str, ...]:
    """The checkpoint's tensors of a parameter: "layers.0.ffn.up.weight" -> ("model.encoder.layers.0.fc1.weight",)."""
    words = path.split(".")
    if half == "listener":
        if words[0] == "encoder":
            return hf_names("encoder", path.removeprefix("encoder."))
        return hf_names("decoder", ".".join(("layers", words[1], words[0], *words[2:])))  # cross.0.kv.weight
    prefix, at = (f"model.{half}.layers.{words[1]}", 2) if words[0] == "layers" else (f"model.{half}", 0)
    return tuple(f"{prefix}.{module}.{words[-1]}" for module in _HF_MODULES[".".join(words[at:-1])])


def _parts(structure: WhisperStructure[ModuleT], path: str, shape: tuple[int, ...]) -> tuple[Part, ...]:
    names, axes, layout = hf_names(structure.half, path), parameter_axes(path), structure.head_layout

    def along(axis: LogicalAxis, size: int) -> AxisMap:
        # An axis that no device splits is not padded either.
        return AxisMap(size, (0,)) if RULES[axis] is None else axis_map(axis, structure.config, layout)

    if not any(axis in FUSED_AXES for axis in axes):
        maps = tuple(along(axis, size) for axis, size in zip(axes, shape, strict=True))
        return (Part(names[0], maps, tuple(range(len(axes)))),)
    # A fused weight is [in, out], its tensors are [out, in].
    order = tuple(reversed(range(len(axes))))
    columns = [
        fused_maps([axis_map(one, structure.config, layout) for one in FUSED_AXES[axis]], layout.tp)
        if axis in FUSED_AXES
        else (along(axis, size),) * len(names)
        for axis, size in zip(axes, shape, strict=True)
    ]
    return tuple(Part(name, maps, order) for name, maps in zip(names, zip(*columns, strict=True), strict=True))


def _check_tensors(half: str, parts: Sequence[Part], source: TensorSource) -> None:
    """Compare the source's names and shapes with this half's before anything is read."""
    stored = set(source.names())
    wanted = {part.name: part.shape for part in parts}
    missing = sorted(name for name in set(wanted) - stored if not name.endswith(OPTIONAL_SUFFIX))
    if missing:
        raise WeightsError(
            f"{len(missing)} tensors of the {half} are missing, the first is {missing[0]!r}; the file has {len(stored)}"
        )
    # The listener has all of the encoder, and of the decoder only what it reads.
    whole = f"model.{'encoder' if half == 'listener' else half}."
    extra = sorted(
        name
        for name in stored - set(wanted) - {TIED}
        if name.startswith(whole) or not name.startswith(("model.encoder.", "model.decoder."))
    )
    if extra:
        raise WeightsError(
            f"{len(extra)} tensors belong to no parameter of a Whisper {half}, the first is {extra[0]!r}; "
            "the model has parts that its configuration does not describe"
        )
    for name in sorted(set(wanted) & stored):
        if tuple(source.shape(name)) != wanted[name]:
            raise WeightsError(
                f"tensor {name!r} has shape {tuple(source.shape(name))}, the configuration implies {wanted[name]}"
            )


def _place(struct: jax.ShapeDtypeStruct, parts: tuple[Part, ...], source: TensorSource) -> jax.Array:
    stored = set(source.names())
    first, *others = (part for part in parts if part.name in stored or not part.name.endswith(OPTIONAL_SUFFIX))

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        here = (slice(None),) * len(struct.shape) if index is None else index
        array = read_physical(first.maps, here, np.dtype(struct.dtype), partial(first.read, source))
        for part in others:
            fill_physical(array, part.maps, here, partial(part.read, source))
        return array

    array = jax.make_array_from_callback(struct.shape, struct.sharding, shard, dtype=struct.dtype)
    # Waiting bounds host memory: a transfer in flight keeps its host copy.
    return jax.block_until_ready(array)
