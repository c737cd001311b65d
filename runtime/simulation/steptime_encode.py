"""How long encoding media takes, and step times of instances that do it beside or instead of computing tokens.

A step that encodes runs the encode program on its items, and after it the extend program if it has rows: their times add
up. An encoder reads its weights once a step and multiplies them with every patch; attention is within an item, in some
encoders within windows of one (Qwen2.5-VL, arXiv 2502.13923).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from triptych.runtime.simulation.hardware import Hardware, HardwareError
from triptych.runtime.simulation.steptime import StepShape, StepTimes


class EncodeTimes(Protocol):
    """Seconds that an encode program takes on one kind of instance; `steptime_table.EncodeTable` is one."""

    def seconds(self, patches: int, pairs: int) -> float:
        """Of items with so many patches together; `pairs`: the squares of each item's patches, summed."""
        ...


class EncoderSizes(Protocol):
    """The sizes that decide; `models.vision.config.VisionConfig` has them."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def window(self) -> int | None: ...
    @property
    def full_layers(self) -> tuple[int, ...]: ...
    def parameter_count(self) -> int: ...


@dataclass(frozen=True)
class EncoderShape:
    """Bytes and operations of one encoder with its connector.

    Attributes:
        weights: all of them; each is counted as multiplied with every patch, although those of the connector may meet fewer
            rows and biases are only added.
        attention: operations per (query, key) pair, over the layers in which all of an item attend to each other.
        windowed: operations a patch of attention in the other layers, whatever the item's size.
    """

    weights: int
    attention: int
    windowed: int = 0
    value_bytes: int = 2

    @staticmethod
    def of(sizes: EncoderSizes, value_bytes: int = 2) -> EncoderShape:
        """`value_bytes`: 2 for bfloat16, 4 for float32."""
        layers = sizes.num_layers
        full = layers if sizes.window is None else sum(layer < layers for layer in sizes.full_layers)
        pair = 4 * sizes.hidden_size
        inside = 0 if sizes.window is None else sizes.window**2
        return EncoderShape(sizes.parameter_count(), full * pair, (layers - full) * pair * inside, value_bytes)

    @property
    def weight_bytes(self) -> int:
        return self.weights * self.value_bytes


@dataclass(frozen=True)
class RooflineEncoder:
    """EncodeTimes of `encoder` on `tp` chips of `hardware`, which share the work evenly; all-reduces are left out."""

    hardware: Hardware
    encoder: EncoderShape
    tp: int = 1

    def __post_init__(self) -> None:
        if self.tp < 1:
            raise HardwareError(f"tp is {self.tp}; expected at least 1")

    def seconds(self, patches: int, pairs: int) -> float:
        hardware, encoder = self.hardware, self.encoder
        flops = hardware.flops * hardware.flops_reached * self.tp
        bandwidth = hardware.bandwidth * hardware.bandwidth_reached * self.tp
        dense = max(encoder.weight_bytes / bandwidth, 2.0 * encoder.weights * patches / flops)
        return hardware.step_overhead + dense + (encoder.attention * pairs + encoder.windowed * patches) / flops


@dataclass(frozen=True)
class PerPatch:
    """`base` seconds a step that encodes, and so much a patch."""

    base: float
    per_patch: float

    def seconds(self, patches: int, pairs: int) -> float:
        return self.base + self.per_patch * patches


@dataclass(frozen=True)
class WithEncoder:
    """StepTimes of an instance that encodes. A step that does nothing but offer what was encoded before takes no time."""

    steps: StepTimes
    encoder: EncodeTimes

    def seconds(self, shape: StepShape) -> float:
        rows = shape.decode_rows or shape.prefill_rows
        tokens = self.steps.seconds(shape) if rows else 0.0
        return tokens + (self.encoder.seconds(shape.patches, shape.patch_pairs) if shape.patches else 0.0)

    def decode_run(self, shape: StepShape, steps: int) -> list[float]:
        return self.steps.decode_run(shape, steps)
