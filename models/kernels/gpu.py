"""The `Attend` of NVIDIA GPUs: new entries are scattered into the pages, then kernels attend to decode rows and to ragged rows.

Semantics and arguments are those of `models/attention.py`, which is the oracle. With tensor parallelism each device runs
the kernels on its own heads. On a CPU mesh the same kernels are interpreted: slow, for tests.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from triptych.models.attention import Scales
from triptych.models.decoder import KV, Attend, write_kv
from triptych.models.errors import UnsupportedModelError
from triptych.models.kernels import paged_mosaic, paged_triton
from triptych.models.kernels.splits import split_count
from triptych.models.kernels.tiles import decode_tiles, ragged_tiles
from triptych.models.ragged import Ragged
from triptych.sharding.rules import POOL_AXES, ShardingRules

Backend = Literal["triton", "mosaic"]

# Programs to have at work while decoding: an H100 or H200 has 132 multiprocessors with several programs each, and twice
# as many as run at once even out rows of different lengths.
DECODE_PROGRAMS = 1024

# Ragged tiles are large, one or two a multiprocessor; more parts would only write more partial results.
RAGGED_PROGRAMS = 256

# Lines of a ragged tile (queries times the heads of a KV head): two warpgroups' worth of matrix rows.
RAGGED_LINES = 128


@dataclass(frozen=True)
class Tilings:
    """How the kernels of a step are cut."""

    decode: paged_triton.Tiling | paged_mosaic.Tiling
    ragged: paged_triton.Tiling | paged_mosaic.Tiling
    ragged_lines: int = RAGGED_LINES


TILINGS: dict[Backend, Tilings] = {
    "triton": Tilings(paged_triton.Tiling(), paged_triton.Tiling(block=64, warps=4, stages=2)),
    "mosaic": Tilings(paged_mosaic.Tiling(), paged_mosaic.Tiling()),
}


def gpu_attend(batch: Ragged, scale: float, rules: ShardingRules, backend: Backend) -> Attend:
    """The `Attend` of a step through one of the two kernels.

    Raises UnsupportedModelError on devices that are neither GPUs nor the CPU, and for Mosaic's kernel on CPU, where it
    takes a minute for a few rows (its test asks for that).
    """
    platform = rules.mesh.devices.flat[0].platform
    if platform not in ("gpu", "cuda", "cpu") or (platform == "cpu" and backend == "mosaic"):
        raise UnsupportedModelError(f"the {backend} attention kernel cannot run on {platform}: choose the reference")
    interpret = platform == "cpu"
    heads = rules.sharding("tokens", "heads", "head_dim").spec
    pool, everywhere = rules.sharding(*POOL_AXES).spec, PartitionSpec()
    of_scales = rules.sharding(*POOL_AXES[:3]).spec

    def attend(q: Array, k: Array, v: Array, kv: KV, window: int | None) -> tuple[Array, KV]:
        k_pages, v_pages, *scales = written = write_kv(kv, k, v, batch.write_index)

        def local(*arrays: Array) -> Array:
            return ragged_paged_attention(
                *arrays[:6],
                scales=(arrays[6], arrays[7]) if scales else None,
                decode_rows=batch.decode_rows,
                max_q_len=batch.max_q_len,
                scale=scale,
                window=window,
                backend=backend,
                interpret=interpret,
            )

        run: Callable[..., Array] = local
        if rules.tp > 1:
            in_specs = (heads, pool, pool, everywhere, everywhere, everywhere, *[of_scales] * len(scales))
            # Each device's result is its own heads': there is nothing to check about replication.
            run = jax.shard_map(local, mesh=rules.mesh, in_specs=in_specs, out_specs=heads, check_vma=False)
        return run(q, k_pages, v_pages, batch.kv_lens, batch.page_indices, batch.cu_q_lens, *scales), written

    return attend


def ragged_paged_attention(
    q: Float[Array, "tokens heads head_dim"],
    k_pages: Float[Array, "pages page_size kv_heads head_dim"],
    v_pages: Float[Array, "pages page_size kv_heads head_dim"],
    kv_lens: Int[Array, "rows"],
    page_indices: Int[Array, "rows width"],
    cu_q_lens: Int[Array, "rows_plus_1"],
    *,
    decode_rows: int,
    max_q_len: int,
    scale: float,
    window: int | None = None,
    backend: Backend,
    tilings: Tilings | None = None,
    interpret: Any = False,
    scales: Scales | None = None,
) -> Float[Array, "tokens heads head_dim"]:
    """`models.attention.ragged_paged_attention` by kernels, on one device's heads and without soft caps. Scales go to Triton's.

    Raises ValueError where the kernel does not take the sizes or numbers.
    """
    kernel: Callable[..., Array] = (paged_triton if backend == "triton" else paged_mosaic).paged_attention
    tilings = tilings or TILINGS[backend]
    tokens, heads = q.shape[:2]
    kv_heads, kv_tokens = k_pages.shape[2], page_indices.shape[1] * k_pages.shape[1]
    sizes: dict[str, Any] = {"scale": scale, "window": window, "interpret": interpret}
    if scales is not None:
        sizes["scales"] = scales
    outputs = []
    if decode_rows:
        rows = (kv_lens[:decode_rows], page_indices[:decode_rows], decode_tiles(decode_rows))
        splits = split_count(decode_rows * kv_heads, kv_tokens, DECODE_PROGRAMS)
        outputs.append(kernel(q[:decode_rows], k_pages, v_pages, *rows, splits=splits, tiling=tilings.decode, **sizes))
    if tokens > decode_rows:
        group = heads // kv_heads
        if backend == "triton":  # whose tiles have sizes that are powers of two
            group, max_q_len = pl.next_power_of_2(group), pl.next_power_of_2(max_q_len)
        starts = cu_q_lens[decode_rows:] - decode_rows
        queries = min(max(tilings.ragged_lines // group, 1), max_q_len)
        tiles = ragged_tiles(starts, tokens - decode_rows, queries)
        rows = (kv_lens[decode_rows:], page_indices[decode_rows:], tiles)
        splits = split_count(tiles.rows.shape[0] * kv_heads, kv_tokens, RAGGED_PROGRAMS)
        attended = kernel(q[decode_rows:], k_pages, v_pages, *rows, splits=splits, tiling=tilings.ragged, **sizes)
        # Slots of no row were never written.
        used = jnp.arange(tokens - decode_rows) < starts[-1]
        outputs.append(jnp.where(used[:, None, None], attended, 0))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs)
