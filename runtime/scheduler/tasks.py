"""A request's tasks: their kinds, their states and the steps between them, and which of them a report is about.

ASKED -> HELD -> (gone)                  told to start; answered; ended
ASKED | HELD -> ABORTING -> (gone)       told to end; whatever the instance had sent before crosses that
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from triptych.runtime.core.errors import TriptychError
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.tasks import (
    Accepted,
    DecodeStarted,
    EncodeDone,
    EncodeStaged,
    Granted,
    MediaWanted,
    PrefillDone,
    Refused,
    Staged,
    TaskEnded,
    TaskReport,
)


class ProtocolViolation(TriptychError):
    """An instance reported something that cannot follow from what it was told."""


class TaskKind(StrEnum):
    """Tasks of a request; at most one of each kind is live, of encode tasks at most one an instance and puller."""

    PREFILL = "prefill"
    DECODE = "decode"
    LOCAL = "local"
    ENCODE = "encode"

    @property
    def role(self) -> Role | None:
        """The role that AbortTask names; a local task has both, so None (all of the request's tasks there)."""
        return _ROLE_OF[self]


_ROLE_OF: dict[TaskKind, Role | None] = {
    TaskKind.PREFILL: Role.PREFILL,
    TaskKind.DECODE: Role.DECODE,
    TaskKind.LOCAL: None,
    TaskKind.ENCODE: Role.ENCODE,
}
_KIND_OF = {role: kind for kind, role in _ROLE_OF.items() if role is not None}


def kind_of(role: Role | None) -> TaskKind | None:
    """The kind of task that has `role` alone; None if there is none."""
    return None if role is None else _KIND_OF.get(role)


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


class EncodeKey(NamedTuple):
    """Which encode task of a request: where it is, and whether the decode task pulls from it or the one that computes the prompt."""

    ref: InstanceRef
    for_decode: bool


class Want(NamedTuple):
    """An item (index into the request's media) that a task needs: the decode task, or the one that computes the prompt."""

    for_decode: bool
    item: int


@dataclass
class EncodeTask(Task):
    """Embeddings of some of a request's media. Make one with `encode_task`.

    Attributes:
        items: indices into the request's media, in the order in which they are staged.
        patches: those that wait to be encoded.
        pages: what the embeddings of all items take.
        fed: whether the puller's instance was told where to pull from.
        lacking: items whose pixels the gateway was told to bring.
        asked: when the instance was told to start it, in seconds.
        for_decode: the decode task is the puller, not the one that computes the prompt.
    """

    items: list[int] = field(default_factory=list)
    patches: int = 0
    pages: int = 0
    fed: bool = False
    lacking: tuple[int, ...] = ()
    asked: float = 0.0
    for_decode: bool = False

    @property
    def key(self) -> EncodeKey:
        return EncodeKey(self.ref, self.for_decode)

    @property
    def wants(self) -> list[Want]:
        """What it is to fulfil."""
        return [Want(self.for_decode, item) for item in self.items]


def encode_task(ref: InstanceRef, for_decode: bool = False) -> EncodeTask:
    """An encode task on `ref` that has no items yet."""
    return EncodeTask(TaskKind.ENCODE, ref, 0, 0, 0, for_decode=for_decode)


def role_of(report: TaskReport) -> Role | None:
    """The role whose task `report` is about; None for a local task, which has both (and answers to either), and for the one on that instance
    that wants media."""
    if isinstance(report, Refused | TaskEnded):
        return report.role
    return _ROLE_OF_REPORT[type(report)]


_ROLE_OF_REPORT: dict[type[TaskReport], Role | None] = {
    Granted: Role.DECODE,
    DecodeStarted: Role.DECODE,
    Staged: Role.PREFILL,
    PrefillDone: Role.PREFILL,
    Accepted: None,
    MediaWanted: None,
    EncodeStaged: Role.ENCODE,
    EncodeDone: Role.ENCODE,
}
