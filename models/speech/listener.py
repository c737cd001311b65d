"""What an encode instance computes of a window: the encoder's states, and the keys and values that each decoder layer attends to.

Those of cross-attention depend on the audio alone, so they are computed here, once, and are what moves to prefill and decode. The projections are the
decoder's own (`DecoderLayer.cross.kv`); of the decoder nothing else is loaded.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from triptych.models.decoder import FusedLinear
from triptych.models.speech.config import WhisperConfig
from triptych.models.speech.decoder import States
from triptych.models.speech.encoder import WhisperEncoder
from triptych.models.speech.layers import whisper_heads
from triptych.models.speech.mel import log_mel
from triptych.sharding.rules import ShardingRules


class CrossProjection(nnx.Module):
    """Keys and values of one decoder layer's cross-attention, from encoder states."""

    def __init__(self, config: WhisperConfig, rules: ShardingRules, dtype: jnp.dtype) -> None:
        size = whisper_heads(config, rules).kv_heads_total * config.head_dim
        self.kv = FusedLinear(config.hidden_size, (size, size), "kv", True, rules, dtype)
        self.head_dim, self.rules = config.head_dim, rules

    def __call__(self, states: Float[Array, "entries hidden"]) -> tuple[States, States]:
        k, v = (part.reshape(states.shape[0], -1, self.head_dim) for part in self.kv(states))
        return tuple(self.rules.constrain(part, "tokens", "kv_heads", "head_dim") for part in (k, v))  # pyright: ignore[reportReturnType]


class WhisperListener(nnx.Module):
    """The encoder with the cross projections of all decoder layers, on the mesh of `rules`."""

    def __init__(self, config: WhisperConfig, rules: ShardingRules, dtype: jnp.dtype) -> None:
        self.config, self.rules = config, rules
        self.encoder = WhisperEncoder(config, rules, dtype)
        self.cross = nnx.List([CrossProjection(config, rules, dtype) for _ in range(config.decoder_layers)])

    def __call__(self, samples: Float[Array, "windows samples"]) -> tuple[tuple[States, States], ...]:
        """Keys and values of whole windows of 16 kHz audio, a pair a decoder layer: `audio_positions` entries a window, one window after another."""
        config = self.config
        mels = jax.vmap(lambda window: log_mel(window, config.num_mels, config.frames))(samples)
        states = self.encoder(mels).reshape(-1, config.hidden_size)
        return tuple(project(states) for project in self.cross)
