"""Published models at their true widths, without their weights: what is compiled for TPUs. No JAX.

The numbers are those of the models' own config.json files: llava-hf/llava-1.5-7b-hf, OpenGVLab/InternVL3-8B-hf,
Qwen/Qwen2.5-VL-7B-Instruct and openai/whisper-large-v3 for encoders, Qwen/Qwen3-8B for text; other text models are presets of `models/config.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from triptych.models.config import PRESETS, ModelConfig
from triptych.models.multimodal.hf_config import multimodal_from_hf
from triptych.models.speech.config import WhisperConfig
from triptych.models.vision.config import VisionConfig

_QWEN_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "rms_norm_eps": 1e-6,
}
_LLAVA = {
    "model_type": "llava",
    "image_token_index": 32000,
    "text_config": {"model_type": "llama", "vocab_size": 32064},
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    },
}
_INTERNVL = {
    "model_type": "internvl",
    "image_token_id": 151667,
    "text_config": {"model_type": "qwen2", **_QWEN_7B},
    "vision_config": {
        "model_type": "internvl_vision",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": [448, 448],
        "patch_size": [14, 14],
        "attention_bias": True,
    },
}
_QWEN = {
    "model_type": "qwen2_5_vl",
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    **_QWEN_7B,
    "vision_config": {"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420, "out_hidden_size": 3584},
}  # fmt: skip

# 12,845,056 pixels: the largest image that Qwen2.5-VL's preprocessor lets through, in patches of 14 x 14.
_QWEN_SLOTS = 65536
# What an instance takes for encoders of small pictures (runtime/worker/media_parts.py).
PICTURE_SLOTS = 2048


@dataclass(frozen=True)
class PublishedVision:
    """A vision encoder with its connector; `slots` is the largest bucket that a deployment compiles for it by default."""

    name: str
    config: VisionConfig
    slots: int

    def shallow(self, layers: int) -> PublishedVision:
        """The same widths in so many layers, window layers and full ones among them."""
        full = tuple(layer for layer in self.config.full_layers if layer < layers) or self.config.full_layers and (0,)
        config = replace(self.config, stored_layers=layers, feature_layers=(layers,), full_layers=full)
        return replace(self, config=config)


@dataclass(frozen=True)
class PublishedSpeech:
    """A speech encoder and the cross-attention of its decoder; `windows` are encoded at a time."""

    name: str
    config: WhisperConfig
    windows: int = 1

    def shallow(self, layers: int) -> PublishedSpeech:
        """The same widths in so many layers, on both sides."""
        return replace(self, config=replace(self.config, encoder_layers=layers, decoder_layers=layers))


Published = PublishedVision | PublishedSpeech


def _vision(name: str, config: dict[str, Any], slots: int) -> PublishedVision:
    return PublishedVision(name, multimodal_from_hf(config, None).vision, slots)


PUBLISHED: dict[str, Published] = {
    model.name: model
    for model in (
        _vision("llava-1.5-7b", _LLAVA, PICTURE_SLOTS),
        _vision("internvl3-8b", _INTERNVL, PICTURE_SLOTS),
        _vision("qwen2.5-vl-7b", _QWEN, _QWEN_SLOTS),
        PublishedSpeech(
            "whisper-large-v3",
            WhisperConfig(
                name="whisper-large-v3",
                vocab_size=51866,
                num_mels=128,
                hidden_size=1280,
                num_heads=20,
                intermediate_size=5120,
                encoder_layers=32,
                decoder_layers=32,
            ),
        ),
    )
}

_QWEN3_8B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}

TEXT: dict[str, ModelConfig] = {
    "smollm2-135m": PRESETS["smollm2-135m"],
    "llama-3.1-8b": PRESETS["llama-8b"],
    "qwen3-8b": ModelConfig.from_hf(_QWEN3_8B),
}
"""Text decoders by their published names."""
