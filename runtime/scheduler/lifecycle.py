"""Tasks begin, requests end or begin again: the operations that every path through the scheduler shares.

Every command that starts a task is matched by exactly one end: Refused, TaskEnded, or the loss of the instance. Until then the instance owns
what it holds and the record stays. A failed request is told to its gateway at once and its tasks are aborted; it is forgotten when the
last of them has answered. An interrupted one goes back to the queue when the last of them has answered and its gateway has said what the client
has seen.
"""

from __future__ import annotations

from triptych.runtime.core.control import (
    Completed,
    Failed,
    GatewayNotice,
    Interrupted,
    Placed,
    Resume,
    SchedulerCommand,
    ToGateway,
    ToInstance,
)
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceRef
from triptych.runtime.core.tasks import AbortTask, TaskCommand
from triptych.runtime.scheduler.cluster import Cluster, Member, Obstacle
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.counters import Count, Counters
from triptych.runtime.scheduler.lazy_heap import LazyHeap
from triptych.runtime.scheduler.ledger import Due, Ledger
from triptych.runtime.scheduler.state import COMPLETABLE, Phase, Record, Step, media_of
from triptych.runtime.scheduler.tasks import EncodeTask, Task, TaskKind, TaskSignal, TaskState


class Out(list[SchedulerCommand]):
    """The commands that one event causes, in order. `now` is the event's time in seconds."""

    def __init__(self, now: float):
        self.now = now


