"""What a dispatched step still owes, and its results as plain data once the device is done.

A `PendingStep` holds device arrays whose copies to the host were started at dispatch, and everything needed to read them that a later
plan may change. Reading it is the only wait of a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import jax
import numpy as np

from triptych.runtime.core.request import Logprobs
from triptych.runtime.core.sampling import MAX_LOGPROBS
from triptych.runtime.engine.batch import ExtendBatch
from triptych.runtime.engine.draws import DrawBatch
from triptych.runtime.engine.layer_programs import LayerRun
from triptych.runtime.instance.columns import DecodeRows, DrawnRows, draws_of
from triptych.runtime.instance.plan import Drawn, RowResult, StepPlan, StepResult


@dataclass(frozen=True)
class PendingStep:
    """A step on the device.

    Attributes:
        done: ready when the step's last program is; what collecting waits for when there is nothing to read.
        draws: int32 [draws, 1] tokens, or [draws, 2 + 2k] tokens with log-probabilities; None without draws.
        logprobs: for each draw how many likely tokens to report, None for no log-probabilities.
        scores: int32 [prefill tokens, 1 + 2k] of the score program; None when no row asked.
        score_rows: for each plan row where its scores begin in `scores`.
        encoded: ready when the step's media are encoded; None when it encodes none.
        guesses: int32 [rows, most] of the draft model, a row for each draft of the plan; None when it guesses nothing.
    """

    plan: StepPlan
    done: jax.Array | None
    draws: jax.Array | None = None
    logprobs: tuple[int | None, ...] = ()
    scores: jax.Array | None = None
    score_rows: tuple[int, ...] = ()
    encoded: jax.Array | None = None
    guesses: jax.Array | None = None


class LayeredEngine(Protocol):
    """The part of an engine that goes on with a step."""

    def advance(self, step: PartialStep) -> PendingStep | PartialStep: ...


@dataclass(frozen=True)
class PartialStep:
    """A step of which only the first layer groups are dispatched.

    Attributes:
        engine: whose step it is.
        run: its extend program so far.
        batch, draws: its rows and draws, packed.
        encoded, guesses: as in PendingStep.
    """

    plan: StepPlan
    engine: LayeredEngine
    run: LayerRun
    batch: ExtendBatch
    draws: DrawBatch | None
    encoded: jax.Array | None
    guesses: jax.Array | None = None

    @property
    def dispatched(self) -> int:
        """Layer groups that are computed, or will be without another word."""
        return self.run.dispatched

    def advance(self) -> PendingStep | PartialStep:
        """`Engine.advance`."""
        return self.engine.advance(self)


def read(pending: PendingStep) -> StepResult:
    """Wait for the step and return its results, rows in plan order. Raises whatever the device program raised."""
    plan = pending.plan
    if pending.encoded is not None:
        pending.encoded.block_until_ready()
    if pending.draws is None and pending.scores is None:
        if pending.done is not None:
            pending.done.block_until_ready()
        return StepResult(plan.id, tuple(RowResult(row.sequence) for row in plan.rows))
    draws = draws_of(plan.rows)
    words = None if pending.draws is None else np.asarray(pending.draws)
    tokens = [] if words is None else words[: len(draws.slots), 0].tolist()
    if isinstance(plan.rows, DecodeRows) and not any(top is not None for top in pending.logprobs):
        return StepResult(plan.id, DrawnRows(plan.rows.sequences, draws.slots, tokens))
    logprobs = [
        None if wanted is None or words is None else _logprobs(words[at, 1:], wanted)
        for at, wanted in enumerate(pending.logprobs)
    ]
    drawn = iter(list(map(Drawn, draws.slots, tokens, logprobs)))
    scores: Iterable[tuple[Logprobs, ...]] = [()] * len(plan.rows)
    if pending.scores is not None:
        scores = _scores(plan, np.asarray(pending.scores), pending.score_rows)
    guesses = [None] * len(plan.rows) if pending.guesses is None else _guesses(plan, np.asarray(pending.guesses))
    rows = [
        RowResult(row.sequence, tuple(islice(drawn, count)), scored, guess)
        for row, count, scored, guess in zip(plan.rows, draws.counts, scores, guesses, strict=True)
    ]
    return StepResult(plan.id, tuple(rows))


def _guesses(plan: StepPlan, guesses: np.ndarray) -> list[int | None]:
    """The input of each row that is a guess of the draft model; None for other rows."""
    drafted = {draft.slot: row for draft, row in zip(plan.drafts, guesses[: len(plan.drafts)].tolist(), strict=True)}
    return [drafted[row.token_slot][row.guess - 1] if row.guess else None for row in plan.rows]


def _scores(plan: StepPlan, words: np.ndarray, first: tuple[int, ...]) -> Iterator[tuple[Logprobs, ...]]:
    """The scores of each row."""
    for row, at in zip(plan.rows, first, strict=True):
        yield tuple([_logprobs(words[at + index], row.score_top) for index in range(len(row.score))])


def _logprobs(words: np.ndarray, top: int) -> Logprobs:
    """The inverse of `sample.log_probabilities` for one row: the token's own, then the `top` likeliest."""
    held = (len(words) - 1) // 2
    own = float(words[:1].view(np.float32)[0])
    ids, values = words[1 : 1 + top].tolist(), words[1 + held : 1 + held + top].view(np.float32).tolist()
    assert top <= MAX_LOGPROBS
    return Logprobs(own, tuple(zip(ids[:held], values, strict=True)))
