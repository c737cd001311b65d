"""Where weights come from: named tensors that can be read in part. Every file format is one `TensorSource`.

Names, shapes and row orders are those of Hugging Face checkpoints ("model.layers.0.self_attn.q_proj.weight", [out, in],
half-split rotary order), so a format with other conventions converts inside its source. `hf_names` maps a parameter's
path to the names of what it is made of.
"""

from collections.abc import Collection
from typing import Protocol

import numpy as np


class TensorSource(Protocol):
    """Named tensors. Reading a slice costs about the slice; a source keeps no tensor in memory after reading it."""

    def names(self) -> Collection[str]:
        """All tensor names."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's full shape. Raises KeyError for an unknown name."""
        ...

    def read(self, name: str, slices: tuple[slice, ...]) -> np.ndarray:
        """The part of the tensor that `slices` (one per axis, unit steps) select, in its stored dtype."""
        ...


_HF_MODULES = {
    "embedding": ("model.embed_tokens",),
    "norm": ("model.norm",),
    "lm_head": ("lm_head",),
    "attention_norm": ("input_layernorm",),
    "ffn_norm": ("post_attention_layernorm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.o": ("self_attn.o_proj",),
    "attention.q_norm": ("self_attn.q_norm",),
    "attention.k_norm": ("self_attn.k_norm",),
    "ffn.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "ffn.down": ("mlp.down_proj",),
}


def hf_names(path: str) -> tuple[str, ...]:
    """The checkpoint's tensors of a parameter: "layers.0.ffn.down.weight" -> ("model.layers.0.mlp.down_proj.weight",).

    A fused parameter has several, in the order of `sharding/rules.py`'s `FUSED_AXES`.
    """
    words = path.split(".")
    if words[0] == "layers":
        modules = _HF_MODULES[".".join(words[2:-1])]
        return tuple(f"model.layers.{words[1]}.{module}.{words[-1]}" for module in modules)
    return tuple(f"{module}.{words[-1]}" for module in _HF_MODULES[".".join(words[:-1])])
