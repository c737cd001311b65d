"""The decoders that an engine runs: those of text, and Whisper's, whose layers attend to media as well."""

from __future__ import annotations

from typing import TypeAlias

from triptych.models.config import ModelConfig
from triptych.models.kv import KVGroup, kv_groups
from triptych.models.speech.config import WhisperConfig
from triptych.models.speech.decoder import WhisperDecoder
from triptych.models.speech.kv import whisper_kv_groups
from triptych.models.speech.load import LoadedWhisper
from triptych.models.speech.structure import WhisperStructure
from triptych.models.structure import DecoderStructure
from triptych.models.weights.load import LoadedDecoder

ServedConfig: TypeAlias = ModelConfig | WhisperConfig
ServedStructure: TypeAlias = DecoderStructure | WhisperStructure[WhisperDecoder]
ServedDecoder: TypeAlias = LoadedDecoder | LoadedWhisper[WhisperDecoder]


def self_group(config: ServedConfig, dtype: str) -> KVGroup:
    """The group of self-attention, which the engine's KV pool holds."""
    if isinstance(config, WhisperConfig):
        return whisper_kv_groups(config, dtype)[0]
    (group,) = kv_groups(config, dtype)
    return group
