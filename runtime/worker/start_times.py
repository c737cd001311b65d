"""What an instance's start took, phase by phase. The next start of the same model finds its programs in the persistent cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from triptych.runtime.engine.compile_guard import cache_hits
from triptych.runtime.engine.compiling import CompileReport


@dataclass(frozen=True)
class StartTimes:
    """Seconds of each phase, one after the other.

    Attributes:
        weights: reading or making them, and placing them on the devices.
        lowering: tracing programs and lowering them. Others compile meanwhile.
        compiling: waiting for the compiler after that, or for the persistent cache.
        warm_up: making pools, and running every program once.
        movers: programs that move pages in and out of the pools.
        programs: compiled, those that move pages included; `from_cache` of them were in the persistent cache.
    """

    weights: float = 0.0
    lowering: float = 0.0
    compiling: float = 0.0
    warm_up: float = 0.0
    movers: float = 0.0
    programs: int = 0
    from_cache: int = 0

    @property
    def seconds(self) -> float:
        return sum(self.phases.values())

    @property
    def phases(self) -> Mapping[str, float]:
        """Seconds by the phase's name, in order."""
        names = ("weights", "lowering", "compiling", "warm_up", "movers")
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


def start_times(
    weights: float, report: CompileReport, compile_movers: Callable[[], int], clock: Callable[[], float]
) -> StartTimes:
    """The times of a start whose engine is compiled; compiles what moves pages. `compile_movers` returns how many programs that made."""
    began, hits = clock(), cache_hits()
    movers = compile_movers()
    return StartTimes(
        weights=weights,
        lowering=report.lowering_seconds,
        compiling=report.seconds - report.lowering_seconds,
        warm_up=report.warm_up_seconds,
        movers=clock() - began,
        programs=report.programs + movers,
        from_cache=report.from_cache + cache_hits() - hits,
    )
