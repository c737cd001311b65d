"""What has to be reached at published shapes: milliseconds of steps and prompts, tokens a second, seconds of a start.

The bounds are for one NVIDIA H100 80GB HBM3 (bf16, greedy, prefix cache off), set below what other engines reached on it. Machines of that kind differ by 5 to
10 %: where the best read probe is slower than REFERENCE_READ, bounds of decode steps are scaled up by their ratio. On machines of other kinds the bounds say
where an H100 would have to be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from triptych.models.config import ModelConfig
from triptych.tools.bench.engine.ceilings import Ceilings

REFERENCE_READ = 2.5e12  # bytes per second


@dataclass(frozen=True)
class Bound:
    """`must` and, beyond it, `stretch`: both at most, or both at least where more is better."""

    must: float
    stretch: float
    more_is_better: bool = False

    def met(self, value: float) -> bool:
        return value >= self.must if self.more_is_better else value <= self.must

    def scaled(self, factor: float) -> Bound:
        return Bound(self.must * factor, self.stretch * factor, self.more_is_better)


Bounds = Mapping[tuple[str, int], Bound]
"""By figure and row: decode by batch and prefill by prompt tokens in ms, offline and burst in tokens/s, start (0: cold, 1: warm) in s."""

LLAMA_8B: Bounds = {
    ("decode", 1): Bound(6.3, 5.9),
    ("decode", 8): Bound(6.8, 6.4),
    ("decode", 32): Bound(8.2, 7.8),
    ("decode", 64): Bound(9.8, 9.4),
    ("decode", 128): Bound(13.2, 12.7),
    ("decode", 256): Bound(20.4, 19.8),
    ("prefill", 512): Bound(14.5, 13.3),
    ("prefill", 2048): Bound(51.0, 48.0),
    ("prefill", 8192): Bound(207.0, 198.0),
    ("offline", 0): Bound(6_800.0, 7_200.0, more_is_better=True),
    ("burst", 0): Bound(43_500.0, 45_000.0, more_is_better=True),
    ("start", 0): Bound(60.0, 45.0),
    ("start", 1): Bound(25.0, 15.0),
}
SMOLLM2_135M: Bounds = {
    ("decode", 1): Bound(1.2, 0.9),
    ("decode", 32): Bound(2.0, 1.5),
    ("decode", 256): Bound(5.0, 4.0),
    ("offline", 0): Bound(30_000.0, 40_000.0, more_is_better=True),
}
# By hidden size, layers, query heads, KV heads, FFN and vocabulary: a checkpoint of the shape is under its own name.
_BY_SHAPE: Mapping[tuple[int, ...], Bounds] = {
    (4096, 32, 32, 8, 14336, 128256): LLAMA_8B,
    (576, 30, 9, 3, 1536, 49152): SMOLLM2_135M,
}
# What the bounds of batches were set for: requests, prompt tokens, output tokens. `decode` was at this context.
LOADS = {"offline": (256, 512, 128), "burst": (32, 2048, 1)}
CONTEXT = 1024


def bounds_of(config: ModelConfig, ceilings: Ceilings) -> Bounds:
    """The bounds of a known shape, scaled to the machine; none for another one."""
    shape = (config.hidden_size, config.num_layers, config.num_heads, config.num_kv_heads, config.intermediate_size)
    bounds = _BY_SHAPE.get((*shape, config.vocab_size), {})
    factor = max(1.0, REFERENCE_READ / ceilings.read_rate)
    return {key: bound.scaled(factor) if key[0] == "decode" else bound for key, bound in bounds.items()}
