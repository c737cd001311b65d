"""Time as an argument: pure code is handed `now`, shells own a Clock.

All times inside a process are seconds on its monotonic clock. Deadlines cross the wire as remaining seconds, because clocks of
different hosts do not agree.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Source of `now` in seconds; monotonic, arbitrary origin."""

    def now(self) -> float: ...


class MonotonicClock:
    """The clock of live processes."""

    def now(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that moves only when told; for tests and simulation."""

    def __init__(self, start: float = 0.0):
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"time does not run backwards: advance({seconds})")
        self._now += seconds


def remaining(deadline: float | None, now: float) -> float | None:
    """Seconds left until `deadline` (never negative), or None for no deadline: the form in which deadlines cross the wire."""
    return None if deadline is None else max(0.0, deadline - now)
