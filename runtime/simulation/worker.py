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

from triptych.runtime.core.control import Heartbeat, InstanceLoad, InstanceReset, Reported, WorkerJoined
from triptych.runtime.core.instance import InstanceInfo, InstanceRef, Load
from triptych.runtime.core.request import PromptReport, TokenOut
from triptych.runtime.core.tasks import HeldTask, TaskCommand, TaskReport
from triptych.runtime.instance.messages import Emit, EmitPrompt
from triptych.runtime.simulation import transfer
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
        welcome_timeout: longest wait for the scheduler's answer to a registration.
    """

    retry: float = 0.2
    retry_most: float = 5.0
    welcome_timeout: float = 10.0


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
        self._control: End | None = None
        self._welcome: Welcome | None = None
        self._retry = config.retry
        self._sent_loads: dict[InstanceRef, Load] = {}
        self._subscribers: dict[str, End] = {}
        self._unread: dict[str, list[TokenBatch]] = {}
        self._sent: dict[str, deque[TokenBatch]] = {}  # the last batches of each gateway's subscription
        self._repeating: set[str] = set()

    @property
    def registered(self) -> bool:
        return self._welcome is not None

    def start(self) -> None:
        """Listen and register."""
        self._network.listen(self, self._accept)
        self._register(None)

    def lose_engine(self, instance: str) -> None:
        """A device program of `instance` fails."""
        self.instances[instance].lose_engine(self._epochs(), "engine failed")

    # ---- the scheduler

    def _register(self, _: None) -> None:
        end = self._network.dial(self, self._scheduler, SERVICE, self._hear, self._lost)
        self._control, self._welcome, self._sent_loads = end, None, {}
        end.send(WorkerJoined(self.name, self._infos(), self._held()))
        self._loop.after(self._config.welcome_timeout, self, self._give_up, end)

    def _held(self) -> tuple[HeldTask, ...]:
        return tuple(task for instance in self.instances.values() for task in instance.core.held())

    def _infos(self) -> tuple[InstanceInfo, ...]:
        return tuple(instance.info for instance in self.instances.values())

    def _give_up(self, end: End) -> None:
        if end is self._control and self._welcome is None:
            end.abort("no welcome")
            self._lost("no welcome")

    def _hear(self, message: object) -> None:
        match message:
            case Welcome():
                self._welcome = message
                self._retry = self._config.retry
                self._beat(self._control)
            case InstanceCommand():
                instance = self.instances.get(message.ref.id)
                if instance is not None:
                    instance.command(message.ref, message.command)

    def _lost(self, reason: str) -> None:
        self._control = self._welcome = None
        self._loop.after(self._retry * self._random.uniform(0.5, 1.0), self, self._register)
        self._retry = min(self._retry * 2, self._config.retry_most)

    def _beat(self, end: End | None) -> None:
        if end is None or end is not self._control or self._welcome is None:
            return
        loads = {instance.ref: instance.load() for instance in self.instances.values()}
        changed = tuple(InstanceLoad(ref, load) for ref, load in loads.items() if self._sent_loads.get(ref) != load)
        self._sent_loads = loads
        end.send(Heartbeat(self.name, changed))
        self._loop.after(self._welcome.heartbeat_interval, self, self._beat, end)

    # ---- Owner: from the instances

    def report(self, ref: InstanceRef, report: TaskReport) -> None:
        if self._control is not None:
            self._control.send(Reported(ref, report))

    def on_reset(self, old: InstanceRef, info: InstanceInfo, reason: str) -> None:
        if self._control is not None:
            self._control.send(InstanceReset(self.name, old, info, reason))
            self._sent_loads = {}

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
        else:
            end.on_message = lambda message: self._pulled(end, message)

    def _pulled(self, end: End, message: object) -> None:
        if isinstance(message, transfer.Open):
            instance = self.instances.get(message.owner.id)
            if instance is None:
                end.close(f"no instance {message.owner.id} here")
            else:
                instance.producer.admit(end, message)
