"""The device half of an instance that only encodes: no decoder, no KV pool, no sampler. Otherwise it is used as an `Engine` is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from jax.sharding import Mesh

from triptych.models.structure import Pools
from triptych.runtime.core.errors import EngineError
from triptych.runtime.engine.buckets import PlanError
from triptych.runtime.engine.compile_guard import compile_count
from triptych.runtime.engine.compiling import CompiledBeside, CompileReport, Progress, compile_programs
from triptych.runtime.engine.config import EngineConfig
from triptych.runtime.engine.kept_programs import KeptPrograms
from triptych.runtime.engine.media_stage import MediaStage
from triptych.runtime.engine.results import PendingStep, read
from triptych.runtime.instance.plan import StepPlan, StepResult


class EncodeEngine:
    """Executes plans that encode and export, on one mesh.

    Attributes:
        pools: always empty; the embeddings are in `media.pools`.
    """

    def __init__(self, config: EngineConfig, mesh: Mesh, media: MediaStage) -> None:
        self.config = config
        self.mesh = mesh
        self.media = media
        self.pools: Pools = ()
        self._broken: str | None = "it is not compiled yet"

    def compile(
        self,
        progress: Progress = lambda name, done, total: None,
        beside: Sequence[CompiledBeside] = (),
        kept: KeptPrograms | None = None,
    ) -> CompileReport:
        """Compile every program that is not `kept`, and those of what is `beside`, make the pool, and run each of the engine's once."""
        compile_count()  # starts the count of the compile guard
        programs = [program for part in (self.media, *beside) for program in part.programs()]
        compiled, report = compile_programs(programs, self.config.compile_threads, progress, kept)
        for part in (self.media, *beside):
            part.add(compiled)
        began = time.perf_counter()
        try:
            self.rebuild()
            self.media.run_each_once()
        except Exception as error:
            if kept is not None:
                kept.distrust()
            raise self.fail(error) from error
        return replace(report, warm_up_seconds=time.perf_counter() - began)

    def rebuild(self) -> None:
        """An empty pool after a failure. Raises EngineError if even that fails."""
        try:
            self.media.rebuild()
        except Exception as error:
            raise self.fail(error) from error
        self._broken = None

    @property
    def draft(self) -> None:
        """A draft model: there is none."""
        return None

    @property
    def params(self) -> tuple[()]:
        """A decoder's weights: there is none."""
        return ()

    @property
    def broken(self) -> str | None:
        """Why the engine cannot run a plan, or None."""
        return self._broken

    def dispatch(self, plan: StepPlan) -> PendingStep:
        """Start a step without waiting for it. Raises EngineError, which leaves the engine broken."""
        if self._broken is not None:
            raise EngineError(f"the engine cannot run plans: {self._broken}; rebuild it")
        try:
            if plan.rows or plan.seats or plan.copies:
                raise PlanError(f"plan {plan.id} has {len(plan.rows)} rows; this engine only encodes")
            encoded = self.media.encode(plan.encodes) if plan.encodes else None
        except Exception as error:
            raise self.fail(error) from error
        return PendingStep(plan, encoded)

    def collect(self, pending: PendingStep) -> StepResult:
        """Wait for a step. Steps are collected in the order of their dispatch. Raises EngineError when it failed."""
        if self._broken is not None:
            raise EngineError(f"plan {pending.plan.id} is lost: {self._broken}")
        try:
            return read(pending)
        except Exception as error:
            raise self.fail(error) from error

    def fail(self, error: Exception) -> EngineError:
        """Mark the engine broken and return the error to raise; also for others whose donating call on the pool failed."""
        self._broken = f"{type(error).__name__}: {error}"
        if isinstance(error, EngineError):
            return error
        return EngineError(f"a device program failed and the media pool is lost: {self._broken}")
