"""The instances of a study that live in one process, and the workers that they belong to: built, given the time, looked
at now and then."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from triptych.runtime.core.control import Heartbeat, InstanceLoad, Reported
from triptych.runtime.core.instance import Capacity, Compatibility, InstanceInfo, InstanceRef, Load, Role
from triptych.runtime.core.tasks import EncodeDone, TaskReport
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
        pixels: gateway to encode instance: to ask whether an item is needed, and to bring its pixels.
        pull: to set up a pull, and to hear that it is complete: every message from instance to instance.
    """

    admit: float = 1e-3
    command: float = 5e-4
    report: float = 5e-4
    token: float = 5e-4
    pull: float = 1e-3
    pixels: float = 2e-3


@dataclass(frozen=True)
class Kind:
    """`count` equal instances.

    Attributes:
        times: what their steps take.
        bandwidth: bytes a second of KV out and in.
        token_bytes: bytes of KV a token.
        composer: makes each instance's StepComposer.
        media_pages, encode_patches: see InstanceConfig; 0: it takes no media, or encodes nothing.
        embedding_bytes: of one embedding.
        weight_bytes: of all weights that an instance has, 0 if that is not known.
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
    media_pages: int = 0
    encode_patches: int = 0
    embedding_bytes: int = 0
    weight_bytes: int = 0

    @property
    def kv_bytes(self) -> int:
        """Of an instance's KV pool."""
        return self.num_pages * self.page_size * self.token_bytes if self.max_num_seqs else 0

    @property
    def media_bytes(self) -> int:
        """Of an instance's media pool."""
        return self.media_pages * self.page_size * self.embedding_bytes


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
        capacity = Capacity(
            kind.max_num_seqs,
            kind.num_pages,
            kind.page_size,
            kind.max_model_len,
            max(0, kind.media_pages - 1),
            kind.encode_patches,
        )
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
        around = Around(loop, post, self._report, self._emit, hear, book.draws, numbers.__getitem__)
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
            prefix_cache=kind.prefix_cache, media_pages=kind.media_pages, encode_patches=kind.encode_patches,
        )  # fmt: skip
        size, pull = kind.page_size, conditions.delays.pull
        wire = Wire(kind.bandwidth, pull, size * kind.token_bytes, size * kind.embedding_bytes)
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
        if isinstance(report, EncodeDone):
            self._hear(report.request, "encoded", self._loop.now())
        when = self._loop.now() + self._conditions.delays.report
        self._post.send(instance.number, CONTROL, when, Reported(instance.info.ref, report))

    def _emit(self, message: Emit | EmitPrompt) -> None:
        """Only a sample's first and last token are kept: TTFT, TPOT and E2E need no more."""
        if isinstance(message, EmitPrompt):
            self._hear(message.request, "cached", message.report.cached_tokens)
            return
        now = self._loop.now() + self._conditions.delays.token
        for token in message.tokens:
            request = self._book.find(token.request)
            if request is None:
                continue  # it failed, and the instance has not heard of that yet
            if token.position == len(request.prompt):
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
            kind = seat.kind
            used, media = _used(load.free_pages, kind.num_pages), _used(load.free_media_pages, kind.media_pages)
            one = Sighting(
                seat.number, seat.kind.name, load.running, load.waiting, used, computed, media, load.encoding
            )
            seen.append(one)
        self.sightings.append(seen)
        self._loop.after(max(interval, now / SAMPLES), None, self.watch, interval)


def _used(free: int, pages: int) -> float:
    """The share of a pool, of which one page is the null page, that is not free."""
    return 1.0 - free / (pages - 1) if pages > 1 else 0.0
