"""Whisper's audio encoder: two convolutions over log-mel frames, positions, and bidirectional pre-norm layers.

A window is always whole: shorter audio is padded with silence before the mel (`mel.py`), because the model was trained on
padded windows and attends to the silence too. Positions are sinusoids that checkpoints store; they are read like weights.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from triptych.models.decoder import Embedding
from triptych.models.speech.config import FRAMES_PER_POSITION, WhisperConfig
from triptych.models.speech.layers import Ffn, LayerNorm, Projections
from triptych.sharding.rules import ShardingRules

KERNEL = 3


class Convolution(nnx.Module):
    """A convolution over time of width 3, one frame of zeros at each end, followed by gelu."""

    def __init__(self, inputs: int, outputs: int, stride: Literal[1, 2], dtype: jnp.dtype) -> None:
        self.weight = nnx.Param(jnp.zeros((outputs, inputs, KERNEL), dtype))
        self.bias = nnx.Param(jnp.zeros((outputs,), dtype))
        self.stride = stride

    def __call__(self, x: Float[Array, "batch frames inputs"]) -> Float[Array, "batch strided outputs"]:
        out = jax.lax.conv_general_dilated(
            x, self.weight[...], (self.stride,), ((1, 1),), dimension_numbers=("NWC", "OIW", "NWC")
        )
        return jax.nn.gelu(out + self.bias[...], approximate=False)


class EncoderLayer(nnx.Module):
    """Bidirectional attention and FFN, pre-norm, with residuals."""

    def __init__(self, config: WhisperConfig, rules: ShardingRules, dtype: jnp.dtype) -> None:
        self.attention_norm = LayerNorm(config.hidden_size, dtype)
        self.attention = Projections(config, rules, dtype)
        self.ffn_norm = LayerNorm(config.hidden_size, dtype)
        self.ffn = Ffn(config, rules, dtype)
        self.rules = rules

    def __call__(self, x: Float[Array, "tokens hidden"], batch: int) -> Float[Array, "tokens hidden"]:
        """`x` are the positions of `batch` windows of equal length, one after another."""
        q, k, v = self.attention.split(self.attention_norm(x))
        by_window = (part.reshape(batch, -1, *part.shape[1:]) for part in (q, k, v))
        attended = jax.nn.dot_product_attention(*by_window)
        x = self.rules.constrain(x + self.attention.join(attended.reshape(q.shape)), "tokens", "hidden")
        return self.rules.constrain(x + self.ffn(self.ffn_norm(x)), "tokens", "hidden")


class WhisperEncoder(nnx.Module):
    """The encoder on the mesh of `rules`."""

    def __init__(self, config: WhisperConfig, rules: ShardingRules, dtype: jnp.dtype) -> None:
        self.config, self.rules, self.dtype = config, rules, dtype
        self.conv1 = Convolution(config.num_mels, config.hidden_size, 1, dtype)
        self.conv2 = Convolution(config.hidden_size, config.hidden_size, FRAMES_PER_POSITION, dtype)
        self.positions = Embedding(config.audio_positions, config.hidden_size, dtype)
        self.layers = nnx.List([EncoderLayer(config, rules, dtype) for _ in range(config.encoder_layers)])
        self.norm = LayerNorm(config.hidden_size, dtype)

    def __call__(self, mels: Float[Array, "batch frames mels"]) -> Float[Array, "batch positions hidden"]:
        """The states of whole windows, final-normed. Raises ValueError for windows of another size."""
        batch, config = mels.shape[0], self.config
        if mels.shape[1:] != (config.frames, config.num_mels):
            raise ValueError(f"a window is {config.frames} frames of {config.num_mels} mel bins, got {mels.shape[1:]}")
        x = self.conv2(self.conv1(mels.astype(self.dtype))) + self.positions.weight[...]
        x = self.rules.constrain(x.reshape(-1, config.hidden_size), "tokens", "hidden")
        for layer in self.layers:
            x = layer(x, batch)
        return self.norm(x).reshape(batch, config.audio_positions, config.hidden_size)
