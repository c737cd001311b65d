"""Whisper's text decoder: learned positions, self-attention over paged KV, cross-attention over what the encoder heard.

Self-attention meets its cache through the same `Attend` as every text decoder. The keys and values of cross-attention
depend on the audio alone: `cross_kv` computes them once a window, they are a KV group of their own (`kv.py`), and
`CrossAttend` is how a layer reads them. `paged_cross_attend` is the reference; each row of a step has its own entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from triptych.models.attend import KV, Attend, paged_attend, write_pages
from triptych.models.attention import ragged_paged_cross_attention
from triptych.models.decoder import Embedding, FusedLinear, Linear
from triptych.models.ragged import Ragged
from triptych.models.speech.config import WhisperConfig
from triptych.models.speech.layers import Ffn, LayerNorm, Projections, whisper_heads
from triptych.sharding.heads import padded_size
from triptych.sharding.rules import ShardingRules

States = Float[Array, "entries kv_heads head_dim"]


class CrossAttend(Protocol):
    """Attends a step's queries to all the entries of their rows in one layer's cross-attention cache."""

    def __call__(self, q: Float[Array, "tokens heads head_dim"], kv: KV) -> Float[Array, "tokens heads head_dim"]: ...


@partial(jax.tree_util.register_dataclass, data_fields=("kv_lens", "page_indices"), meta_fields=())
@dataclass(frozen=True)
class CrossRows:
    """What each row of a step hears: its entries in the cross group (0 for a padding row) and their block table."""

    kv_lens: Int[Array, "rows"]
    page_indices: Int[Array, "rows width"]


class CrossAttention(nnx.Module):
    """Queries from the text, keys and values from the audio. As in `Projections`, the keys' bias is zero."""

    def __init__(self, config: WhisperConfig, rules: ShardingRules, dtype: jnp.dtype) -> None:
        layout = whisper_heads(config, rules)
        q_size, kv_size = layout.heads_total * config.head_dim, layout.kv_heads_total * config.head_dim
        self.q = Linear(config.hidden_size, q_size, True, dtype)
        self.kv = FusedLinear(config.hidden_size, (kv_size, kv_size), "kv", True, rules, dtype)
        self.o = Linear(q_size, config.hidden_size, True, dtype)
        self.head_dim, self.rules = config.head_dim, rules

    def keys_values(self, states: Float[Array, "entries hidden"]) -> tuple[States, States]:
        """What the cache holds of encoder states."""
        k, v = (part.reshape(states.shape[0], -1, self.head_dim) for part in self.kv(states))
        return tuple(self.rules.constrain(part, "tokens", "kv_heads", "head_dim") for part in (k, v))  # pyright: ignore[reportReturnType]

    def __call__(self, x: Float[Array, "tokens hidden"], kv: KV, attend: CrossAttend) -> Float[Array, "tokens hidden"]:
        q = self.rules.constrain(self.q(x).reshape(x.shape[0], -1, self.head_dim), "tokens", "heads", "head_dim")
        attended = self.rules.constrain(attend(q, kv), "tokens", "heads", "head_dim")
        return self.o(attended.reshape(x.shape[0], -1))


class DecoderLayer(nnx.Module):
    """Self-attention, cross-attention and FFN, pre-norm, with residuals."""

    def __init__(self, config: WhisperConfig, rules: ShardingRules, dtype: jnp.dtype) -> None:
        self.attention_norm = LayerNorm(config.hidden_size, dtype)
        self.attention = Projections(config, rules, dtype)
        self.cross_norm = LayerNorm(config.hidden_size, dtype)
        self.cross = CrossAttention(config, rules, dtype)
        self.ffn_norm = LayerNorm(config.hidden_size, dtype)
        self.ffn = Ffn(config, rules, dtype)
        self.rules = rules

    def __call__(
        self, x: Float[Array, "tokens hidden"], kv: KV, attend: Attend, cross_kv: KV, cross_attend: CrossAttend
    ) -> tuple[Float[Array, "tokens hidden"], KV]:
        q, k, v = self.attention.split(self.attention_norm(x))
        attended, kv = attend(q, k, v, kv, None)
        x = self.rules.constrain(x + self.attention.join(attended), "tokens", "hidden")
        x = self.rules.constrain(x + self.cross(self.cross_norm(x), cross_kv, cross_attend), "tokens", "hidden")
        return self.rules.constrain(x + self.ffn(self.ffn_norm(x)), "tokens", "hidden"), kv


