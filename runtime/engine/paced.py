"""An engine that takes the time of another: it computes its own steps, small ones of a toy model say, and gives each back only when a model of some
other device says that it would be done.

Everything around the device is live then (scheduler, transports, the pure half, the device loop), and a few cores hold deployments that would need many
devices. One step runs at a time, in order, as on a device; a step that really takes longer than it should is back as soon as it is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from jax.sharding import Mesh

from triptych.runtime.engine.config import EngineConfig
from triptych.runtime.engine.decoders import ServedDecoder
from triptych.runtime.engine.draft_stage import DraftStage
from triptych.runtime.engine.engine import Engine
from triptych.runtime.engine.media_stage import MediaStage
from triptych.runtime.engine.results import PartialStep, PendingStep
from triptych.runtime.instance.plan import StepPlan, StepResult

Pace = Callable[[StepPlan], float]
"""Seconds that a step takes on the device that is stood in for."""


@dataclass(frozen=True)
class PacedStep(PendingStep):
    """A step under way. `due`: when its results may be seen, in seconds of time.monotonic."""

    due: float = 0.0


class PacedEngine(Engine):
    """An Engine whose steps take at least what `pace` says."""

    def __init__(
        self,
        config: EngineConfig,
        loaded: ServedDecoder,
        mesh: Mesh,
        pace: Pace,
        media: MediaStage | None = None,
        draft: DraftStage | None = None,
    ) -> None:
        super().__init__(config, loaded, mesh, media, draft)
        self._pace = pace
        self._free_at = 0.0

    def dispatch(self, plan: StepPlan) -> PacedStep | PartialStep:
        began = time.monotonic()
        step = super().dispatch(plan)
        self._free_at = max(self._free_at, began) + self._pace(plan)
        return self._paced(step)

    def advance(self, step: PartialStep) -> PacedStep | PartialStep:
        return self._paced(super().advance(step))

    def _paced(self, step: PendingStep | PartialStep) -> PacedStep | PartialStep:
        return step if isinstance(step, PartialStep) else PacedStep(**vars(step), due=self._free_at)

    def collect(self, pending: PendingStep | PartialStep) -> StepResult:
        while isinstance(pending, PartialStep):
            pending = self.advance(pending)
        result = super().collect(pending)
        assert isinstance(pending, PacedStep), "it was dispatched here"
        time.sleep(max(0.0, pending.due - time.monotonic()))
        return result
