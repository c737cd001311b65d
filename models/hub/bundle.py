"""A resolved model opened: everything but the arrays, which `load_decoder` makes. Opening imports no jax."""

from __future__ import annotations

from dataclasses import dataclass

from triptych.models.config import ModelConfig
from triptych.models.errors import UnsupportedModelError
from triptych.models.hub.demo_weights import demo_text_source
from triptych.models.hub.media import read_multimodal
from triptych.models.hub.resolve import ModelKind, ResolvedModel
from triptych.models.hub.text import open_text
from triptych.models.multimodal.demos import DEMOS
from triptych.models.text.chat import ChatTemplate
from triptych.models.text.tokenizer import Tokenizer
from triptych.models.weights.dummy import DummySource
from triptych.models.weights.gguf import GGUFSource
from triptych.models.weights.gguf_file import open_gguf
from triptych.models.weights.hf import open_hf_folder
from triptych.models.weights.multimodal import text_source
from triptych.models.weights.orbax import open_orbax
from triptych.models.weights.source import TensorSource

__all__ = ["ModelBundle", "open_model"]


@dataclass(frozen=True)
class ModelBundle:
    """A model's parts: those of `ModelText` (see there), and the tensors for `load_decoder`."""

    config: ModelConfig
    tensor_source: TensorSource
    tokenizer: Tokenizer | None
    chat_template: ChatTemplate | None
    revision: str


def open_model(resolved: ResolvedModel) -> ModelBundle:
    """Open all parts of a model. Raises what `open_text` raises, and WeightsError for unreadable weights."""
    text = open_text(resolved)
    source = _tensor_source(resolved, text.config)
    return ModelBundle(text.config, source, text.tokenizer, text.chat_template, text.revision)


def _tensor_source(resolved: ResolvedModel, config: ModelConfig) -> TensorSource:
    match resolved.kind:
        case ModelKind.GGUF:
            return GGUFSource(open_gguf(resolved.path), config)
        case ModelKind.DEMO:
            return demo_text_source(DEMOS[resolved.name], resolved.path)
        case ModelKind.HF_FOLDER:
            source = open_hf_folder(resolved.path)
            return source if read_multimodal(resolved.path) is None else text_source(source)
        case ModelKind.ORBAX:
            return open_orbax(resolved.path)[1]
        case ModelKind.PRESET:
            return DummySource(config)
        case ModelKind.CT2:
            raise UnsupportedModelError(f"{resolved.name!r} is no text model")
