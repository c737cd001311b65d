"""Decode side of a transfer: from the reservation to streams that decode.

Until `Imported` the pages belong to the reservation alone and nothing of them enters the prefix index. Then the prompt
is committed and its samples go on (resuming.py): at once, or when the media are here that it attends to (gathering.py).
"""

from __future__ import annotations

from dataclasses import replace

from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import Role
from triptych.runtime.core.request import Continuation
from triptych.runtime.core.tasks import DecodeStarted, StartDecode
from triptych.runtime.instance.lifecycle import State, Trigger
from triptych.runtime.instance.messages import Imported, ImportFailed, InstanceMessage, Report, StartPull
from triptych.runtime.instance.resuming import go_on
from triptych.runtime.instance.state import InstanceState, end_task
from triptych.runtime.instance.tasks import DecodeTask, Task


def start_decode(state: InstanceState, command: StartDecode) -> list[InstanceMessage]:
    """Pull what the reservation lacks. Without a reservation (it expired, or this is a repetition) nothing is done: its
    end was reported."""
    task = state.tasks.get((command.request, Role.DECODE))
    if not isinstance(task, DecodeTask) or task.request.attempt != command.attempt:
        state.stale += 1
        return []
    if task.state is not State.RESERVED or task.sequence is None:
        return []
    task.advance(Trigger.STARTED)
    task.pulling = True
    prompt, source = len(task.request.prompt), command.source
    first_page = task.cached_tokens // state.config.page_size
    pull = StartPull(
        request=command.request,
        attempt=command.attempt,
        source_key=source.key,
        source_address=source.address,
        source_instance=source.owner.id,
        source_epoch=source.owner.epoch,
        source_digest=source.digest,
        prompt_tokens=prompt,
        first_page=first_page,
        pages=task.sequence.pages[first_page : state.config.pages_for(prompt)],
        deadline=task.request.deadline,
    )
    return [pull]


def imported(state: InstanceState, event: Imported) -> list[InstanceMessage]:
    """Every byte is in place: decode on from the continuation."""
    task = _importing(state, event.request, event.attempt)
    if task is None:
        return []
    task.pulling = False
    wrong = _difference(task, event.continuation)
    if wrong is not None:
        return end_task(
            state, task, Trigger.FAILED, Status.FAILED_PRECONDITION, f"the continuation does not fit: {wrong}"
        )
    if state.media is not None and state.media.waits(task):
        state.media.imported[task] = event
        return []
    return _go_on(state, task, event)


def gathered(state: InstanceState) -> list[InstanceMessage]:
    """Decode tasks whose KV came first, and whose media are all here now, go on."""
    media = state.media
    assert media is not None
    messages: list[InstanceMessage] = []
    for task in [task for task in media.imported if not media.waits(task)]:
        messages += _go_on(state, task, media.imported.pop(task))
    return messages


def _go_on(state: InstanceState, task: Task, event: Imported) -> list[InstanceMessage]:
    task.advance(Trigger.IMPORTED)
    sequence, task.sequence = task.sequence, None
    assert sequence is not None
    sequence.scheduled = len(task.request.prompt)
    sequence.commit(sequence.scheduled)
    task.position_offset = event.continuation.position_offset
    pages = task.cached_tokens // state.config.page_size
    times = event.times if event.times.pages_skipped == pages else replace(event.times, pages_skipped=pages)
    started = DecodeStarted(task.request.id, times, task.request.attempt)
    going = go_on(state, task, sequence, event.continuation.samples)
    return [Report(started), *going] if event.continuation.live else going


def import_failed(state: InstanceState, event: ImportFailed) -> list[InstanceMessage]:
    """The pull ended for good without its data."""
    task = _importing(state, event.request, event.attempt)
    if task is None:
        return []
    task.pulling = False
    return end_task(state, task, Trigger.FAILED, event.status, event.reason)


def _importing(state: InstanceState, request: str, attempt: int) -> DecodeTask | None:
    task = state.tasks.get((request, Role.DECODE))
    if isinstance(task, DecodeTask) and task.pulling and task.request.attempt == attempt:
        return task
    state.stale += 1
    return None


def _difference(task: DecodeTask, continuation: Continuation) -> str | None:
    """What is wrong with `continuation`, if it is not that of `task`."""
    mine, theirs = task.request, continuation.request
    if (theirs.id, theirs.attempt) != (mine.id, mine.attempt):
        return f"it is of request {theirs.id} attempt {theirs.attempt}, not {mine.id} attempt {mine.attempt}"
    if theirs.prompt is not mine.prompt and theirs.prompt != mine.prompt:
        return "its prompt is another"
    if task.resumed:
        return None if continuation.samples == task.resumed else "its samples are not those that are resumed here"
    samples = [sample.sample for sample in continuation.samples]
    if samples != sorted(set(samples) & set(range(mine.sampling.n))):
        return f"its samples are {samples}; n is {mine.sampling.n}"
    return None
