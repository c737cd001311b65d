"""A few tokens times a matrix of int8 codes, through Pallas' Triton backend: each code is read once, as a byte.

A decode step reads every weight, so its products are to take what their bytes take. XLA multiplies codes of eight rows with the conversion before the product, at half to
three quarters of the speed at which the device reads, puts a kernel behind it for the sums of its parts, and another one for SwiGLU. Here the parts are left
to whoever takes them next (`norm_triton`, `heads_triton`), and gate and up are multiplied by one program, which gates.

A program takes `outputs` rows of the matrix and a part of their inputs. Enough programs for two on each multiprocessor keep enough bytes under way; where
the outputs are too few for that, inputs are cut into parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int8

MOST_TOKENS = 32  # beyond, a product is no longer bound by reading
LEAST_TOKENS = 16  # that a matrix instruction takes; fewer are padded to it
PROGRAMS = 256  # two on each of an H100's 132 multiprocessors, nearly


@dataclass(frozen=True)
class Tile:
    """How a product is cut: outputs and inputs that a program multiplies at once, parts of the inputs, warps of a program."""

    outputs: int
    inputs: int
    parts: int
    warps: int

    # Steps of a program's loop whose loads are under way. Of 3 and 5, 3 was never slower on an H200.
    stages: int = 3


def tile_of(outputs: int, inputs: int, gated: bool = False) -> Tile | None:
    """For a matrix of such a size, chosen by measuring those of Llama-3.1-8B on an H200; None where no tile fits.

    `gated`: `outputs` are as many of gate, and as many of up behind them.
    """
    block = _divisor(inputs, (256, 128, 64))
    rows = _divisor(outputs, (32,) if gated else (64, 32, 16))
    if block is None or rows is None:
        return None
    parts, blocks = 1, inputs // block
    while not gated and outputs // rows * parts < PROGRAMS and blocks % (2 * parts) == 0 and blocks >= 8 * parts:
        parts *= 2
    return Tile(rows, block, parts, warps=2 if rows < 64 else 4)


def _divisor(size: int, candidates: Sequence[int]) -> int | None:
    return next((candidate for candidate in candidates if size % candidate == 0), None)


@partial(jax.jit, static_argnames=("tile", "interpret"))  # traced and lowered once for all products of a size
def codes_product(
    x: Float[Array, "tokens inputs"],
    codes: Int8[Array, "outputs inputs"],
    scale: Float[Array, "outputs"],
    tile: Tile,
    interpret: bool = False,
) -> Float[Array, "parts tokens outputs"]:
    """Summands of x @ (codes * scale).T in float32; the only one of a tile without parts is in the dtype of x."""
    return _call(x, codes, scale, tile, codes.shape[0], gated=False, interpret=interpret)


@partial(jax.jit, static_argnames=("tile", "interpret"))
def codes_gated(
    x: Float[Array, "tokens inputs"],
    codes: Int8[Array, "two_widths inputs"],
    scale: Float[Array, "two_widths"],
    tile: Tile,
    interpret: bool = False,
) -> Float[Array, "tokens width"]:
    """silu(gate) * up, gate and up being the first and the second half of x @ (codes * scale).T; in the dtype of x."""
    return _call(x, codes, scale, tile, codes.shape[0] // 2, gated=True, interpret=interpret)[0]


def _call(x: Array, codes: Array, scale: Array, tile: Tile, outputs: int, gated: bool, interpret: bool) -> Array:
    tokens, inputs = x.shape
    if outputs % tile.outputs or inputs % (tile.inputs * tile.parts) or (gated and tile.parts > 1):
        raise ValueError(f"{tile} does not fit {outputs} outputs of {inputs} inputs{', gated' if gated else ''}")
    padded = max(LEAST_TOKENS, pl.next_power_of_2(tokens))
    dtype = x.dtype if tile.parts == 1 else jnp.float32
    out = pl.pallas_call(
        partial(_kernel, tokens=tokens, padded=padded, tile=tile, up=outputs if gated else None),
        grid=(outputs // tile.outputs, tile.parts),
        out_shape=jax.ShapeDtypeStruct((tile.parts * tokens, outputs), dtype),
        compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name="codes_gated" if gated else "codes_product",
    )(x, codes, scale)
    return out.reshape(tile.parts, tokens, outputs)


def _kernel(
    x_ref: Any, codes_ref: Any, scale_ref: Any, out_ref: Any, *, tokens: int, padded: int, tile: Tile, up: int | None
) -> None:
    """`up`: where rows of the second half begin; None: not gated."""
    part = pl.program_id(1)
    output, token = pl.program_id(0) * tile.outputs + jnp.arange(tile.outputs), jnp.arange(padded)
    rows = (output,) if up is None else (output, output + up)
    blocks = x_ref.shape[1] // (tile.inputs * tile.parts)
    real = (token < tokens)[:, None]

    def step(block: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        column = (part * blocks + block) * tile.inputs + jnp.arange(tile.inputs)[None, :]
        mask = jnp.broadcast_to(real, (padded, tile.inputs))
        x = triton.load(x_ref.at[token[:, None], column], mask=mask, other=0.0)
        return tuple(
            total
            + jax.lax.dot_general(
                x,
                codes_ref[row[:, None], column].astype(x.dtype),
                (((1,), (1,)), ((), ())),
                preferred_element_type=jnp.float32,
            )
            for total, row in zip(sums, rows, strict=True)
        )

    nothing = jnp.zeros((padded, tile.outputs), jnp.float32)
    sums = jax.lax.fori_loop(0, blocks, step, (nothing,) * len(rows))
    dtype = x_ref.dtype
    sums = tuple(total * scale_ref[row][None, :] for total, row in zip(sums, rows, strict=True))
    if up is not None:
        # Rounded where the products of the reference end.
        gate, over = (total.astype(dtype).astype(jnp.float32) for total in sums)
        sums = ((gate / (1.0 + jnp.exp(-gate))).astype(dtype).astype(jnp.float32) * over,)
    at = (part * tokens + token)[:, None]
    mask = jnp.broadcast_to(real, (padded, tile.outputs))
    triton.store(out_ref.at[at, output[None, :]], sums[0].astype(out_ref.dtype), mask=mask)
