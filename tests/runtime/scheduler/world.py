"""Builders and a driver for scheduler tests."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TypeVar

from triptych.runtime.core.clock import ManualClock
from triptych.runtime.core.control import (
    Completed,
    Declare,
    DrainEnded,
    DropWorker,
    Failed,
    GatewayJoined,
    GatewayNotice,
    Reported,
    Resume,
    SchedulerCommand,
    SchedulerEvent,
    SchedulerTick,
    Submit,
    ToGateway,
    ToInstance,
    ToWorker,
    WorkerJoined,
)
from triptych.runtime.core.handle import Handle
from triptych.runtime.core.instance import Capacity, Compatibility, InstanceInfo, InstanceRef, Role, TransportKind
from triptych.runtime.core.media import MediaItem, MediaKind
from triptych.runtime.core.request import Finish, FinishReason, Request, SampleState
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.core.tasks import TaskCommand, TaskReport
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.policies.queue_order import QueueOrder
from triptych.runtime.scheduler.policies.router import Router
from triptych.runtime.scheduler.scheduler import Scheduler

COMPATIBLE = Compatibility(protocol=1, model="toy", revision="r1", kv_dtype="float32", page_size=4, kv_layout="v1")
_LETTERS = {"e": Role.ENCODE, "p": Role.PREFILL, "d": Role.DECODE}

T = TypeVar("T")


def roles_of(letters: str) -> frozenset[Role]:
    """The roles that some of the letters "epd" name."""
    return frozenset(_LETTERS[letter] for letter in letters)


def info(
    name: str,
    roles: str,
    *,
    worker: str | None = None,
    epoch: int = 1,
    max_model_len: int = 64,
    compatibility: Compatibility = COMPATIBLE,
    transports: tuple[TransportKind, ...] = (TransportKind.GRPC,),
    domain: str = "",
    switchable: str = "",
    media_pages: int = 0,
    max_patches: int = 0,
) -> InstanceInfo:
    """An instance of its own worker `w-<name>` unless `worker` says otherwise; roles are some of the letters "epd"."""
    return InstanceInfo(
        ref=InstanceRef(name, epoch),
        worker=worker or f"w-{name}",
        address=f"{name}:1",
        roles=roles_of(roles),
        capacity=Capacity(4, 64, 4, max_model_len, media_pages=media_pages, max_patches=max_patches),
        compatibility=compatibility,
        transports=transports,
        domain=domain,
        switchable=roles_of(switchable),
    )


def image(hash: str, patches: int = 16, tokens: int = 4) -> MediaItem:
    """An image; `request` says where it is in the prompt."""
    return MediaItem(hash, MediaKind.IMAGE, 0, tokens, patches, (1, 1, tokens))


def audio(hash: str, patches: int = 16, tokens: int = 4) -> MediaItem:
    """A recording that every token attends to; it comes before all images."""
    return MediaItem(hash, MediaKind.AUDIO, 0, tokens, patches, (1, 1, tokens), attended=True)


def request(
    name: str,
    *,
    prompt: int = 4,
    gateway: str = "g",
    deadline: float | None = None,
    priority: int = 0,
    n: int = 1,
    attempt: int = 1,
    media: tuple[MediaItem, ...] = (),
) -> Request:
    """`media` come one behind the other, and make the prompt as long as they are, if it is shorter."""
    ends = list(accumulate(item.taken for item in media))
    placed = tuple(replace(item, offset=end - item.taken) for item, end in zip(media, ends, strict=True))
    prompt = max([prompt, *ends])
    return Request(
        id=name,
        gateway=gateway,
        model="toy",
        prompt=tuple(range(prompt)),
        sampling=SamplingParams(n=n),
        deadline=deadline,
        attempt=attempt,
        priority=priority,
        media=placed,
    )


def seen(*outputs: int, n: int = 1) -> tuple[SampleState, ...]:
    """Samples whose clients have seen `outputs[i]` tokens (0 for the rest); a negative number of tokens is a finished sample's."""
    counts = [*outputs, *[0] * (n - len(outputs))]
    return tuple(
        SampleState(i, tuple(range(abs(count))), Finish(FinishReason.STOP) if count < 0 else None)
        for i, count in enumerate(counts)
    )


