"""Step times from first principles: bytes over bandwidth or operations over peak, whichever takes longer (Williams et
al. 2009).

A step reads every weight once, whatever the batch, and multiplies each with every token; attention reads the KV of
every decode row, and computes the (query, key) pairs of prefill rows. The dense part and the attention part follow one
another, so each takes the longer of its two bounds:

    seconds = overhead + max(weights / bandwidth, dense operations / flops) + max(KV read / bandwidth, attention
    operations / flops) + all-reduces

What it leaves out: activations (small beside weights and KV), padding of compiled sizes, and how much worse than large
ones small matrices are. Against Llama-3.1-8B in vLLM 0.23 on an H100 it is 1 to 5 % below the measured decode steps of
1 to 256 rows, and below prefills by 12 % at 8,192 tokens, 19 % at 2,048 and 35 % at 512
(tests/runtime/simulation/test_roofline.py has the figures). Short prompts and small models have more overhead than is
modelled: calibrate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from triptych.runtime.simulation.hardware import Hardware, HardwareError
from triptych.runtime.simulation.steptime import StepShape

VECTOR = 40  # steps from which on numpy's cost a call is less than that of a loop
KV_SHARE = 0.9  # of the memory that weights leave: the rest is activations, workspaces, fragmentation


class DecoderSizes(Protocol):
    """The sizes that decide; `models.config.ModelConfig` has them."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...


@dataclass(frozen=True)
class ModelShape:
    """Bytes and operations of one decoder, over all its chips.

    Attributes:
        layers, hidden: for all-reduces.
        dense: weights that every token is multiplied with: all layers, without embedding and output head.
        head: weights of the output head, read and multiplied once a drawn token.
        kv_bytes: bytes of KV a token.
        attention: operations per (query, key) pair: scores and weighted sum.
        value_bytes: bytes of a weight or activation.
    """

    layers: int
    hidden: int
    dense: int
    head: int
    kv_bytes: int
    attention: int
    value_bytes: int = 2

    @staticmethod
    def of(sizes: DecoderSizes, value_bytes: int = 2, kv_value_bytes: int | None = None) -> ModelShape:
        """The shape of a dense decoder with gated feed-forward layers; `value_bytes` is 2 for bfloat16, 4 for float32."""
        heads = 2 * (sizes.num_heads + sizes.num_kv_heads) * sizes.head_dim
        layer = sizes.hidden_size * heads + 3 * sizes.hidden_size * sizes.intermediate_size
        kv = 2 * sizes.num_layers * sizes.num_kv_heads * sizes.head_dim * (kv_value_bytes or value_bytes)
        return ModelShape(
            layers=sizes.num_layers,
            hidden=sizes.hidden_size,
            dense=sizes.num_layers * layer,
            head=sizes.vocab_size * sizes.hidden_size,
            kv_bytes=kv,
            attention=4 * sizes.num_layers * sizes.num_heads * sizes.head_dim,
            value_bytes=value_bytes,
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights that are kept; an embedding of its own is counted although no step reads it."""
        return (self.dense + 2 * self.head) * self.value_bytes


class Roofline:
    """StepTimes of `model` on `tp` chips of `hardware`, weights, KV heads and operations divided evenly among them."""

    def __init__(self, hardware: Hardware, model: ModelShape, tp: int = 1):
        if tp < 1:
            raise HardwareError(f"tp is {tp}; expected at least 1")
        self.hardware, self.model, self.tp = hardware, model, tp
        self._flops = hardware.flops * hardware.flops_reached * tp
        self._bandwidth = hardware.bandwidth * hardware.bandwidth_reached * tp
        # A ring all-reduce moves each byte 2 (tp - 1) / tp times; two a layer, after attention and after the FFN.
        moved = 2 * model.hidden * model.value_bytes * 2 * (tp - 1) / tp
        self._reduce_token = model.layers * moved / hardware.link
        self._reduce_step = model.layers * 2 * 2 * (tp - 1) * hardware.link_latency
        self._decodes: dict[tuple[int, int], float] = {}  # what _parts has computed for (rows, draws)

    def seconds(self, shape: StepShape) -> float:
        dense, read, pairs = self._parts(shape)
        moved = read + self.model.kv_bytes * shape.decode_context
        return dense + max(moved / self._bandwidth, (pairs + self.model.attention * shape.decode_context) / self._flops)

    def decode_run(self, shape: StepShape, steps: int) -> list[float]:
        (dense, read, pairs), first, rows = self._parts(shape), shape.decode_context, shape.decode_rows
        kv, attention, bandwidth, flops = self.model.kv_bytes, self.model.attention, self._bandwidth, self._flops
        if steps < VECTOR:
            contexts = range(first, first + steps * rows, rows)
            return [dense + max((read + kv * c) / bandwidth, (pairs + attention * c) / flops) for c in contexts]
        context = first + rows * np.arange(steps, dtype=np.float64)
        return (dense + np.maximum((read + kv * context) / bandwidth, (pairs + attention * context) / flops)).tolist()

    def _parts(self, shape: StepShape) -> tuple[float, float, float]:
        """(seconds of everything but attention, KV bytes that prefill rows read, their attention operations)."""
        if not shape.prefill_rows:
            key = (shape.decode_rows, shape.draws)
            seconds = self._decodes.get(key)
            if seconds is None:
                seconds = self._decodes[key] = self._dense(*key)
            return seconds, 0, 0
        seconds = self._dense(shape.decode_rows + shape.prefill_tokens, shape.draws)
        return seconds, self.model.kv_bytes * shape.prefill_context, self.model.attention * shape.prefill_pairs

    def _dense(self, tokens: int, draws: int) -> float:
        """Seconds of a step without attention."""
        model = self.model
        weights = model.dense + (model.head if draws else 0)
        operations = 2.0 * (model.dense * tokens + model.head * draws)
        dense = max(weights * model.value_bytes / self._bandwidth, operations / self._flops)
        return self.hardware.step_overhead + self._reduce_step + self._reduce_token * tokens + dense

    @property
    def kv_tokens(self) -> int:
        """KV tokens that fit beside the weights. Raises HardwareError if the weights do not fit."""
        free = self.hardware.memory * self.tp * KV_SHARE - self.model.weight_bytes
        if free < self.model.kv_bytes:
            raise HardwareError(
                f"{self.model.weight_bytes / 1e9:.1f} GB of weights leave no room for KV on {self.tp} x {self.hardware.name} "
                f"({self.hardware.memory / 1e9:.0f} GB each); use more chips (tp)"
            )
        return int(free // self.model.kv_bytes)

    @property
    def price(self) -> float | None:
        """Dollars an hour of the instance."""
        return None if self.hardware.price is None else self.hardware.price * self.tp
