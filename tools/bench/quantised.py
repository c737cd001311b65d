"""`python -m triptych.tools.bench.quantised`: what each way to multiply with quantised weights takes on this device.

For each matrix of a model's layer and each number of tokens, the ways of `models/quantised.py`, the kernel for a few tokens (`models/kernels/codes_triton.py`, its
summands added by the compiler), and the product in the model's dtype, as microseconds and as the share of the best bandwidth that a probe reaches at which the
matrix's bytes are read. This is what CHANNEL_REDUCE_ROWS and GROUP_REDUCE_ROWS are chosen by.

A program runs its product over several copies of the matrix, one after another, so that none is found in a cache and a launch costs little beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from triptych.models.attend import added
from triptych.models.config import PRESETS
from triptych.models.kernels.codes_triton import MOST_TOKENS, Tile, codes_product, tile_of
from triptych.models.product import times_transposed
from triptych.models.quantised import channel_product, channel_sum, group_product, group_sum, quantise
from triptych.models.weight_formats import WEIGHT_FORMATS
from triptych.tools.bench.bandwidth import measure

# Together more than any cache holds, at the shapes of published models.
COPIES = 8
REPEATS = 10
TOKENS = (1, 2, 4, 8, 16, 64)

Way = tuple[str, Callable[..., jax.Array], tuple[jax.Array, ...]]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="time products with quantised weights")
    parser.add_argument("--model", choices=sorted(PRESETS), default="llama-8b", help="whose shapes (default llama-8b)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of activations")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help=f"default {TOKENS}")
    args = parser.parse_args(argv)
    config, dtype = PRESETS[args.model], jnp.dtype(args.dtype)
    best = max(probe.rate for probe in measure(jax.devices()[0]))
    print(f"{args.model}, {args.dtype}, {jax.devices()[0].device_kind}, {best / 1e9:.0f} GB/s at best")
    print(f"{'outputs x inputs':<18} {'way':<22}" + "".join(f"{f'{tokens} tok':>16}" for tokens in args.tokens))
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    shapes = (
        (heads, config.hidden_size),
        (config.hidden_size, config.num_heads * config.head_dim),
        (2 * config.intermediate_size, config.hidden_size),
        (config.hidden_size, config.intermediate_size),
    )
    for outputs, inputs in shapes:
        weight = jax.random.normal(jax.random.key(0), (outputs, inputs), dtype)
        for name, way, arrays in ways(weight):
            copies = [tuple(jnp.array(array) for array in arrays) for _ in range(COPIES)]
            nbytes = sum(array.nbytes for array in arrays)
            shown = ""
            for tokens in args.tokens:
                if way is by_kernel and tokens > MOST_TOKENS:
                    shown += f"{'-':>16}"
                    continue
                us = microseconds(way, copies, tokens, inputs, dtype)
                shown += f"{us:>9.1f} ({nbytes / us * 1e6 / best:>3.0%})"
            print(f"{f'{outputs} x {inputs}':<18} {name:<22}{shown}", flush=True)
    return 0


def ways(weight: jax.Array) -> list[Way]:
    """Each format with each of its ways, and the matrix as it is."""
    made: list[Way] = [(f"{weight.dtype} product", times_transposed, (weight,))]
    for name, product, summed in (
        ("int8", channel_product, channel_sum),
        ("fp8", channel_product, channel_sum),
        ("int4", group_product, group_sum),
    ):
        codes = jax.jit(partial(quantise, WEIGHT_FORMATS[name]))(weight)
        arrays = tuple(codes[key] for key in (("packed", "scales") if name == "int4" else ("codes", "scale")))
        made += [(f"{name} product", product, arrays), (f"{name} sum", summed, arrays)]
        if name == "int8" and weight.dtype.itemsize == 2 and _tile(weight) is not None:
            made.append(("int8 kernel", by_kernel, arrays))
    return made


def by_kernel(x: jax.Array, codes: jax.Array, scale: jax.Array) -> jax.Array:
    """x @ (codes * scale).T by the kernel; interpreted on CPU."""
    tile = _tile(codes)
    assert tile is not None, "ways() leaves out what has none"
    return added(codes_product(x, codes, scale, tile, jax.default_backend() == "cpu"), x.dtype)


def _tile(matrix: jax.Array) -> Tile | None:
    outputs, inputs = matrix.shape
    return tile_of(outputs, inputs)


def microseconds(
    way: Callable[..., jax.Array], copies: Sequence[tuple[jax.Array, ...]], tokens: int, inputs: int, dtype: Any
) -> float:
    """Of one product, the median over REPEATS programs of as many products as there are copies."""

    @jax.jit
    def run(x: jax.Array, copies: Sequence[tuple[jax.Array, ...]]) -> jax.Array:
        for arrays in copies:
            # Each product waits for the one before it: its input has something of that one's output, which a maximum keeps the compiler from skipping.
            x = x + 1e-6 * way(x, *arrays).max(axis=1, keepdims=True).astype(x.dtype)
        return x

    x = jnp.ones((tokens, inputs), dtype)
    run(x, copies).block_until_ready()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run(x, copies).block_until_ready()
        times.append((time.perf_counter() - began) / len(copies))
    return statistics.median(times) * 1e6


if __name__ == "__main__":
    raise SystemExit(main())
