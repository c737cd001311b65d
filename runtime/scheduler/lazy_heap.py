"""A priority queue whose entries can be replaced and removed: the waiting queue and every timer of the scheduler.

A removed entry stays in the heap until it comes to the top or until dead entries outnumber live ones, when the heap is rebuilt: every
operation is O(log n) amortised, and memory is bounded by the live entries. Equal priorities leave in order of insertion.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
P = TypeVar("P")

_SLACK = 64  # dead entries that are not worth a rebuild


class LazyHeap(Generic[K, P]):
    """Keys with priorities, smallest first."""

    def __init__(self) -> None:
        self._heap: list[tuple[Any, int, K]] = []
        self._live: dict[K, tuple[P, int]] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, key: K) -> bool:
        return key in self._live

    def __iter__(self) -> Iterator[K]:
        """Every key, in order of insertion."""
        return iter(self._live)

    def put(self, key: K, priority: P) -> None:
        """Add `key`, or move it to `priority`."""
        self._serial += 1
        self._live[key] = (priority, self._serial)
        heapq.heappush(self._heap, (priority, self._serial, key))
        if len(self._heap) > 2 * len(self._live) + _SLACK:
            self._heap = [(p, serial, k) for k, (p, serial) in self._live.items()]
            heapq.heapify(self._heap)

    def discard(self, key: K) -> None:
        """Remove `key` if it is there."""
        self._live.pop(key, None)

    def pop(self) -> K:
        """Remove and return the first key. Raises IndexError when empty."""
        while True:
            _, serial, key = heapq.heappop(self._heap)
            if self._owns(key, serial):
                del self._live[key]
                return key

    def pop_due(self, limit: P) -> Iterator[K]:
        """Remove and yield, in order, the keys whose priority is at most `limit`."""
        while self._heap:
            priority, serial, key = self._heap[0]
            if not self._owns(key, serial):
                heapq.heappop(self._heap)
            elif priority <= limit:
                heapq.heappop(self._heap)
                del self._live[key]
                yield key
            else:
                return

    def _owns(self, key: K, serial: int) -> bool:
        entry = self._live.get(key)
        return entry is not None and entry[1] == serial
