"""The one vision encoder definition: CLIP, SigLIP, DINOv2, InternViT and Qwen2.5-VL's, as switches of `VisionConfig`.

As with the decoder, flax nnx is for definition only: engines hold a flat tuple of arrays (`models/vision/structure.py`)
and merge inside a traced function. The input is one bucket of packed patches (`models/vision/packing.py`); what comes out
are rows for the language model's embedding.

Pixels come as bytes, a quarter of the traffic of floats, and are normalised here. Attention and FFN are split over
devices by the decoder's rules; embedding, norms and connector are replicated. Parameters and activations are in the
parameter dtype; norms and softmax are computed in float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from triptych.models.decoder import FusedLinear, Linear, RmsNorm
from triptych.models.rope import Rotation, rotate
from triptych.models.vision.attention import span_attention
from triptych.models.vision.config import Activation, ConnectorConfig, Norm, VisionConfig
from triptych.models.vision.packing import PackedPatches
from triptych.sharding.heads import head_layout, padded_size
from triptych.sharding.rules import ShardingRules

# Full brightness of a byte.
WHITE = 255.0


def _quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": _quick_gelu,
    "silu": jax.nn.silu,
}


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, in float32."""

    def __init__(self, size: int, eps: float, dtype: jnp.dtype) -> None:
        self.weight = nnx.Param(jnp.zeros((size,), dtype))
        self.bias = nnx.Param(jnp.zeros((size,), dtype))
        self.eps = eps

    def __call__(self, x: Float[Array, "... size"]) -> Float[Array, "... size"]:
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(axis=-1, keepdims=True)
        wide = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.eps)
        return (wide * self.weight[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)).astype(x.dtype)


def _norm(kind: Norm, size: int, eps: float, dtype: jnp.dtype) -> LayerNorm | RmsNorm:
    return LayerNorm(size, eps, dtype) if kind == "layer" else RmsNorm(size, eps, dtype)


class VisionAttention(nnx.Module):
    """Attention within spans, with rotary positions where the family has them."""

    def __init__(self, config: VisionConfig, rules: ShardingRules, dtype: jnp.dtype) -> None:
        size = head_layout(config.num_heads, config.num_heads, rules.tp).heads_total * config.head_dim
        self.qkv = FusedLinear(config.hidden_size, (size, size, size), "qkv", config.qkv_bias, rules, dtype)
        self.o = Linear(size, config.hidden_size, True, dtype)
        self.head_dim, self.rules = config.head_dim, rules

    def __call__(
        self, x: Float[Array, "slots hidden"], by: Rotation | None, spans: Int[Array, "slots 2"]
    ) -> Float[Array, "slots hidden"]:
        slots = x.shape[0]
        q, k, v = (part.reshape(slots, -1, self.head_dim) for part in self.qkv(x))
        if by is not None:
            q, k = rotate(q, by), rotate(k, by)
        q, k, v = (self.rules.constrain(part, "tokens", "heads", "head_dim") for part in (q, k, v))
        attended = span_attention(q, k, v, spans, self.head_dim**-0.5)
        attended = self.rules.constrain(attended, "tokens", "heads", "head_dim")
        return self.o(attended.reshape(slots, -1))


class Mlp(nnx.Module):
    """down(act(up(x)))."""

    def __init__(self, config: VisionConfig, rules: ShardingRules, dtype: jnp.dtype) -> None:
        width = padded_size(config.intermediate_size, rules.tp)
        self.up = Linear(config.hidden_size, width, config.mlp_bias, dtype)
        self.down = Linear(width, config.hidden_size, config.mlp_bias, dtype)
        self.activation: Activation = config.activation
        self.rules = rules

    def __call__(self, x: Float[Array, "slots hidden"]) -> Float[Array, "slots hidden"]:
        return self.down(self.rules.constrain(ACTIVATIONS[self.activation](self.up(x)), "tokens", "ffn"))


class GatedMlp(nnx.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, config: VisionConfig, rules: ShardingRules, dtype: jnp.dtype) -> None:
        width = padded_size(config.intermediate_size, rules.tp)
        self.gate_up = FusedLinear(config.hidden_size, (width, width), "gate_up", config.mlp_bias, rules, dtype)
        self.down = Linear(width, config.hidden_size, config.mlp_bias, dtype)
        self.activation: Activation = config.activation
        self.rules = rules

    def __call__(self, x: Float[Array, "slots hidden"]) -> Float[Array, "slots hidden"]:
        gate, up = self.gate_up(x)
        return self.down(self.rules.constrain(ACTIVATIONS[self.activation](gate) * up, "tokens", "ffn"))


class Scale(nnx.Module):
    """Learned factors, one a channel."""

    def __init__(self, size: int, dtype: jnp.dtype) -> None:
        self.weight = nnx.Param(jnp.zeros((size,), dtype))

    def __call__(self, x: Float[Array, "slots size"]) -> Float[Array, "slots size"]:
        return x * self.weight[...]


class VisionLayer(nnx.Module):
    """Pre-norm attention and FFN with residuals."""

    def __init__(self, config: VisionConfig, rules: ShardingRules, dtype: jnp.dtype) -> None:
        size = config.hidden_size
        self.attention_norm = _norm(config.norm, size, config.norm_eps, dtype)
        self.attention = VisionAttention(config, rules, dtype)
        self.attention_scale = Scale(size, dtype) if config.layer_scale else None
        self.ffn_norm = _norm(config.norm, size, config.norm_eps, dtype)
        self.ffn = (GatedMlp if config.gated else Mlp)(config, rules, dtype)
        self.ffn_scale = Scale(size, dtype) if config.layer_scale else None
        self.rules = rules

    def __call__(
        self, x: Float[Array, "slots hidden"], by: Rotation | None, spans: Int[Array, "slots 2"]
    ) -> Float[Array, "slots hidden"]:
        attended = self.attention(self.attention_norm(x), by, spans)
        x = x + (attended if self.attention_scale is None else self.attention_scale(attended))
        fed = self.ffn(self.ffn_norm(x))
        x = x + (fed if self.ffn_scale is None else self.ffn_scale(fed))
        return self.rules.constrain(x, "tokens", "hidden")


