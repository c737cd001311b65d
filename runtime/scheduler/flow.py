"""One request through its tasks: submitted, cancelled, reported on, lost, out of time."""

from __future__ import annotations

from triptych.runtime.core.control import Failed, Progress, ToGateway
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.request import Request
from triptych.runtime.core.tasks import (
    Accepted,
    DecodeStarted,
    EncodeDone,
    EncodeStaged,
    Granted,
    MediaWanted,
    PrefillDone,
    Refused,
    Staged,
    StartDecode,
    TaskEnded,
    TaskReport,
)
from triptych.runtime.scheduler.admission import Refusal, refusal
from triptych.runtime.scheduler.adoption import Adoption
from triptych.runtime.scheduler.cluster import Cluster, Member
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.counters import Count, Counters
from triptych.runtime.scheduler.ledger import Due, Ledger
from triptych.runtime.scheduler.lifecycle import Lifecycle, Out
from triptych.runtime.scheduler.media_flow import MediaFlow
from triptych.runtime.scheduler.placer import Placer
from triptych.runtime.scheduler.policies.queue_order import QueueOrder
from triptych.runtime.scheduler.state import Phase, Record, Step
from triptych.runtime.scheduler.tasks import (
    EncodeKey,
    EncodeTask,
    ProtocolViolation,
    Task,
    TaskKind,
    TaskSignal,
    TaskState,
    kind_of,
    role_of,
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
        media: MediaFlow,
        adoption: Adoption,
        counters: Counters,
    ):
        self._config = config
        self._order = order
        self._ledger = ledger
        self._cluster = cluster
        self._life = life
        self._placer = placer
        self._media = media
        self._adoption = adoption
        self._counters = counters

    # ---- from gateways

    def submit(self, request: Request, out: Out) -> None:
        self._counters.add(Count.SUBMITTED)
        live = self._ledger.records.get(request.id)
        refused = refusal(
            request,
            self._config,
            now=out.now,
            queued=self._ledger.waiting,
            longest=self._cluster.reach.longest,
            live=None if live is None else live.phase,
            media=self._cluster.media_reach.refused(request.media) if request.media else None,
        )
        if refused is None and request.gateway not in self._ledger.connected:
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
        record = Record(request, self._ledger.next_arrival(), out.now, self._order.key(request))
        self._ledger.add(record)
        self._life.wait(record, out)

    def cancel(self, request: str, reason: str, out: Out) -> None:
        """End a live request as CANCELLED; one that is not (any more) live is left alone, because cancels cross completions."""
        record = self._ledger.records.get(request)
        if record is not None:
            self._life.fail(record, Status.CANCELLED, reason or "cancelled by the client", out)
        else:
            self._adoption.disown(request, out)

    # ---- from instances

    def report(self, member: Member, report: TaskReport, out: Out) -> None:
        """React to what the live `member` reported."""
        if self._adoption.heard_refused(member, report):
            return
        record = self._ledger.records.get(report.request)
        task = None if record is None else _task_of(record, member.ref, report)
        if record is None or task is None:
            if not self._adoption.heard(member, report):
                self._counters.add(Count.ORPHAN_REPORTS)
                self._adoption.disown_reported(member, report, out)
            return
        if report.attempt != record.request.attempt:
            self._counters.add(Count.STALE_REPORTS)
            self._adoption.disown_reported(member, report, out)
            return
        if task.state is TaskState.ABORTING:
            task.advance(_SIGNALS[type(report)])
            if task.state is TaskState.GONE:
                self._life.forget(record, task)
                self._life.settle(record, out)
            return
        signal = _SIGNALS[type(report)]
        if signal is TaskSignal.ANSWERED and task.state is TaskState.HELD:
            self._counters.add(Count.STALE_REPORTS)  # its worker declared the task meanwhile, which says as much
            return
        try:
            task.advance(signal)
            self._follow(record, task, member, report, out)
        except ProtocolViolation as error:
            self._counters.add(Count.PROTOCOL_VIOLATIONS)
            if task.state is TaskState.GONE and record.holds(task):
                self._life.forget(record, task)
            self._life.fail(
                record, Status.INTERNAL, f"instance {member.ref.id} broke the task protocol: {error.message}", out
            )

    def _follow(self, record: Record, task: Task, member: Member, report: TaskReport, out: Out) -> None:
        match report:
            case Granted():
                record.advance(Step.GRANTED)
                record.cached_tokens = report.cached_tokens
                self._placer.start_prefill(record, out)
            case Refused():
                self._refused(record, task, member, report, out)
            case Staged():
                record.advance(Step.STAGED)
                decode = record.tasks.get(TaskKind.DECODE)
                if decode is None:
                    raise ProtocolViolation("its decode reservation ended without a failure")
                record.source = report.handle
                self._life.send(decode.ref, StartDecode(record.id, report.handle, record.request.attempt), out)
            case Accepted():
                record.advance(Step.ACCEPTED)
                self._life.placed(record, task.ref, task.ref, out)
            case PrefillDone():
                record.advance(Step.PREFILL_FINISHED if report.finished else Step.PREFILL_DONE)
                self._cluster.prefilled(member, task)
                self._life.notify(record, Progress(record.id, Role.PREFILL, report.times, report.attempt), out)
                decode = record.tasks.get(TaskKind.DECODE)
                if record.phase is Phase.FINISHING and decode is not None:
                    self._life.abort(record, decode, Status.OK, "finished at first token", out)
                if record.encoding is not None:
                    self._media.computed(record, record.encoding, out)
            case DecodeStarted():
                if record.phase is Phase.ADOPTING:
                    self._adoption.found(record)
                record.advance(Step.DECODE_STARTED)
                self._life.notify(record, Progress(record.id, Role.DECODE, report.times, report.attempt), out)
                if record.encoding is not None:
                    self._media.decodes(record, out)
            case TaskEnded():
                self._ended(record, task, report, out)
            case MediaWanted():
                self._media.wanted(record, task, report, out)
            case EncodeStaged() if isinstance(task, EncodeTask):
                self._media.staged(record, task, member, report, out)
            case EncodeDone() if isinstance(task, EncodeTask):
                self._media.done(record, task, member, report, out)

    def _refused(self, record: Record, task: Task, member: Member, report: Refused, out: Out) -> None:
        if isinstance(task, EncodeTask):
            self._media.refused(record, task, member, report, out)
            return
        self._life.forget(record, task)
        if report.permanent:
            record.never[member.ref] = report.reason
        else:
            self._life.close(member, out.now)
        match task.kind:
            case TaskKind.DECODE:
                self._counters.add(Count.RESERVATIONS_REFUSED)
                self._life.requeue(record, Step.DECODE_REFUSED, out)
            case TaskKind.LOCAL:
                self._counters.add(Count.LOCALS_REFUSED)
                self._life.requeue(record, Step.LOCAL_REFUSED, out)
            case TaskKind.PREFILL:
                self._counters.add(Count.PREFILLS_REFUSED)
                self._placer.start_prefill(record, out)

    def _ended(self, record: Record, task: Task, report: TaskEnded, out: Out) -> None:
        if isinstance(task, EncodeTask):
            self._media.ended(record, task, report, out)
            return
        if report.status is Status.OK and record.phase in (Phase.RESERVING, Phase.PREFILLING):
            raise ProtocolViolation(f"its {task.kind} task ended OK while the request was {record.phase}")
        self._life.forget(record, task)
        record.preemptions += report.preemptions
        reason = f"instance {task.ref.id}: {report.reason or report.status.name}"
        if report.status is Status.OK or not record.needs(task.kind):
            self._life.settle(record, out)
        elif _may_succeed_elsewhere(record, task.kind, report.status, out.now):
            self._life.interrupt(record, report.status, reason, out)
        else:
            self._life.fail(record, report.status, reason, out)

    # ---- losses and deadlines

    def lost(self, members: list[Member], reason: str, out: Out) -> None:
        """What ran on `members`, which have left the cluster already, is lost."""
        for member in members:
            self._life.departed(member)
            self._adoption.departed(member)
            for request in list(member.requests):
                record = self._ledger.records.get(request)
                if record is not None:
                    self._lose_tasks(record, member.ref, f"instance {member.ref.id} was lost: {reason}", out)

    def _lose_tasks(self, record: Record, ref: InstanceRef, reason: str, out: Out) -> None:
        for task in record.live_tasks(ref):
            if isinstance(task, EncodeTask):
                self._media.lost(record, task, reason, out)
            else:
                self._life.lose(record, task, reason, out)

    def come_due(self, out: Out) -> None:
        """End what has waited for long enough."""
        for due, end in (
            (Due.DEADLINE, self._deadline),
            (Due.PLACEMENT, self._impatient),
            (Due.RESUME, self._unanswered),
            (Due.ADOPTION, self._unadopted),
            (Due.CLAIM, self._unclaimed),
            (Due.ANSWER, self._media.unanswered),
            (Due.ENCODING, self._media.impatient),
        ):
            for request in list(self._ledger.timers[due].pop_due(out.now)):
                record = self._ledger.records.get(request)
                if record is not None:  # else another timer has ended it
                    end(record, out)

    def _deadline(self, record: Record, out: Out) -> None:
        if record.id in self._ledger.timers[Due.PLACEMENT]:
            reason = f"the deadline passed while the request waited: {self._cluster.shortage(record)}"
            self._life.fail(record, Status.UNAVAILABLE, reason, out, self._config.retry_after)
        elif record.id in self._ledger.wanting:
            reason = f"the deadline passed while its media waited: {self._media.shortage(record)}"
            self._life.fail(record, Status.UNAVAILABLE, reason, out, self._config.retry_after)
        else:
            reason = f"the deadline passed while the request was {record.phase}"
            self._life.fail(record, Status.DEADLINE_EXCEEDED, reason, out)

    def _impatient(self, record: Record, out: Out) -> None:
        self._counters.add(Count.PATIENCE_EXHAUSTED)
        reason = f"waited {self._config.patience:g} s in vain: {self._cluster.shortage(record)}"
        self._life.fail(record, Status.UNAVAILABLE, reason, out, self._config.retry_after)

    def _unanswered(self, record: Record, out: Out) -> None:
        self._counters.add(Count.PATIENCE_EXHAUSTED)
        reason = f"its gateway did not say within {self._config.patience:g} s what the client has seen"
        self._life.fail(record, Status.UNAVAILABLE, reason, out)

    def _unadopted(self, record: Record, out: Out) -> None:
        reason = f"no instance that runs it registered within {self._config.adopt_grace:g} s"
        self._life.interrupt(record, Status.UNAVAILABLE, reason, out)

    def _unclaimed(self, record: Record, out: Out) -> None:
        gateway = record.request.gateway
        reason = (
            f"gateway {gateway} did not declare it within {self._config.gateway_grace:g} s of its stream's end or start"
        )
        self._life.abandon(record, reason, out)


