"""InstanceState: everything one incarnation of an instance knows, and the one way in which a task ends.

The other files of this folder are functions over it: admission, importing, planner, preemption, results. Each resource
has one owner at a time (see tasks.py), so ending a task means giving up what its streams and its sequence hold, in
`end_task` and nowhere else.
"""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.request import Request
from triptych.runtime.core.tasks import TaskEnded
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.embeddings import Entry
from triptych.runtime.instance.lifecycle import Trigger
from triptych.runtime.instance.media import MediaMemory
from triptych.runtime.instance.memory import KvMemory
from triptych.runtime.instance.messages import CancelPull, CloseStaging, InstanceMessage, Report
from triptych.runtime.instance.plan import Pool
from triptych.runtime.instance.sequence import Sequence
from triptych.runtime.instance.slots import SlotPool
from triptych.runtime.instance.speculation import DrafterFactory, SpeculationCounts
from triptych.runtime.instance.tasks import (
    DecodeTask,
    EncodeTask,
    Fill,
    StagingTask,
    Stream,
    Task,
    TaskKey,
    live_samples,
)
from triptych.runtime.instance.termination import StopProbeFactory, Termination
from triptych.runtime.instance.timers import Timers

TIMER_SLACK = 4  # timer entries per live task before stale ones are dropped; amortises the sweep


@dataclass(slots=True)
class PlannedRow:
    """What a row of a plan in flight was for. Results count only for what still has the same generation."""

    sequence: Sequence
    generation: int
    computed: int  # tokens whose KV exists once the plan is done
    draws: tuple[tuple[Stream, int], ...]
    fill: Fill | None = None
    prompt_of: Task | None = None  # the resumed task whose prompt is computed with this row: no draw tells it
    # Its input token, where that is a guess made here: the row counts only if the token before it was drawn so. A draft model's comes with the result.
    draft: int | None = None


@dataclass(slots=True)
class PlannedDecodes:
    """The first rows of a plan in flight, each a token of a sample that just goes on decoding: its sequence's number, the sample, and the generation that
    it must still have for the draw to count. Then it is the same sequence, and the KV of every token that it knows is computed."""

    numbers: list[int]
    streams: list[Stream]
    generations: list[int]


@dataclass(slots=True)
class Guessed:
    """`count` tokens of a sample are guessed in a plan in flight; with the draw of its first row it knows `known` tokens."""

    stream: Stream
    generation: int
    count: int
    known: int


@dataclass(slots=True)
class PlannedStep:
    """`rows` are those that come after `decodes`."""

    id: int
    decodes: PlannedDecodes
    rows: list[PlannedRow] = field(default_factory=list)
    encodes: list[Entry] = field(default_factory=list)
    guessed: list[Guessed] = field(default_factory=list)


