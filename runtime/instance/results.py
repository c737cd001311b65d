"""What a finished plan means: KV is committed, draws become tokens, samples and tasks end.

A result counts for a sequence or stream only if it still has the generation that it had when the plan was made.
Everything else is a zombie: its sample ended or was preempted while the plan was in flight, and its draw is discarded.
"""

from __future__ import annotations

from triptych.runtime.core.errors import EngineError
from triptych.runtime.core.handle import Lease
from triptych.runtime.core.request import Continuation, Logprobs, PromptReport, SampleState, TokenOut
from triptych.runtime.core.tasks import PrefillDone, StageTimes
from triptych.runtime.instance.columns import DrawnRows
from triptych.runtime.instance.drafting import judge, stands
from triptych.runtime.instance.encoding import encoded
from triptych.runtime.instance.lifecycle import Trigger
from triptych.runtime.instance.messages import CompleteStaging, Emit, EmitPrompt, InstanceMessage, Report
from triptych.runtime.instance.plan import Drawn, StepResult
from triptych.runtime.instance.state import InstanceState, PlannedStep, end_task
from triptych.runtime.instance.taking import take_decodes
from triptych.runtime.instance.tasks import PrefillTask, Stream, Task


class ResultMismatchError(EngineError):
    """A result is not that of the oldest plan in flight; the pool can no longer be trusted."""


def apply_result(state: InstanceState, result: StepResult, now: float) -> list[InstanceMessage]:
    """Tokens first (one Emit per gateway), then what they bring about. Results of plans before a reset are ignored."""
    if not state.in_flight or result.id < state.in_flight[0].id:
        return []
    _check(state.in_flight[0], result)
    step = state.in_flight.popleft()
    if step.encodes and state.media is not None:
        encoded(state.media, step.encodes)
    tokens: dict[str, list[TokenOut]] = {}
    touched: dict[int, Task] = {}
    decodes = len(step.decodes.streams)
    if decodes:
        take_decodes(step.decodes, result.rows, tokens, touched)
    for planned, row in zip(step.rows, result.rows[decodes:] if step.rows else (), strict=True):
        guess = planned.draft if row.guess is None else row.guess
        if guess is not None and not stands(planned, guess):
            continue
        if planned.sequence.generation == planned.generation:
            planned.sequence.commit(planned.computed)
        if row.scores and planned.fill is not None and not planned.fill.abandoned:
            planned.fill.task.scores.extend(row.scores)
        for (stream, generation), drawn in zip(planned.draws, row.drawn, strict=True):
            if stream.generation != generation:
                continue
            if stream.sequence is not None and stream.sequence is not planned.sequence:
                stream.sequence.commit(planned.computed)
            task = stream.task
            tokens.setdefault(task.request.gateway, []).append(_accept(stream, drawn))
            if stream.finish is not None or not task.reported:
                touched[task.serial] = task
        resumed = planned.prompt_of
        if resumed is not None and resumed.serial in state.by_serial:
            touched[resumed.serial] = resumed
    for guessed in step.guessed:
        judge(state, guessed)
    messages: list[InstanceMessage] = [Emit(gateway, tuple(emitted)) for gateway, emitted in tokens.items()]
    for task in touched.values():
        messages += _settle(state, task, now)
    return messages


def _check(step: PlannedStep, result: StepResult) -> None:
    if result.id != step.id:
        raise ResultMismatchError(f"result of plan {result.id} came; plan {step.id} is the oldest in flight")
    numbers, rows = step.decodes.numbers, result.rows
    if isinstance(rows, DrawnRows) and not step.rows and rows.sequences == numbers:
        return
    expected = [(number, 1) for number in numbers] + [(row.sequence.number, len(row.draws)) for row in step.rows]
    if len(rows) != len(expected):
        raise ResultMismatchError(f"plan {step.id} has {len(expected)} rows, its result {len(rows)}")
    for (sequence, draws), row in zip(expected, rows, strict=True):
        if row.sequence != sequence or len(row.drawn) != draws:
            raise ResultMismatchError(
                f"plan {step.id}: expected {draws} draws of sequence {sequence}, got {len(row.drawn)} of {row.sequence}"
            )


def _accept(stream: Stream, drawn: Drawn) -> TokenOut:
    request = stream.task.request
    stream.pending -= 1
    stream.outputs.append(drawn.token)
    count = len(stream.outputs)
    if stream.sequence is not None:
        stream.sequence.tokens.append(drawn.token)
    stream.finish = stream.termination.check(drawn.token, count)
    logprobs = drawn.logprobs if request.sampling.logprobs is not None else None
    position = len(request.prompt) + count - 1
    return TokenOut(request.id, request.attempt, stream.sample, position, drawn.token, logprobs, stream.finish)


def _settle(state: InstanceState, task: Task, now: float) -> list[InstanceMessage]:
    """Report the prompt once every sample has its first token; free what ended, and with the last sample the task."""
    messages: list[InstanceMessage] = []
    finished = bool(task.streams) and all(stream.finish is not None for stream in task.streams)
    if not task.reported and all(stream.outputs for stream in task.streams):
        messages += _report_prompt(task, finished, now)
    if isinstance(task, PrefillTask):
        return messages + _stage(state, task, finished, now)
    if finished:
        return messages + end_task(state, task, Trigger.FINISHED)
    for stream in task.streams:
        if stream.finish is not None:
            state.drop(stream)
    return messages


def _report_prompt(task: Task, finished: bool, now: float) -> list[InstanceMessage]:
    request = task.request
    scored: tuple[tuple[int, Logprobs | None], ...] = ()
    if task.score_top is not None:
        scored = tuple(zip(request.prompt, (None, *task.scores), strict=True))
    report = PromptReport(len(request.prompt), task.cached_tokens, scored)
    started = now if task.admitted is None else task.admitted
    times = StageTimes(
        queue=started - task.arrived,
        compute=now - started,
        transfer=task.embedding_seconds,
        bytes_moved=task.embedding_bytes,
    )
    task.reported = True
    return [
        EmitPrompt(request.gateway, request.id, request.attempt, report, times),
        Report(PrefillDone(request.id, report, finished, times, request.attempt)),
    ]


def _stage(state: InstanceState, task: PrefillTask, finished: bool, now: float) -> list[InstanceMessage]:
    """The prompt's KV and first tokens are complete: the puller gets the final record, and the lease begins."""
    task.advance(Trigger.COMPUTED)
    drawn = tuple(SampleState(stream.sample, tuple(stream.outputs), stream.finish) for stream in task.streams)
    samples = task.resumed or drawn
    continuation = Continuation(task.request, samples, task.position_offset)
    messages: list[InstanceMessage] = [CompleteStaging(task.staging_key, continuation)]
    for stream in task.streams:
        state.drop(stream)
    if finished or task.released:
        return messages + end_task(state, task, Trigger.FINISHED)
    task.lease = Lease(task.staging_key, now + task.lease_seconds)
    state.watch(task)
    return messages
