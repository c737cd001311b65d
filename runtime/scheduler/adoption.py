"""Tasks that workers hold when they register, and the requests that they belong to.

After a restart the scheduler knows nothing; workers declare what they hold and gateways what they have open, in any order. A request that is
declared waits (ADOPTING) for the instance that runs it, a held task waits (unclaimed) for its request; what finds nothing within `adopt_grace` is
interrupted or aborted. Of every held task exactly one TaskEnded will come, so it is taken over as if it had been started here.

A worker whose stream broke comes back to a scheduler that knows its tasks. Reports and commands on their way were lost then, so each task is
compared with what the worker holds: what cannot have missed anything goes on, the rest is interrupted.
"""

from __future__ import annotations

from collections.abc import Iterable

from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.tasks import (
    AbortTask,
    DecodeStarted,
    EncodeDone,
    EncodeStaged,
    HeldTask,
    Refused,
    StartDecode,
    TaskEnded,
    TaskReport,
)
from triptych.runtime.scheduler.cluster import Cluster, Member
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.counters import Count, Counters
from triptych.runtime.scheduler.lazy_heap import LazyHeap
from triptych.runtime.scheduler.ledger import Due, Ledger
from triptych.runtime.scheduler.lifecycle import Lifecycle, Out
from triptych.runtime.scheduler.media_flow import MediaFlow
from triptych.runtime.scheduler.state import Phase, Record, Step
from triptych.runtime.scheduler.tasks import EncodeTask, Task, TaskKind, TaskSignal, TaskState, kind_of, role_of

Key = tuple[InstanceRef, TaskKind | None, bool]