def _may_succeed_elsewhere(record: Record, kind: TaskKind, status: Status, now: float) -> bool:
    """Whether a needed task that ended with `status` lost what it ran on or pulled from."""
    match status:
        case Status.UNAVAILABLE | Status.DATA_LOSS:
            return True
        case Status.DEADLINE_EXCEEDED:  # of a pull or a grant, unless it is the request's own
            return record.request.deadline is None or now < record.request.deadline
        case Status.NOT_FOUND | Status.CANCELLED:  # said by the source of a pull whose staging is gone
            return kind is TaskKind.DECODE and record.phase in (Phase.TRANSFERRING, Phase.ADOPTING)
    return False


def _task_of(record: Record, ref: InstanceRef, report: TaskReport) -> Task | None:
    """The live task of `record` that `report` from `ref` is about. A local task answers to either role, but encodes nothing."""
    tasks, role = record.tasks, role_of(report)
    local = tasks.get(TaskKind.LOCAL)
    if local is not None and local.ref == ref and role is not Role.ENCODE:
        return local
    kind = kind_of(role)
    task = None if kind is None else tasks.get(kind)
    if task is None:
        if isinstance(report, MediaWanted):
            return next((task for task in tasks.values() if task.ref == ref), None)
        return record.encodes.get(EncodeKey(ref, _for_decode(report))) if role is Role.ENCODE else None
    return task if task.ref is ref or task.ref == ref else None


def _for_decode(report: TaskReport) -> bool:
    """Of a report on an encode task: whose puller is the decode task?"""
    return isinstance(report, Refused | EncodeStaged | EncodeDone | TaskEnded) and report.for_decode


_SIGNALS: dict[type[TaskReport], TaskSignal] = {
    Granted: TaskSignal.ANSWERED,
    Staged: TaskSignal.ANSWERED,
    Accepted: TaskSignal.ANSWERED,
    Refused: TaskSignal.REFUSED,
    PrefillDone: TaskSignal.PROGRESSED,
    DecodeStarted: TaskSignal.PROGRESSED,
    MediaWanted: TaskSignal.PROGRESSED,
    EncodeStaged: TaskSignal.ANSWERED,
    EncodeDone: TaskSignal.PROGRESSED,
    TaskEnded: TaskSignal.ENDED,
}
