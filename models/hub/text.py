"""The text side of a resolved model: configuration, tokenizer, chat template. For gateways: no weights, no jax."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from triptych.models.config import PRESETS, ModelConfig
from triptych.models.errors import UnsupportedModelError, WeightsError
from triptych.models.hub.media import read_multimodal
from triptych.models.hub.resolve import ModelKind, ResolvedModel
from triptych.models.multimodal.presets import VLM_PRESETS
from triptych.models.text.chat import ChatTemplate
from triptych.models.text.gguf_tokenizer import chat_template_from_gguf, tokenizer_from_gguf
from triptych.models.text.hf_tokenizer import chat_template_from_folder, tokenizer_from_folder
from triptych.models.text.tokenizer import Tokenizer
from triptych.models.text.toy import TOY_CHAT_TEMPLATE, toy_tokenizer
from triptych.models.weights.gguf_config import gguf_model_config
from triptych.models.weights.gguf_file import open_gguf
from triptych.models.weights.orbax import open_orbax

__all__ = ["ModelText", "open_text"]


@dataclass(frozen=True)
class ModelText:
    """The parts that turn a conversation into token ids and back.

    Attributes:
        config: its `eos_token_ids` are the tokenizer's where that has any, so that all sides end at the same tokens.
        tokenizer: None if the model has none (a preset other than the toy, a folder without tokenizer.json).
        chat_template: None for a base model.
        revision: the content fingerprint of the resolved model.
    """

    config: ModelConfig
    tokenizer: Tokenizer | None
    chat_template: ChatTemplate | None
    revision: str


def open_text(resolved: ResolvedModel) -> ModelText:
    """Open the text side of a model.

    Raises UnsupportedModelError, UnsupportedTokenizerError, WeightsError or ChatTemplateError, each saying what is
    supported.
    """
    config, tokenizer, template = _parts(resolved)
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UnsupportedModelError(
            f"the tokenizer has {tokenizer.vocab_size} tokens but the model embeds {config.vocab_size}: "
            "they do not belong together"
        )
    if tokenizer is not None and tokenizer.eos_ids:
        config = replace(config, eos_token_ids=tokenizer.eos_ids)
    return ModelText(config, tokenizer, _chat_template(template, tokenizer), resolved.revision)


def _parts(resolved: ResolvedModel) -> tuple[ModelConfig, Tokenizer | None, str | None]:
    path = resolved.path
    match resolved.kind:
        case ModelKind.GGUF | ModelKind.DEMO:
            file = open_gguf(path)
            return gguf_model_config(file), tokenizer_from_gguf(file.metadata), chat_template_from_gguf(file.metadata)
        case ModelKind.HF_FOLDER:
            multimodal = read_multimodal(path)
            if multimodal is not None:
                return multimodal.text, _folder_tokenizer(path), chat_template_from_folder(path)
            generation = path / "generation_config.json"
            config = ModelConfig.from_hf(
                _json(path / "config.json"), _json(generation) if generation.is_file() else None
            )
            return config, _folder_tokenizer(path), chat_template_from_folder(path)
        case ModelKind.ORBAX:
            config, _ = open_orbax(path)
            return config, _folder_tokenizer(path), chat_template_from_folder(path)
        case ModelKind.CT2:
            raise UnsupportedModelError(
                f"{resolved.name!r} is a CTranslate2 folder, which is read for speech only: `triptych transcribe`"
            )
        case ModelKind.PRESET:
            vlm = VLM_PRESETS.get(path.name)
            if vlm is None and path.name not in PRESETS:
                raise UnsupportedModelError(f"{resolved.name!r} is no text model")
            config = PRESETS[path.name] if vlm is None else vlm.text
            toy = path.name in ("toy", "toy-draft") or vlm is not None
            return config, toy_tokenizer() if toy else None, TOY_CHAT_TEMPLATE if toy else None


def _folder_tokenizer(folder: Path) -> Tokenizer | None:
    return tokenizer_from_folder(folder) if (folder / "tokenizer.json").is_file() else None


def _chat_template(source: str | None, tokenizer: Tokenizer | None) -> ChatTemplate | None:
    if source is None:
        return None
    bos, eos = (tokenizer.bos_token, tokenizer.eos_token) if tokenizer else (None, None)
    return ChatTemplate(source, bos_token=bos, eos_token=eos)


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON: {error}") from error
