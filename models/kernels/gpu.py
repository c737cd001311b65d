"""Attention of a step on NVIDIA GPUs: kernels attend to its decode rows and to its ragged rows.

Semantics and arguments are those of `models/attention.py`, which is the oracle. On CPU the same kernels are interpreted: slow, for tests.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from triptych.models.attention import Scales
from triptych.models.kernels import paged_mosaic, paged_triton
from triptych.models.kernels.splits import split_count
from triptych.models.kernels.tiles import decode_tiles, ragged_tiles

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

KERNELS: dict[Backend, Callable[..., Array]] = {
    "triton": paged_triton.paged_attention,
    "mosaic": paged_mosaic.paged_attention,
}


def ragged_backend(backend: Backend, hopper: bool, q: Array, kv: Sequence[Array]) -> Backend:
    """What attends the ragged rows of a step whose decode rows `backend` attends: Mosaic where it can, which is quicker with prompts (docs/performance.md)."""
    mosaic = hopper and len(kv) == 2 and paged_mosaic.takes(q, kv[0])
    return "mosaic" if mosaic else backend


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
    ragged: Backend | None = None,
    tilings: Tilings | None = None,
    interpret: Any = False,
    scales: Scales | None = None,
) -> Float[Array, "tokens heads head_dim"]:
    """`models.attention.ragged_paged_attention` by kernels, on one device's heads and without soft caps. Scales go to Triton's.

    `ragged` attends the ragged rows; None: `backend`, as the decode rows. `tilings` are of `backend` alone.

    Raises ValueError where the kernel does not take the sizes or numbers.
    """
    ragged = ragged or backend
    of_decodes, of_ragged = tilings or TILINGS[backend], tilings or TILINGS[ragged]
    tokens, heads = q.shape[:2]
    kv_heads, kv_tokens = k_pages.shape[2], page_indices.shape[1] * k_pages.shape[1]
    sizes: dict[str, Any] = {"scale": scale, "window": window, "interpret": interpret}
    if scales is not None:
        sizes["scales"] = scales
    outputs = []
    if decode_rows:
        rows = (kv_lens[:decode_rows], page_indices[:decode_rows], decode_tiles(cu_q_lens[:decode_rows]))
        splits = split_count(decode_rows * kv_heads, kv_tokens, DECODE_PROGRAMS)
        kernel = KERNELS[backend]
        outputs.append(
            kernel(q[:decode_rows], k_pages, v_pages, *rows, splits=splits, tiling=of_decodes.decode, **sizes)
        )
    if tokens > decode_rows:
        group = heads // kv_heads
        if ragged == "triton":  # whose tiles have sizes that are powers of two
            group, max_q_len = pl.next_power_of_2(group), pl.next_power_of_2(max_q_len)
        starts = cu_q_lens[decode_rows:] - decode_rows
        queries = min(max(of_ragged.ragged_lines // group, 1), max_q_len)
        tiles = ragged_tiles(starts, tokens - decode_rows, queries)
        rows = (kv_lens[decode_rows:], page_indices[decode_rows:], tiles)
        splits = split_count(tiles.rows.shape[0] * kv_heads, kv_tokens, RAGGED_PROGRAMS)
        kernel = KERNELS[ragged]
        attended = kernel(q[decode_rows:], k_pages, v_pages, *rows, splits=splits, tiling=of_ragged.ragged, **sizes)
        # Slots of no row were never written.
        used = jnp.arange(tokens - decode_rows) < starts[-1]
        outputs.append(jnp.where(used[:, None, None], attended, 0))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs)
