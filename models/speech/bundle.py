"""A resolved Whisper model opened: everything but the arrays, which `load.py` makes. Opening imports no jax.

Hugging Face folder     config.json, generation_config.json, tokenizer.json, model.safetensors (or an index)
CTranslate2 folder      model.bin, config.json (suppressed tokens), tokenizer.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from triptych.models.errors import UnsupportedModelError, WeightsError
from triptych.models.hub.resolve import ModelKind, ResolvedModel
from triptych.models.speech.config import WhisperConfig
from triptych.models.speech.ct2 import open_ct2_whisper
from triptych.models.speech.presets import (
    SPEECH_PRESETS,
    TOY_SPEECH_SETTINGS,
    WhisperDummySource,
    toy_speech_tokenizer,
)
from triptych.models.speech.tokens import SpeechTokens
from triptych.models.text.hf_tokenizer import tokenizer_from_folder
from triptych.models.text.tokenizer import Tokenizer
from triptych.models.weights.hf import open_hf_folder
from triptych.models.weights.source import TensorSource

__all__ = ["SpeechBundle", "is_speech", "open_speech"]


@dataclass(frozen=True)
class SpeechBundle:
    """A speech model's parts. `tensor_source` holds both halves; `load.py` reads one of them."""

    config: WhisperConfig
    tensor_source: TensorSource
    tokenizer: Tokenizer
    tokens: SpeechTokens
    revision: str


def is_speech(resolved: ResolvedModel) -> bool:
    """Whether `open_speech` is what opens it."""
    match resolved.kind:
        case ModelKind.CT2:
            return True
        case ModelKind.PRESET:
            return resolved.path.name in SPEECH_PRESETS
        case ModelKind.HF_FOLDER:
            return _json(resolved.path / "config.json").get("model_type") == "whisper"
        case _:
            return False


def open_speech(resolved: ResolvedModel) -> SpeechBundle:
    """Open a speech model.

    Raises UnsupportedModelError, UnsupportedTokenizerError or WeightsError, each saying what is supported.
    """
    folder = resolved.path
    match resolved.kind:
        case ModelKind.HF_FOLDER:
            config = WhisperConfig.from_hf(_json(folder / "config.json"))
            generation = folder / "generation_config.json"
            # Folders from before generation_config.json keep the suppressed tokens in config.json.
            settings = _json(generation) if generation.is_file() else _json(folder / "config.json")
            source: TensorSource = open_hf_folder(folder)
        case ModelKind.CT2:
            config, source = open_ct2_whisper(folder)
            settings = _json(folder / "config.json")
        case ModelKind.PRESET if folder.name in SPEECH_PRESETS:
            config = SPEECH_PRESETS[folder.name]
            return _bundle(resolved, config, WhisperDummySource(config), toy_speech_tokenizer(), TOY_SPEECH_SETTINGS)
        case _:
            raise UnsupportedModelError(
                f"{resolved.name!r} is no speech model; supported: Whisper as a Hugging Face or CTranslate2 folder"
            )
    return _bundle(resolved, config, source, tokenizer_from_folder(folder), settings)


def _bundle(
    resolved: ResolvedModel,
    config: WhisperConfig,
    source: TensorSource,
    tokenizer: Tokenizer,
    settings: Mapping[str, Any],
) -> SpeechBundle:
    if tokenizer.vocab_size > config.vocab_size:
        raise UnsupportedModelError(
            f"the tokenizer has {tokenizer.vocab_size} tokens but the model embeds {config.vocab_size}: "
            "they do not belong together"
        )
    tokens = SpeechTokens.from_vocabulary(tokenizer, config, settings)
    return SpeechBundle(replace(config, name=resolved.name), source, tokenizer, tokens, resolved.revision)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is missing or not JSON: {error}") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} holds no JSON object")
    return value
