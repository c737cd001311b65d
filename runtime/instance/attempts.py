"""Attempts: what a command of one means for a task of another, and what is declared to a scheduler that knows neither.

A request begins again only when its last attempt has ended in the scheduler's eyes. An instance that was cut off may hold a
task of that attempt still: the command of the newer one ends it. Whatever else names another attempt is dropped and counted.
"""

from __future__ import annotations

from triptych.runtime.core.errors import Status
from triptych.runtime.core.request import Request
from triptych.runtime.core.tasks import AbortTask, HeldTask
from triptych.runtime.instance.lifecycle import Kind, State, Trigger
from triptych.runtime.instance.messages import InstanceMessage
from triptych.runtime.instance.state import InstanceState, end_task
from triptych.runtime.instance.tasks import EncodeTask, Task


def supersede(state: InstanceState, request: Request) -> list[InstanceMessage]:
    """End what is left of earlier attempts of `request`, which begins here."""
    older = [task for task in state.tasks_of(request.id) if task.request.attempt < request.attempt]
    if not older:
        return []
    reason = f"attempt {request.attempt} of the request began"
    return [m for task in older for m in end_task(state, task, Trigger.FAILED, Status.UNAVAILABLE, reason)]


def abort(state: InstanceState, command: AbortTask) -> list[InstanceMessage]:
    """End the tasks that are meant. One that is not here (it ended, or is of another attempt) is not answered."""
    tasks = [
        task
        for task in state.tasks_of(command.request)
        if command.role in (None, task.role)
        and command.attempt in (None, task.request.attempt)
        and (not isinstance(task, EncodeTask) or command.for_decode in (None, task.for_decode))
    ]
    if not tasks:
        state.stale += 1
    return [m for task in tasks for m in end_task(state, task, Trigger.FAILED, command.status, command.reason)]


def held(state: InstanceState) -> tuple[HeldTask, ...]:
    """Every task. Prefill and encode tasks are never `running`: somebody has to come for what they stage; nor is a local task that waits for media."""
    return tuple(
        HeldTask(
            state.ref,
            task.request.id,
            task.request.attempt,
            None if task.kind is Kind.LOCAL else task.role,
            task.request.gateway,
            _runs(state, task),
            isinstance(task, EncodeTask) and task.for_decode,
        )
        for task in state.tasks.values()
    )


def _runs(state: InstanceState, task: Task) -> bool:
    """Whether it needs nothing of any other instance any more."""
    if task.kind is Kind.LOCAL:
        return state.media is None or not state.media.waits(task)
    return task.state is State.DECODING
