"""What ends with time alone: deadlines of requests, grants of reservations that nobody used, leases of staged KV that
nobody pulls, waiting for pixels that do not come."""

from __future__ import annotations

from triptych.runtime.core.errors import Status
from triptych.runtime.instance.lifecycle import Kind, State, Trigger
from triptych.runtime.instance.messages import InstanceMessage, LeaseExtended, StagedReleased
from triptych.runtime.instance.state import InstanceState, end_task
from triptych.runtime.instance.tasks import DecodeTask, EncodeTask, StagingTask, Task


def expire(state: InstanceState, now: float) -> list[InstanceMessage]:
    """End what is due. Nothing due costs one comparison."""
    messages: list[InstanceMessage] = []
    for serial in state.timers.due(now):
        task = state.by_serial.get(serial)
        if task is None:
            continue
        if isinstance(task, EncodeTask):
            messages += _make_room(state, task, now)
        expired = _expired(task, now)
        if expired is None:
            state.watch(task)  # a lease was extended since
        else:
            messages += end_task(state, task, Trigger.FAILED, *expired)
    return messages


def _make_room(state: InstanceState, task: EncodeTask, now: float) -> list[InstanceMessage]:
    """Nothing was pulled for as long as a lease, and `task` has no room: of what is staged for pullers that have none themselves the youngest
    gives way, or else of the decode tasks whose samples wait for KV and hold what they attend to. One of these may be waiting, in the end, for `task`."""
    if task.room_by is None or task.room_by > now:
        return []
    staged: list[Task] = [
        other for other in state.staged.values() if isinstance(other, EncodeTask) and other.waited_for
    ]
    waiting = [
        fill.task
        for number, fill in state.waiting.items()
        if fill.task.kind is Kind.DECODE and state.media is not None and number in state.media.gatherings
    ]
    if not staged and not waiting:
        return []
    task.room_by = now + task.lease_seconds
    reason = "its puller had no room for it for as long as a lease, and others need the room"
    if not staged:
        reason = "a sample of it waits for KV, and others need the room of what it attends to"
    youngest = max(staged or waiting, key=lambda other: other.serial)
    return end_task(state, youngest, Trigger.FAILED, Status.UNAVAILABLE, reason)


def _expired(task: Task, now: float) -> tuple[Status, str] | None:
    deadline = task.request.deadline
    if deadline is not None and deadline <= now:
        return Status.DEADLINE_EXCEEDED, f"the request's deadline passed while its {task.kind} task was {task.state}"
    if isinstance(task, DecodeTask) and task.state is State.RESERVED and task.expires <= now:
        return Status.UNAVAILABLE, "the reservation expired before decoding was started"
    if isinstance(task, StagingTask) and task.lease is not None and task.lease.expired(now):
        what = "embeddings" if isinstance(task, EncodeTask) else "KV"
        return Status.UNAVAILABLE, f"the lease of the staged {what} expired: no sign of life from a puller"
    if isinstance(task, EncodeTask) and task.pixels_by is not None and task.pixels_by <= now:
        return Status.UNAVAILABLE, f"the pixels did not come: {len(task.lacking)} of {len(task.sizes)} items lack them"
    if isinstance(task, EncodeTask) and task.room_by is not None and task.room_by <= now:
        return (
            Status.UNAVAILABLE,
            "no room for its embeddings: nothing that holds some was given up for as long as a lease",
        )
    return None


def extend_lease(state: InstanceState, event: LeaseExtended, now: float) -> list[InstanceMessage]:
    """A sign of life counts once the KV is staged; before that nothing expires. The timer finds the new time when the
    old one is due."""
    task = state.staged.get(event.key)
    if task is not None and task.lease is not None:
        task.lease = task.lease.extended(now, task.lease_seconds)
        task.waited_for = event.waiting
    return []


def release_staged(state: InstanceState, event: StagedReleased) -> list[InstanceMessage]:
    """The puller is done. If it gave up early the task goes on: a prompt's first tokens belong to the client, and items that
    are encoded here may be waited for by others."""
    task = state.staged.get(event.key)
    if task is None:
        return []
    task.released = True
    return end_task(state, task, Trigger.RELEASED) if task.state is State.STAGED else []