def handle(owner: InstanceRef, key: int = 7) -> Handle:
    return Handle(owner, f"{owner.id}:1", key, "digest")


@dataclass
class Driver:
    """A scheduler, a clock, and everything it has said; the newest commands are those of the last event."""

    scheduler: Scheduler
    clock: ManualClock = field(default_factory=lambda: ManualClock(100.0))
    notices: dict[str, list[GatewayNotice]] = field(default_factory=dict)
    commands: list[ToInstance] = field(default_factory=list)
    drops: list[DropWorker] = field(default_factory=list)
    orders: list[ToWorker] = field(default_factory=list)
    drained: list[DrainEnded] = field(default_factory=list)
    last: list[SchedulerCommand] = field(default_factory=list)

    def send(self, event: SchedulerEvent) -> list[SchedulerCommand]:
        self.last = self.scheduler.handle(event, self.clock.now())
        self.scheduler.audit()
        for command in self.last:
            match command:
                case ToGateway():
                    self.notices.setdefault(command.gateway, []).append(command.notice)
                case ToInstance():
                    self.commands.append(command)
                case ToWorker():
                    self.orders.append(command)
                case DropWorker():
                    self.drops.append(command)
                case DrainEnded():
                    self.drained.append(command)
        return self.last

    def join(self, *infos: InstanceInfo) -> None:
        """Each worker registers its instances."""
        workers: dict[str, list[InstanceInfo]] = {}
        for one in infos:
            workers.setdefault(one.worker, []).append(one)
        for worker, owned in workers.items():
            self.send(WorkerJoined(worker, tuple(owned)))

    def submit(self, name: str, **options: object) -> list[SchedulerCommand]:
        return self.send(Submit(request(name, **options)))  # type: ignore[arg-type]

    def resume(self, name: str, attempt: int, *outputs: int, **options: object) -> list[SchedulerCommand]:
        """The gateway goes on with `name` from samples of which `outputs[i]` tokens have been seen."""
        made = request(name, attempt=attempt, **options)  # type: ignore[arg-type]
        return self.send(Resume(made, seen(*outputs, n=made.sampling.n)))

    def declare(self, name: str, **options: object) -> list[SchedulerCommand]:
        return self.send(Declare(request(name, **options)))  # type: ignore[arg-type]

    def report(self, instance: InstanceInfo, report: TaskReport) -> list[SchedulerCommand]:
        return self.send(Reported(instance.ref, report))

    def tick(self, seconds: float = 0.0) -> list[SchedulerCommand]:
        self.clock.advance(seconds)
        return self.send(SchedulerTick())

    def sent(self, kind: type[T], to: str | None = None) -> list[T]:
        """Every command of `kind` so far (to the instance called `to`)."""
        return [c.command for c in self.commands if isinstance(c.command, kind) and to in (None, c.ref.id)]

    def now_sent(self) -> list[tuple[str, TaskCommand]]:
        """Commands to instances that the last event caused: (instance name, command)."""
        return [(c.ref.id, c.command) for c in self.last if isinstance(c, ToInstance)]

    def told(self, kind: type[T], gateway: str = "g") -> list[T]:
        """Every notice of `kind` so far."""
        return [n for n in self.notices.get(gateway, []) if isinstance(n, kind)]

    def terminal(self, name: str, gateway: str = "g") -> Failed | Completed | None:
        """The request's terminal notice; fails if there are two."""
        found = [n for n in self.notices.get(gateway, []) if isinstance(n, Failed | Completed) and n.request == name]
        assert len(found) <= 1, found
        return found[0] if found else None

    def assert_nothing_is_held(self) -> None:
        held = self.scheduler.resources()
        assert held == replace(
            held, records=0, tasks=0, queued=0, timers=0, assigned=0, unclaimed=0, promised=0, wanting=0
        )
        assert self.scheduler.idle


def driver(
    *infos: InstanceInfo,
    config: SchedulerConfig | None = None,
    router: Router | None = None,
    order: QueueOrder | None = None,
) -> Driver:
    """A driver whose gateway "g" and instances have joined."""
    made = Driver(Scheduler(config, router, order))
    made.send(GatewayJoined("g"))
    made.join(*infos)
    return made
