"""A request's life as a table: phases, and the steps between them.

    QUEUED -> RESERVING -> PREFILLING -> TRANSFERRING -> DECODING -> (gone)       prefill and decode on two instances
    QUEUED -> LOCAL -> (gone)                                                     both on one
    RESERVING | LOCAL -> QUEUED                                                   refused, or lost before anything began
    RESERVING | PREFILLING -> RELEASING -> QUEUED                                 the grant was lost, or no prefill instance has room: give the
                                                                                  reservation back
    TRANSFERRING | DECODING -> FINISHING -> (gone)                                every sample ended at its first token
    any -> INTERRUPTED -> QUEUED                                                  what ran it is lost: the gateway says what the client has seen,
                                                                                  and the attempt's last task ends; then the next attempt waits
    ADOPTING -> DECODING | LOCAL | INTERRUPTED                                    declared after a restart: what runs it has registered, or not
    any -> ENDING -> (gone)                                                       failed: told to the gateway, tasks being aborted
    ENDING -> INTERRUPTED                                                         its gateway, taken for lost, is back and has it open

All tasks of a record are of its request's attempt. Encode tasks come beside the phases: they begin when the instance that computes the prompt wants
media, or one that decodes and attends to them, and no phase waits for them, but while one is live the request is not gone. An attempt from which tokens may have come is never placed again:
what an instance that was lost has sent, or may still send, then belongs to an attempt that is over.

A request whose tasks have all ended is gone; nothing about it is kept. PrefillDone and DecodeStarted come from different instances, hence in
either order. A report that the tables do not allow is a fault of the instance and fails the request. Tasks themselves are in `tasks.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from triptych.runtime.core.control import Failed, Resume
from triptych.runtime.core.handle import Handle
from triptych.runtime.core.instance import InstanceRef
from triptych.runtime.core.request import Request, SampleState
from triptych.runtime.scheduler.tasks import EncodeKey, EncodeTask, ProtocolViolation, Task, TaskKind, Want


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
    INTERRUPTED = "interrupted"
    ADOPTING = "adopting"
    ENDING = "ending"


class Step(StrEnum):
    """What moves a request from phase to phase."""

    PLACED_PAIR = "placed on a pair"
    PLACED_LOCAL = "placed on one instance"
    GRANTED = "Granted"
    DECODE_REFUSED = "Refused(decode)"
    GRANT_LOST = "Granted, but not heard"
    PREFILL_REFUSED = "Refused(prefill)"
    PREFILL_RETRIED = "another prefill instance asked"
    LOCAL_REFUSED = "Refused(local)"
    STAGED = "Staged"
    ACCEPTED = "Accepted"
    PREFILL_DONE = "PrefillDone"
    PREFILL_FINISHED = "PrefillDone(finished)"
    DECODE_STARTED = "DecodeStarted"
    RELEASED = "reservation given back"
    INTERRUPTED = "interrupted"
    RESUMED = "resumed"
    ADOPTED_LOCAL = "found running on one instance"
    REOPENED = "declared again"
    FAILED = "failed"


TRANSITIONS: dict[tuple[Phase, Step], Phase] = {
    (Phase.QUEUED, Step.PLACED_PAIR): Phase.RESERVING,
    (Phase.QUEUED, Step.PLACED_LOCAL): Phase.LOCAL,
    (Phase.RESERVING, Step.GRANTED): Phase.PREFILLING,
    (Phase.RESERVING, Step.DECODE_REFUSED): Phase.QUEUED,
    (Phase.RESERVING, Step.GRANT_LOST): Phase.RELEASING,
    (Phase.PREFILLING, Step.STAGED): Phase.TRANSFERRING,
    (Phase.PREFILLING, Step.PREFILL_RETRIED): Phase.PREFILLING,
    (Phase.PREFILLING, Step.PREFILL_REFUSED): Phase.RELEASING,
    (Phase.RELEASING, Step.RELEASED): Phase.QUEUED,
    (Phase.TRANSFERRING, Step.PREFILL_DONE): Phase.TRANSFERRING,
    (Phase.TRANSFERRING, Step.PREFILL_FINISHED): Phase.FINISHING,
    (Phase.TRANSFERRING, Step.DECODE_STARTED): Phase.DECODING,
    (Phase.DECODING, Step.PREFILL_DONE): Phase.DECODING,
    (Phase.DECODING, Step.DECODE_STARTED): Phase.DECODING,  # its worker has declared as much before
    (Phase.DECODING, Step.PREFILL_FINISHED): Phase.FINISHING,
    (Phase.LOCAL, Step.ACCEPTED): Phase.LOCAL,
    (Phase.LOCAL, Step.LOCAL_REFUSED): Phase.QUEUED,
    (Phase.LOCAL, Step.PREFILL_DONE): Phase.LOCAL,
    (Phase.LOCAL, Step.PREFILL_FINISHED): Phase.LOCAL,
    (Phase.LOCAL, Step.DECODE_STARTED): Phase.LOCAL,
    (Phase.INTERRUPTED, Step.RESUMED): Phase.QUEUED,
    (Phase.ADOPTING, Step.ADOPTED_LOCAL): Phase.LOCAL,
    (Phase.ADOPTING, Step.DECODE_STARTED): Phase.DECODING,
    (Phase.ADOPTING, Step.PREFILL_DONE): Phase.ADOPTING,
    (Phase.ADOPTING, Step.PREFILL_FINISHED): Phase.FINISHING,
    (Phase.ENDING, Step.REOPENED): Phase.INTERRUPTED,
    **{(phase, Step.INTERRUPTED): Phase.INTERRUPTED for phase in Phase if phase is not Phase.ENDING},
    **{(phase, Step.FAILED): Phase.ENDING for phase in Phase if phase is not Phase.ENDING},
}

COMPLETABLE = frozenset({Phase.DECODING, Phase.FINISHING, Phase.LOCAL})
"""Phases in which the end of the last task, every needed one with OK, is the end of the request."""


@dataclass
class Encoding:
    """What an attempt knows of its media.

    Attributes:
        tasks: the live encode tasks. The decode task has its own, so that neither puller waits for the other; what they share is encoded once,
            because the instance's store has it.
        wanted: what waits for an encode instance, in the order in which it was wanted.
        tries: how often each was given to an instance that did not refuse it for lack of room; a decode task's begin with its reservation.
        never: instances that refused some of them for good, with their reasons.
        doubted: instances whose tasks failed, or were pulled from in vain; others are asked first.
        trouble: how the last encode task failed, for the reason that a client is shown.
        computed: whether the prompt is computed.
    """

    tasks: dict[EncodeKey, EncodeTask] = field(default_factory=dict)
    wanted: dict[Want, None] = field(default_factory=dict)
    tries: Counter[Want] = field(default_factory=Counter)
    never: dict[InstanceRef, str] = field(default_factory=dict)
    doubted: dict[InstanceRef, None] = field(default_factory=dict)
    trouble: str = ""
    computed: bool = False

    def reservation_over(self) -> None:
        """The decode task is gone; should there be another one, it begins anew."""
        for want in [want for want in self.tries if want.for_decode]:
            del self.tries[want]


@dataclass
class Record:
    """Everything the scheduler knows about one admitted request.

    Attributes:
        request: under the attempt that all of `tasks` are of.
        arrival: serial number of admission; ties in the queue are broken by it, and a request keeps it when it goes back to the queue.
        submitted: when this attempt began to wait, in seconds.
        order: its place in the queue, from the QueueOrder policy.
        tasks: the live ones by kind, except those that encode.
        encoding: what is known of its media, the tasks that encode them included; None for a request without.
        prefill: the prefill instance of the current placement; None if that has left before it was told anything.
        cached_tokens: what the decode instance granted to skip.
        source: the staged KV that decode was told to pull.
        never: instances that refused this request for good, with their reasons.
        resumed: every sample as the client has seen it, or empty if it has seen nothing.
        highest: the highest attempt that anybody has named; the next one is above it.
        answer: while INTERRUPTED, what the gateway answered.
        failure: once ENDING, what the gateway was told; None if it was not there to be told.
    """

    request: Request
    arrival: int
    submitted: float
    order: tuple[float, ...]
    phase: Phase = Phase.QUEUED
    tasks: dict[TaskKind, Task] = field(default_factory=dict)
    encoding: Encoding | None = None
    prefill: InstanceRef | None = None
    cached_tokens: int = 0
    source: Handle | None = None
    never: dict[InstanceRef, str] = field(default_factory=dict)
    preemptions: int = 0
    resumed: tuple[SampleState, ...] = ()
    highest: int = 1
    answer: Resume | None = None
    failure: Failed | None = None

    def __post_init__(self) -> None:
        self.highest = max(self.highest, self.request.attempt)
        if self.request.media:
            self.encoding = Encoding()

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def known_tokens(self) -> int:
        """Tokens whose KV is computed before anything new is drawn: the prompt, and what the live samples have generated."""
        if not self.resumed:
            return len(self.request.prompt)
        return len(self.request.prompt) + sum(len(s.outputs) for s in self.resumed if s.finish is None)

    @property
    def live_samples(self) -> int:
        """Samples that are not finished."""
        return sum(s.finish is None for s in self.resumed) if self.resumed else self.request.sampling.n

    @property
    def length(self) -> int:
        """Tokens that one sequence must hold at least: the prompt, what the longest live sample has generated, and one more."""
        if not self.resumed:
            return len(self.request.prompt) + 1
        longest = max((len(s.outputs) for s in self.resumed if s.finish is None), default=0)
        return len(self.request.prompt) + longest + 1

    @property
    def encodes(self) -> Mapping[EncodeKey, EncodeTask]:
        """The live encode tasks."""
        return _NONE if self.encoding is None else self.encoding.tasks

    @property
    def prompt_task(self) -> Task | None:
        """The live task that computes the prompt."""
        return self.tasks.get(TaskKind.PREFILL) or self.tasks.get(TaskKind.LOCAL)

    def puller(self, for_decode: bool) -> Task | None:
        """The live task that pulls what encode tasks stage: the decode task, or the one that computes the prompt."""
        return self.tasks.get(TaskKind.DECODE) if for_decode else self.prompt_task

    def holds(self, task: Task) -> bool:
        """Whether `task` is live."""
        live = self.encodes.get(task.key) if isinstance(task, EncodeTask) else self.tasks.get(task.kind)
        return live is task

    def live_tasks(self, ref: InstanceRef | None = None) -> list[Task]:
        """Every live task (on `ref`), those that encode last: what they serve is ended first."""
        return [task for task in (*self.tasks.values(), *self.encodes.values()) if ref is None or task.ref == ref]

    def advance(self, step: Step) -> None:
        """Raises ProtocolViolation if `step` is not allowed now."""
        target = TRANSITIONS.get((self.phase, step))
        if target is None:
            raise ProtocolViolation(f"{step} is not possible while the request is {self.phase}")
        self.phase = target

    def go_on(self, answer: Resume, now: float) -> None:
        """Begin the attempt of `answer`; no task of an earlier one is left."""
        self.request = replace(self.request, attempt=answer.request.attempt)
        seen = any(s.outputs or s.finish is not None for s in answer.samples)
        self.resumed = answer.samples if seen else ()
        self.submitted = now
        self.prefill, self.source, self.cached_tokens, self.answer = None, None, 0, None
        if self.encoding is not None:
            self.encoding = Encoding()

    def needs(self, kind: TaskKind) -> bool:
        """Whether the attempt is lost if its task of `kind` fails now: not prefill's once decode has all (or may have, somewhere), nor
        decode's once prefill ended all, nor one that encodes: what it had is wanted again."""
        if self.phase in _NEEDLESS or kind is TaskKind.ENCODE:
            return False
        return not (kind is TaskKind.PREFILL and self.phase in (Phase.DECODING, Phase.ADOPTING))


_NONE: Mapping[EncodeKey, EncodeTask] = {}
_NEEDLESS = frozenset({Phase.FINISHING, Phase.INTERRUPTED, Phase.ENDING})


def media_of(record: Record) -> Encoding:
    """What is known of the media of `record`, which has some."""
    assert record.encoding is not None, f"{record.id} has no media"
    return record.encoding
