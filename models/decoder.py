"""The one decoder definition: Llama 2 and 3, SmolLM2, Mistral, Qwen2/2.5 and Qwen3 dense, as switches of `ModelConfig`.

flax nnx is for definition only. Engines hold a model as a flat tuple of arrays (`models/structure.py`) and merge inside
a traced function, so nothing here runs per step. Programs compose the pieces: `embed`, layers (or a range of them),
`norm`, `head`.

Projections of one input are one parameter: fewer, larger products. Fused weights are [in, out] and the others [out, in],
the order of checkpoints; `models/product.py` says how a single token is multiplied. A quantised weight (`models/quantised.py`)
is a module of arrays in the weight's place. Sizes are physical ones, padded for tensor parallelism as `sharding/heads.py` says; pads are
zeros, results are exact. Parameters and activations are in the parameter dtype; norms, rotary embedding, softmax and
logits are in float32.

How a layer meets the cache, and what it does between its products, is `models/attend.py`.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from triptych.models.attend import KV, LayerOps, PlainOps, Projected, Summands, added, paged_attend
from triptych.models.config import ModelConfig
from triptych.models.product import times, times_transposed
from triptych.models.quantised import ChannelWeight, quantised_weight
from triptych.models.ragged import Ragged
from triptych.models.rope import Rotation, rotation
from triptych.models.weight_formats import WeightFormat
from triptych.sharding.heads import head_layout, padded_size
from triptych.sharding.rules import LogicalAxis, ShardingRules

Stream = tuple[Float[Array, "tokens hidden"], Summands]
"""Hidden states between layers, as two that are to be added: what came into the last FFN, and what came out of it."""


def _zeros(shape: tuple[int, ...], dtype: jnp.dtype) -> nnx.Param[Array]:
    # Only the shape matters: structures are traced abstractly and loaders bring the values.
    return nnx.Param(jnp.zeros(shape, dtype))


class Linear(nnx.Module):
    """x @ weight.T + bias, with the weight as [out, in], or quantised."""

    def __init__(
        self, inputs: int, outputs: int, bias: bool, dtype: jnp.dtype, stored: WeightFormat | None = None
    ) -> None:
        self.weight: nnx.Param[Array] | Any = (
            _zeros((outputs, inputs), dtype) if stored is None else quantised_weight(stored, outputs, inputs, dtype)
        )
        self.bias = _zeros((outputs,), dtype) if bias else None

    def together(self, x: Float[Array, "tokens inputs"]) -> Float[Array, "tokens outputs"]:
        """The product."""
        weight = self.weight
        out = times_transposed(x, weight[...]) if isinstance(weight, nnx.Param) else weight.times(x)
        return out if self.bias is None else out + self.bias[...]

    __call__ = together


class FusedLinear(nnx.Module):
    """Several projections of one input: x @ weight + bias, with the weight as [in, out] or quantised, split into its parts.

    The outputs of a device lie together, in the order of `FUSED_AXES`, so splitting moves nothing between devices.
    """

    def __init__(
        self,
        inputs: int,
        outputs: tuple[int, ...],
        axis: LogicalAxis,
        bias: bool,
        rules: ShardingRules,
        dtype: jnp.dtype,
        stored: WeightFormat | None = None,
    ) -> None:
        self.weight: nnx.Param[Array] | Any = (
            _zeros((inputs, sum(outputs)), dtype)
            if stored is None
            else quantised_weight(stored, sum(outputs), inputs, dtype)
        )
        self.bias = _zeros((sum(outputs),), dtype) if bias else None
        self.ends = tuple(accumulate(size // rules.tp for size in outputs))
        self.axis: LogicalAxis = axis
        self.rules = rules

    def __call__(self, x: Float[Array, "tokens inputs"]) -> tuple[Float[Array, "tokens outputs"], ...]:
        by_device = self.together(x).reshape(x.shape[0], self.rules.tp, -1)
        return tuple(part.reshape(x.shape[0], -1) for part in jnp.split(by_device, self.ends[:-1], axis=2))

    def together(self, x: Float[Array, "tokens inputs"]) -> Float[Array, "tokens all_outputs"]:
        """The product before it is split."""
        weight = self.weight
        out = times(x, weight[...]) if isinstance(weight, nnx.Param) else weight.times(x)
        return self.rules.constrain(out if self.bias is None else out + self.bias[...], "tokens", self.axis)


class RmsNorm(nnx.Module):
    """Root mean square norm over the last axis, in float32."""

    def __init__(self, size: int, eps: float, dtype: jnp.dtype) -> None:
        self.weight = _zeros((size,), dtype)
        self.eps = eps

    def __call__(self, x: Float[Array, "... size"]) -> Float[Array, "... size"]:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return self.weight[...] * wide.astype(x.dtype)


class Embedding(nnx.Module):
    """Token embeddings [vocab, hidden]; the transposed use of the same table is the tied output head."""

    def __init__(self, vocab: int, hidden: int, dtype: jnp.dtype, stored: WeightFormat | None = None) -> None:
        self.weight: nnx.Param[Array] | Any = (
            _zeros((vocab, hidden), dtype) if stored is None else ChannelWeight(vocab, hidden, jnp.dtype(jnp.int8))
        )
        self.dtype = dtype

    def __call__(self, tokens: Int[Array, "tokens"]) -> Float[Array, "tokens hidden"]:
        weight = self.weight
        if isinstance(weight, nnx.Param):
            return weight[...].at[tokens].get(mode="clip")
        return weight.rows(tokens, self.dtype)

    def logits(self, x: Float[Array, "rows hidden"]) -> Float[Array, "rows vocab"]:
        weight = self.weight
        if isinstance(weight, nnx.Param):
            return jnp.einsum("ri,vi->rv", x, weight[...], preferred_element_type=jnp.float32)
        return weight.logits(x)


class Attention(nnx.Module):
    """Projections around what a step's `LayerOps` attend with."""

    def __init__(
        self,
        config: ModelConfig,
        window: int | None,
        rules: ShardingRules,
        dtype: jnp.dtype,
        stored: WeightFormat | None,
    ) -> None:
        layout = head_layout(config.num_heads, config.num_kv_heads, rules.tp)
        q_size, kv_size = layout.heads_total * config.head_dim, layout.kv_heads_total * config.head_dim
        sizes = (q_size, kv_size, kv_size)
        self.qkv = FusedLinear(config.hidden_size, sizes, "qkv", config.qkv_bias, rules, dtype, stored)
        self.o = Linear(q_size, config.hidden_size, config.o_bias, dtype, stored)
        self.q_norm = RmsNorm(config.head_dim, config.rms_norm_eps, dtype) if config.qk_norm else None
        self.k_norm = RmsNorm(config.head_dim, config.rms_norm_eps, dtype) if config.qk_norm else None
        self.sizes = (layout.heads_total // rules.tp, layout.kv_heads_total // rules.tp)
        self.head_dim, self.window, self.rules = config.head_dim, window, rules

    def __call__(self, x: Float[Array, "tokens hidden"], by: Rotation, kv: KV, ops: LayerOps) -> tuple[Summands, KV]:
        norms = None if self.q_norm is None or self.k_norm is None else (self.q_norm, self.k_norm)
        projected = Projected(ops.product(x, self.qkv), x.dtype, self.sizes, self.head_dim, by, norms, self.rules)
        attended, kv = ops.attend(projected, kv, self.window)
        attended = self.rules.constrain(attended, "tokens", "heads", "head_dim")
        return ops.product(attended.reshape(attended.shape[0], -1), self.o), kv


class Ffn(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(
        self, config: ModelConfig, rules: ShardingRules, dtype: jnp.dtype, stored: WeightFormat | None
    ) -> None:
        width = padded_size(config.intermediate_size, rules.tp)
        self.gate_up = FusedLinear(config.hidden_size, (width, width), "gate_up", config.mlp_bias, rules, dtype, stored)
        self.down = Linear(width, config.hidden_size, config.mlp_bias, dtype, stored)
        self.rules = rules

    def __call__(self, x: Float[Array, "tokens hidden"], ops: LayerOps) -> Summands:
        return ops.product(self.rules.constrain(ops.gated(x, self.gate_up), "tokens", "ffn"), self.down)


class Layer(nnx.Module):
    """Pre-norm attention and FFN with residuals. The FFN's is not added yet: the next layer's norm begins with that."""

    def __init__(
        self,
        config: ModelConfig,
        window: int | None,
        rules: ShardingRules,
        dtype: jnp.dtype,
        stored: WeightFormat | None,
    ) -> None:
        self.attention_norm = RmsNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.attention = Attention(config, window, rules, dtype, stored)
        self.ffn_norm = RmsNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.ffn = Ffn(config, rules, dtype, stored)
        self.rules = rules

    def begin(self, x: Float[Array, "tokens hidden"], ops: LayerOps) -> Stream:
        """Hidden states before the layer, where they are known as a whole."""
        return x, ops.nothing(x, self.ffn.down)

    def __call__(self, stream: Stream, by: Rotation, kv: KV, ops: LayerOps) -> tuple[Stream, KV]:
        x, normed = ops.add_norm(*stream, self.attention_norm)
        attended, kv = self.attention(normed, by, kv, ops)
        x, normed = ops.add_norm(ops.wanted_of(x), attended, self.ffn_norm)
        return (x, self.ffn(normed, ops)), kv


class Decoder(nnx.Module):
    """Embedding, layers, final norm and output head, on the mesh of `rules`, with matrices as `stored` says (None: in dtype)."""

    def __init__(
        self, config: ModelConfig, rules: ShardingRules, dtype: jnp.dtype, stored: WeightFormat | None = None
    ) -> None:
        tables = None if stored is None else stored.of_tables
        vocab = padded_size(config.vocab_size, rules.tp)
        self.config, self.rules = config, rules
        self.embedding = Embedding(vocab, config.hidden_size, dtype, tables)
        self.layers = nnx.List([Layer(config, window, rules, dtype, stored) for window in config.layer_windows])
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.lm_head = None if config.tie_embeddings else Embedding(vocab, config.hidden_size, dtype, tables)

    def embed(self, tokens: Int[Array, "tokens"]) -> Float[Array, "tokens hidden"]:
        """Hidden states of token ids. Media embeddings replace rows of the result."""
        return self.rules.constrain(self.embedding(tokens), "tokens", "hidden")

    def whole(self, stream: Stream) -> Float[Array, "tokens hidden"]:
        """Hidden states behind a layer."""
        x, more = stream
        return self.rules.constrain(x + added(more, x.dtype), "tokens", "hidden")

    def rotation(self, positions: Int[Array, "*three tokens"]) -> Rotation:
        """What every layer rotates this step's queries and keys by. Positions are [3, tokens] for M-RoPE with media."""
        return rotation(self.config.rope, self.config.head_dim, positions)

    def head(self, x: Float[Array, "rows hidden"]) -> Float[Array, "rows vocab"]:
        """Logits over the logical vocabulary, float32 and replicated, from hidden states after the final norm."""
        logits = (self.embedding if self.lm_head is None else self.lm_head).logits(x)
        # First where the weight lies: asked for whole logits at once, the compiler gathers the weight instead.
        logits = self.rules.constrain(logits, "tokens", "vocab")
        return self.rules.constrain(logits)[:, : self.config.vocab_size]


def extend_layers(
    decoder: Decoder, x: Float[Array, "tokens hidden"], pools: Sequence[KV], batch: Ragged, layers: range | None = None
) -> tuple[Float[Array, "tokens hidden"], tuple[KV, ...]]:
    """Run a range of layers (all by default) on hidden states. `pools` holds the pages of each layer, keys and values apart."""
    layers = range(decoder.config.num_layers) if layers is None else layers
    if len(pools) != len(layers):
        raise ValueError(f"{len(layers)} layers need as many pools, got {len(pools)}")
    attend = paged_attend(batch, decoder.config.head_dim**-0.5, decoder.rules.tp)
    ops, by = PlainOps(attend, decoder.rules), decoder.rotation(batch.positions)
    stream, written = decoder.layers[layers.start].begin(x, ops), list[KV]()
    for index, kv in zip(layers, pools, strict=True):
        stream, kv = decoder.layers[index](stream, by, kv, ops)
        written.append(kv)
    return decoder.whole(stream), tuple(written)


def extend(
    decoder: Decoder, pools: Sequence[KV], batch: Ragged
) -> tuple[Float[Array, "tokens hidden"], tuple[KV, ...]]:
    """One ragged step: prefill, chunk, append, decode, mixed or verification. Hidden states are final-normed."""
    x, written = extend_layers(decoder, decoder.embed(batch.tokens), pools, batch)
    return decoder.norm(x), written
