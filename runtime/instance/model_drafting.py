"""A draft model's part of a plan: which samples it guesses for, and which tokens it has to read first.

The draft model is another weight set of the instance. It has a KV pool of its own, of as many pages, and a sequence's block table addresses both
pools. What it has computed of a sequence is `Sequence.drafted` tokens from the first on; nothing depends on that but how often it is right. It lags behind
where only the target computed: a prompt, pulled or computed here, unless its pages were cached with the KV of both; steps without guesses. A sample is guessed for once all tokens before its last two are
read. The last two it takes with the guesses themselves, whether it has read the first of them or not: after guesses that were all right it has not.
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import dataclass

from triptych.runtime.instance.drafting import hold, lookahead_of, room, worth_the_wait
from triptych.runtime.instance.plan import Draft, Row
from triptych.runtime.instance.speculation import NO_GUESSES, Guesses
from triptych.runtime.instance.state import InstanceState
from triptych.runtime.instance.tasks import Stream


@dataclass(frozen=True)
class CatchUp:
    """The draft model reads the next `tokens` tokens of a sample's sequence."""

    stream: Stream
    tokens: int


def model_guesses(
    state: InstanceState, streams: Several[Stream], rows: int
) -> tuple[list[Guesses], tuple[CatchUp, ...]]:
    """For each of `streams`, which all decode in the next plan, how many tokens are guessed, at most `rows` in all; and what is read before.

    As `drafting.guesses` otherwise. Samples that are still being read count as if they were guessed for already: those that are ready would fall behind
    again if they decoded without guesses until enough are.
    """
    depths, gain = _depths(state, streams, rows)
    if not worth_the_wait(gain, streams):
        return [NO_GUESSES] * len(streams), ()
    catch_ups = _catch_ups(state, [stream for stream, depth in zip(streams, depths, strict=True) if depth])
    read = {id(each.stream): each.tokens for each in catch_ups}
    found: list[Guesses] = []
    for stream, depth in zip(streams, depths, strict=True):
        ready = lag(stream) <= read.get(id(stream), 0)
        found.append(Guesses(hold(state, stream, depth)) if ready else NO_GUESSES)
    return found, catch_ups


def _depths(state: InstanceState, streams: Several[Stream], rows: int) -> tuple[list[int], float]:
    """(how many tokens of each stream to guess, how many of all these are expected to be right)."""
    depths: list[int] = []
    gain = 0.0
    for stream in streams:
        lookahead, most = lookahead_of(state, stream), min(rows, room(state, stream))
        depth = 0 if lookahead is None or most <= 0 else lookahead.depth(most)
        rows -= depth
        depths.append(depth)
        gain += 0.0 if lookahead is None else lookahead.expected(depth)
    return depths, gain


def lag(stream: Stream) -> int:
    """Tokens before the stream's last two that the draft model has not read."""
    assert stream.sequence is not None
    return max(0, stream.sequence.scheduled - 1 - stream.sequence.drafted)


def _catch_ups(state: InstanceState, streams: Several[Stream]) -> tuple[CatchUp, ...]:
    """What one run of a program of the draft model reads, oldest samples first: a chunk of tokens, as of prompts."""
    left, found = state.config.chunk_tokens, list[CatchUp]()
    for stream in streams:
        tokens = min(lag(stream), left)
        if tokens and len(found) < state.config.max_prefill_rows:
            found.append(CatchUp(stream, tokens))
            left -= tokens
    return tuple(found)


def catch_up_row(catch_up: CatchUp) -> Row:
    """The tokens to read, which from now on count as read."""
    sequence = catch_up.stream.sequence
    assert sequence is not None
    start = sequence.drafted
    end = sequence.drafted = start + catch_up.tokens
    sequence.mark_drafted()
    position = start + catch_up.stream.task.position_offset
    return Row(sequence.number, tuple(sequence.tokens[start:end]), start, position, sequence.pages)


def draft(stream: Stream, count: int) -> Draft:
    """`count` guesses behind the token that `stream` decodes next. Their KV but the last one's counts as computed, until they are judged."""
    sequence, slot = stream.sequence, stream.slot
    assert sequence is not None and slot is not None
    start = sequence.scheduled - 1
    tokens = tuple(sequence.tokens[start : start + 2])
    sequence.drafted = start + 1 + count
    return Draft(slot, tokens, start, start + stream.task.position_offset, sequence.pages, count)
