"""How fast this machine reads memory: several probes, because no single one reaches the limit everywhere. The best one is the ceiling.

Each probe reads (or reads and writes) an array far larger than any cache and counts the bytes that must move.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

CPU_BYTES = 1 << 29  # 512 MiB: beyond the last-level cache of any server CPU's one socket
ACCELERATOR_BYTES = 1 << 31
QUEUED = 4
REPEATS = 7  # the best counts: other work on the machine only ever makes a probe slower


@dataclass(frozen=True)
class Probe:
    """One way to move bytes and the rate it reached, bytes per second."""

    name: str
    rate: float


def measure(device: jax.Device) -> list[Probe]:  # pyright: ignore[reportInvalidTypeForm] (jax binds the name as a variable)
    """All probes on one device, best first."""
    size = CPU_BYTES if device.platform == "cpu" else ACCELERATOR_BYTES
    probes = _jax_probes(device, size)
    if device.platform == "cpu":
        probes += _numpy_probes(size)
    return sorted(probes, key=lambda p: -p.rate)


def _jax_probes(device: jax.Device, size: int) -> list[Probe]:  # pyright: ignore[reportInvalidTypeForm] (the same)
    rows = 4096
    columns = size // 4 // rows
    with jax.default_device(device):
        matrix = jnp.ones((rows, columns), jnp.float32)
    row = jax.device_put(np.ones(columns, np.float32), device)
    column = jax.device_put(np.ones(rows, np.float32), device)
    programs: list[tuple[str, Callable[..., jax.Array], tuple[jax.Array, ...], int]] = [
        ("sum f32", lambda m: m.sum(), (matrix,), size),
        ("max f32", lambda m: m.max(), (matrix,), size),
        ("matrix @ vector f32", lambda m, v: m @ v, (matrix, row), size),
        ("vector @ matrix f32", lambda m, v: v @ m, (matrix, column), size),
        ("copy f32", lambda m: m + 1.0, (matrix,), 2 * size),
    ]
    if (
        device.platform != "cpu"
    ):  # XLA's CPU backend converts bfloat16 element by element: that would measure arithmetic
        with jax.default_device(device):
            half = jnp.ones((rows, 2 * columns), jnp.bfloat16)
        wide = jax.device_put(np.ones(2 * columns, jnp.bfloat16), device)
        programs.append(("matrix @ vector bf16", lambda m, v: m @ v, (half, wide), size))
    # An accelerator runs what is queued while the host dispatches the next: otherwise a read of a millisecond would pay for its dispatch.
    calls = 1 if device.platform == "cpu" else QUEUED
    probes = []
    for name, function, args, moved in programs:
        program = jax.jit(function).lower(*args).compile()
        probes.append(Probe(name, moved / _best(partial(_run, program, args, calls), calls)))
    return probes


def _numpy_probes(size: int) -> list[Probe]:
    """XLA's CPU reductions may run on one thread; numpy in as many threads as there are cores does not."""
    array = np.ones(size // 4, np.float32)
    matrix, vector = array.reshape(4096, -1), np.ones(size // 4 // 4096, np.float32)
    threads = os.cpu_count() or 1
    parts = np.array_split(array, threads)
    with ThreadPoolExecutor(threads) as pool:
        threaded = _best(lambda: list(pool.map(np.sum, parts)))
    return [
        Probe(f"numpy sum, {threads} threads", size / threaded),
        Probe("numpy matrix @ vector", size / _best(lambda: matrix @ vector)),
    ]


def _run(program: Callable[..., jax.Array], args: tuple[jax.Array, ...], calls: int) -> None:
    """Dispatch so many calls, which a device runs in order, and wait. What they return is dropped at once: some of it is as large as the array."""
    for _ in range(calls - 1):
        program(*args)
    jax.block_until_ready(program(*args))


def _best(call: Callable[[], object], times_in_call: int = 1) -> float:
    """Shortest of REPEATS calls after one for warming up, seconds; of one of the things that a call does `times_in_call` times."""
    call()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times) / times_in_call