class Connector(nnx.Module):
    """Merges neighbouring patches and projects them, level by level, to the language model's hidden size."""

    def __init__(self, config: ConnectorConfig, features: int, dtype: jnp.dtype) -> None:
        features //= config.levels
        merged, eps = features * config.merge**2, config.norm_eps
        self.patch_norm = _norm(config.patch_norm, features, eps, dtype) if config.patch_norm else None
        self.merged_norm = _norm(config.merged_norm, merged, eps, dtype) if config.merged_norm else None
        self.first = Linear(merged, config.hidden_size or config.outputs, config.bias, dtype)
        self.second = Linear(config.hidden_size, config.outputs, config.bias, dtype) if config.hidden_size else None
        self.activation: Activation = config.activation
        self.levels = config.levels

    def __call__(
        self, features: Float[Array, "slots features"], output_slots: Int[Array, "rows merged"]
    ) -> Float[Array, "rows outputs"]:
        levels = jnp.split(features, self.levels, axis=-1)
        return jnp.concatenate([self._project(level, output_slots) for level in levels], axis=-1)

    def _project(
        self, features: Float[Array, "slots features"], output_slots: Int[Array, "rows merged"]
    ) -> Float[Array, "rows outputs"]:
        features = features if self.patch_norm is None else self.patch_norm(features)
        merged = features.at[output_slots].get(mode="clip").reshape(output_slots.shape[0], -1)
        out = self.first(merged if self.merged_norm is None else self.merged_norm(merged))
        return out if self.second is None else self.second(ACTIVATIONS[self.activation](out))


class VisionEncoder(nnx.Module):
    """Patch embedding, layers and connector, on the mesh of `rules`."""

    def __init__(self, config: VisionConfig, rules: ShardingRules, dtype: jnp.dtype) -> None:
        self.config, self.rules, self.dtype = config, rules, dtype
        size = config.hidden_size
        self.patch = Linear(config.patch_dim, size, config.patch_bias, dtype)
        self.class_token = nnx.Param(jnp.zeros((size,), dtype)) if config.class_token else None
        entries = 0 if config.position_grid is None else config.position_grid**2 + config.class_token
        self.positions = nnx.Param(jnp.zeros((entries, size), dtype)) if entries else None
        self.pre_norm = _norm(config.norm, size, config.norm_eps, dtype) if config.pre_norm else None
        self.layers = nnx.List([VisionLayer(config, rules, dtype) for _ in range(config.num_layers)])
        self.final_norm = _norm(config.norm, size, config.norm_eps, dtype) if config.final_norm else None
        self.connector = Connector(config.connector, config.feature_size, dtype) if config.connector else None

    def __call__(self, packed: PackedPatches) -> Float[Array, "rows outputs"]:
        """One row for each entry of `packed.output_slots`. Call it inside a traced function."""
        features = self.features(packed)
        if self.connector is not None:
            return self.rules.constrain(self.connector(features, packed.output_slots), "tokens", "hidden")
        return features.at[packed.output_slots[:, 0]].get(mode="clip")

    def features(self, packed: PackedPatches) -> Float[Array, "slots features"]:
        """The features of every slot, those of several layers side by side."""
        config = self.config
        x = self.embed(packed)
        by = None if config.rope_theta is None else self._rotation(packed, config.rope_theta)
        taken: dict[int, Array] = {}
        for index, layer in enumerate(self.layers):
            windowed = config.window is not None and index not in config.full_layers
            x = layer(x, by, packed.window_spans if windowed else packed.spans)
            if index + 1 in config.feature_layers:
                taken[index + 1] = x if self.final_norm is None else self.final_norm(x)
        return jnp.concatenate([taken[index] for index in config.feature_layers], axis=-1)

    def embed(self, packed: PackedPatches) -> Float[Array, "slots hidden"]:
        """Patches, class tokens and positions as hidden states."""
        x = self.patch(self._normalised(packed.patches).astype(self.dtype))
        if self.class_token is not None:
            x = jnp.where(packed.is_class[:, None], self.class_token[...], x)
        if self.positions is not None:
            entries = self.positions[...].at[packed.position_indices].get(mode="clip")
            weighted = entries.astype(jnp.float32) * packed.position_weights[:, :, None]
            x = x + weighted.sum(axis=1).astype(self.dtype)
        return x if self.pre_norm is None else self.pre_norm(x)

    def _normalised(self, patches: Array) -> Float[Array, "slots patch_dim"]:
        config = self.config
        repeats = config.patch_dim // config.channels
        mean, std = (jnp.repeat(jnp.asarray(values, jnp.float32), repeats) for values in (config.mean, config.std))
        return (patches.astype(jnp.float32) / WHITE - mean) / std

    def _rotation(self, packed: PackedPatches, theta: float) -> Rotation:
        """Half of the rotated pairs turn with the row, half with the column."""
        quarter = self.config.head_dim // 4
        frequencies = theta ** (-jnp.arange(quarter, dtype=jnp.float32) / quarter)
        angles = packed.grid_positions.astype(jnp.float32)[:, :, None] * frequencies
        angles = angles.reshape(angles.shape[0], 2 * quarter)
        return Rotation(jnp.cos(angles), jnp.sin(angles))
