"""How samples that have outputs already go on from a prompt: after an import, or where a request begins again.

The first live sample takes the prompt's sequence over, the others fork from it. A sample of one output decodes at once,
because that token is its next input. One of more computes its outputs first, behind the prompt that is there (a Fill).
One of none lacks the hidden state that its first token is drawn from, so it computes the prompt's last token again,
over the KV that is there: no embeddings are needed for that, unless the token itself is one of a media item.

Reservations hold room for all of that, unless an empty instance has not enough: then they hold what a fresh request would,
and the samples that find no room wait like preempted ones.
"""

from __future__ import annotations

from bisect import insort

from triptych.runtime.core.errors import Status
from triptych.runtime.core.request import Request, SampleState
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.lifecycle import Trigger
from triptych.runtime.instance.messages import InstanceMessage
from triptych.runtime.instance.preemption import requeue
from triptych.runtime.instance.sequence import Sequence
from triptych.runtime.instance.spans import overlapping
from triptych.runtime.instance.state import InstanceState, end_task
from triptych.runtime.instance.tasks import Fill, Stream, Task, live_samples


def least_pages(config: InstanceConfig, request: Request, resumed: tuple[SampleState, ...]) -> int:
    """Pages without which decoding cannot begin: those of the prompt, and the one that each sample's next output goes to."""
    live = len(live_samples(request, resumed))
    return len(request.prompt) // config.page_size + live if live else config.pages_for(len(request.prompt))


def room(config: InstanceConfig, request: Request, resumed: tuple[SampleState, ...]) -> tuple[int, int]:
    """(tokens of the first sample, pages of the others) to reserve for the prompt, all outputs so far and the next one."""
    prompt, live = len(request.prompt), len(live_samples(request, resumed))
    if not live:
        return prompt, 0
    outputs = [len(sample.outputs) for sample in resumed if sample.finish is None]
    shared = prompt // config.page_size
    own = [config.pages_for(prompt + count + 1) - shared for count in outputs]
    if not own or shared + sum(own) > config.usable_pages:
        return prompt + 1, live - 1
    return prompt + outputs[0] + 1, sum(own[1:])


def try_reserve(state: InstanceState, sequence: Sequence, tokens: int, spare: int = 0) -> bool:
    """Pages for `tokens` tokens of `sequence` and `spare` more, or False and nothing changed."""
    if sequence.missing(tokens, spare) > state.memory.pool.available:
        return False
    sequence.reserve(tokens, spare)
    return True


def go_on(
    state: InstanceState, task: Task, sequence: Sequence, samples: tuple[SampleState, ...]
) -> list[InstanceMessage]:
    """Hand `sequence`, the prompt that a plan already made computes or a pull has filled, to the live ones of `samples`.

    Slots and pages of the others are freed; without a live sample the task ends.
    """
    streams = {stream.sample: stream for stream in task.streams}
    going = [(streams[sample.sample], sample.outputs) for sample in samples if sample.finish is None]
    for index, (stream, _) in enumerate(going):
        stream.sequence = sequence.fork() if index else sequence
    sequence.drop_spare()
    if not going:
        state.forget(sequence)
    elif state.media is not None:
        state.media.share(sequence, tuple(stream for stream, _ in going))
    for stream, outputs in going:
        assert stream.sequence is not None
        stream.sequence.tokens.extend(outputs)
        stream.outputs = list(outputs)
        stream.termination.replay(outputs)
    for stream in task.streams:
        if stream.sequence is None:
            state.drop(stream)
    task.streams = tuple(stream for stream, _ in going)
    if not going:
        return end_task(state, task, Trigger.FINISHED)
    full = next((stream for stream in task.streams if len(stream.outputs) >= stream.termination.limit), None)
    if full is not None:
        outputs, limit = len(full.outputs), full.termination.limit
        reason = f"sample {full.sample} has {outputs} outputs; there is room here for {limit}"
        return end_task(state, task, Trigger.FAILED, Status.FAILED_PRECONDITION, reason)
    waiting = [stream for stream in task.streams if not _continue(state, stream)]
    for stream in reversed(waiting):  # whoever is requeued last is first in the queue
        requeue(state, stream)
    return []


def _continue(state: InstanceState, stream: Stream) -> bool:
    """Whether `stream` goes on with what it has and what is free now."""
    sequence, known = stream.sequence, len(stream.outputs)
    assert sequence is not None
    if known == 1:
        insort(state.running, stream, key=lambda running: running.order)
        return True
    tokens, most = len(sequence.tokens), state.config.usable_pages * state.config.page_size
    if known == 0 and not _step_back(state, sequence):
        return False
    if not try_reserve(state, sequence, min(tokens + 1, most)):
        return False
    state.filling[sequence.number] = Fill(stream.task, sequence, (stream,), True)
    return True


def _step_back(state: InstanceState, sequence: Sequence) -> bool:
    """Whether the last token of the prompt can be computed again with what is here."""
    last = len(sequence.tokens) - 1
    if any(True for _ in overlapping(sequence.media, last, last + 1)):
        return False
    if sequence.missing_to_step_back() > state.memory.pool.available:
        return False
    sequence.step_back()
    return True
