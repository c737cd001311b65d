"""`dummy:toy-whisper`: a Whisper of toy size with random weights and a byte-level vocabulary, for tests. No JAX here.

Its window is one second. Its weights are scaled so that what it says changes with the sound and from token to token: a
random model with a tied head otherwise repeats one token, and a test on it would not notice a wrong page.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection

import numpy as np
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from triptych.models.speech.config import WhisperConfig
from triptych.models.text.tokenizer import CHARACTER_OF_BYTE, Tokenizer

__all__ = ["SPEECH_PRESETS", "TOY_SPEECH_SETTINGS", "WhisperDummySource", "toy_speech_tokenizer"]

_SPECIAL = (
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
_TIMESTAMPS = 51  # 0.00 to 1.00 s in steps of 20 ms

# Ids 0 to 255 are bytes, then the special tokens in the order above, then timestamps.
SPEECH_PRESETS: dict[str, WhisperConfig] = {
    "toy-whisper": WhisperConfig(
        name="toy-whisper",
        vocab_size=256 + len(_SPECIAL) + _TIMESTAMPS,
        num_mels=16,
        hidden_size=32,
        num_heads=4,
        intermediate_size=64,
        encoder_layers=2,
        decoder_layers=2,
        audio_positions=50,
        max_position=64,
    )
}

# Only letters may be said, so that a transcript is text: every other byte is suppressed.
TOY_SPEECH_SETTINGS = {
    "is_multilingual": True,
    "suppress_tokens": [
        byte for byte in range(256) if not (byte == 0x20 or chr(byte).isascii() and chr(byte).islower())
    ],
    "begin_suppress_tokens": [0x20, 256],
}

# Of sixteen combinations tried, the one whose words depend most on the sound and on the words before.
_FACTORS = {
    "embed_positions.weight": 2.0,
    "fc2.weight": 3.0,
    "encoder_attn.out_proj.weight": 4.0,
    "self_attn.out_proj.weight": 6.0,
}


def toy_speech_tokenizer() -> Tokenizer:
    """The vocabulary of the preset."""
    vocabulary = {CHARACTER_OF_BYTE[byte]: byte for byte in range(256)}
    backend = RustTokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in _SPECIAL])
    return Tokenizer(backend, eos_ids=(256,))


class WhisperDummySource:
    """A `TensorSource` of random weights: variance about 1 / inputs, norms of one, small biases. Made anew at each read."""

    def __init__(self, config: WhisperConfig, seed: int = 0) -> None:
        self._shapes = dict(_hf_shapes(config))
        self._seed = seed

    def names(self) -> Collection[str]:
        return self._shapes.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def read(self, name: str, slices: tuple[slice, ...]) -> np.ndarray:
        shape = self.shape(name)
        if name.endswith("layer_norm.weight"):
            return np.ones(shape, np.float32)[slices]
        noise = np.random.default_rng((self._seed, zlib.crc32(name.encode()))).standard_normal(shape, np.float32)
        scale = 0.1 if len(shape) == 1 else float(np.prod(shape[1:])) ** -0.5
        factor = next((by for end, by in _FACTORS.items() if name.endswith(end)), 1.0)
        return (noise * np.float32(scale * factor))[slices]


def _hf_shapes(config: WhisperConfig) -> list[tuple[str, tuple[int, ...]]]:
    hidden, ffn = config.hidden_size, config.intermediate_size
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("model.encoder.conv1.weight", (hidden, config.num_mels, 3)),
        ("model.encoder.conv1.bias", (hidden,)),
        ("model.encoder.conv2.weight", (hidden, hidden, 3)),
        ("model.encoder.conv2.bias", (hidden,)),
        ("model.encoder.embed_positions.weight", (config.audio_positions, hidden)),
        ("model.decoder.embed_positions.weight", (config.max_position, hidden)),
        ("model.decoder.embed_tokens.weight", (config.vocab_size, hidden)),
    ]
    halves = (
        ("encoder", config.encoder_layers, ("self_attn",)),
        ("decoder", config.decoder_layers, ("self_attn", "encoder_attn")),
    )
    for half, layers, attentions in halves:
        norms = [f"model.{half}.layer_norm"]
        for layer in range(layers):
            prefix = f"model.{half}.layers.{layer}"
            linears = [
                (f"{prefix}.{attention}.{part}_proj", (hidden, hidden), part != "k")
                for attention in attentions
                for part in ("q", "k", "v", "out")
            ]
            linears += [(f"{prefix}.fc1", (ffn, hidden), True), (f"{prefix}.fc2", (hidden, ffn), True)]
            for name, shape, bias in linears:
                shapes.append((f"{name}.weight", shape))
                if bias:
                    shapes.append((f"{name}.bias", shape[:1]))
            norms += [f"{prefix}.{attention}_layer_norm" for attention in attentions] + [f"{prefix}.final_layer_norm"]
        shapes += [(f"{norm}.{leaf}", (hidden,)) for norm in norms for leaf in ("weight", "bias")]
    return shapes
