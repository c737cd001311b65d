"""Seconds that a sweep may still take. Parts of what is left are given out in turn: what one did not use, the next ones have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Clock = Callable[[], float]


@dataclass(frozen=True)
class Budget:
    """Time until `until` on `clock`, both in seconds."""

    clock: Clock
    until: float

    @property
    def left(self) -> float:
        return max(0.0, self.until - self.clock())

    def share(self, parts: int) -> Budget:
        """The first of `parts` equal parts of what is left."""
        return Budget(self.clock, self.clock() + self.left / parts)

    def less(self, seconds: float) -> Budget:
        """The same without its last `seconds`."""
        return Budget(self.clock, self.until - seconds)


def of_seconds(seconds: float, clock: Clock) -> Budget:
    return Budget(clock, clock() + seconds)
