"""`python -m triptych.tools.bench.attention_codes`: the Triton kernel over KV in codes against the same kernel over bfloat16, on one GPU.

Shapes, pages, comparison and clock are those of `triptych.tools.bench.attention`. Codes are compared with the reference over what they
stand for; how far that is from the numbers themselves is what `triptych accuracy --kv` measures. Rates are of the bytes that a format
has, scales included.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from triptych.models.kernels import gpu
from triptych.models.kv import KV_CODES, SCALE_BYTES
from triptych.models.quantised_kv import quantised
from triptych.tools.bench import attention, bandwidth
from triptych.tools.bench.attention import Inputs, Result
from triptych.tools.bench.attention_variants import DECODE, MORE_DECODE, RAGGED, Attention, Shape

NUMBERS = "bfloat16"


def attend(shape: Shape, interpret: bool = False) -> Attention:
    """The kernel of a served step. Keys and values are pages, or pairs of pages of codes and their scales."""
    ends = [shape.decode_rows + shape.chunk * row for row in range(shape.chunk_rows + 1)]
    cu_q_lens = jnp.array([*range(shape.decode_rows), *ends], jnp.int32)

    def run(q: jax.Array, k: Any, v: Any, lengths: jax.Array, table: jax.Array) -> jax.Array:
        scales = (k[1], v[1]) if isinstance(k, tuple) else None
        k, v = (pages[0] if isinstance(pages, tuple) else pages for pages in (k, v))
        return gpu.ragged_paged_attention(
            q, k, v, lengths, table, cu_q_lens, decode_rows=shape.decode_rows, max_q_len=max(shape.chunk, 1),
            scale=shape.head_dim**-0.5, backend="triton", interpret=interpret, scales=scales,
        )  # fmt: skip

    return run


def in_codes(inputs: Inputs, dtype: str) -> tuple[Inputs, Inputs]:
    """The same pages as codes with scales, and as the numbers that these stand for."""

    in_dtype = jax.jit(lambda pages: quantised(pages, jnp.dtype(dtype)))

    # A program of its own: XLA may leave out rounding to codes and back inside one.
    @jax.jit
    def numbers(codes: jax.Array, scales: jax.Array) -> jax.Array:
        return (codes.astype(jnp.float32) * scales[..., None]).astype(inputs.k_pages.dtype)

    k, v = in_dtype(inputs.k_pages), in_dtype(inputs.v_pages)
    return replace(inputs, k_pages=k, v_pages=v), replace(inputs, k_pages=numbers(*k), v_pages=numbers(*v))  # type: ignore[arg-type]


def results(shapes: list[Shape], formats: list[str], interpret: bool = False) -> Iterator[Result]:
    """Each format on each shape; one that fails is reported."""
    shared = jax.jit(lambda: jax.random.normal(jax.random.key(0), (2, attention.POOL_BYTES // 2), jnp.bfloat16))()
    for seed, shape in enumerate(shapes):
        inputs = attention.make_inputs(shape, shared, seed)
        for name in formats:
            share = 1.0 if name == NUMBERS else (shape.head_dim + SCALE_BYTES) / (2 * shape.head_dim)
            try:
                given, meant = (inputs, inputs) if name == NUMBERS else in_codes(inputs, KV_CODES[name])
                program = attention.build(attend(shape, interpret), given)
                with attention.watched(f"{shape.name}: {name}"):
                    found = attention.measure(shape, name, program, given, attention.reference(shape, meant))
                rate = found.terabytes_per_second
                yield replace(found, terabytes_per_second=None if rate is None else rate * share)
            except Exception as error:  # noqa: BLE001 (whatever one format meets, the others are wanted)
                yield Result(shape.name, name, failure=f"{type(error).__name__}: {str(error)[:300]}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m triptych.tools.bench.attention_codes", description=__doc__)
    parser.add_argument("--formats", nargs="+", choices=(NUMBERS, *KV_CODES), default=[NUMBERS, *KV_CODES])
    parser.add_argument("--only", default="", help="shapes whose name contains this")
    options = parser.parse_args(arguments)
    device = jax.devices()[0]
    if device.platform == "cpu":
        raise SystemExit("this needs an NVIDIA GPU; on CPU the kernels are only tested, in interpret mode")
    ceiling = bandwidth.measure(device)[0].rate
    print(f"{device.device_kind}, jax {jax.__version__}; read probe {ceiling / 1e12:.2f} TB/s", flush=True)
    shapes = [shape for shape in (*DECODE, *RAGGED[:3], *MORE_DECODE) if options.only in shape.name]
    for result in results(shapes, options.formats):
        print(attention.line(result, ceiling), flush=True)


if __name__ == "__main__":
    main()
