"""How a decoder layer meets its cache, and what else it does beside its products.

`Attend` is given a step's queries, keys and values with one layer's pages, and returns what was attended and the pages with the new keys in.
`paged_attend` is the reference; a kernel is another function of that shape.

`LayerOps` is how a layer is computed: norms with the sums before them, everything between the projection and what was attended, and products, where a
kernel does more than multiply. `PlainOps` leaves it to the compiler, around any `Attend`; where small kernels cost more than their bytes there are others
(`models/kernels/gpu_ops.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from triptych.models.attention import ragged_paged_attention
from triptych.models.quantised_kv import quantised
from triptych.models.ragged import Ragged
from triptych.models.rope import Rotation, rotate
from triptych.sharding.rules import ShardingRules

if TYPE_CHECKING:
    from triptych.models.decoder import FusedLinear, Linear, RmsNorm

Pages = Shaped[Array, "pages page_size kv_heads *head_dim"]
KV = tuple[Pages, ...]
"""One layer's pages: (keys, values), with (key scales, value scales) behind codes, or as the kernel's `models/pool_layout.py` says."""

Hidden = Float[Array, "tokens hidden"]
Summands = Float[Array, "tokens features"] | Float[Array, "parts tokens features"]
"""What a product gives: its result, or float32 parts of it that are still to be added."""

Heads = Float[Array, "tokens some_heads head_dim"]


def added(summands: Summands, dtype: jnp.dtype) -> Float[Array, "tokens features"]:
    """Parts as their sum, in `dtype`."""
    return summands if summands.ndim == 2 else summands.sum(axis=0).astype(dtype)


def picked(of_tokens: Float[Array, "tokens ..."], wanted: Int[Array, "wanted"] | None) -> Float[Array, "wanted ..."]:
    """What is there of some tokens; None: of all."""
    return of_tokens if wanted is None else of_tokens.at[wanted].get(mode="clip")


def zeros(x: Hidden, rules: ShardingRules) -> Hidden:
    """Zeros in place of a product: on its mesh, without which the first layer is another kind of layer to the tracer, on one device, too."""
    return jax.lax.with_sharding_constraint(jnp.zeros_like(x), rules.sharding("tokens", "hidden"))


class Attend(Protocol):
    """Writes a step's keys and values into one layer's pages and attends the queries that are wanted to them."""

    def __call__(
        self,
        q: Float[Array, "tokens heads head_dim"],
        k: Float[Array, "tokens kv_heads head_dim"],
        v: Float[Array, "tokens kv_heads head_dim"],
        kv: KV,
        window: int | None,
    ) -> tuple[Float[Array, "wanted heads head_dim"], KV]: ...


@dataclass(frozen=True)
class Projected:
    """A layer's queries, keys and values as its product leaves them: neither normed nor rotated.

    Attributes:
        parts: [tokens, heads * head_dim], [tokens, kv_heads * head_dim] twice, in one array: each device's share of the three lies together.
            Or summands of that.
        dtype: of queries, keys and values.
        sizes: (heads, KV heads) of each device.
        by: what queries and keys are rotated by.
        norms: of each head of queries and of keys, before the rotation; None: they are not normed.
    """

    parts: Summands
    dtype: jnp.dtype
    sizes: tuple[int, int]
    head_dim: int
    by: Rotation
    norms: tuple[RmsNorm, RmsNorm] | None
    rules: ShardingRules

    def rotated(self) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values, the first two normed and rotated, by heads."""
        parts, (heads, kv_heads) = added(self.parts, self.dtype), self.sizes
        tokens, ends = parts.shape[0], (heads * self.head_dim, (heads + kv_heads) * self.head_dim)
        by_device = parts.reshape(tokens, self.rules.tp, -1)
        q, k, v = (part.reshape(tokens, -1, self.head_dim) for part in jnp.split(by_device, ends, axis=2))
        q_norm, k_norm = self.norms or (None, None)
        q = rotate(q if q_norm is None else q_norm(q), self.by)
        k = rotate(k if k_norm is None else k_norm(k), self.by)
        q = self.rules.constrain(q, "tokens", "heads", "head_dim")
        k = self.rules.constrain(k, "tokens", "kv_heads", "head_dim")
        return q, k, self.rules.constrain(v, "tokens", "kv_heads", "head_dim")


