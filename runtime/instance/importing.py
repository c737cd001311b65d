"""Decode side of a transfer: from the reservation to streams that decode.

Until `Imported` the pages belong to the reservation alone and nothing of them enters the prefix index. Then the prompt
is committed, the first live sample takes the sequence over and the others fork from it.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import replace

from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import Role
from triptych.runtime.core.request import Continuation
from triptych.runtime.core.tasks import DecodeStarted, StartDecode
from triptych.runtime.instance.lifecycle import State, Trigger
from triptych.runtime.instance.messages import Imported, ImportFailed, InstanceMessage, Report, StartPull
from triptych.runtime.instance.preemption import requeue
from triptych.runtime.instance.state import InstanceState, end_task
from triptych.runtime.instance.tasks import DecodeTask, Stream


def start_decode(state: InstanceState, command: StartDecode) -> list[InstanceMessage]:
    """Pull what the reservation lacks. Without a reservation (it expired, or this is a repetition) nothing is done: its
    end was reported."""
    task = state.tasks.get((command.request, Role.DECODE))
    if not isinstance(task, DecodeTask) or task.state is not State.RESERVED or task.sequence is None:
        return []
    task.advance(Trigger.STARTED)
    task.pulling = True
    prompt, source = len(task.request.prompt), command.source
    first_page = task.cached_tokens // state.config.page_size
    pull = StartPull(
        request=command.request,
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
    task = _importing(state, event.request)
    if task is None:
        return []
    task.pulling = False
    wrong = _difference(task, event.continuation)
    if wrong is not None:
        return end_task(
            state, task, Trigger.FAILED, Status.FAILED_PRECONDITION, f"the continuation does not fit: {wrong}"
        )
    task.advance(Trigger.IMPORTED)
    live = _seat_live(state, task, event.continuation)
    if not live:
        return end_task(state, task, Trigger.FINISHED)
    pages = task.cached_tokens // state.config.page_size
    messages: list[InstanceMessage] = [
        Report(DecodeStarted(task.request.id, replace(event.times, pages_skipped=pages)))
    ]
    full = next((stream for stream in live if len(stream.outputs) >= stream.termination.limit), None)
    if full is not None:
        reason = (
            f"sample {full.sample} has {len(full.outputs)} outputs; there is room here for {full.termination.limit}"
        )
        return end_task(state, task, Trigger.FAILED, Status.FAILED_PRECONDITION, reason)
    for stream in reversed(live):  # whoever is requeued last is first in the queue
        if len(stream.outputs) == 1:
            insort(state.running, stream, key=lambda running: running.order)
        else:  # its last hidden states are not here: compute what is not in the prefix cache again
            requeue(state, stream)
    return messages


def import_failed(state: InstanceState, event: ImportFailed) -> list[InstanceMessage]:
    """The pull ended for good without its data."""
    task = _importing(state, event.request)
    if task is None:
        return []
    task.pulling = False
    return end_task(state, task, Trigger.FAILED, event.status, event.reason)


def _importing(state: InstanceState, request: str) -> DecodeTask | None:
    task = state.tasks.get((request, Role.DECODE))
    return task if isinstance(task, DecodeTask) and task.pulling else None


def _difference(task: DecodeTask, continuation: Continuation) -> str | None:
    """What is wrong with `continuation`, if it is not that of `task`."""
    mine, theirs = task.request, continuation.request
    if (theirs.id, theirs.attempt) != (mine.id, mine.attempt):
        return f"it is of request {theirs.id} attempt {theirs.attempt}, not {mine.id} attempt {mine.attempt}"
    if theirs.prompt != mine.prompt:
        return "its prompt is another"
    samples = [sample.sample for sample in continuation.samples]
    if samples != sorted(set(samples) & set(range(mine.sampling.n))):
        return f"its samples are {samples}; n is {mine.sampling.n}"
    return None


def _seat_live(state: InstanceState, task: DecodeTask, continuation: Continuation) -> list[Stream]:
    """Hand the imported sequence to the live samples and take slots and pages back from the others."""
    sequence, task.sequence = task.sequence, None
    assert sequence is not None
    sequence.scheduled = len(task.request.prompt)
    sequence.commit(sequence.scheduled)
    task.position_offset = continuation.position_offset
    live = []
    for sample in continuation.live:
        stream = task.streams[sample.sample]
        stream.sequence = sequence.fork() if live else sequence
        live.append(stream)
        stream.outputs = list(sample.outputs)
        stream.termination.replay(sample.outputs)
    for stream, sample in zip(live, continuation.live, strict=True):
        assert stream.sequence is not None
        stream.sequence.tokens.extend(sample.outputs)
    sequence.drop_spare()
    for stream in task.streams:
        if stream not in live:
            state.drop(stream)
    if not live:
        sequence.evict()
    task.streams = tuple(live)
    return live
