"""The pieces that Whisper's encoder and decoder share: layer norm, the FFN, and the projections of self-attention."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from triptych.models.decoder import FusedLinear, Linear
from triptych.models.speech.config import WhisperConfig
from triptych.sharding.heads import HeadLayout, head_layout, padded_size
from triptych.sharding.rules import ShardingRules

NORM_EPS = 1e-5


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, in float32."""

    def __init__(self, size: int, dtype: jnp.dtype) -> None:
        self.weight = nnx.Param(jnp.zeros((size,), dtype))
        self.bias = nnx.Param(jnp.zeros((size,), dtype))

    def __call__(self, x: Float[Array, "... size"]) -> Float[Array, "... size"]:
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + NORM_EPS)
        return (normed * self.weight[...] + self.bias[...]).astype(x.dtype)


class Ffn(nnx.Module):
    """down(gelu(up(x))), with the exact gelu."""

    def __init__(self, config: WhisperConfig, rules: ShardingRules, dtype: jnp.dtype) -> None:
        width = padded_size(config.intermediate_size, rules.tp)
        self.up = Linear(config.hidden_size, width, True, dtype)
        self.down = Linear(width, config.hidden_size, True, dtype)
        self.rules = rules

    def __call__(self, x: Float[Array, "tokens hidden"]) -> Float[Array, "tokens hidden"]:
        wide = jax.nn.gelu(self.up(x), approximate=False)
        return self.down(self.rules.constrain(wide, "tokens", "ffn"))


class Projections(nnx.Module):
    """Queries, keys and values of self-attention from hidden states, and hidden states from what was attended."""

    def __init__(self, config: WhisperConfig, rules: ShardingRules, dtype: jnp.dtype) -> None:
        layout = whisper_heads(config, rules)
        q_size, kv_size = layout.heads_total * config.head_dim, layout.kv_heads_total * config.head_dim
        # Keys have no bias in the paper's model; theirs is zero.
        self.qkv = FusedLinear(config.hidden_size, (q_size, kv_size, kv_size), "qkv", True, rules, dtype)
        self.o = Linear(q_size, config.hidden_size, True, dtype)
        self.head_dim, self.rules = config.head_dim, rules

    def split(self, x: Float[Array, "tokens hidden"]) -> tuple[Float[Array, "tokens heads head_dim"], ...]:
        """q, k and v."""
        q, k, v = (part.reshape(x.shape[0], -1, self.head_dim) for part in self.qkv(x))
        q = self.rules.constrain(q, "tokens", "heads", "head_dim")
        return q, *(self.rules.constrain(part, "tokens", "kv_heads", "head_dim") for part in (k, v))

    def join(self, attended: Float[Array, "tokens heads head_dim"]) -> Float[Array, "tokens hidden"]:
        """The block's output."""
        attended = self.rules.constrain(attended, "tokens", "heads", "head_dim")
        return self.o(attended.reshape(attended.shape[0], -1))


def whisper_heads(config: WhisperConfig, rules: ShardingRules) -> HeadLayout:
    """How the heads lie on the mesh of `rules`. Raises IncompatibleTpError if they do not fit."""
    return head_layout(config.num_heads, config.num_kv_heads, rules.tp)
