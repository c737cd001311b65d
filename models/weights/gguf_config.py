"""A `ModelConfig` from GGUF metadata, by way of the Hugging Face keys that mean the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from triptych.models.config import ModelConfig
from triptych.models.errors import UnsupportedModelError
from triptych.models.rope_config import Llama3Scaling, RopeConfig
from triptych.models.text.gguf_tokenizer import eos_ids_from_gguf
from triptych.models.weights.gguf_file import GGUFFile

__all__ = ["ARCHITECTURES", "gguf_model_config"]

# GGUF calls Mistral "llama": the computation is the same but for a sliding window, which has a key of its own.
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

# Llama 3.1 and 3.2 stores its scaled frequencies as a tensor only; these are the constants it was trained with.
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_ORIGINAL = 1.0, 4.0, 8192


def gguf_model_config(file: GGUFFile) -> ModelConfig:
    """The decoder that a GGUF file describes.

    Raises UnsupportedModelError for another architecture, experts, partial rotation, or rope frequencies that no
    supported scaling yields.
    """
    metadata = file.metadata
    kind = metadata.get("general.architecture")
    if kind not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise UnsupportedModelError(f"GGUF architecture {kind!r} is not supported; supported: {supported}")
    get = {key.removeprefix(f"{kind}."): value for key, value in metadata.items()}.get
    missing = [key for key in _REQUIRED if not isinstance(get(key), int | float)]
    if missing:
        raise UnsupportedModelError(f"{file.path}: no single number under {kind}.{missing[0]}; it may vary per layer")
    if get("expert_count"):
        raise UnsupportedModelError("mixtures of experts are not supported; supported: dense decoders")
    heads = int(get("attention.head_count", 0))
    head_dim = int(get("attention.key_length") or get("embedding_length", 0) // heads)
    if int(get("rope.dimension_count", head_dim)) != head_dim:
        raise UnsupportedModelError("a partial rotary factor is not supported; supported: rotation of the whole head")
    window = get("attention.sliding_window")
    architecture = ARCHITECTURES[kind]
    if window is not None:
        if kind != "llama":
            raise UnsupportedModelError(f"a sliding window in GGUF is supported for llama only, not for {kind}")
        architecture = "MistralForCausalLM"
    config: dict[str, Any] = {
        "architectures": [architecture],
        "_name_or_path": metadata.get("general.name") or file.path.stem,
        "vocab_size": _vocabulary_size(file),
        "hidden_size": get("embedding_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": get("feed_forward_length"),
        "max_position_embeddings": get("context_length"),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "rope_theta": get("rope.freq_base", 10000.0),
        "sliding_window": window,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": kind != "qwen2" and "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": list(eos_ids_from_gguf(metadata)),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
    }
    scaling = _rope_scaling(file, get, RopeConfig(float(config["rope_theta"])), head_dim)
    if scaling is not None:
        config["rope_scaling"] = scaling
    return ModelConfig.from_hf(config)


_REQUIRED = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
)


def _vocabulary_size(file: GGUFFile) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise UnsupportedModelError(
            f"{file.path} has no token_embd.weight: it is no decoder, or one part of a split file"
        )
    return embedding.shape[0]


def _rope_scaling(file: GGUFFile, get: Any, plain: RopeConfig, head_dim: int) -> Mapping[str, Any] | None:
    if "rope_freqs.weight" in file.tensors:
        return _llama3_scaling(file, plain, head_dim)
    kind = get("rope.scaling.type", "none")
    if kind in ("none", ""):
        return None
    scaling = {"rope_type": kind, "factor": get("rope.scaling.factor")}
    original = get("rope.scaling.original_context_length")
    return scaling if original is None else scaling | {"original_max_position_embeddings": original}


def _llama3_scaling(file: GGUFFile, plain: RopeConfig, head_dim: int) -> Mapping[str, Any]:
    """The scaling behind a stored tensor of frequency divisors; checked, because only its result is stored."""
    tensor = file.tensors["rope_freqs.weight"]
    count = head_dim // 2
    stored = file.data[tensor.start : tensor.start + 4 * count].view(np.float32)
    if tensor.shape == (count,) and tensor.kind == 0 and stored.size == count:
        factor = float(stored.max())
        scaling = Llama3Scaling(factor, _LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_ORIGINAL)
        scaled = RopeConfig(plain.theta, scaling)
        divisors = plain.inverse_frequencies(head_dim) / scaled.inverse_frequencies(head_dim)
        if np.allclose(stored, divisors, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": _LLAMA3_LOW,
                "high_freq_factor": _LLAMA3_HIGH,
                "original_max_position_embeddings": _LLAMA3_ORIGINAL,
            }
    raise UnsupportedModelError(
        f"{file.path}: rope_freqs.weight holds frequencies of no supported rope scaling; supported here: llama3"
    )
