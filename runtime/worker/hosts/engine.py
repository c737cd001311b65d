"""An engine whose mesh lies on several hosts."""

from __future__ import annotations

from collections.abc import Callable

from jax.sharding import Mesh

from triptych.runtime.core.errors import EngineError
from triptych.runtime.engine.config import EngineConfig
from triptych.runtime.engine.decoders import ServedDecoder
from triptych.runtime.engine.engine import Engine
from triptych.runtime.engine.results import PartialStep, PendingStep
from triptych.runtime.instance.plan import StepPlan
from triptych.runtime.worker.hosts.calls import DeviceCalls, plan_call


class SpreadEngine(Engine):
    """The engine of one of the hosts; all of them run the same plans. `meet` returns when every host has come to where it is called."""

    def __init__(self, config: EngineConfig, loaded: ServedDecoder, mesh: Mesh, meet: Callable[[], object]) -> None:
        super().__init__(config, loaded, mesh)
        self._meet = meet
        self._made = False

    def rebuild(self) -> None:
        """Pools and state, once. A failure ends the instance: whether the other hosts had it, too, and at which call, nobody knows here."""
        if self._made:
            raise EngineError(f"{self._broken}; what several hosts share is not made anew, the instance ends")
        self._made = True
        self._meet()  # programs run together from here on, and collectives wait for no one who still compiles
        super().rebuild()


class LeadingEngine(SpreadEngine):
    """The leader's: has the others run every plan, and runs it itself."""

    def __init__(
        self,
        config: EngineConfig,
        loaded: ServedDecoder,
        mesh: Mesh,
        meet: Callable[[], object],
        calls: DeviceCalls,
    ) -> None:
        super().__init__(config, loaded, mesh, meet)
        self._calls = calls

    def dispatch(self, plan: StepPlan) -> PendingStep | PartialStep:
        self._calls.send(plan_call(plan))
        return super().dispatch(plan)
