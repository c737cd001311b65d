"""A simulated worker process: its instances, its stream to the scheduler, the subscriptions of gateways, and pullers that come for KV.

What `runtime/worker` does around its instances, said again without sockets: it registers with what it holds and keeps running what it has when the
scheduler is away; what is reported meanwhile is dropped, because the registration after it says how things stand. Its epochs are those of its pools:
a new process has new ones.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from triptych.runtime.core.control import (
    Heartbeat,
    InstanceLeft,
    InstanceLoad,
    InstanceReset,
    Reported,
    Retire,
    RolesRefused,
    SetRoles,
    SetShare,
    WorkerJoined,
)
from triptych.runtime.core.instance import InstanceInfo, InstanceRef, Load
from triptych.runtime.core.request import PromptReport, TokenOut
from triptych.runtime.core.tasks import HeldTask, TaskCommand, TaskReport
from triptych.runtime.instance.messages import Emit, EmitPrompt
from triptych.runtime.simulation import media, transfer
from triptych.runtime.simulation.events import Process
from triptych.runtime.simulation.instance import Parts, SimInstance
from triptych.runtime.simulation.network import End, Network
from triptych.runtime.simulation.transfer import TransferConfig

SERVICE = "worker"  # of the scheduler: what a worker dials
TOKENS = "tokens"  # of a worker: what a gateway dials
REPEATED = 3  # token batches of a subscription that ended which may come again on the next


@dataclass(frozen=True, slots=True)
class Welcome:
    """The scheduler has accepted the registration."""

    heartbeat_interval: float


@dataclass(frozen=True, slots=True)
class InstanceCommand:
    """A command for one instance of the worker."""

    ref: InstanceRef
    command: TaskCommand


@dataclass(frozen=True, slots=True)
class Leave:
    """The last word of a process that ends in order."""

    reason: str


@dataclass(frozen=True, slots=True)
class PromptDone:
    """A prompt is computed, with its usage."""

    request: str
    attempt: int
    report: PromptReport


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """What one gateway is told at once."""

    prompts: tuple[PromptDone, ...]
    tokens: tuple[TokenOut, ...]


@dataclass(frozen=True)
class WorkerConfig:
    """Times in seconds.

    Attributes:
        retry: between attempts to reach the scheduler; doubled up to `retry_most`.
        welcome_timeout: longest wait for the instances' declarations and the scheduler's answer to a registration.
        orphan_seconds: without a scheduler for so long, everything that runs ends.
    """

    retry: float = 0.1
    retry_most: float = 1.0
    welcome_timeout: float = 10.0
    orphan_seconds: float = 30.0


Said = Reported | InstanceReset | InstanceLeft | RolesRefused


class _Registration:
    """One attempt to be registered, and the stream that it leads to.

    Attributes:
        declared: by instance, what it is and holds; what it says afterwards belongs on this stream.
        waiting: what instances said before the stream was there.
        loads: those that the scheduler knows.
    """

    __slots__ = ("declared", "end", "loads", "waiting", "welcome")

    def __init__(self) -> None:
        self.declared: dict[str, tuple[InstanceInfo, tuple[HeldTask, ...]]] = {}
        self.waiting: list[Said] = []
        self.end: End | None = None
        self.welcome: Welcome | None = None
        self.loads: dict[InstanceRef, Load] = {}


class SimWorker(Process):
    """One life of a worker. `start` once; `kill` ends it.

    Args:
        parts: of its instances.
        epochs: makes a fresh epoch for an instance that lost its pool.
    """

    def __init__(
        self,
        name: str,
        parts: Sequence[Parts],
        network: Network,
        *,
        scheduler: str,
        config: WorkerConfig,
        transfer: TransferConfig,
        source: random.Random,
        epochs: Callable[[], int],
    ):
        super().__init__(name)
        self._network = network
        self._loop = network.loop
        self._scheduler = scheduler
        self._config = config
        self._random = source
        self._epochs = epochs
        self.instances = {part.info.ref.id: SimInstance(part, self, self, network, transfer) for part in parts}
        self._registration: _Registration | None = None
        self._lives = 0
        self._retry = config.retry
        self._subscribers: dict[str, End] = {}
        self._unread: dict[str, list[TokenBatch]] = {}
        self._sent: dict[str, deque[TokenBatch]] = {}  # the last batches of each gateway's subscription
        self._repeating: set[str] = set()

    @property
    def registered(self) -> bool:
        """Whether the scheduler has accepted this worker and is still there."""
        return self._registration is not None and self._registration.welcome is not None

    def start(self) -> None:
        """Listen and register."""
        self._network.listen(self, self._accept)
        self._register(None)

    def lose_engine(self, instance: str) -> None:
        """A device program of `instance` fails."""
        self.instances[instance].lose_engine(self._epochs(), "engine failed")

    # ---- the scheduler

    def _register(self, _: None) -> None:
        """Ask every instance what it holds; connect when all have answered."""
        registration = self._registration = _Registration()
        self._loop.after(self._config.welcome_timeout, self, self._give_up, registration)
        for instance in self.instances.values():
            instance.declare(partial(self._declared, registration))

    def _declared(self, registration: _Registration, info: InstanceInfo, held: tuple[HeldTask, ...]) -> None:
        registration.declared[info.ref.id] = (info, held)
        if self._registration is registration and len(registration.declared) == len(self.instances):
            infos = tuple(info for info, _ in registration.declared.values())
            tasks = tuple(task for _, held in registration.declared.values() for task in held)
            end = registration.end = self._network.dial(
                self, self._scheduler, SERVICE, partial(self._hear, registration), partial(self._lost, registration)
            )
            end.send(WorkerJoined(self.name, infos, tasks))
            for event in registration.waiting:
                end.send(event)

    def _tell(self, instance: str, event: Said) -> None:
        """What an instance says before it has declared what it holds is dropped: the declaration tells how things stand."""
        registration = self._registration
        if registration is None or instance not in registration.declared:
            return
        if registration.end is None:
            registration.waiting.append(event)
        else:
            registration.end.send(event)

    def _give_up(self, registration: _Registration) -> None:
        if registration is self._registration and registration.welcome is None:
            if registration.end is not None:
                registration.end.abort("no welcome")
            self._lost(registration, "no welcome")

    def _hear(self, registration: _Registration, message: object) -> None:
        match message:
            case Welcome():
                registration.welcome = message
                self._lives += 1
                self._retry = self._config.retry
                self._beat(registration)
            case InstanceCommand():
                instance = self.instances.get(message.ref.id)
                if instance is not None:
                    instance.command(message.ref, message.command)
            case SetRoles():
                instance = self.instances.get(message.ref.id)
                if instance is not None and instance.info.ref == message.ref:
                    instance.set_roles(message.ref, message.roles, self._epochs())
            case SetShare():
                instance = self.instances.get(message.ref.id)
                if instance is not None and instance.info.ref == message.ref:
                    instance.set_share(message.ref, message.prefill_tokens)
            case Retire():
                self._retire(message)

    def _retire(self, order: Retire) -> None:
        """An instance goes for good; with the last one the process ends."""
        instance = self.instances.get(order.ref.id)
        if instance is None or instance.info.ref != order.ref:
            return
        if len(self.instances) == 1:
            self.leave("retired")
            return
        self.instances.pop(order.ref.id).stop(order.reason)
        self._tell(order.ref.id, InstanceLeft(self.name, order.ref, order.reason))

    def leave(self, reason: str) -> None:
        """Say good-bye and end, as at SIGTERM."""
        if self._registration is not None and self._registration.end is not None:
            self._registration.end.send(Leave(reason))
            self._registration.end.close(reason)
        self.kill()
        self._network.bury(self)

    def _lost(self, registration: _Registration, reason: str) -> None:
        if registration is not self._registration:
            return
        if registration.welcome is not None:
            self._loop.after(self._config.orphan_seconds, self, self._abandon, self._lives)
        self._registration = None
        self._loop.after(self._retry * self._random.uniform(0.5, 1.0), self, self._register)
        self._retry = min(self._retry * 2, self._config.retry_most)

    def _abandon(self, lives: int) -> None:
        """There has been no scheduler for too long, if it is still the same loss: nobody is left who would end tasks."""
        if lives == self._lives and not self.registered:
            for instance in self.instances.values():
                instance.abandon(f"there has been no scheduler for {self._config.orphan_seconds:g} s")

    def _beat(self, registration: _Registration) -> None:
        if registration is not self._registration or registration.end is None or registration.welcome is None:
            return
        loads = {instance.ref: instance.load() for instance in self.instances.values()}
        sent, registration.loads = registration.loads, loads
        changed = tuple(InstanceLoad(ref, load) for ref, load in loads.items() if sent.get(ref) != load)
        registration.end.send(Heartbeat(self.name, changed))
        self._loop.after(registration.welcome.heartbeat_interval, self, self._beat, registration)

    # ---- Owner: from the instances

    def report(self, ref: InstanceRef, report: TaskReport) -> None:
        self._tell(ref.id, Reported(ref, report))

    def on_reset(self, old: InstanceRef, info: InstanceInfo, reason: str) -> None:
        self._tell(old.id, InstanceReset(self.name, old, info, reason))
        if self._registration is not None:
            self._registration.loads = {}

    def on_roles_refused(self, ref: InstanceRef, reason: str) -> None:
        self._tell(ref.id, RolesRefused(self.name, ref, reason))

    def emit(self, message: Emit | EmitPrompt) -> None:
        if isinstance(message, Emit):
            batch = TokenBatch((), message.tokens)
        else:
            batch = TokenBatch((PromptDone(message.request, message.attempt, message.report),), ())
        end = self._subscribers.get(message.gateway)
        if end is not None and end.open:
            self._sent[message.gateway].append(batch)
            end.send(batch)
        else:
            self._unread.setdefault(message.gateway, []).append(batch)

    def repeat(self, gateway: str) -> None:
        """What was sent last to `gateway` is sent again when it subscribes next, whether it has arrived or not."""
        self._repeating.add(gateway)

    # ---- gateways and pullers

    def _accept(self, end: End, dialler: str, service: str) -> None:
        if service == TOKENS:
            old = self._subscribers.get(dialler)
            if old is not None:
                old.close("a newer subscription took over")
            self._subscribers[dialler] = end
            end.send(TokenBatch((), ()))  # as the live worker's headers: the subscription stands
            again = self._sent.get(dialler, ()) if dialler in self._repeating else ()
            self._repeating.discard(dialler)
            self._sent[dialler] = deque(maxlen=REPEATED)
            for batch in (*again, *self._unread.pop(dialler, ())):
                end.send(batch)
        elif service == media.SERVICE:
            end.on_message = lambda message: self._brought(end, message)
        else:
            end.on_message = lambda message: self._pulled(end, message)

    def _brought(self, end: End, first: object) -> None:
        """A gateway has pixels."""
        if not isinstance(first, media.Bring):
            return

        def told(wanted: bool, stale: bool) -> None:
            end.send(media.Answer(wanted, stale))

        instance = self.instances.get(first.owner.id)
        if instance is None:
            told(False, stale=True)
            return
        end.on_message = lambda _: instance.put(first.owner, first.hash, told)
        instance.asked(first.owner, first.hash, told)

    def _pulled(self, end: End, message: object) -> None:
        if isinstance(message, transfer.Keep) and (instance := self.instances.get(message.owner.id)) is not None:
            instance.producer.extend(message)
        if isinstance(message, transfer.Open):
            instance = self.instances.get(message.owner.id)
            if instance is None:
                end.close(f"no instance {message.owner.id} here")
            else:
                instance.producer.admit(end, message)