class LayerOps(Protocol):
    """How a layer is computed, in a step."""

    def product(self, x: Float[Array, "tokens inputs"], linear: Linear | FusedLinear) -> Summands:
        """The layer's own products, for `add_norm` or `attend`."""
        ...

    def nothing(self, x: Hidden, linear: Linear) -> Summands:
        """Zeros in place of what `product` gives, for as many tokens as x has."""
        ...

    def gated(self, x: Hidden, gate_up: FusedLinear) -> Float[Array, "tokens ffn"]:
        """silu(gate) * up of a SwiGLU's first two products."""
        ...

    def add_norm(self, x: Hidden, more: Summands, norm: RmsNorm) -> tuple[Hidden, Hidden]:
        """(x + more, the same normed)."""
        ...

    def attend(
        self, projected: Projected, kv: KV, window: int | None
    ) -> tuple[Float[Array, "wanted heads head_dim"], KV]:
        """What an `Attend` does, from the projection on."""
        ...

    def wanted_of(self, x: Hidden) -> Float[Array, "wanted hidden"]:
        """Of all tokens those that attend (`Ragged.last_only`)."""
        ...


@dataclass(frozen=True)
class PlainOps:
    """By the compiler, around `attends`."""

    attends: Attend
    rules: ShardingRules
    wanted: Int[Array, "wanted"] | None = None

    def product(self, x: Float[Array, "tokens inputs"], linear: Linear | FusedLinear) -> Summands:
        return linear.together(x)

    def nothing(self, x: Hidden, linear: Linear) -> Summands:
        return zeros(x, self.rules)

    def gated(self, x: Hidden, gate_up: FusedLinear) -> Float[Array, "tokens ffn"]:
        gate, up = gate_up(x)
        return jax.nn.silu(gate) * up

    def add_norm(self, x: Hidden, more: Summands, norm: RmsNorm) -> tuple[Hidden, Hidden]:
        x = self.rules.constrain(x + more, "tokens", "hidden")
        return x, norm(x)

    def attend(
        self, projected: Projected, kv: KV, window: int | None
    ) -> tuple[Float[Array, "wanted heads head_dim"], KV]:
        return self.attends(*projected.rotated(), kv, window)

    def wanted_of(self, x: Hidden) -> Float[Array, "wanted hidden"]:
        return picked(x, self.wanted)


def write_pages(
    pages: Pages, new: Shaped[Array, "tokens kv_heads *head_dim"], write_index: Int[Array, "tokens"]
) -> Pages:
    """The pages with each new entry at its slot, page * page_size + offset; slots beyond the pool are dropped."""
    # Indexed by page and offset: through a pool reshaped to [slots, ...] XLA copies the whole donated pool for one token.
    page, offset = jnp.divmod(write_index, pages.shape[1])
    return pages.at[page, offset].set(new.astype(pages.dtype), mode="drop")


def write_kv(
    kv: KV,
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    write_index: Int[Array, "tokens"],
) -> KV:
    """A layer's pages, keys and values apart, with a step's entries in; where they hold codes, as codes and scales."""
    new: tuple[Array, ...] = (k, v)
    if len(kv) > len(new):
        (k_codes, k_scales), (v_codes, v_scales) = quantised(k, kv[0].dtype), quantised(v, kv[1].dtype)
        new = k_codes, v_codes, k_scales, v_scales
    return tuple(write_pages(pages, entries, write_index) for pages, entries in zip(kv, new, strict=True))


def paged_attend(batch: Ragged, scale: float, tp: int) -> Attend:
    """The reference `Attend`: scatter the new keys and values into the pages, then ragged paged attention.

    `tp` is how many devices the heads are spread over.
    """
    queries = batch.queries()

    def attend(q: Array, k: Array, v: Array, kv: KV, window: int | None) -> tuple[Array, KV]:
        k_pages, v_pages, *scales = written = write_kv(kv, k, v, batch.write_index)
        out = ragged_paged_attention(
            picked(q, batch.wanted()),
            k_pages,
            v_pages,
            queries.kv_lens,
            queries.page_indices,
            queries.cu_q_lens,
            decode_rows=queries.decode_rows,
            max_q_len=queries.max_q_len,
            scale=scale,
            window=window,
            tp=tp,
            scales=(scales[0], scales[1]) if scales else None,
        )
        return out, written

    return attend
