"""What `triptych.tools.bench.attention` times: shapes of a step's attention, and the ways to compute it on a GPU.

Every variant is a function (q, k_pages, v_pages, kv_lens, page_indices) -> attended queries. Ceilings read a dense cache
or are libraries' kernels: nothing that serves here, but what ours must be near to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from triptych.models.kernels import gpu, paged_mosaic, paged_triton
from triptych.models.kernels.splits import split_count
from triptych.models.kernels.tiles import decode_tiles

PAGE_SIZE = 16
Attention = Callable[..., jax.Array]


@dataclass(frozen=True)
class Shape:
    """Rows of `context` cached tokens each; the first `decode_rows` have one query, the rest `chunk`, the last of their tokens."""

    name: str
    decode_rows: int
    context: int
    chunk: int = 0
    chunk_rows: int = 0
    chunk_context: int = 0
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128

    @property
    def tokens(self) -> int:
        return self.decode_rows + self.chunk_rows * self.chunk

    @property
    def lengths(self) -> list[int]:
        return [self.context] * self.decode_rows + [self.chunk_context] * self.chunk_rows

    @property
    def width(self) -> int:
        return -(-max(self.lengths) // PAGE_SIZE)

    @property
    def kv_bytes(self) -> int:
        """Bytes of cache that must be read once, in bfloat16."""
        return 2 * 2 * sum(self.lengths) * self.kv_heads * self.head_dim

    @property
    def flops(self) -> int:
        """Operations of queries that see what is before them, multiplications and additions."""
        seen = self.decode_rows * self.context
        seen += self.chunk_rows * (self.chunk * self.chunk_context - self.chunk * (self.chunk - 1) // 2)
        return 4 * self.heads * self.head_dim * seen


# The three of the goal first: batch 32 and 128 at context 1024, 32 at 8192, with the heads of an 8B Llama.
DECODE = tuple(
    Shape(f"decode b{rows} ctx{context}", rows, context) for rows, context in ((128, 1024), (32, 8192), (32, 1024))
)
MORE_DECODE = tuple(Shape(f"decode b{rows} ctx1024", rows, 1024) for rows in (1, 8, 64)) + (
    Shape("decode b32 ctx1024 SmolLM2-135M", 32, 1024, heads=9, kv_heads=3, head_dim=64),
)
RAGGED = (
    Shape("fresh prompt 2048", 0, 0, 2048, 1, 2048),
    Shape("chunk 2048 after 6144", 0, 0, 2048, 1, 8192),
    Shape("chunk 512 after 512 + 64 decodes", 64, 1024, 512, 1, 1024),
    Shape("fresh prompt 8192", 0, 0, 8192, 1, 8192),
)


def decode_variants(shape: Shape, thorough: bool) -> dict[str, Attention]:
    """Ways to attend decode rows. `thorough` adds tilings and split counts around them."""
    programs, tokens = shape.decode_rows * shape.kv_heads, shape.width * PAGE_SIZE
    usual = split_count(programs, tokens, gpu.DECODE_PROGRAMS)
    most = max(tokens // 64, 1)
    found: dict[str, Attention] = {}
    triton = [(64, 4, 3, usual), (128, 4, 3, usual), (64, 4, 4, usual)]
    mosaic = [(192, usual), (192, min(2 * usual, most))]
    if thorough:
        triton += [(64, 4, 3, min(2 * usual, most)), (32, 4, 4, usual), (128, 8, 2, usual), (64, 8, 3, usual)]
        mosaic += [(128, usual), (192, min(4 * usual, most)), (192, max(usual // 2, 1))]
    for block, warps, stages, splits in dict.fromkeys(triton):
        tiling = paged_triton.Tiling(block, warps, stages)
        name = f"triton {block}x{stages} warps {warps} splits {splits}"
        found[name] = _decode(paged_triton.paged_attention, shape, splits, tiling)
    for kibibytes, splits in dict.fromkeys(mosaic):
        tiling = paged_mosaic.Tiling(buffer=kibibytes << 10)
        found[f"mosaic {kibibytes} KiB splits {splits}"] = _decode(paged_mosaic.paged_attention, shape, splits, tiling)
    return found


def _decode(kernel: Attention, shape: Shape, splits: int, tiling: object) -> Attention:
    tiles = decode_tiles(jnp.arange(shape.decode_rows, dtype=jnp.int32))
    return lambda *arrays: kernel(*arrays, tiles, scale=shape.head_dim**-0.5, splits=splits, tiling=tiling)


def ragged_variants(shape: Shape) -> dict[str, Attention]:
    """Ways to attend a step with chunks."""
    found: dict[str, Attention] = {}
    for block, warps, stages in ((64, 8, 2), (64, 4, 2), (64, 8, 3), (128, 8, 2)):
        tilings = replace(gpu.TILINGS["triton"], ragged=paged_triton.Tiling(block, warps, stages))
        found[f"triton {block}x{stages} warps {warps}"] = _ragged(shape, "triton", tilings)
    found["mosaic"] = _ragged(shape, "mosaic", gpu.TILINGS["mosaic"])
    return found


def _ragged(shape: Shape, backend: gpu.Backend, tilings: gpu.Tilings) -> Attention:
    sizes = {"decode_rows": shape.decode_rows, "max_q_len": shape.chunk, "scale": shape.head_dim**-0.5}
    ends = [shape.decode_rows + shape.chunk * row for row in range(shape.chunk_rows + 1)]
    ends = jnp.array([*range(shape.decode_rows), *ends], jnp.int32)
    return partial(_run_ragged, ends, backend=backend, tilings=tilings, **sizes)


def _run_ragged(ends: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, *rows: jax.Array, **how: Any) -> jax.Array:
    return gpu.ragged_paged_attention(q, k, v, rows[0], rows[1], ends, **how)


def ceilings(shape: Shape) -> dict[str, Attention]:
    """cuDNN over a dense cache, and over pages if this jax has it. The pool must be as large as the rows are long, no larger."""

    def dense(q: jax.Array, k: jax.Array, v: jax.Array, kv_lens: jax.Array, table: jax.Array) -> jax.Array:
        k, v = (x.reshape(len(shape.lengths), -1, *x.shape[2:]) for x in (k, v))
        if shape.decode_rows:
            out = jax.nn.dot_product_attention(q[:, None], k, v, key_value_seq_lengths=kv_lens, implementation="cudnn")
        else:
            out = jax.nn.dot_product_attention(q[None], k, v, is_causal=True, implementation="cudnn")
        return out.reshape(q.shape)

    def paged(q: jax.Array, k: jax.Array, v: jax.Array, kv_lens: jax.Array, table: jax.Array) -> jax.Array:
        from jax._src.cudnn import fused_attention_stablehlo as cudnn  # not public: a ceiling only

        pages, ones = table[:, None, :, None], jnp.ones_like(kv_lens)
        out = cudnn.paged_attention(
            q[:, None], k, v, ones, kv_lens, pages, pages, scale=shape.head_dim**-0.5, mask_type=cudnn.MaskType.PADDING
        )
        return jax.tree.leaves(out)[0].reshape(q.shape)

    if not shape.chunk_rows:
        return {"cuDNN dense": dense, "cuDNN paged": paged}
    fresh = not shape.decode_rows and shape.chunk == shape.chunk_context
    return {"cuDNN dense": dense} if fresh else {}
