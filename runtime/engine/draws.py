"""The draws of a plan as the sampler's inputs: which variant, which bucket, the packed parameters, and what to report of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from triptych.runtime.engine.buckets import PlanError, smallest
from triptych.runtime.engine.packing import Packing
from triptych.runtime.engine.sample import MAX_SPARSE, Variant, sample_packing
from triptych.runtime.engine.state import SlotTables
from triptych.runtime.instance.plan import Draw, Seat, StepPlan


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

    def __init__(self, sizes: tuple[int, ...], slots: int) -> None:
        self.tables = SlotTables(slots)
        self._sizes, self._slots = sizes, slots
        self._packings: dict[tuple[Variant, int], Packing] = {
            (variant, size): sample_packing(variant, size) for variant in Variant for size in sizes
        }

    def pack(self, plan: StepPlan) -> DrawBatch | None:
        """The draws of all rows; None when there are none. Raises PlanError."""
        draws = [draw for row in plan.rows for draw in row.draws]
        if not draws:
            return None
        size = smallest(self._sizes, len(draws), "draws")
        seats = [self.tables.seated(draw.slot) for draw in draws]
        variant = _variant(draws, seats)
        packed, views = self._packings[variant, size].host()
        slots = np.fromiter((draw.slot for draw in draws), np.int32, len(draws))
        views["slot"][: len(draws)] = slots
        views["slot"][len(draws) :] = self._slots
        if variant is not Variant.GREEDY:
            self._fill_columns(views, slots, draws)
        if variant is Variant.FULL:
            for at, (draw, seat) in enumerate(zip(draws, seats, strict=True)):
                self._fill_sparse(views["sparse_ids"][at], views["sparse_values"][at], draw, seat)
        return DrawBatch(variant, size, packed, tuple(seat.params.logprobs for seat in seats))

    def _fill_columns(self, views: dict[str, np.ndarray], slots: np.ndarray, draws: list[Draw]) -> None:
        count = len(draws)
        for name, column in self.tables.columns.items():
            if name in views:
                views[name][:count] = column[slots]
        views["position"][:count] = [draw.position for draw in draws]
        if "repetition" in views:
            views["repetition"][count:] = 1.0  # padding rows are not read, but shall not divide by zero

    def _fill_sparse(self, ids: np.ndarray, values: np.ndarray, draw: Draw, seat: Seat) -> None:
        used = 0
        bias = self.tables.sparse[draw.slot]
        if bias is not None:
            used = len(bias[0])
            ids[:used], values[:used] = bias
        forbidden = _forbidden(draw, seat)
        end = used + len(forbidden)
        ids[used:end], values[used:end] = forbidden, -np.inf


def _forbidden(draw: Draw, seat: Seat) -> tuple[int, ...]:
    """Ids that may not be drawn there."""
    least = seat.forbidden if draw.position < seat.forbidden_until else ()
    return (*least, *seat.forbidden_first) if draw.position == seat.first else least


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


def _variant(draws: list[Draw], seats: list[Seat]) -> Variant:
    """The least variant that serves every draw."""
    random = filtered = False
    for draw, seat in zip(draws, seats, strict=True):
        params = seat.params
        forbidden = _forbidden(draw, seat)
        if params.penalised or params.logit_bias or params.logprobs is not None or forbidden:
            return Variant.FULL
        if not params.greedy:
            random = True
            filtered = filtered or params.top_k > 0 or params.top_p < 1 or params.min_p > 0
    return Variant.FILTERED if filtered else Variant.RANDOM if random else Variant.GREEDY