@dataclass(eq=False)
class InstanceState:
    """`filling` and `waiting` are keyed by sequence number; `running` is sorted by age, oldest first. `media` is None where
    no media are taken."""

    config: InstanceConfig
    ref: InstanceRef
    stop_probe: StopProbeFactory
    random: random.Random
    memory: KvMemory
    slots: SlotPool
    drafter: DrafterFactory  # asked only where the config says that tokens are guessed, and not by a draft model
    tasks: dict[TaskKey, Task] = field(default_factory=dict)
    by_serial: dict[int, Task] = field(default_factory=dict)
    media: MediaMemory | None = None
    staged: dict[int, StagingTask] = field(default_factory=dict)
    waiting: OrderedDict[int, Fill] = field(default_factory=OrderedDict)
    filling: OrderedDict[int, Fill] = field(default_factory=OrderedDict)
    running: list[Stream] = field(default_factory=list)
    in_flight: deque[PlannedStep] = field(default_factory=deque)
    timers: Timers = field(default_factory=Timers)
    share: int = 0  # most prefill tokens of one step, at most config.chunk_tokens; set by InstanceCore
    next_serial: int = 1
    next_plan: int = 1
    stale: int = 0  # commands and events of other attempts, dropped
    speculated: SpeculationCounts = field(default_factory=SpeculationCounts)
    blocked: tuple[int, int] | None = (
        None  # (sequence number, pages available) when one of the queue last did not fit, mostly its head
    )

    def tasks_of(self, request: str) -> list[Task]:
        """Every task of a request, those that encode first."""
        encodes: tuple[TaskKey, TaskKey] = (request, Role.ENCODE, False), (request, Role.ENCODE, True)
        keys: tuple[TaskKey, ...] = (*encodes, (request, Role.PREFILL), (request, Role.DECODE))
        return [task for key in keys if (task := self.tasks.get(key)) is not None]

    def streams_for(self, task: Task) -> tuple[Stream, ...]:
        """Fresh streams for every sample that has not ended."""
        return tuple(
            Stream(task, sample, (task.serial, sample), self.termination(task.request))
            for sample in live_samples(task.request, task.resumed)
        )

    def termination(self, request: Request) -> Termination:
        config = self.config
        return Termination(
            request, eos_ids=config.eos_ids, max_model_len=config.max_model_len, stop_probe=self.stop_probe
        )

    def add(self, task: Task) -> None:
        """The task is accepted under a serial taken from `next_serial`."""
        self.next_serial = task.serial + 1
        self.tasks[task.key] = self.by_serial[task.serial] = task
        self.watch(task)

    def watch(self, task: Task) -> None:
        """See that `task` is looked at when its time comes."""
        when = task.wakes_at()
        if when is not None:
            self.timers.add(when, task.serial)
        if len(self.timers) > TIMER_SLACK * len(self.by_serial) + 64:
            self.timers.keep(set(self.by_serial))

    def seat(self, stream: Stream) -> None:
        """Give `stream` a slot; the caller has checked that one is free."""
        if stream.slot is None:
            stream.slot = self.slots.take()

    def unseat(self, stream: Stream) -> None:
        """Take the slot away; whatever it is still drawing is discarded."""
        stream.generation += 1
        stream.pending = 0
        stream.seated = False
        if stream.slot is not None:
            self.slots.give(stream.slot)
            stream.slot = None

    def drop(self, stream: Stream) -> None:
        """Take from `stream` all that it holds."""
        if stream in self.running:
            self.running.remove(stream)
        self.unseat(stream)
        if stream.sequence is not None:
            self.forget(stream.sequence)
            stream.sequence = None

    def displace(self, sequence: Sequence) -> None:
        """Take `sequence` out of the queues and free its pages of KV."""
        self.waiting.pop(sequence.number, None)
        self.filling.pop(sequence.number, None)
        sequence.evict()

    def forget(self, sequence: Sequence) -> None:
        """Take `sequence` out of the queues, and from it all that it holds."""
        self.displace(sequence)
        if self.media is not None:
            self.media.forget(sequence.number)


def end_task(
    state: InstanceState, task: Task, trigger: Trigger, status: Status = Status.OK, reason: str = ""
) -> list[InstanceMessage]:
    """Free everything that `task` holds and report its single end, after word to the transfer that it was part of."""
    task.advance(trigger)
    for stream in task.streams:
        state.drop(stream)
    task.streams = ()  # they refer to the task: without this only the cycle collector could free either
    if task.sequence is not None:
        state.forget(task.sequence)
        task.sequence = None
    del state.tasks[task.key], state.by_serial[task.serial]
    messages: list[InstanceMessage] = []
    if isinstance(task, StagingTask):
        del state.staged[task.staging_key]
        pool = Pool.MEDIA if isinstance(task, EncodeTask) else Pool.KV
        messages.append(CloseStaging(task.staging_key, status, reason, pool))
    if state.media is not None:
        messages += state.media.abandon(task)
    if isinstance(task, DecodeTask) and task.pulling:
        messages.append(CancelPull(task.request.id))
    request, for_decode = task.request, isinstance(task, EncodeTask) and task.for_decode
    ended = TaskEnded(request.id, task.role, status, reason, task.preemptions, request.attempt, for_decode)
    messages.append(Report(ended))
    return messages
