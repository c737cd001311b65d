"""What a step has to do at least: bytes moved through memory and floating-point operations, and the time that both need.

A step reads every weight once (a gathered embedding table aside) and the KV of its rows once. It multiplies each token by each weight of the
layers, each query by the keys and values that it may see, and the hidden states that are drawn from by the output head. Of the last layer, a token that
is not drawn from needs its key and value alone. Activations, sampling and page tables
are small beside that and are not counted, so no program can be faster than `floor`, and a good one is a little slower.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from triptych.models.config import ModelConfig
from triptych.runtime.instance.plan import StepPlan


@dataclass(frozen=True)
class Work:
    """Bytes and operations of one step on one device of the mesh."""

    weight_bytes: float
    kv_bytes: float
    operations: float

    def floor(self, bandwidth: float, rate: float) -> float:
        """Seconds at `bandwidth` bytes and `rate` operations per second: the slower of both, as if they overlapped entirely."""
        return max((self.weight_bytes + self.kv_bytes) / bandwidth, self.operations / rate)


@dataclass(frozen=True)
class ModelWork:
    """What a model's steps consist of. `weight_bytes` are those that one step reads, over all devices; `kv_token_bytes` of one layer."""

    config: ModelConfig
    weight_bytes: int
    kv_token_bytes: int
    tp: int = 1

    @property
    def token_operations(self) -> float:
        """Of one token in the products of all layers: two for each weight."""
        config = self.config
        table = config.vocab_size * config.hidden_size * (1 if config.tie_embeddings else 2)
        return 2.0 * (config.parameter_count() - table)

    @property
    def last_operations(self) -> float:
        """Of one token in the products of one layer, but for those that give its key and value."""
        config = self.config
        attention = 2 * config.num_heads * config.head_dim * config.hidden_size
        return 2.0 * (attention + 3 * config.hidden_size * config.intermediate_size)

    def of(self, plan: StepPlan) -> Work:
        """The work of a plan's rows."""
        drawn = [row for row in plan.rows if row.draws]
        others = [row for row in plan.rows if not row.draws]
        return self.of_rows([(row.start, row.length) for row in (*drawn, *others)], len(drawn))

    def of_rows(self, rows: Iterable[tuple[int, int]], draws: int) -> Work:
        """The work of rows given as (tokens before them, their own tokens); the first `draws` are drawn from."""
        config, rows = self.config, list(rows)
        pairs = kv_tokens = 0.0
        last = len(config.layer_windows) - 1
        for layer, window in enumerate(config.layer_windows):
            for number, (start, length) in enumerate(rows):
                if layer < last:
                    pairs += _pairs(start, length, window)
                elif number < draws:
                    pairs += _pairs(start + length - 1, 1, window)
                kv_tokens += start + length if window is None else min(start + length, window + length)
        tokens = sum(length for _, length in rows)
        operations = tokens * self.token_operations
        operations -= max(tokens - draws, 0) * self.last_operations
        operations += pairs * 4.0 * config.num_heads * config.head_dim
        operations += draws * 2.0 * config.vocab_size * config.hidden_size
        return Work(self.weight_bytes / self.tp, kv_tokens * self.kv_token_bytes / self.tp, operations / self.tp)


def _pairs(start: int, length: int, window: int | None) -> float:
    """Queries and the keys that they may see: each token sees itself and what is before it, `window` tokens at most."""
    if window is None or start + length <= window:
        return length * start + length * (length + 1) / 2
    return float(sum(min(start + at + 1, window) for at in range(length)))
