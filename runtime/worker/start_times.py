"""What an instance's start took, phase by phase. The next start of the same instance finds its programs kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from triptych.runtime.engine.compiling import CompileReport


@dataclass(frozen=True)
class StartTimes:
    """Seconds of each phase, one after the other.

    Attributes:
        weights: reading or making them, and placing them on the devices.
        lowering: tracing programs and lowering them. Others compile meanwhile.
        compiling: loading what was kept, and waiting for the compiler after lowering, or for the persistent cache.
        warm_up: making pools, and running every program once.
        programs: those that move pages included; `from_cache` of them were kept, or in the persistent cache.
    """

    weights: float = 0.0
    lowering: float = 0.0
    compiling: float = 0.0
    warm_up: float = 0.0
    programs: int = 0
    from_cache: int = 0

    @staticmethod
    def of(weights: float, report: CompileReport) -> StartTimes:
        """Of an instance that took `weights` seconds for them, and compiled as `report` says."""
        lowering = report.lowering_seconds
        return StartTimes(
            weights, lowering, report.seconds - lowering, report.warm_up_seconds, report.programs, report.from_cache
        )

    @property
    def seconds(self) -> float:
        return sum(self.phases.values())

    @property
    def phases(self) -> Mapping[str, float]:
        """Seconds by the phase's name, in order."""
        names = ("weights", "lowering", "compiling", "warm_up")
        return {name: getattr(self, name) for name in names}

    @property
    def counters(self) -> Mapping[str, int]:
        """For an instance's snapshot: microseconds, and programs."""
        times = {f"start_{name}_us": int(seconds * 1e6) for name, seconds in self.phases.items()}
        return times | {"start_programs": self.programs, "start_programs_cached": self.from_cache}

    def __str__(self) -> str:
        phases = ", ".join(f"{name.replace('_', ' ')} {seconds:.1f} s" for name, seconds in self.phases.items())
        return f"{phases}; {self.from_cache} of {self.programs} programs from the cache"


NOTHING_TIMED = StartTimes()