class Adoption:
    """Owner of the held tasks that no request has claimed yet."""

    def __init__(
        self,
        config: SchedulerConfig,
        cluster: Cluster,
        ledger: Ledger,
        life: Lifecycle,
        media: MediaFlow,
        counters: Counters,
    ):
        self._config = config
        self._cluster = cluster
        self._ledger = ledger
        self._life = life
        self._media = media
        self._counters = counters
        self._unclaimed: dict[str, dict[Key, HeldTask]] = {}
        self._expiry: LazyHeap[tuple[str, Key], float] = LazyHeap()
        self._refused: dict[InstanceRef, list[HeldTask]] = {}  # told to end; each will report its end once

    def __len__(self) -> int:
        """Held tasks that no request has claimed yet, and those that have been told to end."""
        return len(self._expiry) + sum(len(tasks) for tasks in self._refused.values())

    def holds(self, member: Member) -> bool:
        """Whether `member` has tasks that belong to no request."""
        return member.ref in self._refused or any(
            key[0] == member.ref for tasks in self._unclaimed.values() for key in tasks
        )

    # ---- workers

    def registered(self, held: Iterable[HeldTask], out: Out) -> None:
        """Instances that joined hold these tasks; none was started here, or all were given up with their instance."""
        for task in held:
            record = self._ledger.records.get(task.request)
            if record is None:
                self._keep(task, out.now)
            elif not self._adopt(record, task, out):
                self._refuse(task, "it is not the one that the request is waiting for", out)

    def returned(self, member: Member, held: Iterable[HeldTask], out: Out) -> None:
        """`member` is back after its stream broke, with these tasks."""
        declared = {(task.request, _kind(task), task.for_decode): task for task in held}
        for request in list(member.requests):
            record = self._ledger.records[request]
            for task in record.live_tasks(member.ref):
                key = request, task.kind, isinstance(task, EncodeTask) and task.for_decode
                match = declared.get(key)
                if match is not None and match.attempt == record.request.attempt:
                    del declared[key]
                    self._goes_on(record, task, match, out)
                else:
                    reason = f"instance {member.ref.id} came back without its {task.kind} task"
                    if isinstance(task, EncodeTask):
                        self._media.lost(record, task, reason, out)
                    else:
                        self._life.lose(record, task, reason, out)
        self.departed(member)  # what it has declared before counts no more
        self.registered(declared.values(), out)

    def _goes_on(self, record: Record, task: Task, held: HeldTask, out: Out) -> None:
        """Make good what was lost on its way between the scheduler and a task that both know."""
        if task.state is TaskState.ABORTING:
            self._life.repeat_abort(record, task, Status.CANCELLED, "it was told to end before", out)
        elif isinstance(task, EncodeTask):
            if task.state is TaskState.ASKED:  # where it staged what was not heard
                reason = f"the answer of instance {task.ref.id} was lost with its worker's stream"
                self._media.take_back(record, task, reason, out)
        elif _may_wait_for_media(record, task.kind, held):
            reason = f"what instance {task.ref.id} wants of its media may have been lost with its worker's stream"
            self._life.interrupt(record, Status.UNAVAILABLE, reason, out)
        elif task.state is TaskState.ASKED and task.kind is TaskKind.LOCAL:
            task.advance(TaskSignal.ANSWERED)
            record.advance(Step.ACCEPTED)
            self._life.placed(record, task.ref, task.ref, out)
        elif record.phase is Phase.RESERVING:
            record.advance(Step.GRANT_LOST)
            self._life.abort(record, task, Status.UNAVAILABLE, "its grant was lost on the way", out)
        elif task.state is TaskState.ASKED:
            reason = f"the answer of instance {task.ref.id} was lost with its worker's stream"
            self._life.interrupt(record, Status.UNAVAILABLE, reason, out)
        elif task.kind is TaskKind.DECODE and record.phase in (Phase.TRANSFERRING, Phase.ADOPTING):
            if held.running:
                self._runs(record)
                if record.encoding is not None:
                    self._media.decodes(record, out)
            elif record.source is not None:  # it may not have heard where to pull from; if it has, it ignores this
                self._life.send(task.ref, StartDecode(record.id, record.source, record.request.attempt), out)

    def _runs(self, record: Record) -> None:
        """Decode has all that it needs, and its report that says so was not heard."""
        if record.phase is Phase.ADOPTING:
            self.found(record)
        record.advance(Step.DECODE_STARTED)

    def departed(self, member: Member) -> None:
        """Nothing that `member` has declared is held there (for nobody) any more."""
        self._refused.pop(member.ref, None)
        for request, tasks in list(self._unclaimed.items()):
            for key in [key for key in tasks if key[0] == member.ref]:
                self._drop(request, key)

    def heard_refused(self, member: Member, report: TaskReport) -> bool:
        """Note a report on a task that was refused; whether it was about one.

        It was told to end before any task was started here on this stream, so its reports come before those of a later task of its name.
        """
        if not self._refused:
            return False
        for task in self._refused.get(member.ref, ()):
            if task.request == report.request and task.attempt == report.attempt and _is_about(report, task):
                if isinstance(report, TaskEnded):
                    self._end_refused(task)
                return True
        return False

    def heard(self, member: Member, report: TaskReport) -> bool:
        """Note a report on an unclaimed task; whether it was about one."""
        tasks = self._unclaimed.get(report.request, {})
        for key, task in tasks.items():
            if key[0] == member.ref and task.attempt == report.attempt and _is_about(report, task):
                if isinstance(report, TaskEnded):
                    self._drop(report.request, key)
                elif isinstance(report, DecodeStarted):
                    tasks[key] = HeldTask(task.ref, task.request, task.attempt, task.role, task.gateway, running=True)
                return True
        return False

    # ---- requests

    def declared(self, record: Record, out: Out) -> None:
        """`record`, new here, is open at its gateway: take over what runs it, or wait for that."""
        self._ledger.timers[Due.ADOPTION].put(record.id, out.now + self._config.adopt_grace)
        for task in self._take(record.id):
            if not self._adopt(record, task, out):
                self._refuse(task, "another attempt of its request is open", out)

    def found(self, record: Record) -> None:
        """What runs `record` is known now."""
        self._ledger.timers[Due.ADOPTION].discard(record.id)
        self._counters.add(Count.ADOPTED)

    def disown(self, request: str, out: Out) -> None:
        """Nobody will claim what is held of `request`: its attempt is over, or it was cancelled."""
        for task in self._take(request):
            self._refuse(task, "its request goes on under another attempt, or was cancelled", out)

    def disown_reported(self, member: Member, report: TaskReport, out: Out) -> None:
        """`report` is about a task of another attempt, or that nobody here started: end it, or it would hold its pages for ever."""
        if not isinstance(report, Refused | TaskEnded):
            role = (
                Role.ENCODE if role_of(report) is Role.ENCODE else None
            )  # every task of a prompt, or one that encodes
            task = HeldTask(member.ref, report.request, report.attempt, role, "", False, _for_decode(report))
            self._refuse(task, f"the scheduler does not know this task of attempt {report.attempt}", out)

    def expire(self, out: Out) -> None:
        """Abort what nobody has claimed in time."""
        for request, key in list(self._expiry.pop_due(out.now)):
            task = self._unclaimed[request][key]
            self._drop(request, key)
            self._refuse(task, f"no gateway declared its request within {self._config.adopt_grace:g} s", out)

    # ---- tasks

    def _adopt(self, record: Record, held: HeldTask, out: Out) -> bool:
        """Take `held` over as a task of `record`, if it is of the attempt that the record is looking for."""
        kind = _kind(held)
        wanted = record.phase is Phase.ADOPTING or (record.phase is Phase.DECODING and kind is TaskKind.PREFILL)
        if (
            not wanted
            or kind is None
            or kind is TaskKind.ENCODE  # nobody knows any more who was to pull what it has
            or (kind is TaskKind.LOCAL and _may_wait_for_media(record, kind, held))
            or held.attempt != record.request.attempt
            or kind in record.tasks
            or TaskKind.LOCAL in record.tasks
            or (kind is TaskKind.LOCAL and record.tasks)
        ):
            return False
        tokens = len(record.request.prompt)
        sequences = 0 if kind is TaskKind.PREFILL else record.request.sampling.n
        self._life.take(record, Task(kind, held.ref, 0, sequences, tokens, TaskState.HELD))
        if kind is TaskKind.LOCAL:
            self.found(record)
            record.advance(Step.ADOPTED_LOCAL)
        elif kind is TaskKind.DECODE and held.running:
            self._runs(record)
        return True

    def _refuse(self, task: HeldTask, reason: str, out: Out) -> None:
        self._counters.add(Count.HELD_ABORTED)
        refused = self._refused.setdefault(task.ref, [])
        refused.append(task)
        if len(refused) > self._config.max_active:  # no instance holds so many: it speaks of tasks that it has not got
            del refused[0]
        for_decode = task.for_decode if task.role is Role.ENCODE else None
        command = AbortTask(task.request, Status.UNAVAILABLE, reason, task.role, task.attempt, for_decode)
        self._life.send(task.ref, command, out)

    def _end_refused(self, task: HeldTask) -> None:
        tasks = self._refused[task.ref]
        tasks.remove(task)
        if not tasks:
            del self._refused[task.ref]

    def _keep(self, task: HeldTask, now: float) -> None:
        key = (task.ref, _kind(task), task.for_decode)
        self._unclaimed.setdefault(task.request, {})[key] = task
        self._expiry.put((task.request, key), now + self._config.adopt_grace)

    def _take(self, request: str) -> list[HeldTask]:
        tasks = self._unclaimed.pop(request, {})
        for key in tasks:
            self._expiry.discard((request, key))
        return list(tasks.values())

    def _drop(self, request: str, key: Key) -> None:
        tasks = self._unclaimed[request]
        del tasks[key]
        self._expiry.discard((request, key))
        if not tasks:
            del self._unclaimed[request]


