"""Timers: when to look at which task again. A heap: a step with nothing due costs one comparison.

Entries are hints: they are not withdrawn when a task ends or a lease is extended; whoever takes a due entry looks at
the task itself.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator


class Timers:
    """Times (seconds, the caller's clock) at which task serials want attention."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def first(self) -> float | None:
        """When the earliest entry is due."""
        return self._heap[0][0] if self._heap else None

    def add(self, when: float, serial: int) -> None:
        heapq.heappush(self._heap, (when, serial))

    def due(self, now: float) -> Iterator[int]:
        """Serials whose time has come, earliest first."""
        while self._heap and self._heap[0][0] <= now:
            yield heapq.heappop(self._heap)[1]

    def keep(self, serials: set[int]) -> None:
        """Drop the entries of all other tasks."""
        self._heap = [entry for entry in self._heap if entry[1] in serials]
        heapq.heapify(self._heap)
