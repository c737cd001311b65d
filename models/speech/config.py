"""What a Whisper model is, as data: one frozen, hashable `WhisperConfig` for every size, English-only or multilingual.

No JAX here. The paper is arXiv 2212.04356: an encoder over 30 s of log-mel, a decoder of text tokens with cross-attention
over the encoder's states.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from triptych.models.errors import UnsupportedModelError

ARCHITECTURE = "WhisperForConditionalGeneration"

SAMPLE_RATE = 16_000
HOP = 160  # samples from one frame to the next: 10 ms
FRAMES_PER_POSITION = 2  # the second convolution's stride

# Vocabularies from this size on have language and task tokens that the model was trained with; smaller ones are English.
MULTILINGUAL_VOCABULARY = 51865

_REQUIRED = (
    "vocab_size",
    "d_model",
    "encoder_layers",
    "decoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
)


@dataclass(frozen=True)
class WhisperConfig:
    """Sizes are logical ones, before any padding for tensor parallelism (`sharding/heads.py`).

    `audio_positions` are the encoder's states for one window: 1500 for 30 s. `max_position` bounds the decoder's tokens,
    prompt included. Encoder and decoder share width, heads and FFN size, as all published models do.
    """

    name: str
    vocab_size: int
    num_mels: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    encoder_layers: int
    decoder_layers: int
    audio_positions: int = 1500
    max_position: int = 448

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise UnsupportedModelError(
                f"hidden size {self.hidden_size} does not divide among {self.num_heads} attention heads"
            )
        if self.num_mels < 1 or self.audio_positions < 1 or self.max_position < 1:
            raise UnsupportedModelError(
                f"mel bins, audio positions and text positions must be at least 1, "
                f"got {self.num_mels}, {self.audio_positions} and {self.max_position}"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def num_kv_heads(self) -> int:
        return self.num_heads

    @property
    def num_layers(self) -> int:
        """Layers with a cache: the decoder's."""
        return self.decoder_layers

    @property
    def frames(self) -> int:
        """Mel frames of one window: 3000 for 30 s."""
        return self.audio_positions * FRAMES_PER_POSITION

    @property
    def samples(self) -> int:
        """Audio samples of one window at 16 kHz: 480,000 for 30 s."""
        return self.frames * HOP

    def fingerprint(self) -> str:
        """Hex digest of every field that changes what is computed."""
        fields = asdict(self)
        del fields["name"]
        return hashlib.sha256(repr(sorted(fields.items())).encode()).hexdigest()[:32]

    @staticmethod
    def from_hf(config: Mapping[str, Any]) -> "WhisperConfig":
        """From the parsed `config.json` of a Hugging Face folder.

        Raises UnsupportedModelError, with what is supported, for anything that would be computed wrongly.
        """
        named = list(config.get("architectures") or [])
        if config.get("model_type") != "whisper" or (named and named[0] != ARCHITECTURE):
            found = named[0] if named else f"model_type {config.get('model_type')!r}"
            raise UnsupportedModelError(f"speech architecture {found} is not supported; supported: {ARCHITECTURE}")
        absent = [key for key in _REQUIRED if not config.get(key)]
        if absent:
            raise UnsupportedModelError(f"the configuration lacks {', '.join(absent)}")
        _refuse_unsupported(config)
        return WhisperConfig(
            name=str(config.get("_name_or_path") or "whisper"),
            vocab_size=int(config["vocab_size"]),
            num_mels=int(config.get("num_mel_bins") or 80),
            hidden_size=int(config["d_model"]),
            num_heads=int(config["encoder_attention_heads"]),
            intermediate_size=int(config["encoder_ffn_dim"]),
            encoder_layers=int(config["encoder_layers"]),
            decoder_layers=int(config["decoder_layers"]),
            audio_positions=int(config.get("max_source_positions") or 1500),
            max_position=int(config.get("max_target_positions") or 448),
        )


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    activation = config.get("activation_function", "gelu")
    if activation != "gelu":
        raise UnsupportedModelError(f"activation {activation!r} is not supported; supported: gelu")
    if config.get("scale_embedding"):
        raise UnsupportedModelError("scaled token embeddings are not supported; supported: scale_embedding false")
    if config.get("tie_word_embeddings") is False:
        raise UnsupportedModelError("an output head of its own is not supported; supported: tied embeddings")
    if config.get("quantization_config"):
        raise UnsupportedModelError("quantised weights are not supported; supported: float32, float16, bfloat16")
    for size in ("attention_heads", "ffn_dim"):
        encoder, decoder = config.get(f"encoder_{size}"), config.get(f"decoder_{size}")
        if decoder is not None and decoder != encoder:
            raise UnsupportedModelError(f"encoder_{size} {encoder} and decoder_{size} {decoder} must be equal")
