"""A toy instance that obeys the task protocol of core/tasks.py and computes nothing.

Commands are answered at once; work advances when told to. What a pull needs of its source is looked up in `Staging`, shared by the
instances of a test, so that a decode task starts only when its source has computed the prompt and fails when the source is gone. The same goes for
embeddings: a prompt is computed only when every item of its media has been pulled from where it was encoded (`fake_media.py`), and a decode task starts
only when it has all that it attends to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from tests.runtime.scheduler.fake_media import Encoding, Needs
from triptych.runtime.core.errors import Status
from triptych.runtime.core.handle import Handle
from triptych.runtime.core.instance import InstanceInfo, Role
from triptych.runtime.core.request import PromptReport, Request
from triptych.runtime.core.tasks import (
    AbortTask,
    Accepted,
    DecodeStarted,
    FeedMedia,
    Granted,
    HeldTask,
    PrefillDone,
    Refused,
    ReserveDecode,
    Staged,
    StartDecode,
    StartEncode,
    StartLocal,
    StartPrefill,
    TaskCommand,
    TaskEnded,
    TaskReport,
)

Key = tuple[str, Role, bool]  # request, role, and of an encode task whether the decode task pulls from it


class State(Enum):
    QUEUED = auto()  # prefill: accepted
    STAGED = auto()  # prefill: computed, waiting for the puller
    RESERVED = auto()  # decode: granted
    PULLING = auto()
    RUNNING = auto()  # decode or local: generating
    ENCODING = auto()


@dataclass
class Work:
    request: Request
    role: Role
    state: State
    key: int = 0  # of the staged KV: own (prefill) or pulled (decode)
    local: bool = False
    resumed: bool = False
    needs: Needs | None = None  # of a task that needs embeddings
    encoding: Encoding | None = None  # of an encode task
    pulled: bool = False  # decode: the KV is here

    @property
    def id(self) -> Key:
        return self.request.id, self.role, self.encoding is not None and self.encoding.for_decode

    @property
    def lacks(self) -> bool:
        """Whether it waits for embeddings."""
        return self.needs is not None and bool(self.needs.missing)


@dataclass
class Staging:
    """What is staged: key -> whether it is complete. A released or dead key is absent; `finished` ones left nothing to decode."""

    complete: dict[int, bool] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    released: set[int] = field(default_factory=set)
    next_key: int = 1


@dataclass
class FakeInstance:
    """`slots` bounds its tasks, and those that encode by themselves: what waits for embeddings must not keep them from being encoded."""

    info: InstanceInfo
    staging: Staging
    slots: int = 4
    tasks: dict[Key, Work] = field(default_factory=dict)
    pixels: set[str] = field(default_factory=set)  # hashes of media whose pixels are here
    embeddings: set[str] = field(default_factory=set)  # hashes of media that are encoded here

    def handle(self, command: TaskCommand) -> list[TaskReport]:
        """The immediate answers to `command`."""
        match command:
            case ReserveDecode():
                work = self._begin(Work(command.request, Role.DECODE, State.RESERVED))
                if isinstance(work, Refused):
                    return [work]
                granted = Granted(command.request.id, 0, command.request.attempt)
                return [granted, *self._want(work, attended=True)]
            case StartPrefill():
                work = self._begin(Work(command.request, Role.PREFILL, State.QUEUED))
                if isinstance(work, Refused):
                    return [work]
                work.resumed = bool(command.resumed)
                staged = Staged(command.request.id, self._stage(work), command.request.attempt)
                return [staged, *self._want(work)]
            case StartLocal():
                work = self._begin(Work(command.request, Role.DECODE, State.QUEUED))
                if isinstance(work, Refused):
                    return [work]
                work.local, work.resumed = True, bool(command.resumed)
                return [Accepted(command.request.id, command.request.attempt), *self._want(work)]
            case StartEncode():
                encoding = Encoding(command.request, command.items, command.for_decode)
                made = Work(command.request, Role.ENCODE, State.ENCODING, encoding=encoding)
                work = encoding.refusal() or self._begin(made)
                if isinstance(work, Refused):
                    return [work]
                return [encoding.staged(self._stage(work), self.pixels | self.embeddings)]
            case FeedMedia():
                for role in (Role.PREFILL, Role.DECODE):
                    work = self.tasks.get((command.request, role, False))
                    if work is not None and work.needs is not None and work.request.attempt == command.attempt:
                        work.needs.feed(command)
                return []
            case StartDecode():
                work = self.tasks.get((command.request, Role.DECODE, False))
                if work is not None and work.request.attempt == command.attempt and work.state is State.RESERVED:
                    work.state, work.key = State.PULLING, command.source.key
                return []
            case AbortTask():
                found = [
                    work
                    for (request, role, for_decode), work in self.tasks.items()
                    if request == command.request
                    and command.role in (None, role)
                    and (role is not Role.ENCODE or command.for_decode in (None, for_decode))
                    and command.attempt in (None, work.request.attempt)
                ]
                return [self._end(work, command.status, command.reason) for work in found]

    def advance(self, key: Key, finish_early: bool = False) -> list[TaskReport]:
        """Let one task take its next step, if it can. `finish_early`: a prompt's first token already ends the request."""
        work = self.tasks[key]
        name, attempt = work.request.id, work.request.attempt
        match work.state:
            case State.QUEUED | State.RESERVED if work.lacks:
                return self._pull(work)
            case State.ENCODING if work.encoding is not None:
                if work.encoding.gave_up():
                    return [self._end(work, Status.UNAVAILABLE, "the pixels did not come")]
                done = work.encoding.encode(self.pixels, self.embeddings)
                if done is not None:
                    self.staging.complete[work.key] = True
                    work.state = State.STAGED
                return [] if done is None else [done]
            case State.ENCODING:
                raise AssertionError("an encode task without items")
            case State.QUEUED:
                finish_early = finish_early and not work.resumed
                report = PrefillDone(
                    name, PromptReport(len(work.request.prompt), 0), finished=finish_early, attempt=attempt
                )
                if work.local:
                    work.state = State.RUNNING
                    return [report, self._end(work)] if finish_early else [report, DecodeStarted(name, attempt=attempt)]
                if finish_early:
                    self.staging.finished.add(work.key)
                    return [report, self._end(work)]
                self.staging.complete[work.key] = True
                work.state = State.STAGED
                return [report]
            case State.STAGED:
                return [self._end(work)] if work.key in self.staging.released else []
            case State.RESERVED:
                return []
            case State.PULLING:
                if work.key in self.staging.finished:
                    return [self._end(work)]
                if not work.pulled and work.key not in self.staging.complete:
                    return [self._end(work, Status.UNAVAILABLE, "the source is gone")]
                if not work.pulled and self.staging.complete[work.key]:
                    work.pulled = True
                    self.staging.released.add(work.key)
                if work.lacks:
                    return self._pull(work)
                if work.pulled:
                    work.state = State.RUNNING
                    return [DecodeStarted(name, attempt=attempt)]
                return []
            case State.RUNNING:
                return [self._end(work)]

    def finish_everything(self) -> Iterator[TaskReport]:
        """Advance every task once."""
        for key in list(self.tasks):
            yield from self.advance(key)

    def fail(self, key: Key, status: Status = Status.INTERNAL) -> list[TaskReport]:
        return [self._end(self.tasks[key], status, "toy failure")]

    def held(self) -> tuple[HeldTask, ...]:
        """What its worker declares."""
        return tuple(
            HeldTask(
                self.info.ref,
                work.request.id,
                work.request.attempt,
                None if work.local else work.role,
                work.request.gateway,
                running=(work.local and not work.lacks) or work.state is State.RUNNING,
                for_decode=work.id[2],
            )
            for work in self.tasks.values()
        )

    def die(self) -> None:
        """Everything is gone, without a word."""
        for work in self.tasks.values():
            if work.role is not Role.DECODE:
                self.staging.complete.pop(work.key, None)
        self.tasks.clear()

    def forget_media(self) -> list[TaskReport]:
        """Every pull of embeddings fails, and the stores are emptied: prompts want again what they still need."""
        self.embeddings.clear()
        return [report for work in self.tasks.values() if work.needs is not None for report in work.needs.lose()]

    def _want(self, work: Work, attended: bool = False) -> list[TaskReport]:
        if not work.request.media:
            return []
        work.needs = Needs(work.request, attended)
        return work.needs.want(self.embeddings)

    def _pull(self, work: Work) -> list[TaskReport]:
        assert work.needs is not None
        return work.needs.pull(self.staging.complete, self.staging.released, self.embeddings)

    def _stage(self, work: Work) -> Handle:
        work.key = self.staging.next_key
        self.staging.next_key += 1
        self.staging.complete[work.key] = False
        return Handle(self.info.ref, self.info.address, work.key, "digest")

    def _begin(self, work: Work) -> Work | Refused:
        request, role, for_decode = work.request, work.role, work.id[2]
        if work.id in self.tasks:
            raise AssertionError(f"{self.info.ref} was told twice to start {role} of {request.id}")
        if sum((other is Role.ENCODE) == (role is Role.ENCODE) for _, other, _ in self.tasks) >= self.slots:
            return Refused(request.id, role, "toy instance is full", False, request.attempt, for_decode)
        if len(request.prompt) >= self.info.capacity.max_num_seqs * 10:
            return Refused(request.id, role, "never fits", True, request.attempt, for_decode)
        self.tasks[work.id] = work
        return work

    def _end(self, work: Work, status: Status = Status.OK, reason: str = "") -> TaskEnded:
        del self.tasks[work.id]
        if work.role is not Role.DECODE:
            self.staging.complete.pop(work.key, None)
        name, role, for_decode = work.id
        return TaskEnded(name, role, status, reason, attempt=work.request.attempt, for_decode=for_decode)