class WhisperDecoder(nnx.Module):
    """Token and position embeddings, layers and final norm on the mesh of `rules`; the output head is the embedding."""

    def __init__(self, config: WhisperConfig, rules: ShardingRules, dtype: jnp.dtype) -> None:
        self.config, self.rules = config, rules
        self.embedding = Embedding(padded_size(config.vocab_size, rules.tp), config.hidden_size, dtype)
        self.positions = Embedding(config.max_position, config.hidden_size, dtype)
        self.layers = nnx.List([DecoderLayer(config, rules, dtype) for _ in range(config.decoder_layers)])
        self.norm = LayerNorm(config.hidden_size, dtype)

    def embed(self, tokens: Int[Array, "tokens"], positions: Int[Array, "tokens"]) -> Float[Array, "tokens hidden"]:
        """Hidden states of token ids at their positions, which must lie below the config's `max_position`."""
        return self.rules.constrain(self.embedding(tokens) + self.positions(positions), "tokens", "hidden")

    def head(self, x: Float[Array, "rows hidden"]) -> Float[Array, "rows vocab"]:
        """Logits over the logical vocabulary, float32 and replicated, from hidden states after the final norm."""
        # First where the weight lies, as in `models.decoder.Decoder.head`.
        logits = self.rules.constrain(self.embedding.logits(x), "tokens", "vocab")
        return self.rules.constrain(logits)[:, : self.config.vocab_size]


def cross_kv(
    decoder: WhisperDecoder, states: Float[Array, "entries hidden"], layers: range | None = None
) -> tuple[tuple[States, States], ...]:
    """Keys and values of encoder states for a range of layers (all by default): a pair a layer, computed once a window.

    States of several windows may follow one another: an entry depends on its own state only.
    """
    layers = range(decoder.config.decoder_layers) if layers is None else layers
    return tuple(decoder.layers[index].cross.keys_values(states) for index in layers)


def write_cross(
    pools: Sequence[KV], entries: Sequence[tuple[States, States]], write_index: Int[Array, "entries"]
) -> tuple[KV, ...]:
    """Put what `cross_kv` computed into the pages of the cross group, at slots page * page_size + offset."""
    return tuple(
        (write_pages(pages[0], new[0], write_index), write_pages(pages[1], new[1], write_index))
        for pages, new in zip(pools, entries, strict=True)
    )


def paged_cross_attend(batch: Ragged, cross: CrossRows, scale: float, tp: int) -> CrossAttend:
    """The reference `CrossAttend`: the queries of `batch`, row by row, over the pages that `cross` names."""

    def attend(q: Array, kv: KV) -> Array:
        return ragged_paged_cross_attention(
            q,
            kv[0],
            kv[1],
            cross.kv_lens,
            cross.page_indices,
            batch.cu_q_lens,
            decode_rows=batch.decode_rows,
            max_q_len=batch.max_q_len,
            scale=scale,
            tp=tp,
        )

    return attend


def extend_layers(
    decoder: WhisperDecoder,
    x: Float[Array, "tokens hidden"],
    pools: Sequence[KV],
    cross_pools: Sequence[KV],
    batch: Ragged,
    cross: CrossRows,
    layers: range | None = None,
) -> tuple[Float[Array, "tokens hidden"], tuple[KV, ...]]:
    """Run a range of layers (all by default) on hidden states; both sequences of pools hold one pair of pages a layer."""
    layers = range(decoder.config.decoder_layers) if layers is None else layers
    if not len(layers) == len(pools) == len(cross_pools):
        raise ValueError(f"{len(layers)} layers need as many pools, got {len(pools)} and {len(cross_pools)}")
    scale, tp = decoder.config.head_dim**-0.5, decoder.rules.tp
    attend, cross_attend = paged_attend(batch, scale, tp), paged_cross_attend(batch, cross, scale, tp)
    written: list[KV] = []
    for index, kv, heard in zip(layers, pools, cross_pools, strict=True):
        x, kv = decoder.layers[index](x, kv, attend, heard, cross_attend)
        written.append(kv)
    return x, tuple(written)


def extend(
    decoder: WhisperDecoder, pools: Sequence[KV], cross_pools: Sequence[KV], batch: Ragged, cross: CrossRows
) -> tuple[Float[Array, "tokens hidden"], tuple[KV, ...]]:
    """One ragged step over text; the cross pools are only read. Hidden states are final-normed."""
    x = decoder.embed(batch.tokens, batch.positions)
    x, written = extend_layers(decoder, x, pools, cross_pools, batch, cross)
    return decoder.norm(x), written
