"""Tasks begin, requests end: the operations that every path through the scheduler shares.

Every command that starts a task is matched by exactly one end: Refused, TaskEnded, or the loss of the instance. Until then the instance owns
what it holds and the record stays. A failed request is told to its gateway at once and its tasks are aborted; it is forgotten when the
last of them has answered.
"""

from __future__ import annotations

from triptych.runtime.core.control import Completed, Failed, GatewayNotice, SchedulerCommand, ToGateway, ToInstance
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceRef
from triptych.runtime.core.tasks import AbortTask, TaskCommand
from triptych.runtime.scheduler.cluster import Cluster, Member
from triptych.runtime.scheduler.counters import Count, Counters
from triptych.runtime.scheduler.lazy_heap import LazyHeap
from triptych.runtime.scheduler.ledger import Ledger
from triptych.runtime.scheduler.state import COMPLETABLE, Phase, Record, Step, Task, TaskSignal, TaskState

Out = list[SchedulerCommand]


class Lifecycle:
    """Starts and ends tasks and requests; commands are appended to the `out` it is handed.

    `changed` says that a waiting request may find room since it was last cleared (by the placer, who owns that decision).
    """

    def __init__(self, cluster: Cluster, ledger: Ledger, counters: Counters, reopen_after: float):
        self._cluster = cluster
        self._ledger = ledger
        self._counters = counters
        self._reopen_after = reopen_after
        self._reopen: LazyHeap[InstanceRef, float] = LazyHeap()
        self.changed = False

    # ---- tasks

    def start(self, record: Record, task: Task, command: TaskCommand, out: Out) -> None:
        """Tell the (live) instance of `task` to start it; from now on it owns the task."""
        member = self._cluster.get(task.ref)
        assert member is not None, f"placed on {task.ref}, which is not a member"
        record.tasks[task.kind] = task
        self._cluster.assign(member, record.id, task)
        self.send(task.ref, command, out)

    def abort(self, record: Record, task: Task, status: Status, reason: str, out: Out) -> None:
        """Tell the instance to end `task`, once; it answers with TaskEnded, or with Refused if the task had not begun."""
        if task.state is not TaskState.ABORTING:
            task.advance(TaskSignal.ABORTED)
            self.send(task.ref, AbortTask(record.id, status, reason, task.kind.role), out)

    def forget(self, record: Record, task: Task) -> None:
        """The instance holds nothing for `task` any more, or is lost."""
        task.state = TaskState.GONE
        del record.tasks[task.kind]
        member = self._cluster.get(task.ref)
        if member is not None:
            self._cluster.release(member, record.id, task)
            self.room(member)

    def send(self, ref: InstanceRef, command: TaskCommand, out: Out) -> None:
        """Send `command` to the instance if it is still there."""
        member = self._cluster.get(ref)
        if member is not None:  # else its loss is being handled right now
            out.append(ToInstance(member.worker, ref, command))

    def notify(self, record: Record, notice: GatewayNotice, out: Out) -> None:
        """Tell the request's gateway, if it is still there."""
        gateway = record.request.gateway
        if gateway in self._ledger.gateways:
            out.append(ToGateway(gateway, notice))

    # ---- requests

    def fail(self, record: Record, status: Status, reason: str, out: Out, retry_after: float | None = None) -> None:
        """Tell the gateway, abort every live task. Does nothing for a request that has failed already."""
        if record.phase is Phase.ENDING:
            return
        record.advance(Step.FAILED)
        self._ledger.end(record)
        self.changed = True
        self._counters.add_failed(status)
        self.notify(record, Failed(record.id, status, reason, retry_after), out)
        for task in record.tasks.values():
            self.abort(record, task, status, reason, out)
        self.settle(record, out)

    def settle(self, record: Record, out: Out) -> None:
        """If the last task is gone: complete the request, forget it, or (its reservation given back) let it wait again."""
        if record.tasks:
            return
        if record.phase is Phase.RELEASING:
            self.requeue(record, Step.RELEASED)
            return
        if record.phase is not Phase.ENDING:
            if record.phase not in COMPLETABLE:
                reason = f"every task ended OK while the request was {record.phase}: nobody finished it"
                self.fail(record, Status.INTERNAL, reason, out)
                return
            self._counters.add(Count.COMPLETED)
            self.notify(record, Completed(record.id, record.preemptions), out)
        self._ledger.drop(record)
        self.changed = True

    def requeue(self, record: Record, step: Step) -> None:
        """Let `record`, which has no tasks, wait again at its old place in the queue."""
        record.advance(step)
        self._counters.add(Count.REQUEUED)
        self._ledger.enqueue(record)
        self.changed = True

    # ---- room

    def room(self, member: Member) -> None:
        """Something may have become free on `member`."""
        self._reopen.discard(member.ref)
        if self._cluster.open(member):
            self.changed = True

    def close(self, member: Member, now: float) -> None:
        """`member` refused for lack of room: leave it alone until something may have changed there, or for `reopen_after` seconds."""
        self._cluster.close(member)
        self._reopen.put(member.ref, now + self._reopen_after)

    def reopen_due(self, now: float) -> None:
        """Let instances be asked again that have been closed for long enough."""
        for ref in list(self._reopen.pop_due(now)):
            member = self._cluster.get(ref)
            if member is not None:
                self.room(member)

    def departed(self, member: Member) -> None:
        """`member` has left the cluster."""
        self._reopen.discard(member.ref)