def _kind(task: HeldTask) -> TaskKind | None:
    """None: of no kind that this scheduler starts."""
    return TaskKind.LOCAL if task.role is None else kind_of(task.role)


def _is_about(report: TaskReport, task: HeldTask) -> bool:
    """Whether `report`, of the same instance, request and attempt, is about `task`. A local task answers to either role, but encodes nothing."""
    role = role_of(report)
    if Role.ENCODE in (role, task.role):
        return role is task.role and _for_decode(report) is task.for_decode
    return task.role is None or role in (None, task.role)


def _for_decode(report: TaskReport) -> bool:
    """Of a report on an encode task: whether the decode task pulls from it."""
    return isinstance(report, Refused | EncodeStaged | EncodeDone | TaskEnded) and report.for_decode


def _may_wait_for_media(record: Record, kind: TaskKind, held: HeldTask) -> bool:
    """Whether the task may be one that waits for media, of which something was said or told that is lost now."""
    if record.encoding is None or kind is TaskKind.ENCODE:
        return False
    if kind is TaskKind.LOCAL:
        return not held.running
    if record.phase not in (Phase.PREFILLING, Phase.TRANSFERRING):
        return False
    if kind is TaskKind.DECODE:
        return not held.running and any(item.attended for item in record.request.media)
    return not record.encoding.computed
