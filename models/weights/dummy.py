"""Random weights for presets: cheap, reproducible, and the same numbers however they are sliced over devices.

Every row of a matrix is a window into one block of random numbers of that tensor, at an offset drawn for the row. That
costs a copy instead of a random draw per weight, which for an 8B model is seconds instead of minutes.
"""

import zlib
from collections.abc import Collection, Mapping

import numpy as np

from triptych.models.config import ModelConfig

# Numbers to choose windows from, beyond one row: enough that rows of a large matrix rarely overlap much.
SPREAD = 1 << 16


class RandomSource:
    """A `TensorSource` of random weights: projections with variance 1 / inputs, norms of one, small biases."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> None:
        self._shapes = dict(shapes)
        self.seed = seed

    def names(self) -> Collection[str]:
        return self._shapes.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def read(self, name: str, slices: tuple[slice, ...]) -> np.ndarray:
        shape = self.shape(name)
        if len(shape) == 1:
            return self._vector(name, shape[0])[slices[0]]
        rows, columns = (range(*part.indices(size)) for part, size in zip(slices, shape, strict=True))
        generator = self._generator(name)
        block = generator.standard_normal(shape[1] + SPREAD, dtype=np.float32) * np.float32(shape[1] ** -0.5)
        offsets = generator.integers(0, SPREAD, shape[0])
        windows = np.lib.stride_tricks.sliding_window_view(block, len(columns))
        return windows[offsets[rows.start : rows.stop] + columns.start]

    def _vector(self, name: str, size: int) -> np.ndarray:
        if name.endswith("norm.weight"):
            return np.ones(size, np.float32)
        return self._generator(name).standard_normal(size, dtype=np.float32) * np.float32(0.02)

    def _generator(self, name: str) -> np.random.Generator:
        return np.random.default_rng((self.seed, zlib.crc32(name.encode())))


class DummySource(RandomSource):
    """The random weights of a decoder."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__(dict(_hf_shapes(config)), seed)


def _hf_shapes(config: ModelConfig) -> list[tuple[str, tuple[int, ...]]]:
    hidden, ffn = config.hidden_size, config.intermediate_size
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    vocab = (config.vocab_size, hidden)
    shapes: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", vocab), ("model.norm.weight", (hidden,))]
    if not config.tie_embeddings:
        shapes.append(("lm_head.weight", vocab))
    linears = (
        ("self_attn.q_proj", q_size, hidden, config.qkv_bias),
        ("self_attn.k_proj", kv_size, hidden, config.qkv_bias),
        ("self_attn.v_proj", kv_size, hidden, config.qkv_bias),
        ("self_attn.o_proj", hidden, q_size, config.o_bias),
        ("mlp.gate_proj", ffn, hidden, config.mlp_bias),
        ("mlp.up_proj", ffn, hidden, config.mlp_bias),
        ("mlp.down_proj", hidden, ffn, config.mlp_bias),
    )
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        for name, outputs, inputs, bias in linears:
            shapes.append((f"{prefix}{name}.weight", (outputs, inputs)))
            if bias:
                shapes.append((f"{prefix}{name}.bias", (outputs,)))
        shapes += [(f"{prefix}{norm}.weight", (hidden,)) for norm in ("input_layernorm", "post_attention_layernorm")]
        if config.qk_norm:
            shapes += [(f"{prefix}self_attn.{norm}.weight", (config.head_dim,)) for norm in ("q_norm", "k_norm")]
    return shapes