class Lifecycle:
    """Starts and ends tasks, attempts and requests; commands are appended to the `out` it is handed.

    `changed` says that a waiting request may find room since it was last cleared (by the placer, who owns that decision).
    """

    def __init__(self, config: SchedulerConfig, cluster: Cluster, ledger: Ledger, counters: Counters):
        self._config = config
        self._cluster = cluster
        self._ledger = ledger
        self._counters = counters
        self._reopen: LazyHeap[InstanceRef, float] = LazyHeap()
        self.changed = False

    # ---- tasks

    def start(self, record: Record, task: Task, command: TaskCommand, out: Out) -> None:
        """Tell the (live) instance of `task` to start it; from now on it owns the task."""
        self.take(record, task)
        self.send(task.ref, command, out)

    def promise(self, record: Record, task: Task) -> None:
        """Account for the prefill task that follows the grant of the reservation just asked for. Kept by its start, else withdrawn when the
        reservation ends or is given up, whatever the reason."""
        member = self._cluster.get(task.ref)
        assert member is not None, f"placed on {task.ref}, which is not a member"
        record.prefill = task.ref
        self._cluster.promise(member, record.id, task)

    def withdraw(self, record: Record) -> None:
        """The prompt is not started on the instance that was chosen for it."""
        member = None if record.prefill is None else self._cluster.get(record.prefill)
        if member is not None:
            self._cluster.withdraw(member, record.id)

    def take(self, record: Record, task: Task) -> None:
        """Account for `task`, which its (live) instance owns."""
        member = self._cluster.get(task.ref)
        assert member is not None, f"placed on {task.ref}, which is not a member"
        if isinstance(task, EncodeTask):
            media_of(record).tasks[task.key] = task
            self._cluster.assign_encode(member, record.id, task)
        else:
            record.tasks[task.kind] = task
            self._cluster.assign(member, record.id, task)

    def abort(self, record: Record, task: Task, status: Status, reason: str, out: Out) -> None:
        """Tell the instance to end `task`, once; it answers with TaskEnded, or with Refused if the task had not begun."""
        if task.state is not TaskState.ABORTING:
            task.advance(TaskSignal.ABORTED)
            self._withdraw_with(record, task)
            self.repeat_abort(record, task, status, reason, out)
            if task.kind is TaskKind.DECODE:
                self.end_encodes(record, "its decode task is ended", out, for_decode=True)

    def repeat_abort(self, record: Record, task: Task, status: Status, reason: str, out: Out) -> None:
        """Tell the instance (again) to end `task`, of this attempt and no other."""
        for_decode = task.for_decode if isinstance(task, EncodeTask) else None
        command = AbortTask(record.id, status, reason, task.kind.role, record.request.attempt, for_decode)
        self.send(task.ref, command, out)

    def forget(self, record: Record, task: Task) -> None:
        """The instance holds nothing for `task` any more, or is lost."""
        task.state = TaskState.GONE
        member = self._cluster.get(task.ref)
        if isinstance(task, EncodeTask):
            del media_of(record).tasks[task.key]
            if member is not None:
                self._cluster.release_encode(member, record.id, task)
        else:
            del record.tasks[task.kind]
            self._withdraw_with(record, task)
            if record.encoding is not None and task.kind is TaskKind.DECODE:
                record.encoding.reservation_over()
            if member is not None:
                self._cluster.release(member, record.id, task)
                self.room(member)

    def _withdraw_with(self, record: Record, task: Task) -> None:
        if task.kind is TaskKind.DECODE:
            self.withdraw(record)

    def lose(self, record: Record, task: Task, reason: str, out: Out) -> None:
        """`task` is gone without a report of its end. A reservation that was not granted has begun nothing: the attempt just goes elsewhere."""
        needed = task.state is not TaskState.ABORTING and record.needs(task.kind)
        self.forget(record, task)
        if not needed:
            self.settle(record, out)
        elif record.phase is Phase.RESERVING:
            self.requeue(record, Step.DECODE_REFUSED, out)
        else:
            self.interrupt(record, Status.UNAVAILABLE, reason, out)

    def send(self, ref: InstanceRef, command: TaskCommand, out: Out) -> None:
        """Send `command` to the instance if it can be reached. What one that is away missed is made good when it is back, or it is lost."""
        member = self._cluster.get(ref)
        if member is not None and Obstacle.AWAY not in member.obstacles:
            out.append(ToInstance(member.worker, ref, command))

    def notify(self, record: Record, notice: GatewayNotice, out: Out) -> None:
        """Tell the request's gateway, if it is connected."""
        gateway = record.request.gateway
        if gateway in self._ledger.connected:
            out.append(ToGateway(gateway, notice))

    def placed(self, record: Record, prefill: InstanceRef, decode: InstanceRef, out: Out) -> None:
        """Tell the request's gateway where this attempt runs."""
        self.notify(record, Placed(record.id, prefill, decode, out.now - record.submitted, record.request.attempt), out)

    # ---- requests

    def fail(self, record: Record, status: Status, reason: str, out: Out, retry_after: float | None = None) -> None:
        """Tell the gateway, abort every live task. Does nothing for a request that has failed already."""
        if record.phase is not Phase.ENDING:
            record.failure = Failed(record.id, status, reason, retry_after)
            self.notify(record, record.failure, out)
            self._end(record, status, reason, out)

    def abandon(self, record: Record, reason: str, out: Out) -> None:
        """End a request whose gateway is lost. Should it come back after all, the request can be opened again."""
        if record.phase is not Phase.ENDING:
            self._end(record, Status.CANCELLED, reason, out)

    def reopen(self, record: Record) -> None:
        """An abandoned request, still being released, goes on under another attempt."""
        record.advance(Step.REOPENED)
        self._ledger.reopen(record)
        self._counters.add(Count.DECLARED)

    def complete(self, record: Record, out: Out) -> None:
        """Every sample is finished, and no task is left."""
        self._counters.add(Count.COMPLETED)
        self.notify(record, Completed(record.id, record.preemptions, record.request.attempt), out)
        self._ledger.drop(record)
        self.changed = True

    def settle(self, record: Record, out: Out) -> None:
        """If the last task is gone: complete the request, forget it, or (its attempt or reservation given up) let it wait again."""
        if record.encoding is not None:
            if record.prompt_task is None:
                self.end_encodes(record, "nothing computes the prompt any more", out, for_decode=False)
            if TaskKind.DECODE not in record.tasks:
                self.end_encodes(record, "nothing decodes any more", out, for_decode=True)
            if record.encoding.tasks:
                return
        if record.tasks:
            return
        match record.phase:
            case Phase.RELEASING:
                self.requeue(record, Step.RELEASED, out)
            case Phase.INTERRUPTED:
                if record.answer is not None:
                    self._go_on(record, record.answer, out)
            case Phase.ADOPTING:
                pass  # what runs it may still register
            case Phase.ENDING:
                self._ledger.drop(record)
                self.changed = True
            case phase if phase in COMPLETABLE:
                self.complete(record, out)
            case phase:
                reason = f"every task ended OK while the request was {phase}: nobody finished it"
                self.fail(record, Status.INTERNAL, reason, out)

    def end_encodes(self, record: Record, reason: str, out: Out, *, for_decode: bool) -> None:
        """This puller has, or will never have, what is staged for it of the media of `record`, and wants no more of them."""
        if record.encoding is not None:
            for task in record.encodes.values():
                if task.for_decode is for_decode:
                    self.abort(record, task, Status.OK, reason, out)
            self._ledger.unwant_for(record, for_decode)

    def requeue(self, record: Record, step: Step, out: Out) -> None:
        """Let `record`, which has no tasks, wait again at its old place in the queue."""
        record.advance(step)
        self._counters.add(Count.REQUEUED)
        self.wait(record, out)

    def wait(self, record: Record, out: Out) -> None:
        """`record` waits for an instance: in the queue or, if no placement could ever serve it, beside it for as long as patience lasts."""
        if self._cluster.can_serve(record):
            self._ledger.enqueue(record)
            self.changed = True
        else:
            self._ledger.strand(record, out.now + self._config.patience)

    # ---- attempts

    def interrupt(self, record: Record, status: Status, reason: str, out: Out) -> None:
        """The attempt is lost: end what is left of it and ask the gateway to resume, or fail with `status` if it was the last one."""
        if not self._attempt(record, record.highest + 1, status, reason, out):
            return
        self._suspend(record)
        self.ask(record, reason, out)
        self._abort_all(record, status, f"interrupted: {reason}", out)

    def ask(self, record: Record, reason: str, out: Out) -> None:
        """Ask the gateway (again) to resume an interrupted request."""
        record.answer = None
        self._ledger.timers[Due.RESUME].put(record.id, out.now + self._config.patience)
        self.notify(record, Interrupted(record.id, record.highest, reason), out)

    def answered(self, record: Record, answer: Resume, out: Out) -> None:
        """The gateway resumes `record`, asked or not; it goes on as soon as the last task of the old attempt has ended."""
        reason = "its gateway resumed it"
        if not self._attempt(record, answer.request.attempt, Status.UNAVAILABLE, reason, out):
            return
        self._suspend(record)
        record.answer = answer
        self._ledger.timers[Due.RESUME].discard(record.id)
        self._abort_all(record, Status.CANCELLED, reason, out)
        self.settle(record, out)

    def _attempt(self, record: Record, attempt: int, status: Status, reason: str, out: Out) -> bool:
        """Whether there may be a further attempt; if not, the request has failed."""
        most = self._config.max_attempts
        if attempt > most:
            self._counters.add(Count.ATTEMPTS_EXHAUSTED)
            final = (
                Status.DATA_LOSS if status is Status.DATA_LOSS else Status.UNAVAILABLE
            )  # a pull's time limit is not the client's
            self.fail(record, final, f"{reason}; attempt {attempt - 1} of at most {most}", out)
            return False
        record.highest = max(record.highest, attempt)
        return True

    def _suspend(self, record: Record) -> None:
        if record.phase is not Phase.INTERRUPTED:
            self._counters.add(Count.INTERRUPTED)
        record.advance(Step.INTERRUPTED)
        self._ledger.dequeue(record)
        self._ledger.unwant(record)
        self._ledger.timers[Due.ADOPTION].discard(record.id)

    def _go_on(self, record: Record, answer: Resume, out: Out) -> None:
        self._counters.add(Count.RESUMED)
        record.go_on(answer, out.now)
        record.advance(Step.RESUMED)
        if record.live_samples:
            self.wait(record, out)
        else:
            self.complete(record, out)

    # ---- ends

    def _end(self, record: Record, status: Status, reason: str, out: Out) -> None:
        record.advance(Step.FAILED)
        self._ledger.end(record)
        self.changed = True
        self._counters.add_failed(status)
        self._abort_all(record, status, reason, out)
        self.settle(record, out)

    def _abort_all(self, record: Record, status: Status, reason: str, out: Out) -> None:
        for task in record.live_tasks():
            self.abort(record, task, status, reason, out)

    # ---- room

    def room(self, member: Member) -> None:
        """Something may have become free on `member`."""
        self._reopen.discard(member.ref)
        if self._cluster.unblock(member, Obstacle.FULL):
            self.changed = True

    def close(self, member: Member, now: float) -> None:
        """`member` refused for lack of room: leave it alone until something may have changed there, or for `reopen_after` seconds."""
        self._cluster.block(member, Obstacle.FULL)
        self._reopen.put(member.ref, now + self._config.reopen_after)

    def reopen_due(self, now: float) -> None:
        """Let instances be asked again that have been closed for long enough."""
        for ref in list(self._reopen.pop_due(now)):
            member = self._cluster.get(ref)
            if member is not None:
                self.room(member)

    def departed(self, member: Member) -> None:
        """`member` has left the cluster, and what was promised to it with it: those prompts find another instance once they are granted."""
        self._reopen.discard(member.ref)
        for request in member.promised:
            self._ledger.records[request].prefill = None
