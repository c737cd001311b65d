"""One request through its tasks: what gateways ask, what instances report, what is lost, what comes due."""

from __future__ import annotations

from triptych.runtime.core.control import Failed, Placed, Progress, ToGateway
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.request import Request
from triptych.runtime.core.tasks import (
    AbortTask,
    Accepted,
    DecodeStarted,
    Granted,
    PrefillDone,
    Refused,
    Staged,
    StartDecode,
    TaskEnded,
    TaskReport,
)
from triptych.runtime.scheduler.admission import Refusal, refusal
from triptych.runtime.scheduler.cluster import Cluster, Member
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.counters import Count, Counters
from triptych.runtime.scheduler.ledger import Ledger
from triptych.runtime.scheduler.lifecycle import Lifecycle, Out
from triptych.runtime.scheduler.placer import Placer
from triptych.runtime.scheduler.policies.queue_order import QueueOrder
from triptych.runtime.scheduler.state import (
    Phase,
    ProtocolViolation,
    Record,
    Step,
    Task,
    TaskKind,
    TaskSignal,
    TaskState,
)


class Flow:
    """Moves requests from phase to phase; commands are appended to the `out` it is handed."""

    def __init__(
        self,
        config: SchedulerConfig,
        order: QueueOrder,
        ledger: Ledger,
        cluster: Cluster,
        life: Lifecycle,
        placer: Placer,
        counters: Counters,
    ):
        self._config = config
        self._order = order
        self._ledger = ledger
        self._cluster = cluster
        self._life = life
        self._placer = placer
        self._counters = counters

    # ---- from gateways

    def submit(self, request: Request, now: float, out: Out) -> None:
        self._counters.add(Count.SUBMITTED)
        live = self._ledger.records.get(request.id)
        refused = refusal(
            request,
            self._config,
            now=now,
            queued=len(self._ledger.queue),
            longest=self._placer.longest,
            live=None if live is None else live.phase,
        )
        if refused is None and request.gateway not in self._ledger.gateways:
            refused = Refusal(
                Status.UNAVAILABLE,
                f"gateway {request.gateway!r} is not connected to the scheduler",
                self._config.retry_after,
            )
        if refused is not None:
            self._counters.add(Count.REFUSED)
            out.append(
                ToGateway(request.gateway, Failed(request.id, refused.status, refused.reason, refused.retry_after))
            )
            return
        self._counters.add(Count.ADMITTED)
        self._ledger.add(Record(request, self._ledger.next_arrival(), now, self._order.key(request)))
        self._life.changed = True

    def cancel(self, request: str, reason: str, out: Out) -> None:
        """End a live request as CANCELLED; one that is not (any more) live is left alone, because cancels cross completions."""
        record = self._ledger.records.get(request)
        if record is not None:
            self._life.fail(record, Status.CANCELLED, reason or "cancelled by the client", out)

    # ---- from instances

    def report(self, member: Member, report: TaskReport, now: float, out: Out) -> None:
        """React to what the live `member` reported."""
        record = self._ledger.records.get(report.request)
        task = None if record is None else _task_of(record, member.ref, report)
        if record is None or task is None:
            self._orphan(member, report, out)
            return
        if task.state is TaskState.ABORTING:
            task.advance(_signal(report))
            if task.state is TaskState.GONE:
                self._life.forget(record, task)
                self._life.settle(record, out)
            return
        try:
            task.advance(_signal(report))
            self._follow(record, task, member, report, now, out)
        except ProtocolViolation as error:
            self._counters.add(Count.PROTOCOL_VIOLATIONS)
            if task.state is TaskState.GONE and record.tasks.get(task.kind) is task:
                self._life.forget(record, task)
            self._life.fail(
                record, Status.INTERNAL, f"instance {member.ref.id} broke the task protocol: {error.message}", out
            )

    def _follow(self, record: Record, task: Task, member: Member, report: TaskReport, now: float, out: Out) -> None:
        match report:
            case Granted():
                record.advance(Step.GRANTED)
                record.cached_tokens = report.cached_tokens
                self._placer.start_prefill(record, now, out)
            case Refused():
                self._refused(record, task, member, report, now, out)
            case Staged():
                record.advance(Step.STAGED)
                decode = record.tasks.get(TaskKind.DECODE)
                if decode is None:
                    raise ProtocolViolation("its decode reservation ended without a failure")
                self._life.send(decode.ref, StartDecode(record.id, report.handle), out)
            case Accepted():
                record.advance(Step.ACCEPTED)
                self._life.notify(record, Placed(record.id, task.ref, task.ref, now - record.submitted), out)
            case PrefillDone():
                record.advance(Step.PREFILL_FINISHED if report.finished else Step.PREFILL_DONE)
                self._cluster.prefilled(member, task)
                self._life.notify(record, Progress(record.id, Role.PREFILL, report.times), out)
                decode = record.tasks.get(TaskKind.DECODE)
                if record.phase is Phase.FINISHING and decode is not None:
                    self._life.abort(record, decode, Status.OK, "finished at first token", out)
            case DecodeStarted():
                record.advance(Step.DECODE_STARTED)
                self._life.notify(record, Progress(record.id, Role.DECODE, report.times), out)
            case TaskEnded():
                self._ended(record, task, report, out)

    def _refused(self, record: Record, task: Task, member: Member, report: Refused, now: float, out: Out) -> None:
        self._life.forget(record, task)
        if report.permanent:
            record.never[member.ref] = report.reason
        else:
            self._life.close(member, now)
        match task.kind:
            case TaskKind.DECODE:
                self._counters.add(Count.RESERVATIONS_REFUSED)
                self._life.requeue(record, Step.DECODE_REFUSED)
            case TaskKind.LOCAL:
                self._counters.add(Count.LOCALS_REFUSED)
                self._life.requeue(record, Step.LOCAL_REFUSED)
            case TaskKind.PREFILL:
                self._counters.add(Count.PREFILLS_REFUSED)
                self._placer.start_prefill(record, now, out)

    def _ended(self, record: Record, task: Task, report: TaskEnded, out: Out) -> None:
        if report.status is Status.OK and record.phase in (Phase.RESERVING, Phase.PREFILLING):
            raise ProtocolViolation(f"its {task.kind} task ended OK while the request was {record.phase}")
        self._life.forget(record, task)
        record.preemptions += report.preemptions
        if report.status is Status.OK or not record.needs(task.kind):
            self._life.settle(record, out)
        else:
            self._life.fail(
                record, report.status, f"instance {task.ref.id}: {report.reason or report.status.name}", out
            )

    def _orphan(self, member: Member, report: TaskReport, out: Out) -> None:
        """A task nobody here started, e.g. for a scheduler that has since restarted: end it, or it would hold its pages for ever."""
        self._counters.add(Count.ORPHAN_REPORTS)
        if not isinstance(report, Refused | TaskEnded):
            known = (
                report.request in self._ledger.records
            )  # then the instance may rightly hold another task of that request
            role = _role_of(report) if known else None
            command = AbortTask(report.request, Status.CANCELLED, "the scheduler does not know this task", role)
            self._life.send(member.ref, command, out)

    # ---- losses and deadlines

    def lost(self, members: list[Member], reason: str, out: Out) -> None:
        """End what ran on `members`, which have left the cluster already. A reservation that was not granted yet just goes elsewhere."""
        for member in members:
            self._life.departed(member)
            for request in list(member.requests):
                record = self._ledger.records.get(request)
                if record is not None:
                    for task in [t for t in record.tasks.values() if t.ref == member.ref]:
                        self._lost_task(record, task, f"instance {member.ref.id} was lost: {reason}", out)

    def _lost_task(self, record: Record, task: Task, reason: str, out: Out) -> None:
        aborting = task.state is TaskState.ABORTING
        self._life.forget(record, task)
        if aborting or not record.needs(task.kind):
            self._life.settle(record, out)
        elif record.phase is Phase.RESERVING:
            self._life.requeue(record, Step.DECODE_REFUSED)
        else:
            self._life.fail(record, Status.UNAVAILABLE, reason, out)

    def gateway_lost(self, gateway: str, out: Out) -> None:
        """End every request of a gateway that is gone; nobody is left to be told."""
        for request in list(self._ledger.gateways.pop(gateway, ())):
            self._life.fail(self._ledger.records[request], Status.CANCELLED, f"gateway {gateway} was lost", out)

    def deadlines(self, now: float, out: Out) -> None:
        """Fail what has run out of time."""
        for request in list(self._ledger.deadlines.pop_due(now)):
            record = self._ledger.records[request]
            self._life.fail(
                record, Status.DEADLINE_EXCEEDED, f"the deadline passed while the request was {record.phase}", out
            )


def _role_of(report: TaskReport) -> Role | None:
    """The role whose task `report` is about; None for a local task, which has both."""
    match report:
        case Granted() | DecodeStarted():
            return Role.DECODE
        case Staged() | PrefillDone():
            return Role.PREFILL
        case Accepted():
            return None
        case Refused() | TaskEnded():
            return report.role


def _task_of(record: Record, ref: InstanceRef, report: TaskReport) -> Task | None:
    """The live task of `record` that `report` from `ref` is about. A local task answers to either role."""
    local = record.tasks.get(TaskKind.LOCAL)
    if local is not None and local.ref == ref:
        return local
    role = _role_of(report)
    task = None if role is None else next((t for t in record.tasks.values() if t.kind.role is role), None)
    return task if task is not None and task.ref == ref else None


def _signal(report: TaskReport) -> TaskSignal:
    match report:
        case Granted() | Staged() | Accepted():
            return TaskSignal.ANSWERED
        case Refused():
            return TaskSignal.REFUSED
        case PrefillDone() | DecodeStarted():
            return TaskSignal.PROGRESSED
        case TaskEnded():
            return TaskSignal.ENDED
