"""Preemption by recomputation, as in vLLM (Kwon et al. 2023, section 4.5): when decoding needs a page and none is left,
the youngest gives up its own.

Victims are samples that decode or recompute, and local prompts half computed. Never reservations, staged KV or prompts
being computed for a puller: others count on those. The oldest is never a victim, so the work at hand always advances.
What a victim had committed stays in the prefix cache as long as it can, and its outputs are kept: recomputing draws
nothing that is already known, and a draw depends on its position only, so the tokens that follow are the same.
One with media that the prefix cache does not cover any more gets its embeddings first, beside the queue (gathering.py).
What all its tokens attend to it keeps.
"""

from __future__ import annotations

from dataclasses import replace

from triptych.runtime.core.errors import Status
from triptych.runtime.instance.gathering import begin
from triptych.runtime.instance.lifecycle import Kind, Trigger
from triptych.runtime.instance.messages import InstanceMessage
from triptych.runtime.instance.state import InstanceState, end_task
from triptych.runtime.instance.tasks import Fill, Stream


def make_room(state: InstanceState, stream: Stream, tokens: int) -> list[InstanceMessage]:
    """Pages for `tokens` tokens of `stream`, preempting younger work and at last `stream` itself.

    Afterwards the stream has its pages, or waits for recomputation, or, if it could not fit into an empty instance, its
    task has ended. While the stream's last draw is in flight neither of the latter is done: that token may end it. Then
    it sits this step out.
    """
    sequence = stream.sequence
    assert sequence is not None
    if state.config.pages_for(tokens) > state.config.usable_pages:
        if stream.pending:
            return []
        reason = f"{tokens} tokens need {state.config.pages_for(tokens)} KV pages; the instance has {state.config.usable_pages}"
        return end_task(state, stream.task, Trigger.FAILED, Status.RESOURCE_EXHAUSTED, reason)
    while sequence.missing(tokens) > state.memory.pool.available:
        victim = _youngest(state)
        if victim is stream and stream.pending:
            return []
        if isinstance(victim, Stream):
            victim.task.preemptions += 1
            requeue(state, victim)
        else:
            _restart(state, victim)
        if victim is stream:
            return []
    sequence.reserve(tokens)
    return []


def requeue(state: InstanceState, stream: Stream) -> None:
    """`stream` gives up pages and slot and goes to the front of the queue, to compute all its tokens again."""
    if stream in state.running:
        state.running.remove(stream)
    state.unseat(stream)
    sequence = stream.sequence
    assert sequence is not None
    state.displace(sequence)
    _to_front(state, Fill(stream.task, sequence, (stream,), True))


def _restart(state: InstanceState, fill: Fill) -> None:
    """A sequence that is still being computed starts over."""
    fill.task.preemptions += 1
    fill.abandoned = True
    for stream in fill.streams:
        state.unseat(stream)
    state.displace(fill.sequence)
    if not fill.resumed:
        fill.task.scores.clear()
        fill.task.advance(Trigger.PREEMPTED)
    _to_front(state, replace(fill, abandoned=False))


def _to_front(state: InstanceState, fill: Fill) -> None:
    if not begin(state, fill):
        state.waiting[fill.sequence.number] = fill
        state.waiting.move_to_end(fill.sequence.number, last=False)


def _youngest(state: InstanceState) -> Stream | Fill:
    """The youngest preemptible work; there is some, because whoever asks is running."""
    fills = [fill for fill in state.filling.values() if fill.task.kind is not Kind.PREFILL]
    return max([*state.running, *fills], key=lambda work: work.order)
