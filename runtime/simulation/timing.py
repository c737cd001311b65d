"""How long a step takes: the one thing about devices that a simulation has to be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from triptych.runtime.instance.core import InstanceCore
from triptych.runtime.instance.plan import StepPlan


class StepTime(Protocol):
    """Seconds from the start of a plan on the device until its tokens are on the host, given the instance that made it."""

    def seconds(self, plan: StepPlan, core: InstanceCore) -> float: ...


@dataclass(frozen=True)
class AffineStepTime:
    """A fixed cost a step and one for each token, row and patch, all in seconds. The defaults are of no particular machine."""

    step: float = 0.005
    token: float = 0.00005
    row: float = 0.0001
    patch: float = 0.001

    def seconds(self, plan: StepPlan, core: InstanceCore) -> float:
        return (
            self.step
            + self.token * plan.tokens
            + self.row * len(plan.rows)
            + self.patch * sum(e.patches for e in plan.encodes)
        )
