"""The draws of a plan as the sampler's inputs: which variant, which bucket, the packed parameters, and what to report of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from triptych.runtime.engine.buckets import PlanError, smallest
from triptych.runtime.engine.packing import Packing
from triptych.runtime.engine.sample import MAX_SPARSE, sample_packing
from triptych.runtime.engine.state import SlotTables
from triptych.runtime.engine.variants import Variant
from triptych.runtime.instance.columns import draws_of
from triptych.runtime.instance.plan import Seat, StepPlan


@dataclass(frozen=True)
class DrawBatch:
    """One step's draws, in plan order.

    `logprobs[i]` is how many likely tokens draw i reports, None for no log-probabilities: copied from its seat now, because a later plan
    may give the slot away before this step's results are read.
    """

    variant: Variant
    size: int
    packed: np.ndarray
    logprobs: tuple[int | None, ...]


class DrawPacker:
    """Packs draws for the compiled sizes."""

    def __init__(self, sizes: tuple[int, ...], slots: int, beyond: int | None = None) -> None:
        """Padding draws are for slot `beyond`, which no table on the device has (None: `slots`)."""
        self.tables = SlotTables(slots)
        self._sizes, self._beyond = sizes, slots if beyond is None else beyond
        self._packings: dict[tuple[Variant, int], Packing] = {
            (variant, size): sample_packing(variant, size) for variant in Variant for size in sizes
        }

    def pack(self, plan: StepPlan) -> DrawBatch | None:
        """The draws of all rows; None when there are none. Raises PlanError."""
        slots, positions, _ = draws_of(plan.rows)
        count, tables = len(slots), self.tables
        if not count:
            return None
        size = smallest(self._sizes, count, "draws")
        variant = tables.variant(slots)
        if tables.forbidding and any(self._forbids(slot, at) for slot, at in zip(slots, positions, strict=True)):
            variant = Variant.FULL
        packed, views = self._packings[variant, size].host()
        views["slot"][:count] = slots
        views["slot"][count:] = self._beyond
        if variant is not Variant.GREEDY:
            self._fill_columns(views, positions)
        if variant is not Variant.FULL:
            return DrawBatch(variant, size, packed, (None,) * count)
        seats = [tables.seated(slot) for slot in slots]
        for at, (seat, position) in enumerate(zip(seats, positions, strict=True)):
            self._fill_sparse(views["sparse_ids"][at], views["sparse_values"][at], seat, position)
        return DrawBatch(variant, size, packed, tuple(seat.params.logprobs for seat in seats))

    def _forbids(self, slot: int, position: int) -> bool:
        return slot in self.tables.forbidding and bool(_forbidden(self.tables.seated(slot), position))

    def _fill_columns(self, views: dict[str, np.ndarray], positions: Sequence[int]) -> None:
        count = len(positions)
        slots = views["slot"][:count]
        for name, column in self.tables.columns.items():
            if name in views:
                views[name][:count] = column[slots]
        views["position"][:count] = positions
        if "repetition" in views:
            views["repetition"][count:] = 1.0  # padding rows are not read, but shall not divide by zero

    def _fill_sparse(self, ids: np.ndarray, values: np.ndarray, seat: Seat, position: int) -> None:
        used = 0
        bias = self.tables.sparse[seat.slot]
        if bias is not None:
            used = len(bias[0])
            ids[:used], values[:used] = bias
        forbidden = _forbidden(seat, position)
        end = used + len(forbidden)
        ids[used:end], values[used:end] = forbidden, -np.inf


def _forbidden(seat: Seat, position: int) -> tuple[int, ...]:
    """Ids that may not be drawn there."""
    least = seat.forbidden if position < seat.forbidden_until else ()
    return (*least, *seat.forbidden_first) if position == seat.first else least


def check_seat(seat: Seat, slots: int, vocab: int) -> None:
    """Raises PlanError for a seat that the sampler cannot hold."""
    if not 0 <= seat.slot < slots:
        raise PlanError(f"seat for slot {seat.slot}; slots are 0 to {slots - 1}")
    forbidden = (*seat.forbidden, *seat.forbidden_first)
    entries = len(seat.params.logit_bias) + len(forbidden)
    if entries > MAX_SPARSE:
        raise PlanError(f"slot {seat.slot} has {entries} biased and forbidden ids; the sampler holds {MAX_SPARSE}")
    largest = max((*seat.prompt, *seat.outputs, *forbidden), default=0)
    if largest >= vocab:
        raise PlanError(f"slot {seat.slot} names token id {largest}; the vocabulary has {vocab}")
