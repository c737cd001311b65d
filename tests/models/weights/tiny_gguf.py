"""Tiny GGUF files, written with the gguf package from tensors in Hugging Face form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from tests.models.text.vocabularies import byte_level_metadata
from triptych.models.config import ModelConfig
from triptych.models.weights.dummy import DummySource

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, LAYERS, VOCAB = 64, 4, 2, 16, 96, 2, 263
_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tiny_config(architecture: str = "LlamaForCausalLM", **changes: Any) -> ModelConfig:
    fields: dict[str, Any] = {
        "name": "tiny",
        "architecture": architecture,
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "num_kv_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": FFN,
        "max_position": 128,
        "layer_windows": (None,) * LAYERS,
        "qkv_bias": architecture == "Qwen2ForCausalLM",
        "qk_norm": architecture == "Qwen3ForCausalLM",
        "eos_token_ids": (261,),
        "bos_token_id": 260,
    }
    return ModelConfig(**fields | changes)


def hf_tensors(config: ModelConfig) -> dict[str, np.ndarray]:
    """Random weights in float32 under their Hugging Face names."""
    source = DummySource(config)
    return {name: source.read(name, (slice(None),) * len(source.shape(name))).copy() for name in source.names()}


def write_gguf(
    path: Path,
    config: ModelConfig,
    tensors: dict[str, np.ndarray],
    *,
    kinds: dict[str, Kind] | None = None,
    metadata: dict[str, Any] | None = None,
    extra: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write `tensors` as llama.cpp's converter would. `kinds` maps a part of a tensor name to its storage (float32 if
    none).
    """
    arch = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}[config.architecture]
    writer = gguf.GGUFWriter(path, arch)
    for key, value in (_metadata(arch, config) | byte_level_metadata() | (metadata or {})).items():
        _add(writer, key, value)
    for name, array in tensors.items():
        kind = next((kind for part, kind in (kinds or {}).items() if part in name), Kind.F32)
        if arch == "llama":
            array = _interleave(name, array, config)
        quantised = gguf.quants.quantize(array, kind)
        writer.add_tensor(gguf_name(name), quantised, raw_dtype=kind)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(name: str) -> str:
    if name.startswith("model.layers."):
        _, _, layer, *module, leaf = name.split(".")
        return f"blk.{layer}.{_NAMES['.'.join(module)]}.{leaf}"
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    module, _, leaf = name.rpartition(".")
    return f"{top[module]}.{leaf}"


def _interleave(name: str, array: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Half-split rotary rows to neighbouring pairs, as the converter does for the llama architecture."""
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return array
    return array.reshape(heads, 2, config.head_dim // 2, -1).swapaxes(1, 2).reshape(array.shape)


def _metadata(arch: str, config: ModelConfig) -> dict[str, Any]:
    return {
        "general.name": config.name,
        f"{arch}.block_count": config.num_layers,
        f"{arch}.context_length": config.max_position,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_heads,
        f"{arch}.attention.head_count_kv": config.num_kv_heads,
        f"{arch}.attention.key_length": config.head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{arch}.rope.freq_base": config.rope.theta,
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
