"""`python -m triptych.tools.bench.attention`: paged attention alone, on one GPU, against the reference and the clock.

Each variant is one compiled program: a scan over many calls, so that the time of launching does not count, each call with
other pages of a pool of 2 GiB in random order, so that no cache has them. The same program runs first on rows of random
lengths (with empty ones) and is compared with attention over gathered rows in float32. Programs compile in threads; when
`--seconds` are over, what is left is skipped. A variant that fails is reported and the next one runs; one that does not
come back ends the process with code 3 (nothing can stop a kernel), and `--without` leaves it out the next time.

Bytes are those of keys and values read once; the ceiling is the best read probe on this machine (`tools/bench/bandwidth.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from triptych.models.attention import ragged_paged_attention
from triptych.tools.bench import bandwidth
from triptych.tools.bench.attention_variants import (
    DECODE,
    MORE_DECODE,
    PAGE_SIZE,
    RAGGED,
    Attention,
    Shape,
    ceilings,
    decode_variants,
    ragged_variants,
)

POOL_BYTES = 1 << 30  # of keys, and as much of values: many times any cache
CALL_BYTES = 8e9  # KV read by one timed program: some milliseconds, so that its launch is nothing
CALL_FLOPS = 4e12  # the same for chunks
MAX_CALLS, REPEATS = 256, 5
HANG_SECONDS = 20.0  # no variant takes one second
TOLERANCE = 1e-2  # of the reference's norm, in bfloat16

Program = Callable[..., jax.Array]


@dataclass(frozen=True)
class Result:
    """One variant at one shape: relative error against float32, the median and best seconds of a call, rates from the median."""

    shape: str
    variant: str
    error: float | None = None
    seconds: float | None = None
    best_seconds: float | None = None
    terabytes_per_second: float | None = None
    teraflops: float | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Inputs:
    """A shape's arrays: queries, pool, rows of full and of random lengths, and the tables of all calls."""

    q: jax.Array
    k_pages: jax.Array
    v_pages: jax.Array
    full: jax.Array
    ragged: jax.Array
    tables: jax.Array


