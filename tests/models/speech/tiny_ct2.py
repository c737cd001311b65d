"""Writes CTranslate2 files: the container by its description, and the golden toy as faster-whisper stores a model."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from tests.models.speech.toy import toy_backend, toy_config, toy_source

KINDS = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4, "bfloat16": 5}

EVERYTHING = slice(None)


def text(value: str) -> bytes:
    raw = value.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw


def container(
    tensors: dict[str, np.ndarray], aliases: dict[str, str], version: int = 6, specification: str = "WhisperSpec"
) -> bytes:
    out = struct.pack("<I", version) + text(specification) + struct.pack("<II", 3, len(tensors))
    for name, value in tensors.items():
        data = value.tobytes()
        out += text(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        out += struct.pack("<BI", KINDS[value.dtype.name], len(data)) + data
    out += struct.pack("<I", len(aliases))
    return out + b"".join(text(name) + text(target) for name, target in aliases.items())


def hf(name: str) -> np.ndarray:
    source = toy_source()
    return source.read(name, (EVERYTHING,) * len(source.shape(name)))


def toy_tensors() -> dict[str, np.ndarray]:
    """The golden's weights under CTranslate2's names, projections fused, with its settings."""
    tensors: dict[str, np.ndarray] = {}
    tensors |= {name: np.array(value, np.int8) for name, value in (("decoder/activation", 3), ("decoder/pre_norm", 1))}
    tensors |= {f"{half}/num_heads": np.array(3, np.int16) for half in ("encoder", "decoder")}
    tensors["decoder/alignment_heads"] = np.array([[0, 1]], np.int16)

    def linear(to: str, *modules: str) -> None:
        tensors[f"{to}/weight"] = np.concatenate([hf(f"{module}.weight") for module in modules])
        stored = set(toy_source().names())
        biases = [f"{module}.bias" for module in modules]
        tensors[f"{to}/bias"] = np.concatenate([hf(b) if b in stored else np.zeros(24, np.float32) for b in biases])

    def norm(to: str, module: str) -> None:
        tensors[f"{to}/gamma"], tensors[f"{to}/beta"] = hf(f"{module}.weight"), hf(f"{module}.bias")

    for half, layers in (("encoder", toy_config().encoder_layers), ("decoder", toy_config().decoder_layers)):
        tensors[f"{half}/position_encodings/encodings"] = hf(f"model.{half}.embed_positions.weight")
        norm(f"{half}/layer_norm", f"model.{half}.layer_norm")
        for layer in range(layers):
            here, there = f"{half}/layer_{layer}", f"model.{half}.layers.{layer}"
            norm(f"{here}/self_attention/layer_norm", f"{there}.self_attn_layer_norm")
            linear(f"{here}/self_attention/linear_0", *(f"{there}.self_attn.{p}_proj" for p in "qkv"))
            linear(f"{here}/self_attention/linear_1", f"{there}.self_attn.out_proj")
            norm(f"{here}/ffn/layer_norm", f"{there}.final_layer_norm")
            linear(f"{here}/ffn/linear_0", f"{there}.fc1")
            linear(f"{here}/ffn/linear_1", f"{there}.fc2")
            if half == "decoder":
                norm(f"{here}/attention/layer_norm", f"{there}.encoder_attn_layer_norm")
                linear(f"{here}/attention/linear_0", f"{there}.encoder_attn.q_proj")
                linear(f"{here}/attention/linear_1", *(f"{there}.encoder_attn.{p}_proj" for p in "kv"))
                linear(f"{here}/attention/linear_2", f"{there}.encoder_attn.out_proj")
    linear("encoder/conv1", "model.encoder.conv1")
    linear("encoder/conv2", "model.encoder.conv2")
    tensors["decoder/embeddings/weight"] = hf("model.decoder.embed_tokens.weight")
    return tensors


ALIASES = {"decoder/projection/weight": "decoder/embeddings/weight"}


def write_folder(folder: Path, tensors: dict[str, np.ndarray] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.bin").write_bytes(container(toy_tensors() if tensors is None else tensors, ALIASES))
    (folder / "config.json").write_text(json.dumps({"suppress_ids": [3, 4], "suppress_ids_begin": [2, 60]}))
    toy_backend().save(str(folder / "tokenizer.json"))
    return folder
