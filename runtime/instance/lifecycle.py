"""The life of a task on an instance: states, what moves it, and one table of transitions for each kind of task.

    prefill   WAITING ─admitted→ COMPUTING ─computed→ STAGED ─released→ ENDED
    decode    RESERVED ─started→ IMPORTING ─imported→ DECODING ─finished→ ENDED
    local     WAITING ─admitted→ COMPUTING ─computed→ DECODING ─finished→ ENDED
    encode    WAITING ─admitted→ COMPUTING ─computed→ STAGED ─released→ ENDED

Everything else leads to ENDED through `failed` (abort, deadline, expiry, failed pull, no memory), whatever the state.
What a task holds is a function of its state: nothing (WAITING, ENDED); pages and slots of its samples (COMPUTING,
RESERVED, IMPORTING, DECODING); pages only (STAGED). An encode task holds pages of the media pool: from the start those
of items that are there already, and of all its items from COMPUTING on. A decoding sample that is preempted does not move its task: samples
queue for recomputation one by one.
"""

from __future__ import annotations

from enum import StrEnum

from triptych.runtime.core.errors import TriptychError


class Kind(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"
    LOCAL = "local"
    ENCODE = "encode"


class State(StrEnum):
    WAITING = "waiting"
    COMPUTING = "computing"
    STAGED = "staged"
    RESERVED = "reserved"
    IMPORTING = "importing"
    DECODING = "decoding"
    ENDED = "ended"


class Trigger(StrEnum):
    ADMITTED = "admitted"  # its prompt got pages and slots, its media items pages
    PREEMPTED = "preempted"  # it gave them up before the prompt was computed
    COMPUTED = "computed"  # the prompt's last chunk is in a plan (local), its draws are known (prefill), all items are encoded (encode)
    STARTED = "started"  # StartDecode
    IMPORTED = "imported"
    RELEASED = "released"  # the puller has everything
    FINISHED = "finished"  # every sample ended
    FAILED = "failed"


class IllegalTransitionError(TriptychError):
    """A bug: a trigger came in a state that has no answer to it."""


_FAILURES = {(state, Trigger.FAILED): State.ENDED for state in State if state is not State.ENDED}

TRANSITIONS: dict[Kind, dict[tuple[State, Trigger], State]] = {
    Kind.PREFILL: _FAILURES
    | {
        (State.WAITING, Trigger.ADMITTED): State.COMPUTING,
        (State.COMPUTING, Trigger.COMPUTED): State.STAGED,
        (State.STAGED, Trigger.RELEASED): State.ENDED,
        (State.STAGED, Trigger.FINISHED): State.ENDED,  # every sample ended with its first token
    },
    Kind.DECODE: _FAILURES
    | {
        (State.RESERVED, Trigger.STARTED): State.IMPORTING,
        (State.IMPORTING, Trigger.IMPORTED): State.DECODING,
        (State.DECODING, Trigger.FINISHED): State.ENDED,
    },
    Kind.LOCAL: _FAILURES
    | {
        (State.WAITING, Trigger.ADMITTED): State.COMPUTING,
        (State.COMPUTING, Trigger.PREEMPTED): State.WAITING,
        (State.COMPUTING, Trigger.COMPUTED): State.DECODING,
        (State.DECODING, Trigger.FINISHED): State.ENDED,
    },
    Kind.ENCODE: _FAILURES
    | {
        (State.WAITING, Trigger.ADMITTED): State.COMPUTING,
        (State.COMPUTING, Trigger.COMPUTED): State.STAGED,
        (State.STAGED, Trigger.RELEASED): State.ENDED,
    },
}


def next_state(kind: Kind, state: State, trigger: Trigger) -> State:
    """Raises IllegalTransitionError."""
    try:
        return TRANSITIONS[kind][state, trigger]
    except KeyError:
        raise IllegalTransitionError(f"a {kind} task that is {state} cannot be {trigger}") from None
