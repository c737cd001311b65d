"""From the state to the next StepPlan.

Order matters. First every decoding sequence gets the page that it writes next, which may preempt or end others: after
that nothing that has a row can lose its pages within this plan. Then queued sequences are admitted with what is left,
the composer shares out the step, and rows are made. A plan may also encode media, and export what is ready. Plans made before may still write pages given up here; the device
executes in order, so this plan comes after them.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence as Several

from triptych.runtime.instance import encoding
from triptych.runtime.instance.admission import admit_waiting
from triptych.runtime.instance.columns import DecodeRows
from triptych.runtime.instance.composer import ChunkCandidate, StepComposer, StepLimits, StepView
from triptych.runtime.instance.decode_rows import decode_rows, schedule
from triptych.runtime.instance.embeddings import Entry
from triptych.runtime.instance.guessing import propose
from triptych.runtime.instance.lifecycle import Kind, Trigger
from triptych.runtime.instance.messages import InstanceMessage
from triptych.runtime.instance.model_drafting import CatchUp, catch_up_row, draft
from triptych.runtime.instance.plan import Draft, Draw, Encode, Export, Row, Seat, StepPlan
from triptych.runtime.instance.positions import offset_at
from triptych.runtime.instance.preemption import make_room
from triptych.runtime.instance.resuming import go_on
from triptych.runtime.instance.sequence import Sequence
from triptych.runtime.instance.spans import overlapping
from triptych.runtime.instance.speculation import Guesses
from triptych.runtime.instance.state import Guessed, InstanceState, PlannedDecodes, PlannedRow, PlannedStep
from triptych.runtime.instance.tasks import Fill, PrefillTask, Stream, Task

MAX_IN_FLIGHT = (
    2  # the next step is dispatched before the last one's tokens are read, and no further ahead (design.md, Programs)
)


def plan_step(
    state: InstanceState, composer: StepComposer, now: float
) -> tuple[list[InstanceMessage], StepPlan | None]:
    """The next plan, or None if nothing can be computed now; and the ends of tasks that turned out not to fit."""
    if len(state.in_flight) >= MAX_IN_FLIGHT or any(step.guessed for step in state.in_flight):
        return [], None
    messages: list[InstanceMessage] = []
    ready, needy = _decoding(state)
    if needy:
        messages = _make_room_to_decode(state, needy)
        ready, _ = _decoding(state)
    ended = admit_waiting(state, now, composer.shortest_first)
    if ended:
        ready, _ = _decoding(state)  # other samples of a task that ended
        messages += ended
    fills = list(state.filling.values())
    builder = PlanBuilder(state)
    patches = _encodable(state)
    if not ready and not fills and not patches:
        builder.offer()
        return messages, builder.finish() if builder.useful else None
    view = _view(state, len(ready), fills, patches, now)
    choice = composer.compose(view)
    view.check(choice)
    builder.encode(choice.patches)
    decoding = ready[: choice.decodes]
    guessed, catch_ups = propose(state, decoding, choice)
    for catch_up in catch_ups:
        builder.catch_up(catch_up)
    if any(each.count for each in guessed):
        for stream, each in zip(decoding, guessed, strict=True):
            builder.verify(stream, each)
    elif decoding:
        builder.decode(decoding)
    for fill, tokens in zip(fills, choice.chunks, strict=True):
        if tokens:
            builder.chunk(fill, tokens)
    builder.offer()
    plan = builder.finish() if builder.useful else None
    return messages + builder.messages, plan


def _decoding(state: InstanceState) -> tuple[list[Stream], list[Stream]]:
    """Streams that can decode now, and those that need a page first. One whose length alone ends it with what is being
    drawn is in neither."""
    ready: list[Stream] = []
    needy: list[Stream] = []
    for stream in state.running:
        if len(stream.outputs) + stream.pending < stream.termination.limit:
            sequence = stream.sequence
            assert sequence is not None
            (ready if sequence.scheduled < sequence.capacity else needy).append(stream)
    return ready, needy


def _make_room_to_decode(state: InstanceState, needy: list[Stream]) -> list[InstanceMessage]:
    messages: list[InstanceMessage] = []
    for stream in needy:
        if (
            stream.slot is not None and stream.sequence is not None
        ):  # else an older one has just preempted it, or its task ended
            messages += make_room(state, stream, stream.sequence.scheduled + 1)
    return messages


def _encodable(state: InstanceState) -> tuple[int, ...]:
    """Patches of each item that could be encoded now, in order."""
    media = state.media
    return () if media is None else tuple(item.patches for _, item in encoding.ready_items(media))


def _view(state: InstanceState, decodes: int, fills: list[Fill], patches: tuple[int, ...], now: float) -> StepView:
    config = state.config
    limits = StepLimits(config.max_num_seqs, state.share, config.max_prefill_rows, config.encode_patches)
    candidates = [
        ChunkCandidate(fill.left, fill.score is not None, now - fill.task.arrived, _embedding_next(fill.sequence))
        for fill in fills
    ]
    return StepView(decodes, candidates, limits, patches)


def _embedding_next(sequence: Sequence) -> bool:
    """Whether the next token to be computed is one of a media item."""
    start = sequence.scheduled
    return bool(sequence.media) and any(True for _ in overlapping(sequence.media, start, start + 1))


class PlanBuilder:
    """Collects one plan and, beside it, what its results will mean."""

    def __init__(self, state: InstanceState):
        self._state = state
        self._planned: list[PlannedRow] = []
        self._seats: list[Seat] = []
        self._copies: list[tuple[int, int]] = []
        self._exports: list[Export] = []
        self._encodes: list[Encode] = []
        self._entries: list[Entry] = []
        self._guessed: list[Guessed] = []
        self._catch_ups: list[Row] = []
        self._drafts: list[Draft] = []
        self._decodes = PlannedDecodes([], [], [])
        self._decode_rows: DecodeRows | None = None
        self._rows: list[Row] = []
        self.messages: list[InstanceMessage] = []

    @property
    def useful(self) -> bool:
        """Whether the plan does anything."""
        return bool(self._decode_rows or self._rows or self._encodes or self._exports)

    def encode(self, patches: int) -> None:
        """The first items that wait to be encoded, at most so many patches."""
        if self._state.media is not None and patches:
            for encode, entry in encoding.encode(self._state.media, patches):
                self._encodes.append(encode)
                self._entries.append(entry)

    def offer(self) -> None:
        """Export embeddings that are there, or are once this plan's encodes are done."""
        if self._state.media is not None:
            self._exports += encoding.exports(self._state.media)

    def decode(self, streams: list[Stream]) -> None:
        """One token of each, before any other row: the last one known, or the one that its slot is drawing in the plan before."""
        for stream in streams:
            self._prepare(stream)
        self._decode_rows = decode_rows(streams, self._state.media)
        self._decodes = schedule(streams)

    def catch_up(self, catch_up: CatchUp) -> None:
        """The draft model reads tokens that it lacks."""
        self._catch_ups.append(catch_up_row(catch_up))

    def verify(self, stream: Stream, guessed: Guesses) -> None:
        """One token of one stream, as `decode` does, and behind it the tokens that are guessed to follow, for which it has pages."""
        sequence, slot = stream.sequence, stream.slot
        assert sequence is not None and slot is not None
        self._prepare(stream)
        if guessed.count and not guessed.tokens:
            self._drafts.append(draft(stream, guessed.count))
        start = sequence.scheduled
        end = sequence.scheduled = start + 1
        tokens = () if stream.pending else (sequence.tokens[start],)
        stream.pending += 1
        position = start + stream.task.position_offset
        media, draws = self._state.media, (Draw(slot, end),)
        attended = media.attended(sequence) if sequence.media and media is not None else ()
        self._rows.append(Row(sequence.number, tokens, start, position, sequence.pages, slot, draws, attended=attended))
        by = ((stream, stream.generation),)
        self._planned.append(PlannedRow(sequence, sequence.generation, end, by))
        for offset in range(1, guessed.count + 1):
            known = guessed.tokens[offset - 1 : offset]
            draws = (Draw(slot, end + offset),)
            at, drawn = (start + offset, position + offset), 0 if known else offset
            row = Row(sequence.number, known, *at, sequence.pages, slot, draws, attended=attended, guess=drawn)
            self._rows.append(row)
            asked = PlannedRow(sequence, sequence.generation, end + offset, by, draft=known[0] if known else None)
            self._planned.append(asked)
        if guessed.count:
            sequence.scheduled += guessed.count
            stream.pending += guessed.count
            self._guessed.append(Guessed(stream, stream.generation, guessed.count, end + 1))

    def _prepare(self, stream: Stream) -> None:
        """What comes before a stream's rows."""
        if stream.sequence is not None and stream.sequence.copies:
            self._copies += stream.sequence.take_copies()
        if not stream.seated:
            self._seat(stream)

    def chunk(self, fill: Fill, tokens: int) -> None:
        """The next `tokens` known tokens of a fill; with its last one the draws, and then its streams are running."""
        sequence, task = fill.sequence, fill.task
        if sequence.copies:
            self._copies += sequence.take_copies()
        start = sequence.scheduled
        end = sequence.scheduled = start + tokens
        last = not fill.left
        streams = fill.streams if last and fill.drawing else ()
        for stream in streams:
            if not stream.seated:
                self._seat(stream)
            stream.pending += 1
        score = () if fill.score is None else tuple(sequence.tokens[start + 1 : end + 1])
        prompt = task.request.prompt
        whole = end - start == len(prompt) == len(sequence.tokens)  # the usual case, and no copy
        row = Row(
            sequence=sequence.number,
            tokens=prompt if whole else tuple(sequence.tokens[start:end]),
            start=start,
            position=start + self._offset(task, sequence, start),
            pages=sequence.pages,
            draws=tuple(Draw(stream.slot, end) for stream in streams if stream.slot is not None),
            score=score,
            score_top=fill.score or 0,
            embedded=self._state.media.embedded(fill, start, end)
            if sequence.media and self._state.media is not None
            else (),
            attended=self._state.media.attended(sequence) if sequence.media and self._state.media is not None else (),
        )
        if sequence.media and self._state.media is not None:
            self._state.media.passed(sequence.number, end)
        self._rows.append(row)
        prompt_of = task if last and not fill.drawing else None
        self._planned.append(
            PlannedRow(sequence, sequence.generation, end, tuple((s, s.generation) for s in streams), fill, prompt_of)
        )
        if isinstance(task, PrefillTask):
            self._export(task, fill, last)
        if last:
            self._computed(fill)

    def _offset(self, task: Task, sequence: Sequence, start: int) -> int:
        """Position of the token at `start`, if it is text, minus `start`."""
        return offset_at(sequence.media, start) if self._state.config.mrope and sequence.media else task.position_offset

    def finish(self) -> StepPlan:
        """The plan is complete and in flight."""
        state = self._state
        state.memory.pool.release([source for source, _ in self._copies])
        plan = StepPlan(
            state.next_plan,
            self._all_rows(),
            tuple(self._seats),
            tuple(self._copies),
            tuple(self._exports),
            tuple(self._encodes),
            tuple(self._catch_ups),
            tuple(self._drafts),
        )
        state.next_plan += 1
        state.in_flight.append(PlannedStep(plan.id, self._decodes, self._planned, self._entries, self._guessed))
        return plan

    def _all_rows(self) -> Several[Row]:
        """In columns, if there are no others than decode rows."""
        if self._decode_rows is None:
            return tuple(self._rows)
        return (*self._decode_rows, *self._rows) if self._rows else self._decode_rows

    def _seat(self, stream: Stream) -> None:
        request, end = stream.task.request, stream.termination
        params = request.sampling
        assert stream.slot is not None
        prompt, outputs = (request.prompt, tuple(stream.outputs)) if params.penalised else ((), ())
        self._seats.append(
            Seat(
                stream.slot,
                stream.sample,
                params,
                prompt,
                outputs,
                end.forbidden,
                end.forbidden_until,
                self._state.config.forbidden_first,
                len(request.prompt),
            )
        )
        stream.seated = True

    def _export(self, task: PrefillTask, fill: Fill, last: bool) -> None:
        """Pages that are full once this chunk is computed, in whole granules; with the last chunk everything."""
        if task.released:
            return
        sequence, granule = fill.sequence, self._state.config.export_pages
        end = (
            self._state.config.pages_for(sequence.scheduled)
            if last
            else sequence.scheduled // self._state.config.page_size
        )
        while task.next_export < end and (last or end - task.next_export >= granule):
            first = task.next_export
            pages = sequence.pages[first : min(first + granule, end)]
            task.next_export += len(pages)
            self._exports.append(Export(task.staging_key, first, pages, last and task.next_export == end))

    def _computed(self, fill: Fill) -> None:
        """Nothing of `fill` is left to plan: its streams decode from here, except where the KV is for a puller."""
        state, task = self._state, fill.task
        del state.filling[fill.sequence.number]
        if task.kind is Kind.PREFILL:
            if state.media is not None:  # nothing is computed of it any more
                state.media.forget(fill.sequence.number)
            return
        if not fill.drawing:
            task.sequence = None
            task.advance(Trigger.COMPUTED)
            self.messages += go_on(state, task, fill.sequence, task.resumed)
            return
        if not fill.resumed:
            first, *others = fill.streams
            first.sequence, task.sequence = fill.sequence, None
            for stream in others:
                stream.sequence = fill.sequence.fork()
            if state.media is not None:
                state.media.share(fill.sequence, fill.streams)
            task.advance(Trigger.COMPUTED)
        for stream in fill.streams:
            insort(state.running, stream, key=lambda running: running.order)
