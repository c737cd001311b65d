"""The requests that exist: by id, by gateway, in the waiting queue, by deadline. Indexes only; what happens to them is decided in `flow.py`."""

from __future__ import annotations

from triptych.runtime.scheduler.lazy_heap import LazyHeap
from triptych.runtime.scheduler.state import Phase, Record


class Ledger:
    """Owner of every record. A record is in it from admission until its last task has ended."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.gateways: dict[str, dict[str, None]] = {}
        self.queue: LazyHeap[str, tuple[float, ...]] = LazyHeap()
        self.deadlines: LazyHeap[str, float] = LazyHeap()
        self.ending = 0
        self._arrivals = 0

    @property
    def active(self) -> int:
        """Requests that are placed and not ending."""
        return len(self.records) - len(self.queue) - self.ending

    @property
    def tasks(self) -> int:
        return sum(len(record.tasks) for record in self.records.values())

    def next_arrival(self) -> int:
        self._arrivals += 1
        return self._arrivals

    def add(self, record: Record) -> None:
        """Admit `record` and let it wait."""
        self.records[record.id] = record
        self.gateways[record.request.gateway][record.id] = None
        if record.request.deadline is not None:
            self.deadlines.put(record.id, record.request.deadline)
        self.enqueue(record)

    def enqueue(self, record: Record) -> None:
        self.queue.put(record.id, (*record.order, record.arrival))

    def end(self, record: Record) -> None:
        """The request has failed: it waits for nothing but its tasks' ends. Its phase is ENDING."""
        self.queue.discard(record.id)
        self.deadlines.discard(record.id)
        self.ending += 1

    def drop(self, record: Record) -> None:
        """Forget `record`; it has no tasks."""
        if record.phase is Phase.ENDING:
            self.ending -= 1
        self.deadlines.discard(record.id)
        self.gateways.get(record.request.gateway, {}).pop(record.id, None)
        del self.records[record.id]