def make_inputs(shape: Shape, pool: jax.Array, seed: int) -> Inputs:
    """Disjoint pages for every call as far as the pool goes, then the same again; shuffled among the rows of a call."""
    rng = np.random.default_rng(seed)
    line = shape.kv_heads * shape.head_dim
    pages = pool.shape[1] // (PAGE_SIZE * line)
    k_pages, v_pages = pool[:, : pages * PAGE_SIZE * line].reshape(2, pages, PAGE_SIZE, shape.kv_heads, shape.head_dim)
    rows, need = len(shape.lengths), len(shape.lengths) * shape.width
    sets = max(pages // need, 1)
    calls = int(min(max(CALL_BYTES / shape.kv_bytes, 2), max(CALL_FLOPS / shape.flops, 2), MAX_CALLS))
    tables = np.stack(
        [rng.permutation(need).reshape(rows, shape.width) + need * (call % sets) for call in range(calls)]
    )
    q = jax.random.normal(jax.random.key(seed), (shape.tokens, shape.heads, shape.head_dim), jnp.bfloat16)
    full = np.array(shape.lengths, np.int32)
    # Decode rows of any length, some of them empty; ragged ones keep theirs, which their queries need.
    ragged = np.where(np.arange(rows) < shape.decode_rows, rng.integers(1, full + 1), full)
    ragged[1 : shape.decode_rows : 7] = 0
    as_ints = [jnp.array(x, jnp.int32) for x in (full, ragged, tables)]
    return Inputs(q, k_pages, v_pages, as_ints[0], as_ints[1], as_ints[2])


def build(attention: Attention, inputs: Inputs) -> Program:
    """The compiled program of all calls. It gives the last call's result."""

    def run(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array, tables: jax.Array) -> jax.Array:
        def call(_: jax.Array, table: jax.Array) -> tuple[jax.Array, None]:
            return attention(q, k, v, lengths, table), None

        return jax.lax.scan(call, jnp.zeros_like(q), tables)[0]

    arrays = (inputs.q, inputs.k_pages, inputs.v_pages, inputs.full, inputs.tables)
    return jax.jit(run).lower(*arrays).compile()


def measure(shape: Shape, name: str, program: Program, inputs: Inputs, expected: jax.Array | None) -> Result:
    """Compare on random lengths, then time on full ones."""
    fixed = (inputs.q, inputs.k_pages, inputs.v_pages)
    error = None
    if expected is not None:
        got = program(*fixed, inputs.ragged, inputs.tables)[: expected.shape[0]].astype(jnp.float32)
        error = float(jnp.linalg.norm(got - expected) / jnp.linalg.norm(expected))
        if not error < TOLERANCE:
            return Result(shape.name, name, error, failure="differs from the reference")
    calls, times = inputs.tables.shape[0], []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        jax.block_until_ready(program(*fixed, inputs.full, inputs.tables))
        times.append((time.perf_counter() - began) / calls)
    median = statistics.median(times[1:])
    rates = (shape.kv_bytes / median / 1e12, shape.flops / median / 1e12)
    return Result(shape.name, name, error, median, min(times[1:]), *rates)


def reference(shape: Shape, inputs: Inputs) -> jax.Array:
    """The reference in float32 on the last call's pages, of at most 8 decode rows or all ragged ones."""
    rows = 8 if not shape.chunk_rows else len(shape.lengths)
    decode_rows = min(shape.decode_rows, rows)
    tokens = decode_rows + shape.chunk_rows * shape.chunk
    ends = [*range(decode_rows + 1)] + [decode_rows + shape.chunk * (n + 1) for n in range(shape.chunk_rows)]

    @jax.jit
    def run(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array, table: jax.Array) -> jax.Array:
        # Gathered by row, so that only what is read becomes float32.
        k, v = (x[table].reshape(-1, *x.shape[1:]).astype(jnp.float32) for x in (k, v))
        own = jnp.arange(table.size, dtype=jnp.int32).reshape(table.shape)
        return ragged_paged_attention(
            q.astype(jnp.float32),
            k,
            v,
            lengths,
            own,
            jnp.array(ends, jnp.int32),
            decode_rows=decode_rows,
            max_q_len=max(shape.chunk, 1),
            scale=shape.head_dim**-0.5,
        )

    rows = min(rows, len(shape.lengths))
    with jax.default_matmul_precision("highest"):
        return run(inputs.q[:tokens], inputs.k_pages, inputs.v_pages, inputs.ragged[:rows], inputs.tables[-1, :rows])


@contextmanager
def watched(name: str) -> Iterator[None]:
    """End the process, with code 3, if what is inside takes longer than HANG_SECONDS."""

    def give_up() -> None:
        print(f"{name}: no answer in {HANG_SECONDS:.0f} s; giving up", flush=True)
        os._exit(3)

    timer = threading.Timer(HANG_SECONDS, give_up)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def results(shapes: list[Shape], thorough: bool, until: float, without: str | None = None) -> Iterator[Result]:
    """Measure variants shape by shape until the clock says so; the next shape's programs compile meanwhile."""
    shared = jax.jit(lambda: jax.random.normal(jax.random.key(0), (2, POOL_BYTES // 2), jnp.bfloat16))()
    with ThreadPoolExecutor(8) as threads:
        for seed, shape in enumerate(shapes):
            if time.monotonic() > until:
                yield Result(shape.name, "all", failure="no time left")
                continue
            inputs = make_inputs(shape, shared, seed)
            exact = inputs
            variants = ragged_variants(shape) if shape.chunk_rows else decode_variants(shape, thorough)
            limits = ceilings(shape) if shape.kv_bytes > 1e8 or shape.chunk_rows else {}
            if limits:
                need = len(shape.lengths) * shape.width
                exact = Inputs(
                    inputs.q,
                    inputs.k_pages[:need],
                    inputs.v_pages[:need],
                    inputs.full,
                    inputs.ragged,
                    inputs.tables % need,
                )
            jobs = [(name, run, exact) for name, run in limits.items()]
            jobs += [(name, run, inputs) for name, run in variants.items()]
            jobs = [job for job in jobs if without is None or without not in job[0]]
            pending = [(name, given, threads.submit(build, run, given)) for name, run, given in jobs]
            expected = reference(shape, inputs)
            for name, given, program in pending:
                if time.monotonic() > until:
                    program.cancel()
                    yield Result(shape.name, name, failure="no time left")
                    continue
                try:
                    # Ceilings are other people's kernels, and the dense one reads other rows.
                    ready = program.result()
                    with watched(f"{shape.name}: {name}"):
                        result = measure(shape, name, ready, given, None if name in limits else expected)
                    yield result
                except Exception as error:  # noqa: BLE001 (whatever one variant meets, the others are wanted)
                    yield Result(shape.name, name, failure=f"{type(error).__name__}: {str(error)[:300]}")


def line(result: Result, ceiling: float) -> str:
    """One line of the table."""
    head = f"{result.shape:34} {result.variant:34}"
    if result.seconds is None or result.terabytes_per_second is None or result.teraflops is None:
        return f"{head} FAILED {result.failure}" + ("" if result.error is None else f" ({result.error:.1e})")
    rate = f"{result.seconds * 1e6:9.1f} us {result.terabytes_per_second:6.2f} TB/s {result.teraflops:6.1f} TFLOP/s"
    error = "not compared" if result.error is None else f"error {result.error:.1e}"
    return f"{head}{rate}  {result.terabytes_per_second * 1e12 / ceiling:5.2f} of read  {error}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m triptych.tools.bench.attention", description=__doc__)
    parser.add_argument("--seconds", type=float, default=100, help="start nothing after so many seconds (100)")
    parser.add_argument("--thorough", action="store_true", help="more tilings and split counts")
    parser.add_argument("--only", default="", help="shapes whose name contains this")
    parser.add_argument("--without", help="leave out variants whose name contains this, such as mosaic")
    parser.add_argument("--json", type=Path, help="write every result to this file")
    options = parser.parse_args(arguments)
    until = time.monotonic() + options.seconds
    device = jax.devices()[0]
    if device.platform == "cpu":
        raise SystemExit("this needs an NVIDIA GPU; on CPU the kernels are only tested, in interpret mode")
    probes = bandwidth.measure(device)
    ceiling = probes[0].rate
    print(f"{device.device_kind}, jax {jax.__version__}; read probe {ceiling / 1e12:.2f} TB/s ({probes[0].name})")
    print("   " + ", ".join(f"{probe.name} {probe.rate / 1e12:.2f}" for probe in probes), flush=True)
    shapes = [shape for shape in (*DECODE, *RAGGED, *MORE_DECODE) if options.only in shape.name]
    found = []
    for result in results(shapes, options.thorough, until, options.without):
        found.append(result)
        print(line(result, ceiling), flush=True)
        if options.json:
            report = {"device": device.device_kind, "jax": jax.__version__, "read": ceiling}
            report["probes"] = {probe.name: probe.rate for probe in probes}
            report["results"] = [asdict(each) for each in found]
            options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
