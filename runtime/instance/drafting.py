"""Verification in plans and results: which samples of a step get guesses, and what is left of them afterwards.

A guess is one more row of its sequence in the same plan, shaped like any decode row: the token before it was written by the row before, because a
program writes all keys and values of a layer before it attends to them. So verification needs no programs of its own, only decode rows in number.

What a sample holds at the end depends on how many guesses were right. Nothing is planned until that is known: the device waits for
the host once a verifying step (decision 025 says why the others are not computed meanwhile). Where a sample's last token is still being drawn the first guess
takes its place and those behind it are verified, so plain steps run into a verifying one without a wait.
"""

from __future__ import annotations

from collections.abc import Sequence as Several

from triptych.runtime.instance.speculation import LEARNED, NO_GUESSES, Drafter, Guesses, Lookahead, can_speculate
from triptych.runtime.instance.state import Guessed, InstanceState, PlannedRow
from triptych.runtime.instance.tasks import Stream

# What the wait for a verifying step costs, as a share of a step: every sample that decodes loses so much. An estimate for small models on fast
# devices, on purpose: where steps are long the wait is less, and guesses that pay do so by far.
WAIT = 0.25


def guesses(state: InstanceState, streams: Several[Stream], rows: int) -> list[Guesses]:
    """For each of `streams`, which all decode in the next plan, the tokens guessed to follow; at most `rows` in all, oldest samples first.

    They hold their pages then, out of what is free: nothing is preempted for a guess. All are empty if they are not worth the wait.
    """
    found: list[tuple[int, ...]] = []
    gain, learned = 0.0, 0
    for stream in streams:
        lookahead, most = lookahead_of(state, stream), min(rows, room(state, stream))
        guessed: tuple[int, ...] = ()
        if lookahead is not None and lookahead.drafter is not None and most > 0 and stream.sequence is not None:
            learned += lookahead.drafter.learn(stream.sequence.tokens, LEARNED - learned)
            proposed = _propose(lookahead.drafter, stream.sequence.tokens, stream.pending, most)
            guessed = proposed[: lookahead.depth(len(proposed))]
        rows -= len(guessed)
        found.append(guessed)
        if lookahead is not None:
            gain += lookahead.expected(len(guessed))
    if not worth_the_wait(gain, streams):
        return [NO_GUESSES] * len(streams)
    held = [guessed[: hold(state, stream, len(guessed))] for stream, guessed in zip(streams, found, strict=True)]
    return [Guesses(len(guessed), guessed) for guessed in held]


def worth_the_wait(gain: float, streams: Several[Stream]) -> bool:
    """Whether `gain` guesses, expected to be right, are worth a wait of all `streams`."""
    return gain > WAIT * len(streams)


def lookahead_of(state: InstanceState, stream: Stream) -> Lookahead | None:
    """That of `stream`; None if it is not guessed for."""
    request, speculation = stream.task.request, state.config.speculation
    if stream.lookahead is None and speculation is not None and can_speculate(request.sampling):
        asked = None if speculation.model is not None else state.drafter(request, stream.sample)
        stream.lookahead = Lookahead(asked)
    return stream.lookahead


def room(state: InstanceState, stream: Stream) -> int:
    """Tokens that may be guessed in one step before `stream` is as long as it can be."""
    assert state.config.speculation is not None
    return min(state.config.speculation.tokens, stream.termination.limit - len(stream.outputs) - stream.pending - 1)


def _propose(drafter: Drafter, tokens: Several[int], ahead: int, most: int) -> tuple[int, ...]:
    """What may follow the token that is decoded next: the one behind `tokens`, if one is being drawn (`ahead`), else their last."""
    return tuple(drafter.propose(tokens, ahead + most))[ahead:]


def hold(state: InstanceState, stream: Stream, count: int) -> int:
    """How many of `count` guesses there are pages for; the stream holds them then."""
    sequence = stream.sequence
    assert sequence is not None
    end = sequence.scheduled + 1 + count
    if count and sequence.missing(end) <= state.memory.pool.available:
        sequence.reserve(end)
    return min(count, sequence.capacity - sequence.scheduled - 1)


def stands(planned: PlannedRow, guess: int) -> bool:
    """Whether `guess`, the row's input, turned out to be the sequence's token there, and the sample goes on behind it."""
    stream, generation = planned.draws[0]
    tokens = planned.sequence.tokens
    return (
        stream.generation == generation
        and stream.finish is None
        and len(tokens) == planned.computed
        and tokens[-1] == guess
    )


def judge(state: InstanceState, guessed: Guessed) -> None:
    """All rows of a verified sample were looked at: what was computed for wrong guesses is computed again."""
    stream, sequence = guessed.stream, guessed.stream.sequence
    if stream.generation != guessed.generation or sequence is None or stream.lookahead is None:
        return
    accepted = len(sequence.tokens) - guessed.known
    state.speculated = state.speculated.plus(guessed.count, accepted)
    if stream.finish is None:  # else what lay behind the end was never judged
        stream.lookahead.observe(guessed.count, accepted)
    stream.pending = 0
    sequence.retract(len(sequence.tokens) - 1)
    if stream.lookahead.drafter is None:
        sequence.mark_drafted()
