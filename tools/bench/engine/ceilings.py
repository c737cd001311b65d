"""How fast this machine moves bytes and multiplies: several probes, because no single one reaches the limit everywhere.

Memory probes are those of `triptych floor` (bandwidth.py); on NVIDIA GPUs cuDNN's attention over a dense KV cache is another one, which often reads
fastest. Products are of square matrices and of a prompt with an FFN's weights, in the engine's dtype and on random numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from triptych.sharding.devices import Device
from triptych.tools.bench import bandwidth
from triptych.tools.bench.bandwidth import Probe

QUEUED = 8  # calls dispatched before one is waited for: what the host takes for each is hidden behind the ones before
ROUNDS = 5
CPU_SIZES = ((1024, 1024, 1024), (256, 2048, 2048))
ACCELERATOR_SIZES = ((4096, 4096, 4096), (8192, 8192, 8192), (2048, 4096, 28672))
ATTENTION = (32, 8192, 32, 8, 128)  # batch, context, query heads, KV heads, head size: 1.07 GB of KV


@dataclass(frozen=True)
class Ceilings:
    """What probes reached on one device, best first: reads and copies in bytes per second, products in operations per second."""

    memory: tuple[Probe, ...]
    products: tuple[Probe, ...]
    device: str = ""

    @property
    def bandwidth(self) -> float:
        return self.memory[0].rate

    @property
    def rate(self) -> float:
        return self.products[0].rate

    @property
    def read_rate(self) -> float:
        """The best probe that only reads."""
        return max(probe.rate for probe in self.memory if not probe.name.startswith("copy"))

    def best_of(self, other: Ceilings) -> Ceilings:
        """Probe by probe the better one: machines change under a measurement."""
        return Ceilings(_best(self.memory, other.memory), _best(self.products, other.products), self.device)


def measure(device: Device, dtype: str, note: Callable[[str], None] = lambda text: None) -> Ceilings:
    """All probes. `note` is told of one that this machine cannot run."""
    memory = bandwidth.measure(device)
    if device.platform == "gpu":
        try:
            memory.append(_attention_probe(device))
        except (
            RuntimeError,
            ValueError,
            NotImplementedError,
        ) as error:  # an older GPU, a jax without cuDNN, no memory left: the other probes are there
            note(f"no cuDNN attention probe: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
    sizes = CPU_SIZES if device.platform == "cpu" else ACCELERATOR_SIZES
    products = [_product_probe(device, dtype, *size) for size in sizes]
    return Ceilings(_sorted(memory), _sorted(products), device.device_kind)


def queued_seconds(call: Callable[[], Any], queued: int = QUEUED, rounds: int = ROUNDS) -> float:
    """Seconds of one call that runs on the device, of many in a row; the best of some rounds."""
    jax.block_until_ready(call())
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        last = [call() for _ in range(queued)]
        jax.block_until_ready(last)
        best = min(best, (time.perf_counter() - began) / queued)
    return best


def _product_probe(device: Device, dtype: str, rows: int, inner: int, columns: int) -> Probe:
    with jax.default_device(device):
        left, right = (
            jax.random.normal(jax.random.key(seed), shape, jnp.dtype(dtype))
            for seed, shape in enumerate(((rows, inner), (inner, columns)))
        )
    program = jax.jit(lambda a, b: a @ b).lower(left, right).compile()
    seconds = queued_seconds(lambda: program(left, right))
    return Probe(f"{rows} x {inner} x {columns} {dtype}", 2.0 * rows * inner * columns / seconds)


def _attention_probe(device: Device) -> Probe:
    """One query a sequence over a dense cache, as a decode step has it, by cuDNN."""
    batch, context, heads, kv_heads, size = ATTENTION
    with jax.default_device(device):
        q = jax.random.normal(jax.random.key(0), (batch, 1, heads, size), jnp.bfloat16)
        k, v = (jax.random.normal(jax.random.key(i), (batch, context, kv_heads, size), jnp.bfloat16) for i in (1, 2))
        lengths = jnp.full((batch,), context, jnp.int32)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation="cudnn")

    program = jax.jit(attend).lower(q, k, v, lengths).compile()
    return Probe("cuDNN attention bf16", (k.nbytes + v.nbytes) / queued_seconds(lambda: program(q, k, v, lengths)))


def _sorted(probes: Sequence[Probe]) -> tuple[Probe, ...]:
    return tuple(sorted(probes, key=lambda probe: -probe.rate))


def _best(first: Sequence[Probe], second: Sequence[Probe]) -> tuple[Probe, ...]:
    rates = {probe.name: probe.rate for probe in second}
    return _sorted([Probe(probe.name, max(probe.rate, rates.get(probe.name, 0.0))) for probe in first])
