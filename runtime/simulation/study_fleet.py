"""The instances of a study that live in one process, and the workers that they belong to: built, given the time, looked
at now and then."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from triptych.runtime.core.control import Heartbeat, InstanceLoad, Reported
from triptych.runtime.core.instance import Capacity, Compatibility, InstanceInfo, InstanceRef, Load, Role
from triptych.runtime.core.tasks import TaskReport
from triptych.runtime.instance.composer import DefaultComposer, StepComposer
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.messages import Emit, EmitPrompt
from triptych.runtime.simulation.events import EventLoop
from triptych.runtime.simulation.metrics import Sighting
from triptych.runtime.simulation.steptime import StepTimes
from triptych.runtime.simulation.study_book import MODEL, Book
from triptych.runtime.simulation.study_instance import Around, StudyInstance
from triptych.runtime.simulation.study_post import CONTROL, Hear, Post
from triptych.runtime.simulation.study_transfer import Wire

WORKER_INSTANCES = 8  # instances a worker process holds: one host's accelerators
SAMPLED = 256  # instances of a kind that the timeline looks at: every fortieth of ten thousand tells the mean
SAMPLES = 100  # of the timeline over the time in which requests arrive


@dataclass(frozen=True)
class Delays:
    """Seconds between the parties.

    Attributes:
        admit: gateway: from arrival to Submit (tokenising), and the way to the scheduler.
        command: scheduler to instance.
        report: instance to scheduler.
        token: instance to client.
        pull: to set up a pull, and to hear that it is complete: every message from instance to instance.
    """

    admit: float = 1e-3
    command: float = 5e-4
    report: float = 5e-4
    token: float = 5e-4
    pull: float = 1e-3


@dataclass(frozen=True)
class Kind:
    """`count` equal instances.

    Attributes:
        times: what their steps take.
        bandwidth: bytes a second of KV out and in.
        token_bytes: bytes of KV a token.
        composer: makes each instance's StepComposer.
    """

    name: str
    count: int
    roles: frozenset[Role]
    times: StepTimes
    num_pages: int
    page_size: int
    max_num_seqs: int
    max_model_len: int
    chunk_tokens: int
    max_prefill_rows: int
    bandwidth: float
    token_bytes: int
    prefix_cache: bool = True
    composer: Callable[[], StepComposer] = DefaultComposer


@dataclass(frozen=True, slots=True)
class Seat:
    """An instance before it is built: party `number` of the cluster, number `place` of its kind."""

    number: int
    place: int
    kind: Kind
    info: InstanceInfo

    @property
    def sampled(self) -> bool:
        return self.place % -(-self.kind.count // SAMPLED) == 0


@dataclass(frozen=True)
class Conditions:
    """What all instances have in common.

    Attributes:
        heartbeat: seconds between a worker's signs of life.
        max_waiting: of each instance's queue.
        leaps: see StudyInstance.
    """

    delays: Delays
    heartbeat: float = 1.0
    max_waiting: int = 256
    leaps: bool = True


def seats(kinds: Sequence[Kind]) -> list[list[Seat]]:
    """All instances of a cluster by worker; parties are numbered from 1."""
    workers: dict[str, list[Seat]] = {}
    number = CONTROL
    for kind in kinds:
        capacity = Capacity(kind.max_num_seqs, kind.num_pages, kind.page_size, kind.max_model_len)
        compatibility = Compatibility(1, MODEL, "study", "any", kind.page_size, "any")
        for place in range(kind.count):
            number += 1
            ref, worker = InstanceRef(f"{kind.name}-{place}", 1), f"{kind.name}-worker-{place // WORKER_INSTANCES}"
            info = InstanceInfo(ref, worker, worker, kind.roles, capacity, compatibility)
            workers.setdefault(worker, []).append(Seat(number, place, kind, info))
    return list(workers.values())


class Fleet:
    """Some of the workers of a cluster, idle. They hear and are heard through `post`."""

    def __init__(
        self,
        loop: EventLoop,
        post: Post,
        workers: Sequence[Sequence[Seat]],
        mine: Collection[int],
        conditions: Conditions,
        book: Book,
        hear: Hear,
    ):
        """`mine`: which of all `workers` live here; `book`: requests that their instances may be told of."""
        self.instances: dict[str, list[StudyInstance]] = {}
        self.sightings: list[list[Sighting]] = []
        self._loop, self._post, self._book, self._hear, self._conditions = loop, post, book, hear, conditions
        self._watched: list[tuple[Seat, StudyInstance]] = []
        self._loads: dict[int, Load] = {}
        numbers = {seat.info.ref.id: seat.number for worker in workers for seat in worker}
        around = Around(loop, post, self._report, self._emit, book.draws, numbers.__getitem__)
        for number, worker in enumerate(workers):
            if number in mine:
                instances = [self._build(seat, around) for seat in worker]
                first = conditions.heartbeat * (number + 1) / len(workers)  # workers do not beat in step
                loop.at(first, None, self._beat, instances)

    def _build(self, seat: Seat, around: Around) -> StudyInstance:
        kind, info, conditions = seat.kind, seat.info, self._conditions
        config = InstanceConfig(
            info.ref, info.worker, "", kind.roles, kind.num_pages, kind.page_size, kind.max_num_seqs, kind.max_model_len,
            chunk_tokens=kind.chunk_tokens, max_prefill_rows=kind.max_prefill_rows, max_waiting=conditions.max_waiting,
            prefix_cache=kind.prefix_cache,
        )  # fmt: skip
        wire = Wire(kind.bandwidth, conditions.delays.pull, kind.page_size * kind.token_bytes)
        instance = StudyInstance(
            seat.number, info, config, kind.times, wire, around, composer=kind.composer(), leaps=conditions.leaps
        )
        self._post.attach(seat.number, instance.receive)
        self.instances.setdefault(kind.name, []).append(instance)
        if seat.sampled:
            self._watched.append((seat, instance))
        return instance

    @property
    def steps(self) -> dict[int, int]:
        """So far, by number of the instance."""
        return {one.number: one.steps for instances in self.instances.values() for one in instances}

    def _beat(self, instances: list[StudyInstance]) -> None:
        changed = []
        for instance in instances:
            instance.tick()
            instance.settle()
            load = instance.core.load()
            if load != self._loads.get(instance.number):
                self._loads[instance.number] = load
                changed.append(InstanceLoad(instance.info.ref, load))
        first = instances[0]
        when = self._loop.now() + self._conditions.delays.report
        self._post.send(first.number, CONTROL, when, Heartbeat(first.info.worker, tuple(changed)))
        self._loop.after(self._conditions.heartbeat, None, self._beat, instances)

    def _report(self, instance: StudyInstance, report: TaskReport) -> None:
        when = self._loop.now() + self._conditions.delays.report
        self._post.send(instance.number, CONTROL, when, Reported(instance.info.ref, report))

    def _emit(self, message: Emit | EmitPrompt) -> None:
        """Only a sample's first and last token are kept: TTFT, TPOT and E2E need no more."""
        if isinstance(message, EmitPrompt):
            self._hear(message.request, "cached", message.report.cached_tokens)
            return
        now = self._loop.now() + self._conditions.delays.token
        for token in message.tokens:
            if token.position == len(self._book.request(token.request).prompt):
                self._hear(token.request, "first", now)
            if token.finish is not None:
                self._hear(token.request, "last", now)

    def watch(self, interval: float) -> None:
        """Look at the instances now, and again and again. In the tail of a run, in which the last long answers end, the
        looks are further apart: it may last much longer than the arrivals did."""
        now, seen = self._loop.now(), []
        for seat, instance in self._watched:
            instance.settle()
            load = instance.core.load()
            computed = min(instance.busy_seconds, instance.busy_seconds - max(0.0, instance.free_at - now))
            used = 1.0 - load.free_pages / (seat.info.capacity.num_pages - 1)
            seen.append(Sighting(seat.number, seat.kind.name, load.running, load.waiting, used, computed))
        self.sightings.append(seen)
        self._loop.after(max(interval, now / SAMPLES), None, self.watch, interval)
