"""The KV cache as a model declares it: groups of layers that share block tables, prefix keys and manifests. No JAX.

A text decoder has one group, over all layers. Sliding-window layers are in it too: they keep every page and mask what
lies outside the window, which costs memory and no correctness. A group of kind "window" with a length rule of its own
fits this type. A decoder with cross-attention has a second group, of kind "cross" (`models/speech/kv.py`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from triptych.models.config import ModelConfig

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

CODE_BYTES = {"int8": 1, "float8_e4m3fn": 1}
"""Dtypes of codes: an entry of such a group (a KV head's keys or values of one token) has a scale."""

KV_CODES = {"int8": "int8", "fp8": "float8_e4m3fn"}
"""The same by the names of settings."""

SCALE_DTYPE, SCALE_BYTES = "float32", 4


@dataclass(frozen=True)
class KVGroup:
    """Layers with the same cache geometry. Heads are logical ones; `sharding/heads.py` says how devices hold them.

    A sequence has an entry for each of its tokens, or, if `length` is given, exactly so many from the start: cross-attention
    reads what an encoder saw, however much text there is.
    """

    name: str
    kind: Literal["full", "window", "cross"]
    layers: tuple[int, ...]
    num_kv_heads: int
    head_dim: int
    dtype: str
    window: int | None = None
    length: int | None = None

    @property
    def scales(self) -> str:
        """Dtype of the scales that stand beside the codes; empty where the numbers themselves are kept."""
        return SCALE_DTYPE if self.dtype in CODE_BYTES else ""

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one token in all layers of the group, scales included, without padding or replication."""
        entry = (
            self.head_dim * CODE_BYTES[self.dtype] + SCALE_BYTES
            if self.scales
            else self.head_dim * DTYPE_BYTES[self.dtype]
        )
        return 2 * len(self.layers) * self.num_kv_heads * entry


def kv_groups(config: ModelConfig, dtype: str) -> tuple[KVGroup, ...]:
    """The groups of a model whose cache is kept in `dtype`, a key of DTYPE_BYTES or of CODE_BYTES."""
    if dtype not in DTYPE_BYTES | CODE_BYTES:
        raise ValueError(f"KV dtype {dtype!r} is unknown; known: {', '.join(DTYPE_BYTES | CODE_BYTES)}")
    layers = tuple(range(config.num_layers))
    return (KVGroup("self", "full", layers, config.num_kv_heads, config.head_dim, dtype),)


def bytes_per_token(groups: Iterable[KVGroup]) -> int:
    """Bytes that one cached token takes over all groups."""
    return sum(group.bytes_per_token for group in groups)
