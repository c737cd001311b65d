"""An engine of no device: it runs only what it has programs for, draws token 7, and keeps the plans in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from triptych.models.config import PRESETS
from triptych.runtime.engine.buckets import Demand, ProgramChoice
from triptych.runtime.engine.compiling import CompileReport
from triptych.runtime.engine.config import EngineConfig
from triptych.runtime.engine.results import PendingStep
from triptych.runtime.instance.plan import Drawn, RowResult, StepPlan, StepResult
from triptych.tools.bench.engine.rig import Rig
from triptych.tools.bench.engine.work import ModelWork

TOY = PRESETS["toy"]
WEIGHT_BYTES = 1_000_000


@dataclass
class FakeEngine:
    """`log` has ("dispatch" or "collect", plan id) in order, `plans` every plan with rows."""

    config: EngineConfig
    log: list[tuple[str, int]] = field(default_factory=list)
    plans: list[StepPlan] = field(default_factory=list)

    def dispatch(self, plan: StepPlan) -> PendingStep:
        self.log.append(("dispatch", plan.id))
        if plan.rows:
            self.plans.append(plan)
            decode = [row for row in plan.rows if row.decode]
            prefill = [row for row in plan.rows if not row.decode]
            ends = [row.start + row.length for row in plan.rows]
            assert all(page < self.config.num_pages for row in plan.rows for page in row.pages)
            width = -(-max(ends) // self.config.page_size)
            demand = Demand(len(decode), len(prefill), sum(row.length for row in prefill), width)
            ProgramChoice(self.config.buckets, self.config.max_prefill_rows).cheapest(demand)  # raises if there is none
        return PendingStep(plan, None)

    def collect(self, pending: PendingStep) -> StepResult:
        self.log.append(("collect", pending.plan.id))
        rows = pending.plan.rows
        return StepResult(
            pending.plan.id, tuple(RowResult(r.sequence, tuple(Drawn(d.slot, 7) for d in r.draws)) for r in rows)
        )


@dataclass(frozen=True)
class FakeRig(Rig):
    """`engines`: those that parts asked for, in order."""

    engines: list[FakeEngine] = field(default_factory=list)

    @property
    def work(self) -> ModelWork:
        return ModelWork(TOY, WEIGHT_BYTES, kv_token_bytes=512)

    def engine(self, config: EngineConfig) -> tuple[Any, CompileReport]:
        self.engines.append(FakeEngine(config))
        return self.engines[-1], CompileReport(1, 0.0, 0.0)


@dataclass(frozen=True)
class Loaded:
    config: Any = TOY


def fake_rig(seconds: float = 0.0, page_size: int = 16) -> FakeRig:
    return FakeRig(
        cast(Any, Loaded()), cast(Any, None), "float32", page_size, "reference", 1, seconds, lambda text: None
    )
