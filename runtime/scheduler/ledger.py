"""The requests that exist: by id, by gateway, in the waiting queue, by what they wait for. Indexes only; what happens to them is decided elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from triptych.runtime.scheduler.lazy_heap import LazyHeap
from triptych.runtime.scheduler.state import Phase, Record, media_of
from triptych.runtime.scheduler.tasks import TaskState, Want


class Due(StrEnum):
    """What a request waits for, each at most once."""

    DEADLINE = "its deadline"
    PLACEMENT = "an instance that could serve it"  # a request with this timer is stranded, not in the queue
    RESUME = "its gateway to say what the client has seen"
    ADOPTION = "the instance that runs it to register"
    CLAIM = "its gateway to come back and declare it"
    ENCODING = "encode instances to take the media that it wants"
    ANSWER = "the encode instance that was asked first to answer"


class Ledger:
    """Owner of every record. A record is in it from admission until its last task has ended."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.gateways: dict[
            str, dict[str, None]
        ] = {}  # every gateway that is connected or has requests, with their ids
        self.connected: dict[str, None] = {}
        self.queue: LazyHeap[str, tuple[float, ...]] = LazyHeap()
        self.timers: dict[Due, LazyHeap[str, float]] = {due: LazyHeap() for due in Due}
        self.wanting: dict[str, None] = {}  # requests with media that no encode instance has been asked for yet
        self.ending = 0
        self._arrivals = 0

    @property
    def waiting(self) -> int:
        """Requests that wait for an instance, in the queue or stranded."""
        return len(self.queue) + len(self.timers[Due.PLACEMENT])

    @property
    def active(self) -> int:
        """Requests that neither wait for an instance nor are ending."""
        return len(self.records) - self.waiting - self.ending

    @property
    def tasks(self) -> int:
        return sum(len(record.tasks) + len(record.encodes) for record in self.records.values())

    def next_arrival(self) -> int:
        self._arrivals += 1
        return self._arrivals

    def add(self, record: Record) -> None:
        """Know `record` from now on."""
        self.records[record.id] = record
        self.gateways.setdefault(record.request.gateway, {})[record.id] = None
        self.watch_deadline(record)

    def watch_deadline(self, record: Record) -> None:
        if record.request.deadline is not None:
            self.timers[Due.DEADLINE].put(record.id, record.request.deadline)

    def enqueue(self, record: Record) -> None:
        self.timers[Due.PLACEMENT].discard(record.id)
        self.queue.put(record.id, (*record.order, record.arrival))

    def strand(self, record: Record, until: float) -> None:
        """`record` waits outside the queue, where it blocks nobody, for an instance that could serve it."""
        self.queue.discard(record.id)
        self.timers[Due.PLACEMENT].put(record.id, until)

    def dequeue(self, record: Record) -> None:
        """`record` waits for no instance any more."""
        self.queue.discard(record.id)
        self.timers[Due.PLACEMENT].discard(record.id)

    def want(self, record: Record, wants: Iterable[Want], until: float) -> None:
        """Tasks of `record`, which has media, want embeddings; at the latest by `until` encode instances must have taken what is wanted."""
        media_of(record).wanted.update(dict.fromkeys(wants))
        self.wanting[record.id] = None
        if record.id not in self.timers[Due.ENCODING]:
            self.timers[Due.ENCODING].put(record.id, until)

    def taken(self, record: Record) -> None:
        """Encode instances have been asked for all that `record` wants; its timer goes on until they have answered."""
        self.wanting.pop(record.id, None)

    def unwant(self, record: Record) -> None:
        """No task of `record` wants anything any more."""
        if record.encoding is not None:
            record.encoding.wanted.clear()
            self.wanting.pop(record.id, None)
            self.timers[Due.ENCODING].discard(record.id)
            self.timers[Due.ANSWER].discard(record.id)

    def unwant_for(self, record: Record, for_decode: bool) -> None:
        """One puller of `record`, which has media, wants nothing any more, and its encode tasks are being ended."""
        encoding = media_of(record)
        for want in [want for want in encoding.wanted if want.for_decode is for_decode]:
            del encoding.wanted[want]
        if not encoding.wanted:
            self.wanting.pop(record.id, None)
            if not any(task.state is TaskState.ASKED for task in encoding.tasks.values()):
                self.timers[Due.ENCODING].discard(record.id)
                self.timers[Due.ANSWER].discard(record.id)

    def end(self, record: Record) -> None:
        """The request has failed: it waits for nothing but its tasks' ends. Its phase is ENDING."""
        self._forget_waits(record)
        self.ending += 1

    def reopen(self, record: Record) -> None:
        """Undo `end`; its phase is not ENDING any more."""
        self.ending -= 1
        self.watch_deadline(record)

    def drop(self, record: Record) -> None:
        """Forget `record`; it has no tasks."""
        if record.phase is Phase.ENDING:
            self.ending -= 1
        self._forget_waits(record)
        gateway = record.request.gateway
        requests = self.gateways[gateway]
        del requests[record.id]
        if not requests and gateway not in self.connected:
            del self.gateways[gateway]
        del self.records[record.id]

    def _forget_waits(self, record: Record) -> None:
        if record.encoding is not None:
            self.unwant(record)
        self.queue.discard(record.id)
        for timer in self.timers.values():
            if timer:
                timer.discard(record.id)
