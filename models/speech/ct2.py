"""Whisper from a CTranslate2 folder (faster-whisper's form): the sizes, and the tensors under Hugging Face names.

CTranslate2 fuses the projections of one input by rows: q, k and v of self-attention, k and v of cross-attention. Reading
takes the rows of one projection.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from triptych.models.errors import UnsupportedModelError, WeightsError
from triptych.models.speech.config import WhisperConfig
from triptych.models.weights.ct2 import MODEL_FILE, CT2File, open_ct2

__all__ = ["WhisperCT2Source", "open_ct2_whisper"]

SPECIFICATION = "WhisperSpec"

# What this decoder computes, in CTranslate2's numbers; activation 3 is the exact gelu. Absent settings have these values.
_SETTINGS = {
    "decoder/activation": 3,
    "encoder/activation": 3,
    "decoder/pre_norm": 1,
    "encoder/pre_norm": 1,
    "decoder/alibi": 0,
    "decoder/scale_embeddings": 0,
    "decoder/start_from_zero_embedding": 0,
}

_FLOATS = frozenset({0, 4, 5})  # float32, float16, bfloat16

_TOP = {
    "encoder/conv1": "conv1",
    "encoder/conv2": "conv2",
    "encoder/position_encodings": "embed_positions",
    "encoder/layer_norm": "layer_norm",
    "decoder/embeddings": "embed_tokens",
    "decoder/position_encodings": "embed_positions",
    "decoder/layer_norm": "layer_norm",
}
_LAYER = {
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
_LEAVES = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "encodings": "weight"}


@dataclass(frozen=True)
class _Rows:
    """Rows of a stored tensor: the `part`-th of `parts` equal runs."""

    stored: str
    part: int
    parts: int


def open_ct2_whisper(folder: Path) -> tuple[WhisperConfig, WhisperCT2Source]:
    """Configuration and tensors of a folder. Raises WeightsError or UnsupportedModelError."""
    file = open_ct2(folder / MODEL_FILE)
    return _config(file, folder.name), WhisperCT2Source(file)


def _config(file: CT2File, name: str) -> WhisperConfig:
    if file.specification != SPECIFICATION:
        raise UnsupportedModelError(f"{file.path} holds a {file.specification}; supported: {SPECIFICATION}")
    for setting, expected in _SETTINGS.items():
        found = file.scalar(setting, default=expected)
        if found != expected:
            raise UnsupportedModelError(f"{setting} is {found}; supported: {expected}")
    heads = file.scalar("encoder/num_heads")
    if file.scalar("decoder/num_heads") != heads:
        raise UnsupportedModelError(f"encoder and decoder must have equally many heads, the encoder has {heads}")
    hidden, mels, _ = _shape(file, "encoder/conv1/weight", 3)
    return WhisperConfig(
        name=name,
        vocab_size=_shape(file, "decoder/embeddings/weight", 2)[0],
        num_mels=mels,
        hidden_size=hidden,
        num_heads=heads,
        intermediate_size=_shape(file, "encoder/layer_0/ffn/linear_0/weight", 2)[0],
        encoder_layers=_layers(file, "encoder"),
        decoder_layers=_layers(file, "decoder"),
        audio_positions=_shape(file, "encoder/position_encodings/encodings", 2)[0],
        max_position=_shape(file, "decoder/position_encodings/encodings", 2)[0],
    )


class WhisperCT2Source:
    """A `TensorSource` over one open file. Settings of rank 0 are no tensors of the model and are left out."""

    def __init__(self, file: CT2File) -> None:
        self._file = file
        self._tensors: dict[str, _Rows] = {}
        aliases = {name for name, tensor in file.tensors.items() if tensor.name != name}
        for name, tensor in file.tensors.items():
            if name in aliases or not tensor.shape or name.startswith("decoder/alignment_"):
                continue
            if tensor.kind not in _FLOATS:
                raise WeightsError(f"tensor {name!r} is quantised (type {tensor.kind}); supported: float32, float16")
            names = _hf_names(name)
            for part, hf in enumerate(names):
                self._tensors[hf] = _Rows(name, part, len(names))

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        rows = self._tensors[name]
        first, *others = self._file.tensors[rows.stored].shape
        return (first // rows.parts, *others)

    def read(self, name: str, slices: tuple[slice, ...]) -> np.ndarray:
        rows = self._tensors[name]
        stored = self._file.array(rows.stored)
        size = stored.shape[0] // rows.parts
        return stored[rows.part * size : (rows.part + 1) * size][slices]


def _hf_names(name: str) -> tuple[str, ...]:
    """The tensors that lie in a stored one, by rows; a name without a counterpart stays."""
    module, _, leaf = name.rpartition("/")
    half = module.partition("/")[0]
    if leaf not in _LEAVES:
        return (name,)
    if module in _TOP:
        return (f"model.{half}.{_TOP[module]}.{_LEAVES[leaf]}",)
    words = module.split("/", 2)
    if len(words) == 3 and words[1].startswith("layer_") and words[2] in _LAYER:
        layer = words[1].removeprefix("layer_")
        return tuple(f"model.{half}.layers.{layer}.{part}.{_LEAVES[leaf]}" for part in _LAYER[words[2]])
    return (name,)


def _shape(file: CT2File, name: str, rank: int) -> tuple[int, ...]:
    if name not in file.tensors or len(file.tensors[name].shape) != rank:
        raise WeightsError(f"{file.path} has no tensor {name!r} of {rank} axes")
    return file.tensors[name].shape


def _layers(file: CT2File, half: str) -> int:
    prefix = f"{half}/layer_"
    return len(
        {
            name.split("/")[1]
            for name in file.tensors
            if name.startswith(prefix) and name != f"{half}/layer_norm" and not name.startswith(f"{half}/layer_norm/")
        }
    )
