"""Weights from a GGUF file as a `TensorSource`: Hugging Face names, [out, in] shapes, half-split rotary order.

Block-quantised tensors are dequantised as they are read, only the blocks that a slice touches; the `gguf` package has
the arithmetic of each format. Unquantised ones are read as stored.

Files of the llama architecture have the rows of q and k reordered so that rotation pairs neighbours (x0, x1); Hugging
Face pairs halves (x0, x[d/2]). Rows are put back while reading, head by head.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from triptych.models.config import ModelConfig
from triptych.models.errors import WeightsError
from triptych.models.weights.gguf_config import gguf_model_config
from triptych.models.weights.gguf_file import GGUFFile, GGUFTensor, open_gguf

__all__ = ["GGUFSource", "open_gguf_model"]

# Values of ggml_type that numpy reads directly.
_PLAIN = {0: np.dtype(np.float32), 1: np.dtype(np.float16), 30: np.dtype(ml_dtypes.bfloat16)}

_MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_DERIVED = {"rope_freqs.weight"}  # part of the configuration, see gguf_config.py


def open_gguf_model(path: Path) -> tuple[ModelConfig, GGUFSource]:
    """Configuration and tensors of one file. Raises WeightsError or UnsupportedModelError."""
    file = open_gguf(path)
    config = gguf_model_config(file)
    return config, GGUFSource(file, config)


class GGUFSource:
    """The tensors of one open file."""

    def __init__(self, file: GGUFFile, config: ModelConfig) -> None:
        self._file = file
        self._tensors = {_hf_name(name): tensor for name, tensor in file.tensors.items() if name not in _DERIVED}
        self._interleaved_heads: Mapping[str, int] = {}
        if file.metadata["general.architecture"] == "llama":
            self._interleaved_heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def read(self, name: str, slices: tuple[slice, ...]) -> np.ndarray:
        """The selected part: float16, bfloat16 and float32 as stored, quantised kinds as float32."""
        tensor = self._tensors[name]
        heads = self._interleaved_heads.get(name.split(".")[-2])
        rows: slice | np.ndarray = slices[0]
        if heads is not None:
            rows = interleaved_rows(np.arange(tensor.shape[0])[slices[0]], tensor.shape[0] // heads)
        if tensor.kind in _PLAIN:
            return self._bytes(tensor, tensor.shape, _PLAIN[tensor.kind])[(rows, *slices[1:])]
        return self._dequantised(tensor, rows, slices)

    def _dequantised(self, tensor: GGUFTensor, rows: slice | np.ndarray, slices: tuple[slice, ...]) -> np.ndarray:
        kind, block, block_bytes, dequantize = _quantisation(tensor)
        *leading, width = tensor.shape
        if len(leading) != 1 or width % block:
            raise WeightsError(f"tensor {tensor.name!r} {tensor.shape} of kind {kind.name} is not rows of whole blocks")
        start, stop, _ = slices[1].indices(width)
        first, last = start // block, -(-stop // block)
        blocks = self._bytes(tensor, (leading[0], width // block * block_bytes), np.dtype(np.uint8))
        part = np.ascontiguousarray(blocks[rows, first * block_bytes : last * block_bytes])
        if part.size == 0:
            return np.zeros((part.shape[0], max(stop - start, 0)), np.float32)
        return dequantize(part, kind)[:, start - first * block : stop - first * block]

    def _bytes(self, tensor: GGUFTensor, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        stop = tensor.start + math.prod(shape) * dtype.itemsize
        if stop > self._file.data.size:
            raise WeightsError(
                f"{self._file.path} is cut off: tensor {tensor.name!r} ends at byte {stop} of {self._file.data.size}"
            )
        return self._file.data[tensor.start : stop].view(dtype).reshape(shape)


def interleaved_rows(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """For rows in half-split order, where the interleaved file keeps them: (head, half, pair) -> (head, pair, half)."""
    head, inside = np.divmod(rows, head_dim)
    half, pair = np.divmod(inside, head_dim // 2)
    return head * head_dim + pair * 2 + half


def _hf_name(name: str) -> str:
    """Map "blk.3.attn_q.weight" to "model.layers.3.self_attn.q_proj.weight"; a name without a counterpart stays."""
    if name in _TOP:
        return _TOP[name]
    words = name.split(".")
    if len(words) == 4 and words[0] == "blk" and words[2] in _MODULES:
        return f"model.layers.{words[1]}.{_MODULES[words[2]]}.{words[3]}"
    return name


def _quantisation(tensor: GGUFTensor) -> tuple[Any, int, int, Any]:
    """The kind, its values and bytes per block, and the function that expands it."""
    # Imported here because reading a configuration and a tokenizer from a file must not need the package.
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        kind = GGMLQuantizationType(tensor.kind)
        block, block_bytes = GGML_QUANT_SIZES[kind]
        dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError):
        raise WeightsError(
            f"tensor {tensor.name!r} has ggml type {tensor.kind}, which the installed gguf package cannot dequantise; "
            "it can: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and the K-quants"
        ) from None
    return kind, block, block_bytes, dequantize
