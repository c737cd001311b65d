"""Decode steps at a tenth of their price, and runs of them at once: what makes a million requests affordable, and
changes nothing that a study reports.

While an instance only decodes, and until a sample ends, a page is lacking, a timer is due or something arrives, the
next steps are known: every running sample draws one token in each, and pages are taken as they fill. A DecodeRun
computes when each of those steps will end, and `advance` puts the InstanceState into the state in which `steps` single
steps would have left it: outputs, pages, prefix keys, plans in flight. Step times are those of single steps to the last
bit. At the edges of runs, `plan_decodes` makes a plan in which every running sample decodes and nobody else does
anything, and `take_quiet` takes those rows of a result that neither begin nor end a sample; all else goes through the
core.

Not the same afterwards: which physical page a sample got when several needed one in the same run. Nothing depends on
it. Not done: the gateway hears only of tokens that begin or end a sample, so TTFT, TPOT and E2E are exact, and single
gaps between tokens are not kept. tests/runtime/simulation/test_study_leap.py compares both ways of simulating, request
by request.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate

from triptych.runtime.instance.composer import (
    DefaultComposer,
    PromptsFirst,
    ShortestFirst,
    StepComposer,
    StepLimits,
    StepView,
    TakingTurns,
)
from triptych.runtime.instance.decode_rows import schedule
from triptych.runtime.instance.state import InstanceState, PlannedDecodes, PlannedStep
from triptych.runtime.instance.tasks import Stream
from triptych.runtime.simulation.steptime import StepShape, StepTimes, grown

LEAST = 3  # steps; a shorter run costs more to set up than it spares
STEADY = (
    DefaultComposer,
    PromptsFirst,
    ShortestFirst,
    TakingTurns,
)  # composers that always choose all decodes when there is nothing else, and remember no more of it than once
MOST = 4096  # steps planned at a time: arrivals end most runs long before

Draws = Callable[[Stream, int, int], list[int]]
"""(stream, absolute position, count) -> the tokens drawn from that position on."""


class DecodeRun:
    """Steps j, j+1, … of an instance whose plans j and j+1 are in flight; `ends[i]` is when step j+i is done.

    Attributes:
        steps: results that may be taken at once, those of j to j + steps - 1.
        taken: those that `advance` has taken already.
        lacking: pages that the rest of the run will take, at most.
        cut: whether something has put an end to it.
    """

    __slots__ = ("_draws", "_state", "cut", "ends", "lacking", "steps", "taken")

    def __init__(self, state: InstanceState, ends: list[float], steps: int, lacking: int, draws: Draws):
        self._state, self._draws = state, draws
        self.ends, self.steps, self.lacking, self.taken, self.cut = ends, steps, lacking, 0, False

    def cut_at(self, steps: int) -> float:
        """The run ends with step number `steps` under way; returns when that is done."""
        self.steps, self.cut = steps, True
        return self.ends[steps]

    def stands(self, pages: int) -> bool:
        """Whether something that takes up to `pages` pages, and touches no running sample, changes nothing about this
        run, nor the run about it: all pages of both are there, without evicting any from the prefix cache."""
        due = self._state.timers.first
        return self._state.memory.pool.free >= self.lacking + pages and (due is None or due > self.ends[self.steps])

    def done_by(self, now: float) -> int:
        """How many of the run's results are there at `now`."""
        return min(self.steps, bisect_right(self.ends, now))

    def advance(self, results: int) -> int:
        """Take results until `results` of the run are taken; returns how many were new."""
        new = results - self.taken
        if new <= 0:
            return 0
        self._take(new, new)
        return new

    def finish(self) -> int:
        """`advance` to the last of the run's results, and take the one after, so that one plan is left in flight.
        Returns how many results were new to `advance`."""
        new = self.steps - self.taken
        self._take(new, new + 1)
        for stream in self._state.running:
            stream.pending = 1
        self._state.in_flight.popleft()
        return new

    def _take(self, plans: int, results: int) -> None:
        """Every sample gets the tokens of `results` results and rows in `plans` more plans, of which the later one in
        flight is the last."""
        state, draws = self._state, self._draws
        size, caching, ahead = state.memory.page_size, state.memory.caching, 2 + plans - results
        for stream in state.running:
            sequence = stream.sequence
            assert sequence is not None
            drawn = draws(stream, len(sequence.tokens), results)
            stream.outputs += drawn
            sequence.tokens += drawn
            scheduled = sequence.scheduled = sequence.scheduled + plans
            if scheduled > sequence.capacity:
                self.lacking -= -(-(scheduled - sequence.capacity) // size)
                sequence.reserve(scheduled)
            if caching:
                sequence.commit(scheduled - ahead)
            else:  # all that `commit` does then
                sequence.committed = scheduled - ahead
        first, later = state.in_flight
        first.id += plans
        later.id += plans
        state.next_plan += plans
        self.taken += plans


def find_run(
    state: InstanceState,
    composer: StepComposer,
    shape: StepShape,
    ends: tuple[float, float],
    times: StepTimes,
    draws: Draws,
) -> DecodeRun | None:
    """A run from here, or None if the next steps have to be taken singly.

    Args:
        shape: of the later of the two plans in flight.
        ends: when the two plans in flight are done.
    """
    running = state.running
    if not running or state.filling or len(state.in_flight) != 2 or not _queue_stands(state) or _encodes(state):
        return None
    if not isinstance(composer, STEADY):
        return None
    first, second = state.in_flight
    if first.rows or second.rows or not running == first.decodes.streams == second.decodes.streams:
        return None
    steps = MOST
    for stream in running:
        if stream.pending != 2:
            return None
        left = stream.termination.limit - len(stream.outputs) - 2
        if left < steps:
            steps = left
            if steps < LEAST:
                return None
    steps, lacking = _with_pages(state, steps)
    if steps < LEAST:
        return None
    done = [ends[0], *accumulate(times.decode_run(grown(shape, 1), steps), initial=ends[1])]
    due = state.timers.first
    if due is not None and done[steps] >= due:  # what is due is looked at by the first step planned after that
        steps = bisect_right(done, due) - 1
        if steps < LEAST:
            return None
    return DecodeRun(state, done, steps, lacking, draws)


def plan_decodes(state: InstanceState, composer: StepComposer, now: float) -> StepShape | None:
    """Put the next plan in flight, as planner.plan_step would, if it consists of decode rows alone: one for every
    running sample but those that what is in flight will end. Else None, and nothing was done."""
    running, due = state.running, state.timers.first
    if not running or state.filling or (due is not None and due <= now) or not _queue_stands(state) or _encodes(state):
        return None
    lacking = context = longest = 0
    groups = len(state.memory.groups)
    ready: list[Stream] = []
    for stream in running:
        if len(stream.outputs) + stream.pending < stream.termination.limit:
            sequence = stream.sequence
            assert sequence is not None
            if sequence.copies:
                return None
            end = sequence.scheduled + 1
            if end > sequence.capacity:
                lacking += groups
            longest = max(longest, end)
            context += end
            ready.append(stream)
    if not ready or (lacking and lacking > state.memory.pool.available):
        return None
    if type(composer) is not DefaultComposer or state.media is not None:
        if not isinstance(composer, STEADY):
            return None
        limits = StepLimits(state.config.max_num_seqs, state.config.chunk_tokens, state.config.max_prefill_rows)
        composer.compose(StepView(len(ready), (), limits))
    for stream in ready:
        sequence = stream.sequence
        if lacking and sequence is not None and sequence.scheduled == sequence.capacity:
            sequence.reserve(sequence.scheduled + 1)
        stream.seated = True
    state.in_flight.append(PlannedStep(state.next_plan, schedule(ready)))
    state.next_plan += 1
    return StepShape(len(ready), context, longest=longest, draws=len(ready))


def take_quiet(state: InstanceState, draws: Draws) -> bool:
    """Take the rows of the oldest plan in flight that just go on decoding. Returns whether that was all of the plan:
    then it is done, else the core has to take the rows that are left."""
    step = state.in_flight[0]
    decodes, loud = step.decodes, PlannedDecodes([], [], [])
    for number, stream, generation in zip(decodes.numbers, decodes.streams, decodes.generations, strict=True):
        outputs, sequence = stream.outputs, stream.sequence
        goes_on = 0 < len(outputs) < stream.termination.limit - 1
        if not goes_on or stream.generation != generation or sequence is None:
            loud.numbers.append(number)
            loud.streams.append(stream)
            loud.generations.append(generation)
            continue
        computed = len(sequence.tokens)
        sequence.commit(computed)
        drawn = draws(stream, computed, 1)
        stream.pending -= 1
        outputs += drawn
        sequence.tokens += drawn
    step.decodes = loud
    if loud.streams or step.rows or step.encodes or (state.media is not None and state.media.stirred):
        return False  # word of the step is waited for
    state.in_flight.popleft()
    return True


def _encodes(state: InstanceState) -> bool:
    """Whether media are being encoded or waited for: then the core plans."""
    media = state.media
    if media is None:
        return False
    return bool(media.encoding or media.beside or media.stirred) or any(step.encodes for step in state.in_flight)


def _queue_stands(state: InstanceState) -> bool:
    """Whether nothing can be admitted as long as nothing is freed (the rules of admission.admit_waiting)."""
    if not state.waiting:
        return True
    number, fill = next(iter(state.waiting.items()))
    if state.blocked is not None and state.blocked[0] == number:
        return state.memory.pool.available <= state.blocked[1]
    return state.slots.free < sum(stream.slot is None for stream in fill.streams)


def _with_pages(state: InstanceState, steps: int) -> tuple[int, int]:
    """The most steps, up to `steps`, for which all pages are there; and how many those are at most: exactly, if memory is
    short."""
    available, size, groups = state.memory.pool.available, state.memory.page_size, len(state.memory.groups)
    most = -(-steps // size) * len(state.running) * groups
    if most <= available // 2:
        return steps, most

    def lacking(count: int) -> int:
        total = 0
        for stream in state.running:
            sequence = stream.sequence
            assert sequence is not None
            over = sequence.scheduled + count - sequence.capacity
            if over > 0:
                total += -(-over // size)
        return total * groups

    if (pages := lacking(steps)) <= available:
        return steps, pages
    low, high = 0, steps  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if lacking(middle) <= available else (low, middle)
    return low, lacking(low)
