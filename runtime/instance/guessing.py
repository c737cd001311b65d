"""Who guesses for the samples of a step, and in how many rows: prompt look-up on the host, or a draft model on the device."""

from __future__ import annotations

from collections.abc import Sequence as Several

from triptych.runtime.instance.composer import StepChoice
from triptych.runtime.instance.drafting import guesses
from triptych.runtime.instance.model_drafting import CatchUp, model_guesses
from triptych.runtime.instance.speculation import Guesses
from triptych.runtime.instance.state import InstanceState
from triptych.runtime.instance.tasks import Stream


def propose(
    state: InstanceState, decoding: Several[Stream], choice: StepChoice
) -> tuple[list[Guesses], tuple[CatchUp, ...]]:
    """What is guessed of each sample that decodes, and what a draft model reads before; nothing without speculation."""
    speculation = state.config.speculation
    if speculation is None:
        return [], ()
    rows = _rows(state, choice)
    return (guesses(state, decoding, rows), ()) if speculation.model is None else model_guesses(state, decoding, rows)


def _rows(state: InstanceState, choice: StepChoice) -> int:
    """Rows that guesses may take. Programs with prompt chunks have `max_num_seqs` decode rows; every row there has a slot of its own, or is the single token of
    a chunk."""
    chunks = sum(1 for tokens in choice.chunks if tokens)
    return state.slots.free - chunks if chunks else state.config.max_draws - choice.decodes
