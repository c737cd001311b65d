"""The `LayerOps` of NVIDIA GPUs: a norm with the sum before it is one kernel, and so is what lies between a projection and attention (`heads_triton.py`).
A few tokens are multiplied with int8 codes by `codes_triton.py`, on one device; all other products are the compiler's.

A prompt that is alone and begins its sequence attends to itself, without pages (`fresh.py`); everything else attends to pages (`gpu.py`). With tensor
parallelism each device runs the kernels on its own heads, and norms on what each holds whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from triptych.models.attend import KV, Hidden, LayerOps, Projected, Summands, picked, write_kv, zeros
from triptych.models.errors import UnsupportedModelError
from triptych.models.kernels.codes_triton import MOST_TOKENS, Tile, codes_gated, codes_product, tile_of
from triptych.models.kernels.fresh import attends_fresh, fresh_attention
from triptych.models.kernels.gpu import Backend, ragged_backend, ragged_paged_attention
from triptych.models.kernels.heads_triton import HeadNorms, rotate_and_write
from triptych.models.kernels.norm_triton import add_norm
from triptych.models.quantised import ChannelWeight
from triptych.models.ragged import Ragged
from triptych.models.rope import Rotation
from triptych.sharding.rules import POOL_AXES, ShardingRules

if TYPE_CHECKING:
    from triptych.models.decoder import FusedLinear, Linear, RmsNorm


def gpu_ops(
    batch: Ragged, scale: float, rules: ShardingRules, backend: Backend, ragged: Backend | None = None
) -> LayerOps:
    """The operations of a step, with decode rows through one of the two kernels. `ragged` attends the other rows; None: what is quicker with prompts here.

    Raises UnsupportedModelError on devices that are neither GPUs nor the CPU, and for Mosaic's kernel on CPU, where it
    takes a minute for a few rows (its test asks for that).
    """
    device = rules.mesh.devices.flat[0]
    interpret = device.platform == "cpu"
    if device.platform not in ("gpu", "cuda", "cpu") or (interpret and backend == "mosaic"):
        raise UnsupportedModelError(
            f"the {backend} attention kernel cannot run on {device.platform}: choose the reference"
        )
    hopper = str(getattr(device, "compute_capability", "")).startswith("9.")
    return GpuOps(batch, scale, rules, backend, ragged, hopper, interpret)


@dataclass(frozen=True)
class GpuOps:
    """One step's. `hopper`: Mosaic can run. `interpret`: on CPU."""

    batch: Ragged
    scale: float
    rules: ShardingRules
    backend: Backend
    ragged: Backend | None
    hopper: bool
    interpret: bool

    def product(self, x: Array, linear: Linear | FusedLinear) -> Summands:
        tile = self._codes_tile(x, linear)
        if tile is None:
            return linear.together(x)
        product = codes_product(x, linear.weight.codes[...], linear.weight.scale[...], tile, self.interpret)
        return product[0] if tile.parts == 1 else product

    def nothing(self, x: Hidden, linear: Linear) -> Summands:
        tile = self._codes_tile(x, linear)
        if tile is None:
            return zeros(x, self.rules)
        # Without a mesh, as a kernel's result.
        return jnp.zeros(x.shape, x.dtype) if tile.parts == 1 else jnp.zeros((tile.parts, *x.shape), jnp.float32)

    def gated(self, x: Hidden, gate_up: FusedLinear) -> Array:
        tile = self._codes_tile(x, gate_up, gated=True)
        if tile is None:
            gate, up = gate_up(x)
            return jax.nn.silu(gate) * up
        return codes_gated(x, gate_up.weight.codes[...], gate_up.weight.scale[...], tile, self.interpret)

    def _codes_tile(self, x: Array, linear: Linear | FusedLinear, gated: bool = False) -> Tile | None:
        """How the kernel for a few tokens and int8 codes is cut; None where it is not for this product."""
        weight = linear.weight
        if not isinstance(weight, ChannelWeight) or weight.codes.dtype != jnp.int8 or linear.bias is not None:
            return None
        if self.rules.tp > 1 or x.shape[0] > MOST_TOKENS or x.dtype.itemsize != 2:
            return None
        outputs, inputs = weight.codes.shape
        return tile_of(outputs // 2 if gated else outputs, inputs, gated)

    def add_norm(self, x: Hidden, more: Summands, norm: RmsNorm) -> tuple[Hidden, Hidden]:
        whole, of_weight = self.rules.sharding("tokens", "hidden").spec, self.rules.sharding("hidden").spec

        def local(x: Array, more: Array, weight: Array) -> tuple[Array, Array]:
            return add_norm(x, more, weight, norm.eps, self.interpret)

        x, normed = self._on_each(local, (whole, whole, of_weight), (whole, whole))(x, more, norm.weight[...])
        # A kernel's results have no mesh. Without one, the next layer is another kind of layer to the tracer, on one device, too.
        return jax.lax.with_sharding_constraint(x, self.rules.sharding("tokens", "hidden")), normed

    def attend(self, projected: Projected, kv: KV, window: int | None) -> tuple[Array, KV]:
        """Pages of codes are written, and tokens normed and rotated for them, by the compiler."""
        whole, spec = PartitionSpec(), self.rules.sharding
        heads, kv_heads = (spec("tokens", axis, "head_dim").spec for axis in ("heads", "kv_heads"))
        pool, of_scales = spec(*POOL_AXES).spec, spec(*POOL_AXES[:3]).spec
        pools = (pool, pool, of_scales, of_scales)[: len(kv)]
        queries = self.batch.queries()
        rows = (queries.kv_lens, queries.page_indices, queries.cu_q_lens)
        picks = (self.batch.last_tokens(),) if self.batch.last_only else ()
        norms = projected.norms
        weights = () if norms is None else (norms[0].weight[...], norms[1].weight[...])
        if len(kv) == 2:
            given = (projected.parts, *projected.by, *weights)
            specs = (spec("tokens", "qkv").spec, *[whole] * (len(given) - 1))
        else:
            given, specs = projected.rotated(), (heads, kv_heads, kv_heads)

        def local(write_index: Array, *arrays: Array) -> tuple[Array, ...]:
            rows, pages, rest = arrays[:3], arrays[3 : 3 + len(kv)], arrays[3 + len(kv) :]
            wanted, given = (rest[0], rest[1:]) if picks else (None, rest)
            if len(kv) > 2:
                q, k, v = given
                return self._attended(picked(q, wanted), queries, rows, write_kv(pages, k, v, write_index), window, ())
            parts, cos, sin, *of_norms = given
            fresh = attends_fresh(queries, projected.dtype, projected.head_dim, window, self.interpret)
            of_heads = None if norms is None else HeadNorms(of_norms[0], of_norms[1], norms[0].eps)
            q, k_pages, v_pages, *new = rotate_and_write(
                parts, Rotation(cos, sin), pages[0], pages[1], write_index, projected.sizes[0], of_heads,
                dtype=projected.dtype, keep=fresh, interpret=self.interpret,
            )  # fmt: skip
            return self._attended(picked(q, wanted), queries, rows, (k_pages, v_pages), window, new)

        run = self._on_each(local, (*[whole] * 4, *pools, *[whole] * len(picks), *specs), (heads, *pools))
        out, *written = run(self.batch.write_index, *rows, *kv, *picks, *given)
        return out, tuple(written)

    def wanted_of(self, x: Hidden) -> Hidden:
        return picked(x, self.batch.wanted())

    def _attended(
        self, q: Array, queries: Ragged, rows: Sequence[Array], written: KV, window: int | None, new: Sequence[Array]
    ) -> tuple[Array, ...]:
        """(what q attended, the pages). `rows`: the arrays of `queries`, on this device. `new`: the step's own keys and values, if they are needed apart."""
        if new:
            return fresh_attention(q, new[0], new[1], self.scale, self.interpret), *written
        out = ragged_paged_attention(
            q,
            written[0],
            written[1],
            *rows,
            scales=(written[2], written[3]) if len(written) > 2 else None,
            decode_rows=queries.decode_rows,
            max_q_len=queries.max_q_len,
            scale=self.scale,
            window=window,
            backend=self.backend,
            ragged=self.ragged or ragged_backend(self.backend, self.hopper, q, written),
            interpret=self.interpret,
        )
        return out, *written

    def _on_each(self, local: Callable[..., Any], specs: tuple[Any, ...], out: tuple[Any, ...]) -> Callable[..., Any]:
        if self.rules.tp == 1:
            return local
        # Each device's result is its own heads', or the same on all: there is nothing to check about replication.
        return jax.shard_map(local, mesh=self.rules.mesh, in_specs=specs, out_specs=out, check_vma=False)
