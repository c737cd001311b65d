"""A request's life as tables: phases, the steps between them, and the states of its tasks.

    QUEUED -> RESERVING -> PREFILLING -> TRANSFERRING -> DECODING -> (gone)       prefill and decode on two instances
    QUEUED -> LOCAL -> (gone)                                                     both on one
    RESERVING | LOCAL -> QUEUED                                                   refused, or lost before anything began
    PREFILLING -> RELEASING -> QUEUED                                             no prefill instance has room: give the reservation back
    TRANSFERRING | DECODING -> FINISHING -> (gone)                                every sample ended at its first token
    any -> ENDING -> (gone)                                                       failed: told to the gateway, tasks being aborted

A request whose tasks have all ended is gone; nothing about it is kept. PrefillDone and DecodeStarted come from different instances, hence in
either order. A report that the tables do not allow is a fault of the instance and fails the request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from triptych.runtime.core.errors import TriptychError
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.request import Request


class ProtocolViolation(TriptychError):
    """An instance reported something that cannot follow from what it was told."""


class Phase(StrEnum):
    """Where a request is. One party owns its next move: the queue, an instance that must answer, or instances that must end."""

    QUEUED = "queued"
    RESERVING = "reserving"
    PREFILLING = "prefilling"
    TRANSFERRING = "transferring"
    DECODING = "decoding"
    LOCAL = "local"
    FINISHING = "finishing"
    RELEASING = "releasing"
    ENDING = "ending"


class Step(StrEnum):
    """What moves a request from phase to phase."""

    PLACED_PAIR = "placed on a pair"
    PLACED_LOCAL = "placed on one instance"
    GRANTED = "Granted"
    DECODE_REFUSED = "Refused(decode)"
    PREFILL_REFUSED = "Refused(prefill)"
    PREFILL_RETRIED = "another prefill instance asked"
    LOCAL_REFUSED = "Refused(local)"
    STAGED = "Staged"
    ACCEPTED = "Accepted"
    PREFILL_DONE = "PrefillDone"
    PREFILL_FINISHED = "PrefillDone(finished)"
    DECODE_STARTED = "DecodeStarted"
    RELEASED = "reservation given back"
    FAILED = "failed"


TRANSITIONS: dict[tuple[Phase, Step], Phase] = {
    (Phase.QUEUED, Step.PLACED_PAIR): Phase.RESERVING,
    (Phase.QUEUED, Step.PLACED_LOCAL): Phase.LOCAL,
    (Phase.RESERVING, Step.GRANTED): Phase.PREFILLING,
    (Phase.RESERVING, Step.DECODE_REFUSED): Phase.QUEUED,
    (Phase.PREFILLING, Step.STAGED): Phase.TRANSFERRING,
    (Phase.PREFILLING, Step.PREFILL_RETRIED): Phase.PREFILLING,
    (Phase.PREFILLING, Step.PREFILL_REFUSED): Phase.RELEASING,
    (Phase.RELEASING, Step.RELEASED): Phase.QUEUED,
    (Phase.TRANSFERRING, Step.PREFILL_DONE): Phase.TRANSFERRING,
    (Phase.TRANSFERRING, Step.PREFILL_FINISHED): Phase.FINISHING,
    (Phase.TRANSFERRING, Step.DECODE_STARTED): Phase.DECODING,
    (Phase.DECODING, Step.PREFILL_DONE): Phase.DECODING,
    (Phase.DECODING, Step.PREFILL_FINISHED): Phase.FINISHING,
    (Phase.LOCAL, Step.ACCEPTED): Phase.LOCAL,
    (Phase.LOCAL, Step.LOCAL_REFUSED): Phase.QUEUED,
    (Phase.LOCAL, Step.PREFILL_DONE): Phase.LOCAL,
    (Phase.LOCAL, Step.PREFILL_FINISHED): Phase.LOCAL,
    (Phase.LOCAL, Step.DECODE_STARTED): Phase.LOCAL,
    **{(phase, Step.FAILED): Phase.ENDING for phase in Phase if phase is not Phase.ENDING},
}

COMPLETABLE = frozenset({Phase.DECODING, Phase.FINISHING, Phase.LOCAL})
"""Phases in which the end of the last task, every needed one with OK, is the end of the request."""


class TaskKind(StrEnum):
    """Tasks of a request; at most one of each kind is live."""

    PREFILL = "prefill"
    DECODE = "decode"
    LOCAL = "local"

    @property
    def role(self) -> Role | None:
        """The role that AbortTask names; a local task has both, so None (all of the request's tasks there)."""
        return None if self is TaskKind.LOCAL else Role(self.value)


class TaskState(StrEnum):
    """An instance owns a task from the command that starts it until its Refused or TaskEnded (or its own loss)."""

    ASKED = "asked"
    HELD = "held"
    ABORTING = "aborting"
    GONE = "gone"


class TaskSignal(StrEnum):
    """What an instance's report means for the task alone."""

    ANSWERED = "answered"
    REFUSED = "refused"
    PROGRESSED = "progressed"
    ABORTED = "told to abort"
    ENDED = "ended"


TASK_TRANSITIONS: dict[tuple[TaskState, TaskSignal], TaskState] = {
    (TaskState.ASKED, TaskSignal.ANSWERED): TaskState.HELD,
    (TaskState.ASKED, TaskSignal.REFUSED): TaskState.GONE,
    (TaskState.ASKED, TaskSignal.ABORTED): TaskState.ABORTING,
    (TaskState.ASKED, TaskSignal.ENDED): TaskState.GONE,
    (TaskState.HELD, TaskSignal.PROGRESSED): TaskState.HELD,
    (TaskState.HELD, TaskSignal.ABORTED): TaskState.ABORTING,
    (TaskState.HELD, TaskSignal.ENDED): TaskState.GONE,
    # The abort crossed whatever the instance had sent before.
    (TaskState.ABORTING, TaskSignal.ANSWERED): TaskState.ABORTING,
    (TaskState.ABORTING, TaskSignal.PROGRESSED): TaskState.ABORTING,
    (TaskState.ABORTING, TaskSignal.REFUSED): TaskState.GONE,
    (TaskState.ABORTING, TaskSignal.ENDED): TaskState.GONE,
}


@dataclass
class Task:
    """One task on one instance. `prefill_tokens` are prompt tokens still to be computed there; `sequences` the slots it takes."""

    kind: TaskKind
    ref: InstanceRef
    prefill_tokens: int
    sequences: int
    kv_tokens: int
    state: TaskState = TaskState.ASKED

    def advance(self, signal: TaskSignal) -> None:
        """Raises ProtocolViolation if `signal` is not allowed now."""
        target = TASK_TRANSITIONS.get((self.state, signal))
        if target is None:
            raise ProtocolViolation(
                f"instance {self.ref.id}: its {self.kind} task is {self.state} and cannot be {signal}"
            )
        self.state = target


@dataclass
class Record:
    """Everything the scheduler knows about one admitted request.

    Attributes:
        arrival: serial number of admission; ties in the queue are broken by it, and a request keeps it when it goes back to the queue.
        order: its place in the queue, from the QueueOrder policy.
        prefill: the prefill instance of the current placement.
        cached_tokens: what the decode instance granted to skip.
        never: instances that refused this request for good, with their reasons.
    """

    request: Request
    arrival: int
    submitted: float
    order: tuple[float, ...]
    phase: Phase = Phase.QUEUED
    tasks: dict[TaskKind, Task] = field(default_factory=dict)
    prefill: InstanceRef | None = None
    cached_tokens: int = 0
    never: dict[InstanceRef, str] = field(default_factory=dict)
    preemptions: int = 0

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def length(self) -> int:
        """Tokens that must fit at least: the prompt and one generated token."""
        return len(self.request.prompt) + 1

    def advance(self, step: Step) -> None:
        """Raises ProtocolViolation if `step` is not allowed now."""
        target = TRANSITIONS.get((self.phase, step))
        if target is None:
            raise ProtocolViolation(f"{step} is not possible while the request is {self.phase}")
        self.phase = target

    def needs(self, kind: TaskKind) -> bool:
        """Whether the request fails if its task of `kind` fails now: not prefill's once decode has all, nor decode's once prefill ended all."""
        if self.phase is Phase.FINISHING:
            return False
        return not (kind is TaskKind.PREFILL and self.phase is Phase.DECODING)
