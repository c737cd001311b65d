"""How long a device step takes: what a StepPlan asks of the device, in numbers, and the protocol of what turns the
numbers into seconds.

A model of a device sees counts only (`StepShape`), never tokens, so the same models serve the simulator, the planner
and the comparison with measurements. Three are provided: `Affine` here (for tests and for whoever has two numbers),
`Roofline` (roofline.py, from a description of the hardware) and `StepTable` (steptime_table.py, measured on the real
engine by `triptych calibrate`). None of them knows encoders: those are in steptime_encode.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from triptych.runtime.instance.columns import DecodeRows
from triptych.runtime.instance.core import InstanceCore
from triptych.runtime.instance.plan import StepPlan


@dataclass(frozen=True, slots=True)
class StepShape:
    """The work of one step.

    Attributes:
        decode_rows: rows with one input token.
        decode_context: KV tokens that those rows read, their own included, summed.
        prefill_rows: rows with more than one input token, or with tokens to score.
        prefill_tokens: input tokens of those rows, summed.
        prefill_context: KV tokens that were there before those rows' tokens, summed over rows.
        prefill_pairs: (query, key) pairs of those rows: what causal attention computes.
        longest: KV tokens of the longest row after the step; programs are compiled for table widths.
        draws: tokens drawn.
        exported_pages: pages gathered for pullers after the step.
        copied_pages: pages copied before the step, for forks.
        patches: encoder positions of the media items that are encoded, summed.
        patch_pairs: (query, key) pairs of encoder positions, each item's square summed.
    """

    decode_rows: int = 0
    decode_context: int = 0
    prefill_rows: int = 0
    prefill_tokens: int = 0
    prefill_context: int = 0
    prefill_pairs: int = 0
    longest: int = 0
    draws: int = 0
    exported_pages: int = 0
    copied_pages: int = 0
    patches: int = 0
    patch_pairs: int = 0


def shape_of(plan: StepPlan) -> StepShape:
    """What `plan` asks of the device."""
    rows = context = draws = longest = 0
    prefill_rows = tokens = before = pairs = 0
    others = plan.rows
    if isinstance(others, DecodeRows):
        rows = draws = len(others)
        context, longest, others = sum(others.starts) + rows, max(others.starts) + 1, ()
    for row in others:
        start, length = row.start, row.length
        longest = max(longest, start + length)
        if row.decode:
            rows += 1
            context += start + 1
        else:
            prefill_rows += 1
            tokens += length
            before += start
            pairs += length * start + length * (length + 1) // 2
        draws += len(row.draws)
    exported = sum(len(export.pages) for export in plan.exports)
    patches = [encode.patches for encode in plan.encodes]
    return StepShape(
        rows, context, prefill_rows, tokens, before, pairs, longest, draws, exported, len(plan.copies),
        sum(patches), sum(count * count for count in patches),
    )  # fmt: skip


class StepTimes(Protocol):
    """Seconds that steps take on one kind of instance. Deterministic; spread is the business of whoever asks."""

    def seconds(self, shape: StepShape) -> float:
        """From the start of the step on an idle device to its results on the host, less what the step before hides."""
        ...

    def decode_run(self, shape: StepShape, steps: int) -> list[float]:
        """Seconds of each of `steps` successive decode steps. `shape` is that of the first one and has no prefill;
        every row's context grows by one a step. Must agree with `seconds` to the last bit, or a simulation that leaps
        would differ from one that does not."""
        ...


def grown(shape: StepShape, steps: int) -> StepShape:
    """`shape` of a pure decode step, `steps` steps later."""
    rows, context = shape.decode_rows, shape.decode_context + steps * shape.decode_rows
    return StepShape(rows, context, longest=shape.longest + steps, draws=shape.draws)


@dataclass(frozen=True)
class Affine:
    """`base` seconds a step, and so much per decode row, per KV token read by decode, and per prefill token."""

    base: float = 5e-3
    per_row: float = 0.0
    per_context: float = 0.0
    per_prefill_token: float = 0.0

    def seconds(self, shape: StepShape) -> float:
        return (
            self.base
            + self.per_row * shape.decode_rows
            + self.per_context * shape.decode_context
            + self.per_prefill_token * shape.prefill_tokens
        )

    def decode_run(self, shape: StepShape, steps: int) -> list[float]:
        fixed, rows, context = self.base + self.per_row * shape.decode_rows, shape.decode_rows, shape.decode_context
        return [fixed + self.per_context * (context + step * rows) for step in range(steps)]


@dataclass(frozen=True)
class PlanTimes:
    """Any StepTimes as the simulated workers ask for it (timing.StepTime)."""

    times: StepTimes

    def seconds(self, plan: StepPlan, core: InstanceCore) -> float:
        return self.times.seconds(shape_of(plan))
