"""The golden toy model of tests/models/goldens/whisper, opened, and a small vocabulary of Whisper's kind for it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import jax
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from triptych.models.speech.config import WhisperConfig
from triptych.models.speech.decoder import WhisperDecoder
from triptych.models.speech.encoder import WhisperEncoder
from triptych.models.speech.load import LoadedWhisper, load_decoder, load_encoder
from triptych.models.text.tokenizer import Tokenizer
from triptych.models.weights.hf import SafetensorsSource, open_hf_folder
from triptych.sharding.mesh import make_mesh

FOLDER = Path(__file__).parent.parent / "goldens" / "whisper"

# Twelve pieces of text fewer than the model's vocabulary; then special tokens, and timestamps that are not spelt out.
END = 60
SPECIAL = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|de|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)


@cache
def golden() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "golden.npz") as stored:
        return dict(stored)


def wave() -> np.ndarray:
    return golden()["samples"].astype(np.float32) / 32768.0


@cache
def toy_config() -> WhisperConfig:
    return WhisperConfig.from_hf(json.loads((FOLDER / "config.json").read_text()))


def toy_source() -> SafetensorsSource:
    return open_hf_folder(FOLDER)


@cache
def toy_encoder(tp: int = 1, dtype: str = "float32") -> LoadedWhisper[WhisperEncoder]:
    return load_encoder(toy_config(), toy_source(), make_mesh(jax.devices()[:tp], tp), dtype)


@cache
def toy_decoder(tp: int = 1, dtype: str = "float32") -> LoadedWhisper[WhisperDecoder]:
    return load_decoder(toy_config(), toy_source(), make_mesh(jax.devices()[:tp], tp), dtype)


def toy_backend(special: tuple[str, ...] = SPECIAL) -> tokenizers.Tokenizer:
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())[:END]
    backend = tokenizers.Tokenizer(models.BPE(vocab={piece: at for at, piece in enumerate(characters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken(piece, special=True, normalized=False) for piece in special])
    return backend


def toy_vocabulary(special: tuple[str, ...] = SPECIAL) -> Tokenizer:
    return Tokenizer(toy_backend(special), eos_ids=())
