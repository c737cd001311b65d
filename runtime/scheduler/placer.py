"""Waiting requests find instances: the queue is tried whenever something changed that may let one go."""

from __future__ import annotations

from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceRef
from triptych.runtime.core.tasks import ReserveDecode, StartLocal, StartPrefill
from triptych.runtime.scheduler.cluster import Cluster
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.ledger import Due, Ledger
from triptych.runtime.scheduler.lifecycle import Lifecycle, Out
from triptych.runtime.scheduler.media_reach import as_serving
from triptych.runtime.scheduler.placement import Placement, PlacementView, best_prefill, servable_length
from triptych.runtime.scheduler.policies.router import Router
from triptych.runtime.scheduler.state import Record, Step
from triptych.runtime.scheduler.tasks import Task, TaskKind


class Placer:
    """Takes requests out of the queue, in its order, and starts them where the router says."""

    def __init__(self, config: SchedulerConfig, router: Router, cluster: Cluster, ledger: Ledger, life: Lifecycle):
        self._config = config
        self._router = router
        self._cluster = cluster
        self._ledger = ledger
        self._life = life
        self._longest = 0  # what the cluster could serve when the queue was last sorted out
        self._kinds: frozenset[object] = frozenset()

    def pump(self, out: Out) -> None:
        """Place waiting requests, in order, as long as the first few find room. Does nothing unless something changed since the last call."""
        if not self._life.changed:
            return
        self._life.changed = False
        if not self._cluster.has_candidates:
            return  # the first instance to open again sets `changed`
        blocked: list[Record] = []
        queue = self._ledger.queue
        while (
            queue
            and self._ledger.active - len(blocked) < self._config.max_active
            and len(blocked) < self._config.lookahead
        ):
            record = self._ledger.records[queue.pop()]
            placement = self._router.route(record.request, PlacementView(self._cluster, record))
            if placement is not None:
                self._place(record, placement, out)
            elif (refused := self._refused_by_all(record)) is not None:
                self._life.fail(record, Status.INVALID_ARGUMENT, refused, out)
            else:
                blocked.append(record)
        for record in blocked:
            self._ledger.enqueue(record)

    def _place(self, record: Record, placement: Placement, out: Out) -> None:
        tokens, samples = record.known_tokens, record.live_samples
        if placement.local:
            record.advance(Step.PLACED_LOCAL)
            task = Task(TaskKind.LOCAL, placement.decode, tokens, samples, tokens)
            self._life.start(record, task, StartLocal(record.request, record.resumed), out)
        else:
            record.advance(Step.PLACED_PAIR)
            task = Task(TaskKind.DECODE, placement.decode, 0, samples, tokens)
            command = ReserveDecode(record.request, self._config.reserve_ttl, record.resumed)
            self._life.start(record, task, command, out)
            self._life.promise(record, _prefill_task(record, placement.prefill))

    def start_prefill(self, record: Record, out: Out) -> None:
        """Ask the chosen prefill instance or, if that is gone or full, the best other one; if there is none, give the reservation back."""
        decode = record.tasks[TaskKind.DECODE]
        chosen = None if record.prefill is None else self._cluster.get(record.prefill)
        if chosen is None or chosen.closed or chosen.ref in record.never:
            self._life.withdraw(record)
            decode_member = self._cluster.get(decode.ref)
            candidate = (
                None
                if decode_member is None
                else best_prefill(PlacementView(self._cluster, record), decode_member.info)
            )
            if candidate is None:
                record.advance(Step.PREFILL_REFUSED)
                self._life.abort(record, decode, Status.RESOURCE_EXHAUSTED, "no prefill instance has room", out)
                return
            record.prefill = candidate.ref
            record.advance(Step.PREFILL_RETRIED)
        else:
            record.prefill = chosen.ref
        task = _prefill_task(record, record.prefill)
        command = StartPrefill(record.request, record.cached_tokens, self._config.lease_seconds, record.resumed)
        self._life.start(record, task, command, out)
        self._life.placed(record, record.prefill, decode.ref, out)

    def _refused_by_all(self, record: Record) -> str | None:
        """Why every placement that could hold `record` has refused it for good; None if one has not."""
        if not record.never:
            return None
        media = record.request.media
        others = (as_serving(info, media) for info in self._cluster.infos if info.ref not in record.never)
        if servable_length(others) >= record.length:
            return None
        reasons = "; ".join(f"{ref.id}: {reason}" for ref, reason in record.never.items())
        return f"the request can never fit here ({reasons})"

    def membership_changed(self, out: Out) -> None:
        """The cluster can serve more, or less: waiting requests that nothing could serve step aside, those that something can are back."""
        queue, stranded = self._ledger.queue, self._ledger.timers[Due.PLACEMENT]
        records, can_serve = self._ledger.records, self._cluster.can_serve
        longest, kinds = self._cluster.reach.longest, self._cluster.media_reach.kinds
        if longest < self._longest or not kinds >= self._kinds:
            for record in [r for request in queue if not can_serve(r := records[request])]:
                self._ledger.strand(record, out.now + self._config.patience)
        for record in [r for request in stranded if can_serve(r := records[request])]:
            self._ledger.enqueue(record)
        self._longest, self._kinds = longest, kinds
        self._life.changed = True


def _prefill_task(record: Record, ref: InstanceRef) -> Task:
    tokens = len(record.request.prompt)
    return Task(TaskKind.PREFILL, ref, tokens, 0, tokens)
